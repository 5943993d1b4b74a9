"""Machines: performs work orders of type Instance. What to do is decided in `instance_plan`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_order import GuestFacts, InstanceOrder
from kumulus.kube.errors import KubeError
from kumulus.runtime.clock import Clock
from kumulus.runtime.result import Done, Requeue, Result, Wait
from kumulus_agents.agent import hold, instance_memory, instance_others, instance_plan, instance_status
from kumulus_agents.agent.fence import at_once, starts
from kumulus_agents.agent.instance_notes import noted
from kumulus_agents.agent.instance_scope import (
    Adopt,
    Attach,
    ChangeDisc,
    Detach,
    Filter,
    Memory,
    Plan,
    PlugIn,
    PressButton,
    Receive,
    Redefine,
    Refill,
    RemovePort,
    Replug,
    Resize,
    Resume,
    Scope,
    Start,
    Step,
    Tray,
    Unplug,
    Wake,
)
from kumulus_agents.agent.instance_steps import InstanceSteps
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.returning import Returning, comes_back
from kumulus_agents.hypervisor.domain import TRAY_LOCKED, Domain, DomainState
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.network.protocol import NetworkError
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.source import DiskSource

log = structlog.get_logger(__name__)

ROUNDS = 8
"""Observations in one pass at most; what needs more is looked at again a second later."""
TERMS_KEPT = 4096
TURN_SECONDS = 5.0
"""How soon a machine that is not to start yet is looked at again, should nobody wake it."""
UNAVAILABLE = "HypervisorUnavailable"
NOT_READY = ("ImageNotReady", "VolumeNotReady", "VolumeBusy", "SegmentNotReady")


class Instances:
    """The machines of one host."""

    def __init__(
        self,
        orders: Orders,
        hypervisor: Hypervisor,
        steps: InstanceSteps,
        clock: Clock,
        *,
        wake: Callable[[str], None],
        removed: Callable[[], None],
        guest: Callable[[str, float | None, GuestFacts | None], GuestFacts | None] = lambda _uid, _run, before: before,
        fenced: Callable[[], bool] = lambda: False,
        returning: Returning | None = None,
    ) -> None:
        """`wake` has an order looked at soon, by name; `removed` is told when a machine and its disks are gone,
        or a disc was taken out of a drive; `guest` knows what is to be told of a guest, by uid of its machine, its run and what
        was told before; `fenced` says whether nothing may be started here now; `returning` whose turn it is on a host
        that has booted."""
        self._returning = returning
        self._guest = guest
        self._orders = orders
        self._hypervisor = hypervisor
        self._steps = steps
        self._clock = clock
        self._wake = wake
        self._removed = removed
        self._fenced = fenced
        self._memory: dict[str, Memory] = {}
        self._terms: OrderedDict[str, int] = OrderedDict()
        self._arrivals = 0

    def forget(self, name: str) -> None:
        """The order of that name is gone. The highest term seen for it is kept, so that no older leader brings it back."""
        self._memory.pop(name, None)
        if self._returning is not None:
            self._returning.settled(name)

    def arrived(self, uid: str) -> None:
        """An image or a volume is whole in a pool, or free, or a network is here: who waits for it need not wait longer."""
        self._arrivals += 1
        for name, memory in list(self._memory.items()):
            order = self._orders.get(name)
            instance = order.spec.instance if order is not None else None
            if instance is not None and any(drive.image and drive.image.uid == uid for drive in instance.drives):
                self._memory[name] = replace(memory, hold=None)
                self._wake(name)
                continue
            if memory.hold is None or memory.hold.reason not in NOT_READY:
                continue
            disks, nics = (instance.disks, instance.nics) if instance is not None else ((), ())
            if any(uid in (disk.volume, disk.image.uid if disk.image is not None else None) for disk in disks) or any(
                nic.network == uid for nic in nics
            ):
                self._memory[name] = replace(memory, hold=None)
                self._wake(name)

    def networks_ready(self) -> None:
        """A network driver can work that could not: whose interfaces failed need not wait longer."""
        self._arrivals += 1
        for name, memory in list(self._memory.items()):
            if memory.hold is not None and memory.hold.by_network:
                self._memory[name] = replace(memory, hold=None)
                self._wake(name)

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a machine. Raises `KubeError`."""
        instance = order.spec.instance
        if instance is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        if order.deleting and (instance.superseded or self._fenced()):
            instance = at_once(instance)
        taken: tuple[Step, ...] = ()
        for _ in range(ROUNDS):
            try:
                domain = await self._hypervisor.domain(instance.uid)
                if domain is not None and self._halted(instance, domain):
                    return Requeue(0.5)
                discs = await self._steps.discs(instance)
                scope = self._observe(order, instance, domain, discs)
                plan = instance_plan.plan(scope)
                if self._fenced() and starts(plan):
                    return Requeue(5.0)  # what was reported stays: it tells how the machine ended
                if plan.steps and plan.steps == taken:
                    return Requeue(1.0)
                if not self._may_act(plan, order, domain):
                    return Requeue(TURN_SECONDS)
                await self._act(plan, order, scope)
            except HypervisorError as error:
                return await self._unseen(order, error)
            if plan.release:
                return await self._release(order)
            if not plan.steps:
                if (quiet := instance_status.unsaid(scope, plan)) > 0:
                    return Requeue(quiet)
                said = instance_status.derive(scope, plan, order.metadata.generation)
                await self._orders.report(order, said)
                memory = instance_status.told(scope, said)
                self._memory[order.name] = instance_others.told(scope, said, memory)
                again = [wait for wait in (plan.after, instance_status.amount_kept(scope)) if wait]
                return Requeue(min(again)) if again else Done()
            taken = plan.steps
        return Requeue(1.0)

    def _may_act(self, plan: Plan, order: WorkOrder, domain: Domain | None) -> bool:
        """Whether it is the machine's turn, on a host that has booted."""
        if self._returning is None:
            return True
        if boots(plan):
            return self._returning.turn(order)
        if (domain is not None and domain.state is not DomainState.STOPPED) or not comes_back(order):
            self._returning.settled(order.name)
        return True

    def _halted(self, instance: InstanceOrder, domain: Domain) -> bool:
        return (
            domain.state is DomainState.PAUSED
            and instance.power in (PowerState.RUNNING, PowerState.SUSPENDED)
            and self._steps.halted_for_a_moment(instance.uid)
        )

    def _observe(
        self, order: WorkOrder, instance: InstanceOrder, domain: Domain | None, discs: Mapping[str, DiskSource]
    ) -> Scope:
        memory = self._memory.get(order.name, Memory())
        facts = order.status.instance
        scope = Scope(
            order=instance,
            deleting=order.deleting,
            term=order.spec.term,
            highest_term=self._highest_term(order),
            namespace=order.spec.for_.namespace or "",
            name=order.spec.for_.name,
            domain=domain,
            status=order.status,
            memory=replace(memory, hold=hold.current(memory.hold, order)),
            now=self._clock.monotonic(),
            wall=self._clock.now().timestamp(),
            taken=self._taken(order, instance, domain),
            discs=discs,
            guest=self._guest(
                instance.uid,
                domain.started_at if domain is not None else None,
                instance_status.guest_before(domain, facts),
            ),
            nics=noted(instance.nics, self._orders.get, domain.marks.nics if domain is not None else ()),
            moving=self._steps.moving(order, instance),
        )
        memory = instance_memory.remember(
            scope,
            started=instance_status.seconds(facts.started_at if facts else None),
            next_start=instance_status.seconds(facts.next_start_at if facts else None),
        )
        self._memory[order.name] = memory
        return replace(scope, memory=memory)

    def _taken(self, order: WorkOrder, instance: InstanceOrder, domain: Domain | None) -> Mapping[str, str]:
        """Volumes that the machine has not got and may not get yet, because another one of this host comes first."""
        has = domain.volumes if domain is not None else frozenset()
        wanted = {disk.volume for disk in instance.disks if disk.volume is not None} - has
        return {
            volume: other.spec.for_.name
            for volume in sorted(wanted)
            for other in self._orders.of_volume(volume)
            if other.name != order.name and comes_first(other, order, volume)
        }

    def _highest_term(self, order: WorkOrder) -> int:
        highest = max(self._terms.pop(order.name, 0), order.spec.term)
        if highest:
            self._terms[order.name] = highest
            if len(self._terms) > TERMS_KEPT:
                self._terms.popitem(last=False)
        return highest

    async def _act(self, plan: Plan, order: WorkOrder, scope: Scope) -> None:
        """Take the steps of a plan; what goes wrong is kept as a hold, for the next round to see."""

        async def say_starting() -> None:
            starting = Plan(state=WorkState.STARTING, reason="Starting", message="the machine is being started")
            try:
                await self._orders.report(order, instance_status.derive(scope, starting, order.metadata.generation))
            except KubeError as error:
                log.debug("not reported", order=order.name, error=str(error))

        try:
            await self._act_on(plan, order, say_starting)
        finally:
            if self._returning is not None and boots(plan):
                self._returning.ended(order.name, runs=self._memory[order.name].hold is None)

    async def _act_on(self, plan: Plan, order: WorkOrder, say_starting: Callable[[], Awaitable[None]]) -> None:
        arrivals, done = self._arrivals, True
        for step in plan.steps:
            try:
                await self._steps.take(step, order, say_starting)
            except Missing as missing:
                if missing.reason not in NOT_READY or arrivals == self._arrivals:
                    self._hold(order, waiting=missing)
            except (HypervisorError, StorageError, NetworkError) as error:
                if error.reason == UNAVAILABLE:
                    raise
                passing = error.reason in NOT_READY or isinstance(error, NetworkError)
                if passing and arrivals != self._arrivals:
                    log.debug("what was missing has come", order=order.name, reason=error.reason)
                elif isinstance(step, ChangeDisc) and error.reason == TRAY_LOCKED:
                    self._refused(step, order)
                else:
                    self._hold(order, failed=error)
            except KubeError:
                raise
            except Exception as error:
                log.exception("step failed", order=order.name, step=type(step).__name__)
                self._hold(order, failed=_unexpected(error))
            else:
                self._done(step, order)
                continue
            done = False
            if not isinstance(step, Attach | ChangeDisc | Filter | PlugIn | Redefine | Refill | Replug | Resize):
                return
        if plan.steps and done:
            self._memory[order.name] = replace(self._memory[order.name], hold=None)

    def _done(self, step: Step, order: WorkOrder) -> None:
        log.info("step taken", order=order.name, vm=order.spec.for_.name, step=type(step).__name__)
        memory, now = self._memory[order.name], self._clock.monotonic()
        if isinstance(step, PressButton):
            self._memory[order.name] = replace(memory, pressed_at=now)
        elif isinstance(step, Resume):
            self._memory[order.name] = replace(memory, resumed_at=now)
        elif isinstance(step, Refill):
            self._memory[order.name] = replace(memory, refilled_at=now)
        elif isinstance(step, Resize):
            self._memory[order.name] = replace(memory, resized_at=now, amounts=0)
        elif isinstance(step, Detach):
            self._memory[order.name] = replace(memory, asked={**memory.asked, step.volume: now})
        elif isinstance(step, Unplug):
            known = {step.nic: None, **memory.ports}
            self._memory[order.name] = replace(memory, asked={**memory.asked, step.nic: now}, ports=known)
        elif isinstance(step, Start | Wake | Receive | Adopt) and order.spec.instance is not None:
            started = {nic.uid: nic for nic in order.spec.instance.nics}
            self._memory[order.name] = replace(memory, ports={**memory.ports, **started}, amounts=0)
        elif isinstance(step, Filter | PlugIn):
            self._memory[order.name] = replace(memory, ports={**memory.ports, step.nic.uid: step.nic})
        elif isinstance(step, RemovePort):
            left = {uid: nic for uid, nic in memory.ports.items() if uid != step.nic}
            self._memory[order.name] = replace(memory, ports=left)
        elif isinstance(step, ChangeDisc):
            trays = {name: tray for name, tray in memory.trays.items() if name != step.drive}
            self._memory[order.name] = replace(memory, trays=trays)
            self._removed()

    def _refused(self, step: ChangeDisc, order: WorkOrder) -> None:
        """The guest holds the tray shut: it has some time."""
        memory, now = self._memory[order.name], self._clock.monotonic()
        tray = memory.trays.get(step.drive, Tray(now, now))
        self._memory[order.name] = replace(memory, trays={**memory.trays, step.drive: replace(tray, last=now)})
        log.info("the guest holds the tray shut", order=order.name, vm=order.spec.for_.name, drive=step.drive)

    def _hold(
        self,
        order: WorkOrder,
        *,
        waiting: Missing | None = None,
        failed: HypervisorError | StorageError | NetworkError | None = None,
    ) -> None:
        memory, now = self._memory[order.name], self._clock.monotonic()
        if waiting is None and failed is not None and failed.reason in (*NOT_READY, "ImageInUse"):
            waiting = Missing(failed.reason, str(failed))
        if waiting is not None:
            held = hold.waiting(waiting.reason, str(waiting), order=order, before=memory.hold, now=now)
        elif failed is not None:
            log.warning("step failed", order=order.name, reason=failed.reason, error=str(failed))
            held = hold.failed(
                failed.reason,
                str(failed),
                retryable=failed.retryable,
                order=order,
                before=memory.hold,
                now=now,
                by_network=isinstance(failed, NetworkError),
            )
        self._memory[order.name] = replace(memory, hold=held)

    async def _unseen(self, order: WorkOrder, error: HypervisorError) -> Result:
        """The hypervisor does not answer: what was reported stays as it is, for its guests most likely run on."""
        if order.status.state is None or order.deleting:
            before = order.status
            await self._orders.report(
                order,
                before.model_copy(
                    update={
                        "state": WorkState.WAITING,
                        "reason": error.reason,
                        "message": str(error)[: hold.MESSAGE_MAX],
                    }
                ),
            )
        return Wait(error.reason, 5.0)

    async def _release(self, order: WorkOrder) -> Result:
        memory = self._memory.get(order.name)
        if memory is not None and memory.hold is not None:
            return Requeue(0.0)
        await self._orders.release(order)
        self._removed()
        return Done()


def boots(plan: Plan) -> bool:
    """Whether a guest starts by it. Pure."""
    return any(isinstance(step, Start | Wake) for step in plan.steps)


def comes_first(other: WorkOrder, order: WorkOrder, volume: str) -> bool:
    """Whether `other` has the volume, or has asked for it earlier than `order`, whose machine has not got it. Pure."""
    if other.status.instance is not None and volume in other.status.instance.volumes:
        return True
    one, two = other.metadata, order.metadata
    return (one.creation_timestamp or "", one.name) < (two.creation_timestamp or "", two.name)


def _unexpected(error: Exception) -> HypervisorError:
    return HypervisorError(
        f"the agent failed with {type(error).__name__}; its log has more", reason="AgentError", retryable=True
    )
