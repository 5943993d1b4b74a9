"""Runs, kept as JSON: one file a run, an index, and the latest as a table for people. Compares with the run before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kumulus_lab import places
from tests.bench.machine import Machine
from tests.bench.record import Better, Record

WORSE = 0.10
"""A number that is worse than in the run before by more than this is flagged."""


class Run(BaseModel):
    """Everything one run found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    commit: str
    scale: str
    machine: Machine
    seconds: float = 0.0
    records: tuple[Record, ...]
    failures: dict[str, str] = Field(default_factory=dict)
    """Benches that found nothing, and why."""

    @property
    def file(self) -> str:
        """Its name: date, commit, scale."""
        return f"{self.at:%Y-%m-%dT%H%M}-{self.commit.replace('+', '-changed')}-{self.scale}.json"

    def find(self, name: str) -> Record | None:
        """The record of that name."""
        return next((found for found in self.records if found.name == name), None)


class Change(BaseModel):
    """How a number compares with the run before."""

    model_config = ConfigDict(frozen=True)

    before: float
    by: float
    """Relative; positive is more."""
    worse: bool


def directory() -> Path:
    """Where runs are kept."""
    return places.CHECKOUT / "bench-results"


def changes(run: Run, before: Run | None) -> dict[str, Change]:
    """By name, for every number that both have. Pure."""
    found = {}
    for new in run.records:
        old = before.find(new.name) if before else None
        if old is None or old.value is None or new.value is None:
            continue
        by = (new.value - old.value) / abs(old.value) if old.value else (0.0 if new.value == 0 else float("inf"))
        loss = by if new.goal.better is Better.LOWER else -by
        found[new.name] = Change(before=old.value, by=by, worse=loss > WORSE)
    return found


def load(path: Path) -> Run:
    """A run. Raises ValueError when the file is not one."""
    return Run.model_validate_json(path.read_text())


def runs(home: Path) -> list[Path]:
    """The files of all runs, the latest last."""
    return sorted(path for path in home.glob("*.json") if path.name != "index.json")


def previous(home: Path, scale: str) -> Run | None:
    """The latest run of the same scale; None when there is none."""
    for path in reversed(runs(home)):
        if path.stem.endswith(f"-{scale}"):
            return load(path)
    return None


def save(run: Run, home: Path, table: str) -> Path:
    """Write the run, the index of all runs, and the table of this one. Returns the run's file."""
    home.mkdir(exist_ok=True)
    path = home / run.file
    path.write_text(run.model_dump_json(indent=1) + "\n")
    index = [_entry(load(each)) for each in runs(home)]
    (home / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    (home / "latest.md").write_text(table)
    return path


def _entry(run: Run) -> dict[str, object]:
    return {
        "file": run.file,
        "at": run.at.isoformat(),
        "commit": run.commit,
        "scale": run.scale,
        "met": sum(found.met is True for found in run.records),
        "missed": [found.name for found in run.records if found.met is False],
        "failures": sorted(run.failures),
    }


def now() -> datetime:
    """The time a run carries."""
    return datetime.now(UTC).replace(microsecond=0)


def stamped(records: Sequence[Record], commit: str) -> list[Record]:
    """The records with the commit they were measured at."""
    return [found.model_copy(update={"commit": commit}) for found in records]
