"""A whole cloud in this process: an API server (in memory or a real one), controllers, two simulated hosts with their agents.

Controllers and agents are the product's own; a watch feeds each store of the controllers through a `Reflector`, so that it can
be tampered with (kopf feeds them in `kumulus run`; `test_outages.py` has that). They are processes as far as they can tell:
killed at any deed, and started again with nothing but what the API server and their host remember.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from kumulus.api.base import Kind
from kumulus.api.fabric import REBUILD, Host, Zone, host_namespace
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import OPERATORS_NAMESPACE
from kumulus.api.segments import NetworkDriverName
from kumulus.api.storage import StoragePool
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import Reflector
from kumulus.runtime.controller import Controller
from kumulus.runtime.modules import GROUP, ModuleTree, discover
from kumulus.runtime.reconciler import Caches, Services
from kumulus_agents.agent.agent import Agent, Drivers, Place
from kumulus_agents.agent.instance_files import NoFiles
from kumulus_agents.agent.report import MachineFacts
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import GIB, SimulatedHost, SimulatedSettings
from kumulus_agents.network.protocol import NetworkError
from kumulus_agents.network.simulated import SimulatedFabric, SimulatedNetworks
from kumulus_agents.storage.layers import Layers
from kumulus_agents.storage.protocol import StorageDriver, StorageError
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import SimulatedSettings as PoolSettings
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.simulated import SimulatedPool, SimulatedStorage
from kumulus_controllers.fabric.fencing import FencingError
from tests.fault.backends import Backend
from tests.fault.books import Books, keep, keep_pool
from tests.fault.parties import Crash, Life, Party, PartyClock, Tapped, tap
from tests.fault.switch import SWITCH, Switch, plug_in
from tests.fault.ways import MemoryTransfer, Ways

Raw = dict[str, Any]
CONTROLLERS = "controllers"
RIVALS = "rivals"
"""A second process of controllers, which believes that it leads as well."""
HOSTS = ("one", "two")
ZONE = "z1"
POOL = "local"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NoConsole:
    """Consoles that say nothing."""

    async def tail(self, uid: str, max_bytes: int) -> str | None:
        return None


class Site:
    """A host, with all that outlives its agent."""

    def __init__(self, name: str, books: Books, time: Callable[[], float], shared: dict[str, SimulatedPool]) -> None:
        self.name = name
        self.machine = SimulatedHost(SimulatedSettings(cpus=32, memory=64 * GIB), clock=time)
        self.fabric = SimulatedFabric()
        self.pools: dict[str, SimulatedPool] = {}
        self._shared, self._books = shared, books
        keep(books, name, self.machine, self.fabric)

    def pool(self, pool: PoolRef) -> SimulatedPool:
        """What is in a pool here."""
        pools, place = (self._shared, "in common") if pool.shared else (self.pools, f"on {self.name}")
        if pool.uid not in pools:
            pools[pool.uid] = keep_pool(self._books, f"in {pool.name} {place}", SimulatedPool())
        return pools[pool.uid]

    def inventory(self) -> list[str]:
        """All that is there."""
        return sorted(
            [
                *(f"domain {domain}" for domain in self.machine.domains.values()),
                *(f"segment {segment}" for segment in self.fabric.segments.values()),
                *(f"port {port}" for port in self.fabric.ports.values()),
                *(f"gateway {gateway}" for gateway in self.fabric.gateways.values()),
                *(line for pool in self.pools.values() for line in contents(pool)),
            ]
        )


def contents(pool: SimulatedPool) -> list[str]:
    """All that is in a pool."""
    return [
        *(f"image {image}" for image in pool.images.values()),
        *(f"disk {uid}/{name} {disk}" for uid, disks in pool.disks.items() for name, disk in disks.items()),
        *(f"volume {volume}" for volume in pool.volumes.values()),
        *(f"layers {uid} {_merged(layers)}" for uid, layers in pool.layers.items()),
        *(f"base {uid} {base}" for uid, base in pool.bases.items()),
        *(f"arriving {uid} {traits}" for uid, traits in pool.arriving.items()),
    ]


def _merged(layers: Layers) -> Layers:
    """As they are once they are tidied: an attempt at a snapshot that was cut short leaves one more."""
    begun = layers.merging
    while begun is None and (pair := layers.next_merge(frozenset())) is not None:
        layers = layers.merged(*pair)
    return layers


@functools.cache
def _modules() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


class World:
    """One cloud. Used within `world()`."""

    def __init__(self, backend: Backend, hosts: Sequence[str] = HOSTS) -> None:
        self.backend = backend
        loop = asyncio.get_running_loop()
        self.books = Books(loop.time)
        self.shared: dict[str, SimulatedPool] = {}
        self.ways = Ways()
        self.sites = {name: Site(name, self.books, loop.time, self.shared) for name in hosts}
        self.parties = {name: Party(name, self._deed) for name in (CONTROLLERS, *hosts)}
        self.user: KubeClient
        self.names: dict[str, str] = {}
        """Uid of everything that was ever made -> what it is."""
        self.problems: list[str] = []
        """What must never happen: errors that nobody expected, processes that ended by themselves."""
        self.on_deed: Callable[[Party, str], None] = lambda party, label: None
        self.version = ""
        """Version of everything when the steps of the plan began."""
        self.cuts = 0
        """How often the power of a host was cut."""
        self._term = 0
        self._off: set[str] = set()
        self._tasks: asyncio.TaskGroup
        self._troubles: list[asyncio.Task[None]] = []
        self._running: dict[str, asyncio.Task[None]] = {}

    def _deed(self, party: Party, label: str) -> None:
        self.on_deed(party, label)

    # Parties

    async def begin(self, tasks: asyncio.TaskGroup, *, controllers: bool) -> None:
        """Everybody starts."""
        self._tasks = tasks
        await self._found(controllers=controllers)

    async def rebuild(self, backend: Backend, *, late: str | None = None) -> None:
        """All objects are lost; who runs the cloud has controllers run with an empty API server, and hosts join that one, but for
        one that is `late`. Hosts, and what runs there, are as they were."""
        parts = list(self._running)
        for name in parts:
            await self.stop(name)
        before = (await self.user.get(StoragePool.KIND, POOL))["metadata"]["uid"]
        await self.user.close()
        self.backend = backend
        await self._found(controllers=CONTROLLERS in parts, rebuilt=before, late=late)

    async def _found(self, *, controllers: bool, rebuilt: str | None = None, late: str | None = None) -> None:
        self.user = await self.backend.client("user")
        await self.ensure(NAMESPACE, "default", {})  # events of what has no namespace are there
        await self.ensure(Zone.KIND, ZONE, {})
        await self._key_of_switches()
        path = {"path": f"/var/lib/kumulus/pools/{POOL}"}
        await self.ensure(StoragePool.KIND, POOL, {"driver": "dir", "zone": ZONE, "parameters": path})
        marks = {}
        if rebuilt is not None:  # the directory is the same one
            marks["annotations"] = {REBUILD: "true"}
            uid = (await self.user.get(StoragePool.KIND, POOL))["metadata"]["uid"]
            for site in self.sites.values():
                site.pools[uid] = site.pools.pop(rebuilt, SimulatedPool())
        if controllers:
            self.start(CONTROLLERS)
        for name in self.sites:
            spec = {"zone": ZONE, "hypervisor": "simulated"}
            await self.ensure(Host.KIND, name, spec, labels={"role": name}, **marks)
        joining = [name for name in self.sites if name != late]
        for name in joining:
            await self.until(lambda name=name: self.user.find(NAMESPACE, host_namespace(name)), "a host's namespace")
            self.start(name)
        for name in joining:
            await self.until(lambda name=name: self._usable(name), f"host {name} is ready")

    async def _usable(self, name: str) -> bool:
        host = await self.user.find(Host.KIND, name)
        return host is not None and host.get("status", {}).get("phase") == "Ready"

    def start(self, name: str) -> None:
        """A party begins, and begins again whenever it dies."""
        self._off.discard(name)
        party = self.parties.setdefault(name, Party(name, self._deed))
        body = self._agent if name in self.sites else self._controllers
        self._running[name] = self._tasks.create_task(self._supervise(party, body), name=name)

    def boot(self, name: str) -> None:
        """A host is itself again. It was: nothing."""
        if self.stopped(name):
            self.start(name)

    async def stop(self, name: str) -> None:
        """A party is gone for good, at once."""
        task = self._running.pop(name, None)
        if task is not None:
            self.parties[name].crash()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stopped(self, name: str) -> bool:
        """Whether a party is not there."""
        return name not in self._running

    def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Something goes on beside everything else."""
        self._troubles.append(self._tasks.create_task(work))

    async def calm(self) -> None:
        """Whatever was begun by `during` has ended. Raises AssertionError when it has failed."""
        while self._troubles:
            await self._troubles.pop(0)
        await self.stop(RIVALS)

    @property
    def troubled(self) -> bool:
        """Whether something that was begun by `during` goes on."""
        return any(not task.done() for task in self._troubles)

    async def end(self) -> None:
        """Everybody stops."""
        for task in self._troubles:
            task.cancel()
        for name in list(self._running):
            await self.stop(name)
        with contextlib.suppress(errors.KubeError):
            await self.user.delete(SECRET, SWITCH, OPERATORS_NAMESPACE)
        await self.user.close()

    async def _key_of_switches(self) -> None:
        await self.ensure(NAMESPACE, OPERATORS_NAMESPACE, {})
        with contextlib.suppress(errors.AlreadyExists):
            body = {"metadata": {"name": SWITCH}, "data": {"username": "YQ==", "password": "YQ=="}}
            await self.user.create(SECRET, body, OPERATORS_NAMESPACE)

    async def cut_power(self, name: str) -> None:
        """A host is off, until it is started: its agent is gone, and its guests are."""
        self._off.add(name)
        self.cuts += 1
        await self.stop(name)
        self.sites[name].machine.reboot()

    def powered(self, name: str) -> bool:
        """Whether a host is on, as what switches it knows."""
        return name not in self._off

    async def _supervise(self, party: Party, body: Callable[[Life], Awaitable[None]]) -> None:
        while True:
            life = party.born()
            process = asyncio.ensure_future(body(life))
            dying = asyncio.ensure_future(life.dead.wait())
            try:
                await asyncio.wait({process, dying}, return_when=asyncio.FIRST_COMPLETED)
                if not life.dead.is_set():
                    self.problems.append(f"{party.name} ended by itself: {_why(process)}")
            finally:
                life.dead.set()
                for task in (process, dying):
                    task.cancel()
                await asyncio.gather(process, dying, return_exceptions=True)
            await asyncio.sleep(party.downtime)

    async def _client(self, life: Life) -> KubeClient:
        client = await self.backend.client(life.party.name, life)
        assert isinstance(client, Tapped)
        client.learn = self._learn
        return client

    def _learn(self, answer: Raw) -> None:
        meta = answer.get("metadata") or {}
        if meta.get("uid") and answer.get("kind"):
            self.names[meta["uid"]] = f"<{answer['kind']} {meta['name']}>"

    async def _controllers(self, life: Life) -> None:
        client = await self._client(life)
        self._term += 1
        term, caches, clock = self._term, Caches(), PartyClock(life.party, self.backend.clock)
        controllers: list[Controller] = []
        try:
            tree = ModuleTree(discover(_modules()), include=["controllers"], exclude=["controllers.network.endpoints"])
            switch = tap(Switch(self), life, lambda why: FencingError(why, reason="AnswerLost"))
            plug_in(tree, switch)
            reconcilers = await tree.setup(Services(client, caches, clock, lambda: term), {})
            broken = [f"{node.name}: {node.why}" for node in tree.nodes if node.state == "failed"]
            assert not broken, broken
            controllers += [Controller(reconciler, workers=4) for reconciler in reconcilers]
            async with asyncio.TaskGroup() as tasks:
                reflectors = [Reflector(store, client) for store in caches.watched()]
                reflectors += [
                    Reflector(part.store, client, fields=part.fields, labels=part.labels)
                    for part in caches.reflections()
                ]
                for reflector in reflectors:
                    tasks.create_task(reflector.run())
                for reflector in reflectors:
                    await reflector.synced.wait()
                life.party.wire.rewound = None
                for controller in controllers:
                    await controller.start()
                life.idle = lambda: all(controller.idle for controller in controllers)
                await asyncio.Event().wait()
        finally:
            working = [controller._task for controller in controllers if controller._task is not None]
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            await client.close()

    async def _agent(self, life: Life) -> None:
        site, client = self.sites[life.party.name], await self._client(life)
        settings = StorageSettings(simulated=PoolSettings(import_seconds=0.01, disk_seconds=0, image_bytes=1 << 20))

        def pool(pool: PoolRef, _: Secrets) -> StorageDriver:
            driver = SimulatedStorage(pool, settings, state=site.pool(pool))
            tapped: StorageDriver = tap(driver, life, lambda why: StorageError(why, reason="AnswerLost"))
            return tapped

        address = f"192.0.2.{1 + HOSTS.index(site.name)}"
        drivers = Drivers(
            transfer=MemoryTransfer(site.name, address, self.ways, life),
            hypervisor=tap(
                SimulatedHypervisor(site.machine), life, lambda why: HypervisorError(why, reason="AnswerLost")
            ),
            pool=pool,
            files=NoFiles(),
            console=NoConsole(),
            networks={
                NetworkDriverName.LINUX: tap(
                    SimulatedNetworks(site.fabric), life, lambda why: NetworkError(why, reason="AnswerLost")
                )
            },
            facts=MachineFacts(addresses=lambda: (address,), agent="test", kernel="6", os="Test"),
        )
        agent = Agent(
            Place(site.name, host_namespace(site.name)),
            client,
            drivers,
            timings=Timings(lease_seconds=4, renew_seconds=1, report_seconds=5, workers=4),
            clock=PartyClock(life.party, self.backend.clock),
        )
        life.idle = lambda: agent.reflector.synced.is_set() and agent.queue.idle
        try:
            await agent.run()
        finally:
            await client.close()

    def idle(self) -> bool:
        """Whether nobody has anything to do now."""
        return not self.troubled and all(
            party.life is not None and not party.life.dead.is_set() and party.life.idle() and not party.under_way
            for name, party in self.parties.items()
            if name in self._running
        )

    # The user

    async def ensure(self, kind: Kind, name: str, spec: Raw, namespace: str | None = None, **meta: Any) -> None:
        """Make it unless it is there."""
        try:
            await self.make(kind, name, spec, namespace, **meta)
        except errors.AlreadyExists:
            return

    async def make(self, kind: Kind, name: str, spec: Raw, namespace: str | None = None, **meta: Any) -> Raw:
        """The user makes something."""
        body = {"metadata": {"name": name, **meta}} | ({} if kind == NAMESPACE else {"spec": spec})
        made = await self.user.create(kind, body, namespace)
        self._learn(made | {"kind": kind.kind})
        return made

    async def until(self, probe: Callable[[], Awaitable[Any]], what: str, seconds: float = 60) -> Any:
        """The first true answer. Raises AssertionError."""
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + seconds, 0.02
        while True:
            try:
                if found := await probe():
                    return found
            except errors.Unreachable:
                pass
            if loop.time() > end:
                raise AssertionError(f"{what}: not within {seconds:.0f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, 0.25)


def _why(process: asyncio.Future[None]) -> str:
    if process.cancelled():
        return "cancelled"
    error = process.exception()
    return repr(error)


@asynccontextmanager
async def world(backend: Backend, hosts: Sequence[str] = HOSTS, *, controllers: bool = True) -> AsyncIterator[World]:
    """A cloud whose parties run until the block ends; without `controllers`, those are processes of somebody else."""
    made = World(backend, hosts)
    with complaints(made.problems):
        async with asyncio.TaskGroup() as tasks:
            try:
                await made.begin(tasks, controllers=controllers)
                yield made
            finally:
                await made.end()


class complaints:  # noqa: N801 - a context manager
    """Whatever is logged with an exception inside the block is a problem."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        self._before = structlog.get_config()
        structlog.configure(processors=[self._take], cache_logger_on_first_use=False)

    def __exit__(self, *_: object) -> None:
        structlog.configure(**self._before)

    def _take(self, logger: Any, method: str, event: Mapping[str, Any]) -> Any:
        error = event.get("exc_info")
        if error:
            found = sys.exc_info()[1]
            if found is not None and not _is_crash(found):
                self._problems.append(f"{dict(event)}: {''.join(traceback.format_exception(found))}")
        raise structlog.DropEvent


def _is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_crash(one) for one in error.exceptions)
    return isinstance(error, Crash)
