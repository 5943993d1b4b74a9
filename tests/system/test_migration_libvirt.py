"""Guests that go from one libvirt to another: the driver's contract, and what real parts add to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.hardware import Shape
from kumulus_agents.hypervisor.domain import DomainDisk, DomainSpec, DomainState
from kumulus_agents.hypervisor.migration import Progress, Sending
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.settings import StorageSettings
from tests.contract import guest
from tests.contract.guest import Guest
from tests.contract.hypervisor import World, eventually, the
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.contract.migrations import Between, MigrationContract, nowhere
from tests.unit.storage.material import pool_ref

pytestmark = pytest.mark.libvirt

UEFI_MEMORY = 256 << 20
ROUND = 64
"""Blocks to which a guest of `writer` writes by turns."""


@pytest.fixture(scope="module")
def libvirtds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateLibvirtd, PrivateLibvirtd]]:
    root = tmp_path_factory.mktemp("l")
    found = PrivateLibvirtd(root / "a"), PrivateLibvirtd(root / "b")
    try:
        for libvirtd in found:
            libvirtd.start()
        yield found
    finally:
        for libvirtd in found:
            libvirtd.stop()


class MovingWorld(LibvirtWorld):
    """A host with a place of its own for the sockets of migrations."""

    def driver(self, **settings: object):  # type: ignore[no-untyped-def]
        return super().driver(migration_dir=self.libvirtd.root / "m", **settings)


@pytest.fixture
def here(
    libvirtds: tuple[PrivateLibvirtd, PrivateLibvirtd], images: guest.Disks, tmp_path: Path
) -> Iterator[LibvirtWorld]:
    world = MovingWorld(libvirtds[0], images, tmp_path)
    try:
        yield world
    finally:
        world.clear()


@pytest.fixture
def there(
    libvirtds: tuple[PrivateLibvirtd, PrivateLibvirtd], images: guest.Disks, tmp_path: Path
) -> Iterator[LibvirtWorld]:
    world = MovingWorld(libvirtds[1], images, tmp_path)
    try:
        yield world
    finally:
        world.clear()


class TestLibvirt(MigrationContract):
    """The contract."""

    async def writes(self, here: World, spec: DomainSpec) -> None:
        assert isinstance(here, LibvirtWorld)
        await eventually(lambda: len(here.written(spec)) > 20, "the guest does not write", 60)

    async def wrote_on(self, there: World, spec: DomainSpec) -> None:
        assert isinstance(there, LibvirtWorld)
        before = len(there.written(spec))
        await eventually(lambda: len(there.written(spec)) > before + 20, "the guest does not go on writing", 60)
        there.virsh("destroy", spec.marks.uid)
        written = there.written(spec)
        assert written == list(range(1, len(written) + 1)), "it began anew, or a number is missing"
        data = there.content(next(disk for disk in spec.disks if disk.name == "data"))
        for number in written[2 - ROUND :]:  # the next one may be on its way to where the first of a round is
            at = (number % ROUND) << 16
            said = data[at : at + 16]
            assert said == (f"{number}\n" * 16).encode()[:16], f"what it wrote as {number} is not there"

    @contextlib.asynccontextmanager
    async def sending(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World, *, along: bool = False
    ) -> AsyncIterator[tuple[Between, DomainSpec]]:
        """In the middle of a copy, which then fails; `along`: of its disks."""
        migration, comes = str(uuid.uuid4()), self.arriving(running, there)
        names = tuple(disk.name for disk in running.disks) if along else ()
        if along:
            comes = replace(comes, disks=[there.empty(disk) for disk in running.disks])
        await target.receive(comes, migration)
        between, seen = Between(target, comes, migration), list[Progress]()
        sending = Sending(migration, bandwidth=1, disks=names)
        slow = source.send(running.marks.uid, sending, between.connect, seen.append)
        work = asyncio.create_task(slow)
        await eventually(lambda: bool(seen) or work.done(), "the copy did not begin")
        assert not work.done() and seen[0].total >= seen[0].remaining >= 0
        assert along == (seen[0].disk_total > 0)
        yield between, comes
        with pytest.raises(HypervisorError) as failed:
            await work
        assert failed.value.reason == "MigrationFailed"

        async def as_before() -> bool:
            here, other = await the(source, running), await the(target, comes)
            return (here.state, other.state) == (DomainState.RUNNING, DomainState.STOPPED)

        await eventually(as_before, "it does not run where it was alone")
        again = Between(target, comes, migration)
        await source.send(running.marks.uid, Sending(migration, disks=names), again.connect, nowhere)
        assert (await the(target, comes)).state is DomainState.PAUSED, "what failed can be tried again"

    @pytest.mark.wide
    async def test_an_encrypted_disk_is_opened_there_with_a_key_that_nobody_else_sees(
        self, source: Hypervisor, target: Hypervisor, here: LibvirtWorld, there: LibvirtWorld, tmp_path: Path
    ) -> None:
        pool = DirStorage(pool_ref(tmp_path / "pool"), StorageSettings(roots=(PurePosixPath(tmp_path),), readers=()))
        volume, key = str(uuid.uuid4()), Passphrase("correct horse battery staple")
        stored = await pool.ensure_encrypted_volume(volume, 16 << 20, None, False, key)
        disk = DomainDisk("data", stored.source, "qcow2", volume=volume, passphrase=key)
        spec = here.spec()
        spec = replace(spec, disks=(*spec.disks, disk))
        await source.start(spec)
        assert here.guest_io(spec, volume, "write -P 0x5a 0 1M") == ""
        uid, migration = spec.marks.uid, str(uuid.uuid4())
        wrong = self.arriving(
            replace(spec, disks=(*spec.disks[:-1], replace(disk, passphrase=Passphrase("x" * 16)))), there
        )
        await target.receive(wrong, migration)
        with pytest.raises(HypervisorError):
            await source.send(uid, Sending(migration), Between(target, wrong, migration).connect, nowhere)
        assert there.virsh("secret-list") == "" and (await the(source, spec)).state is DomainState.RUNNING
        comes = self.arriving(spec, there)
        await target.receive(comes, migration)
        await source.send(uid, Sending(migration), Between(target, comes, migration).connect, nowhere)
        await target.arrive(uid, comes.marks)
        assert "verification failed" not in there.guest_io(comes, volume, "read -P 0x5a 0 1M", "write -P 0x5b 0 1M")
        assert here.virsh("secret-list") == there.virsh("secret-list") == ""
        told = there.virsh("dumpxml", "--security-info", uid)
        assert key.text not in told and "luks" in told

    @pytest.mark.wide
    @pytest.mark.parametrize("uefi", [False, True])
    async def test_what_a_guest_has_in_its_tpm_and_its_firmware_goes_along(
        self, source: Hypervisor, target: Hypervisor, here: LibvirtWorld, there: LibvirtWorld, uefi: bool
    ) -> None:
        spec = replace(here.spec(Guest.EFI), shape=Shape(uefi=uefi, tpm=True), memory=UEFI_MEMORY)
        uid, migration = spec.marks.uid, str(uuid.uuid4())

        def said(what: str) -> list[str]:
            return re.findall(what, here.console(spec))

        await source.start(spec)
        await eventually(lambda: len(said(r"GUEST-TPM:(\d+)\.")) > 1, "the guest did not find its TPM", 90)
        (first,) = said(r"GUEST-EFI:\w+ TPM:(\d+)\.")
        comes = self.arriving(spec, there)
        await target.receive(comes, migration)
        await source.send(uid, Sending(migration), Between(target, comes, migration).connect, nowhere)
        before = len(said("GUEST-TPM"))
        await target.arrive(uid, comes.marks)
        await eventually(lambda: len(said("GUEST-TPM")) > before + 1, "its TPM does not answer there", 30)
        assert set(said(r"GUEST-TPM:(\d+)\.")) == {first}
        await source.mark(uid, replace(spec.marks, departed=migration))
        if uefi:
            ours, theirs = (world.libvirtd.root / f"lib/qemu/nvram/kumulus-{uid}_VARS.fd" for world in (here, there))
            assert ours.read_bytes() == theirs.read_bytes()
        await source.remove(uid)
        assert here.files_about(uid) == []
        await target.force_off(uid)
        await target.start(comes)
        again = rf"GUEST-EFI:{'yes' if uefi else 'no'} TPM:{int(first) + 1}\."
        await eventually(lambda: bool(said(again)), "its TPM was not reset once more there", 90)
        await target.remove(uid)
        assert there.files_about(uid) == []

    @pytest.mark.wide
    async def test_a_tunnel_that_is_cut_leaves_the_guest_where_it_was(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        async with self.sending(source, target, running, there) as (between, _):
            await between.cut()

    @pytest.mark.wide
    @pytest.mark.parametrize("how", ["cut", "given up", "target dies"])
    async def test_disks_that_are_half_there_are_nothing(
        self, source: Hypervisor, target: Hypervisor, here: LibvirtWorld, there: LibvirtWorld, how: str
    ) -> None:
        spec = here.writer()
        await source.start(spec)
        await self.writes(here, spec)
        async with self.sending(source, target, spec, there, along=True) as (between, comes):
            if how == "cut":
                await between.cut()
            elif how == "given up":
                await source.end_sending(spec.marks.uid)
            else:
                await there.crash(comes)
        await target.arrive(comes.marks.uid, comes.marks)
        await self.wrote_on(there, comes)

    @pytest.mark.wide
    async def test_a_copy_that_is_given_up_leaves_the_guest_where_it_was(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: World
    ) -> None:
        async with self.sending(source, target, running, there):
            await source.end_sending(running.marks.uid)

    @pytest.mark.wide
    async def test_a_target_whose_qemu_dies_leaves_the_guest_where_it_was(
        self, source: Hypervisor, target: Hypervisor, running: DomainSpec, there: LibvirtWorld
    ) -> None:
        async with self.sending(source, target, running, there) as (_, comes):
            await there.crash(comes)
