"""Percentiles of latencies: exact, and as a histogram with KubeVirt's buckets would have them. Pure.

KubeVirt publishes what `histogram_quantile` makes of
`kubevirt_vmi_phase_transition_time_from_creation_seconds`, whose smallest bucket is half a second; both are
given so that the published numbers can be compared with like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

KUBEVIRT_BUCKETS: tuple[float, ...] = (
    *(0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 90),
    *(120, 180, 300, 600, 1200, 1800, 3600),
)
"""Upper bounds in seconds: PhaseTransitionTimeBuckets of kubevirt's pkg/monitoring."""


def exact(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). NaN when there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def bucketed(values: Sequence[float], percent: float, buckets: Sequence[float] = KUBEVIRT_BUCKETS) -> float:
    """As Prometheus' `histogram_quantile` says it: linear within the bucket. NaN when there are none."""
    if not values:
        return math.nan
    rank = percent / 100 * len(values)
    lower, below = 0.0, 0
    for upper in buckets:
        upto = sum(value <= upper for value in values)
        if upto >= rank:
            within = upto - below
            return upper if within == 0 else lower + (upper - lower) * (rank - below) / within
        lower, below = upper, upto
    return buckets[-1]


def median(values: Sequence[float]) -> float:
    """The middle one, between the two middle ones when they are even. NaN when there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
