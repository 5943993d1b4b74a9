"""What every hypervisor driver must do that lets guests leave for another host and come from there.

A driver's tests inherit `MigrationContract` and give it two hosts, `here` and `there`, that can use the same disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kumulus.api.compute import PowerState
from kumulus.api.hardware import Shape, WatchdogAction
from kumulus_agents.hypervisor.domain import DomainSpec, DomainState, ExitReason, Marks
from kumulus_agents.hypervisor.migration import Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from tests.contract.hypervisor import World, eventually, the


async def pair() -> tuple[Stream, Stream]:
    """Two streams that are each other's ends."""
    one, two = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=two)


SHAPES = (
    Shape(uefi=True, secure_boot=True, tpm=True, watchdog=WatchdogAction.RESET),
    pytest.param(Shape(uefi=True), marks=pytest.mark.wide),
    pytest.param(Shape(tpm=True), marks=pytest.mark.wide),
)
"""What a machine is made of."""


class Between:
    """The tunnel from one driver to the other."""

    def __init__(self, there: Hypervisor, spec: DomainSpec, migration: str) -> None:
        self._there = there
        self._spec = spec
        self._migration = migration
        self.served: list[asyncio.Task[None]] = []
        self.channels: list[str] = []

    async def connect(self, channel: str) -> Stream:
        near, far = await pair()
        self.channels.append(channel)
        work = self._there.take(self._spec, self._migration, channel, far)
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.served.append(task)
        return near

    async def cut(self) -> None:
        """Both ends are gone at once, as when an agent is killed."""
        for task in self.served:
            task.cancel()
        await asyncio.gather(*self.served, return_exceptions=True)


def nowhere(_progress: Progress) -> None:
    """Nobody wants to know."""


class MigrationContract:
    """Two hosts."""

    @pytest.fixture
    async def source(self, here: World) -> AsyncIterator[Hypervisor]:
        async with connected(here) as driver:
            yield driver

    @pytest.fixture
    async def target(self, there: World) -> AsyncIterator[Hypervisor]:
        async with connected(there) as driver:
            yield driver

    @pytest.fixture
    async def running(self, here: World, source: Hypervisor) -> DomainSpec:
        spec = here.guest()
        await source.start(spec)
        return spec

    def arriving(self, spec: DomainSpec, there: World) -> DomainSpec:
        """What the other host makes of the machine's order."""
        return replace(spec, marks=replace(spec.marks, epoch=spec.marks.epoch + 1))

    async def test_a_guest_comes_halted_and_goes_on_when_it_is_told_to(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, here: World, there: World
    ) -> None:
        await here.booted(running)
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        started = (await the(source, running)).started_at
        await target.receive(comes, migration)
        await target.receive(comes, migration)
        waiting = await the(target, comes)
        assert (waiting.state, waiting.arriving, waiting.marks.epoch) == (DomainState.STOPPED, migration, 2)
        with pytest.raises(HypervisorError) as early:
            await target.arrive(comes.marks.uid, comes.marks)
        assert early.value.reason == "NotArrived"
        between = Between(target, comes, migration)
        await source.send(running.marks.uid, Sending(migration), between.connect, nowhere)
        gone, come = await the(source, running), await the(target, comes)
        assert (gone.state, gone.exit_reason) == (DomainState.STOPPED, ExitReason.MIGRATED)
        assert (come.state, come.arriving, come.marks) == (DomainState.PAUSED, migration, comes.marks)
        assert come.volumes == gone.volumes
        await source.send(running.marks.uid, Sending(migration), between.connect, nowhere)  # done already
        await source.mark(running.marks.uid, replace(running.marks, departed=migration))
        assert (await the(source, running)).marks.departed == migration
        await target.arrive(comes.marks.uid, comes.marks)
        await target.arrive(comes.marks.uid, comes.marks)
        on = await the(target, comes)
        assert (on.state, on.arriving, on.marks) == (DomainState.RUNNING, None, comes.marks)
        assert on.started_at is not None and started is not None and abs(on.started_at - started) < 1
        await self.goes_on(there, comes)

    async def goes_on(self, there: World, spec: DomainSpec) -> None:
        """Where that can be seen: the guest does what it did."""

    async def test_disks_that_only_its_host_has_go_along(
        self, source: Hypervisor, target: Hypervisor, here: World, there: World
    ) -> None:
        spec = here.writer()
        await source.start(spec)
        await self.writes(here, spec)
        migration, names = str(uuid.uuid4()), tuple(disk.name for disk in spec.disks)
        comes = replace(self.arriving(spec, there), disks=[there.empty(disk) for disk in spec.disks])
        await target.receive(comes, migration)
        between = Between(target, comes, migration)
        with pytest.raises(HypervisorError) as less:
            await source.send(spec.marks.uid, Sending(migration), between.connect, nowhere)
        assert less.value.reason == "MigrationFailed", "one side copies, and the other does not"
        told = list[Progress]()
        sending = Sending(migration, converge=True, disks=names)
        await source.send(spec.marks.uid, sending, Between(target, comes, migration).connect, told.append)
        assert any(one.halted for one in told), "its connections can be asked for before it has left"
        gone, come = await the(source, spec), await the(target, comes)
        assert (gone.exit_reason, come.state) == (ExitReason.MIGRATED, DomainState.PAUSED)
        assert [disk.path for disk in come.disks] == [disk.path for disk in comes.disks]
        await target.arrive(comes.marks.uid, comes.marks)
        await self.wrote_on(there, comes)

    async def writes(self, here: World, spec: DomainSpec) -> None:
        """Where that can be seen: wait until the guest of a `writer` writes."""

    async def wrote_on(self, there: World, spec: DomainSpec) -> None:
        """Where that can be seen: the guest, which came with its disks, goes on writing where it was, and all that it has
        written is there."""

    async def test_one_that_is_to_be_paused_stays_halted(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        comes = replace(comes, marks=replace(comes.marks, wanted=PowerState.PAUSED))
        await target.receive(replace(comes, marks=replace(comes.marks, wanted=PowerState.RUNNING)), migration)
        await source.send(running.marks.uid, Sending(migration), Between(target, comes, migration).connect, nowhere)
        await target.arrive(comes.marks.uid, comes.marks)
        assert (await the(target, comes)).state is DomainState.PAUSED

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    async def test_what_it_was_started_with_goes_along_and_what_waits_for_the_next_start_waits_there(
        self, source: Hypervisor, target: Hypervisor, here: World, there: World, shape: Shape
    ) -> None:
        spec = here.guest()
        spec = replace(spec, shape=shape, max_cpus=3, max_memory=spec.memory + (256 << 20))
        uid, grown = spec.marks.uid, spec.memory + (128 << 20)
        await source.start(spec)
        await source.resize(uid, 2, grown)
        before = await the(source, spec)
        assert before.growth is not None and (before.cpus, before.growth.memory_asked) == (2, grown)
        migration, comes = str(uuid.uuid4()), self.arriving(spec, there)
        comes = replace(comes, cpus=2, memory=grown, shape=shape.model_copy(update={"cpu_model": "Nehalem"}))
        await target.receive(comes, migration)
        between = Between(target, comes, migration)
        try:
            await source.send(uid, Sending(migration), between.connect, nowhere)
        except HypervisorError as error:
            raise AssertionError(await asyncio.gather(*between.served, return_exceptions=True)) from error
        await target.arrive(uid, comes.marks)
        after = await the(target, comes)
        assert (after.state, after.shape, after.machine_type) == (DomainState.RUNNING, shape, before.machine_type)
        assert (after.cpus, after.memory, after.growth) == (before.cpus, before.memory, before.growth)
        await source.mark(uid, replace(spec.marks, departed=migration))
        await source.remove(uid)
        assert await source.domain(uid) is None
        await target.force_off(uid)
        again = await target.start(comes)
        assert again.shape == comes.shape, "what waited for the next start"

    async def test_one_that_nobody_waits_for_does_not_come(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        await target.receive(comes, str(uuid.uuid4()))
        between = Between(target, comes, migration)
        with pytest.raises(HypervisorError) as refused:
            await source.send(running.marks.uid, Sending(migration), between.connect, nowhere)
        assert refused.value.reason == "MigrationFailed"
        assert (await the(source, running)).state is DomainState.RUNNING
        assert (await the(target, comes)).state is DomainState.STOPPED
        told = await asyncio.gather(*between.served, return_exceptions=True)
        assert [error.reason for error in told if isinstance(error, HypervisorError)] == ["NotExpected"]

    async def test_one_with_other_disks_there_is_refused(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        other = replace(comes, disks=(*comes.disks, there.volume()))
        await target.receive(other, migration)
        with pytest.raises(HypervisorError):
            await source.send(running.marks.uid, Sending(migration), Between(target, other, migration).connect, nowhere)
        assert (await the(source, running)).state is DomainState.RUNNING
        assert (await the(target, comes)).state is DomainState.STOPPED

    async def test_without_the_other_host_it_goes_on_here(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        async def unreachable(_channel: str) -> Stream:
            raise OSError("no way there")

        with pytest.raises(HypervisorError) as failed:
            await source.send(running.marks.uid, Sending(str(uuid.uuid4())), unreachable, nowhere)
        assert failed.value.reason == "MigrationFailed"
        assert (await the(source, running)).state is DomainState.RUNNING

    async def test_what_is_off_or_halted_is_not_sent(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        between = Between(target, comes, migration)
        await target.receive(comes, migration)
        await source.pause(running.marks.uid)
        with pytest.raises(HypervisorError) as halted:
            await source.send(running.marks.uid, Sending(migration), between.connect, nowhere)
        assert halted.value.reason == "NotRunning"
        await source.force_off(running.marks.uid)
        with pytest.raises(HypervisorError) as off:
            await source.send(running.marks.uid, Sending(migration), between.connect, nowhere)
        assert off.value.reason == "NotRunning"
        assert between.served == []

    async def test_what_waits_for_a_guest_can_be_removed(self, target: Hypervisor, here: World, there: World) -> None:
        comes = self.arriving(here.guest(), there)
        await target.receive(comes, str(uuid.uuid4()))
        await target.remove(comes.marks.uid)
        assert await target.domain(comes.marks.uid) is None

    async def test_verbs_on_what_is_not_there(self, source: Hypervisor) -> None:
        uid = str(uuid.uuid4())
        await source.end_sending(uid)
        with pytest.raises(HypervisorError) as gone:
            await source.arrive(uid, Marks(uid, 1, "ns", "vm", PowerState.RUNNING))
        assert gone.value.reason == "NotArrived"


@contextlib.asynccontextmanager
async def connected(world: World) -> AsyncIterator[Hypervisor]:
    """A driver of that host."""
    driver = world.driver()
    await driver.connect(lambda _uid: None)

    async def stands() -> bool:
        with contextlib.suppress(HypervisorError):
            await driver.inventory()
            return True
        return False

    await eventually(stands, "the hypervisor was not reached")
    try:
        yield driver
    finally:
        await driver.close()
