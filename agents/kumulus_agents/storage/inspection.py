"""What a file nobody trusts really is, and whether it may come in.

Two gates. OpenStack's format inspector (oslo.utils) says which format the file is, all formats tried
at once. It lets some things pass and refuses some honest ones, so what a file may have in it is
decided by allow-lists of our own (`qcow2`, `raw`, `vmdk`, `vhd`, `vhdx`, `iso`). Reads are bounded; runs in the cage (`inspector`).
Imports nothing of Kumulus but the parsers.
"""

from __future__ import annotations

import logging
import os

from oslo_utils.imageutils import format_inspector

from kumulus_agents.storage import compressed, iso, qcow2, raw, vhd, vhdx, vmdk
from kumulus_agents.storage.rejection import Found, Rejected

_GATE_BYTES = 1 << 20
_GATE_CHUNK = 64 << 10

# An MBR disk is what the inspector calls gpt, whatever its partitions. It takes a fixed VHD for the disk it begins
# with, a VMDK descriptor for raw, and a disc that boots from a stick too for both.
_NAMES = {
    "qcow2": (["qcow2"],),
    "raw": (["raw"], ["gpt"]),
    "vmdk": (["vmdk"], ["raw"]),
    "vhd": (["vhd"], ["raw"], ["gpt"]),
    "vhdx": (["vhdx"],),
    "iso": (["iso"], ["gpt", "iso"]),
}
_READERS = {
    "qcow2": qcow2.inspect,
    "raw": raw.inspect,
    "vmdk": vmdk.inspect,
    "vhd": vhd.inspect,
    "vhdx": vhdx.inspect,
    "iso": iso.inspect,
}


def inspect(fd: int, declared: str, max_virtual_size: int) -> Found:
    """What the open file is. It must be what was declared: a key of `_READERS`.

    Reads by position, from the start. Raises `Rejected`.
    """
    if declared not in _READERS:
        raise Rejected(f"is said to be {declared}, which is not supported")
    size = os.fstat(fd).st_size
    if not size:
        raise Rejected("is empty")

    def read(offset: int, length: int) -> bytes:
        return os.pread(fd, length, offset)

    if (packed := compressed.begins_with(read(0, compressed.LENGTH))) is not None:
        raise Rejected(
            f"is compressed with {packed}; unpacked, it has to be {declared}: say so in spec.compression once"
        )
    names = _detected(fd)
    if names not in _NAMES[declared]:
        raise Rejected(f"is {' and '.join(names)}, not {declared} as was said")
    return _READERS[declared](read, size, max_virtual_size)


def _detected(fd: int) -> list[str]:
    """Every format the inspector sees in the first mebibyte, in alphabetic order; `raw` when there is none.

    Formats that are told by a file's end alone are `raw.inspect`'s matter.
    """
    logging.getLogger(format_inspector.__name__).disabled = True
    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        wrapper = format_inspector.InspectWrapper(stream)
        try:
            for _ in range(_GATE_BYTES // _GATE_CHUNK):
                if not wrapper.read(_GATE_CHUNK) or wrapper.formats is not None:
                    break
        finally:
            wrapper.close()
        try:
            found = wrapper.formats
        except format_inspector.ImageFormatError:
            found = None
    return sorted(str(inspector) for inspector in found or ()) or ["unknown"]
