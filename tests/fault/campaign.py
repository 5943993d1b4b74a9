"""Which troubles a plan is run with, and the table of what came of it."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.migration import VirtualMachineMigration
from tests.fault import troubles
from tests.fault.backends import Memory, run
from tests.fault.parties import How
from tests.fault.plans import Plan
from tests.fault.runner import VIRTUAL, Pace, Result, Runner
from tests.fault.troubles import Trouble
from tests.fault.world import CONTROLLERS, HOSTS, world

Deeds = Mapping[str, Sequence[str]]
LATENCY = 0.005
"""Seconds, at most, of each way to an API server in memory."""
SEED = int(os.environ.get("KUMULUS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)


@dataclass
class Row:
    """One line of the table."""

    plan: str
    kind: str
    tried: int = 0
    missed: int = 0
    """Runs in which it never came to the deed that the fault was waiting for."""
    failed: int = 0
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """One more run."""
        self.tried += 1
        self.missed += not result.struck
        self.failed += not result.ok
        self.seconds += result.seconds


@dataclass
class Table:
    """What was tried, and what came of it."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    """What was measured beside: a sentence each."""

    def add(self, kind: str, result: Result) -> None:
        """One more run."""
        self.rows.setdefault((result.plan, kind), Row(result.plan, kind)).add(result)

    def lines(self) -> Iterator[str]:
        """The table as text."""
        head = ("plan", "faults", "tried", "missed", "failed", "seconds")
        rows = list(self.rows.values())
        sums = [sum(numbers) for numbers in zip(*((row.tried, row.missed, row.failed) for row in rows), strict=True)]
        seconds = sum(row.seconds for row in rows)
        body = [
            (row.plan, row.kind, *map(str, (row.tried, row.missed, row.failed)), f"{row.seconds:.1f}") for row in rows
        ]
        total = ("all", "", *map(str, sums or (0, 0, 0)), f"{seconds:.1f}")
        widths = [max(len(line[column]) for line in (head, *body, total)) for column in range(len(head))]
        for line in (head, *body, total):
            left = "  ".join(cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True))
            right = "  ".join(cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))
            yield f"{left}  {right}"
        yield from (f"{name}: {number}" for name, number in self.numbers.items())


TABLE = Table()
"""Of this process; printed at its end."""


def crashes(deeds: Deeds, hows: Sequence[How] = tuple(How)) -> list[Trouble]:
    """Everybody dies at each of their deeds, in each of these ways."""
    return [
        troubles.crash(party, at, how)
        for party, done in deeds.items()
        for at in range(1, len(done) + 1)
        for how in hows
    ]


def others(deeds: Deeds, pace: Pace, every: int = 1) -> list[Trouble]:
    """All other troubles, at every so-manyth deed of whoever they are about."""
    second = pace.second
    found: list[Trouble] = []
    moves = any("send" in deeds[host] for host in HOSTS)
    for party, done in deeds.items():
        if not done:
            continue
        found += [troubles.stale(party, second, 3), troubles.stale(party, 3 * second, 1000)]
        for at in range(1, len(done) + 1, every):
            found += [
                troubles.twice(party, at, 1),
                troubles.hidden(party, party, at, 2 * second),
                troubles.cut(party, party, at, 2 * second, one_way=True),
                troubles.cut(party, party, at, 2 * second, one_way=False),
                troubles.clock(party, party, at, 1 if at % 2 else -1),
            ]
            if party in HOSTS:
                # Longer than its Lease: the host is Unknown meanwhile, and nothing of it is placed elsewhere.
                found.append(troubles.cut(party, party, at, 8 * second, one_way=bool(at % 2)))
                found.append(troubles.hidden(CONTROLLERS, party, at, 2 * second))
                if moves:
                    found.append(troubles.apart(party, at, 2 * second))
    for at in range(1, len(deeds[CONTROLLERS]) + 1, every):
        found += [troubles.expired(at), troubles.rewound(at, second), troubles.rivals(at, 3 * second)]
    return found


def thinned(items: Sequence[Trouble], most: int) -> list[Trouble]:
    """So many of them at most, evenly."""
    step = max(1, math.ceil(len(items) / most))
    return list(items[::step])


def failures(
    plan: Plan, kinds: Mapping[str, Sequence[Trouble]], right: Result, *, seed: int = 1, told: bool = False
) -> list[str]:
    """Which of these troubles, by kind, end otherwise in memory. `told`: the table has a line for each kind."""
    failed = []
    for kind, items in kinds.items():
        for trouble in items:
            result = in_memory(plan, trouble, right, seed)
            if told:
                TABLE.add(f"in memory: {kind}", result)
            failed += [] if result.ok else [str(result)]
    return failed


def in_memory(plan: Plan, trouble: Trouble | None = None, right: Result | None = None, seed: int = 1) -> Result:
    """One run in a world of its own, in virtual time. The same seed, the same run."""

    async def main() -> Result:
        random.seed(seed)
        async with world(Memory(seed, LATENCY)) as made:
            runner = Runner(made, VIRTUAL)
            await runner.open()
            if trouble is None:
                return await runner.run(plan)
            return await runner.run(
                plan, trouble.arm, trouble.name, right.state if right else None, again=trouble.again
            )

    return run(main())


def faultless(plan: Plan) -> Result:
    """What is right: two runs without faults, by different chance, that end alike. Raises AssertionError."""
    first, second = in_memory(plan, seed=SEED), in_memory(plan, seed=SEED + 1)
    for result in (first, second):
        assert result.ok, str(result)
        assert result.state is not None
        assert not result.repeated, f"{plan}: something failed without a fault"
    if any(step.model is VirtualMachineMigration for step in plan.steps):
        assert any("send" in done for done in first.deeds.values()), f"{plan}: nothing was sent; {first.deeds}"
    assert first.state is not None
    assert second.state is not None
    assert not (apart := second.state - first.state), "\n".join(apart)
    starts = sum(int(line.rpartition(": ")[2]) for line in first.state.deeds if line.startswith("started "))
    assert starts == plan.starts, first.state.deeds
    return first
