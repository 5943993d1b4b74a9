"""The hostile corpus: files that must be refused, made afresh for each run, small on disk.

`hostile(canary, port)` gives them: `canary` is a file of the host that none may open, `port` a
listener on loopback that none may reach. Where a published attack stands behind a file, it is named.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MIB = 1 << 20
EIB = 1 << 60

BACKING, BACKING_SIZE, CLUSTER_BITS, SIZE, CRYPT, L1_SIZE, L1_OFFSET = 8, 16, 20, 24, 32, 36, 40
REFTABLE, REFTABLE_CLUSTERS, SNAPSHOTS, SNAPSHOTS_OFFSET = 48, 56, 60, 64
INCOMPATIBLE, COMPATIBLE, AUTOCLEAR, REFCOUNT_ORDER, HEADER_LENGTH = 72, 80, 88, 96, 100


@dataclass(frozen=True)
class Hostile:
    """A file, and what it claims to be."""

    name: str
    declared: str
    data: bytes
    compression: str = "None"


def honest(*, version: int = 3, size: int = MIB, cluster_bits: int = 16) -> bytearray:
    """A valid, empty qcow2 file, from the specification: header, reference counts, L1 table."""
    cluster = 1 << cluster_bits
    data = bytearray(4 * cluster)
    struct.pack_into(
        ">4sIQIIQIIQQIIQ", data, 0,
        b"QFI\xfb", version, 0, 0, cluster_bits, size, 0, 1, 3 * cluster, cluster, 1, 0, 0,
    )  # fmt: skip
    if version == 3:
        struct.pack_into(">QQQII", data, 72, 0, 0, 0, 4, 112)
    struct.pack_into(">Q", data, cluster, 2 * cluster)
    struct.pack_into(">4H", data, 2 * cluster, 1, 1, 1, 1)
    return data


def put(data: bytearray, *fields: tuple[int, str, int]) -> bytes:
    """The file with header fields replaced: (offset, struct format, value)."""
    for offset, form, value in fields:
        struct.pack_into(f">{form}", data, offset, value)
    return bytes(data)


def backed(name: str, *, version: int = 3) -> bytes:
    """A qcow2 file whose backing file has that name."""
    data, text = honest(version=version), name.encode()
    data[512 : 512 + len(text)] = text
    return put(data, (BACKING, "Q", 512), (BACKING_SIZE, "I", len(text)))


def extended(kind: int, content: bytes, *fields: tuple[int, str, int]) -> bytes:
    """A qcow2 file with a header extension."""
    data = honest()
    struct.pack_into(">II", data, 112, kind, len(content))
    data[120 : 120 + len(content)] = content
    return put(data, *fields)


def bomb() -> bytes:
    """64 TiB of data in 1.3 MiB: every entry of the L1 table is the same L2 table, all of it the same cluster."""
    cluster = 1 << 16
    data = honest(size=64 << 40)
    entries = (64 << 40) // (cluster * cluster // 8)
    l2, body = 4 * cluster, 5 * cluster
    data += struct.pack(">Q", body | 1 << 63) * (cluster // 8) + b"x" * cluster
    table = len(data)
    data += struct.pack(">Q", l2 | 1 << 63) * entries
    return put(data, (L1_OFFSET, "Q", table), (L1_SIZE, "I", entries))


def vmdk(extent: str) -> bytes:
    """A VMDK descriptor with one flat extent (CVE-2022-47951)."""
    return (
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 2048 FLAT "{extent}" 0\n'
    ).encode().ljust(4096, b"\0")  # fmt: skip


def vmdk_sparse(descriptor: bytes | None = None, *, capacity: int = 2048) -> bytes:
    """A sparse VMDK with an embedded descriptor; one of a flat extent, or another."""
    data = bytearray(2 * MIB)
    struct.pack_into(
        "<4sIIQQQQIQQQB4sH", data, 0, b"KDMV", 1, 1, capacity, 128, 1, 20, 512, 0, 21, 128, 0, b"\n \r\n", 0
    )
    struct.pack_into("<I", data, 21 * 512, 22)
    text = descriptor or vmdk("/etc/shadow")
    data[512 : 512 + 20 * 512] = text.rstrip(b"\0").ljust(20 * 512, b"\0")
    return bytes(data)


def vmdk_text(*more: str, kind: str = "monolithicSparse", extent: str = 'RW 2048 SPARSE "x.vmdk"') -> bytes:
    """A descriptor in order, but for what is said."""
    lines = ("# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff", f'createType="{kind}"')
    return "\n".join((*lines, extent, *more, "")).encode()


def vhd_footer(*, kind: int = 2, header: int = (1 << 64) - 1) -> bytes:
    footer = bytearray(512)
    struct.pack_into(">8sIIQ", footer, 0, b"conectix", 2, 0x10000, header)
    struct.pack_into(">QQ", footer, 40, MIB, MIB)
    struct.pack_into(">I", footer, 60, kind)
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


def vhd_dynamic(*, kind: int = 3, parent: str = "", entry: int = 0xFFFFFFFF) -> bytes:
    """A dynamic VHD of one block, with a parent if one is said."""
    header = bytearray(1024)
    struct.pack_into(">8sQQIII", header, 0, b"cxsparse", (1 << 64) - 1, 1536, 0x10000, 1, 2 * MIB)
    name = parent.encode("utf-16-be")
    header[64 : 64 + len(name)] = name
    struct.pack_into(">I", header, 36, ~sum(header) & 0xFFFFFFFF)
    footer = vhd_footer(kind=kind, header=512)
    return footer + bytes(header) + struct.pack(">I", entry).ljust(512, b"\xff") + footer


def at(offset: int, magic: bytes, size: int = MIB) -> bytes:
    """Nothing, but for a magic number somewhere."""
    data = bytearray(size)
    data[offset : offset + len(magic)] = magic
    return bytes(data)


def luks() -> bytes:
    return at(0, struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64))


def iso(*, hybrid: bool = False) -> bytes:
    data = bytearray(at(32768, b"\x01CD001\x01"))
    if hybrid:
        data[446:462] = bytes.fromhex("80000100173fff00 00000000 00080000".replace(" ", ""))
        data[510:512] = b"\x55\xaa"
    return bytes(data)


def _qcow2(canary: str, port: int) -> Iterator[tuple[str, bytes]]:
    yield "backing file /etc/shadow (CVE-2024-32498)", backed("/etc/shadow")
    yield "backing file of version 2", backed("/etc/shadow", version=2)
    yield "backing file canary", backed(canary)
    yield "backing file relative", backed("../../../../../../../.." + canary)
    yield "backing file json: file", backed(f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{canary}"}}}}')
    yield "backing file json: nbd", backed(f'json:{{"driver":"nbd","host":"127.0.0.1","port":"{port}"}}')
    yield "backing file nbd:", backed(f"nbd://127.0.0.1:{port}/x")
    yield "backing file http:", backed(f"http://127.0.0.1:{port}/x")
    yield "backing file fd:", backed("/dev/fd/0")
    yield "backing file device", backed("/dev/vda")
    yield "backing file itself, a chain without end", backed("/source")
    yield "backing file without a name", put(honest(), (BACKING, "Q", 512))
    yield "backing name without a place", put(honest(), (BACKING_SIZE, "I", 8))
    yield "backing file behind the end", put(honest(), (BACKING, "Q", EIB), (BACKING_SIZE, "I", 1023))
    name = canary.encode()
    yield "data file (CVE-2024-32498)", extended(0x44415441, name, (INCOMPATIBLE, "Q", 1 << 2))
    yield (
        "data file json: (CVE-2024-4467)",
        extended(0x44415441, b'json:{"driver":"file"}', (INCOMPATIBLE, "Q", 1 << 2)),
    )
    yield "data file bit alone", put(honest(), (INCOMPATIBLE, "Q", 1 << 2))
    yield "data file name alone", extended(0x44415441, name)
    yield "data file raw", extended(0x44415441, name, (INCOMPATIBLE, "Q", 1 << 2), (AUTOCLEAR, "Q", 2))
    yield "corrupt bit", put(honest(), (INCOMPATIBLE, "Q", 1 << 1))
    yield "unknown incompatible bit 5", put(honest(), (INCOMPATIBLE, "Q", 1 << 5))
    yield "unknown incompatible bit 63", put(honest(), (INCOMPATIBLE, "Q", 1 << 63))
    yield "unknown compatible bit", put(honest(), (COMPATIBLE, "Q", 1 << 1))
    yield "autoclear bits", put(honest(), (AUTOCLEAR, "Q", 1 << 7))
    yield "encrypted with AES", put(honest(), (CRYPT, "I", 1))
    yield "encrypted with LUKS", put(honest(), (CRYPT, "I", 2))
    yield "encryption nobody knows", put(honest(), (CRYPT, "I", 77))
    yield "encryption header", extended(0x0537BE77, bytes(16))
    yield "persistent bitmaps", extended(0x23852875, bytes(24), (AUTOCLEAR, "Q", 1))
    yield "extension nobody knows", extended(0x12345678, b"hello")
    yield "extension of 4 GiB", extended(0x6803F857, b"", (116, "I", 0xFFFFFFF0))
    yield "a billion snapshots", put(honest(), (SNAPSHOTS, "I", 1_000_000_000), (SNAPSHOTS_OFFSET, "Q", 65536))
    yield "one snapshot", put(honest(), (SNAPSHOTS, "I", 1), (SNAPSHOTS_OFFSET, "Q", 65536))
    yield "1 EiB", put(honest(), (SIZE, "Q", EIB))
    yield "16 EiB", put(honest(), (SIZE, "Q", (1 << 64) - 1))
    yield "no size", put(honest(), (SIZE, "Q", 0))
    yield "L1 table of 32 GiB", put(honest(), (L1_SIZE, "I", 0xFFFFFFFF))
    yield "L1 table of 64 MiB", put(honest(), (L1_SIZE, "I", 8 << 20))
    yield "L1 table of none", put(honest(), (L1_SIZE, "I", 0))
    yield "L1 table too short", put(honest(), (SIZE, "Q", 1 << 40))
    yield "L1 table behind the end", put(honest(), (L1_OFFSET, "Q", EIB))
    yield "L1 table in the header", put(honest(), (L1_OFFSET, "Q", 0))
    yield "L1 table between clusters", put(honest(), (L1_OFFSET, "Q", 65536 * 3 + 8))
    yield "L2 table behind the end", put(honest(), (3 * 65536, "Q", 1 << 50 | 1 << 63))
    yield "L2 table with reserved bits", put(honest(), (3 * 65536, "Q", 65536 * 2 | 1))
    yield "bomb of shared L2 tables", bomb()
    yield "reference counts behind the end", put(honest(), (REFTABLE, "Q", EIB))
    yield "reference counts of 256 TiB", put(honest(), (REFTABLE_CLUSTERS, "I", 0xFFFFFFFF))
    yield "reference counts of none", put(honest(), (REFTABLE_CLUSTERS, "I", 0))
    yield "reference counts of 2^31 bits", put(honest(), (REFCOUNT_ORDER, "I", 31))
    yield "clusters of one byte", put(honest(), (CLUSTER_BITS, "I", 0))
    yield "clusters of 256 bytes", put(honest(), (CLUSTER_BITS, "I", 8))
    yield "clusters of 4 MiB", put(honest(), (CLUSTER_BITS, "I", 22))
    yield "clusters of 2^64 bytes", put(honest(), (CLUSTER_BITS, "I", 64))
    yield "clusters of 2^4294967295 bytes", put(honest(), (CLUSTER_BITS, "I", 0xFFFFFFFF))
    yield "subclusters of too small clusters", put(honest(cluster_bits=12), (INCOMPATIBLE, "Q", 1 << 4))
    yield "header of 4 GiB", put(honest(), (HEADER_LENGTH, "I", 0xFFFFFFF8))
    yield "header of 1 byte", put(honest(), (HEADER_LENGTH, "I", 1))
    yield "header of 105 bytes", put(honest(), (HEADER_LENGTH, "I", 105))
    yield "compression nobody knows", put(honest(), (INCOMPATIBLE, "Q", 1 << 3), (104, "B", 9))
    yield "compression without its bit", put(honest(), (104, "B", 1))
    for version in (0, 1, 4, 0xFFFFFFFF):
        yield f"version {version}", put(honest(), (4, "I", version))
    for length in (1, 4, 71, 72, 103, 112, 600, 65536, 3 * 65536 + 7):
        yield f"cut off after {length} bytes", bytes(honest()[:length])


def _other(canary: str, port: int) -> Iterator[tuple[str, str, bytes]]:
    for name, data in (
        ("VMDK descriptor", vmdk(canary)),
        ("VMDK descriptor behind comments", b"# nothing\n#\n\n \n" + vmdk(canary)),
        ("VMDK descriptor without its first line", vmdk(canary).partition(b"\n")[2].ljust(2048, b"\0")),
        ("VMDK descriptor with device", vmdk("/dev/vda")),
        ("VMDK sparse", vmdk_sparse()),
        ("VMDK of ESX", at(0, b"COWD\x01\0\0\0")),
        ("VHD dynamic", vhd_footer() + bytes(MIB)),
        ("VHD fixed", bytes(MIB) + vhd_footer()),
        ("VHDX", at(0, b"vhdxfile")),
        ("VDI", at(0, b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe\x01\0\x01\0")),
        ("QED", at(0, b"QED\0" + bytes(60))),
        ("LUKS", luks()),
        ("ISO 9660", iso()),
        ("ISO 9660 that is a disk too", iso(hybrid=True)),
        ("UDF", at(32768 + 2048, b"\0NSR03\x01")),
        ("Parallels", at(0, b"WithoutFreeSpace")),
        ("Bochs", at(0, b"Bochs Virtual HD Image")),
        ("cloop", at(0, b"#!/bin/sh\n#V2.0 Format\n")),
        ("DMG", at(MIB - 512, b"koly")),
        ("empty", b""),
        ("one byte", b"x"),
        ("gzip of a disk", gzip.compress(bytes(MIB)).ljust(2048, b"\0")),
        ("xz of a disk", lzma.compress(bytes(MIB)).ljust(2048, b"\0")),
        ("web page", b"<!DOCTYPE html>\n<html>404</html>".ljust(1024)),
        (
            "metalink",
            b'<?xml version="1.0"?><metalink><file><url>file:///etc/shadow</url></file></metalink>'.ljust(1024),
        ),
    ):
        yield f"{name} as raw", "raw", data
        yield f"{name} as qcow2", "qcow2", data
    yield "qcow2 as raw", "raw", bytes(honest())
    yield "qcow2 with backing file as raw (CVE-2026-24708)", "raw", backed(canary)
    yield "qcow2 with data file as raw", "raw", extended(0x44415441, canary.encode(), (INCOMPATIBLE, "Q", 4))
    yield "qcow2 header before a raw disk", "raw", bytes(honest()) + at(446, bytes.fromhex("80202100834101"))
    yield "qcow2 magic alone as raw", "raw", at(0, b"QFI\xfb")
    yield "raw as qcow2", "qcow2", bytes(MIB)
    yield "qcow2 that is VDI too", "qcow2", put(honest(), (0x40, "I", 0x7F10DABE))
    yield "qcow2 that is ISO 9660 too", "qcow2", put(honest(), (32769, "I", 0x43443030), (32773, "B", 0x31))
    yield "qcow2 that is a partitioned disk too", "qcow2", put(honest(), (450, "B", 0x83), (510, "H", 0x55AA))


def _clouds(canary: str, port: int) -> Iterator[tuple[str, str, bytes]]:
    """Of other clouds. That each part of a header is looked at is tried in tests/unit/storage/test_formats.py."""
    yield "VMDK descriptor of a flat extent (CVE-2022-47951)", "vmdk", vmdk(canary)
    yield "VMDK descriptor of a device", "vmdk", vmdk("/dev/vda")
    yield "VMDK descriptor of a server", "vmdk", vmdk(f"nbd://127.0.0.1:{port}/x")
    yield "VMDK without a disk, so that its descriptor counts", "vmdk", vmdk_sparse(vmdk(canary), capacity=0)
    yield "VMDK of a flat extent in a sparse one", "vmdk", vmdk_sparse(vmdk(canary))
    yield "VMDK of many files", "vmdk", vmdk_sparse(vmdk_text(kind="twoGbMaxExtentSparse"))
    hint = f'parentFileNameHint="{canary}"'
    yield "VMDK with a parent", "vmdk", vmdk_sparse(vmdk_text(hint))
    yield "VMDK with a parent behind its text", "vmdk", vmdk_sparse(vmdk_text() + b"\0" + hint.encode())
    yield "VMDK with change tracking", "vmdk", vmdk_sparse(vmdk_text(f'changeTrackPath="{canary}"'))
    yield "VMDK of 8 ZiB", "vmdk", vmdk_sparse(vmdk_text(), capacity=(1 << 64) - 1)
    yield "VHD with a parent", "vhd", vhd_dynamic(kind=4, parent=canary)
    yield "VHD with a parent that says it has none", "vhd", vhd_dynamic(parent=canary)
    yield "VHD cut off within a block", "vhd", vhd_dynamic(entry=4)
    yield "VHDX of nothing", "vhdx", at(0, b"vhdxfile", 4 * MIB)
    yield "ISO 9660 of nothing", "iso", iso()
    for declared in ("vmdk", "vhd", "vhdx", "iso"):
        yield f"qcow2 with backing file as {declared}", declared, backed(canary)


def _packed(canary: str) -> Iterator[Hostile]:
    for compression, pack in (("gzip", gzip.compress), ("xz", lzma.compress), ("bzip2", bz2.compress)):
        yield Hostile(f"qcow2 with backing file in {compression}", "qcow2", pack(backed(canary)), compression)
    twice = gzip.compress(gzip.compress(bytes(honest())))
    yield Hostile("qcow2 that is packed twice", "qcow2", twice, "gzip")
    yield Hostile("half of a qcow2 in gzip", "qcow2", gzip.compress(bytes(honest()))[:-9], "gzip")
    yield Hostile("qcow2 that is said to be packed", "qcow2", bytes(honest()), "gzip")


def hostile(canary: str, port: int) -> list[Hostile]:
    """All of them. Deterministic but for the canary's path and the port."""
    files = [Hostile(name, "qcow2", data) for name, data in _qcow2(canary, port)]
    files += [Hostile(*entry) for entry in (*_other(canary, port), *_clouds(canary, port))]
    return files + list(_packed(canary))


Make = Callable[[str, int], list[Hostile]]

NAMES = tuple((file.name, file.declared) for file in hostile("/tmp/canary", 9))
"""Names to make tests of."""
