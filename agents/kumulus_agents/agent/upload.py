"""Uploads: performs work orders of type Upload, each of which lets somebody bring an image for a while."""

from __future__ import annotations

from collections.abc import Callable

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.image_order import UploadOrder
from kumulus.runtime.clock import Clock, parse_time
from kumulus.runtime.result import Done, Requeue, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.whole import TakesUploads
from kumulus_agents.transfer.transfer import Transfer
from kumulus_agents.transfer.uploads import Ticket

RETRY_SECONDS = 5.0


class UploadOrders:
    """Who may upload what to this host."""

    def __init__(
        self, orders: Orders, pools: Pools, transfer: Transfer | None, clock: Clock, arrived: Callable[[str], None]
    ) -> None:
        """`arrived` is told the uid of each image of which everything has arrived."""
        self._orders = orders
        self._pools = pools
        self._transfer = transfer
        self._clock = clock
        self._arrived = arrived

    def forget(self, name: str) -> None:
        """The order of that name is gone: its token is no longer good."""
        if self._transfer is not None:
            self._transfer.uploads.dismiss(name)

    async def perform(self, order: WorkOrder) -> Result:
        """Let them in while it is time. Raises `KubeError`."""
        wanted = order.spec.upload
        if order.deleting or wanted is None:
            self.forget(order.name)
            await self._orders.release(order)
            return Done()
        left = (parse_time(wanted.expires_at) - self._clock.now()).total_seconds()
        try:
            if left <= 0:
                self.forget(order.name)
                raise StorageError("The time of this upload is over: ask for a new one.", reason="UploadExpired")
            self._admit(order.name, wanted)
        except StorageError as error:
            await self._orders.report(
                order,
                WorkOrderStatus(
                    observed_generation=order.metadata.generation,
                    state=WorkState.FAILED,
                    reason=error.reason,
                    message=str(error)[:4000],
                ),
            )
            return Requeue(RETRY_SECONDS) if left > 0 else Done()
        await self._orders.report(
            order, WorkOrderStatus(observed_generation=order.metadata.generation, state=WorkState.READY)
        )
        return Requeue(left + 1)

    def _admit(self, name: str, wanted: UploadOrder) -> None:
        if self._transfer is None or self._transfer.upload_port is None or not self._transfer.certified:
            raise StorageError("This host takes no uploads: it has no port or no certificate.", reason="NoUploads")
        for keeper in self._orders.of_image(wanted.image):
            disk = keeper.spec.disk
            image = disk.import_image if disk is not None else None
            if disk is None or image is None or image.upload is None or image.image.sha256 is None or keeper.deleting:
                continue
            driver = self._pools.driver(disk.pool)
            if not isinstance(driver, TakesUploads):
                raise StorageError(f"Nothing can be uploaded into the pool {disk.pool.name}.", reason="NoUploads")
            ticket = Ticket(
                image=wanted.image,
                sha256=image.image.sha256,
                token_sha256=wanted.token_sha256,
                expires_at=parse_time(wanted.expires_at),
                driver=driver,
                done=lambda: self._arrived(wanted.image),
            )
            self._transfer.uploads.admit(name, ticket)
            return
        raise StorageError("This host does not wait for that image.", reason="ImageNotOrdered")
