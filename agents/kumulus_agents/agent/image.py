"""Images in pools: what Disk orders with `importImage` ask for. Imports run beside other work, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kumulus.api.host import DiskFacts, ImageImport, PoolRef, WorkOrder, WorkOrderStatus, WorkState
from kumulus.kube.errors import KubeError
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.storage.protocol import (
    ImageSource,
    Login,
    ProgressListener,
    RegistrySource,
    StorageDriver,
    StorageError,
    StoredImage,
)

log = structlog.get_logger(__name__)

IMPORTS = 2
"""Imports at once."""


class Images:
    """The images in this host's pools."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        work: DiskWork,
        secrets: Secrets,
        *,
        wake: Callable[[str], None],
        arrived: Callable[[str], None],
    ) -> None:
        """`wake` has an order looked at soon, by name; `arrived` is told the uid of each image that is whole."""
        self._orders = orders
        self._pools = pools
        self._work = work
        self._secrets = secrets
        self._wake = wake
        self._arrived = arrived
        self._slots = asyncio.Semaphore(IMPORTS)
        self._in_use: set[str] = set()

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._in_use.discard(name)

    def disks_removed(self) -> None:
        """Disks or volumes are gone: an image that was in use may be free now."""
        for name in self._in_use:
            self._wake(name)

    async def perform(self, order: WorkOrder, pool: PoolRef, wanted: ImageImport) -> Result:
        """One pass over an image. Raises `KubeError`."""
        try:
            driver = self._pools.driver(pool)
            if order.deleting:
                await self._work.cancel(order.name)
                await driver.remove_image(wanted.image.uid)
                await self._orders.release(order)
                return Done()
            return await self._ensure(order, pool, wanted, driver)
        except StorageError as error:
            if order.deleting and error.reason == "ImageInUse":
                self._in_use.add(order.name)
                held = self._work.in_use(order, error.reason, str(error))
            else:
                held = self._work.hold(order, error)
            return await self._work.report_hold(order, held, DiskFacts())

    async def _ensure(self, order: WorkOrder, pool: PoolRef, wanted: ImageImport, driver: StorageDriver) -> Result:
        if self._work.outdated(order):
            await self._work.cancel(order.name)
        if (result := await self._work.under_way(order, DiskFacts())) is not None:
            return result
        image = await driver.image(wanted.image.uid)
        if image is not None:
            pinned = wanted.oci.digest if wanted.oci is not None else None
            if pinned is not None and image.digest != pinned:
                raise StorageError(
                    f"The pool has this image as {image.digest}, not {pinned}. Delete the machines made from it here;"
                    " then remove the image and make a new one.",
                    reason="ImageConflict",
                    retryable=False,
                )
            self._work.settled(order.name)
            await self._orders.report(order, _ready(order, image))
            return Done()
        log.info("import begins", order=order.name, image=order.spec.for_.name, pool=pool.name)
        return self._work.begin(order, lambda progress: self._import(order, wanted, driver, progress))

    async def _import(
        self, order: WorkOrder, wanted: ImageImport, driver: StorageDriver, progress: ProgressListener
    ) -> None:
        async with self._slots:
            await driver.prepare()
            await driver.import_image(wanted.image, await self._source(wanted), progress)
        log.info("import done", order=order.name, image=order.spec.for_.name)
        self._arrived(wanted.image.uid)

    async def _source(self, wanted: ImageImport) -> ImageSource:
        """Where the image comes from, with the login to it. Raises `StorageError`."""
        if wanted.http is not None:
            return wanted.http
        if wanted.oci is None:
            raise StorageError(
                "The order names no source that this agent knows. Update the agent.",
                reason="SourceUnknown",
                retryable=False,
            )
        if wanted.oci.secret is None:
            return RegistrySource(wanted.oci)
        try:
            login = await self._secrets.read(wanted.oci.secret, "the login to the registry")
            return RegistrySource(wanted.oci, Login(login["username"].decode(), login["password"].decode()))
        except Missing as missing:
            raise StorageError(f"{missing}.", reason=missing.reason) from None
        except (KeyError, UnicodeDecodeError):
            raise StorageError(
                "The Secret for the registry has no user name and password in it.", reason="SecretUnreadable"
            ) from None
        except KubeError as error:
            raise StorageError(
                f"The login to the registry could not be read: {error}.", reason="ApiUnavailable"
            ) from error


def _ready(order: WorkOrder, image: StoredImage) -> WorkOrderStatus:
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.READY,
        disk=DiskFacts(
            sha256=image.sha256,
            digest=image.digest,
            format=image.source_format,
            virtual_size=image.virtual_size,
            size=image.size,
        ),
    )
