"""Moves volumes between pools of this host: beside a guest that goes on, by its emulator; else in the cage.

At every moment the volume is in one pool, whole, and what is in the other one counts for nothing: first all is
copied, then the target's record says so, then the copy in the source goes. While a guest is on the record is
made when the guest is halted and both have all that it wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import Move, VolumeOrder
from kumulus_agents.agent.passphrases import Passphrases
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import BUSY, Reservations
from kumulus_agents.agent.tidying import Tidying
from kumulus_agents.agent.whereabouts import Whereabouts, move_of, name_of_move
from kumulus_agents.hypervisor.domain import Domain, DomainDisk
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.moving import Arrival, Content, MovableVolumes, Traits, has_snapshots
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError

log = structlog.get_logger(__name__)

_GIVEN_UP = ("CopyFailed", "NoSpace", "CacheUnsupported")
"""Reasons of a hypervisor's error after which there is no copy to go on with."""
_FULL = 16 << 20
"""A pool that has less room than this, in bytes, is full: an emulator that gave up does not say why."""


@dataclass(frozen=True, slots=True)
class _Move:
    """One move, under the volume's reservation."""

    uid: str
    name: str
    traits: Traits
    source: MovableVolumes
    target: MovableVolumes
    into: StorageDriver
    """The target as any pool."""
    pool: str
    """The target's name, for people."""
    passphrase: Passphrase | None
    mark: tuple[str, int] | None
    """Host and epoch, of a target that hosts share."""

    async def settle(self) -> None:
        """All of it is in the target."""
        await self.target.settle_arrival(self.uid, self.traits, self.name)

    def full(self) -> StorageError:
        """There is no room for it."""
        return StorageError(
            f"The pool {self.pool} has not got the room for the volume. Free space in it or choose another pool; the"
            " volume stays usable where it is.",
            reason="NoSpace",
        )


class Moves:
    """The moves of this host's volumes."""

    def __init__(
        self,
        pools: Pools,
        hypervisor: Hypervisor,
        reservations: Reservations,
        tidying: Tidying,
        whereabouts: Whereabouts,
        passphrases: Passphrases,
        slots: asyncio.Semaphore,
        *,
        host: str,
        left: Callable[[WorkOrder], None],
    ) -> None:
        """`slots` bounds how many copies are made at once; `left` is told the order of a volume that has left its pool."""
        self._pools = pools
        self._hypervisor = hypervisor
        self._reservations = reservations
        self._tidying = tidying
        self._whereabouts = whereabouts
        self._passphrases = passphrases
        self._slots = slots
        self._host = host
        self._left = left
        self._done: dict[str, tuple[Move, str]] = {}
        """Orders whose move was brought to its end by this process, and the pool that the volume is in."""
        self._arrived: dict[str, str] = {}
        """Orders whose volume has arrived, and the pool."""

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._done.pop(name, None)
        self._arrived.pop(name, None)

    def pool(self, order: WorkOrder) -> str | None:
        """Uid of the pool that the volume is in, as far as that is known without looking; None: it is not to be moved."""
        disk = order.spec.disk
        if disk is None or disk.volume is None or disk.volume.move is None:
            return None
        reported = order.status.disk.pool if order.status.disk is not None else None
        places = (disk.pool.uid, disk.volume.move.pool.uid)
        return self._arrived.get(order.name) or (reported if reported in places else disk.pool.uid)

    def ended(self, order: WorkOrder) -> bool:
        """Whether there is nothing to do for the order's move: the volume is where it is to be, and nowhere else."""
        move = move_of(order)
        if move is None:
            self._done.pop(order.name, None)
            self._arrived.pop(order.name, None)
            return True
        done = self._done.get(order.name)
        return done is not None and done[0] == move

    async def bring_about(self, order: WorkOrder, wanted: VolumeOrder, progress: ProgressListener) -> None:
        """Move the volume, or take that back, whatever of it is left to do. May be ended at any moment.

        Raises `StorageError`, `HypervisorError`.
        """
        disk, move = order.spec.disk, move_of(order)
        if disk is None or move is None:
            return
        self._done.pop(order.name, None)  # the same may be asked again, after it was taken back
        here = await self._whereabouts.of(order)
        if here.uid == disk.pool.uid and not move.withdrawn:
            async with self._slots:
                await self._move(order, wanted, disk.pool, move.pool, progress)
            here = move.pool
        if here.uid == move.pool.uid:
            self._arrived[order.name] = here.uid
            if here.shared:  # some pools can mark only what is whole
                await self._pools.driver(here).claim_volume(wanted.uid, self._host, wanted.epoch)
        with self._reservations.hold(
            (wanted.uid,), "what was left of a move is being removed", resumable=True, along=move.withdrawn
        ):
            here = await self.alone(order, wanted)
        if here.uid == move.pool.uid:
            self._left(order)
        self._done[order.name] = (move, here.uid)
        log.info("volume moved", order=order.name, volume=order.spec.for_.name, pool=here.name)

    async def alone(self, order: WorkOrder, wanted: VolumeOrder) -> PoolRef:
        """Have the volume in one pool alone: a copy that is not whole is given up, one that is not needed any more goes.
        Returns the pool, which may be the one where it was to be. Nobody is at it. The order has no move: nothing.

        Raises `StorageError`, `HypervisorError`.
        """
        disk, move = order.spec.disk, move_of(order)
        if disk is None or move is None:
            return await self._whereabouts.of(order)
        if (user := await self._tidying.user(wanted.uid)) is not None:
            await self._hypervisor.end_copy(user.marks.uid, wanted.uid)
        here = await self._whereabouts.of(order)
        if here.uid == move.pool.uid:
            await self._refuse_written(wanted.uid, self._whereabouts.movable(move.pool))
            await self._pools.driver(disk.pool).remove_volume(wanted.uid)
        elif isinstance(target := self._pools.driver(move.pool), MovableVolumes):
            await target.abandon_arrival(wanted.uid)
        return here

    async def _refuse_written(self, uid: str, target: MovableVolumes) -> None:
        """Nobody is to write to what is removed: it cannot be, unless somebody else started the machine meanwhile."""
        user, arrival = await self._tidying.user(uid), await target.arrival(uid)
        for disk in user.disks if user is not None else ():
            if disk.volume == uid and arrival is not None and disk.path != arrival.source.path:
                raise StorageError(
                    "A machine that is on writes to a copy of the volume that is not the volume any more. Stop it.",
                    reason="ChainMismatch",
                    retryable=False,
                )

    async def _move(
        self, order: WorkOrder, wanted: VolumeOrder, pool: PoolRef, to: PoolRef, progress: ProgressListener
    ) -> None:
        uid, source, target = wanted.uid, self._whereabouts.movable(pool), self._whereabouts.movable(to)
        with self._reservations.hold((uid,), f"it is being moved to the pool {to.name}", resumable=True):
            traits = await source.traits(uid)
            if traits.pinned:
                raise has_snapshots()
            if traits.encrypted != (wanted.secret is not None):
                raise StorageError(
                    "The volume is encrypted and its order says otherwise, or the other way round: it is not moved.",
                    reason="EncryptionMismatch",
                    retryable=False,
                )
            passphrase = await self._passphrases.read(wanted.secret) if wanted.secret is not None else None
            mark = (self._host, wanted.epoch) if to.shared else None
            into = self._pools.driver(to)
            one = _Move(uid, name_of_move(order), traits, source, target, into, to.name, passphrase, mark)
            if (user := await self._tidying.user(uid)) is not None:
                await self._beside(user, one, self._pools.driver(pool), progress)
            else:
                await self._apart(one, self._pools.driver(pool), progress)

    async def _beside(self, user: Domain, one: _Move, source: StorageDriver, progress: ProgressListener) -> None:
        """The emulator copies and switches; the record learns of it before the guest goes on."""
        machine = user.marks.uid
        arrival = await self._begun(machine, one, source)
        disk = DomainDisk("", arrival.source, arrival.format, volume=one.uid, passphrase=one.passphrase)
        pace = Pace(progress)
        pace.stage("Copying", 0, one.traits.virtual_size)
        try:
            await self._hypervisor.copy_disk(machine, disk, pace.at)
            await self._reserve(machine, one)
            with self._reservations.halting(machine):
                await self._hypervisor.switch_disk(machine, one.uid, arrival.source.path, one.settle)
        except HypervisorError as error:
            if error.reason in _GIVEN_UP:
                await self._explain(one, error)
            if error.reason == "DiskNotAttached" and await self._tidying.user(one.uid) is None:
                # One that is started again at once is let go first, and its volume is moved beside it again.
                raise StorageError("The machine that has the volume has ended meanwhile.", reason=BUSY) from error
            raise

    async def _reserve(self, machine: str, one: _Move) -> None:
        """A thick volume has its space before the guest goes over to it."""
        try:
            await one.target.reserve_arrival(one.uid, one.traits)
        except StorageError:
            await self._hypervisor.end_copy(machine, one.uid)
            with suppress(StorageError):  # the next attempt begins with it
                await one.target.abandon_arrival(one.uid)
            raise

    async def _begun(self, machine: str, one: _Move, source: StorageDriver) -> Arrival:
        """What the emulator is to copy to, or copies to already."""
        domain, arrival = await self._hypervisor.domain(machine), await one.target.arrival(one.uid)
        disks = domain.disks if domain is not None else ()
        under_way = next((disk.copied_to for disk in disks if disk.volume == one.uid), None)
        if arrival is not None and arrival.source.path == under_way:
            return arrival
        if under_way is not None:
            await self._hypervisor.end_copy(machine, one.uid)
        return await self._begin(one, source, live=True)

    async def _explain(self, one: _Move, error: HypervisorError) -> None:
        """The emulator has given up: leave nothing in the target. Raises `StorageError` when that is full."""
        room = await self._room(one)
        with suppress(StorageError):  # the next attempt begins with it
            await one.target.abandon_arrival(one.uid)
        if error.reason != "CacheUnsupported" and room < _FULL:
            raise one.full() from error

    async def _apart(self, one: _Move, source: StorageDriver, progress: ProgressListener) -> None:
        """Nobody uses the volume: it is copied in the cage."""
        await self._begin(one, source)

        async def use(content: Content) -> None:
            await one.target.fill_arrival(one.uid, one.traits, content, progress, one.passphrase)

        try:
            await one.source.send_volume(one.uid, use)
            await one.settle()
        except StorageError:
            with suppress(StorageError):  # the next attempt begins with it
                await one.target.abandon_arrival(one.uid)
            raise

    async def _begin(self, one: _Move, source: StorageDriver, *, live: bool = False) -> Arrival:
        """Make what it is copied to; what an earlier attempt left takes no room then. Raises `StorageError`."""
        await one.target.abandon_arrival(one.uid)
        volume = await source.volume(one.uid)
        needed = one.traits.virtual_size if one.traits.thick else (volume.used if volume is not None else 0)
        if await self._room(one) < needed:
            raise one.full()
        if one.mark is not None:
            await one.into.claim_volume(one.uid, *one.mark)
        return await one.target.begin_arrival(one.uid, one.traits, one.passphrase, live=live)

    async def _room(self, one: _Move) -> int:
        usage = await one.into.prepare()
        return usage.capacity - usage.used
