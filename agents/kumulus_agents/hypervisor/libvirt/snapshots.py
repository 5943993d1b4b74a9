"""Snapshots of disks of a domain that is on, by calls that block.

External ones: QEMU goes on with new, empty files, all at one instant, and writes to the old ones no
more. https://libvirt.org/formatsnapshot.html

libvirtd has the guest's agent freeze the file systems, switches, and has it thaw them, in one call: who
asks for that may die meanwhile. It may die itself; and an agent that needs longer than it may goes on when
libvirtd has given up waiting, and then freezes for good. So that the guest was asked is noted in the live
definition before, and `thaw` is to be called for as long as the note is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

import libvirt

from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.domain import DomainState, Quiesce
from kumulus_agents.hypervisor.libvirt import attached, domain_xml, guest_agent, marks, secrets, state, verbs
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import FileSource, LayerFile

_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)
_SILENT = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED)
_THAW_SECONDS = 5


def take(
    uid: str,
    layers: Mapping[str, LayerFile],
    passphrases: Mapping[str, Passphrase],
    quiesce: Quiesce,
    connection: ConnectionHandle,
) -> tuple[Indication, ...]:
    """See `Hypervisor.snapshot_disks`."""
    handle, xml, targets = found(connection, uid, layers)
    wanted = {target: layers[volume] for volume, target in targets.items()}
    if has(xml, wanted):
        return indications(quiesce, Indication.NO_GUEST_AGENT)
    with _unlocked(connection, layers, passphrases):
        rest = _take(handle, wanted, _render(xml, wanted), quiesce, ready=_can_rest(handle, xml))
    return indications(quiesce, rest)


def found(
    connection: ConnectionHandle, uid: str, volumes: Collection[str]
) -> tuple[DomainHandle, str, Mapping[str, str]]:
    """The domain, as it is now, and the device names of these volumes by their uids.

    Raises `HypervisorError(reason="DiskNotAttached")` when it is off, gone or has not got all of them.
    """
    handle = verbs.lookup(connection, uid)
    if handle is None or not handle.isActive() or marks.read(xml := handle.XMLDesc(0)) is None:
        raise not_attached()
    targets = {volume: target for volume in volumes if (target := attached.target_of(xml, volume)) is not None}
    if len(targets) < len(volumes):
        raise not_attached()
    return handle, xml, targets


def has(xml: str, layers: Mapping[str, LayerFile]) -> bool:
    """Whether the disks of these device names are written to these layers."""
    return attached.paths(xml).items() >= {target: layer.path for target, layer in layers.items()}.items()


def switch(
    uid: str, layers: Mapping[str, LayerFile], passphrases: Mapping[str, Passphrase], connection: ConnectionHandle
) -> None:
    """Have the volumes of a guest written to these layers, without a word to it. It was done: nothing."""
    handle, xml, targets = found(connection, uid, layers)
    wanted = {target: layers[volume] for volume, target in targets.items()}
    if not has(xml, wanted):
        with _unlocked(connection, layers, passphrases):
            handle.snapshotCreateXML(_render(xml, wanted), _FLAGS)


def _unlocked(
    connection: ConnectionHandle, layers: Mapping[str, LayerFile], passphrases: Mapping[str, Passphrase]
) -> AbstractContextManager[None]:
    """libvirt can open the layers inside the block."""
    return secrets.unlocking(
        connection,
        [(FileSource(layers[volume].path), known) for volume, known in passphrases.items() if volume in layers],
    )


def _render(xml: str, layers: Mapping[str, LayerFile]) -> str:
    return domain_xml.render_snapshot(layers, [one for one in attached.targets(xml) if one not in layers])


def thaw(uid: str, connection: ConnectionHandle) -> bool:
    """Have a guest go on that was asked to bring its file systems to rest. Whether it does, or nothing has to be done.

    Waits some seconds for the guest's agent.
    """
    handle = verbs.lookup(connection, uid)
    if handle is None:
        return True
    try:
        record = marks.read(handle.XMLDesc(0))
        return record is None or not record.resting or _thaw(handle)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return True
        raise


def _take(
    handle: DomainHandle, layers: Mapping[str, LayerFile], snapshot: str, quiesce: Quiesce, *, ready: bool
) -> Indication:
    """Take it; how the guest was. `layers` are what its disks are written to then, by device name."""
    rest = Indication.NO_GUEST_AGENT
    if quiesce.mode is not QuiesceMode.NEVER and ready:
        if _take_at_rest(handle, layers, snapshot, quiesce.seconds):
            return Indication.GUEST_AGENT
        rest = Indication.QUIESCE_FAILED
    refuse_restless(quiesce, rest)
    handle.snapshotCreateXML(snapshot, _FLAGS)
    return rest


def refuse_restless(quiesce: Quiesce, rest: Indication) -> None:
    """Raises `HypervisorError(reason="QuiesceFailed")` when rest is required and the guest did not come to it."""
    if quiesce.mode is QuiesceMode.REQUIRED and rest is not Indication.GUEST_AGENT:
        raise HypervisorError(
            "The guest's file systems did not come to rest: "
            + (
                f"its agent failed to freeze them within {quiesce.seconds} seconds. See the log of qemu-guest-agent in"
                " the guest, or give it more time."
                if rest is Indication.QUIESCE_FAILED
                else "no agent answers in it. Install and start qemu-guest-agent, or do not require quiescing."
            ),
            reason="QuiesceFailed",
        )


def _take_at_rest(handle: DomainHandle, layers: Mapping[str, LayerFile], snapshot: str, seconds: int) -> bool:
    """Take it while the guest's file systems are at rest. False: they did not come to rest, and it was not taken."""
    record = marks.read(handle.XMLDesc(0))
    if record is not None and record.resting and not _thaw(handle):
        return False  # its agent is still at what it was asked before
    verbs.note_rest(True, handle)
    try:
        flags = _FLAGS | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
        guest_agent.ask(handle, seconds, lambda: handle.snapshotCreateXML(snapshot, flags))
    except libvirt.libvirtError as error:
        if not _of_agent(error):
            raise
        # It is also an error when the guest does not go on after a snapshot that was taken.
        if has(handle.XMLDesc(0), layers):
            return True
        if not may_rest_yet(error):
            verbs.note_rest(False, handle)  # an agent that says that it failed has undone what it had done
        return False
    verbs.note_rest(False, handle)
    return True


def _thaw(handle: DomainHandle) -> bool:
    try:
        guest_agent.ask(handle, _THAW_SECONDS, handle.fsThaw)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_OPERATION_INVALID):
            return not handle.isActive()
        if not _of_agent(error):
            raise
        return False
    verbs.note_rest(False, handle)
    return True


def may_rest_yet(error: libvirt.libvirtError) -> bool:
    """Whether an agent that was asked to freeze may do so when nobody waits for it any more: it did not answer."""
    return is_code(error, *_SILENT)


def _can_rest(handle: DomainHandle, xml: str) -> bool:
    """Whether the guest runs and its agent has opened the port."""
    return state.state_of(*handle.state()) is DomainState.RUNNING and attached.has_agent(xml)


def _of_agent(error: libvirt.libvirtError) -> bool:
    """Whether freezing failed, and not the snapshot. libvirt has no code for what an agent answers."""
    return is_code(error, *_SILENT) or "agent" in (error.get_error_message() or "").lower()


def indications(quiesce: Quiesce, rest: Indication) -> tuple[Indication, ...]:
    """What is said of the snapshot of a machine that is on."""
    return (Indication.ONLINE,) if quiesce.mode is QuiesceMode.NEVER else (Indication.ONLINE, rest)


def not_attached() -> HypervisorError:
    """The domain is not what a snapshot was asked of."""
    return HypervisorError("The machine has not got all of the disks, or is off.", reason="DiskNotAttached")
