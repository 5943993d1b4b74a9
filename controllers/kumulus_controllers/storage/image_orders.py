"""Work orders that bring an image into a pool: what they say, and that they are made once."""

from __future__ import annotations

from kumulus.api.base import FINALIZER, ObjectRef
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.image_order import HttpFetch, ImageCopy, ImageImport, ImageRef, OciFetch, UploadFetch
from kumulus.api.order_names import image_order_name, pull_secret_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import DiskOrder
from kumulus.kube.errors import AlreadyExists
from kumulus.runtime.reconciler import Services
from kumulus_controllers.orders import FOR_UID, host_of, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.copies import AnyImage, Copies
from kumulus_controllers.storage.published import Origin


def image_ref(image: AnyImage) -> ImageRef:
    """Which image, and what it must be: what the spec says, else what was verified at the first import."""
    said = image.spec.checksum.sha256 if image.spec.checksum is not None else image.status.sha256
    return ImageRef(uid=image.uid, sha256=said, format=image.spec.format)


def image_import(image: AnyImage, pool_uid: str, origin: Origin | None = None) -> ImageImport:
    """What a host has to do to have the image in a pool; `origin` is what it is made of there."""
    spec, source = image.spec, image.spec.source
    secret = pull_secret_name(image.uid, pool_uid) if source.secret is not None else None
    if source.oci is not None:
        return ImageImport(
            image=image_ref(image),
            oci=OciFetch(
                reference=source.oci.reference,
                digest=image.status.digest,
                architecture=spec.architecture,
                layout=source.oci.layout,
                ca_bundle=source.oci.ca_bundle,
                compression=spec.compression,
                secret=secret,
            ),
        )
    if source.upload is not None:
        return ImageImport(image=image_ref(image), upload=UploadFetch(compression=spec.compression))
    if source.made_here:
        made_of, snapshot = (origin.volume, origin.snapshot) if origin is not None else (image.status.made_of, None)
        return ImageImport(image=image_ref(image), volume=made_of, snapshot=snapshot)
    assert source.http is not None
    return ImageImport(
        image=image_ref(image),
        http=HttpFetch(
            url=source.http.url, ca_bundle=source.http.ca_bundle, compression=spec.compression, secret=secret
        ),
    )


def import_order(image: AnyImage, pool: PoolRef, term: int, origin: Origin | None = None) -> WorkOrderSpec:
    """The order to bring an image into a pool."""
    return WorkOrderSpec(
        type=WorkType.DISK,
        for_=ObjectRef(kind=image.KIND.kind, namespace=image.namespace, name=image.name, uid=image.uid),
        term=term,
        disk=DiskOrder(pool=pool, import_image=image_import(image, pool.uid, origin)),
    )


def told_from(spec: WorkOrderSpec, copy: ImageCopy | None, wait_for: str | None) -> WorkOrderSpec:
    """The order with whom to ask for the image before its source. Pure."""
    assert spec.disk is not None and spec.disk.import_image is not None
    wanted = spec.disk.import_image.model_copy(update={"copy_": copy, "wait_for": wait_for})
    return spec.model_copy(update={"disk": spec.disk.model_copy(update={"import_image": wanted})})


async def order_import(
    services: Services,
    fleet: Fleet,
    copies: Copies,
    image: AnyImage,
    host: str,
    pool: PoolRef,
    origin: Origin | None = None,
) -> None:
    """Have `host` bring the image into `pool`; ordered already: nothing.

    Of hosts that share the pool one does, and the others are told when it has: then they find it there.
    """
    name, orders = image_order_name(image.uid, pool.uid), work_orders(services.caches)
    if orders.get(name, host_namespace(host)) is not None:
        return
    if not pool.shared:
        await _order(services, copies, image, host, pool, origin)
        return
    coming = orders.by(FOR_UID, f"{WorkType.DISK}/{image.uid}")
    if any(arriving(order, pool) and heard(fleet, host_of(order)) for order in coming):
        return
    if fleet.begin_import(image.uid, pool.uid):
        try:
            await _order(services, copies, image, host, pool, origin)
        finally:
            fleet.end_import(image.uid, pool.uid)


async def _order(
    services: Services, copies: Copies, image: AnyImage, host: str, pool: PoolRef, origin: Origin | None
) -> None:
    orders = work_orders(services.caches)
    spec = told_from(import_order(image, pool, services.term(), origin), *copies.plan(image, host))
    name = image_order_name(image.uid, pool.uid)
    body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec.to_json()}
    try:
        orders.apply(await services.client.create(WorkOrder.KIND, body, host_namespace(host)))
    except AlreadyExists:
        return


def arriving(order: WorkOrder, pool: PoolRef) -> bool:
    """Whether an order is to bring an image into that pool, and has neither done so nor failed."""
    disk = order.spec.disk
    done = (WorkState.READY, WorkState.FAILED, WorkState.REFUSED)
    return (
        disk is not None
        and disk.import_image is not None
        and disk.pool.uid == pool.uid
        and not order.deleting
        and order.status.state not in done
    )


def arrived(before: WorkOrder | None, after: WorkOrder | None) -> bool:
    """Whether an order has just brought an image into a pool that hosts share, or has just failed to: others of its
    hosts waited for that."""
    disk = after.spec.disk if after is not None else None
    if after is None or disk is None or disk.import_image is None or not disk.pool.shared:
        return False
    was = before.status.state if before is not None else None
    return after.status.state is not was and after.status.state in (WorkState.READY, WorkState.FAILED)


def heard(fleet: Fleet, host: str) -> bool:
    """Whether the agent of the host answers."""
    view = fleet.host(host)
    return view is not None and view.closed != "not ready"
