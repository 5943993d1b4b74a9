"""Each format and each compression through the real driver: real files, a real qemu-img, the real cage."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import json
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import ImportProgress, StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import (
    MIB,
    PACK,
    disk,
    http,
    ignore,
    image_ref,
    iso,
    made,
    needs_root,
    pool_ref,
    qcow2,
    qemu_img,
    uid,
)
from tests.unit.storage.server import Answer

pytestmark = needs_root

ALL = pytest.mark.parametrize("compression", list(PACK))
STAGES = ["Downloading", "Unpacking", "Inspecting", "Converting"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def driver(path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(path), settings)


def files(pool: Path) -> list[str]:
    return sorted(entry.name for entry in pool.rglob("*") if entry.is_file() and entry.name != marker.NAME)


def is_the_disk(path: str, tmp_path: Path) -> bool:
    """Whether an image in the pool has what `disk` has, and perhaps nothing behind it."""
    (tmp_path / "raw").write_bytes(disk())
    return "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", path, tmp_path / "raw")


@pytest.mark.parametrize(
    ("declared", "driver_", "options"),
    [
        ("vmdk", "vmdk", ()), ("vmdk", "vmdk", ("subformat=streamOptimized",)),
        ("vhd", "vpc", ("force_size=on",)), ("vhd", "vpc", ()), ("vhd", "vpc", ("subformat=fixed",)),
        ("vhdx", "vhdx", ()), ("vhdx", "vhdx", ("subformat=fixed",)),
    ],
)  # fmt: skip
async def test_files_of_other_clouds_become_the_same_disk(
    driver, server, tmp_path, path, declared, driver_, options
) -> None:
    data = made(tmp_path, driver_, *options)
    image = image_ref(data, declared)
    stored = await driver.import_image(image, http(server.on("/i", Answer(data))), ignore)
    assert is_the_disk(stored.path, tmp_path)
    assert (stored.format, stored.source_format) == ("qcow2", declared)
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", stored.path))
    assert info["virtual-size"] == stored.virtual_size
    assert "backing-filename" not in info
    assert files(path) == [f"{image.uid}.json", f"{image.uid}.qcow2"]


async def test_a_vhd_has_the_size_that_it_says_and_not_the_one_of_its_cylinders(driver, server, tmp_path) -> None:
    """Else the end of a disk that VirtualBox wrote would be missing."""
    data = bytearray(made(tmp_path, "vpc", "subformat=fixed", "force_size=on"))
    footer = len(data) - 512
    data[footer + 28 : footer + 32] = b"vbox"
    data[footer + 64 : footer + 68] = bytes(4)
    data[footer + 64 : footer + 68] = (~sum(data[footer:]) & 0xFFFFFFFF).to_bytes(4, "big")
    stored = await driver.import_image(image_ref(data, "vhd"), http(server.on("/i", Answer(bytes(data)))), ignore)
    assert stored.virtual_size == 4 * MIB
    assert is_the_disk(stored.path, tmp_path)


@pytest.mark.parametrize("hybrid", [False, True])
async def test_a_disc_stays_as_it_is_and_is_fit_for_a_disk_that_goes_with_its_machine(
    driver, server, tmp_path, path, hybrid
) -> None:
    data = iso(hybrid=hybrid)
    image, url = image_ref(data, "iso"), server.on("/i", Answer(data))
    stored = await driver.import_image(image, http(url), ignore)
    assert (stored.format, stored.source_format, stored.virtual_size) == ("raw", "iso", len(data))
    assert Path(stored.path).read_bytes() == data
    assert stat.S_IMODE(Path(stored.path).stat().st_mode) == 0o600
    assert files(path) == [f"{image.uid}.json", f"{image.uid}.raw"]
    assert await driver.import_image(image, http(url), ignore) == stored
    assert len(server.requests) == 1
    for thick in (False, True):
        with pytest.raises(StorageError) as refused:
            await driver.ensure_volume(uid(), 8 * MIB, VolumeOrigin(image=image), thick)
        assert (refused.value.reason, refused.value.retryable) == ("ImageNotADisk", False)
    owner = uid()
    made_disk = await driver.ensure_disk(owner, "cd", image.uid, 8 * MIB)
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", made_disk.path))
    assert info["backing-filename-format"] == "raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", made_disk.path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data.ljust(8 * MIB, b"\0")
    with pytest.raises(StorageError, match="in use"):
        await driver.remove_image(image.uid)
    await driver.remove_disks(owner)
    await driver.remove_image(image.uid)
    assert files(path) == []


@ALL
async def test_packed_sources_become_the_same_disk(driver, server, tmp_path, path, compression) -> None:
    data = PACK[compression](disk())
    image, told = image_ref(data, "raw"), []
    stored = await driver.import_image(image, http(server.on("/i", Answer(data)), compression), told.append)
    assert is_the_disk(stored.path, tmp_path)
    assert stored.sha256 == image.sha256
    assert files(path) == [f"{image.uid}.json", f"{image.uid}.qcow2"]
    stages = [progress.stage for progress in told]
    assert list(dict.fromkeys(stages)) == STAGES
    assert all(p.total == len(data) and p.bytes <= len(data) for p in told if p.stage == "Unpacking")


@pytest.mark.parametrize(("declared", "compression"), [("qcow2", "zstd"), ("iso", "xz")])
async def test_any_format_may_be_packed(driver, server, tmp_path, path, declared, compression) -> None:
    plain = {"qcow2": qcow2, "iso": lambda _: iso()}[declared](tmp_path)
    data = PACK[compression](plain)
    stored = await driver.import_image(
        image_ref(data, declared), http(server.on("/i", Answer(data)), compression), ignore
    )
    assert stored.source_format == declared
    if declared == "iso":
        assert Path(stored.path).read_bytes() == plain
    else:
        assert is_the_disk(stored.path, tmp_path)
    assert len(files(path)) == 2


@ALL
async def test_a_bomb_is_refused_with_numbers_and_takes_no_room(tmp_path, path, settings, server, compression) -> None:
    fetch = settings.fetch.model_copy(update={"max_bytes": 16 * MIB})
    driver = DirStorage(pool_ref(path), settings.model_copy(update={"fetch": fetch}))
    data = PACK[compression](bytes(16 * MIB + 1))
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), compression), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("ImageTooLarge", False)
    assert f"its {len(data)} bytes unpack to more than the {16 * MIB}" in str(refused.value)
    assert files(path) == []


@pytest.mark.parametrize("declared", ["vmdk", "iso"])
async def test_what_is_in_a_pack_is_looked_at_like_anything_else(driver, server, tmp_path, path, declared) -> None:
    hostile = {
        "vmdk": b'# Disk DescriptorFile\nversion=1\ncreateType="vmfs"\nRW 1 VMFS "/etc/shadow"\n'.ljust(4096),
        "iso": qcow2(tmp_path),
    }[declared]
    data = PACK["gzip"](hostile)
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image_ref(data, declared), http(server.on("/i", Answer(data)), "gzip"), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("ImageRejected", False)
    assert files(path) == []


@pytest.mark.parametrize("said", ["None", "xz"])
async def test_a_compression_that_is_not_as_was_said_is_refused(driver, server, path, said) -> None:
    data = PACK["gzip"](disk())
    with pytest.raises(StorageError, match="compressed with") as refused:
        await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), said), ignore)
    assert refused.value.reason == "ImageRejected"
    assert files(path) == []


async def test_a_pack_that_was_cut_off_is_refused(driver, server, path) -> None:
    """And its checksum agrees: it was cut off before it was published."""
    data = PACK["zstd"](disk())[:-10]
    with pytest.raises(StorageError, match="cut off"):
        await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), "zstd"), ignore)
    assert files(path) == []


async def test_a_changed_pack_is_not_even_opened(driver, server, path) -> None:
    data = PACK["gzip"](disk())
    told: list[ImportProgress] = []
    with pytest.raises(StorageError) as refused:
        await driver.import_image(
            image_ref(data, "raw"), http(server.on("/i", Answer(data[:-1] + b"x")), "gzip"), told.append
        )
    assert refused.value.reason == "ChecksumMismatch"
    assert {progress.stage for progress in told} == {"Downloading"}


async def test_unpacking_that_takes_too_long_is_ended(path, settings, server) -> None:
    cage = settings.cage.model_copy(update={"convert_seconds": 0.05})
    driver = DirStorage(pool_ref(path), settings.model_copy(update={"cage": cage}))
    data = PACK["gzip"](disk())
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), "gzip"), ignore)
    assert refused.value.reason == "ImageTimeout"
    assert files(path) == []


async def test_a_cancelled_import_keeps_its_download_and_nothing_that_was_unpacked(driver, server, path) -> None:
    data = PACK["gzip"](random.Random(1).randbytes(8 * MIB))
    image, url = image_ref(data, "raw"), server.on("/i", Answer(data))
    begun = asyncio.Event()

    def listen(progress: ImportProgress) -> None:
        if progress.stage == "Unpacking":
            begun.set()

    importing = asyncio.ensure_future(driver.import_image(image, http(url, "gzip"), listen))
    await begun.wait()
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert files(path) == [f"{image.uid}.source", f"{image.uid}.source.json"]
    assert (await driver.import_image(image, http(url, "gzip"), ignore)).virtual_size == 8 * MIB
    assert len(server.requests) == 1


async def test_a_link_in_place_of_what_is_unpacked_is_replaced_never_followed(driver, server, path, tmp_path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("do not touch")
    await driver.prepare()
    data = PACK["gzip"](disk())
    image = image_ref(data, "raw")
    link = path / f"images/.partial/{image.uid}.unpacked"
    link.symlink_to(canary)
    await driver.import_image(image, http(server.on("/i", Answer(data)), "gzip"), ignore)
    link.symlink_to(canary)  # as an agent that was killed may leave one
    await driver.remove_image(image.uid)
    assert canary.read_text() == "do not touch"
    assert files(path) == []


SMALL = 16 * MIB


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system in which no large image has room."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


async def test_a_pack_that_has_no_room_is_refused_before_the_pool_is_full(small, settings, server) -> None:
    """Random in blocks, so that it packs well and has no holes."""
    driver = DirStorage(pool_ref(small / "pool"), settings)
    data = PACK["zstd"](random.Random(2).randbytes(1 << 16) * (4 * SMALL >> 16))
    assert len(data) < MIB
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), "zstd"), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("InsufficientCapacity", True)
    assert "The pool fast has no room for the image: more than 1" in str(refused.value)
    assert files(small / "pool") == []
    fits = PACK["zstd"](disk())
    stored = await driver.import_image(image_ref(fits, "raw"), http(server.on("/fits", Answer(fits)), "zstd"), ignore)
    assert stored.virtual_size == 4 * MIB


async def test_two_packs_in_a_pool_with_room_for_one(small, settings, server) -> None:
    """The second leaves the first what it has claimed, and is told so."""
    driver = DirStorage(pool_ref(small / "pool"), settings)
    first, second = (PACK["zstd"](random.Random(seed).randbytes(1 << 16) * 80) for seed in (3, 4))
    refused: list[StorageError] = []
    tasks: list[asyncio.Task[None]] = []

    async def beside() -> None:
        try:
            await driver.import_image(image_ref(second, "raw"), http(server.on("/2", Answer(second)), "zstd"), ignore)
        except StorageError as error:
            refused.append(error)

    def listen(progress: ImportProgress) -> None:
        if progress.stage == "Inspecting" and not tasks:
            tasks.append(asyncio.create_task(beside()))

    url = server.on("/1", Answer(first))
    stored = await driver.import_image(image_ref(first, "raw"), http(url, "zstd"), listen)
    assert stored.virtual_size == 80 << 16
    await asyncio.gather(*tasks)
    (error,) = refused
    assert (error.reason, error.retryable) == ("InsufficientCapacity", True)
    assert "has no room for the image" in str(error)


async def test_zeros_in_a_pack_take_no_room(small, settings, server) -> None:
    driver = DirStorage(pool_ref(small / "pool"), settings)
    data = PACK["zstd"](disk(3 * SMALL))
    stored = await driver.import_image(image_ref(data, "raw"), http(server.on("/i", Answer(data)), "zstd"), ignore)
    assert stored.virtual_size == 3 * SMALL
    assert stored.size < MIB
