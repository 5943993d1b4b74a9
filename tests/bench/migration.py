"""G14: an idle guest moves between two hosts while it runs, beside `virsh migrate` of a domain equal to it, in the same rounds."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from kumulus.api.migration import MigrationPhase, VirtualMachineMigration
from kumulus_lab import commands
from kumulus_lab.host import LibvirtHost
from tests.bench import floor, halting, machine, percentiles
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.machines import USER_NAMESPACE
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.roaming import PATH, Roaming, gap, roaming

NAME = "mover"
FLOOR = "floor"
VIRSH = "virsh migrate by hand"
SETTLE = 2.0
"""Seconds that the guest has for itself before each move."""
_DOWNTIME = re.compile(r"^Total downtime:\s+(\d+)", re.MULTILINE)


@dataclass(slots=True)
class _Rounds:
    ours: list[float] = field(default_factory=list)
    hand: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    """Longest time without an answer during a move, in milliseconds."""
    halted: list[float] = field(default_factory=list)
    """How long the guest was halted, as libvirt says of the move by hand, in milliseconds."""
    steps: dict[str, list[float]] = field(default_factory=dict)
    """How long each step of ours took while the guest was not there, in milliseconds."""


async def run(context: Context) -> list[Record]:
    """Rounds of: ours, by hand; there and back in turn."""
    rounds, moves = _Rounds(), context.scale.moves
    async with roaming(context.there) as there:
        context.say("a machine with 256 MiB in a pool that both hosts have")
        vm = await there.machine(NAME)
        address = await there.address(NAME)
        started = vm["status"]["startedAt"]
        hand = await asyncio.to_thread(_Hand.make, there.host(vm["status"]["host"]), vm["metadata"]["uid"])
        try:
            async with Recorder(there.client, VirtualMachineMigration.KIND, USER_NAMESPACE) as recorder:
                for number in range(moves):
                    await asyncio.sleep(SETTLE)
                    await _move(there, recorder, f"move-{number}", (vm["metadata"]["uid"], address), rounds)
                    await asyncio.sleep(SETTLE)
                    await asyncio.to_thread(_by_hand, hand, there, rounds)
                    context.say(
                        f"move {number + 1}/{moves}: {rounds.ours[-1]:.2f} s, no answer for {rounds.gap[-1]:.0f} ms;"
                        f" virsh {rounds.hand[-1]:.2f} s, halted for {rounds.halted[-1]:.0f} ms;"
                        f" {', '.join(f'{name} {took[-1]:.0f} ms' for name, took in rounds.steps.items())}"
                    )
            status = await there.status(NAME)
            if status["startedAt"] != started:
                raise BenchError(f"the machine was started anew: {status}")
        finally:
            await asyncio.to_thread(hand.remove)
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in _records(rounds)]


async def _move(there: Roaming, recorder: Recorder, name: str, guest: tuple[str, str], rounds: _Rounds) -> None:
    """`guest`: its uid, and the address at which it is asked."""
    loop, (uid, address) = asyncio.get_running_loop(), guest
    with halting.watching([_uri(host) for host in there.cloud.lab.hosts]) as seen:
        async with there.asking(address) as answers:
            await answers.first(10)
            body = {"metadata": {"name": name}, "spec": {"vm": NAME}}
            began, asked = loop.time(), time.monotonic()
            await there.client.create(VirtualMachineMigration.KIND, body, USER_NAMESPACE)
            if await recorder.reached([name], MigrationPhase.SUCCEEDED, seconds=120):
                found = await there.client.get(VirtualMachineMigration.KIND, name, USER_NAMESPACE)
                raise BenchError(f"the machine does not move: {found['status']}")
            rounds.ours.append(recorder.at(MigrationPhase.SUCCEEDED)[name] - began)
            ended = await answers.first(30, after=time.monotonic())
    rounds.gap.append(gap(answers.times, asked, ended) * 1000)
    for step, took in halting.steps(seen, uid, answers.times).items():
        rounds.steps.setdefault(step, []).append(took)
    await there.client.delete(VirtualMachineMigration.KIND, name, USER_NAMESPACE)


@dataclass(slots=True)
class _Hand:
    """A domain equal to the machine's, with a copy of its disk, without an interface; and where it runs."""

    host: LibvirtHost

    @classmethod
    def make(cls, host: LibvirtHost, uid: str) -> _Hand:
        """It runs beside the machine."""
        domains = host.exec(["virsh", "list", "--uuid", "--name"]).stdout.splitlines()
        domain = next(line.split()[1] for line in domains if uid in line)
        xml = host.exec(["virsh", "dumpxml", "--inactive", domain]).stdout
        made, disk, copies = floor.equal(xml, FLOOR, str(uuid.uuid4()), directory=f"{PATH}/bench-floor")
        root = ElementTree.fromstring(made)
        devices = root.find("devices")
        assert devices is not None
        for interface in list(devices.iter("interface")):
            devices.remove(interface)
        for log in root.iter("log"):
            log.set("file", f"{floor.DIRECTORY}/floor.log")
        host.exec(["mkdir", "-p", f"{PATH}/bench-floor"])
        for source, target in {**copies, disk: f"{PATH}/bench-floor/{FLOOR}.qcow2"}.items():
            host.exec(["cp", source, target])
        (host.directory / "var/lib/kumulus/floor.xml").write_text(ElementTree.tostring(root, encoding="unicode"))
        host.exec(["mkdir", "-p", str(floor.DIRECTORY)])
        host.exec(["virsh", "-q", "define", "/var/lib/kumulus/floor.xml"])
        host.exec(["virsh", "-q", "start", FLOOR])
        return cls(host)

    def migrate(self, to: LibvirtHost) -> float:
        """It goes to that host; seconds that `virsh migrate` took."""
        to.exec(["mkdir", "-p", str(floor.DIRECTORY)])
        flags = ["--live", "--persistent", "--undefinesource", "--auto-converge", "--unsafe"]
        argv = ["virsh", "-q", "-c", _uri(self.host), "migrate", FLOOR, _uri(to), *flags]
        argv += ["--migrateuri", f"tcp://{to.address}:49200"]
        began = time.monotonic()
        commands.run(argv)
        took = time.monotonic() - began
        self.host = to
        return took

    def halted(self) -> float:
        """How long it was halted by the last move, in milliseconds."""
        said = self.host.exec(["virsh", "domjobinfo", FLOOR, "--completed"]).stdout
        found = _DOWNTIME.search(said)
        if found is None:
            raise BenchError(f"libvirt does not say how long the guest was halted: {said}")
        return float(found[1])

    def remove(self) -> None:
        """Nothing of it is left."""
        floor.clear(self.host)
        self.host.exec(["rm", "-rf", f"{PATH}/bench-floor"])


def _uri(host: LibvirtHost) -> str:
    """libvirtd of that host, from this machine."""
    socket = Path(f"/proc/{_pid(host)}/root/run/libvirt/libvirt-sock")
    return f"qemu+unix:///system?socket={socket}"


def _pid(host: LibvirtHost) -> int:
    identity = host.daemon("init").identity()
    assert identity is not None
    return identity.pid


def _by_hand(hand: _Hand, there: Roaming, rounds: _Rounds) -> None:
    rounds.hand.append(hand.migrate(there.other(hand.host.name)))
    rounds.halted.append(hand.halted())


def _records(rounds: _Rounds) -> list[Record]:
    over = [ours - hand for ours, hand in zip(rounds.ours, rounds.hand, strict=True)]
    published = "Nova 15.0 s P50 (published)"
    g14 = {"id": "G14"}
    return [
        record(
            "live migration of an idle 256 MiB guest, apply to Succeeded P50",
            Goal(**g14, limit=5),
            "s",
            percentiles.exact(rounds.ours, 50),
            rounds=rounds.ours,
            against=(VIRSH, rounds.hand),
            note=published,
        ),
        record("live migration, apply to Succeeded P95", Goal(**g14), "s", percentiles.exact(rounds.ours, 95)),
        record("live migration over virsh migrate", Goal(**g14, limit=1), "s", percentiles.median(over), rounds=over),
        record(
            "live migration, no answer to a client outside, P50",
            Goal(**g14, limit=100),
            "ms",
            percentiles.exact(rounds.gap, 50),
            rounds=rounds.gap,
            against=("halted, as libvirt says of virsh migrate", rounds.halted),
            note="asked every 10 ms; the time in which the hosts agree is in it (ADR 29)",
            detail={f"{name}, P50 ms": round(percentiles.median(took)) for name, took in rounds.steps.items()},
        ),
        record(
            "live migration, no answer to a client outside, most",
            Goal(**g14, limit=300),
            "ms",
            max(rounds.gap, default=None),
        ),
    ]
