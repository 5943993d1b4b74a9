"""Work orders of images that are gone without a word: somebody took their finalizer off."""

from __future__ import annotations

import secrets

import pytest

from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.kube.store import Key
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image import ImageReconciler
from kumulus_controllers.storage.image_orders import order_import
from kumulus_controllers.storage.presence import pool_ref
from kumulus_lab.cluster import NativeCluster
from tests.component.test_kube import SHA, connected
from tests.unit.storage_controllers.test_pool import pool

pytestmark = pytest.mark.cluster

SPEC = {
    "source": {"http": {"url": "https://images.example.com/x.qcow2"}},
    "checksum": {"sha256": SHA},
    "format": "qcow2",
}


async def looking(client: KubeClient) -> ImageReconciler:
    """A controller that has read everything just now."""
    caches = Caches()
    reconciler = ImageReconciler(Services(client, caches, SystemClock(), lambda: 1), Fleet(), Image)
    for model in (Image, WorkOrder):
        await fill(caches.store(model), client, model.KIND, None)
    return reconciler


@pytest.mark.parametrize("successor", [False, True], ids=["gone", "made anew"])
async def test_orders_of_an_image_that_lost_its_finalizer_are_removed(
    cluster: NativeCluster, namespace: str, successor: bool
) -> None:
    host = f"img-{secrets.token_hex(3)}"
    home = host_namespace(host)
    key = Key(namespace, "debian")

    async with connected(cluster) as client:

        async def made() -> Image:
            raw = await client.create(Image.KIND, {"metadata": {"name": key.name}, "spec": SPEC}, namespace)
            image = Image.parse(raw)
            caches = Caches()
            services = Services(client, caches, SystemClock(), lambda: 1)
            await order_import(services, Fleet(), Copies(caches), image, host, pool_ref(pool()))
            return image

        async def orders() -> dict[str, bool]:
            """Whose orders there are, and whether they are being deleted."""
            pages = [item async for page, _ in client.list_pages(WorkOrder.KIND, home) for item in page]
            return {o["spec"]["for"]["uid"]: "deletionTimestamp" in o["metadata"] for o in pages}

        await client.create(NAMESPACE, {"metadata": {"name": home}})
        try:
            first = await made()
            await (await looking(client)).reconcile(key)
            assert await orders() == {first.uid: False}
            await client.patch(Image.KIND, key.name, {"metadata": {"finalizers": None}}, namespace)
            await client.delete(Image.KIND, key.name, namespace)
            second = await made() if successor else None
            leader = await looking(client)
            assert key in leader.everything(), "a new leader finds it by its order"
            await leader.reconcile(key)
            expected = {first.uid: True} | ({second.uid: False} if second is not None else {})
            assert await orders() == expected
        finally:
            async for page, _ in client.list_pages(WorkOrder.KIND, home):
                for raw in page:
                    await client.patch(WorkOrder.KIND, raw["metadata"]["name"], {"metadata": {"finalizers": []}}, home)
            await client.delete(NAMESPACE, home)
