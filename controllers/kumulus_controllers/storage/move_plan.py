"""Moving a volume from pool to pool: where it is to be, and how it gets there. Pure.

A move is on record (`status.movingTo`) before it is in the volume's order, and stays in the order until where the volume
ended is on record. So whoever comes after a kill between any two writes goes on from what the order says, if it says
anything, else from the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkState
from kumulus.api.pool_order import PoolRef
from kumulus.api.quantity import rounded
from kumulus.api.storage import StoragePool
from kumulus.api.volume_order import Move
from kumulus.runtime.conditions import Fact
from kumulus_controllers.orders import claim
from kumulus_controllers.planning.pools import refuge
from kumulus_controllers.planning.views import HostView, Load, PoolView
from kumulus_controllers.storage.presence import pool_ref
from kumulus_controllers.storage.volume_plan import Lack, Place, Scope, Wanted

MOVING = "Moving"
"""Type of the condition."""

WAITING_FOR_TURN = "WaitingForTurn"
"""Reason of a volume that moves when others have left its pool."""

PINNED = "Pinned"
"""Reason of a volume whose spec names the pool that is to be emptied."""


UNUSABLE = frozenset({"VolumeLost", "VolumeDamaged", "VolumeElsewhere", "VolumeConflict", "ChainMismatch"})
"""Reasons of agents that cannot find the volume, or must not touch it. With others it can be used where it is."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What planning knows of the host that has the volume."""

    host: str
    view: HostView | None = None
    load: Load = field(default_factory=Load)
    heard: bool = True
    """Its agent answers."""
    moves: int = 0
    """Other volumes that are being copied out of the same pool there."""
    limit: int = 2
    """So many at once."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where a volume is, and where it is going."""

    place: Place
    """Where it is. A move that has come to its end may have changed that."""
    to: PoolRef | None = None
    """Where it is being moved, for the record."""
    ask: Move | None = None
    """What its order is to say of it."""
    over: bool = False
    """The move that its order speaks of has come to its end."""
    lack: Lack | None = None
    """Why it is not moved, or does not get on."""
    wish: bool = False
    """It is its owner who wants it elsewhere."""

    @property
    def fact(self) -> Fact | None:
        """The condition; none when it is to be where it is."""
        if self.lack is not None:
            return Fact(MOVING, False, self.lack.reason, self.lack.message)
        if self.to is None:
            return None
        back = self.ask is not None and self.ask.withdrawn
        what = f"from StoragePool {self.place.pool.name} to {self.to.name}"
        said = (
            f"Its move {what} is being taken back." if back else f"It is being moved {what}, and can be used meanwhile."
        )
        return Fact(MOVING, True, "Withdrawing" if back else MOVING, said)

    @property
    def arrived(self) -> bool:
        """It was moved, and that is not on record yet, or not in its order."""
        return self.over and self.to is None


def course(scope: Scope, want: Wanted, place: Place, sight: Sight) -> Course:
    """How a volume goes on that is at `place`, and is not just being handed to another host."""
    status, order = scope.volume.status, scope.order
    move = asked(order)
    if move is not None:
        return _follow(scope, move, place, sight)
    if status.size is None or status.pool is None:
        return Course(place)
    if order is None or order.deleting:
        return _anew(scope, place, sight)
    if status.moving_to is not None:
        return _go(scope, place)
    return _begin(scope, want, place, sight)


def asked(order: WorkOrder | None) -> Move | None:
    """The move that a volume's order speaks of."""
    disk = order.spec.disk if order is not None else None
    return disk.volume.move if disk is not None and disk.volume is not None else None


def wished(scope: Scope) -> bool:
    """Whether its owner wants it in another pool than it is in."""
    return scope.volume.spec.pool not in (None, scope.volume.status.pool)


def landed(order: WorkOrder | None) -> str | None:
    """Uid of the pool in which the agent says that the volume is, with nothing left elsewhere; None: it works on it."""
    if order is None or order.status.disk is None or not _current(order) or order.status.state is not WorkState.READY:
        return None
    return order.status.disk.pool


def usable(scope: Scope) -> bool:
    """Whether a volume that was made and is being moved can be used where it is, as far as its agent says."""
    order = scope.order
    if order is None or scope.volume.status.size is None:
        return False
    failed = order.status.state in (WorkState.FAILED, WorkState.REFUSED)
    return not failed or order.status.reason not in UNUSABLE


def settled(order: WorkOrder, size: int | None) -> bool:
    """Whether an order asks for nothing but what is so already: it neither grows the volume nor reverts it."""
    disk = order.spec.disk.volume if order.spec.disk is not None else None
    if disk is None or size is None:
        return False
    facts = order.status.disk
    reverted = disk.revert is None or (facts is not None and facts.reverted == disk.revert.request)
    return reverted and (disk.size or 0) <= size


def _current(order: WorkOrder) -> bool:
    return (order.status.observed_generation or 0) >= order.metadata.generation


def _target(scope: Scope) -> PoolRef | None:
    return pool_ref(scope.target) if scope.target is not None else None


def _follow(scope: Scope, move: Move, place: Place, sight: Sight) -> Course:
    """A move that was ordered: to its end, or back."""
    order, spec = scope.order, scope.volume.spec
    assert order is not None
    if move.pool.uid == place.pool.uid:
        return Course(place, over=True)
    there = landed(order)
    if there == move.pool.uid:
        # It is marked in the pool with the epoch that its order has.
        return Course(Place(move.pool, place.host, (place.epoch or 0) if move.pool.shared else None), over=True)
    if there == place.pool.uid and move.withdrawn:
        return Course(place, over=True, wish=wished(scope))
    elsewhere = spec.pool not in (None, move.pool.name)
    ask = Move(pool=move.pool, withdrawn=move.withdrawn or elsewhere)
    lack = _stuck(order, place, there, sight) if ask == move else None
    return Course(place, to=move.pool, ask=ask, lack=lack, wish=wished(scope))


def _stuck(order: WorkOrder, place: Place, there: str | None, sight: Sight) -> Lack | None:
    """Why a move that was ordered does not get on."""
    here = place.pool.name
    if not sight.heard:
        return Lack("HostUnknown", f"Host {place.host}, which moves it, does not answer.", stalled=False)
    if not _current(order):
        return None
    if order.status.state in (WorkState.FAILED, WorkState.REFUSED):
        said = order.status.message or f"Host {place.host} could not move it."
        return Lack(
            order.status.reason or "Failed",
            f"{said} It stays in StoragePool {here}, and the move is tried again; to give it up, set spec.pool to {here}.",
        )
    if order.status.state is WorkState.READY and there is None:
        return Lack("MoveUnsupported", f"The agent of host {place.host} does not know how to move volumes: update it.")
    return None


def _anew(scope: Scope, place: Place, sight: Sight) -> Course:
    """It gets an order, and a move is on record that an earlier one may have spoken of. The new one does from the start, so
    that its agent looks where the volume is before anybody uses it; unless the host cannot look there."""
    if scope.volume.status.moving_to is None:
        return Course(place)
    there = _on_host(sight.view, scope.target) if scope.target is not None else None
    if there is None:
        return Course(place, wish=wished(scope))
    return Course(place, to=there.ref, ask=Move(pool=there.ref), wish=wished(scope))


def _go(scope: Scope, place: Place) -> Course:
    """A move that is on record and that no order speaks of. Nothing was done, so it can be called off."""
    spec, name = scope.volume.spec, scope.volume.status.moving_to
    to = _target(scope)
    if spec.pool not in (None, name):
        return Course(place, wish=wished(scope))
    lack = hindered(scope)
    if to is None:
        lack = Lack("PoolNotFound", f"There is no StoragePool {name} any more.")
    if to is None or lack is not None:
        return Course(place, lack=lack, wish=wished(scope))
    return Course(place, to=to, ask=Move(pool=to), wish=wished(scope))


def _begin(scope: Scope, want: Wanted, place: Place, sight: Sight) -> Course:
    """Whether it is to be elsewhere, and can go there now. What is chosen goes on record, and then has room."""
    wish = wished(scope)
    emptied = scope.pool is not None and scope.pool.spec.maintenance
    if not wish and not emptied:
        return Course(place)
    if not wish and scope.volume.spec.pool is not None:
        return Course(
            place,
            lack=Lack(
                PINNED,
                f"StoragePool {place.pool.name} is to be emptied, and spec.pool says that it is to be there: name another"
                " pool, or leave spec.pool out.",
            ),
        )
    lack = _misnamed(scope) if wish else None
    lack = lack or hindered(scope)
    if lack is None and not sight.heard:
        lack = Lack("HostUnknown", f"Host {place.host}, which has the data, does not answer.", stalled=False)
    if lack is None and sight.moves >= sight.limit:
        lack = Lack(
            WAITING_FOR_TURN,
            f"At most {sight.limit} volumes are moved out of StoragePool {place.pool.name} on host {place.host} at once.",
            stalled=False,
        )
    if lack is not None:
        return Course(place, lack=lack, wish=wish)
    found = _named(scope, want, sight) if wish else _chosen(scope, want, place, sight)
    return Course(place, lack=found, wish=wish) if isinstance(found, Lack) else Course(place, to=found, wish=wish)


def hindered(scope: Scope) -> Lack | None:
    """Why a volume cannot leave the pool it is in now, whatever the other pool is."""
    volume, order = scope.volume, scope.order
    if scope.linked:
        return Lack(
            "HasSnapshots",
            f"Volume {', '.join(scope.linked[:16])} is linked to a snapshot of it: move or delete what is linked first, and"
            " then the snapshots.",
        )
    if scope.snapshots:
        listed = " ".join(scope.snapshots[:16])
        return Lack(
            "HasSnapshots",
            f"Volumes with snapshots are not moved yet. To let it go: kubectl -n {volume.namespace} delete {listed}",
        )
    if scope.snapped:
        return Lack("HasSnapshots", "Its host removes snapshots of it still.", stalled=False)
    if any(claim(instance) > 0 for instance in scope.instances):
        return Lack("MachineMoves", "Its machine moves to another host: it moves when that is done.", stalled=False)
    if scope.copied is not None:
        return Lack("VolumeBusy", f"It is being copied to {scope.copied}: it moves when that is done.", stalled=False)
    if order is None or not _current(order):
        return Lack("VolumeBusy", "Its host works on it: it moves when that is done.", stalled=False)
    if order.status.state is WorkState.READY and settled(order, volume.status.size):
        return None
    if order.status.state in (WorkState.FAILED, WorkState.REFUSED):
        outgrown = order.status.disk is not None and order.status.disk.virtual_size is not None
        return (
            None
            if outgrown and _grows(scope, order)
            else Lack("VolumeFailed", "It cannot be used where it is: see Ready.")
        )
    return Lack("VolumeBusy", "Its host works on it: it moves when that is done.", stalled=False)


def _grows(scope: Scope, order: WorkOrder) -> bool:
    """Whether it is to be larger than it is. A pool that has no room for that may be left."""
    disk = order.spec.disk.volume if order.spec.disk is not None else None
    return disk is not None and disk.revert is None and (disk.size or 0) > (scope.volume.status.size or 0)


def _misnamed(scope: Scope) -> Lack | None:
    """What is wrong with the pool that its owner names, on whichever host."""
    name, pool, namespace = scope.volume.spec.pool, scope.asked, scope.volume.namespace
    if pool is None:
        return Lack("PoolNotFound", f"There is no StoragePool {name}: name another, or leave spec.pool out.")
    if pool.spec.allowed_namespaces and namespace not in pool.spec.allowed_namespaces:
        return Lack("PoolNotAllowed", f"StoragePool {name} may not be used in namespace {namespace}.")
    offered = scope.volume_class
    selector = offered.spec.pool_selector if offered is not None else {}
    if offered is not None and any(pool.metadata.labels.get(key) != value for key, value in selector.items()):
        labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        return Lack(
            "PoolNotAllowed",
            f"Volumes of class {offered.name} may be in pools labelled {labels}, which StoragePool {name} is not.",
        )
    if pool.spec.maintenance or pool.deleting:
        return Lack("PoolInMaintenance", f"StoragePool {name} is to be emptied, and takes nothing new.")
    return None


def _named(scope: Scope, want: Wanted, sight: Sight) -> PoolRef | Lack:
    """The pool that its owner names, if the host can bring it there."""
    assert scope.asked is not None
    there = _on_host(sight.view, scope.asked)
    if there is None or not there.usable:
        return Lack(
            "PoolNotReachable",
            f"Host {sight.host}, which has the data, cannot use StoragePool {scope.asked.name}: name a pool that is ready"
            " on that host.",
        )
    return _full(there, want, sight) or there.ref


def _full(pool: PoolView, want: Wanted, sight: Sight) -> Lack | None:
    where = f"StoragePool {pool.ref.name}" + ("" if pool.ref.shared else f" on host {sight.host}")
    if pool.stops_at is not None:
        return Lack(
            "PoolFull", f"{where} is filled to {pool.stops_at}% and takes nothing new: ask your operator for room."
        )
    left = pool.promisable - sight.load.promised(pool.ref)
    if left < want.size:
        return Lack(
            "PoolFull",
            f"{where} has {rounded(max(left, 0))} left to promise, and the volume needs {rounded(want.size)}: ask your"
            " operator for room.",
        )
    return None


def _chosen(scope: Scope, want: Wanted, place: Place, sight: Sight) -> PoolRef | Lack:
    """Another pool of the host, for a volume whose pool is to be emptied."""
    if sight.view is None:
        return Lack("HostUnknown", f"Host {place.host}, which has the data, is not known.", stalled=False)
    found = refuge(sight.view, sight.load, want.demand, place.pool, scope.volume.namespace)
    if isinstance(found, PoolRef):
        return found
    return Lack(
        "NoPoolFits",
        f"StoragePool {place.pool.name} is to be emptied; apart from it, host {place.host}, which has the data, is {found}.",
        stalled=False,
    )


def _on_host(view: HostView | None, pool: StoragePool) -> PoolView | None:
    return next((item for item in view.pools if item.ref.uid == pool.uid), None) if view is not None else None


def directed(order: WorkOrderSpec, at: Course, term: int) -> WorkOrderSpec:
    """The order with what is to be said of a move: begin, take back, or where it ended.

    While one is under way the volume is not grown. In the pool that it came into it stands on nothing.
    """
    assert order.disk is not None and order.disk.volume is not None
    disk, volume = order.disk, order.disk.volume
    changes: dict[str, object] = {}
    if at.ask is not None and volume.move != at.ask:
        changes = {"move": at.ask, "revert": None}
    elif at.over and volume.move is not None:
        changes = {"move": None}
        if disk.pool.uid != at.place.pool.uid:
            changes |= {"origin": None, "epoch": at.place.epoch or 0, "existing": True}
            disk = disk.model_copy(update={"pool": at.place.pool})
    if not changes:
        return order
    after = disk.model_copy(update={"volume": volume.model_copy(update=changes)})
    return order.model_copy(update={"disk": after, "term": max(term, order.term)})
