"""Where machines would go, and which moves would make hosts even: what is asked, and what is answered. Nothing is done.

The answer is worked out by the controllers' code, from objects that whoever asks has read; it is found by its entry point in
the group `kumulus.previews`, so that the core need not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from kumulus.api.base import Resource

GROUP = "kumulus.previews"

Raw = Mapping[str, Any]


class Unclear(Exception):
    """Why it cannot be said where a machine would go."""


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """What is thought of one host."""

    host: str
    whys: tuple[str, ...]
    """All that is against it; none: it fits."""
    liking: float
    """How much of what the machine prefers it has."""
    scores: Mapping[str, float]
    """What scorers say, 0 to 1, by name."""
    cpus_left: int
    memory_left: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Where a machine would go now."""

    name: str
    namespace: str
    host: str | None
    """None: nowhere, and `refusal` says why."""
    refusal: str | None
    verdicts: tuple[HostVerdict, ...]
    """Hosts that fit first, best first."""
    most: float
    """The most that a liking can be; 0 for a machine that prefers nothing."""
    faults: tuple[str, ...] = ()
    """Filters and scorers that failed."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "host": self.host,
            "refusal": self.refusal,
            "preferenceMost": self.most,
            "hosts": [
                {
                    "name": verdict.host,
                    "fits": not verdict.whys,
                    "why": list(verdict.whys),
                    "preference": verdict.liking,
                    "scores": dict(verdict.scores),
                    "cpusLeft": verdict.cpus_left,
                    "memoryLeft": verdict.memory_left,
                }
                for verdict in self.verdicts
            ],
            "faults": list(self.faults),
        }


class Metric(StrEnum):
    """What hosts are to be even in."""

    MEMORY = "memory"
    CPUS = "cpus"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a plan of moves is to reach, and what it may cost."""

    metric: Metric = Metric.MEMORY
    tolerance: float = 0.1
    """So far apart may the shares of the fullest and of the emptiest host stay, 0 to 1."""
    most: int = 20
    """So many moves at most."""
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A machine that would go to another host."""

    namespace: str
    name: str
    source: str
    target: str
    cpus: int
    memory: int
    """Bytes."""
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves, in the order in which they are to be made, and what they change."""

    moves: tuple[Move, ...]
    before: Mapping[str, float]
    """Share of each host that is promised, 0 to 1."""
    after: Mapping[str, float]
    stuck: Mapping[str, str] = field(default_factory=dict)
    """Machines that break a rule where they are and can go nowhere, as `namespace/name`, and why."""

    @staticmethod
    def apart(shares: Mapping[str, float]) -> float:
        """How far the fullest and the emptiest host are apart, 0 to 1 and more."""
        return max(shares.values(), default=0.0) - min(shares.values(), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "moves": [
                {
                    "namespace": move.namespace,
                    "name": move.name,
                    "from": move.source,
                    "to": move.target,
                    "cpus": move.cpus,
                    "memory": move.memory,
                    "why": move.why,
                }
                for move in self.moves
            ],
            "before": {name: round(share, 4) for name, share in sorted(self.before.items())},
            "after": {name: round(share, 4) for name, share in sorted(self.after.items())},
            "stuck": dict(self.stuck),
        }


class Desk(Protocol):
    """A cloud as it was read, to try things on."""

    kinds: Sequence[type[Resource]]
    """What it has to be told of, and in which order."""

    def take(self, model: type[Resource], raw: Raw) -> None:
        """There is this object, or there is to be."""

    def preview(self, raw: Raw) -> Preview:
        """Where a machine would go, that is there already or not; whatever is asked next finds it there.

        Raises `Unclear` when what it names is not there, or not ready.
        """

    def rebalance(self, goal: Goal) -> Plan:
        """Which moves would make hosts even."""


MakeDesk = Callable[[], Desk]
"""What the entry point is."""
