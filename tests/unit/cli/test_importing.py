"""What `vm import` makes of its options, and which domain it takes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kumulus.api.machine_import import ImportTemplate
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.cli.importing import _import, _unmanage, chosen, template
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session


def domain(number: int, name: str) -> UnmanagedInstance:
    uuid = f"6f3a0c7e-9d1b-4c55-8a2e-{number:012d}"
    metadata = {"name": uuid, "namespace": "kumulus-host-h1", "uid": uuid}
    return UnmanagedInstance.parse({"metadata": metadata, "spec": {}, "status": {"name": name}})


def test_a_domain_is_found_by_its_name_or_uuid() -> None:
    one, two, twin = domain(1, "web"), domain(2, "db"), domain(3, "db")
    assert chosen([one, two], "h1", "web") is one
    assert chosen([one, two, twin], "h1", twin.name) is twin
    with pytest.raises(Problem, match="2 domains called db: name its UUID"):
        chosen([one, two, twin], "h1", "db")
    with pytest.raises(Problem, match="It has: db, web"):
        chosen([one, two], "h1", "mail")


def test_what_is_asked_for() -> None:
    made = template("team", "web", ["vda=root", "vdb=data"], ["52:54:00:AA:00:01=front"], "small")
    parsed = ImportTemplate.model_validate(made)
    assert [(disk.target, disk.name) for disk in parsed.disks] == [("vda", "root"), ("vdb", "data")]
    assert [(nic.mac_address, nic.network) for nic in parsed.interfaces] == [("52:54:00:aa:00:01", "front")]
    assert parsed.instance_type == "small"
    for disks, nics in ((["vda"], []), ([], ["=front"])):
        with pytest.raises(Problem, match="is not"):
            template("team", "web", disks, nics, None)


class _Cluster:
    """An API server that tells of one import, in these phases one after the other; None: it is never looked at."""

    def __init__(self, *phases: str | None) -> None:
        self._phases = list(phases)
        self.made: list[dict[str, Any]] = []
        self.dry = True

    def objects(self, *_: object) -> list[dict[str, Any]]:
        return [domain(1, "web").to_json()]

    def create(self, _kind: object, body: dict[str, Any], namespace: str) -> dict[str, Any]:
        meta = {"name": "import-1", "namespace": namespace, "uid": "u", "generation": 1}
        self.made.append({**body, "metadata": meta})
        return self.made[-1]

    def patch(self, _kind: object, _name: str, patch: dict[str, Any], _namespace: str) -> None:
        self.dry = patch["spec"]["dryRun"]

    def delete(self, _kind: object, _name: str, _namespace: str, *, uid: str) -> None:
        self.made.clear()

    def follow(self, *_: object, seconds: float) -> Iterator[dict[str, Any]]:
        phase = self._phases.pop(0)
        if phase == "by hand":
            raise KeyboardInterrupt
        yield {**self.made[0], "status": {"phase": phase, "observedGeneration": 1} if phase is not None else {}}


@pytest.mark.parametrize(
    ("phases", "stays"),
    [
        (("Blocked",), False),
        ((None,), False),
        (("by hand",), False),
        (("Planned", "Blocked"), False),
        (("Planned", "Importing"), True),
        (("Planned", "by hand"), True),
    ],
)
def test_who_is_told_that_it_was_not_imported_leaves_nothing_that_imports_it_later(
    phases: tuple[str | None, ...], stays: bool
) -> None:
    cluster, told = _Cluster(*phases), list[str]()
    printer = SimpleNamespace(err=SimpleNamespace(print=told.append), table=lambda *_, **__: None)
    session = SimpleNamespace(cluster=cluster, printer=printer, namespace="team")
    with pytest.raises((Problem, KeyboardInterrupt)):
        _import(cast(Session, session), "h1", "web", yes=True, timeout=1)
    assert bool(cluster.made) is stays
    assert any("goes on; to take it back" in line for line in told) is stays


class _Going:
    """An API server that tells of a machine that goes, and why it is not gone yet; None: it is."""

    namespace = "team"

    def __init__(self, *reasons: str | None) -> None:
        self._reasons, self.asked = reasons, list[str]()
        self.cluster, self.printer = self, SimpleNamespace(text=self.asked.append)

    def fetch(self, *_: object) -> dict[str, Any]:
        return self._vm("Running") | {"metadata": {"name": "web", "namespace": "team", "uid": "u"}}

    def patch(self, *_: object) -> None:
        self.asked.append("unmanage")

    def delete(self, *_: object, uid: str) -> None:
        self.asked.append("delete")

    def follow(self, *_: object, seconds: float) -> Iterator[dict[str, Any] | None]:
        for reason in self._reasons:
            yield self._vm(reason) if reason is not None else None

    def _vm(self, reason: str) -> dict[str, Any]:
        said = {"type": "Ready", "status": "False", "reason": reason, "message": f"so it is: {reason}"}
        metadata = {"name": "web", "namespace": "team", "uid": "u", "deletionTimestamp": "2026-11-30T12:00:00Z"}
        return {"metadata": metadata, "spec": {}, "status": {"host": "h1", "conditions": [said]}}


def test_who_lets_go_of_a_machine_whose_host_does_not_answer_is_told_that_at_once() -> None:
    for reason in ("HostFenced", "HostUnknown"):
        with pytest.raises(Problem, match=f"without another command. so it is: {reason}"):
            _unmanage(cast(Session, _Going("Running", reason, None)), "web", 5)
    with pytest.raises(Problem, match=r"still there after 5s; it goes on by itself\. so it is: Terminating"):
        _unmanage(cast(Session, _Going("Terminating")), "web", 5)
    going = _Going("Terminating", None)
    _unmanage(cast(Session, going), "web", 5)
    assert going.asked[:2] == ["unmanage", "delete"] and "is nobody's" in going.asked[2]
