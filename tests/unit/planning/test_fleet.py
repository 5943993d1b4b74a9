"""Placement: what each filter says, what each profile chooses, and that no more is promised than may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.affinity import HOSTNAME, TOPOLOGY_ZONE, HostOperator
from kumulus.api.hardware import HostFeature
from kumulus.api.placement import Profile, Taint, TaintEffect, Toleration, TolerationOperator
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver
from kumulus_controllers.planning import filters, scorers
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.labels import Requirement
from kumulus_controllers.planning.rules import Rules
from kumulus_controllers.planning.views import Demand, HostView, Load, Placement, PoolView, Refusal, Request

GI = 2**30


def pool(number: int, promisable: int, *, open_: bool = True) -> PoolView:
    uid = f"00000000-0000-0000-0000-{number:012d}"
    return PoolView(PoolRef(uid=uid, name=f"pool-{number}", driver=PoolDriver.DIR), promisable, open_)


def host(name: str, cpus: int = 8, memory: int = 16 * GI, **more: object) -> HostView:
    return replace(HostView(name=name, uid=f"uid-{name}", zone="z1", cpus=cpus, memory=memory), **more)  # type: ignore[arg-type]


def ask(cpus: int = 1, memory: int = GI, disk: int = 0, **more: object) -> Request:
    return replace(Request(uid="vm", demand=Demand(cpus, memory, disk)), **more)  # type: ignore[arg-type]


def fleet(*hosts: HostView) -> Fleet:
    made = Fleet()
    for item in hosts:
        made.put_host(item)
        for each in item.pools:
            made.put_pool(item.name, each)
    return made


def chosen(made: Fleet, request: Request) -> str:
    placement = made.place(request)
    assert isinstance(placement, Placement), str(placement)
    return placement.host


NO = Load()
SSD = Rules(
    hosts=(
        (Requirement("disk", HostOperator.IN, frozenset({"ssd"})),),
        (
            Requirement("cores", HostOperator.GT, frozenset({"16"})),
            Requirement("old", HostOperator.DOES_NOT_EXIST),
        ),
    )
)
DEDICATED = Taint(key="dedicated", value="db")
SOFT = Taint(key="old", effect=TaintEffect.PREFER_NO_SCHEDULE)


@pytest.mark.parametrize(
    ("name", "request_", "view", "load", "reason"),
    [
        ("open", ask(), host("a"), NO, None),
        ("open", ask(), host("a", closed="cordoned"), NO, "cordoned"),
        ("namespaces", ask(), host("a", namespaces=("x",)), NO, None),
        ("namespaces", ask(namespace="x"), host("a", namespaces=("x", "y")), NO, None),
        ("namespaces", ask(namespace="z"), host("a", namespaces=("x",)), NO, "for other namespaces only"),
        ("zone", ask(zone="z1"), host("a"), NO, None),
        ("zone", ask(), host("a"), NO, None),
        ("zone", ask(zone="z2"), host("a"), NO, "in another zone"),
        ("selector", ask(selector={"disk": "nvme"}), host("a", labels={"disk": "nvme"}), NO, None),
        ("selector", ask(selector={"disk": "nvme"}), host("a", labels={"disk": "hdd"}), NO, "without label disk=nvme"),
        ("selector", ask(selector={TOPOLOGY_ZONE: "z1", HOSTNAME: "a"}), host("a"), NO, None),
        ("labels", ask(rules=SSD), host("a", labels={"disk": "ssd"}), NO, None),
        ("labels", ask(rules=SSD), host("a", labels={"cores": "17"}), NO, None),
        (
            "labels",
            ask(rules=SSD),
            host("a", labels={"cores": "16"}),
            NO,
            "not of the labels that hostAffinity asks for (disk=ssd or cores>16,!old)",
        ),
        ("hardware", ask(), host("a"), NO, None),
        ("hardware", ask(cpu_model="host-model"), host("a", baseline="EPYC"), NO, None),
        ("hardware", ask(), host("a", baseline="EPYC"), NO, "without CPU model EPYC"),
        ("hardware", ask(cpu_model="EPYC"), host("a", cpu_models=frozenset({"EPYC"})), NO, None),
        ("hardware", ask(machine_type="q35"), host("a"), NO, "without machine type q35"),
        (
            "hardware",
            ask(features=frozenset({HostFeature.TPM})),
            host("a", features=frozenset({HostFeature.TPM})),
            NO,
            None,
        ),
        (
            "hardware",
            ask(features=frozenset({HostFeature.UEFI})),
            host("a", features=frozenset({HostFeature.TPM})),
            NO,
            "without UEFI firmware (package ovmf)",
        ),
        ("taints", ask(), host("a", taints=(DEDICATED,)), NO, "with taint dedicated=db"),
        ("taints", ask(), host("a", taints=(Taint(key="gpu"),)), NO, "with taint gpu"),
        ("taints", ask(), host("a", taints=(SOFT,)), NO, None),
        (
            "taints",
            ask(tolerations=(Toleration(key="dedicated", value="db"),)),
            host("a", taints=(DEDICATED,)),
            NO,
            None,
        ),
        (
            "taints",
            ask(tolerations=(Toleration(operator=TolerationOperator.EXISTS),)),
            host("a", taints=(DEDICATED,)),
            NO,
            None,
        ),
        ("cpus", ask(8), host("a"), NO, None),
        ("cpus", ask(8), host("a"), Load(cpus=1), "without enough CPUs"),
        ("memory", ask(memory=16 * GI), host("a"), NO, None),
        ("memory", ask(memory=16 * GI), host("a"), Load(memory=1), "without enough memory"),
        ("storage", ask(), host("a"), NO, None),
        ("storage", ask(disk=1), host("a"), NO, "without a storage pool that is ready"),
        (
            "storage",
            ask(disk=1),
            host("a", pools=(pool(1, 9, open_=False),)),
            NO,
            "without a storage pool that is ready",
        ),
        ("storage", ask(disk=9), host("a", pools=(pool(1, 8), pool(2, 9))), NO, None),
        (
            "storage",
            ask(disk=9),
            host("a", pools=(pool(1, 9),)),
            Load(disks={pool(1, 9).ref.uid: 1}),
            "without enough disk space",
        ),
    ],
)
def test_filters(name: str, request_: Request, view: HostView, load: Load, reason: str | None) -> None:
    assert filters.BUILT_IN[name](request_, view, load) == reason


def test_spread_takes_the_host_with_the_most_room() -> None:
    made = fleet(host("big", memory=64 * GI), host("small", memory=16 * GI))
    made.assign("x", "big", Demand(1, 40 * GI), None)
    assert chosen(made, ask(profile=Profile.SPREAD)) == "big", "24 GiB left are more than 16"
    made.assign("y", "big", Demand(1, 10 * GI), None)
    assert chosen(made, ask(profile=Profile.SPREAD)) == "small"


def test_pack_takes_the_fullest_that_fits() -> None:
    made = fleet(host("empty"), host("half"), host("full"))
    made.assign("x", "half", Demand(4, 8 * GI), None)
    made.assign("y", "full", Demand(8, 8 * GI), None)
    assert chosen(made, ask(profile=Profile.PACK)) == "half"


def test_least_consumed_takes_the_smallest_share() -> None:
    made = fleet(host("big", memory=64 * GI), host("small", memory=16 * GI))
    made.assign("x", "big", Demand(1, 32 * GI), None)
    made.assign("y", "small", Demand(1, 4 * GI), None)
    assert chosen(made, ask(profile=Profile.LEAST_CONSUMED)) == "small", "a quarter of it is in use, of the other half"
    assert chosen(made, ask(profile=Profile.SPREAD)) == "big"


@pytest.mark.parametrize("profile", list(Profile))
def test_a_preferred_taint_is_avoided_while_there_is_another(profile: Profile) -> None:
    made = fleet(host("a", taints=(SOFT,)), host("b"))
    assert chosen(made, ask(profile=profile)) == "b"
    made.put_host(host("b", closed="cordoned"))
    assert chosen(made, ask(profile=profile)) == "a"


def test_whoever_places_and_assigns_leaves_the_rest_for_the_next() -> None:
    made = fleet(host("a", cpus=2), host("b", cpus=1))
    places = []
    for number in range(3):
        where = chosen(made, ask())
        made.assign(f"vm-{number}", where, Demand(1, GI), None)
        places.append(where)
    assert sorted(places) == ["a", "a", "b"]
    assert isinstance(made.place(ask()), Refusal)
    made.release("vm-0")
    assert chosen(made, ask()) == places[0]


def test_a_refusal_says_how_many_why_and_which() -> None:
    made = fleet(
        host("h1", closed="cordoned"),
        host("h2", cpus=1),
        host("h3", cpus=1),
        host("h4", zone="z2"),
        host("h5", closed="not ready"),
    )
    refusal = made.place(ask(2, zone="z1", disk=1))
    assert (
        str(refusal)
        == "0 of 5 hosts fit: 2 without enough CPUs (h2, h3; needs 2, most left is 1 on h2); 1 cordoned (h1); 1 in another zone (h4); 1 not ready (h5)"
    )


def test_a_refusal_of_many_hosts_counts_them() -> None:
    made = fleet(*(host(f"h{number}", cpus=1) for number in range(6)))
    assert str(made.place(ask(2))) == "0 of 6 hosts fit: 6 without enough CPUs (needs 2, most left is 1 on h0)"
    made.assign("x", "h0", Demand(0, 14 * GI), None)
    assert str(made.place(ask(1, 17 * GI))) == (
        "0 of 6 hosts fit: 6 without enough memory (needs 17Gi, most left is 16Gi on h1)"
    )


def test_without_hosts_it_says_how_to_get_one() -> None:
    assert str(Fleet().place(ask())) == "there are no hosts: join one with `kumulusctl host add`"


def test_the_pool_with_the_most_room_is_taken_and_kept() -> None:
    """The reservation counts against the pool, which then is no longer the one with the most room."""
    made = fleet(host("a", pools=(pool(1, 100), pool(2, 60))))
    request = ask(disk=97)
    placement = made.place(request)
    assert isinstance(placement, Placement) and placement.pool is not None and placement.pool.name == "pool-1"
    made.assign("vm", "a", request.demand, placement.pool.uid)
    view = made.host("a")
    assert view is not None
    assert made.pool_for(request.demand, view, "vm") == placement.pool, "nothing that does not fit"
    other = made.pool_for(Demand(1, 1, 10), view, "another")
    assert other is not None and other.name == "pool-2"


def test_a_pool_that_was_never_put_can_be_dropped() -> None:
    made = fleet(host("a"))
    made.drop_pool("a", "unknown")
    made.drop_pool("nowhere", "unknown")
    assert made.host("a") is not None


def test_pools_put_before_their_host_are_not_lost() -> None:
    made = Fleet()
    made.put_pool("a", pool(1, 10))
    made.put_host(host("a"))
    assert chosen(made, ask(disk=10)) == "a"
    made.drop_pool("a", pool(1, 10).ref.uid)
    assert "storage pool" in str(made.place(ask(disk=10)))


def test_promises_outlive_their_host() -> None:
    made = fleet(host("a", cpus=1))
    made.assign("vm", "a", Demand(1, 1), None)
    made.drop_host("a")
    assert made.where("vm") == "a" and str(made.place(ask())).startswith("there are no hosts")
    made.put_host(host("a", cpus=1))
    assert isinstance(made.place(ask()), Refusal)


def test_a_third_partys_filter_and_scorer_have_their_say() -> None:
    made = Fleet(
        filters={**filters.BUILT_IN, "licence": lambda r, h, load: None if h.name != "a" else "without a licence"},
        scorers={**scorers.BUILT_IN, "last": lambda r, h, load: 5.0 if h.name == "c" else 0.0},
    )
    for name in ("a", "b", "c"):
        made.put_host(host(name))
    assert chosen(made, ask()) == "c"
    made.drop_host("b")
    made.drop_host("c")
    assert str(made.place(ask())) == "0 of 1 hosts fit: 1 without a licence (a)"


def test_a_filter_that_fails_lets_nothing_through_and_is_named() -> None:
    def broken(request: Request, view: HostView, load: Load) -> str | None:
        raise KeyError("x")

    made = Fleet(filters={**filters.BUILT_IN, "mine": broken})
    made.put_host(host("a"))
    assert "filter mine failed (KeyError)" in str(made.place(ask()))


def test_only_the_best_few_are_looked_at_closely() -> None:
    seen: list[str] = []
    made = Fleet(filters={"count": lambda r, h, load: seen.append(h.name)})  # type: ignore[func-returns-value]
    for number in range(500):
        made.put_host(host(f"h{number:03}"))
    made.place(ask())
    assert len(seen) <= 10


machines = st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(0, 20), st.sampled_from(list(Profile)))
steps = st.lists(st.one_of(machines, st.integers(0, 20)), max_size=40)


@settings(max_examples=80, deadline=None)
@given(steps, st.lists(st.tuples(st.integers(0, 8), st.integers(0, 16), st.integers(0, 40)), min_size=1, max_size=4))
def test_never_more_is_promised_than_may_be_and_release_restores(
    plan: list[tuple[int, int, int, Profile] | int], sizes: list[tuple[int, int, int]]
) -> None:
    views = [
        host(f"h{number}", cpus, memory * GI, pools=(pool(number, disk), pool(100 + number, disk // 2)))
        for number, (cpus, memory, disk) in enumerate(sizes)
    ]
    made = fleet(*views)
    living: dict[str, Placement] = {}
    for number, step in enumerate(plan):
        if isinstance(step, int):
            uid = sorted(living)[step % len(living)] if living else "nobody"
            living.pop(uid, None)
            made.release(uid)
        else:
            cpus, memory, disk, profile = step
            request = replace(ask(cpus, memory * GI, disk, profile=profile), uid=f"vm-{number:03}")
            found = made.place(request)
            if isinstance(found, Placement):
                made.assign(request.uid, found.host, request.demand, found.pool.uid if found.pool else None)
                living[request.uid] = found
        for view in views:
            load = made.load(view.name)
            assert 0 <= load.cpus <= view.cpus and 0 <= load.memory <= view.memory
            assert load.machines == sum(1 for place in living.values() if place.host == view.name)
            for each in view.pools:
                assert 0 <= load.disks.get(each.ref.uid, 0) <= each.promisable
    for uid in living:
        made.release(uid)
    for view in views:
        load = made.load(view.name)
        assert (load.cpus, load.memory, load.machines) == (0, 0, 0) and not any(load.disks.values())


def test_a_larger_promise_holds_while_it_is_written_down() -> None:
    made = fleet(host("a", cpus=4, memory=8 * GI))
    made.assign("vm", "a", Demand(1, GI), None)
    with made.enlarging("vm", 3, 2 * GI) as lack:
        assert lack is None
        made.assign("vm", "a", Demand(1, GI), None)  # somebody who has not heard of it
        assert (made.load("a").cpus, made.load("a").memory) == (3, 2 * GI)
        made.assign("vm", "a", Demand(3, 2 * GI), None)
    assert (made.load("a").cpus, made.load("a").memory) == (3, 2 * GI)
    with pytest.raises(RuntimeError), made.enlarging("vm", 4, 2 * GI):
        raise RuntimeError("it could not be written")
    assert made.load("a").cpus == 3
    made.release("vm")
    assert made.load("a").machines == 0


def test_no_larger_promise_than_there_is_room_for() -> None:
    made = fleet(host("a", cpus=4, memory=8 * GI))
    made.assign("vm", "a", Demand(1, GI), None)
    made.assign("other", "a", Demand(2, 4 * GI), None)
    for cpus, memory in ((3, GI), (1, 5 * GI)):
        with made.enlarging("vm", cpus, memory) as lack:
            assert lack == "its host a has 1 CPU and 3Gi left beside the 1 CPU and 1Gi that are its own"
        assert (made.load("a").cpus, made.load("a").memory) == (3, 5 * GI)
    with made.enlarging("vm", 2, 4 * GI) as lack:
        assert lack is None
    with made.enlarging("nobody", 1000, 1000 * GI) as lack:
        assert lack is None


def test_on_a_host_that_gives_more_than_it_has_what_gets_less_still_fits() -> None:
    made = fleet(host("a", cpus=2, memory=2 * GI))
    made.assign("vm", "a", Demand(4, 4 * GI), None)
    with made.enlarging("vm", 3, 4 * GI) as lack:
        assert lack is None
