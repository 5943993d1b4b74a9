"""What `net trace` reads of other namespaces, and what it says that it may not."""

from __future__ import annotations

from typing import Any, cast

from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.cli.session import Session
from kumulus.cli.tracing import gather
from kumulus.kube import errors

HERE, THERE, SECRET = "here", "there", "secret"


class _Cluster:
    """Objects by kind and namespace; groups of one namespace are nobody's business."""

    def __init__(self) -> None:
        def nic(namespace: str) -> dict[str, Any]:
            spec = {"network": "wide", "networkNamespace": THERE}
            return _raw("nic", namespace, spec, {"network": f"wide{THERE}"})

        shared = _raw("wide", THERE, {"type": "Shared", "cidrs": ["10.0.0.0/24"]})
        self.networks = {(THERE, "wide"): shared}
        self.held = {
            (NetworkInterface.KIND, HERE): [nic(HERE)],
            (NetworkInterface.KIND, None): [nic(HERE), nic(THERE), nic(SECRET)],
            (Router.KIND, THERE): [_raw("gw", THERE, {"networks": ["wide"]})],
            (SecurityGroup.KIND, THERE): [_raw("default", THERE, {})],
        }

    def objects(self, kind: Any, namespace: str | None, fields: str | None = None) -> list[dict[str, Any]]:
        if namespace == SECRET:
            raise errors.Refused(403, "Forbidden", "not yours")
        return self.held.get((kind, namespace), [])

    def find(self, kind: Any, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        assert kind == Network.KIND
        return self.networks.get((str(namespace), name))


def _raw(name: str, namespace: str, spec: Any, status: Any = None) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"{name}{namespace}"},
        "spec": spec,
        "status": status or {},
    }


class _Session:
    cluster = _Cluster()


def test_groups_of_others_in_a_shared_network_are_read_or_said_to_be_unread() -> None:
    scene = gather(cast(Session, _Session()), {HERE})
    assert [nic.namespace for nic in scene.interfaces] == [HERE, THERE, SECRET]
    assert [group.namespace for group in scene.groups] == [THERE]
    assert scene.unread == {SECRET}
    assert scene.partial == {f"gw{THERE}"}, "its router's other networks were not read"
