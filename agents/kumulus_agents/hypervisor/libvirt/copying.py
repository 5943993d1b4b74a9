"""A disk is copied to another place while the guest runs, and the guest goes over to the copy, by calls that block.

libvirt's block copy fills the copy with all that the disk has, and from then on QEMU writes what the guest
writes to both. When that has caught up the guest is halted for the switch, as `merging` tells and for the
same reason: from the switch on its writes are in the copy alone.
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCopy
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import libvirt

from kumulus_agents.hypervisor.domain import DomainDisk
from kumulus_agents.hypervisor.libvirt import attached, block_jobs, domain_xml, secrets, verbs
from kumulus_agents.hypervisor.libvirt.block_jobs import Job
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

PARAMETERS: Mapping[str, int] = {}
"""Of libvirt's block copy: as fast as it can."""
_FLAGS = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB


@dataclass(frozen=True, slots=True)
class Copying:
    """One copy. Each verb takes the connection and may be repeated."""

    uid: str
    volume: str
    path: str
    """Of what it is copied to."""

    def begin(self, disk: DomainDisk, connection: ConnectionHandle) -> None:
        """Begin, unless it was begun or is done."""
        handle, target, xml = self._disk(connection)
        if self._switched(xml):
            return
        if handle.blockJobInfo(target):
            self._demand(xml)
            return
        if attached.is_direct(xml, self.volume) and not verbs.direct(disk.source):
            raise HypervisorError(
                "What is being used without the host's cache can only be used with it where it is to be. Stop the machine,"
                " or give the volume a class with another cache.",
                reason="CacheUnsupported",
                retryable=False,
            )
        with secrets.lent(connection, (disk,)):
            handle.blockCopy(target, domain_xml.render_copy(disk), PARAMETERS, _FLAGS)

    def look(self, connection: ConnectionHandle) -> Job | None:
        """How far it is; None when the guest uses it. Raises `HypervisorError(reason="CopyFailed")` when there is none."""
        handle, target, _ = self._disk(connection)
        info = handle.blockJobInfo(target)
        _, _, xml = self._disk(connection)
        if self._switched(xml):
            return None
        self._demand(xml)
        return Job(info.get("cur", 0), info.get("end", 0), attached.has_caught_up(xml, self.volume))

    def switch(self, connection: ConnectionHandle) -> bool:
        """Let the guest use it. Whether it was halted for that, and has to be resumed."""
        handle, target, xml = self._disk(connection)
        if self._switched(xml):
            return False
        self._demand(xml)
        return block_jobs.switch(handle, target, self._switched)

    def _disk(self, connection: ConnectionHandle) -> tuple[DomainHandle, str, str]:
        return block_jobs.disk_of(connection, self.uid, self.volume)

    def _switched(self, xml: str) -> bool:
        return attached.chain_of(xml, self.volume)[:1] == (self.path,)

    def _demand(self, xml: str) -> None:
        if attached.copied_to(xml, self.volume) != self.path:
            raise HypervisorError(
                "The emulator gave up copying the disk, or does something else with it. It is tried again.",
                reason="CopyFailed",
            )


def end(uid: str, volume: str, connection: ConnectionHandle) -> None:
    """Give up whatever copy of the volume there is."""
    try:
        handle, target, xml = block_jobs.disk_of(connection, uid, volume)
    except HypervisorError:
        return
    if attached.copied_to(xml, volume) is not None:
        handle.blockJobAbort(target, 0)
