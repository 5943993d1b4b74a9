"""G3 and G5: many machines at once, beside the bare writes (B1) and KubeVirt's (B2), and what memory they cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from kumulus.api.compute import VirtualMachine
from kumulus.kube.client import KubeClient
from tests.bench import percentiles, plain
from tests.bench.bench import Bystanders, Context
from tests.bench.cloud import BenchError, Cloud
from tests.bench.machine import MachineLoad
from tests.bench.machines import RUNNING, USER_NAMESPACE, User, at_once, ensure_namespace
from tests.bench.procfs import Memory, Meter
from tests.bench.record import Better, Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.shapes import Bare, KubeVirt, Shape, names

ABREAST = 32
MIB = 1 << 20


@dataclass(slots=True)
class Bursts:
    """What the rounds gave."""

    rate: list[float] = field(default_factory=list)
    half: list[float] = field(default_factory=list)
    """Share of the machines that ran at half time."""
    theirs: dict[str, list[float]] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    """Controller CPU seconds for each machine, creation only."""
    idle: Memory | None = None
    full: Memory | None = None
    load: MachineLoad | None = None


def half_time(start: float, reached: Sequence[float]) -> float:
    """Share of the machines that ran when half of the time until the last one had passed. Pure."""
    middle = start + (max(reached) - start) / 2
    return sum(moment <= middle for moment in reached) / len(reached)


async def run(context: Context) -> list[Record]:
    """On the fewest hosts; the machines of the last round stay for whoever needs a full cloud, and go then."""
    cloud, scale = context.there, context.scale
    await cloud.grow(scale.hosts[0])
    client = await cloud.client()
    try:
        await ensure_namespace(client)
        await plain.install(cloud.lab.cluster)
        bursts = await _measure(context, client)
        records = _records(context, bursts)
        if scale.existing:
            records += await _crowded(context, client)
    finally:
        await client.close()
    return records


async def _measure(context: Context, client: KubeClient) -> Bursts:
    cloud, scale = context.there, context.scale
    bursts, user = Bursts(), User(client)
    watching, began = Bystanders(), Meter(cloud.processes())
    wanted = names("b", scale.burst)
    async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
        bursts.idle = Memory.of(cloud.controllers)
        for number in range(1, scale.bursts + 1):
            await _ours(cloud, user, recorder, wanted, bursts)
            bursts.full = Memory.of(cloud.controllers)
            await user.remove(wanted, recorder)
            recorder.forget(wanted)
            text = f"burst {number}/{scale.bursts}: {bursts.rate[-1]:.1f} VM/s, {bursts.half[-1]:.0%} at half time"
            for shape, machines in ((KubeVirt(client), scale.burst // 4), (Bare(client), scale.burst)):
                await _theirs(shape, machines, bursts)
                text += f"; {shape.name} {bursts.theirs[shape.name][-1]:.1f} VM/s"
            context.say(text)
    bursts.load = watching.load(sum(began.read().values()))
    return bursts


async def _ours(cloud: Cloud, user: User, recorder: Recorder, wanted: list[str], bursts: Bursts) -> None:
    meter = Meter(cloud.processes())
    sent = await at_once(wanted, ABREAST, user.create)
    late = await recorder.reached(wanted, RUNNING, seconds=60 + len(wanted) * 0.2)
    if late:
        raise BenchError(f"{len(late)} of {len(wanted)} machines do not run: {await user.why(late[0])}")
    start, reached = min(sent.values()), [recorder.at(RUNNING)[name] for name in wanted]
    bursts.rate.append(len(wanted) / (max(reached) - start))
    bursts.half.append(half_time(start, reached))
    bursts.cpu.append(meter.read()["controllers"] / len(wanted))


async def _theirs(shape: Shape, machines: int, bursts: Bursts) -> None:
    wanted = names("b", machines)
    reached: list[float] = []

    async def up(name: str) -> None:
        reached.append(await shape.bring_up(name))

    sent = await at_once(wanted, ABREAST, up)
    bursts.theirs.setdefault(shape.name, []).append(machines / (max(reached) - min(sent.values())))
    await at_once(wanted, ABREAST, shape.remove)
    await asyncio.sleep(0.5)


def _records(context: Context, bursts: Bursts) -> list[Record]:
    assert bursts.idle is not None and bursts.full is not None
    machines = context.scale.burst
    memory = {
        "before_peak_mib": round(bursts.idle.peak / MIB, 1),
        "full_peak_mib": round(bursts.full.peak / MIB, 1),
        "before_pss_mib": round(bursts.idle.pss / MIB, 1),
        "full_pss_mib": round(bursts.full.pss / MIB, 1),
    }
    bare, kubevirt = bursts.theirs[Bare.name], bursts.theirs[KubeVirt.name]
    records = [
        record(
            f"rate to Running, {machines} at once",
            Goal(id="G3", limit=30, better=Better.HIGHER),
            "1/s",
            percentiles.median(bursts.rate),
            rounds=bursts.rate,
            against=(KubeVirt.name, kubevirt),
            detail={Bare.name: bare},
        ),
        record(
            f"rate to Running against bare writes, {machines} at once",
            Goal(id="G3"),
            "1/s",
            percentiles.median(bursts.rate),
            rounds=bursts.rate,
            against=(Bare.name, bare),
        ),
        record(
            f"Running at half time, {machines} at once",
            Goal(id="G3", limit=0.5, better=Better.HIGHER),
            "",
            percentiles.median(bursts.half),
            rounds=bursts.half,
        ),
        record(
            "controller CPU per machine's creation in a burst",
            Goal(id="G4"),
            "ms",
            1000 * percentiles.median(bursts.cpu),
            rounds=[1000 * each for each in bursts.cpu],
        ),
        record(
            f"controllers' memory with {machines} machines (VmHWM)",
            Goal(id="G5", limit=180e6 / MIB),
            "MiB",
            bursts.full.peak / MIB,
            detail=memory,
            note=f"RSS {bursts.full.rss / MIB:.0f} MiB, before the burst {bursts.idle.rss / MIB:.0f} MiB",
        ),
        record(
            "controllers' memory for each machine",
            Goal(id="G5", limit=40),
            "KiB",
            (bursts.full.rss - bursts.idle.rss) / 1024 / machines,
        ),
    ]
    return [each.model_copy(update={"load": bursts.load}) for each in records]


async def _crowded(context: Context, client: KubeClient) -> list[Record]:
    """The burst again with many machines there already."""
    cloud, scale, user, bursts = context.there, context.scale, User(client), Bursts()
    await cloud.grow(max(scale.hosts[0], 100))
    there = names("old", scale.existing)
    async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
        await at_once(there, ABREAST, user.create)
        late = await recorder.reached(there, RUNNING, seconds=60 + len(there) * 0.2)
        if late:
            raise BenchError(f"{len(late)} of {len(there)} machines do not run")
        wanted = names("b", scale.burst)
        await _ours(cloud, user, recorder, wanted, bursts)
        await user.remove([*wanted, *there], recorder)
    return [
        record(
            f"rate to Running, {scale.burst} at once with {scale.existing} existing",
            Goal(id="G3", limit=20, better=Better.HIGHER),
            "1/s",
            bursts.rate[0],
            rounds=bursts.rate,
        )
    ]
