"""Guests that come back when their host has booted: in the order of their priority, and not too many at once.

Who may start now is decided here; what a machine needs besides, by its plan. Only machines that were ordered before this agent
read its orders take turns: whatever is asked for later starts at once. Nothing is kept beyond the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.instance_order import PRIORITY, InstanceOrder
from kumulus.runtime.clock import Clock

GRACE_SECONDS = 15.0
"""So long do others wait for one of a higher priority that has not asked yet, or lacks something: pools and networks come
up one after the other."""
TURNS_SECONDS = 900.0
"""After so long nobody waits for anybody any more."""


def priority(instance: InstanceOrder) -> int:
    """Higher ones start first."""
    return instance.priority if instance.priority is not None else PRIORITY


def comes_back(order: WorkOrder) -> bool:
    """Whether it is to run here, and was ordered to before. Pure."""
    instance = order.spec.instance
    if order.spec.type is not WorkType.INSTANCE or instance is None or order.deleting or instance.incoming is not None:
        return False
    return instance.power is PowerState.RUNNING and order.status.state is not None


@dataclass(slots=True)
class _Member:
    priority: int
    waits: bool = False
    """It asked, and it was not its turn."""
    starts: bool = False


class Returning:
    """Whose turn it is."""

    def __init__(
        self,
        orders: Callable[[], Iterable[WorkOrder]],
        clock: Clock,
        *,
        at_once: int,
        wake: Callable[[str], None],
    ) -> None:
        """`orders`: all there are, asked for once, when the first machine wants to start; `wake` has an order looked at soon."""
        self._orders = orders
        self._clock = clock
        self._at_once = at_once
        self._wake = wake
        self._members: dict[str, _Member] | None = None
        self._began = 0.0

    def turn(self, order: WorkOrder) -> bool:
        """Whether the machine may start now; whoever is told so says `ended` afterwards. One that may not is woken."""
        members, now = self._all(), self._clock.monotonic()
        member = members.get(order.name)
        if member is None:
            return True
        if now - self._began > TURNS_SECONDS:
            members.clear()
            return True
        early = now - self._began < GRACE_SECONDS
        ahead = any(
            other.priority > member.priority and not other.starts and (early or other.waits)
            for other in members.values()
        )
        if ahead or sum(other.starts for other in members.values()) >= self._at_once:
            member.waits = True
            return False
        member.waits, member.starts = False, True
        return True

    def ended(self, name: str, *, runs: bool) -> None:
        """An attempt has ended; one that does not run asks again when it has what it lacked."""
        members = self._all()
        if (member := members.get(name)) is None:
            return
        member.starts = False
        if runs:
            del members[name]
        self._next()

    def settled(self, name: str) -> None:
        """It runs, or is not to run, or its order is gone: nobody waits for it."""
        if self._members is not None and self._members.pop(name, None) is not None:
            self._next()

    def _all(self) -> dict[str, _Member]:
        if self._members is None:
            self._began = self._clock.monotonic()
            self._members = {
                order.name: _Member(priority(order.spec.instance))
                for order in self._orders()
                if order.spec.instance is not None and comes_back(order)
            }
        return self._members

    def _next(self) -> None:
        """Those that wait look again, the first ones first."""
        waiting = [(-member.priority, name) for name, member in self._all().items() if member.waits]
        for _, name in sorted(waiting)[: self._at_once]:
            self._wake(name)
