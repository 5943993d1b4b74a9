"""Moving a volume from pool to pool: state in, state out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.api.storage import Attachment, StoragePool, Volume, VolumeClass, VolumePhase, VolumeStatus
from kumulus.api.volume_order import Move
from kumulus_controllers.planning.views import HostView, Load, PoolView
from kumulus_controllers.storage.move_plan import (
    MOVING,
    WAITING_FOR_TURN,
    Course,
    Sight,
    course,
    directed,
    hindered,
    landed,
)
from kumulus_controllers.storage.presence import pool_ref
from kumulus_controllers.storage.volume_plan import Place, Scope, Wanted, renewed, volume_order, wanted
from kumulus_controllers.storage.volume_status import derive_status

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
OTHER = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ac"
GI = 2**30
USED = Attachment(vm="vm", uid=OTHER)
HERE = Host.parse({"metadata": {"name": "h1"}, "spec": {"zone": "z"}})


def uid(name: str) -> str:
    return f"00000000-0000-0000-0000-{sum(name.encode()):012d}"


def pool(name: str, *, shared: bool = False, labels: dict[str, str] | None = None, **spec: Any) -> StoragePool:
    parameters = {"path": f"/var/lib/kumulus/{name}", **({"shared": True} if shared else {})}
    return StoragePool.parse(
        {
            "metadata": {"name": name, "uid": uid(name), "labels": labels or {}},
            "spec": {"driver": "dir", "parameters": parameters, **spec},
        }
    )


def ref(name: str, *, shared: bool = False) -> PoolRef:
    return pool_ref(pool(name, shared=shared))


def sight(*pools: PoolView, **changes: Any) -> Sight:
    return Sight("h1", HostView("h1", "uid-h1", "z", 8, GI, pools=pools), **changes)


def view(name: str, room: int = 10 * GI, *, shared: bool = False, **changes: Any) -> PoolView:
    return replace(PoolView(ref(name, shared=shared), room), **changes)


def volume(*, status: dict[str, Any] | None = None, **spec: Any) -> Volume:
    place = {"pool": "old", "host": "h1", "size": "1Gi", **(status or {})}
    return Volume.parse(
        {
            "metadata": {"name": "data", "namespace": "ns", "uid": UID, "generation": 3},
            "spec": {"size": "1Gi", **spec},
            "status": place,
        }
    )


def order(
    state: str | None = "Ready",
    *,
    spec: WorkOrderSpec | None = None,
    move: Move | None = None,
    at: str | None = None,
    seen: int = 1,
    **status: Any,
) -> WorkOrder:
    want = wanted(Scope(volume()))
    assert isinstance(want, Wanted)
    spec = spec or volume_order(volume(), want, Place(ref("old"), "h1"), 1)
    raw = spec.to_json()
    if move is not None:
        raw["disk"]["volume"]["move"] = move.to_json()
    facts = {"virtualSize": GI, **({"pool": uid(at)} if at else {})}
    return WorkOrder.parse(
        {
            "metadata": {"name": f"volume-{UID}", "namespace": "kumulus-host-h1", "generation": 1},
            "spec": raw,
            "status": {"state": state, "observedGeneration": seen, "disk": facts, **status},
        }
    )


def scope(item: Volume, work: WorkOrder | None = None, **changes: Any) -> Scope:
    return replace(Scope(item, order=work or order(), host=HERE, pool=pool("old")), **changes)


def go(read: Scope, seen: Sight | None = None, place: Place | None = None) -> Course:
    want = wanted(read)
    assert isinstance(want, Wanted)
    return course(read, want, place or Place(ref("old"), "h1"), seen or sight(view("old"), view("new")))


WISH = volume(pool="new")
NEW = pool("new")
TO_NEW = Move(pool=ref("new"))


# Where it is to be


def test_a_volume_that_is_where_it_is_to_be_stays() -> None:
    for item in (volume(), volume(pool="old")):
        assert go(scope(item, asked=pool("old"))) == Course(Place(ref("old"), "h1"))


def test_a_pool_that_its_owner_names_goes_on_record_before_it_is_ordered() -> None:
    at = go(scope(WISH, asked=NEW))
    assert (at.to, at.ask, at.lack) == (ref("new"), None, None)
    recorded = volume(pool="new", status={"movingTo": "new"})
    at = go(scope(recorded, asked=NEW, target=NEW))
    assert (at.to, at.ask) == (ref("new"), TO_NEW)


@pytest.mark.parametrize(
    ("changes", "seen", "reason", "said"),
    [
        ({"asked": None}, {}, "PoolNotFound", "There is no StoragePool new"),
        ({"asked": pool("new", allowedNamespaces=["other"])}, {}, "PoolNotAllowed", "in namespace ns"),
        ({"asked": pool("new", maintenance=True)}, {}, "PoolInMaintenance", "is to be emptied"),
        ({"snapshots": ("volsnap/s",)}, {}, "HasSnapshots", "kubectl -n ns delete volsnap/s"),
        ({"linked": ("clone",)}, {}, "HasSnapshots", "Volume clone is linked"),
        ({"snapped": True}, {}, "HasSnapshots", "removes snapshots"),
        ({"copied": "Image gold"}, {}, "VolumeBusy", "copied to Image gold"),
        ({"order": order("Working")}, {}, "VolumeBusy", "works on it"),
        ({"order": order(seen=0)}, {}, "VolumeBusy", "works on it"),
        ({"order": order("Failed", reason="VolumeLost")}, {}, "VolumeFailed", "see Ready"),
        ({}, {"heard": False}, "HostUnknown", "Host h1, which has the data, does not answer"),
        ({}, {"moves": 2}, WAITING_FOR_TURN, "At most 2 volumes"),
    ],
)
def test_what_keeps_a_volume_where_it_is_has_a_name(
    changes: dict[str, Any], seen: dict[str, Any], reason: str, said: str
) -> None:
    read = scope(WISH, **{"asked": NEW, **changes})
    at = go(read, sight(view("old"), view("new"), **seen))
    assert at.to is None and at.lack is not None
    assert at.lack.reason == reason and said in at.lack.message


def test_a_class_says_which_pools_its_volumes_may_be_in() -> None:
    offered = VolumeClass.parse({"metadata": {"name": "fast"}, "spec": {"poolSelector": {"tier": "nvme"}}})
    at = go(scope(WISH, asked=NEW, volume_class=offered))
    assert at.lack is not None and at.lack.reason == "PoolNotAllowed" and "labelled tier=nvme" in at.lack.message
    assert go(scope(WISH, asked=pool("new", labels={"tier": "nvme"}), volume_class=offered)).to == ref("new")


@pytest.mark.parametrize(
    ("there", "reason", "said"),
    [
        ((), "PoolNotReachable", "Host h1, which has the data, cannot use StoragePool new"),
        ((view("new", usable=False, open=False),), "PoolNotReachable", "cannot use StoragePool new"),
        ((view("new", stops_at=90),), "PoolFull", "StoragePool new on host h1 is filled to 90%"),
        ((view("new", GI // 2),), "PoolFull", "has 512Mi left to promise, and the volume needs 1Gi"),
    ],
)
def test_a_pool_that_cannot_take_it_is_named_with_what_it_lacks(
    there: tuple[PoolView, ...], reason: str, said: str
) -> None:
    at = go(scope(WISH, asked=NEW), sight(view("old"), *there))
    assert at.to is None and at.lack is not None and at.lack.reason == reason and said in at.lack.message


def test_a_pool_that_has_no_room_to_grow_may_be_left() -> None:
    want = wanted(scope(volume(size="4Gi")))
    assert isinstance(want, Wanted)
    grown = renewed(order().spec, want, 1)
    failed = order("Failed", spec=grown, reason="NoSpace")
    assert hindered(scope(volume(size="4Gi", pool="new"), failed)) is None
    recorded = volume(size="4Gi", pool="new", status={"movingTo": "new"})
    at = go(scope(recorded, failed, asked=NEW, target=NEW))
    moving = directed(renewed(grown, want, 1, at=recorded.status.size), at, 1)
    assert moving.disk is not None and moving.disk.volume is not None
    assert (moving.disk.volume.size, moving.disk.volume.move) == (GI, TO_NEW), "it moves as it is, and grows there"


# A pool that is to be emptied

EMPTIED = pool("old", maintenance=True)


def test_a_volume_leaves_a_pool_in_maintenance_for_one_that_has_room() -> None:
    read = scope(volume(), pool=EMPTIED)
    closed = view("old", open=False)
    assert go(read, sight(closed, view("new"), view("big", 20 * GI))).to == ref("big")
    load = Load(disks={uid("big"): 20 * GI})
    assert go(read, sight(closed, view("new"), view("big", 20 * GI), load=load)).to == ref("new")
    assert go(read, sight(closed, view("new"), view("nfs", 99 * GI, shared=True))).to == ref("new"), "of its own kind"
    assert go(read, sight(closed, view("nfs", shared=True))).to == ref("nfs", shared=True), "else of the other"


def test_who_names_the_pool_stays_in_it_and_is_told() -> None:
    at = go(scope(volume(pool="old"), pool=EMPTIED, asked=EMPTIED))
    assert at.to is None and at.lack is not None and at.lack.reason == "Pinned"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "without a storage pool that is ready"),
        ((view("new", open=False),), "without a storage pool that is ready"),
        ((view("new", stops_at=80),), "filled to 80%"),
        ((view("new", namespaces=("other",)),), "not allowed for namespace ns"),
        ((view("new", GI // 4), view("b", GI // 2)), "(pool b has 512Mi left to promise, it needs 1Gi)"),
    ],
)
def test_a_pool_that_nothing_can_leave_says_which_pool_lacks_what(there: tuple[PoolView, ...], said: str) -> None:
    at = go(scope(volume(), pool=EMPTIED), sight(view("old", open=False), *there))
    assert at.to is None and at.lack is not None and at.lack.reason == "NoPoolFits" and said in at.lack.message


def test_what_was_chosen_is_kept_when_maintenance_ends_or_the_choice_would_be_another() -> None:
    recorded = volume(status={"movingTo": "new"})
    for now in (EMPTIED, pool("old")):
        at = go(scope(recorded, pool=now, target=NEW), sight(view("new", 0), view("big", 99 * GI)))
        assert at.ask == TO_NEW


# Between two writes


def test_a_move_that_nobody_was_asked_for_is_called_off_when_it_is_not_wanted_or_cannot_be() -> None:
    recorded = {"movingTo": "new"}
    assert go(scope(volume(pool="old", status=recorded), target=NEW)).to is None
    at = go(scope(volume(pool="third", status=recorded), target=NEW))
    assert (at.to, at.ask, at.wish) == (None, None, True)
    at = go(scope(volume(pool="new", status=recorded), target=NEW, snapshots=("volsnap/s",)))
    assert at.to is None and at.lack is not None and at.lack.reason == "HasSnapshots"
    gone = go(scope(volume(pool="new", status=recorded), target=None))
    assert gone.to is None and gone.lack is not None and gone.lack.reason == "PoolNotFound"


def test_where_it_is_is_what_the_agent_says_of_the_order_as_it_is() -> None:
    assert landed(order("Ready", move=TO_NEW, at="new")) == uid("new")
    assert landed(order("Ready", move=TO_NEW, at="new", seen=0)) is None
    assert landed(order("Working", move=TO_NEW, at="old")) is None
    assert landed(order("Ready", move=TO_NEW)) is None


def test_a_move_that_is_done_goes_on_record_and_then_out_of_the_order() -> None:
    read = scope(volume(pool="new", status={"movingTo": "new"}), order(move=TO_NEW, at="new"), asked=NEW, target=NEW)
    at = go(read)
    assert at.over and at.to is None and at.place == Place(ref("new"), "h1", None)
    after = derive_status(read, at.place, USED, None, NOW, at)
    assert (after.pool, after.moving_to, after.epoch, after.phase) == ("new", None, None, VolumePhase.IN_USE)
    recorded = replace(read, volume=volume(pool="new", status={"pool": "new"}), pool=NEW)
    again = go(recorded, place=at.place)
    assert again.over and again.to is None
    assert read.order is not None
    spec = directed(read.order.spec, again, 7)
    assert spec.disk is not None and spec.disk.volume is not None
    assert (spec.disk.pool, spec.disk.volume.move, spec.disk.volume.origin, spec.term) == (ref("new"), None, None, 7)
    assert spec.disk.volume.existing, "it is not made anew should it be lost"
    assert directed(spec, replace(again), 9) is spec


def test_hand_overs_are_counted_on_in_another_shared_pool_and_begin_anew_after_a_local_one() -> None:
    nfs = ref("nfs", shared=True)
    at = go(scope(volume(status={"movingTo": "nfs", "epoch": None}), order(move=Move(pool=nfs), at="nfs")))
    assert at.place == Place(nfs, "h1", 0)
    back = order(move=TO_NEW, at="new")
    at = go(scope(volume(status={"movingTo": "new", "epoch": 4}), back), place=Place(nfs, "h1", 4))
    assert at.place == Place(ref("new"), "h1", None)
    other = Move(pool=ref("other", shared=True))
    at = go(
        scope(volume(status={"movingTo": "other", "epoch": 4}), order(move=other, at="other")),
        place=Place(nfs, "h1", 4),
    )
    assert at.place.epoch == 4, "as it is marked there"


@pytest.mark.parametrize("third", ["old", "third"])
def test_a_pool_that_is_set_back_withdraws_the_move_and_the_volume_is_where_it_ended(third: str) -> None:
    item = volume(pool=third, status={"movingTo": "new"})
    at = go(scope(item, order("Working", move=TO_NEW, at="old"), target=NEW))
    withdrawn = Move(pool=ref("new"), withdrawn=True)
    assert at.ask == withdrawn and at.to == ref("new"), "its room is its own until that is done"
    back = go(scope(item, order(move=withdrawn, at="old"), target=NEW))
    assert back.over and back.to is None and back.place == Place(ref("old"), "h1")
    there = go(scope(item, order(move=withdrawn, at="new"), target=NEW))
    assert there.over and there.place.pool == ref("new")


def test_a_withdrawn_move_is_not_unwithdrawn() -> None:
    withdrawn = Move(pool=ref("new"), withdrawn=True)
    item = volume(pool="new", status={"movingTo": "new"})
    at = go(scope(item, order("Working", move=withdrawn, at="old"), asked=NEW, target=NEW))
    assert at.ask == withdrawn


def test_left_out_again_it_goes_on() -> None:
    at = go(scope(volume(status={"movingTo": "new"}), order("Working", move=TO_NEW, at="old"), target=NEW))
    assert at.ask == TO_NEW


def test_a_move_in_an_order_that_the_record_does_not_know_goes_on_record() -> None:
    at = go(scope(volume(pool="new"), order("Working", move=TO_NEW, at="old"), asked=NEW))
    assert at.to == ref("new") and at.ask == TO_NEW
    lost = go(scope(volume(pool="old"), order("Working", move=TO_NEW, at="old")))
    assert lost.ask is not None and lost.ask.withdrawn


def test_an_order_that_is_made_anew_speaks_of_the_move_from_the_start() -> None:
    read = replace(scope(volume(status={"movingTo": "new"}), target=NEW), order=None)
    at = go(read)
    assert (at.to, at.ask) == (ref("new"), TO_NEW)
    want = wanted(read)
    assert isinstance(want, Wanted)
    spec = directed(volume_order(read.volume, want, at.place, 1), at, 1)
    assert spec.disk is not None and spec.disk.volume is not None
    assert (spec.disk.volume.move, spec.disk.volume.existing) == (TO_NEW, True)
    lost = go(read, sight(view("old")))
    assert (lost.to, lost.ask) == (None, None), "a pool that the host cannot look into"
    assert go(replace(read, volume=volume())) == Course(Place(ref("old"), "h1"))


# What its status says

MOVED = volume(pool="new", status={"movingTo": "new"})


def status(work: WorkOrder, item: Volume = MOVED, seen: Sight | None = None, **changes: Any) -> VolumeStatus:
    read = scope(item, work, asked=NEW, target=NEW, **changes)
    at = go(read, seen)
    return derive_status(read, at.place, USED, None, NOW, at)


def conditions(of: VolumeStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (str(condition.status), condition.reason) for condition in of.conditions}


def test_a_volume_that_is_moved_can_be_used_meanwhile() -> None:
    progress = {"disk": {"virtualSize": GI, "pool": uid("old"), "progress": {"bytes": 5, "total": 10}}}
    after = status(order("Working", move=TO_NEW, **progress))
    assert (after.phase, after.pool, after.moving_to) == (VolumePhase.MOVING, "old", "new")
    assert conditions(after) == {"Ready": ("True", "InUse"), MOVING: ("True", MOVING), "Reconciling": ("True", MOVING)}
    assert after.progress is not None and (after.progress.bytes, after.progress.total) == (5, 10)
    assert not any(char.isdigit() for char in after.conditions[1].message), "no percents: each would be a write"
    waits = status(order("Pending", move=TO_NEW, seen=0, disk={"virtualSize": GI}))
    assert conditions(waits)["Ready"] == ("True", "InUse"), "its agent has not looked yet"


@pytest.mark.parametrize("reason", ["NoSpace", "MoveUnsupported"])
def test_a_move_that_is_stuck_says_why_and_the_volume_can_still_be_used(reason: str) -> None:
    after = status(order("Failed", move=TO_NEW, at="old", reason=reason, message="It does not fit."))
    assert after.phase is VolumePhase.MOVING
    assert conditions(after) == {"Ready": ("True", "InUse"), MOVING: ("False", reason), "Stalled": ("True", reason)}
    moving = after.condition(MOVING)
    assert moving is not None and "set spec.pool to old" in moving.message and "It does not fit." in moving.message


def test_a_volume_that_was_lost_while_it_was_moved_cannot_be_used() -> None:
    lost = order("Failed", move=TO_NEW, at="old", reason="VolumeLost")
    assert conditions(status(lost))["Ready"] == ("False", "VolumeLost")


def test_an_agent_that_knows_of_no_moves_is_told_from_one_that_is_done() -> None:
    after = status(order("Ready", move=TO_NEW))
    assert conditions(after)[MOVING] == ("False", "MoveUnsupported") and conditions(after)["Ready"][0] == "True"


def test_a_silent_host_is_waited_for() -> None:
    after = status(order("Working", move=TO_NEW, at="old"), seen=sight(view("old"), heard=False))
    assert conditions(after) == {
        "Ready": ("True", "InUse"),
        MOVING: ("False", "HostUnknown"),
        "Reconciling": ("True", "HostUnknown"),
    }


def test_a_pool_that_cannot_be_left_is_not_its_tenants_fault() -> None:
    item, work = volume(), order()
    read = scope(item, work, pool=EMPTIED, snapshots=("volsnap/s",))
    at = go(read)
    after = derive_status(read, at.place, USED, None, NOW, at)
    assert after.phase is VolumePhase.IN_USE
    assert conditions(after) == {"Ready": ("True", "InUse"), MOVING: ("False", "HasSnapshots")}
    stuck = scope(volume(status={"movingTo": "new"}), order("Failed", move=TO_NEW, reason="NoSpace"), target=NEW)
    at = go(stuck)
    assert conditions(derive_status(stuck, at.place, USED, None, NOW, at)) == {
        "Ready": ("True", "InUse"),
        MOVING: ("False", "NoSpace"),
    }
    wish = scope(WISH, work, asked=NEW, snapshots=("volsnap/s",))
    at = go(wish)
    assert conditions(derive_status(wish, at.place, USED, None, NOW, at))["Stalled"] == ("True", "HasSnapshots")


def test_the_room_is_on_record_until_the_move_is_over_and_what_was_said_stays_said() -> None:
    before = status(order("Working", move=TO_NEW, at="old"))
    kept = scope(MOVED.model_copy(update={"status": before}), order("Working", move=TO_NEW, at="old"))
    after = derive_status(kept, None, USED, None, NOW)
    assert after.moving_to == "new" and conditions(after)[MOVING] == ("True", MOVING)


def test_a_linked_volume_that_was_moved_is_linked_no_more() -> None:
    source = {"snapshot": "s", "cloneMode": "Linked"}
    item = volume(pool="new", source=source, status={"movingTo": "new"})
    read = scope(item, order(move=TO_NEW, at="new"), asked=NEW, target=NEW)
    at = go(read)
    assert derive_status(read, at.place, None, None, NOW, at).unlinked is True
    plain = scope(MOVED, order(move=TO_NEW, at="new"), asked=NEW, target=NEW)
    assert derive_status(plain, at.place, None, None, NOW, at).unlinked is None


def test_after_the_order_was_set_right_the_volume_stays_ready() -> None:
    item = volume(pool="new", status={"pool": "new", "phase": "InUse"})
    spec = directed(order(move=TO_NEW).spec, Course(Place(ref("new"), "h1"), over=True), 1)
    work = order("Ready", spec=spec, at="new", seen=0)
    read = replace(scope(item, work, asked=NEW), pool=NEW)
    at = go(read, place=Place(ref("new"), "h1"))
    after = derive_status(read, at.place, USED, None, NOW, at)
    assert (after.phase, conditions(after)) == (VolumePhase.IN_USE, {"Ready": ("True", "InUse")})


def test_names_of_drivers_do_not_matter() -> None:
    rbd = PoolRef(uid=uid("ceph"), name="ceph", driver=PoolDriver.RBD, parameters=PoolParameters())
    read = scope(volume(pool="ceph"), asked=pool("ceph"))
    assert go(read, sight(view("old"), PoolView(rbd, 10 * GI))).to == rbd
