"""A domain that somebody else defined becomes Kumulus' own, and back, by calls that block.

What makes it Kumulus' own are its marks, which are written last and at once in its live and its persistent definition: who
dies before that has left a domain that is as it was, but for a note that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from kumulus_agents.hypervisor.domain import AdoptedDisk, Adoption
from kumulus_agents.hypervisor.libvirt import adopted, marks, shaping, sources, verbs
from kumulus_agents.hypervisor.libvirt.adopted import Known
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

_OURS = (
    (marks.PREFIX, marks.NAMESPACE),
    (marks.RUN_PREFIX, marks.RUN_NAMESPACE),
    (marks.REST_PREFIX, marks.REST_NAMESPACE),
    (marks.HOLD_PREFIX, marks.HOLD_NAMESPACE),
    (marks.ARRIVING_PREFIX, marks.ARRIVING_NAMESPACE),
    (adopted.PREFIX, adopted.NAMESPACE),
    (shaping.PREFIX, shaping.NAMESPACE),
)
"""What of a domain's metadata makes it Kumulus' own, the marks first."""

_KEPT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)


def adopt(adoption: Adoption, connection: ConnectionHandle) -> None:
    """See `Hypervisor.adopt`."""
    handle = verbs.lookup(connection, adoption.marks.uid)
    if handle is None:
        raise HypervisorError(
            "The domain that was to become the machine is not there any more. Delete the machine.",
            reason="NothingToAdopt",
            retryable=False,
        )
    xml = handle.XMLDesc(0)
    before = marks.read(xml)
    if before is not None and before.marks.epoch >= adoption.marks.epoch:
        return
    disks = _matched(ElementTree.fromstring(xml), adoption)  # noqa: S314  # libvirt wrote it
    _write(handle, adopted.xml(handle.name(), disks, adoption.nics), adopted.PREFIX, adopted.NAMESPACE)
    verbs.write_marks(adoption.marks, handle)


def disown(handle: DomainHandle) -> None:
    """See `Hypervisor.disown`: the marks go first, so that a half of it is no domain of ours."""
    for prefix, namespace in _OURS:
        with verbs.tolerating(libvirt.VIR_ERR_NO_DOMAIN_METADATA):
            _write(handle, None, prefix, namespace)


def replaced(handle: DomainHandle, uid: str) -> None:
    """Before a domain that is off is defined anew: one that has another name than ours have goes, for its UUID can have only
    one. What its firmware keeps stays."""
    if handle.name() != marks.domain_name(uid):
        with verbs.tolerating(libvirt.VIR_ERR_NO_DOMAIN):
            handle.undefineFlags(_KEPT)


def _write(handle: DomainHandle, text: str | None, prefix: str, namespace: str) -> None:
    for where in _wheres(handle):
        handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, prefix, namespace, where)


def _wheres(handle: DomainHandle) -> Iterator[int]:
    if handle.isPersistent():
        yield libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if handle.isActive():
        yield libvirt.VIR_DOMAIN_AFFECT_LIVE


def _matched(root: Element, adoption: Adoption) -> list[Known]:
    """The domain's disks, each with the volume whose file it is. Raises `HypervisorError`."""
    left, kept, found = list(adoption.disks), list(adoption.kept), list[Known]()
    for element in root.iterfind("devices/disk"):
        target, path = element.find("target"), sources.path_of(element)
        if element.get("device", "disk") != "disk" or path is None or target is None:
            continue
        if path in kept:
            kept.remove(path)
            continue
        disk = next((disk for disk in left if _is(disk, path)), None)
        if disk is None:
            raise _mismatch(f"it has the disk {target.get('dev')}, which the machine has not")
        left.remove(disk)
        found.append(Known(target.get("dev", ""), path, disk))
    if lacks := [*(disk.name for disk in left), *kept]:
        raise _mismatch(f"it has not got the disk {lacks[0]} of the machine")
    macs = {(element.get("address") or "").lower() for element in root.iterfind("devices/interface/mac")}
    if lost := [nic.mac for nic in adoption.nics if nic.mac.lower() not in macs]:
        raise _mismatch(f"it has no interface {lost[0]}")
    return found


def _is(disk: AdoptedDisk, path: str) -> bool:
    with suppress(OSError):
        return Path(disk.path).samefile(path)
    return False


def _mismatch(why: str) -> HypervisorError:
    return HypervisorError(
        f"The domain is not what the import has planned: {why}. It is left as it is: delete the machine, and import it anew.",
        reason="AdoptionMismatch",
        retryable=False,
    )
