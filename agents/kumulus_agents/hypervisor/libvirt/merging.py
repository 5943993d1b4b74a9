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
import time
from dataclasses import dataclass

import libvirt

from kumulus_agents.hypervisor.libvirt import attached, marks, state, verbs
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import DomainState, HypervisorError

LOOK_EVERY = 0.2
"""Seconds between two questions how far it is."""
_SETTLE = 0.01
_MOST_HALTED = 20.0
"""Seconds that the guest may be halted at most until both files say the same; else it goes on, and that is tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """How far a merge is."""

    done: int
    total: int
    ready: bool
    """The upper file is what the guest writes to, and the lower one has caught up."""


@dataclass(frozen=True, slots=True)
class Merging:
    """One merge. Each verb takes the connection and may be repeated."""

    uid: str
    volume: str
    upper: str
    lower: str

    def begin(self, connection: ConnectionHandle) -> None:
        """Begin, unless it was begun or is done."""
        handle, target, chain = self._disk(connection)
        if self._merged(chain) or handle.blockJobInfo(target):
            return
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if chain[0] == self.upper else 0
        handle.blockCommit(target, self.lower, self.upper, 0, flags)

    def look(self, connection: ConnectionHandle) -> Job | None:
        """How far it is; None when it is done. Raises `HypervisorError(reason="MergeFailed")` when the emulator gave up."""
        handle, target, _ = self._disk(connection)
        info = handle.blockJobInfo(target)
        if info:
            ready = attached.merge_is_ready(handle.XMLDesc(0), self.volume)
            return Job(info.get("cur", 0), info.get("end", 0), ready)
        _, _, chain = self._disk(connection)
        if self._merged(chain):
            return None
        raise HypervisorError(
            "The emulator gave up merging layers of a disk. All data is there; it is tried again.", reason="MergeFailed"
        )

    def switch(self, connection: ConnectionHandle) -> bool:
        """Let the guest write to the lower file. Whether it was halted for that, and has to be resumed."""
        handle, target, _ = self._disk(connection)
        halted = state.state_of(*handle.state()) is DomainState.RUNNING
        if halted:
            verbs.pause(handle)
        try:
            self._settle(handle, target)
            handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except (libvirt.libvirtError, HypervisorError):
            if attached.chain_of(handle.XMLDesc(0), self.volume)[:1] == (self.upper,):
                if halted:
                    verbs.resume(handle)
                raise
        return halted

    def _settle(self, handle: DomainHandle, target: str) -> None:
        """Wait until both files say the same: nobody writes any more."""
        deadline = time.monotonic() + _MOST_HALTED
        while (info := handle.blockJobInfo(target)) and info.get("cur") != info.get("end"):
            if time.monotonic() > deadline:
                raise HypervisorError("The disk is too slow to merge its layers just now.", reason="MergeFailed")
            time.sleep(_SETTLE)

    def _disk(self, connection: ConnectionHandle) -> tuple[DomainHandle, str, tuple[str, ...]]:
        handle = verbs.lookup(connection, self.uid)
        try:
            xml = handle.XMLDesc(0) if handle is not None and handle.isActive() else None
        except libvirt.libvirtError as error:
            if not is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
                raise
            xml = None
        target = attached.target_of(xml, self.volume) if xml is not None else None
        if handle is None or xml is None or target is None or marks.read(xml) is None:
            raise HypervisorError("The machine has not got the disk, or is off.", reason="DiskNotAttached")
        return handle, target, attached.chain_of(xml, self.volume)

    def _merged(self, chain: tuple[str, ...]) -> bool:
        """Whether the emulator is done. Raises `HypervisorError` when the two are not what the disk is made of."""
        if self.upper not in chain and self.lower in chain:
            return True
        if (self.upper, self.lower) not in itertools.pairwise(chain):
            raise HypervisorError(
                "The disk is not made of the files that are to be merged.", reason="ChainMismatch", retryable=False
            )
        return False
