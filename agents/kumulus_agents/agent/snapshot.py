"""Snapshots: performs work orders of type Snapshot. One keeps volumes as they are at one instant, until it goes.

First every volume gets a new layer, then the machine, if one is on, goes over to all of them at once, then
each pool notes that the snapshot was taken. Whoever is killed on the way begins anew, unless a pool has
noted it: then all volumes had their layers, and the others note it too.

Some pools keep by themselves what a volume has (`storage.instants`): for those the machine is halted meanwhile,
and goes over to the layers of its other volumes before it goes on, so that the instant is one.

In a pool that hosts share only the host that sees to a volume takes and removes snapshots of it: it is the one that knows
who writes, and the only one that merges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.snapshot_order import SnapshotFacts, SnapshotItem, SnapshotOrder, SnapshotSize
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import DiskFacts
from kumulus.runtime.clock import Clock, rfc3339
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.passphrases import Passphrases, encrypting
from kumulus_agents.agent.pool import steady
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.tidying import Tidying, suspended
from kumulus_agents.agent.whereabouts import Whereabouts
from kumulus_agents.hypervisor.domain import Domain, DomainState, Quiesce, Still
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.instants import Instants
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError, StoredSnapshot
from kumulus_agents.storage.source import LayerFile

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the machine has to do for a snapshot that was begun."""

    layers: Mapping[str, LayerFile]
    """What it has to go over to, by volume."""
    still: Still | None
    """What it has to be halted for."""


class Snapshots:
    """The snapshots on this host."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        hypervisor: Hypervisor,
        passphrases: Passphrases,
        work: DiskWork,
        reservations: Reservations,
        tidying: Tidying,
        whereabouts: Whereabouts,
        clock: Clock,
        *,
        sees_to: Callable[[str], bool],
        arrived: Callable[[str], None],
        removed: Callable[[str], None],
    ) -> None:
        """`sees_to` says whether this host sees to a volume of a pool that hosts share; `arrived` is told the uid of each snapshot that was taken, `removed` that of each volume that has one less."""
        self._orders = orders
        self._pools = pools
        self._hypervisor = hypervisor
        self._passphrases = passphrases
        self._work = work
        self._reservations = reservations
        self._tidying = tidying
        self._whereabouts = whereabouts
        self._clock = clock
        self._sees_to = sees_to
        self._arrived = arrived
        self._removed = removed
        self._gone: set[str] = set()
        """Orders whose snapshots this process has removed."""

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._work.forget(name)
        self._gone.discard(name)

    def freed(self, volume: str) -> None:
        """A volume that may have been waited for is free."""
        for order in self._orders.snapshots_of(volume):
            self._work.wake_waiting(order.name)

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a snapshot. Raises `KubeError`."""
        wanted = order.spec.snapshot
        if wanted is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        if (result := await self._work.under_way(order, DiskFacts())) is not None:
            return result
        try:
            return await (self._remove(order, wanted) if order.deleting else self._ensure(order, wanted))
        except (StorageError, HypervisorError) as error:
            return await self._work.report_hold(order, self._work.hold(order, error), DiskFacts())

    async def _ensure(self, order: WorkOrder, wanted: SnapshotOrder) -> Result:
        found = await self._found(wanted)
        whole = [one for one in found if one is not None and one.taken_at is not None]
        if len(whole) == len(wanted.items):
            self._work.settled(order.name)
            await self._orders.report(order, _ready(order, wanted, whole))
            return Done()
        known = order.status.snapshot
        if wanted.taken or (known is not None and known.taken_at is not None):
            raise _lost()
        return self._work.begin(order, lambda _: self._take(order, wanted))

    async def _take(self, order: WorkOrder, wanted: SnapshotOrder) -> None:
        volumes = [item.volume for item in wanted.items]
        if any(self._whereabouts.moving(volume) for volume in volumes):
            raise StorageError("A volume of it is to be moved to another pool. This goes on then.", reason="VolumeBusy")
        with self._reservations.hold(volumes, "a snapshot of it is being taken"):
            self._refuse_others(wanted.items)
            noted = [one for one in await self._found(wanted) if one is not None and one.taken_at is not None]
            if noted:
                taken_at, indications = noted[0].taken_at or "", noted[0].indications
            else:
                taken_at, indications = await self._freeze(wanted)
            for item in wanted.items:
                await self._driver(item).confirm_snapshot(item.volume, item.snapshot, taken_at, indications)
        log.info("snapshot taken", order=order.name, snapshot=order.spec.for_.name, indications=indications)
        for item in wanted.items:
            self._arrived(item.snapshot)

    async def _freeze(self, wanted: SnapshotOrder) -> tuple[str, tuple[Indication, ...]]:
        """Put the layers on, and have the machine that is on go over to them. When it happened, and how."""
        domain = await self._machine(wanted)
        passphrases = {
            item.volume: await self._passphrases.read(item.secret) for item in wanted.items if item.secret is not None
        }
        try:
            begun = await self._begin(wanted, domain, passphrases)
            if domain is None:
                return rfc3339(self._clock.now()), ()
            machine, quiesce = domain.marks.uid, Quiesce(wanted.quiesce, wanted.quiesce_seconds)
            with self._reservations.halting(machine) if begun.still is not None else nullcontext():
                indications = await self._hypervisor.snapshot_disks(
                    machine, begun.layers, quiesce, passphrases, begun.still
                )
        except (StorageError, HypervisorError):
            with suppress(StorageError, HypervisorError):  # the next attempt begins with it
                await self._take_back(wanted)
            raise
        return rfc3339(self._clock.now()), indications

    async def _begin(
        self, wanted: SnapshotOrder, domain: Domain | None, passphrases: Mapping[str, Passphrase]
    ) -> _Begun:
        """New layers on all the volumes, or all ready to keep what they have; what that asks of the machine."""
        written = _written(domain)
        layers = {}
        keeping: list[tuple[Instants, SnapshotItem]] = []
        for item in wanted.items:
            driver, passphrase = self._driver(item), passphrases.get(item.volume)
            live = item.volume in written
            if live:
                await driver.adopt(item.volume, written[item.volume])
            if passphrase is None:
                made = await driver.begin_snapshot(item.volume, item.snapshot, live=live)
            else:
                made = await encrypting(driver).begin_encrypted_snapshot(
                    item.volume, item.snapshot, passphrase, live=live
                )
            if live and isinstance(driver, Instants):
                keeping.append((driver, item))
            elif live:
                layers[item.volume] = LayerFile(made.path, made.format, encrypted=made.encrypted)
        return _Begun(layers, _still(keeping))

    async def _take_back(self, wanted: SnapshotOrder) -> None:
        """It did not come to be, or nobody knows: leave nothing of it."""
        for item in wanted.items:
            driver = self._driver(item)
            await self._tidying.adopt(driver, item.volume)
            await driver.forget_snapshot(item.volume, item.snapshot)
            await self._tidying.tidy(driver, item.volume, item.secret)

    async def _machine(self, wanted: SnapshotOrder) -> Domain | None:
        """The machine that is on and has any of the volumes."""
        volumes = {item.volume for item in wanted.items}
        domains = await self._hypervisor.domains()
        for one in domains:
            if one.saved is not None and volumes & one.volumes:
                raise suspended(one.marks.name)
        found = [one for one in domains if one.state is not DomainState.STOPPED and volumes & one.volumes]
        if len(found) > 1:
            names = ", ".join(sorted(one.marks.name for one in found))
            raise StorageError(
                f"Several machines have the volumes ({names}): no instant is the same in all. Take one of each machine.",
                reason="SeveralMachines",
                retryable=False,
            )
        return found[0] if found else None

    async def _remove(self, order: WorkOrder, wanted: SnapshotOrder) -> Result:
        if wanted.retain:
            # What was under way has ended. Another host has what is in the pool, or begins it anew.
            await self._orders.release(order)
            log.info("snapshot is left to another host", order=order.name, snapshot=order.spec.for_.name)
            return Done()
        if order.name not in self._gone:
            return self._work.begin(order, lambda progress: self._give_up(order, wanted, progress))
        await self._orders.release(order)
        # One of the same name may come at once, and is not done with.
        self._gone.discard(order.name)
        self._work.settled(order.name)
        log.info("snapshot is gone", order=order.name, snapshot=order.spec.for_.name)
        return Done()

    async def _give_up(self, order: WorkOrder, wanted: SnapshotOrder, progress: ProgressListener) -> None:
        for item in wanted.items:
            driver = self._driver(item)
            with self._reservations.hold((item.volume,), "a snapshot of it is being removed"):
                self._refuse_others((item,))
                if await driver.volume(item.volume) is not None:
                    await self._tidying.adopt(driver, item.volume)
                await driver.forget_snapshot(item.volume, item.snapshot)
                await self._tidying.tidy(driver, item.volume, item.secret, progress)
            self._removed(item.volume)
        self._gone.add(order.name)

    def _refuse_others(self, items: Sequence[SnapshotItem]) -> None:
        """Raise `StorageError` unless this host sees to the volumes. Who has them reserved has them until that ends."""
        if any(item.pool.shared and not self._sees_to(item.volume) for item in items):
            raise StorageError(
                "This host does not see to the volume: it goes to another one, or is about to come. This goes on where the"
                " volume is.",
                reason="VolumeNotReady",
            )

    async def _found(self, wanted: SnapshotOrder) -> list[StoredSnapshot | None]:
        return list(
            await asyncio.gather(*(self._driver(item).snapshot(item.volume, item.snapshot) for item in wanted.items))
        )

    def _driver(self, item: SnapshotItem) -> StorageDriver:
        return self._pools.driver(item.pool)


def _written(domain: Domain | None) -> dict[str, str]:
    """What a machine writes to, by volume."""
    disks = domain.disks if domain is not None else ()
    return {disk.volume: disk.path for disk in disks if disk.volume is not None}


def _still(keeping: Sequence[tuple[Instants, SnapshotItem]]) -> Still | None:
    """All of them are kept at the same time; None when there are none."""

    async def keep() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for driver, item in keeping:
                    group.create_task(driver.keep_instant(item.volume, item.snapshot))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were given up

    if not keeping:
        return None
    volumes = frozenset(item.volume for _, item in keeping)
    return Still(volumes, keep, max(driver.instant_seconds for driver, _ in keeping))


def _lost() -> StorageError:
    return StorageError(
        "The snapshot was taken and is not in the pool any more. Bring its files or the pool's file system back, or delete"
        " the snapshot.",
        reason="SnapshotLost",
        retryable=False,
    )


def _ready(order: WorkOrder, wanted: SnapshotOrder, found: Sequence[StoredSnapshot]) -> WorkOrderStatus:
    known = {size.snapshot: size.size for size in order.status.snapshot.items} if order.status.snapshot else {}
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.READY,
        snapshot=SnapshotFacts(
            taken_at=found[0].taken_at,
            indications=found[0].indications,
            items=tuple(
                SnapshotSize(
                    snapshot=item.snapshot,
                    virtual_size=stored.virtual_size,
                    size=steady(stored.used, known.get(item.snapshot)),
                )
                for item, stored in zip(wanted.items, found, strict=True)
            ),
        ),
    )
