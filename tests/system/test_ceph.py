"""Guests of a real libvirt that write to volumes in a real Ceph cluster while snapshots are taken. The witness is data."""

# ruff: noqa: F811 - fixtures of the driver's tests

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.domain import DomainDisk, DomainSpec, DomainState, Quiesce, Still
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import LayerFile
from tests.contract.ceph import CephCluster
from tests.contract.guest import Guest
from tests.contract.hypervisor import Heard, eventually, the
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.snapshots import linked_to, of_snapshot
from tests.contract.test_rbd import (
    MIB,
    Far,
    ceph,  # noqa: F401
    content,
    far,  # noqa: F401
    new_uid,
    server,  # noqa: F401
    settings,  # noqa: F401
    world,  # noqa: F401
)
from tests.unit.storage.material import pool_ref, qemu_img

pytestmark = pytest.mark.libvirt

BLOCK = 4096
SIZE = 32 * MIB
WROTE = re.compile(r"GUEST-WROTE:(\d+)\.")


@dataclass(frozen=True)
class Running:
    """A guest that writes a counter to its first disk, which is in Ceph, and then to its second, which is a file."""

    world: LibvirtWorld
    driver: LibvirtHypervisor
    far: Far
    near: DirStorage
    spec: DomainSpec
    first: str
    second: str

    def acknowledged(self) -> int:
        """The last value that the guest has flushed on both, as it says."""
        return max((int(value) for value in WROTE.findall(self.world.console(self.spec, 1 << 20))), default=0)

    async def goes_on(self) -> None:
        """Wait until it writes."""
        before = self.acknowledged()
        await eventually(lambda: self.acknowledged() > before + 2, "the guest writes no more", 60)

    async def snapshot(self, keep: Callable[[], Awaitable[None]] | None = None) -> str:
        """Take one of both, as the agent does; its uid. `keep` is done before the cluster keeps anything."""
        one = new_uid()
        await self.far.driver.begin_snapshot(self.first, one, live=True)
        made = await self.near.begin_snapshot(self.second, one, live=True)

        async def kept() -> None:
            if keep is not None:
                await keep()
            await self.far.driver.keep_instant(self.first, one)

        still = Still(frozenset({self.first}), kept, 60)
        layers = {self.second: LayerFile(made.path, made.format)}
        how = await self.driver.snapshot_disks(
            self.spec.marks.uid, layers, Quiesce(QuiesceMode.IF_POSSIBLE, 10), still=still
        )
        assert set(how) == {Indication.ONLINE, Indication.NO_GUEST_AGENT}
        await self.far.driver.confirm_snapshot(self.first, one, "2026-11-20T12:00:00Z", how)
        await self.near.confirm_snapshot(self.second, one, "2026-11-20T12:00:00Z", how)
        return one


@contextlib.asynccontextmanager
async def running(world: LibvirtWorld, far: Far, directory: Path) -> AsyncIterator[Running]:
    near = DirStorage(pool_ref(directory / "near"), StorageSettings(roots=(PurePosixPath(directory),), readers=()))
    first, second, spec = new_uid(), new_uid(), world.spec(Guest.PAIR)
    one = await far.driver.ensure_volume(first, SIZE, None, False)
    two = await near.ensure_volume(second, SIZE, None, False)
    disks = (
        DomainDisk("first", one.source, one.format, volume=first),
        DomainDisk("second", two.source, two.format, volume=second, below=two.below),
    )
    driver, heard = world.driver(), Heard()
    await driver.connect(heard)
    try:
        await heard.about("")
        await driver.start(replace(spec, disks=(*spec.disks, *disks)))
        made = Running(world, driver, far, near, spec, first, second)
        await eventually(lambda: made.acknowledged() > 2, "the guest writes nothing", 90)
        yield made
    finally:
        with contextlib.suppress(HypervisorError):
            await driver.force_off(spec.marks.uid)
        await driver.close()


@contextlib.asynccontextmanager
async def hasty(world: LibvirtWorld) -> AsyncIterator[LibvirtHypervisor]:
    """A driver that waits for nothing longer than three seconds."""
    driver, heard = world.driver(verb_timeout=3, read_timeout=3), Heard()
    await driver.connect(heard)
    try:
        await heard.about("")
        yield driver
    finally:
        await driver.close()


def counted(data: bytes) -> int:
    """The last value of a disk that has all values up to it; fails when one is missing or one is half."""
    found = 0
    while data[(found + 1) * BLOCK : (found + 2) * BLOCK] == (f"{found + 1}\n" * BLOCK).encode()[:BLOCK]:
        found += 1
    assert not data[(found + 1) * BLOCK :].strip(b"\0")
    return found


async def of_file(near: DirStorage, volume: str, snapshot: str, directory: Path) -> bytes:
    """What the snapshot of a volume of files has."""
    copy = await near.ensure_volume(new_uid(), None, of_snapshot(volume, snapshot), False)
    file = directory / f"{new_uid()}.raw"
    await asyncio.to_thread(qemu_img, "convert", "-f", "qcow2", "-O", "raw", copy.path, file)
    return await asyncio.to_thread(file.read_bytes)


class TestInstants:
    """One instant of a machine that has disks in Ceph and in files."""

    async def test_all_disks_of_a_machine_are_of_one_instant(
        self, ceph: CephCluster, far: Far, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        async with running(world, far, tmp_path) as guest:
            taken = []
            for _ in range(4):
                before = guest.acknowledged()
                one = await guest.snapshot()
                taken.append((before, one, guest.acknowledged()))
                await guest.goes_on()
            domain = await the(guest.driver, guest.spec)
            assert (domain.state, domain.held) == (DomainState.RUNNING, False)
            for before, one, after in taken:
                first = counted(content(ceph, f"{names.volume(guest.first)}@{names.snapshot(one)}", tmp_path))
                second = counted(await of_file(guest.near, guest.second, one, tmp_path))
                assert before <= second <= first <= second + 1
                assert second <= after + 1
            # A linked volume, beside the guest that goes on, has what the first had then.
            _, one, _ = taken[0]
            clone = new_uid()
            await far.driver.ensure_volume(clone, None, linked_to(guest.first, one), False)
            had = content(ceph, f"{names.volume(guest.first)}@{names.snapshot(one)}", tmp_path)
            assert content(ceph, names.volume(clone), tmp_path) == had
            assert (await refused(far.driver.revert_volume(guest.first, one, new_uid()))).reason == "VolumeInUse"
            assert (await refused(far.driver.forget_snapshot(guest.first, one))).reason == "SnapshotInUse"
            await guest.goes_on()
            await far.driver.forget_snapshot(guest.first, taken[1][1])
            await guest.driver.force_off(guest.spec.marks.uid)
            await reverted(far, guest.first, one)
            assert content(ceph, names.volume(guest.first), tmp_path) == had
            await far.driver.remove_volume(clone)

    async def test_a_cluster_that_falls_silent_does_not_keep_the_guest_halted(
        self, ceph: CephCluster, far: Far, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        async with running(world, far, tmp_path) as guest:
            impatient = replace(guest, far=replace(far, driver=far.again(answer_seconds=2.0)))
            stack = contextlib.ExitStack()

            async def fall_silent() -> None:
                assert (await the(guest.driver, guest.spec)).state is DomainState.PAUSED
                stack.enter_context(ceph.silent())

            with stack:
                error = await refused(impatient.snapshot(fall_silent))
                assert error.reason == "PoolStalled"
                domain = await the(guest.driver, guest.spec)
                assert (domain.state, domain.held) == (DomainState.RUNNING, False)
            await guest.goes_on()
            await taken_back(guest)
            one = await eventually_snapshot(guest)
            first = counted(content(ceph, f"{names.volume(guest.first)}@{names.snapshot(one)}", tmp_path))
            second = counted(await of_file(guest.near, guest.second, one, tmp_path))
            assert second <= first <= second + 1

    @pytest.mark.wide  # how long QEMU takes to find a cluster again that was silent varies a lot
    async def test_a_guest_whose_writes_hang_goes_on_when_the_cluster_does(
        self, ceph: CephCluster, far: Far, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        """QEMU answers nobody while it waits for the cluster in order to halt the guest: who asked has given up by then."""
        async with running(world, far, tmp_path) as guest, hasty(world) as driver:

            async def forbid() -> None:
                pytest.fail("the guest was not halted")

            with ceph.silent():
                await eventually(Stillness(guest).lasts, "the guest writes on", 60)
                still = Still(frozenset({guest.first}), forbid, 60)
                with pytest.raises(HypervisorError) as caught:
                    await driver.snapshot_disks(guest.spec.marks.uid, {}, Quiesce(QuiesceMode.NEVER), still=still)
                assert caught.value.reason in ("HypervisorTimeout", "HypervisorBusy")
            await eventually(functools.partial(is_free, guest), "the guest is held", 120)
            await guest.goes_on()


class Stillness:
    """That a guest waits for a write: it has said nothing for some seconds."""

    def __init__(self, guest: Running) -> None:
        self._guest = guest
        self._said = -1
        self._since = 0.0

    def lasts(self) -> bool:
        said, now = self._guest.acknowledged(), time.monotonic()
        if said != self._said:
            self._said, self._since = said, now
        return now > self._since + 3


async def refused(attempt: Awaitable[object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await attempt
    return caught.value


async def is_free(guest: Running) -> bool:
    """Whether it runs and nobody holds it."""
    try:
        domain = await the(guest.driver, guest.spec)
    except HypervisorError:
        return False
    return domain.state is DomainState.RUNNING and not domain.held


async def reverted(far: Far, volume: str, snapshot: str) -> None:
    """Give it back what it had; QEMU's watch may outlive it for a moment."""
    request = new_uid()

    async def done() -> bool:
        try:
            await far.driver.revert_volume(volume, snapshot, request)
        except StorageError as error:
            assert error.reason == "VolumeInUse"
            return False
        return True

    await eventually(done, "the volume is in use", 60)


async def taken_back(guest: Running) -> None:
    """What the agent does after a snapshot that did not come to be: the file is written where it was."""
    domain = await the(guest.driver, guest.spec)
    (path,) = [disk.path for disk in domain.disks if disk.volume == guest.second]
    await guest.near.adopt(guest.second, path)


async def eventually_snapshot(guest: Running) -> str:
    """One that comes to be when the cluster answers again."""
    found: list[str] = []

    async def done() -> bool:
        try:
            found.append(await guest.snapshot())
        except StorageError as error:
            assert error.reason == "PoolStalled"
            await taken_back(guest)
            return False
        return True

    await eventually(done, "no snapshot", 60)
    return found[0]
