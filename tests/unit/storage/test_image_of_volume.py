"""Images that are made of volumes: full, looked at, and what they were made once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError, VolumeContent
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import disk, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.registry import unknown
from tests.unit.storage.server import Answer, Server

pytestmark = needs_root


async def test_an_image_of_a_volume_is_a_full_copy(settings: StorageSettings, server: Server, tmp_path: Path) -> None:
    driver = DirStorage(pool_ref(tmp_path / "pool"), settings)
    base, volume, image = image_ref(disk(), "raw"), uid(), unknown("qcow2")
    await driver.import_image(base, http(server.on("/i", Answer(disk()))), ignore)
    await driver.ensure_volume(volume, None, VolumeOrigin(image=base), False)
    with pytest.raises(StorageError) as missing:
        await driver.import_image(image, VolumeContent(uid()), ignore)
    assert (missing.value.reason, missing.value.retryable) == ("VolumeNotReady", True)

    made = await driver.import_image(image, VolumeContent(volume), ignore)
    assert (made.format, made.source_format, made.virtual_size) == ("qcow2", "qcow2", len(disk()))
    data = Path(made.path).read_bytes()  # noqa: ASYNC240
    assert made.sha256 == hashlib.sha256(data).hexdigest()
    await driver.remove_volume(volume)
    await driver.remove_image(base.uid)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", made.path, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == disk()
    assert "backing" not in qemu_img("info", "-f", "qcow2", made.path)


async def test_a_volume_that_has_changed_does_not_become_the_same_image_again(
    settings: StorageSettings, tmp_path: Path
) -> None:
    driver, volume = DirStorage(pool_ref(tmp_path / "pool"), settings), uid()
    await driver.prepare()
    await driver.ensure_volume(volume, 1 << 20, None, False)
    before = ImageRef(uid=uid(), sha256="0" * 64, format=ImageFormat.QCOW2)
    with pytest.raises(StorageError) as refused:
        await driver.import_image(before, VolumeContent(volume), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("ChecksumMismatch", False)
    assert await driver.image(before.uid) is None
