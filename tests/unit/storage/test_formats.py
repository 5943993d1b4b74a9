"""Files of other clouds: what qemu-img makes comes in; what needs another file, is cut off or absurd is refused."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus_agents.storage import iso as iso_parser
from kumulus_agents.storage import vhd, vhdx, vmdk
from kumulus_agents.storage.inspection import inspect
from kumulus_agents.storage.rejection import Found, Rejected
from tests.unit.storage.material import MIB, PACK, disk, iso, made, qemu_img

MAX = 64 << 40
KIB = 1 << 10
SIZE = 4 * MIB


@cache
def sample(form: str, *options: str, size: int = SIZE) -> bytes:
    """A file that is in order. The same all the time."""
    if form == "raw":
        return disk(size)
    if form == "iso":
        return iso(hybrid="hybrid" in options)
    with TemporaryDirectory() as directory:
        return made(Path(directory), "vpc" if form == "vhd" else form, *options, size=size)


def look(data: bytes, declared: str, size: int | None = None) -> Found:
    """What the inspector says of a file with that content, and holes to `size` bytes."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        os.truncate(fd, size or len(data))
        return inspect(fd, declared, MAX)
    finally:
        os.close(fd)


def changed(data: bytes, *fields: tuple[int, str, object]) -> bytes:
    """The file with fields replaced: (offset, struct format, value)."""
    out = bytearray(data)
    for offset, form, value in fields:
        struct.pack_into(form, out, offset, value)
    return bytes(out)


FORMATS = ("qcow2", "raw", "vmdk", "vhd", "vhdx", "iso")


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("vmdk", ()), ("vmdk", ("subformat=streamOptimized",)), ("vmdk", ("zeroed_grain=on",)), ("vmdk", ("compat6=on",)),
        ("vhd", ()), ("vhd", ("force_size=on",)), ("vhd", ("subformat=fixed",)), ("vhd", ("subformat=fixed", "force_size=on")),
        ("vhdx", ()), ("vhdx", ("subformat=fixed",)), ("vhdx", ("block_size=1M",)), ("vhdx", ("log_size=2M",)),
    ],
)  # fmt: skip
def test_what_qemu_img_makes_comes_in(form, options) -> None:
    data = sample(form, *options)
    found = look(data, form)
    assert found.format == form
    assert SIZE <= found.virtual_size <= SIZE + MIB
    assert found.virtual_size == SIZE or (form == "vhd" and "force_size=on" not in options)


@pytest.mark.parametrize(
    ("driver", "form", "size"),
    [
        ("vmdk", "vmdk", "2T"), ("vpc", "vhd", "2039G"), ("vhdx", "vhdx", "3T"), ("vhdx", "vhdx", "64T"),
        ("vmdk", "vmdk", "512"), ("vhdx", "vhdx", "1M"),
    ],
)  # fmt: skip
def test_empty_files_of_all_sizes_come_in(tmp_path, driver, form, size) -> None:
    qemu_img("create", "-q", "-f", driver, tmp_path / "i", size)
    fd = os.open(tmp_path / "i", os.O_RDONLY)
    assert inspect(fd, form, MAX).virtual_size >= 512
    os.close(fd)


@pytest.mark.parametrize("hybrid", [False, True])
def test_discs_come_in_as_they_are(hybrid) -> None:
    data = iso(hybrid=hybrid)
    assert look(data, "iso") == Found("iso", len(data))
    assert look(data + bytes(5 * MIB), "iso") == Found("iso", len(data) + 5 * MIB)


@pytest.mark.parametrize("really", FORMATS)
@pytest.mark.parametrize("said", FORMATS)
def test_nothing_is_taken_for_another_format(really, said) -> None:
    if really == said:
        assert look(sample(really), said).format == said
    else:
        with pytest.raises(Rejected):
            look(sample(really), said)


@pytest.mark.parametrize("options", [("subformat=fixed",), ("subformat=fixed", "force_size=on")])
def test_a_fixed_vhd_is_not_raw(options) -> None:
    with pytest.raises(Rejected, match="VHD"):
        look(sample("vhd", *options), "raw")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("compression", list(PACK))
def test_packed_files_are_named_for_what_they_are(form, compression) -> None:
    with pytest.raises(Rejected, match=f"compressed with {compression}"):
        look(PACK[compression](sample(form)), form)


WHOLE = [
    ("vmdk", ()), ("vmdk", ("subformat=streamOptimized",)), ("vhd", ()), ("vhd", ("subformat=fixed",)), ("vhdx", ()),
    ("iso", ()), ("iso", ("hybrid",)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "options"), WHOLE)
@pytest.mark.parametrize(
    "kept", [1, 4, 60, 511, 512, 513, 1024, 1536, 4096, 32768, 65536, 150_000, 0.5, 0.9, -513, -512, -1]
)
def test_what_was_cut_off_is_refused(form, options, kept) -> None:
    data = sample(form, *options)
    if options == STREAM:
        data = data.rstrip(b"\0")  # qemu-img pads it with nothing
    with pytest.raises(Rejected):
        look(data[: int(kept * len(data))] if isinstance(kept, float) else data[:kept], form)


@pytest.mark.parametrize(("form", "options"), WHOLE)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_download_with_holes_at_its_end_is_refused(form, options, kept) -> None:
    """As long as it should be, but only begun: what some programs leave of a download."""
    data = sample(form, *options)
    size = len(data)
    try:
        found = look(data[: int(kept * size)], form, size)
    except Rejected:
        return
    # Where data is missing but no table, no parser can know: that is what the checksum is for.
    assert (form, found.virtual_size) in (("vhdx", SIZE), ("iso", size), ("vmdk", SIZE))


def vmdk_with(*replaced: tuple[str, str], options: tuple[str, ...] = ()) -> bytes:
    """A VMDK with another descriptor."""
    data = bytearray(sample("vmdk", *options))
    text = bytes(data[512:]).split(b"\0", 1)[0].decode()
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    data[512 : 512 + 20 * 512] = text.encode().ljust(20 * 512, b"\0")
    return bytes(data)


STREAM = ("subformat=streamOptimized",)
VIRTUALBOX = (
    'isNativeSnapshot="no"', 'ddb.uuid.image="8c2c1f6c-8d4b-4a66-9788-77665f0c1e0f"',
    'ddb.uuid.parent="00000000-0000-0000-0000-000000000000"', 'ddb.comment=""', 'ddb.geometry.biosSectors="63"',
)  # fmt: skip
OVFTOOL = (
    'encoding="windows-1252"',
    'ddb.longContentID = "64fcb4b5ac2ab6d9d2b4eb8c4bb5d4aa"',
    'ddb.encoding = "UTF-8"',
)
EXTENT = 'RW 8192 SPARSE "made.other"'
DIRECTORY, REDUNDANT = 56, 48
WORD, LONG = "<I", "<Q"


@pytest.mark.parametrize("lines", [VIRTUALBOX, OVFTOOL])
@pytest.mark.parametrize(
    "extent", ['RW 8192 SPARSE "generated-stream.vmdk"', 'RDONLY 8065 SPARSE "call-me-stream.vmdk"']
)
def test_descriptors_of_other_programs_come_in(lines, extent) -> None:
    data = vmdk_with((EXTENT, extent), ("version=1", "\r\n".join(("version=1", *lines))), options=STREAM)
    assert look(data, "vmdk").virtual_size == SIZE


def directory() -> int:
    """Where the grain directory is, in bytes."""
    return struct.unpack_from(LONG, sample("vmdk"), DIRECTORY)[0] * 512


def table() -> int:
    """Where its first table is, in bytes."""
    return struct.unpack_from(WORD, sample("vmdk"), directory())[0] * 512


def second_footer(*fields: tuple[int, str, object]) -> bytes:
    """A stream whose directory is at its end, with a footer that has other fields."""
    data = sample("vmdk", *STREAM)
    header = data[:512]
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    begun = changed(header, (DIRECTORY, LONG, (1 << 64) - 1)) + data[512:]
    return begun + marker + changed(header, *fields) + bytes(512)


VMDK: dict[str, Callable[[], bytes]] = {
    "flat extent": lambda: vmdk_with((EXTENT, 'RW 8192 FLAT "/etc/shadow" 0')),
    "flat extent beside": lambda: vmdk_with((EXTENT, f'{EXTENT}\nRW 8192 FLAT "x-flat.vmdk" 0')),
    "absolute extent": lambda: vmdk_with((EXTENT, 'RW 8192 SPARSE "/etc/shadow"')),
    "extent above": lambda: vmdk_with((EXTENT, 'RW 8192 SPARSE "../x.vmdk"')),
    "two extents": lambda: vmdk_with((EXTENT, f"{EXTENT}\n{EXTENT}")),
    "no extent": lambda: vmdk_with((EXTENT, "")),
    "extent that is larger": lambda: vmdk_with((EXTENT, EXTENT.replace("8192", "8193"))),
    "extent that is a grain shorter": lambda: vmdk_with((EXTENT, EXTENT.replace("8192", "8064"))),
    "VMFS extent": lambda: vmdk_with((EXTENT, 'RW 8192 VMFS "x-flat.vmdk"')),
    "device": lambda: vmdk_with((EXTENT, 'RW 8192 FLAT "\\\\.\\PhysicalDrive0" 0')),
    "twoGbMaxExtentSparse": lambda: vmdk_with(("monolithicSparse", "twoGbMaxExtentSparse")),
    "monolithicFlat": lambda: vmdk_with(("monolithicSparse", "monolithicFlat")),
    "vmfs": lambda: vmdk_with(("monolithicSparse", "vmfs")),
    "fullDevice": lambda: vmdk_with(("monolithicSparse", "fullDevice")),
    "custom": lambda: vmdk_with(("monolithicSparse", "custom")),
    "no kind": lambda: vmdk_with(('createType="monolithicSparse"', "")),
    "two kinds": lambda: vmdk_with(("createType", 'createType="monolithicSparse"\ncreateType')),
    "packed and says it is not": lambda: vmdk_with(("streamOptimized", "monolithicSparse"), options=STREAM),
    "parent": lambda: vmdk_with(("version=1", 'version=1\nparentFileNameHint="/etc/shadow"')),
    "parent in a comment": lambda: vmdk_with(("version=1", 'version=1\n# parentFileNameHint="/etc/shadow"')),
    "parent behind the text": lambda: changed(
        sample("vmdk"), (512 + 8192, "31s", b'parentFileNameHint="/etc/shadow"'[:31])
    ),
    "parent's id": lambda: vmdk_with(("parentCID=ffffffff", "parentCID=12345678")),
    "no parent's id": lambda: vmdk_with(("parentCID=ffffffff", "")),
    "change tracking": lambda: vmdk_with(("version=1", 'version=1\nchangeTrackPath="/etc/shadow"')),
    "a line nobody knows": lambda: vmdk_with(("version=1", "version=1\nhello")),
    "a descriptor that is no text": lambda: changed(sample("vmdk"), (600, "B", 0xFF)),
    "no disk, so QEMU believes the descriptor": lambda: changed(vmdk_with(("Sparse", "Flat")), (12, LONG, 0)),
    "16 EiB": lambda: changed(sample("vmdk"), (12, LONG, (1 << 64) - 1)),
    "64 TiB and a sector": lambda: changed(sample("vmdk"), (12, LONG, (1 << 37) + 1)),
    "another size than its extent": lambda: changed(sample("vmdk"), (12, LONG, 1 << 20)),
    "version 4": lambda: changed(sample("vmdk"), (4, WORD, 4)),
    "flags nobody knows": lambda: changed(sample("vmdk"), (8, WORD, 1 << 20 | 3)),
    "line ends that were converted": lambda: changed(sample("vmdk"), (73, "4s", b"\n \n\n")),
    "grains of no bytes": lambda: changed(sample("vmdk"), (20, LONG, 0)),
    "grains of 3 sectors": lambda: changed(sample("vmdk"), (20, LONG, 3)),
    "grains of 8 EiB": lambda: changed(sample("vmdk"), (20, LONG, 1 << 54)),
    "tables of none": lambda: changed(sample("vmdk"), (44, WORD, 0)),
    "tables of 4 billion": lambda: changed(sample("vmdk"), (44, WORD, (1 << 32) - 1)),
    "descriptor elsewhere": lambda: changed(sample("vmdk"), (28, LONG, 2)),
    "descriptor of none": lambda: changed(sample("vmdk"), (36, LONG, 0)),
    "descriptor of 8 EiB": lambda: changed(sample("vmdk"), (36, LONG, 1 << 54)),
    "directory behind the end": lambda: changed(sample("vmdk"), (DIRECTORY, LONG, 1 << 54)),
    "no directory": lambda: changed(sample("vmdk"), (DIRECTORY, LONG, 0)),
    "second directory behind the end": lambda: changed(sample("vmdk"), (REDUNDANT, LONG, 1 << 54)),
    "first grain behind the end": lambda: changed(sample("vmdk"), (64, LONG, 1 << 54)),
    "packed in a way nobody knows": lambda: changed(sample("vmdk", *STREAM), (77, "<H", 7)),
    "packed and not": lambda: changed(sample("vmdk", *STREAM), (77, "<H", 0)),
    "table behind the end": lambda: changed(sample("vmdk"), (directory(), WORD, 1 << 31)),
    "grain behind the end": lambda: changed(sample("vmdk"), (table(), WORD, 1 << 31)),
    "a grain many times, a bomb": lambda: changed(
        sample("vmdk"), *((table() + 4 * n, WORD, len(sample("vmdk")) // 512 - 128) for n in range(64))
    ),
    "no footer": lambda: changed(sample("vmdk", *STREAM), (DIRECTORY, LONG, (1 << 64) - 1)),
    "footer with another size": lambda: second_footer((12, LONG, 1 << 37)),
    "footer with another descriptor": lambda: second_footer((28, LONG, 5)),
    "footer with another footer": lambda: second_footer((DIRECTORY, LONG, (1 << 64) - 1)),
    "footer without a disk": lambda: second_footer((12, LONG, 0)),
    "text of a descriptor": lambda: bytes(sample("vmdk")[512:1024]).split(b"\0")[0].ljust(2048),
    "COWD": lambda: b"COWD" + bytes(MIB),
    "SESPARSE": lambda: struct.pack("<Q", 0xCAFEBABE) + bytes(MIB),
}


def checked_vhd(at: int, form: str, value: object, *, options: tuple[str, ...] = ()) -> bytes:
    """A VHD with another field in its footers, and checksums that agree."""
    out = bytearray(sample("vhd", *options))
    for footer in [len(out) - 512] if options else [0, len(out) - 512]:
        struct.pack_into(form, out, footer + at, value)
        struct.pack_into(">I", out, footer + 64, 0)
        struct.pack_into(">I", out, footer + 64, ~sum(out[footer : footer + 512]) & 0xFFFFFFFF)
    return bytes(out)


def header_vhd(at: int, form: str, value: object) -> bytes:
    """A VHD with another field in its dynamic header, and a checksum that agrees."""
    out = bytearray(sample("vhd"))
    struct.pack_into(form, out, 512 + at, value)
    struct.pack_into(">I", out, 512 + 36, 0)
    struct.pack_into(">I", out, 512 + 36, ~sum(out[512:1536]) & 0xFFFFFFFF)
    return bytes(out)


FIXED = ("subformat=fixed",)
VHD: dict[str, Callable[[], bytes]] = {
    "differencing": lambda: checked_vhd(60, ">I", 4),
    "kind 0": lambda: checked_vhd(60, ">I", 0),
    "kind 77": lambda: checked_vhd(60, ">I", 77),
    "fixed though dynamic": lambda: checked_vhd(60, ">I", 2),
    "dynamic though fixed": lambda: checked_vhd(60, ">I", 3, options=FIXED),
    "another version": lambda: checked_vhd(12, ">I", 0x20000),
    "1 EiB": lambda: checked_vhd(48, ">Q", 1 << 60),
    "2040 GiB and a sector": lambda: checked_vhd(48, ">Q", (2040 << 30) + 512),
    "no disk": lambda: checked_vhd(48, ">Q", 0),
    "a byte more than sectors": lambda: checked_vhd(48, ">Q", SIZE + 1),
    "more than its table": lambda: checked_vhd(48, ">Q", 64 * MIB),
    "fixed with another size": lambda: checked_vhd(48, ">Q", 8 * MIB, options=FIXED),
    "fixed with a smaller size": lambda: checked_vhd(48, ">Q", MIB, options=FIXED),
    "header behind the end": lambda: checked_vhd(16, ">Q", 1 << 60),
    "header between sectors": lambda: checked_vhd(16, ">Q", 513),
    "header in the footer": lambda: checked_vhd(16, ">Q", 0),
    "checksum of the footer": lambda: changed(sample("vhd"), (64, ">I", 1)),
    "checksum of the last footer": lambda: changed(sample("vhd"), (len(sample("vhd")) - 448, ">I", 1)),
    "checksum of the header": lambda: changed(sample("vhd"), (512 + 36, ">I", 1)),
    "parent's name": lambda: header_vhd(64, "22s", "/etc/shadow".encode("utf-16-be")),
    "parent's id": lambda: header_vhd(40, "16s", b"x" * 16),
    "parent locator": lambda: header_vhd(576, "4s", b"W2ru"),
    "no header": lambda: header_vhd(0, "8s", b"nothing!"),
    "blocks of none": lambda: header_vhd(32, ">I", 0),
    "blocks of 3 MiB": lambda: header_vhd(32, ">I", 3 * MIB),
    "blocks of 2 GiB": lambda: header_vhd(32, ">I", 2 << 30),
    "4 billion blocks": lambda: header_vhd(28, ">I", (1 << 32) - 1),
    "no blocks": lambda: header_vhd(28, ">I", 0),
    "table behind the end": lambda: header_vhd(16, ">Q", 1 << 60),
    "block behind the end": lambda: changed(sample("vhd"), (1536, ">I", 1 << 30)),
    "a block twice": lambda: changed(sample("vhd"), (1540, ">I", 4)),
    "a block in another": lambda: changed(sample("vhd"), (1540, ">I", 5)),
    "qcow2 before a footer": lambda: b"QFI\xfb\0\0\0\3" + sample("vhd", *FIXED)[8:],
}


def vhdx_at(*fields: tuple[int, str, object], where: int = 192 * KIB, length: int = 64 * KIB) -> bytes:
    """A VHDX with other fields in one of its structures, and a checksum that agrees."""
    out = bytearray(changed(sample("vhdx"), *fields))
    struct.pack_into("<I", out, where + 4, vhdx._checksum(bytes(out[where : where + length])))
    return bytes(out)


def region(guid: bytes) -> int:
    """Where the entry of a region is."""
    return sample("vhdx").index(guid, 192 * KIB)


def place(guid: bytes) -> int:
    """Where a region is."""
    return struct.unpack_from("<Q", sample("vhdx"), region(guid) + 16)[0]


def item(guid: bytes) -> int:
    """Where the entry of an item is."""
    return sample("vhdx").index(guid, place(vhdx._METADATA))


def value(guid: bytes) -> int:
    """Where an item is."""
    return place(vhdx._METADATA) + struct.unpack_from("<I", sample("vhdx"), item(guid) + 16)[0]


def in_log() -> bytes:
    """Both headers name a log."""
    data = sample("vhdx")
    for at in (64 * KIB, 128 * KIB):
        out = bytearray(changed(data, (at + 48, "16s", b"x" * 16)))
        struct.pack_into("<I", out, at + 4, vhdx._checksum(bytes(out[at : at + 4 * KIB])))
        data = bytes(out)
    return data


OTHER = bytes(range(16))
VHDX: dict[str, Callable[[], bytes]] = {
    "parent": lambda: changed(sample("vhdx"), (value(vhdx._PARAMETERS) + 4, "<I", 2)),
    "parent locator": lambda: changed(sample("vhdx"), (item(vhdx._PAGE_83), "16s", vhdx._PARENT)),
    "a log": in_log,
    "no header in order": lambda: changed(sample("vhdx"), (64 * KIB + 80, "B", 1), (128 * KIB + 80, "B", 1)),
    "checksum of the regions": lambda: changed(sample("vhdx"), (192 * KIB + 4, "<I", 1)),
    "4 billion regions": lambda: vhdx_at((192 * KIB + 8, "<I", (1 << 32) - 1)),
    "no regions": lambda: vhdx_at((192 * KIB + 8, "<I", 0)),
    "a region nobody knows": lambda: vhdx_at((region(vhdx._BAT), "16s", OTHER)),
    "the same region twice": lambda: vhdx_at((region(vhdx._BAT), "16s", vhdx._METADATA)),
    "regions in each other": lambda: vhdx_at((region(vhdx._BAT) + 16, "<Q", place(vhdx._METADATA))),
    "metadata behind the end": lambda: vhdx_at((region(vhdx._METADATA) + 16, "<Q", 1 << 60)),
    "table behind the end": lambda: vhdx_at((region(vhdx._BAT) + 16, "<Q", 1 << 60)),
    "table of 4 GiB": lambda: vhdx_at((region(vhdx._BAT) + 24, "<I", 0xFFF00000)),
    "table in the header": lambda: vhdx_at((region(vhdx._BAT) + 16, "<Q", 0)),
    "no metadata": lambda: changed(sample("vhdx"), (place(vhdx._METADATA), "8s", b"nothing!")),
    "65535 items": lambda: changed(sample("vhdx"), (place(vhdx._METADATA) + 10, "<H", 65535)),
    "no items": lambda: changed(sample("vhdx"), (place(vhdx._METADATA) + 10, "<H", 0)),
    "an item nobody knows": lambda: changed(sample("vhdx"), (item(vhdx._PAGE_83), "16s", OTHER)),
    "an item twice": lambda: changed(sample("vhdx"), (item(vhdx._PAGE_83), "16s", vhdx._LOGICAL)),
    "an item behind the end": lambda: changed(sample("vhdx"), (item(vhdx._SIZE) + 16, "<I", (1 << 32) - 1)),
    "an item of 4 GiB": lambda: changed(sample("vhdx"), (item(vhdx._SIZE) + 20, "<I", (1 << 32) - 1)),
    "1 EiB": lambda: changed(sample("vhdx"), (value(vhdx._SIZE), "<Q", 1 << 60)),
    "more than its table": lambda: changed(sample("vhdx"), (value(vhdx._SIZE), "<Q", 60 << 40)),
    "no disk": lambda: changed(sample("vhdx"), (value(vhdx._SIZE), "<Q", 0)),
    "a byte more than sectors": lambda: changed(sample("vhdx"), (value(vhdx._SIZE), "<Q", SIZE + 1)),
    "sectors of none": lambda: changed(sample("vhdx"), (value(vhdx._LOGICAL), "<I", 0)),
    "sectors of 2 GiB": lambda: changed(sample("vhdx"), (value(vhdx._LOGICAL), "<I", 1 << 31)),
    "blocks of none": lambda: changed(sample("vhdx"), (value(vhdx._PARAMETERS), "<I", 0)),
    "blocks of 3 MiB": lambda: changed(sample("vhdx"), (value(vhdx._PARAMETERS), "<I", 3 * MIB)),
    "blocks of 2 GiB": lambda: changed(sample("vhdx"), (value(vhdx._PARAMETERS), "<I", 1 << 31)),
    "block behind the end": lambda: changed(sample("vhdx"), (place(vhdx._BAT), "<Q", 1 << 50 | 6)),
    "block in the header": lambda: changed(sample("vhdx"), (place(vhdx._BAT), "<Q", 6)),
    "block in the metadata": lambda: changed(sample("vhdx"), (place(vhdx._BAT), "<Q", place(vhdx._METADATA) | 6)),
    "block half there, half in a parent": lambda: changed(sample("vhdx"), (place(vhdx._BAT), "<Q", 8 * MIB | 7)),
    "block in a state nobody knows": lambda: changed(sample("vhdx"), (place(vhdx._BAT), "<Q", 8 * MIB | 5)),
}


def iso_with(*fields: tuple[int, str, object]) -> bytes:
    """A disc with other fields in its first descriptor."""
    return changed(sample("iso"), *((32768 + at, form, what) for at, form, what in fields))


ISO: dict[str, Callable[[], bytes]] = {
    "UDF alone": lambda: bytes(32768 + 2048) + b"\0NSR03\x01" + bytes(MIB),
    "magic alone": lambda: changed(bytes(MIB), (32768, "7s", b"\x01CD001\x01")),
    "no primary descriptor": lambda: iso_with((0, "B", 2)),
    "another version": lambda: iso_with((6, "B", 9)),
    "longer than the file": lambda: iso_with((80, "<I", 1 << 30), (84, ">I", 1 << 30)),
    "of no length": lambda: iso_with((80, "<I", 0), (84, ">I", 0)),
    "lengths that differ": lambda: iso_with((80, "<I", 20)),
    "blocks of none": lambda: iso_with((128, "<H", 0), (130, ">H", 0)),
    "blocks that differ": lambda: iso_with((128, "<H", 512)),
    "descriptors without end": lambda: sample("iso").replace(b"\xffCD001\x01", b"\x00CD001\x01"),
    "qcow2 before it": lambda: changed(sample("iso"), (0, "8s", b"QFI\xfb\0\0\0\3")),
    "VMDK before it": lambda: changed(sample("iso"), (0, "4s", b"KDMV")),
    "VMDK descriptor before it": lambda: changed(
        sample("iso"), (0, "76s", b'# Disk DescriptorFile\nversion=1\ncreateType="vmfs"\nRW 1 FLAT "/etc/shadow" 0\n')
    ),
    "VHD behind it": lambda: sample("iso") + sample("vhd", *FIXED)[-512:],
    "a script before it": lambda: changed(sample("iso"), (0, "24s", b"#!/bin/sh\n#V2.0 Format\n")),
}

HOSTILE = [
    (form, name, make)
    for form, files in (("vmdk", VMDK), ("vhd", VHD), ("vhdx", VHDX), ("iso", ISO))
    for name, make in files.items()
]


@pytest.mark.parametrize(("form", "name", "make"), HOSTILE, ids=[f"{form}, {name}" for form, name, _ in HOSTILE])
def test_what_is_hostile_or_damaged_is_refused(form, name, make) -> None:
    with pytest.raises(Rejected) as refused:
        look(make(), form)
    assert "/etc/shadow" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_the_file_that_is_changed_is_in_order() -> None:
    """Else each test above would pass for another reason."""
    assert look(vmdk_with(), "vmdk").virtual_size == SIZE
    assert look(vmdk_with(options=STREAM), "vmdk").virtual_size == SIZE
    assert look(second_footer(), "vmdk").virtual_size == SIZE
    assert look(checked_vhd(24, ">I", 1), "vhd").virtual_size >= SIZE
    assert look(checked_vhd(24, ">I", 1, options=FIXED), "vhd").virtual_size >= SIZE
    assert look(header_vhd(56, ">I", 1), "vhd").virtual_size >= SIZE
    assert look(vhdx_at(), "vhdx").virtual_size == SIZE
    assert look(iso_with(), "iso").format == "iso"


def bounded(data: bytes) -> Callable[[int, int], bytes]:
    stream, asked = io.BytesIO(data), 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        assert offset >= 0
        assert 0 <= length <= 32 * MIB
        asked += length
        assert asked <= 64 * MIB
        stream.seek(min(offset, len(data)))
        return stream.read(length)

    return read


PARSERS = {"vmdk": vmdk.inspect, "vhd": vhd.inspect, "vhdx": vhdx.inspect, "iso": iso_parser.inspect}
PLACES = {"vmdk": 2048, "vhd": 4096, "vhdx": 4 * MIB, "iso": 40_000}


@cache
def said(form: str) -> list[int]:
    """Where something is said at the begin of the file, in words."""
    data = sample(form)
    return [at for at in range(0, min(len(data), PLACES[form]), 4) if data[at : at + 4] != bytes(4)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(PARSERS)), st.data())
def test_a_changed_file_is_let_in_or_refused_but_never_a_surprise(form, data) -> None:
    file = bytearray(sample(form))
    interesting = said(form)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(interesting))
        file[at : at + 4] = data.draw(st.sampled_from((bytes(4), b"\xff" * 4, b"\0\0\0\x80", b"\1\0\0\0", b"\0\0\1\0")))
    try:
        found = PARSERS[form](bounded(bytes(file)), len(file), MAX)
    except Rejected as error:
        assert str(error)
    else:
        assert 0 < found.virtual_size <= MAX


@given(st.sampled_from(list(PARSERS)), st.binary(max_size=4096))
def test_random_bytes_never_surprise(form, data) -> None:
    for start in (b"", sample(form)[:64], sample(form)[:600]):
        try:
            PARSERS[form](bounded(start + data), len(start + data), MAX)
        except Rejected as error:
            assert str(error)
