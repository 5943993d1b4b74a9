"""G6: placement decisions a second, in this process, on the planner that the controllers use."""

from __future__ import annotations

import time

from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand, HostView, Placement, Request
from tests.bench import percentiles
from tests.bench.bench import Bystanders, Context
from tests.bench.record import Better, Goal, Record, record

LIMITS = {1000: 1000.0, 10000: 300.0}
DECISIONS = 2000
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
    return records
