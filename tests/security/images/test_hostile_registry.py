"""Hostile registries and layers through the whole driver: refused, and nothing they name is touched (QUALITY G24, S1, S3)."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.security.images import corpus
from tests.security.images.test_hostile import Trap, settings, trap
from tests.unit.storage.material import ignore, needs_root, pool_ref
from tests.unit.storage.registry import Registry, container, digest, entry, layer, tar, unknown
from tests.unit.storage.server import Answer, certificate, serving

pytestmark = needs_root

__all__ = ["settings", "trap"]

HONEST = bytes(corpus.honest())
MIB = corpus.MIB


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    (tmp_path / "tls").mkdir()
    bundle, context = certificate(tmp_path / "tls", "127.0.0.1")
    async with serving("127.0.0.1", tls=context) as server:
        yield Registry(server, bundle)


def link(target: str, kind: bytes) -> bytes:
    return gzip.compress(tar(entry("disk/d.qcow2", kind=kind, linkname=target)))


def bomb(size: int) -> bytes:
    """A disk of nothing but zeros, so many MiB of them."""
    info, _ = entry("disk/d.qcow2")
    info.size = size * MIB
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    zeros = bytes(MIB)
    body = b"".join(packer.compress(zeros) for _ in range(size))
    head = zstandard.ZstdCompressor().compress(info.tobuf(tarfile.GNU_FORMAT))
    return head + body + packer.flush()


LAYERS = {
    "a symbolic link to the canary": lambda path: link(path, tarfile.SYMTYPE),
    "a hard link to the canary": lambda path: link(path, tarfile.LNKTYPE),
    "a name that leads to the canary": lambda path: gzip.compress(
        tar(entry(f"disk/../../../../..{path}", HONEST), entry("disk/d.qcow2", HONEST))
    ),
    "a disk with the canary as its backing file": lambda path: layer(corpus.backed(path)),
    "a disk in a disk's place that is packed": lambda path: layer(gzip.compress(HONEST)),
    "two disks": lambda path: gzip.compress(tar(entry("disk/a", HONEST), entry("disk/b", HONEST))),
    "a device": lambda path: gzip.compress(tar(entry("disk/a", kind=tarfile.BLKTYPE, devmajor=254))),
    "half a layer": lambda path: layer(HONEST)[:-20],
    "no layer at all": lambda path: HONEST,
    "bzip2, which it is not said to be": lambda path: b"BZh91AY&SY",
}


@pytest.mark.parametrize("name", list(LAYERS))
async def test_refused(name: str, trap: Trap, settings: StorageSettings, registry: Registry, tmp_path: Path) -> None:
    data = LAYERS[name](str(trap.path))
    registry.blob(data)
    registry.manifest(container(data), "12")
    driver, image = DirStorage(pool_ref(tmp_path / "pool"), settings), unknown("qcow2")
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, registry.source(), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("ImageRejected", False)
    assert str(trap.path) not in str(refused.value)
    assert trap.untouched()
    assert await driver.image(image.uid) is None
    assert [file.name for file in (tmp_path / "pool").rglob("*") if file.is_file()] == [marker.NAME]


async def test_a_layer_that_unpacks_to_too_much(settings: StorageSettings, registry: Registry, tmp_path: Path) -> None:
    data = bomb(64)
    assert len(data) < MIB
    small = settings.model_copy(update={"fetch": settings.fetch.model_copy(update={"max_bytes": 32 * MIB})})
    registry.blob(data)
    registry.manifest(container(data, "application/vnd.oci.image.layer.v1.tar+zstd"), "12")
    driver, image = DirStorage(pool_ref(tmp_path / "pool"), small), unknown("raw")
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, registry.source(), ignore)
    assert (refused.value.reason, refused.value.retryable) == ("ImageTooLarge", False)
    assert [file.name for file in (tmp_path / "pool").rglob("*") if file.is_file()] == [marker.NAME]


@pytest.mark.parametrize(
    "packed", [gzip.compress, zstandard.ZstdCompressor().compress, bytes], ids=["gzip", "zstd", "tar"]
)
async def test_control_an_honest_layer_comes_in(packed, settings, registry: Registry, tmp_path: Path) -> None:
    data = packed(tar(entry("etc/motd", b"hello"), entry("disk/d.qcow2", HONEST)))
    kind = "application/vnd.oci.image.layer.v1.tar"
    if packed is not bytes:
        kind += "+gzip" if packed is gzip.compress else "+zstd"
    registry.blob(data, Answer(data))
    registry.manifest(container(data, kind), "12")
    driver, image = DirStorage(pool_ref(tmp_path / "pool"), settings), unknown("qcow2")
    made = await driver.import_image(image, registry.source(), ignore)
    assert (made.virtual_size, f"sha256:{made.sha256}", made.digest) == (
        MIB,
        digest(data),
        digest(container(data, kind)),
    )
    again = DirStorage(pool_ref(tmp_path / "pool"), settings)
    assert await again.image(image.uid) is not None
    pinned = registry.source(digest=digest(b"another"))
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, pinned, ignore)
    assert refused.value.reason == "ImageConflict"
