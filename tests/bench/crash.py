"""F9: the QEMU of a machine is killed, and the machine runs again, once."""

from __future__ import annotations

import asyncio
import os
import signal

from kumulus.api.compute import VirtualMachine
from kumulus.kube.client import Raw
from kumulus_lab.host import LibvirtHost
from tests.bench import guests, machine, percentiles, procfs
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.machines import RUNNING, USER_NAMESPACE
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder

NAME = "fragile"
SETTLE = 2.0


def _run_of(raw: Raw) -> str:
    """The phase, and how often it was started again."""
    status = raw.get("status", {})
    return f"{status.get('phase')} {status.get('restarts', 0)}"


async def run(context: Context) -> list[Record]:
    """One machine, so often. What is young when it ends waits before it is started again: each time another one."""
    cloud, rounds, more = context.there, [], 0
    client = await cloud.client(16)
    try:
        await guests.prepare(cloud, client)
        for number in range(context.scale.guest_rounds):
            name = f"{NAME}-{number}"
            async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE, state=_run_of) as recorder:
                there = guests.Guests(cloud, client, recorder)
                await client.create(VirtualMachine.KIND, guests.body(name), USER_NAMESPACE)
                if await recorder.reached([name], f"{RUNNING} 0", seconds=180):
                    raise BenchError(f"{name} does not run: {await there.user.why(name)}")
                await asyncio.sleep(SETTLE)
                host, uid = await there.where(name)
                began = asyncio.get_running_loop().time()
                os.kill(_emulator(host, uid), signal.SIGKILL)
                if await recorder.reached([name], f"{RUNNING} 1", seconds=60):
                    raise BenchError(f"{name} does not run again: {await there.user.why(name)}")
                rounds.append(recorder.at(f"{RUNNING} 1")[name] - began)
                context.say(
                    f"QEMU killed {number + 1}/{context.scale.guest_rounds}: runs again after {rounds[-1]:.2f} s"
                )
                await asyncio.sleep(SETTLE)
                more += recorder.states[name] != f"{RUNNING} 1"
                await there.user.remove([name], recorder)
    finally:
        await client.close()
    load = machine.load()
    limit = Goal(id="F9", limit=5)
    records = [
        record("QEMU killed to Running again P50", limit, "s", percentiles.exact(rounds, 50), rounds=rounds),
        record("QEMU killed to Running again, most", limit, "s", max(rounds, default=None)),
        record("machines started more than once for it", Goal(id="F9", limit=0), "", float(more)),
    ]
    return [each.model_copy(update={"load": load}) for each in records]


def _emulator(host: LibvirtHost, uid: str) -> int:
    """Process id of the machine's QEMU, as this machine counts."""
    identity = host.daemon("init").identity()
    for pid in procfs.descendants(identity.pid) if identity is not None else ():
        if procfs.name(pid).startswith("qemu") and uid in procfs.command_line(pid):
            return pid
    raise BenchError(f"there is no QEMU of {uid} on {host.name}")
