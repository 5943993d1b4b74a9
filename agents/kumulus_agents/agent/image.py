"""Images in pools: what Disk orders with `importImage` ask for. Imports run beside other work, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.image_order import MEASURING, WAITING_FOR_UPLOAD, DroppedPeer, ImageCopy, ImageImport
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import DiskFacts
from kumulus.kube.errors import KubeError
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import (
    ImageSource,
    Login,
    ProgressListener,
    RegistrySource,
    StorageDriver,
    StorageError,
    StoredImage,
    VolumeContent,
    WebSource,
)
from kumulus_agents.storage.whole import TakesImages, TakesUploads, WholeImages
from kumulus_agents.transfer.fetch import NoPeer, PeerFetcher
from kumulus_agents.transfer.transfer import Transfer

log = structlog.get_logger(__name__)

IMPORTS = 2
"""Imports at once."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How an image came into a pool."""

    host: str | None
    dropped: tuple[DroppedPeer, ...]


async def given_image(orders: Orders, pools: Pools, uid: str, sha256: str) -> int | None:
    """A descriptor of the whole image with that digest in any pool of this host, which the caller closes."""
    for order in orders.of_image(uid):
        if order.deleting or order.spec.disk is None:
            continue
        try:
            driver = pools.driver(order.spec.disk.pool)
            if isinstance(driver, WholeImages) and (fd := await driver.open_image(uid, sha256)) is not None:
                return fd
        except StorageError as error:
            log.warning("image cannot be given", image=uid, reason=error.reason, error=str(error))
    return None


class Images:
    """The images in this host's pools."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        hypervisor: Hypervisor,
        work: DiskWork,
        secrets: Secrets,
        tasks: asyncio.TaskGroup,
        *,
        wake: Callable[[str], None],
        arrived: Callable[[str], None],
        transfer: Transfer | None = None,
    ) -> None:
        """`wake` has an order looked at soon, by name; `arrived` is told the uid of each image that is whole. Without
        `transfer` images are neither exchanged with other hosts nor uploaded."""
        self._orders = orders
        self._pools = pools
        self._hypervisor = hypervisor
        self._work = work
        self._secrets = secrets
        self._tasks = tasks
        self._wake = wake
        self._arrived = arrived
        self._transfer = transfer
        self._fetcher = transfer.fetcher if transfer is not None else None
        self._slots = asyncio.Semaphore(IMPORTS)
        self._in_use: set[str] = set()
        self._measuring: dict[str, asyncio.Task[None]] = {}
        self._measurer = asyncio.Semaphore(1)
        self._unmeasurable: set[str] = set()
        self._ways: dict[str, _Way] = {}

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._in_use.discard(name)
        self._unmeasurable.discard(name)
        self._ways.pop(name, None)
        task = self._measuring.pop(name, None)
        if task is not None:
            task.cancel()

    def uploaded(self, uid: str) -> None:
        """All of an image has arrived that was waited for."""
        for order in self._orders.of_image(uid):
            self._work.wake_waiting(order.name)

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
                if self._transfer is not None:
                    await self._transfer.uploads.forget(wanted.image.uid)
                if (user := await self._reader(wanted.image.uid, driver)) is not None:
                    raise StorageError(
                        f"Machine {user} has the image in a drive: take it out of its spec.disks.", reason="ImageInUse"
                    )
                await driver.remove_image(wanted.image.uid)
                await self._orders.release(order)
                return Done()
            return await self._ensure(order, pool, wanted, driver)
        except (StorageError, HypervisorError) as error:
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
            if pinned is not None and image.digest not in (None, pinned):
                raise StorageError(
                    f"The pool has this image as {image.digest}, not {pinned}. Delete the machines made from it here;"
                    " then remove the image and make a new one.",
                    reason="ImageConflict",
                    retryable=False,
                )
            self._work.settled(order.name)
            found = order.status.state is not WorkState.READY
            measuring = image.content is None and self._measure(order.name, image.uid, driver)
            await self._orders.report(order, self._ready(order, image, measuring))
            if found:  # another host that shares the pool may have brought it
                self._arrived(wanted.image.uid)
            return Done()
        if wanted.wait_for is not None:
            raise StorageError(
                f"Host {wanted.wait_for} is fetching the image for its zone; it is copied from there then.",
                reason="WaitingForZone",
            )
        if wanted.upload is not None and wanted.copy_ is None:
            await self._await_upload(wanted, driver)
        log.info("import begins", order=order.name, image=order.spec.for_.name, pool=pool.name)
        return self._work.begin(order, lambda progress: self._import(order, wanted, driver, progress))

    async def _await_upload(self, wanted: ImageImport, driver: StorageDriver) -> None:
        """Raises `StorageError(reason="WaitingForUpload")` until all of the image has arrived."""
        if self._transfer is None or self._transfer.upload_port is None or not isinstance(driver, TakesUploads):
            raise StorageError(
                "Nothing can be uploaded to this host. Allow it in the agent's settings (transfer.upload_port).",
                reason="NoUploads",
            )
        if not await driver.uploaded(wanted.image.uid, self._transfer.upload_idle_seconds):
            raise StorageError(
                "Nobody has uploaded all of the image yet: kumulusctl image upload NAME --file FILE.",
                reason=WAITING_FOR_UPLOAD,
            )
        await self._transfer.uploads.forget(wanted.image.uid)

    async def _reader(self, image: str, driver: StorageDriver) -> str | None:
        """Name of a machine that is to have the image in a drive, or has it there still."""
        for order in self._orders.of_disc(image):
            return order.spec.for_.name
        stored = await driver.image(image)
        if stored is not None and stored.format == "raw":
            for domain in await self._hypervisor.domains():
                if any(drive.path == stored.path for drive in domain.drives):
                    return domain.marks.name
        return None

    async def _import(
        self, order: WorkOrder, wanted: ImageImport, driver: StorageDriver, progress: ProgressListener
    ) -> None:
        async with self._slots:
            await driver.prepare()
            way = _Way(None, ())
            known = wanted.image.sha256 is not None  # else nothing would say what was verified
            if known and wanted.copy_ is not None and self._fetcher is not None and isinstance(driver, TakesImages):
                way = await self._copy(wanted, wanted.copy_, driver, self._fetcher, progress)
            if way.host is None:
                why = "; ".join(f"{peer.host}: {peer.message}" for peer in way.dropped)
                if wanted.copy_ is not None and wanted.upload is not None:
                    raise StorageError(f"No host that has the image gave it ({why}).", reason="PeersUnavailable")
                try:
                    await driver.import_image(wanted.image, await self._source(wanted), progress)
                except StorageError as error:
                    if not way.dropped:
                        raise
                    text = f"{error} Before that, no host that has the image gave it ({why})."
                    raise StorageError(text, reason=error.reason, retryable=error.retryable) from error
        self._ways[order.name] = way
        log.info("import done", order=order.name, image=order.spec.for_.name, copied_from=way.host)
        self._arrived(wanted.image.uid)

    async def _source(self, wanted: ImageImport) -> ImageSource:
        """Where the image comes from, with the login to it. Raises `StorageError`."""
        if wanted.http is not None:
            secret = wanted.http.secret
            return WebSource(wanted.http, await self._login(secret)) if secret is not None else wanted.http
        if wanted.upload is not None:
            return wanted.upload
        if wanted.volume is not None:
            return VolumeContent(wanted.volume, wanted.snapshot)
        if wanted.oci is None:
            raise StorageError(
                "The order names no source that this agent knows. Update the agent.",
                reason="SourceUnknown",
                retryable=False,
            )
        secret = wanted.oci.secret
        return RegistrySource(wanted.oci, await self._login(secret) if secret is not None else None)

    async def _login(self, secret: str) -> Login:
        try:
            login = await self._secrets.read(secret, "the login to its source")
            return Login(login["username"].decode(), login["password"].decode())
        except Missing as missing:
            raise StorageError(f"{missing}.", reason=missing.reason) from None
        except (KeyError, UnicodeDecodeError):
            raise StorageError(
                "The Secret for the image's source has no user name and password in it.", reason="SecretUnreadable"
            ) from None
        except KubeError as error:
            raise StorageError(
                f"The login to the image's source could not be read: {error}.", reason="ApiUnavailable"
            ) from error

    async def _copy(
        self,
        wanted: ImageImport,
        copy: ImageCopy,
        driver: TakesImages,
        fetcher: PeerFetcher,
        progress: ProgressListener,
    ) -> _Way:
        """Copy the image from another host; the way says from none when none gave it, or what they give is refused."""
        found: list[_Way] = []

        async def receive(part: Part, pace: Pace) -> None:
            found.append(_Way(*await fetcher.fetch(wanted.image.uid, copy, part, pace)))

        try:
            await driver.copy_image(wanted.image, copy.content, receive, progress)
        except NoPeer as error:
            return _Way(None, error.dropped)
        except StorageError as error:
            if error.reason != "ImageRejected":
                raise
            log.warning("what other hosts have for an image is refused", image=wanted.image.uid, error=str(error))
            refused = (
                DroppedPeer(host=peer.host, reason=error.reason, message=str(error)[:512]) for peer in copy.peers
            )
            return _Way(None, tuple(refused))
        return found[-1] if found else _Way(None, ())

    def _measure(self, name: str, uid: str, driver: StorageDriver) -> bool:
        """Have it found out what other hosts can copy; False when that will not be."""
        if self._fetcher is None or not isinstance(driver, WholeImages) or name in self._unmeasurable:
            return False
        if name not in self._measuring:
            self._measuring[name] = self._tasks.create_task(self._measured(name, uid, driver))
        return True

    async def _measured(self, name: str, uid: str, driver: WholeImages) -> None:
        """Never fails: it would take the agent down."""
        try:
            async with self._measurer:
                if await driver.measure_image(uid) is None:
                    self._unmeasurable.add(name)
        except Exception as error:
            self._unmeasurable.add(name)
            log.warning("image cannot be given to other hosts", order=name, error=str(error))
        finally:
            self._measuring.pop(name, None)
        self._wake(name)

    def _ready(self, order: WorkOrder, image: StoredImage, measuring: bool) -> WorkOrderStatus:
        known = order.status.disk or DiskFacts()
        way = self._ways.get(order.name) or _Way(known.copied_from, known.dropped or ())
        return WorkOrderStatus(
            observed_generation=order.metadata.generation,
            state=WorkState.READY,
            reason=MEASURING if measuring else None,
            disk=DiskFacts(
                sha256=image.sha256,
                digest=image.digest,
                format=image.source_format,
                virtual_size=image.virtual_size,
                size=image.size,
                content=image.content,
                copied_from=way.host,
                dropped=way.dropped or None,
            ),
        )
