"""What a bench found: one number with its goal, its spread and its baseline. Knows no bench."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tests.bench.machine import MachineLoad
from tests.bench.percentiles import median


class Better(StrEnum):
    """Which way a number gets better."""

    LOWER = "lower"
    HIGHER = "higher"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Goal(_Value):
    """What a number shall be. No limit: it is only told."""

    id: str = Field(description="G1 to G26 of QUALITY.md, or B for a baseline by itself.")
    limit: float | None = None
    better: Better = Better.LOWER

    @property
    def text(self) -> str:
        """As people read it."""
        if self.limit is None:
            return ""
        return f"{'<=' if self.better is Better.LOWER else '>='} {self.limit:g}"

    def met_by(self, value: float | None) -> bool | None:
        """Whether a value meets it; None when that cannot be said."""
        if self.limit is None or value is None or math.isnan(value):
            return None
        return value <= self.limit if self.better is Better.LOWER else value >= self.limit


class Spread(_Value):
    """One number a round: the least, the middle, the greatest."""

    least: float
    middle: float
    most: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """None when there is nothing to spread."""
        if not values:
            return None
        return Spread(least=min(values), middle=median(values), most=max(values), rounds=len(values))


class Baseline(_Value):
    """What the same effect costs otherwise, measured in the same run, or published."""

    name: str
    value: float | None = None
    spread: Spread | None = None


class Record(_Value):
    """One line of the result."""

    name: str
    goal: Goal
    unit: str
    value: float | None
    spread: Spread | None = None
    baseline: Baseline | None = None
    ratio: Spread | None = Field(default=None, description="Ours by the baseline's, round by round.")
    detail: Mapping[str, Any] = Field(default_factory=dict)
    note: str = ""
    met: bool | None = None
    load: MachineLoad | None = None
    commit: str = ""


def record(
    name: str,
    goal: Goal,
    unit: str,
    value: float | None,
    *,
    rounds: Sequence[float] = (),
    against: tuple[str, Sequence[float]] | None = None,
    detail: Mapping[str, Any] | None = None,
    note: str = "",
) -> Record:
    """A record; `rounds` are ours round by round, `against` a baseline's name and its own, in the same order."""
    baseline = ratio = None
    if against is not None:
        label, theirs = against
        spread = Spread.of(theirs)
        baseline = Baseline(name=label, value=spread.middle if spread else None, spread=spread)
        ratio = Spread.of([ours / other for ours, other in zip(rounds, theirs, strict=False) if other])
    if value is not None and math.isnan(value):
        value = None
    return Record(
        name=name,
        goal=goal,
        unit=unit,
        value=value,
        spread=Spread.of(rounds),
        baseline=baseline,
        ratio=ratio,
        detail=detail or {},
        note=note,
        met=goal.met_by(value),
    )
