"""Controllers and both agents of a migration, each of which may die at any line, see late, or lose an answer.

What decides is the real thing: the plans of the controllers and of the agents. Played are the hosts: what libvirt does when a
guest is sent, as it was seen to, its worst ways included. Whatever comes in whatever order, no guest ever runs twice or goes
on with a memory that is older than what it did last; and once all of them are left in peace, it runs, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kumulus.api.base import ObjectMeta, ObjectRef
from kumulus.api.compute import (
    PowerState,
    Resources,
    RestartPolicy,
    VirtualMachine,
    VirtualMachineSpec,
    VirtualMachineStatus,
)
from kumulus.api.host import HostReport, MigrationEndpoint, WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.instance_order import InstanceDisk, InstanceOrder, MigrationFacts, MigrationState
from kumulus.api.migration import (
    FINISHED,
    MovingDisk,
    OnStall,
    VirtualMachineMigration,
    VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus,
)
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.api.storage import Volume, VolumeSpec, VolumeStatus
from kumulus_agents.agent import instance_memory, instance_plan, instance_status
from kumulus_agents.agent.instance_scope import (
    Arrive,
    EndSending,
    ForceOff,
    Mark,
    Memory,
    Moving,
    Pause,
    PressButton,
    Receive,
    Remove,
    Resume,
    Scope,
    Send,
    Start,
)
from kumulus_agents.hypervisor.domain import AttachedDisk, Domain, DomainState, ExitReason
from kumulus_controllers.compute import migration_orders, migration_plan, migration_scope
from kumulus_controllers.compute.migration_plan import Step
from kumulus_controllers.compute.scope import Use
from kumulus_controllers.storage.volume_plan import Lack

UID, GO = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
VOLUME = "00000000-0000-0000-0000-000000000003"
POOL = PoolRef(uid=VOLUME, name="p", driver=PoolDriver.DIR, parameters=PoolParameters(path="/p"))
HOSTS = ("a", "b")
WALL = 1_800_000_000.0
STARTED = "2027-01-15T08:00:00Z"
ON = (DomainState.RUNNING, DomainState.PAUSED)


def new_order(host: str, instance: InstanceOrder) -> WorkOrder:
    return WorkOrder(
        metadata=ObjectMeta(name="i", namespace=f"kumulus-host-{host}", uid=UID, generation=1),
        spec=WorkOrderSpec(
            type=WorkType.INSTANCE,
            for_=ObjectRef(kind="VirtualMachine", namespace="ns", name="vm", uid=UID),
            instance=instance,
        ),
    )


@dataclass
class Host:
    """A host: what its hypervisor has, what it was ordered, and what its agent's process knows."""

    name: str
    domain: Domain | None = None
    order: WorkOrder | None = None
    version: int = 0
    """Of the guest's memory."""
    sending: bool = False
    failure: tuple[str, str] | None = None
    awaits: bool = False
    ended: bool = False
    stalled: float = 0.0
    """For how many seconds a copy gets no closer to its end here."""
    memory: Memory = field(default_factory=Memory)

    def die(self) -> None:
        """The agent's process is gone, and every connection of it."""
        self.sending = self.awaits = self.ended = False
        self.failure, self.memory = None, Memory()

    def moving(self, instance: InstanceOrder, said: MigrationFacts | None) -> Moving | None:
        """As `Migrations.moving`."""
        if self.sending or self.failure is not None or self.awaits:
            return Moving(failure=self.failure, stalled=self.stalled if self.sending else 0.0)
        wanted = instance.outgoing or instance.incoming
        sent = said is not None and said.state is MigrationState.SENDING and not self.ended
        return Moving() if wanted is None and sent else None


class Protocol(RuleBasedStateMachine):
    """One machine, which moves once."""

    disks: tuple[MovingDisk, ...] = ()
    """That go along."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.version = 0
        self.hosts = {name: Host(name) for name in HOSTS}
        instance = InstanceOrder(
            uid=UID,
            epoch=1,
            power=PowerState.RUNNING,
            restart_policy=RestartPolicy.ALWAYS,
            cpus=1,
            memory=64 << 20,
            disks=tuple(
                InstanceDisk(name=disk.name, volume=disk.volume, pool=POOL, boot_order=1) for disk in self.disks
            ),
        )
        self.hosts["a"].order = new_order("a", instance)
        self.vm = VirtualMachine(
            metadata=ObjectMeta(name="vm", namespace="ns", uid=UID, generation=1),
            spec=VirtualMachineSpec(resources=Resources(cpus=1, memory="64Mi"), power_state=PowerState.RUNNING),
            status=VirtualMachineStatus(host="a", epoch=1),
        )
        self.migration = VirtualMachineMigration(
            metadata=ObjectMeta(name="go", namespace="ns", uid=GO, generation=1),
            spec=VirtualMachineMigrationSpec(vm="vm", with_local_disks=bool(self.disks)),
            status=VirtualMachineMigrationStatus(),
        )
        self.left = False
        """The migration is no more."""
        self.seen: dict[str, WorkOrder | None] = {}
        self.late = 0.0
        self.fenced = False
        """The source is off for certain, and says nothing."""
        self.begins()
        self.agent("a")
        self.look("a")
        self.look("b")

    @initialize(steps=st.integers(0, 6), on_stall=st.sampled_from([None, OnStall.CANCEL, OnStall.WAIT]))
    def begin(self, steps: int, on_stall: OnStall | None) -> None:
        """It has come so far before anything goes wrong."""
        spec = self.migration.spec.model_copy(update={"on_stall": on_stall})
        self.migration = self.migration.model_copy(update={"spec": spec})
        self.all_goes_well(steps)

    # The controllers.

    @rule(host=st.sampled_from(HOSTS))
    def look(self, host: str) -> None:
        """The watch of the controllers brings what there is on a host."""
        self.seen[host] = self.hosts[host].order

    @precondition(lambda self: not self.left)
    @rule(look=st.booleans())
    def control(self, look: bool = False) -> None:
        """One step of the controllers, by what they have seen. A write to what has changed since is refused."""
        for host in HOSTS if look else ():
            self.look(host)
        status = self.migration.status
        report = HostReport.parse(
            {"metadata": {"name": "a"}, "status": {"migration": {"address": "192.0.2.1", "port": 9413, "disks": True}}}
        )
        scope = migration_scope.Scope(
            migration=self.migration,
            vm=self.vm,
            now=WALL + self.late,
            source=self.seen.get(status.source_host or self.vm.status.host or "a"),
            target=self.seen.get(status.target_host) if status.target_host else None,
            endpoint=MigrationEndpoint(address="192.0.2.2", port=9413),
            source_report=report,
            source_fenced=self.fenced,
            volumes=self.volumes(),
            unsettled=self.unsettled(),
        )
        move = migration_plan.plan(scope)
        match move.step:
            case Step.CHOOSE:
                self._status(
                    source_host="a", target_host="b", epoch=2, vm_uid=UID, started_at=STARTED, disks=self.disks
                )
            case Step.MAKE_TARGET:
                assert scope.source is not None
                spec = migration_orders.target_order(scope.source.spec, self.migration, 1)
                if self.hosts["b"].order is None:
                    assert spec.instance is not None
                    self.hosts["b"].order = new_order("b", spec.instance)
                self.look("b")
            case Step.SEND:
                assert scope.source is not None and scope.endpoint is not None
                self._change("a", migration_orders.sending(scope.source.spec, self.migration, scope.endpoint, 1))
            case Step.WITHDRAW:
                assert scope.source is not None
                self._change("a", migration_orders.withdrawn(scope.source.spec, 1))
            case Step.SETTLE:
                assert scope.target is not None
                self._change("b", migration_orders.settled(scope.target.spec, 1))
            case Step.TAKE_OVER:
                moved = self.vm.status.model_copy(update={"host": "b", "epoch": 2})
                self.vm = self.vm.model_copy(update={"status": moved})
            case Step.GIVE_UP:
                assert move.lack is not None
                self._status(failure=move.lack.reason, failure_message=move.lack.message)
            case Step.END_SOURCE:
                self._end("a")
            case Step.END_TARGET:
                self._end("b")
            case Step.FINISH:
                self._status(phase=move.phase)
            case Step.LEAVE:
                self.left = True
            case Step.WAIT:
                pass

    def _status(self, **update: Any) -> None:
        after = self.migration.status.model_copy(update=update)
        self.migration = self.migration.model_copy(update={"status": after})

    def _change(self, host: str, spec: WorkOrderSpec) -> None:
        seen, now = self.seen[host], self.hosts[host].order
        if seen is not None and seen is now and seen.spec != spec:
            self.hosts[host].order = self._renewed(seen, spec=spec)
            self.look(host)

    def _end(self, host: str) -> None:
        now = self.hosts[host].order
        if now is not None and not now.deleting:
            metadata = now.metadata.model_copy(
                update={"deletion_timestamp": STARTED, "generation": now.metadata.generation + 1}
            )
            self.hosts[host].order = now.model_copy(update={"metadata": metadata})
        self.look(host)

    @staticmethod
    def _renewed(order: WorkOrder, *, spec: WorkOrderSpec) -> WorkOrder:
        metadata = order.metadata.model_copy(update={"generation": order.metadata.generation + 1})
        return order.model_copy(update={"spec": spec, "metadata": metadata})

    @precondition(lambda self: not self.left)
    @rule()
    def cancel(self) -> None:
        metadata = self.migration.metadata.model_copy(update={"deletion_timestamp": STARTED})
        self.migration = self.migration.model_copy(update={"metadata": metadata})

    @rule()
    def time_is_up(self) -> None:
        self.late = 601.0

    # The agents.

    @rule(host=st.sampled_from(HOSTS), dies_after=st.none() | st.integers(1, 4))
    def agent(self, host: str, dies_after: int | None = None) -> None:
        """A pass of a host's agent, which may die after so many steps."""
        self.now += 1
        at, steps = self.hosts[host], 0
        if self.fenced and host == "a":
            return
        for _ in range(8):
            if at.order is None:
                return
            scope = self._observe(at, at.order)
            found = instance_plan.plan(scope)
            for step in found.steps:
                self._take(at, step)
                steps += 1
                if steps == dies_after:
                    at.die()
                    return
            if found.release:
                at.order = None
                return
            if not found.steps:
                status = instance_status.derive(scope, found, at.order.metadata.generation)
                at.order = at.order.model_copy(update={"status": status})
                return

    def _observe(self, at: Host, order: WorkOrder) -> Scope:
        assert order.spec.instance is not None
        said = order.status.instance.migration if order.status.instance is not None else None
        scope = Scope(
            order=order.spec.instance,
            deleting=order.deleting,
            term=0,
            highest_term=0,
            namespace="ns",
            name="vm",
            domain=at.domain,
            status=order.status,
            memory=at.memory,
            now=self.now,
            wall=WALL + self.now,
            moving=at.moving(order.spec.instance, said),
        )
        at.memory = instance_memory.remember(scope, None, None)
        return replace(scope, memory=at.memory)

    def _take(self, at: Host, step: Any) -> None:
        domain = at.domain
        match step:
            case Start(new):
                assert domain is None or domain.state is DomainState.STOPPED
                if not self.may_start(at):
                    return
                on = Domain(new, DomainState.RUNNING, started_at=WALL + self.now, cpus=1, memory=64 << 20)
                at.domain = replace(on, disks=self._attached())
                self.version += 1
                at.version = self.version
            case Mark(new):
                assert domain is not None
                at.domain = replace(domain, marks=new)
            case Resume():
                at.memory = replace(at.memory, resumed_at=self.now)
                if domain is not None and domain.state is DomainState.PAUSED:
                    self._goes_on(at, replace(domain, state=DomainState.RUNNING))
            case Pause():
                raise AssertionError("nobody wants it paused")
            case PressButton() | ForceOff():
                self._off(at, ExitReason.DESTROYED)
            case Remove():
                at.domain, at.sending = None, False
                self.abandoned(at)
            case Send():
                assert domain is not None and domain.state is DomainState.RUNNING
                at.sending = True
            case EndSending():
                at.sending = at.awaits = False
                at.failure, at.ended = None, True
            case Receive(new, migration):
                assert domain is None or domain.state is DomainState.STOPPED
                off = Domain(new, DomainState.STOPPED, exit_reason=ExitReason.UNKNOWN, arriving=migration)
                at.domain = replace(off, cpus=1, memory=64 << 20, disks=self._attached())
                at.awaits = True
                self.awaited(at)
            case Arrive(new):
                self._arrives(at)
            case _:
                raise AssertionError(step)

    def _attached(self) -> tuple[AttachedDisk, ...]:
        return tuple(AttachedDisk(disk.name, "/p/volume", disk.volume) for disk in self.disks)

    def _arrives(self, at: Host) -> None:
        domain = at.domain
        if domain is not None and domain.arriving is not None and domain.state is DomainState.PAUSED:
            self.settles(at)
            self._goes_on(at, replace(domain, arriving=None, state=DomainState.RUNNING))

    def _goes_on(self, at: Host, domain: Domain) -> None:
        assert at.version == self.version, "it goes on with a memory that is older than what it did last"
        at.domain = domain

    @staticmethod
    def _off(at: Host, why: ExitReason) -> None:
        if at.domain is not None and at.domain.state in ON:
            at.domain = replace(at.domain, state=DomainState.STOPPED, exit_reason=why, started_at=None)
            at.sending = at.sending and why is ExitReason.MIGRATED

    @rule(times=st.integers(1, 4))
    def all_goes_well(self, times: int) -> None:
        """Everybody looks, and does what there is to do."""
        for _ in range(times):
            for host in HOSTS:
                self.look(host)
            if not self.left:
                self.control()
            for host in HOSTS:
                self.agent(host)
                self.runs_once()

    # What happens.

    @rule(host=st.sampled_from(HOSTS))
    def agent_dies(self, host: str) -> None:
        self.hosts[host].die()

    @rule(host=st.sampled_from(HOSTS))
    def guest_ends(self, host: str) -> None:
        at = self.hosts[host]
        sending = at.sending
        self._off(at, ExitReason.CRASHED)
        if sending and not at.sending:
            at.failure = ("MigrationFailed", "the guest ended")

    @rule(host=st.sampled_from(HOSTS))
    def host_is_restarted(self, host: str) -> None:
        """Guest, libvirtd and agent are gone at once, and the agent is back."""
        self._off(self.hosts[host], ExitReason.UNKNOWN)
        self.hosts[host].die()
        self.agent(host)

    @rule(host=st.sampled_from(HOSTS))
    def libvirtd_is_restarted(self, host: str) -> None:
        """It forgets why a domain is off."""
        domain = self.hosts[host].domain
        if domain is not None and domain.state is DomainState.STOPPED:
            self.hosts[host].domain = replace(domain, exit_reason=ExitReason.UNKNOWN)

    @rule(seconds=st.sampled_from([0.0, 30.0, 61.0]))
    def copy_stalls(self, seconds: float) -> None:
        """It gets no closer to its end, or does again."""
        self.hosts["a"].stalled = seconds

    @rule()
    def guest_works(self) -> None:
        """Whoever runs does something that nobody else knows of."""
        for at in self.hosts.values():
            if at.domain is not None and at.domain.state is DomainState.RUNNING:
                self.version += 1
                at.version = self.version
                self.wrote(at)

    @precondition(lambda self: self.hosts["a"].sending)
    @rule(how=st.sampled_from(["fails", "answer is lost", "left", "marked", "told"]))
    def libvirt_ends_sending(self, how: str) -> None:
        """The copy fails; it is whole there and the source was not told; or the guest has left, and the source's agent dies
        then, or after it has put that on record, or does all that it has to."""
        source, target = self.hosts["a"], self.hosts["b"]
        there = target.domain
        expected = there is not None and there.arriving == GO and there.state is DomainState.STOPPED and target.awaits
        source.sending = False
        if source.domain is None or source.domain.state is not DomainState.RUNNING:
            return
        if how == "fails" or not expected:
            self.half_copied()
            source.failure = ("MigrationFailed", "it failed")
            return
        assert there is not None
        target.domain, target.version = replace(there, state=DomainState.PAUSED, exit_reason=None), source.version
        self.copied()
        if how == "answer is lost":
            source.failure = ("MigrationFailed", "no answer")
            self.guest_works()
            return
        self._off(source, ExitReason.MIGRATED)
        if how == "left":
            source.die()
            return
        assert source.domain is not None
        source.domain = replace(source.domain, marks=replace(source.domain.marks, departed=GO))
        if how == "marked":
            source.die()
            return
        incoming = target.order.spec.instance.incoming if target.order and target.order.spec.instance else None
        if incoming is not None and incoming.migration == GO and target.order and not target.order.deleting:
            self._arrives(target)

    @invariant()
    def runs_once(self) -> None:
        on = [at.name for at in self.hosts.values() if at.domain and at.domain.state is DomainState.RUNNING]
        assert len(on) <= 1, f"it runs on {on}"

    def teardown(self) -> None:
        """Nobody dies any more, and everybody is heard: it runs, once, and nothing is left of it elsewhere."""
        rounds = 80 if self.fenced else 40
        for left in reversed(range(rounds)):
            self.now += 400
            self.fenced = self.fenced and left > 40
            for host in HOSTS:
                self.look(host)
            if not self.left:
                self.control()
            for host in HOSTS:
                self.agent(host)
                self.runs_once()
            if self.hosts["a"].sending:
                self.libvirt_ends_sending("told")
            self.guest_works()
            self.follow()
        assert self.left or self.migration.status.phase in FINISHED, self.migration.status
        here = self.hosts[self.vm.status.host or ""]
        other = next(at for at in self.hosts.values() if at is not here)
        assert other.domain is None and other.order is None, other
        assert here.domain is not None and here.domain.state is DomainState.RUNNING, here
        assert here.domain.arriving is None and here.domain.marks.departed is None
        self.ends_on(here, other)

    # What is so of disks that only one host has.

    def begins(self) -> None:
        """What there is before anything moves."""

    def volumes(self) -> Mapping[str, Use]:
        """As they are on record."""
        return {}

    def unsettled(self) -> frozenset[str]:
        """Disks that the target does not see to yet."""
        return frozenset()

    def may_start(self, at: Host) -> bool:
        """Whether its disks are there."""
        return True

    def awaited(self, at: Host) -> None:
        """Empty disks are made, or what is there of an attempt is found."""

    def abandoned(self, at: Host) -> None:
        """What has come and is no volume goes."""

    def settles(self, at: Host) -> None:
        """What has come is its volumes."""

    def wrote(self, at: Host) -> None:
        """The guest has flushed something."""

    def copied(self) -> None:
        """All is there."""

    def half_copied(self) -> None:
        """The copy fails in the middle."""

    def follow(self) -> None:
        """The controllers of volumes do what there is to do, and the agents what they say."""

    def ends_on(self, here: Host, other: Host) -> None:
        """It is all on one host in the end."""


@dataclass
class Disk:
    """What a host has of a disk."""

    written: int = -1
    """The last that was flushed to it. -1: nothing, or a half of something."""
    whole: bool = False
    """It is a volume there: it has its record."""


class WithDisks(Protocol):
    """The same with a volume that only one host has, and goes along."""

    disks = (MovingDisk(name="root", volume=VOLUME, pool="p", size=1 << 20),)

    def begins(self) -> None:
        self.disk: dict[str, Disk | None] = {"a": Disk(0, whole=True), "b": None}
        self.written = 0
        self.place = "a"
        """Where the volume is on record."""

    def volumes(self) -> Mapping[str, Use]:
        status = VolumeStatus(pool="p", host=self.place, size=1 << 20)
        volume = Volume(metadata=ObjectMeta(name="v", namespace="ns", uid=VOLUME), spec=VolumeSpec(), status=status)
        return {"root": Use(volume, Lack("Nothing", "is wanted"), POOL)}

    def unsettled(self) -> frozenset[str]:
        there = self.disk["b"]
        return frozenset() if self.place == "b" and there is not None and there.whole else frozenset({"root"})

    def may_start(self, at: Host) -> bool:
        disk = self.disk[at.name]
        if disk is None or not disk.whole:
            return False
        assert disk.written == self.written, "it starts from a disk that is older than what was flushed last"
        return True

    def awaited(self, at: Host) -> None:
        if self.disk[at.name] is None:
            self.disk[at.name] = Disk()

    def abandoned(self, at: Host) -> None:
        disk = self.disk[at.name]
        incoming = at.order.spec.instance.incoming if at.order and at.order.spec.instance else None
        if incoming is not None and disk is not None and not disk.whole:
            self.disk[at.name] = None

    def settles(self, at: Host) -> None:
        disk = self.disk[at.name]
        assert disk is not None and disk.written == self.written, "it goes on with what is older than it wrote"
        disk.whole = True

    def wrote(self, at: Host) -> None:
        disk = self.disk[at.name]
        assert disk is not None
        self.written += 1
        disk.written = self.written

    def copied(self) -> None:
        one, other = self.disk["a"], self.disk["b"]
        assert one is not None and other is not None
        other.written = one.written

    def half_copied(self) -> None:
        there = self.disk["b"]
        if there is not None and not there.whole:
            there.written = -1

    @rule()
    def source_is_fenced(self) -> None:
        self.fenced = True
        self._off(self.hosts["a"], ExitReason.UNKNOWN)
        self.hosts["a"].die()
        self.libvirtd_is_restarted("a")

    @rule()
    def follow(self) -> None:
        placed = (self.vm.status.host, self.vm.status.epoch) == ("b", 2)
        if placed and self.migration.status.phase not in FINISHED:
            self.place = "b"
        there = self.disk["b"]
        if self.place == "b" and there is not None:
            assert there.written == self.written, "what is settled is older than what was flushed last"
            there.whole = True
            source = self.hosts["a"]
            if source.domain is None and source.order is None:
                self.disk["a"] = None

    @invariant()
    def is_somewhere(self) -> None:
        """What was flushed last is never on no host."""
        assert any(disk is not None and disk.written == self.written for disk in self.disk.values())

    def ends_on(self, here: Host, other: Host) -> None:
        disk = self.disk[here.name]
        assert self.place == here.name and disk is not None and disk.whole and disk.written == self.written
        assert self.disk[other.name] is None, "nothing is left of it elsewhere"


WithDisks.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestWithDisks = WithDisks.TestCase

Protocol.TestCase.settings = settings(max_examples=300, stateful_step_count=20, deadline=None)
TestProtocol = Protocol.TestCase
