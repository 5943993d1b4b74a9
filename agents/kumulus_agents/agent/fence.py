"""The fence: while its order is there nothing is started here, and what was taken from this host is ended (ADR 33).

The order is made before anybody takes the proof that this host is off, and read before any other: a host that boots in between
has it. It is answered before anything else, for nothing is taken from a host that has answered.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState, WorkType
from kumulus.api.instance_order import InstanceOrder
from kumulus.api.order_names import FENCE_ORDER
from kumulus.runtime.result import Done, Requeue, Result, Wait
from kumulus_agents.agent.instance_scope import (
    Attach,
    ChangeDisc,
    Detach,
    Disown,
    DropMemory,
    EndSending,
    Filter,
    ForceOff,
    Limit,
    Mark,
    Pause,
    Plan,
    PlugIn,
    PressButton,
    Redefine,
    Refill,
    Remove,
    RemovePort,
    Replug,
    Resize,
    Suspend,
    Unplug,
)
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError

log = structlog.get_logger(__name__)

HARMLESS = (
    Mark,
    Pause,
    Suspend,
    DropMemory,
    PressButton,
    ForceOff,
    Attach,
    Detach,
    Filter,
    PlugIn,
    Unplug,
    RemovePort,
    Limit,
    ChangeDisc,
    Resize,
    Redefine,
    Refill,
    Replug,
    EndSending,
    Remove,
    Disown,
)
"""Steps by which no guest comes to run."""
LOOK_EVERY = 1.0
"""Seconds between two looks at whether everything that was taken from this host is removed."""


def starts(plan: Plan) -> bool:
    """Whether a guest may run by it that does not run now: by any step that is not known to leave it as it is, or to end it.
    Pure."""
    return not all(isinstance(step, HARMLESS) for step in plan.steps)


def at_once(instance: InstanceOrder) -> InstanceOrder:
    """The order of a machine that may run elsewhere: its power is taken, nobody asks the guest. Pure."""
    return instance.model_copy(update={"power": PowerState.STOPPED})


def stays(orders: list[WorkOrder]) -> bool:
    """Whether a machine with these orders still belongs here. Pure."""
    return any(
        not order.deleting and order.spec.instance is not None and not order.spec.instance.superseded
        for order in orders
    )


def let_go(orders: list[WorkOrder]) -> bool:
    """Whether its end leaves the domain as it is, because nobody else has the machine. Pure."""
    found = [order.spec.instance for order in orders if order.spec.instance is not None]
    return any(instance.unmanage and not instance.superseded for instance in found)


class Fences:
    """Answers the order of type Fence, of which there is at most one."""

    def __init__(
        self,
        orders: Orders,
        hypervisor: Hypervisor,
        *,
        wake: Callable[[str], None],
        complete: Callable[[], bool],
    ) -> None:
        """`wake` has an order looked at soon, by name; `complete` says whether all orders of this host were read."""
        self._orders = orders
        self._hypervisor = hypervisor
        self._wake = wake
        self._complete = complete

    def in_force(self) -> bool:
        """Whether nothing may be started here: the order is there, or it is not known yet whether it is."""
        return not self._complete() or self._orders.get(FENCE_ORDER) is not None

    def forget(self, name: str) -> None:
        """The order of that name is gone. The fence: machines that were not taken from here may go on."""
        if name == FENCE_ORDER:
            for order in self._instances():
                self._wake(order.name)

    async def perform(self, order: WorkOrder) -> Result:
        """Answer; end what runs here and does not belong here; say when nothing of it is left. Raises `KubeError`."""
        fence = order.spec.fence
        if fence is None or order.deleting:
            return Done()
        if not fence.fenced:
            await self._answer(order, WorkState.READY, "HostAnswers", "the host is alive; nothing was taken from it")
            return Done()
        if order.status.state is None or order.status.reason == "HostAnswers":
            await self._answer(order, WorkState.WORKING, "CleaningUp", "the host is back, and looks for what is left")
        try:
            await self._end_strays()
        except HypervisorError as error:
            await self._answer(order, WorkState.WAITING, error.reason, f"what runs here cannot be told: {error}"[:1024])
            return Wait(error.reason, 5.0)
        leaving = [item for item in self._instances() if not stays([item])]
        if leaving:
            names = ", ".join(sorted(f"{i.spec.for_.namespace}/{i.spec.for_.name}" for i in leaving)[:5])
            said = f"{len(leaving)} machines that were taken from the host are being removed from it ({names})"
            await self._answer(order, WorkState.WORKING, "CleaningUp", said)
            return Requeue(LOOK_EVERY)
        await self._answer(order, WorkState.READY, "Clean", "nothing is left of machines that were taken from the host")
        return Done()

    async def _end_strays(self) -> None:
        """Take the power from machines of ours that do not belong here. Their orders, if there are any, remove the rest."""
        for domain in await self._hypervisor.domains():
            uid = domain.marks.uid
            orders = self._orders.of_instance(uid)
            if domain.state is not DomainState.STOPPED and not stays(orders) and not let_go(orders):
                log.warning("a machine that was taken from this host is ended", uid=uid, name=domain.marks.name)
                await self._hypervisor.force_off(uid)

    def _instances(self) -> list[WorkOrder]:
        return [order for order in self._orders.store if order.spec.type is WorkType.INSTANCE]

    async def _answer(self, order: WorkOrder, state: WorkState, reason: str, message: str) -> None:
        status = WorkOrderStatus(
            observed_generation=order.metadata.generation, state=state, reason=reason, message=message
        )
        await self._orders.report(order, status)
