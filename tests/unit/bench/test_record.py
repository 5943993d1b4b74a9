"""Records: goals, spreads, ratios, and what is kept of them."""

from __future__ import annotations

import pytest

from tests.bench.record import Better, Goal, Record, record


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(id="G1", limit=0.05), 0.05, True),
        (Goal(id="G1", limit=0.05), 0.051, False),
        (Goal(id="G3", limit=30, better=Better.HIGHER), 30, True),
        (Goal(id="G3", limit=30, better=Better.HIGHER), 29.9, False),
        (Goal(id="G3"), 1, None),
        (Goal(id="G1", limit=0.05), None, None),
        (Goal(id="G1", limit=0.05), float("nan"), None),
    ],
)
def test_a_goal_is_met_or_not_or_cannot_be_said(goal: Goal, value: float | None, met: bool | None) -> None:
    assert goal.met_by(value) is met
    assert record("x", goal, "s", value).met is met


def test_the_ratio_is_taken_round_by_round() -> None:
    """A slow round of the machine slows both, so its ratio says what the medians do not."""
    found = record("x", Goal(id="G1"), "s", 2.0, rounds=[1.0, 2.0, 10.0], against=("B1", [0.5, 2.0, 4.0]))
    assert found.ratio is not None
    assert (found.ratio.least, found.ratio.middle, found.ratio.most) == (1.0, 2.0, 2.5)
    assert found.baseline is not None
    assert found.baseline.value == 2.0
    assert found.spread is not None
    assert found.spread.rounds == 3


def test_a_record_survives_its_file() -> None:
    found = record("x", Goal(id="G1", limit=1), "s", float("nan"), rounds=[1.0], detail={"a": 1})
    assert Record.model_validate_json(found.model_dump_json()) == found
    assert found.value is None
