"""The driver rbd against a real Ceph cluster, and guests that have its images as disks."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import itertools
import json
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef, UploadFetch
from kumulus.api.order_names import pool_secret_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters, PoolSecret, RbdParameters
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.hypervisor.domain import DomainDisk
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.lock import Locking
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import ImportProgress, StorageError, VolumeContent
from kumulus_agents.storage.pulse import Pulsed
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.driver import RbdStorage
from kumulus_agents.storage.settings import CephSettings, FetchSettings, StorageSettings
from kumulus_agents.storage.whole import TakesImages, TakesUploads
from tests.contract import guest
from tests.contract.ceph import POOL, USER, CephCluster, why_none
from tests.contract.hypervisor import Heard, detached, eventually, the
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.contract.snapshots import InstantContract, linked_to, of_snapshot, taken
from tests.contract.storage import Bench, StorageContract
from tests.patience import PATIENCE as DEADLINES
from tests.unit.storage.material import disk, http, ignore, pool_ref
from tests.unit.storage.server import Answer, Server, serving

MIB = 1 << 20
ANSWERS = 30.0
"""Seconds; a busy machine is no stalled cluster."""
PATIENCE = 4.0
"""Seconds, where nothing will answer."""


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    if (why := why_none()) is not None:
        pytest.skip(why)
    cluster = CephCluster(tmp_path_factory.mktemp("ceph") / "root")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@dataclass
class Given:
    """Secrets that a test gives out."""

    secrets: Mapping[str, Mapping[str, bytes]]
    reads: int = 0

    async def read(self, name: str) -> Mapping[str, bytes]:
        self.reads += 1
        if name not in self.secrets:
            raise StorageError("There is no such Secret.", reason="SecretNotFound")
        return self.secrets[name]


def pool_of(ceph: CephCluster, **changes: object) -> PoolRef:
    parameters = RbdParameters(monitors=ceph.monitors, pool=POOL, user=USER, secret=PoolSecret(name="ceph"))
    rbd = parameters.model_copy(update=changes)
    return PoolRef(uid=str(uuid.uuid4()), name="far", driver=PoolDriver.RBD, parameters=PoolParameters(rbd=rbd))


def secrets_of(pool: PoolRef, key: str) -> Given:
    return Given({pool_secret_name(pool.uid): {"key": f"{key}\n".encode()}})


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    return StorageSettings(
        scratch=PurePosixPath(tmp_path / "scratch"),
        ceph=CephSettings(runtime=PurePosixPath(tmp_path / "run"), answer_seconds=ANSWERS),
        fetch=FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),), backoff=0),
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving("127.0.0.1") as made:
        yield made


class TestContract(StorageContract, InstantContract):
    """The contracts, against the cluster."""

    @pytest.fixture
    def bench(self, ceph: CephCluster, settings: StorageSettings, server: Server) -> Bench:
        pool = pool_of(ceph)
        secrets, data = secrets_of(pool, ceph.key()), disk()
        url = server.on("/disk.raw", Answer(data))
        image = ImageRef(uid=str(uuid.uuid4()), sha256=hashlib.sha256(data).hexdigest(), format=ImageFormat.RAW)

        def driver() -> RbdStorage:
            return RbdStorage(pool, settings, secrets)

        return Bench(
            driver=driver(),
            again=driver,
            image=image,
            source=http(url),
            virtual_size=len(data),
            fetches=lambda: len(server.requests),
            format="raw",
        )


@dataclass(frozen=True)
class Far:
    """A driver, what it was made of, and an image that is in its pool."""

    driver: RbdStorage
    pool: PoolRef
    secrets: Given
    settings: StorageSettings
    image: ImageRef

    def again(self, **changes: object) -> RbdStorage:
        """The driver as a restarted agent, with other settings of Ceph, would make it."""
        ceph = self.settings.ceph.model_copy(update=changes)
        return RbdStorage(self.pool, self.settings.model_copy(update={"ceph": ceph}), self.secrets)


RAW = disk()


@pytest.fixture
async def far(ceph: CephCluster, settings: StorageSettings, server: Server) -> Far:
    pool = pool_of(ceph)
    secrets = secrets_of(pool, ceph.key())
    driver = RbdStorage(pool, settings, secrets)
    image = ImageRef(uid=new_uid(), sha256=hashlib.sha256(RAW).hexdigest(), format=ImageFormat.RAW)
    await driver.import_image(image, http(server.on("/disk.raw", Answer(RAW))), ignore)
    return Far(driver, pool, secrets, settings, image)


def new_uid() -> str:
    return str(uuid.uuid4())


def content(ceph: CephCluster, name: str, directory: Path) -> bytes:
    """The bytes of an image of the pool."""
    file = directory / f"{new_uid()}.raw"
    subprocess.run(["qemu-img", "convert", "--image-opts", ceph.opened(name), "-O", "raw", str(file)], check=True)
    return file.read_bytes()


def write(ceph: CephCluster, name: str, offset: int, size: int, byte: int) -> None:
    subprocess.run(
        ["qemu-io", "--image-opts", ceph.opened(name), "-c", f"write -P {byte} {offset} {size}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


class Writer:
    """An emulator that has an image of the pool open, as a machine on some host has."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def write(self, byte: int, offset: int = 0) -> bool:
        """Whether 4 KiB of it could be written."""
        await self.begin(byte, offset)
        return await self.done()

    async def begin(self, byte: int, offset: int = 0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"write -P {byte} {offset} 4096\n".encode())
        await self.process.stdin.drain()

    async def done(self) -> bool:
        """How the write ends that was begun."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60 * DEADLINES):
            while line := await self.process.stdout.readline():
                if b"wrote" in line or b"failed" in line:
                    return b"wrote" in line
        raise AssertionError("it has ended")


@contextlib.asynccontextmanager
async def writer(ceph: CephCluster, volume: str) -> AsyncIterator[Writer]:
    """One that has written to the volume."""
    process = await asyncio.create_subprocess_exec(
        *("qemu-io", "--image-opts", ceph.opened(names.volume(volume))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        made = Writer(process)
        assert await made.write(1)
        yield made
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5 * DEADLINES):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def refused(attempt: Awaitable[object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await attempt
    return caught.value


class TestData:
    """What is in the pool is what was meant."""

    async def test_disks_volumes_and_copies_have_what_their_origin_has(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        owner, thin, thick, copy = new_uid(), new_uid(), new_uid(), new_uid()
        made = await far.driver.ensure_disk(owner, "root", far.image.uid, 8 * MIB)
        origin = VolumeOrigin(image=far.image)
        await far.driver.ensure_volume(thin, 6 * MIB, origin, False)
        await far.driver.ensure_volume(thick, 8 * MIB, origin, True)
        write(ceph, names.volume(thin), 5 * MIB, 4096, 7)
        await far.driver.ensure_volume(copy, 10 * MIB, VolumeOrigin(volume=thin), False)
        written = RAW + bytes(MIB) + b"\7" * 4096
        assert made.path == f"rbd:{POOL}/{names.disk(owner, made.path[-36:])}"
        assert content(ceph, made.path.rpartition("/")[2], tmp_path) == RAW.ljust(8 * MIB, b"\0")
        assert content(ceph, names.volume(thick), tmp_path) == RAW.ljust(8 * MIB, b"\0")
        assert content(ceph, names.volume(copy), tmp_path) == written.ljust(10 * MIB, b"\0")
        assert json.loads(ceph.rbd("snap", "ls", f"{POOL}/{names.volume(thin)}", "--format", "json")) == []
        for volume in (thin, thick, copy):
            await far.driver.remove_volume(volume)
        await far.driver.remove_disks(owner)
        await far.driver.remove_image(far.image.uid)
        assert far.image.uid not in ceph.rbd("ls", POOL)
        assert json.loads(ceph.rbd("trash", "ls", POOL, "--format", "json")) == []
        left = {path.name for path in Path(far.settings.scratch).rglob("*") if path.is_file()}
        assert left <= {marker.NAME}

    async def test_a_disk_that_was_removed_is_nobodys(self, ceph: CephCluster, far: Far, tmp_path: Path) -> None:
        before, after = new_uid(), new_uid()
        await far.driver.ensure_volume(before, 8 * MIB, None, False)
        write(ceph, names.volume(before), 0, 8 * MIB, 0x42)
        await far.driver.remove_volume(before)
        for thick in (False, True):
            await far.driver.ensure_volume(after, 8 * MIB, None, thick)
            assert content(ceph, names.volume(after), tmp_path) == bytes(8 * MIB)
            await far.driver.remove_volume(after)

    async def test_what_somebody_has_open_is_neither_copied_nor_grown_nor_removed(
        self, ceph: CephCluster, far: Far
    ) -> None:
        volume = new_uid()
        await far.driver.ensure_volume(volume, MIB, None, False)
        async with writer(ceph, volume):
            attempts: list[Callable[[], Awaitable[object]]] = [
                lambda: far.driver.grow_volume(volume, 2 * MIB),
                lambda: far.driver.ensure_volume(new_uid(), None, VolumeOrigin(volume=volume), False),
                lambda: far.driver.remove_volume(volume),
            ]
            for attempt in attempts:
                assert (await refused(attempt())).reason == "VolumeInUse"
            assert (await refused(far.driver.begin_snapshot(volume, new_uid()))).reason == "VolumeInUse"
        assert (await far.driver.grow_volume(volume, 2 * MIB)).virtual_size == 2 * MIB
        await far.driver.remove_volume(volume)


class TestHosts:
    """Hosts that share the pool: they see each other live, and none writes to what another has taken."""

    async def test_a_heartbeat_is_seen_by_the_other_host_and_is_no_image(self, ceph: CephCluster, far: Far) -> None:
        other, before = far.again(), ceph.rbd("ls", POOL)
        host = f"h-{new_uid()}"
        assert isinstance(far.driver, Pulsed)
        assert await other.last_beat(host) is None
        for beat in ("life-1", "life-2"):
            await far.driver.beat(host, beat)
            assert await other.last_beat(host) == beat
        assert ceph.rbd("ls", POOL) == before

    @pytest.mark.wide
    async def test_whoever_did_not_give_a_volume_up_is_shut_out_of_it(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        volume, other = new_uid(), far.again()
        assert isinstance(other, Locking)
        await far.driver.claim_volume(volume, "a", 0)
        await far.driver.ensure_volume(volume, MIB, None, False)
        async with writer(ceph, volume) as stale, writer(ceph, volume) as hung:
            hung.process.send_signal(signal.SIGSTOP)
            await hung.begin(9)
            for _ in range(2):
                await other.shut_out(volume, "b", 1, used=False)
                await other.claim_volume(volume, "b", 1)
                await other.shut_out(volume, "b", 1, used=False)
            assert (await refused(far.driver.claim_volume(volume, "a", 0))).reason == "VolumeElsewhere"
            async with writer(ceph, volume) as taken_by:
                assert await taken_by.write(2)
                hung.process.send_signal(signal.SIGCONT)
                assert not await hung.done()
                assert not await stale.write(8)
                await other.shut_out(volume, "b", 1, used=False)  # it was done once
                assert await taken_by.write(3, 4096)
        assert content(ceph, names.volume(volume), tmp_path)[:8192] == b"\2" * 4096 + b"\3" * 4096
        await far.driver.remove_volume(volume)


class TestSnapshots:
    """Snapshots are the cluster's own. The witness is data."""

    async def test_a_snapshot_keeps_what_there_was(self, ceph: CephCluster, far: Far, tmp_path: Path) -> None:
        volume, snapshot, copy = new_uid(), new_uid(), new_uid()
        await far.driver.ensure_volume(volume, MIB, None, False)
        for byte in (1, 2):
            write(ceph, names.volume(volume), 0, 4096, byte)
            await far.driver.begin_snapshot(volume, snapshot)  # nobody knows how far the first attempt came
        await far.driver.confirm_snapshot(volume, snapshot, "2026-11-20T12:00:00Z", ())
        write(ceph, names.volume(volume), 0, 4096, 3)
        await far.driver.begin_snapshot(volume, snapshot)
        await far.driver.grow_volume(volume, 2 * MIB)
        await far.driver.ensure_volume(copy, None, of_snapshot(volume, snapshot), False)
        assert content(ceph, names.volume(copy), tmp_path) == (b"\2" * 4096).ljust(MIB, b"\0")
        request = new_uid()
        for byte in (2, 4):
            await far.driver.revert_volume(volume, snapshot, request)
            assert content(ceph, names.volume(volume), tmp_path)[:4096] == bytes([byte]) * 4096
            write(ceph, names.volume(volume), 0, 4096, 4)

    async def test_a_revert_that_was_cut_short_makes_no_volume_smaller(self, ceph: CephCluster, far: Far) -> None:
        volume = new_uid()
        await far.driver.ensure_volume(volume, MIB, None, False)
        snapshot = await taken(far.driver, volume)
        await far.driver.grow_volume(volume, 4 * MIB)
        name, noted = names.volume(volume), {"size": 4 * MIB, "of": names.volume(volume)}
        ceph.rbd("image-meta", "set", f"{POOL}/{name}", "kumulus.reverting", json.dumps(noted))
        ceph.rbd("snap", "rollback", "--no-progress", f"{POOL}/{name}@{names.snapshot(snapshot)}")
        assert (await far.driver.volume(volume) or pytest.fail("it is gone")).virtual_size == MIB
        assert (await far.driver.revert_volume(volume, snapshot, new_uid())).virtual_size == 4 * MIB

    async def test_linked_volumes_have_what_their_snapshot_has_and_take_no_room(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        volume, clone = new_uid(), new_uid()
        await far.driver.ensure_volume(volume, 8 * MIB, VolumeOrigin(image=far.image), False)
        write(ceph, names.volume(volume), 6 * MIB, MIB, 1)
        snapshot = await taken(far.driver, volume)
        write(ceph, names.volume(volume), 6 * MIB, MIB, 2)
        made = await far.driver.ensure_volume(clone, 16 * MIB, linked_to(volume, snapshot), False)
        assert made.used == 0
        wanted = (RAW.ljust(6 * MIB, b"\0") + b"\1" * MIB).ljust(16 * MIB, b"\0")
        assert content(ceph, names.volume(clone), tmp_path) == wanted
        write(ceph, names.volume(clone), 0, 4096, 3)
        assert content(ceph, f"{names.volume(volume)}@{names.snapshot(snapshot)}", tmp_path)[:4096] == RAW[:4096]
        # Another host, or whoever: the cluster itself keeps what a volume stands on.
        with pytest.raises(AssertionError, match="protected"):
            ceph.rbd("snap", "rm", "--no-progress", f"{POOL}/{names.volume(volume)}@{names.snapshot(snapshot)}")
        error = await refused(far.driver.forget_snapshot(volume, snapshot))
        assert (error.reason, clone in str(error)) == ("SnapshotInUse", True)
        await far.driver.remove_volume(clone)
        await far.driver.forget_snapshot(volume, snapshot)
        await far.driver.remove_volume(volume)
        await far.driver.remove_image(far.image.uid)
        assert json.loads(ceph.rbd("trash", "ls", POOL, "--format", "json")) == []

    async def test_a_link_that_was_cut_short_is_made_anew(self, ceph: CephCluster, far: Far, tmp_path: Path) -> None:
        volume, clone = new_uid(), new_uid()
        await far.driver.ensure_volume(volume, MIB, None, False)
        write(ceph, names.volume(volume), 0, 4096, 1)
        snapshot = await taken(far.driver, volume)
        at = f"{POOL}/{names.volume(volume)}@{names.snapshot(snapshot)}"
        ceph.rbd("snap", "protect", at)
        ceph.rbd("clone", "--rbd-default-clone-format", "1", at, f"{POOL}/{names.making(names.volume(clone))}")
        assert await far.driver.volume(clone) is None
        assert (await refused(far.driver.forget_snapshot(volume, snapshot))).reason == "SnapshotInUse"
        await far.driver.ensure_volume(clone, None, linked_to(volume, snapshot), False)
        assert content(ceph, names.volume(clone), tmp_path)[:4096] == b"\1" * 4096
        await far.driver.remove_volume(clone)
        await far.driver.forget_snapshot(volume, snapshot)

    @pytest.mark.wide
    async def test_what_changed_is_never_less_than_what_is_different(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        """Between all pairs of moments: across writes, discards, growth and a revert; and it is not everything."""
        volume, image = new_uid(), VolumeOrigin(image=far.image)
        name = names.volume(volume)
        await far.driver.ensure_volume(volume, 24 * MIB, image, False)
        moments: list[str | None] = []
        for number, place in enumerate((1, 9, 9, 17)):
            write(ceph, name, place * MIB, 64 << 10, number + 1)
            moments.append(await taken(far.driver, volume))
        discard(ceph, name, 9 * MIB, 64 << 10)
        await far.driver.grow_volume(volume, 40 * MIB)
        write(ceph, name, 33 * MIB, 64 << 10, 9)
        moments.append(await taken(far.driver, volume))
        await far.driver.revert_volume(volume, str(moments[1]), new_uid())
        moments.append(await taken(far.driver, volume))
        write(ceph, name, 22 * MIB, 64 << 10, 10)
        moments.append(None)
        had = [
            content(ceph, name if one is None else f"{name}@{names.snapshot(one)}", tmp_path).ljust(40 * MIB, b"\0")
            for one in moments
        ]
        sizes = [24 * MIB] * 4 + [40 * MIB] * 3
        for since, before in zip(moments[:-1], had, strict=False):
            for until, after, size in zip(moments, had, sizes, strict=True):
                told = await far.driver.changes(volume, since, until)
                blocks = {
                    block for one in told for block in range(one.offset // 4096, -(-(one.offset + one.length) // 4096))
                }
                assert blocks >= {block for block in different(before, after) if block * 4096 < size}
                assert all(0 <= one.offset < one.offset + one.length <= size for one in told)
                assert sum(one.length for one in told) <= 24 * MIB
                assert since != until or told == []
        since_it_was_made = await far.driver.changes(volume)
        assert {MIB // 4096, 9 * MIB // 4096, 22 * MIB // 4096} <= {
            block for one in since_it_was_made for block in range(one.offset // 4096, (one.offset + one.length) // 4096)
        }
        assert (await refused(far.driver.changes(volume, new_uid()))).reason == "SnapshotNotReady"
        assert (await refused(far.driver.changes(new_uid()))).reason == "VolumeNotReady"

    @pytest.mark.wide
    async def test_images_are_made_of_volumes_and_snapshots(self, ceph: CephCluster, far: Far, tmp_path: Path) -> None:
        volume = new_uid()
        await far.driver.ensure_volume(volume, 8 * MIB, VolumeOrigin(image=far.image), False)
        write(ceph, names.volume(volume), 6 * MIB, MIB, 1)
        then = (RAW.ljust(6 * MIB, b"\0") + b"\1" * MIB).ljust(8 * MIB, b"\0")
        snapshot = await taken(far.driver, volume)
        write(ceph, names.volume(volume), 7 * MIB, MIB, 2)
        now = then[: 7 * MIB] + b"\2" * MIB
        made = []
        for source, data in ((VolumeContent(volume), now), (VolumeContent(volume, snapshot), then)):
            image, told = ImageRef(uid=new_uid(), format=ImageFormat.QCOW2), list[ImportProgress]()
            stored = await far.driver.import_image(image, source, told.append)
            assert (stored.format, stored.source_format, stored.virtual_size) == ("raw", "raw", 8 * MIB)
            assert stored.sha256 == hashlib.sha256(data).hexdigest()
            assert [stage for stage, _ in itertools.groupby(one.stage for one in told)] == ["Copying", "Inspecting"]
            assert await far.again().import_image(image, source, ignore) == stored
            made.append((image, data))
        assert await far.driver.snapshot(volume, snapshot) is not None
        await far.driver.forget_snapshot(volume, snapshot)
        await far.driver.remove_volume(volume)
        await far.driver.remove_image(far.image.uid)
        for image, data in made:
            of_it = new_uid()
            await far.driver.ensure_volume(of_it, None, VolumeOrigin(image=image), False)
            assert content(ceph, names.volume(of_it), tmp_path) == data
            assert (await refused(far.driver.remove_image(image.uid))).reason == "ImageInUse"
            await far.driver.remove_volume(of_it)
            await far.driver.remove_image(image.uid)
        assert {image.uid for image, _ in made} & {line[-36:] for line in ceph.rbd("ls", POOL).split()} == set()

    async def test_an_image_is_made_of_what_is_there_and_of_that_alone(self, ceph: CephCluster, far: Far) -> None:
        volume, image = new_uid(), ImageRef(uid=new_uid(), sha256="0" * 64, format=ImageFormat.QCOW2)
        for source, reason in (
            (VolumeContent(volume), "VolumeNotReady"),
            (VolumeContent(volume, new_uid()), "SnapshotNotReady"),
            (VolumeContent("../x"), "BadName"),
            (VolumeContent(volume, "../x"), "BadName"),
        ):
            assert (await refused(far.driver.import_image(image, source, ignore))).reason == reason
        await far.driver.ensure_volume(volume, MIB, None, False)
        error = await refused(far.driver.import_image(image, VolumeContent(volume), ignore))
        assert (error.reason, error.retryable) == ("ChecksumMismatch", False)
        assert await far.driver.image(image.uid) is None
        assert image.uid not in ceph.rbd("ls", POOL)
        # One that was cut short, with what it left in the volume.
        ceph.rbd("snap", "create", "--no-progress", f"{POOL}/{names.volume(volume)}@{names.copied(image.uid)}")
        ceph.rbd("create", "--size", "1M", f"{POOL}/{names.making(names.image(image.uid))}")
        blank = image.model_copy(update={"sha256": hashlib.sha256(bytes(MIB)).hexdigest()})
        assert (await far.driver.import_image(blank, VolumeContent(volume), ignore)).virtual_size == MIB
        await far.driver.remove_volume(volume)
        await far.driver.remove_image(image.uid)

    async def test_an_image_is_uploaded_and_imported_once_it_is_whole(self, ceph: CephCluster, far: Far) -> None:
        assert isinstance(far.driver, TakesUploads)
        data = RAW[: 2 * MIB]
        image = ImageRef(uid=new_uid(), sha256=hashlib.sha256(data).hexdigest(), format=ImageFormat.RAW)
        assert len(data) < far.driver.upload_max
        assert not await far.driver.uploaded(image.uid, 60)
        for half in (data[:MIB], data[MIB:]):
            async with far.driver.upload(image.uid) as part:
                await part.append(half)
                if part.size == len(data):
                    await part.complete()
        with ceph.silent():
            hasty = far.again(answer_seconds=PATIENCE)
            error = await refused(hasty.import_image(image, UploadFetch(), ignore))
            assert error.reason == "PoolStalled"
        assert await far.driver.uploaded(image.uid, 60)
        made = await far.driver.import_image(image, UploadFetch(), ignore)
        assert (made.sha256, made.virtual_size) == (image.sha256, len(data))
        assert not await far.driver.uploaded(image.uid, 60)
        await far.driver.remove_image(image.uid)

    async def test_an_image_of_another_pool_comes_from_a_host_that_has_it(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        near = DirStorage(pool_ref(tmp_path / "near"), StorageSettings(roots=(PurePosixPath(tmp_path),), readers=()))
        volume, image = new_uid(), ImageRef(uid=new_uid(), format=ImageFormat.QCOW2)
        await near.ensure_volume(volume, 4 * MIB, None, False)
        stored = await near.import_image(image, VolumeContent(volume), ignore)
        image, digest = image.model_copy(update={"sha256": stored.sha256}), await near.measure_image(image.uid)
        assert digest is not None
        given = await asyncio.to_thread(Path(stored.path).read_bytes)
        assert isinstance(far.driver, TakesImages)

        async def fail(part: Part, pace: Pace) -> None:
            raise StorageError("Nobody answers.", reason="PeersUnavailable")

        async def receive(part: Part, pace: Pace) -> None:
            await part.append(given)

        assert (await refused(far.driver.copy_image(image, digest, fail, ignore))).reason == "PeersUnavailable"
        assert await far.driver.image(image.uid) is None
        for _ in range(2):
            made = await far.driver.copy_image(image, digest, receive, ignore)
            assert (made.format, made.virtual_size, made.sha256) == ("raw", 4 * MIB, image.sha256)
            assert await far.again().image(image.uid) == made
        assert content(ceph, names.image(image.uid), tmp_path) == bytes(4 * MIB)
        await far.driver.remove_image(image.uid)
        left = {path.name for path in Path(far.settings.scratch).rglob("*") if path.is_file()}
        assert left <= {marker.NAME}


def discard(ceph: CephCluster, name: str, offset: int, size: int) -> None:
    command = ["qemu-io", "--image-opts", ceph.opened(name) + ",discard=unmap", "-c", f"discard {offset} {size}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def different(one: bytes, other: bytes) -> set[int]:
    """Blocks of 4 KiB that are not the same."""
    return {at // 4096 for at in range(0, len(one), 4096) if one[at : at + 4096] != other[at : at + 4096]}


class TestCluster:
    """A cluster that is not as it should be."""

    async def test_one_that_falls_silent_hangs_nobody_and_heals(self, ceph: CephCluster, far: Far) -> None:
        """With a pool in use: a question, a change, and everything that comes after them."""
        driver, volume = far.again(answer_seconds=2.0), new_uid()
        await far.driver.ensure_volume(volume, MIB, None, False)
        for daemons in (("osd",), ()):
            with ceph.silent(*daemons):
                began = time.monotonic()
                error = await refused(driver.volume(volume))
                assert (error.reason, error.retryable) == ("PoolStalled", True)
                assert "ceph status" in str(error)
                assert time.monotonic() - began < 15
                attempts = [driver.ensure_volume(new_uid(), MIB, None, False) for _ in range(20)]
                answers = await asyncio.gather(*attempts, driver.remove_volume(volume), return_exceptions=True)
                assert {error.reason for error in answers if isinstance(error, StorageError)} == {"PoolStalled"}
                assert time.monotonic() - began < 20, "as long as one of them takes, and not one after the other"
                leave = await refused(far.again(answer_seconds=2.0).prepare() if not daemons else driver.volume(volume))
                assert leave.reason == "PoolStalled"

        async def heals() -> bool:
            try:
                return await driver.volume(volume) is not None
            except StorageError as error:
                assert error.reason == "PoolStalled"
                return False

        await eventually(heals, "the driver that found it silent does not find that it answers")
        await far.driver.remove_volume(volume)

    async def test_the_key_is_in_a_private_file_and_nowhere_else(self, ceph: CephCluster, far: Far) -> None:
        files = [path for path in Path(far.settings.ceph.runtime).rglob("*") if path.is_file()]
        having = [path for path in files if ceph.key() in path.read_text()]
        assert [path.name for path in having] == ["keyring"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert having[0].parent.stat().st_mode & 0o777 == 0o700
        volume = await far.driver.ensure_volume(new_uid(), MIB, None, False)
        assert ceph.key() not in repr(volume) + repr(far.driver.__dict__)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LibvirtWorld]:
    libvirtd = PrivateLibvirtd(tmp_path / "libvirtd")
    try:
        libvirtd.start()
        (tmp_path / "machines").mkdir()
        made = LibvirtWorld(libvirtd, guest.Disks(tmp_path), tmp_path / "machines")
        yield made
        made.clear()
    finally:
        libvirtd.stop()


@pytest.mark.libvirt
class TestGuest:
    """A guest on QEMU has images of the cluster as its disks."""

    async def test_it_boots_from_one_and_gets_and_loses_another(
        self, ceph: CephCluster, far: Far, server: Server, world: LibvirtWorld, tmp_path: Path
    ) -> None:
        bootable = await asyncio.to_thread(guest.Disks(tmp_path)[guest.Guest.WAIT].read_bytes)
        digest = hashlib.sha256(bootable).hexdigest()
        image = ImageRef(uid=new_uid(), sha256=digest, format=ImageFormat.RAW)
        await far.driver.import_image(image, http(server.on("/boot.raw", Answer(bootable))), ignore)
        volume, spec = new_uid(), world.spec()
        uid = spec.marks.uid
        root = await far.driver.ensure_disk(uid, "root", image.uid, None)
        data = await far.driver.ensure_volume(volume, MIB, None, False)
        spec = replace(spec, disks=(DomainDisk("root", root.source, root.format, boot_order=1),))
        disk_of_volume = DomainDisk("data", data.source, data.format, volume=volume)
        driver, heard = world.driver(), Heard()
        await driver.connect(heard)
        try:
            await heard.about("")
            await driver.start(spec)
            await world.booted(spec)
            await driver.attach_disk(uid, disk_of_volume)
            attached = (await the(driver, spec)).disks
            assert [(one.path, one.volume) for one in attached] == [(root.path, None), (data.path, volume)]
            for attempt in (far.driver.grow_volume(volume, 2 * MIB), far.driver.remove_volume(volume)):
                assert (await refused(attempt)).reason == "VolumeInUse"
            grown = await far.driver.grow_volume(volume, 4 * MIB, lambda size: driver.resize_disk(uid, volume, size))
            assert grown.virtual_size == 4 * MIB
            assert f"Capacity:       {4 * MIB}" in world.virsh("domblkinfo", uid, "sda")
            told = [
                world.virsh("dumpxml", "--security-info", uid),
                (Path("/proc") / str(world.qemu(spec)) / "cmdline").read_text(),
                *(path.read_text(errors="replace") for path in world.files_about(uid) if path.is_file()),
            ]
            assert [text for text in told if ceph.key() in text] == []
            assert world.virsh("secret-list") == ""
            await driver.detach_disk(uid, volume)
            await detached(driver, spec, disk_of_volume)
            assert (await far.driver.grow_volume(volume, 5 * MIB)).virtual_size == 5 * MIB
            await driver.force_off(uid)
            await driver.start(spec)
            await driver.remove(uid)
        finally:
            await driver.close()
        await far.driver.remove_disks(uid)
        await far.driver.remove_volume(volume)
        await far.driver.remove_image(image.uid)
        assert not {uid, volume, image.uid} & set(ceph.rbd("ls", POOL).split())
