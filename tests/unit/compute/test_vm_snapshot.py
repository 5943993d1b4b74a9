"""What a snapshot of a machine consists of, and what its status says: state in, state out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus_controllers.compute.vm_snapshot_plan import (
    Choice,
    Kept,
    Scope,
    choose,
    derive_status,
    foreign,
    held,
    part,
    part_name,
    whole_order,
)
from kumulus_controllers.storage.handover import Part
from kumulus_controllers.storage.snapshot_plan import Clone, owner_of
from kumulus_controllers.storage.volume_plan import Lack

NOW = "2026-01-01T00:00:00Z"
GI = 2**30


def uid(number: int) -> str:
    return f"6f3a0c7e-9d1b-4c55-8a2e-{number:012d}"


SNAP, VM, ROOT, DATA, POOL_UID = (uid(number) for number in range(1, 6))
POOL = PoolRef.model_validate({"uid": POOL_UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}})


def snapshot(*, deleting: bool = False, status: dict[str, Any] | None = None) -> VirtualMachineSnapshot:
    metadata = {"name": "all", "namespace": "ns", "uid": SNAP, **({"deletionTimestamp": NOW} if deleting else {})}
    return VirtualMachineSnapshot.parse({"metadata": metadata, "spec": {"vm": "web"}, "status": status or {}})


def machine(*disks: dict[str, Any], deleting: bool = False) -> VirtualMachine:
    metadata = {"name": "web", "namespace": "ns", "uid": VM, **({"deletionTimestamp": NOW} if deleting else {})}
    listed = disks or (
        {"name": "root", "volumeTemplate": {"source": {"image": "debian"}}},
        {"name": "data", "volume": "data"},
        {"name": "tmp", "ephemeral": {"image": "empty"}},
        {"name": "cd", "cdrom": {}},
    )
    spec = {"resources": {"cpus": 1, "memory": "1Gi"}, "disks": list(listed)}
    return VirtualMachine.parse({"metadata": metadata, "spec": spec})


def kept(name: str, of: str, *, host: str = "h1", deleting: bool = False, **status: Any) -> Kept:
    metadata = {"name": name, "namespace": "ns", "uid": of, **({"deletionTimestamp": NOW} if deleting else {})}
    made = {"phase": "InUse", "size": "1Gi", "pool": "local", "attachedTo": {"vm": "web", "uid": VM}, **status}
    spec = {
        "type": "Disk",
        "for": {"kind": "Volume", "namespace": "ns", "name": name, "uid": of},
        "disk": {"pool": POOL.to_json(), "volume": {"uid": of}},
    }
    order = WorkOrder.parse({"metadata": {"name": "x", "namespace": f"kumulus-host-{host}"}, "spec": spec})
    volume = Volume.parse({"metadata": metadata, "spec": {"size": "1Gi", "class": "fast"}, "status": made})
    return Kept(volume, order, POOL)


def there(**more: Any) -> Scope:
    volumes = {"web-root": kept("web-root", ROOT), "data": kept("data", DATA)}
    return replace(Scope(snapshot(), machine(), volumes), **more)


def chosen(scope: Scope | None = None) -> Choice:
    found = choose(scope or there())
    assert isinstance(found, Choice), found
    return found


def parts(*, owned: bool = True) -> dict[str, VolumeSnapshot]:
    made = {}
    for number, disk in enumerate(chosen().disks, start=10):
        raw = part(snapshot(), disk)
        if not owned:
            del raw["metadata"]["ownerReferences"]
        made[disk.snapshot] = VolumeSnapshot.parse({**raw, "metadata": {**raw["metadata"], "uid": uid(number)}})
    return made


def on(*hosts: str | None) -> tuple[Part, ...]:
    """The parts, kept by these hosts."""
    pairs = zip((ROOT, DATA), hosts * (2 // len(hosts)), strict=True)
    return tuple(Part(uid(n), of, "x", POOL, home=host, host=host) for n, (of, host) in enumerate(pairs, start=10))


def test_all_volumes_of_the_machine_are_kept_and_what_is_none_is_named() -> None:
    found = chosen()
    assert [(d.disk, d.volume, d.volume_uid, d.snapshot, d.volume_class) for d in found.disks] == [
        ("root", "web-root", ROOT, "all-root", "fast"),
        ("data", "data", DATA, "all-data", "fast"),
    ]
    assert [(item.disk, item.reason.split(":")[0]) for item in found.left_out] == [
        ("tmp", "ephemeral"),
        ("cd", "a CD-ROM drive"),
    ]
    assert (found.vm_uid, found.host, found.machine) == (VM, "h1", machine().spec)


def test_one_order_is_for_all_and_each_part_belongs_to_the_whole() -> None:
    scope = there(parts=parts())
    ordered = whole_order(scope, chosen(scope), 4)
    assert ordered.snapshot is not None and (ordered.for_.kind, ordered.for_.uid) == ("VirtualMachineSnapshot", SNAP)
    assert [(item.snapshot, item.volume) for item in ordered.snapshot.items] == [(uid(10), ROOT), (uid(11), DATA)]
    for item in scope.parts.values():
        owner = owner_of(item)
        assert owner is not None and owner.uid == SNAP and item.metadata.finalizers
    assert foreign(scope) is None
    lack = foreign(there(parts=parts(owned=False)))
    assert lack is not None and lack.reason == "SnapshotExists"


def test_what_was_chosen_stays_chosen() -> None:
    status = derive_status(there(), chosen(), None, NOW)
    recorded = snapshot(status=status.to_json())
    other = machine({"name": "new", "volume": "data"})
    same = replace(chosen(), disks=status.volumes)
    assert {disk.host for disk in same.disks} == {"h1"}
    assert chosen(there(snapshot=recorded, vm=other)) == same
    assert chosen(there(snapshot=recorded, vm=None)) == same, "also when the machine is gone"
    gone = choose(there(snapshot=recorded, volumes={"data": kept("data", DATA)}))
    assert isinstance(gone, Lack) and gone.reason == "VolumeGone"


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        (there(vm=None), "VirtualMachineNotFound"),
        (there(vm=machine(deleting=True)), "VirtualMachineNotFound"),
        (there(vm=machine({"name": "tmp", "ephemeral": {"image": "i"}})), "NothingToKeep"),
        (there(volumes={"data": kept("data", DATA)}), "VolumeNotFound"),
        (
            there(volumes={"web-root": kept("web-root", ROOT), "data": kept("data", DATA, host="h2")}),
            "VolumesElsewhere",
        ),
        (
            there(
                volumes={
                    "web-root": kept("web-root", ROOT),
                    "data": kept("data", DATA, attachedTo={"vm": "db", "uid": SNAP}),
                }
            ),
            "VolumeInUse",
        ),
        (
            there(volumes={"web-root": kept("web-root", ROOT, phase="Creating"), "data": kept("data", DATA)}),
            "VolumeNotReady",
        ),
        (
            there(volumes={"web-root": kept("web-root", ROOT, deleting=True), "data": kept("data", DATA)}),
            "VolumeDeleting",
        ),
    ],
)
def test_why_no_snapshot_is_taken(scope: Scope, reason: str) -> None:
    found = choose(scope)
    assert isinstance(found, Lack) and found.reason == reason
    status = derive_status(scope, None, found, NOW)
    assert status.phase is SnapshotPhase.PENDING and not status.volumes


def test_the_status_adds_its_parts_up() -> None:
    scope = there(parts=parts())
    facts = {
        "takenAt": NOW,
        "indications": ["Online", "GuestAgent"],
        "items": [
            {"snapshot": uid(10), "virtualSize": GI, "size": 100},
            {"snapshot": uid(11), "virtualSize": 2 * GI, "size": 20},
        ],
    }
    order = WorkOrder.parse(
        {
            "metadata": {"name": "x", "namespace": "kumulus-host-h1"},
            "spec": whole_order(scope, chosen(scope), 1).to_json(),
            "status": {"state": "Ready", "snapshot": facts},
        }
    )
    recorded = snapshot(status=derive_status(scope, chosen(scope), None, NOW).to_json())
    status = derive_status(replace(scope, snapshot=recorded, orders=(order,), kept=on("h1")), None, None, NOW)
    assert status.phase is SnapshotPhase.READY and status.ready_to_use
    assert (status.size, status.used, status.host) == (3 * GI, 120, "h1")
    assert [disk.size for disk in status.volumes] == [GI, 2 * GI]
    assert status.machine == machine().spec


def test_what_holds_a_snapshot_that_is_deleted() -> None:
    assert held(there()) is None
    linked = held(there(clones=(Clone("copy", True),)))
    assert linked is not None and linked.reason == "SnapshotInUse" and "copy" in linked.message
    restoring = held(there(restoring=("back",)))
    assert restoring is not None and restoring.reason == "RestoreInProgress" and not restoring.stalled


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "b-c"), ("a-b-c" * 12, "x" * 32)), (("s" * 60, "disk-1"), ("s" * 60, "disk-2"))]
)
def test_names_of_parts_are_names(one: tuple[str, str], other: tuple[str, str]) -> None:
    names = {part_name(*one), part_name(*other)}
    assert len(names) == 2 and all(len(name) <= 63 and "--" not in name for name in names)


def test_none_is_taken_while_two_hosts_have_a_volume() -> None:
    """Its order would go to the host that the guest has left, or is about to leave."""
    volumes = {"web-root": replace(kept("web-root", ROOT), moved_by="go"), "data": kept("data", DATA)}
    found = choose(there(volumes=volumes))
    assert isinstance(found, Lack) and (found.reason, found.stalled) == ("VolumeMoves", False)
    assert "go brings Volume web-root" in found.message
