"""Pools that are full, and programs that are killed in them (QUALITY F14).

An error that explains it, no half image or volume used, what was acknowledged is there
afterwards, and all heals when the cause goes. The witness is a counter that qemu-io writes and flushes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kumulus.api.image import Compression
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.moving import Content
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.moves import moved
from tests.unit.storage.material import MIB, PACK, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.server import Answer

pytestmark = needs_root

ROOM = 24 * MIB
SIZES = [size * MIB for size in (4, 16, 64, 128)]
"""Of disks, each tried when what makes the one before was too quick to be killed."""
DATA = random.Random(11).randbytes(4 * MIB)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def driver(small: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(small / "pool"), settings)


def fill(place: Path, leave: int) -> Path:
    """Leave so many bytes of the file system."""
    filler = place / "filler"
    filler.unlink(missing_ok=True)
    room = os.statvfs(place)
    filler.write_bytes(bytes(max(room.f_bavail * room.f_frsize - leave, 0)))
    return filler


def files(pool: Path) -> list[str]:
    return sorted(each.name for each in pool.rglob("*") if each.is_file() and each.name != marker.NAME)


class Counter:
    """A counter in a disk, each value flushed before it counts as acknowledged."""

    def __init__(self, path: str) -> None:
        self.path, self.acknowledged = path, 0

    def count(self, times: int) -> None:
        """Count on, until it is done or a write fails."""
        for _ in range(times):
            value = self.acknowledged + 1
            command = f"write -P {value % 256} {value * 65536} 64k"
            done = subprocess.run(
                ["qemu-io", "-f", "qcow2", "-c", command, "-c", "flush", self.path], capture_output=True, text=True
            )
            if done.returncode or "error" in (done.stdout + done.stderr).lower():
                return
            self.acknowledged = value

    def holds(self) -> bool:
        """Whether every acknowledged value is there; some were."""
        assert self.acknowledged, "nothing was acknowledged, so nothing could be lost"
        reads = [f"read -P {value % 256} {value * 65536} 64k" for value in range(1, self.acknowledged + 1)]
        arguments = [each for read in reads for each in ("-c", read)]
        done = subprocess.run(["qemu-io", "-r", "-f", "qcow2", *arguments, self.path], capture_output=True, text=True)
        return not done.returncode and "verification failed" not in done.stdout + done.stderr


@pytest.mark.parametrize("compression", sorted(PACK))
@pytest.mark.parametrize("leave", [2 * MIB, 5 * MIB, 9 * MIB])
async def test_a_packed_image_into_a_full_pool(driver, small, server, compression: str, leave: int) -> None:
    await driver.prepare()
    packed = PACK[compression](DATA)
    image, source = image_ref(packed, "raw"), http(server.on("/i", Answer(packed)), compression)
    assert source.compression is Compression(compression)
    filler = fill(small, leave)
    with pytest.raises(StorageError) as error:
        await driver.import_image(image, source, ignore)
    assert error.value.reason in ("NoSpace", "InsufficientCapacity") and error.value.retryable
    assert await driver.image(image.uid) is None
    filler.unlink()
    assert (await driver.import_image(image, source, ignore)).virtual_size == len(DATA)


async def test_growing_in_a_full_pool_harms_nothing(driver, small) -> None:
    volume = uid()
    made = await driver.ensure_volume(volume, 8 * MIB, None, thick=True)
    counter = Counter(made.path)
    counter.count(5)
    filler = fill(small, 65536)
    with pytest.raises(StorageError) as error:
        await driver.grow_volume(volume, 16 * MIB)
    assert (error.value.reason, error.value.retryable) == ("NoSpace", True)
    assert counter.holds()
    qemu_img("check", "-q", "-f", "qcow2", made.path)
    filler.unlink()
    assert (await driver.grow_volume(volume, 12 * MIB)).virtual_size == 12 * MIB and counter.holds()


async def test_a_snapshot_in_a_full_pool_harms_nothing(driver, small) -> None:
    volume, snapshot = uid(), uid()
    made = await driver.ensure_volume(volume, 8 * MIB, None, thick=False)
    counter = Counter(made.path)
    counter.count(5)
    filler = fill(small, 0)
    with pytest.raises(StorageError) as error:
        await driver.begin_snapshot(volume, snapshot)
    assert error.value.reason == "NoSpace"
    now = await driver.volume(volume)
    assert now is not None and now.path == made.path and counter.holds()
    filler.unlink()
    counter.count(5)
    assert counter.acknowledged == 10
    await driver.begin_snapshot(volume, snapshot)


@pytest.mark.parametrize("thick", [False, True])
async def test_moving_into_a_full_pool_harms_nothing(
    driver, small, tmp_path: Path, settings: StorageSettings, thick: bool
) -> None:
    """A thick one finds out at once, a thin one while it is copied."""
    volume, source = uid(), DirStorage(pool_ref(tmp_path / "roomy"), settings)
    made = await source.ensure_volume(volume, 12 * MIB, None, thick)
    counter = Counter(made.path)
    counter.count(100)
    assert counter.acknowledged == 100
    filler = fill(small, 4 * MIB)
    traits = await source.traits(volume)

    async def use(content: Content) -> None:
        await driver.fill_arrival(volume, traits, content, ignore)

    with pytest.raises(StorageError) as error:
        await driver.begin_arrival(volume, traits)
        await source.send_volume(volume, use)
    assert (error.value.reason, error.value.retryable) == ("NoSpace", True)
    await driver.abandon_arrival(volume)
    assert await driver.volume(volume) is None and files(small / "pool") == []
    assert counter.holds()
    filler.unlink()
    await moved(source, driver, volume)
    now = await driver.volume(volume)
    assert now is not None
    counter.path = now.path
    assert counter.holds() and files(tmp_path / "roomy") == []


async def test_what_was_acknowledged_before_the_pool_was_full_is_there(driver, small) -> None:
    made = await driver.ensure_volume(uid(), 16 * MIB, None, thick=False)
    counter = Counter(made.path)
    filler = fill(small, MIB)
    counter.count(40)
    assert 0 < counter.acknowledged < 40, "some were, and then there was no room"
    assert counter.holds()
    filler.unlink()
    before = counter.acknowledged
    counter.count(10)
    assert counter.acknowledged == before + 10 and counter.holds()


@pytest.mark.parametrize("doing", ["import", "copy"])
async def test_a_killed_qemu_img_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, settings: StorageSettings, server, doing: str
) -> None:
    """Killed by its process id, found among the descendants of this process."""
    driver = DirStorage(pool_ref(tmp_path / "pool"), settings)
    for size in SIZES:
        data = DATA * (size // len(DATA))
        image, volume, copy = image_ref(data, "raw"), uid(), uid()
        source = http(server.on(f"/{size}", Answer(data)))
        if doing == "copy":
            await driver.import_image(image, source, ignore)
            await driver.ensure_volume(volume, None, VolumeOrigin(image=image), thick=False)

        async def make(image=image, source=source, volume=volume, copy=copy) -> int:
            if doing == "import":
                return (await driver.import_image(image, source, ignore)).virtual_size
            return (await driver.ensure_volume(copy, None, VolumeOrigin(volume=volume), thick=False)).virtual_size

        work = asyncio.create_task(make())
        killed = await killing(work)
        if work.exception() is None:
            # Faster than the search for it, or it had done all when it was killed: then what it made is whole.
            assert holds_all(image.uid if doing == "import" else copy, tmp_path / "pool", data)
            continue
        assert killed and isinstance(work.exception(), StorageError), work.exception()
        assert await (driver.image(image.uid) if doing == "import" else driver.volume(copy)) is None
        assert not [
            name for name in files(tmp_path / "pool") if copy in name or (name.startswith(".") and "new" in name)
        ]
        assert await make() == len(data)
        assert holds_all(image.uid if doing == "import" else copy, tmp_path / "pool", data)
        return
    pytest.fail(f"none of {len(SIZES)} was killed on its way")


async def killing(work: asyncio.Task[int]) -> int:
    """Kill every qemu-img that copies among the descendants of this process until the work has ended; how many."""
    killed = 0
    while not work.done():
        for pid in descendants(os.getpid()):
            if copies(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        await asyncio.sleep(0)
    return killed


def holds_all(name: str, pool: Path, data: bytes) -> bool:
    """Whether the disk of that name is there once and reads as these data."""
    (disk,) = [path for path in pool.rglob(f"{name}*") if path.suffix != ".json"]
    plain = pool.parent / "plain"
    qemu_img("convert", "-O", "raw", disk, plain)
    return plain.read_bytes() == data


def descendants(pid: int) -> list[int]:
    """Processes that it started, and theirs."""
    found: list[int] = []
    with suppress(OSError):  # they end as we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def copies(pid: int) -> bool:
    """Whether that process is a qemu-img that writes a whole disk: it, not one that makes an empty one, leaves a half."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"qemu-img") and b"convert" in words
