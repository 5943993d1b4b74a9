"""A guest that is held for a moment, so that nothing is written: by calls that block.

Its file systems are brought to rest, its CPUs are halted; QEMU then ends what is under way and flushes
all disks before it answers. That it is held is in the domain's metadata before it is so, and until it is so
no more: whoever finds it there, and does not hold the guest himself, lets it go on.
https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSuspend
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import libvirt

from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.domain import DomainState, Quiesce
from kumulus_agents.hypervisor.libvirt import attached, guest_agent, marks, snapshots, state, verbs
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.libvirt.marks import Hold
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import LayerFile

AGENT_SECONDS = 10
"""So long may a guest's agent take to let its file systems go on."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One snapshot for which a guest is held. Each verb takes the connection."""

    uid: str
    layers: Mapping[str, LayerFile]
    """What the guest is to go over to, by volume."""
    passphrases: Mapping[str, Passphrase]
    """Of those that are encrypted."""
    volumes: frozenset[str]
    """All that the snapshot is of."""
    quiesce: Quiesce

    def begin(self, connection: ConnectionHandle) -> tuple[Indication, ...]:
        """Halt the guest; how far what it has written can be trusted. Also when this fails it may be held."""
        handle, xml, _ = snapshots.found(connection, self.uid, self.volumes)
        runs = state.state_of(*handle.state()) is DomainState.RUNNING
        asked = self.quiesce.mode is not QuiesceMode.NEVER and runs and attached.has_agent(xml)
        _note(handle, Hold(halted=runs, frozen=asked))
        rest = self._freeze(handle, runs) if asked else Indication.NO_GUEST_AGENT
        snapshots.refuse_restless(self.quiesce, rest)
        if runs:
            verbs.pause(handle)
        if state.state_of(*handle.state()) is not DomainState.PAUSED:
            raise snapshots.not_attached()
        return snapshots.indications(self.quiesce, rest)

    def switch(self, connection: ConnectionHandle) -> None:
        """Go over to the layers, if there are any and that was not done."""
        snapshots.switch(self.uid, self.layers, self.passphrases, connection)

    def _freeze(self, handle: DomainHandle, runs: bool) -> Indication:
        try:
            guest_agent.ask(handle, self.quiesce.seconds, handle.fsFreeze)
            return Indication.GUEST_AGENT
        except libvirt.libvirtError as error:
            with contextlib.suppress(libvirt.libvirtError):
                handle.fsThaw()  # some of them may be frozen
            if snapshots.may_rest_yet(error):
                verbs.note_rest(True, handle)
            _note(handle, Hold(halted=runs, frozen=False))
            return Indication.QUIESCE_FAILED


def let_go(handle: DomainHandle) -> None:
    """Let a guest that is held go on; it is not held: nothing. Raises `libvirt.libvirtError` when it is held still."""
    record = marks.read(handle.XMLDesc(0))
    if record is None or record.hold is None or not handle.isActive():
        return
    if record.hold.halted:
        verbs.resume(handle)
    if record.hold.frozen:
        guest_agent.ask(handle, AGENT_SECONDS, handle.fsThaw)
    _note(handle, None)


def _note(handle: DomainHandle, hold: Hold | None) -> None:
    handle.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        marks.hold_xml(hold) if hold is not None else None,
        marks.HOLD_PREFIX,
        marks.HOLD_NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_LIVE,
    )
