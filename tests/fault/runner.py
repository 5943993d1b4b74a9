"""Runs a plan in a world: without faults to learn what is right, then with one, and compares."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.base import Resource, Scope
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.image import Image
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.remediation import HostRemediation
from kumulus.api.routing import Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE, NAMESPACE
from kumulus_agents.hypervisor.domain import ExitReason
from tests.fault.oracles import COUNTS, State, observe, words
from tests.fault.plans import Plan, Step, Verb
from tests.fault.world import World
from tests.patience import PATIENCE

Raw = dict[str, Any]
TENANT = "tenant"
CLEARED = (
    HostRemediation,
    VirtualMachineMigration,
    VirtualMachinePool,
    VirtualMachineRestore,
    VirtualMachineSnapshot,
    VolumeSnapshot,
    VirtualMachine,
    Router,
    NetworkInterface,
    Volume,
    Network,
    SecurityGroup,
    Image,
    StoragePool,
)
"""What users make, in an order in which it can go."""
KEPT = {(SecurityGroup, "default"), (StoragePool, "local")}
"""What is there for all plans."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a runner is, in seconds of the loop."""

    look: float
    settle: float
    """For so long has nobody to have anything to do."""
    limit: float
    """Within this every step has to come to its end, and the end state has to be right: less than the five minutes after
    which everything is looked at anyway."""
    second: float = 1.0
    """What troubles count their times in."""
    uncounted: frozenset[str] = frozenset()
    """Fields of statuses that are not compared, because they follow later than `settle`."""


VIRTUAL = Pace(look=0.5, settle=8, limit=150)
REAL = Pace(look=0.05, settle=0.3, limit=15 * PATIENCE, second=0.5, uncounted=COUNTS)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run."""

    plan: str
    fault: str
    seconds: float
    problems: tuple[str, ...]
    state: State | None = None
    deeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By party."""
    struck: tuple[str, ...] = ()
    repeated: int = 0
    """How often something that had failed was asked for once more."""

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    def __str__(self) -> str:
        told = "".join(f"\n    {problem}" for problem in self.problems)
        return f"{self.plan}, {self.fault} ({self.seconds:.1f} s; struck: {', '.join(self.struck) or 'nothing'}){told}"


Arm = Callable[[World], object]
"""Prepares a fault when the steps of a plan begin."""


class Runner:
    """Plans in one world, one after the other."""

    def __init__(self, world: World, pace: Pace, namespace: str = TENANT) -> None:
        self._world, self._pace, self._namespace = world, pace, namespace
        self._repeated = 0
        """How often something had failed, as it may, and was asked for again."""

    async def open(self) -> None:
        """Make the tenant's namespace."""
        await self._world.ensure(NAMESPACE, self._namespace, {})

    async def run(
        self,
        plan: Plan,
        arm: Arm | None = None,
        fault: str = "none",
        right: State | None = None,
        *,
        again: bool = False,
    ) -> Result:
        """Run it and clear up. `right` is what has to be so in the end, see `State.apart`."""
        world, began = self._world, time.perf_counter()
        world.problems.clear()
        world.books.overlaps.clear()
        state: State | None = None
        self._repeated = 0
        for site in world.sites.values():
            seconds = plan.moving_seconds
            site.machine.settings = site.machine.settings.model_copy(update={"migrate_seconds": seconds, "jitter": 0})
        try:
            for step in plan.given:
                await self.do(step)
            await self._settled()
            made, runs = len(world.books.made), len(world.books.runs)
            for party in world.parties.values():
                party.deeds, party.struck, party.counting = [], [], True
            zones = await world.user.request("GET", Zone.KIND.path())
            world.version = zones["metadata"]["resourceVersion"]
            if arm is not None:
                arm(world)
            for step in plan.steps:
                await self.do(step)
            state = await self._end(made, runs, right, again or plan.retries)
        except AssertionError as error:
            world.problems.append(str(error))
        deeds = {party.name: tuple(words(world, party.deeds)) for party in world.parties.values()}
        struck = tuple(words(world, [line for party in world.parties.values() for line in party.struck]))
        await self._disarm()
        problems = (*world.books.overlaps, *world.problems)
        world.problems.clear()
        with contextlib.suppress(AssertionError):
            await self.clear()
        return Result(
            str(plan),
            fault,
            time.perf_counter() - began,
            (*problems, *world.problems),
            state,
            deeds,
            struck,
            self._repeated,
        )

    async def _disarm(self) -> None:
        world = self._world
        await world.calm()
        world.on_deed, world.ways.cut = lambda party, label: None, False
        for party in world.parties.values():
            party.counting, party.faults, party.offset = False, (), 0.0
            party.on_birth = lambda: None
            party.wire = type(party.wire)()

    async def _end(self, made: int, runs: int, right: State | None, again: bool) -> State:
        """The state in which everybody has come to rest; the right one if there is one to come."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._pace.limit
        while True:
            await self._settled()
            state = await observe(self._world, made, runs, self._pace.uncounted)
            if right is None or not (wrong := state.apart(right, again=again or self._repeated > 0)):
                return state
            if loop.time() > end:
                self._world.problems.append("the end is another one:\n      " + "\n      ".join(wrong))
                return state
            await asyncio.sleep(self._pace.look)

    async def _settled(self) -> None:
        """Nobody has had anything to do for a while."""
        loop, pace = asyncio.get_running_loop(), self._pace
        end, since = loop.time() + pace.limit, loop.time()
        while loop.time() < since + pace.settle:
            if loop.time() > end:
                raise AssertionError(f"it does not come to rest within {pace.limit:.0f} s")
            if not self._world.idle():
                since = loop.time()
            await asyncio.sleep(pace.look / 5)

    async def do(self, step: Step) -> None:
        """One step, to its end. Raises AssertionError."""
        await self._world.until(lambda: self._perform(step), f"{step} is accepted", self._pace.limit)
        for model, name, until in step.until:
            last: Raw | None = None

            async def probe(model: Any = model, name: str = name, until: Any = until) -> bool:
                nonlocal last
                last = await self._world.user.find(model.KIND, name, self._room(model))
                if step.failed is not None and model is step.model and not until(last) and step.failed(last):
                    await self._again(step, last or {})
                return bool(until(last))

            try:
                await self._world.until(probe, f"{step}: the end of it at {model.KIND.kind} {name}", self._pace.limit)
            except AssertionError as error:
                raise AssertionError(f"{error}; its status: {(last or {}).get('status')}") from None

    async def _again(self, step: Step, item: Raw) -> None:
        """What has failed, and says why, is asked for once more. Raises AssertionError when it does not say why."""
        ready = next((one for one in item["status"].get("conditions", ()) if one["type"] == "Ready"), {})
        assert ready.get("reason") and ready.get("message"), f"{step} failed, and does not say why: {item['status']}"
        self._repeated += 1
        await self._world.user.delete(step.model.KIND, step.name, self._room(step.model))
        await self._world.until(
            lambda: self._perform(step, new=True), f"{step} is accepted once more", self._pace.limit
        )

    async def _perform(self, step: Step, *, new: bool = False) -> bool:
        user, kind, room = self._world.user, step.model.KIND, self._room(step.model)
        match step.verb:
            case Verb.MAKE:
                try:
                    await self._world.make(kind, step.name, dict(step.spec), room)
                except errors.AlreadyExists:
                    return not new
            case Verb.CHANGE:
                await user.patch(kind, step.name, {"spec": step.spec}, room)
            case Verb.REMOVE:
                await user.delete(kind, step.name, room)
            case Verb.CRASH:
                vm = await user.get(kind, step.name, room)
                self._world.sites[vm["status"]["host"]].machine.end(vm["metadata"]["uid"], ExitReason.CRASHED)
            case Verb.CUT:
                await self._world.cut_power(step.name)
            case Verb.HANG:
                await self._world.stop(step.name)
            case Verb.BOOT:
                self._world.boot(step.name)
            case Verb.CONFIRM:
                lease = await user.get(LEASE, LEASE_NAME, host_namespace(step.name))
                spec = {"host": step.name, "confirmedOff": True, "lastRenewal": lease["spec"]["renewTime"]}
                with contextlib.suppress(errors.AlreadyExists):
                    await self._world.make(kind, step.name, spec, room)
        return True

    def _room(self, model: type[Resource]) -> str | None:
        return self._namespace if model.KIND.scope is Scope.NAMESPACED else None

    async def clear(self) -> None:
        """All that users made goes, and nothing stays of it anywhere. What stays is a problem."""
        user = self._world.user
        for name in self._world.sites:
            self._world.boot(name)
            with contextlib.suppress(errors.NotFound):  # it may have been removed
                await user.patch(Host.KIND, name, {"spec": {"bmc": None, "fencing": None}})
        for model in CLEARED:
            for item in await self._all(model):
                await user.delete(model.KIND, item["metadata"]["name"], self._room(model))

        async def empty() -> bool:
            return not [item for model in CLEARED for item in await self._all(model)]

        try:
            await self._world.until(empty, "the end of all that was made", self._pace.limit)
            await self._world.until(self._nothing_left, "hosts with nothing on them", self._pace.limit)
        except AssertionError as error:
            left = [line for site in self._world.sites.values() for line in site.inventory()]
            self._world.problems.append(f"left over: {error}; {left}")
            raise

    async def _nothing_left(self) -> bool:
        return not any(site.inventory() for site in self._world.sites.values())

    async def _all(self, model: Any) -> list[Raw]:
        found: list[Raw] = []
        while True:
            try:
                async for page, _ in self._world.user.list_pages(model.KIND, self._room(model)):
                    found += [item for item in page if (model, item["metadata"]["name"]) not in KEPT]
            except errors.Unreachable:
                await asyncio.sleep(self._pace.look)
            else:
                return found
