"""A whole process against a real API server: modules, kopf's watches, leadership, health, graceful stop."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.kube.builtin import LEASE, NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.election import Elector
from kumulus.runtime.process import Process
from kumulus.runtime.settings import ProcessSettings
from kumulus_lab import places
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.processes import Daemon
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


async def test_who_begins_to_lead_knows_what_was_placed_although_its_watch_is_behind(
    cluster: NativeCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else room would be given twice: the one before it placed a machine after this one had listed all."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    heard, campaign, feed = asyncio.Event(), Elector.run, Process._feed

    def deaf(self: Process, kind: Kind, type_: str | None, raw: dict[str, Any]) -> None:
        if kind != VirtualMachine.KIND:
            feed(self, kind, type_, raw)
        elif raw["metadata"]["namespace"] == namespace:
            heard.set()

    async def late(self: Elector) -> None:
        body = {"metadata": {"name": "placed"}, "spec": {"resources": {"cpus": 1, "memory": "1Gi"}}}
        await client.create(VirtualMachine.KIND, body, namespace)
        size = {"cpus": 1, "memory": "1Gi"}
        status = {"status": {"host": "far", "epoch": 1, "resources": size}}
        await client.patch(VirtualMachine.KIND, "placed", status, namespace, subresource="status")
        await campaign(self)

    monkeypatch.setattr(Process, "_feed", deaf)
    monkeypatch.setattr(Elector, "run", late)
    async with connected(cluster) as client, running(cluster, namespace, "only") as process:
        await until(process._leading, "it leads")
        await heard.wait()
        store = process._caches.store(VirtualMachine)
        await until(lambda: store.get("placed", namespace) is not None, "it knows of the machine")
        found = store.get("placed", namespace)
        assert found is not None and found.status.host == "far"


@contextmanager
def controllers(
    directory: Path, cluster: NativeCluster, namespace: str, module: str = "controllers.fabric"
) -> Iterator[Daemon]:
    """`kumulus run` with a module, that of hosts or another, in a process of its own and with a Lease that outlives every
    test."""
    daemon = Daemon.within(directory, "controllers")
    env = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "KUMULUS_NAMESPACE": namespace,
        "KUMULUS_LEASE_SECONDS": "3600",
        "KUMULUS_LOCK_FILE": str(directory / "lock"),
        "KUMULUS_HTTP_PORT": "0",
    }
    try:
        daemon.start([places.script("kumulus"), "run", "--module", module], env)
        yield daemon
    finally:
        daemon.kill()


async def test_who_comes_after_a_killed_leader_does_not_wait_for_its_lease(
    cluster: NativeCluster, namespace: str, tmp_path: Path
) -> None:
    tag = secrets.token_hex(3)
    async with connected(cluster) as client:

        async def led() -> tuple[str, int] | None:
            lease = await client.find(LEASE, "kumulus-controllers", namespace)
            return (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) if lease else None

        first: tuple[str, int] | None = None

        async def led_by_another() -> bool:
            return await led() != first

        with controllers(tmp_path, cluster, namespace):
            await until(led_by_another, "the first leads", 30)
            first = await led()
        assert await led() == first, "it was killed, so it has given nothing back"
        with controllers(tmp_path, cluster, namespace):
            await until(led_by_another, "the next one leads", 30)
            found = await led()
            assert found is not None and first is not None and found[1] == first[1] + 1, "in a term of its own"
            await client.create(Zone.KIND, {"metadata": {"name": tag}, "spec": {}})
            await client.create(Host.KIND, {"metadata": {"name": tag}, "spec": {"zone": tag}})

            async def joining() -> bool:
                return (await client.get(Host.KIND, tag)).get("status", {}).get("phase") == "Joining"

            async def gone() -> bool:
                return await client.find(Host.KIND, tag) is None

            await until(joining, "and works", 20)
            await client.delete(Host.KIND, tag)
            await until(gone, "the host is gone", 60)
            await client.delete(Zone.KIND, tag)
