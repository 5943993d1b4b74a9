"""G12: what an agent's process keeps in memory, idle and with machines, and what a real machine adds to its host."""

from __future__ import annotations

import asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.machines import RUNNING, USER_NAMESPACE, User, ensure_namespace
from tests.bench.procfs import Memory
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.shapes import names

MIB = 1 << 20
LABEL = "bench.kumulus.io/alone"


async def simulated(context: Context) -> list[Record]:
    """One simulated host in a process of its own, without and with machines."""
    cloud, machines = context.there, context.scale.resident
    (host,) = await cloud.grow(cloud.hosts + 1, name="alone")
    pid = cloud.pid(cloud.fleets[-1])
    client = await cloud.client(64)
    try:
        await ensure_namespace(client)
        await client.patch(Host.KIND, host, {"metadata": {"labels": {LABEL: "yes"}}})
        await asyncio.sleep(5)
        idle = Memory.of(pid)
        user, wanted = User(client), names("alone", machines)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
            for name in wanted:
                await user.create(name, selector={LABEL: "yes"})
            if late := await recorder.reached(wanted, RUNNING, seconds=60):
                raise BenchError(f"{len(late)} machines do not run: {await user.why(late[0])}")
            full = Memory.of(pid)
            await user.remove(wanted, recorder)
    finally:
        await client.close()
    context.say(f"simulated agent: {idle.pss / MIB:.1f} MiB idle, {full.pss / MIB:.1f} MiB with {machines} machines")
    return agent_records("simulated", idle, full, machines)


def agent_records(kind: str, idle: Memory, full: Memory, machines: int, note: str = "") -> list[Record]:
    """What an agent keeps, from its memory without and with machines."""
    return [
        record(
            f"PSS of an idle {kind} agent",
            Goal(id="G12", limit=80),
            "MiB",
            idle.pss / MIB,
            detail={"rss_mib": round(idle.rss / MIB, 1), "peak_mib": round(idle.peak / MIB, 1)},
            note=f"RSS {idle.rss / MIB:.0f} MiB",
        ),
        record(
            f"PSS of a {kind} agent with {machines} machines",
            Goal(id="G12", limit=100),
            "MiB",
            full.pss / MIB,
            detail={"rss_mib": round(full.rss / MIB, 1), "peak_mib": round(full.peak / MIB, 1)},
            note=f"RSS {full.rss / MIB:.0f} MiB{note}",
        ),
    ]
