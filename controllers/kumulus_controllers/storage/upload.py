"""ImageUpload: says where an image can be brought to and has its host let the one in who knows the token.

The token itself is never seen here: the request has its digest, and so has the host's order.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from kumulus.api.base import ObjectRef
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkOrderSpec, WorkState, WorkType, transfer_name
from kumulus.api.image import Image, ImagePhase, ImageUpload, ImageUploadStatus
from kumulus.api.image_order import UploadOrder
from kumulus.api.order_names import CERTIFICATE_ORDER, upload_order_name
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.orders import FOR_NAME, FOR_UID, host_of, work_orders
from kumulus_controllers.status import write_status
from kumulus_controllers.storage.copies import Copies

LOOK_SECONDS = 10.0
"""How often it is looked whether the image still goes to the same host."""


class UploadReconciler:
    """Lets people upload images."""

    name = "imageupload"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._uploads = services.caches.store(ImageUpload)
        self._images = services.caches.store(Image)
        self._hosts = services.caches.store(Host)
        self._reports = services.caches.store(HostReport)
        self._orders = work_orders(services.caches)
        self._copies = Copies(services.caches)
        self._uploads.add_index("image", lambda upload: (f"{upload.namespace}/{upload.spec.image}",))

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, the image's, and what hosts say."""

        def upload_changed(before: ImageUpload | None, after: ImageUpload | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(item.namespace, item.name))

        def image_changed(before: Image | None, after: Image | None) -> None:
            item = after or before
            if item is not None:
                for upload in self._uploads.by("image", f"{item.namespace}/{item.name}"):
                    enqueue(Key(upload.namespace, upload.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.type is WorkType.UPLOAD:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)
            elif order.spec.type is WorkType.DISK and order.spec.for_.kind == Image.KIND.kind:
                for upload in self._uploads.by("image", f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    enqueue(Key(upload.namespace, upload.name))

        self._uploads.listen(upload_changed)
        self._images.listen(image_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All uploads, and those that only a left-over work order remembers."""
        left = {
            Key(order.spec.for_.namespace, order.spec.for_.name)
            for order in self._orders
            if order.spec.type is WorkType.UPLOAD
        }
        return list({*self._uploads.keys(), *left})

    async def reconcile(self, key: Key) -> Result:
        """One pass over an upload."""
        upload = self._uploads.get(key.name, key.namespace)
        if upload is None or upload.deleting:
            await self._clean_up(key, None)
            return Gone()
        ends = parse_time(upload.metadata.creation_timestamp or "") + timedelta(seconds=upload.spec.ttl_seconds)
        left = (ends - self._services.clock.now()).total_seconds()
        if left <= 0:
            await self._clean_up(key, None)
            await self._services.client.delete(ImageUpload.KIND, upload.name, upload.namespace, uid=upload.uid)
            return Done()
        image = self._images.get(upload.spec.image, upload.namespace)
        if image is None or image.deleting or image.spec.source.upload is None:
            await self._clean_up(key, None)
            why = "There is no Image {0}." if image is None else "Image {0} is not one that is uploaded."
            return await self._say(upload, ends, "Failed", "NoSuchImage", why.format(upload.spec.image))
        if image.status.phase is ImagePhase.READY:
            await self._clean_up(key, None)
            return await self._say(
                upload, ends, "Complete", "Imported", "The image was uploaded and is ready.", ok=True
            )
        orders = [o for o in self._orders.by(FOR_UID, f"{WorkType.DISK}/{image.uid}") if not o.deleting]
        waits = min((host_of(o) for o in orders if self._takes(host_of(o)) is not None), default=None)
        await self._clean_up(key, waits)
        if waits is None:
            return await self._say(
                upload, ends, "Pending", "NoHost", "No host waits for the image yet, or it takes no uploads."
            )
        status = await self._ask(upload, image, waits, ends)
        if status is None:
            return await self._say(upload, ends, "Pending", "HostAsked", f"Host {waits} is asked.", host=waits)
        if status.status.state is not WorkState.READY:
            reason, message = status.status.reason or "HostAsked", status.status.message or f"Host {waits} is asked."
            return await self._say(upload, ends, "Pending", reason, message, host=waits)
        return await self._say(upload, ends, "Ready", "Admitted", f"Host {waits} takes it.", host=waits, image=image)

    def _takes(self, host: str) -> int | None:
        """The port at which that host takes uploads."""
        found, report = self._hosts.get(host), self._reports.get(host, host_namespace(host))
        if found is None or self._copies.peer(found) is None or report is None or report.status.transfer is None:
            return None
        return report.status.transfer.upload_port

    async def _ask(self, upload: ImageUpload, image: Image, host: str, ends: datetime) -> WorkOrder | None:
        """The host's order, made when there is none; None while it is not known what came of that."""
        name, namespace = upload_order_name(upload.uid), host_namespace(host)
        order = self._orders.get(name, namespace)
        if order is not None:
            return order
        spec = WorkOrderSpec(
            type=WorkType.UPLOAD,
            for_=ObjectRef(kind=ImageUpload.KIND.kind, namespace=upload.namespace, name=upload.name, uid=upload.uid),
            term=self._services.term(),
            upload=UploadOrder(image=image.uid, token_sha256=upload.spec.token_sha256, expires_at=rfc3339(ends)),
        )
        try:
            raw = await self._services.client.create(
                WorkOrder.KIND, {"metadata": {"name": name}, "spec": spec.to_json()}, namespace
            )
            self._orders.apply(raw)
        except (AlreadyExists, NotFound):
            return None
        return self._orders.get(name, namespace)

    async def _say(
        self,
        upload: ImageUpload,
        ends: datetime,
        phase: str,
        reason: str,
        message: str,
        *,
        host: str | None = None,
        image: Image | None = None,
        ok: bool = False,
    ) -> Result:
        clock, generation = self._services.clock, upload.metadata.generation
        known = self._orders.get(CERTIFICATE_ORDER, host_namespace(host)) if host is not None else None
        report = self._reports.get(host, host_namespace(host)) if host is not None else None
        facts = report.status.transfer if report is not None else None
        where: dict[str, str] = {}
        if image is not None and host is not None and facts is not None and known and known.spec.certificate:
            address = f"[{facts.address}]" if ":" in facts.address else facts.address
            where = {
                "url": f"https://{address}:{facts.upload_port}/v1/uploads/{image.uid}",
                "server_name": transfer_name(host),
                "ca_bundle": known.spec.certificate.authorities,
            }
        fact = Fact("Ready", ok or bool(where), reason, message)
        after = ImageUploadStatus(
            observed_generation=generation,
            conditions=derive(upload.status.conditions, [fact], generation=generation, now=rfc3339(clock.now())),
            phase=phase,
            host=host,
            expires_at=rfc3339(ends),
            **where,
        )
        await write_status(self._services.client, self._uploads, upload, upload.status, after)
        left = (ends - clock.now()).total_seconds() + 1
        return Requeue(max(min(left, LOOK_SECONDS if phase in ("Pending", "Ready") else left), 0.5))

    async def _clean_up(self, key: Key, kept: str | None) -> None:
        """Remove the upload's orders on all hosts but one."""
        for order in self._orders.by(FOR_NAME, f"ImageUpload/{key.namespace or ''}/{key.name}"):
            if order.spec.type is WorkType.UPLOAD and host_of(order) != kept:
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
                self._orders.remove(Key(order.namespace, order.name), order.uid)
