"""Percentiles, exact and as a histogram would have them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import percentiles


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (95, 10), (99, 10), (10, 1), (0, 1)])
def test_exact_is_nearest_rank(percent: float, value: float) -> None:
    assert percentiles.exact([10, 1, 2, 3, 4, 5, 6, 7, 8, 9], percent) == value


def test_bucketed_is_what_prometheus_says() -> None:
    """All below half a second: the median is in the middle of the first bucket, whatever the values are."""
    assert percentiles.bucketed([0.01] * 100, 50) == pytest.approx(0.25)
    assert percentiles.bucketed([0.1] * 50 + [0.7] * 50, 75) == pytest.approx(0.75)
    assert percentiles.bucketed([5000.0], 50) == 3600


def test_nothing_measured_is_no_number() -> None:
    assert math.isnan(percentiles.exact([], 50))
    assert math.isnan(percentiles.bucketed([], 50))
    assert math.isnan(percentiles.median([]))


@given(st.lists(st.floats(0, 3600), min_size=1), st.floats(1, 100))
def test_a_percentile_is_one_of_the_values_and_a_bucket_holds_it(values: list[float], percent: float) -> None:
    exact = percentiles.exact(values, percent)
    assert exact in values
    bounds = (0.0, *percentiles.KUBEVIRT_BUCKETS)
    above = next(upper for upper in percentiles.KUBEVIRT_BUCKETS if exact <= upper)
    below = bounds[bounds.index(above) - 1]
    assert below - 1e-9 <= percentiles.bucketed(values, percent) <= above + 1e-9
