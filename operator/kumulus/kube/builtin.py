"""Kinds of Kubernetes itself that Kumulus uses."""

from __future__ import annotations

from kumulus.api.base import Kind, Scope

NAMESPACE = Kind(group="", version="v1", kind="Namespace", plural="namespaces", scope=Scope.CLUSTER)
SECRET = Kind(group="", version="v1", kind="Secret", plural="secrets", status=False)
SERVICE_ACCOUNT = Kind(group="", version="v1", kind="ServiceAccount", plural="serviceaccounts", status=False)
LEASE = Kind(group="coordination.k8s.io", version="v1", kind="Lease", plural="leases", status=False)
ROLE_BINDING = Kind(
    group="rbac.authorization.k8s.io", version="v1", kind="RoleBinding", plural="rolebindings", status=False
)
EVENT = Kind(group="events.k8s.io", version="v1", kind="Event", plural="events", status=False)
SERVICE = Kind(group="", version="v1", kind="Service", plural="services")
ENDPOINT_SLICE = Kind(
    group="discovery.k8s.io", version="v1", kind="EndpointSlice", plural="endpointslices", status=False
)
SERVICE_CIDR = Kind(
    group="networking.k8s.io", version="v1", kind="ServiceCIDR", plural="servicecidrs", scope=Scope.CLUSTER
)
TOKEN_REQUEST = Kind(group="authentication.k8s.io", version="v1", kind="TokenRequest", plural="tokenrequests")
