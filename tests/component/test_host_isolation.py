"""What credentials can do, against a real API server: one host's against everything of another's (QUALITY.md S5).

The Host controller makes namespaces, accounts, bindings and tokens; here they are made by hand under the same
names. Refusals are real requests that must be answered 403, and nothing of the other host may have changed.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from kumulus.api.base import FINALIZER, Kind, Scope
from kumulus.api.compute import VirtualMachine
from kumulus.api.events import EventSink
from kumulus.api.fabric import host_namespace
from kumulus.api.host import AGENT_SERVICE_ACCOUNT, JOIN_SERVICE_ACCOUNT, LEASE, HostReport, WorkOrder
from kumulus.api.machine_import import FOUND, IMPORTED, IMPORTED_BY, UNMANAGE, VirtualMachineImport
from kumulus.api.registry import KINDS
from kumulus.api.storage import Volume
from kumulus.cli.cluster import Cluster
from kumulus.kube import errors
from kumulus_lab import deadline, kubeconfig
from kumulus_lab.cluster import NativeCluster
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]

UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
MERGE = "application/merge-patch+json"
RBAC = "rbac.authorization.k8s.io"
ADMISSION = "admissionregistration.k8s.io"


def builtin(group: str, kind: str, plural: str, scope: Scope = Scope.NAMESPACED, version: str = "v1") -> Kind:
    return Kind(group=group, version=version, kind=kind, plural=plural, scope=scope, status=False)


SECRET = builtin("", "Secret", "secrets")
ACCOUNT = builtin("", "ServiceAccount", "serviceaccounts")
NAMESPACE = builtin("", "Namespace", "namespaces", Scope.CLUSTER)
LEASES = builtin("coordination.k8s.io", "Lease", "leases")
BINDING = builtin(RBAC, "RoleBinding", "rolebindings")
ROLE = builtin(RBAC, "Role", "roles")
CLUSTER_ROLE = builtin(RBAC, "ClusterRole", "clusterroles", Scope.CLUSTER)
CLUSTER_BINDING = builtin(RBAC, "ClusterRoleBinding", "clusterrolebindings", Scope.CLUSTER)
OTHERS = (
    SECRET,
    ACCOUNT,
    LEASES,
    BINDING,
    ROLE,
    builtin("", "ConfigMap", "configmaps"),
    builtin("", "Pod", "pods"),
    builtin("", "Event", "events"),
    builtin("", "Service", "services"),
    builtin("", "PersistentVolumeClaim", "persistentvolumeclaims"),
    builtin("apps", "Deployment", "deployments"),
    builtin("apps", "DaemonSet", "daemonsets"),
    builtin("batch", "Job", "jobs"),
    builtin("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
    NAMESPACE,
    builtin("", "Node", "nodes", Scope.CLUSTER),
    CLUSTER_ROLE,
    CLUSTER_BINDING,
    builtin("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", Scope.CLUSTER),
    builtin(ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", Scope.CLUSTER),
    builtin(ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", Scope.CLUSTER),
    builtin(ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", Scope.CLUSTER),
    builtin(ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", Scope.CLUSTER),
    builtin("apiregistration.k8s.io", "APIService", "apiservices", Scope.CLUSTER),
    builtin("", "PersistentVolume", "persistentvolumes", Scope.CLUSTER),
    builtin("certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests", Scope.CLUSTER),
)
ALL = (*(resource.KIND for resource in KINDS), *OTHERS)
SUBRESOURCES = {
    **{resource.KIND.plural: ("status",) for resource in KINDS if resource.KIND.status},
    "serviceaccounts": ("token",),
    "pods": ("attach", "ephemeralcontainers", "eviction", "exec", "log", "portforward", "status"),
    "services": ("proxy",),
    "deployments": ("scale", "status"),
    "nodes": ("proxy", "status"),
    "namespaces": ("finalize", "status"),
    "certificatesigningrequests": ("approval", "status"),
}
SINGLE = {"get": "GET", "update": "PUT", "delete": "DELETE"}
ON_SUBRESOURCE = {"get": "GET", "update": "PUT", "create": "POST"}
PATCHES = (MERGE, "application/json-patch+json", "application/apply-patch+yaml")
MANY = {"list": "GET", "watch": "GET", "create": "POST", "deletecollection": "DELETE"}


@dataclass(frozen=True)
class HostSide:
    """A host as the API server knows it: its namespace and its agent's credentials."""

    name: str
    namespace: str
    token: str
    agent: Cluster


@dataclass(frozen=True)
class Cell:
    """One request that must be refused."""

    verb: str
    method: str
    path: str
    query: Mapping[str, str]
    content_type: str = "application/json"

    def __str__(self) -> str:
        return f"{self.verb} {self.path} {self.content_type}"


@pytest.fixture(scope="module")
def api(cluster: NativeCluster) -> Cluster:
    """The API server, as an administrator."""
    return Cluster.connect(cluster.kubeconfig)


@pytest.fixture(scope="module")
def login(cluster: NativeCluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the API server as whoever has a token."""
    folder, number = tmp_path_factory.mktemp("credentials"), itertools.count()

    def as_(token: str) -> Cluster:
        file: Path = folder / f"{next(number)}.kubeconfig"
        authority = cluster.authority.pair.certificate
        kubeconfig.write(file, server=cluster.server, authority=authority, token=token)
        return Cluster.connect(file)

    return as_


def bind(api: Cluster, namespace: str, account: str, role: str) -> None:
    api.create(ACCOUNT, {"metadata": {"name": account}}, namespace)
    body = {
        "metadata": {"name": account},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    api.create(BINDING, body, namespace)


def token(api: Cluster, namespace: str, account: str, **spec: Any) -> str:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = api.request("POST", ACCOUNT.path(namespace, account, "token"), body=body)
    return str(answer["status"]["token"])


def order(name: str = "instance-1", *, host: str = "a") -> Raw:
    return {
        "metadata": {"name": name, "finalizers": [FINALIZER, "example.com/other"], "labels": {"kumulus.io/x": "y"}},
        "spec": {
            "type": "Console",
            "for": {"kind": "VirtualMachine", "namespace": "default", "name": host, "uid": UID},
            "console": {"uid": UID, "maxBytes": 1024},
        },
    }


@pytest.fixture(scope="module")
def hosts(api: Cluster, login: Any) -> Iterator[tuple[HostSide, HostSide]]:
    """Two hosts with something to steal in each one's namespace."""
    made = []
    for name in ("iso-a", "iso-b"):
        namespace = host_namespace(name)
        api.create(NAMESPACE, {"metadata": {"name": namespace}})
        bind(api, namespace, AGENT_SERVICE_ACCOUNT, "kumulus-host-agent")
        bind(api, namespace, JOIN_SERVICE_ACCOUNT, "kumulus-host-join")
        api.create(WorkOrder.KIND, order(host=name), namespace)
        api.create(HostReport.KIND, {"metadata": {"name": name}, "spec": {}}, namespace)
        api.create(SECRET, {"metadata": {"name": "seed"}, "stringData": {"user-data": "secret"}}, namespace)
        api.create(LEASES, {"metadata": {"name": LEASE}, "spec": {"holderIdentity": name}}, namespace)
        secret = token(api, namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600)
        own = lambda there=namespace: api.find(ACCOUNT, "default", there)  # noqa: E731
        deadline.until(
            own, f"Kubernetes' own account in {namespace}", seconds=30
        )  # whose coming would look like a deed
        made.append(HostSide(name, namespace, secret, login(secret)))
    yield made[0], made[1]
    for side in made:
        for raw in api.objects(WorkOrder.KIND, side.namespace):
            api.patch(WorkOrder.KIND, raw["metadata"]["name"], {"metadata": {"finalizers": None}}, side.namespace)
        api.delete(NAMESPACE, side.namespace)


NAMES = {
    "workorders": "instance-1",
    "hostreports": "iso-b",
    "secrets": "seed",
    "serviceaccounts": AGENT_SERVICE_ACCOUNT,
    "leases": LEASE,
    "rolebindings": AGENT_SERVICE_ACCOUNT,
    "namespaces": host_namespace("iso-b"),
    "hosts": "iso-a",
    "nodes": "iso-a",
    "clusterroles": "kumulus-host-agent",
    "clusterrolebindings": "kumulus-controllers",
    "customresourcedefinitions": "workorders.host.kumulus.io",
    "validatingadmissionpolicies": "kumulus-host-agent",
}


def cells(places: tuple[str | None, ...]) -> Iterator[Cell]:
    """Every verb on every kind and subresource, in each of the namespaces; None is all namespaces at once."""
    for kind in ALL:
        name = NAMES.get(kind.plural, "x")
        for place in places if kind.namespaced else (None,):
            for verb, method in MANY.items():
                yield Cell(verb, method, kind.path(place), {"watch": "1"} if verb == "watch" else {})
            one = {"fieldSelector": f"metadata.name={name}"}
            yield Cell("list one", "GET", kind.path(place), one)
            yield Cell("watch one", "GET", kind.path(place), {"watch": "1", **one})
            if kind.namespaced and place is None:
                continue
            for sub in (None, *SUBRESOURCES.get(kind.plural, ())):
                path = kind.path(place, name, sub)
                for verb, method in (SINGLE if sub is None else ON_SUBRESOURCE).items():
                    yield Cell(verb, method, path, {})
                for patch in PATCHES:
                    query = {"fieldManager": "x", "force": "true"} if "apply" in patch else {}
                    yield Cell("patch", "PATCH", path, query, patch)


def status_of(client: Cluster, cell: Cell) -> int:
    """The HTTP status that the request is answered with; 200 when it succeeds."""
    body: object = None
    if cell.method in ("POST", "PUT", "PATCH"):
        body = {"metadata": {"name": "x"}}
    if "json-patch" in cell.content_type:
        body = [{"op": "add", "path": "/metadata/labels", "value": {}}]
    elif "apply" in cell.content_type:
        body = json.dumps(body).encode()
    try:
        client.request(cell.method, cell.path, query=cell.query, body=body, content_type=cell.content_type)
    except errors.ApiError as error:
        return error.status
    return 200


def versions(api: Cluster, namespace: str) -> Mapping[str, str]:
    return {
        f"{kind.plural}/{raw['metadata']['name']}": raw["metadata"]["resourceVersion"]
        for kind in (WorkOrder.KIND, HostReport.KIND, SECRET, ACCOUNT, LEASES, BINDING)
        for raw in api.objects(kind, namespace)
    }


def test_nothing_of_another_host_or_of_the_cluster_is_within_reach(
    api: Cluster, namespace: str, hosts: tuple[HostSide, HostSide]
) -> None:
    a, b = hosts
    before = versions(api, b.namespace)
    tenant, system = namespace, ("kube-system", "kumulus-system", "default", "kube-public", "kube-node-lease")
    answers = {str(cell): status_of(a.agent, cell) for cell in cells((b.namespace, tenant, *system, None))}
    assert len(answers) >= 2000
    assert {cell: status for cell, status in answers.items() if status != 403} == {}
    assert versions(api, b.namespace) == before


@pytest.mark.parametrize("home", [True, False], ids=["at home", "of another"])
def test_an_agent_gives_itself_no_rights(api: Cluster, hosts: tuple[HostSide, HostSide], home: bool) -> None:
    a, b = hosts
    place = (a if home else b).namespace
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*", "escalate", "bind", "impersonate"]}]
    me = [{"kind": "ServiceAccount", "name": AGENT_SERVICE_ACCOUNT, "namespace": a.namespace}]
    roles = (
        (ROLE, {"rules": everything}, place),
        (CLUSTER_ROLE, {"rules": everything}, None),
        *(
            (kind, {"roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": me}, where)
            for kind, where in ((BINDING, place), (CLUSTER_BINDING, None))
            for role in ("cluster-admin", "admin", "kumulus-controllers", "kumulus-host-agent")
        ),
    )
    for kind, body, where in roles:
        with pytest.raises(errors.Refused) as refused:
            a.agent.create(kind, {"metadata": {"name": "grab"}, **body}, where)
        assert refused.value.status == 403
    for kind, name, change in (
        (CLUSTER_ROLE, "kumulus-host-agent", {"rules": everything}),
        (CLUSTER_BINDING, "kumulus-controllers", {"subjects": me}),
        (BINDING, AGENT_SERVICE_ACCOUNT, {"subjects": me}),
    ):
        with pytest.raises(errors.Refused) as refused:
            a.agent.patch(kind, name, change, place if kind.namespaced else None)
        assert refused.value.status == 403


def test_an_agent_cannot_act_as_somebody_else(api: Cluster, namespace: str, hosts: tuple[HostSide, HostSide]) -> None:
    a, b = hosts
    account = "system:serviceaccount:{}:{}".format
    somebody = (
        {"Impersonate-User": account(b.namespace, AGENT_SERVICE_ACCOUNT)},
        {"Impersonate-User": account("kumulus-system", "kumulus-controllers")},
        {"Impersonate-User": account(a.namespace, AGENT_SERVICE_ACCOUNT), "Impersonate-Group": "system:masters"},
        {"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"},
        {"Impersonate-User": "system:kube-controller-manager"},
        {"Impersonate-User": "system:node:iso-b", "Impersonate-Group": "system:nodes"},
        {"Impersonate-User": "alice", "Impersonate-Uid": UID, "Impersonate-Extra-scopes": "x"},
    )
    got: dict[tuple[str, ...], int] = {}
    with urllib3.PoolManager(ca_cert_data=(api.ca or b"").decode()) as pool:
        for kind in (SECRET, WorkOrder.KIND, BINDING, VirtualMachine.KIND):
            for where in (a.namespace, b.namespace, namespace, "kube-system", "kumulus-system"):
                for who in somebody:
                    headers = {"Authorization": f"Bearer {a.token}", **who}
                    answer = pool.request("GET", api.server + kind.path(where), headers=headers)
                    got[kind.plural, where, *who.values()] = answer.status
    assert {request: status for request, status in got.items() if status != 403} == {}


def test_a_join_token_reaches_nothing_either(api: Cluster, login: Any, hosts: tuple[HostSide, HostSide]) -> None:
    a, b = hosts
    joining = login(join_token(api, a))
    matrix = list(cells((b.namespace, "kube-system", None)))
    assert len(matrix) > 200
    assert {str(cell) for cell in matrix if status_of(joining, cell) != 403} == set()
    api.delete(SECRET, "kumulus-join", a.namespace)


def allowed(client: Cluster, namespace: str) -> set[str]:
    """What the API server says these credentials may do in a namespace, beyond what everybody may."""
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = client.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body=body)
    return {
        f"{verb} {resource}" + "".join(f" {name}" for name in rule.get("resourceNames", ()))
        for rule in answer["status"]["resourceRules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if not resource.startswith("selfsubject")
    }


AGENT_MAY = {
    "get workorders",
    "list workorders",
    "watch workorders",
    "patch workorders",
    "patch workorders/status",
    "get hostreports",
    "create hostreports",
    "patch hostreports",
    "patch hostreports/status",
    "list unmanagedinstances",
    "create unmanagedinstances",
    "delete unmanagedinstances",
    "patch unmanagedinstances/status",
    "create leases",
    f"get leases {LEASE}",
    f"update leases {LEASE}",
    f"patch leases {LEASE}",
    "get secrets",
    f"create serviceaccounts/token {AGENT_SERVICE_ACCOUNT}",
}
JOIN_MAY = {
    f"create serviceaccounts/token {AGENT_SERVICE_ACCOUNT}",
    "get secrets kumulus-join",
    "delete secrets kumulus-join",
}


def test_at_home_an_agent_may_do_this_and_no_more(hosts: tuple[HostSide, HostSide]) -> None:
    a, b = hosts
    assert allowed(a.agent, a.namespace) == AGENT_MAY
    assert allowed(a.agent, b.namespace) == set()


def test_what_an_agent_does_works(api: Cluster, hosts: tuple[HostSide, HostSide]) -> None:
    a, _ = hosts
    home = a.namespace
    assert [raw["metadata"]["name"] for raw in a.agent.objects(WorkOrder.KIND, home)] == ["instance-1"]
    path = WorkOrder.KIND.path(home, "instance-1", "status")
    a.agent.request("PATCH", path, body={"status": {"state": "Ready"}}, content_type=MERGE)
    assert api.get(WorkOrder.KIND, "instance-1", home)["status"] == {"state": "Ready"}
    path = HostReport.KIND.path(home, a.name, "status")
    a.agent.request("PATCH", path, body={"status": {"hypervisorReady": True}}, content_type=MERGE)
    assert a.agent.get(SECRET, "seed", home)["data"]
    lease = a.agent.get(LEASES, LEASE, home)
    lease["spec"]["leaseTransitions"] = 1
    a.agent.request("PUT", LEASES.path(home, LEASE), body=lease)
    api.delete(LEASES, LEASE, home)
    a.agent.create(LEASES, {"metadata": {"name": LEASE}, "spec": {"holderIdentity": a.name}}, home)
    api.delete(HostReport.KIND, a.name, home)
    a.agent.create(HostReport.KIND, {"metadata": {"name": a.name}, "spec": {}}, home)
    assert token(a.agent, home, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600)


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"spec": {"console": {"maxBytes": 2}}}, "spec"),
        ({"spec": {"term": 7}}, "spec"),
        ({"metadata": {"labels": {"kumulus.io/x": "z"}}}, "metadata"),
        ({"metadata": {"labels": None}}, "metadata"),
        ({"metadata": {"annotations": {"kumulus.io/paused": "true"}}}, "metadata"),
        (
            {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": "seed", "uid": UID}]}},
            "metadata",
        ),
        ({"metadata": {"finalizers": None}}, "metadata.finalizers"),
        ({"metadata": {"finalizers": ["example.com/other"]}}, "metadata.finalizers"),
        ({"metadata": {"finalizers": [FINALIZER, "example.com/other", "example.com/more"]}}, "metadata.finalizers"),
    ],
    ids=json.dumps,
)
def test_an_agent_may_not_change_its_own_orders(hosts: tuple[HostSide, HostSide], patch: Raw, field: str) -> None:
    a, _ = hosts
    with pytest.raises(errors.Refused) as refused:
        a.agent.patch(WorkOrder.KIND, "instance-1", patch, a.namespace)
    assert refused.value.status == 403
    assert f"{field}: a host's agent may" in refused.value.message


def test_an_agent_takes_its_finalizer_off_a_deleted_order_and_no_other(
    api: Cluster, hosts: tuple[HostSide, HostSide]
) -> None:
    a, _ = hosts
    api.create(WorkOrder.KIND, order("going"), a.namespace)
    api.delete(WorkOrder.KIND, "going", a.namespace)
    for finalizers in ([], [FINALIZER]):
        with pytest.raises(errors.Refused, match="finalizers"):
            a.agent.patch(WorkOrder.KIND, "going", {"metadata": {"finalizers": finalizers}}, a.namespace)
    with pytest.raises(errors.Refused, match="spec"):
        a.agent.patch(WorkOrder.KIND, "going", {"spec": {"term": 9}}, a.namespace)
    a.agent.patch(WorkOrder.KIND, "going", {"metadata": {"finalizers": ["example.com/other"]}}, a.namespace)
    api.patch(WorkOrder.KIND, "going", {"metadata": {"finalizers": None}}, a.namespace)
    assert api.find(WorkOrder.KIND, "going", a.namespace) is None


def test_an_agent_has_one_lease_and_one_report(hosts: tuple[HostSide, HostSide]) -> None:
    a, b = hosts
    with pytest.raises(errors.Refused, match=r"metadata\.name"):
        a.agent.create(LEASES, {"metadata": {"name": "other"}, "spec": {}}, a.namespace)
    with pytest.raises(errors.Refused, match=r"metadata\.name"):
        a.agent.create(HostReport.KIND, {"metadata": {"name": b.name}, "spec": {}}, a.namespace)


def test_a_binding_too_many_still_opens_no_other_host(api: Cluster, hosts: tuple[HostSide, HostSide]) -> None:
    """The second lock: were A's agent bound in B's namespace by mistake, the policy would refuse its writes."""
    a, b = hosts
    body = {
        "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kumulus-host-agent"},
        "subjects": [{"kind": "ServiceAccount", "name": AGENT_SERVICE_ACCOUNT, "namespace": a.namespace}],
    }
    api.create(BINDING, body, b.namespace)
    try:
        deadline.until(lambda: "patch workorders" in allowed(a.agent, b.namespace), "the mistake", seconds=10)
        path = WorkOrder.KIND.path(b.namespace, "instance-1", "status")
        with pytest.raises(errors.Refused, match="own namespace"):
            a.agent.request("PATCH", path, body={"status": {"state": "Ready"}}, content_type=MERGE)
        with pytest.raises(errors.Refused, match="own namespace"):
            token(a.agent, b.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600)
    finally:
        api.delete(BINDING, "mistake", b.namespace)


def test_tokens_of_hosts_are_short(api: Cluster, hosts: tuple[HostSide, HostSide]) -> None:
    a, _ = hosts
    for client in (a.agent, api):
        with pytest.raises(errors.Refused, match="expirationSeconds"):
            token(client, a.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3601)
    with pytest.raises(errors.Refused, match="boundObjectRef"):
        token(api, a.namespace, JOIN_SERVICE_ACCOUNT, expirationSeconds=600)
    with pytest.raises(errors.Refused):
        token(a.agent, a.namespace, JOIN_SERVICE_ACCOUNT, expirationSeconds=600)
    secret = {
        "metadata": {"name": "for-ever", "annotations": {"kubernetes.io/service-account.name": AGENT_SERVICE_ACCOUNT}},
        "type": "kubernetes.io/service-account-token",
    }
    with pytest.raises(errors.Refused, match="type"):
        api.create(SECRET, secret, a.namespace)


def join_token(api: Cluster, side: HostSide) -> str:
    """A one-time token as `kumulusctl host add` makes it: bound to a Secret that is burnt with it."""
    secret = api.create(SECRET, {"metadata": {"name": "kumulus-join"}}, side.namespace)
    ref = {"apiVersion": "v1", "kind": "Secret", "name": "kumulus-join", "uid": secret["metadata"]["uid"]}
    return token(api, side.namespace, JOIN_SERVICE_ACCOUNT, expirationSeconds=3600, boundObjectRef=ref)


def test_a_join_token_is_good_for_one_agent_s_token(api: Cluster, login: Any, hosts: tuple[HostSide, HostSide]) -> None:
    a, b = hosts
    joining = login(join_token(api, a))
    assert allowed(joining, a.namespace) == JOIN_MAY
    with pytest.raises(errors.Refused):
        token(joining, b.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600)
    with pytest.raises(errors.Refused):
        joining.get(SECRET, "seed", a.namespace)
    agent = login(token(joining, a.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600))
    assert agent.objects(WorkOrder.KIND, a.namespace)
    joining.delete(SECRET, "kumulus-join", a.namespace)

    def burnt() -> bool:
        try:
            token(joining, a.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=3600)
        except errors.Refused as error:
            return error.status == 401
        return False

    # The API server remembers for ten seconds that a token was good.
    deadline.until(burnt, "the end of the join token", seconds=20)
    assert agent.objects(WorkOrder.KIND, a.namespace)


def may(api: Cluster, user: str, verb: str, kind: Kind, namespace: str | None, *, groups: tuple[str, ...] = ()) -> bool:
    attributes = {"verb": verb, "group": kind.group, "resource": kind.plural, "namespace": namespace or ""}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": ["system:authenticated", *groups], "resourceAttributes": attributes},
    }
    answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body=body)
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_tenants_get_their_kinds_through_the_roles_of_kubernetes(api: Cluster, namespace: str, role: str) -> None:
    body = {
        "metadata": {"name": "alice"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "apiGroup": RBAC, "name": "alice"}],
    }
    api.create(BINDING, body, namespace)
    deadline.until(
        lambda: may(api, "alice", "list", VirtualMachine.KIND, namespace), "the roles to be aggregated", seconds=20
    )
    tenant = {"virtualmachines", "images", "imageuploads", "volumes", "consolerequests"}
    tenant |= {"volumesnapshots", "virtualmachinesnapshots", "virtualmachinerestores", "virtualmachinepools"}
    tenant |= {"virtualmachinemigrations", "placementgroups", "eventsinks"}
    tenant |= {"networks", "networkinterfaces", "securitygroups", "routers", "floatingips", "loadbalancers"}
    shown = {"ipaddresses"}
    offers = {"instancetypes", "volumeclasses", "networkclasses", "externalnetworks", "clusterimages", "zones"}
    writing = {"create", "update", "patch", "delete"}
    for kind in (resource.KIND for resource in KINDS):
        for verb in ("get", "list", "watch", *writing):
            reading = verb not in writing
            theirs = (kind.plural in tenant and (reading or role != "view")) or (kind.plural in shown and reading)
            offered = kind.plural in offers and reading
            if kind.namespaced or not offered:
                assert may(api, "alice", verb, kind, namespace if kind.namespaced else None) == theirs, (
                    verb,
                    kind.plural,
                )
    for kind in (VirtualMachine.KIND, WorkOrder.KIND):
        assert not may(api, "alice", "get", kind, "default")


CONTROLLERS = "kumulus-controllers"


@pytest.fixture(scope="module")
def controllers(api: Cluster, login: Any) -> Cluster:
    """The API server, as the controllers."""
    client: Cluster = login(token(api, "kumulus-system", CONTROLLERS, expirationSeconds=3600))
    return client


def test_controllers_keep_within_their_bounds(
    api: Cluster, controllers: Cluster, namespace: str, hosts: tuple[HostSide, HostSide]
) -> None:
    a, _ = hosts
    secret = {"metadata": {"name": "s"}, "stringData": {"a": "b"}}
    controllers.create(SECRET, secret, a.namespace)
    controllers.delete(SECRET, "s", a.namespace)
    authority = {"metadata": {"name": "kumulus-authority"}, "stringData": {"tls.key": "k"}}
    controllers.create(SECRET, authority, "kumulus-system")
    with pytest.raises(errors.Refused):
        controllers.delete(SECRET, "kumulus-authority", "kumulus-system")
    api.delete(SECRET, "kumulus-authority", "kumulus-system")
    binding = {
        "metadata": {"name": "grab"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kumulus-host-agent"},
        "subjects": [{"kind": "ServiceAccount", "name": CONTROLLERS, "namespace": "kumulus-system"}],
    }
    for kind, body, where in (
        (SECRET, secret, namespace),
        (SECRET, secret, "kube-system"),
        (SECRET, secret, "kumulus-system"),
        (SECRET, authority, namespace),
        (ACCOUNT, {"metadata": {"name": "s"}}, namespace),
        (NAMESPACE, {"metadata": {"name": "not-a-host"}}, None),
        (BINDING, binding, namespace),
        (WorkOrder.KIND, order(), namespace),
        (BINDING, {**binding, "roleRef": {**binding["roleRef"], "name": "cluster-admin"}}, a.namespace),
    ):
        with pytest.raises(errors.Refused) as refused:
            controllers.create(kind, body, where)
        assert refused.value.status == 403
    for name in ("default", "kube-system", namespace):
        with pytest.raises(errors.Refused):
            controllers.delete(NAMESPACE, name)
    with pytest.raises(errors.Refused):
        controllers.objects(SECRET, namespace)
    with pytest.raises(errors.Refused):
        token(controllers, a.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=600)


def test_controllers_never_write_what_a_user_wrote(api: Cluster, controllers: Cluster, namespace: str) -> None:
    vm = {"metadata": {"name": "web"}, "spec": {"resources": {"cpus": 1, "memory": "1Gi"}}}
    api.create(VirtualMachine.KIND, vm, namespace)
    controllers.patch(VirtualMachine.KIND, "web", {"metadata": {"finalizers": [FINALIZER]}}, namespace)
    path = VirtualMachine.KIND.path(namespace, "web", "status")
    controllers.request("PATCH", path, body={"status": {"phase": "Pending"}}, content_type=MERGE)
    with pytest.raises(errors.Refused, match="spec: "):
        controllers.patch(VirtualMachine.KIND, "web", {"spec": {"powerState": "Stopped"}}, namespace)
    controllers.patch(VirtualMachine.KIND, "web", {"metadata": {"finalizers": None}}, namespace)


def test_a_host_s_life_as_the_controllers_make_it(api: Cluster, controllers: Cluster, login: Any) -> None:
    home = host_namespace("iso-c")
    controllers.create(NAMESPACE, {"metadata": {"name": home}})
    bind(controllers, home, AGENT_SERVICE_ACCOUNT, "kumulus-host-agent")
    bind(controllers, home, JOIN_SERVICE_ACCOUNT, "kumulus-host-join")
    controllers.create(WorkOrder.KIND, order(), home)
    controllers.patch(WorkOrder.KIND, "instance-1", {"spec": {"term": 3}}, home)
    agent = login(token(api, home, AGENT_SERVICE_ACCOUNT, expirationSeconds=600))
    assert agent.get(WorkOrder.KIND, "instance-1", home)["spec"]["term"] == 3
    with pytest.raises(errors.Refused):
        controllers.request(
            "PATCH",
            WorkOrder.KIND.path(home, "instance-1", "status"),
            body={"status": {"state": "Ready"}},
            content_type=MERGE,
        )
    controllers.delete(WorkOrder.KIND, "instance-1", home)
    controllers.patch(WorkOrder.KIND, "instance-1", {"metadata": {"finalizers": None}}, home)
    controllers.delete(NAMESPACE, home)
    deadline.until(lambda: api.find(NAMESPACE, home) is None, "the end of the namespace", seconds=30)


def test_an_operator_joins_hosts_and_reads_no_secret(
    api: Cluster, login: Any, namespace: str, hosts: tuple[HostSide, HostSide]
) -> None:
    a, _ = hosts
    api.create(ACCOUNT, {"metadata": {"name": "olga"}}, namespace)
    body = {
        "metadata": {"name": f"olga-{namespace}"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kumulus-operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "olga", "namespace": namespace}],
    }
    api.create(CLUSTER_BINDING, body)
    try:
        olga = login(token(api, namespace, "olga"))
        deadline.until(lambda: "create secrets" in allowed(olga, a.namespace), "the role", seconds=10)
        assert join_token(olga, a)
        olga.delete(SECRET, "kumulus-join", a.namespace)
        for where in (namespace, "kube-system"):
            for name in ("s", "kumulus-join"):
                with pytest.raises(errors.Refused):
                    olga.create(SECRET, {"metadata": {"name": name}}, where)
        with pytest.raises(errors.Refused):
            olga.get(SECRET, "seed", a.namespace)
        with pytest.raises(errors.Refused):
            olga.objects(SECRET)
        with pytest.raises(errors.Refused):
            token(olga, a.namespace, AGENT_SERVICE_ACCOUNT, expirationSeconds=600)
        with pytest.raises(errors.Refused):
            olga.create(WorkOrder.KIND, order(), a.namespace)
        assert olga.objects(WorkOrder.KIND, a.namespace)
        _may_not_have_secrets_sent(api, olga, namespace)
    finally:
        api.delete(CLUSTER_BINDING, f"olga-{namespace}")


def _may_not_have_secrets_sent(api: Cluster, olga: Cluster, namespace: str) -> None:
    """A sink's Secret goes to its receiver: who may not read it says neither that it goes, nor where to."""
    bus: Raw = {"nats": {"url": "tls://bus.example.com", "credentials": {"name": "theirs", "key": "password"}}}
    hook: Raw = {"http": {"url": "https://hooks.example.com/", "secret": {"name": "theirs", "key": "password"}}}
    for where in (namespace, "kumulus-system"):
        for spec in (bus, hook):
            with pytest.raises(errors.Refused, match="may not read the Secret theirs") as refused:
                olga.create(EventSink.KIND, {"metadata": {"name": "spy"}, "spec": spec}, where)
            assert refused.value.status == 403
    api.create(EventSink.KIND, {"metadata": {"name": "theirs"}, "spec": bus}, namespace)
    try:
        with pytest.raises(errors.Refused, match="may not read the Secret theirs"):
            olga.patch(EventSink.KIND, "theirs", {"spec": {"nats": {"url": "nats://evil.example.com"}}}, namespace)
        assert olga.patch(EventSink.KIND, "theirs", {"spec": {"suspend": True}}, namespace), "it goes where it went"
    finally:
        api.delete(EventSink.KIND, "theirs", namespace)
    plain = {"metadata": {"name": "plain"}, "spec": {"http": {"url": "https://hooks.example.com/"}}}
    olga.create(EventSink.KIND, plain, namespace)
    olga.delete(EventSink.KIND, "plain", namespace)


def test_a_tenant_with_everything_in_its_namespace_still_makes_secrets(
    api: Cluster, login: Any, namespace: str
) -> None:
    """The policy on operators' Secrets is none on anybody else's. Data in pools is another matter."""
    bind(api, namespace, "tenant", "edit")
    tenant = login(token(api, namespace, "tenant"))
    end = time.monotonic() + 10 * PATIENCE
    while True:
        try:
            tenant.create(SECRET, {"metadata": {"name": "s"}}, namespace)
            break
        except errors.Refused:
            assert time.monotonic() < end
            time.sleep(0.2)
    existing = {"pool": "local", "host": "h1", "id": UID}
    with pytest.raises(errors.Refused) as refused:
        tenant.create(Volume.KIND, _adopting("foreign", {**existing, "foreign": True}), namespace)
    assert refused.value.status == 403 and "you may not adopt data of StoragePool local" in str(refused.value)
    tenant.create(Volume.KIND, _adopting("own", existing), namespace)
    api.create(Volume.KIND, _adopting("given", {**existing, "foreign": True}), namespace)
    labels = {"metadata": {"labels": {"mine": "yes"}}}
    assert tenant.patch(Volume.KIND, "given", labels, namespace), "what an operator gave is the tenant's"
    for name in ("own", "given"):
        tenant.delete(Volume.KIND, name, namespace)
    _may_not_import(api, tenant, namespace)
    signed = {"http": {"url": "https://hooks.example.com/", "secret": {"name": "s", "key": "k"}}}
    tenant.create(EventSink.KIND, {"metadata": {"name": "own"}, "spec": signed}, namespace)
    tenant.delete(EventSink.KIND, "own", namespace)


def _may_not_import(api: Cluster, tenant: Cluster, namespace: str) -> None:
    """Nor are domains of hosts a tenant's, or machines that nobody counts."""
    spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "powerState": "Stopped"}
    for annotation in (IMPORTED, IMPORTED_BY, UNMANAGE):
        marked = {"metadata": {"name": "marked", "annotations": {annotation: "true"}}, "spec": spec}
        with pytest.raises(errors.Refused, match="operator"):
            tenant.create(VirtualMachine.KIND, marked, namespace)
    tenant.create(VirtualMachine.KIND, {"metadata": {"name": "plain"}, "spec": spec}, namespace)
    for annotation in (IMPORTED, UNMANAGE):
        change = {"metadata": {"annotations": {annotation: "true"}}}
        with pytest.raises(errors.Refused, match="operator"):
            tenant.patch(VirtualMachine.KIND, "plain", change, namespace)
    api.patch(VirtualMachine.KIND, "plain", {"metadata": {"annotations": {UNMANAGE: "true"}}}, namespace)
    label = {"metadata": {"labels": {"mine": "yes"}}}
    assert tenant.patch(VirtualMachine.KIND, "plain", label, namespace), "what is there is not asked again"
    tenant.delete(VirtualMachine.KIND, "plain", namespace)
    tenant.create(Volume.KIND, {"metadata": {"name": "plain"}, "spec": {"size": "16Mi"}}, namespace)
    with pytest.raises(errors.Refused, match="operator"):
        tenant.patch(Volume.KIND, "plain", {"metadata": {"annotations": {FOUND: f"h1/local/{UID}/{UID}"}}}, namespace)
    tenant.delete(Volume.KIND, "plain", namespace)
    wanted = {"unmanagedInstance": {"host": "h1", "name": UID}, "template": {"namespace": namespace, "name": "vm"}}
    with pytest.raises(errors.Refused) as refused:
        tenant.create(VirtualMachineImport.KIND, {"metadata": {"name": "get"}, "spec": wanted}, namespace)
    assert refused.value.status == 403


def _adopting(name: str, existing: Raw) -> Raw:
    return {"metadata": {"name": name}, "spec": {"source": {"existing": existing}}}
