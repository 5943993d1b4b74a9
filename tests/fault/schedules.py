"""Schedules by chance: users who change their minds, operators who work on hosts, guests that die, processes that crash, hosts
that fall silent or lose power, and ways that are cut, all at once.

A hypothesis state machine over a whole cloud in memory, in virtual time (`world`). While it goes on no machine may run twice; when
all faults are healed everything has to be as its owner wants it (`wanted`), with no start more than there was a reason for, and
nothing may be left when all is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.maintenance import EvictionPolicy
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.remediation import HostRemediation
from kumulus.api.storage import Volume
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE
from kumulus_agents.hypervisor.domain import ExitReason
from tests.fault import plans
from tests.fault.backends import Memory, WorldLoop
from tests.fault.parties import Fault, How, Party
from tests.fault.runner import TENANT, VIRTUAL, Runner
from tests.fault.switch import BMC, SWITCH
from tests.fault.wanted import ON, Verdict, Wanted, Wish, too_often
from tests.fault.world import CONTROLLERS, HOSTS, RIVALS, World, contents, world

Raw = dict[str, Any]
T = TypeVar("T")
LATENCY = 0.01
LONGEST = 1500.0
"""Seconds, of virtual time, until everything has to be right again: longer than any back-off."""
PARTIES = (CONTROLLERS, *HOSTS)
STAYING, ROAMING = ("a", "b"), ("m", "n")
"""Machines with disks that only their host has, and those whose disks all hosts have."""
LOCAL, SHARED = ("x", "y"), ("p", "q", "r")
"""Volumes of one host, and of all. Each machine that roams has one of them that it begins with."""
HOME = dict(zip(ROAMING, SHARED, strict=False))
TROUBLES = ("kill", "power cut", "cut", "deafen", "blind", "slow", "outage", "clock jump", "two leaders", "apart")
POWERS = ("Running", "Stopped", "Paused", "Suspended")
SIZES = ("256Mi", "384Mi", "512Mi", "1Gi")
EVICTIONS = tuple(str(policy) for policy in EvictionPolicy)
WORKS: tuple[Raw | None, ...] = (None, {}, {"returnGuests": True}, {"mode": "InPlace"})
"""What operators may do on a host; None: nothing."""
FATES = ("hang", "off", "confirm", "fence", "boot", "cordon", "switch", "lost", "dead")

parties = st.sampled_from(PARTIES)
hosts = st.sampled_from(HOSTS)
machines = st.sampled_from((*STAYING, *ROAMING))
moments = st.sampled_from((0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 12.0, 25.0))
"""Seconds: most of what happens takes less than a tenth of one; to fence a host takes twenty."""


class Schedule(RuleBasedStateMachine):
    """One schedule. `seed` is that of everything that is left to chance in it."""

    tally: ClassVar[Counter[str]] = Counter()
    """What all schedules together did."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner(loop_factory=WorldLoop)
        self._wish = Wish()
        self._snapshots: dict[str, str] = {}
        self._moves: list[str] = []
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

    @initialize(seed=st.integers(0, 1 << 16), seconds=moments, moving=st.sampled_from((0.0, 0.3, 5.0, 60.0)))
    def begin(self, seed: int, seconds: float, moving: float) -> None:
        """A cloud with an image and a network, and two machines that were just asked for. `moving`: seconds that a guest takes to
        another host."""

        async def live(ready: asyncio.Event) -> None:
            memory = Memory(seed, LATENCY)
            async with world(memory) as made:
                self._world, self._api = made, memory.api
                self._runner = Runner(made, VIRTUAL)
                await self._runner.open()
                for site in made.sites.values():
                    site.machine.settings = site.machine.settings.model_copy(update={"migrate_seconds": moving})
                for step in (plans.IMAGE, plans.NETWORK, plans.TOGETHER):
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
        self.make_volume("x")
        self._new_machine("a", None, True, "Running", {"x"})
        self.make_machine("m", None, True, "Running", "LiveMigrate")
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
        await self._mended()
        wrong: list[str] = ["nothing was looked at"]
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST
        while wrong and loop.time() < end:
            await asyncio.sleep(5)
            wrong = Verdict(world, self._api, self._wish).wrong() if world.idle() else ["somebody works"]
        self.nothing_forbidden()
        assert not wrong, "\n".join(wrong)
        assert not (often := too_often(world, self._wish)), "\n".join(often)
        self.tally.update(
            {
                "schedules": 1,
                "machines": sum(name.startswith("<VirtualMachine ") for name in world.names.values()),
                "runs of machines": len(world.books.runs),
                "guests that came from another host": sum(run.came for run in world.books.runs),
                "runs of later placements": sum(run.epoch > 1 for run in world.books.runs if not run.came),
                "hosts whose power was cut": world.cuts,
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
        left = [line for pool in world.shared.values() for line in contents(pool)]
        assert not left, "\n".join(left)

    async def _mended(self) -> None:
        """All faults are healed, and operators have done their work."""
        world = self.world
        await world.calm()
        world.ways.cut = False
        for party in world.parties.values():
            party.faults, party.counting, party.offset = (), False, 0.0
            party.wire = type(party.wire)()
            party.break_watches(errors.Gone(410, "Expired", "too old"))
        for host in HOSTS:
            world.boot(host)
            spec = {"maintenance": None, "unschedulable": False}
            await world.user.patch(Host.KIND, host, {"spec": spec})

    @invariant()
    def nothing_forbidden(self) -> None:
        """No machine runs twice, nothing that was unexpected is logged, no process ends by itself."""
        if self._world is not None:
            assert not self._world.books.overlaps, "\n".join(self._world.books.overlaps)
            assert not self._world.problems, "\n".join(self._world.problems)

    # What owners do

    @rule(
        name=machines,
        bound=st.none() | hosts,
        whole=st.booleans(),
        power=st.sampled_from(("Running", "Stopped")),
        eviction=st.sampled_from(EVICTIONS),
    )
    def make_machine(self, name: str, bound: str | None, whole: bool, power: str, eviction: str) -> None:
        """A machine, perhaps with an interface, perhaps bound to a host if it does not roam."""
        if name in self._wish.machines:
            return
        if name in ROAMING:
            self.make_volume(HOME[name])
            self._new_machine(name, None, whole, power, {HOME[name]}, eviction)
        else:
            self._new_machine(name, bound, whole, power, set(), eviction)

    def _new_machine(
        self, name: str, bound: str | None, whole: bool, power: str, disks: set[str], eviction: str = "LiveMigrate"
    ) -> None:
        roams = name in ROAMING
        spec: Raw = {"resources": plans.ROOM if roams else plans.SIZE, "disks": _disks(disks, roams=roams)}
        spec |= {"powerState": power, "evictionPolicy": eviction, "highAvailability": {"enabled": True}}
        if bound:
            spec["placement"] = {"hostSelector": {"role": bound}}
        if whole:
            spec["interfaces"] = [plans.ETH0]
        self._wish.machines[name] = Wanted(power, disks, starts=int(power == "Running"), roams=roams, eviction=eviction)
        # The name may be that of a machine that is going.
        self._room(VirtualMachine, name, spec)

    def _room(self, model: Any, name: str, spec: Raw) -> None:
        async def make() -> None:
            await self.world.until(lambda: self._made(model, name, spec), f"room for {name}", LONGEST)

        self._run(make())

    async def _made(self, model: Any, name: str, spec: Raw) -> bool:
        with contextlib.suppress(errors.AlreadyExists):
            made = await self.world.make(model.KIND, name, spec, TENANT)
            return "deletionTimestamp" not in made["metadata"]
        self._heal()
        return False

    @precondition(lambda self: self._wish.machines)
    @rule(name=machines, power=st.sampled_from(POWERS))
    def turn(self, name: str, power: str) -> None:
        """On, off, paused or suspended."""
        if (wanted := self._wish.machines.get(name)) is None or wanted.power == power:
            return
        if wanted.power == "Stopped" and power == "Suspended":
            return  # what is off has no memory to keep
        wanted.starts += power in ON
        wanted.power = power
        self._change(VirtualMachine, name, {"powerState": power})

    @precondition(lambda self: self._wish.machines)
    @rule(name=machines, size=st.sampled_from(SIZES))
    def restart(self, name: str, size: str) -> None:
        """Restart it, perhaps with another size."""
        if (wanted := self._wish.machines.get(name)) is None:
            return
        self._requests += 1
        wanted.starts += 1
        wanted.memory = size
        self._change(
            VirtualMachine, name, {"restartRequest": str(self._requests), "resources": {"memory": wanted.memory}}
        )

    @precondition(lambda self: self._wish.machines)
    @rule(name=st.sampled_from(ROAMING), size=st.sampled_from(SIZES), cpus=st.integers(1, 4))
    def grow(self, name: str, size: str, cpus: int) -> None:
        """It gets more than it has, while it runs."""
        if (wanted := self._wish.machines.get(name)) is None:
            return
        wanted.cpus, wanted.memory = max(wanted.cpus, cpus), max(wanted.memory, size, key=SIZES.index)
        self._change(VirtualMachine, name, {"resources": {"cpus": wanted.cpus, "memory": wanted.memory}})

    @precondition(lambda self: self._wish.machines)
    @rule(name=machines)
    def delete_machine(self, name: str) -> None:
        """It is not wanted any more."""
        if self._wish.machines.pop(name, None) is not None:
            self._run(self.world.user.delete(VirtualMachine.KIND, name, TENANT))

    @rule(name=st.sampled_from((*LOCAL, *SHARED)))
    def make_volume(self, name: str) -> None:
        """A volume."""
        if name not in self._wish.volumes:
            self._wish.volumes.add(name)
            self._room(Volume, name, {"size": "1Gi", "pool": "together" if name in SHARED else "local"})

    @precondition(lambda self: self._wish.machines and self._wish.volumes)
    @rule(name=machines, volume=st.sampled_from((*LOCAL, *SHARED)))
    def attach_or_detach(self, name: str, volume: str) -> None:
        """A machine gets a volume that no other one is to have, or is to have it no more."""
        wish = self._wish
        if (wanted := wish.machines.get(name)) is None or volume not in wish.volumes or wanted.power == "Suspended":
            return
        if wanted.roams is not (volume in SHARED) or volume in HOME.values():
            return
        if any(volume in other.disks for who, other in wish.machines.items() if who != name):
            return
        wanted.disks ^= {volume}
        self._change(VirtualMachine, name, {"disks": _disks(wanted.disks, roams=wanted.roams)})

    def _change(self, model: Any, name: str, spec: Raw) -> None:
        with contextlib.suppress(errors.NotFound):
            self._run(self.world.user.patch(model.KIND, name, {"spec": spec}, TENANT))

    @precondition(lambda self: self._wish.machines)
    @rule(name=machines)
    def keep_or_forget(self, name: str) -> None:
        """A snapshot of a machine, or its end."""
        user = self.world.user
        if name in self._snapshots:
            self._run(user.delete(VirtualMachineSnapshot.KIND, self._snapshots.pop(name), TENANT))
        elif name in self._wish.machines and self._wish.machines[name].disks:
            self._requests += 1
            self._snapshots[name] = f"{name}-{self._requests}"
            made = self.world.make(VirtualMachineSnapshot.KIND, self._snapshots[name], {"vm": name}, TENANT)
            self._run(made)

    @precondition(lambda self: any(wanted.roams for wanted in self._wish.machines.values()))
    @rule(name=st.sampled_from(ROAMING), where=st.none() | hosts)
    def move(self, name: str, where: str | None) -> None:
        """A machine is to go to another host while it runs."""
        if name in self._wish.machines:
            self._requests += 1
            self._moves.append(f"go-{self._requests}")
            spec = {"vm": name} | ({"targetHost": where} if where else {})
            self._run(self.world.make(VirtualMachineMigration.KIND, self._moves[-1], spec, TENANT))

    @precondition(lambda self: self._moves)
    @rule(which=st.integers(0, 8))
    def cancel(self, which: int) -> None:
        """One of the moves is not wanted any more; it may have ended."""
        name = self._moves.pop(which % len(self._moves))
        with contextlib.suppress(errors.NotFound):
            self._run(self.world.user.delete(VirtualMachineMigration.KIND, name, TENANT))

    @rule(replicas=st.integers(0, 3))
    def scale(self, replicas: int) -> None:
        """A pool of so many machines."""
        before, self._wish.replicas = self._wish.replicas, replicas
        if before is not None:
            self._change(VirtualMachinePool, "site", {"replicas": replicas})
            return
        template = {"resources": {"cpus": 1, "memory": self._wish.pool_memory}, "disks": [plans.ROOT]}
        spec = {
            "replicas": replicas,
            "selector": {"app": "site"},
            "template": {"metadata": {"labels": {"app": "site"}}, "spec": template},
        }
        self._room(VirtualMachinePool, "site", spec)

    @precondition(lambda self: self._wish.replicas is not None)
    @rule(size=st.sampled_from(SIZES))
    def renew(self, size: str) -> None:
        """The machines of the pool are to be of another template."""
        self._wish.pool_memory = size
        self._change(VirtualMachinePool, "site", {"template": {"spec": {"resources": {"memory": size}}}})

    @precondition(lambda self: self._wish.replicas is not None)
    @rule()
    def drop_pool(self) -> None:
        """The pool is not wanted any more, nor are its machines."""
        self._wish.replicas = None
        self._run(self.world.user.delete(VirtualMachinePool.KIND, "site", TENANT))

    # What operators do

    @rule(host=hosts, work=st.sampled_from(WORKS))
    def maintain(self, host: str, work: Raw | None) -> None:
        """Work on a host begins, ends, or is to be done in another way."""
        for wanted in self._wish.machines.values():
            wanted.starts += work is not None and wanted.eviction not in ("LiveMigrate", "None")
        self._change_host(
            host, {"maintenance": work if work is None else {"mode": "Evacuate", "returnGuests": False} | work}
        )

    def _change_host(self, host: str, spec: Raw) -> None:
        self._run(self.world.user.patch(Host.KIND, host, {"spec": spec}))

    @rule(host=hosts, what=st.sampled_from(FATES))
    def host(self, host: str, what: str) -> None:
        """Something becomes of a host, or is said of it."""
        self._run(getattr(self, f"_host_{what}")(host))

    async def _host_hang(self, host: str) -> None:
        """Nothing is heard of it any more, and its guests run on."""
        await self.world.stop(host)

    async def _host_off(self, host: str) -> None:
        """It has no power, until it is booted."""
        await self.world.cut_power(host)

    async def _host_boot(self, host: str) -> None:
        """It is itself again."""
        self.world.boot(host)

    async def _host_lost(self, host: str) -> None:
        """It hangs, and is switched off by itself for it: its machines start elsewhere."""
        await self._host_switch(host)
        await self.world.stop(host)
        await asyncio.sleep(20)

    async def _host_dead(self, host: str) -> None:
        """It loses power, and somebody says so: its machines start elsewhere."""
        await self.world.cut_power(host)
        await self._host_confirm(host)
        await asyncio.sleep(10)

    async def _host_confirm(self, host: str) -> None:
        """Somebody has seen that it is off, and says so."""
        if not self.world.powered(host):
            lease = await self.world.user.get(LEASE, LEASE_NAME, host_namespace(host))
            await self._remediate(host, {"confirmedOff": True, "lastRenewal": lease["spec"]["renewTime"]})

    async def _host_fence(self, host: str) -> None:
        """Somebody wants it switched off, if it does not answer."""
        await self._remediate(host, {"methods": [SWITCH]})

    async def _remediate(self, host: str, spec: Raw) -> None:
        self._requests += 1
        await self.world.make(HostRemediation.KIND, f"{host}-{self._requests}", {"host": host, **spec})

    async def _host_cordon(self, host: str) -> None:
        """It is to take no machines, or is to take them again."""
        found = await self.world.user.get(Host.KIND, host)
        cordoned = bool(found["spec"].get("unschedulable"))
        await self.world.user.patch(Host.KIND, host, {"spec": {"unschedulable": not cordoned}})

    async def _host_switch(self, host: str) -> None:
        """It is switched off by itself when it is silent, from now on."""
        spec = {"bmc": BMC, "fencing": {"automatic": True}}
        await self.world.user.patch(Host.KIND, host, {"spec": spec})

    # What happens to them

    @precondition(lambda self: self._wish.machines)
    @rule(name=machines, why=st.sampled_from((ExitReason.CRASHED, ExitReason.SHUTDOWN)))
    def guest_ends(self, name: str, why: ExitReason) -> None:
        """Its QEMU is killed, or it powers off."""
        if (wanted := self._wish.machines.get(name)) is None:
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
            self.world.cuts += 1
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

    async def _apart(self, party: Party, seconds: float) -> None:
        """Hosts do not reach each other, and what was open between them ends."""
        self.world.ways.cut = True
        self.world.ways.break_()
        await asyncio.sleep(seconds)
        self.world.ways.cut = False

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
        for host in HOSTS:
            self.world.boot(host)

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        self.world.during(work)
        await asyncio.sleep(0)


def _disks(volumes: set[str], *, roams: bool) -> list[Raw]:
    mine = [{"name": volume, "volume": volume} for volume in sorted(volumes)]
    return mine if roams else [plans.ROOT, *mine]


async def _soon(deed: Any, *arguments: Any) -> None:
    deed(*arguments)
