"""What a packet between two guests of a host pays for, part by part: a bare bridge, then what the kernel does for a bridge whose
connections are tracked, then chains that say nothing, then all rules of the driver `linux`. Each of them is a host of its
own, all at once, measured in turns. Told, not judged: `network` has the goal.
"""

from __future__ import annotations

import asyncio

from kumulus_agents.network.protocol import Port
from tests.bench import machine, network, percentiles, wires
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.network import BARE, NEIGHBOURS, Bare, Cloud
from tests.bench.record import Better, Goal, Record, record
from tests.bench.wires import Way
from tests.contract import network_world
from tests.contract.network_world import World

TRIPS, TURNS = 500, 80
POURS, POUR_SECONDS = 30, 0.15
_OPTIONS = ("stp_state", "0", "mcast_snooping", "0", "no_linklocal_learn", "1")
_CALLS = (*_OPTIONS, "nf_call_iptables", "1", "nf_call_ip6tables", "1")
_TRACKED = "table inet tracked { chain unused { ct state new accept; }; }"
_CHAINS = """
table bridge empty { chain entry { type filter hook prerouting priority -300; }; chain passage { type filter hook forward priority -200; }; }
table inet empty { chain zone { type filter hook prerouting priority -450; }; chain judge { type filter hook forward priority -400; }; }
"""
PARTS = (
    (BARE, (), ""),
    ("hooks for bridges", _CALLS, ""),
    ("and connection tracking", _CALLS, _TRACKED),
    ("and four empty chains", _CALLS, _TRACKED + _CHAINS),
)
OURS = "and all rules"


async def run(context: Context) -> list[Record]:
    """The parts, and the whole."""
    if (why := network_world.why_none()) is not None:
        raise BenchError(why)
    world = await asyncio.to_thread(World, 1)
    bares: list[Bare] = []
    ways: list[Way] = []
    try:
        for _, options, rules in PARTS:
            bares.append(bare := await asyncio.to_thread(Bare, *options))
            if rules:
                bare.host.run("nft", "-f", "-", given=rules)
            (source, _), (target, its) = [await asyncio.to_thread(bare.guest, number) for number in (251, 252)]
            ways.append(await asyncio.to_thread(Way, source, target, its.four))
        cloud = Cloud(world)
        await cloud.hosts[0].driver.prepare()
        await cloud.ensure(*cloud.net.order.groups)
        for nic in [cloud.nic() for _ in range(NEIGHBOURS)]:
            await cloud.hosts[0].driver.ensure_port(Port(nic, nic.uid))
        ours = [await cloud.guest(cloud.hosts[0]) for _ in range(2)]
        ways.append(await asyncio.to_thread(Way, ours[0].machine, ours[1].machine, ours[1].nic.addresses[0]))
        rounds = max(1, context.scale.rounds // 2)
        trips = await asyncio.to_thread(wires.in_turns, ways, lambda way: way.trip(TRIPS), TURNS * rounds)
        pours = await asyncio.to_thread(wires.in_turns, ways, lambda way: way.throughput(POUR_SECONDS), POURS * rounds)
    finally:
        for each in (*ways, *bares):
            each.close()
        await asyncio.to_thread(world.close)
    load = machine.load()
    names = [name for name, _, _ in PARTS] + [OURS]
    found = [
        _share(f"round trips a second: {name}", trips[0], mine, less=True)
        for name, mine in zip(names, trips, strict=True)
    ]
    found += [
        _share(f"throughput: {name}", pours[0], mine, less=False) for name, mine in zip(names, pours, strict=True)
    ]
    return [each.model_copy(update={"load": load}) for each in found]


def _share(name: str, bare: list[float], mine: list[float], *, less: bool) -> Record:
    """How much of a bare bridge's it is, turn by turn. `less`: less is better of what was measured."""
    shares = [other / one if less else one / other for one, other in zip(mine, bare, strict=True)]
    goal = Goal(id="N", better=Better.HIGHER)
    detail = {"median": percentiles.median(mine), "best": min(mine) if less else max(mine)}
    return record(name, goal, "of it", percentiles.median(shares), rounds=shares, detail=detail, note=network.BARE)
