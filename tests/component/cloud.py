"""A cloud for component tests: the lab's API server and controllers, and hosts in the test's own process.

Their agents are the real ones, with real pools and first-boot files; only the hypervisors are simulated, so that their
books can be read. A host's agent can be killed and started again.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kumulus.api.base import Kind
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus_agents.agent.agent import Agent, Drivers, Place
from kumulus_agents.agent.drivers import LoggedConsole, stored_files
from kumulus_agents.agent.identity import StateDirectory
from kumulus_agents.agent.report import MachineFacts
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.domain import Domain, DomainSpec
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings
from kumulus_agents.storage import registry
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import CephSettings, FetchSettings, StorageSettings
from kumulus_agents.transfer.settings import TransferSettings
from kumulus_agents.transfer.transfer import Transfer
from kumulus_agents.watchdog.client import Watchdog
from kumulus_lab.lab import Lab
from kumulus_lab.state import ZONE
from tests.patience import PATIENCE
from tests.unit.storage.server import Server, serving

Raw = dict[str, Any]
GIB = 1 << 30
EXCHANGE = TransferSettings(
    address=ipaddress.ip_address("127.0.0.1"),
    port=0,
    upload_port=0,
    migration_port=0,
    connect_timeout=5,
    idle_timeout=5,
)


# What a machine's owner sees of it


def phase(wanted: str) -> Callable[[Raw], bool]:
    """The machine is in that phase."""
    return lambda vm: vm.get("status", {}).get("phase") == wanted


def reason(wanted: str, type_: str = "Ready") -> Callable[[Raw], bool]:
    """The condition gives that reason."""
    return lambda vm: condition(vm, type_).get("reason") == wanted


def condition(item: Raw, type_: str = "Ready") -> Raw:
    found: list[Raw] = item.get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == type_), {})


# The hosts


class GatedHypervisor(SimulatedHypervisor):
    """Begins every start and ends none before the gate is open."""

    def __init__(self, host: SimulatedHost) -> None:
        super().__init__(host)
        self.gate = asyncio.Event()
        self.begun: set[str] = set()

    async def start(self, spec: DomainSpec) -> Domain:
        self.begun.add(spec.marks.uid)
        await self.gate.wait()
        return await super().start(spec)


@dataclass
class SimHost:
    """A host: a simulated hypervisor, a real pool and real files, and an agent that can be killed."""

    name: str
    directory: Path
    client: KubeClient
    settings: SimulatedSettings
    lease_seconds: int = 20
    gated: bool = False
    transfer: bool = False
    """Whether it exchanges images with other hosts, over loopback."""
    watchdog: Watchdog | None = None
    machine: SimulatedHost = field(init=False)
    hypervisor: SimulatedHypervisor = field(init=False)
    _agent: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.machine = SimulatedHost(self.settings)
        self.hypervisor = (GatedHypervisor if self.gated else SimulatedHypervisor)(self.machine)

    def start(self) -> None:
        """Power on."""
        state = StateDirectory(self.directory)
        state.prepare()
        files = stored_files(state)
        drivers = Drivers(
            hypervisor=self.hypervisor,
            pool=self._pool,
            files=files,
            console=LoggedConsole(files),
            facts=MachineFacts(addresses=lambda: ("192.0.2.7",), agent="test", kernel="6", os="Test"),
            transfer=Transfer(self.name, EXCHANGE, self.client.server) if self.transfer else None,
            watchdog=self.watchdog,
        )
        timings = Timings(
            lease_seconds=self.lease_seconds,
            renew_seconds=min(1.0, self.lease_seconds / 2),
            beat_seconds=max(0.5, self.lease_seconds / 8),
            workers=8,
        )
        agent = Agent(Place(self.name, host_namespace(self.name)), self.client, drivers, timings=timings)
        self._agent = asyncio.create_task(agent.run(), name=self.name)

    async def kill(self) -> None:
        """The agent is gone from one moment to the next; its guests are left."""
        if self._agent is not None:
            task, self._agent = self._agent, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _pool(self, pool: PoolRef, secrets: Secrets) -> StorageDriver:
        if pool.driver is not PoolDriver.DIR:
            ceph = CephSettings(runtime=PurePosixPath(self.directory / "ceph"), answer_seconds=2.0)
            scratch, mounts = PurePosixPath(self.directory / "scratch"), PurePosixPath(self.directory / "mounts")
            settings = StorageSettings(host=self.name, scratch=scratch, mounts=mounts, readers=(), ceph=ceph)
            return registry.load(pool.driver, pool, settings, secrets)
        root = self.directory.parent / "shared" if pool.shared else self.directory / "pools"
        fetch = FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),), backoff=0, retries=0)
        parameters = PoolParameters(path=str(root / pool.name), shared=pool.shared or None)
        here = pool.model_copy(update={"parameters": parameters})
        settings = StorageSettings(roots=(PurePosixPath(root),), readers=(), fetch=fetch, host=self.name)
        return DirStorage(here, settings)

    def left_over(self, uid: str) -> list[str]:
        """What the host still has of a machine."""
        found = [f"a domain on {self.name}"] if uid in self.machine.domains else []
        return found + [str(path) for path in self.directory.rglob(f"*{uid}*")]


class Cloud:
    """The lab's control plane, and hosts of our own, by what is special about them."""

    def __init__(self, lab: Lab, client: KubeClient, directory: Path, images: Server) -> None:
        self.lab, self.client, self.directory, self.images = lab, client, directory, images
        self.hosts: dict[str, SimHost] = {}

    async def add_host(
        self,
        role: str,
        *,
        memory: int = 32 * GIB,
        failure_rate: float = 0,
        **options: Any,
    ) -> None:
        """One more host, labelled with its role. Images are first fetched by the host with the most memory."""
        settings = SimulatedSettings(cpus=32, memory=memory, failure_rate=failure_rate)
        host = self.hosts[role] = SimHost(role, self.directory / role, self.client, settings, **options)
        body = {
            "metadata": {"name": role, "labels": {"role": role}},
            "spec": {"zone": ZONE, "hypervisor": "simulated"},
        }
        await self.client.create(Host.KIND, body)
        await until(lambda: self.client.find(NAMESPACE, host_namespace(role)), f"the namespace of host {role}")
        host.start()

    async def listed(self, kind: Kind, namespace: str | None = None) -> list[Raw]:
        return [item async for page, _ in self.client.list_pages(kind, namespace) for item in page]

    async def left_over(self, uid: str, *, given_up: str | None = None) -> list[str]:
        """Everything there still is of a machine, but for the machine itself and what is on a host that was given up."""
        found = [line for role, host in self.hosts.items() if role != given_up for line in host.left_over(uid)]
        for kind in (WorkOrder.KIND, SECRET):
            for item in await self.listed(kind):
                if uid in item["metadata"]["name"] or item.get("spec", {}).get("for", {}).get("uid") == uid:
                    found.append(f"{kind.kind} {item['metadata']['namespace']}/{item['metadata']['name']}")
        return found


async def until(probe: Callable[[], Awaitable[Any]], what: str, seconds: float = 45) -> Any:
    """The first true answer of `probe`. An API server that is not there is asked again."""
    seconds *= PATIENCE
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        last: object = None
        try:
            if found := await probe():
                return found
        except KubeError as error:
            if not error.retryable:
                raise
            last = error
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s" + (f" ({last})" if last else ""))
        await asyncio.sleep(0.1)


@asynccontextmanager
async def cloud(lab: Lab, directory: Path) -> AsyncIterator[Cloud]:
    """The lab's control plane with no hosts yet, until the block ends."""
    async with AsyncExitStack() as stack:
        images = await stack.enter_async_context(serving())
        client = await KubeClient.from_kubeconfig(lab.kubeconfig, user_agent="test-cloud")
        stack.push_async_callback(client.close)
        made = Cloud(lab, client, directory, images)
        try:
            yield made
        finally:
            for host in made.hosts.values():
                await host.kill()
