"""Controllers and both agents of a migration, each of which may die at any line, see late, or lose an answer.

What decides is the real thing: the plans of the controllers and of the agents. Played are the hosts: what libvirt does when a
guest is sent, as it was seen to, its worst ways included. Whatever comes in whatever order, no guest ever runs twice or goes
on with a memory that is older than what it did last; and once all of them are left in peace, it runs, once.
"""

from __future__ import annotations

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
from kumulus.api.instance_order import InstanceOrder, MigrationFacts, MigrationState
from kumulus.api.migration import (
    FINISHED,
    OnStall,
    VirtualMachineMigration,
    VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus,
)
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
from kumulus_agents.hypervisor.protocol import Domain, DomainState, ExitReason
from kumulus_controllers.compute import migration_orders, migration_plan, migration_scope
from kumulus_controllers.compute.migration_plan import Step

UID, GO = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
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
        )
        self.hosts["a"].order = new_order("a", instance)
        self.vm = VirtualMachine(
            metadata=ObjectMeta(name="vm", namespace="ns", uid=UID, generation=1),
            spec=VirtualMachineSpec(resources=Resources(cpus=1, memory="64Mi"), power_state=PowerState.RUNNING),
            status=VirtualMachineStatus(host="a", epoch=1),
        )
        self.migration = VirtualMachineMigration(
            metadata=ObjectMeta(name="go", namespace="ns", uid=GO, generation=1),
            spec=VirtualMachineMigrationSpec(vm="vm"),
            status=VirtualMachineMigrationStatus(),
        )
        self.left = False
        """The migration is no more."""
        self.seen: dict[str, WorkOrder | None] = {}
        self.late = 0.0
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
            {"metadata": {"name": "a"}, "status": {"migration": {"address": "192.0.2.1", "port": 9413}}}
        )
        scope = migration_scope.Scope(
            migration=self.migration,
            vm=self.vm,
            now=WALL + self.late,
            source=self.seen.get(status.source_host or self.vm.status.host or "a"),
            target=self.seen.get(status.target_host) if status.target_host else None,
            endpoint=MigrationEndpoint(address="192.0.2.2", port=9413),
            source_report=report,
        )
        move = migration_plan.plan(scope)
        match move.step:
            case Step.CHOOSE:
                self._status(source_host="a", target_host="b", epoch=2, vm_uid=UID, started_at=STARTED)
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
                at.domain = Domain(new, DomainState.RUNNING, started_at=WALL + self.now, cpus=1, memory=64 << 20)
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
            case Send():
                assert domain is not None and domain.state is DomainState.RUNNING
                at.sending = True
            case EndSending():
                at.sending = at.awaits = False
                at.failure, at.ended = None, True
            case Receive(new, migration):
                assert domain is None or domain.state is DomainState.STOPPED
                off = Domain(new, DomainState.STOPPED, exit_reason=ExitReason.UNKNOWN, arriving=migration)
                at.domain = replace(off, cpus=1, memory=64 << 20)
                at.awaits = True
            case Arrive(new):
                self._arrives(at)
            case _:
                raise AssertionError(step)

    def _arrives(self, at: Host) -> None:
        domain = at.domain
        if domain is not None and domain.arriving is not None and domain.state is DomainState.PAUSED:
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
            source.failure = ("MigrationFailed", "it failed")
            return
        assert there is not None
        target.domain, target.version = replace(there, state=DomainState.PAUSED, exit_reason=None), source.version
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
        for _ in range(40):
            self.now += 400
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
        assert self.left or self.migration.status.phase in FINISHED, self.migration.status
        here = self.hosts[self.vm.status.host or ""]
        other = next(at for at in self.hosts.values() if at is not here)
        assert other.domain is None and other.order is None, other
        assert here.domain is not None and here.domain.state is DomainState.RUNNING, here
        assert here.domain.arriving is None and here.domain.marks.departed is None


Protocol.TestCase.settings = settings(max_examples=300, stateful_step_count=20, deadline=None)
TestProtocol = Protocol.TestCase
