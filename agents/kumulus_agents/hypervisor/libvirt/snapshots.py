"""Snapshots of disks of a domain that is on, by calls that block.

External ones: QEMU goes on with new, empty files, all at one instant, and writes to the old ones no
more. https://libvirt.org/formatsnapshot.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import libvirt

from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.libvirt import attached, domain_xml, marks, state, verbs
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import DomainState, HypervisorError, Quiesce
from kumulus_agents.storage.source import LayerFile

_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)
_SILENT = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED)


def take(
    uid: str, layers: Mapping[str, LayerFile], quiesce: Quiesce, connection: ConnectionHandle
) -> tuple[Indication, ...]:
    """See `Hypervisor.snapshot_disks`."""
    handle = verbs.lookup(connection, uid)
    if handle is None or not handle.isActive() or marks.read(xml := handle.XMLDesc(0)) is None:
        raise _not_attached()
    targets = {attached.target_of(xml, volume): layer for volume, layer in layers.items()}
    wanted = {target: layer for target, layer in targets.items() if target is not None}
    if len(wanted) < len(layers):
        raise _not_attached()
    if attached.paths(xml).items() >= {target: layer.path for target, layer in wanted.items()}.items():
        return _indications(quiesce, Indication.NO_GUEST_AGENT)
    snapshot = domain_xml.render_snapshot(wanted, [one for one in attached.targets(xml) if one not in wanted])
    rest = _take(handle, snapshot, quiesce, ready=_can_rest(handle, xml))
    return _indications(quiesce, rest)


def _take(handle: DomainHandle, snapshot: str, quiesce: Quiesce, *, ready: bool) -> Indication:
    """libvirtd freezes, switches and thaws in one call: who asks for it may die meanwhile."""
    rest = Indication.NO_GUEST_AGENT
    if quiesce.mode is not QuiesceMode.NEVER and ready:
        try:
            handle.agentSetResponseTimeout(quiesce.seconds, 0)
            handle.snapshotCreateXML(snapshot, _FLAGS | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE)
            return Indication.GUEST_AGENT
        except libvirt.libvirtError as error:
            if not _of_agent(error):
                raise
            if not is_code(error, *_SILENT):
                rest = Indication.QUIESCE_FAILED
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                handle.fsThaw()
    if quiesce.mode is QuiesceMode.REQUIRED:
        raise HypervisorError(
            "The guest's file systems did not come to rest: "
            + (
                "its agent failed to freeze them. See the log of qemu-guest-agent in the guest."
                if rest is Indication.QUIESCE_FAILED
                else "no agent answers in it. Install and start qemu-guest-agent, or do not require quiescing."
            ),
            reason="QuiesceFailed",
        )
    handle.snapshotCreateXML(snapshot, _FLAGS)
    return rest


def _can_rest(handle: DomainHandle, xml: str) -> bool:
    """Whether the guest runs and its agent has opened the port."""
    return state.state_of(*handle.state()) is DomainState.RUNNING and attached.has_agent(xml)


def _of_agent(error: libvirt.libvirtError) -> bool:
    """Whether freezing failed, and not the snapshot. libvirt has no code for what an agent answers."""
    return is_code(error, *_SILENT) or "agent" in (error.get_error_message() or "").lower()


def _indications(quiesce: Quiesce, rest: Indication) -> tuple[Indication, ...]:
    return (Indication.ONLINE,) if quiesce.mode is QuiesceMode.NEVER else (Indication.ONLINE, rest)


def _not_attached() -> HypervisorError:
    return HypervisorError("The machine has not got all of the disks, or is off.", reason="DiskNotAttached")
