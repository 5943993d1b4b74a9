"""A host for component tests: its namespace on a real API server, a world, and agents that come and go."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kumulus.api.base import FINALIZER
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import (
    gateway_order_name,
    instance_order_name,
    segment_order_name,
    snapshot_order_name,
    volume_order_name,
)
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolParameters
from kumulus.api.segments import NetworkDriverName
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus_agents.agent.agent import Agent, Drivers, Place
from kumulus_agents.agent.instance_files import InstanceFiles, NoFiles
from kumulus_agents.agent.report import MachineFacts
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.protocol import Hypervisor
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.network.protocol import NetworkDriver
from kumulus_agents.network.simulated import SimulatedFabric, SimulatedNetworks
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.layers import Layers
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import SimulatedSettings, StorageSettings
from kumulus_agents.storage.simulated import SimulatedPool, SimulatedStorage
from tests import leftovers
from tests.patience import PATIENCE

DEADLINE = 30.0
POOL = {
    "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "pool")),
    "name": "local",
    "driver": "dir",
    "parameters": {"path": "/var/lib/kumulus/pools/local"},
}
BEYOND = {
    "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "beyond")),
    "name": "beyond",
    "driver": "dir",
    "parameters": {"path": "/var/lib/kumulus/pools/beyond"},
}
"""Another pool of the same host."""
IMAGE = {"uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "image")), "sha256": "a" * 64, "format": "qcow2"}


class NoConsole:
    """A reader of consoles that say one line."""

    async def tail(self, uid: str, max_bytes: int) -> str | None:
        return f"login of {uid}"[-max_bytes:]


async def eventually(probe: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Wait until `probe` (a function or coroutine function) gives something true, and return it."""
    seconds *= PATIENCE
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = probe()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what} did not come to be within {seconds} s")
        await asyncio.sleep(0.02)


@dataclass
class TestHost:
    """One host."""

    __test__ = False

    client: KubeClient
    """For the test, which plays the controllers."""
    name: str
    agents_client: KubeClient = field(init=False)
    machine: SimulatedHost = field(default_factory=SimulatedHost)
    pools: dict[str, SimulatedPool] = field(default_factory=dict)
    drivers: list[SimulatedStorage] = field(default_factory=list)
    simulated: SimulatedSettings = field(
        default_factory=lambda: SimulatedSettings(import_seconds=0, disk_seconds=0, image_bytes=1 << 20)
    )
    directory: Path | None = None
    """Where pools really are, with the driver dir; None: they are simulated."""
    files: InstanceFiles = field(default_factory=NoFiles)
    fabric: SimulatedFabric = field(default_factory=SimulatedFabric)
    """Its networks."""
    wrap: Callable[[StorageDriver], StorageDriver] = lambda driver: driver
    """What the agents get in place of a pool's driver."""
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Pools of volumes that are not in the usual one."""
    writes: list[tuple[str, str]] = field(default_factory=list)
    """Verb and kind of every write that the host's agents made."""

    @property
    def namespace(self) -> str:
        return host_namespace(self.name)

    def _pool(self, pool: PoolRef, _: Secrets) -> StorageDriver:
        if self.directory is not None:
            place = "pool" if pool.uid == POOL["uid"] else pool.name
            parameters = PoolParameters(path=str(self.directory / place))
            settings = StorageSettings(roots=(PurePosixPath(self.directory),), readers=())
            return self.wrap(DirStorage(pool.model_copy(update={"parameters": parameters}), settings))
        state = self.pools.setdefault(pool.uid, SimulatedPool())
        driver = SimulatedStorage(pool, StorageSettings(simulated=self.simulated), state=state)
        self.drivers.append(driver)
        return self.wrap(driver)

    @property
    def storage(self) -> SimulatedStorage:
        """The driver that the last agent made for the pool."""
        return self.drivers[-1]

    def layers(self, volume: str) -> Layers:
        """Of a volume in the usual pool."""
        return self.pools[str(POOL["uid"])].layers[volume]

    def storage_of(self, pool: Mapping[str, Any]) -> SimulatedStorage:
        """The driver that the last agent made for that pool."""
        state = self.pools[pool["uid"]]
        return next(driver for driver in reversed(self.drivers) if driver.state is state)

    def count(self, verb: str, kind: str) -> int:
        """How many such writes the agents made."""
        return self.writes.count((verb, kind))

    def agent(
        self,
        client: KubeClient | None = None,
        hypervisor: Hypervisor | None = None,
        networks: NetworkDriver | None = None,
        **options: Any,
    ) -> Agent:
        drivers = Drivers(
            hypervisor=hypervisor or SimulatedHypervisor(self.machine),
            pool=self._pool,
            files=self.files,
            console=NoConsole(),
            networks={NetworkDriverName.LINUX: networks or SimulatedNetworks(self.fabric)},
            facts=MachineFacts(addresses=lambda: ("192.0.2.7",), agent="test", kernel="6", os="Test"),
        )
        options.setdefault("timings", Timings(workers=2))
        return Agent(Place(self.name, self.namespace), client or self.agents_client, drivers, **options)

    @asynccontextmanager
    async def running(self, client: KubeClient | None = None, **options: Any) -> AsyncIterator[Agent]:
        """An agent that works inside the block and is killed (cancelled) at its end."""
        agent = self.agent(client, **options)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(agent.run())
            try:
                yield agent
            finally:
                task.cancel()

    async def order(self, **instance: Any) -> str:
        """Create the order of a machine; returns the machine's uid."""
        uid = instance.setdefault("uid", str(uuid.uuid4()))
        body = {
            "epoch": 1,
            "power": "Running",
            "restartPolicy": "Always",
            "stop": {"mode": "Graceful", "gracePeriodSeconds": 60},
            "cpus": 1,
            "memory": 256 << 20,
            "disks": [],
        } | instance
        await self.create(
            instance_order_name(uid),
            {"type": "Instance", "for": self._for("VirtualMachine", "vm", uid), "term": 1, "instance": body},
        )
        return str(uid)

    async def segment_order(self, uid: str | None = None, **segment: Any) -> str:
        """Create the order of a network's presence; returns the network's uid."""
        uid = uid or str(uuid.uuid4())
        body = {
            "uid": uid,
            "driver": "linux",
            "vni": 5000,
            "mtu": 1450,
            "subnets": [{"cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "service": "10.0.0.2"}],
        } | segment
        await self.create(
            segment_order_name(uid), {"type": "Segment", "for": self._for("Network", "front", uid), "segment": body}
        )
        return uid

    async def gateway_order(self, gateway: dict[str, Any]) -> None:
        """Create the order of a load balancer."""
        for_ = self._for("LoadBalancer", "site", gateway["uid"])
        await self.create(gateway_order_name(gateway["uid"]), {"type": "Gateway", "for": for_, "gateway": gateway})

    async def import_order(self, name: str = "image-1", image: dict[str, Any] | None = None) -> None:
        image = image or IMAGE
        disk = {"pool": POOL, "importImage": {"image": image, "http": {"url": "http://images.example/a.qcow2"}}}
        await self.create(name, {"type": "Disk", "for": self._for("Image", "debian", image["uid"]), "disk": disk})

    async def volume_order(self, uid: str | None = None, pool: dict[str, Any] | None = None, **volume: Any) -> str:
        """Create the order of a volume; returns the volume's uid."""
        uid, pool = uid or str(uuid.uuid4()), pool or POOL
        self.places[uid] = pool
        disk = {"pool": pool, "volume": {"uid": uid, "thick": False, "retain": False} | volume}
        await self.create(
            volume_order_name(uid), {"type": "Disk", "for": self._for("Volume", "data", uid), "disk": disk}
        )
        return uid

    async def snapshot_order(
        self, *volumes: str, uid: str | None = None, pool: Mapping[str, Any] | None = None, **snapshot: Any
    ) -> str:
        """Create the order of a snapshot of these volumes; its uid. Of the first volume it is the VolumeSnapshot's."""
        uid = uid or str(uuid.uuid4())
        items = [
            {
                "snapshot": uid if not number else str(uuid.uuid5(uuid.UUID(uid), volume)),
                "volume": volume,
                "pool": pool or self.places.get(volume, POOL),
            }
            for number, volume in enumerate(volumes)
        ]
        spec = {
            "type": "Snapshot",
            "for": self._for("VolumeSnapshot", "before", uid),
            "snapshot": {"items": items, **snapshot},
        }
        await self.create(snapshot_order_name(uid), spec)
        return uid

    async def until_snapshot(self, uid: str, seconds: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        return await self.until(snapshot_order_name(uid), seconds, **wanted)

    async def change_volume(self, uid: str, **volume: Any) -> None:
        patch = {"spec": {"disk": {"volume": volume}}}
        await self.client.patch(WorkOrder.KIND, volume_order_name(uid), patch, self.namespace)

    async def until_volume(self, uid: str, seconds: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        return await self.until(volume_order_name(uid), seconds, **wanted)

    async def until_attached(self, uid: str, *volumes: str, seconds: float = DEADLINE) -> dict[str, Any]:
        """Wait until the machine is reported to have just these volumes."""

        async def reached() -> dict[str, Any] | None:
            status = await self.status(instance_order_name(uid))
            return status if set((status.get("instance") or {}).get("volumes") or ()) == set(volumes) else None

        found: dict[str, Any] = await eventually(reached, f"volumes {volumes}", seconds)
        return found

    async def create(self, name: str, spec: dict[str, Any]) -> None:
        body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec}
        await self.client.create(WorkOrder.KIND, body, self.namespace)

    @staticmethod
    def _for(kind: str, name: str, uid: str) -> dict[str, str]:
        return {"kind": kind, "namespace": "tenant", "name": name, "uid": uid}

    async def status(self, name: str) -> dict[str, Any]:
        raw = await self.client.find(WorkOrder.KIND, name, self.namespace)
        return dict((raw or {}).get("status") or {})

    async def change(self, uid: str, **instance: Any) -> None:
        patch = {"spec": {"instance": instance}}
        await self.client.patch(WorkOrder.KIND, instance_order_name(uid), patch, self.namespace)

    async def delete(self, name: str) -> None:
        await self.client.delete(WorkOrder.KIND, name, self.namespace)

    async def gone(self, name: str) -> bool:
        return await self.client.find(WorkOrder.KIND, name, self.namespace) is None

    async def until(self, name: str, seconds: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        """Wait until the order's status has these values (state, reason, ...), and return it."""
        last: dict[str, Any] = {}

        async def reached() -> dict[str, Any] | None:
            nonlocal last
            last = await self.status(name)
            return last if all(last.get(key) == value for key, value in wanted.items()) else None

        try:
            found: dict[str, Any] = await eventually(reached, f"{name} {wanted}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {last}") from None
        return found

    async def until_instance(self, uid: str, seconds: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        return await self.until(instance_order_name(uid), seconds, **wanted)


@asynccontextmanager
async def host_on(kubeconfig: Path, *, namespace_made: bool = True, **options: Any) -> AsyncIterator[TestHost]:
    """A host with a namespace of its own."""
    client = await KubeClient.from_kubeconfig(kubeconfig, user_agent="tests")
    host = TestHost(client, f"t{secrets.token_hex(4)}", **options)
    host.agents_client = await KubeClient.from_kubeconfig(
        kubeconfig, user_agent="tests-agent", on_write=lambda verb, kind, _: host.writes.append((verb, kind.kind))
    )
    try:
        if namespace_made:
            await client.create(NAMESPACE, {"metadata": {"name": host.namespace}})
        yield host
    finally:
        leftovers.leave(host.namespace)
        await host.agents_client.close()
        await client.close()
