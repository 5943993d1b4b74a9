"""Which raw files are let in: those that are nothing else. Pure but for the reads it is given.

A raw disk has no header, so a file of any other format can be called raw; when some program later
guesses the format, the file's writer decides what that program opens. So a file that any program
could take for another format is refused. Partition tables (MBR, GPT), boot sectors and file systems
are what a disk begins with and fine.
"""

from __future__ import annotations

import re

from kumulus_agents.storage.rejection import Found, Read, Rejected

_HEAD = 4096

# (offset, magic, what the file is), from the probe functions of QEMU's block drivers and file(1).
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "a qcow2 file"),
    (0, b"QED\0", "a QED file"),
    (0, b"KDMV", "a VMDK file"),
    (0, b"COWD", "a VMDK file"),
    (0, b"SESPARSE", "a VMDK file"),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", "a VMDK file"),
    (0, b"conectix", "a VHD file"),
    (0, b"vhdxfile", "a VHDX file"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI file"),
    (0, b"LUKS\xba\xbe", "encrypted with LUKS"),
    (0, b"SKUL\xba\xbe", "encrypted with LUKS"),
    (0, b"WithoutFreeSpace", "a Parallels disk"),
    (0, b"WithouFreSpacExt", "a Parallels disk"),
    (0, b"Bochs Virtual HD Image", "a Bochs disk"),
    (0, b"#!/bin/sh\n#V2.0 Format", "a cloop image"),
    (0, b"OOOM", "a copy-on-write file of user-mode Linux"),
    (0, b"MOOO", "a copy-on-write file of user-mode Linux"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive; an OVA must be unpacked first"),
)

_ISO_SECTORS = range(16, 32)
_ISO = (b"CD001", b"NSR02", b"NSR03", b"BEA01", b"TEA01", b"BOOT2", b"CDW02")

_VMDK_TEXT = re.compile(rb"version\s*=\s*\d|createType\s*=|^\s*RW\s+\d+\s+\w+|DescriptorFile", re.IGNORECASE | re.M)
_MARKUP = re.compile(rb"\s*(<!doctype|<html|<\?xml)", re.IGNORECASE)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")


def inspect(read: Read, file_size: int, max_virtual_size: int) -> Found:
    """What the raw file is. Raises `Rejected` with what it is instead."""
    if file_size < 512:
        raise Rejected("is shorter than a sector")
    if file_size > max_virtual_size:
        raise Rejected(f"has a disk of {file_size} bytes; {max_virtual_size} are allowed")
    nothing_else(read, file_size, "raw")
    for sector in _ISO_SECTORS:
        if read(sector * 2048 + 1, 5) in _ISO:
            raise Rejected("is an ISO 9660 or UDF file system, not raw")
    return Found("raw", file_size)


def is_vmdk_descriptor(head: bytes) -> bool:
    """Whether the file that begins so is text that says where the disk is."""
    text = _TEXT.match(head)
    return text is not None and _VMDK_TEXT.search(text[0]) is not None


def nothing_else(read: Read, file_size: int, declared: str) -> None:
    """Raises `Rejected` when the file could be taken for a disk of a format with a header or a footer."""
    head = read(0, _HEAD)
    for offset, magic, what in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            raise Rejected(f"is {what}, not {declared}")
    if is_vmdk_descriptor(head):
        raise Rejected(f"is a VMDK descriptor, not {declared}")
    if _MARKUP.match(head):
        raise Rejected(f"is a web page or XML, not {declared}; check the image's URL")
    tail = read(file_size - 512, 512)
    if tail[:8] == b"conectix" or (tail[1:9] == b"conectix"):
        raise Rejected(f"is a VHD file, not {declared}")
    if tail[:4] == b"koly":
        raise Rejected(f"is a DMG file, not {declared}")
