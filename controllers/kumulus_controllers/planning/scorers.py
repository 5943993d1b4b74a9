"""Scorers: of the hosts that fit, which one? Higher is better, 0 to 1.

The profile decides the order in which hosts are looked at; a scorer weighs among the best of them.
Third parties add their own in the entry point group `kumulus.placement.scorers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kumulus.api.placement import TaintEffect
from kumulus_controllers.planning.views import HostView, Load, Request

Scorer = Callable[[Request, HostView, Load], float]


def preferred_taints(request: Request, host: HostView, load: Load) -> float:
    """0 for a host with a PreferNoSchedule taint that the machine does not tolerate."""
    for taint in host.taints:
        if taint.effect is TaintEffect.PREFER_NO_SCHEDULE and not any(t.tolerates(taint) for t in request.tolerations):
            return 0.0
    return 1.0


BUILT_IN: Mapping[str, Scorer] = {"preferred-taints": preferred_taints}
