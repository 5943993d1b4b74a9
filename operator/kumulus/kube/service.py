"""Services and EndpointSlices of Kubernetes, as far as Kumulus reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, TypeVar

from pydantic import BeforeValidator, Field

from kumulus.api.base import DOMAIN, Kind, Model, Resource, Status
from kumulus.kube.builtin import ENDPOINT_SLICE, SERVICE

VM_NETWORK = f"network.{DOMAIN}/vm-network"
"""Label of a Service: its selector means VirtualMachines too, which are reached by their interfaces in the Network of this
name. A label, so that nobody but the Services that have it need be watched."""
VM_NETWORK_NAMESPACE = f"{VM_NETWORK}-namespace"
"""Label of a Service: namespace of that Network, when it is another one's (of the type Shared)."""

PUBLISHED = f"network.{DOMAIN}/EndpointsPublished"
"""Type of the condition of a Service: whether all machines that it selects are its endpoints."""

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
HEADLESS = "service.kubernetes.io/headless"
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""Labels of EndpointSlices: https://kubernetes.io/docs/reference/labels-annotations-taints/"""


T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(lambda value: () if value is None else value)]
"""A list that the API server gives as `null` when it is empty."""


class ServiceType(StrEnum):
    """How a Service is offered."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class ServicePort(Model):
    """A port of a Service."""

    name: str | None = None
    protocol: str = "TCP"
    app_protocol: str | None = None
    port: int
    target_port: int | str | None = None


class ServiceSpec(Model):
    """What Kumulus reads of a Service. Fields that later versions of Kubernetes know besides are left alone."""

    type: str = ServiceType.CLUSTER_IP
    selector: Mapping[str, str] = Field(default_factory=dict)
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str | None = Field(default=None, alias="clusterIP")
    ip_families: tuple[str, ...] = ()
    publish_not_ready_addresses: bool = False
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None


class Service(Resource):
    """A Service. Of its status there are the conditions, all of them, whosever they are."""

    KIND: ClassVar[Kind] = SERVICE

    spec: ServiceSpec = Field(default_factory=ServiceSpec)
    status: Status = Field(default_factory=Status)

    @property
    def network(self) -> str | None:
        """Name of the Network by which it reaches machines; None for a Service that is not about machines."""
        return self.metadata.labels.get(VM_NETWORK)

    @property
    def network_namespace(self) -> str | None:
        """Namespace of that Network, when it is said."""
        return self.metadata.labels.get(VM_NETWORK_NAMESPACE)

    @property
    def headless(self) -> bool:
        """Whether it has no address of its own: its name stands for those of its endpoints."""
        return self.spec.cluster_ip == "None"

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether its selector takes what has these labels. One without a selector takes nothing."""
        wanted = self.spec.selector
        return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


class AddressType(StrEnum):
    """What the addresses of a slice are; also how a Service names families."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


class EndpointConditions(Model):
    """Whether an endpoint is to be used. All three are always written."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(Model):
    """What an endpoint is."""

    api_version: str | None = None
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None


class Endpoint(Model):
    """Where a Service is to be had."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = Field(default_factory=EndpointConditions)
    hostname: str | None = None
    target_ref: TargetRef | None = None


class EndpointPort(Model):
    """A port of all endpoints of a slice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(Resource):
    """Some endpoints of a Service, of one family: https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/"""

    KIND: ClassVar[Kind] = ENDPOINT_SLICE

    address_type: str = AddressType.IPV4
    endpoints: Listed[Endpoint] = ()
    ports: Listed[EndpointPort] = ()

    @property
    def service(self) -> str:
        """Name of the Service."""
        return self.metadata.labels.get(SERVICE_NAME, "")
