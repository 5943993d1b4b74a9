"""Schedules by chance: users who change their minds, guests that die, processes that crash, and ways that are cut, all at once.

A hypothesis state machine over a whole cloud in memory, in virtual time (`world`). While it goes on no machine may run twice; when
all faults are healed everything has to be as its owner wants it, with no start more than there was a reason for, and nothing may
be left when all is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.storage import Volume
from kumulus.kube import errors
from kumulus_agents.hypervisor.domain import Domain, DomainState, ExitReason
from tests.fault import plans
from tests.fault.backends import Memory, WorldLoop
from tests.fault.parties import Fault, How, Party
from tests.fault.runner import TENANT, VIRTUAL, Runner
from tests.fault.world import CONTROLLERS, HOSTS, RIVALS, World, world

Raw = dict[str, Any]
T = TypeVar("T")
LATENCY = 0.01
LONGEST = 1500.0
"""Seconds, of virtual time, until everything has to be right again: longer than any back-off."""
PARTIES = (CONTROLLERS, *HOSTS)
MACHINES, VOLUMES = ("a", "b", "c"), ("x", "y")
TROUBLES = ("kill", "power cut", "cut", "deafen", "blind", "slow", "outage", "clock jump", "two leaders")
POWERS = ("Running", "Stopped", "Paused", "Suspended")
ON = ("Running", "Paused")

parties = st.sampled_from(PARTIES)
hosts = st.sampled_from(HOSTS)
machines = st.sampled_from(MACHINES)
volumes = st.sampled_from(VOLUMES)
moments = st.sampled_from((0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 12.0))
"""Seconds: most of what happens takes less than a tenth of one."""


@dataclass
class Wanted:
    """What the owner of a machine wants, and how many starts that can explain."""

    power: str = "Running"
    disks: set[str] = field(default_factory=set)
    starts: int = 1


class Schedule(RuleBasedStateMachine):
    """One schedule. `seed` is that of everything that is left to chance in it."""

    tally: ClassVar[Counter[str]] = Counter()
    """What all schedules together did."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner(loop_factory=WorldLoop)
        self._wanted: dict[str, Wanted] = {}
        self._volumes: set[str] = set()
        self._snapshots: dict[str, str] = {}
        self._requests = 0
        self._world: World | None = None
        self._over = asyncio.Event()
        self._cloud: asyncio.Task[None]

    @property
    def world(self) -> World:
        """The cloud."""
        assert self._world is not None
        return self._world

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    # Beginning and end

    @initialize(seed=st.integers(0, 1 << 16), seconds=moments)
    def begin(self, seed: int, seconds: float) -> None:
        """A cloud with an image and a network, and a machine with a volume that was just asked for."""

        async def live(ready: asyncio.Event) -> None:
            async with world(Memory(seed, LATENCY)) as made:
                self._world = made
                self._runner = Runner(made, VIRTUAL)
                await self._runner.open()
                for step in (plans.IMAGE, plans.NETWORK):
                    await self._runner.do(step)
                ready.set()
                await self._over.wait()

        async def start() -> None:
            self._over, ready = asyncio.Event(), asyncio.Event()
            self._cloud = asyncio.get_running_loop().create_task(live(ready))
            waiting = asyncio.ensure_future(ready.wait())
            await asyncio.wait({self._cloud, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if self._cloud.done():
                self._cloud.result()

        self._run(start())
        self._new_volume("x")
        self._new_machine("a", None, True, "Running", {"x"})
        self._run(asyncio.sleep(seconds))

    def teardown(self) -> None:
        """Everything is healed; everything becomes right; everything goes."""
        if self._world is None:
            self._loop.close()
            return
        try:
            self._run(self._finish())
        finally:
            self._run(self._close())
            self._loop.close()

    async def _close(self) -> None:
        self._over.set()
        await self._cloud

    async def _finish(self) -> None:
        world = self.world
        await world.calm()
        for party in world.parties.values():
            party.faults, party.counting, party.offset = (), False, 0.0
            party.wire = type(party.wire)()
            party.break_watches(errors.Gone(410, "Expired", "too old"))
        wrong: list[str] = ["nothing was looked at"]
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST
        while wrong and loop.time() < end:
            await asyncio.sleep(5)
            wrong = await self._wrong()
        self.nothing_forbidden()
        assert not wrong, "\n".join(wrong)
        self._not_started_too_often()
        self.tally.update(
            {
                "schedules": 1,
                "machines": sum(name.startswith("<VirtualMachine ") for name in world.names.values()),
                "runs of machines": len(world.books.runs),
                "lives of processes": sum(party.births for party in world.parties.values()),
                "deeds at which a life ended or an answer was lost": sum(
                    len(party.struck) for party in world.parties.values()
                ),
                "hours": round((loop.time() - 1000) / 3600, 3),  # type: ignore[dict-item]
            }
        )
        with contextlib.suppress(AssertionError):
            await self._runner.clear()
        self.nothing_forbidden()

    async def _wrong(self) -> list[str]:
        """What is not as its owner wants it."""
        world, found = self.world, []
        if not world.idle():
            return ["somebody works"]
        vms = {item["metadata"]["name"]: item for item in await self._all(VirtualMachine)}
        stored = {item["metadata"]["name"]: item for item in await self._all(Volume)}
        uids = {name: item["metadata"]["uid"] for name, item in stored.items()}
        if set(vms) != set(self._wanted) or set(uids) != self._volumes:
            found.append(f"there are {sorted(vms)} and {sorted(uids)}")
        domains: dict[str, list[tuple[str, Domain]]] = {}
        for name, site in world.sites.items():
            for uid, domain in site.machine.domains.items():
                domains.setdefault(uid, []).append((name, domain))
        for name, wanted in self._wanted.items():
            if (vm := vms.get(name)) is not None:
                if self._cannot_have(vm, [stored[disk] for disk in wanted.disks if disk in stored]):
                    continue
                volumes = {uids.get(disk, disk) for disk in wanted.disks}
                found += [f"{name}: {line}" for line in self._unlike(vm, wanted, volumes, domains)]
        strangers = set(domains) - {vm["metadata"]["uid"] for vm in vms.values()}
        return found + [f"a domain of nobody: {domains[uid]}" for uid in strangers]

    @staticmethod
    def _cannot_have(vm: Raw, volumes: list[Raw]) -> bool:
        """Whether it wants what is on another host than it can be on: that is said, and it waits."""
        bound = vm["spec"].get("placement", {}).get("hostSelector", {}).get("role")
        there = {item.get("status", {}).get("host") for item in volumes} - {None}
        mine = vm.get("status", {}).get("host") or bound
        return len(there) > 1 or bool(there and mine and there != {mine})

    def _unlike(
        self, vm: Raw, wanted: Wanted, volumes: set[str], domains: dict[str, list[tuple[str, Domain]]]
    ) -> list[str]:
        status, uid = vm.get("status", {}), vm["metadata"]["uid"]
        # What is off when it is to be suspended has no memory to keep.
        if status.get("phase") not in (wanted.power, "Stopped" if wanted.power == "Suspended" else wanted.power):
            return [f"it is {status.get('phase')}, not {wanted.power}; {status.get('conditions')}"]
        on = [(host, one) for host, one in domains.get(uid, []) if one.state is not DomainState.STOPPED]
        if bool(on) is not (wanted.power in ON):
            return [f"wanted {wanted.power}, there is {on}"]
        found = []
        for host, domain in on:
            if (host, domain.marks.epoch) != (status.get("host"), status.get("epoch")):
                found.append(f"it is on {host} with epoch {domain.marks.epoch}; {status}")
            if domain.volumes != volumes:
                found.append(f"it has {domain.volumes}, and not {volumes}")
            found += [
                f"it writes to {disk.path}, which is not the volume"
                for disk in domain.disks
                if disk.volume is not None and disk.path not in self._files(host, disk.volume)
            ]
        return found

    def _files(self, host: str, volume: str) -> list[str]:
        """The file of a volume that is the volume: a guest that wrote to another would lose what it wrote."""
        pools = self.world.sites[host].pools.values()
        return [
            path
            for pool in pools
            if volume in pool.volumes
            for first, active in [(pool.volumes[volume][1].path, pool.layers[volume].active)]
            for path in [first if active == volume else f"{first.removesuffix('.qcow2')}.{active}.qcow2"]
        ]

    def _not_started_too_often(self) -> None:
        names = {name: uid for uid, name in self.world.names.items() if name.startswith("<VirtualMachine ")}
        for name, wanted in self._wanted.items():
            uid = names[f"<VirtualMachine {name}>"]
            runs = [run for run in self.world.books.runs if run.uid == uid]
            assert len(runs) <= wanted.starts, (
                f"{name} was started {len(runs)} times, for {wanted.starts} reasons: {runs}"
            )

    async def _all(self, model: Any) -> list[Raw]:
        return [item async for page, _ in self.world.user.list_pages(model.KIND, TENANT) for item in page]

    @invariant()
    def nothing_forbidden(self) -> None:
        """No machine runs twice, nothing that was unexpected is logged, no process ends by itself."""
        if self._world is not None:
            assert not self._world.books.overlaps, "\n".join(self._world.books.overlaps)
            assert not self._world.problems, "\n".join(self._world.problems)

    # What owners do

    @rule(name=machines, bound=st.none() | hosts, whole=st.booleans(), power=st.sampled_from(("Running", "Stopped")))
    def make_machine(self, name: str, bound: str | None, whole: bool, power: str) -> None:
        """A machine, perhaps with an interface, perhaps bound to a host."""
        if name not in self._wanted:
            self._new_machine(name, bound, whole, power, set())

    def _new_machine(self, name: str, bound: str | None, whole: bool, power: str, disks: set[str]) -> None:
        spec: Raw = {"resources": plans.SIZE, "disks": _disks(disks), "powerState": power}
        if bound:
            spec["placement"] = {"hostSelector": {"role": bound}}
        if whole:
            spec["interfaces"] = [plans.ETH0]
        self._wanted[name] = Wanted(power, disks, starts=int(power == "Running"))

        async def make() -> None:
            # The name may be that of a machine that is going.
            await self.world.until(lambda: self._made(VirtualMachine, name, spec), "room for a machine", LONGEST)

        self._run(make())

    async def _made(self, model: Any, name: str, spec: Raw) -> bool:
        with contextlib.suppress(errors.AlreadyExists):
            made = await self.world.make(model.KIND, name, spec, TENANT)
            return "deletionTimestamp" not in made["metadata"]
        self._heal()
        return False

    @precondition(lambda self: self._wanted)
    @rule(name=machines, power=st.sampled_from(POWERS))
    def turn(self, name: str, power: str) -> None:
        """On, off, paused or suspended."""
        if (wanted := self._wanted.get(name)) is None or wanted.power == power:
            return
        if wanted.power == "Stopped" and power == "Suspended":
            return  # what is off has no memory to keep
        wanted.starts += power in ON
        wanted.power = power
        self._change(VirtualMachine, name, {"powerState": power})

    @precondition(lambda self: self._wanted)
    @rule(name=machines, bigger=st.booleans())
    def restart(self, name: str, bigger: bool) -> None:
        """Restart it, perhaps with another size."""
        if (wanted := self._wanted.get(name)) is None:
            return
        self._requests += 1
        wanted.starts += 1
        spec: Raw = {"restartRequest": str(self._requests)}
        if bigger:
            spec["resources"] = {"memory": f"{256 + 16 * self._requests}Mi"}
        self._change(VirtualMachine, name, spec)

    @precondition(lambda self: self._wanted)
    @rule(name=machines)
    def delete_machine(self, name: str) -> None:
        """It is not wanted any more."""
        if self._wanted.pop(name, None) is not None:
            self._run(self.world.user.delete(VirtualMachine.KIND, name, TENANT))

    @rule(name=volumes)
    def make_volume(self, name: str) -> None:
        """A volume."""
        if name not in self._volumes:
            self._new_volume(name)

    def _new_volume(self, name: str) -> None:
        self._volumes.add(name)

        async def make() -> None:
            await self.world.until(lambda: self._made(Volume, name, {"size": "1Gi"}), "room for a volume", LONGEST)

        self._run(make())

    @precondition(lambda self: self._wanted and self._volumes)
    @rule(name=machines, volume=volumes)
    def attach_or_detach(self, name: str, volume: str) -> None:
        """A machine gets a volume that no other one is to have, or is to have it no more."""
        if (wanted := self._wanted.get(name)) is None or volume not in self._volumes or wanted.power == "Suspended":
            return
        if any(volume in other.disks for who, other in self._wanted.items() if who != name):
            return
        wanted.disks ^= {volume}
        self._change(VirtualMachine, name, {"disks": _disks(wanted.disks)})

    def _change(self, model: Any, name: str, spec: Raw) -> None:
        with contextlib.suppress(errors.NotFound):
            self._run(self.world.user.patch(model.KIND, name, {"spec": spec}, TENANT))

    @precondition(lambda self: self._wanted)
    @rule(name=machines)
    def keep_or_forget(self, name: str) -> None:
        """A snapshot of a machine, or its end."""
        user = self.world.user
        if name in self._snapshots:
            self._run(user.delete(VirtualMachineSnapshot.KIND, self._snapshots.pop(name), TENANT))
        elif name in self._wanted and self._wanted[name].disks:
            self._requests += 1
            self._snapshots[name] = f"{name}-{self._requests}"
            made = self.world.make(VirtualMachineSnapshot.KIND, self._snapshots[name], {"vm": name}, TENANT)
            self._run(made)

    # What happens to them

    @precondition(lambda self: self._wanted)
    @rule(name=machines, why=st.sampled_from((ExitReason.CRASHED, ExitReason.SHUTDOWN)))
    def guest_ends(self, name: str, why: ExitReason) -> None:
        """Its QEMU is killed, or it powers off."""
        if (wanted := self._wanted.get(name)) is None:
            return
        names = {known: uid for uid, known in self.world.names.items()}
        uid = names.get(f"<VirtualMachine {name}>", "")
        for site in self.world.sites.values():
            if uid in site.machine.domains:
                wanted.starts += 1
                self._run(_soon(site.machine.end, uid, why))

    @rule(party=parties, deeds=st.lists(st.integers(1, 8), min_size=1, max_size=3), how=st.sampled_from(How))
    def doom(self, party: str, deeds: list[int], how: How) -> None:
        """A process dies at some of the next things that it does, or does not learn their answers."""
        doomed = self.world.parties[party]
        doomed.counting = True
        doomed.faults = tuple(Fault(party, len(doomed.deeds) + number, how) for number in deeds)

    @rule(what=st.sampled_from(TROUBLES), party=parties, seconds=moments)
    def trouble(self, what: str, party: str, seconds: float) -> None:
        """Something goes wrong, of one party or of all, for a while."""
        self._run(self._beside(getattr(self, f"_{what.replace(' ', '_')}")(self.world.parties[party], seconds)))

    async def _kill(self, party: Party, seconds: float) -> None:
        """The process dies now."""
        party.crash()

    async def _power_cut(self, party: Party, seconds: float) -> None:
        """A host loses power and gets it back: all its guests are off, its agent begins anew."""
        party.crash()
        if party.name in self.world.sites:
            for wanted in self._wanted.values():
                wanted.starts += 1
            self.world.sites[party.name].machine.reboot()

    async def _cut(self, party: Party, seconds: float) -> None:
        """Nothing it sends arrives."""
        party.wire.cut = True
        party.break_watches()
        await asyncio.sleep(seconds)
        party.wire.cut = False

    async def _deafen(self, party: Party, seconds: float) -> None:
        """What it sends arrives, no answer does."""
        party.wire.deaf = True
        party.break_watches()
        await asyncio.sleep(seconds)
        party.wire.deaf = False

    async def _blind(self, party: Party, seconds: float) -> None:
        """Changes pass it by, until it lists everything again."""
        party.wire.blind = True
        await asyncio.sleep(seconds)
        party.wire.blind = False
        party.break_watches(errors.Gone(410, "Expired", "too old"))

    async def _slow(self, party: Party, seconds: float) -> None:
        """It hears of changes late, from now on."""
        party.wire.slow = min(seconds, 3.0)

    async def _outage(self, party: Party, seconds: float) -> None:
        """The API server is away for everybody, and when it is back, all versions are too old."""
        everybody = list(self.world.parties.values())
        for one in everybody:
            one.wire.cut = True
            one.break_watches()
        await asyncio.sleep(seconds)
        for one in everybody:
            one.wire.cut = False
            one.break_watches(errors.Gone(410, "Expired", "too old"))

    async def _clock_jump(self, party: Party, seconds: float) -> None:
        """Its wall clock is an hour wrong from now on."""
        party.offset = -3600.0 if party.offset > 0 else 3600.0

    async def _two_leaders(self, party: Party, seconds: float) -> None:
        """A second process of controllers leads too; the first learns of it, and begins anew."""
        if self.world.stopped(RIVALS):
            self.world.start(RIVALS)
            await asyncio.sleep(seconds)
            await self.world.stop(RIVALS)
            self.world.parties[CONTROLLERS].crash()

    @rule(seconds=moments)
    def time_passes(self, seconds: float) -> None:
        """Nothing else happens."""
        self._run(asyncio.sleep(seconds))

    def _heal(self) -> None:
        for party in self.world.parties.values():
            party.wire = type(party.wire)()

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        self.world.during(work)
        await asyncio.sleep(0)


def _disks(volumes: set[str]) -> list[Raw]:
    return [plans.ROOT, *({"name": volume, "volume": volume} for volume in sorted(volumes))]


async def _soon(deed: Any, *arguments: Any) -> None:
    deed(*arguments)
