"""Images in pools: performs work orders of type Disk. Imports run beside other work, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from kumulus.api.host import DiskFacts, DiskOrder, WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.storage import Progress
from kumulus.runtime.clock import Clock
from kumulus.runtime.result import Done, Requeue, Result, Wait
from kumulus_agents.agent import hold
from kumulus_agents.agent.hold import Hold
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import ImportProgress, StorageDriver, StorageError, StoredImage

log = structlog.get_logger(__name__)

IMPORTS = 2
"""Imports at once."""
REPORT_EVERY = 2.0
"""Seconds between two reports of progress."""
QUIET = 1.0
"""An import that takes less, in seconds, is reported only when it is done."""
RETRY_FIRST = 10.0
IN_USE_EVERY = 10.0


@dataclass(slots=True)
class _Import:
    """An import under way."""

    generation: int
    task: asyncio.Task[None]
    began: float
    progress: ImportProgress | None = None
    reported_at: float = field(default=float("-inf"))


class Disks:
    """The images in this host's pools."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        *,
        wake: Callable[[str], None],
        arrived: Callable[[str], None],
    ) -> None:
        """`wake` has an order looked at soon, by name; `arrived` is told the uid of each image that is whole."""
        self._orders = orders
        self._pools = pools
        self._clock = clock
        self._tasks = tasks
        self._wake = wake
        self._arrived = arrived
        self._slots = asyncio.Semaphore(IMPORTS)
        self._imports: dict[str, _Import] = {}
        self._holds: dict[str, Hold] = {}
        self._in_use: set[str] = set()

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        running = self._imports.pop(name, None)
        if running is not None:
            running.task.cancel()
        self._holds.pop(name, None)
        self._in_use.discard(name)

    def machine_removed(self) -> None:
        """A machine's disks are gone: an image that was in use may be free now."""
        for name in self._in_use:
            self._wake(name)

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over an image. Raises `KubeError`."""
        disk = order.spec.disk
        if disk is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        try:
            driver = self._pools.driver(disk.pool)
            if order.deleting:
                return await self._remove(order, disk, driver)
            return await self._ensure(order, disk, driver)
        except StorageError as error:
            return await self._failed(order, error)

    async def _ensure(self, order: WorkOrder, disk: DiskOrder, driver: StorageDriver) -> Result:
        name, now = order.name, self._clock.monotonic()
        running = self._imports.get(name)
        if running is not None and running.generation != order.metadata.generation:
            await self._cancel(name)
            running = None
        if running is not None:
            return await self._report_progress(order, running)
        held = hold.current(self._holds.get(name), order)
        if held is not None and now < held.until:
            return await self._report_hold(order, held)
        image = await driver.image(disk.import_image.image.uid)
        if image is not None:
            self._holds.pop(name, None)
            await self._orders.report(order, _ready(order, image))
            return Done()
        task = self._tasks.create_task(self._import(order, disk, driver), name=f"import {name}")
        self._imports[name] = _Import(order.metadata.generation, task, began=now)
        return Requeue(QUIET)

    async def _import(self, order: WorkOrder, disk: DiskOrder, driver: StorageDriver) -> None:
        """Import one image; how it went is left in `_holds`. Never fails: it would take the agent down."""
        name, image = order.name, disk.import_image.image
        log.info("import begins", order=name, image=order.spec.for_.name, pool=disk.pool.name)
        try:
            async with self._slots:
                await driver.prepare()
                await driver.import_image(
                    image, disk.import_image.http, lambda progress: self._progress(name, progress)
                )
        except StorageError as error:
            self._fail(order, error)
        except Exception as error:
            log.exception("import failed", order=name)
            self._fail(
                order,
                StorageError(f"the agent failed with {type(error).__name__}; its log has more", reason="AgentError"),
            )
        else:
            log.info("import done", order=name, image=order.spec.for_.name, pool=disk.pool.name)
            self._holds.pop(name, None)
            self._arrived(image.uid)
        finally:
            running = self._imports.get(name)
            if running is not None and running.task is asyncio.current_task():
                del self._imports[name]
        self._wake(name)

    def _progress(self, name: str, progress: ImportProgress) -> None:
        running = self._imports.get(name)
        if running is not None:
            running.progress = progress

    async def _report_progress(self, order: WorkOrder, running: _Import) -> Result:
        now = self._clock.monotonic()
        due = max(running.began + QUIET, running.reported_at + REPORT_EVERY)
        if now < due:
            return Requeue(due - now)
        running.reported_at = now
        progress = running.progress
        facts = DiskFacts()
        if progress is not None:
            facts = DiskFacts(progress=Progress(bytes=progress.bytes, total=progress.total, rate=progress.rate))
        await self._orders.report(
            order,
            WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.WORKING,
                reason=progress.stage if progress is not None else "Queued",
                disk=facts,
            ),
        )
        return Requeue(REPORT_EVERY)

    async def _report_hold(self, order: WorkOrder, held: Hold) -> Result:
        await self._orders.report(
            order,
            WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=held.state,
                reason=held.reason,
                message=held.message,
            ),
        )
        return Wait(held.reason, max(held.until - self._clock.monotonic(), 0.0))

    async def _remove(self, order: WorkOrder, disk: DiskOrder, driver: StorageDriver) -> Result:
        await self._cancel(order.name)
        await driver.remove_image(disk.import_image.image.uid)
        await self._orders.release(order)
        return Done()

    async def _cancel(self, name: str) -> None:
        running = self._imports.pop(name, None)
        if running is not None:
            running.task.cancel()
            await asyncio.wait([running.task])

    async def _failed(self, order: WorkOrder, error: StorageError) -> Result:
        if order.deleting and error.reason == "ImageInUse":
            self._in_use.add(order.name)
            held = hold.waiting(
                error.reason, str(error), order=order, before=None, now=self._clock.monotonic() + IN_USE_EVERY
            )
        else:
            held = self._fail(order, error)
        return await self._report_hold(order, held)

    def _fail(self, order: WorkOrder, error: StorageError) -> Hold:
        log.warning("image failed", order=order.name, reason=error.reason, error=str(error))
        held = self._holds[order.name] = hold.failed(
            error.reason,
            str(error),
            retryable=error.retryable,
            order=order,
            before=self._holds.get(order.name),
            now=self._clock.monotonic(),
            first=RETRY_FIRST,
        )
        return held


def _ready(order: WorkOrder, image: StoredImage) -> WorkOrderStatus:
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.READY,
        disk=DiskFacts(
            sha256=image.sha256, format=image.source_format, virtual_size=image.virtual_size, size=image.size
        ),
    )
