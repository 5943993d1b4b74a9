"""What is left in a pool that is to be emptied, and which images leave it."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.storage import Volume
from kumulus_controllers.storage.emptying import NAMED, Contents, emptied
from kumulus_controllers.storage.eviction import in_use
from tests.unit.storage_controllers.test_pool import pool

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
ELSE = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ac"
LEFT = pool(maintenance=True)
HERE = {"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}}
THERE = {**HERE, "uid": ELSE, "name": "other"}
IMAGE = {"name": "i", "uid": ELSE, "format": "qcow2"}


def volume(name: str, reason: str | None = None, *, moving: bool = False, deleting: bool = False) -> Volume:
    condition = {"type": "Moving", "status": "True" if moving else "False", "reason": reason or "Moving"}
    meta = {"name": name, "namespace": "ns", "uid": name, **({"deletionTimestamp": NOW} if deleting else {})}
    status = {"pool": "local", "conditions": [{**condition, "lastTransitionTime": NOW}] if reason or moving else []}
    return Volume.parse({"metadata": meta, "spec": {"size": "1Gi"}, "status": status})


def order(type_: str, name: str = "vm", **payload: Any) -> WorkOrder:
    for_ = {"kind": "VirtualMachine", "namespace": "ns", "name": name, "uid": ELSE}
    raw = {"metadata": {"namespace": "kumulus-host-a"}, "spec": {"type": type_, "for": for_, **payload}}
    return WorkOrder.parse(raw)


def instance(**parts: Any) -> WorkOrder:
    work = {"uid": ELSE, "epoch": 1, "power": "Running", "restartPolicy": "Always", "cpus": 1, "memory": 1}
    return order("Instance", instance={**work, **parts})


OWN = instance(disks=[{"name": "root", "pool": HERE, "image": IMAGE, "bootOrder": 1}])
DISC = instance(drives=[{"name": "cd", "bus": "sata", "pool": HERE, "image": IMAGE, "bootOrder": 1}])


def said(contents: Contents) -> tuple[str, str, str]:
    fact = emptied(LEFT, contents)
    assert fact is not None
    return str(fact.status), fact.reason, fact.message


def test_of_a_pool_that_is_used_nothing_is_said() -> None:
    assert emptied(pool(), Contents(volumes=(volume("a"),))) is None


def test_a_pool_with_nothing_in_it_is_emptied() -> None:
    assert said(Contents()) == ("True", "Empty", "Nothing of Kumulus is left in it.")


def test_what_is_on_its_way_is_counted_and_blocks_nothing() -> None:
    volumes = (volume("a", moving=True), volume("b", "WaitingForTurn"), volume("c"), volume("d", deleting=True))
    status, reason, message = said(Contents(volumes=volumes, images={"debian on a": None, "x on a": "in use"}))
    assert (status, reason) == ("False", "Emptying")
    for part in ("1 volume being moved", "2 volumes waiting to be moved", "1 volume being deleted", "2 images that go"):
        assert part in message


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (Contents(volumes=(volume("a", "Pinned"),)), ("Pinned: ns/a", "leave it out")),
        (Contents(volumes=(volume("a", "HasSnapshots"),)), ("HasSnapshots: ns/a", "delete their snapshots")),
        (Contents(volumes=(volume("a", "NoPoolFits"),)), ("NoPoolFits: ns/a", "make room")),
        (Contents(volumes=(volume("a", "MoveUnsupported"),)), ("MoveUnsupported: ns/a", "see their condition Moving")),
        (Contents(orders=(OWN,)), ("ephemeral disks of 1 machine (ns/vm)",)),
        (Contents(orders=(DISC,)), ("discs in drives of 1 machine (ns/vm)", "take them out")),
        (Contents(images={"ns/gold on a": "the only copy"}), ("1 image (ns/gold on a: the only copy)",)),
    ],
)
def test_what_blocks_is_named_with_what_to_do(contents: Contents, expected: tuple[str, ...]) -> None:
    status, reason, message = said(contents)
    assert (status, reason) == ("False", "Blocked")
    assert all(part in message for part in expected), message


def test_of_many_only_some_are_named() -> None:
    message = said(Contents(volumes=tuple(volume(f"v{n}", "Pinned") for n in range(9))))[2]
    assert "9 volumes" in message and f"ns/v{NAMED}" not in message and "..." in message


def test_orders_that_the_volumes_do_not_know_count() -> None:
    at_home = order("Disk", "gone", disk={"pool": HERE, "volume": {"uid": UID, "size": 1}})
    assert "hosts have not let go of" in said(Contents(orders=(at_home,)))[2]
    move = {"uid": UID, "size": 1, "move": {"pool": HERE}}
    coming = order("Disk", "late", disk={"pool": THERE, "volume": move})
    assert "1 volume that had begun to come here (ns/late)" in said(Contents(orders=(coming,)))[2]


def test_what_nobody_owns_is_told_last_and_a_silent_host_is_not_taken_for_empty() -> None:
    status, reason, message = said(Contents(unowned=3))
    assert (status, reason) == ("False", "UnownedData") and "kumulusctl pool unowned local" in message
    assert said(Contents(unowned=3, silent=("b",)))[1] == "HostsSilent"
    assert said(Contents(volumes=(volume("a", "Pinned"),), unowned=3))[1] == "Blocked"


def test_an_image_is_needed_in_the_pools_where_something_is_made_of_it() -> None:
    made = {"uid": UID, "size": 1, "origin": {"image": IMAGE}}
    of_image = order("Disk", disk={"pool": THERE, "volume": made})
    assert in_use((of_image,)) == in_use((of_image,), ELSE) == {ELSE}
    assert in_use((of_image,), UID) == set()
    assert in_use((OWN, DISC), UID) == {ELSE} and in_use((OWN, DISC), ELSE) == set()
    moved = order("Disk", disk={"pool": THERE, "volume": {"uid": UID, "size": 1}})
    assert in_use((moved,)) == set(), "a volume that was moved stands on nothing"
