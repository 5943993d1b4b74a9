"""The layer of a containerDisk: one file comes out, and nothing else does."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator

import pytest

from kumulus_agents.storage.oci import layer
from kumulus_agents.storage.rejection import Rejected, TooLarge
from tests.unit.storage.material import MIB
from tests.unit.storage.registry import entry, tar

DATA = random.Random(9).randbytes(3 * MIB + 5)
DISK = entry("disk/d.qcow2", DATA)
SMALL = entry("disk/d.qcow2", b"small")


def pieces(data: bytes, size: int = 70_001) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]
        yield b""


def unpacked(data: bytes, limit: int = 16 * MIB) -> bytes:
    out = bytearray()
    layer.unpack(pieces(data), out.extend, limit)
    return bytes(out)


def directory(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE)


@pytest.mark.parametrize(
    "name", ["disk/d.qcow2", "./disk/d.qcow2", "/disk/d.qcow2", "disk/" + "long" * 60, "disk/dïsk"]
)
def test_the_one_file_comes_out(name: str) -> None:
    around = (entry("etc/passwd", b"root"), entry("lib", kind=tarfile.SYMTYPE, linkname="/usr/lib"), directory("disk"))
    assert unpacked(tar(*around, entry(name, DATA), entry("etc/group", b"x" * MIB))) == DATA


HOSTILE = {
    "no file": tar(entry("etc/passwd", b"x")),
    "nothing": tar(),
    "an empty directory": tar(directory("disk")),
    "two files": tar(SMALL, entry("disk/e.qcow2", b"x")),
    "the same file twice": tar(SMALL, SMALL),
    "a whiteout beside it": tar(SMALL, entry("disk/.wh..wh..opq")),
    "a file further down": tar(entry("disk/a/d.qcow2", b"x")),
    "a directory further down": tar(SMALL, directory("disk/a")),
    "a file in place of the directory": tar(entry("disk", b"x")),
    "a traversal": tar(entry("disk/../../etc/passwd", b"x")),
    "a traversal elsewhere": tar(SMALL, entry("../x", b"x")),
    "a symbolic link": tar(entry("disk/d.qcow2", kind=tarfile.SYMTYPE, linkname="/etc/shadow")),
    "the directory is a symbolic link": tar(entry("disk", kind=tarfile.SYMTYPE, linkname="/etc"), SMALL),
    "a hard link": tar(entry("disk/d.qcow2", kind=tarfile.LNKTYPE, linkname="/etc/shadow")),
    "a device": tar(entry("disk/d.qcow2", kind=tarfile.BLKTYPE, devmajor=254, devminor=0)),
    "a pipe": tar(entry("disk/d.qcow2", kind=tarfile.FIFOTYPE)),
    "a sparse file": tar(entry("disk/d.qcow2", bytes(512), kind=tarfile.GNUTYPE_SPARSE)),
    "a sparse file, newer": tar(
        entry("disk/d.qcow2", bytes(512), pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 60)})
    ),
    "a name of a mebibyte": tar(entry("disk/" + "x" * 2 * MIB, b"x")),
    "too many entries": tar(*[entry("x")] * 5000, SMALL),
    "cut off": tar(DISK)[: 2 * MIB],
    "no archive": DATA,
    "empty": b"",
    "a wrong checksum": b"x" + tar(SMALL)[1:],
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="layer"):
        unpacked(HOSTILE[name])


@pytest.mark.parametrize("entries", [[DISK], [entry("elsewhere", DATA), SMALL]], ids=["the disk", "another file"])
def test_no_more_comes_out_than_may(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(TooLarge):
        unpacked(tar(*entries), 3 * MIB)


def test_what_is_not_read_goes_by() -> None:
    info, _ = entry("elsewhere")
    info.size = 64 << 20
    head = info.tobuf(tarfile.GNU_FORMAT)

    def endless() -> Iterator[bytes]:
        yield head
        for _ in range(64):
            yield bytes(1 << 20)
        yield tar(SMALL)

    out = bytearray()
    layer.unpack(endless(), out.extend, 1 << 40)
    assert bytes(out) == b"small"
