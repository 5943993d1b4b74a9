"""A whole process against a real API server: modules, kopf's watches, leadership, health, graceful stop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.kube.builtin import LEASE, NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.runtime.process import Process
from kumulus.runtime.settings import ProcessSettings
from kumulus_lab.cluster import NativeCluster
from tests.component.test_kube import connected, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster


@asynccontextmanager
async def running(cluster: NativeCluster, namespace: str, name: str) -> AsyncIterator[Process]:
    """A process with the module of hosts, ready; asked to stop in the end."""
    settings = ProcessSettings(
        kubeconfig=cluster.kubeconfig,
        namespace=namespace,
        identity=name,
        lease_seconds=3,
        http_port=0,
        include=["controllers.fabric"],
    )
    process = Process(settings)
    task = asyncio.create_task(process.run())
    try:
        await until(lambda: process.port is not None or task.done(), "it serves")

        async def ready() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{process.port}/readyz") as answer,
            ):
                return answer.status == 200

        await until(ready, "it is ready")
        yield process
    finally:
        process.stop()
        async with asyncio.timeout(20 * PATIENCE):
            await task


async def holder(client: KubeClient, namespace: str) -> str | None:
    lease = await client.find(LEASE, "kumulus-controllers", namespace)
    found: str | None = lease["spec"].get("holderIdentity") if lease else None
    return found


async def test_two_processes_one_leader_an_outage_and_a_handover(
    cluster: NativeCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    tag = secrets.token_hex(3)

    async with connected(cluster) as client:

        async def make(name: str) -> None:
            await client.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": tag}})

        async def joining(name: str) -> bool:
            host = await client.get(Host.KIND, name)
            status: dict[str, Any] = host.get("status", {})
            return status.get("phase") == "Joining" and status.get("namespace") == host_namespace(name)

        async def gone(name: str) -> bool:
            return await client.find(Host.KIND, name) is None

        await client.create(Zone.KIND, {"metadata": {"name": tag}, "spec": {}})
        one, two = f"{tag}-1", f"{tag}-2"
        async with running(cluster, namespace, "second") as second:
            async with running(cluster, namespace, "first"):
                async with aiohttp.request("GET", f"http://127.0.0.1:{second.port}/healthz") as answer:
                    assert (answer.status, await answer.text()) == (200, "[+]loop ok\n[+]kopf ok\n")
                await make(one)
                await until(lambda: joining(one), "the host has its namespace", 20)
                leader = await holder(client, namespace)
                assert leader in ("first", "second")
                await asyncio.to_thread(cluster.restart_apiserver)
                await make(two)
                await until(lambda: joining(two), "the watches go on after the API server came back", 60)
                found = await client.get(NAMESPACE, host_namespace(two))
                assert found["metadata"]["labels"]["kumulus.io/host"] == two

            async def second_leads() -> bool:
                return await holder(client, namespace) == "second"

            await until(second_leads, "the other takes over at once when the first stops", 10)
            for name in (one, two):
                await client.delete(Host.KIND, name)
            for name in (one, two):
                await until(lambda name=name: gone(name), "a host that never joined goes, with its namespace", 120)
            assert second.port is not None
        assert await holder(client, namespace) is None, "the seat is given back"
        await client.delete(Zone.KIND, tag)
