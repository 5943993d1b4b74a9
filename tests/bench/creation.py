"""G1, G2, G4: machines created at a pace, beside the bare writes (B1) and KubeVirt's writes (B2) in the same rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from kumulus.api.compute import VirtualMachine
from kumulus.kube.client import KubeClient
from tests.bench import percentiles, plain
from tests.bench.audit import AGENT, CONTROLLERS, OURS, PER_MACHINE, READS, WRITES, Tally
from tests.bench.bench import Bystanders, Context
from tests.bench.cloud import BenchError, Cloud
from tests.bench.machine import MachineLoad
from tests.bench.machines import RUNNING, USER_NAMESPACE, User, ensure_namespace, paced
from tests.bench.procfs import Meter
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder, spans
from tests.bench.shapes import Bare, KubeVirt, Shape, chunks, names

LIMITS = {50: 0.05, 95: 0.15, 99: 0.30}
LIMITS_WITH_VOLUME = {50: 0.10, 95: 0.30, 99: 0.60}
KWOK = {50: 0.63, 95: 1.56, 99: 1.92}
"""KubeVirt on simulated nodes, published, from the same buckets."""


@dataclass(slots=True)
class Rounds:
    """What the rounds of one number of hosts gave."""

    ours: list[list[float]] = field(default_factory=list)
    """Create to Running, by round."""
    gone: list[float] = field(default_factory=list)
    """Delete to gone, of all."""
    theirs: dict[str, list[list[float]]] = field(default_factory=dict)
    cpu: list[Mapping[str, float]] = field(default_factory=list)
    """CPU seconds for each machine, by process."""
    api: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of the API server for each machine, by baseline."""
    requests: list[Tally] = field(default_factory=list)
    machines: int = 0
    load: MachineLoad | None = None

    @property
    def all(self) -> list[float]:
        """Create to Running of every machine."""
        return [seconds for some in self.ours for seconds in some]


async def run(context: Context) -> list[Record]:
    """On the fewest hosts, with both baselines."""
    hosts = context.scale.hosts[0]
    rounds = await _measure(context, hosts, [Bare, KubeVirt])
    return [*latency(rounds, hosts), *writes(rounds), *cpu(rounds)]


async def with_volume(context: Context) -> list[Record]:
    """On the fewest hosts, each machine with a blank volume of its own, which goes with it."""
    hosts = context.scale.hosts[0]
    rounds = await _measure(context, hosts, [], volumes=True)
    records = [
        *latency(rounds, hosts, LIMITS_WITH_VOLUME),
        *writes(rounds, 18),
        _controllers(rounds, 35, "KubeVirt about 103 ms without (derived)"),
    ]
    return [each.model_copy(update={"name": f"{each.name}, with a volume"}) for each in records]


async def crowd(context: Context) -> list[Record]:
    """On more hosts, whose leases and watches are traffic too; against the fewest in the same run."""
    first, *more = context.scale.hosts
    records: list[Record] = []
    if not more:
        return []
    few = await _measure(context, first, [])
    base = percentiles.exact(few.all, 95)
    for hosts in more:
        rounds = await _measure(context, hosts, [])
        records += latency(rounds, hosts)
        p95 = percentiles.exact(rounds.all, 95)
        records.append(
            record(
                f"create to Running P95, {hosts} hosts against {first}",
                Goal(id="G1", limit=1.2),
                "x",
                p95 / base,
                detail={"p95": p95, "p95_few": base},
            ).model_copy(update={"load": rounds.load})
        )
        tally = _sum(rounds.requests)
        records.append(
            record(
                f"controller CPU per machine, {hosts} hosts with their heartbeats",
                Goal(id="G4"),
                "ms",
                1000 * percentiles.median([each["controllers"] for each in rounds.cpu]),
                rounds=[1000 * each["controllers"] for each in rounds.cpu],
                detail={"leases written": tally.total(OURS, WRITES, {"leases"})},
            ).model_copy(update={"load": rounds.load})
        )
    return records


async def _measure(
    context: Context, hosts: int, shapes: list[type[Bare] | type[KubeVirt]], *, volumes: bool = False
) -> Rounds:
    cloud, scale = context.there, context.scale
    await cloud.grow(hosts)
    client = await cloud.client()
    rounds = Rounds()
    try:
        await ensure_namespace(client)
        if shapes:
            await plain.install(cloud.lab.cluster)
        await _warm_up(User(client, volumes=volumes), client)
        watching, began = Bystanders(), Meter(cloud.processes())
        baselines: list[Shape] = [shape(client) for shape in shapes]
        for number, machines in enumerate(chunks(scale.machines, scale.rounds), start=1):
            await _ours(cloud, client, User(client, volumes=volumes), rounds, machines, scale.rate)
            text = f"{hosts} hosts, round {number}/{scale.rounds}: {_said(rounds.ours[-1])}"
            for shape in baselines:
                await _theirs(cloud, shape, rounds, machines, scale.rate)
                text += f"; {shape.name} {_said(rounds.theirs[shape.name][-1])}"
            context.say(text)
        rounds.load = watching.load(sum(began.read().values()))
    finally:
        await client.close()
    return rounds


def _said(seconds: list[float]) -> str:
    return " ".join(f"P{percent} {1000 * percentiles.exact(seconds, percent):.0f} ms" for percent in (50, 95, 99))


async def _warm_up(user: User, client: KubeClient) -> None:
    """Connections and caches of all parts are warm, as they are in a cloud that runs."""
    async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
        warm = names("warm", 10)
        for name in warm:
            await user.create(name)
        await recorder.reached(warm, RUNNING, seconds=60)
        await user.remove(warm, recorder)


async def _ours(cloud: Cloud, client: KubeClient, user: User, rounds: Rounds, machines: int, rate: float) -> None:
    wanted = names("m", machines)
    audit, meter = cloud.audit(), Meter(cloud.processes())
    async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
        sent = await paced(wanted, rate, user.create)
        late = await recorder.reached(wanted, RUNNING, seconds=60)
        if late:
            raise BenchError(f"{len(late)} of {machines} machines do not run: {await user.why(late[0])}")
        removed = await user.remove(wanted, recorder, rate=rate * 2)
        rounds.ours.append(spans(sent, recorder.at(RUNNING)))
        rounds.gone += spans(removed, recorder.gone)
    rounds.cpu.append({label: seconds / machines for label, seconds in meter.read().items()})
    rounds.requests.append(Tally.of(audit.requests()))
    rounds.machines += machines


async def _theirs(cloud: Cloud, shape: Shape, rounds: Rounds, machines: int, rate: float) -> None:
    wanted, meter = names("m", machines), Meter(cloud.processes())
    reached: dict[str, float] = {}

    async def up(name: str) -> None:
        reached[name] = await shape.bring_up(name)

    sent = await paced(wanted, rate, up)
    await paced(wanted, rate * 2, shape.remove)
    rounds.theirs.setdefault(shape.name, []).append(spans(sent, reached))
    rounds.api.setdefault(shape.name, []).append(meter.read()["apiserver"] / machines)
    await asyncio.sleep(0.5)


def latency(rounds: Rounds, hosts: int, limits: Mapping[int, float] = LIMITS) -> list[Record]:
    """G1, percentile by percentile, exact and from KubeVirt's buckets; and how long removal takes."""
    records = []
    for percent, limit in limits.items():
        ours = [percentiles.exact(some, percent) for some in rounds.ours]
        against = detail = None
        for label, theirs in rounds.theirs.items():
            against = (label, [percentiles.exact(some, percent) for some in theirs])
            detail = {**(detail or {}), label: percentiles.median(against[1])}
        records.append(
            record(
                f"create to Running P{percent}, {hosts} hosts",
                Goal(id="G1", limit=limit),
                "s",
                percentiles.exact(rounds.all, percent),
                rounds=ours,
                against=against,
                detail={
                    "machines": rounds.machines,
                    "kubevirt_buckets": percentiles.bucketed(rounds.all, percent),
                    "kubevirt_published": KWOK[percent],
                    **(detail or {}),
                },
            )
        )
    records.append(record(f"delete to gone P50, {hosts} hosts", Goal(id="G8"), "s", percentiles.exact(rounds.gone, 50)))
    records.append(record(f"delete to gone P95, {hosts} hosts", Goal(id="G8"), "s", percentiles.exact(rounds.gone, 95)))
    return [each.model_copy(update={"load": rounds.load}) for each in records]


def writes(rounds: Rounds, limit: float = 8) -> list[Record]:
    """G2: who asks the API server for what, for one machine's life."""
    tally, machines = _sum(rounds.requests), rounds.machines
    plurals = PER_MACHINE - {"events"}
    return [
        record(
            "API writes by Kumulus per machine's life",
            Goal(id="G2", limit=limit),
            "",
            tally.total(OURS, WRITES, plurals) / machines,
            detail={
                **{client: tally.per(machines, [client], PER_MACHINE) for client in OURS},
                "elsewhere": tally.per(machines, OURS, None),
            },
            note="KubeVirt 23.7 (published)",
        ),
        record(
            "events per machine's life", Goal(id="G2", limit=2), "", tally.total(OURS, WRITES, {"events"}) / machines
        ),
        record(
            "GETs and LISTs by Kumulus per machine's life",
            Goal(id="G2", limit=0),
            "",
            tally.total(OURS, READS, PER_MACHINE) / machines,
            detail={client: tally.per(machines, [client]) for client in (CONTROLLERS, AGENT)},
        ),
    ]


def cpu(rounds: Rounds) -> list[Record]:
    """G4: CPU of the controllers and of the API server for one machine's life."""
    api = [1000 * each["apiserver"] for each in rounds.cpu]
    theirs = [1000 * each for each in rounds.api.get(KubeVirt.name, [])]
    share = [mine / other for mine, other in zip(api, theirs, strict=False) if other]
    records = [
        _controllers(rounds, 20, "KubeVirt about 103 ms (derived)"),
        record(
            "API server CPU per machine's life, share of KubeVirt's writes",
            Goal(id="G4", limit=0.6),
            "x",
            percentiles.median(share),
            rounds=api,
            against=(KubeVirt.name, theirs),
            note="spread and baseline in ms",
        ),
    ]
    return [each.model_copy(update={"load": rounds.load}) for each in records]


def _controllers(rounds: Rounds, limit: float, note: str) -> Record:
    ours = [1000 * each["controllers"] for each in rounds.cpu]
    every = {label: 1000 * percentiles.median([each[label] for each in rounds.cpu]) for label in rounds.cpu[0]}
    return record(
        "controller CPU per machine's life",
        Goal(id="G4", limit=limit),
        "ms",
        percentiles.median(ours),
        rounds=ours,
        detail=every,
        note=note,
    )


def _sum(tallies: list[Tally]) -> Tally:
    whole = Tally.of(())
    for tally in tallies:
        whole.counts.update(tally.counts)
    return whole
