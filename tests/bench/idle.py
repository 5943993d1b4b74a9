"""G11: what a cloud asks of the API server while nobody asks anything of it, and what an idle agent costs."""

from __future__ import annotations

import asyncio

from tests.bench.audit import AGENT, CONTROLLERS, AuditLog, Tally
from tests.bench.bench import Bystanders, Context
from tests.bench.cloud import Cloud
from tests.bench.procfs import Memory, Meter
from tests.bench.record import Goal, Record, record

REQUESTS = {"create", "update", "patch", "delete", "deletecollection", "get", "list", "watch"}
MIB = 1 << 20
SETTLE = 10.0
"""Reports, pools and counts have been written by then."""


async def simulated(context: Context) -> list[Record]:
    """The fewest simulated hosts."""
    cloud = context.there
    await cloud.grow(context.scale.hosts[0])
    return await _measure(context, cloud.hosts, {"agents": [cloud.pid(fleet) for fleet in cloud.fleets]}, "simulated")


async def libvirt(context: Context) -> list[Record]:
    """Real agents on libvirt hosts without machines."""
    cloud = context.there
    agents = [cloud.pid(host.daemon("agent")) for host in cloud.lab.hosts]
    return await _measure(context, len(agents), {"agents": agents}, "libvirt")


async def _measure(context: Context, hosts: int, agents: dict[str, list[int]], kind: str) -> list[Record]:
    cloud: Cloud = context.there
    seconds = context.scale.idle_seconds
    context.say(f"idle for {seconds:.0f} s with {hosts} {kind} hosts")
    await asyncio.sleep(min(SETTLE, seconds / 2))
    audit: AuditLog = cloud.audit()
    pids = {**agents, "controllers": [cloud.controllers], "apiserver": [cloud.apiserver], "etcd": [cloud.etcd]}
    watching, meter = Bystanders(), Meter(pids)
    await asyncio.sleep(seconds)
    used, memory = meter.read(), Memory.of(cloud.controllers)
    tally = Tally.of(audit.requests())
    share = {name: 100 * spent / seconds for name, spent in used.items()}
    records = [
        record(
            f"requests of an idle {kind} host",
            Goal(id="G11", limit=0.2),
            "1/s",
            tally.total([AGENT], REQUESTS) / hosts / seconds,
            detail=tally.per(round(hosts * seconds), [AGENT]),
        ),
        record(
            f"requests of idle controllers, {hosts} {kind} hosts",
            Goal(id="G11", limit=0.1),
            "1/s",
            tally.total([CONTROLLERS], REQUESTS) / seconds,
            detail=tally.per(round(seconds), [CONTROLLERS]),
        ),
        record(
            f"CPU of an idle {kind} agent",
            Goal(id="G11", limit=1.0),
            "% of a core",
            share["agents"] / hosts,
            detail={name: round(value, 2) for name, value in share.items()},
        ),
        record(
            f"memory of idle controllers (VmHWM), {hosts} {kind} hosts",
            Goal(id="G5", limit=90),
            "MiB",
            memory.peak / MIB,
            detail={"rss_mib": round(memory.rss / MIB, 1), "pss_mib": round(memory.pss / MIB, 1)},
        ),
    ]
    load = watching.load(sum(used.values()))
    return [each.model_copy(update={"load": load}) for each in records]
