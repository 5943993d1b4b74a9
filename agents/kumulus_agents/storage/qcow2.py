"""Which qcow2 files are let in: an allow-list of header features. Pure but for the reads it is given.

The source is QEMU's docs/interop/qcow2.txt, and block/qcow2.c for its limits. What is not known here
is refused, also where the specification says it may be ignored: a file made to be carried from one
cloud to another has no need of it. At most the header, its extensions and the L1 table are read
(34 MiB at the very most).
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass

from kumulus_agents.storage.rejection import Found, Read, Rejected

MAGIC = b"QFI\xfb"

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")

MOST_TABLE = 32 << 20
"""Bytes of a table that is read at once."""
_MAX_REFTABLE_BYTES = 8 << 20

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = (1 << bit for bit in range(5))
_LAZY_REFCOUNTS = 1

_LUKS = 2
"""A method of encryption."""

_EXTENSION_END = 0x00000000
_ENCRYPTION = 0x0537BE77
_EXTENSIONS = {0xE2792ACA: "backing format", 0x6803F857: "feature names"}
_REFUSED_EXTENSIONS = {
    0x23852875: "has persistent bitmaps; make a copy of it with qemu-img convert",
    _ENCRYPTION: "is encrypted",
    0x44415441: "names an external data file",
}

_L1_RESERVED = (0x7F << 56) | 0x1FF
_L1_OFFSET = ((1 << 56) - 1) & ~0x1FF


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header, in the specification's words."""

    version: int
    backing_offset: int
    backing_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = 72
    compression: int = 0

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits


def parse(read: Read) -> Header:
    """The header as it stands in the file. Raises `Rejected` when it is none."""
    data = read(0, _HEADER.size)
    if len(data) < _HEADER.size:
        raise Rejected("ends within its header")
    (magic, version, backing, backing_size, bits, size, crypt, l1_size, l1, refcount, clusters, snapshots, _) = (
        _HEADER.unpack(data)
    )
    if magic != MAGIC:
        raise Rejected("is no qcow2 file")
    if version not in (2, 3):
        raise Rejected(f"is of qcow2 version {version}; versions 2 and 3 are supported")
    base = Header(version, backing, backing_size, bits, size, crypt, l1_size, l1, refcount, clusters, snapshots)
    if version == 2:
        return base
    more = read(_HEADER.size, _HEADER_3.size)
    if len(more) < _HEADER_3.size:
        raise Rejected("ends within its header")
    incompatible, compatible, autoclear, order, length = _HEADER_3.unpack(more)
    kind = read(104, 1) if length > 104 else b"\0"
    return Header(
        version, backing, backing_size, bits, size, crypt, l1_size, l1, refcount, clusters, snapshots,
        incompatible, compatible, autoclear, order, length, kind[0] if kind else 0,
    )  # fmt: skip


def inspect(read: Read, file_size: int, max_virtual_size: int, *, encrypted: bool = False) -> Found:
    """What the qcow2 file is. Raises `Rejected` with what is wrong. It must be encrypted with LUKS, or not at all."""
    header = parse(read)
    _features(header, encrypted=encrypted)
    _numbers(header, file_size, max_virtual_size)
    _extensions(header, read, encrypted=encrypted)
    _first_level(header, read, file_size)
    return Found("qcow2", header.size)


def _features(header: Header, *, encrypted: bool) -> None:
    if header.backing_offset or header.backing_size:
        raise Rejected("has a backing file; flatten it with qemu-img convert")
    if header.crypt_method != (_LUKS if encrypted else 0):
        raise Rejected("is not encrypted as it should be" if encrypted else "is encrypted")
    if header.snapshots:
        raise Rejected("has internal snapshots; make a copy of it with qemu-img convert")
    if header.incompatible & _DATA_FILE:
        raise Rejected("has an external data file")
    if header.incompatible & _CORRUPT:
        raise Rejected("is marked as corrupt; repair it with qemu-img check")
    if header.incompatible & ~(_DIRTY | _COMPRESSION | _SUBCLUSTERS):
        raise Rejected(f"needs features nobody knows (incompatible features {header.incompatible:#x})")
    if header.compatible & ~_LAZY_REFCOUNTS:
        raise Rejected(f"has features nobody knows (compatible features {header.compatible:#x})")
    if header.autoclear:
        raise Rejected(f"has features that are not supported (autoclear features {header.autoclear:#x})")
    if header.compression not in (0, 1) or bool(header.compression) != bool(header.incompatible & _COMPRESSION):
        raise Rejected("is compressed in a way nobody knows")


def _numbers(header: Header, file_size: int, max_virtual_size: int) -> None:
    if not 9 <= header.cluster_bits <= 21:
        raise Rejected(f"has clusters of 2^{header.cluster_bits} bytes; 2^9 to 2^21 are possible")
    subclusters = bool(header.incompatible & _SUBCLUSTERS)
    if subclusters and header.cluster_bits < 14:
        raise Rejected("has clusters that are too small for subclusters")
    if header.version == 3 and (
        header.length % 8 or not 104 <= header.length <= min(header.cluster, 4096) or header.length > file_size
    ):
        raise Rejected(f"has a header of {header.length} bytes")
    if header.refcount_order > 6:
        raise Rejected(f"has reference counts of 2^{header.refcount_order} bits")
    if not header.size:
        raise Rejected("has a disk of no bytes")
    if header.size > max_virtual_size:
        raise Rejected(f"has a disk of {header.size} bytes; {max_virtual_size} are allowed")
    entries = header.cluster // (16 if subclusters else 8)
    needed = -(-header.size // (header.cluster * entries))
    if header.l1_size < needed or header.l1_size * 8 > MOST_TABLE:
        raise Rejected(f"has a first-level table of {header.l1_size} entries where {needed} are needed")
    _inside(header, "first-level table", header.l1_offset, header.l1_size * 8, file_size)
    table = header.refcount_clusters * header.cluster
    if not 0 < table <= _MAX_REFTABLE_BYTES:
        raise Rejected(f"has a table of reference counts of {table} bytes")
    _inside(header, "table of reference counts", header.refcount_offset, table, file_size)


def _inside(header: Header, what: str, offset: int, length: int, file_size: int) -> None:
    if not offset or offset % header.cluster:
        raise Rejected(f"has its {what} at a place where none can be")
    if offset + length > file_size:
        raise Rejected(f"is cut off: its {what} lies behind its end")


def _extensions(header: Header, read: Read, *, encrypted: bool) -> None:
    """Header extensions lie between the header and the end of the first cluster."""
    at = header.length
    while at + 8 <= header.cluster:
        raw = read(at, 8)
        if len(raw) < 8:
            raise Rejected("ends within its header extensions")
        kind, length = struct.unpack(">II", raw)
        if kind == _EXTENSION_END:
            return
        if kind in _REFUSED_EXTENSIONS and not (encrypted and kind == _ENCRYPTION):
            raise Rejected(_REFUSED_EXTENSIONS[kind])
        if kind not in (*_EXTENSIONS, _ENCRYPTION):
            raise Rejected(f"has a header extension nobody knows ({kind:#010x})")
        at += 8 + -(-length // 8) * 8
        if at > header.cluster:
            raise Rejected("has header extensions that do not fit")


def _first_level(header: Header, read: Read, file_size: int) -> None:
    """Each second-level table exists, once: a small file that shares them can unpack to petabytes."""
    raw = read(header.l1_offset, header.l1_size * 8)
    if len(raw) < header.l1_size * 8:
        raise Rejected("is cut off within its first-level table")
    table = array("Q", raw)
    if sys.byteorder == "little":
        table.byteswap()
    used = [entry for entry in table if entry]
    offsets = {entry & _L1_OFFSET for entry in used}
    if len(offsets) != len(used):
        raise Rejected("uses a second-level table twice")
    for entry in used:
        offset = entry & _L1_OFFSET
        if entry & _L1_RESERVED or not offset or offset % header.cluster:
            raise Rejected("has a second-level table at a place where none can be")
        if offset + header.cluster > file_size:
            raise Rejected("is cut off: a second-level table lies behind its end")
