"""Which VMDK files are let in: one sparse extent with its descriptor inside. Pure but for the reads it is given.

The sources are VMware's "Virtual Disk Format 5.0" and block/vmdk.c of QEMU. A descriptor is text in
which any line may name a file, so a line that is not known is refused. The tables are walked: QEMU
reads zeros where a file was cut off, and a grain that many entries share would be a bomb. At most
the descriptor, the directory and the tables are read (289 MiB at the very most).
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from kumulus_agents.storage import raw
from kumulus_agents.storage.rejection import Found, Read, Rejected

MAGIC = b"KDMV"

_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
_PACKED = struct.Struct("<QI")
_FOOTER = 3
_AT_END = (1 << 64) - 1

_NEWLINES, _REDUNDANT, _ZERO_GRAINS, _COMPRESSED, _MARKERS = (1 << bit for bit in (0, 1, 2, 16, 17))
_DEFLATE = 1
_ENTRIES = 512
"""Of a grain table."""
_NO_GRAINS = bytes(_ENTRIES * 4)
_MAX_DIRECTORY = 32 << 20
_MAX_TABLES = 256 << 20
_MAX_DESCRIPTOR = 2047
"""Sectors."""
_SEARCHED = 20 * _SECTOR
"""QEMU looks so far for the name of a parent, whatever the header says."""

_TYPES = {"monolithicsparse": False, "streamoptimized": True}
_EXTENT = re.compile(r'(?:RW|RDONLY)\s+(\d{1,18})\s+SPARSE\s+"[^"/\\:]{1,255}"', re.IGNORECASE)
_EXTENT_LIKE = re.compile(r"(?:RW|RDONLY|NOACCESS)\b", re.IGNORECASE)
_FIELD = re.compile(r'([A-Za-z][A-Za-z0-9_.:-]{0,127})\s*=\s*(?:"([^"]{0,511})"|([^"\s]{0,128}))')
_HARMLESS = frozenset({"version", "encoding", "cid", "isnativesnapshot"})


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header, in the specification's words. Lengths and places are in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    entries: int
    redundant: int
    directory: int
    overhead: int
    unclean: int
    newlines: bytes
    algorithm: int

    @property
    def tables(self) -> int:
        """How many grain tables there can be."""
        return -(-self.capacity // (self.grain * _ENTRIES))

    @property
    def packed(self) -> bool:
        """Whether its grains are compressed."""
        return bool(self.flags & _COMPRESSED)


def parse(read: Read, offset: int = 0) -> Header:
    """The header as it stands in the file. Raises `Rejected` when it is none."""
    data = read(offset, _HEADER.size)
    if len(data) < _HEADER.size:
        raise Rejected("ends within its header")
    magic, *fields = _HEADER.unpack(data)
    if magic != MAGIC:
        raise Rejected("is no VMDK file of one sparse extent (monolithicSparse or streamOptimized)")
    return Header(*fields)


def inspect(read: Read, file_size: int, max_virtual_size: int) -> Found:
    """What the VMDK file is. Raises `Rejected` with what is wrong."""
    if raw.is_vmdk_descriptor(read(0, 4096)):
        raise Rejected("is a VMDK descriptor, which names other files; make one file of it with qemu-img convert")
    header = parse(read)
    _numbers(header, file_size, max_virtual_size)
    _descriptor(header, read)
    if header.directory == _AT_END:
        header = _footer(header, read, file_size)
    _tables(header, read, file_size)
    return Found("vmdk", header.capacity * _SECTOR)


def _numbers(header: Header, file_size: int, max_virtual_size: int) -> None:
    if header.version not in (1, 2, 3):
        raise Rejected(f"is of VMDK version {header.version}; versions 1 to 3 are supported")
    if header.flags & ~(_NEWLINES | _REDUNDANT | _ZERO_GRAINS | _COMPRESSED | _MARKERS):
        raise Rejected(f"has features nobody knows (flags {header.flags:#x})")
    if header.flags & _NEWLINES and header.newlines != b"\n \r\n":
        raise Rejected("was damaged by a transfer as text")
    if header.algorithm not in (0, _DEFLATE) or header.packed != (header.algorithm == _DEFLATE):
        raise Rejected("is compressed in a way nobody knows")
    if not header.capacity:
        raise Rejected("has a disk of no bytes")
    if header.capacity * _SECTOR > max_virtual_size:
        raise Rejected(f"has a disk of {header.capacity * _SECTOR} bytes; {max_virtual_size} are allowed")
    if not 8 <= header.grain <= 1 << 16 or header.grain & (header.grain - 1):
        raise Rejected(f"has grains of {header.grain} sectors")
    if header.entries != _ENTRIES:
        raise Rejected(f"has grain tables of {header.entries} entries; {_ENTRIES} are usual")
    if header.tables * 4 > _MAX_DIRECTORY:
        raise Rejected(f"has a grain directory of {header.tables} entries")
    if header.descriptor != 1 or not 1 <= header.descriptor_size <= _MAX_DESCRIPTOR:
        raise Rejected("has its descriptor at a place where none can be")
    if header.overhead * _SECTOR > file_size:
        raise Rejected("is cut off: its first grain lies behind its end")


def _descriptor(header: Header, read: Read) -> None:
    """Every line is known, and none names a file but the one extent, which is this file whatever its name."""
    length = header.descriptor_size * _SECTOR
    data = read(header.descriptor * _SECTOR, max(length, _SEARCHED))
    if len(data) < length:
        raise Rejected("ends within its descriptor")
    if b"parentfilenamehint" in data.lower():
        raise Rejected("is a delta to another disk; make one file of it with qemu-img convert")
    text = data[:length].split(b"\0", 1)[0]
    if not text.isascii():
        raise Rejected("has a descriptor that is no text")
    extents: list[int] = []
    fields: dict[str, str] = {}
    for line in (line.strip() for line in text.decode("ascii").splitlines()):
        if not line or line.startswith("#"):
            continue
        if _EXTENT_LIKE.match(line):
            extent = _EXTENT.fullmatch(line)
            if extent is None:
                raise Rejected("names other files in its descriptor; make one file of it with qemu-img convert")
            extents.append(int(extent[1]))
            continue
        field = _FIELD.fullmatch(line)
        name = field[1].lower() if field else ""
        if field is None or name in fields:
            raise Rejected("has a descriptor that cannot be understood")
        fields[name] = field[2] if field[2] is not None else field[3]
    _fields(header, fields)
    if len(extents) != 1:
        raise Rejected(f"has {len(extents)} extents; make one file of it with qemu-img convert")
    # VirtualBox rounds the header's up to whole grains.
    if not header.capacity - header.grain < extents[0] <= header.capacity:
        raise Rejected(f"has a disk of {header.capacity} sectors and an extent of {extents[0]}")


def _fields(header: Header, fields: dict[str, str]) -> None:
    kind = fields.pop("createtype", "")
    if kind.lower() not in _TYPES:
        shown = f" ({kind})" if kind.isalnum() and len(kind) <= 32 else ""
        raise Rejected(f"is of a kind of VMDK{shown} that is not monolithicSparse or streamOptimized")
    if _TYPES[kind.lower()] != header.packed:
        raise Rejected("is not of the kind its descriptor says")
    if fields.pop("parentcid", "").lower() != "ffffffff":
        raise Rejected("is a delta to another disk; make one file of it with qemu-img convert")
    for name in fields:
        if name not in _HARMLESS and not name.startswith("ddb."):
            raise Rejected("has a descriptor with fields nobody knows")


def _footer(header: Header, read: Read, file_size: int) -> Header:
    """The header at the end of a stream: the same, but for where the directory is. QEMU believes it alone."""
    at = file_size - 3 * _SECTOR
    if file_size % _SECTOR or at < (header.descriptor + header.descriptor_size) * _SECTOR:
        raise Rejected("is cut off: it has no footer")
    begin, end = (_MARKER.unpack(read(place, _MARKER.size)) for place in (at, at + 2 * _SECTOR))
    if read(at + _SECTOR, 4) != MAGIC or begin[1:] != (0, _FOOTER) or end != (0, 0, 0):
        raise Rejected("is cut off: it has no footer")
    footer = parse(read, at + _SECTOR)
    same = ("version", "flags", "capacity", "grain", "descriptor", "descriptor_size", "entries", "algorithm")
    if any(getattr(footer, name) != getattr(header, name) for name in same):
        raise Rejected("has a footer that differs from its header")
    if footer.overhead * _SECTOR > file_size:
        raise Rejected("is cut off: its first grain lies behind its end")
    return footer


def _tables(header: Header, read: Read, file_size: int) -> None:
    """Each table and each grain exists, once."""
    length = header.tables * 4
    places = [("grain directory", header.directory)]
    if header.flags & _REDUNDANT:
        places.append(("second grain directory", header.redundant))
    for what, place in places:
        if not place or place * _SECTOR + length > file_size:
            raise Rejected(f"is cut off: its {what} lies behind its end")
    tables = [place for place in _words(read(header.directory * _SECTOR, length)) if place]
    if len(set(tables)) != len(tables):
        raise Rejected("uses a grain table twice")
    if len(tables) * _ENTRIES * 4 > _MAX_TABLES:
        raise Rejected(f"has {len(tables)} grain tables")
    if tables and max(tables) * _SECTOR + _ENTRIES * 4 > file_size:
        raise Rejected("is cut off: a grain table lies behind its end")
    grains = array("I")
    for table in tables:
        entries = read(table * _SECTOR, _ENTRIES * 4)
        if entries != _NO_GRAINS:
            grains.extend(_grains(header, _words(entries)))
        if len(grains) > file_size // _SECTOR:
            break
    if len(set(grains)) != len(grains):
        raise Rejected("uses a grain twice")
    if grains and _end(header, read, max(grains) * _SECTOR) > file_size:
        raise Rejected("is cut off: a grain lies behind its end")


def _end(header: Header, read: Read, grain: int) -> int:
    """Where the grain ends. A packed one begins with its place on the disk and its length."""
    if not header.packed:
        return grain + header.grain * _SECTOR
    begin = read(grain, _PACKED.size)
    return grain + _PACKED.size + (_PACKED.unpack(begin)[1] if len(begin) == _PACKED.size else 0)


def _grains(header: Header, entries: array[int]) -> Iterator[int]:
    """Where grains are; 0 is for none, and 1 for one of zeros when the header says so."""
    least = 1 if header.flags & _ZERO_GRAINS else 0
    return (entry for entry in entries if entry > least)


def _words(data: bytes) -> array[int]:
    words = array("I", data[: len(data) // 4 * 4])
    if sys.byteorder == "big":
        words.byteswap()
    return words
