"""What a snapshot of a volume is to be, what holds it, and what its status says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kumulus.api.base import FORCE_DETACH, ObjectRef, OwnerReference
from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.order_names import luks_secret_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshot_order import SnapshotFacts, SnapshotItem, SnapshotOrder, SnapshotSize
from kumulus.api.snapshots import Quiesce, SnapshotPhase
from kumulus.api.storage import Volume, VolumePhase
from kumulus.api.volume_snapshot import VolumeSnapshot, VolumeSnapshotStatus
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.handover import Moves, Part, kept_by, moves
from kumulus_controllers.storage.volume_keeper import HANDING_OVER
from kumulus_controllers.storage.volume_plan import Lack

MACHINE_SNAPSHOT = "VirtualMachineSnapshot"
"""Kind of the owner of a snapshot that is taken together with others."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A volume that needs the snapshot still."""

    name: str
    linked: bool
    """It stands on the snapshot; else it is being copied from it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    snapshot: VolumeSnapshot
    volume: Volume | None = None
    """The volume of the name that the snapshot says."""
    volume_order: WorkOrder | None = None
    """The order that keeps that volume on its host."""
    pool: PoolRef | None = None
    """The pool that the volume is in."""
    moved_by: str | None = None
    """Name of the migration by which its machine brings the volume along to another host."""
    order: WorkOrder | None = None
    """The order that keeps the snapshot: its own, or that of the machine's snapshot it is part of."""
    host_gone: bool = False
    """The host that had it was removed."""
    clones: tuple[Clone, ...] = ()
    owner_going: bool = False
    """The machine's snapshot that it is part of is gone, or is being deleted."""
    part: Part | None = None
    """What is kept, and where; None as long as the volume is not on record."""

    @property
    def orders(self) -> tuple[WorkOrder, ...]:
        """Every order that keeps it."""
        return (self.order,) if self.order is not None else ()

    @property
    def taken(self) -> bool:
        """Whether it was taken, as far as is known."""
        return was_taken(self.snapshot.status.taken_at, self.orders)


@dataclass(frozen=True, slots=True)
class Target:
    """What the snapshot is taken of, and where."""

    volume: Volume
    pool: PoolRef
    host: str


def owner_of(snapshot: VolumeSnapshot) -> OwnerReference | None:
    """The machine's snapshot that it is part of, which orders and removes it; None for one of its own."""
    return next(
        (owner for owner in snapshot.metadata.owner_references if owner.kind == MACHINE_SNAPSHOT and owner.controller),
        None,
    )


def was_taken(known: str | None, orders: Sequence[WorkOrder]) -> bool:
    """Whether a snapshot was taken: its status knows it, or a host says so."""
    return known is not None or any(order.status.snapshot and order.status.snapshot.taken_at for order in orders)


def moving(scope: Scope) -> Moves:
    """What changes because the volume goes to another host."""
    return moves((scope.part,), scope.orders, taken=scope.taken) if scope.part is not None else Moves()


def target(scope: Scope) -> Target | Lack:
    """What the snapshot is taken of, or why it cannot be taken yet. One that was taken stays a snapshot of that very volume."""
    snapshot, volume = scope.snapshot, scope.volume
    name, known = snapshot.spec.volume, snapshot.status.volume_uid
    if known is not None and (volume is None or volume.uid != known):
        return Lack("VolumeGone", f"Volume {name} is gone, and what was kept of it: delete the snapshot.")
    if volume is None:
        return Lack("VolumeNotFound", f"There is no Volume {name} in the namespace.")
    taken = snapshot.status.taken_at is not None
    return takeable(volume, scope.volume_order, scope.pool, taken=taken, moved_by=scope.moved_by)


def takeable(
    volume: Volume, order: WorkOrder | None, pool: PoolRef | None, *, taken: bool = False, moved_by: str | None = None
) -> Target | Lack:
    """The volume as something to take a snapshot of now, or why it is not. `taken`: the snapshot is there, and kept;
    `moved_by`: the migration by which two hosts have it, and one of them something older."""
    if volume.deleting and not taken:
        return Lack("VolumeDeleting", f"Volume {volume.name} is being deleted: no snapshot of it is taken any more.")
    ready = volume.status.condition("Ready")
    if volume.status.phase is VolumePhase.FAILED:
        why = f"{ready.reason}: {ready.message}" if ready else "nobody knows why"
        return Lack("VolumeFailed", f"Volume {volume.name} is not in order ({why}).")
    if volume.status.size is None or volume.status.pool is None:
        return Lack("VolumeNotReady", f"Volume {volume.name} is not made yet: there is nothing to keep.", stalled=False)
    if moved_by is not None and not taken:
        return Lack(
            "VolumeMoves",
            f"VirtualMachineMigration {moved_by} brings Volume {volume.name} to another host: it is kept when that has ended.",
            stalled=False,
        )
    fit = volume.status.phase in (VolumePhase.AVAILABLE, VolumePhase.IN_USE) or taken
    if order is None or order.deleting or pool is None or not fit:
        why = f" ({ready.message})" if ready and ready.message and ready.status != "True" else ""
        if volume.status.moving_to is not None:
            why = f" (it is being moved to StoragePool {volume.status.moving_to})"
        return Lack("VolumeNotReady", f"Volume {volume.name} cannot be kept just now{why}.", stalled=False)
    return Target(volume, pool, host_of(order))


def snapshot_order(
    for_: ObjectRef, items: Sequence[SnapshotItem], quiesce: Quiesce, term: int, *, taken: bool
) -> WorkOrderSpec:
    """The order that takes a snapshot of all `items` at one instant, and keeps it."""
    return WorkOrderSpec(
        type=WorkType.SNAPSHOT,
        for_=for_,
        term=term,
        snapshot=SnapshotOrder(
            items=tuple(items), quiesce=quiesce.mode, quiesce_seconds=quiesce.timeout_seconds, taken=taken
        ),
    )


def snapshot_item(snapshot: str, found: Target) -> SnapshotItem:
    """One volume's part of the snapshot with that uid."""
    return SnapshotItem(snapshot=snapshot, volume=found.volume.uid, pool=found.pool, secret=secret_of(found.volume))


def secret_of(volume: Volume) -> str | None:
    """Name of the Secret with its passphrase, on whichever host has it; None when it is not encrypted."""
    return luks_secret_name(volume.uid) if volume.status.encryption is not None else None


def own_order(snapshot: VolumeSnapshot, found: Target, term: int) -> WorkOrderSpec:
    """The order for a snapshot of one volume."""
    return kept_order(snapshot, [snapshot_item(snapshot.uid, found)], term, taken=snapshot.status.taken_at is not None)


def kept_order(
    snapshot: VolumeSnapshot, items: Sequence[SnapshotItem], term: int, *, taken: bool = True
) -> WorkOrderSpec:
    """The order for a snapshot of one volume that a host is to have in place of another one."""
    return snapshot_order(
        ObjectRef(kind="VolumeSnapshot", namespace=snapshot.namespace, name=snapshot.name, uid=snapshot.uid),
        items,
        snapshot.spec.quiesce,
        term,
        taken=taken,
    )


def held(scope: Scope) -> Lack | None:
    """Why the snapshot cannot be removed now."""
    if (lack := in_use(scope.clones)) is not None:
        return lack
    owner = owner_of(scope.snapshot)
    if owner is not None and not scope.owner_going:
        return Lack(
            "PartOfMachineSnapshot",
            f"It is part of VirtualMachineSnapshot {owner.name} and goes with it: delete that one.",
        )
    return None


def in_use(clones: Sequence[Clone]) -> Lack | None:
    """Why a snapshot with these clones cannot be removed now."""
    linked = sorted({clone.name for clone in clones if clone.linked})
    copied = sorted({clone.name for clone in clones if not clone.linked})
    if linked:
        return Lack("SnapshotInUse", f"Linked to it: Volume {', '.join(linked)}. Delete what is linked to it first.")
    if copied:
        return Lack(
            "SnapshotInUse", f"Still being copied from it: Volume {', '.join(copied)}. It goes then.", stalled=False
        )
    return None


def host_lost(scope: Scope) -> Lack | None:
    """Why the snapshot cannot be reached."""
    if not scope.host_gone or (scope.part is not None and scope.part.shared):
        return None
    name = scope.snapshot.status.host
    return Lack("HostGone", f"Host {name} was removed, and the snapshot with it: delete it.")


def derive_status(scope: Scope, found: Target | None, lack: Lack | None, now: str) -> VolumeSnapshotStatus:
    """The whole status. What was known of it once stays known."""
    snapshot, before = scope.snapshot, scope.snapshot.status
    phase, ready, stalled = _state(scope, lack)
    facts = [ready, *progress(ready, stalled=stalled)]
    known = scope.order.status.snapshot if scope.order else None
    part = item_of(known, snapshot.uid)
    item = next((item for item in _items(scope.order) if item.snapshot == snapshot.uid), None)
    generation = snapshot.metadata.generation
    return VolumeSnapshotStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, facts, generation=generation, now=now),
        phase=phase,
        ready_to_use=phase is SnapshotPhase.READY or _waits_for_whole(scope),
        taken_at=(known.taken_at if known else None) or before.taken_at,
        size=part.virtual_size if part and part.virtual_size is not None else before.size,
        used=part.size if part and part.size is not None else before.used,
        volume_uid=item.volume if item else found.volume.uid if found else before.volume_uid,
        pool=item.pool.name if item else found.pool.name if found else before.pool,
        host=_host(scope, found, lack),
        indications=(known.indications if known else ()) or before.indications,
    )


def _host(scope: Scope, found: Target | None, lack: Lack | None) -> str | None:
    """The host that has it, for the record. None says that no host was asked to remove it."""
    if scope.order is None and found is not None:
        return found.host
    if scope.order is None and lack is not None and lack.reason == HANDING_OVER and not scope.snapshot.deleting:
        return None
    if scope.part is not None:
        return kept_by(scope.part, scope.orders, moving(scope))
    return host_of(scope.order) if scope.order is not None else scope.snapshot.status.host


def _waits_for_whole(scope: Scope) -> bool:
    """Whether it is to be deleted and can be used all the same, because the machine's snapshot is there and stays."""
    taken = scope.order is not None and not scope.order.deleting and scope.order.status.state is WorkState.READY
    return taken and scope.snapshot.deleting and owner_of(scope.snapshot) is not None and not scope.owner_going


def _items(order: WorkOrder | None) -> Sequence[SnapshotItem]:
    return order.spec.snapshot.items if order is not None and order.spec.snapshot is not None else ()


def item_of(facts: SnapshotFacts | None, uid: str) -> SnapshotSize | None:
    """One part of what an agent says of a snapshot."""
    return next((item for item in facts.items if item.snapshot == uid), None) if facts else None


def progress(ready: Fact, *, stalled: bool) -> list[Fact]:
    """Reconciling or Stalled (kstatus), whichever holds."""
    if stalled:
        return [Fact("Stalled", True, ready.reason, ready.message)]
    if ready.status is False:
        return [Fact("Reconciling", True, ready.reason, ready.message)]
    return []


def _state(scope: Scope, lack: Lack | None) -> tuple[SnapshotPhase, Fact, bool]:
    """Phase, the Ready condition, and whether somebody has to do something."""
    snapshot = scope.snapshot
    if snapshot.deleting:
        ready, stalled = deleting(scope.order, lack, snapshot)
        return SnapshotPhase.DELETING, ready, stalled
    if lack is not None:
        if lack.reason == HANDING_OVER and scope.taken:
            return SnapshotPhase.MOVING, Fact("Ready", False, lack.reason, lack.message), lack.stalled
        lost = lack.stalled and snapshot.status.taken_at is not None
        return (
            SnapshotPhase.FAILED if lost else SnapshotPhase.PENDING,
            Fact("Ready", False, lack.reason, lack.message),
            lack.stalled,
        )
    if scope.order is None:
        owner = owner_of(snapshot)
        whose = f"VirtualMachineSnapshot {owner.name}" if owner else "its volume's host"
        return SnapshotPhase.PENDING, Fact("Ready", False, "NotTakenYet", f"{whose} has not taken it yet."), False
    return order_state(scope.order)


def order_state(order: WorkOrder) -> tuple[SnapshotPhase, Fact, bool]:
    """What an agent's answer says of a snapshot."""
    state, reason, message = order.status.state, order.status.reason or "", order.status.message or ""
    if state in (WorkState.FAILED, WorkState.REFUSED):
        return SnapshotPhase.FAILED, Fact("Ready", False, reason or "Failed", message), True
    if state is WorkState.READY:
        return SnapshotPhase.READY, Fact("Ready", True, "Taken", "It can be restored and cloned."), False
    working = Fact("Ready", False, reason or "Taking", message or f"{host_of(order)} takes it.")
    return SnapshotPhase.TAKING, working, False


def deleting(order: WorkOrder | None, lack: Lack | None, snapshot: VolumeSnapshot | None) -> tuple[Fact, bool]:
    """What a deletion waits for, and whether somebody has to do something."""
    if lack is not None:
        return Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if order is not None and order.status.reason:
        return Fact("Ready", False, order.status.reason, order.status.message or ""), False
    where = f" by {host_of(order)}" if order is not None else ""
    hint = ""
    if order is not None and order.deleting and snapshot is not None:
        hint = f" If that host is gone for good: kubectl annotate volsnap {snapshot.name} {FORCE_DETACH}=true"
    return Fact("Ready", False, "Deleting", f"The snapshot is being removed{where}.{hint}"), False
