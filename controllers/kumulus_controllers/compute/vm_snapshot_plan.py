"""What a snapshot of a machine consists of, and what its status says. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.base import FINALIZER, FORCE_DETACH, ObjectRef
from kumulus.api.compute import VirtualMachine, VirtualMachineSpec
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.machine_snapshot import KeptDisk, LeftOutDisk, VirtualMachineSnapshot, VirtualMachineSnapshotStatus
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshot_order import SnapshotItem
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.handover import Moves, Part, kept_by, moves, order_of
from kumulus_controllers.storage.snapshot_plan import (
    Clone,
    Target,
    in_use,
    item_of,
    order_state,
    owner_of,
    progress,
    snapshot_item,
    snapshot_order,
    takeable,
    was_taken,
)
from kumulus_controllers.storage.volume_keeper import HANDING_OVER
from kumulus_controllers.storage.volume_plan import Lack

NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class Kept:
    """A volume as one pass sees it."""

    volume: Volume
    order: WorkOrder | None
    pool: PoolRef | None
    moved_by: str | None = None
    """Name of the migration by which the machine brings it along to another host."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    snapshot: VirtualMachineSnapshot
    vm: VirtualMachine | None = None
    volumes: Mapping[str, Kept] = field(default_factory=dict)
    """By name: those of the machine, and those that the status names."""
    orders: tuple[WorkOrder, ...] = ()
    """The orders that keep the snapshot: one for each host that has volumes of it."""
    kept: tuple[Part, ...] = ()
    """What is kept of each volume, and where."""
    parts: Mapping[str, VolumeSnapshot] = field(default_factory=dict)
    """Snapshots that have the name of one of its parts, by that name."""
    clones: tuple[Clone, ...] = ()
    """Of any of its parts."""
    restoring: tuple[str, ...] = ()
    """Restores that are giving its content back just now."""
    host_gone: bool = False
    """A host that had a part of it, in a pool that is that host's alone, was removed."""

    @property
    def taken(self) -> bool:
        """Whether it was taken, as far as is known."""
        return was_taken(self.snapshot.status.taken_at, self.orders)

    @property
    def moving(self) -> Moves:
        """What changes because volumes go to other hosts."""
        return moves(self.kept, self.orders, taken=self.taken)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a snapshot consists of: decided once, and on record before anything is made of it."""

    vm_uid: str
    machine: VirtualMachineSpec
    disks: tuple[KeptDisk, ...]
    left_out: tuple[LeftOutDisk, ...]
    targets: tuple[Target, ...]
    """Of the disks, in their order."""

    @property
    def host(self) -> str:
        """Where all of them are."""
        return self.targets[0].host


def part_name(snapshot: str, disk: str) -> str:
    """Name of the VolumeSnapshot of one disk; the same for the same two, and different for others."""
    name = f"{snapshot}-{disk}"
    if len(name) <= NAME_MAX:
        return name
    digest = hashlib.sha256(f"{snapshot}/{disk}".encode()).hexdigest()[:10]
    return f"{name[: NAME_MAX - 11].rstrip('-')}-{digest}"


def choose(scope: Scope) -> Choice | Lack:
    """What the snapshot consists of, or why it cannot be taken yet."""
    status, name = scope.snapshot.status, scope.snapshot.spec.vm
    if status.volumes and status.machine is not None and status.vm_uid is not None:
        return _checked(scope, Choice(status.vm_uid, status.machine, status.volumes, status.left_out, ()))
    vm = scope.vm
    if vm is None or vm.deleting:
        going = "is being deleted" if vm else "does not exist"
        return Lack("VirtualMachineNotFound", f"VirtualMachine {name} {going}: there is nothing to keep.")
    disks, left_out = [], []
    for disk in vm.spec.disks:
        volume_name = disk.volume_of(vm.name)
        if volume_name is None:
            why = "a CD-ROM drive" if disk.cdrom is not None else "ephemeral: it goes with the machine"
            left_out.append(LeftOutDisk(disk=disk.name, reason=why))
            continue
        kept = scope.volumes.get(volume_name)
        if kept is None:
            return Lack("VolumeNotFound", f"There is no Volume {volume_name} in the namespace.")
        user = kept.volume.status.attached_to
        if user is not None and user.uid != vm.uid:
            return Lack("VolumeInUse", f"Volume {volume_name} is attached to machine {user.vm}, not to {vm.name}.")
        disks.append(
            KeptDisk(
                disk=disk.name,
                volume=volume_name,
                volume_uid=kept.volume.uid,
                snapshot=part_name(scope.snapshot.name, disk.name),
                volume_class=_class_of(kept.volume),
            )
        )
    if not disks:
        return Lack("NothingToKeep", f"Machine {name} has no volumes; ephemeral disks are in no snapshot.")
    return _checked(scope, Choice(vm.uid, vm.spec, tuple(disks), tuple(left_out), ()))


def _class_of(volume: Volume) -> str | None:
    """The class that a copy is made of. The default one may be another by then; what is encrypted stays so."""
    status = volume.status
    return volume.spec.volume_class or (status.volume_class if status.encryption is not None else None)


def _checked(scope: Scope, choice: Choice) -> Choice | Lack:
    """The choice with where its volumes are now, or why no snapshot of them can be taken."""
    taken = scope.snapshot.status.taken_at is not None
    targets: list[Target] = []
    for disk in choice.disks:
        kept = scope.volumes.get(disk.volume)
        if kept is None or kept.volume.uid != disk.volume_uid:
            return Lack("VolumeGone", f"Volume {disk.volume} is gone, and what was kept of it: delete the snapshot.")
        found = takeable(kept.volume, kept.order, kept.pool, taken=taken, moved_by=kept.moved_by)
        if isinstance(found, Lack):
            return found
        targets.append(found)
    hosts = sorted({found.host for found in targets})
    if len(hosts) > 1:
        return Lack("VolumesElsewhere", f"The machine's volumes are on several hosts: {', '.join(hosts)}.")
    return Choice(choice.vm_uid, choice.machine, choice.disks, choice.left_out, tuple(targets))


def foreign(scope: Scope) -> Lack | None:
    """Whether a snapshot of somebody else has the name of a part."""
    for name, part in scope.parts.items():
        owner = owner_of(part)
        if owner is None or owner.uid != scope.snapshot.uid:
            return Lack("SnapshotExists", f"There is a VolumeSnapshot {name} already: delete it, or take another name.")
    return None


def part(snapshot: VirtualMachineSnapshot, disk: KeptDisk) -> dict[str, Any]:
    """The VolumeSnapshot of one disk. It goes with the machine's snapshot, and is ordered with it."""
    owner = {
        "apiVersion": snapshot.KIND.api_version,
        "kind": snapshot.KIND.kind,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "controller": True,
    }
    return {
        "metadata": {"name": disk.snapshot, "finalizers": [FINALIZER], "ownerReferences": [owner]},
        "spec": {"volume": disk.volume, "quiesce": snapshot.spec.quiesce.to_json()},
    }


def whole_order(scope: Scope, choice: Choice, term: int) -> WorkOrderSpec:
    """The one order for all volumes. The parts must be there: their uids name what is kept."""
    items = [
        snapshot_item(scope.parts[disk.snapshot].uid, found)
        for disk, found in zip(choice.disks, choice.targets, strict=True)
    ]
    return kept_order(scope.snapshot, items, term, taken=scope.snapshot.status.taken_at is not None)


def kept_order(
    snapshot: VirtualMachineSnapshot, items: Sequence[SnapshotItem], term: int, *, taken: bool
) -> WorkOrderSpec:
    """The order of a host for some of the volumes, or all."""
    return snapshot_order(
        ObjectRef(kind=snapshot.KIND.kind, namespace=snapshot.namespace, name=snapshot.name, uid=snapshot.uid),
        items,
        snapshot.spec.quiesce,
        term,
        taken=taken,
    )


def held(scope: Scope) -> Lack | None:
    """Why the snapshot cannot be removed now."""
    if scope.restoring:
        names = ", ".join(scope.restoring)
        return Lack(
            "RestoreInProgress", f"VirtualMachineRestore {names} gives its content back just now.", stalled=False
        )
    return in_use(scope.clones)


def derive_status(scope: Scope, choice: Choice | None, lack: Lack | None, now: str) -> VirtualMachineSnapshotStatus:
    """The whole status. What was known of it once stays known."""
    snapshot, before = scope.snapshot, scope.snapshot.status
    phase, ready, stalled = _state(scope, lack)
    known = [order.status.snapshot for order in scope.orders if order.status.snapshot is not None]
    disks = choice.disks if choice else before.volumes
    sizes = {
        name: found
        for name, part in scope.parts.items()
        if (found := next(filter(None, (item_of(facts, part.uid) for facts in known)), None)) is not None
    }
    disks = tuple(
        disk.model_copy(update={"size": found.virtual_size})
        if (found := sizes.get(disk.snapshot)) is not None and found.virtual_size is not None
        else disk
        for disk in disks
    )
    disks = _placed(scope, choice, disks, lack)
    hosts = {disk.host for disk in disks}
    used = [found.size for found in sizes.values() if found.size is not None]
    generation = snapshot.metadata.generation
    return VirtualMachineSnapshotStatus(
        observed_generation=generation,
        conditions=derive(
            before.conditions, [ready, *progress(ready, stalled=stalled)], generation=generation, now=now
        ),
        phase=phase,
        ready_to_use=phase is SnapshotPhase.READY,
        taken_at=next((facts.taken_at for facts in known if facts.taken_at), None) or before.taken_at,
        size=sum(disk.size for disk in disks if disk.size is not None) or before.size,
        used=sum(used) if used and len(used) == len(disks) else before.used,
        host=hosts.pop() if len(hosts) == 1 else None,
        indications=next((facts.indications for facts in known if facts.indications), ()) or before.indications,
        vm_uid=choice.vm_uid if choice else before.vm_uid,
        volumes=disks,
        left_out=choice.left_out if choice else before.left_out,
        machine=choice.machine if choice else before.machine,
    )


def _placed(scope: Scope, choice: Choice | None, disks: Sequence[KeptDisk], lack: Lack | None) -> tuple[KeptDisk, ...]:
    """The disks with the hosts that have their parts, for the record. None says that no host was asked to remove it."""
    if choice is not None and not scope.orders:
        return tuple(disk.model_copy(update={"host": choice.host}) for disk in disks)
    handed = lack is not None and lack.reason == HANDING_OVER and not scope.snapshot.deleting
    by_uid, plan = {part.snapshot: part for part in scope.kept}, scope.moving
    found = []
    for disk in disks:
        snapshot = scope.parts.get(disk.snapshot)
        part = by_uid.get(snapshot.uid) if snapshot is not None else None
        if part is None:
            host = disk.host
        elif handed and part.shared and order_of(part, scope.orders) is None:
            host = None
        else:
            host = kept_by(part, scope.orders, plan)
        found.append(disk.model_copy(update={"host": host}))
    return tuple(found)


def _state(scope: Scope, lack: Lack | None) -> tuple[SnapshotPhase, Fact, bool]:
    """Phase, the Ready condition, and whether somebody has to do something."""
    snapshot = scope.snapshot
    order = next((one for one in scope.orders if one.deleting), next(iter(scope.orders), None))
    if snapshot.deleting:
        if lack is not None:
            return SnapshotPhase.DELETING, Fact("Ready", False, lack.reason, lack.message), lack.stalled
        reason = (order.status.reason if order else None) or "Deleting"
        message = (order.status.message if order else None) or "The snapshots of its volumes are being removed."
        if order is not None and order.deleting:
            message += (
                f" If host {host_of(order)} is gone for good:"
                f" kubectl annotate vmsnap {snapshot.name} {FORCE_DETACH}=true"
            )
        return SnapshotPhase.DELETING, Fact("Ready", False, reason, message), False
    if lack is not None:
        if lack.reason == HANDING_OVER and scope.taken:
            return SnapshotPhase.MOVING, Fact("Ready", False, lack.reason, lack.message), lack.stalled
        lost = lack.stalled and snapshot.status.taken_at is not None
        phase = SnapshotPhase.FAILED if lost else SnapshotPhase.PENDING
        return phase, Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if order is None:
        return SnapshotPhase.PENDING, Fact("Ready", False, "NotTakenYet", "Its host is asked to take it."), False
    said = [order_state(one) for one in scope.orders]
    return next((one for one in said if one[0] is not SnapshotPhase.READY), said[0])
