"""The driver `nfs` on a real server, by the client in userspace, for the kernel that runs the tests has none."""

# ruff: noqa: ASYNC240, ASYNC221 - small files and short programs, in tests

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import NfsParameters, NfsVersion, PoolDriver, PoolParameters
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.nfs import mount
from kumulus_agents.storage.nfs.driver import make
from kumulus_agents.storage.presence import Releasing
from kumulus_agents.storage.protocol import StorageDriver, StorageError
from kumulus_agents.storage.pulse import Pulsed
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.contract.moves import MoveContract, moved
from tests.contract.storage import Bench, StorageContract
from tests.patience import PATIENCE
from tests.system.nfs_server import TOOLS, NfsServer, nfs_server
from tests.unit.storage.material import MIB, disk, http, image_ref, pool_ref, uid
from tests.unit.storage.server import Answer, Server, serving
from tests.unit.storage.test_registry import NONE

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.skipif(not TOOLS, reason="needs nfs-ganesha: hack/setup.py --tests"),
]

RAW = disk()


@pytest.fixture(scope="module")
def nfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with nfs_server(tmp_path_factory.mktemp("ganesha")) as server:
        yield server


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    """Of a host; what it has mounted is unmounted at the end, and the client goes with that."""
    mounts = tmp_path_factory.mktemp("mounts")
    yield StorageSettings(
        mounts=PurePosixPath(mounts),
        readers=(),
        host="a",
        fetch=FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),), backoff=0),
    )
    for target in mounts.iterdir():
        if mount.mounted(target) is not None:
            subprocess.run(["umount", "-l", target], check=True)


@pytest.fixture(scope="module")
def pool(nfs: NfsServer) -> PoolRef:
    export = NfsParameters(server=nfs.address, path=str(nfs.export))
    return PoolRef(uid=uid(), name="nfs", driver=PoolDriver.NFS, parameters=PoolParameters(nfs=export))


@pytest.fixture
async def driver(pool: PoolRef, settings: StorageSettings) -> StorageDriver:
    made = make(pool, settings, NONE)
    await made.prepare()
    return made


class TestNfs(StorageContract):
    @pytest.fixture
    async def server(self) -> object:
        async with serving() as made:
            yield made

    @pytest.fixture
    def bench(self, driver: StorageDriver, pool: PoolRef, settings: StorageSettings, server: Server) -> Bench:
        url = server.on("/disk.raw", Answer(RAW, etag='"1"'))
        return Bench(
            driver=driver,
            again=lambda: make(pool, settings, NONE),
            image=image_ref(RAW, "raw"),
            source=http(url),
            virtual_size=len(RAW),
            fetches=lambda: len(server.requests),
        )


class TestMoves(MoveContract):
    """Out of the server into a directory of the host, and back; half of each runs in the pool's own thread."""

    server = TestNfs.server
    bench = TestNfs.bench

    @pytest.fixture
    def beyond(self, settings: StorageSettings, tmp_path: Path) -> StorageDriver:
        near = settings.model_copy(update={"roots": (PurePosixPath(tmp_path),)})
        return DirStorage(pool_ref(tmp_path / "near"), near)


async def test_a_volume_is_moved_onto_the_server_with_its_content(
    driver: StorageDriver, settings: StorageSettings, tmp_path: Path
) -> None:
    near = DirStorage(pool_ref(tmp_path / "near"), settings.model_copy(update={"roots": (PurePosixPath(tmp_path),)}))
    volume = uid()
    for source, target, byte in ((near, driver, 7), (driver, near, 8)):
        made = await source.volume(volume) or await source.ensure_volume(volume, 16 * MIB, None, False)
        command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {byte}M 1M", made.path]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        await moved(source, target, volume, f"{byte} 0")
    there = await near.volume(volume)
    assert there is not None
    reads = [part for byte in (7, 8) for part in ("-c", f"read -P {byte} {byte}M 1M")]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *reads, there.path], capture_output=True, text=True, check=True)
    assert "verification failed" not in done.stdout
    await near.remove_volume(volume)


async def test_the_pool_says_by_which_client_it_is_reached(driver: StorageDriver, nfs: NfsServer) -> None:
    usage = await driver.prepare()
    assert usage.access is not None
    assert "client in userspace" in usage.access and "on one host only" in usage.access
    assert 0 < usage.used < usage.capacity
    assert (nfs.export / "kumulus" / "volumes").is_dir()


async def test_what_one_host_makes_another_finds_at_once(
    pool: PoolRef, settings: StorageSettings, driver: StorageDriver, tmp_path: Path
) -> None:
    other = make(pool, settings.model_copy(update={"host": "b", "mounts": PurePosixPath(tmp_path)}), NONE)
    try:
        await other.prepare()
        for number in range(3):
            volume = uid()
            assert await other.volume(volume) is None
            await driver.ensure_volume(volume, (number + 1) * MIB, None, False)
            found = await other.volume(volume)
            assert found is not None and found.virtual_size == (number + 1) * MIB
            await other.remove_volume(volume)
            assert await driver.volume(volume) is None
        assert isinstance(driver, Pulsed) and isinstance(other, Pulsed)
        assert await other.last_beat("a") is None
        for beat in ("life-1", "life-2"):
            await driver.beat("a", beat)
            assert await other.last_beat("a") == beat
        assert await other.last_beat("b") is None
    finally:
        subprocess.run(["umount", "-l", tmp_path / pool.uid], check=True)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """How many seconds it took."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < seconds * PATIENCE
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def test_a_server_that_stalls_is_said_and_heals_and_holds_up_nobody(
    driver: StorageDriver, nfs: NfsServer, tmp_path: Path
) -> None:
    volume = uid()
    stored = await driver.ensure_volume(volume, 64 * MIB, None, False)
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.05)

    beating = asyncio.create_task(beat())
    write = "write -P 7 0 4M", "flush"
    commands = [part for command in write for part in ("-c", command)]
    nfs.stall()
    try:
        writing = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "qcow2", *commands, stored.path, stdout=asyncio.subprocess.PIPE
        )
        began = time.monotonic()
        with pytest.raises(StorageError) as stalled:
            await driver.prepare()
        ended = time.monotonic()
        assert ended - began < 5 * PATIENCE
        assert stalled.value.reason == "PoolNotAnswering" and "pool nfs does not answer" in str(stalled.value)
        known = driver.volume(volume)
        with pytest.raises(StorageError) as stalled:
            known.send(None)  # it ends without having waited for anything
        assert stalled.value.reason == "PoolNotAnswering"
        assert writing.returncode is None, "a write waits, and does not fail"
    finally:
        nfs.go_on()

    async def heals() -> bool:
        try:
            return await driver.volume(volume) is not None
        except StorageError:
            return False

    await until(heals, 10)
    output, _ = await asyncio.wait_for(writing.communicate(), 20 * PATIENCE)
    assert writing.returncode == 0 and b"wrote 4194304/4194304" in output
    read = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 4M", stored.path], capture_output=True, text=True, check=True
    )
    assert "Pattern verification failed" not in read.stdout
    beating.cancel()
    # However slow the machine is: a loop that waited itself would not have beaten at all while the server was silent.
    meanwhile = [began, *(beat for beat in beats if began < beat < ended), ended]
    assert max(b - a for a, b in itertools.pairwise(meanwhile)) < (ended - began) / 2, "the agent was held up"


def _busy(pid: int) -> float:
    """Seconds of a processor that it has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.wide
async def test_who_waits_for_a_server_that_is_gone_takes_no_processor_and_ends_when_asked(
    pool: PoolRef, settings: StorageSettings, nfs: NfsServer, tmp_path: Path
) -> None:
    """It goes on when the server is back; asked to end it does, also while the server is not."""
    there = settings.model_copy(update={"host": "d", "mounts": PurePosixPath(tmp_path)})
    made = make(pool, there, NONE)
    await made.prepare()
    (client,) = map(int, clients(tmp_path))
    file = tmp_path / pool.uid / f"{uid()}"
    try:
        await asyncio.to_thread(file.write_bytes, b"before")
        nfs.die()
        reading = asyncio.create_task(asyncio.to_thread(file.read_bytes))
        begun, before = time.monotonic(), _busy(client)
        await asyncio.wait([reading], timeout=2)
        assert not reading.done(), "it waits"
        assert _busy(client) - before < (time.monotonic() - begun) / 20
        nfs.come_back()
        assert await asyncio.wait_for(reading, 20 * PATIENCE) == b"before"
        await asyncio.to_thread(file.write_bytes, b"after")
        assert (nfs.export / file.name).read_bytes() == b"after"
        nfs.die()
        reading = asyncio.create_task(asyncio.to_thread(file.read_bytes))
        await asyncio.wait([reading], timeout=0.3)
        assert not reading.done()
        os.kill(client, signal.SIGTERM)

        async def ended() -> bool:
            return not clients(tmp_path)

        await until(ended, 5)
        with pytest.raises(OSError):
            await asyncio.wait_for(reading, 5 * PATIENCE)
        assert mount.mounted(tmp_path / pool.uid) is None
    finally:
        nfs.come_back()
        subprocess.run(["umount", "-l", tmp_path / pool.uid], check=False)


async def test_a_client_that_died_is_replaced(driver: StorageDriver, pool: PoolRef, settings: StorageSettings) -> None:
    volume = uid()
    await driver.ensure_volume(volume, MIB, None, False)
    target = settings.mounts / pool.uid
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        words = found.read_bytes().split(b"\0")
        if b"kumulus_agents.storage.nfs.filesystem" in words and str(target).encode() in words:
            os.kill(int(found.parent.name), 9)
    with pytest.raises(StorageError):
        await driver.volume(volume)
    await driver.prepare()
    assert await driver.volume(volume) is not None


async def test_an_export_that_is_not_there_is_explained(
    pool: PoolRef, settings: StorageSettings, nfs: NfsServer
) -> None:
    wrong = NfsParameters(server=nfs.address, path="/nowhere")
    missing = pool.model_copy(update={"uid": uid(), "parameters": PoolParameters(nfs=wrong)})
    with pytest.raises(StorageError) as refused:
        await make(missing, settings, NONE).prepare()
    assert refused.value.reason == "MountFailed" and "no such export" in str(refused.value)
    newer = wrong.model_copy(update={"version": NfsVersion.V4_2})
    unfit = pool.model_copy(update={"uid": uid(), "parameters": PoolParameters(nfs=newer)})
    with pytest.raises(StorageError) as unable:
        await make(unfit, settings, NONE).prepare()
    assert "speaks version 3, not 4.2" in str(unable.value) and not unable.value.retryable


async def test_a_pool_that_is_let_go_of_is_unmounted_and_its_client_ends(
    pool: PoolRef, settings: StorageSettings, tmp_path: Path
) -> None:
    volume, there = uid(), settings.model_copy(update={"host": "c", "mounts": PurePosixPath(tmp_path)})
    made = make(pool, there, NONE)
    assert isinstance(made, Releasing)
    await made.prepare()
    await made.ensure_volume(volume, MIB, None, False)
    assert mount.mounted(tmp_path / pool.uid) is not None and clients(tmp_path)
    await made.release()
    assert mount.mounted(tmp_path / pool.uid) is None and not list(tmp_path.iterdir())

    async def ended() -> bool:
        return not clients(tmp_path)

    await until(ended, 10)
    await made.release()  # again, and by a driver that never was prepared
    again = make(pool, there, NONE)
    assert isinstance(again, Releasing)
    await again.release()
    back = make(pool, there, NONE)
    assert isinstance(back, Releasing)
    assert await back.volume(volume) is not None, "its content stays"
    await back.remove_volume(volume)
    await back.release()


def clients(below: Path) -> list[str]:
    """Processes of our own client that serve a mountpoint below a directory."""
    found = subprocess.run(["pgrep", "-f", f"storage.nfs.filesystem .* {below}/"], capture_output=True, text=True)
    return found.stdout.split()
