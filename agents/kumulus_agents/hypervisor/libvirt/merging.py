"""Two layers of a disk become one while the guest runs, by calls that block.

libvirt's block commit copies what the upper file has into the lower one. In the middle of a chain QEMU
lets go of the upper file by itself. At the top it goes on copying what the guest writes until it is
told to switch. From the switch on the guest's writes are in the lower file alone, and a record that
still names the upper one would lose them in a power cut: so the guest is halted while the two files
say the same, from before the switch until the record is right.
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCommit
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import libvirt

from kumulus_agents.hypervisor.libvirt import attached, block_jobs
from kumulus_agents.hypervisor.libvirt.block_jobs import Job
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError


@dataclass(frozen=True, slots=True)
class Merging:
    """One merge. Each verb takes the connection and may be repeated."""

    uid: str
    volume: str
    upper: str
    lower: str

    def begin(self, connection: ConnectionHandle) -> None:
        """Begin, unless it was begun or is done."""
        handle, target, xml = self._disk(connection)
        chain = self._chain(xml)
        if self._merged(chain) or handle.blockJobInfo(target):
            return
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if chain[0] == self.upper else 0
        lower, upper = (attached.called(xml, self.volume, path) for path in (self.lower, self.upper))
        handle.blockCommit(target, lower, upper, 0, flags)

    def look(self, connection: ConnectionHandle) -> Job | None:
        """How far it is; None when it is done. Raises `HypervisorError(reason="MergeFailed")` when the emulator gave up."""
        handle, target, _ = self._disk(connection)
        info = handle.blockJobInfo(target)
        if info:
            ready = attached.has_caught_up(handle.XMLDesc(0), self.volume)
            return Job(info.get("cur", 0), info.get("end", 0), ready)
        _, _, xml = self._disk(connection)
        if self._merged(self._chain(xml)):
            return None
        raise HypervisorError(
            "The emulator gave up merging layers of a disk. All data is there; it is tried again.", reason="MergeFailed"
        )

    def switch(self, connection: ConnectionHandle) -> bool:
        """Let the guest write to the lower file. Whether it was halted for that, and has to be resumed."""
        handle, target, _ = self._disk(connection)
        return block_jobs.switch(handle, target, lambda xml: self._chain(xml)[:1] != (self.upper,))

    def _disk(self, connection: ConnectionHandle) -> tuple[DomainHandle, str, str]:
        return block_jobs.disk_of(connection, self.uid, self.volume)

    def _chain(self, xml: str) -> tuple[str, ...]:
        return attached.chain_of(xml, self.volume)

    def _merged(self, chain: tuple[str, ...]) -> bool:
        """Whether the emulator is done. Raises `HypervisorError` when the two are not what the disk is made of."""
        if self.upper not in chain and self.lower in chain:
            return True
        if (self.upper, self.lower) not in itertools.pairwise(chain):
            raise HypervisorError(
                "The disk is not made of the files that are to be merged.", reason="ChainMismatch", retryable=False
            )
        return False
