"""In which order guests start on a host that has booted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kumulus.api.host import WorkOrder
from kumulus_agents.agent.returning import GRACE_SECONDS, TURNS_SECONDS, Returning


@dataclass
class FakeClock:
    """Time that a test sets."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


def order(
    name: str, priority: int | None = None, *, power: str = "Running", state: str | None = "Running"
) -> WorkOrder:
    uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    instance: dict[str, Any] = {
        "uid": uid, "epoch": 1, "power": power, "restartPolicy": "Always", "cpus": 1, "memory": 1, "priority": priority,
    }  # fmt: skip
    for_ = {"kind": "VirtualMachine", "namespace": "ns", "name": name, "uid": uid}
    status = {"state": state} if state is not None else {}
    return WorkOrder.parse(
        {"metadata": {"name": name}, "spec": {"type": "Instance", "for": for_, "instance": instance}, "status": status}
    )


@dataclass
class Booted:
    """A host that has booted, with these machines."""

    orders: list[WorkOrder]
    at_once: int = 1
    clock: FakeClock = field(default_factory=FakeClock)
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.returning = Returning(lambda: self.orders, self.clock, at_once=self.at_once, wake=self.woken.append)

    def asks(self, *names: str) -> list[str]:
        """Those that may start."""
        return [o.name for name in names for o in self.orders if o.name == name and self.returning.turn(o)]


def test_a_higher_priority_goes_first_and_each_one_after_the_other() -> None:
    host = Booted([order("low", 1), order("usual"), order("high", 900)])
    assert host.asks("low", "usual") == []
    assert host.asks("high") == ["high"]
    assert host.asks("usual") == [], "one at a time"
    host.returning.ended("high", runs=True)
    assert host.woken == ["usual"]
    assert host.asks("low", "usual") == ["usual"]
    host.returning.ended("usual", runs=True)
    assert host.asks("low") == ["low"]


def test_one_that_runs_or_goes_holds_nobody_up() -> None:
    host = Booted([order("low", 1), order("high", 900), order("gone", 950), order("off", 999, power="Stopped")], 2)
    assert host.asks("low") == []
    host.returning.settled("high")
    assert host.asks("low") == []
    host.returning.settled("gone")
    assert host.asks("low") == ["low"]


def test_one_that_lacks_something_is_waited_for_a_while_and_then_goes_first_when_it_has_it() -> None:
    host = Booted([order("low", 1), order("high", 900), order("other", 1)])
    assert host.asks("high") == ["high"]
    host.returning.ended("high", runs=False)
    assert host.asks("low", "other") == []
    host.clock.seconds = GRACE_SECONDS + 1
    assert host.asks("low") == ["low"]
    assert host.asks("high", "other") == []
    host.returning.ended("low", runs=True)
    assert host.woken[-1] == "high" and host.asks("other") == []
    assert host.asks("high") == ["high"]


def test_what_was_not_ordered_before_waits_for_nobody() -> None:
    host = Booted([order("high", 900)])
    assert host.asks("high") == ["high"]
    assert host.returning.turn(order("new", 1))
    late = Booted([order("new", 1, state=None), order("high", 900)])
    assert late.asks("new") == ["new"]
    stuck = Booted([order("low", 1), order("high", 900)])
    assert stuck.asks("high") == ["high"] and stuck.asks("low") == []
    stuck.clock.seconds = TURNS_SECONDS + 1
    assert stuck.asks("low") == ["low"], "nobody waits for ever"
