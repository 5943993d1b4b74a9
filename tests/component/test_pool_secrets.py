"""Secrets that go with work orders, and copies of a pool's in the namespaces of its hosts, as the API server has them."""

from __future__ import annotations

import base64
import secrets
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import pool_order_name, pool_secret_name
from kumulus.api.pools import OPERATORS_NAMESPACE
from kumulus.api.storage import StoragePool
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus.kube.errors import AlreadyExists
from kumulus_controllers import order_secret
from kumulus_controllers.storage.pool_secrets import PoolSecrets
from kumulus_controllers.storage.presence import pool_ref
from kumulus_lab.cluster import NativeCluster
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"


def pool(secret: str) -> StoragePool:
    rbd = {"monitors": ["10.0.0.1"], "pool": "vms", "user": "kumulus", "secret": {"name": secret}}
    spec = {"driver": "rbd", "parameters": {"rbd": rbd}}
    return StoragePool.parse({"metadata": {"name": "ceph", "uid": UID}, "spec": spec})


async def test_a_host_of_the_pool_gets_its_secret_and_the_next_one(cluster: NativeCluster) -> None:
    tag = secrets.token_hex(3)
    home, name, some = host_namespace(f"sec-{tag}"), f"ceph-{tag}", pool(f"ceph-{tag}")
    async with connected(cluster) as client:

        async def key() -> Any:
            found = await client.find(SECRET, pool_secret_name(UID), home)
            return base64.b64decode(found["data"]["key"]).decode() if found is not None else None

        with suppress(AlreadyExists):
            await client.create(NAMESPACE, {"metadata": {"name": OPERATORS_NAMESPACE}})
        await client.create(NAMESPACE, {"metadata": {"name": home}})
        try:
            spec = {"type": "Pool", "for": {"kind": "StoragePool", "name": "ceph", "uid": UID}}
            body = {
                "metadata": {"name": pool_order_name(UID)},
                "spec": {**spec, "pool": {"pool": pool_ref(some).to_json()}},
            }
            order = WorkOrder.parse(await client.create(WorkOrder.KIND, body, home))
            copies = PoolSecrets(client)
            missing = await copies.copy(some, [order])
            assert missing is not None and f"no Secret {name} in namespace {OPERATORS_NAMESPACE}" in missing
            for value in ("one", "two"):
                await client.create(
                    SECRET, {"metadata": {"name": name}, "stringData": {"key": value}}, OPERATORS_NAMESPACE
                )
                assert await copies.copy(some, [order]) is None
                assert await key() == value
                assert await PoolSecrets(client).copy(some, [order]) is None, "another leader finds it done"
                await client.delete(SECRET, name, OPERATORS_NAMESPACE)
            found = await client.get(SECRET, pool_secret_name(UID), home)
            assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [order.uid]
        finally:
            await client.delete(NAMESPACE, home)


async def test_a_secret_goes_with_its_order_and_is_not_taken_back_from_the_next_one(
    cluster: NativeCluster, namespace: str
) -> None:
    async with connected(cluster) as client:

        async def order(name: str) -> WorkOrder:
            for_ = {"kind": "StoragePool", "name": "ceph", "uid": UID}
            body = {"metadata": {"name": name}, "spec": {"type": "Pool", "for": for_, "pool": {"pool": ref}}}
            return WorkOrder.parse(await client.create(WorkOrder.KIND, body, namespace))

        async def given(to: WorkOrder, value: str) -> bool:
            data = {"data": {"key": base64.b64encode(value.encode()).decode()}}
            body = order_secret.belonging("given", to, data)
            return await order_secret.give(client, body, to, same=lambda found: found["data"] == data["data"])

        async def there() -> tuple[str, list[str]]:
            found = await client.get(SECRET, "given", namespace)
            owners = [owner["uid"] for owner in found["metadata"]["ownerReferences"]]
            return base64.b64decode(found["data"]["key"]).decode(), owners

        ref = pool_ref(pool("ceph")).to_json()
        first, second = await order("first"), await order("second")
        assert await given(first, "one") and not await given(first, "one")
        assert await given(first, "two") and await there() == ("two", [first.uid])
        assert await given(second, "two") and await there() == ("two", [second.uid])
        await order_secret.take_back(client, "given", first)
        assert await there() == ("two", [second.uid])
        await order_secret.take_back(client, "given", second)
        await order_secret.take_back(client, "given", second)
        assert await client.find(SECRET, "given", namespace) is None
