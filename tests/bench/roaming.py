"""What benches of moving and of failing over need: a machine that both hosts can run, an address of it in the world, somebody who
asks there all the time, and the switch of each host's power.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network
from kumulus.api.routing import FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, Volume
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists
from kumulus_lab.host import LibvirtHost
from tests.bench import guests
from tests.bench.cloud import BenchError, Cloud
from tests.bench.machines import RUNNING, USER_NAMESPACE

POOL = "roaming"
PATH = "/var/lib/kumulus/pools/shared"
MEMORY_MIB = 256
SECONDS = 120.0
Raw = dict[str, Any]
STORES: Sequence[tuple[Kind, str, Raw]] = (
    (StoragePool.KIND, POOL, {"driver": "dir", "parameters": {"path": PATH, "shared": True}}),
)
WAYS: Sequence[tuple[Kind, str, Raw]] = (
    (Network.KIND, "roaming", {"cidrs": ["10.90.0.0/24"]}),
    (SecurityGroup.KIND, "roaming", {"ingress": [{"protocol": "ICMP"}], "egress": [{}]}),
    (Router.KIND, "roaming", {"networks": ["roaming"], "externalNetwork": "public"}),
)


@dataclass(frozen=True, slots=True)
class Roaming:
    """What is there of it."""

    cloud: Cloud
    client: KubeClient

    async def until(self, kind: Kind, name: str, holds: Any, what: str, seconds: float = SECONDS) -> Raw:
        """The object, once that is so. Raises BenchError with its status."""
        end, found = asyncio.get_running_loop().time() + seconds, None
        while asyncio.get_running_loop().time() < end:
            found = await self.client.find(kind, name, USER_NAMESPACE if kind.namespaced else None)
            if found is not None and holds(found.get("status", {})):
                return found
            await asyncio.sleep(0.1)
        raise BenchError(f"{kind.kind} {name}: {what}: not within {seconds:.0f} s; {(found or {}).get('status')}")

    async def status(self, name: str) -> Raw:
        """That of a machine."""
        return dict((await self.client.get(VirtualMachine.KIND, name, USER_NAMESPACE)).get("status", {}))

    async def machine(self, name: str) -> Raw:
        """A machine with a disk of the image in the pool and an address in the world; it runs, and is answered."""
        await self._make(Volume.KIND, name, {"size": "64Mi", "pool": POOL, "source": {"image": guests.IMAGE}})
        spec = {
            "resources": {"cpus": 1, "memory": f"{MEMORY_MIB}Mi"},
            "disks": [{"name": "root", "volume": name}],
            "interfaces": [{"name": "eth0", "network": "roaming", "securityGroups": ["roaming"]}],
            "highAvailability": {"enabled": True, "maxRestarts": 64, "windowSeconds": 60},
            "stop": {"mode": "Force"},
        }
        await self._make(VirtualMachine.KIND, name, spec)
        await self._make(FloatingIP.KIND, name, {"externalNetwork": "public", "target": {"interface": f"{name}-eth0"}})
        await self.until(VirtualMachine.KIND, name, lambda status: status.get("phase") == RUNNING, "runs")
        address = await self.address(name)
        async with self.asking(address) as answers:
            await answers.first(SECONDS)
        return await self.client.get(VirtualMachine.KIND, name, USER_NAMESPACE)

    async def address(self, name: str) -> str:
        """By which it is asked from outside."""
        found = await self.until(FloatingIP.KIND, name, lambda status: status.get("phase") == "Active", "leads there")
        return str(found["status"]["address"])

    @asynccontextmanager
    async def asking(self, address: str) -> AsyncIterator[Answers]:
        """Somebody outside asks while the block runs, `pinger.EVERY` seconds apart."""
        network = self.cloud.lab.network
        assert network is not None
        argv = [*network.outside.enter, sys.executable, "-m", "tests.bench.pinger", address]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        answers = Answers(process)
        listening = asyncio.create_task(answers.listen())
        try:
            yield answers
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await listening
            await process.wait()

    async def ready(self, host: str, seconds: float = SECONDS) -> None:
        """The host takes machines."""
        await asyncio.to_thread(self.cloud.lab.services.wait_for_hosts, [host], seconds=seconds)

    def host(self, name: str) -> LibvirtHost:
        """That host."""
        return self.cloud.lab.host(name)

    def other(self, name: str) -> LibvirtHost:
        """The other one."""
        return next(host for host in self.cloud.lab.hosts if host.name != name)

    async def _make(self, kind: Kind, name: str, spec: Raw) -> None:
        try:
            await self.client.create(
                kind, {"metadata": {"name": name}, "spec": spec}, USER_NAMESPACE if kind.namespaced else None
            )
        except AlreadyExists:
            return

    async def prepare(self) -> None:
        """The image, the pool and the network are there."""
        await guests.prepare(self.cloud, self.client)
        for kind, name, spec in (*STORES, *WAYS):
            await self._make(kind, name, spec)
        await self.until(StoragePool.KIND, POOL, lambda status: status.get("readyHosts", 0) >= 2, "is on both hosts")

    async def clear(self) -> None:
        """Nothing of it is left but the image."""
        kinds = (VirtualMachine.KIND, FloatingIP.KIND, Router.KIND, Volume.KIND, SecurityGroup.KIND, Network.KIND)
        for kind in kinds:
            names = [
                item["metadata"]["name"]
                async for page, _ in self.client.list_pages(kind, USER_NAMESPACE)
                for item in page
            ]
            for name in names:
                if name != "default":
                    await self.client.delete(kind, name, USER_NAMESPACE)
            for name in names:
                if name != "default":
                    await self._gone(kind, name, USER_NAMESPACE)
        await self.client.delete(StoragePool.KIND, POOL)
        await self._gone(StoragePool.KIND, POOL, None)

    async def _gone(self, kind: Kind, name: str, namespace: str | None) -> None:
        end = asyncio.get_running_loop().time() + SECONDS
        while await self.client.find(kind, name, namespace) is not None:
            if asyncio.get_running_loop().time() > end:
                raise BenchError(f"{kind.kind} {name} does not go")
            await asyncio.sleep(0.2)


class Answers:
    """When answers came, as the one who asks says. Seconds of this machine's monotonic clock."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.times: list[float] = []
        self._news = asyncio.Event()

    async def listen(self) -> None:
        """Until there is no more."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.times.append(float(line))
            self._news.set()

    async def first(self, seconds: float, after: float = 0.0) -> float:
        """When the first answer after that moment came. Raises BenchError."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := [at for at in self.times[-200:] if at > after]):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise BenchError(f"nobody answers within {seconds:.0f} s") from None
        return found[0]


def gap(times: Sequence[float], since: float, until: float) -> float:
    """The longest time without an answer between two moments, in seconds. Pure."""
    known = [since, *(at for at in times if since < at < until), until]
    return max(later - earlier for earlier, later in itertools.pairwise(known))


@asynccontextmanager
async def roaming(cloud: Cloud) -> AsyncIterator[Roaming]:
    """All of it, and nothing is left of it."""
    client = await cloud.client(16)
    made = Roaming(cloud, client)
    try:
        try:
            await made.prepare()
            yield made
        finally:
            await made.clear()
    finally:
        await client.close()
