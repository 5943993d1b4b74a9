"""A full disk at each step: said as NoSpace, nothing half left, healed when there is room (QUALITY F14).

The disk is a small tmpfs. What fills it up is another file in the pool's file system, so that the
same import fails at another step each time.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import ImportProgress, StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import MIB, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.server import Answer

pytestmark = needs_root

DISK = 16 * MIB
DATA = random.Random(11).randbytes(4 * MIB)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def driver(small: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(small / "pool"), settings)


def fill(small: Path, leave: int) -> Path:
    """Leave so many bytes of the file system."""
    filler = small / "filler"
    filler.unlink(missing_ok=True)
    usage = int(
        subprocess.run(["df", "--output=avail", "-B1", small], capture_output=True, check=True).stdout.split()[-1]
    )
    with filler.open("wb") as file:
        file.write(bytes(usage - leave))
    return filler


def files(pool: Path) -> list[str]:
    return sorted(entry.name for entry in pool.rglob("*") if entry.is_file() and entry.name != marker.NAME)


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("leave", [MIB, 4 * MIB + 65536, 7 * MIB], ids=["download", "convert begin", "convert end"])
async def test_an_import_into_a_full_pool(driver, small, server, length, leave) -> None:
    await driver.prepare()
    image = image_ref(DATA, "raw")
    url = server.on("/i", Answer(DATA, length=length))
    filler = fill(small, leave)
    with pytest.raises(StorageError) as error:
        await driver.import_image(image, http(url), ignore)
    known = length and leave < len(DATA)
    assert (error.value.reason, error.value.retryable) == ("InsufficientCapacity" if known else "NoSpace", True)
    assert files(small / "pool") == []
    assert await driver.image(image.uid) is None
    if length and leave < len(DATA):
        assert (await driver.prepare()).used <= DISK
    filler.unlink()
    made = await driver.import_image(image, http(url), ignore)
    assert made.virtual_size == len(DATA)


async def test_two_imports_into_a_pool_with_room_for_one(driver, small, server) -> None:
    """The second is told which pool, what it needs and what is free, and the first is not in danger."""
    await driver.prepare()
    fill(small, 3 * len(DATA) + MIB)
    first, second = image_ref(DATA, "raw"), image_ref(DATA, "raw")
    url = server.on("/i", Answer(DATA))
    refused: list[StorageError] = []

    async def beside() -> None:
        try:
            await driver.import_image(second, http(url), ignore)
        except StorageError as error:
            refused.append(error)

    tasks: list[asyncio.Task[None]] = []

    def begun(progress: ImportProgress) -> None:
        if not tasks and progress.stage == "Downloading":
            tasks.append(asyncio.create_task(beside()))

    assert (await driver.import_image(first, http(url), begun)).virtual_size == len(DATA)
    await asyncio.gather(*tasks)
    (error,) = refused
    assert (error.reason, error.retryable) == ("InsufficientCapacity", True)
    assert "The pool fast has no room for the image: 8Mi needed, " in str(error)
    assert await driver.image(second.uid) is None
    assert (await driver.import_image(second, http(url), ignore)).virtual_size == len(DATA), "now there is room"


async def test_a_disk_in_a_full_pool(driver, small, server) -> None:
    image, owner = image_ref(DATA, "raw"), uid()
    await driver.import_image(image, http(server.on("/i", Answer(DATA))), ignore)
    before = files(small / "pool")
    filler = fill(small, 65536)
    with pytest.raises(StorageError) as error:
        await driver.ensure_disk(owner, "root", image.uid, None)
    assert (error.value.reason, error.value.retryable) == ("NoSpace", True)
    assert files(small / "pool") == before
    filler.unlink()
    made = await driver.ensure_disk(owner, "root", image.uid, None)
    assert json.loads(qemu_img("info", "-f", "qcow2", "--output=json", made.path))["virtual-size"] == len(DATA)


@pytest.mark.parametrize("leave", [65536, 2 * MIB], ids=["its header", "its content"])
async def test_a_volume_in_a_full_pool(driver, small, server, leave) -> None:
    image, volume, copy = image_ref(DATA, "raw"), uid(), uid()
    await driver.import_image(image, http(server.on("/i", Answer(DATA))), ignore)
    await driver.ensure_volume(volume, None, VolumeOrigin(image=image), False)
    before = files(small / "pool")
    filler = fill(small, leave)
    for attempt in (
        driver.ensure_volume(copy, None, VolumeOrigin(volume=volume), False),
        driver.ensure_volume(copy, 4 * MIB, None, True),
    ):
        with pytest.raises(StorageError) as error:
            await attempt
        assert (error.value.reason, error.value.retryable) == ("NoSpace", True)
        assert files(small / "pool") == before
    filler.unlink()
    await driver.ensure_volume(copy, None, VolumeOrigin(volume=volume), False)


async def test_a_full_pool_lets_go(driver, small, server) -> None:
    """Removing works when there is no room at all: that is how room is made."""
    image, owner = image_ref(DATA, "raw"), uid()
    await driver.import_image(image, http(server.on("/i", Answer(DATA))), ignore)
    await driver.ensure_disk(owner, "root", image.uid, None)
    fill(small, 0)
    await driver.remove_disks(owner)
    await driver.remove_image(image.uid)
    assert files(small / "pool") == []


async def test_a_pool_that_is_read_only_is_said(driver, small, server) -> None:
    await driver.prepare()
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", small], check=True)
    for call in (driver.prepare(), driver.import_image(image_ref(DATA, "raw"), http(server.url("/i")), ignore)):
        with pytest.raises(StorageError) as error:
            await call
        assert error.value.reason == "PoolReadOnly"
