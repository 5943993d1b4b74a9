"""A machine never runs twice, whatever is cut, boots, dies or is late (QUALITY G17); and in the end all of them run."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Awaitable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.machine_import import UNMANAGE
from kumulus.api.order_names import FENCE_ORDER, instance_order_name
from kumulus.api.remediation import HostRemediation
from tests.unit.fencing.api import Client
from tests.unit.fencing.world import TENANT, Brain, Happening, World

HOSTS = st.sampled_from(("h1", "h2", "h3"))
NOTHING = 13
"""The happening in which nothing does."""
KINDS = st.sampled_from(("hosts", "workorders", "virtualmachines", "hostremediations", "leases", "hostreports"))


LOOP = asyncio.new_event_loop()
"""Of all worlds: nothing in one waits for anything outside of it."""


def run(what: Awaitable[object]) -> None:
    """To its end."""
    LOOP.run_until_complete(what)


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    yield
    LOOP.close()


def dies_and_comes_back() -> World:
    world = World()

    async def story() -> None:
        await world.build()
        before = world.where("a") + world.where("b")
        assert len(before) == 2
        dead = world.hosts[before[0]]
        dead.cut()
        await world.settle(25)
        assert not world.where("a"), "silence is no proof"
        await world.confirm(dead.name)
        await world.settle(25)
        assert len(world.where("a")) == 1 and world.where("a") != [dead.name]
        await dead.boot()
        await world.settle(8)
        assert len(world.where("a")) == 1 and world.where("a") != [dead.name]

    run(story())
    return world


def test_a_dead_host_s_machine_starts_elsewhere_once() -> None:
    world = dies_and_comes_back()
    assert not world.twice
    assert max(len(runs) for runs in world.started.values()) == 2
    assert [item.status["phase"] for item in world.objects(HostRemediation)] == ["Succeeded"]


def test_a_host_that_boots_between_the_word_and_the_fence_keeps_its_machine() -> None:
    """It renews its Lease, reads its orders and starts the machine just before the fence is made."""
    world = World()

    async def story() -> None:
        await world.build()
        (name,) = world.where("a")
        host = world.hosts[name]
        host.cut()
        await world.settle(25)
        await world.confirm(name)
        world.brain.see()

        # Its word is on record, and its finalizer: the next request makes the fence.
        while not any(item.status.get("lastRenewal") for item in world.objects(HostRemediation)):
            await world.brain.passes(0)
        world.plans = [host.come_back]
        for _ in range(6):
            await world.brain.passes(0)
            world.brain.see("workorders", "hostremediations")
        assert world.where("a") == [name], "it was back before the fence was made"
        await world.settle(30)
        assert world.where("a") == [name]
        assert [item.status["phase"] for item in world.objects(HostRemediation)] == ["Refused"]

    run(story())
    assert not world.twice


async def fenced(world: World) -> str:
    """The host of machine a is off and fenced, and nothing was taken from it yet."""
    await world.build()
    (name,) = world.where("a")
    world.hosts[name].cut()
    await world.settle(25)
    await world.confirm(name)
    for _ in range(6):
        await world.brain.passes(0)
        world.brain.see("hostremediations", "workorders")
    await world.brain.passes(1)
    world.brain.see("hosts")
    assert world.objects(HostRemediation)[0].status["phase"] == "Fenced"
    return name


def test_who_leads_next_gives_no_placement_up_whose_order_it_does_not_know_of() -> None:
    """It runs on a host that is being emptied, and the cache of work orders is behind that of machines."""
    world = World()

    async def story() -> None:
        await world.build()
        (name,) = world.where("a")
        client = Client(world.api, lambda _verb: asyncio.sleep(0))
        await client.patch(Host.KIND, name, {"spec": {"maintenance": {"mode": "Evacuate"}}})
        seen = [store.model.KIND.plural for store in world.brain.caches if store.model is not WorkOrder]
        world.brain = Brain(world, world.brain.term + 1)
        for _ in range(3):
            world.brain.see(*seen)
            await world.brain.passes(2)
            for host in world.hosts.values():
                await host.look()
                await host.work()
        assert world.where("a") == [name]

    run(story())
    assert not world.twice


@pytest.mark.parametrize("ended", [False, True], ids=["as it was", "its order was ended before"])
def test_a_machine_that_is_let_go_of_while_its_host_is_fenced_keeps_its_domain(ended: bool) -> None:
    world = World()

    async def story() -> None:
        name = await fenced(world)
        uid = world.api.objects[(VirtualMachine.KIND.plural, TENANT, "a")]["metadata"]["uid"]
        client = Client(world.api, lambda _verb: asyncio.sleep(0))
        if ended:
            await client.delete(WorkOrder.KIND, instance_order_name(uid), host_namespace(name))
        await client.patch(VirtualMachine.KIND, "a", {"metadata": {"annotations": {UNMANAGE: "true"}}}, TENANT)
        await client.delete(VirtualMachine.KIND, "a", TENANT)
        for _ in range(6):
            world.brain.see()
            await world.brain.passes(2)
            world.clock.seconds += 1
        host = world.hosts[name]
        assert uid in host.machine.domains
        (going,) = [item for item in world.objects(VirtualMachine) if item.metadata["uid"] == uid]
        said = {item["type"]: item for item in going.status["conditions"]}["Ready"]
        assert said["reason"] == "HostFenced" and "lets go of the machine's domain" in said["message"]
        await host.boot()
        await world.settle(12)
        assert uid in host.machine.foreign, "the domain is there, and is nobody's"
        assert not [item for item in world.objects(VirtualMachine) if item.metadata["uid"] == uid]
        assert [item.status["phase"] for item in world.objects(HostRemediation)] == ["Succeeded"]

    run(story())
    assert not world.twice


def test_a_machine_that_was_being_moved_waits_until_nothing_of_it_is_elsewhere() -> None:
    """The other host may have its guest (ADR 29)."""
    world = World()

    async def story() -> None:
        name = await fenced(world)
        uid = world.api.objects[(VirtualMachine.KIND.plural, TENANT, "a")]["metadata"]["uid"]
        other = next(host for host in world.hosts if host != name)
        here = world.api.objects[(WorkOrder.KIND.plural, host_namespace(name), instance_order_name(uid))]
        there = copy.deepcopy(here["spec"])
        there["instance"]["epoch"] += 1
        there["instance"]["incoming"] = {"migration": uid, "host": name}
        body = {"metadata": {"name": instance_order_name(uid), "finalizers": [FINALIZER]}, "spec": there}
        client = Client(world.api, lambda _verb: asyncio.sleep(0))
        made = await client.create(WorkOrder.KIND, body, host_namespace(other))
        for _ in range(6):
            world.brain.see()
            await world.brain.passes(2)
        (machine,) = [item for item in world.objects(VirtualMachine) if item.metadata["uid"] == uid]
        assert machine.status["host"] == name
        said = {item["type"]: item for item in machine.status["conditions"]}["HighAvailability"]
        assert (said["status"], said["reason"]) == ("False", "Moving") and other in said["message"]
        await client.patch(
            WorkOrder.KIND, made["metadata"]["name"], {"metadata": {"finalizers": []}}, host_namespace(other)
        )
        await client.delete(
            WorkOrder.KIND, made["metadata"]["name"], host_namespace(other), uid=made["metadata"]["uid"]
        )
        await world.settle(25)
        assert len(world.where("a")) == 1 and world.where("a") != [name]

    run(story())
    assert not world.twice


async def all_but(world: World, name: str, *seen: str) -> None:
    """Everybody goes on, but for one host, which is slow; controllers see changes of these kinds, or of all."""
    for _ in range(4):
        world.brain.see(*seen)
        await world.brain.passes(2)
        for host in world.hosts.values():
            if host.name != name:
                await host.beat()
                await host.look()
                await host.work()


def test_a_host_that_boots_while_its_machine_is_taken_does_not_start_it() -> None:
    """It has read its orders before that of the machine was ended, and sees to that one before it answers the fence."""
    for requests in range(12):
        world = World()

        async def story(world: World = world, requests: int = requests) -> None:
            host = world.hosts[await fenced(world)]
            await host.boot()
            await host.beat()
            await host.look()
            await host.work(only=WorkType.INSTANCE)
            world.clock.seconds += 10
            world.plans = [lambda: None] * requests + [lambda: host.work(only=WorkType.INSTANCE)]
            await world.brain.passes(2)
            await all_but(world, host.name)
            await world.settle(20)
            assert len(world.where("a")) == 1

        run(story())
        assert not world.twice, f"after {requests} requests"


def test_a_host_that_was_said_to_be_off_and_was_not_ends_its_copy_at_once() -> None:
    """A person erred: nothing can undo that, but the first that the host does when it hears of it is to end its copy."""
    world = World()

    async def story() -> None:
        await world.build()
        (name,) = world.where("a")
        host = world.hosts[name]
        host.cut_off = True
        await world.settle(25)
        await world.confirm(name, untrue=True)
        await world.settle(25)
        assert len(world.where("a")) == 2 and world.twice, "so it is when somebody errs"
        uid = next(uid for uid, host_ in world.started.items() if name in {one for one, _ in host_})
        host.machine.deaf.add(uid)
        host.cut_off = False
        await host.beat()
        await host.look()
        await host.work()
        assert len(world.where("a")) == 1 and world.where("a") != [name]

    run(story())


def test_an_agent_that_has_not_renewed_its_lease_reads_no_orders() -> None:
    world = World()

    async def story() -> None:
        await world.build()
        (name,) = world.where("a")
        host = world.hosts[name]
        host.cut()
        await host.boot()
        await host.look()
        await host.start()
        assert not world.where("a")
        await host.come_back()
        assert world.where("a") == [name]

    run(story())


def test_who_believes_a_host_to_be_fenced_that_has_come_back_takes_nothing_from_it() -> None:
    """The cache is behind: the fence that it knows of is gone, and the machine runs there again."""
    world = World()

    async def story() -> None:
        name = await fenced(world)
        behind = world.brain
        world.succeed()
        await world.hosts[name].boot()
        for _ in range(8):
            for host in world.hosts.values():
                await host.beat()
                await host.look()
                await host.start()
            world.brain.see()
            await world.brain.passes(0)
            await world.brain.passes(1)
        assert world.where("a") == [name]
        world.brain = behind
        await behind.passes(2)
        await all_but(world, name, "virtualmachines", "workorders")
        await world.settle(10)
        assert len(world.where("a")) == 1

    run(story())
    assert not world.twice


class Fencing(RuleBasedStateMachine):
    """Hosts, controllers and people, each of whom does anything at any time."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        run(self.world.build())

    def happening(self, number: int, name: str, kind: str) -> Happening:
        world, host = self.world, self.world.hosts[name]
        return (
            host.cut,
            host.boot,
            host.beat,
            host.look,
            host.work,
            lambda: world.confirm(name),
            lambda: world.brain.passes(0),
            lambda: world.brain.passes(1),
            lambda: world.brain.passes(2),
            lambda: world.brain.see(kind),
            world.succeed,
            host.come_back,
            lambda: host.come_back(backwards=True),
            lambda: None,
        )[number]

    HAPPENINGS = st.lists(st.tuples(st.integers(0, NOTHING), HOSTS, KINDS), max_size=8)

    def plan(self, what: list[tuple[int, str, str]]) -> None:
        self.world.plans = [self.happening(*one) for one in what]

    @rule(name=HOSTS)
    def power_fails(self, name: str) -> None:
        self.world.hosts[name].cut()

    @rule(name=HOSTS, beats=st.booleans())
    def power_returns(self, name: str, beats: bool) -> None:
        run(self.world.hosts[name].boot())
        if beats:
            run(self.world.hosts[name].beat())

    @rule(name=HOSTS, what=HAPPENINGS, backwards=st.booleans())
    def a_host_works(self, name: str, what: list[tuple[int, str, str]], backwards: bool) -> None:
        host = self.world.hosts[name]

        async def turn() -> None:
            await host.beat()
            await host.look()
            await host.work(backwards)

        self.plan(what)
        run(turn())

    @rule(name=HOSTS, away=st.booleans())
    def a_host_is_cut_off(self, name: str, away: bool) -> None:
        self.world.hosts[name].cut_off = away

    @rule(seconds=st.sampled_from((1.0, 7.0, 21.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.seconds += seconds

    @rule(name=HOSTS)
    def somebody_confirms(self, name: str) -> None:
        run(self.world.confirm(name))

    @rule(
        name=HOSTS, machine=st.sampled_from(("a", "b", "")), quiet=st.integers(0, 24), what=HAPPENINGS, again=HAPPENINGS
    )
    def a_host_dies_and_is_fenced(
        self, name: str, machine: str, quiet: int, what: list[tuple[int, str, str]], again: list[tuple[int, str, str]]
    ) -> None:
        """What leads deep into a failover at once: mostly of a host that has a machine, and with things that happen to that
        host, after some requests in which nothing does."""
        world = self.world
        on = world.where(machine) if machine else []
        name = on[0] if on else name
        world.hosts[name].cut()
        world.clock.seconds += 1
        world.brain.see()
        world.clock.seconds += 21
        run(world.confirm(name))
        same = [(number, name, kind) for number, _, kind in what]
        self.plan([(NOTHING, name, "hosts")] * quiet + same + again)
        for _ in range(6):
            world.brain.see("hosts", "workorders", "virtualmachines", "hostremediations")
            run(world.brain.passes())
        if world.hosts[name].up:
            run(world.hosts[name].come_back())

    @rule(name=HOSTS)
    def somebody_asks(self, name: str) -> None:
        run(self.world.ask(name))

    @rule(which=st.sampled_from((None, 0, 1, 2)), what=HAPPENINGS, see=st.booleans())
    def controllers_work(self, which: int | None, what: list[tuple[int, str, str]], see: bool) -> None:
        if see:
            self.world.brain.see()
        self.plan(what)
        run(self.world.brain.passes(which))

    @rule(kind=KINDS)
    def controllers_see(self, kind: str) -> None:
        self.world.brain.see(kind)

    @rule()
    def controllers_die(self) -> None:
        self.world.succeed()

    @invariant()
    def nothing_runs_twice(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.twice, self.world.twice

    def teardown(self) -> None:
        if not hasattr(self, "world") or self.world.twice:
            return
        world = self.world
        for host in world.hosts.values():
            host.cut_off = False
            run(host.boot())
        for _ in range(9):  # what has ended several times is started again after pauses of up to five minutes
            run(world.settle(45))
            if all(world.where(name) for name in world.machines):
                break
        assert not world.twice, world.twice
        assert [len(world.where(name)) for name in world.machines] == [1, 1], "in the end each runs, once"
        phases = [item.status["phase"] for item in world.objects(Host)]
        assert phases == ["Ready"] * len(phases)
        assert not [o for o in world.objects(WorkOrder) if o.metadata["name"] == FENCE_ORDER]
        assert len(world.objects(WorkOrder)) == len(world.machines), "nothing is left to clean up"


EXAMPLES = int(os.environ.get("KUMULUS_SCHEDULES", "10"))
Fencing.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
TestFencing = Fencing.TestCase


@pytest.mark.wide
class TestManySchedules(Fencing.TestCase):  # type: ignore[misc]
    settings = settings(Fencing.TestCase.settings, max_examples=1000)
