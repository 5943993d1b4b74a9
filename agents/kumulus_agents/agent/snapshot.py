"""Snapshots: performs work orders of type Snapshot. One keeps volumes as they are at one instant, until it goes.

First every volume gets a new layer, then the machine, if one is on, goes over to all of them at once, then
each pool notes that the snapshot was taken. Whoever is killed on the way begins anew, unless a pool has
noted it: then all volumes had their layers, and the others note it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from kumulus.api.host import (
    DiskFacts,
    SnapshotFacts,
    SnapshotItem,
    SnapshotOrder,
    SnapshotSize,
    WorkOrder,
    WorkOrderStatus,
    WorkState,
)
from kumulus.api.snapshots import Indication
from kumulus.runtime.clock import Clock, rfc3339
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.pool import steady
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.tidying import Tidying
from kumulus_agents.hypervisor.protocol import Domain, DomainState, Hypervisor, HypervisorError, Quiesce
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError, StoredSnapshot
from kumulus_agents.storage.source import LayerFile

log = structlog.get_logger(__name__)


class Snapshots:
    """The snapshots on this host."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        hypervisor: Hypervisor,
        work: DiskWork,
        reservations: Reservations,
        tidying: Tidying,
        clock: Clock,
        *,
        arrived: Callable[[str], None],
        removed: Callable[[str], None],
    ) -> None:
        """`arrived` is told the uid of each snapshot that was taken, `removed` that of each volume that has one less."""
        self._orders = orders
        self._pools = pools
        self._hypervisor = hypervisor
        self._work = work
        self._reservations = reservations
        self._tidying = tidying
        self._clock = clock
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
        with self._reservations.hold(volumes, "a snapshot of it is being taken"):
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
        try:
            layers = await self._begin(wanted, domain)
            if domain is None:
                return rfc3339(self._clock.now()), ()
            quiesce = Quiesce(wanted.quiesce, wanted.quiesce_seconds)
            indications = await self._hypervisor.snapshot_disks(domain.marks.uid, layers, quiesce)
        except (StorageError, HypervisorError):
            with suppress(StorageError, HypervisorError):  # the next attempt begins with it
                await self._take_back(wanted)
            raise
        return rfc3339(self._clock.now()), indications

    async def _begin(self, wanted: SnapshotOrder, domain: Domain | None) -> dict[str, LayerFile]:
        """New layers on all the volumes; those that the machine has to go over to."""
        written = _written(domain)
        layers = {}
        for item in wanted.items:
            driver = self._driver(item)
            if item.volume in written:
                await driver.adopt(item.volume, written[item.volume])
            made = await driver.begin_snapshot(item.volume, item.snapshot, live=item.volume in written)
            if item.volume in written:
                layers[item.volume] = LayerFile(made.path, made.format)
        return layers

    async def _take_back(self, wanted: SnapshotOrder) -> None:
        """It did not come to be, or nobody knows: leave nothing of it."""
        for item in wanted.items:
            driver = self._driver(item)
            await self._tidying.adopt(driver, item.volume)
            await driver.forget_snapshot(item.volume, item.snapshot)
            await self._tidying.tidy(driver, item.volume)

    async def _machine(self, wanted: SnapshotOrder) -> Domain | None:
        """The machine that is on and has any of the volumes."""
        volumes = {item.volume for item in wanted.items}
        domains = await self._hypervisor.domains()
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
        if order.name not in self._gone:
            return self._work.begin(order, lambda progress: self._give_up(order, wanted, progress))
        await self._orders.release(order)
        log.info("snapshot is gone", order=order.name, snapshot=order.spec.for_.name)
        return Done()

    async def _give_up(self, order: WorkOrder, wanted: SnapshotOrder, progress: ProgressListener) -> None:
        for item in wanted.items:
            driver = self._driver(item)
            with self._reservations.hold((item.volume,), "a snapshot of it is being removed"):
                if await driver.volume(item.volume) is not None:
                    await self._tidying.adopt(driver, item.volume)
                await driver.forget_snapshot(item.volume, item.snapshot)
                await self._tidying.tidy(driver, item.volume, progress)
            self._removed(item.volume)
        self._gone.add(order.name)

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
