"""What a bench is, and what it is given."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.bench import machine
from tests.bench.cloud import Cloud, Say
from tests.bench.record import Record
from tests.bench.scale import Scale


class Needs(StrEnum):
    """What a bench runs on."""

    NOTHING = "nothing"
    SIMULATED = "simulated"
    LIBVIRT = "libvirt"


@dataclass(frozen=True, slots=True)
class Context:
    """What a bench is given."""

    scale: Scale
    say: Say
    cloud: Cloud | None = None

    @property
    def there(self) -> Cloud:
        """The cloud of a bench that needs one."""
        assert self.cloud is not None
        return self.cloud


Run = Callable[[Context], Awaitable[list[Record]]]


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench."""

    name: str
    goals: Sequence[str]
    needs: Needs
    run: Run
    sentence: str


class Bystanders:
    """How many CPUs processes used that are not the bench's, from its making to `load`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = machine.busy_seconds()

    def load(self, ours: float) -> machine.MachineLoad:
        """The machine's load; `ours` are the CPU seconds that the measured processes used meanwhile."""
        seconds = max(time.monotonic() - self._began, 0.001)
        others = max(0.0, machine.busy_seconds() - self._busy - ours) / seconds
        return machine.load(round(others, 2))
