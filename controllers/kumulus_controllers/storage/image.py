"""Image and ClusterImage: imported once to be verified, then kept in the pools where machines need it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import structlog

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.image import CachePolicy, ImagePhase
from kumulus.api.image_order import OciFetch
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import StoragePool
from kumulus.kube.errors import NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.orders import FOR_NAME, FOR_UID, NAMESPACE, host_of, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand, Refusal, Request
from kumulus_controllers.status import amend, drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage import logins
from kumulus_controllers.storage.copies import AnyImage, Copies
from kumulus_controllers.storage.eviction import in_use
from kumulus_controllers.storage.image_orders import heard, order_import, told_from
from kumulus_controllers.storage.image_status import Scope, derive_status
from kumulus_controllers.storage.logins import LoginProblem
from kumulus_controllers.storage.published import Published, Unready

log = structlog.get_logger(__name__)

WAITING_SECONDS = 10.0
"""How often it is looked whether hosts still have to wait for the first of their zone: it may be gone without a word."""

PINNED = "pinned"
"""Index of images that are to be in every pool."""

SPREADING = 16
"""Pools that get an image at once, of one that is to be everywhere: each that has it can give it to others."""

UNREADY_SECONDS = 5.0
"""How often it is looked whether a login has come, or was put right, or an image can be made of a volume that a machine
writes to."""

SETTLE_SECONDS = 5.0
"""News of further pools are gathered for so long before the status is written."""


def _pinned(image: AnyImage) -> Iterable[str]:
    return ("yes",) if image.spec.cache_policy is CachePolicy.EVERYWHERE else ()


class ImageReconciler:
    """Sees to one kind of image: Image or ClusterImage."""

    def __init__(self, services: Services, fleet: Fleet, model: type[AnyImage]) -> None:
        self.name = model.KIND.kind.lower()
        self._services = services
        self._fleet = fleet
        self._kind = model.KIND.kind
        self._images: Store[AnyImage] = services.caches.store(model)
        self._orders = work_orders(services.caches)
        self._copies = Copies(services.caches)
        self._published = Published(services.caches)
        self._written: dict[str, float] = {}
        self._handed_over: set[str] = set()
        """Uids of work orders whose host has got the login to the registry from this process."""
        self._gone: dict[str, dict[str, PoolRef]] = {}
        """By uid of an image: hosts where it left a pool, until it was looked whether it is needed there again."""
        self._pools = services.caches.store(StoragePool)
        self._images.add_index(PINNED, _pinned)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, and what agents say of imports."""

        def image_changed(before: AnyImage | None, after: AnyImage | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(item.namespace, item.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if before is not None and after is None:
                self._handed_over.discard(before.uid)
            if order is not None and order.spec.type is WorkType.DISK and order.spec.for_.kind == self._kind:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

        def room_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if after is None or after.spec.type is not WorkType.POOL or after.status.state is not WorkState.READY:
                return
            if before is None or before.status.state is not WorkState.READY:
                for image in self._images.by(PINNED, "yes"):
                    enqueue(Key(image.namespace, image.name))

        def order_gone(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if after is None and before is not None and before.spec.for_.kind == self._kind and before.spec.disk:
                self._gone.setdefault(before.spec.for_.uid, {})[host_of(before)] = before.spec.disk.pool

        self._orders.listen(order_gone)
        self._orders.listen(room_changed)
        self._images.listen(image_changed)
        self._published.attach(enqueue, self._images)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All images, and those that only a left-over work order remembers."""
        keys = set(self._images.keys())
        for order in self._orders:
            if order.spec.type is WorkType.DISK and order.spec.for_.kind == self._kind:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over an image."""
        client = self._services.client
        image = self._images.get(key.name, key.namespace)
        await self._remove_orphans(key, image)
        if image is None:
            return Gone()
        if image.paused:
            return Done()
        if not image.deleting and await ensure_finalizer(client, self._images, image):
            image = self._images.get(key.name, key.namespace) or image
        orders = self._orders_of(image)
        refusal, unready = "", None
        if image.deleting:
            for order in orders:
                if not order.deleting:
                    await self._delete_order(order)
            if not orders:
                await drop_finalizer(client, self._images, image)
                self._written.pop(image.uid, None)
                return Gone()
        elif image.status.phase is not ImagePhase.READY and not self._alive(orders):
            refusal, unready = await self._begin(image)
        problem: LoginProblem | Unready | None = None if image.deleting else await self._provide(image) or unready
        wait = await self._report(Scope(image, self._orders_of(image), refusal, problem))
        if not image.deleting:
            await self._spread(self._images.get(key.name, key.namespace) or image)
        if not image.deleting and await self._release(self._images.get(key.name, key.namespace) or image):
            wait = min(wait, WAITING_SECONDS) if wait > 0 else WAITING_SECONDS
        if wait > 0:
            return Requeue(wait)
        if problem is not None:
            return Wait(problem.reason, UNREADY_SECONDS)
        if image.spec.source.secret is not None and any(map(_unauthorized, self._orders_of(image))):
            return Wait("SourceUnauthorized", UNREADY_SECONDS)  # the Secret may be put right
        return Wait("Deleting", 30.0) if image.deleting else Wait("NoHostFits", 10.0) if refusal else Done()

    async def _begin(self, image: AnyImage) -> tuple[str, Unready | None]:
        """Have some host import the image first, or that which has what it is made of; why not otherwise."""
        origin = None
        if image.spec.source.made_here:
            made = self._published.origin(image)
            if isinstance(made, Unready):
                return "", made
            origin, host, pool = made, made.host, made.pool
        else:
            found = self._fleet.place(Request(uid=image.uid, demand=Demand(0, 0, 1)))
            if isinstance(found, Refusal) or found.pool is None:
                return str(found), None
            host, pool = found.host, found.pool
        try:
            await order_import(self._services, self._fleet, self._copies, image, host, pool, origin)
        except NotFound:
            return f"the namespace of host {host} is gone", None
        return "", None

    async def _provide(self, image: AnyImage) -> LoginProblem | None:
        """See that the hosts have what the imports they were ordered need: the digest that counts, and the login.

        The login is with a host only while it imports, and is renewed when the registry refuses it.
        """
        client, source = self._services.client, image.spec.source
        needy = []
        for order in self._orders_of(image):
            ready = order.status.state is WorkState.READY
            if order.deleting:
                continue
            if ready and order.uid in self._handed_over:
                await logins.take_back(client, order)
                self._handed_over.discard(order.uid)
            unknown = order.uid not in self._handed_over or _unauthorized(order)
            if source.secret is not None and unknown and not ready:
                needy.append(order)
            await self._pin(image, order)
            await self._pin_content(image, order)
        if not needy:
            return None
        try:
            login = await logins.gather(client, source, image.namespace or PLATFORM_NAMESPACE)
            for order in needy:
                if await logins.hand_over(client, order, login) and order.status.state is not None:
                    # The host has looked for the login, or was refused with another: it shall not wait longer.
                    await amend(client, self._orders, order, logins.again)
                self._handed_over.add(order.uid)
        except LoginProblem as problem:
            return problem
        return None

    async def _pin(self, image: AnyImage, order: WorkOrder) -> None:
        """What the tag meant at the first import is what every host is to have."""
        wanted, pinned = logins.asked(order), image.status.digest
        if not isinstance(wanted, OciFetch) or pinned is None or wanted.digest == pinned:
            return
        has = order.status.disk.digest if order.status.disk is not None else None
        if order.status.state is WorkState.READY:
            if has not in (None, pinned):  # None: copied from a host that has it
                log.info("removing what a tag meant later", namespace=image.namespace, name=image.name)
                await self._delete_order(order)
            return
        change = {
            "metadata": {"resourceVersion": order.metadata.resource_version},
            "spec": {
                "disk": {"importImage": {"oci": {"digest": pinned}, "image": {"sha256": image.status.sha256}}},
            },
        }
        self._orders.apply(await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace))

    async def _pin_content(self, image: AnyImage, order: WorkOrder) -> None:
        """What a volume had when an image was made of it is what the image stays, also where its file is lost."""
        disk, sha256 = order.spec.disk, image.status.sha256
        wanted = disk.import_image if disk is not None else None
        if not image.spec.source.made_here or sha256 is None or wanted is None or wanted.image.sha256 is not None:
            return
        change = {
            "metadata": {"resourceVersion": order.metadata.resource_version},
            "spec": {"disk": {"importImage": {"image": {"sha256": sha256}}}},
        }
        self._orders.apply(await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace))

    async def _spread(self, image: AnyImage) -> None:
        """Order the image where it left and is needed after all, and to every pool if it is to be everywhere."""
        wanted: list[tuple[str, PoolRef]] = []
        for host, pool in self._gone.pop(image.uid, {}).items():
            if image.uid in in_use(self._orders.by(NAMESPACE, host_namespace(host)), pool.uid):
                wanted.append((host, pool))
        if image.spec.cache_policy is CachePolicy.EVERYWHERE and image.status.phase is ImagePhase.READY:
            wanted += self._lacking(image)
        for host, pool in wanted:
            with contextlib.suppress(NotFound):
                await order_import(self._services, self._fleet, self._copies, image, host, pool)

    def _lacking(self, image: AnyImage) -> list[tuple[str, PoolRef]]:
        """The next few pools that are to get an image that is to be everywhere; of a shared pool one host."""
        orders = self._orders_of(image)
        has = {(host_of(o), o.spec.disk.pool.uid) for o in orders if o.spec.disk is not None}
        shared = {uid for _, uid in has}
        room = SPREADING - sum(order.status.state not in (WorkState.READY, WorkState.FAILED) for order in orders)
        found: list[tuple[str, PoolRef]] = []
        for pool in self._pools:
            if pool.deleting or pool.spec.maintenance:
                continue
            for order in sorted(self._orders.by(FOR_UID, f"{WorkType.POOL}/{pool.uid}"), key=host_of):
                if order.spec.pool is None or order.status.state is not WorkState.READY or order.deleting:
                    continue
                there = pool.uid in shared if pool.spec.shared else (host_of(order), pool.uid) in has
                if not there:
                    shared.add(pool.uid)
                    found.append((host_of(order), order.spec.pool.pool))
        return found[: max(room, 0)]

    async def _release(self, image: AnyImage) -> bool:
        """Tell hosts that wait for the first of their zone where to get the image; True when some still have to wait."""
        waiting = False
        for order in self._orders_of(image):
            wanted = order.spec.disk.import_image if order.spec.disk is not None else None
            if wanted is None or order.deleting or not (wanted.wait_for is not None or _stranded(order)):
                continue
            copy, wait_for = self._copies.plan(image, host_of(order))
            if wanted.wait_for is None:  # it has what the image is made of, or waits for somebody who has the image
                waiting = waiting or copy is None
                wait_for = None
            spec = told_from(order.spec, copy, wait_for)
            patch = merge_patch(order.spec.to_json(), spec.to_json())
            if patch:
                body = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
                try:
                    raw = await self._services.client.patch(WorkOrder.KIND, order.name, body, order.namespace)
                except NotFound:
                    continue
                self._orders.apply(raw)
            assert spec.disk is not None and spec.disk.import_image is not None
            waiting = waiting or spec.disk.import_image.wait_for is not None
        return waiting

    async def _delete_order(self, order: WorkOrder) -> None:
        """Ask for the end of a work order. Its Secret goes first: the garbage collector may take half a minute."""
        await logins.take_back(self._services.client, order)
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is not None and "spec" in raw:
            self._orders.apply(raw)

    async def _remove_orphans(self, key: Key, image: AnyImage | None) -> None:
        """Work orders of an image of that name that is no more (somebody took its finalizer off): removed after a
        live look. The agent keeps the image for as long as disks are made from it."""
        for order in self._orders.by(FOR_NAME, f"{self._kind}/{key.namespace or ''}/{key.name}"):
            if (
                order.spec.type is not WorkType.DISK
                or order.deleting
                or (image is not None and order.spec.for_.uid == image.uid)
            ):
                continue
            live = await self._services.client.find(self._images.model.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of an image that is gone", namespace=key.namespace, name=key.name)
                await self._delete_order(order)

    async def _report(self, scope: Scope) -> float:
        """Write the status when it differs; in how many seconds to look again when it was only the pools that did."""
        clock, image = self._services.clock, scope.image
        after = derive_status(scope, rfc3339(clock.now()))
        since = clock.monotonic() - self._written.get(image.uid, float("-inf"))
        same = after.model_copy(update={"caches": image.status.caches}).to_json() == image.status.to_json()
        if same and after.caches != image.status.caches and since < SETTLE_SECONDS:
            return SETTLE_SECONDS - since
        if await write_status(self._services.client, self._images, image, image.status, after):
            self._written[image.uid] = clock.monotonic()
        return 0.0

    def _orders_of(self, image: AnyImage) -> tuple[WorkOrder, ...]:
        return tuple(sorted(self._orders.by(FOR_UID, f"{WorkType.DISK}/{image.uid}"), key=host_of))

    def _alive(self, orders: tuple[WorkOrder, ...]) -> bool:
        """Whether an import is under way, or has failed, on a host that can be heard."""
        return any(not order.deleting and heard(self._fleet, host_of(order)) for order in orders)


def _stranded(order: WorkOrder) -> bool:
    """Whether a host is to get what cannot be fetched, and was told nobody who has it."""
    wanted = order.spec.disk.import_image if order.spec.disk is not None else None
    return (
        wanted is not None
        and wanted.volume is not None
        and wanted.copy_ is None
        and order.status.state is not WorkState.READY
    )


def _unauthorized(order: WorkOrder) -> bool:
    return order.status.state is WorkState.FAILED and order.status.reason == "SourceUnauthorized"
