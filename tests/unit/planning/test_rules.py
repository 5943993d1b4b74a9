"""Rules between machines: what each refuses and prefers, in which words, and that tallies count what there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.affinity import HOSTNAME, TOPOLOGY_ZONE, LabelSelector
from kumulus.api.compute import Placement as Spec
from kumulus.api.placement import Profile
from kumulus.api.placement_group import PlacementGroup
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.labels import labels_of, said, selects
from kumulus_controllers.planning.residents import Resident
from kumulus_controllers.planning.rules import repels, rules_of
from kumulus_controllers.planning.views import Demand, HostView, Placement, Refusal, Request

GI = 2**30
WEB, DB = {"app": "web"}, {"app": "db"}
RACK = "example.com/rack"

Raw = dict[str, Any]


def selector(labels: Mapping[str, str]) -> Raw:
    return {"matchLabels": dict(labels)}


def term(labels: Mapping[str, str], key: str = HOSTNAME) -> Raw:
    return {"labelSelector": selector(labels), "topologyKey": key}


def spread(labels: Mapping[str, str], key: str = TOPOLOGY_ZONE, **more: Any) -> Raw:
    return {"topologySpreadConstraints": [{**term(labels, key), **more}]}


def apart(labels: Mapping[str, str], key: str = HOSTNAME) -> Raw:
    return {"affinity": {"vmAntiAffinity": {"required": [term(labels, key)]}}}


def near(labels: Mapping[str, str], key: str = HOSTNAME) -> Raw:
    return {"affinity": {"vmAffinity": {"required": [term(labels, key)]}}}


def group(policy: str, labels: Mapping[str, str] = WEB, key: str = HOSTNAME, **more: Any) -> PlacementGroup:
    spec = {"policy": policy, "selector": selector(labels), "topologyKey": key, **more}
    return PlacementGroup.parse({"metadata": {"name": "web"}, "spec": spec})


class World:
    """Hosts, and machines that are placed on them as they come."""

    def __init__(self, *hosts: HostView, groups: tuple[PlacementGroup, ...] = ()) -> None:
        self.fleet, self.groups, self.machines = Fleet(), groups, 0
        for host in hosts:
            self.fleet.put_host(host)

    def asks(self, labels: Mapping[str, str], placement: Raw | None = None, **more: Any) -> Request:
        """A machine comes into being."""
        self.machines += 1
        name, spec = f"vm-{self.machines}", Spec.model_validate(placement or {})
        self.fleet.put_machine(Resident(name, "ns", name, labels, repels(spec)))
        mine = [item for item in self.groups if selects(labels_of(item.spec.selector), labels)]
        rules, profile = rules_of(spec, mine), spec.profile
        asked = Request(name, Demand(1, GI), "ns", name, labels, rules, profile=profile, tolerations=spec.tolerations)
        return replace(asked, **more)

    def comes(
        self, labels: Mapping[str, str], placement: Raw | None = None, *, to: str | None = None, **more: Any
    ) -> str:
        """A machine comes, and goes to a host: the one that is named, or the best; else why it goes to none."""
        request = self.asks(labels, placement, **more)
        found = self.fleet.place(request)
        if to is None and isinstance(found, Refusal):
            return str(found)
        host = to if to is not None else found.host if isinstance(found, Placement) else ""
        self.fleet.assign(request.uid, host, request.demand, None)
        return host


def host(name: str, zone: str = "z1", memory: int = 16, **more: Any) -> HostView:
    return HostView(name, f"uid-{name}", zone, cpus=64, memory=memory * GI, **more)


def three(**more: Any) -> World:
    """Each next host has less room, so that the first is where machines go that want nothing."""
    return World(host("a", memory=64), host("b", memory=48), host("c", "z2", memory=32), **more)


def test_a_machine_is_required_to_be_near_to_others() -> None:
    world = three()
    assert world.comes(WEB, near(DB)) == "0 of 3 hosts fit: 3 without a machine labelled app=db (a, b, c)"
    assert world.comes(DB, to="c") == "c"
    assert world.comes(WEB, near(DB)) == "c"
    assert world.comes(WEB, near(DB, RACK)) == f"0 of 3 hosts fit: 3 without label {RACK} (a, b, c)"
    assert world.comes(WEB, near(DB, TOPOLOGY_ZONE), zone="z1").startswith("0 of 3 hosts fit: 2 without a machine")


def test_the_first_of_its_kind_may_be_anywhere_and_the_others_come_to_it() -> None:
    world = three()
    assert [world.comes(WEB, near(WEB, TOPOLOGY_ZONE)) for _ in range(3)] == ["a", "a", "a"]
    world = three()
    assert world.comes(WEB, near(WEB), to="b") == "b"
    assert [world.comes(WEB, near(WEB)) for _ in range(2)] == ["b", "b"]


def test_a_machine_is_required_to_be_away_from_others_whoever_comes_first() -> None:
    world = three()
    assert [world.comes(WEB, apart(WEB)) for _ in range(3)] == ["a", "b", "c"]
    assert world.comes(WEB, apart(WEB)) == (
        "0 of 3 hosts fit: 3 with a machine labelled app=web (a: vm-1; b: vm-2; c: vm-3)"
    )
    world = three()
    assert world.comes(DB, apart(WEB), to="a") == "a"
    assert world.comes(WEB) == "b", "the one that was there keeps away from it"
    assert world.comes(DB) == "a", "of others it does not"
    assert world.comes(DB, apart(WEB, TOPOLOGY_ZONE)) == "c"
    assert world.comes(WEB) == "b", "where no db is that minds"
    assert world.comes(WEB, zone="z2") == (
        "0 of 3 hosts fit: 2 in another zone (a, b); 1 with a machine in its zone that keeps away from it (vmAntiAffinity)"
        " (c: vm-4)"
    )


def test_machines_of_other_namespaces_are_nothing_to_it() -> None:
    world = three()
    assert world.comes(WEB, apart(WEB)) == "a"
    assert world.comes(WEB, apart(WEB), namespace="other") == "a"


def test_what_is_preferred_is_taken_where_it_can_be_had() -> None:
    world = three()
    prefers = {"vmAffinity": {"preferred": [{"weight": 2, "term": term(DB)}]}}
    world.comes(DB, to="c")
    assert world.comes(WEB, {"affinity": prefers}) == "c"
    avoids = {"vmAntiAffinity": {"preferred": [{"weight": 3, "term": term(WEB)}]}}
    assert world.comes(WEB, {"affinity": {**prefers, **avoids}}) == "a", (
        "that it is away counts more than that it is near"
    )
    ssd = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
    world.fleet.put_host(host("d", memory=8, labels={"disk": "ssd"}))
    assert world.comes(WEB, {"affinity": {"hostAffinity": {"preferred": [{"weight": 1, "preference": ssd}]}}}) == "d"
    assert world.comes(WEB, {"affinity": {"hostAffinity": {"required": [ssd]}}}) == "d"
    world.fleet.put_host(host("d", memory=8, labels={"disk": "ssd"}, closed="cordoned"))
    assert world.comes(WEB, {"affinity": {"hostAffinity": {"preferred": [{"weight": 1, "preference": ssd}]}}}) == "a"


def test_what_is_preferred_is_found_among_many_hosts_and_few_are_looked_at_when_it_is_everywhere() -> None:
    looked: list[str] = []
    fleet = Fleet(filters={"count": lambda r, h, load: looked.append(h.name)})  # type: ignore[func-returns-value]
    world = World()
    world.fleet = fleet
    for number in range(500):
        fleet.put_host(host(f"h{number:03}", memory=1000 - number))
    world.comes(DB, to="h499")
    assert world.comes(WEB, {"affinity": {"vmAffinity": {"preferred": [{"weight": 1, "term": term(DB)}]}}}) == "h499"
    looked.clear()
    assert world.comes(WEB, apart(WEB)) == "h000"
    assert world.comes(WEB, apart(WEB)) == "h001"
    assert len(looked) <= 20


def test_hosts_that_are_in_no_place_are_liked_for_none() -> None:
    avoids = {"affinity": {"vmAntiAffinity": {"preferred": [{"weight": 3, "term": term(WEB, RACK)}]}}}
    world = World(host("a", memory=64), host("b", memory=32, labels={RACK: "r1"}))
    assert world.comes(WEB, avoids) == "b"
    assert world.comes(WEB, avoids) == "a", "of what is left none is liked more"
    world = World(
        host("a", memory=64), host("b", memory=32, labels={RACK: "r1"}), groups=(group("SoftAntiAffinity", key=RACK),)
    )
    assert [world.comes(WEB) for _ in range(2)] == ["b", "b"], "what it has of it is less, not nothing"


def test_groups_keep_their_members_apart_or_together() -> None:
    world = three(groups=(group("AntiAffinity"),))
    assert [world.comes(WEB) for _ in range(3)] == ["a", "b", "c"]
    assert world.comes(WEB) == (
        "0 of 3 hosts fit: 3 with a machine of the same PlacementGroup web (a: vm-1; b: vm-2; c: vm-3)"
    )
    assert world.comes(DB) == "a"
    world = three(groups=(group("AntiAffinity", maxPerTopology=2),))
    assert Counter(world.comes(WEB) for _ in range(6)) == {"a": 2, "b": 2, "c": 2}
    assert "3 with 2 machines of the same PlacementGroup web" in world.comes(WEB)
    world = three(groups=(group("AntiAffinity", key=TOPOLOGY_ZONE),))
    assert [world.comes(WEB) for _ in range(2)] == ["a", "c"]
    assert world.comes(WEB) == (
        "0 of 3 hosts fit: 3 with a machine of the same PlacementGroup web in its zone (a: vm-1; b: vm-1; c: vm-2)"
    )
    world = three(groups=(group("AntiAffinity", key=RACK),))
    assert world.comes(WEB) == f"0 of 3 hosts fit: 3 without label {RACK}, which PlacementGroup web is about (a, b, c)"
    world = three(groups=(group("Affinity"),))
    assert world.comes(WEB, to="b") == "b"
    assert world.comes(WEB) == "b"
    world.fleet.put_host(host("b", closed="cordoned"))
    assert world.comes(WEB) == (
        "0 of 3 hosts fit: 2 without the other machines of PlacementGroup web (a, c); 1 cordoned (b)"
    )


def test_soft_groups_let_machines_run_all_the_same() -> None:
    world = three(groups=(group("SoftAntiAffinity"),))
    assert [world.comes(WEB) for _ in range(4)] == ["a", "b", "c", "a"]
    assert Counter(world.comes(WEB) for _ in range(5)) == {"a": 1, "b": 2, "c": 2}, "evenly, when there is no other way"
    world = three(groups=(group("SoftAffinity"),))
    assert world.comes(WEB, to="c") == "c"
    assert world.comes(WEB) == "c"
    world.fleet.put_host(host("c", "z2", closed="not ready"))
    assert world.comes(WEB) == "a"


def test_machines_are_spread_over_places() -> None:
    even = spread(WEB)
    world = three()
    assert [world.comes(WEB, even) for _ in range(4)] == ["a", "c", "a", "c"]
    assert world.comes(WEB, even, zone="z1") in "ab", "of the zones that it could be in there is one"
    world.fleet.put_host(host("c", "z2", closed="cordoned"))
    assert {world.comes(WEB, even) for _ in range(4)} <= {"a", "b"}, "a zone that takes nothing is no reason to wait"
    world.fleet.put_host(host("c", "z2"))
    assert [world.comes(WEB, even) for _ in range(5)] == ["c"] * 5, "until it is even again"


def test_what_cannot_be_even_waits_or_not() -> None:
    world = World(host("a"), host("c", "z2", memory=1))
    world.comes(DB, to="c")
    assert world.comes(WEB, spread(WEB)) == "a"
    assert world.comes(WEB, spread(WEB)) == (
        "0 of 2 hosts fit: 1 with more machines labelled app=web in its zone than elsewhere (maxSkew 1) (a);"
        " 1 without enough memory (c; needs 1Gi, has 0 left)"
    )
    assert world.comes(WEB, spread(WEB, maxSkew=2)) == "a"
    assert world.comes(WEB, spread(WEB, whenUnsatisfiable="ScheduleAnyway")) == "a"
    world = World(*(host(f"h{n}") for n in range(4)))
    assert Counter(world.comes(WEB, spread(WEB, HOSTNAME, whenUnsatisfiable="ScheduleAnyway")) for _ in range(8)) == {
        f"h{n}": 2 for n in range(4)
    }


def test_a_machine_that_breaks_a_rule_later_is_told_of_it() -> None:
    world = three(groups=(group("AntiAffinity"),))
    one, two = world.asks(WEB, near(DB, TOPOLOGY_ZONE)), world.asks(WEB)
    assert world.fleet.unsatisfied(one) == [], "it has no place"
    world.comes(DB, to="b")
    world.fleet.assign(one.uid, "a", one.demand, None)
    world.fleet.assign(two.uid, "a", two.demand, None)
    assert list(map(str, world.fleet.unsatisfied(one))) == ["with a machine of the same PlacementGroup web (vm-2)"]
    assert world.fleet.unsatisfied(two) != []
    world.fleet.put_machine(Resident(two.uid, "ns", two.name, {"app": "other"}))
    assert world.fleet.unsatisfied(one) == []
    world.fleet.put_host(host("a", namespaces=("others",)))
    assert list(map(str, world.fleet.unsatisfied(one))) == ["for other namespaces only"]
    world.fleet.put_host(host("a"))
    world.fleet.release("vm-3")
    assert list(map(str, world.fleet.unsatisfied(one))) == ["without a machine labelled app=db in its zone"]


def test_a_machine_that_moves_counts_in_both_places_and_is_in_its_own_way_in_none() -> None:
    world = three(groups=(group("AntiAffinity", key=TOPOLOGY_ZONE),))
    moving = world.asks(WEB, apart(WEB, TOPOLOGY_ZONE))
    world.fleet.assign(moving.uid, "a", moving.demand, None)
    further = Resident("vm-1@b", "ns", "vm-1", WEB, moving.rules.apart, of=moving.uid)
    for _ in range(2):
        world.fleet.put_machine(further)
        world.fleet.assign(further.uid, "b", moving.demand, None)
        assert world.fleet.unsatisfied(moving) == []
        assert world.comes(WEB, zone="z1").endswith(
            "2 with a machine of the same PlacementGroup web in its zone (a: vm-1; b: vm-1); 1 in another zone (c)"
        )
        world.fleet.release(further.uid)
        world.fleet.drop_machine(further.uid)
    assert world.fleet.unsatisfied(moving) == []


def test_every_host_is_judged_with_all_that_is_against_it_and_what_is_for_it() -> None:
    world = three(groups=(group("AntiAffinity"),))
    world.fleet.put_host(host("d", memory=0, closed="not ready"))
    world.comes(WEB, to="a")
    judged = world.fleet.judge(world.asks(WEB, spread(WEB, whenUnsatisfiable="ScheduleAnyway")))
    assert [verdict.host for verdict in judged.verdicts] == ["c", "b", "a", "d"]
    assert judged.most == 100.0 and [verdict.liking for verdict in judged.verdicts[:2]] == [100.0, 50.0]
    assert judged.verdicts[0].scores == {"preferred-taints": 1.0}
    assert [str(why) for why in judged.verdicts[2].whys] == ["with a machine of the same PlacementGroup web (vm-1)"]
    assert [str(why) for why in judged.verdicts[3].whys] == [
        "not ready",
        "without enough memory (needs 1Gi, has 0 left)",
    ]


def test_a_scorer_that_fails_counts_nothing_and_is_named() -> None:
    faults: list[tuple[str, str]] = []

    def broken(*_: object) -> float:
        raise ZeroDivisionError

    scorers = {"broken": broken, "nan": lambda *_: float("nan"), "loud": lambda r, h, load: 1e9 * (h.name == "b")}
    world = World()
    world.fleet = Fleet(scorers=scorers, on_fault=lambda *said: faults.append(said))
    for name in ("a", "b"):
        world.fleet.put_host(host(name))
    assert world.comes(WEB) == "b"
    assert set(faults) == {("broken", "ZeroDivisionError"), ("nan", "it says NaN")}
    verdict = world.fleet.judge(world.asks(WEB)).verdicts[0]
    assert verdict.scores == {"broken": 0.0, "nan": 0.0, "loud": 1.0}


def test_a_filter_that_says_nonsense_harms_only_those_it_judges() -> None:
    def odd(request: Request, view: HostView, load: object) -> Any:
        if request.labels == WEB:
            return 7 if view.name == "a" else "x" * 1000
        return None

    world = World()
    world.fleet = Fleet(filters={"odd": odd})
    for name in ("a", "b"):
        world.fleet.put_host(host(name))
    assert world.comes(WEB) == (
        f"0 of 2 hosts fit: 1 refused because the filter odd failed (it says int) (a); 1 {'x' * 200} (b)"
    )
    assert world.comes(DB) == "a"


@pytest.mark.parametrize(
    ("spec", "fitting", "words"),
    [
        ({}, [{}, {"a": "b"}], ""),
        ({"matchLabels": {"b": "2", "a": "1"}}, [{"a": "1", "b": "2", "c": "3"}], "a=1,b=2"),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, [{}, {"a": "2"}], "a!=1"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["2", "1"]}]}, [{"a": "2"}], "a in (1,2)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, [{"a": ""}], "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, [{"b": ""}], "!a"),
    ],
)
def test_selectors(spec: Raw, fitting: list[dict[str, str]], words: str) -> None:
    wanted = labels_of(LabelSelector.model_validate(spec))
    assert said(wanted) == words
    for labels in fitting:
        assert selects(wanted, labels)
    for labels in [{"a": "1"}, {"a": "3", "b": "3"}] if "NotIn" not in str(spec) else [{"a": "1"}]:
        assert selects(wanted, labels) is (words in ("", "a") or (words == "a in (1,2)" and labels["a"] == "1"))


NAMES = st.sampled_from(["vm-0", "vm-1", "vm-2", "vm-3", "vm-4"])
APPS = st.sampled_from(["web", "db"])
HOSTS = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("label"), NAMES, APPS, st.booleans()),
    st.tuples(st.just("assign"), NAMES, HOSTS),
    st.tuples(st.just("release"), NAMES),
    st.tuples(st.just("gone"), NAMES),
    st.tuples(st.just("rack"), HOSTS, st.sampled_from(["r1", "r2"])),
    st.tuples(st.just("ask"), APPS),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_tallies_count_what_there_is(steps: list[tuple[Any, ...]]) -> None:
    """Beside the fleet's own books stands what a plain count over everything says, for rules of each kind."""
    world = World(*(host(name, memory=1000, labels={RACK: "r1"}) for name in "abc"))
    labels: dict[str, tuple[str, bool]] = {}
    where: dict[str, str] = {}
    gone: set[str] = set()
    racks = dict.fromkeys("abc", "r1")
    repelling = Spec.model_validate(apart(WEB, RACK))
    for what, *said_ in steps:
        match what, said_:
            case "label", (name, app, repel):
                labels[name] = (app, repel)
                gone.discard(name)
                world.fleet.put_machine(Resident(name, "ns", name, {"app": app}, repels(repelling) if repel else ()))
            case "assign", (name, to):
                where[name] = to
                world.fleet.assign(name, to, Demand(1, GI), None)
            case "release", (name,):
                where.pop(name, None)
                world.fleet.release(name)
                if name in gone:
                    labels.pop(name, None)
                    gone.discard(name)
            case "gone", (name,):
                world.fleet.drop_machine(name)
                if name in where:
                    gone.add(name)
                else:
                    labels.pop(name, None)
            case "rack", (name, rack):
                racks[name] = rack
                world.fleet.put_host(host(name, memory=1000, labels={RACK: rack}))
            case "ask", (app,):
                mine = {"app": app}
                rules = rules_of(Spec.model_validate(apart(DB)), [group("AntiAffinity", DB, RACK, maxPerTopology=2)])
                verdicts = world.fleet.judge(Request("new", Demand(1, GI), "ns", "new", mine, rules)).verdicts
                fits = {verdict.host for verdict in verdicts if not verdict.whys}
                placed = [(at, *labels[name]) for name, at in where.items() if name in labels]
                expected = {
                    each
                    for each in "abc"
                    if not any(at == each and app_ == "db" for at, app_, _ in placed)
                    and sum(racks[at] == racks[each] and app_ == "db" for at, app_, _ in placed) < 2
                    and not (app == "web" and any(racks[at] == racks[each] and repel for at, _, repel in placed))
                }
                assert fits == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(APPS, st.integers(0, 3), st.sampled_from(list(Profile))), max_size=30))
def test_no_required_rule_is_ever_broken_by_placing(plan: list[tuple[str, int, Profile]]) -> None:
    world = World(
        *(host(name, f"z{number % 2}", memory=6) for number, name in enumerate("abcd")),
        groups=(group("AntiAffinity", DB, maxPerTopology=2),),
    )
    kinds = (apart(WEB), near(DB, TOPOLOGY_ZONE), spread(WEB), {})
    placed = []
    for app, kind, profile in plan:
        request = world.asks({"app": app}, kinds[kind], profile=profile)
        found = world.fleet.place(request)
        if isinstance(found, Refusal):
            judged = world.fleet.judge(request).verdicts
            assert all(verdict.whys for verdict in judged)
            continue
        world.fleet.assign(request.uid, found.host, request.demand, None)
        placed.append((request, kind))
        assert world.fleet.unsatisfied(request) == []
    for request, kind in placed:
        if kind in (0, 3):
            assert world.fleet.unsatisfied(request) == [], "whoever comes later keeps what is required"
