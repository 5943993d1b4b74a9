"""The work orders of one host: what is known of them, and what the agent writes back.

The only module that writes to work orders. Every write is skipped when it would change nothing, and
its answer goes into the store at once, so that the next pass reads what this one wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kumulus.api.base import FINALIZER
from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.instance_order import MigrationState
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Conflict, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key, Store, key_of

INSTANCE = "instance"
"""Index of Instance orders by the machine's uid."""


VOLUME = "volume"
"""Index of Instance orders by the volumes they want, or were reported to have still."""

DISC = "disc"
"""Index of Instance orders by the images that are to be in drives."""

KEEPER = "keeper"
"""Index of Disk orders by the volume they keep."""

NIC = "nic"
"""Index of Instance orders by the interfaces they name."""

SNAPSHOT = "snapshot"
"""Index of Snapshot orders by their volumes."""


IMAGE = "image"
"""Index of Disk orders by the image they keep in a pool."""


def _kept_image(order: WorkOrder) -> Iterable[str]:
    disk = order.spec.disk
    return (disk.import_image.image.uid,) if disk is not None and disk.import_image is not None else ()


def _instance_uid(order: WorkOrder) -> Iterable[str]:
    return (order.spec.instance.uid,) if order.spec.instance is not None else ()


def volumes_of(order: WorkOrder | None) -> frozenset[str]:
    """Volumes that a machine's order wants, or that the machine was last reported to have. Pure."""
    if order is None or order.spec.instance is None:
        return frozenset()
    has = order.status.instance.volumes if order.status.instance is not None else ()
    return frozenset({disk.volume for disk in order.spec.instance.disks if disk.volume is not None}.union(has))


def _discs(order: WorkOrder) -> Iterable[str]:
    drives = order.spec.instance.drives if order.spec.instance is not None else ()
    return {drive.image.uid for drive in drives if drive.image is not None}


def _nics(order: WorkOrder) -> Iterable[str]:
    return {nic.uid for nic in order.spec.instance.nics} if order.spec.instance is not None else ()


def _kept_volume(order: WorkOrder) -> Iterable[str]:
    disk = order.spec.disk
    return (disk.volume.uid,) if disk is not None and disk.volume is not None else ()


def _kept_in_snapshot(order: WorkOrder) -> Iterable[str]:
    return (item.volume for item in order.spec.snapshot.items) if order.spec.snapshot is not None else ()


def _same(before: WorkOrder, after: WorkOrder) -> bool:
    """Whether nothing but the status differs, as far as it matters here."""
    one, other = before.metadata, after.metadata
    return (one.uid, one.generation, one.deletion_timestamp, one.finalizers) == (
        other.uid,
        other.generation,
        other.deletion_timestamp,
        other.finalizers,
    )


def _asks_the_same(before: WorkOrder, after: WorkOrder) -> bool:
    """Whether no more and no less is wanted of this host."""
    one, other = before.metadata, after.metadata
    return (one.uid, one.generation, one.deletion_timestamp) == (other.uid, other.generation, other.deletion_timestamp)


def leaving(order: WorkOrder) -> bool:
    """Whether the machine's guest is on its way to another host, or there: what it writes to is not for this host to touch,
    though it looks as if it were at rest. What was reported last counts until a pass has found out how it stands. Pure."""
    instance, said = order.spec.instance, order.status.instance
    if instance is None or instance.incoming is not None:
        return False
    return instance.outgoing is not None or (said is not None and said.migration is not None)


def departed(order: WorkOrder) -> bool:
    """Whether the machine's guest is another host's, as was reported. Pure."""
    said = order.status.instance.migration if order.status.instance is not None else None
    return said is not None and said.state is MigrationState.SENT


def unfit(order: WorkOrder) -> WorkOrderStatus | None:
    """The refusal of an order that could be deleted behind our back: it must come with our finalizer. Pure."""
    if FINALIZER in order.metadata.finalizers or order.deleting:
        return None
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.REFUSED,
        reason="NoFinalizer",
        message=f"the order came without the finalizer {FINALIZER}, so nothing made for it could be removed again",
    )


class Orders:
    """The work orders in one host's namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self.store: Store[WorkOrder] = Store(
            WorkOrder,
            {
                INSTANCE: _instance_uid,
                VOLUME: volumes_of,
                DISC: _discs,
                NIC: _nics,
                KEEPER: _kept_volume,
                SNAPSHOT: _kept_in_snapshot,
                IMAGE: _kept_image,
            },
        )
        self._own_write = False
        self._reporting: set[str] = set()
        """Orders whose status is being written: the watch may tell of it before the answer comes."""

    def listen(self, changed: Callable[[Key], None]) -> None:
        """Have `changed` called when an order appears, changes or goes, but not for what is this agent's own writing.

        The answer to an own write may be the first that is heard of what somebody else wrote (a deletion while the watch
        was broken), and the watch does not tell of that version again.
        """

        def listener(before: WorkOrder | None, after: WorkOrder | None) -> None:
            item = after or before
            if item is None:
                return
            if self._own_write and (before is None or after is None or _asks_the_same(before, after)):
                return
            if item.name in self._reporting and before is not None and after is not None and _same(before, after):
                return
            changed(Key(item.namespace, item.name))

        self.store.listen(listener)

    def listen_let_go(self, let_go: Callable[[str], None]) -> None:
        """Have `let_go` called with the uid of each volume that a machine neither wants any more nor has."""

        def listener(before: WorkOrder | None, after: WorkOrder | None) -> None:
            for volume in volumes_of(before) - volumes_of(after):
                let_go(volume)

        self.store.listen(listener)

    def get(self, name: str) -> WorkOrder | None:
        """The order as last seen."""
        return self.store.get(name, self.namespace)

    def of_instance(self, uid: str) -> list[WorkOrder]:
        """The orders about the machine of that uid."""
        return self.store.by(INSTANCE, uid)

    def of_volume(self, volume: str) -> list[WorkOrder]:
        """The orders about machines that want the volume or have it still."""
        return self.store.by(VOLUME, volume)

    def leaving(self, volume: str) -> str | None:
        """Name of the machine that takes the volume along to another host."""
        return next((order.spec.for_.name for order in self.of_volume(volume) if leaving(order)), None)

    def of_disc(self, image: str) -> list[WorkOrder]:
        """The orders about machines that are to have the image in a drive."""
        return self.store.by(DISC, image)

    def of_nic(self, uid: str) -> list[WorkOrder]:
        """The orders about machines that are to have the interface."""
        return self.store.by(NIC, uid)

    def keepers(self, volume: str) -> list[WorkOrder]:
        """The Disk orders that keep the volume."""
        return self.store.by(KEEPER, volume)

    def of_image(self, uid: str) -> list[WorkOrder]:
        """The Disk orders that keep the image in a pool."""
        return self.store.by(IMAGE, uid)

    def image_failure(self, image: str, pool: str) -> str | None:
        """Why the image could not be had for that pool, by their uids, when that failed."""
        for order in self.of_image(image):
            if order.spec.disk is not None and order.spec.disk.pool.uid == pool:
                return order.status.message if order.status.state is WorkState.FAILED else None
        return None

    def snapshots_of(self, volume: str) -> list[WorkOrder]:
        """The Snapshot orders that have a part in the volume."""
        return self.store.by(SNAPSHOT, volume)

    async def report(self, order: WorkOrder, status: WorkOrderStatus) -> bool:
        """Write the status if it differs from what is known. Gone meanwhile: nothing. Raises `KubeError`."""
        known = self.get(order.name)
        before = (known if known is not None and known.uid == order.uid else order).status
        patch = merge_patch(before.to_json(), status.to_json())
        if not patch:
            return False
        self._reporting.add(order.name)
        try:
            answer = await self._client.patch(
                WorkOrder.KIND, order.name, {"status": patch}, self.namespace, subresource="status"
            )
        except NotFound:
            return False
        finally:
            self._reporting.discard(order.name)
        self._take(answer)
        return True

    async def release(self, order: WorkOrder) -> None:
        """Take the finalizer off; nothing of the order is left on this host. Gone already: nothing.

        Raises `Conflict` when somebody changed the order in between: look at it again.
        """
        if FINALIZER not in order.metadata.finalizers:
            return
        finalizers = [name for name in order.metadata.finalizers if name != FINALIZER]
        metadata = {"resourceVersion": order.metadata.resource_version, "finalizers": finalizers}
        try:
            answer = await self._client.patch(WorkOrder.KIND, order.name, {"metadata": metadata}, self.namespace)
        except NotFound:
            return
        except Conflict:
            await self.refresh(order.name)
            raise
        if answer["metadata"].get("deletionTimestamp") and not answer["metadata"].get("finalizers"):
            self._forget(key_of(answer), order.uid)
        else:
            self._take(answer)

    async def refresh(self, name: str) -> WorkOrder | None:
        """Read it live. Raises `KubeError`."""
        raw = await self._client.find(WorkOrder.KIND, name, self.namespace)
        if raw is None:
            self._forget(Key(self.namespace, name), None)
        else:
            self._take(raw)
        return self.get(name)

    def _take(self, raw: dict[str, Any]) -> None:
        raw["metadata"].pop("managedFields", None)
        self._own_write = True
        try:
            self.store.apply(raw)
        finally:
            self._own_write = False

    def _forget(self, key: Key, uid: str | None) -> None:
        self._own_write = True
        try:
            self.store.remove(key, uid)
        finally:
            self._own_write = False
