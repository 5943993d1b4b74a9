"""Very many machines at once into the last few places, while the controllers are killed: no place is given away twice.

Real are the API server, the controllers in a process of their own, and the agents; only the hypervisors are simulated, and
their books are what counts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.placement_group import PlacementGroup
from kumulus.kube.builtin import NAMESPACE
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.lab import Lab
from tests.component.cloud import GIB, Cloud, Raw, cloud, condition, until
from tests.component.test_process import controllers

pytestmark = pytest.mark.cluster

HOSTS = 5
ASKED, ROOM = 50, 10
MEMBERS = 12
HALF = GIB // 2
"""What is kept of a host for itself."""


@asynccontextmanager
async def hosts(lab: Lab, directory: Path, tag: str) -> AsyncIterator[Cloud]:
    """Hosts with room for two machines of 1 GiB and one of half a GiB each."""
    async with cloud(lab, directory) as made:
        for number in range(HOSTS):
            await made.add_host(f"{tag}-{number}", memory=2 * GIB + HALF + HALF)

        async def ready() -> bool:
            found = [await made.client.get(Host.KIND, name) for name in made.hosts]
            return all(host.get("status", {}).get("phase") == "Ready" for host in found)

        await until(ready, "the hosts are ready")
        yield made


class Tenant:
    """Machines of a namespace, and what hypervisors have of them."""

    def __init__(self, made: Cloud, namespace: str) -> None:
        self.cloud, self.client, self.namespace = made, made.client, namespace

    async def create(self, name: str, memory: str, **labels: str) -> None:
        spec = {"resources": {"cpus": 1, "memory": memory}, "stop": {"mode": "Force"}}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        await self.client.create(VirtualMachine.KIND, body, self.namespace)

    async def machines(self, app: str) -> list[Raw]:
        listed = await self.cloud.listed(VirtualMachine.KIND, self.namespace)
        return [vm for vm in listed if vm["metadata"]["labels"]["app"] == app]

    def run(self) -> Counter[str]:
        """How many domains each host has."""
        return Counter({name: len(host.machine.domains) for name, host in self.cloud.hosts.items()})

    async def settled(self, app: str, places: int) -> list[Raw] | None:
        """All of them, once so many run and all others were refused by every host."""
        found = await self.machines(app)
        told = [vm for vm in found if condition(vm, "Scheduled").get("reason") == "NoHostFits"]
        running = [vm for vm in found if vm.get("status", {}).get("phase") == "Running"]
        assert len(running) <= places
        return found if len(running) == places and len(told) + places == len(found) else None


async def test_fifty_at_once_into_the_last_ten_places_and_a_group_that_is_apart(
    cluster_lab: Lab, cluster: NativeCluster, namespace: str, tmp_path: Path
) -> None:
    tag = secrets.token_hex(3)
    async with hosts_and_controllers(cluster_lab, cluster, namespace, tmp_path, tag) as (made, restart):
        tenant, client = Tenant(made, namespace), made.client
        group = {"policy": "AntiAffinity", "selector": {"matchLabels": {"app": "apart"}}}
        await client.create(PlacementGroup.KIND, {"metadata": {"name": "apart"}, "spec": group}, namespace)
        names = [(f"many-{n}", "1Gi", "many") for n in range(ASKED)]
        names += [(f"apart-{n}", "512Mi", "apart") for n in range(MEMBERS)]
        creating = asyncio.gather(*(tenant.create(name, memory, app=app) for name, memory, app in names))

        async def some_run() -> bool:
            return sum(tenant.run().values()) >= 3

        await until(some_run, "some run")
        await restart()
        await creating

        many = await until(lambda: tenant.settled("many", ROOM), "all are placed or refused")
        apart = await until(lambda: tenant.settled("apart", HOSTS), "all of the group are placed or refused")
        for found, places in ((many, ROOM), (apart, HOSTS)):
            placed = [vm for vm in found if "host" in vm["status"]]
            assert len(placed) == places
            assert {vm["status"]["epoch"] for vm in placed} == {1}
        assert len({vm["status"]["host"] for vm in apart if "host" in vm["status"]}) == HOSTS, "no two together"
        assert tenant.run() == dict.fromkeys(made.hosts, 3)
        refused = next(vm for vm in apart if "host" not in vm["status"])
        assert f"{HOSTS} with a machine of the same PlacementGroup apart" in condition(refused, "Scheduled")["message"]
        refused = next(vm for vm in many if "host" not in vm["status"])
        assert "without enough memory (" in (said := condition(refused, "Scheduled")["message"]), said
        assert "; needs 1Gi, most left is " in said

        gone = next(vm for vm in apart if "host" in vm["status"])
        await client.delete(VirtualMachine.KIND, gone["metadata"]["name"], namespace)

        async def replaced() -> bool:
            """Another member has its place, and is still the only one there."""
            found = [vm for vm in await tenant.machines("apart") if vm.get("status", {}).get("phase") == "Running"]
            there = Counter(vm["status"]["host"] for vm in found)
            assert max(there.values()) == 1
            return len(there) == HOSTS and gone["metadata"]["name"] not in {vm["metadata"]["name"] for vm in found}

        await until(replaced, "another member takes the place that is free")

        one = next(vm for vm in many if "host" in vm["status"])
        name, host = one["metadata"]["name"], one["status"]["host"]

        def says(vm: str, words: str | None) -> Callable[[], Awaitable[bool]]:
            async def asked() -> bool:
                found = condition(await client.get(VirtualMachine.KIND, vm, namespace), "PlacementSatisfied")
                return words in found["message"] if found and words is not None else not found and words is None

            return asked

        async def told() -> Raw | None:
            status: Raw = (await client.get(PlacementGroup.KIND, "apart", namespace)).get("status", {})
            satisfied = condition({"status": status}, "Satisfied").get("reason")
            return status if (satisfied, status.get("members")) == ("Together", MEMBERS) else None

        await client.patch(VirtualMachine.KIND, name, {"metadata": {"labels": {"app": "apart"}}}, namespace)
        await until(
            says(name, "with a machine of the same PlacementGroup apart"), "it says that it is not as it shall be"
        )
        beside = next(
            vm["metadata"]["name"]
            for vm in await tenant.machines("apart")
            if vm["status"].get("host") == host and vm["metadata"]["name"] != name
        )
        await until(says(beside, f"({name})"), "and so does the one that was there")
        taints = [{"key": "broken", "effect": "NoSchedule"}]
        await client.patch(Host.KIND, host, {"spec": {"taints": taints}})
        await until(says(beside, "with taint broken"), "a taint is told of as well")
        status = await until(told, "the group says so, and how many are where")
        others = [{"value": each, "machines": 1} for each in sorted(made.hosts) if each != host]
        assert status["topologies"] == [{"value": host, "machines": 2}, *others]
        assert tenant.run() == dict.fromkeys(made.hosts, 3), "none was moved or stopped"
        await client.patch(Host.KIND, host, {"spec": {"taints": []}})
        await client.patch(VirtualMachine.KIND, name, {"metadata": {"labels": {"app": "other"}}}, namespace)
        await until(says(name, None), "it is well again")
        await until(says(beside, None), "and so is the other")


@asynccontextmanager
async def hosts_and_controllers(
    lab: Lab, cluster: NativeCluster, namespace: str, directory: Path, tag: str
) -> AsyncIterator[tuple[Cloud, Callable[[], Awaitable[None]]]]:
    """Hosts, and controllers that can be killed and started again. Nothing of a namespace, nor of the hosts, is left."""
    with ExitStack() as running:

        def start() -> None:
            running.enter_context(controllers(directory, cluster, namespace, "controllers"))

        async def restart() -> None:
            """Killed from one moment to the next; who comes after knows what is on record."""
            await asyncio.to_thread(running.close)
            await asyncio.to_thread(start)

        await asyncio.to_thread(start)
        async with hosts(lab, directory, tag) as made:
            try:
                yield made, restart
            finally:
                await asyncio.to_thread(running.close)
                await _clear(made)


async def _clear(made: Cloud) -> None:
    """The hosts are no more, with all there is for them; machines go with their namespace. Whoever would see to that is gone."""
    for name in made.hosts:
        await made.client.patch(Host.KIND, name, {"metadata": {"finalizers": []}})
        await made.client.delete(Host.KIND, name)
        await made.client.delete(NAMESPACE, host_namespace(name))
