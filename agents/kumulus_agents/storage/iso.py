"""Which ISO 9660 files are let in: those that begin as one and are whole. Pure but for the reads it is given.

A disc is never opened as anything but raw; still, a file that other programs could take for another
format is refused, as for raw disks. The boot sector and the partitions of a hybrid are what an
installer begins with and fine. The source is ECMA-119.
"""

from __future__ import annotations

import struct

from kumulus_agents.storage import raw
from kumulus_agents.storage.rejection import Found, Read, Rejected

_SECTOR = 2048
_FIRST = 16
_MOST = 64
"""Descriptors of volumes that are looked at."""
_PRIMARY, _END = 1, 255


def inspect(read: Read, file_size: int, max_virtual_size: int) -> Found:
    """What the ISO file is. Raises `Rejected` with what is wrong."""
    if file_size > max_virtual_size:
        raise Rejected(f"has a disc of {file_size} bytes; {max_virtual_size} are allowed")
    primary = read(_FIRST * _SECTOR, _SECTOR)
    if len(primary) < _SECTOR:
        raise Rejected("ends before its first descriptor")
    if primary[:7] != b"\x01CD001\x01":
        raise Rejected("has no ISO 9660 descriptor")
    raw.nothing_else(read, file_size, "ISO 9660")
    blocks, blocks_again, length, length_again = (
        *struct.unpack_from("<I", primary, 80),
        *struct.unpack_from(">I", primary, 84),
        *struct.unpack_from("<H", primary, 128),
        *struct.unpack_from(">H", primary, 130),
    )
    if blocks != blocks_again or length != length_again or length not in (512, 1024, 2048):
        raise Rejected("is damaged: its ISO 9660 descriptor is not in order")
    if blocks * length <= _FIRST * _SECTOR:
        raise Rejected(f"has a file system of {blocks * length} bytes")
    if blocks * length > file_size:
        raise Rejected(f"is cut off: it has {file_size} of {blocks * length} bytes")
    for sector in range(_FIRST + 1, _FIRST + _MOST):
        descriptor = read(sector * _SECTOR, 7)
        if descriptor[1:6] != b"CD001":
            break
        if descriptor[0] == _END:
            return Found("iso", file_size)
    raise Rejected("is damaged: its ISO 9660 descriptors have no end")
