"""Which parts of a volume changed: by QEMU's own bitmaps, held against what was written."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC230 - a moment, in tests

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import Extent, union
from tests.contract.snapshots import linked_to, of_snapshot, taken, tidy
from tests.unit.storage.material import MIB, needs_root, pool_ref, uid

pytestmark = needs_root

BLOCK = 64 << 10


@pytest.fixture
def driver(tmp_path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(tmp_path / "pools" / "fast"), settings)


async def write(driver: DirStorage, volume: str, *blocks: int) -> None:
    """Write to these blocks of 64 KiB."""
    found = await driver.volume(volume)
    assert found is not None
    arguments = [word for block in blocks for word in ("-c", f"write -P 7 {block * BLOCK} 1k")]
    subprocess.run(["qemu-io", "-f", "qcow2", *arguments, found.path], check=True, capture_output=True)


async def changed(driver: DirStorage, volume: str, since: str | None = None, until: str | None = None) -> set[int]:
    """Blocks that are said to have changed."""
    extents = await driver.changes(volume, since, until)
    assert extents == union(extents, 1 << 50)
    return {block for one in extents for block in range(one.offset // BLOCK, -(-(one.offset + one.length) // BLOCK))}


def flags(path: str) -> list[list[str]]:
    """Of the bitmaps in the file, as QEMU tells."""
    info = subprocess.run(["qemu-img", "info", "-f", "qcow2", path], capture_output=True, text=True, check=True).stdout
    return [["in-use"] if "in-use" in part else [] for part in info.split("bitmaps:")[1:]]


async def test_the_change_list_is_what_was_written_across_snapshots_and_merges(driver: DirStorage) -> None:
    volume = uid()
    await driver.ensure_volume(volume, 64 * MIB, None, False)
    assert await changed(driver, volume) == set()
    await write(driver, volume, 1, 2)
    one = await taken(driver, volume)
    assert await changed(driver, volume, one) == set()
    await write(driver, volume, 2, 3, 700)
    two = await taken(driver, volume)
    await driver.grow_volume(volume, 128 * MIB)
    await write(driver, volume, 5, 2047)
    three = await taken(driver, volume)
    await write(driver, volume, 6)
    for _ in range(2):
        assert await changed(driver, volume) == {1, 2, 3, 5, 6, 700, 2047}
        assert await changed(driver, volume, one) == {2, 3, 5, 6, 700, 2047}
        assert await changed(driver, volume, one, three) == {2, 3, 5, 700, 2047}
        assert await changed(driver, volume, None, one) == {1, 2}
        await driver.forget_snapshot(volume, two)
        await tidy(driver, volume)
    await driver.forget_snapshot(volume, three)
    assert await tidy(driver, volume) == 1
    assert await changed(driver, volume, one) == {2, 3, 5, 6, 700, 2047}
    await driver.revert_volume(volume, one, uid())
    await tidy(driver, volume)
    await write(driver, volume, 9)
    assert await changed(driver, volume, one) == {9}


async def test_a_copy_and_a_linked_volume_begin_with_no_change(driver: DirStorage) -> None:
    volume = uid()
    await driver.ensure_volume(volume, MIB, None, False)
    await write(driver, volume, 1)
    snapshot = await taken(driver, volume)
    for origin in (of_snapshot(volume, snapshot), linked_to(volume, snapshot), VolumeOrigin(volume=volume)):
        copy = uid()
        await driver.ensure_volume(copy, None, origin, False)
        assert await changed(driver, copy) == set()
        await write(driver, copy, 2)
        assert await changed(driver, copy) == {2}


async def test_after_a_sudden_death_all_that_is_allocated_is_told_and_the_volume_can_grow(driver: DirStorage) -> None:
    volume = uid()
    made = await driver.ensure_volume(volume, MIB, None, False)
    await write(driver, volume, 1)
    emulator = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", made.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert emulator.stdin is not None
    assert emulator.stdout is not None
    try:
        emulator.stdin.write(f"write -P 8 {3 * BLOCK} 1k\nflush\n")
        emulator.stdin.flush()
        emulator.stdout.readline()
        with pytest.raises(StorageError) as refused:
            await driver.changes(volume)
        assert refused.value.reason == "VolumeInUse"
        assert await driver.open_volume(volume) is not None
    finally:
        os.kill(emulator.pid, signal.SIGKILL)
        emulator.communicate()
    assert await changed(driver, volume) == {1, 3}
    assert flags(made.path) == [["in-use"]]
    assert (await driver.open_volume(volume) or made).virtual_size == MIB
    assert flags(made.path) == []
    assert (await driver.grow_volume(volume, 2 * MIB)).virtual_size == 2 * MIB
    assert await changed(driver, volume) == {1, 3}
    snapshot = await taken(driver, volume)
    await write(driver, volume, 4)
    assert await changed(driver, volume, snapshot) == {4}


async def test_layers_become_one_after_sudden_deaths_and_growth(driver: DirStorage) -> None:
    """QEMU makes no disk larger whose bitmap somebody died with; the layer below is smaller than the one that it merges."""
    volume = uid()
    made = await driver.ensure_volume(volume, MIB, None, False)
    await write(driver, volume, 1)
    die(made.path)
    snapshot = await taken(driver, volume)
    assert flags(made.path) == [], "an emulator could merge into it"
    await driver.grow_volume(volume, 2 * MIB)
    await write(driver, volume, 20)
    now = await driver.volume(volume)
    assert now is not None and now.path != made.path
    await driver.forget_snapshot(volume, snapshot)
    merge = await driver.next_merge(volume)
    assert merge is not None and merge.lower == made.path
    for mend in (lambda: driver.open_volume(volume), lambda: driver.merge(volume, merge)):
        subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", made.path, "kumulus"], check=True)
        die(made.path)
        assert flags(made.path) == [["in-use"]]
        await mend()
        assert flags(made.path) == []
    assert await driver.next_merge(volume) is None
    after = await driver.volume(volume)
    assert after is not None and (after.path, after.virtual_size) == (made.path, 2 * MIB)
    assert await changed(driver, volume) == {1, 20}
    for block in (1, 20):
        command = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 7 {block * BLOCK} 1k", made.path]
        assert "failed" not in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def die(path: str) -> None:
    """Somebody opens the file to write, as an emulator that merges into it does, and is killed."""
    emulator = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert emulator.stdin is not None and emulator.stdout is not None
        emulator.stdin.write("map\n")  # one line: qemu-io sees a second one only when more comes
        emulator.stdin.flush()
        emulator.stdout.readline()
    finally:
        os.kill(emulator.pid, signal.SIGKILL)
        emulator.communicate()


async def test_a_volume_that_was_made_before_bitmaps_tells_what_is_allocated(driver: DirStorage) -> None:
    volume = uid()
    made = await driver.ensure_volume(volume, MIB, None, False)
    subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", made.path, "kumulus"], check=True)
    await write(driver, volume, 1, 5)
    assert await changed(driver, volume) == {1, 5}


async def test_what_is_not_there(driver: DirStorage) -> None:
    volume = uid()
    with pytest.raises(StorageError) as refused:
        await driver.changes(volume)
    assert refused.value.reason == "VolumeNotReady"
    await driver.ensure_volume(volume, MIB, None, False)
    for since, until in ((uid(), None), (None, uid())):
        with pytest.raises(StorageError) as refused:
            await driver.changes(volume, since, until)
        assert refused.value.reason == "SnapshotNotReady"


@pytest.mark.parametrize("seed", range(10))
async def test_nonsense_in_a_file_is_refused_or_bounded(driver: DirStorage, seed: int) -> None:
    """A guest that took over its emulator writes what it likes into its own file."""
    chance, volume = random.Random(seed), uid()
    made = await driver.ensure_volume(volume, 64 * MIB, None, False)
    await write(driver, volume, 1, 900)
    with Path(made.path).open("r+b") as file:
        for _ in range(6):
            file.seek(chance.choice((20, 24, 36, 40, 88, 100, 112, 120, 128, 136)) + chance.randrange(8))
            file.write(struct.pack("B", chance.randrange(256)))
    try:
        found = await driver.changes(volume)
    except StorageError as error:
        assert error.reason == "VolumeDamaged"
    else:
        assert all(isinstance(one, Extent) and one.length > 0 for one in found)


def test_parts_that_touch_are_one() -> None:
    assert union([Extent(4, 4), Extent(0, 4), Extent(20, 10), Extent(6, 4), Extent(28, 1)], 29) == [
        Extent(0, 10),
        Extent(20, 9),
    ]
    assert union([Extent(10, 4)], 8) == []
