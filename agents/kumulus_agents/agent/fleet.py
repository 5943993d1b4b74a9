"""Many simulated hosts in one process: the same agents, one client, hypervisors and pools in memory.

For demonstrations and for measuring at scale. Hosts are made when they are missing; each agent
starts when the Host controller has made its namespace, and stops when that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import structlog

from kumulus.api.base import Kind, Resource
from kumulus.api.fabric import Host, HostSpec, HypervisorType, host_namespace
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, KubeError
from kumulus.kube.reflector import Reflector
from kumulus.kube.store import Store
from kumulus_agents.agent.agent import Agent, Drivers, Place
from kumulus_agents.agent.settings import Timings

log = structlog.get_logger(__name__)

CREATES_AT_ONCE = 16
STARTS_AT_ONCE = 64
"""Agents that list their orders at once while the fleet starts."""
RESTART_SECONDS = 5.0


class _Namespace(Resource):
    """A namespace, as far as it matters here."""

    KIND: ClassVar[Kind] = NAMESPACE


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Which hosts."""

    count: int
    prefix: str
    zone: str
    timings: Timings

    def names(self) -> list[str]:
        """prefix1, prefix2, ..."""
        return [f"{self.prefix}{number}" for number in range(1, self.count + 1)]


class Fleet:
    """The agents of simulated hosts."""

    def __init__(self, client: KubeClient, settings: FleetSettings, drivers: Callable[[str], Drivers]) -> None:
        """`drivers` makes those of one host, by its name."""
        self._client = client
        self._settings = settings
        self._drivers = drivers
        self._agents: dict[str, Agent] = {}
        self._stop = asyncio.Event()
        self._starting = asyncio.Semaphore(STARTS_AT_ONCE)

    @property
    def agents(self) -> list[Agent]:
        """Those that run."""
        return list(self._agents.values())

    def waiting(self) -> int:
        """Hosts whose agent has not read its orders yet."""
        return self._settings.count - sum(agent.reflector.synced.is_set() for agent in self._agents.values())

    def stop(self) -> None:
        """Stop all agents gracefully; `run` then returns."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop` is called or the task is cancelled."""
        names = self._settings.names()
        store: Store[_Namespace] = Store(_Namespace)
        async with asyncio.TaskGroup() as tasks:
            hosts = {host_namespace(name): (name, number) for number, name in enumerate(names)}

            def changed(before: _Namespace | None, after: _Namespace | None) -> None:
                item = after or before
                if item is None or item.name not in hosts or self._stop.is_set():
                    return
                name, number = hosts[item.name]
                if after is None and name in self._agents:
                    self._agents[name].stop()
                elif after is not None and not after.deleting and name not in self._agents:
                    phase = (number + 1) / len(hosts)
                    tasks.create_task(self._host(name, phase), name=name)

            store.listen(changed)
            reflecting = tasks.create_task(Reflector(store, self._client).run())
            creating = tasks.create_task(self._create(names))
            await self._stop.wait()
            reflecting.cancel()
            creating.cancel()
            for agent in self.agents:
                agent.stop()

    async def _create(self, names: list[str]) -> None:
        gate = asyncio.Semaphore(CREATES_AT_ONCE)
        spec = HostSpec(zone=self._settings.zone, hypervisor=HypervisorType.SIMULATED)
        body = {"zone": spec.zone, "hypervisor": spec.hypervisor.value}

        async def create(name: str) -> None:
            while True:
                try:
                    async with gate:
                        await self._client.create(Host.KIND, {"metadata": {"name": name}, "spec": body})
                except AlreadyExists:
                    return
                except KubeError as error:
                    if not error.retryable:
                        log.error("host not made", host=name, error=str(error))
                        return
                    await asyncio.sleep(1.0)
                else:
                    return

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(create(name))

    async def _host(self, name: str, phase: float) -> None:
        """One host's agent; started anew if it fails, which is logged."""
        drivers = self._drivers(name)
        while not self._stop.is_set():
            agent = self._agents[name] = Agent(
                Place(name, host_namespace(name)), self._client, drivers, timings=self._settings.timings, phase=phase
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._gently(agent))
                break
            except* Exception:
                log.exception("agent failed", host=name)
            await asyncio.sleep(RESTART_SECONDS)
        self._agents.pop(name, None)

    async def _gently(self, agent: Agent) -> None:
        """Run an agent, but only so many at once while they start."""
        async with asyncio.TaskGroup() as tasks:
            await self._starting.acquire()
            running = tasks.create_task(agent.run())
            synced = tasks.create_task(agent.reflector.synced.wait())
            try:
                await asyncio.wait([running, synced], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._starting.release()
                synced.cancel()
