"""Ends a host's machines without asking libvirt, which may hang: their emulators are killed, by the files in which libvirt keeps their pids.

Only processes that are emulators of machines of ours are touched: the file is named like our domain, and so is the process. A domain that
was adopted keeps its name until its next start: its marks, in what libvirt keeps of it beside its pid, make it ours.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

PIDS = Path("/run/libvirt/qemu")
"""Where libvirt's driver for QEMU keeps pids, `NAME.pid`, and what runs as it is now, `NAME.xml`."""
OURS = "kumulus-"
"""What names of domains that Kumulus defines begin with."""
MARKS = "https://kumulus.io/xmlns/domain/1"
"""Namespace of the marks in a domain's metadata (`hypervisor.libvirt.marks`)."""


def living(pids: Path = PIDS) -> dict[str, int]:
    """Descriptors of the emulators that run, by the name of the domain; the caller closes them."""
    found: dict[str, int] = {}
    for file in pids.glob("*.pid"):
        with suppress(OSError, ValueError):
            if not file.name.startswith(OURS) and not marked(file.with_name(f"{file.stem}.xml")):
                continue
            descriptor = os.pidfd_open(pid := int(file.read_text()))
            if is_guest(pid, file.stem):
                found[file.stem] = descriptor
            else:
                os.close(descriptor)
    return found


def marked(state: Path) -> bool:
    """Whether libvirt knows the domain as one with marks of Kumulus. Raises `OSError`."""
    said = state.read_bytes()
    if MARKS.encode() not in said:
        return False
    with suppress(ElementTree.ParseError):
        root = ElementTree.fromstring(said)  # noqa: S314  # libvirt wrote it
        return root.find(f".//metadata/{{{MARKS}}}instance") is not None
    return False


def is_guest(pid: int, name: str) -> bool:
    """Whether the process is the emulator of that domain, and has not ended: of a zombie there are no arguments. Raises `OSError`."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    wanted = f"guest={name.replace(',', ',,')}".encode()  # as libvirt writes it
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
