"""Which parts of a layer were written: its persistent dirty bitmap, or else what is allocated in it. Pure but for reads.

The bitmap is QEMU's own, made with the layer and kept up by every program that writes to it. It counts
only when the file says that nothing wrote past it and nobody died with it in memory; what is allocated
is right in any case, and may be a little more. A file's content belongs to a guest's emulator: numbers
are bounded by the size of the disk, and nothing is opened.

The source is QEMU's docs/interop/qcow2.txt, "Bitmaps extension".
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kumulus_agents.storage import qcow2
from kumulus_agents.storage.qcow2 import Header
from kumulus_agents.storage.rejection import Read, Rejected

NAME = "kumulus"
"""Of the bitmap in each layer."""
GRANULARITY = 64 << 10
"""Bytes that one bit of it is about."""

_EXTENSION = 0x23852875
_AUTOCLEAR_BITMAPS = 1
_IN_USE = 1
_DIRTY_TRACKING = 1
_MOST_BITMAPS = 1024
_MOST_DIRECTORY = 1 << 20
_CLUSTER = 64 << 10
_MOST_TABLES = 1 << 17
"""Second-level tables of a disk of 64 TiB."""
_OFFSET = ((1 << 56) - 1) & ~0x1FF
_ENTRY = struct.Struct(">QIIBBHI")


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a disk, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap as its directory has it."""

    table: int
    entries: int
    consistent: bool
    """Whoever wrote to the disk last has stored it."""
    granularity: int


def bitmap(read: Read, header: Header) -> Bitmap | None:
    """The bitmap that is ours, or None when the file has none. Raises `Rejected` for nonsense."""
    found = _extension(read, header)
    if found is None:
        return None
    number, size, offset = found
    if number > _MOST_BITMAPS or size > _MOST_DIRECTORY:
        raise Rejected("has more bitmaps than anybody needs")
    directory, at = read(offset, size), 0
    for _ in range(number):
        if at + _ENTRY.size > len(directory):
            raise Rejected("ends within its bitmaps")
        table, entries, flags, kind, bits, name_size, extra = _ENTRY.unpack_from(directory, at)
        name = directory[at + _ENTRY.size + extra :][:name_size]
        if name == NAME.encode() and kind == _DIRTY_TRACKING:
            if not 9 <= bits <= 31:
                raise Rejected("has a bitmap of no possible granularity")
            return Bitmap(table, entries, not flags & _IN_USE, 1 << bits)
        at += -(-(_ENTRY.size + extra + name_size) // 8) * 8
    return None


def written(read: Read) -> list[Extent]:
    """The parts of the disk that were written in this layer, in order. Raises `Rejected`."""
    header = qcow2.parse(read)
    kept = bitmap(read, header) if header.autoclear & _AUTOCLEAR_BITMAPS else None
    if kept is not None and kept.consistent:
        return list(_dirty(read, header, kept))
    return list(_allocated(read, header))


def union(extents: Iterable[Extent], size: int) -> list[Extent]:
    """The same parts of a disk of so many bytes, each once, in order and as few as can be."""
    found: list[Extent] = []
    for extent in sorted(extents, key=lambda extent: extent.offset):
        end = min(extent.offset + extent.length, size)
        if found and extent.offset <= found[-1].offset + found[-1].length:
            last = found.pop()
            found.append(Extent(last.offset, max(end, last.offset + last.length) - last.offset))
        elif extent.offset < end:
            found.append(Extent(extent.offset, end - extent.offset))
    return found


def _extension(read: Read, header: Header) -> tuple[int, int, int] | None:
    """How many bitmaps, and bytes and place of their directory."""
    at = header.length
    while header.version == 3 and at + 8 <= header.cluster:
        raw = read(at, 8)
        if len(raw) < 8:
            raise Rejected("ends within its header extensions")
        kind, length = struct.unpack(">II", raw)
        if kind == 0:
            return None
        if kind == _EXTENSION:
            data = read(at + 8, 24)
            if length != 24 or len(data) < 24:
                raise Rejected("has bitmaps of no known kind")
            number, _, size, offset = struct.unpack(">IIQQ", data)
            return number, size, offset
        at += 8 + -(-length // 8) * 8
    return None


def _dirty(read: Read, header: Header, kept: Bitmap) -> Iterator[Extent]:
    bits = -(-header.size // kept.granularity)
    if kept.entries != -(-bits // (header.cluster * 8)):
        raise Rejected("has a bitmap of another size than its disk")
    for number, entry in enumerate(_numbers(read, kept.table, kept.entries)):
        first = number * header.cluster * 8
        count = min(bits - first, header.cluster * 8)
        if entry & _OFFSET:
            data = read(entry & _OFFSET, -(-count // 8))
            if len(data) < -(-count // 8):
                raise Rejected("ends within a bitmap")
            yield from _runs(data, first, count, kept.granularity)
        elif entry & 1:
            yield Extent(first * kept.granularity, count * kept.granularity)


def _runs(data: bytes, first: int, count: int, granularity: int) -> Iterator[Extent]:
    begin: int | None = None
    for index in range(count):
        if not index % 8 and begin is None and not data[index // 8]:
            continue
        if data[index // 8] >> index % 8 & 1:
            begin = index if begin is None else begin
        elif begin is not None:
            yield Extent((first + begin) * granularity, (index - begin) * granularity)
            begin = None
    if begin is not None:
        yield Extent((first + begin) * granularity, (count - begin) * granularity)


def _allocated(read: Read, header: Header) -> Iterator[Extent]:
    """Clusters that the file has an entry for: data, zeros that hide what is below."""
    if header.incompatible & ~1 or header.cluster != _CLUSTER:
        raise Rejected("is of a kind that is not made here")
    entries = header.cluster // 8
    needed, seen = -(-header.size // (header.cluster * entries)), set[int]()
    if needed > _MOST_TABLES:
        raise Rejected(f"has a disk of {header.size} bytes, which is too large")
    for index, entry in enumerate(_numbers(read, header.l1_offset, min(header.l1_size, needed))):
        if not entry & _OFFSET:
            continue
        if entry & _OFFSET in seen or (entry & _OFFSET) % header.cluster:
            raise Rejected("uses a second-level table twice")
        seen.add(entry & _OFFSET)
        for number, cluster in enumerate(_numbers(read, entry & _OFFSET, entries)):
            if cluster:
                yield Extent((index * entries + number) * header.cluster, header.cluster)


def _numbers(read: Read, offset: int, count: int) -> array[int]:
    if count * 8 > qcow2.MOST_TABLE:
        raise Rejected("has a table that is too large")
    raw = read(offset, count * 8)
    if len(raw) < count * 8:
        raise Rejected("is cut off within a table")
    if not raw.strip(b"\0"):
        return array("Q")
    found = array("Q", raw)
    if sys.byteorder == "little":
        found.byteswap()
    return found
