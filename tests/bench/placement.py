"""G6: placement decisions a second, in this process, on the planner that the controllers use."""

from __future__ import annotations

import time

from kumulus.api.affinity import HOSTNAME, HostOperator
from kumulus.api.placement_group import GroupPolicy
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.labels import Requirement
from kumulus_controllers.planning.residents import Resident, Term
from kumulus_controllers.planning.rules import GroupRule, Rules
from kumulus_controllers.planning.views import Demand, HostView, Placement, Request
from tests.bench import percentiles
from tests.bench.bench import Bystanders, Context
from tests.bench.record import Better, Goal, Record, record

LIMITS = {1000: 1000.0, 10000: 300.0}
DECISIONS = 2000
MACHINES = 10000
GROUP = 10
"""Members of a group."""
_GIB = 1 << 30


def fleet_of(hosts: int) -> Fleet:
    """Empty hosts in four zones."""
    fleet = Fleet()
    for number in range(hosts):
        name = f"host-{number}"
        fleet.put_host(HostView(name, name, f"z{number % 4}", cpus=256, memory=256 * _GIB, labels={"disk": "nvme"}))
    return fleet


def decide(fleet: Fleet, decisions: int) -> float:
    """Place and promise machines that ask for a zone and a label; decisions a second."""
    began = time.perf_counter()
    for number in range(decisions):
        demand = Demand(cpus=1 + number // 4 % 4, memory=(1 + number // 4 % 8) * _GIB)
        request = Request(f"vm-{number}", demand, zone=f"z{number % 4}", selector={"disk": "nvme"})
        found = fleet.place(request)
        assert isinstance(found, Placement)
        fleet.assign(request.uid, found.host, demand, None)
    return decisions / (time.perf_counter() - began)


def crowd(fleet: Fleet, machines: int) -> None:
    """Machines that are there already, each in a group of ten that are apart."""
    for number in range(machines):
        request = _member(number, f"old-{number}", f"g{number // GROUP}")
        fleet.put_machine(Resident(request.uid, request.namespace, request.name, request.labels))
        found = fleet.place(request)
        assert isinstance(found, Placement)
        fleet.assign(request.uid, found.host, request.demand, None)


def _member(number: int, uid: str, group: str) -> Request:
    term = Term((Requirement("group", HostOperator.IN, frozenset((group,))),), HOSTNAME)
    rules = Rules(groups=(GroupRule(group, term, GroupPolicy.ANTI_AFFINITY, 1),))
    labels = {"group": group, "app": "web"}
    return Request(uid, Demand(1, _GIB), f"ns-{number // 100}", uid, labels, rules)


def decide_by_rules(fleet: Fleet, decisions: int) -> float:
    """Place and promise machines of groups that are apart, among 10,000 machines of such groups; decisions a second."""
    requests = [_member(number, f"new-{number}", f"g{number // GROUP}-new") for number in range(decisions)]
    began = time.perf_counter()
    for request in requests:
        fleet.put_machine(Resident(request.uid, request.namespace, request.name, request.labels))
        found = fleet.place(request)
        assert isinstance(found, Placement)
        fleet.assign(request.uid, found.host, request.demand, None)
    return decisions / (time.perf_counter() - began)


async def run(context: Context) -> list[Record]:
    """Each number of hosts, in rounds on a fresh fleet."""
    records = []
    for hosts, limit in LIMITS.items():
        watching, began = Bystanders(), time.process_time()
        rates = [decide(fleet_of(hosts), DECISIONS) for _ in range(max(3, context.scale.rounds))]
        context.say(f"placement on {hosts} hosts: {percentiles.median(rates):.0f} a second")
        records.append(
            record(
                f"placement decisions a second, {hosts} hosts",
                Goal(id="G6", limit=limit, better=Better.HIGHER),
                "1/s",
                percentiles.median(rates),
                rounds=rates,
                note="kube-scheduler 810 pods/s at 5,000 nodes (published)",
            ).model_copy(update={"load": watching.load(time.process_time() - began)})
        )
    for hosts, limit in LIMITS.items():
        watching, began = Bystanders(), time.process_time()
        rates = []
        for _ in range(max(3, context.scale.rounds)):
            crowded = fleet_of(hosts)
            crowd(crowded, MACHINES)
            rates.append(decide_by_rules(crowded, DECISIONS))
        context.say(f"placement by groups on {hosts} hosts: {percentiles.median(rates):.0f} a second")
        records.append(
            record(
                f"placement decisions a second, {hosts} hosts, {MACHINES} machines in groups that are apart",
                Goal(id="G6", limit=limit, better=Better.HIGHER),
                "1/s",
                percentiles.median(rates),
                rounds=rates,
            ).model_copy(update={"load": watching.load(time.process_time() - began)})
        )
    return records
