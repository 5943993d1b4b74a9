"""Attempts of a maintenance to move a machine: what each is, how often it has tried, and when it tries again. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.maintenance import ATTEMPT, DIRECTION, FOR_MAINTENANCE
from kumulus.api.migration import MigrationPhase, VirtualMachineMigration
from kumulus.runtime.clock import parse_time
from kumulus_controllers.compute.migration_turns import RETURNS

TTL_SECONDS = 3600
"""Migrations that were made for a maintenance delete themselves so long after they have ended: it tells how often one was tried."""
PAUSE_FIRST, PAUSE_MOST = 30.0, 600.0
"""Seconds between two attempts, doubled each time."""


@dataclass(frozen=True, slots=True)
class Move:
    """Make a migration."""

    vm: VirtualMachine
    host: str
    direction: str
    attempt: int
    began: str

    @property
    def name(self) -> str:
        """The same for the same attempt, so it is made once."""
        text = f"{self.host}/{self.vm.uid}/{self.direction}/{self.began}/{self.attempt}"
        return (
            f"{self.vm.name[:40].rstrip('-.')}-{self.direction.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        )


def body(move: Move) -> dict[str, Any]:
    """The migration that is made."""
    spec: dict[str, Any] = {"vm": move.vm.name, "ttlSecondsAfterFinished": TTL_SECONDS}
    if move.direction == RETURNS:
        spec["targetHost"] = move.host
    labels = {FOR_MAINTENANCE: move.host, DIRECTION: move.direction}
    metadata = {"name": move.name, "labels": labels, "annotations": {ATTEMPT: str(move.attempt)}}
    return {"metadata": metadata, "spec": spec}


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
