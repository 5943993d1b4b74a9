"""No write that a guest was told is safe is ever lost, whatever dies in the middle of what (QUALITY G20).

Rounds by chance: a real guest counts on its volume while that is moved, grown, kept in a snapshot, or merged, and at
some moment the agent, the emulator or both are killed, and in some rounds libvirtd too. An agent that comes then brings
it to its end, and all that the guest said it had flushed is on the disk. libvirtd is started again when it ends, as
systemd does on a host; that it ended by itself is told at the end. `KUMULUS_ROUNDS` says how many rounds (200 take
twenty minutes), `KUMULUS_SEED` repeats those of another run, `KUMULUS_WORKS` names what alone is done ("snapshot,forget
a snapshot").
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import snapshot_order_name, volume_order_name
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.settings import StorageSettings
from tests.contract import guest
from tests.contract.libvirtd import PrivateLibvirtd
from tests.system.test_moving import BLOCK, BLOCKS, CHECKOUT, MIB, SIZE, Scene, images, libvirtd, places, scene
from tests.unit.agent.host import BEYOND, POOL, eventually
from tests.unit.storage.material import pool_ref

__all__ = ["images", "libvirtd", "places", "scene"]  # fixtures

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.timeout(3600)]

ENOUGH = 2
"""Values at least that the guest says it has flushed before its disk is looked at: of less nothing could be lost."""
ROUNDS = int(os.environ.get("KUMULUS_ROUNDS", "20"))
LIBVIRTD = 0.25
"""In which part of the rounds libvirtd is killed."""
POOLS = {"pool": POOL, "beyond": BEYOND}
MOST_SNAPSHOTS = 3
LATEST = 1.5
"""Seconds after which the fault comes at the latest: most of what is done takes less."""


class Work(StrEnum):
    """What is done with the volume."""

    MOVE = "move"
    GROW = "grow"
    SNAPSHOT = "snapshot"
    FORGET = "forget a snapshot"


class Fault(StrEnum):
    """Who is killed in the middle."""

    NOBODY = "nobody"
    AGENT = "the agent"
    EMULATOR = "the emulator"
    BOTH = "both"


WORKS = [Work(word.strip()) for word in os.environ.get("KUMULUS_WORKS", ",".join(Work)).split(",")]


@dataclass
class Story:
    """A volume's life, round by round."""

    scene: Scene
    place: str = "pool"
    size: int = SIZE
    snapshots: list[str] = field(default_factory=list)
    going: str | None = None
    """The snapshot that is being forgotten."""
    starts: int = 0
    checked: int = 0
    """Acknowledged writes that were looked for on the disk."""
    killed: int = 0
    """How often libvirtd was."""
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Who has it starts or kills libvirtd."""

    def possible(self) -> list[Work]:
        """A volume with snapshots stays where it is."""
        works = [Work.GROW, *([Work.SNAPSHOT] if len(self.snapshots) < MOST_SNAPSHOTS else [])]
        works += [Work.FORGET, Work.FORGET] if self.snapshots else [Work.MOVE, Work.MOVE]
        return [work for work in works if work in WORKS]

    async def ask(self, work: Work, chance: random.Random) -> None:
        """Order it."""
        host, volume = self.scene.host, self.scene.volume
        match work:
            case Work.MOVE:
                self.place = "beyond" if self.place == "pool" else "pool"
                await self.scene.move(POOLS[self.place])
            case Work.GROW:
                self.size += MIB
                await host.change_volume(volume, size=self.size)
            case Work.SNAPSHOT:
                self.snapshots.append(await host.snapshot_order(volume, pool=POOLS[self.place]))
            case Work.FORGET:
                self.going = self.snapshots.pop(chance.randrange(len(self.snapshots)))
                await host.delete(snapshot_order_name(self.going))

    async def done(self, work: Work) -> None:
        """Wait until an agent has brought it to its end."""
        host, volume = self.scene.host, self.scene.volume
        raw = await host.client.get(WorkOrder.KIND, volume_order_name(volume), host.namespace)
        status = await host.until_volume(volume, 120, state="Ready", observedGeneration=raw["metadata"]["generation"])
        assert status["disk"]["virtualSize"] == self.size
        if work is Work.MOVE:
            assert status["disk"]["pool"] == POOLS[self.place]["uid"]
            self.scene.in_one_pool(self.place)
            await self.scene.settled(POOLS[self.place])
        for uid in self.snapshots:
            await host.until_snapshot(uid, 60, state="Ready")
        if self.going is not None:
            name = snapshot_order_name(self.going)
            await eventually(lambda: host.gone(name), "the end of the snapshot", 60)
            self.going = None

    async def start(self) -> None:
        """The machine, which is off, is on again and counts."""
        self.starts += 1
        # Of a log that is rotated old starts go away as new ones come.
        path = self.scene.host.files.console_log(self.scene.uid)
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        await self.scene.host.change(self.scene.uid, restartRequest=f"start-{self.starts}")
        await eventually(lambda: guest.READY in self.scene.console(), "the machine's start", 90)
        await eventually(lambda: self.said() >= ENOUGH, "the guest's counting", 60)

    def said(self) -> int:
        """The last value that the guest said it had flushed since it started."""
        since = self.scene.console().rpartition(guest.READY)[2]
        return max((int(value) for value in re.findall(r"GUEST-WROTE:(\d+)\.", since)), default=0)

    async def lost(self) -> list[int]:
        """Values that the guest was told are safe and that are not on the disk. Nobody works on it any more."""
        last, plain = self.said(), self.scene.directory / "plain"
        assert last >= ENOUGH
        settings = StorageSettings(roots=(PurePosixPath(self.scene.directory),), readers=())
        volume = await DirStorage(pool_ref(self.scene.directory / self.place), settings).volume(self.scene.volume)
        assert volume is not None
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, str(plain)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        with plain.open("rb") as file:
            found = []
            for value in range(max(last - BLOCKS + 2, 1), last + 1):
                self.checked += 1
                file.seek(value % BLOCKS * BLOCK)
                if file.read(BLOCK) != (f"{value}\n" * BLOCK).encode()[:BLOCK]:
                    found.append(value)
            file.seek(SIZE - MIB)
            assert file.read(MIB) == b"\x55" * MIB, "what was there all along"
        plain.unlink()
        return found


@asynccontextmanager
async def mortal(scene: Scene) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent in a process of its own, killed at the end."""
    words = [str(scene.kubeconfig), scene.host.name, str(scene.directory), scene.libvirtd.uri]
    with (scene.directory / "agent.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.contract.doomed_mover", *words), cwd=CHECKOUT, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def supervised(libvirtd: PrivateLibvirtd, alone: asyncio.Lock) -> AsyncIterator[list[int]]:
    """libvirtd is started again when it ends; what it ended with, each time. Who has `alone` is not in the middle of that."""
    ends: list[int] = []

    async def watch() -> None:
        while True:
            async with alone:
                if (status := libvirtd.ended()) is not None:
                    ends.append(status)
                    sys.stderr.write(f"libvirtd ended with {status}\n")
                    await asyncio.to_thread(libvirtd.start)
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch())
        try:
            yield ends
        finally:
            task.cancel()


async def test_whatever_dies_no_acknowledged_write_is_lost(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("KUMULUS_SEED", secrets.randbits(32)))
    # By a chance of their own: what is done in the rounds of a seed does not depend on it.
    chance, ends_of_libvirtd, story = random.Random(seed), random.Random(f"libvirtd {seed}"), Story(scene)
    async with supervised(scene.libvirtd, story.alone) as ends:
        for number in range(1, ROUNDS + 1):
            work, fault = chance.choice(story.possible()), chance.choice(list(Fault))
            after = chance.uniform(0.0, LATEST)
            told = f"round {number} of seed {seed}: {work}, {fault} killed after {after:.2f} s"
            end = ends_of_libvirtd.uniform(0.0, LATEST) if ends_of_libvirtd.random() < LIBVIRTD else None
            if end is not None:
                told = f"{told}, libvirtd after {end:.2f} s"
            sys.stderr.write(f"{told}\n")
            try:
                await _round(story, work, Faults(fault, after, end), chance)
            except Exception as error:
                raise AssertionError(f"{told}; libvirtd ended with {ends}") from error
    with capsys.disabled():
        print(
            f"{ROUNDS} rounds of seed {seed}: {story.checked} acknowledged writes looked for, none lost; libvirtd killed "
            f"{story.killed} times, ended {len(ends) - story.killed} times by itself (all: {ends})"
        )


@dataclass(frozen=True)
class Faults:
    """What befalls a round; times in seconds from when work was asked for."""

    fault: Fault
    after: float
    libvirtd: float | None
    """When it is killed, if it is."""


async def _kill_libvirtd(story: Story, after: float | None) -> None:
    if after is None:
        return
    # Not to wait for anything: the moment is what is tried.
    await asyncio.sleep(after)
    async with story.alone:
        if story.scene.libvirtd.ended() is None:
            with suppress(ProcessLookupError):  # it has ended by itself, this moment
                await asyncio.to_thread(story.scene.libvirtd.kill)
                story.killed += 1


async def _round(story: Story, work: Work, faults: Faults, chance: random.Random) -> None:
    """Ask for work of an agent, kill, and have the next agent end it; then pull the plug, and look."""
    scene, fault = story.scene, faults.fault
    async with mortal(scene) as agent:
        await story.ask(work, chance)
        async with asyncio.TaskGroup() as group:
            group.create_task(_kill_libvirtd(story, faults.libvirtd))
            await asyncio.sleep(faults.after)
            if fault in (Fault.AGENT, Fault.BOTH):
                agent.send_signal(signal.SIGKILL)
            if fault in (Fault.EMULATOR, Fault.BOTH):
                scene.kill_qemu()
        if fault in (Fault.NOBODY, Fault.EMULATOR):
            await story.done(work)
    async with scene.agent():
        if fault in (Fault.AGENT, Fault.BOTH):
            await story.done(work)
        if fault in (Fault.NOBODY, Fault.AGENT):
            before = story.said()
            await eventually(lambda: story.said() > before + 1, "that the guest goes on", 60)
            scene.kill_qemu()
        await scene.host.until_instance(scene.uid, 60, state="Stopped")
    assert await story.lost() == []
    async with scene.agent():
        await story.start()
