"""How often a maintenance has tried to move a machine, and when it tries again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kumulus.api.maintenance import ATTEMPT, DIRECTION
from kumulus.api.migration import MigrationPhase, VirtualMachineMigration
from kumulus.runtime.clock import parse_time

PAUSE_FIRST, PAUSE_MOST = 30.0, 600.0
"""Seconds between two attempts, doubled each time."""


def tried(ours: Iterable[VirtualMachineMigration], direction: str, began: str) -> list[VirtualMachineMigration]:
    """The attempts that failed, in their order. Of an earlier maintenance they do not count. `ours`: the machine's migrations that
    were made for the host."""
    since = parse_time(began)
    found = [
        item
        for item in ours
        if item.status.phase is MigrationPhase.FAILED
        and item.metadata.labels.get(DIRECTION) == direction
        and (made := item.metadata.creation_timestamp) is not None
        and parse_time(made) >= since.replace(microsecond=0)
    ]
    return sorted(found, key=number)


def number(migration: VirtualMachineMigration) -> int:
    """Which attempt it is."""
    text = migration.metadata.annotations.get(ATTEMPT, "1")
    return int(text) if text.isdigit() and len(text) < 6 else 1


def pause(failed: Sequence[VirtualMachineMigration], now: float) -> float:
    """Seconds until the next attempt."""
    if not failed or (ended := failed[-1].status.finished_at) is None:
        return 0.0
    wait = min(PAUSE_FIRST * 2.0 ** min(number(failed[-1]) - 1, 10), PAUSE_MOST)
    return max(0.0, parse_time(ended).timestamp() + wait - now)
