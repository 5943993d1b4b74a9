"""Hands volumes of shared pools from host to host: whoever has one lets go of it before another is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from kumulus.api.base import FORCE_DETACH, ConditionStatus
from kumulus.api.fabric import HostCondition, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import pool_order_name
from kumulus.api.storage import Attachment, Volume
from kumulus.kube.client import Raw
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Requeue, Result, Wait
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.status import amend, drop_finalizer
from kumulus_controllers.storage import passphrase
from kumulus_controllers.storage.image_orders import heard
from kumulus_controllers.storage.snapshot_orders import SnapshotOrders
from kumulus_controllers.storage.volume_keeper import HANDING_OVER, handing_over, kept_back, snapshots_left
from kumulus_controllers.storage.volume_orders import VolumeOrders
from kumulus_controllers.storage.volume_plan import Lack, Place, Scope
from kumulus_controllers.storage.volumes import Volumes

log = structlog.get_logger(__name__)

Report = Callable[[Scope, Place | None, Attachment | None, Lack | None], Awaitable[Result]]
"""Writes the status of a volume."""


class Handover:
    """Takes volumes from hosts that are not to have them."""

    def __init__(
        self, services: Services, fleet: Fleet, volumes: Volumes, snapshots: SnapshotOrders, report: Report
    ) -> None:
        self._services = services
        self._fleet = fleet
        self._volumes = volumes
        self._snapshots = snapshots
        self._orders = VolumeOrders(services)
        self._report = report

    async def run(self, scope: Scope, place: Place, attached: Attachment | None) -> Result | None:
        """Have every other host let go of the volume; None once none of them has it, as seen live.

        The order that an agent has let go of is gone, and it says `retain`: the data stays. Who may write is on record
        first, so that nobody else gets the volume meanwhile.
        """
        volume, client = scope.volume, self._services.client
        here = Place(place.pool, volume.status.host or place.host, volume.status.epoch)
        lost = self._lost(here.host)
        if (busy := kept_back(scope, place.host, heard=heard(self._fleet, here.host), lost=lost)) is not None:
            return await self._report(scope, here, attached, busy)
        said = volume.metadata.annotations.get(FORCE_DETACH) == "true"
        hosts = {host_of(order) for order in scope.strays} | {volume.status.host or place.host}
        for name in sorted(hosts - {place.host}):
            order = self._orders.find(volume, name)
            order = order or await self._orders.live(volume, name)
            if order is None:
                continue
            lost = self._lost(name)
            answers, forced = heard(self._fleet, name) and not lost, said or lost
            await self._report(scope, here, attached, handing_over(scope, order, place.host, heard=answers))
            if not order.deleting:
                await self._pass_on(order, place)
                await self._orders.delete(await self._orders.retain(order, True))
            elif forced and not answers and await self._snapshots.abandoned(volume.uid, name):
                log.warning("a volume is taken from a host that does not answer", volume=volume.name, host=name)
                if said:
                    await self._forced(
                        volume
                    )  # first: left there by a crash it would take the volume from the next host
                await drop_finalizer(client, self._volumes.orders, order)
            return Wait(HANDING_OVER, 10.0)
        for name in self._snapshots.elsewhere(volume.uid, place.host):
            lost = self._lost(name)
            answers, forced = heard(self._fleet, name) and not lost, said or lost
            if forced and not answers and await self._snapshots.abandoned(volume.uid, name):
                if said:
                    await self._forced(volume)
                return Requeue(0.1)
            return await self._report(scope, here, attached, snapshots_left(scope, name, place.host, heard=answers))
        # What it was made from is asked for only while no order knows it: with one that has just gone, look again.
        if said:
            await self._forced(volume)
        seen = [order for order in (scope.order, *scope.strays) if order is not None and host_of(order) != place.host]
        return Requeue(0.1) if seen else None

    def _lost(self, name: str) -> bool:
        """Whether the host is fenced, and has not come back."""
        host = self._volumes.hosts.get(name)
        ready = host.status.condition(HostCondition.READY) if host is not None else None
        return host is not None and host.fenced and ready is not None and ready.status is ConditionStatus.UNKNOWN

    async def _pass_on(self, order: WorkOrder, place: Place) -> None:
        """Bring the passphrase to the next host, as long as the one that has it has it: the tenant's may be another by now."""
        owner = self._volumes.orders.get(pool_order_name(place.pool.uid), host_namespace(place.host))
        wanted = order.spec.disk.volume if order.spec.disk is not None else None
        if owner is not None and wanted is not None and wanted.secret is not None:
            await passphrase.pass_on(self._services.client, wanted.secret, order.namespace or "", owner)

    async def _forced(self, volume: Volume) -> None:
        """Take the annotation off: it was meant for one host, and must not take the volume from the next one."""
        change: Raw = {"metadata": {"annotations": {FORCE_DETACH: None}}}
        await amend(self._services.client, self._volumes.store, volume, lambda current: change)
