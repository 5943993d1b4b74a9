"""A cloud in memory: the controllers and agents are the real ones, the API server and hypervisors are not.

Before every request of a controller or an agent anything else may happen: another pass of theirs, a power cut, a boot, a
controller that dies. Who looks at the hypervisors sees every moment in which a machine runs twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import HostReport, WorkOrder, WorkType
from kumulus.api.remediation import HostRemediation
from kumulus.kube.builtin import LEASE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Conflict, KubeError, NotFound, Unreachable
from kumulus.kube.reflector import take
from kumulus.kube.store import Key, key_of
from kumulus.runtime.reconciler import Caches, Reconciler, Services
from kumulus.runtime.result import Result
from kumulus_agents.agent.fence import Fences
from kumulus_agents.agent.instance import Instances
from kumulus_agents.agent.instance_scope import Disown, DropMemory, ForceOff, Mark, PressButton, Remove, Start, Step
from kumulus_agents.agent.instance_steps import InstanceSteps
from kumulus_agents.agent.lease import Heartbeat
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.domain import DomainSpec, DomainState
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_controllers.compute.machine import MachineReconciler
from kumulus_controllers.fabric.host import HostReconciler
from kumulus_controllers.fabric.remediation import RemediationReconciler
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet
from tests.unit.fencing.api import Api, Client

Raw = dict[str, Any]
Happening = Callable[[], Any]
LEASE_SECONDS = 20
TENANT = "shop"


class Dead(Exception):
    """The process died here."""


@dataclass
class Clock:
    """One for all; only what has passed counts."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


class Hands:
    """Takes an agent's steps on a simulated hypervisor; disks and networks there are none."""

    def __init__(self, hypervisor: SimulatedHypervisor) -> None:
        self._hypervisor = hypervisor

    def halted_for_a_moment(self, uid: str) -> bool:
        return False

    def moving(self, order: object, instance: object) -> None:
        return None

    async def discs(self, order: object) -> dict[str, Any]:
        return {}

    async def take(self, step: Step, order: WorkOrder, slow: object) -> None:
        assert order.spec.instance is not None
        uid = order.spec.instance.uid
        match step:
            case Start(marks):
                await self._hypervisor.start(DomainSpec(marks, 1, 1 << 20, (), "/dev/null"))
            case Mark(marks):
                await self._hypervisor.mark(uid, marks)
            case Remove():
                await self._hypervisor.remove(uid)
            case Disown():
                await self._hypervisor.disown(uid)
            case ForceOff():
                await self._hypervisor.force_off(uid)
            case PressButton():
                await self._hypervisor.power_button(uid)
            case DropMemory():
                await self._hypervisor.drop_memory(uid)
            case _:
                raise AssertionError(f"nobody asked for {step}")


class HostWorld:
    """A host that can lose its power, and its agent, which does one thing after the other as the real one does."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.machine = SimulatedHost()
        self.machine.attach(world)
        self.up = False
        self.cut_off = False
        """Its agent cannot reach the API server."""
        self._booted = 0

    def cut(self) -> None:
        """Its power fails."""
        self.up = False
        self._booted += 1
        self.machine.reboot()

    async def boot(self) -> None:
        """Its power comes back, and its agent has done nothing yet."""
        if self.up:
            return
        self.up, boot = True, self._booted
        hypervisor = SimulatedHypervisor(self.machine)
        await hypervisor.connect(lambda uid: None)

        async def before(verb: str) -> None:
            await self.world.happens()
            if not self.up or self._booted != boot:
                raise Dead
            if self.cut_off:
                raise Unreachable("cut off")

        client = cast(KubeClient, Client(self.world.api, before))
        namespace = host_namespace(self.name)
        self.heartbeat = Heartbeat(
            client, namespace, self.name, self.world.clock, duration=LEASE_SECONDS, every=600, phase=0
        )
        self.orders, self.read = Orders(client, namespace), False
        self._client = client
        fences = Fences(self.orders, hypervisor, wake=lambda name: None, complete=lambda: self.read)
        instances = Instances(
            self.orders,
            hypervisor,
            cast(InstanceSteps, Hands(hypervisor)),
            self.world.clock,
            wake=lambda name: None,
            removed=lambda: None,
            fenced=fences.in_force,
        )
        self._performers = {WorkType.FENCE: fences, WorkType.INSTANCE: instances}
        self._hypervisor = hypervisor

    async def beat(self) -> None:
        """Renew the Lease."""
        with suppress(Dead):
            if self.up:
                await self.heartbeat.beat()

    async def look(self) -> None:
        """Take in what is ordered; the first time not before the Lease was renewed."""
        if not self.up or self.cut_off or not self.heartbeat.begun.is_set():
            return
        with suppress(Dead, KubeError):
            await self.world.happens()
            if not self.up or self.cut_off:
                return
            seen = self.world.api.listed(WorkOrder.KIND, host_namespace(self.name))
            for raw in seen:
                take(self.orders.store, raw)
            self.orders.store.retain([key_of(raw) for raw in seen], str(self.world.api.version))
            self.read = True

    async def work(self, backwards: bool = False, only: WorkType | None = None) -> None:
        """One pass over every order it knows of, or those of one type."""
        if not self.up or not self.read:
            return
        boot = self._booted
        for order in sorted(self.orders.store, key=lambda o: o.name, reverse=backwards):
            with suppress(Dead, KubeError):
                if not self.up or self._booted != boot:
                    return
                current = self.orders.get(order.name)
                if current is not None and only in (None, current.spec.type):
                    await self._performers[current.spec.type].perform(current)

    async def come_back(self, *, backwards: bool = False) -> None:
        """Its power returns, and its agent does all that it does."""
        await self.boot()
        await self.beat()
        await self.look()
        await self.start(backwards)

    async def start(self, backwards: bool = False) -> None:
        """Work, and once more when what ended without a word may be started again."""
        await self.work(backwards)
        self.world.clock.seconds += 10
        await self.work(backwards)

    def runs(self, uid: str) -> bool:
        domain = self.machine.domains.get(uid)
        return domain is not None and domain.state is not DomainState.STOPPED


class Brain:
    """A controller process that has just begun to lead. It sees what it is shown."""

    def __init__(self, world: World, term: int) -> None:
        self.world, self.term, self.caches, fleet = world, term, Caches(), Fleet()
        FleetFeed(self.caches, fleet)

        async def before(verb: str) -> None:
            await world.happens()
            if world.brain is not self:
                raise Dead

        client = cast(KubeClient, Client(world.api, before))
        services = Services(client, self.caches, world.clock, lambda: term)
        self.reconcilers: list[Reconciler] = [
            RemediationReconciler(services),
            HostReconciler(services),
            MachineReconciler(services, fleet),
        ]
        for reconciler in self.reconcilers:
            reconciler.attach(lambda key, *, urgent=False: None)
        self._busy: set[tuple[str, Key]] = set()

    def see(self, *kinds: str) -> None:
        """Take in how things are; of these kinds, if some are given, and no others."""
        for store in self.caches:
            if kinds and store.model.KIND.plural not in kinds:
                continue
            seen = self.world.api.listed(store.model.KIND)
            for raw in seen:
                take(store, raw)
            store.retain([key_of(raw) for raw in seen], str(self.world.api.version))
            store.synced = True

    async def passes(self, which: int | None = None) -> None:
        """One pass over everything, or over what one of the reconcilers sees to."""
        for number, reconciler in enumerate(self.reconcilers):
            if which is not None and which != number:
                continue
            for key in sorted(reconciler.everything(), key=str):
                if (reconciler.name, key) in self._busy or self.world.brain is not self:
                    continue
                self._busy.add((reconciler.name, key))
                try:
                    with suppress(Conflict, NotFound, Dead):
                        result: Result = await reconciler.reconcile(key)
                        del result
                finally:
                    self._busy.discard((reconciler.name, key))


@dataclass(eq=False)
class World:
    """All of it."""

    names: tuple[str, ...] = ("h1", "h2", "h3")
    machines: tuple[str, ...] = ("a", "b")
    api: Api = field(default_factory=Api)
    clock: Clock = field(default_factory=Clock)
    twice: list[str] = field(default_factory=list)
    plans: list[Happening] = field(default_factory=list)
    """What happens before the next requests, one each."""
    started: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Host and epoch of every run of a machine, by its uid."""

    def __post_init__(self) -> None:
        self._client = Client(self.api, self._nothing)
        self._nested = 0
        self.hosts = {name: HostWorld(self, name) for name in self.names}
        self.brain = Brain(self, 1)
        self._made = 0

    async def _nothing(self, verb: str) -> None:
        return None

    async def build(self) -> None:
        for name in self.names:
            spec = {"zone": "z", "hypervisor": "simulated"}
            raw = await self._client.create(
                Host.KIND, {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec}
            )
            del raw
            status = {"namespace": host_namespace(name)}
            await self._client.patch(Host.KIND, name, {"status": status}, subresource="status")
            facts = {
                "hypervisorReady": True,
                "capacity": {"cpus": 8, "memory": 1 << 34},
                "machineTypes": ["pc-q35-7.2"],
            }
            await self._client.create(
                HostReport.KIND, {"metadata": {"name": name}, "status": facts}, host_namespace(name)
            )
        for name in self.machines:
            spec = {
                "resources": {"cpus": 1, "memory": "64Mi"},
                "highAvailability": {"enabled": True, "maxRestarts": 64},
            }
            await self._client.create(VirtualMachine.KIND, {"metadata": {"name": name}, "spec": spec}, TENANT)
        for host in self.hosts.values():
            await host.boot()
        await self.settle()

    async def happens(self) -> None:
        """Something may happen now. Not more than so much within one another."""
        if self.plans and self._nested < 4:
            self._nested += 1
            try:
                found = self.plans.pop(0)()
                if asyncio.iscoroutine(found):
                    await found
            finally:
                self._nested -= 1

    def told(self, uid: str) -> None:
        on = [name for name, host in self.hosts.items() if host.runs(uid)]
        if len(on) > 1:
            self.twice.append(f"{uid} on {on}")
        for name in on:
            epoch = self.hosts[name].machine.domains[uid].marks.epoch
            runs = self.started.setdefault(uid, [])
            if not runs or runs[-1] != (name, epoch):
                runs.append((name, epoch))

    def succeed(self) -> None:
        """The controllers die, and others lead."""
        self.brain = Brain(self, self.brain.term + 1)
        self.brain.see()

    async def confirm(self, name: str, *, untrue: bool = False) -> None:
        """Somebody sees that a host is off, and says so. What is not off nobody says that of, but for a liar."""
        if self.hosts[name].up and not untrue:
            return
        lease = await self._client.find(LEASE, LEASE_NAME, host_namespace(name))
        if lease is None:
            return
        self._made += 1
        spec = {"host": name, "confirmedOff": True, "lastRenewal": lease["spec"]["renewTime"]}
        await self._client.create(HostRemediation.KIND, {"metadata": {"name": f"r{self._made}"}, "spec": spec})

    async def ask(self, name: str) -> None:
        """Somebody asks for a host to be fenced, and confirms nothing."""
        self._made += 1
        await self._client.create(
            HostRemediation.KIND, {"metadata": {"name": f"r{self._made}"}, "spec": {"host": name}}
        )

    async def round(self) -> None:
        """Everybody takes a turn, and nothing goes wrong."""
        for host in self.hosts.values():
            await host.beat()
            await host.look()
            await host.work()
        self.brain.see()
        await self.brain.passes()
        self.clock.seconds += 1

    async def settle(self, rounds: int = 6) -> None:
        self.plans.clear()
        for _ in range(rounds):
            await self.round()

    def where(self, machine: str) -> list[str]:
        """The hosts that a machine runs on."""
        uid = self.api.objects[(VirtualMachine.KIND.plural, TENANT, machine)]["metadata"]["uid"]
        return [name for name, host in self.hosts.items() if host.runs(uid)]

    def objects(self, kind: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(**{"status": {}, **raw}) for raw in self.api.listed(kind.KIND)]
