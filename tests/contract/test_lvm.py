"""The driver lvm on real thin pools. Where the kernel has no device-mapper, all of it runs on another kernel."""

# ruff: noqa: ASYNC230, ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.lvm import names
from kumulus_agents.storage.lvm.driver import LvmStorage
from kumulus_agents.storage.lvm.group import VolumeGroup
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from kumulus_agents.storage.source import BlockSource
from tests.contract import other_kernel, thin_pool
from tests.contract.storage import Bench, StorageContract
from tests.contract.thin_pool import MIB, POOL, Group
from tests.unit.storage.material import disk, http, ignore, qcow2
from tests.unit.storage.server import Answer, Server, serving

WHY_NOT = thin_pool.why_none()
here = pytest.mark.skipif(
    WHY_NOT is not None, reason=f"{WHY_NOT} TestOnAnotherKernel runs it where QEMU can boot one that has."
)
AT = "2026-11-20T12:00:00Z"
HOW = (Indication.ONLINE, Indication.NO_GUEST_AGENT)
RAW = disk()


@pytest.mark.skipif(WHY_NOT is None, reason="This kernel has device-mapper: everything below runs here.")
@pytest.mark.timeout(3600)
class TestOnAnotherKernel:
    """The distribution's kernel has device-mapper."""

    @pytest.mark.wide
    def test_all_of_it(self, tmp_path: Path) -> None:
        run_there(tmp_path, "-k", "not TestOnAnotherKernel")


def run_there(scratch: Path, *selection: str) -> None:
    """Run tests of this file on the other kernel."""
    if (why := other_kernel.why_none()) is not None:
        pytest.skip(f"{WHY_NOT} {why}")
    other_kernel.run_tests(scratch, *selection, "tests/contract/test_lvm.py", seconds=3500)


@pytest.fixture(scope="module")
def whole_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    made = Group(tmp_path_factory.mktemp("lvm"))
    try:
        made.set_up()
        made.make_pool()
        yield made
    finally:
        made.take_down()


@pytest.fixture
def group(whole_module: Group) -> Iterator[Group]:
    """Empty before and after."""
    yield whole_module
    for name in whole_module.tags():
        whole_module.lvm("lvremove", "--yes", f"{whole_module.name}/{name}")


@pytest.fixture
def settings(group: Group, tmp_path: Path) -> StorageSettings:
    return StorageSettings(
        scratch=PurePosixPath(tmp_path / "scratch"),
        lvm=group.settings,
        fetch=FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),), backoff=0),
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving("127.0.0.1") as made:
        yield made


@here
class TestContract(StorageContract):
    """The contract, on a thin pool."""

    @pytest.fixture
    def bench(self, group: Group, settings: StorageSettings, server: Server) -> Bench:
        pool = group.ref()

        def driver() -> LvmStorage:
            return LvmStorage(pool, settings)

        return Bench(
            driver=driver(),
            again=driver,
            image=image_of(RAW),
            source=http(server.on("/disk.raw", Answer(RAW))),
            virtual_size=len(RAW),
            fetches=lambda: len(server.requests),
            format="raw",
        )


@dataclass(frozen=True)
class Near:
    """A driver, what it was made of, and an image that is in its pool."""

    driver: LvmStorage
    pool: PoolRef
    settings: StorageSettings
    image: ImageRef
    group: Group

    def again(self) -> LvmStorage:
        """The driver as a restarted agent would make it."""
        return LvmStorage(self.pool, self.settings)

    def device(self, name: str) -> str:
        return f"/dev/{self.group.name}/{name}"


def new_uid() -> str:
    return str(uuid.uuid4())


def image_of(data: bytes, form: ImageFormat = ImageFormat.RAW) -> ImageRef:
    return ImageRef(uid=new_uid(), sha256=hashlib.sha256(data).hexdigest(), format=form)


@pytest.fixture
async def near(group: Group, settings: StorageSettings, server: Server, tmp_path: Path) -> Near:
    """With an image that came as qcow2."""
    pool, data = group.ref(), qcow2(tmp_path)
    driver, image = LvmStorage(pool, settings), image_of(data, ImageFormat.QCOW2)
    await driver.import_image(image, http(server.on("/disk.qcow2", Answer(data))), ignore)
    return Near(driver, pool, settings, image, group)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def write(path: str, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


async def refused(attempt: Awaitable[object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await attempt
    return caught.value


def of_snapshot(volume: str, snapshot: str, *, linked: bool = False) -> VolumeOrigin:
    return VolumeOrigin.model_validate({"snapshot": {"volume": volume, "snapshot": snapshot}, "linked": linked})


async def taken(near: Near, volume: str) -> str:
    """Take a snapshot; its uid."""
    snapshot = new_uid()
    await near.driver.begin_snapshot(volume, snapshot)
    await near.driver.confirm_snapshot(volume, snapshot, AT, HOW)
    return snapshot


@here
class TestData:
    """What is in the pool is what was meant."""

    async def test_disks_volumes_and_copies_have_what_their_origin_has(self, near: Near) -> None:
        driver, owner = near.driver, new_uid()
        thin, thick, copy = new_uid(), new_uid(), new_uid()
        origin = VolumeOrigin(image=near.image)
        made = await driver.ensure_disk(owner, "root", near.image.uid, 8 * MIB)
        one = await driver.ensure_volume(thin, 6 * MIB, origin, False)
        two = await driver.ensure_volume(thick, 8 * MIB, origin, True)
        write(one.path, 5 * MIB, b"\7" * 4096)
        three = await driver.ensure_volume(copy, 10 * MIB, VolumeOrigin(volume=thin), False)
        assert isinstance(made.source, BlockSource)
        assert content(made.path) == RAW.ljust(8 * MIB, b"\0")
        assert content(two.path) == RAW.ljust(8 * MIB, b"\0")
        assert two.used >= 8 * MIB
        assert content(three.path) == (RAW + bytes(MIB) + b"\7" * 4096).ljust(10 * MIB, b"\0")
        assert three.used < 4 * MIB
        assert not [name for name in near.group.tags() if name.startswith("copy")]
        for volume in (thin, thick, copy):
            await driver.remove_volume(volume)
        await driver.remove_disks(owner)
        await driver.remove_image(near.image.uid)
        assert near.group.tags() == {}
        left = {path.name for path in Path(near.settings.scratch).rglob("*") if path.is_file()}
        assert left <= {marker.NAME}

    async def test_nobody_writes_to_an_image(self, near: Near) -> None:
        image = await near.driver.image(near.image.uid)
        assert image is not None
        assert content(image.path)[: len(RAW)] == RAW
        with pytest.raises(OSError, match=r"denied|permitted|Read-only"):
            write(image.path, 0, b"x")

    async def test_a_disk_that_was_removed_is_nobodys(self, near: Near) -> None:
        """A block that is written in part is zeroed in the rest. Nearly all blocks of the pool were the first volume's, so
        the second one has to get some of those."""
        before, after = new_uid(), new_uid()
        size = 156 * MIB
        for volume in (before, after):
            made = await near.driver.ensure_volume(volume, size, None, False)
            if volume == before:
                await asyncio.to_thread(_fill, made.path, size)
                await near.driver.remove_volume(before)
        for offset in range(0, size, MIB):
            write(made.path, offset + 4096, b"x")
        found = await asyncio.to_thread(subprocess.run, ["grep", "-c", "SECRET", made.path], capture_output=True)
        assert found.stdout.strip() == b"0"

    async def test_what_somebody_has_open_is_neither_copied_nor_grown_nor_removed(self, near: Near) -> None:
        driver, volume = near.driver, new_uid()
        made = await driver.ensure_volume(volume, MIB, None, False)
        snapshot = await taken(near, volume)
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: driver.grow_volume(volume, 2 * MIB),
            lambda: driver.ensure_volume(new_uid(), None, VolumeOrigin(volume=volume), False),
            lambda: driver.revert_volume(volume, snapshot, new_uid()),
        ]
        with Path(made.path).open("rb"):
            for attempt in attempts:
                assert (await refused(attempt())).reason == "VolumeInUse"
            assert (await refused(driver.begin_snapshot(volume, new_uid()))).reason == "SnapshotUnsupported"
            await driver.forget_snapshot(volume, snapshot)
            assert (await refused(driver.remove_volume(volume))).reason == "VolumeInUse"
        assert (await driver.grow_volume(volume, 2 * MIB)).virtual_size == 2 * MIB
        await driver.remove_volume(volume)

    async def test_a_running_machine_is_told_of_a_device_that_has_grown(self, near: Near) -> None:
        driver, volume, told = near.driver, new_uid(), list[tuple[int, int]]()
        made = await driver.ensure_volume(volume, MIB, None, False)

        async def resize(size: int) -> None:
            told.append((size, len(content(made.path))))
            if len(told) == 1:
                raise StorageError("no", reason="Told")

        with Path(made.path).open("rb"):
            assert (await refused(driver.grow_volume(volume, 2 * MIB, resize))).reason == "Told"
            assert (await near.again().volume(volume) or pytest.fail("it is gone")).virtual_size == MIB
            assert (await near.again().grow_volume(volume, 2 * MIB, resize)).virtual_size == 2 * MIB
            await driver.grow_volume(volume, 2 * MIB, resize)
        assert told == [(2 * MIB, 2 * MIB)] * 2

    async def test_after_the_host_was_started_anew_volumes_have_devices_when_they_are_opened(self, near: Near) -> None:
        volume, owner = new_uid(), new_uid()
        await near.driver.ensure_volume(volume, MIB, None, False)
        root = await near.driver.ensure_disk(owner, "root", near.image.uid, None)
        near.group.lvm("vgchange", "--activate", "n", near.group.name)
        assert not Path(root.path).exists()
        again = near.again()
        await again.prepare()
        made = await again.open_volume(volume)
        assert made is not None
        assert len(content(made.path)) == MIB
        assert await again.ensure_disk(owner, "root", near.image.uid, None) == root
        assert content(root.path)[: len(RAW)] == RAW
        image = await again.image(near.image.uid)
        assert image is not None
        assert content(image.path)[: len(RAW)] == RAW


def _fill(path: str, size: int) -> None:
    block = (b"SECRET" * (MIB // 6 + 1))[:MIB]
    fd = os.open(path, os.O_WRONLY)
    try:
        for offset in range(0, size, MIB):
            os.pwrite(fd, block, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


@here
class TestSnapshots:
    """Snapshots are thin snapshots."""

    async def test_a_snapshot_keeps_what_there_was_until_it_goes(self, near: Near) -> None:
        driver, volume, snapshot, copy = near.driver, new_uid(), new_uid(), new_uid()
        origin = of_snapshot(volume, snapshot)
        made = await driver.ensure_volume(volume, MIB, None, False)
        write(made.path, 0, b"\1" * 4096)
        assert await driver.snapshot(volume, snapshot) is None
        assert (await driver.begin_snapshot(volume, snapshot)).source == made.source
        begun = await driver.snapshot(volume, snapshot)
        assert begun is not None
        assert begun.taken_at is None
        assert (await refused(driver.ensure_volume(copy, None, origin, False))).reason == "SnapshotNotReady"
        assert (await refused(driver.grow_volume(volume, 2 * MIB))).reason == "VolumeBusy"
        assert (await refused(driver.revert_volume(volume, snapshot, new_uid()))).reason == "VolumeBusy"
        write(made.path, 0, b"\2" * 4096)
        await driver.begin_snapshot(volume, snapshot)  # nobody knows how far the first attempt came
        for at in (AT, "2027-01-01T00:00:00Z"):
            got = await driver.confirm_snapshot(volume, snapshot, at, HOW)
            assert (got.virtual_size, got.taken_at, got.indications) == (MIB, AT, HOW)
        assert await near.again().snapshot(volume, snapshot) == got
        write(made.path, 0, b"\3" * 4096)
        await driver.begin_snapshot(volume, snapshot)
        await driver.grow_volume(volume, 2 * MIB)
        full = await driver.ensure_volume(copy, None, origin, False)
        assert content(full.path) == (b"\2" * 4096).ljust(MIB, b"\0")
        assert (await refused(driver.changes(volume, snapshot))).reason == "ChangesUnsupported"
        assert (await refused(driver.remove_volume(volume))).reason == "VolumeInUse"
        await driver.adopt(volume, made.path)
        assert (await refused(driver.adopt(volume, "/elsewhere"))).reason == "ChainMismatch"
        for _ in range(2):
            await driver.forget_snapshot(volume, snapshot)
            assert await near.again().snapshot(volume, snapshot) is None
        assert (await refused(driver.confirm_snapshot(volume, snapshot, "x", ()))).reason == "SnapshotLost"
        await driver.remove_volume(volume)
        assert content(full.path) == (b"\2" * 4096).ljust(MIB, b"\0")
        assert (await refused(driver.begin_snapshot(volume, snapshot))).reason == "VolumeNotReady"

    async def test_a_volume_goes_back_once_for_each_request(self, near: Near) -> None:
        driver, volume, request = near.driver, new_uid(), new_uid()
        made = await driver.ensure_volume(volume, MIB, None, False)
        write(made.path, 0, b"\1" * 4096)
        snapshot = await taken(near, volume)
        await driver.claim_volume(volume, "h1", 3)
        await driver.grow_volume(volume, 2 * MIB)
        write(made.path, 0, b"\2" * 4096)
        for byte in (1, 4):
            back = await driver.revert_volume(volume, snapshot, request)
            assert (back.virtual_size, back.reverted) == (2 * MIB, request)
            assert content(back.path) == (bytes([byte]) * 4096).ljust(2 * MIB, b"\0")
            write(back.path, 0, b"\4" * 4096)
        assert (await refused(driver.claim_volume(volume, "h2", 2))).reason == "VolumeElsewhere"
        again = await driver.revert_volume(volume, snapshot, new_uid())
        assert content(again.path)[:4096] == b"\1" * 4096
        assert (await refused(driver.revert_volume(volume, new_uid(), new_uid()))).reason == "SnapshotNotReady"
        await driver.forget_snapshot(volume, snapshot)
        await driver.remove_volume(volume)
        assert set(near.group.tags()) == {names.image(near.image.uid)}

    async def test_a_linked_volume_takes_nothing_and_keeps_its_snapshot(self, near: Near) -> None:
        driver, volume, linked = near.driver, new_uid(), new_uid()
        made = await driver.ensure_volume(volume, 4 * MIB, None, False)
        write(made.path, MIB, b"\1" * MIB)
        snapshot = await taken(near, volume)
        before = (await driver.prepare()).used
        clone = await driver.ensure_volume(linked, 8 * MIB, of_snapshot(volume, snapshot, linked=True), False)
        assert (await driver.prepare()).used <= before + MIB // 2
        write(clone.path, 6 * MIB, b"\2" * 4096)
        assert content(clone.path)[MIB : 2 * MIB] == b"\1" * MIB
        assert content(made.path)[MIB : 2 * MIB] == b"\1" * MIB
        attempt = driver.ensure_volume(new_uid(), None, of_snapshot(volume, snapshot, linked=True), True)
        assert (await refused(attempt)).reason == "LinkedThick"
        assert (await refused(driver.forget_snapshot(volume, snapshot))).reason == "SnapshotInUse"
        await driver.revert_volume(volume, snapshot, new_uid())
        await driver.remove_volume(linked)
        await driver.forget_snapshot(volume, snapshot)  # the volume itself shares its blocks, and does not need it
        await driver.remove_volume(volume)


class Killed(BaseException):
    """The agent died."""


class Mortal(VolumeGroup):
    """Lives for so many commands that change something."""

    left: int

    async def do(self, command: Sequence[str]) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        await super().do(command)


async def dying(near: Near, verb: Callable[[LvmStorage], Awaitable[object]]) -> int:
    """Have agents die before the first, the second, ... command of the verb, until one lives. How many died."""
    for lives in range(20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kumulus_agents.storage.lvm.driver.VolumeGroup", Mortal)
            driver = near.again()
        driver._group.left = lives
        try:
            await verb(driver)
        except Killed:
            continue
        return lives
    pytest.fail("it never ends")


@here
class TestCrash:
    """An agent that dies before any command of LVM leaves nothing that is taken for whole, and nothing for ever."""

    async def test_copies(self, near: Near) -> None:
        source, copy = new_uid(), new_uid()
        made = await near.driver.ensure_volume(source, MIB, None, False)
        write(made.path, 0, b"\1" * 4096)

        async def verb(driver: LvmStorage) -> None:
            assert await driver.volume(copy) is None
            await driver.ensure_volume(copy, 2 * MIB, VolumeOrigin(volume=source), False)

        assert await dying(near, verb) >= 3
        found = await near.driver.volume(copy)
        assert found is not None
        assert content(found.path) == (b"\1" * 4096).ljust(2 * MIB, b"\0")
        for volume in (source, copy):
            await near.driver.remove_volume(volume)
        assert set(near.group.tags()) == {names.image(near.image.uid)}

    async def test_going_back(self, near: Near) -> None:
        volume, request = new_uid(), new_uid()
        made = await near.driver.ensure_volume(volume, MIB, None, False)
        write(made.path, 0, b"\1" * 4096)
        snapshot = await taken(near, volume)
        await near.driver.grow_volume(volume, 2 * MIB)
        write(made.path, 0, b"\2" * 4096)

        async def verb(driver: LvmStorage) -> None:
            found = await driver.volume(volume)
            assert found is not None, "there is always one"
            assert found.virtual_size == 2 * MIB
            assert content(found.path)[:4096] == bytes([1 if found.reverted == request else 2]) * 4096
            await driver.revert_volume(volume, snapshot, request)

        assert await dying(near, verb) >= 3
        await near.driver.forget_snapshot(volume, snapshot)

        async def remove(driver: LvmStorage) -> None:
            await driver.remove_volume(volume)

        await dying(near, remove)
        assert set(near.group.tags()) == {names.image(near.image.uid)}

    async def test_disks_and_images(self, near: Near, server: Server) -> None:
        owner, image = new_uid(), image_of(RAW)
        source = http(server.on("/again.raw", Answer(RAW)))

        async def bring(driver: LvmStorage) -> None:
            assert await driver.image(image.uid) is None
            await driver.import_image(image, source, ignore)

        async def make(driver: LvmStorage) -> None:
            await driver.ensure_disk(owner, "root", image.uid, 8 * MIB)

        assert await dying(near, bring) >= 2
        assert await dying(near, make) >= 2
        root = await near.driver.ensure_disk(owner, "root", image.uid, None)
        assert content(root.path) == RAW.ljust(8 * MIB, b"\0")
        await near.driver.remove_disks(owner)
        await near.driver.remove_image(image.uid)
        assert set(near.group.tags()) == {names.image(near.image.uid)}


@here
class TestPools:
    """Pools that are not as they should be."""

    async def test_what_is_not_there(self, group: Group, settings: StorageSettings) -> None:
        for changes, reason in (
            ({"volume_group": "nowhere"}, "VolumeGroupMissing"),
            ({"thin_pool": "no"}, "ThinPoolMissing"),
        ):
            driver = LvmStorage(group.ref(**changes), settings)
            for attempt in (driver.prepare(), driver.ensure_volume(new_uid(), MIB, None, False)):
                assert (await refused(attempt)).reason == reason

    async def test_one_that_does_not_zero_is_refused(self, near: Near) -> None:
        group, volume = near.group, new_uid()
        await near.driver.ensure_volume(volume, MIB, None, False)
        group.lvm("lvchange", "--zero", "n", f"{group.name}/{POOL}")
        try:
            for attempt in (
                near.driver.prepare(),
                near.driver.ensure_volume(new_uid(), MIB, None, False),
                near.driver.ensure_disk(new_uid(), "root", near.image.uid, None),
            ):
                error = await refused(attempt)
                assert error.reason == "ThinPoolNotZeroing"
                assert f"lvchange --zero y {group.name}/{POOL}" in str(error)
            assert await near.driver.open_volume(volume) is not None, "what is there is used"
            await near.driver.remove_volume(volume)
        finally:
            group.lvm("lvchange", "--zero", "y", f"{group.name}/{POOL}")
        await near.driver.prepare()

    async def test_one_that_is_full(self, near: Near) -> None:
        """Nothing is begun that cannot end: a thin pool that runs full stops everybody in it."""
        usage = await near.driver.prepare()
        volume = new_uid()
        error = await refused(near.driver.ensure_volume(volume, usage.capacity, None, True))
        assert error.reason == "NoSpace"
        assert names.volume(volume) not in near.group.tags()
