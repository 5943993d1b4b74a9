"""Hostile images are refused, quickly, and touch nothing (QUALITY G24, S3).

Twice: through the whole driver, where the inspector refuses them; and by qemu-img in the cage with
the inspector left out, where nothing they name can be reached. A control shows that the canary
would be read if it could be.
"""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import ipaddress
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import pytest

from kumulus_agents.storage import convert
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rejection import Found
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.security.images import corpus
from tests.unit.storage.material import http, ignore, image_ref, needs_root, pool_ref, qemu_img
from tests.unit.storage.server import Answer, Server, serving

pytestmark = needs_root

LIMIT = 2.0
"""Seconds of CPU for a refusal, this process and the cage together: what a machine with nothing else to do needs."""

DEADLINE = 20.0
"""Seconds on the clock, on a machine that is busy with other tests."""


@dataclass
class Trap:
    """A file nobody may open and a listener nobody may reach; `untouched()` says whether that is so."""

    path: Path
    secret: bytes
    listener: Server

    def set(self) -> None:
        os.utime(self.path, (1, 2))

    def untouched(self) -> bool:
        stat = self.path.stat()
        return stat.st_atime == 1 and self.listener.connections == 0 and stat.st_mode & 0o777 == 0o666


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    """Readable by everybody, at a path without directories that would protect it."""
    secret = secrets.token_hex(32).encode() * 16384
    path = Path("/var/tmp") / f"kumulus-canary-{os.getpid()}"
    path.write_bytes(secret)
    path.chmod(0o666)
    async with serving("0.0.0.0") as listener:
        made = Trap(path, secret, listener)
        made.set()
        yield made
    path.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    allowed = (ipaddress.ip_network("127.0.0.1/32"),)
    return StorageSettings(
        roots=(PurePosixPath(tmp_path),), readers=(), fetch=FetchSettings(allowed_networks=allowed, backoff=0)
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving("127.0.0.1") as made:
        yield made


def work() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def made(name: str, declared: str, trap: Trap) -> corpus.Hostile:
    files = corpus.hostile(str(trap.path), trap.listener.port)
    return next(file for file in files if (file.name, file.declared) == (name, declared))


def test_the_corpus_is_large_enough() -> None:
    assert len(set(corpus.NAMES)) == len(corpus.NAMES) >= 40


@pytest.mark.parametrize(("name", "declared"), corpus.NAMES, ids=[name for name, _ in corpus.NAMES])
async def test_refused(name, declared, trap: Trap, settings: StorageSettings, server: Server, tmp_path: Path) -> None:
    file = made(name, declared, trap)
    driver = DirStorage(pool_ref(tmp_path / "pool"), settings)
    image = image_ref(file.data, file.declared)
    url = server.on("/i", Answer(file.data))
    began, worked = time.monotonic(), work()
    with pytest.raises(StorageError) as refused:
        await driver.import_image(image, http(url, file.compression), ignore)
    assert work() - worked < LIMIT
    assert time.monotonic() - began < DEADLINE
    assert (refused.value.reason, refused.value.retryable) == ("ImageRejected", False)
    assert str(refused.value).startswith("The image is refused: it ")
    assert str(trap.path) not in str(refused.value)
    assert trap.untouched()
    assert await driver.image(image.uid) is None
    assert [entry for entry in (tmp_path / "pool").rglob("*") if entry.is_file() and entry.name != marker.NAME] == []


DANGEROUS = [
    (file.name, file.declared)
    for file in corpus.hostile("/tmp/canary", 9)
    if file.compression == "None"
    and (
        (file.declared == "qcow2" and any(word in file.name for word in ("backing", "data file")))
        or (file.declared in ("vmdk", "vhd") and any(word in file.name for word in ("descriptor", "extent", "parent")))
    )
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "source.img"
    yield path
    path.unlink(missing_ok=True)


async def converted(data: bytes, form: str, source: Path, settings: StorageSettings) -> bytes:
    """What qemu-img in the cage makes of a file that nobody inspected; nothing when it refuses."""
    target = source.with_suffix(".out")
    source.write_bytes(data)
    fds = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        await convert.convert(fds[0], Found(form, corpus.MIB), fds[1], settings, lambda done, total: None)
    except StorageError:
        pass
    finally:
        for fd in fds:
            os.close(fd)
    return target.read_bytes()


@pytest.mark.parametrize(("name", "declared"), DANGEROUS, ids=[f"{name} as {said}" for name, said in DANGEROUS])
async def test_nothing_is_reached_even_if_the_inspector_is_fooled(name, declared, trap, settings, source) -> None:
    out = await converted(made(name, declared, trap).data, declared, source, settings)
    assert trap.untouched()
    assert trap.secret[:64] not in out


@pytest.mark.parametrize("extent", ["{path}", "/etc/shadow", "/dev/vda"])
async def test_no_vmdk_extent_is_reached_even_if_the_format_were_believed(extent, trap, settings, source) -> None:
    out = await converted(corpus.vmdk(extent.format(path=trap.path)), "vmdk", source, settings)
    assert trap.untouched()
    assert trap.secret[:64] not in out
    assert b"root:" not in out


async def test_a_bomb_fills_no_pool_even_if_the_inspector_is_fooled(settings, source) -> None:
    fetch = settings.fetch.model_copy(update={"max_bytes": corpus.MIB})
    cage = settings.cage.model_copy(update={"convert_seconds": 3.0})
    small = settings.model_copy(update={"fetch": fetch, "cage": cage})
    out = await converted(corpus.bomb(), "qcow2", source, small)
    assert len(out) <= 66 * corpus.MIB


async def test_control_without_a_cage_the_canary_is_read(trap, tmp_path) -> None:
    (tmp_path / "i").write_bytes(made("backing file canary", "qcow2", trap).data)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "i", tmp_path / "out")
    assert trap.secret[:64] in (tmp_path / "out").read_bytes()
    assert not trap.untouched()


@pytest.mark.parametrize(
    "name",
    ["VMDK descriptor of a flat extent (CVE-2022-47951)", "VMDK without a disk, so that its descriptor counts"],
)
async def test_control_without_a_cage_the_canary_is_read_by_vmdk_too(name, trap, tmp_path) -> None:
    (tmp_path / "i").write_bytes(made(name, "vmdk", trap).data)
    qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / "i", tmp_path / "out")
    assert trap.secret[:64] in (tmp_path / "out").read_bytes()
    assert not trap.untouched()


@pytest.mark.parametrize(
    ("declared", "data"),
    [("vmdk", corpus.vmdk_sparse(corpus.vmdk_text())), ("vhd", corpus.vhd_dynamic())],
    ids=["vmdk", "vhd"],
)
async def test_control_what_is_made_hostile_is_honest_before(declared, data, settings, server, tmp_path) -> None:
    driver = DirStorage(pool_ref(tmp_path / "pool"), settings)
    image = await driver.import_image(image_ref(data, declared), http(server.on("/i", Answer(data))), ignore)
    assert image.virtual_size == corpus.MIB


async def test_control_an_honest_file_comes_in(trap, settings, server, tmp_path) -> None:
    data = bytes(corpus.honest())
    driver = DirStorage(pool_ref(tmp_path / "pool"), settings)
    image = await driver.import_image(image_ref(data, "qcow2"), http(server.on("/i", Answer(data))), ignore)
    assert image.virtual_size == corpus.MIB
    assert trap.untouched()
