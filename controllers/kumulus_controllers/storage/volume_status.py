"""What a volume's status says, derived from what is so. Pure; nothing here is stored to decide by."""

from __future__ import annotations

from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_order import DiskManner
from kumulus.api.storage import Attachment, VolumePhase, VolumeStatus
from kumulus.api.volumes import CloneMode, Progress
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.move_plan import MOVING, Course, settled, usable
from kumulus_controllers.storage.volume_keeper import HANDING_OVER
from kumulus_controllers.storage.volume_plan import FIRST_USE, Lack, Place, Scope


def derive_status(
    scope: Scope,
    place: Place | None,
    attached: Attachment | None,
    lack: Lack | None,
    now: str,
    at: Course | None = None,
) -> VolumeStatus:
    """The whole status. `at` is where it is and goes, when that was looked at; what is on record stays otherwise."""
    volume, before = scope.volume, scope.volume.status
    facts_known = scope.order.status.disk if scope.order else None
    phase, ready, stalled = _state(scope, place, attached, lack, at)
    moving = _moving(scope, at)
    facts = [ready, *moving]
    if stalled:
        facts.append(Fact("Stalled", True, ready.reason, ready.message))
    elif ready.status is False and ready.reason != FIRST_USE:
        facts.append(Fact("Reconciling", True, ready.reason, ready.message))
    elif ready.status is True and not volume.deleting:
        facts += _underway(moving, at)
    generation = volume.metadata.generation
    size = facts_known.virtual_size if facts_known else None
    offered, encryption = before.volume_class, before.encryption
    if place is not None and before.pool is None and scope.volume_class is not None:
        offered, encryption = scope.volume_class.name, scope.volume_class.spec.encryption
    manner = _manner(scope)
    moved = place is not None and before.pool not in (None, place.pool.name)
    source = volume.spec.source
    linked = source is not None and source.clone_mode is CloneMode.LINKED
    return VolumeStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, facts, generation=generation, now=now),
        phase=phase,
        pool=place.pool.name if place else before.pool,
        moving_to=(at.to.name if at.to is not None else None) if at is not None else before.moving_to,
        progress=_progress(scope, ready, at),
        unlinked=before.unlinked or (True if moved and linked else None),
        host=place.host if place else before.host,
        epoch=place.epoch if place else before.epoch,
        size=size if size is not None else before.size,
        used=facts_known.size if facts_known and facts_known.size is not None else before.used,
        attached_to=attached,
        volume_class=offered,
        encryption=encryption,
        qos=manner.qos if manner else None,
        cache=manner.cache if manner else None,
    )


def _moving(scope: Scope, at: Course | None) -> list[Fact]:
    """The condition of a move; what was said of one stays said while nobody could look."""
    if at is not None:
        return [at.fact] if at.fact is not None else []
    before = scope.volume.status.condition(MOVING)
    if before is None or scope.volume.deleting or scope.volume.status.moving_to is None:
        return []
    return [Fact(MOVING, before.status, before.reason, before.message)]


def _underway(moving: list[Fact], at: Course | None) -> list[Fact]:
    """Reconciling or Stalled (kstatus) of a volume that can be used. That a pool is to be emptied is not its owner's
    business while nothing happens: the volume is as its spec says."""
    for fact in moving:
        if fact.status is True:
            return [Fact("Reconciling", True, fact.reason, fact.message)]
        if at is not None and at.lack is not None and at.wish:
            return [Fact("Stalled" if at.lack.stalled else "Reconciling", True, fact.reason, fact.message)]
    return []


def _progress(scope: Scope, ready: Fact, at: Course | None) -> Progress | None:
    """How far a copy or a move is, while there is one."""
    disk = scope.order.status.disk if scope.order is not None else None
    busy = ready.status is False or (at is not None and at.to is not None)
    return disk.progress if disk is not None and busy and not scope.volume.deleting else None


def _manner(scope: Scope) -> DiskManner | None:
    """How a machine that is on has it, as its agent reports."""
    for order in scope.instances:
        for manner in order.status.instance.manners if order.status.instance else ():
            if manner.volume == scope.volume.uid:
                return manner
    return None


def _state(
    scope: Scope, place: Place | None, attached: Attachment | None, lack: Lack | None, at: Course | None
) -> tuple[VolumePhase, Fact, bool]:
    """Phase, the Ready condition, and whether somebody has to do something."""
    volume, order = scope.volume, scope.order
    if volume.deleting:
        return VolumePhase.DELETING, *_deleting(scope, lack)
    if lack is not None:
        known = order is not None and order.status.state is WorkState.READY
        if lack.reason == HANDING_OVER:
            return VolumePhase.MOVING, Fact("Ready", False, lack.reason, lack.message), lack.stalled
        phase = VolumePhase.FAILED if lack.stalled and known else VolumePhase.PENDING
        return phase, Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if order is None and volume.status.size is not None:
        return VolumePhase.MOVING, Fact("Ready", False, HANDING_OVER, "Another host is about to take it."), False
    if order is None and place is not None:  # its host is about to be told
        return VolumePhase.CREATING, _at_work(VolumePhase.CREATING, place.host), False
    if order is None:
        return (
            VolumePhase.PENDING,
            Fact("Ready", False, FIRST_USE, "The volume is made on the host of the first machine that uses it."),
            False,
        )
    state, reason = order.status.state, order.status.reason or ""
    message = order.status.message or ""
    current = (order.status.observed_generation or 0) >= order.metadata.generation
    made = volume.status.size is not None
    moves = at is not None and at.to is not None
    if (at is not None and (at.over or at.ask is not None) and usable(scope)) or (
        state is WorkState.READY and (current or settled(order, volume.status.size))
    ):
        phase = VolumePhase.IN_USE if attached else VolumePhase.AVAILABLE
        said = f"Attached to machine {attached.vm}." if attached else "Not attached to any machine."
        return VolumePhase.MOVING if moves else phase, Fact("Ready", True, str(phase), said), False
    if state in (WorkState.FAILED, WorkState.REFUSED):
        return VolumePhase.FAILED, Fact("Ready", False, reason or "Failed", message), True
    phase = _working(order, volume.status.size) if made else VolumePhase.CREATING
    return phase, _at_work(phase, host_of(order), reason, message), False


def _at_work(phase: VolumePhase, host: str, reason: str = "", message: str = "") -> Fact:
    return Fact("Ready", False, reason or str(phase), message or f"{host} works on it.")


def _working(order: WorkOrder, size: int | None) -> VolumePhase:
    """What is done to a volume that was made once."""
    asked = order.spec.disk.volume if order.spec.disk is not None else None
    grows = asked is not None and (asked.size or 0) > (size or 0)
    return (
        VolumePhase.RESTORING if asked is not None and asked.revert is not None and not grows else VolumePhase.RESIZING
    )


def _deleting(scope: Scope, lack: Lack | None) -> tuple[Fact, bool]:
    if lack is not None:
        return Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if scope.order is not None and scope.order.status.reason:
        return Fact("Ready", False, scope.order.status.reason, scope.order.status.message or ""), False
    return Fact("Ready", False, "Deleting", "The volume is being removed from its pool."), False
