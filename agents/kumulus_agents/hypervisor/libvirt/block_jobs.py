"""What merging layers and copying disks have in common: jobs of QEMU on a disk of a guest that is on. Calls that block."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import libvirt

from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.hypervisor.libvirt import attached, marks, state, verbs
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

LOOK_EVERY = 0.2
"""Seconds between two questions how far it is."""
_SETTLE = 0.01
_MOST_HALTED = 20.0
"""Seconds that the guest may be halted at most until both say the same; else it goes on, and that is tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """How far it is."""

    done: int
    total: int
    ready: bool
    """What is written to has caught up with the guest, and can be switched to."""


def disk_of(connection: ConnectionHandle, uid: str, volume: str) -> tuple[DomainHandle, str, str]:
    """The domain, the device name of the disk that is this volume, and the domain's XML.

    Raises `HypervisorError(reason="DiskNotAttached")`.
    """
    handle = verbs.lookup(connection, uid)
    try:
        xml = handle.XMLDesc(0) if handle is not None and handle.isActive() else None
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            raise
        xml = None
    target = attached.target_of(xml, volume) if xml is not None else None
    if handle is None or xml is None or target is None or marks.read(xml) is None:
        raise HypervisorError("The machine has not got the disk, or is off.", reason="DiskNotAttached")
    return handle, target, xml


def switch(handle: DomainHandle, target: str, switched: Callable[[str], bool]) -> bool:
    """Halt the guest, wait until both files say the same, and switch. `switched` says of the domain's XML whether it did.

    Returns whether the guest was halted for that, and has to be resumed. Before it completes a job QEMU flushes what is
    switched to (`mirror_run` of its block/mirror.c). Raises `HypervisorError` or `libvirtError` when it did not switch; the
    guest goes on then.
    """
    halted = state.state_of(*handle.state()) is DomainState.RUNNING
    if halted:
        verbs.pause(handle)
    try:
        _settle(handle, target)
        handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        if not switched(handle.XMLDesc(0)):
            raise HypervisorError("The emulator ended the job and did not switch.", reason="HypervisorError")
    except (libvirt.libvirtError, HypervisorError):
        if not switched(handle.XMLDesc(0)):
            if halted:
                verbs.resume(handle)
            raise
    return halted


def _settle(handle: DomainHandle, target: str) -> None:
    """Wait until both files say the same: nobody writes any more."""
    deadline = time.monotonic() + _MOST_HALTED
    while (info := handle.blockJobInfo(target)) and info.get("cur") != info.get("end"):
        if time.monotonic() > deadline:
            raise HypervisorError("The disk is too slow for that just now.", reason="HypervisorBusy")
        time.sleep(_SETTLE)
