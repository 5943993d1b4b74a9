"""The agent dies by SIGKILL at any step; what it left is never taken for whole, and the next try succeeds."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from kumulus_agents.storage.dir.driver import DirStorage
from tests.unit.storage.killed import GROWN
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.server import Answer

pytestmark = needs_root

ROOT = Path(__file__).parents[3]
DATA = disk(2 * MIB)


async def deaths(verb: str, pool: Path, url: str, image_uid: str, owner: str, stride: int) -> list[dict]:
    """Run `killed.py`; what it says after each death, and at last after success."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.unit.storage.killed", verb, str(pool), url),
        *(hashlib.sha256(DATA).hexdigest(), image_uid, owner, str(stride)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("stride", [4, 7])
async def test_an_import_killed_at_any_step(stride, server, settings, tmp_path) -> None:
    """At every fourth, then at every seventh step; all of them would take a minute."""
    image_uid, pool = uid(), tmp_path / "pool"
    await DirStorage(pool_ref(pool), settings).prepare()
    url = server.on("/i", Answer(DATA, etag='"1"'))
    said = await deaths("import", pool, url, image_uid, uid(), stride)
    assert len(said) > 5
    assert said[-1]["image"]
    (tmp_path / "raw").write_bytes(DATA)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", said[-1]["image"], tmp_path / "raw")
    left = {entry.name for entry in (pool / "images").rglob("*") if entry.is_file()}
    assert left == {f"{image_uid}.qcow2", f"{image_uid}.json"}


async def test_a_disk_killed_at_any_step(server, settings, tmp_path) -> None:
    pool, owner = tmp_path / "pool", uid()
    driver = DirStorage(pool_ref(pool), settings)
    image = image_ref(DATA, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(DATA))), ignore)
    said = await deaths("disk", pool, server.url("/i"), image.uid, owner, stride=1)
    assert len(said) > 10
    assert all(entry["image"] for entry in said)
    made = await driver.ensure_disk(owner, "root", image.uid, None)
    qemu_img("check", "-q", "-f", "qcow2", made.path)
    assert len([entry for entry in Path(made.path).parent.iterdir() if entry.suffix == ".qcow2"]) == 1
    await driver.remove_disks(owner)
    assert not list((pool / "disks").iterdir())


async def test_a_volume_killed_at_any_step(server, settings, tmp_path) -> None:
    pool, volume = tmp_path / "pool", uid()
    driver = DirStorage(pool_ref(pool), settings)
    image = image_ref(DATA, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(DATA))), ignore)
    said = await deaths("volume", pool, server.url("/i"), image.uid, volume, stride=3)
    assert len(said) > 3
    (tmp_path / "raw").write_bytes(DATA)
    for entry in said:
        if entry["image"]:  # whole whenever it is there
            assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", entry["image"], tmp_path / "raw")
    assert said[-1]["image"]
    assert {entry.name for entry in (pool / "volumes").iterdir()} == {f"{volume}.qcow2", f"{volume}.json"}
    said = await deaths("grow", pool, server.url("/i"), image.uid, volume, stride=1)
    assert all(entry["image"] for entry in said)
    qemu_img("check", "-q", "-f", "qcow2", said[-1]["image"])
    made = await driver.grow_volume(volume, GROWN)
    assert (made.virtual_size, stat.S_IMODE(Path(made.path).stat().st_mode)) == (GROWN, 0o600)
