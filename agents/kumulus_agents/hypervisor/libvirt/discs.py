"""Discs in the drives of one domain, by calls that block."""

from __future__ import annotations

import json

import libvirt
import libvirt_qemu

from kumulus_agents.hypervisor.domain import TRAY_LOCKED
from kumulus_agents.hypervisor.libvirt import attached, secrets
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle
from kumulus_agents.hypervisor.libvirt.verbs import definitions, tolerating
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.source import DiskSource

SHUT = "is not open"
"""What QEMU says of a tray that libvirt takes for open."""

LOCKED = ("to open tray", "is locked and force was not specified", SHUT)
"""What libvirt and QEMU say of a tray that the guest holds shut, or shuts again before the disc is out."""

FORCED_TRIES = 10
"""A guest that reads the drive all the time shuts a tray again that was opened by force."""


def change_disc(drive: str, disc: DiskSource | None, force: bool, handle: DomainHandle) -> None:
    """Change the disc in the definition, then in the guest, which has some seconds to open its tray."""
    if not handle.isActive():
        return
    for where, now in definitions(handle).items():
        xml = attached.with_disc(now, drive, disc)
        if xml is None:
            continue
        with tolerating(libvirt.VIR_ERR_OPERATION_INVALID), secrets.lent_to(handle.connect(), (disc,)):
            if where == libvirt.VIR_DOMAIN_AFFECT_LIVE:
                _change_in_guest(drive, xml, force, handle)
            else:
                handle.updateDeviceFlags(xml, where)


def _change_in_guest(drive: str, xml: str, force: bool, handle: DomainHandle) -> None:
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | (libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if force else 0)
    for tries_left in reversed(range(FORCED_TRIES if force else 2)):
        try:
            handle.updateDeviceFlags(xml, flags)
            return
        except libvirt.libvirtError as error:
            said = error.get_error_message() or ""
            if not any(text in said for text in LOCKED):
                raise
            mistaken = SHUT in said and drive in attached.open_drives(handle.XMLDesc(0))
            if not tries_left or not (force or mistaken):
                text = f"The guest holds the tray of drive {drive} shut."
                raise HypervisorError(text, reason=TRAY_LOCKED) from error
            if mistaken:
                _open(drive, force, handle)


def _open(drive: str, force: bool, handle: DomainHandle) -> None:
    """Have QEMU open a tray that libvirt takes for open, so that both agree again.

    A device that is reset, as at each start of a guest's driver, shuts its tray, and QEMU tells nobody; libvirt, who
    would open it first, never does then. The guest may refuse, as always: that is for the next try to find.
    """
    arguments = {"id": f"{attached.DRIVE_ALIAS}{drive}", "force": force}
    libvirt_qemu.qemuMonitorCommand(handle, json.dumps({"execute": "blockdev-open-tray", "arguments": arguments}), 0)
