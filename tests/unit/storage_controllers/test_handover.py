"""Which host keeps what of a snapshot while its volumes go from host to host: state in, moves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import StoragePool
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.handover import Moves, Part, keeping, kept_by, moves
from kumulus_controllers.storage.volumes import Volumes

NOW = "2026-01-01T00:00:00Z"


def uid(number: int) -> str:
    return f"6f3a0c7e-9d1b-4c55-8a2e-{number:012d}"


SNAP, ONE, TWO, V1, V2 = (uid(number) for number in range(1, 6))
SHARED = {"uid": uid(9), "name": "p", "driver": "nfs", "parameters": {"nfs": {"server": "192.0.2.1", "path": "/x"}}}
LOCAL = {"uid": uid(9), "name": "p", "driver": "dir", "parameters": {"path": "/x"}}
POOL = PoolRef.model_validate(SHARED)


def order(host: str, *parts: tuple[str, str], deleting: bool = False, pool: Any = SHARED, **more: Any) -> WorkOrder:
    items = [{"snapshot": snapshot, "volume": volume, "pool": pool} for snapshot, volume in parts]
    meta = {"name": "s", "namespace": f"kumulus-host-{host}", **({"deletionTimestamp": NOW} if deleting else {})}
    spec = {
        "type": "Snapshot",
        "for": {"kind": "VirtualMachineSnapshot", "namespace": "ns", "name": "all", "uid": SNAP},
        "snapshot": {"items": items, **more},
    }
    return WorkOrder.parse({"metadata": meta, "spec": spec})


P1, P2 = Part(ONE, V1, "v1", POOL, home="a", host="a"), Part(TWO, V2, "v2", POOL, home="a", host="a")
BOTH = order("a", (ONE, V1), (TWO, V2))


def away(part: Part, home: str | None = None) -> Part:
    return replace(part, home=home)


def test_nothing_is_written_as_long_as_nothing_moves() -> None:
    assert moves((P1, P2), (BOTH,), taken=True) == Moves()
    assert kept_by(P1, (BOTH,), Moves()) == "a"


def test_a_pool_of_one_host_is_never_left() -> None:
    part = replace(P1, pool=PoolRef.model_validate(LOCAL), home=None)
    assert moves((part,), (order("a", (ONE, V1), pool=LOCAL),), taken=True) == Moves()


@pytest.mark.parametrize("home", [None, "b"])
def test_a_part_goes_with_its_volume_and_the_other_stays(home: str | None) -> None:
    parts = (away(P1, home), P2)
    found = moves(parts, (BOTH,), taken=True)
    (move,) = found.let_go
    assert move.order is BOTH and [item.snapshot for item in move.stays] == [TWO]
    assert found.take_up == (), "not before the first host has let go"
    assert found.lack is not None and "Volume v1 goes" in found.lack.message and "Host a gives" in found.lack.message
    assert not found.lack.stalled
    assert (kept_by(parts[0], (BOTH,), found), kept_by(P2, (BOTH,), found)) == (None, "a")


def test_the_last_part_takes_the_order_with_it_and_leaves_the_data() -> None:
    (move,) = moves((away(P1), away(P2)), (BOTH,), taken=True).let_go
    assert move.stays == ()
    left = keeping(BOTH.spec, move.stays, 7)
    assert left.snapshot is not None and left.snapshot.retain and left.term == 7
    assert len(left.snapshot.items) == 2, "the host is told what it leaves"
    going = order("a", (ONE, V1), (TWO, V2), deleting=True, retain=True)
    parts = (away(P1, "b"), away(P2, "a"))
    again = moves(parts, (going,), taken=True)
    assert again.take_up == () and keeping(again.let_go[0].order.spec, (), 9) is again.let_go[0].order.spec
    assert kept_by(parts[1], (going,), again) is None, "also of the volume that came back: its order goes first"


def test_who_has_the_volume_gets_what_was_taken_of_it() -> None:
    parts = (replace(P1, home="b", host=None), P2)
    rest = order("a", (TWO, V2))
    (move,) = moves(parts, (rest,), taken=True).take_up
    assert (move.host, move.order, [item.snapshot for item in move.items]) == ("b", None, [ONE])
    there = order("b", (ONE, V1))
    back = moves((replace(P1, home="b"), replace(P2, home="b", host=None)), (there,), taken=True)
    (move,) = back.take_up
    assert move.order is there
    spec = keeping(there.spec, (*there.spec.snapshot.items, *move.items), 1)  # type: ignore[union-attr]
    assert spec.snapshot is not None and spec.snapshot.taken and len(spec.snapshot.items) == 2


def test_what_nobody_has_waits_for_its_volume() -> None:
    found = moves((replace(P1, home=None, host=None),), (), taken=True)
    assert found.let_go == () == found.take_up and found.lack is not None
    assert moves((replace(P1, home="a", there=False),), (), taken=True) == Moves(), (
        "a volume that is gone does not come"
    )


def test_a_snapshot_that_is_not_taken_is_let_go_as_a_whole_and_taken_anew() -> None:
    """Half of it would be of another instant."""
    (move,) = moves((away(P1, "b"), P2), (BOTH,), taken=False).let_go
    assert move.stays == ()
    assert kept_by(P2, (BOTH,), moves((away(P1, "b"), P2), (BOTH,), taken=False)) is None
    assert moves((away(P1, "b"), P2), (), taken=False) == Moves()


def test_a_removal_that_was_asked_for_ends_where_the_volume_is() -> None:
    removing = order("a", (ONE, V1), deleting=True)
    assert moves((P1,), (removing,), taken=True) == Moves()
    (move,) = moves((away(P1),), (removing,), taken=True).let_go
    assert host_of(move.order) == "a" and move.stays == ()


def test_what_was_let_go_is_told_from_what_was_removed() -> None:
    assert not P1.let_go and replace(P1, host=None).let_go and replace(P1, host_there=False).let_go
    assert not replace(P1, host=None, there=False).let_go
    assert not replace(P1, host=None, pool=PoolRef.model_validate(LOCAL)).let_go


# What is being made from a snapshot


CLONE, CLONE_ORDER = uid(6), {"snapshot": {"snapshot": ONE, "volume": V1}}


def disk(host: str, volume: str, name: str, *, deleting: bool = False, **wanted: Any) -> dict[str, Any]:
    meta = {"name": f"volume-{volume}", "namespace": f"kumulus-host-{host}", "uid": uid(50 + int(volume[-1]))}
    return {
        "metadata": {**meta, "resourceVersion": "1", **({"deletionTimestamp": NOW} if deleting else {})},
        "spec": {
            "type": "Disk",
            "for": {"kind": "Volume", "namespace": "ns", "name": name, "uid": volume},
            "disk": {"pool": SHARED, "volume": {"uid": volume, **wanted}},
        },
    }


def looked_up(*orders: dict[str, Any], size: str | None = None) -> str | None:
    """The volume that is being made of the snapshot, as a pass over the snapshot's volume sees it."""
    caches = Caches()
    volumes = Volumes(caches)
    meta = {"namespace": "ns", "resourceVersion": "1"}
    pool = {"driver": "nfs", "parameters": SHARED["parameters"]}
    caches.store(StoragePool).apply({"metadata": {"name": "p", "uid": uid(9), "resourceVersion": "1"}, "spec": pool})
    there = {"pool": "p", "host": "a", "size": "1Gi"}
    origin = {"metadata": {**meta, "name": "v1", "uid": V1}, "spec": {"size": "1Gi"}, "status": there}
    status = {"pool": "p", "host": "a", **({"size": size} if size else {})}
    clone = {
        "metadata": {**meta, "name": "clone", "uid": CLONE},
        "spec": {"source": {"snapshot": "s"}},
        "status": status,
    }
    for raw in (origin, clone):
        volumes.store.apply(raw)
    volumes.snapshots.apply(
        {"metadata": {**meta, "name": "s", "uid": ONE}, "spec": {"volume": "v1"}, "status": {"volumeUid": V1}}
    )
    for raw in orders:
        volumes.orders.apply(raw)
    found = volumes.store.get("v1", "ns")
    assert found is not None
    return volumes.scope(found).copied


def test_a_volume_stays_while_another_is_made_from_a_snapshot_of_it() -> None:
    """One that has a place is waited for; once the volume is on its way, one without an order waits for the snapshot."""
    here, going = disk("a", V1, "v1"), disk("a", V1, "v1", deleting=True, retain=True)
    ordered = disk("a", CLONE, "clone", origin=CLONE_ORDER)
    assert looked_up(here) == "Volume clone"
    assert looked_up(going) is None
    assert looked_up(going, ordered) == "Volume clone" == looked_up(here, ordered)
    assert looked_up(here, ordered, size="1Gi") is None


def test_a_volume_stays_while_an_image_is_made_of_it_or_of_a_snapshot() -> None:
    image = {"image": {"uid": uid(8), "format": "qcow2"}, "volume": V1, "snapshot": ONE}
    order = {
        "metadata": {"name": "image", "namespace": "kumulus-host-a", "uid": uid(60), "resourceVersion": "1"},
        "spec": {
            "type": "Disk",
            "for": {"kind": "Image", "namespace": "ns", "name": "golden", "uid": uid(8)},
            "disk": {"pool": SHARED, "importImage": image},
        },
    }
    here = disk("a", V1, "v1")
    assert looked_up(here, {**order, "status": {"state": "Working"}}, size="1Gi") == "Image golden"
    assert looked_up(here, {**order, "status": {"state": "Ready"}}, size="1Gi") is None
