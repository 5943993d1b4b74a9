"""The driver rbd against a real Ceph cluster, and guests that have its images as disks."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.host import ImageRef, PoolRef, VolumeOrigin, pool_secret_name
from kumulus.api.pools import PoolDriver, PoolParameters, PoolSecret, RbdParameters
from kumulus.api.storage import ImageFormat
from kumulus_agents.hypervisor.protocol import DomainDisk
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.driver import RbdStorage
from kumulus_agents.storage.settings import CephSettings, FetchSettings, StorageSettings
from tests.contract import guest
from tests.contract.ceph import POOL, USER, CephCluster, why_none
from tests.contract.hypervisor import Heard, detached, the
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.contract.storage import Bench, StorageContract
from tests.unit.storage.material import disk, http, ignore
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


class TestContract(StorageContract):
    """The contract, against the cluster."""

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
        writer = await asyncio.create_subprocess_exec(
            *("qemu-io", "--image-opts", ceph.opened(names.volume(volume))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"write -P 1 0 512\n")
        await writer.stdout.readuntil(b"wrote")
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: far.driver.grow_volume(volume, 2 * MIB),
            lambda: far.driver.ensure_volume(new_uid(), None, VolumeOrigin(volume=volume), False),
            lambda: far.driver.remove_volume(volume),
        ]
        for attempt in attempts:
            assert (await refused(attempt())).reason == "VolumeInUse"
        assert (await refused(far.driver.begin_snapshot(volume, new_uid()))).reason == "SnapshotUnsupported"
        writer.stdin.close()
        await writer.wait()
        assert (await far.driver.grow_volume(volume, 2 * MIB)).virtual_size == 2 * MIB
        await far.driver.remove_volume(volume)


class TestSnapshots:
    """Snapshots are the cluster's own."""

    async def test_a_snapshot_keeps_what_there_was_until_it_goes(
        self, ceph: CephCluster, far: Far, tmp_path: Path
    ) -> None:
        volume, snapshot, copy = new_uid(), new_uid(), new_uid()
        origin = VolumeOrigin.model_validate({"snapshot": {"volume": volume, "snapshot": snapshot}})
        made = await far.driver.ensure_volume(volume, MIB, None, False)
        write(ceph, names.volume(volume), 0, 4096, 1)
        assert await far.driver.snapshot(volume, snapshot) is None
        assert (await far.driver.begin_snapshot(volume, snapshot)).source == made.source
        begun = await far.driver.snapshot(volume, snapshot)
        assert begun is not None
        assert begun.taken_at is None
        assert (await refused(far.driver.ensure_volume(copy, None, origin, False))).reason == "SnapshotNotReady"
        write(ceph, names.volume(volume), 0, 4096, 2)
        await far.driver.begin_snapshot(volume, snapshot)  # nobody knows how far the first attempt came
        for at in ("2026-11-20T12:00:00Z", "2027-01-01T00:00:00Z"):
            taken = await far.driver.confirm_snapshot(volume, snapshot, at, ())
            assert (taken.virtual_size, taken.taken_at) == (MIB, "2026-11-20T12:00:00Z")
        write(ceph, names.volume(volume), 0, 4096, 3)
        await far.driver.begin_snapshot(volume, snapshot)
        await far.driver.grow_volume(volume, 2 * MIB)
        await far.driver.ensure_volume(copy, None, origin, False)
        assert content(ceph, names.volume(copy), tmp_path) == (b"\2" * 4096).ljust(MIB, b"\0")
        (changed,) = await far.driver.changes(volume, snapshot)
        assert changed.offset == 0
        assert 4096 <= changed.length <= 4 * MIB
        assert await far.driver.changes(volume, snapshot, snapshot) == []
        assert (await refused(far.driver.changes(volume, new_uid()))).reason == "SnapshotNotReady"
        request = new_uid()
        for byte in (2, 4):
            reverted = await far.driver.revert_volume(volume, snapshot, request)
            assert (reverted.virtual_size, reverted.reverted) == (2 * MIB, request)
            assert content(ceph, names.volume(volume), tmp_path)[:4096] == bytes([byte]) * 4096
            write(ceph, names.volume(volume), 0, 4096, 4)
        assert (await refused(far.driver.revert_volume(volume, new_uid(), new_uid()))).reason == "SnapshotNotReady"
        assert (await refused(far.driver.remove_volume(volume))).reason == "VolumeInUse"
        await far.driver.adopt(volume, made.path)
        assert (await refused(far.driver.adopt(volume, "/elsewhere"))).reason == "ChainMismatch"
        for _ in range(2):
            await far.driver.forget_snapshot(volume, snapshot)
            assert await far.again().snapshot(volume, snapshot) is None
        assert (await refused(far.driver.confirm_snapshot(volume, snapshot, "x", ()))).reason == "SnapshotLost"
        await far.driver.remove_volume(volume)
        assert (await refused(far.driver.begin_snapshot(volume, snapshot))).reason == "VolumeNotReady"


class TestCluster:
    """A cluster that is not as it should be."""

    async def test_one_that_falls_silent_hangs_nobody_and_heals(self, ceph: CephCluster, far: Far) -> None:
        """With a pool in use: a question, a change, and everything that comes after them."""
        driver, volume = far.again(answer_seconds=2.0), new_uid()
        await driver.ensure_volume(volume, MIB, None, False)
        for daemons in (("osd",), ()):
            with ceph.silent(*daemons):
                began = time.monotonic()
                error = await refused(driver.volume(volume))
                assert (error.reason, error.retryable) == ("PoolStalled", True)
                assert "ceph status" in str(error)
                assert time.monotonic() - began < 5
                attempts = [driver.ensure_volume(new_uid(), MIB, None, False) for _ in range(20)]
                answers = await asyncio.gather(*attempts, driver.remove_volume(volume), return_exceptions=True)
                assert {error.reason for error in answers if isinstance(error, StorageError)} == {"PoolStalled"}
                assert time.monotonic() - began < 12
                leave = await refused(far.again(answer_seconds=2.0).prepare() if not daemons else driver.volume(volume))
                assert leave.reason == "PoolStalled"
        deadline = time.monotonic() + 30
        while True:
            try:
                assert await driver.volume(volume) is not None
                break
            except StorageError as error:
                assert error.reason == "PoolStalled"
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        await driver.remove_volume(volume)

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
        made = LibvirtWorld(libvirtd, guest.build(tmp_path), tmp_path / "machines")
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
        bootable = await asyncio.to_thread((tmp_path / "wait.img").read_bytes)
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
