"""Which VHDX files are let in: fixed and dynamic disks that were closed and need no other. Pure but for its reads.

The sources are Microsoft's [MS-VHDX] and block/vhdx.c of QEMU. At most the headers, the first region
table, the metadata table and its items, and the block allocation table are read (33 MiB at the most).
"""

from __future__ import annotations

import struct
import sys
import uuid
from array import array
from dataclasses import dataclass
from itertools import pairwise

from kumulus_agents.storage.rejection import Found, Read, Rejected

MAGIC = b"vhdxfile"

_KIB, _MIB = 1 << 10, 1 << 20
_HEADERS, _REGIONS = (64 * _KIB, 128 * _KIB), 192 * _KIB
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_TABLE, _REGION = struct.Struct("<4sIII"), struct.Struct("<16sQII")
_METADATA_TABLE, _ITEM = struct.Struct("<8sHH20s"), struct.Struct("<16sIIII")
_MOST = 2047
_MAX_BAT = 32 << 20

_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PAGE_83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
_LOGICAL = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
_PHYSICAL = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_ITEMS = {_PARAMETERS: 8, _SIZE: 8, _PAGE_83: 16, _LOGICAL: 4, _PHYSICAL: 4}
"""Those every file has, and their lengths in bytes."""

_HAS_PARENT = 2
_PRESENT, _PARTLY = 6, 7
_DELTA = "is a delta to another disk; make one file of it with qemu-img convert"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    offset: int
    length: int

    def touches(self, other: Region) -> bool:
        """Whether they have bytes in common."""
        return self.offset < other.offset + other.length and other.offset < self.offset + self.length


def inspect(read: Read, file_size: int, max_virtual_size: int) -> Found:
    """What the VHDX file is. Raises `Rejected` with what is wrong."""
    if read(0, len(MAGIC)) != MAGIC:
        raise Rejected("is no VHDX file")
    if file_size < _MIB:
        raise Rejected("ends within its header")
    log = _log(read)
    table, metadata = _regions(read, file_size, log)
    items = _metadata(read, metadata)
    block, flags = struct.unpack("<II", items[_PARAMETERS])
    (size,) = struct.unpack("<Q", items[_SIZE])
    (sector,) = struct.unpack("<I", items[_LOGICAL])
    if flags & _HAS_PARENT:
        raise Rejected(_DELTA)
    if sector not in (512, 4096):
        raise Rejected(f"has sectors of {sector} bytes")
    if not _MIB <= block <= 256 * _MIB or block & (block - 1):
        raise Rejected(f"has blocks of {block} bytes")
    if not size or size % sector:
        raise Rejected(f"has a disk of {size} bytes")
    if size > max_virtual_size:
        raise Rejected(f"has a disk of {size} bytes; {max_virtual_size} are allowed")
    ratio = (sector << 23) // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > min(table.length, _MAX_BAT):
        raise Rejected(f"has a block allocation table of {table.length} bytes where {entries * 8} are needed")
    _blocks(read(table.offset, entries * 8), ratio, block, file_size, (table, metadata, log))
    return Found("vhdx", size)


def _log(read: Read) -> Region:
    """Where the log is, of the header that counts. It must be empty: there may be more in it than what was closed."""
    best: tuple[int, bytes, Region] | None = None
    for offset in _HEADERS:
        data = read(offset, 4 * _KIB)
        if len(data) < 4 * _KIB:
            raise Rejected("ends within its header")
        signature, checksum, sequence, _, _, guid, _, version, length, place = _HEADER.unpack_from(data)
        if signature != b"head" or version != 1 or checksum != _checksum(data):
            continue
        if best is None or sequence > best[0]:
            best = sequence, guid, Region(place, length)
    if best is None:
        raise Rejected("is damaged: neither of its headers is in order")
    if any(best[1]):
        raise Rejected("was not closed: what its log has is not in the disk yet; repair it with qemu-img check -r all")
    return best[2]


def _regions(read: Read, file_size: int, log: Region) -> tuple[Region, Region]:
    """The block allocation table and the metadata."""
    data = read(_REGIONS, 64 * _KIB)
    signature, checksum, count, _ = _REGION_TABLE.unpack_from(data.ljust(_REGION_TABLE.size, b"\0"))
    if len(data) < 64 * _KIB or signature != b"regi" or checksum != _checksum(data):
        raise Rejected("is damaged: its region table is not in order")
    if count > _MOST:
        raise Rejected(f"has {count} regions")
    found: dict[bytes, Region] = {}
    for at in range(_REGION_TABLE.size, _REGION_TABLE.size + count * _REGION.size, _REGION.size):
        guid, offset, length, _required = _REGION.unpack_from(data, at)
        if guid not in (_BAT, _METADATA):
            raise Rejected("has a region nobody knows")
        region = Region(offset, length)
        if guid in found or any(region.touches(other) for other in (*found.values(), log)):
            raise Rejected("has regions that lie in each other")
        if offset < _MIB or not length or offset % _MIB or length % _MIB:
            raise Rejected("has a region at a place where none can be")
        if offset + length > file_size:
            raise Rejected("is cut off: a region lies behind its end")
        found[guid] = region
    if len(found) != 2:
        raise Rejected("has no metadata or no block allocation table")
    return found[_BAT], found[_METADATA]


def _metadata(read: Read, region: Region) -> dict[bytes, bytes]:
    """The items every file has, by their ids."""
    data = read(region.offset, 64 * _KIB)
    signature, _, count, _ = _METADATA_TABLE.unpack_from(data)
    if signature != b"metadata" or count > _MOST:
        raise Rejected("is damaged: its metadata is not in order")
    items: dict[bytes, bytes] = {}
    for at in range(_METADATA_TABLE.size, _METADATA_TABLE.size + count * _ITEM.size, _ITEM.size):
        guid, offset, length, _flags, _ = _ITEM.unpack_from(data, at)
        if guid == _PARENT:
            raise Rejected(_DELTA)
        if guid not in _ITEMS:
            raise Rejected("has metadata nobody knows")
        if guid in items or length != _ITEMS[guid] or not 64 * _KIB <= offset <= region.length - length:
            raise Rejected("is damaged: its metadata is not in order")
        items[guid] = read(region.offset + offset, length)
    if len(items) != len(_ITEMS):
        raise Rejected("is damaged: it lacks metadata")
    return items


def _blocks(raw: bytes, ratio: int, block: int, file_size: int, taken: tuple[Region, ...]) -> None:
    """Each block exists, once, and none lies in another. After each `ratio` of them is one for a delta's bitmap."""
    table = array("Q", raw)
    if sys.byteorder == "big":
        table.byteswap()
    del table[ratio :: ratio + 1]
    states = {entry & 7 for entry in table}
    if _PARTLY in states:
        raise Rejected(_DELTA)
    if states & {4, 5}:
        raise Rejected("has blocks in a state nobody knows")
    used = [entry >> 20 for entry in table if entry & 7 == _PRESENT]
    if len(used) * block > file_size:
        raise Rejected("uses a block twice")
    used.sort()
    if any(after - before < block // _MIB for before, after in pairwise(used)):
        raise Rejected("uses a block twice")
    if used and (used[-1] * _MIB + block > file_size):
        raise Rejected("is cut off: a block lies behind its end")
    if used and used[0] == 0:
        raise Rejected("has a block in its header")
    for region in taken:
        if any(region.touches(Region(place * _MIB, block)) for place in used):
            raise Rejected("has a block in its tables")


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _table()


def _checksum(data: bytes) -> int:
    """CRC-32C of a structure, whose own checksum, at 4, counts as zeros."""
    crc = 0xFFFFFFFF
    for byte in (*data[:4], 0, 0, 0, 0, *data[8:]):
        crc = crc >> 8 ^ _CRC32C[crc & 0xFF ^ byte]
    return crc ^ 0xFFFFFFFF
