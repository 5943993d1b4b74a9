"""The driver `dir` on a real file system, with a real qemu-img."""

# ruff: noqa: ASYNC240, ASYNC110 - short waits and small files, in tests

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path, PurePosixPath

import pytest

from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import ImportProgress, StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.moves import MoveContract
from tests.contract.snapshots import LayerContract
from tests.contract.storage import Bench, StorageContract
from tests.patience import PATIENCE
from tests.unit.storage.material import (
    MIB,
    disk,
    http,
    ignore,
    image_ref,
    needs_root,
    pool_ref,
    qcow2,
    qemu_img,
    uid,
)
from tests.unit.storage.server import Answer, Server

pytestmark = needs_root

RAW = disk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pools" / "fast"


@pytest.fixture
def driver(path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(path), settings)


class TestDir(StorageContract, LayerContract, MoveContract):
    @pytest.fixture
    def beyond(self, tmp_path: Path, settings: StorageSettings) -> DirStorage:
        return DirStorage(pool_ref(tmp_path / "pools" / "beyond"), settings)

    @pytest.fixture
    def bench(self, driver: DirStorage, path: Path, settings: StorageSettings, server: Server) -> Bench:
        url = server.on("/disk.raw", Answer(RAW, etag='"1"'))
        return Bench(
            driver=driver,
            again=lambda: DirStorage(pool_ref(path), settings),
            image=image_ref(RAW, "raw"),
            source=http(url),
            virtual_size=len(RAW),
            fetches=lambda: len(server.requests),
        )


async def test_a_raw_source_becomes_a_sparse_qcow2_file_with_the_same_content(driver, server, tmp_path) -> None:
    made = await driver.import_image(image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW))), ignore)
    (tmp_path / "raw").write_bytes(RAW)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", made.path, tmp_path / "raw")
    assert made.size < MIB
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", made.path))
    assert "backing-filename" not in info


async def test_a_compressed_qcow2_source_is_unpacked(driver, server, tmp_path) -> None:
    data = qcow2(tmp_path, convert=("-c",))
    made = await driver.import_image(image_ref(data, "qcow2"), http(server.on("/i", Answer(data))), ignore)
    (tmp_path / "raw").write_bytes(RAW)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", made.path, tmp_path / "raw")
    assert made.source_format == "qcow2"


async def test_a_disk_stands_on_its_image_with_the_format_pinned(driver, server, tmp_path) -> None:
    image = image_ref(RAW, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    made = await driver.ensure_disk(uid(), "root", image.uid, 8 * MIB + 1)
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", made.path))
    assert info["backing-filename"] == f"../../images/{image.uid}.qcow2"
    assert info["backing-filename-format"] == "qcow2"
    assert info["virtual-size"] == made.virtual_size == 8 * MIB + 512
    qemu_img("convert", "-f", "qcow2", "-O", "raw", made.path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == RAW + bytes(4 * MIB + 512)


async def test_a_pool_that_moves_keeps_its_disks(driver, server, path, tmp_path) -> None:
    image = image_ref(RAW, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    made = await driver.ensure_disk(uid(), "root", image.uid, None)
    path.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / Path(made.path).relative_to(path)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", moved, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == RAW


async def test_only_root_may_look_and_names_are_uids(driver, server, path) -> None:
    image, owner = image_ref(RAW, "raw"), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    await driver.ensure_disk(owner, "root", image.uid, None)
    found = {str(entry.relative_to(path)): entry.lstat() for entry in path.rglob("*")}
    for name, entry in found.items():
        assert stat.S_IMODE(entry.st_mode) == (0o700 if stat.S_ISDIR(entry.st_mode) else 0o600), name
        assert (entry.st_uid, entry.st_gid) == (0, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {f"images/{image.uid}.qcow2", f"images/{image.uid}.json", f"disks/{owner}"} < set(found)
    assert len(found) == 9 and marker.NAME in found


async def test_the_emulators_group_may_pass_through_and_read_images_only(path, settings, server) -> None:
    driver = DirStorage(pool_ref(path), settings.model_copy(update={"readers": ("no such group", "nogroup")}))
    image = image_ref(RAW, "raw")
    made = await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    disk_path = (await driver.ensure_disk(uid(), "root", image.uid, None)).path
    for directory in (path, path / "images", path / "disks", Path(disk_path).parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o710
        assert directory.stat().st_gid == 65534
    assert stat.S_IMODE(Path(made.path).stat().st_mode) == 0o640
    assert stat.S_IMODE(Path(disk_path).stat().st_mode) == 0o600
    assert stat.S_IMODE((path / "images/.partial").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["/etc", "/var/lib/kumulus", "{root}", "{root}/../etc", "{root}-not"])
async def test_a_pool_outside_the_allowed_roots_is_refused(place, settings, tmp_path) -> None:
    wanted = pool_ref(tmp_path)
    parameters = wanted.parameters.model_construct(path=place.format(root=tmp_path))
    driver = DirStorage(wanted.model_copy(update={"parameters": parameters}), settings)
    for call in (driver.prepare(), driver.image(uid()), driver.remove_disks(uid())):
        with pytest.raises(StorageError) as refused:
            await call
        assert refused.value.reason == "PathNotAllowed"
        assert not refused.value.retryable


@pytest.mark.parametrize("link", ["pools", "pools/fast", "pools/fast/images", "pools/fast/disks"])
async def test_a_link_in_the_pools_path_is_refused_and_not_followed(link, driver, tmp_path) -> None:
    await driver.prepare()
    there, place = tmp_path / "canary", tmp_path / link
    place.rename(there)
    place.symlink_to(there)
    there.chmod(0o755)
    before = sorted(there.rglob("*"))
    with pytest.raises(StorageError) as refused:
        await driver.prepare()
    assert refused.value.reason == "PoolUnsafe"
    assert sorted(there.rglob("*")) == before
    assert stat.S_IMODE(there.stat().st_mode) == 0o755


async def test_links_in_place_of_files_are_replaced_never_followed(driver, server, path, tmp_path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("do not touch")
    canary.chmod(0o644)
    await driver.prepare()
    image, owner = image_ref(RAW, "raw"), uid()
    (path / f"images/.partial/{image.uid}.converting").symlink_to(canary)
    (path / f"images/{image.uid}.qcow2").symlink_to(canary)
    (path / f"images/.{image.uid}.json.new").symlink_to(canary)
    assert await driver.image(image.uid) is None
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    assert not (path / f"images/{image.uid}.qcow2").is_symlink()
    made = await driver.ensure_disk(owner, "root", image.uid, None)
    for file in Path(made.path).parent.iterdir():
        file.unlink()
    Path(made.path).symlink_to(canary)
    await driver.ensure_disk(owner, "root", image.uid, None)
    assert not Path(made.path).is_symlink()
    Path(made.path).unlink()
    Path(made.path).symlink_to(canary)
    await driver.remove_disks(owner)
    assert canary.read_text() == "do not touch"
    assert (stat.S_IMODE(canary.stat().st_mode), canary.stat().st_uid) == (0o644, 0)


async def test_a_link_in_place_of_a_partial_download_is_refused(driver, server, path, tmp_path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("do not touch")
    await driver.prepare()
    image = image_ref(RAW, "raw")
    (path / f"images/.partial/{image.uid}.source").symlink_to(canary)
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    assert refused.value.reason == "PoolUnsafe"
    assert canary.read_text() == "do not touch"
    await driver.remove_image(image.uid)
    await driver.import_image(image, http(server.url("/i")), ignore)


@pytest.mark.parametrize(
    ("answer", "declared", "reason"),
    [
        (Answer(RAW[:-1] + b"x"), "raw", "ChecksumMismatch"),
        (Answer(RAW), "qcow2", "ImageRejected"),
        (Answer(RAW, length=False), "qcow2", "ImageRejected"),
    ],
)
async def test_nothing_of_a_refused_image_stays(driver, server, path, answer, declared, reason) -> None:
    image = image_ref(RAW, declared)
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, http(server.on("/i", answer)), ignore)
    assert refused.value.reason == reason
    assert not refused.value.retryable
    assert [entry.name for entry in (path / "images").rglob("*")] == [".partial"]


async def test_a_cancelled_import_goes_on_where_it_was(driver, server, path) -> None:
    image = image_ref(RAW, "raw")
    url = server.on("/i", Answer(RAW, etag='"1"', stall=2 * MIB), Answer(RAW, etag='"1"'))
    importing = asyncio.ensure_future(driver.import_image(image, http(url), ignore))
    part = path / f"images/.partial/{image.uid}.source"
    async with asyncio.timeout(30 * PATIENCE):
        await server.stalled.wait()
        while not part.exists() or part.stat().st_size < MIB:
            await asyncio.sleep(0.01)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    had = part.stat().st_size
    await driver.import_image(image, http(url), ignore)
    assert server.requests[1].headers["range"] == f"bytes={had}-"
    assert not part.exists()


async def test_a_file_that_was_cut_is_not_taken_for_the_image(driver, server) -> None:
    image = image_ref(RAW, "raw")
    made = await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    os.truncate(made.path, 65536)
    assert await driver.image(image.uid) is None
    assert (await driver.import_image(image, http(server.url("/i")), ignore)).size == made.size


async def test_progress_goes_through_all_stages(driver, server) -> None:
    told: list[ImportProgress] = []
    await driver.import_image(image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW))), told.append)
    assert told[0].stage == "Downloading"
    assert {progress.stage for progress in told} == {"Downloading", "Inspecting", "Converting"}
    assert told[0].total == len(RAW)


async def test_a_pool_that_belongs_to_somebody_else_is_refused(driver, path) -> None:
    path.mkdir(parents=True)
    os.chown(path, 65534, 65534)
    with pytest.raises(StorageError):
        await driver.prepare()
    assert path.stat().st_uid == 65534


def test_roots_default_to_the_documented_place() -> None:
    assert StorageSettings().roots == (PurePosixPath("/var/lib/kumulus/pools"),)
