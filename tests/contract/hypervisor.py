"""What every hypervisor driver must do. A driver's tests inherit `HypervisorContract` and give it a `world`.

A third party's driver can be held against it in the same way:

    class TestMine(HypervisorContract):
        @pytest.fixture
        async def world(self): yield MyWorld()
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from kumulus.api.compute import PowerState
from kumulus.api.disks import DriveBus
from kumulus.api.hardware import HostFeature, Shape, WatchdogAction
from kumulus.api.qos import UNLIMITED, Burst, Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.domain import (
    AttachedDisk,
    AttachedDrive,
    AttachedNic,
    Domain,
    DomainDisk,
    DomainDrive,
    DomainNic,
    DomainSpec,
    DomainState,
    ExitReason,
    Growth,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.source import DiskSource, FileSource, LayerFile
from tests.patience import PATIENCE

FOREIGN_MAC = "52:54:00:00:00:07"
"""Of the one interface of a domain that is not ours."""


class World(ABC):
    """A host, what can happen on it beside the driver, and drivers for it."""

    @abstractmethod
    def driver(self) -> Hypervisor:
        """A new driver of the host, not connected."""

    @abstractmethod
    def spec(self) -> DomainSpec:
        """A new machine that stays on, whatever is in it."""

    @abstractmethod
    def guest(self) -> DomainSpec:
        """A new machine whose guest goes on until its power button is pressed."""

    @abstractmethod
    def volume(self) -> DomainDisk:
        """A new volume of at most 16 MiB that no machine has."""

    def writer(self) -> DomainSpec:
        """A new machine with a volume `data`, to which its guest writes as soon as it has booted."""
        guest = self.guest()
        return replace(guest, disks=[*guest.disks, self.volume()])

    def empty(self, disk: DomainDisk) -> DomainDisk:
        """An empty disk on this host, for one that comes with its guest."""
        return replace(disk, source=FileSource(f"{disk.path}.here"), below=(), copied=True)

    @abstractmethod
    def disc(self) -> DiskSource:
        """A new disc."""

    @abstractmethod
    def nic(self) -> DomainNic:
        """A new interface that no machine has; what it is plugged into is there."""

    @abstractmethod
    def taps(self) -> frozenset[str]:
        """The interfaces of guests that are on, as the host's kernel has them, by name."""

    @abstractmethod
    def layer(self, below: str) -> LayerFile:
        """A new, empty file that stands on the file of a volume."""

    @abstractmethod
    def broken_spec(self) -> DomainSpec:
        """A new machine that cannot be started."""

    @abstractmethod
    async def booted(self, spec: DomainSpec) -> None:
        """Wait until the guest reacts to its power button."""

    @abstractmethod
    async def crash(self, spec: DomainSpec) -> None:
        """Let the machine die a sudden death."""

    @abstractmethod
    async def plant(self) -> str:
        """Make a running domain that is not Kumulus' own; its UUID."""

    @abstractmethod
    async def uproot(self, uuid: str) -> None:
        """End and remove such a domain."""

    @abstractmethod
    async def foreign_is_on(self, uuid: str) -> bool:
        """Whether that domain still runs, without asking the driver."""

    @abstractmethod
    async def cut(self) -> None:
        """Make the hypervisor unreachable. Guests go on."""

    @abstractmethod
    async def heal(self) -> None:
        """Make it reachable again."""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.uids: list[str] = []

    def __call__(self, uid: str) -> None:
        self.uids.append(uid)

    def clear(self) -> None:
        """Forget."""
        self.uids.clear()

    async def about(self, uid: str, seconds: float = 30) -> None:
        """Wait until the driver said something about that domain."""
        await eventually(lambda: uid in self.uids, f"the listener did not hear of {uid!r}", seconds)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 30) -> None:
    """Wait for a condition; AssertionError with `what` when it does not come true in time."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} within {seconds} s")
        await asyncio.sleep(0.01)


def new_marks() -> Marks:
    """Marks of a machine that never was."""
    return Marks(str(uuid.uuid4()), epoch=1, namespace="tenant", name="web", wanted=PowerState.RUNNING)


async def the(hypervisor: Hypervisor, spec: DomainSpec) -> Domain:
    """The domain of that machine, which must exist."""
    domain = await hypervisor.domain(spec.marks.uid)
    assert domain is not None
    return domain


async def stopped(hypervisor: Hypervisor, spec: DomainSpec) -> Domain:
    """The domain of that machine, once it is off."""

    async def off() -> bool:
        return (await the(hypervisor, spec)).state is DomainState.STOPPED

    await eventually(off, "the domain did not stop")
    return await the(hypervisor, spec)


LIMITS = (
    Qos(iops=500, bytes_per_second=10 << 20),
    Qos(read_iops=100, write_iops=50, read_bytes_per_second=2 << 20),
    Qos(
        iops=100,
        read_bytes_per_second=1 << 20,
        write_bytes_per_second=1 << 20,
        burst=Burst(iops=1000, write_bytes_per_second=8 << 20, seconds=30),
    ),
    Qos(bytes_per_second=100 << 30, burst=Burst(bytes_per_second=200 << 30, seconds=3600)),
)

BUFFERED = {CacheMode.NONE: CacheMode.WRITEBACK, CacheMode.DIRECTSYNC: CacheMode.WRITETHROUGH}
"""What a driver may do where a file cannot be opened past the host's memory: the same promise about writes."""

VERBS: tuple[Callable[[Hypervisor, str], Awaitable[None]], ...] = (
    lambda hypervisor, uid: hypervisor.mark(uid, replace(new_marks(), uid=uid)),
    lambda hypervisor, uid: hypervisor.power_button(uid),
    lambda hypervisor, uid: hypervisor.pause(uid),
    lambda hypervisor, uid: hypervisor.suspend(uid),
    lambda hypervisor, uid: hypervisor.drop_memory(uid),
    lambda hypervisor, uid: hypervisor.resume(uid),
    lambda hypervisor, uid: hypervisor.force_off(uid),
    lambda hypervisor, uid: hypervisor.attach_disk(uid, DomainDisk("data", FileSource("/nowhere"), "raw", volume=uid)),
    lambda hypervisor, uid: hypervisor.detach_disk(uid, uid),
    lambda hypervisor, uid: hypervisor.attach_nic(uid, DomainNic(uid, "02:00:00:00:00:01", Plug("ktno", "kbno", 1450))),
    lambda hypervisor, uid: hypervisor.detach_nic(uid, uid),
    lambda hypervisor, uid: hypervisor.resize(uid, 2, 1 << 30),
    lambda hypervisor, uid: hypervisor.limit_disk(uid, uid, Qos(iops=1)),
    lambda hypervisor, uid: hypervisor.change_disc(uid, "cd", FileSource("/nowhere")),
    lambda hypervisor, uid: hypervisor.remove(uid),
)


async def _nothing() -> None:
    """What is done while a guest is halted when there is nothing to do."""


def volume_of(disk: DomainDisk) -> str:
    """The uid of the Volume that the disk is."""
    assert disk.volume is not None
    return disk.volume


def bare(disk: DomainDisk | AttachedDisk) -> tuple[str, str, str | None]:
    """What tells one disk from another."""
    return disk.name, disk.path, disk.volume


async def manner(hypervisor: Hypervisor, spec: DomainSpec, disk: DomainDisk) -> tuple[Qos, CacheMode | None]:
    """How fast the machine's disk may be, and how it is cached."""
    (found,) = (item for item in (await the(hypervisor, spec)).disks if item.volume == disk.volume)
    return found.qos, found.cache


async def detached(hypervisor: Hypervisor, spec: DomainSpec, disk: DomainDisk) -> Domain:
    """The domain of that machine, once it has let go of the disk."""

    async def gone() -> bool:
        return disk.volume not in (await the(hypervisor, spec)).volumes

    await eventually(gone, "the machine did not let go of the disk")
    return await the(hypervisor, spec)


def seen(*nics: DomainNic) -> set[AttachedNic]:
    """How a domain that has them shows them."""
    return {AttachedNic(nic.uid, nic.mac, nic.plug.device) for nic in nics}


async def unplugged(hypervisor: Hypervisor, spec: DomainSpec, nic: DomainNic) -> Domain:
    """The domain of that machine, once it has let go of the interface."""

    async def gone() -> bool:
        return seen(nic).isdisjoint((await the(hypervisor, spec)).nics)

    await eventually(gone, "the machine did not let go of the interface", 60)
    return await the(hypervisor, spec)


class HypervisorContract:
    """The contract of `kumulus_agents.hypervisor.protocol.Hypervisor`."""

    @pytest.fixture
    async def heard(self) -> Heard:
        return Heard()

    @pytest.fixture
    async def hypervisor(self, world: World, heard: Heard) -> AsyncIterator[Hypervisor]:
        driver = world.driver()
        await driver.connect(heard)
        await heard.about("")
        heard.clear()
        yield driver
        await driver.close()

    @pytest.fixture
    async def running(self, world: World, hypervisor: Hypervisor) -> DomainSpec:
        spec = world.spec()
        await hypervisor.start(spec)
        return spec

    @pytest.fixture
    async def booted(self, world: World, hypervisor: Hypervisor) -> DomainSpec:
        spec = world.guest()
        await hypervisor.start(spec)
        await world.booted(spec)
        return spec

    # Connecting

    async def test_before_the_connection_stands_everything_is_unavailable(self, world: World) -> None:
        driver = world.driver()
        with pytest.raises(HypervisorError) as caught:
            await driver.domains()
        assert caught.value.reason == "HypervisorUnavailable"
        assert caught.value.retryable
        await driver.close()

    async def test_after_close_everything_is_unavailable(self, world: World, heard: Heard) -> None:
        driver = world.driver()
        await driver.connect(heard)
        await heard.about("")
        await driver.close()
        with pytest.raises(HypervisorError) as caught:
            await driver.domains()
        assert caught.value.reason == "HypervisorUnavailable"

    async def test_domains_survive_close_and_a_new_driver_finds_them(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        before = await the(hypervisor, running)
        await hypervisor.close()
        driver, heard = world.driver(), Heard()
        await driver.connect(heard)
        await heard.about("")
        assert await driver.domain(running.marks.uid) == before
        assert before in await driver.domains()
        await driver.close()

    async def test_losing_the_hypervisor_leaves_guests_alone_and_it_is_found_again(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, heard: Heard
    ) -> None:
        before = await the(hypervisor, running)
        await world.cut()

        async def gone() -> bool:
            try:
                await hypervisor.domains()
            except HypervisorError as error:
                return error.reason == "HypervisorUnavailable"
            return False

        await eventually(gone, "the driver did not see that the hypervisor is gone")
        heard.clear()
        await world.heal()
        await heard.about("", 5)
        assert await the(hypervisor, running) == before

    # Seeing

    async def test_inventory(self, hypervisor: Hypervisor) -> None:
        found = await hypervisor.inventory()
        assert found.cpus > 0
        assert found.memory > 1 << 28
        assert found.acceleration in ("kvm", "tcg")
        assert found.architecture
        assert "q35" in found.machine_types and len(found.machine_types) > 1
        assert "Nehalem" in found.cpu_models
        assert {HostFeature.UEFI, HostFeature.SECURE_BOOT, HostFeature.TPM, HostFeature.WATCHDOG} == found.features
        assert found == await hypervisor.inventory()

    async def test_an_unknown_machine_is_none_and_every_verb_does_nothing(self, hypervisor: Hypervisor) -> None:
        uid = str(uuid.uuid4())
        for verb in VERBS:
            await verb(hypervisor, uid)
        assert await hypervisor.domain(uid) is None

    async def test_a_machine_whose_guest_has_no_agent_says_nothing(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        assert not (await the(hypervisor, running)).agent
        assert await hypervisor.ask_guest(running.marks.uid) is None
        assert await hypervisor.ask_guest(str(uuid.uuid4())) is None

    async def test_foreign_domains_are_listed_and_never_touched(self, world: World, hypervisor: Hypervisor) -> None:
        foreign = await world.plant()
        assert foreign in [domain.uuid for domain in await hypervisor.foreign()]
        assert await hypervisor.domain(foreign) is None
        assert foreign not in [domain.marks.uid for domain in await hypervisor.domains()]
        for verb in VERBS:
            await verb(hypervisor, foreign)
        spec = world.spec()
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.start(replace(spec, marks=replace(spec.marks, uid=foreign)))
        assert caught.value.reason == "DomainConflict"
        assert not caught.value.retryable
        assert await world.foreign_is_on(foreign)
        assert foreign in [domain.uuid for domain in await hypervisor.foreign()]

    async def test_of_foreign_domains_is_told_when_they_come_and_go(self, world: World, hypervisor: Hypervisor) -> None:
        told = asyncio.Event()
        hypervisor.watch_foreign(told.set)

        async def shown() -> dict[str, ForeignDomain]:
            return {domain.uuid: domain for domain in await hypervisor.foreign()}

        async def so(wanted: bool) -> bool:
            return (foreign in await shown()) is wanted

        foreign = await world.plant()
        await eventually(told.is_set, "told of one that came")
        await eventually(lambda: so(True), "it is shown")
        (found,) = (domain for domain in await hypervisor.foreign(fresh=True) if domain.uuid == foreign)
        assert found == (await shown())[foreign]
        assert (found.persistent, len(found.shape.disks), len(found.shape.nics)) == (True, 1, 1)
        assert found.shape.disks[0].target == "vda" and found.shape.disks[0].source is not None
        assert found.shape.nics[0].mac == FOREIGN_MAC
        told.clear()
        await world.uproot(foreign)
        await eventually(told.is_set, "told of one that went")
        await eventually(lambda: so(False), "it is shown no more")

    async def test_our_domains_are_not_foreign(self, hypervisor: Hypervisor, running: DomainSpec) -> None:
        assert running.marks.uid not in [domain.uuid for domain in await hypervisor.foreign()]

    # Starting

    async def test_start(self, world: World, hypervisor: Hypervisor, heard: Heard) -> None:
        spec, before = world.spec(), time.time()
        domain = await hypervisor.start(spec)
        assert domain.marks == spec.marks
        assert domain.state is DomainState.RUNNING
        assert domain.exit_reason is None
        assert domain.started_at is not None
        assert (domain.cpus, domain.memory) == (spec.cpus, spec.memory)
        assert before - 1 <= domain.started_at <= time.time() + 1
        found = await the(hypervisor, spec)
        assert found.started_at == pytest.approx(domain.started_at, abs=0.01)
        assert replace(found, started_at=None) == replace(domain, started_at=None)
        assert found in await hypervisor.domains()
        await heard.about(spec.marks.uid)

    async def test_starting_what_runs_only_brings_the_marks_up_to_date(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        before = await the(hypervisor, running)
        wanted = replace(running.marks, epoch=2, restarts=3, restart_request="now")
        after = await hypervisor.start(replace(running, marks=wanted, memory=running.memory * 2))
        assert after == replace(before, marks=wanted)
        assert await the(hypervisor, running) == after

    async def test_starting_what_is_paused_leaves_it_paused(self, hypervisor: Hypervisor, running: DomainSpec) -> None:
        await hypervisor.pause(running.marks.uid)
        after = await hypervisor.start(running)
        assert after.state is DomainState.PAUSED

    async def test_many_starts_at_once_make_one_run(self, world: World, hypervisor: Hypervisor) -> None:
        spec = world.spec()
        runs = await asyncio.gather(*(hypervisor.start(spec) for _ in range(4)))
        assert len({run.started_at for run in runs}) == 1

    async def test_different_machines_start_side_by_side(self, world: World, hypervisor: Hypervisor) -> None:
        specs = [world.spec() for _ in range(3)]
        await asyncio.gather(*(hypervisor.start(spec) for spec in specs))
        on = {domain.marks.uid for domain in await hypervisor.domains() if domain.state is DomainState.RUNNING}
        assert {spec.marks.uid for spec in specs} <= on

    async def test_a_cancelled_start_can_be_repeated(self, world: World, hypervisor: Hypervisor) -> None:
        spec = world.spec()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await hypervisor.start(spec)
        assert (await hypervisor.start(spec)).state is DomainState.RUNNING

    async def test_a_failed_start_says_why_and_leaves_it_off(self, world: World, hypervisor: Hypervisor) -> None:
        spec = world.broken_spec()
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.start(spec)
        assert caught.value.reason
        domain = await hypervisor.domain(spec.marks.uid)
        assert domain is None or (domain.state, domain.exit_reason) == (DomainState.STOPPED, ExitReason.FAILED)
        await hypervisor.remove(spec.marks.uid)
        assert await hypervisor.domain(spec.marks.uid) is None

    # Marks

    async def test_marks_of_a_running_machine_last_beyond_its_run(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        before = await the(hypervisor, running)
        wanted = replace(running.marks, epoch=7, wanted=PowerState.STOPPED, restarts=2)
        await hypervisor.mark(running.marks.uid, wanted)
        assert await the(hypervisor, running) == replace(before, marks=wanted)
        assert wanted in [domain.marks for domain in await hypervisor.domains()]
        await hypervisor.force_off(running.marks.uid)
        assert (await the(hypervisor, running)).marks == wanted

    async def test_marks_of_a_machine_that_is_off(self, hypervisor: Hypervisor, running: DomainSpec) -> None:
        await hypervisor.force_off(running.marks.uid)
        wanted = replace(running.marks, restart_request="x", wanted=PowerState.STOPPED)
        await hypervisor.mark(running.marks.uid, wanted)
        assert (await the(hypervisor, running)).marks == wanted

    @pytest.mark.parametrize(
        "text",
        [
            "</kumulus:instance></metadata><devices><hostdev/></devices>",
            "<![CDATA[x]]>&lt;&amp;'\"",
            "tab\tnewline\nreturn\r",
            "\x01\x1b[2J\x7f",
            "%41 100% \u00e9\u4e16\U0001f600",
            " spaces ",
            "",
            "\u00ff" * 253,
        ],
    )
    async def test_marks_carry_any_text(self, hypervisor: Hypervisor, running: DomainSpec, text: str) -> None:
        wanted = replace(running.marks, restart_request=text, name=text, namespace=text)
        await hypervisor.mark(running.marks.uid, wanted)
        assert (await the(hypervisor, running)).marks == wanted
        await hypervisor.force_off(running.marks.uid)
        assert (await hypervisor.start(replace(running, marks=wanted))).marks == wanted
        assert (await the(hypervisor, running)).marks == wanted

    # Pausing

    async def test_pause_and_resume(self, hypervisor: Hypervisor, running: DomainSpec, heard: Heard) -> None:
        before = await the(hypervisor, running)
        heard.clear()
        for _ in range(2):
            await hypervisor.pause(running.marks.uid)
            assert await the(hypervisor, running) == replace(before, state=DomainState.PAUSED)
        await heard.about(running.marks.uid)
        for _ in range(2):
            await hypervisor.resume(running.marks.uid)
            assert await the(hypervisor, running) == before

    async def test_a_guest_goes_on_from_the_memory_that_was_kept(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, heard: Heard
    ) -> None:
        before, uid = await the(hypervisor, running), running.marks.uid
        heard.clear()
        for _ in range(2):
            await hypervisor.suspend(uid)
            off = await the(hypervisor, running)
            assert (off.state, off.saved, off.started_at) == (DomainState.STOPPED, running.marks.epoch, None)
        assert [one.saved for one in await hypervisor.domains() if one.marks.uid == uid] == [running.marks.epoch]
        await heard.about(uid)
        await world.cut()
        await world.heal()
        await heard.about("", 5)
        assert (await the(hypervisor, running)).saved == running.marks.epoch
        woken = replace(running.marks, restarts=7)
        for _ in range(2):
            await hypervisor.wake(replace(running, marks=woken))
            assert await the(hypervisor, running) == replace(before, marks=woken)

    async def test_a_memory_of_another_placement_is_not_woken(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        await hypervisor.suspend(running.marks.uid)
        newer = replace(running.marks, epoch=running.marks.epoch + 1)
        await hypervisor.mark(running.marks.uid, newer)
        with pytest.raises(HypervisorError) as refused:
            await hypervisor.wake(replace(running, marks=newer))
        assert refused.value.reason == "WakeFailed"
        off = await the(hypervisor, running)
        assert (off.state, off.saved) == (DomainState.STOPPED, running.marks.epoch)

    async def test_a_guest_keeps_a_volume_that_its_memory_knows(self, world: World, hypervisor: Hypervisor) -> None:
        spec, disk = world.spec(), world.volume()
        uid = spec.marks.uid
        await hypervisor.start(replace(spec, disks=(*spec.disks, disk)))
        await hypervisor.suspend(uid)
        await hypervisor.detach_disk(uid, disk.volume or "")
        assert (await the(hypervisor, spec)).volumes == {disk.volume}
        with pytest.raises(HypervisorError) as refused:
            await hypervisor.wake(spec)
        assert refused.value.reason == "WakeFailed"
        await hypervisor.wake(replace(spec, disks=(*spec.disks, disk)))
        assert (await the(hypervisor, spec)).state is DomainState.RUNNING

    async def test_a_guest_that_is_to_be_paused_wakes_halted(self, hypervisor: Hypervisor, running: DomainSpec) -> None:
        await hypervisor.suspend(running.marks.uid)
        marks = replace(running.marks, wanted=PowerState.PAUSED)
        await hypervisor.wake(replace(running, marks=marks))
        assert (await the(hypervisor, running)).state is DomainState.PAUSED
        await hypervisor.resume(running.marks.uid)
        assert (await the(hypervisor, running)).state is DomainState.RUNNING

    @pytest.mark.parametrize("by", ["drop", "start"])
    async def test_memory_that_is_dropped_is_not_woken(
        self, hypervisor: Hypervisor, running: DomainSpec, by: str
    ) -> None:
        before, uid = await the(hypervisor, running), running.marks.uid
        await hypervisor.suspend(uid)
        if by == "drop":
            for _ in range(2):
                await hypervisor.drop_memory(uid)
                assert (await the(hypervisor, running)).saved is None
            await hypervisor.wake(running)
            assert (await the(hypervisor, running)).state is DomainState.STOPPED
        after = await hypervisor.start(running)
        assert (after.state, after.saved) == (DomainState.RUNNING, None)
        assert after.started_at is not None and after.started_at > (before.started_at or 0)

    # Disks that come and go

    async def test_a_machine_shows_the_disks_it_was_started_with(self, world: World, hypervisor: Hypervisor) -> None:
        spec, disk = world.spec(), world.volume()
        domain = await hypervisor.start(replace(spec, disks=(*spec.disks, disk)))
        assert [bare(found) for found in domain.disks] == [bare(wanted) for wanted in (*spec.disks, disk)]
        assert domain.volumes == {disk.volume}
        for seen in (await the(hypervisor, spec), *await hypervisor.domains()):
            assert set(seen.disks) == set(domain.disks)
        await hypervisor.force_off(spec.marks.uid)
        assert (await the(hypervisor, spec)).volumes == {disk.volume}

    # Interfaces

    async def test_a_machine_has_the_interfaces_it_was_started_with(
        self, world: World, hypervisor: Hypervisor, heard: Heard
    ) -> None:
        spec, one, two = world.spec(), world.nic(), world.nic()
        spec = replace(spec, nics=(one, two))
        domain = await hypervisor.start(spec)
        for found in (domain, await the(hypervisor, spec), *await hypervisor.domains()):
            assert set(found.nics) == seen(one, two)
        assert {one.plug.device, two.plug.device} <= world.taps()
        await world.cut()
        heard.clear()
        await world.heal()
        await heard.about("", 5)
        assert set((await the(hypervisor, spec)).nics) == seen(one, two)
        assert {one.plug.device, two.plug.device} <= world.taps()
        await hypervisor.force_off(spec.marks.uid)
        assert set((await the(hypervisor, spec)).nics) == seen(one, two)
        assert world.taps().isdisjoint({one.plug.device, two.plug.device})
        await hypervisor.start(spec)
        assert {one.plug.device, two.plug.device} <= world.taps()
        await world.crash(spec)
        await stopped(hypervisor, spec)
        assert world.taps().isdisjoint({one.plug.device, two.plug.device})
        assert set((await hypervisor.start(replace(spec, nics=(two,)))).nics) == seen(two)
        assert world.taps() & {one.plug.device, two.plug.device} == {two.plug.device}
        await hypervisor.remove(spec.marks.uid)
        assert two.plug.device not in world.taps()

    async def test_interfaces_come_and_go_while_a_machine_is_on(
        self, world: World, hypervisor: Hypervisor, booted: DomainSpec, heard: Heard
    ) -> None:
        uid, before, nics = booted.marks.uid, await the(hypervisor, booted), [world.nic() for _ in range(4)]
        heard.clear()
        for nic in nics:
            for _ in range(2):
                await hypervisor.attach_nic(uid, nic)
            assert seen(nic) <= set((await the(hypervisor, booted)).nics)
            assert nic.plug.device in world.taps()
        after = await the(hypervisor, booted)
        assert replace(after, nics=()) == before
        assert set(after.nics) == seen(*nics)
        await heard.about(uid)
        heard.clear()
        for _ in range(2):
            await hypervisor.detach_nic(uid, nics[0].uid)
        left = await unplugged(hypervisor, booted, nics[0])
        assert set(left.nics) == seen(*nics[1:])
        assert nics[0].plug.device not in world.taps()
        await heard.about(uid)
        await hypervisor.attach_nic(uid, nics[0])
        assert set((await the(hypervisor, booted)).nics) == seen(*nics)
        await hypervisor.force_off(uid)
        assert set((await the(hypervisor, booted)).nics) == seen(*nics)

    async def test_a_machine_that_is_off_gets_no_interface_and_loses_one_at_once(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, nic = running.marks.uid, world.nic()
        await hypervisor.attach_nic(uid, nic)
        await hypervisor.force_off(uid)
        await hypervisor.attach_nic(uid, world.nic())
        assert set((await the(hypervisor, running)).nics) == seen(nic)
        for _ in range(2):
            await hypervisor.detach_nic(uid, nic.uid)
            assert not (await the(hypervisor, running)).nics

    @pytest.mark.parametrize("paused", [False, True])
    async def test_attach(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, heard: Heard, paused: bool
    ) -> None:
        if paused:
            await hypervisor.pause(running.marks.uid)
        before, disk = await the(hypervisor, running), world.volume()
        heard.clear()
        for _ in range(2):
            await hypervisor.attach_disk(running.marks.uid, disk)
            after = await the(hypervisor, running)
            assert set(map(bare, after.disks)) == {*map(bare, before.disks), bare(disk)}
            assert len(after.disks) == len(before.disks) + 1
            assert replace(after, disks=()) == replace(before, disks=())
            assert after in await hypervisor.domains()
        await heard.about(running.marks.uid)
        await hypervisor.force_off(running.marks.uid)
        assert (await the(hypervisor, running)).volumes == {disk.volume}

    @pytest.mark.parametrize("paused", [False, True])
    async def test_detach(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, heard: Heard, paused: bool
    ) -> None:
        kept, disk, before = world.volume(), world.volume(), await the(hypervisor, running)
        for one in (disk, kept):
            await hypervisor.attach_disk(running.marks.uid, one)
        if paused:
            await hypervisor.pause(running.marks.uid)
        heard.clear()
        for _ in range(2):
            await hypervisor.detach_disk(running.marks.uid, volume_of(disk))
        after = await detached(hypervisor, running, disk)
        await heard.about(running.marks.uid)
        assert set(map(bare, after.disks)) == {*map(bare, before.disks), bare(kept)}
        assert after in await hypervisor.domains()
        await hypervisor.detach_disk(running.marks.uid, volume_of(disk))
        await hypervisor.force_off(running.marks.uid)
        assert (await the(hypervisor, running)).volumes == {kept.volume}

    async def test_what_was_detached_can_come_back(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        disk = world.volume()
        for _ in range(3):
            await hypervisor.attach_disk(running.marks.uid, disk)
            assert disk.volume in (await the(hypervisor, running)).volumes
            await hypervisor.detach_disk(running.marks.uid, volume_of(disk))
            await detached(hypervisor, running, disk)

    async def test_a_machine_that_is_off_gets_no_disk_and_loses_one_at_once(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        await hypervisor.attach_disk(uid, disk)
        await hypervisor.force_off(uid)
        await hypervisor.attach_disk(uid, world.volume())
        assert (await the(hypervisor, running)).volumes == {disk.volume}
        for _ in range(2):
            await hypervisor.detach_disk(uid, volume_of(disk))
            assert (await the(hypervisor, running)).volumes == frozenset()
        assert (await hypervisor.start(running)).volumes == frozenset()

    async def test_sixteen_disks_come_one_after_the_other(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        disks = [world.volume() for _ in range(16)]
        for disk in disks:
            await hypervisor.attach_disk(running.marks.uid, disk)
        assert (await the(hypervisor, running)).volumes == {disk.volume for disk in disks}

    async def test_a_disk_that_another_machine_has_is_not_attached(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        other, disk = world.spec(), world.volume()
        await hypervisor.start(other)
        await hypervisor.attach_disk(other.marks.uid, disk)
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.attach_disk(running.marks.uid, disk)
        assert caught.value.reason == "DiskInUse"
        assert (await the(hypervisor, running)).volumes == frozenset()
        await hypervisor.detach_disk(other.marks.uid, volume_of(disk))
        await detached(hypervisor, other, disk)
        await hypervisor.attach_disk(running.marks.uid, disk)
        assert (await the(hypervisor, running)).volumes == {disk.volume}

    async def test_resize(self, world: World, hypervisor: Hypervisor, running: DomainSpec) -> None:
        uid, disk = running.marks.uid, world.volume()
        await hypervisor.attach_disk(uid, disk)
        for size in (32 << 20, 32 << 20, 1 << 20):
            await hypervisor.resize_disk(uid, volume_of(disk), size)
        await hypervisor.force_off(uid)
        for machine, volume in ((uid, volume_of(disk)), (str(uuid.uuid4()), volume_of(disk)), (uid, str(uuid.uuid4()))):
            with pytest.raises(HypervisorError) as caught:
                await hypervisor.resize_disk(machine, volume, 64 << 20)
            assert caught.value.reason == "DiskNotAttached"

    @pytest.mark.parametrize("limited", LIMITS)
    async def test_a_disk_is_limited_at_the_start_and_while_the_machine_is_on(
        self, world: World, hypervisor: Hypervisor, limited: Qos, heard: Heard
    ) -> None:
        spec, disk = world.spec(), world.volume()
        uid = spec.marks.uid
        await hypervisor.start(replace(spec, disks=(*spec.disks, replace(disk, qos=limited))))
        assert (await manner(hypervisor, spec, disk))[0] == limited
        heard.clear()
        for wanted in (UNLIMITED, limited, limited, Qos(iops=7), UNLIMITED):
            await hypervisor.limit_disk(uid, volume_of(disk), wanted)
            assert (await manner(hypervisor, spec, disk))[0] == wanted
            assert (await the(hypervisor, spec)) in await hypervisor.domains()
        await heard.about(uid)
        await hypervisor.limit_disk(uid, volume_of(disk), limited)
        await hypervisor.limit_disk(uid, str(uuid.uuid4()), limited)
        await hypervisor.force_off(uid)
        assert (await manner(hypervisor, spec, disk))[0] == limited
        await hypervisor.limit_disk(uid, volume_of(disk), UNLIMITED)
        assert (await manner(hypervisor, spec, disk))[0] == limited

    async def test_a_disk_that_comes_later_is_limited_from_the_first(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        limited, disk = Qos(iops=100, burst=Burst(iops=300, seconds=9)), world.volume()
        await hypervisor.attach_disk(running.marks.uid, replace(disk, qos=limited, cache=CacheMode.WRITETHROUGH))
        assert await manner(hypervisor, running, disk) == (limited, CacheMode.WRITETHROUGH)

    async def test_every_cache_mode_starts(self, world: World, hypervisor: Hypervisor) -> None:
        spec = world.spec()
        disks = {mode: replace(world.volume(), cache=mode) for mode in CacheMode}
        await hypervisor.start(replace(spec, disks=(*spec.disks, *disks.values())))
        for mode, disk in disks.items():
            assert (await manner(hypervisor, spec, disk))[1] in (mode, BUFFERED.get(mode))

    # Discs

    async def test_a_machine_grows_while_it_is_on(self, world: World, hypervisor: Hypervisor) -> None:
        small = world.spec()
        spec = replace(small, max_cpus=small.cpus + 2, max_memory=small.memory + (256 << 20))
        uid, memory = spec.marks.uid, spec.memory
        begun = await hypervisor.start(spec)
        assert (begun.cpus, begun.memory) == (spec.cpus, memory)
        assert begun.growth == Growth(spec.cpus + 2, memory, memory, memory + (256 << 20))
        assert (await the(hypervisor, spec)).growth == begun.growth

        await hypervisor.resize(uid, spec.cpus + 1, memory + (128 << 20))
        now = await the(hypervisor, spec)
        assert now.cpus == spec.cpus + 1
        assert now.growth is not None and now.growth.memory_asked == memory + (128 << 20)
        for cpus, size in ((spec.cpus, memory), (spec.cpus + 9, memory + (9 << 30)), (1, memory - (4 << 20))):
            await hypervisor.resize(uid, cpus, size)
            now = await the(hypervisor, spec)
            assert now.cpus == spec.cpus + 1, "a CPU stays, and there are not more than can be"
            assert now.growth is not None and now.growth.memory_asked == memory, (
                "nor more memory, nor less than it began with"
            )

        await hypervisor.force_off(uid)
        assert (await hypervisor.start(small)).growth is None

    async def test_a_machine_is_made_as_asked_and_keeps_its_board(self, world: World, hypervisor: Hypervisor) -> None:
        boards = [name for name in (await hypervisor.inventory()).machine_types if name != "q35"]
        shape = Shape(cpu_model="Nehalem", threads=1, watchdog=WatchdogAction.RESET)
        spec = replace(world.spec(), shape=shape, machine_type=boards[-2])
        uid = spec.marks.uid
        for domain in (await hypervisor.start(spec), await the(hypervisor, spec)):
            assert (domain.shape, domain.machine_type) == (shape, boards[-2])
        await hypervisor.force_off(uid)
        plain = replace(spec, shape=Shape(), machine_type=None)
        domain = await hypervisor.start(plain)
        assert (domain.shape, domain.machine_type) == (Shape(), boards[-2]), "the board that it has"
        await hypervisor.force_off(uid)
        newest = (await hypervisor.start(replace(plain, machine_type="q35"))).machine_type
        assert newest in boards and newest != boards[-2]
        assert (await the(hypervisor, spec)).machine_type == newest

    async def test_a_machine_that_is_off_or_cannot_grow_is_left_alone(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        before = await the(hypervisor, running)
        await hypervisor.resize(running.marks.uid, running.cpus + 1, running.memory + (128 << 20))
        assert await the(hypervisor, running) == before
        await hypervisor.force_off(running.marks.uid)
        await hypervisor.resize(running.marks.uid, running.cpus + 1, running.memory + (128 << 20))

    async def test_discs_come_and_go_while_a_machine_is_on(
        self, world: World, hypervisor: Hypervisor, heard: Heard
    ) -> None:
        one, two, spec = world.disc(), world.disc(), world.spec()
        given = (DomainDrive("cd", DriveBus.SATA, one, boot_order=2), DomainDrive("more", DriveBus.SCSI))
        spec = replace(spec, drives=given)
        uid = spec.marks.uid

        def drives(cd: DiskSource | None, more: DiskSource | None) -> tuple[AttachedDrive, ...]:
            return AttachedDrive("cd", cd and cd.path), AttachedDrive("more", more and more.path)

        async def has(cd: DiskSource | None, more: DiskSource | None) -> None:
            now = await the(hypervisor, spec)
            assert tuple(now.drives) == drives(cd, more)
            assert now in await hypervisor.domains()
            assert [bare(disk) for disk in now.disks] == [bare(disk) for disk in spec.disks]

        assert tuple((await hypervisor.start(spec)).drives) == drives(one, None)
        await has(one, None)
        for _ in range(2):
            await hypervisor.change_disc(uid, "more", two)
            await has(one, two)
        await hypervisor.change_disc(uid, "cd", two)
        await has(two, two)
        for _ in range(2):
            await hypervisor.change_disc(uid, "cd", None)
            await has(None, two)
        await hypervisor.change_disc(uid, "more", one, force=True)
        await hypervisor.change_disc(uid, "nothing", one)
        await has(None, one)
        await hypervisor.force_off(uid)
        await has(None, one)
        await hypervisor.change_disc(uid, "cd", one)
        await has(None, one)
        await hypervisor.start(spec)
        await has(one, None)

    # Snapshots

    @pytest.mark.parametrize("paused", [False, True])
    async def test_a_snapshot_of_several_disks_lets_the_guest_go_on_with_new_layers(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, paused: bool
    ) -> None:
        uid, one, two, other = running.marks.uid, world.volume(), world.volume(), world.volume()
        for disk in (one, two, other):
            await hypervisor.attach_disk(uid, disk)
        if paused:
            await hypervisor.pause(uid)
        before = await the(hypervisor, running)
        layers = {volume_of(disk): world.layer(disk.path) for disk in (one, two)}
        for _ in range(2):
            how = await hypervisor.snapshot_disks(uid, layers, Quiesce(QuiesceMode.IF_POSSIBLE))
            assert set(how) == {Indication.ONLINE, Indication.NO_GUEST_AGENT}
            after = await the(hypervisor, running)
            paths = {disk.volume: disk.path for disk in after.disks if disk.volume is not None}
            assert paths == {**{uid: layer.path for uid, layer in layers.items()}, other.volume: other.path}
            assert replace(after, disks=()) == replace(before, disks=())
            assert after in await hypervisor.domains()
        layers = {volume_of(one): world.layer(layers[volume_of(one)].path)}
        assert await hypervisor.snapshot_disks(uid, layers, Quiesce(QuiesceMode.NEVER)) == (Indication.ONLINE,)
        await hypervisor.detach_disk(uid, volume_of(one))
        await detached(hypervisor, running, one)
        await hypervisor.force_off(uid)

    async def test_a_snapshot_that_must_be_at_rest_is_not_taken_without(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        await hypervisor.attach_disk(uid, disk)
        layers = {volume_of(disk): world.layer(disk.path)}
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.snapshot_disks(uid, layers, Quiesce(QuiesceMode.REQUIRED, 1))
        assert (caught.value.reason, caught.value.retryable) == ("QuiesceFailed", True)
        assert disk.path in {one.path for one in (await the(hypervisor, running)).disks}

    @pytest.mark.parametrize("paused", [False, True])
    async def test_a_guest_is_halted_while_pools_keep_what_its_disks_have(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, paused: bool
    ) -> None:
        uid, kept, layered = running.marks.uid, world.volume(), world.volume()
        for disk in (kept, layered):
            await hypervisor.attach_disk(uid, disk)
        if paused:
            await hypervisor.pause(uid)
        before, seen = await the(hypervisor, running), list[Domain]()

        async def keep() -> None:
            seen.append(await the(hypervisor, running))

        still = Still(frozenset({volume_of(kept)}), keep, 60)
        for layers in ({volume_of(layered): world.layer(layered.path)}, {}):
            how = await hypervisor.snapshot_disks(uid, layers, Quiesce(QuiesceMode.IF_POSSIBLE), still=still)
            assert set(how) == {Indication.ONLINE, Indication.NO_GUEST_AGENT}
            halted = seen.pop()
            assert halted.state is DomainState.PAUSED
            assert halted.held or paused
            after = await the(hypervisor, running)
            assert replace(after, disks=()) == replace(before, disks=())
            assert after in await hypervisor.domains()
            paths = {disk.volume: disk.path for disk in after.disks if disk.volume is not None}
            assert paths[kept.volume] == kept.path
            assert paths[layered.volume] != layered.path
            assert seen == []

    async def test_a_guest_goes_on_when_a_pool_does_not_keep_what_its_disks_have(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, kept, layered = running.marks.uid, world.volume(), world.volume()
        for disk in (kept, layered):
            await hypervisor.attach_disk(uid, disk)
        before = await the(hypervisor, running)
        layers = {volume_of(layered): world.layer(layered.path)}

        async def fail() -> None:
            raise HypervisorError("no", reason="Told")

        async def hang() -> None:
            await asyncio.Event().wait()

        async def forbid() -> None:
            pytest.fail("it was asked of a guest that did not come to rest")

        for keep, seconds, mode, reason in (
            (fail, 60.0, QuiesceMode.NEVER, "Told"),
            (hang, 0.1, QuiesceMode.NEVER, "HaltedTooLong"),
            (forbid, 60.0, QuiesceMode.REQUIRED, "QuiesceFailed"),
        ):
            still = Still(frozenset({volume_of(kept)}), keep, seconds)
            with pytest.raises(HypervisorError) as caught:
                await hypervisor.snapshot_disks(uid, layers, Quiesce(mode, 1), still=still)
            assert caught.value.reason == reason
            assert caught.value.retryable
            assert await the(hypervisor, running) == before
        still = Still(frozenset({volume_of(world.volume())}), forbid, 60)
        for wanted in ({}, layers):
            with pytest.raises(HypervisorError) as caught:
                await hypervisor.snapshot_disks(uid, wanted, Quiesce(QuiesceMode.NEVER), still=still)
            assert caught.value.reason == "DiskNotAttached"
        assert await the(hypervisor, running) == before

    async def test_no_snapshot_of_disks_that_are_not_attached(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk, missing = running.marks.uid, world.volume(), world.volume()
        await hypervisor.attach_disk(uid, disk)
        both = {volume_of(one): world.layer(one.path) for one in (disk, missing)}
        for machine in (uid, str(uuid.uuid4())):
            with pytest.raises(HypervisorError) as caught:
                await hypervisor.snapshot_disks(machine, both, Quiesce(QuiesceMode.NEVER))
            assert caught.value.reason == "DiskNotAttached"
        await hypervisor.force_off(uid)
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.snapshot_disks(uid, {volume_of(disk): both[volume_of(disk)]}, Quiesce(QuiesceMode.NEVER))
        assert caught.value.reason == "DiskNotAttached"

    @pytest.mark.parametrize("paused", [False, True])
    async def test_merging_what_the_guest_writes_to_lets_it_go_on_when_that_is_noted(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, paused: bool
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        await hypervisor.attach_disk(uid, disk)
        before, layer = await the(hypervisor, running), world.layer(disk.path)
        await hypervisor.snapshot_disks(uid, {volume_of(disk): layer}, Quiesce(QuiesceMode.NEVER))
        if paused:
            await hypervisor.pause(uid)
        noted: list[tuple[DomainState, bool]] = []

        async def merged() -> None:
            now = await the(hypervisor, running)
            noted.append((now.state, disk.path in {one.path for one in now.disks}))

        for _ in range(2):
            await hypervisor.merge_layers(uid, volume_of(disk), layer.path, disk.path, lambda *_: None, merged)
        state = DomainState.PAUSED if paused else DomainState.RUNNING
        assert noted == [(DomainState.PAUSED, True), (state, True)]
        after = await the(hypervisor, running)
        assert after == replace(before, state=state)
        assert after in await hypervisor.domains()

    async def test_merging_in_the_middle_does_not_touch_what_the_guest_writes_to(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        await hypervisor.attach_disk(uid, disk)
        one = world.layer(disk.path)
        two = world.layer(one.path)
        for layer in (one, two):
            await hypervisor.snapshot_disks(uid, {volume_of(disk): layer}, Quiesce(QuiesceMode.NEVER))
        before, noted = await the(hypervisor, running), list[DomainState]()

        async def merged() -> None:
            noted.append((await the(hypervisor, running)).state)

        for _ in range(2):
            await hypervisor.merge_layers(uid, volume_of(disk), one.path, disk.path, lambda *_: None, merged)
        assert noted == [DomainState.RUNNING] * 2
        assert await the(hypervisor, running) == before
        await hypervisor.force_off(uid)
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.merge_layers(uid, volume_of(disk), two.path, disk.path, lambda *_: None, merged)
        assert caught.value.reason == "DiskNotAttached"

    # Copying a disk to another place

    @pytest.mark.parametrize("paused", [False, True])
    async def test_a_guest_goes_over_to_a_copy_and_goes_on_when_that_is_noted(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, paused: bool
    ) -> None:
        uid, disk = running.marks.uid, replace(world.volume(), qos=LIMITS[0])
        copy, volume = replace(world.volume(), volume=disk.volume), volume_of(disk)
        await hypervisor.attach_disk(uid, disk)
        if paused:
            await hypervisor.pause(uid)
        before, noted = await the(hypervisor, running), list[tuple[DomainState, str]]()

        async def place() -> tuple[DomainState, str, str | None]:
            now = await the(hypervisor, running)
            assert now in await hypervisor.domains()
            (found,) = (one for one in now.disks if one.volume == volume)
            return now.state, found.path, found.copied_to

        async def switched() -> None:
            noted.append((await place())[:2])

        for _ in range(2):
            await hypervisor.copy_disk(uid, copy, lambda *_: None)
            assert await place() == (before.state, disk.path, copy.path)
        for _ in range(2):
            await hypervisor.switch_disk(uid, volume, copy.path, switched)
            assert await place() == (before.state, copy.path, None)
        assert noted == [(DomainState.PAUSED, copy.path), (before.state, copy.path)]
        await hypervisor.copy_disk(uid, copy, lambda *_: None)
        assert await place() == (before.state, copy.path, None)
        assert (await manner(hypervisor, running, disk))[0] == disk.qos
        layer = world.layer(copy.path)
        await hypervisor.snapshot_disks(uid, {volume: layer}, Quiesce(QuiesceMode.NEVER))
        assert await place() == (before.state, layer.path, None)
        await hypervisor.force_off(uid)
        assert layer.path in {one.path for one in (await the(hypervisor, running)).disks}

    async def test_disks_that_are_switched_at_once_are_halted_for_one_after_the_other(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disks = running.marks.uid, [world.volume() for _ in range(2)]
        copies = [replace(world.volume(), volume=disk.volume) for disk in disks]
        for disk, copy in zip(disks, copies, strict=True):
            await hypervisor.attach_disk(uid, disk)
            await hypervisor.copy_disk(uid, copy, lambda *_: None)
        states: list[DomainState] = []

        async def switched() -> None:
            for _ in range(3):
                states.append((await the(hypervisor, running)).state)
                await asyncio.sleep(0)

        switches = (hypervisor.switch_disk(uid, volume_of(copy), copy.path, switched) for copy in copies)
        await asyncio.gather(*switches)
        assert states == [DomainState.PAUSED] * 6
        after = await the(hypervisor, running)
        assert after.state is DomainState.RUNNING
        assert {copy.path for copy in copies} <= {one.path for one in after.disks}

    async def test_what_is_off_has_what_it_went_over_to(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        copy = replace(world.volume(), volume=disk.volume)
        await hypervisor.attach_disk(uid, disk)
        await hypervisor.copy_disk(uid, copy, lambda *_: None)
        await hypervisor.switch_disk(uid, volume_of(disk), copy.path, _nothing)
        await hypervisor.force_off(uid)
        paths = {one.path for one in (await the(hypervisor, running)).disks}
        assert copy.path in paths and disk.path not in paths

    async def test_a_copy_that_is_given_up_leaves_the_guest_with_what_it_had(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        copy, other = (replace(world.volume(), volume=disk.volume) for _ in range(2))
        await hypervisor.attach_disk(uid, disk)
        before = await the(hypervisor, running)
        await hypervisor.copy_disk(uid, copy, lambda *_: None)
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.copy_disk(uid, other, lambda *_: None)
        assert caught.value.reason == "CopyFailed"
        for _ in range(2):
            await hypervisor.end_copy(uid, volume_of(disk))
            assert await the(hypervisor, running) == before
        with pytest.raises(HypervisorError) as caught:
            await hypervisor.switch_disk(uid, volume_of(disk), copy.path, _nothing)
        assert caught.value.reason == "CopyFailed"
        assert await the(hypervisor, running) == before
        await hypervisor.copy_disk(uid, other, lambda *_: None)
        await hypervisor.switch_disk(uid, volume_of(disk), other.path, _nothing)
        assert other.path in {one.path for one in (await the(hypervisor, running)).disks}

    async def test_a_machine_that_ends_while_a_disk_is_copied_has_what_it_had(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid, disk = running.marks.uid, world.volume()
        copy = replace(world.volume(), volume=disk.volume)
        await hypervisor.attach_disk(uid, disk)
        await hypervisor.copy_disk(uid, copy, lambda *_: None)
        await world.crash(running)
        await stopped(hypervisor, running)
        (found,) = (one for one in (await the(hypervisor, running)).disks if one.volume == disk.volume)
        assert (found.path, found.copied_to) == (disk.path, None)
        for machine in (uid, str(uuid.uuid4())):
            for attempt in (
                hypervisor.copy_disk(machine, copy, lambda *_: None),
                hypervisor.switch_disk(machine, volume_of(disk), copy.path, _nothing),
            ):
                with pytest.raises(HypervisorError) as caught:
                    await attempt
                assert caught.value.reason == "DiskNotAttached"
            await hypervisor.end_copy(machine, volume_of(disk))

    # Ending

    async def test_the_power_button_reaches_the_guest(
        self, hypervisor: Hypervisor, booted: DomainSpec, heard: Heard
    ) -> None:
        heard.clear()
        await hypervisor.power_button(booted.marks.uid)
        await heard.about(booted.marks.uid)
        domain = await stopped(hypervisor, booted)
        assert domain.exit_reason is ExitReason.SHUTDOWN
        assert domain.started_at is None
        assert domain.marks == booted.marks
        await hypervisor.power_button(booted.marks.uid)
        assert await the(hypervisor, booted) == domain

    async def test_force_off(self, hypervisor: Hypervisor, running: DomainSpec, heard: Heard) -> None:
        await hypervisor.start(running)
        heard.clear()
        for _ in range(2):
            await hypervisor.force_off(running.marks.uid)
            domain = await the(hypervisor, running)
            assert (domain.state, domain.exit_reason) == (DomainState.STOPPED, ExitReason.DESTROYED)
        await heard.about(running.marks.uid)

    async def test_force_off_of_a_paused_machine(self, hypervisor: Hypervisor, running: DomainSpec) -> None:
        await hypervisor.pause(running.marks.uid)
        await hypervisor.force_off(running.marks.uid)
        domain = await the(hypervisor, running)
        assert (domain.state, domain.exit_reason) == (DomainState.STOPPED, ExitReason.DESTROYED)

    async def test_a_sudden_death_is_a_crash(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec, heard: Heard
    ) -> None:
        heard.clear()
        await world.crash(running)
        await heard.about(running.marks.uid)
        assert (await stopped(hypervisor, running)).exit_reason is ExitReason.CRASHED

    async def test_a_machine_that_ended_can_start_again(
        self, world: World, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        first = await the(hypervisor, running)
        await world.crash(running)
        await stopped(hypervisor, running)
        second = await hypervisor.start(replace(running, marks=replace(running.marks, epoch=2, restarts=1), cpus=2))
        assert second.state is DomainState.RUNNING
        assert second.marks.restarts == 1
        assert first.started_at is not None
        assert second.started_at is not None
        assert second.started_at > first.started_at

    @pytest.mark.parametrize("on", [True, False])
    async def test_remove(self, hypervisor: Hypervisor, running: DomainSpec, heard: Heard, on: bool) -> None:
        if not on:
            await hypervisor.force_off(running.marks.uid)
        heard.clear()
        for _ in range(2):
            await hypervisor.remove(running.marks.uid)
            assert await hypervisor.domain(running.marks.uid) is None
            assert running.marks.uid not in [domain.marks.uid for domain in await hypervisor.domains()]
            assert running.marks.uid not in [domain.uuid for domain in await hypervisor.foreign()]
        await heard.about(running.marks.uid)
        assert (await hypervisor.start(running)).state is DomainState.RUNNING

    async def test_verbs_about_one_machine_at_once_end_as_the_last_one_says(
        self, hypervisor: Hypervisor, running: DomainSpec
    ) -> None:
        uid = running.marks.uid
        await asyncio.gather(
            hypervisor.pause(uid),
            hypervisor.resume(uid),
            hypervisor.mark(uid, replace(running.marks, epoch=5)),
            hypervisor.force_off(uid),
            hypervisor.start(replace(running, marks=replace(running.marks, epoch=6))),
            hypervisor.pause(uid),
        )
        domain = await the(hypervisor, running)
        assert domain.state is DomainState.PAUSED
        assert domain.marks.epoch == 6
