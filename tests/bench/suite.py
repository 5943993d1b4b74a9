"""All benches in their order, and a run of some of them: each kind of cloud is brought up once, for all that need it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from kumulus_lab import machine as lab_machine
from kumulus_lab.errors import LabError
from tests.bench import (
    burst,
    cloud,
    crash,
    creation,
    events,
    failover,
    groups,
    guests,
    idle,
    migration,
    network,
    placement,
    residence,
    restart,
    storage,
    way,
)
from tests.bench.bench import Bench, Context, Needs
from tests.bench.cloud import Cloud, Say
from tests.bench.record import Record
from tests.bench.scale import Scale

BENCHES: Sequence[Bench] = (
    Bench("placement", ("G6",), Needs.NOTHING, placement.run, "decisions of the planner"),
    Bench(
        "network",
        ("G13", "G25", "N"),
        Needs.NOTHING,
        network.run,
        "interfaces, groups and spoofs, beside a bare bridge",
    ),
    Bench("way", ("N",), Needs.NOTHING, way.run, "what a packet between two guests pays for, part by part"),
    Bench("idle", ("G5", "G11"), Needs.SIMULATED, idle.simulated, "traffic while nothing happens"),
    Bench("creation", ("G1", "G2", "G4", "G8"), Needs.SIMULATED, creation.run, "machines at a pace, beside B1 and B2"),
    Bench(
        "volumes", ("G1", "G2", "G4"), Needs.SIMULATED, creation.with_volume, "the same, each with a volume of its own"
    ),
    Bench("burst", ("G3", "G4", "G5"), Needs.SIMULATED, burst.run, "many machines at once, beside B1 and B2"),
    Bench("restart", ("G16",), Needs.SIMULATED, restart.run, "controllers and API server end and come back"),
    Bench("residence", ("G12",), Needs.SIMULATED, residence.simulated, "memory of a simulated agent"),
    Bench("events", ("EV",), Needs.SIMULATED, events.run, "changes through one exporter, killed in the middle"),
    Bench("groups", ("G13",), Needs.SIMULATED, groups.run, "a group changes, and hosts are told"),
    Bench("crowd", ("G1", "G4"), Needs.SIMULATED, creation.crowd, "machines at a pace on more hosts"),
    Bench("guests", ("G7", "G8"), Needs.LIBVIRT, guests.run, "real guests, beside virsh"),
    Bench("storage", ("S",), Needs.LIBVIRT, storage.run, "images and volumes, beside qemu-img and virsh"),
    Bench("crash", ("F9",), Needs.LIBVIRT, crash.run, "QEMU is killed, and the machine runs again"),
    Bench("migration", ("G14",), Needs.LIBVIRT, migration.run, "an idle guest moves, beside virsh migrate"),
    Bench("failover", ("G15",), Needs.LIBVIRT, failover.run, "a host is killed, and its machine runs elsewhere"),
    Bench("hosts-idle", ("G5", "G11"), Needs.LIBVIRT, idle.libvirt, "traffic and CPU of idle libvirt agents"),
    Bench("hosts-residence", ("G12",), Needs.LIBVIRT, guests.residence, "memory of a libvirt agent and its guests"),
)
"""The order matters: an empty cloud first, the most hosts last."""

LIBVIRT_HOSTS = 2


def select(names: Iterable[str]) -> list[Bench]:
    """The benches of these names or goals (`G3`), all when there are none. Raises ValueError naming what is unknown."""
    wanted = list(names)
    if not wanted:
        return list(BENCHES)
    known = {bench.name for bench in BENCHES} | {goal for bench in BENCHES for goal in bench.goals}
    for name in wanted:
        if name not in known and name.upper() not in known:
            raise ValueError(f"there is no bench {name}; there are: {', '.join(sorted(known))}")
    chosen = {name.upper() for name in wanted} | set(wanted)
    return [bench for bench in BENCHES if bench.name in chosen or chosen & set(bench.goals)]


def run(benches: Sequence[Bench], scale: Scale, say: Say) -> tuple[list[Record], dict[str, str]]:
    """Run them; what they found, and why others found nothing. One that fails does not keep the next from running."""
    records: list[Record] = []
    failures: dict[str, str] = {}
    for needs in Needs:
        some = [bench for bench in benches if bench.needs is needs]
        if not some:
            continue
        if needs is Needs.LIBVIRT and (why := lab_machine.why_no_libvirt()) is not None:
            failures |= {bench.name: why for bench in some}
            continue
        try:
            with _place(needs, say) as there:
                for bench in some:
                    say(f"{bench.name}: {bench.sentence}")
                    try:
                        records += asyncio.run(_run(bench, Context(scale, say, there)))
                    except Exception as error:
                        failures[bench.name] = _reason(error)
                        say(f"{bench.name} failed: {_reason(error)}")
                        say("".join(traceback.format_exception(error)))
                        if there is not None:
                            say(f"logs: {there.keep_logs()}")
        except LabError as error:
            failures |= {bench.name: str(error) for bench in some if bench.name not in failures}
    return records, failures


def _place(needs: Needs, say: Say) -> AbstractContextManager[Cloud | None]:
    if needs is Needs.SIMULATED:
        return cloud.simulated(say)
    if needs is Needs.LIBVIRT:
        return cloud.libvirt(say, LIBVIRT_HOSTS)
    return nullcontext()


async def _run(bench: Bench, context: Context) -> list[Record]:
    return await bench.run(context)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
