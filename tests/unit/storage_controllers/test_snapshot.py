"""What a snapshot of a volume is to be, what holds it, what its status says; volumes made from it: state in, state out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import Indication, QuiesceMode, SnapshotPhase
from kumulus.api.storage import Volume, VolumeClass, VolumePhase
from kumulus.api.volume_order import VolumeOrigin
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus_controllers.storage import volume_plan, volume_status
from kumulus_controllers.storage.handover import Moves, Part
from kumulus_controllers.storage.snapshot_plan import (
    Clone,
    Scope,
    Target,
    derive_status,
    held,
    host_lost,
    moving,
    own_order,
    target,
)
from kumulus_controllers.storage.volume_plan import Lack, Wanted

NOW = "2026-01-01T00:00:00Z"
SNAP = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
VOL = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ac"
OTHER = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ad"
GI = 2**30
POOL = PoolRef.model_validate({"uid": OTHER, "name": "local", "driver": "dir", "parameters": {"path": "/x"}})


def snapshot(
    *, deleting: bool = False, owner: str | None = None, status: dict[str, Any] | None = None, **spec: Any
) -> VolumeSnapshot:
    metadata: dict[str, Any] = {"name": "s", "namespace": "ns", "uid": SNAP, "generation": 1}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    if owner is not None:
        reference = {"apiVersion": "v1", "kind": "VirtualMachineSnapshot", "name": owner, "uid": OTHER}
        metadata["ownerReferences"] = [{**reference, "controller": True}]
    return VolumeSnapshot.parse({"metadata": metadata, "spec": {"volume": "data", **spec}, "status": status or {}})


def volume(phase: str | None = "Available", *, uid: str = VOL, deleting: bool = False, **status: Any) -> Volume:
    metadata = {"name": "data", "namespace": "ns", "uid": uid, **({"deletionTimestamp": NOW} if deleting else {})}
    made = {"size": "1Gi", "pool": "local", "host": "h1"} if phase not in (None, "Pending") else {}
    return Volume.parse({"metadata": metadata, "spec": {"size": "1Gi"}, "status": {"phase": phase, **made, **status}})


def kept() -> WorkOrder:
    spec = {
        "type": "Disk",
        "for": {"kind": "Volume", "namespace": "ns", "name": "data", "uid": VOL},
        "disk": {"pool": POOL.to_json(), "volume": {"uid": VOL}},
    }
    return WorkOrder.parse({"metadata": {"name": "volume", "namespace": "kumulus-host-h1"}, "spec": spec})


def there(item: VolumeSnapshot | None = None, **more: Any) -> Scope:
    return replace(Scope(item or snapshot(), volume(), kept(), POOL), **more)


def order(state: str | None, **status: Any) -> WorkOrder:
    found = target(there())
    assert isinstance(found, Target)
    return WorkOrder.parse(
        {
            "metadata": {"name": "snapshot", "namespace": "kumulus-host-h1"},
            "spec": own_order(snapshot(), found, 1).to_json(),
            "status": {"state": state, **status},
        }
    )


FACTS = {
    "takenAt": NOW,
    "indications": ["Online", "NoGuestAgent"],
    "items": [{"snapshot": SNAP, "virtualSize": GI, "size": 4096}],
}


def test_a_snapshot_is_ordered_where_its_volume_is() -> None:
    item = snapshot(quiesce={"mode": "Required", "timeoutSeconds": 7})
    found = target(there(item))
    assert isinstance(found, Target) and found.host == "h1"
    ordered = own_order(item, found, 3)
    assert ordered.snapshot is not None and ordered.term == 3
    (part,) = ordered.snapshot.items
    assert (part.snapshot, part.volume, part.pool) == (SNAP, VOL, POOL)
    assert (ordered.snapshot.quiesce, ordered.snapshot.quiesce_seconds) == (QuiesceMode.REQUIRED, 7)
    assert not ordered.snapshot.taken


def test_an_order_that_was_lost_says_that_the_snapshot_was_taken() -> None:
    item = snapshot(status={"volumeUid": VOL, "takenAt": NOW})
    found = target(there(item, volume=volume("Deleting", deleting=True)))
    assert isinstance(found, Target), "the volume stays as long as the snapshot does"
    ordered = own_order(item, found, 1).snapshot
    assert ordered is not None and ordered.taken


@pytest.mark.parametrize(
    ("scope", "reason", "stalled"),
    [
        (there(volume=None), "VolumeNotFound", True),
        (there(volume=volume(deleting=True)), "VolumeDeleting", True),
        (there(volume=volume("Pending")), "VolumeNotReady", False),
        (there(volume=volume("Creating")), "VolumeNotReady", False),
        (there(volume=volume("Resizing")), "VolumeNotReady", False),
        (there(volume=volume("Failed")), "VolumeFailed", True),
        (there(moved_by="go"), "VolumeMoves", False),
        (there(volume_order=None), "VolumeNotReady", False),
        (there(pool=None), "VolumeNotReady", False),
        (there(snapshot(status={"volumeUid": OTHER})), "VolumeGone", True),
        (there(snapshot(status={"volumeUid": VOL}), volume=None), "VolumeGone", True),
    ],
)
def test_why_a_snapshot_is_not_taken_yet(scope: Scope, reason: str, stalled: bool) -> None:
    found = target(scope)
    assert isinstance(found, Lack) and (found.reason, found.stalled) == (reason, stalled)
    status = derive_status(scope, None, found, NOW)
    assert status.phase is SnapshotPhase.PENDING and not status.ready_to_use
    waits = status.condition("Stalled" if stalled else "Reconciling")
    assert waits is not None and waits.reason == reason and waits.message


def test_the_volume_is_on_record_before_anything_is_ordered() -> None:
    scope = there()
    found = target(scope)
    assert isinstance(found, Target)
    status = derive_status(scope, found, None, NOW)
    assert (status.volume_uid, status.pool, status.host) == (VOL, "local", "h1")
    assert status.phase is SnapshotPhase.PENDING


@pytest.mark.parametrize(
    ("state", "phase", "usable"),
    [
        (None, SnapshotPhase.TAKING, False),
        ("Waiting", SnapshotPhase.TAKING, False),
        ("Working", SnapshotPhase.TAKING, False),
        ("Ready", SnapshotPhase.READY, True),
        ("Failed", SnapshotPhase.FAILED, False),
        ("Refused", SnapshotPhase.FAILED, False),
    ],
)
def test_what_a_host_says_of_a_snapshot(state: str | None, phase: SnapshotPhase, usable: bool) -> None:
    failing = {"reason": "NoGuestAgent", "message": "It does not answer."} if state == "Failed" else {}
    status = derive_status(there(order=order(state, **failing)), None, None, NOW)
    assert (status.phase, status.ready_to_use) == (phase, usable)
    assert (status.volume_uid, status.pool, status.host) == (VOL, "local", "h1")
    if failing:
        stalled = status.condition("Stalled")
        assert stalled is not None and (stalled.reason, stalled.message) == ("NoGuestAgent", "It does not answer.")


def test_what_is_known_of_a_snapshot_stays_known() -> None:
    status = derive_status(there(order=order("Ready", snapshot=FACTS)), None, None, NOW)
    assert (status.taken_at, status.size, status.used) == (NOW, GI, 4096)
    assert status.indications == (Indication.ONLINE, Indication.NO_GUEST_AGENT)
    lost = snapshot(status=status.to_json())
    after = derive_status(there(lost, host_gone=True), None, host_lost(there(lost, host_gone=True)), NOW)
    assert (after.taken_at, after.size, after.indications) == (NOW, GI, status.indications)
    assert after.phase is SnapshotPhase.FAILED and not after.ready_to_use
    ready = after.condition("Ready")
    assert ready is not None and ready.reason == "HostGone" and "h1" in ready.message


@pytest.mark.parametrize(
    ("scope", "reason", "words"),
    [
        (there(), None, ()),
        (there(clones=(Clone("b", True), Clone("a", True))), "SnapshotInUse", ("a, b", "Linked")),
        (there(clones=(Clone("c", False),)), "SnapshotInUse", ("c", "copied")),
        (there(snapshot(owner="all")), "PartOfMachineSnapshot", ("VirtualMachineSnapshot all",)),
        (there(snapshot(owner="all"), owner_going=True), None, ()),
    ],
)
def test_what_holds_a_snapshot_that_is_deleted(scope: Scope, reason: str | None, words: tuple[str, ...]) -> None:
    lack = held(scope)
    assert (lack.reason if lack else None) == reason
    assert lack is None or all(word in lack.message for word in words)
    status = derive_status(replace(scope, snapshot=snapshot(deleting=True)), None, lack, NOW)
    assert status.phase is SnapshotPhase.DELETING and not status.ready_to_use


@pytest.mark.parametrize(("going", "usable"), [(False, True), (True, False)])
def test_a_part_that_is_deleted_can_be_used_as_long_as_the_whole_stays(going: bool, usable: bool) -> None:
    part = snapshot(deleting=True, owner="all")
    status = derive_status(there(part, order=order("Ready", snapshot=FACTS), owner_going=going), None, None, NOW)
    assert status.phase is SnapshotPhase.DELETING and status.ready_to_use == usable


def test_a_snapshot_whose_volume_goes_to_another_host_follows_and_cannot_be_used_meanwhile() -> None:
    shared = PoolRef.model_validate({**POOL.to_json(), "parameters": {"path": "/x", "shared": True}})
    here = Part(SNAP, VOL, "data", shared, home="h1", host="h1")
    taken = order("Ready", snapshot=FACTS)
    stays = there(order=taken, part=here)
    assert moving(stays) == Moves() and derive_status(stays, None, None, NOW).host == "h1"
    known = snapshot(status=derive_status(stays, None, None, NOW).to_json())
    for scope in (
        there(known, order=taken, part=replace(here, home=None)),
        there(known, part=replace(here, home=None, host=None)),
    ):
        lack = moving(scope).lack
        status = derive_status(scope, None, lack, NOW)
        assert (status.phase, status.ready_to_use, status.host) == (SnapshotPhase.MOVING, False, None)
        assert (status.taken_at, status.size) == (NOW, GI), "what is known of it stays known"
        ready = status.condition("Ready")
        assert ready is not None and ready.reason == "HandingOver" and "Volume data" in ready.message
    gone = there(known, host_gone=True, part=replace(here, host_there=False))
    assert host_lost(gone) is None, "the data is in the pool"


def test_a_part_of_a_machine_s_snapshot_says_who_takes_it() -> None:
    ready = derive_status(there(snapshot(owner="all")), None, None, NOW).condition("Ready")
    assert ready is not None and "VirtualMachineSnapshot all" in ready.message


# Volumes made from a snapshot, and volumes with snapshots

TAKEN = {"phase": "Ready", "readyToUse": True, "volumeUid": VOL, "size": "1Gi", "pool": "local", "host": "h1"}


def clone(mode: str | None = None, size: str | None = None) -> Volume:
    source = {"snapshot": "s", **({"cloneMode": mode} if mode else {})}
    spec = {"source": source, **({"size": size} if size else {})}
    return Volume.parse({"metadata": {"name": "c", "namespace": "ns", "uid": OTHER}, "spec": spec})


@pytest.mark.parametrize(("mode", "linked"), [(None, False), ("Full", False), ("Linked", True)])
def test_a_volume_from_a_snapshot_has_at_least_its_size(mode: str | None, linked: bool) -> None:
    thick = VolumeClass.parse({"metadata": {"name": "t"}, "spec": {"provisioning": "Thick"}})
    scope = volume_plan.Scope(clone(mode), snapshot=snapshot(status=TAKEN), volume_class=thick)
    found = volume_plan.wanted(scope)
    assert isinstance(found, Wanted) and found.size == GI
    assert found.thick is not linked, "what stands on a snapshot cannot have all its space at once"
    assert found.origin == VolumeOrigin.model_validate(
        {"snapshot": {"snapshot": SNAP, "volume": VOL}, "linked": linked}
    )
    small = volume_plan.wanted(replace(scope, volume=clone(mode, "512Mi")))
    assert isinstance(small, Lack) and small.reason == "DiskTooSmall"


@pytest.mark.parametrize(
    ("item", "reason", "stalled"),
    [
        (None, "SnapshotNotFound", True),
        (snapshot(), "SnapshotNotReady", False),
        (snapshot(status={**TAKEN, "readyToUse": False, "phase": "Taking"}), "SnapshotNotReady", False),
        (snapshot(status={**TAKEN, "readyToUse": False, "phase": "Failed"}), "SnapshotFailed", True),
    ],
)
def test_no_volume_is_made_from_a_snapshot_that_is_not_there(
    item: VolumeSnapshot | None, reason: str, stalled: bool
) -> None:
    found = volume_plan.wanted(volume_plan.Scope(clone(), snapshot=item))
    assert isinstance(found, Lack) and (found.reason, found.stalled) == (reason, stalled)
    going = volume_plan.Scope(clone(), snapshot=snapshot(status=TAKEN), snapshot_going=True)
    lack = volume_plan.wanted(going)
    assert isinstance(lack, Lack) and lack.reason == "SnapshotNotFound"


def test_a_volume_with_snapshots_waits_and_names_them() -> None:
    lack = volume_plan.held(volume_plan.Scope(volume(deleting=True), snapshots=("vmsnap/all", "volsnap/s")))
    assert lack is not None and lack.reason == "HasSnapshots"
    assert "kubectl -n ns delete vmsnap/all volsnap/s" in lack.message


@pytest.mark.parametrize(("size", "phase"), [(GI, VolumePhase.RESTORING), (2 * GI, VolumePhase.RESIZING)])
def test_a_volume_that_is_given_its_content_back_says_so(size: int, phase: VolumePhase) -> None:
    raw = kept().spec.to_json()
    raw["disk"]["volume"] |= {"size": size, "revert": {"snapshot": SNAP, "request": OTHER}}
    meta = {"name": "volume", "namespace": "kumulus-host-h1", "generation": 2}
    order = WorkOrder.parse({"metadata": meta, "spec": raw, "status": {"state": "Working", "observedGeneration": 2}})
    status = volume_status.derive_status(volume_plan.Scope(volume(), order=order), None, None, None, NOW)
    assert status.phase is phase
