"""Which pools of a host take a machine's disks and volumes: all of them, or none with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.pools import NO_POOL, NO_SPACE, Pools, choose, refuge, suits
from kumulus_controllers.planning.views import (
    Demand,
    HostView,
    Load,
    Moving,
    Placement,
    PoolView,
    Refusal,
    Request,
    VolumeDemand,
)


def pool(name: str, promisable: int, *, open_: bool = True, **labels: str) -> PoolView:
    uid = f"00000000-0000-0000-0000-{sum(name.encode()):012d}"
    return PoolView(PoolRef(uid=uid, name=name, driver=PoolDriver.DIR), promisable, open_, labels)


def limited(name: str, *, stops_at: int | None = None, namespaces: tuple[str, ...] = ()) -> PoolView:
    return replace(pool(name, 10), stops_at=stops_at, namespaces=namespaces)


def host(*pools: PoolView, name: str = "h") -> HostView:
    return HostView(name, f"uid-{name}", "z", 8, 100, pools=pools)


def want(size: int, uid: str = "v", *, pool: str | None = None, **selector: str) -> VolumeDemand:
    return VolumeDemand(uid, size, selector, pool)


@pytest.mark.parametrize(
    ("pools", "volume", "said"),
    [
        ((), want(1), NO_POOL),
        ((pool("a", 10, open_=False),), want(1), NO_POOL),
        ((pool("a", 10),), want(11), NO_SPACE),
        ((pool("a", 10),), want(1, pool="b"), "without storage pool b ready"),
        ((pool("a", 10, tier="hdd"),), want(1, tier="nvme"), "without a ready storage pool labelled tier=nvme"),
        ((pool("a", 10), pool("b", 11)), want(1), "b"),
        ((pool("a", 10), pool("b", 11)), want(1, pool="a"), "a"),
        ((pool("a", 10, tier="nvme"), pool("b", 11)), want(1, tier="nvme"), "a"),
    ],
)
def test_a_volume_goes_into_a_pool_that_suits_it(pools: tuple[PoolView, ...], volume: VolumeDemand, said: str) -> None:
    found = choose(host(*pools), Load(), 0, (volume,))
    assert (found.volumes["v"].name if isinstance(found, Pools) else found) == said


@pytest.mark.parametrize(
    ("pools", "volume", "said"),
    [
        ((limited("a", namespaces=("t",)),), want(1), "a"),
        (
            (limited("a", namespaces=("x",)), limited("b", namespaces=("y",))),
            want(1),
            "with storage pool a, b not allowed for namespace t",
        ),
        ((limited("a", namespaces=("x",)), limited("b")), want(1), "b"),
        (
            (limited("a", namespaces=("x",)), limited("b")),
            want(1, pool="a"),
            "with storage pool a not allowed for namespace t",
        ),
        ((limited("a", stops_at=90),), want(1), "with storage pool a filled to 90%, from which it takes nothing new"),
        ((limited("a", stops_at=90), limited("b")), want(1), "b"),
    ],
)
def test_pools_that_are_full_or_for_others_take_nothing(
    pools: tuple[PoolView, ...], volume: VolumeDemand, said: str
) -> None:
    found = choose(host(*pools), Load(), 0, (volume,), "t")
    assert (found.volumes["v"].name if isinstance(found, Pools) else found) == said
    own = choose(host(*pools), Load(), 1, (), "t")
    if volume.pool is None:
        assert (own.own.name if isinstance(own, Pools) and own.own else own) == said


def test_a_machine_keeps_the_pool_that_it_was_promised_when_that_fills_up() -> None:
    made = Fleet()
    made.put_host(host())
    made.put_pool("h", limited("a"))
    made.put_pool("h", limited("b"))
    promised = made.pool_for(Demand(1, 1, 1), made.host("h") or host(), None, "t")
    assert promised is not None
    made.assign("vm", "h", Demand(1, 1, 1), promised.uid)
    for name in ("a", "b"):
        made.put_pool("h", limited(name, stops_at=90))
    assert made.pool_for(Demand(1, 1, 1), made.host("h") or host(), "vm", "t") == promised
    assert made.pool_for(Demand(1, 1, 1), made.host("h") or host(), "other", "t") is None


SIZES = st.integers(0, 40)


@given(
    st.lists(SIZES, max_size=3),
    st.lists(SIZES, max_size=3),
    st.integers(0, 30),
    st.lists(st.integers(1, 30), max_size=4),
)
def test_what_is_chosen_together_fits_together(rooms: list[int], used: list[int], own: int, volumes: list[int]) -> None:
    pools = [pool(f"p{number}", room) for number, room in enumerate(rooms)]
    load = Load(disks={item.ref.uid: taken for item, taken in zip(pools, used, strict=False)})
    wants = tuple(want(size, f"v{number}") for number, size in enumerate(volumes))
    found = choose(host(*pools), load, own, wants)
    if not isinstance(found, Pools):
        return
    assert (found.own is not None) == (own > 0) and set(found.volumes) == {item.uid for item in wants}
    promised: dict[str, int] = dict(load.disks)
    if found.own is not None:
        promised[found.own.uid] = promised.get(found.own.uid, 0) + own
    for item in wants:
        ref = found.volumes[item.uid]
        promised[ref.uid] = promised.get(ref.uid, 0) + item.size
        assert any(each.ref == ref and suits(each, item) for each in pools)
    touched = {ref.uid for ref in found.volumes.values()} | ({found.own.uid} if found.own else set())
    assert all(promised[each.ref.uid] <= each.promisable for each in pools if each.ref.uid in touched)


def fleet(**rooms: int) -> Fleet:
    made = Fleet()
    for name, room in rooms.items():
        made.put_host(host(name=name))
        made.put_pool(name, pool("local", room))
    return made


def place(made: Fleet, volumes: tuple[VolumeDemand, ...] = (), bound: Mapping[str, str] | None = None) -> str:
    found = made.place(Request(uid="vm", demand=Demand(1, 1), volumes=volumes, bound=bound or {}))
    if isinstance(found, Refusal):
        return str(found)
    assert isinstance(found, Placement) and set(found.volumes) == {item.uid for item in volumes}
    return found.host


def test_a_volume_pins_its_machine_to_its_host_and_says_so() -> None:
    made = fleet(a=10, b=10)
    assert place(made, bound={"data": "b"}) == "b"
    assert place(made, bound={"data": "gone"}) == (
        "0 of 2 hosts fit: 2 without volume data, which is on host gone (a, b)"
    )


def test_room_that_is_promised_to_a_volume_is_not_promised_again() -> None:
    made = fleet(a=10, b=4)
    first = pool("local", 10).ref.uid
    made.keep("one", "a", first, 8)
    assert made.kept("one") == ("a", first)
    assert place(made, (want(4, "two"),)) == "b"
    made.keep("one", "a", first, 3)
    assert place(made, (want(7, "two"),)) == "a"
    made.let_go("one")
    made.let_go("one")
    assert place(made, (want(10, "two"),)) == "a"


SHARED = PoolRef(
    uid="00000000-0000-0000-0000-00000000cafe",
    name="nfs",
    driver=PoolDriver.DIR,
    parameters=PoolParameters(shared=True),
)


def sharing(*names: str, room: int = 10, usable: bool = True) -> Fleet:
    made = Fleet()
    for name in names:
        made.put_host(host(name=name))
        made.put_pool(name, PoolView(SHARED, room, usable=usable))
    return made


def test_room_in_a_shared_pool_is_reserved_once_for_all_of_its_hosts() -> None:
    made = sharing("a", "b")
    made.keep("one", "a", SHARED.uid, 8)
    assert "without enough disk space" in place(made, (want(3, "two"),))
    made.keep("one", "b", SHARED.uid, 8)  # handed over
    assert "without enough disk space" in place(made, (want(3, "two"),))
    assert place(made, (want(2, "two"),)) in ("a", "b")
    made.assign("vm", "a", Demand(1, 1, 2), SHARED.uid)
    assert "without enough disk space" in place(made, (want(1, "two"),))
    made.release("vm")
    made.let_go("one")
    assert place(made, (want(10, "two"),)) in ("a", "b")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), max_size=12))
def test_whatever_comes_and_goes_a_shared_pool_is_never_promised_twice(wants: list[tuple[str, int]]) -> None:
    made, promised = sharing("a", "b", "c", room=16), 0
    for number, (_, size) in enumerate(wants):
        found = made.place(Request(uid=f"vm{number}", demand=Demand(1, 1, size)))
        if isinstance(found, Placement):
            assert found.pool == SHARED
            made.assign(f"vm{number}", found.host, Demand(1, 1, size), SHARED.uid)
            promised += size
        assert promised <= 16
        if number % 3 == 2 and made.where(f"vm{number - 1}"):
            made.release(f"vm{number - 1}")
            promised -= wants[number - 1][1]
    assert made.load("a").promised(SHARED) == made.load("nowhere").promised(SHARED) == promised


def test_a_machine_goes_where_the_shared_pools_of_its_volumes_can_be_used() -> None:
    made = sharing("a")
    made.put_host(host(name="b"))
    request = Request(uid="vm", demand=Demand(1, 1), shared={"data": SHARED})
    found = made.place(request)
    assert isinstance(found, Placement) and found.host == "a"
    made.put_pool("a", PoolView(SHARED, 10, open=False))
    assert isinstance(made.place(request), Placement), "a pool in maintenance can be used"
    made.put_pool("a", PoolView(SHARED, 10, usable=False))
    assert "without storage pool nfs ready, which volume data is in (a, b)" in str(made.place(request))
    assert made.using(SHARED.uid) == []


def test_a_volume_that_is_moved_has_room_in_both_pools_and_fifty_at_once_are_not_promised_more_than_there_is() -> None:
    made = Fleet()
    made.put_host(host())
    made.put_pool("h", pool("old", 500))
    made.put_pool("h", pool("new", 100))
    old, new = pool("old", 0).ref, pool("new", 0).ref
    for number in range(50):
        made.keep(f"v{number}", "h", old.uid, 10)

    def begin(uid: str) -> bool:
        found = refuge(made.host("h") or host(), made.load("h"), want(10, uid), old)
        if isinstance(found, PoolRef):
            made.move(uid, Moving("h", old.uid, found.uid, 10))
        return isinstance(found, PoolRef)

    begun = [f"v{number}" for number in range(50) if begin(f"v{number}")]
    assert len(begun) == 10
    assert (made.load("h").promised(old), made.load("h").promised(new)) == (500, 100)
    assert made.leaving("h", old.uid, but="v49") == 10 and made.leaving("h", old.uid, but=begun[0]) == 9
    said = refuge(made.host("h") or host(), made.load("h"), want(10, "v49"), old)
    assert said == "without enough disk space (pool new has 0 left to promise, it needs 10)"
    made.move(begun[0], Moving("h", old.uid, new.uid, 10, idle=True))
    assert made.leaving("h", old.uid, but="v49") == 9 and made.load("h").promised(new) == 100, "idle, with room"
    made.keep(begun[0], "h", new.uid, 10)
    made.moved(begun[0])
    made.moved(begun[0])
    assert (made.load("h").promised(old), made.load("h").promised(new)) == (490, 100), "it is there now"
    made.moved(begun[1])
    assert begin("v49") and made.load("h").promised(new) == 100, "one that was called off leaves its room"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9), st.sampled_from(["move", "idle", "done", "off"]))))
def test_whatever_is_moved_what_is_promised_is_what_the_volumes_take(steps: list[tuple[int, int, str]]) -> None:
    made, at, going = Fleet(), {}, {}  # type: ignore[var-annotated]
    for number, size, step in steps:
        uid = f"v{number}"
        made.keep(uid, "h", at.setdefault(uid, "a"), 10)
        other = "b" if at[uid] == "a" else "a"
        if step in ("move", "idle"):
            made.move(uid, Moving("h", at[uid], other, size, step == "idle"))
            going[uid] = (at[uid], other, size, step == "idle")
        else:
            if step == "done" and uid in going:
                at[uid] = going[uid][1]
                made.keep(uid, "h", at[uid], 10)
            made.moved(uid)
            going.pop(uid, None)
        for each in "ab":
            promised = 10 * sum(place == each for place in at.values())
            promised += sum(item[2] for item in going.values() if item[1] == each)
            assert made.load("h").disks.get(each, 0) == promised
            busy = sum(item[0] == each and not item[3] for item in going.values())
            assert made.leaving("h", each, but="nobody") == busy
