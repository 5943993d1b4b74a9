"""G16: the controllers and the API server end and come back while many machines run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from kumulus.api.compute import VirtualMachine
from kumulus.kube.client import KubeClient
from tests.bench import machine, metrics, percentiles
from tests.bench.audit import OURS, PER_MACHINE, WRITES
from tests.bench.bench import Context
from tests.bench.cloud import BenchError, Cloud
from tests.bench.machines import RUNNING, USER_NAMESPACE, User, at_once, ensure_namespace
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.shapes import names

PROBE = "probe"
LIMIT = 90.0


async def run(context: Context) -> list[Record]:
    """With as many machines as a burst has, in rounds."""
    cloud, scale = context.there, context.scale
    await cloud.grow(scale.hosts[0])
    client = await cloud.client()
    there = names("r", scale.burst)
    try:
        await ensure_namespace(client)
        user = User(client)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
            await at_once(there, 32, user.create)
            late = await recorder.reached(there, RUNNING, seconds=60 + len(there) * 0.2)
            if late:
                raise BenchError(f"{len(late)} machines do not run")
            await asyncio.sleep(3)
            records = await _rounds(context, client, user, recorder, there)
            await user.remove(there, recorder)
    finally:
        await client.close()
    return records


async def _rounds(
    context: Context, client: KubeClient, user: User, recorder: Recorder, there: list[str]
) -> list[Record]:
    cloud, machines = context.there, len(there)
    audit = cloud.audit()
    again = max(2, min(3, context.scale.rounds))
    told: dict[str, list[float]] = {}
    for number in range(again):
        for how, stop in (("told", signal.SIGTERM), ("killed", signal.SIGKILL)):
            first, everything, probe = await _controllers(cloud, user, recorder, machines, stop)
            told.setdefault(f"{how}: first pass", []).append(first)
            told.setdefault(f"{how}: all passed", []).append(everything)
            told.setdefault(f"{how}: new machine", []).append(probe)
        probe = await _apiserver(cloud, user, recorder)
        told.setdefault("apiserver: new machine", []).append(probe)
        said = ", ".join(f"{name} {some[-1]:.1f} s" for name, some in told.items())
        context.say(f"restart {number + 1}/{again}: {said}")
    touched = {
        found.name
        for found in audit.requests()
        if found.client in OURS and found.verb in WRITES and found.plural in PER_MACHINE and found.name in set(there)
    }
    wanted = (
        ("controllers restarted: start to first pass", "told: first pass", 5.0),
        ("controllers restarted: start to a pass over everything", "told: all passed", None),
        ("controllers restarted: start to a new machine Running", "told: new machine", None),
        ("controllers killed: start to first pass", "killed: first pass", 5.0),
        ("controllers killed: start to a new machine Running", "killed: new machine", None),
        ("API server restarted: ready to a new machine Running", "apiserver: new machine", 10.0),
    )
    records = [
        record(
            f"{name}, {machines} machines",
            Goal(id="G16", limit=limit),
            "s",
            percentiles.median(told[key]),
            rounds=told[key],
        )
        for name, key, limit in wanted
    ]
    stopped = [name for name in there if recorder.states.get(name) != RUNNING]
    records.append(
        record(
            "machines touched by restarts",
            Goal(id="G16", limit=0),
            "",
            float(len(touched) + len(stopped)),
            detail={"written": len(touched), "not Running": len(stopped)},
        )
    )
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in records]


async def _controllers(
    cloud: Cloud, user: User, recorder: Recorder, machines: int, how: signal.Signals
) -> tuple[float, float, float]:
    """End them and start them; seconds from the start to the first pass, to a pass over all, to a new machine."""
    loop, services = asyncio.get_running_loop(), cloud.lab.services
    daemon = services.controllers
    if how is signal.SIGTERM:
        await asyncio.to_thread(daemon.stop)
    else:
        await asyncio.to_thread(daemon.kill)
    await user.create(PROBE)
    start = loop.time()
    starting = asyncio.create_task(asyncio.to_thread(services.start_controllers))
    port = cloud.lab.state.http_port
    first = await _until(lambda: _passed(port, 1))
    everything = await _until(lambda: _passed(port, machines))
    await starting
    probe = await _probe(user, recorder)
    return first - start, everything - start, probe - start


async def _apiserver(cloud: Cloud, user: User, recorder: Recorder) -> float:
    """End it and start it; seconds from its readiness to a new machine Running."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(cloud.lab.cluster.stop_apiserver)
    await asyncio.sleep(2)
    await asyncio.to_thread(cloud.lab.cluster.start_apiserver)
    ready = loop.time()
    await user.create_when_possible(PROBE)
    return await _probe(user, recorder) - ready


async def _probe(user: User, recorder: Recorder) -> float:
    """When the probe ran; it is gone afterwards."""
    if await recorder.reached([PROBE], RUNNING, seconds=LIMIT):
        raise BenchError(f"a machine that was asked for at a restart does not run after {LIMIT:.0f} s")
    moment = recorder.at(RUNNING)[PROBE]
    await user.remove([PROBE], recorder)
    recorder.forget([PROBE])
    return moment


async def _passed(port: int, number: int) -> bool:
    return metrics.passes(await metrics.read(port), "virtualmachine") >= number


async def _until(probe: Callable[[], Awaitable[bool]]) -> float:
    """When it first says yes. Raises BenchError."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIMIT
    while not await probe():
        if loop.time() > end:
            raise BenchError(f"the controllers made no pass within {LIMIT:.0f} s")
        await asyncio.sleep(0.02)
    return loop.time()
