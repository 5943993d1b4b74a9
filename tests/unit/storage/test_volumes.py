"""Volumes of the driver `dir`: what is in the files, who may look, and what deaths and other writers leave."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import (
    MIB,
    disk,
    http,
    ignore,
    image_ref,
    needs_root,
    pool_ref,
    qemu_img,
    uid,
)
from tests.unit.storage.server import Answer

pytestmark = needs_root

RAW = disk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pools" / "fast"


@pytest.fixture
def driver(path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(path), settings)


@pytest.fixture
async def origin(driver, server) -> VolumeOrigin:
    image = image_ref(RAW, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    return VolumeOrigin(image=image)


def content(path: str, to: Path) -> bytes:
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, to)
    return to.read_bytes()


def info(path: str) -> dict:
    return json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path))


def write(path: str, offset: int, text: str) -> None:
    """Write 64 KiB of a letter into the disk, as a guest would."""
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(text)} {offset} 64k", path]
    subprocess.run(command, check=True, capture_output=True)


async def test_a_volume_stands_on_its_image(driver, origin, tmp_path) -> None:
    made = await driver.ensure_volume(uid(), 8 * MIB, origin, False)
    assert info(made.path)["backing-filename"] == f"../images/{origin.image.uid}.qcow2"
    assert info(made.path)["backing-filename-format"] == "qcow2"
    assert content(made.path, tmp_path / "out") == RAW + bytes(4 * MIB)
    assert made.used < MIB


async def test_a_thick_volume_has_the_image_s_content_and_stands_on_nothing(driver, origin, tmp_path) -> None:
    made = await driver.ensure_volume(uid(), 8 * MIB, origin, True)
    assert "backing-filename" not in info(made.path)
    assert content(made.path, tmp_path / "out") == RAW + bytes(4 * MIB)
    assert made.used >= 8 * MIB
    await driver.remove_image(origin.image.uid)


async def test_a_copy_has_what_was_written_and_what_shines_through(driver, origin, tmp_path) -> None:
    source = uid()
    written = await driver.ensure_volume(source, 8 * MIB, origin, False)
    write(written.path, 6 * MIB, "x")
    made = await driver.ensure_volume(uid(), 16 * MIB, VolumeOrigin(volume=source), False)
    assert "backing-filename" not in info(made.path)
    before = content(written.path, tmp_path / "one")
    assert before[6 * MIB : 6 * MIB + 3] == b"xxx"
    assert content(made.path, tmp_path / "two") == before + bytes(8 * MIB)
    assert stat.S_IMODE(Path(written.path).stat().st_mode) == 0o600


async def test_growing_shows_zeros_behind_the_old_end(driver, origin, tmp_path) -> None:
    volume = uid()
    made = await driver.ensure_volume(volume, None, origin, False)
    write(made.path, 3 * MIB, "x")
    before = content(made.path, tmp_path / "one")
    grown = await driver.grow_volume(volume, 64 * MIB)
    assert grown.virtual_size == 64 * MIB
    assert content(grown.path, tmp_path / "two") == before + bytes(60 * MIB)
    assert info(grown.path)["backing-filename"] == f"../images/{origin.image.uid}.qcow2"
    assert stat.S_IMODE(Path(grown.path).stat().st_mode) == 0o600


async def test_a_thick_volume_stays_thick_when_it_grows(driver) -> None:
    volume = uid()
    await driver.ensure_volume(volume, 4 * MIB, None, True)
    assert (await driver.grow_volume(volume, 8 * MIB)).used >= 8 * MIB


async def test_only_root_may_look_and_names_are_uids(driver, origin, path) -> None:
    volume, copy = uid(), uid()
    await driver.ensure_volume(volume, None, origin, False)
    await driver.ensure_volume(copy, None, VolumeOrigin(volume=volume), False)
    await driver.grow_volume(volume, 8 * MIB)
    directory = path / "volumes"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    found = {entry.name: entry.lstat() for entry in directory.iterdir()}
    assert set(found) == {f"{one}.{end}" for one in (volume, copy) for end in ("qcow2", "json")}
    for entry in found.values():
        assert (stat.S_IMODE(entry.st_mode), entry.st_uid, entry.st_gid) == (0o600, 0, 0)


async def test_a_header_that_names_another_file_reaches_nothing(driver, tmp_path) -> None:
    """An emulator that a guest took over can write any header. Whoever reads it next must not follow."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 100_000)
    before = secret.read_bytes()
    for attack in (
        ("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret)),
        ("create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on"),
    ):
        volume = uid()
        made = await driver.ensure_volume(volume, 4 * MIB, None, False)
        Path(made.path).unlink()
        qemu_img(*attack, made.path, str(4 * MIB))
        secret.write_bytes(before)
        try:
            copied = await driver.ensure_volume(uid(), None, VolumeOrigin(volume=volume), False)
        except StorageError as error:
            assert error.reason == "VolumeDamaged"
        else:
            assert b"secret" not in content(copied.path, tmp_path / "out")
        with suppress(StorageError):  # what the header says may well be ignored
            await driver.grow_volume(volume, 8 * MIB)
        assert secret.read_bytes() == before


async def test_what_an_emulator_has_open_is_neither_grown_nor_copied(driver) -> None:
    volume = uid()
    made = await driver.ensure_volume(volume, 4 * MIB, None, False)
    emulator = await asyncio.create_subprocess_exec(
        *("qemu-io", "-f", "qcow2", made.path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert emulator.stdin is not None
    assert emulator.stdout is not None
    emulator.stdin.write(b"length\n")
    await emulator.stdin.drain()
    await emulator.stdout.readline()
    for attempt in (
        driver.grow_volume(volume, 8 * MIB),
        driver.ensure_volume(uid(), None, VolumeOrigin(volume=volume), False),
    ):
        with pytest.raises(StorageError) as refused:
            await attempt
        assert (refused.value.reason, refused.value.retryable) == ("VolumeInUse", True)
    await emulator.communicate(b"quit\n")
    assert (await driver.grow_volume(volume, 8 * MIB)).virtual_size == 8 * MIB


async def test_what_was_begun_is_not_taken_for_a_volume_and_goes(driver, path) -> None:
    volume = uid()
    await driver.prepare()
    (path / f"volumes/.{volume}.new").write_bytes(b"half")
    (path / f"volumes/{volume}.json").write_text("{}")
    assert await driver.volume(volume) is None
    made = await driver.ensure_volume(volume, 4 * MIB, None, False)
    assert {entry.name for entry in (path / "volumes").iterdir()} == {f"{volume}.qcow2", f"{volume}.json"}
    (path / f"volumes/.{volume}.new").write_bytes(b"half")
    await driver.remove_volume(volume)
    assert not list((path / "volumes").iterdir())
    assert not Path(made.path).exists()


async def test_a_cancelled_copy_leaves_nothing(driver, origin, path) -> None:
    source, copy = uid(), uid()
    await driver.ensure_volume(source, None, origin, False)
    begun = asyncio.Event()
    copying = asyncio.ensure_future(
        driver.ensure_volume(copy, None, VolumeOrigin(volume=source), False, lambda _: begun.set())
    )
    await begun.wait()
    with pytest.raises(StorageError) as refused:
        await driver.remove_volume(source)
    assert refused.value.reason == "VolumeInUse"
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert {entry.name for entry in (path / "volumes").iterdir()} == {f"{source}.qcow2", f"{source}.json"}
    await driver.remove_volume(source)


async def test_links_in_place_of_volumes_are_replaced_never_followed(driver, path, tmp_path) -> None:
    canary, volume = tmp_path / "canary", uid()
    canary.write_text("do not touch")
    canary.chmod(0o644)
    await driver.prepare()
    for name in (f".{volume}.new", f"{volume}.qcow2", f".{volume}.json.new"):
        (path / "volumes" / name).symlink_to(canary)
    made = await driver.ensure_volume(volume, 4 * MIB, None, False)
    assert not Path(made.path).is_symlink()
    await driver.remove_volume(volume)
    assert canary.read_text() == "do not touch"
    assert stat.S_IMODE(canary.stat().st_mode) == 0o644
