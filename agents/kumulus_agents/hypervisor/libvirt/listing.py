"""All domains of the host, in one question to libvirt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import libvirt

from kumulus_agents.hypervisor.domain import DomainState, leftover, orphan_of
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.libvirt import marks, shape, state
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.libvirt.marks import Record

NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
"""A domain that is busy with something else does not hold up the list."""

SIZE = libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON


@dataclass(frozen=True, slots=True)
class Entry:
    """A domain, ours or not."""

    handle: DomainHandle
    uuid: str
    state: tuple[int, int]
    """libvirt's state and reason."""
    record: Record | None
    """What its metadata says; None: it is not ours."""


def everything(connection: ConnectionHandle, *, known: Mapping[str, Record | None]) -> Sequence[Entry]:
    """Every domain. One call, another when one is off, and one for each whose record is not `known`. Blocks."""
    found: list[Entry] = []
    for handle, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, NOWAIT):
        uuid = handle.UUIDString()
        try:
            record = known[uuid] if uuid in known else marks.read(handle.XMLDesc(0))
        except libvirt.libvirtError as error:
            if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
                continue
            raise
        found.append(Entry(handle, uuid, (stats["state.state"], stats["state.reason"]), record))
    return _with_saved(connection, found)


def _with_saved(connection: ConnectionHandle, found: list[Entry]) -> list[Entry]:
    """The same, with what memories say that are kept. One more call when one of ours is off, and one for each memory."""
    off = {entry.uuid for entry in found if entry.record and state.state_of(*entry.state) is DomainState.STOPPED}
    if not off:
        return found
    kept = {handle.UUIDString() for handle in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}
    return [_saved(entry) if entry.uuid in kept & off else entry for entry in found]


def _saved(entry: Entry) -> Entry:
    try:
        record = marks.with_memory(entry.record, entry.handle.managedSaveGetXMLDesc(0)) if entry.record else None
    except libvirt.libvirtError:  # it goes on just now, or is gone
        return entry
    return replace(entry, record=record)


def foreign(
    connection: ConnectionHandle,
    *,
    known: Mapping[str, Record | None],
    seen: Mapping[str, ForeignDomain],
    orphans: Set[str] = frozenset(),
) -> Sequence[ForeignDomain]:
    """Every domain that is not ours, or is one of these, with its size where libvirt tells it at once. One call more for each that was not
    `seen`. Blocks."""
    everyone = everything(connection, known=known)
    entries = [entry for entry in everyone if entry.record is None or entry.uuid in orphans]
    if not entries:
        return ()
    stats = connection.domainListGetStats([entry.handle for entry in entries], SIZE, NOWAIT)
    sizes = {handle.UUIDString(): size for handle, size in stats}
    found = (_foreign(entry, sizes.get(entry.uuid, {}), seen.get(entry.uuid)) for entry in entries)
    return [domain for domain in found if domain is not None]


def _foreign(entry: Entry, size: Mapping[str, int], seen: ForeignDomain | None) -> ForeignDomain | None:
    memory = size.get("balloon.maximum")
    try:
        has = shape.read(entry.handle.XMLDesc(0)) if seen is None else seen.shape
        persistent = bool(entry.handle.isPersistent()) if seen is None else seen.persistent
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    record = entry.record
    left = leftover(record.marks, record.arriving) if record is not None else None
    return ForeignDomain(
        uuid=entry.uuid,
        name=entry.handle.name(),
        state=left or state.NAMES.get(entry.state[0], "no state"),
        cpus=size.get("vcpu.maximum"),
        memory=None if memory is None else memory * 1024,
        persistent=persistent,
        shape=has,
        machine=orphan_of(record.marks) if record is not None else None,
    )
