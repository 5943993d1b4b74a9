"""The libvirt driver against a libvirtd and QEMU guests of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ipaddress
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import libvirt
import pytest

from kumulus.api.compute import PowerState
from kumulus.api.disks import DriveBus
from kumulus.api.hardware import Shape, WatchdogAction
from kumulus.api.image_order import HttpFetch
from kumulus.api.qos import UNLIMITED, Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.hypervisor.domain import (
    TRAY_LOCKED,
    AttachedDrive,
    DomainDisk,
    DomainDrive,
    DomainSpec,
    DomainState,
    ExitReason,
    GuestSays,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.marks import HOLD_NAMESPACE as HOLD
from kumulus_agents.hypervisor.libvirt.marks import domain_name
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError, StoredVolume
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from kumulus_agents.storage.source import BlockSource, FileSource, LayerFile
from kumulus_agents.storage.tracking import Extent
from tests.contract import guest
from tests.contract.guest import Guest
from tests.contract.hypervisor import Heard, HypervisorContract, detached, eventually, stopped, the, volume_of
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.contract.snapshots import linked_to, of_snapshot
from tests.patience import PATIENCE
from tests.unit.storage.material import image_ref, iso, pool_ref
from tests.unit.storage.server import Answer, serving

pytestmark = pytest.mark.libvirt

CHECKOUT = Path(__file__).parents[2]
FROZE, THAWED = "GUEST-FROZE", "GUEST-THAWED"


@pytest.fixture
def world(libvirtd: PrivateLibvirtd, images: guest.Disks, tmp_path: Path) -> Iterator[LibvirtWorld]:
    world = LibvirtWorld(libvirtd, images, tmp_path)
    try:
        yield world
    finally:
        world.clear()


class TestLibvirt(HypervisorContract):
    """The contract."""


@contextlib.asynccontextmanager
async def connected(world: LibvirtWorld, **settings: object) -> AsyncIterator[tuple[LibvirtHypervisor, Heard]]:
    """A driver of the host, and what it says."""
    driver, heard = world.driver(**settings), Heard()
    await driver.connect(heard)
    try:
        await heard.about("")
        heard.clear()
        yield driver, heard
    finally:
        await driver.close()


def open_files() -> int:
    """How many files this process has open, without those of what is garbage: a call that failed because a connection
    broke has the connection in its traceback."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


async def restarted(world: LibvirtWorld, heard: Heard) -> None:
    """Kill libvirtd, start it again, and wait for the driver to have noticed."""
    await world.cut()
    heard.clear()
    await world.heal()
    await heard.about("", 5)


class TestExits:
    """Why a run ended."""

    @pytest.mark.parametrize(
        ("kind", "why"), [(Guest.POWEROFF, ExitReason.SHUTDOWN), (Guest.PANIC, ExitReason.CRASHED)]
    )
    async def test_a_guest_that_ends_by_itself(self, world: LibvirtWorld, kind: Guest, why: ExitReason) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec(kind)
            await driver.start(spec)
            assert (await stopped(driver, spec)).exit_reason is why

    async def test_a_reboot_is_no_exit(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec(Guest.REBOOT)
            first = await driver.start(spec)
            await eventually(lambda: world.console(spec).count(guest.READY) > 1, "the guest did not reboot", 90)
            now = await the(driver, spec)
            assert now.state is DomainState.RUNNING
            assert now.started_at == pytest.approx(first.started_at, abs=0.01)

    async def test_a_sigterm_from_outside_is_not_taken_for_a_guest_that_powered_off(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await driver.start(spec)
            os.kill(world.qemu(spec), signal.SIGTERM)
            assert (await stopped(driver, spec)).exit_reason is ExitReason.DESTROYED

    async def test_a_death_while_libvirtd_is_gone_is_a_crash(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec = world.spec()
            await driver.start(spec)
            qemu = world.qemu(spec)
            await world.cut()
            os.kill(qemu, signal.SIGKILL)
            heard.clear()
            await world.heal()
            await heard.about("", 5)
            assert (await stopped(driver, spec)).exit_reason is ExitReason.CRASHED

    async def test_a_guest_that_powers_off_while_libvirtd_is_gone_has_shut_down(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec = world.spec(Guest.POWEROFF)
            await driver.start(spec)
            await world.cut()
            await eventually(lambda: "Power down" in world.console(spec), "the guest did not power off", 60)
            heard.clear()
            await world.heal()
            await heard.about("", 5)
            assert (await stopped(driver, spec)).exit_reason is ExitReason.SHUTDOWN

    async def test_a_restart_of_libvirtd_does_not_make_the_driver_forget(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec = world.spec()
            await driver.start(spec)
            await world.crash(spec)
            await stopped(driver, spec)
            await restarted(world, heard)
            assert (await the(driver, spec)).exit_reason is ExitReason.CRASHED


class TestConnection:
    """libvirtd comes and goes."""

    async def test_ten_restarts_leave_the_guest_alone_and_nothing_behind(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec = world.spec()
            await driver.start(spec)
            before, qemu = await the(driver, spec), world.qemu(spec)
            await restarted(world, heard)
            files = open_files()
            for _ in range(9):
                await restarted(world, heard)
                assert await the(driver, spec) == before
            assert world.qemu(spec) == qemu
            await eventually(lambda: open_files() <= files, "files stayed open")

    async def test_where_nobody_listens_it_goes_on_trying(self, tmp_path: Path) -> None:
        uri = f"qemu+unix:///system?socket={tmp_path}/nobody"
        driver = LibvirtHypervisor(LibvirtSettings(uri=uri))
        await driver.connect(Heard())

        async def tried() -> bool:
            with pytest.raises(HypervisorError) as caught:
                await driver.domains()
            assert caught.value.reason == "HypervisorUnavailable"
            return "nobody" in str(caught.value)

        await eventually(tried, "the driver did not say what it cannot reach")
        await driver.close()

    async def test_a_libvirtd_that_hangs_holds_up_nobody_for_ever(self, world: LibvirtWorld) -> None:
        spec = world.spec()
        async with connected(world) as (driver, _):
            await driver.start(spec)
        async with connected(world, read_timeout=0.5, verb_timeout=0.5) as (driver, _):
            with world.libvirtd.hanging():
                for attempt in (driver.domains(), driver.pause(spec.marks.uid), driver.resume(spec.marks.uid)):
                    with pytest.raises(HypervisorError) as caught:
                        await attempt
                    assert caught.value.reason == "HypervisorTimeout"

            async def answers() -> bool:
                with contextlib.suppress(HypervisorError):
                    await driver.resume(spec.marks.uid)
                    return (await the(driver, spec)).state is DomainState.RUNNING
                return False

            await eventually(answers, "the driver did not recover")


class TestNeighbours:
    """Others use the same libvirt."""

    async def test_a_copy_of_ours_is_foreign(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await driver.start(spec)
            copy = world.copy(spec)
            assert [domain.uuid for domain in await driver.foreign()] == [copy]
            await driver.remove(copy)
            await driver.mark(copy, replace(spec.marks, uid=copy))
            assert [domain.uuid for domain in await driver.foreign()] == [copy]
            assert [domain.marks.uid for domain in await driver.domains()] == [spec.marks.uid]

    async def test_a_foreign_domain_shows_its_size(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            foreign = await world.plant()
            (found,) = await driver.foreign()
            assert (found.uuid, found.state, found.cpus, found.memory) == (foreign, "running", 1, 32 << 20)
            assert found.name.startswith("by-hand")

    async def test_a_foreign_domain_with_our_name_is_a_conflict(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await world.plant(domain_name(spec.marks.uid), exact=True)
            with pytest.raises(HypervisorError) as caught:
                await driver.start(spec)
            assert (caught.value.reason, caught.value.retryable) == ("DomainConflict", False)

    async def test_a_disk_that_another_machine_uses_is_not_shared(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            first, second = world.spec(), world.spec()
            await driver.start(first)
            with pytest.raises(HypervisorError) as caught:
                await driver.start(replace(second, disks=first.disks))
            assert caught.value.reason == "DiskInUse"

    async def test_what_others_do_to_ours_is_seen(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec = world.spec()
            uid = spec.marks.uid
            await driver.start(spec)
            heard.clear()
            world.virsh("destroy", uid)
            await heard.about(uid)
            assert (await stopped(driver, spec)).exit_reason is ExitReason.DESTROYED
            world.virsh("start", uid)
            assert (await the(driver, spec)).state is DomainState.RUNNING
            await driver.mark(uid, spec.marks)
            assert (await the(driver, spec)).started_at is not None

    async def test_a_machine_that_somebody_undefined_still_obeys(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await driver.start(spec)
            world.virsh("undefine", spec.marks.uid)
            wanted = replace(spec.marks, epoch=2, wanted=PowerState.STOPPED)
            await driver.mark(spec.marks.uid, wanted)
            assert (await the(driver, spec)).marks == wanted
            await driver.remove(spec.marks.uid)
            assert await driver.domain(spec.marks.uid) is None

    async def test_a_state_that_somebody_saved_is_not_resumed(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.guest()
            await driver.start(spec)
            await world.booted(spec)
            world.virsh("managedsave", spec.marks.uid)
            assert (await the(driver, spec)).state is DomainState.STOPPED
            await driver.start(spec)
            await eventually(lambda: world.console(spec).count(guest.READY) == 2, "the guest did not boot anew", 60)
            await driver.remove(spec.marks.uid)

    @pytest.mark.parametrize("place", ["virConnect.defineXML", "virDomain.createWithFlags", "virDomain.setMetadata"])
    async def test_an_agent_killed_while_it_starts_a_machine_finds_it(self, world: LibvirtWorld, place: str) -> None:
        spec = world.spec()
        await killed(world, place, spec)
        async with connected(world) as (driver, _):
            assert (await the(driver, spec)).marks == spec.marks
            domain = await driver.start(spec)
            assert domain.state is DomainState.RUNNING
            assert domain.started_at is not None
            assert [domain.marks for domain in await driver.domains()] == [spec.marks]


class TestVolumes:
    """Disks that come and go, as a guest sees them."""

    async def test_a_guest_sees_a_volume_come_grow_and_go(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec, volume = world.spec(Guest.DISKS), world.volume()
            uid = spec.marks.uid
            await driver.start(spec)
            await world.booted(spec)

            async def sees(disks: str) -> None:
                def seen() -> bool:
                    said = [line for line in world.console(spec).splitlines() if line.startswith("GUEST-DISKS")]
                    return bool(said) and said[-1].strip() == f"GUEST-DISKS{disks}."

                await eventually(seen, f"the guest did not see{disks or ' no disk'}", 60)

            await driver.attach_disk(uid, volume)
            await sees(f" data:{16 << 20}")
            await driver.resize_disk(uid, volume_of(volume), 32 << 20)
            await sees(f" data:{32 << 20}")
            await driver.detach_disk(uid, volume_of(volume))
            await detached(driver, spec, volume)
            await sees("")
            assert ">data<" not in world.virsh("dumpxml", uid)
            assert ">data<" not in world.virsh("dumpxml", "--inactive", uid)

    async def test_a_guest_sees_a_block_device_that_has_grown(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """As a pool of the driver lvm grows it: first the device, then QEMU is told."""
        file = tmp_path / "device"
        await asyncio.to_thread(file.touch)
        os.truncate(file, 16 << 20)
        device = await told("losetup", "--find", "--show", str(file))
        try:
            async with connected(world) as (driver, _):
                spec, volume = world.spec(Guest.DISKS), str(uuid.uuid4())
                disk, uid = DomainDisk("data", BlockSource(device), "raw", volume=volume), spec.marks.uid
                await driver.start(spec)
                await world.booted(spec)
                await driver.attach_disk(uid, disk)
                assert [(one.path, one.volume) for one in (await the(driver, spec)).disks if one.volume] == [
                    (device, volume)
                ]
                await eventually(lambda: f" data:{16 << 20}." in world.console(spec), "the guest saw no disk", 60)
                os.truncate(file, 32 << 20)
                await told("losetup", "--set-capacity", device)
                for _ in range(2):
                    await driver.resize_disk(uid, volume, 32 << 20)
                await eventually(lambda: f" data:{32 << 20}." in world.console(spec), "it did not see it grow", 60)
                await driver.detach_disk(uid, volume)
                await detached(driver, spec, disk)
                await driver.remove(uid)
        finally:
            await told("losetup", "--detach", device)

    async def test_a_volume_is_where_it_was_after_a_restart(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec, volume = world.spec(Guest.DISKS), world.volume()
            await driver.start(replace(spec, disks=(*spec.disks, volume)))
            said = f"GUEST-DISKS data:{16 << 20}."
            await eventually(lambda: said in world.console(spec), "the guest did not see the volume", 60)

    async def test_a_guest_is_as_fast_as_its_limit_lets_it(self, world: LibvirtWorld) -> None:
        rate = 256 << 10
        async with connected(world) as (driver, _):
            spec, volume = world.spec(Guest.READ), replace(world.volume(), qos=Qos(bytes_per_second=rate))
            uid = spec.marks.uid
            await driver.start(replace(spec, disks=(*spec.disks, volume)))

            def read() -> int:
                said = world.virsh("domblkstat", uid, "sda")
                return int(re.search(r"rd_bytes (\d+)", said)[1])

            await eventually(lambda: read() > rate, "the guest did not read", 60)
            since, before = (
                time.monotonic(),
                read(),
            )  # the clock around what is read: a busy machine lets time pass between
            await eventually(lambda: read() > before + rate, "it does not read at all", 30)
            assert read() - before <= 2.5 * rate * (time.monotonic() - since)
            await driver.limit_disk(uid, volume_of(volume), UNLIMITED)
            before, seconds = read(), 10
            much = 2 * seconds * PATIENCE * rate  # more than the limit would let pass until nobody waits any more
            await eventually(lambda: read() > before + much, "it is held back by a limit that is gone", seconds)

    async def test_a_limit_that_somebody_else_sets_is_heard_of(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, heard):
            spec, volume = world.spec(), world.volume()
            uid = spec.marks.uid
            await driver.start(replace(spec, disks=(*spec.disks, volume)))
            await driver.domains()
            heard.clear()
            world.virsh("blkdeviotune", uid, "sda", "--total-iops-sec", "7", "--live")
            await heard.about(uid)
            for seen in (await the(driver, spec), *await driver.domains()):
                assert [disk.qos for disk in seen.disks if disk.volume] == [Qos(iops=7)]
            await driver.limit_disk(uid, volume_of(volume), Qos(write_iops=9))
            told = dict(re.findall(r"(\w+) *: (\d+)", world.virsh("blkdeviotune", uid, "sda", "--live")))
            assert {name: value for name, value in told.items() if value != "0"} == {"write_iops_sec": "9"}

    @pytest.mark.parametrize("place", ["virDomain.attachDeviceFlags", "virDomain.detachDeviceFlags"])
    async def test_who_dies_between_definition_and_guest_does_the_rest_the_next_time(
        self, world: LibvirtWorld, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """The first of two calls of libvirt works, the second does not."""
        attach = place.endswith("attachDeviceFlags")
        async with connected(world) as (driver, _):
            spec, volume = world.spec(), world.volume()
            uid = spec.marks.uid
            await driver.start(spec)
            if not attach:
                await driver.attach_disk(uid, volume)
            method = place.partition(".")[2]
            original, calls = getattr(libvirt.virDomain, method), iter((True, False))

            def once(*arguments: object) -> object:
                if not next(calls):
                    raise libvirt.libvirtError("the agent has died")
                return original(*arguments)

            monkeypatch.setattr(libvirt.virDomain, method, once)
            with pytest.raises(HypervisorError):
                await (driver.attach_disk(uid, volume) if attach else driver.detach_disk(uid, volume_of(volume)))
            monkeypatch.undo()
            assert (">data<" in world.virsh("dumpxml", "--inactive", uid)) is attach
            assert (volume.volume in (await the(driver, spec)).volumes) is not attach
            if attach:
                await driver.attach_disk(uid, volume)
                assert (await the(driver, spec)).volumes == {volume.volume}
            else:
                await driver.detach_disk(uid, volume_of(volume))
                await detached(driver, spec, volume)

    async def test_what_a_guest_has_open_is_grown_by_its_emulator_and_by_nobody_else(
        self, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        """A real pool beside a real guest: QEMU's locks keep two writers apart."""
        pool = DirStorage(pool_ref(tmp_path / "pool"), StorageSettings(roots=(PurePosixPath(tmp_path),), readers=()))
        stored = await pool.ensure_volume(volume := str(uuid.uuid4()), 16 << 20, None, False)
        copies = VolumeOrigin(volume=volume)
        async with connected(world) as (driver, _):
            spec, disk = world.spec(), DomainDisk("data", stored.source, stored.format, volume=volume)
            uid = spec.marks.uid
            await driver.start(spec)
            await driver.attach_disk(uid, disk)
            for attempt in (
                pool.grow_volume(volume, 32 << 20),
                pool.ensure_volume(str(uuid.uuid4()), None, copies, False),
            ):
                with pytest.raises(StorageError) as refused:
                    await attempt
                assert refused.value.reason == "VolumeInUse"
            grown = await pool.grow_volume(volume, 32 << 20, lambda size: driver.resize_disk(uid, volume, size))
            assert grown.virtual_size == 32 << 20
            await driver.detach_disk(uid, volume)
            await detached(driver, spec, disk)
            assert (await pool.grow_volume(volume, 64 << 20)).virtual_size == 64 << 20
            await pool.ensure_volume(str(uuid.uuid4()), None, copies, False)

    async def test_a_new_driver_finds_them_and_hears_of_what_others_detach(self, world: LibvirtWorld) -> None:
        spec, volume = world.spec(), world.volume()
        async with connected(world) as (driver, _):
            await driver.start(spec)
            await driver.attach_disk(spec.marks.uid, volume)
        async with connected(world) as (driver, heard):
            assert (await the(driver, spec)).volumes == {volume.volume}
            await driver.domains()
            world.virsh("detach-device-alias", spec.marks.uid, f"ua-volume-{volume.volume}", "--live")
            await heard.about(spec.marks.uid)
            assert (await detached(driver, spec, volume)) in await driver.domains()


class TestSize:
    """CPUs and memory that come and go."""

    async def test_a_guest_takes_what_comes_and_gives_it_back(self, world: LibvirtWorld) -> None:
        small = 224 << 20  # with room for more Linux takes 64 MiB for bounce buffers
        spec = replace(world.spec(Guest.SIZE), memory=small, max_cpus=2, max_memory=small + (128 << 20))
        uid = spec.marks.uid

        def said() -> list[str]:
            return re.findall(r"GUEST-SIZE:(\d+ \d+)\.", world.console(spec))

        async with connected(world) as (driver, heard):
            await driver.start(spec)
            await eventually(lambda: bool(said()), "the guest did not say its size", 60)
            cpus, first = map(int, said()[-1].split())
            assert cpus == 1
            heard.clear()
            await driver.resize(uid, 2, small + (128 << 20))
            await heard.about(uid)
            await eventually(lambda: said()[-1] == f"2 {first + 128}", "the guest did not take what came")
            domain = await the(driver, spec)
            assert (domain.cpus, domain.memory) == (2, small + (128 << 20))
            heard.clear()
            await driver.resize(uid, 2, small)
            await eventually(lambda: said()[-1] == f"2 {first}", "the guest did not give it back")
            await heard.about(uid)
            assert (await the(driver, spec)).memory == small

    async def test_a_guest_without_the_driver_takes_no_memory(self, world: LibvirtWorld) -> None:
        spec = replace(world.spec(), max_memory=256 << 20)
        async with connected(world) as (driver, _):
            await driver.start(spec)
            await driver.resize(spec.marks.uid, spec.cpus, 224 << 20)
            domain = await the(driver, spec)
            assert domain.memory == spec.memory, "what the guest has is told, not what it was asked to take"
            assert domain.growth is not None and domain.growth.memory_asked == 224 << 20


class TestGuestAgent:
    """What a guest says of itself."""

    async def test_a_guest_says_what_it_is(self, world: LibvirtWorld) -> None:
        spec = world.spec(Guest.AGENT)
        uid = spec.marks.uid
        async with connected(world) as (driver, _):
            await driver.start(spec)
            assert await driver.ask_guest(uid) is None and not (await the(driver, spec)).agent

            async def has_agent() -> bool:
                return any(domain.agent for domain in await driver.domains())

            await eventually(has_agent, "no agent opens its port", 60)
            says = await driver.ask_guest(uid)
            assert says == GuestSays("web.example", "Tiny 1", "7.2.0", ("10.0.0.2",))
            await driver.force_off(uid)
            assert await driver.ask_guest(uid) is None and not await has_agent()

    @pytest.mark.wide
    async def test_a_guest_that_never_answers_is_given_up_soon(self, world: LibvirtWorld) -> None:
        spec = world.spec(Guest.MUTE)
        uid = spec.marks.uid
        async with connected(world) as (driver, _):
            await driver.start(spec)
            await eventually(lambda: "state='connected'" in world.virsh("dumpxml", uid), "the port is not open", 60)
            began = time.monotonic()
            assert await driver.ask_guest(uid) is None
            assert 1 < time.monotonic() - began < 4 * PATIENCE, "libvirt itself would wait for 5 s"
            await driver.pause(uid)
            await driver.resume(uid)


class TestWatchdog:
    """A guest that hangs."""

    async def test_it_is_booted_again_in_the_same_run(self, world: LibvirtWorld) -> None:
        spec = replace(world.spec(Guest.BARK), shape=Shape(watchdog=WatchdogAction.RESET))
        async with connected(world) as (driver, _):
            begun = await driver.start(spec)
            await eventually(lambda: world.console(spec).count("W") > 1, "it was not booted again")
            now = await the(driver, spec)
            assert (now.state, now.started_at) == (DomainState.RUNNING, begun.started_at)

    @pytest.mark.wide
    async def test_it_ends_as_by_a_crash(self, world: LibvirtWorld) -> None:
        spec = replace(world.spec(Guest.BARK), shape=Shape(watchdog=WatchdogAction.POWER_OFF))
        async with connected(world) as (driver, _):
            await driver.start(spec)
            ended = await stopped(driver, spec)
            assert ended.exit_reason is ExitReason.CRASHED and world.console(spec).count("W") == 1


UEFI_MEMORY = 256 << 20


class TestFirmware:
    """UEFI, Secure Boot and the TPM, and what they keep."""

    @pytest.mark.parametrize("uefi", [False, pytest.param(True, marks=pytest.mark.wide)])
    async def test_what_a_guest_keeps_in_its_tpm_lasts_as_long_as_the_machine(
        self, world: LibvirtWorld, uefi: bool
    ) -> None:
        """The TPM counts how often it was started."""
        spec = replace(world.spec(Guest.EFI), shape=Shape(uefi=uefi, tpm=True))
        spec = replace(spec, memory=UEFI_MEMORY) if uefi else spec
        uid, firmware = spec.marks.uid, "yes" if uefi else "no"

        def starts() -> list[str]:
            return re.findall(rf"GUEST-EFI:{firmware} TPM:([0-9]+)\.", world.console(spec))

        async with connected(world) as (driver, _):
            await driver.start(spec)
            await eventually(lambda: len(starts()) == 1, "the guest did not find its TPM", 90)
            await driver.force_off(uid)
            kept = {path.name for path in world.files_about(uid)}
            assert uid in kept, "the state of the TPM"
            assert not uefi or f"kumulus-{uid}_VARS.fd" in kept, "the variables of the firmware"
            await driver.start(spec)
            await eventually(lambda: len(starts()) == 2, "the guest did not boot again", 90)
            first, second = map(int, starts())
            assert second == first + 1
            await driver.remove(uid)
            assert world.files_about(uid) == []

    async def test_secure_boot_starts_nothing_that_is_not_signed(self, world: LibvirtWorld) -> None:
        spec = replace(world.spec(Guest.EFI), memory=UEFI_MEMORY, shape=Shape(uefi=True, secure_boot=True))
        async with connected(world) as (driver, _):
            await driver.start(spec)
            await eventually(lambda: "Security Violation" in world.console(spec), "it did not refuse", 90)
            assert "GUEST-EFI" not in world.console(spec)


class TestDiscs:
    """Discs in drives, as a guest sees them."""

    async def test_a_guest_reads_what_is_inserted_and_boots_from_it(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """From a web server into a real pool, from there into a drive: what is an image is a disc."""
        pool = DirStorage(
            pool_ref(tmp_path / "pool"),
            StorageSettings(
                roots=(PurePosixPath(tmp_path),),
                readers=(),
                fetch=FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),)),
            ),
        )
        await pool.prepare()
        discs: dict[str, FileSource] = {}
        async with serving() as server:
            for label in ("first", "second"):
                data = iso(label=label)
                source = HttpFetch(url=server.on(f"/{label}", Answer(data)))
                image = await pool.import_image(image_ref(data, "iso"), source, lambda _: None)
                discs[label] = FileSource(image.path)
        async with connected(world) as (driver, _):
            empty, first = DomainDrive("cd", DriveBus.SCSI), DomainDrive("boot", DriveBus.SATA, discs["first"], 1)
            spec = replace(world.spec(Guest.DISC), drives=(empty,))
            uid = spec.marks.uid
            await driver.start(spec)
            await world.booted(spec)

            async def sees(label: str) -> None:
                def seen() -> bool:
                    said = [line for line in world.console(spec).splitlines() if line.startswith("GUEST-DISC:")]
                    return said[-1].strip() == f"GUEST-DISC:{label}." if said else not label

                await eventually(seen, f"the guest did not see the disc {label!r}", 60)

            async def change(disc: FileSource | None) -> None:
                async def done() -> bool:
                    try:
                        await driver.change_disc(uid, "cd", disc)
                    except HypervisorError as error:  # it was reading just then
                        assert error.reason == TRAY_LOCKED
                        return False
                    return True

                await eventually(done, "the guest does not open the tray", 60)

            await sees("")
            for label, disc in (*discs.items(), ("", None), *discs.items()):
                await change(disc)
                await sees(label)
            bootable = replace(world.spec(), drives=(first,))
            bootable = replace(bootable, disks=[replace(disk, boot_order=2) for disk in bootable.disks])
            await driver.start(bootable)
            await eventually(lambda: "DISC-BOOTED" in world.console(bootable), "it did not boot from the disc", 60)

    async def test_a_guest_that_holds_the_tray_shut_is_not_forced_unless_asked(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            disc, spec = world.disc(), world.spec(Guest.TRAY)
            spec = replace(spec, drives=(DomainDrive("cd", DriveBus.SCSI, disc),))
            uid = spec.marks.uid
            await driver.start(spec)
            await eventually(
                lambda: "GUEST-DISC:installer" in world.console(spec), "the guest did not see the disc", 60
            )
            for _ in range(2):
                with pytest.raises(HypervisorError) as caught:
                    await driver.change_disc(uid, "cd", None)
                assert (caught.value.reason, caught.value.retryable) == (TRAY_LOCKED, True)
                assert tuple((await the(driver, spec)).drives) == (AttachedDrive("cd", disc.path),)
            await driver.change_disc(uid, "cd", None, force=True)
            assert tuple((await the(driver, spec)).drives) == (AttachedDrive("cd", None),)

    async def test_a_tray_that_a_reset_shut_takes_a_disc(self, world: LibvirtWorld) -> None:
        """A guest's driver resets its device as it starts: an open tray is shut, and QEMU tells nobody."""
        async with connected(world) as (driver, _):
            disc, spec = world.disc(), replace(world.spec(Guest.DISC), drives=(DomainDrive("cd", DriveBus.SCSI),))
            uid = spec.marks.uid

            def shut() -> bool:
                return '"tray_open":true' not in world.virsh("qemu-monitor-command", uid, "query-block")

            await driver.start(spec)
            world.virsh("qemu-monitor-command", uid, "blockdev-open-tray", '{"id": "ua-drive-cd"}')
            assert not shut()
            await eventually(shut, "the guest's driver did not start", 60)
            await driver.change_disc(uid, "cd", disc)
            await eventually(lambda: "GUEST-DISC:installer" in world.console(spec), "the guest sees no disc", 60)


class TestSnapshots:
    """What is in a snapshot, with a real pool and a QEMU that goes on writing. The witness is data."""

    async def test_each_snapshot_has_what_was_written_before_it(self, world: LibvirtWorld, tmp_path: Path) -> None:
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            assert world.guest_io(spec, volume, "write -P 1 0 4M") == ""
            snapshots = []
            for number in range(3):
                snapshots.append(await snapshot(driver, pool, spec, volume))
                assert world.guest_io(spec, volume, f"write -P {number + 2} {number}M 1M") == ""
            for number, one in enumerate(snapshots):
                copy = await pool.ensure_volume(str(uuid.uuid4()), None, of_snapshot(volume, one), False)
                has = [index + 2 if index < number else 1 for index in range(4)]
                assert reads(copy.path, *(f"-P {what} {index}M 1M" for index, what in enumerate(has)))
            await driver.force_off(spec.marks.uid)
            stored = await pool.volume(volume)
            assert stored is not None
            assert reads(stored.path, "-P 2 0 1M", "-P 3 1M 1M", "-P 4 2M 1M", "-P 1 3M 1M")

    async def test_a_guest_that_wakes_writes_above_what_was_kept_meanwhile(
        self, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        """The volume has another file on top than the one its memory tells of."""
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            assert world.guest_io(spec, volume, "write -P 1 0 4M") == ""
            await driver.suspend(spec.marks.uid)
            one = str(uuid.uuid4())
            await pool.begin_snapshot(volume, one)
            await pool.confirm_snapshot(volume, one, "2026-11-20T12:00:00Z", ())
            now = await pool.open_volume(volume)
            assert now is not None
            disk = DomainDisk("data", now.source, now.format, volume=volume, below=now.below)
            await driver.wake(replace(spec, disks=(*spec.disks, disk)))
            assert world.guest_io(spec, volume, "write -P 2 0 1M") == ""
            await driver.force_off(spec.marks.uid)
            assert reads(now.path, "-P 2 0 1M", "-P 1 1M 3M")
            kept = await pool.ensure_volume(str(uuid.uuid4()), None, of_snapshot(volume, one), False)
            assert reads(kept.path, "-P 1 0 4M")

    async def test_snapshots_that_go_while_the_guest_writes_take_nothing_along(
        self, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        """From the middle, from below, and the one below what is written; each block is written once more meanwhile."""
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            uid = spec.marks.uid
            world.guest_io(spec, volume, "write -P 1 0 16M")
            snapshots = []
            for number in range(4):
                snapshots.append(await snapshot(driver, pool, spec, volume))
                world.guest_io(spec, volume, f"write -P {number + 2} {number}M 1M")
            for round, place in enumerate((1, 0, 1)):
                await pool.forget_snapshot(volume, snapshots.pop(place))
                while (merge := await pool.next_merge(volume)) is not None:
                    merged = functools.partial(pool.merged, volume, merge)
                    work = driver.merge_layers(uid, volume, merge.upper, merge.lower, lambda *_: None, merged)
                    merging = asyncio.ensure_future(work)
                    world.guest_io(spec, volume, f"write -P {round + 16} {round + 8}M 1M")
                    await merging
            (kept,) = snapshots
            copy = await pool.ensure_volume(str(uuid.uuid4()), None, of_snapshot(volume, kept), False)
            assert reads(copy.path, "-P 2 0 1M", "-P 3 1M 1M", "-P 1 2M 14M")
            await pool.forget_snapshot(volume, kept)
            merge = await pool.next_merge(volume)
            assert merge is not None
            assert merge.active
            await driver.merge_layers(
                uid, volume, merge.upper, merge.lower, lambda *_: None, lambda: pool.merged(volume, merge)
            )
            world.guest_io(spec, volume, "write -P 32 15M 1M")
            assert [path.name for path in files_of(tmp_path, volume)] == [f"{volume}.qcow2"]
            await driver.force_off(uid)
            wanted = (2, 3, 4, 5, 1, 1, 1, 1, 16, 17, 18, 1, 1, 1, 1, 32)
            stored = await pool.volume(volume)
            assert stored is not None
            assert reads(stored.path, *(f"-P {what} {index}M 1M" for index, what in enumerate(wanted)))

    async def test_what_changed_is_told_across_snapshots_and_merges_of_a_guest_that_writes(
        self, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        """Incremental change lists, kept by QEMU in persistent bitmaps; in bytes it is never less than was written."""
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            uid = spec.marks.uid
            world.guest_io(spec, volume, "write -P 1 0 1M")
            one = await snapshot(driver, pool, spec, volume)
            world.guest_io(spec, volume, "write -P 2 1M 64k")
            two = await snapshot(driver, pool, spec, volume)
            world.guest_io(spec, volume, "write -P 3 3M 64k")
            three = await snapshot(driver, pool, spec, volume)
            world.guest_io(spec, volume, "write -P 4 5M 64k")
            assert await pool.changes(volume, None, one) == [Extent(0, 1 << 20)]
            assert await pool.changes(volume, one, three) == [Extent(1 << 20, 65536), Extent(3 << 20, 65536)]
            with pytest.raises(StorageError) as refused:
                await pool.changes(volume, one)
            assert refused.value.reason == "VolumeInUse"
            for gone in (two, three):
                await pool.forget_snapshot(volume, gone)
                while (merge := await pool.next_merge(volume)) is not None:
                    merged = functools.partial(pool.merged, volume, merge)
                    await driver.merge_layers(uid, volume, merge.upper, merge.lower, lambda *_: None, merged)
            world.guest_io(spec, volume, "write -P 5 7M 64k")
            await pool.grow_volume(volume, 32 << 20, lambda size: driver.resize_disk(uid, volume, size))
            await driver.detach_disk(uid, volume)
            await detached(driver, spec, DomainDisk("data", FileSource(""), "qcow2", volume=volume))
            assert await pool.changes(volume, one) == [Extent(at << 20, 65536) for at in (1, 3, 5, 7)]
            stored = await pool.volume(volume)
            assert stored is not None
            assert "in-use" not in inspected(stored.path)
            assert "kumulus" in inspected(stored.path)

    @pytest.mark.parametrize("end", ["QEMU", "agent"])
    async def test_a_death_between_the_switch_and_its_record_loses_nothing(
        self, world: LibvirtWorld, tmp_path: Path, end: str
    ) -> None:
        """The agent dies when the guest, halted, is about to write to the lower file. Either QEMU dies as well, or the
        next agent finds it."""
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            uid = spec.marks.uid
            world.guest_io(spec, volume, "write -P 1 0 16M")
            one = await snapshot(driver, pool, spec, volume)
            world.guest_io(spec, volume, "write -P 2 1M 1M")
            await pool.forget_snapshot(volume, one)
            merge = await pool.next_merge(volume)
            assert merge is not None

            async def die() -> None:
                raise RuntimeError("the agent has died")

            with pytest.raises(RuntimeError):
                await driver.merge_layers(uid, volume, merge.upper, merge.lower, lambda *_: None, die)
            assert (await the(driver, spec)).state is DomainState.PAUSED
            if end == "QEMU":
                await world.crash(spec)
                await stopped(driver, spec)
            else:
                (path,) = [disk.path for disk in (await the(driver, spec)).disks if disk.volume == volume]
                assert path == merge.lower
                await pool.adopt(volume, path)
                await driver.resume(uid)
                world.guest_io(spec, volume, "write -P 3 2M 1M", "flush")
                await world.crash(spec)
                await stopped(driver, spec)
            while (merge := await pool.next_merge(volume)) is not None:
                await pool.merge(volume, merge)
            stored = await pool.volume(volume)
            assert stored is not None
            assert (stored.below, files_of(tmp_path, volume)) == ((), [Path(stored.path)])
            third = 3 if end == "agent" else 1
            assert reads(stored.path, "-P 1 0 1M", "-P 2 1M 1M", f"-P {third} 2M 1M", "-P 1 3M 13M")

    async def test_a_snapshot_begun_and_given_up_loses_nothing(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """The agent dies between the new layer and the switch; the guest goes on below, and then its host loses power."""
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            one = str(uuid.uuid4())
            world.guest_io(spec, volume, "write -P 1 0 16M")
            await pool.begin_snapshot(volume, one, live=True)
            world.guest_io(spec, volume, "write -P 2 1M 1M", "flush")
            await world.crash(spec)
            await stopped(driver, spec)
            stored = await pool.volume(volume)
            assert stored is not None
            assert reads(stored.path, "-P 1 0 1M", "-P 2 1M 1M", "-P 1 2M 14M")
            await pool.begin_snapshot(volume, one)
            await pool.confirm_snapshot(volume, one, "2026-11-20T12:00:00Z", ())
            while (merge := await pool.next_merge(volume)) is not None:
                await pool.merge(volume, merge)
            copy = await pool.ensure_volume(str(uuid.uuid4()), None, of_snapshot(volume, one), False)
            assert reads(copy.path, "-P 1 0 1M", "-P 2 1M 1M", "-P 1 2M 14M")

    @pytest.mark.wide
    async def test_an_agent_that_never_answers_holds_up_nobody(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """It is a guest that did not come to rest; it is asked for no longer than that, and its disks obey meanwhile."""
        async with writing(world, tmp_path, Guest.MUTE) as (driver, pool, spec, volume):
            uid = spec.marks.uid
            await eventually(lambda: "state='connected'" in world.virsh("dumpxml", uid), "the port is not open", 60)
            world.guest_io(spec, volume, "write -P 1 0 1M")
            with pytest.raises(HypervisorError) as refused:
                await snapshot(driver, pool, spec, volume, Quiesce(QuiesceMode.REQUIRED, 1))
            assert refused.value.reason == "QuiesceFailed" and "within 1 seconds" in str(refused.value)
            other = world.volume()
            await driver.attach_disk(uid, other)
            one = str(uuid.uuid4())
            assert await taken(driver, pool, spec, volume, one, Quiesce(QuiesceMode.IF_POSSIBLE, 1)) == (
                Indication.ONLINE,
                Indication.QUIESCE_FAILED,
            )
            world.guest_io(spec, volume, "write -P 2 0 1M")
            copy = await pool.ensure_volume(str(uuid.uuid4()), None, of_snapshot(volume, one), False)
            assert reads(copy.path, "-P 1 0 1M")
            assert "kumulus-rest" in world.virsh("dumpxml", uid), "it is not forgotten that it may freeze yet"

    @pytest.mark.parametrize(
        "place",
        ["virDomain.setMetadata", "virDomain.suspend", "keep", "virDomain.snapshotCreateXML", "virDomain.resume"],
    )
    async def test_a_guest_that_a_dead_agent_held_goes_on_with_the_next(
        self, world: LibvirtWorld, tmp_path: Path, place: str
    ) -> None:
        async with writing(world, tmp_path) as (driver, pool, spec, volume):
            uid, kept = spec.marks.uid, world.volume()
            await driver.attach_disk(uid, kept)
            made = await pool.begin_snapshot(volume, str(uuid.uuid4()), live=True)
            job = (uid, {volume: LayerFile(made.path, made.format)}, frozenset({volume_of(kept)}))
            await killed(world, place, job)
            async with connected(world) as (successor, _):
                await eventually(functools.partial(is_free, successor, spec), "the guest is held", 30)
                assert HOLD not in world.virsh("dumpxml", uid)
                (path,) = [disk.path for disk in (await the(successor, spec)).disks if disk.volume == volume]
                await pool.adopt(volume, path)
                assert world.guest_io(spec, volume, "write -P 9 0 1M", "flush") == ""
                await successor.force_off(uid)
            assert reads((await pool.volume(volume) or pytest.fail("it is gone")).path, "-P 9 0 1M")

    @pytest.mark.wide
    async def test_the_file_systems_of_a_guest_that_is_held_are_at_rest_and_go_on(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec, volume = world.spec(Guest.AGENT), world.volume()
            uid = spec.marks.uid
            await driver.start(spec)
            await driver.attach_disk(uid, volume)
            await eventually(lambda: "state='connected'" in world.virsh("dumpxml", uid), "no agent opens its port", 60)
            said: list[str] = []

            async def keep() -> None:
                assert (await the(driver, spec)).state is DomainState.PAUSED
                said.append(world.console(spec))

            still = Still(frozenset({volume_of(volume)}), keep, 60)
            how = await driver.snapshot_disks(uid, {}, Quiesce(QuiesceMode.REQUIRED, 30), still=still)
            assert set(how) == {Indication.ONLINE, Indication.GUEST_AGENT}
            assert FROZE in said[0]
            assert THAWED not in said[0]
            await eventually(lambda: THAWED in world.console(spec), "its file systems stay frozen", 30)
            assert await is_free(driver, spec)
            for place in ("virDomain.fsFreeze", "keep", "virDomain.resume"):
                before = world.console(spec).count(THAWED)
                await killed(world, place, (uid, {}, still.volumes))
                await eventually(
                    lambda before=before: world.console(spec).count(FROZE) > before, "it was not frozen", 30
                )
                async with connected(world) as (successor, _):
                    await eventually(functools.partial(is_free, successor, spec), "the guest is held", 30)
                    await eventually(
                        lambda before=before: world.console(spec).count(THAWED) > before, "it stays frozen", 30
                    )

    async def test_no_header_decides_what_a_guest_gets_to_see(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """A guest that took over its QEMU can name any file as what its disk stands on."""
        secret = tmp_path / "secret"
        secret.write_bytes(b"s" * (1 << 20))
        async with connected(world) as (driver, _):
            spec, volume, other = world.spec(), world.volume(), world.volume()
            for disk in (volume, other):
                names_below(disk.path, secret)
            await driver.start(replace(spec, disks=(*spec.disks, volume)))
            await driver.attach_disk(spec.marks.uid, other)
            for disk in (volume, other):
                world.guest_io(spec, volume_of(disk), "flush")
            files = opened(world.qemu(spec))
            assert other.path in files
            assert str(secret) not in files


async def killed(world: LibvirtWorld, place: str, job: object) -> None:
    """Have an agent do that and die on the way."""
    command = [sys.executable, "-m", "tests.contract.doomed_agent", world.libvirtd.uri, place]
    agent = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, cwd=CHECKOUT)
    await agent.communicate(pickle.dumps(job))
    assert agent.returncode == -signal.SIGKILL


async def is_free(driver: LibvirtHypervisor, spec: DomainSpec) -> bool:
    """Whether the guest runs and nobody holds it."""
    domain = await the(driver, spec)
    return domain.state is DomainState.RUNNING and not domain.held


def content(path: str) -> bytes:
    """What is in the file."""
    return Path(path).read_bytes()


async def told(*command: str) -> str:
    """What a command says that ends well."""
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextlib.asynccontextmanager
async def writing(
    world: LibvirtWorld, directory: Path, kind: Guest = Guest.WAIT
) -> AsyncIterator[tuple[LibvirtHypervisor, DirStorage, DomainSpec, str]]:
    """A machine that is on and has a volume of 16 MiB of a real pool."""
    pool = DirStorage(pool_ref(directory / "pool"), StorageSettings(roots=(PurePosixPath(directory),), readers=()))
    volume, spec = str(uuid.uuid4()), world.spec(kind)
    stored = await pool.ensure_volume(volume, 16 << 20, None, False)
    async with connected(world) as (driver, _):
        await driver.start(spec)
        await driver.attach_disk(
            spec.marks.uid, DomainDisk("data", stored.source, stored.format, volume=volume, below=stored.below)
        )
        yield driver, pool, spec, volume


IF_POSSIBLE = Quiesce(QuiesceMode.IF_POSSIBLE)


async def snapshot(
    driver: LibvirtHypervisor, pool: DirStorage, spec: DomainSpec, volume: str, quiesce: Quiesce = IF_POSSIBLE
) -> str:
    """Take a snapshot of a machine that is on; its uid."""
    one = str(uuid.uuid4())
    await taken(driver, pool, spec, volume, one, quiesce)
    return one


async def taken(
    driver: LibvirtHypervisor, pool: DirStorage, spec: DomainSpec, volume: str, one: str, quiesce: Quiesce
) -> tuple[Indication, ...]:
    """Take the snapshot of that uid of a machine that is on; how far it can be trusted."""
    made = await pool.begin_snapshot(volume, one, live=True)
    layers = {volume: LayerFile(made.path, made.format)}
    how = await driver.snapshot_disks(spec.marks.uid, layers, quiesce)
    await pool.confirm_snapshot(volume, one, "2026-11-20T12:00:00Z", how)
    return how


def names_below(path: str, below: Path) -> None:
    """Make the file one that names another one as what it stands on."""
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(below), path, "16M"]
    subprocess.run(command, check=True)


def inspected(path: str) -> str:
    """What qemu-img tells of the file."""
    return subprocess.run(["qemu-img", "info", "-f", "qcow2", path], capture_output=True, text=True, check=True).stdout


def files_of(directory: Path, volume: str) -> list[Path]:
    """The files of the volume's layers."""
    return sorted((directory / "pool/volumes").glob(f"{volume}*.qcow2"))


def opened(process: int) -> set[str]:
    """The files that a process has open."""
    return {str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()}


def reads(path: str, *what: str) -> bool:
    """Whether the disk in the file has this, as arguments of `read` of qemu-io say it."""
    commands = [argument for one in what for argument in ("-c", f"read {one}")]
    done = subprocess.run(["qemu-io", "-r", "-f", "qcow2", *commands, path], capture_output=True, text=True, check=True)
    return "verification failed" not in done.stdout


class TestEncryption:
    """Encrypted volumes of a real pool. libvirt has the passphrase while it gives it to QEMU, and nobody else sees it."""

    async def test_a_machine_has_an_encrypted_volume_whatever_happens(
        self, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        pool = DirStorage(pool_ref(tmp_path / "pool"), StorageSettings(roots=(PurePosixPath(tmp_path),), readers=()))
        passphrase = Passphrase("correct horse battery staple")
        one, two = str(uuid.uuid4()), str(uuid.uuid4())
        disks = []
        for volume in (one, two):
            stored = await pool.ensure_encrypted_volume(volume, 16 << 20, None, False, passphrase)
            disks.append(DomainDisk(f"d{len(disks)}", stored.source, "qcow2", volume=volume, passphrase=passphrase))
        async with connected(world) as (driver, heard):
            spec = world.spec()
            uid = spec.marks.uid
            await driver.start(replace(spec, disks=(*spec.disks, disks[0])))
            await driver.attach_disk(uid, disks[1])
            for volume in (one, two):
                assert world.guest_io(spec, volume, "write -P 0x5a 0 1M") == ""
            await driver.resize_disk(uid, two, 32 << 20)
            process = Path(f"/proc/{world.qemu(spec)}")
            logs = [path.read_bytes() for path in (world.libvirtd.root / "log").rglob("*") if path.is_file()]
            for text in (
                (process / "cmdline").read_bytes(),
                (process / "environ").read_bytes(),
                world.virsh("dumpxml", "--security-info", uid).encode(),
                world.virsh("dumpxml", "--inactive", "--security-info", uid).encode(),
                repr(disks).encode(),
                *logs,
            ):
                assert passphrase.text.encode() not in text
            assert logs
            assert world.virsh("secret-list") == ""
            await restarted(world, heard)
            await driver.detach_disk(uid, two)
            await detached(driver, spec, disks[1])
            await driver.attach_disk(uid, disks[1])
            for volume in (one, two):
                assert "verification failed" not in world.guest_io(spec, volume, "read -P 0x5a 0 1M", "flush")
            await driver.force_off(uid)
            for disk in disks:
                assert b"Z" * 512 not in content(disk.path)
            wrong = replace(disks[0], passphrase=Passphrase("another passphrase"))
            with pytest.raises(HypervisorError) as caught:
                await driver.start(replace(spec, disks=(*spec.disks, wrong)))
            assert (caught.value.reason, caught.value.retryable) == ("WrongPassphrase", False)
            assert world.virsh("secret-list") == ""
            await driver.start(replace(spec, disks=(*spec.disks, *disks)))
            for volume in (one, two):
                assert "verification failed" not in world.guest_io(spec, volume, "read -P 0x5a 0 1M")

    @pytest.mark.wide
    async def test_layers_come_and_go_while_it_is_on(self, world: LibvirtWorld, tmp_path: Path) -> None:
        """Snapshots, a volume linked to one and merges of an encrypted volume; a host that restarts libvirtd meanwhile."""
        pool = DirStorage(pool_ref(tmp_path / "pool"), StorageSettings(roots=(PurePosixPath(tmp_path),), readers=()))
        key, volume, link = Passphrase("correct horse battery staple"), str(uuid.uuid4()), str(uuid.uuid4())
        stored = await pool.ensure_encrypted_volume(volume, 16 << 20, None, False, key)

        def disk(name: str, found: StoredVolume, of: str) -> DomainDisk:
            return DomainDisk(name, found.source, found.format, volume=of, below=found.below, passphrase=key)

        def has(volume: str, *what: str) -> bool:
            return "verification failed" not in world.guest_io(spec, volume, *(f"read {one}" for one in what))

        async with connected(world) as (driver, heard):
            spec = world.spec()
            uid = spec.marks.uid
            await driver.start(replace(spec, disks=(*spec.disks, disk("data", stored, volume))))
            taken = []
            for number in (1, 2, 3):
                world.guest_io(spec, volume, f"write -P {number} {number}M 1M", "write -P 0x5a 8M 1M", "flush")
                one = str(uuid.uuid4())
                made = await pool.begin_encrypted_snapshot(volume, one, key, live=True)
                layers = {volume: LayerFile(made.path, made.format, encrypted=made.encrypted)}
                how = await driver.snapshot_disks(uid, layers, Quiesce(QuiesceMode.NEVER), {volume: key})
                await pool.confirm_snapshot(volume, one, "2026-11-20T12:00:00Z", how)
                taken.append(one)
            world.guest_io(spec, volume, "write -P 4 4M 1M", "flush")
            assert world.virsh("secret-list") == ""
            linked = await pool.ensure_encrypted_volume(
                link, None, linked_to(volume, taken[0]), False, key, origin_passphrase=key
            )
            await driver.attach_disk(uid, disk("link", linked, link))
            assert has(link, "-P 1 1M 1M", "-P 0 2M 1M")
            assert world.guest_io(spec, link, "write -P 9 1M 1M") == ""
            await restarted(world, heard)
            await pool.forget_snapshot(volume, taken[1])
            await pool.forget_snapshot(volume, taken[2])
            while (merge := await pool.next_merge(volume)) is not None:
                done = functools.partial(pool.merged, volume, merge)
                await driver.merge_layers(uid, volume, merge.upper, merge.lower, lambda *_: None, done)
            assert has(volume, *(f"-P {number} {number}M 1M" for number in (1, 2, 3, 4)))
            world.guest_io(spec, volume, "write -P 5 5M 1M", "flush")
            await driver.force_off(uid)
            now = await pool.volume(volume)
            assert now is not None and len(now.below) == 1
            assert not [file for file in files_of(tmp_path, volume) if b"Z" * 512 in content(str(file))]
            await driver.start(
                replace(spec, disks=(*spec.disks, disk("data", now, volume), disk("link", linked, link)))
            )
            assert has(volume, *(f"-P {number} {number}M 1M" for number in (1, 2, 3, 4, 5)))
            assert has(link, "-P 9 1M 1M", "-P 0 2M 1M")
            told = (
                world.virsh("dumpxml", "--security-info", uid),
                content(f"/proc/{world.qemu(spec)}/cmdline").decode(),
            )
            assert not [text for text in told if key.text in text]


class TestFiles:
    """What a machine leaves on the host, and what its QEMU opens."""

    async def test_a_guest_that_floods_its_console_cannot_fill_the_disk(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec(Guest.FLOOD)
            await driver.start(spec)
            directory = Path(spec.console_log).parent
            full = directory / "console.log.2"
            await eventually(full.exists, "the log was not rotated", 90)
            inode = full.stat().st_ino
            await eventually(lambda: full.exists() and full.stat().st_ino != inode, "it was not rotated again", 90)
            logs = [file.stat() for file in directory.glob("console.log*")]
            assert len(logs) <= 1 + world.libvirtd.log_backups
            assert sum(file.st_size for file in logs) <= (1 + world.libvirtd.log_backups) * world.libvirtd.log_size
            assert {file.st_mode & 0o077 for file in logs} == {0}
            assert len(world.console(spec, 100_000)) == 100_000

    async def test_remove_leaves_nothing_of_libvirts(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await driver.start(spec)
            assert world.files_about(spec.marks.uid)
            await driver.remove(spec.marks.uid)
            assert world.files_about(spec.marks.uid) == []
            assert world.disks() == [spec.disks[0].path]

    async def test_qemu_listens_on_no_port(self, world: LibvirtWorld) -> None:
        async with connected(world) as (driver, _):
            spec = world.spec()
            await driver.start(spec)
            process = Path(f"/proc/{world.qemu(spec)}")
            links = [str(file.readlink()) for file in (process / "fd").iterdir()]
            sockets = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
            ports = {
                line.split()[9]
                for table in ("tcp", "tcp6", "udp", "udp6")
                for line in (process / "net" / table).read_text().splitlines()[1:]
            }
            assert sockets
            assert not sockets & ports

    async def test_seeds_and_plain_disks(self, world: LibvirtWorld) -> None:
        spec = world.spec()
        directory = Path(spec.disks[0].path).parent
        for name in ("seed.iso", "data.raw"):
            (directory / name).write_bytes(b"\0" * (1 << 20))
        disks = (
            *spec.disks,
            DomainDisk("seed", FileSource(str(directory / "seed.iso")), "raw", read_only=True, cdrom=True),
            DomainDisk("keys", FileSource(str(directory / "seed.iso")), "raw", read_only=True),
            DomainDisk("data", FileSource(str(directory / "data.raw")), "raw"),
        )
        async with connected(world) as (driver, _):
            await driver.start(replace(spec, disks=disks))
            listed = world.virsh("domblklist", spec.marks.uid, "--details").splitlines()
            assert sorted(tuple(line.split()[1:3]) for line in listed) == [
                ("cdrom", "sda"),
                ("disk", "vda"),
                ("disk", "vdb"),
                ("disk", "vdc"),
            ]
