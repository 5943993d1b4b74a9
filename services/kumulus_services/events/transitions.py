"""What a change of an object means: the types of its events, from the object before and after. Pure.

The table below is all there is to it; `docs/reference/events.md` is written from it. A row is about one field, so that
it can be told from two states however many lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kumulus.api.base import DOMAIN, Resource
from kumulus.api.claims import IPAddress
from kumulus.api.compute import Phase as Vm
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, HostPhase, Zone
from kumulus.api.image import ClusterImage, Image, ImagePhase
from kumulus.api.instance_type import InstanceType
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.machine_import import ImportPhase, VirtualMachineImport
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import RestorePhase, VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import MigrationPhase, VirtualMachineMigration
from kumulus.api.network import InterfacePhase, Network, NetworkClass, NetworkInterface
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.remediation import HostRemediation, RemediationPhase
from kumulus.api.routing import ExternalNetwork, FloatingIP, FloatingPhase, PhysicalNetwork, Router, RouterPhase
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import StoragePool, Volume, VolumeClass, VolumePhase
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.api.volume_snapshot import VolumeSnapshot

Raw = Mapping[str, Any]

PREFIX = ".".join(reversed(DOMAIN.split("."))) + "."
"""What the type of every event begins with: io.kumulus."""

CREATED, UPDATED, DELETED, PRESENT = "created", "updated", "deleted", "present"
"""What there is to tell of every kind. PRESENT: it was there before somebody began to listen."""

NOUNS: Mapping[type[Resource], str] = {
    VirtualMachine: "vm",
    VirtualMachineSnapshot: "vmsnapshot",
    VirtualMachineRestore: "vmrestore",
    VirtualMachinePool: "vmpool",
    VirtualMachineMigration: "vmmigration",
    VirtualMachineImport: "vmimport",
    InstanceType: "instancetype",
    PlacementGroup: "placementgroup",
    Image: "image",
    ClusterImage: "clusterimage",
    StoragePool: "storagepool",
    VolumeClass: "volumeclass",
    Volume: "volume",
    VolumeSnapshot: "volumesnapshot",
    Network: "network",
    NetworkInterface: "interface",
    SecurityGroup: "securitygroup",
    Router: "router",
    FloatingIP: "floatingip",
    ExternalNetwork: "externalnetwork",
    PhysicalNetwork: "physicalnetwork",
    LoadBalancer: "loadbalancer",
    NetworkClass: "networkclass",
    IPAddress: "ipaddress",
    Zone: "zone",
    Host: "host",
    UnmanagedInstance: "unmanaged",
    HostRemediation: "remediation",
}
"""The kinds of which is told, and what they are called in types of events."""

UNTOLD: Mapping[str, str] = {
    "ConsoleRequest": "its status is a key to a machine's console",
    "ImageUpload": "its status is a way to bring an image",
    "SegmentId": "a number that controllers keep",
    "WorkOrder": "how controllers and hosts speak with each other",
    "HostReport": "how controllers and hosts speak with each other",
    "EventSink": "its status changes by telling",
}
"""The kinds of which nothing is told, and why."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a change: the last word of its type, and what became what."""

    verb: str
    field: str = ""
    before: Any = None
    after: Any = None


Test = Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """A meaning of a change: `field` was and is such that `test` holds."""

    verb: str
    field: str
    test: Test
    when: str
    """For people."""


def _enters(field: str, verb: str, *into: str, since: Sequence[str] = ()) -> Row:
    """The field becomes one of `into`; with `since` only when it was one of those."""
    came = f" from {' or '.join(since)}" if since else ""

    def test(before: Any, after: Any) -> bool:
        return after in into and before not in into and (not since or before in since)

    return Row(verb, field, test, f"becomes {' or '.join(into)}{came}")


def _set(field: str, verb: str) -> Row:
    """The field has a new value."""
    return Row(verb, field, lambda before, after: after is not None and before != after, "is set, or set anew")


def _first(field: str, verb: str) -> Row:
    return Row(verb, field, lambda before, after: before is None and after is not None, "is set")


def _changes(field: str, verb: str) -> Row:
    """The field has another value than the one that it had."""
    return Row(verb, field, lambda before, after: None not in (before, after) and before != after, "changes")


def _cleared(field: str, verb: str) -> Row:
    """The field has lost the value that it had."""
    return Row(verb, field, lambda before, after: before is not None and before != after, "is cleared, or set anew")


def _grows(field: str, verb: str) -> Row:
    """A number is more than it was."""
    return Row(verb, field, lambda before, after: (after or 0) > (before or 0), "grows")


def _appended(field: str, verb: str) -> Row:
    """A list has another last entry. What is oldest in it may have gone meanwhile."""
    return Row(
        verb, field, lambda before, after: bool(after) and (before or [None])[-1] != after[-1], "has a new entry"
    )


_PHASE = "status.phase"
_WAS_ON = (Vm.RUNNING, Vm.PAUSED, Vm.STOPPING, Vm.MIGRATING, Vm.STARTING, Vm.UNKNOWN, Vm.CRASH_LOOP_BACK_OFF)
_HOST_UP = (HostPhase.READY, HostPhase.MAINTENANCE)
_SNAPSHOT = (_set("status.takenAt", "taken"), _enters(_PHASE, "failed", SnapshotPhase.FAILED))
_IMAGE = (_enters(_PHASE, "imported", ImagePhase.READY), _enters(_PHASE, "failed", ImagePhase.FAILED))

EVERY: tuple[Row, ...] = (
    _first("metadata.deletionTimestamp", "deleting"),
    Row("ready", "Ready", lambda before, after: after == "True" and before != "True", "becomes True"),
    Row("unready", "Ready", lambda before, after: before == "True" and after != "True", "is True no more"),
)
"""Rows of every kind. `Ready` is the status of that condition."""

ROWS: Mapping[type[Resource], tuple[Row, ...]] = {
    VirtualMachine: (
        _first("status.host", "placed"),
        _changes("status.host", "moved"),
        _set("status.startedAt", "started"),
        _grows("status.restarts", "restarted"),
        _appended("status.failovers", "failedover"),
        _enters(_PHASE, "paused", Vm.PAUSED),
        _enters(_PHASE, "resumed", Vm.RUNNING, since=(Vm.PAUSED,)),
        _enters(_PHASE, "suspended", Vm.SUSPENDED),
        _enters(_PHASE, "stopped", Vm.STOPPED, since=_WAS_ON),
        _enters(_PHASE, "failed", Vm.FAILED, Vm.CRASH_LOOP_BACK_OFF),
        _enters(_PHASE, "lost", Vm.UNKNOWN),
        _changes("status.resources", "resized"),
    ),
    VirtualMachineSnapshot: _SNAPSHOT,
    VolumeSnapshot: _SNAPSHOT,
    VirtualMachineRestore: (
        _enters(_PHASE, "succeeded", RestorePhase.SUCCEEDED),
        _enters(_PHASE, "failed", RestorePhase.FAILED),
    ),
    VirtualMachinePool: (_changes("status.replicas", "scaled"), _changes("status.currentRevision", "rolledout")),
    VirtualMachineMigration: (
        _enters(_PHASE, "started", MigrationPhase.MIGRATING),
        _enters(_PHASE, "succeeded", MigrationPhase.SUCCEEDED),
        _enters(_PHASE, "failed", MigrationPhase.FAILED),
    ),
    VirtualMachineImport: (
        _enters(_PHASE, "succeeded", ImportPhase.SUCCEEDED),
        _enters(_PHASE, "failed", ImportPhase.FAILED),
    ),
    Image: _IMAGE,
    ClusterImage: _IMAGE,
    StoragePool: (_enters(_PHASE, "degraded", "Degraded"), _enters(_PHASE, "maintenance", "Maintenance")),
    Volume: (
        _first("status.pool", "placed"),
        _cleared("status.attachedTo", "detached"),
        _set("status.attachedTo", "attached"),
        _changes("status.size", "resized"),
        _changes("status.pool", "moved"),
        _enters(_PHASE, "restored", VolumePhase.AVAILABLE, VolumePhase.IN_USE, since=(VolumePhase.RESTORING,)),
        _enters(_PHASE, "failed", VolumePhase.FAILED),
    ),
    NetworkInterface: (
        _enters(_PHASE, "attached", InterfacePhase.ATTACHED),
        Row(
            "detached",
            _PHASE,
            lambda before, after: before == InterfacePhase.ATTACHED and after != InterfacePhase.ATTACHED,
            f"is {InterfacePhase.ATTACHED} no more",
        ),
        _enters(_PHASE, "failed", InterfacePhase.FAILED),
    ),
    Router: (
        _enters(_PHASE, "active", RouterPhase.ACTIVE),
        _changes("status.activeHost", "failedover"),
        _enters(_PHASE, "failed", RouterPhase.FAILED),
    ),
    FloatingIP: (
        _first("status.address", "allocated"),
        _enters(_PHASE, "active", FloatingPhase.ACTIVE),
        _enters(_PHASE, "failed", FloatingPhase.FAILED),
    ),
    LoadBalancer: (_changes("status.activeHost", "failedover"), _changes("status.healthy", "health")),
    Host: (
        _enters(_PHASE, "joined", *_HOST_UP, since=(HostPhase.JOINING,)),
        _enters(_PHASE, "lost", HostPhase.UNKNOWN),
        _enters(_PHASE, "fenced", HostPhase.FENCED),
        _enters(_PHASE, "returned", *_HOST_UP, since=(HostPhase.FENCED, HostPhase.UNKNOWN)),
    ),
    HostRemediation: (
        _enters(_PHASE, "fenced", RemediationPhase.FENCED),
        _enters(_PHASE, "succeeded", RemediationPhase.SUCCEEDED),
    ),
}
"""Rows of kinds, in the order in which they are told."""

MODELS: Mapping[str, type[Resource]] = {model.KIND.kind: model for model in NOUNS}


def type_of(kind: str, verb: str) -> str:
    """The type of an event, such as io.kumulus.vm.started."""
    return f"{PREFIX}{NOUNS[MODELS[kind]]}.{verb}"


def changed(kind: str, before: Raw | None, after: Raw) -> list[Told]:
    """What there is to tell of an object that is `after` and was `before` (None: it was not there), in order."""
    told = [Told(UPDATED if before is not None else CREATED)]
    was = before or {}
    for row in (*ROWS.get(MODELS[kind], ()), *EVERY):
        old, new = value(was, row.field), value(after, row.field)
        if row.test(old, new):
            told.append(Told(row.verb, row.field, old, new))
    return told


def value(item: Raw, field: str) -> Any:
    """A field of an object, or the status of a condition when there is no dot in it; None when it is not there."""
    if "." not in field:
        conditions = (item.get("status") or {}).get("conditions") or ()
        return next((one.get("status") for one in conditions if one.get("type") == field), None)
    found: Any = item
    for part in field.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
