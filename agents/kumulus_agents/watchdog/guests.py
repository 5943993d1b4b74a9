"""Ends a host's machines without asking libvirt, which may hang: their emulators are killed, by the files in which libvirt keeps their pids.

Only processes that are emulators of machines of ours are touched: the file is named like our domain, and so is the process.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

PIDS = Path("/run/libvirt/qemu")
"""Where libvirt's driver for QEMU keeps pids, `NAME.pid`."""
OURS = "kumulus-*.pid"


def living(pids: Path = PIDS) -> dict[str, int]:
    """Descriptors of the emulators that run, by the name of the domain; the caller closes them."""
    found: dict[str, int] = {}
    for file in pids.glob(OURS):
        with suppress(OSError, ValueError):
            descriptor = os.pidfd_open(pid := int(file.read_text()))
            if is_guest(pid, file.stem):
                found[file.stem] = descriptor
            else:
                os.close(descriptor)
    return found


def is_guest(pid: int, name: str) -> bool:
    """Whether the process is the emulator of that domain, and has not ended: of a zombie there are no arguments. Raises `OSError`."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    wanted = f"guest={name}".encode()
    return any(argument == wanted or argument.startswith(wanted + b",") for argument in arguments)


def end(pids: Path = PIDS) -> list[str]:
    """Kill what runs; returns whose emulators were there. May be repeated until there are none."""
    found = living(pids)
    for descriptor in found.values():
        kill(descriptor)
        os.close(descriptor)
    return sorted(found)


def kill(descriptor: int) -> None:
    """End the process, stopped or not. It has ended already: nothing."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
