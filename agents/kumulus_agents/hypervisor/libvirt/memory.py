"""The memory of a guest on its host's disk, as libvirt keeps it ("managed save"), by calls that block."""

from __future__ import annotations

from dataclasses import replace

import libvirt

from kumulus.api.compute import PowerState
from kumulus_agents.hypervisor.domain import DomainSpec
from kumulus_agents.hypervisor.libvirt import attached, domain_xml, marks, secrets, verbs
from kumulus_agents.hypervisor.libvirt.errors import UNAVAILABLE, is_code, translate
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

WAKE_FAILED = "WakeFailed"
PASSING = frozenset({UNAVAILABLE, "OutOfMemory", "DiskInUse", "WrongPassphrase", "HypervisorBusy", "AccessDenied"})
"""Reasons that say nothing against the memory."""


def keep(handle: DomainHandle) -> None:
    """Write the memory down and end QEMU. What fails in between leaves the guest on."""
    try:
        handle.managedSave(0)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_OPERATION_INVALID):
            raise
        if handle.isActive():  # libvirt says so of what forbids it as well
            raise HypervisorError(f"It cannot be suspended now. {translate(error)}", reason="SuspendRefused") from error


def drop(handle: DomainHandle) -> None:
    """Remove what is kept."""
    if handle.hasManagedSaveImage(0):
        handle.managedSaveRemove(0)


def wake(spec: DomainSpec, platform: domain_xml.Platform, connection: ConnectionHandle) -> None:
    """Start from what is kept, with volumes where they are now. Then the marks, which who dies in between writes next time."""
    handle = verbs.lookup(connection, spec.marks.uid)
    if handle is None or marks.read(handle.XMLDesc(0)) is None:
        return
    if handle.isActive() or not handle.hasManagedSaveImage(0):
        return
    buffered = frozenset(disk.path for disk in spec.disks if not verbs.direct(disk.source))
    halted = spec.marks.wanted is PowerState.PAUSED
    try:
        kept = handle.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        record = marks.read(kept)
        if record is None or record.marks.epoch != spec.marks.epoch:
            raise HypervisorError(_useless(spec, "It is of another placement."), reason=WAKE_FAILED)
        now = attached.with_volumes_of(kept, domain_xml.render(spec, replace(platform, buffered=buffered)))
        how = libvirt.VIR_DOMAIN_SAVE_PAUSED if halted else libvirt.VIR_DOMAIN_SAVE_RUNNING
        handle.managedSaveDefineXML(now, how)
        with secrets.lent(connection, (*spec.disks, *spec.drives)):
            handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if halted else 0)
    except LookupError as missing:
        text = f"It has the disk {missing.args[0]}, which its order no longer names: put it back."
        raise HypervisorError(_useless(spec, text), reason=WAKE_FAILED) from missing
    except libvirt.libvirtError as error:
        if handle.isActive():
            return
        told = translate(error)
        if told.reason in PASSING:
            raise
        raise HypervisorError(_useless(spec, str(told)), reason=WAKE_FAILED) from error
    verbs.write_marks(spec.marks, handle)


def _useless(spec: DomainSpec, why: str) -> str:
    return (
        f"It cannot go on from the memory that was kept when it was suspended, which is still there. {why} To boot it without"
        f" that memory: `kumulusctl vm stop {spec.marks.name} --force`, then start it."
    )
