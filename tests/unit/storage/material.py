"""Small disks to import, and the orders that go with them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import uuid
from pathlib import Path

import pycdlib
import pytest
import zstandard

from kumulus.api.image import Compression, ImageFormat
from kumulus.api.image_order import HttpFetch, ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_agents.storage.protocol import ImportProgress
from tests.patience import PATIENCE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: images are read in a cage")

MIB = 1 << 20


def uid() -> str:
    return str(uuid.uuid4())


def pool_ref(path: Path) -> PoolRef:
    """The pool in that directory: the same one each time."""
    of_path = str(uuid.uuid5(uuid.NAMESPACE_URL, str(path)))
    return PoolRef(uid=of_path, name="fast", driver=PoolDriver.DIR, parameters=PoolParameters(path=str(path)))


def image_ref(data: bytes, form: str, image_uid: str | None = None) -> ImageRef:
    return ImageRef(uid=image_uid or uid(), sha256=hashlib.sha256(data).hexdigest(), format=ImageFormat(form))


def http(url: str, compression: str = "None") -> HttpFetch:
    return HttpFetch(url=url, compression=Compression(compression))


def ignore(_: ImportProgress) -> None:
    """A listener that does not care."""


def disk(size: int = 4 * MIB) -> bytes:
    """A raw disk with a partition table, some data and much nothing. The same each time."""
    data = bytearray(size)
    data[MIB : MIB + 300_000] = random.Random(7).randbytes(300_000)
    data[446:462] = bytes.fromhex("80202100 83 410100 00080000 00100000".replace(" ", ""))
    data[510:512] = b"\x55\xaa"
    return bytes(data)


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, check=True, text=True, timeout=60 * PATIENCE
    )
    return done.stdout


def qcow2(directory: Path, *options: str, size: int = 4 * MIB, convert: tuple[str, ...] = ()) -> bytes:
    """`disk` as a qcow2 file that qemu-img made."""
    raw, made = directory / "made.raw", directory / "made.qcow2"
    raw.write_bytes(disk(size))
    chosen = ("-o", ",".join(options)) if options else ()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *convert, *chosen, raw, made)
    data = made.read_bytes()
    raw.unlink()
    made.unlink()
    return data


def made(directory: Path, driver: str, *options: str, size: int = 4 * MIB) -> bytes:
    """`disk` as a file of another format, by qemu-img's name for it."""
    raw, target = directory / "made.raw", directory / "made.other"
    raw.write_bytes(disk(size))
    chosen = ("-o", ",".join(options)) if options else ()
    qemu_img("convert", "-f", "raw", "-O", driver, *chosen, raw, target)
    data = target.read_bytes()
    raw.unlink()
    target.unlink()
    return data


BOOT = bytes.fromhex("0e1fe800005e83c613fcbaf803ac84c07403eeebf8f4ebfd") + b"DISC-BOOTED\n\0"
"""What a machine runs that boots from a disc: it says so on its serial port, and halts."""


def iso(*, hybrid: bool = False, label: str = "installer") -> bytes:
    """A disc with a file on it that a machine can boot from; a hybrid has a partition table too."""
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident=label, joliet=3)
    disc.add_fp(io.BytesIO(BOOT.ljust(2048, b"\0")), 2048, "/BOOT.;1", joliet_path="/boot")
    disc.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", joliet_bootcatfile="/boot.cat")
    data = random.Random(3).randbytes(100_000)
    disc.add_fp(io.BytesIO(data), len(data), "/INSTALL.;1", joliet_path="/install")
    out = io.BytesIO()
    disc.write_fp(out)
    disc.close()
    image = bytearray(out.getvalue())
    if hybrid:
        image[446:512] = disk(MIB)[446:512]
    return bytes(image)


PACK = {
    "gzip": lambda data: gzip.compress(data, 6),
    "xz": lambda data: lzma.compress(data, preset=1),
    "zstd": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
    "bzip2": lambda data: bz2.compress(data, 9),
}
"""What packs, by the name of the compression."""
