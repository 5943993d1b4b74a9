"""What `host fence` does about a host that is being fenced already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kumulus.api.base import Kind
from kumulus.api.fabric import Host
from kumulus.api.remediation import HostRemediation
from kumulus.cli.fencing import _fence
from kumulus.cli.session import Session

PROOF = {"witness": "pool", "kind": "Storage", "says": "Alive", "message": "it writes"}
HOST = {
    "metadata": {"name": "h1", "uid": "h"},
    "spec": {"zone": "z", "fencing": {"watchdog": True}},
    "status": {"phase": "NotReady", "witnesses": [PROOF]},
}


def remediation(name: str, made: str, phase: str, host: str = "h1") -> dict[str, Any]:
    meta = {"name": name, "uid": name, "creationTimestamp": made}
    return {"metadata": meta, "spec": {"host": host, "methods": ["manual"]}, "status": {"phase": phase}}


class _Cluster:
    def __init__(self, *there: dict[str, Any]) -> None:
        self._there = there
        self.patched: dict[str, Any] = {}
        self.made: list[dict[str, Any]] = []

    def objects(self, kind: Kind) -> list[dict[str, Any]]:
        assert kind is HostRemediation.KIND
        return list(self._there)

    def find(self, *_: object) -> None:
        return None

    def patch(self, _kind: Kind, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        self.patched[name] = patch["spec"]
        return next(item for item in self._there if item["metadata"]["name"] == name)

    def create(self, _kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        self.made.append(body["spec"])
        return {"metadata": {**body["metadata"], "uid": "new"}, "spec": body["spec"]}


def fence(cluster: _Cluster) -> None:
    session = SimpleNamespace(cluster=cluster, fetch=lambda *_: HOST, printer=SimpleNamespace(done=lambda *_: None))
    _fence(cast(Session, session), "h1", despite_witnesses=True, wait=False)


def test_what_waits_for_a_witness_goes_on_when_it_is_said_so() -> None:
    assert Host.parse(HOST).spec.fencing.watchdog
    first, second = (
        remediation("b", "2026-01-01T00:00:00Z", "Pending"),
        remediation("a", "2026-01-02T00:00:00Z", "Pending"),
    )
    cluster = _Cluster(remediation("old", "2025-01-01T00:00:00Z", "Succeeded"), second, first)
    fence(cluster)
    assert cluster.patched == {"b": {"methods": ["watchdog", "manual"], "witnesses": "Ignore"}} and not cluster.made


@pytest.mark.parametrize("there", [(), (remediation("x", "2026-01-01T00:00:00Z", "Pending", "h2"),)])
def test_what_is_about_another_host_or_over_is_left_alone(there: tuple[dict[str, Any], ...]) -> None:
    cluster = _Cluster(*there)
    fence(cluster)
    assert not cluster.patched
    assert cluster.made == [{"host": "h1", "methods": ["watchdog", "manual"], "witnesses": "Ignore"}]
