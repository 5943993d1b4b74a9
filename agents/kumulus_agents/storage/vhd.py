"""Which VHD files are let in: fixed and dynamic disks that need no other. Pure but for the reads it is given.

The sources are Microsoft's "Virtual Hard Disk Image Format Specification" and block/vpc.c of QEMU,
which reads a differencing disk as if it had no parent. At most two footers, a header and the block
allocation table are read (16 MiB at the very most).
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import pairwise

from kumulus_agents.storage.rejection import Found, Read, Rejected

COOKIE = b"conectix"

_LENGTH = 512
_FOOTER = struct.Struct(">8sIIQI4sI4sQQ4sII16sB")
_HEADER = struct.Struct(">8sQQIIII16sII512s192s")
_VERSION = 0x00010000
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_UNUSED = 0xFFFFFFFF
_MAX_ENTRIES = 4 << 20
_MAX_SIZE = 2040 << 30
"""The format's own."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says."""

    next: int
    """Where the dynamic header is, in bytes from the start."""
    size: int
    """Bytes of the disk."""
    kind: int


def inspect(read: Read, file_size: int, max_virtual_size: int) -> Found:
    """What the VHD file is. Raises `Rejected` with what is wrong."""
    if file_size < 2 * _LENGTH:
        raise Rejected("ends within its header")
    begins = read(0, len(COOKIE)) == COOKIE
    if read(file_size - _LENGTH, len(COOKIE)) != COOKIE:
        raise Rejected("is cut off: it has no footer" if begins else "is no VHD file")
    footer = _footer(read(file_size - _LENGTH, _LENGTH))
    if footer.kind == _DIFFERENCING:
        raise Rejected("is a delta to another disk; make one file of it with qemu-img convert")
    if footer.kind not in (_FIXED, _DYNAMIC):
        raise Rejected(f"is of a kind of VHD nobody knows ({footer.kind})")
    if not footer.size or footer.size % _LENGTH:
        raise Rejected(f"has a disk of {footer.size} bytes")
    allowed = min(max_virtual_size, _MAX_SIZE)
    if footer.size > allowed:
        raise Rejected(f"has a disk of {footer.size} bytes; {allowed} are allowed")
    if footer.kind == _FIXED:
        # QEMU tells the kinds apart by what the file begins with.
        if begins:
            raise Rejected("has a footer before its disk as well, and so is of two kinds")
        if footer.size != file_size - _LENGTH:
            raise Rejected(f"has a disk of {footer.size} bytes in a file of {file_size}")
        return Found("vhd", footer.size)
    if not begins or _footer(read(0, _LENGTH)) != footer:
        raise Rejected("has two footers that differ")
    _dynamic(footer, read, file_size)
    return Found("vhd", footer.size)


def _footer(data: bytes) -> Footer:
    (cookie, _features, version, after, _time, _app, _app_version, _os, _original, size, _chs, kind, checksum, _uid, _) = (
        _FOOTER.unpack_from(data)
    )  # fmt: skip
    if cookie != COOKIE or checksum != _checksum(data, 64):
        raise Rejected("is damaged: the checksum of a footer is wrong")
    if version != _VERSION:
        raise Rejected(f"is of a version of VHD nobody knows ({version:#x})")
    return Footer(after, size, kind)


def _dynamic(footer: Footer, read: Read, file_size: int) -> None:
    at = footer.next
    if at < _LENGTH or at % _LENGTH or at + _HEADER.size > file_size - _LENGTH:
        raise Rejected("has its header at a place where none can be")
    data = read(at, _HEADER.size)
    cookie, _, table, version, entries, block, checksum, parent, _, _, name, locators = _HEADER.unpack(data)
    if cookie != b"cxsparse" or version != _VERSION:
        raise Rejected("has no header of a dynamic disk")
    if checksum != _checksum(data, 36):
        raise Rejected("is damaged: the checksum of its header is wrong")
    if any(parent) or any(name) or any(locators):
        raise Rejected("is a delta to another disk; make one file of it with qemu-img convert")
    if not 4096 <= block <= 256 << 20 or block & (block - 1):
        raise Rejected(f"has blocks of {block} bytes")
    if not -(-footer.size // block) <= entries <= _MAX_ENTRIES:
        raise Rejected(f"has a block allocation table of {entries} entries")
    if table < _LENGTH or table % _LENGTH or table + entries * 4 > file_size - _LENGTH:
        raise Rejected("is cut off: its block allocation table lies behind its end")
    _blocks(read(table, entries * 4), block, file_size)


def _blocks(raw: bytes, block: int, file_size: int) -> None:
    """Each block exists, once, and none lies in another."""
    table = array("I", raw)
    if sys.byteorder == "little":
        table.byteswap()
    room = (
        -(-block // (8 * _LENGTH * _LENGTH)) + block // _LENGTH
    ) * _LENGTH  # its bitmap in whole sectors, and itself
    used = [entry for entry in table if entry != _UNUSED]
    if len(used) * room > file_size:
        raise Rejected("uses a block twice")
    used.sort()
    if any(after - before < room // _LENGTH for before, after in pairwise(used)):
        raise Rejected("uses a block twice")
    if used and used[-1] * _LENGTH + room > file_size:
        raise Rejected("is cut off: a block lies behind its end")


def _checksum(data: bytes, at: int) -> int:
    """The ones' complement of the sum of all bytes but the checksum's own four."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF
