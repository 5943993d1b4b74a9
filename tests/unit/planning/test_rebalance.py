"""Plans of moves: they make hosts more even, break nothing, and come to an end."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.affinity import HOSTNAME
from kumulus.api.compute import Placement as Spec
from kumulus.api.preview import Goal, Metric, Plan
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.rebalance import EVEN, Movable, rebalance
from kumulus_controllers.planning.residents import Resident
from kumulus_controllers.planning.rules import repels, rules_of
from kumulus_controllers.planning.views import Demand, HostView, Request

GI = 2**30
APART = Spec.model_validate(
    {
        "affinity": {
            "vmAntiAffinity": {"required": [{"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": HOSTNAME}]}
        }
    }
)


class World:
    """Hosts of 16 GiB, and machines on them."""

    def __init__(self, *hosts: str, **zones: str) -> None:
        self.fleet, self.hosts, self.machines = Fleet(), hosts, list[Movable]()
        for name in hosts:
            self.fleet.put_host(HostView(name, name, zones.get(name, "z"), cpus=16, memory=16 * GI))

    def machine(self, host: str, memory: int, cpus: int = 1, *, app: str = "", fixed: str = "", **asks: Any) -> str:
        name, spec = f"vm-{len(self.machines)}", APART if app else Spec()
        demand = Demand(cpus, memory * GI)
        labels = {"app": app} if app else {}
        self.fleet.put_machine(Resident(name, "ns", name, labels, repels(spec)))
        self.fleet.assign(name, host, demand, None)
        self.machines.append(Movable(Request(name, demand, "ns", name, labels, rules_of(spec), **asks), fixed))
        return name

    def plan(self, **goal: Any) -> Plan:
        return rebalance(self.fleet, self.machines, self.hosts, Goal(**goal))


def test_the_fullest_host_gives_to_the_emptiest() -> None:
    world = World("a", "b", "c")
    for _ in range(6):
        world.machine("a", 2)
    world.machine("b", 2)
    plan = world.plan()
    assert {(move.source, move.target, move.why) for move in plan.moves} == {("a", "b", EVEN), ("a", "c", EVEN)}
    assert plan.before == {"a": 0.75, "b": 0.125, "c": 0.0}
    assert sorted(plan.after.values()) == [0.25, 0.25, 0.375]
    assert len(world.plan(most=1).moves) == 0, "it is even now, as far as may be"


def test_one_large_machine_is_moved_rather_than_many_small_ones_and_not_to_and_fro() -> None:
    world = World("a", "b")
    world.machine("a", 8)
    for _ in range(6):
        world.machine("a", 1)
    plan = world.plan(tolerance=0.2)
    assert [(move.name, move.target) for move in plan.moves] == [("vm-0", "b")]
    world = World("a", "b")
    world.machine("a", 8)
    assert world.plan().moves == (), "it would be as uneven there"


def test_cpus_are_evened_out_when_that_is_asked_for() -> None:
    world = World("a", "b")
    for _ in range(2):
        world.machine("a", 1, cpus=6)
        world.machine("b", 1, cpus=1)
    assert world.plan().moves == ()
    assert [move.cpus for move in world.plan(metric=Metric.CPUS, tolerance=0.2).moves] == [6]


def test_what_cannot_be_moved_stays_and_zones_are_left_alone() -> None:
    world = World("a", "b", b="other")
    world.machine("a", 8)
    assert world.plan().moves == ()
    world = World("a", "b")
    for _ in range(2):
        world.machine("a", 6, fixed="it is Suspended")
        world.machine("a", 2, bound={"data": "a"})
    assert world.plan().moves == ()


def test_machines_that_break_a_rule_go_first_and_who_can_go_nowhere_is_named() -> None:
    world = World("a", "b")
    for _ in range(3):
        world.machine("a", 1, app="x")
    plan = world.plan()
    assert [(move.name, move.target) for move in plan.moves] == [("vm-0", "b")]
    assert plan.moves[0].why == "breaks a rule: with a machine labelled app=x (vm-1, vm-2)"
    assert list(plan.stuck) == ["ns/vm-1", "ns/vm-2"]
    assert "0 of 2 hosts fit" in plan.stuck["ns/vm-1"]
    world = World("a", "b")
    world.machine("a", 1, app="x", fixed="it is Starting")
    world.machine("a", 1, app="x", fixed="it is Starting")
    assert all(why.endswith("it is Starting") for why in world.plan().stuck.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 6), st.booleans()), max_size=16))
def test_whatever_there_is_a_plan_makes_it_better_and_overfills_nothing(machines: list[tuple[str, int, bool]]) -> None:
    world = World(*"abcd")
    taken: dict[str, int] = {}
    for host, memory, app in machines:
        if taken.get(host, 0) + memory <= 16:
            taken[host] = taken.get(host, 0) + memory
            world.machine(host, memory, app="x" if app else "")
    broken = sum(bool(world.fleet.unsatisfied(item.request)) for item in world.machines)
    plan = world.plan()
    evening = [move for move in plan.moves if move.why == EVEN]
    assert len({move.name for move in plan.moves}) == len(plan.moves), "each moves once at most"
    assert all(share <= 1 for share in plan.after.values())
    assert sum(bool(world.fleet.unsatisfied(item.request)) for item in world.machines) <= broken
    if len(evening) == len(plan.moves):
        assert sum(s * s for s in plan.after.values()) <= sum(s * s for s in plan.before.values()) + 1e-9
