"""What filters and scorers say of a host, and how much of what they say is believed. Pure.

Some of them are third parties': one that raises, or says what it must not, harms only the machines that it judges, and is
named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kumulus.api.quantity import rounded
from kumulus_controllers.planning import filters as built_in_filters
from kumulus_controllers.planning import scorers as built_in_scorers
from kumulus_controllers.planning.filters import NO_CPUS, NO_MEMORY, ROOM, Filter
from kumulus_controllers.planning.neighbours import Neighbours
from kumulus_controllers.planning.scorers import Scorer
from kumulus_controllers.planning.views import HostView, Load, Request, Why

SAID_MOST = 200
"""So many characters of what a filter says are told."""


class Opinions:
    """Filters, those about room last, and scorers. `on_fault` is called with the name of one that failed, and how."""

    def __init__(
        self,
        filters: Mapping[str, Filter] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        on_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        asked = (filters or built_in_filters.BUILT_IN).items()
        self._rules = [(name, may) for name, may in asked if name not in ROOM]
        self._rooms = [(name, may) for name, may in asked if name in ROOM]
        self._scorers = list((scorers or built_in_scorers.BUILT_IN).items())
        self._on_fault = on_fault

    def refuse(self, request: Request, host: HostView, load: Load) -> bool:
        """Whether the host does not take the machine, whatever other machines are there."""
        for asked in (self._rules, self._rooms):
            for name, may in asked:
                if self._ask(name, may, request, host, load) is not None:
                    return True
        return False

    def against(self, request: Request, host: HostView, load: Load, beside: Neighbours | None) -> Iterator[Why]:
        """All that is against a host: other machines before room, for room comes and goes."""
        for name, may in self._rules:
            if (reason := self._ask(name, may, request, host, load)) is not None:
                yield Why(reason)
        if beside is not None:
            yield from beside.against(host)
        for name, may in self._rooms:
            if (reason := self._ask(name, may, request, host, load)) is not None:
                yield Why(reason)

    def _ask(self, name: str, may: Filter, request: Request, host: HostView, load: Load) -> str | None:
        """What a filter says. One that fails lets nothing through."""
        try:
            reason = may(request, host, load)
        except Exception as error:
            fault = type(error).__name__
        else:
            if reason is None:
                return None
            if isinstance(reason, str):
                return " ".join(reason.split())[:SAID_MOST] or f"refused by the filter {name}"
            fault = f"it says {type(reason).__name__}"
        if self._on_fault is not None:
            self._on_fault(name, fault)
        return f"refused because the filter {name} failed ({fault})"

    def scores(self, request: Request, host: HostView, load: Load) -> dict[str, float]:
        """What scorers say, 0 to 1, by name. One that fails says 0."""
        found = {}
        for name, scorer in self._scorers:
            try:
                score = float(scorer(request, host, load))
                fault = "" if score == score else "it says NaN"
            except Exception as error:
                score, fault = 0.0, type(error).__name__
            if fault and self._on_fault is not None:
                self._on_fault(name, fault)
            found[name] = 0.0 if fault else min(max(score, 0.0), 1.0)
        return found


def lacking(reason: str, request: Request, hosts: Mapping[str, tuple[HostView, Load]]) -> str:
    """Of hosts that have too little for a machine: what it needs, and what there is left at most. Empty for other reasons."""
    if reason not in (NO_CPUS, NO_MEMORY):
        return ""

    def left(name: str) -> int:
        host, load = hosts[name]
        return max(host.cpus - load.cpus if reason == NO_CPUS else host.memory - load.memory, 0)

    def told(amount: int) -> str:
        return str(amount) if reason == NO_CPUS else rounded(amount)

    best = min(hosts, key=lambda name: (-left(name), name))
    where = f", most left is {told(left(best))} on {best}" if len(hosts) > 1 else f", has {told(left(best))} left"
    return f"needs {told(request.demand.cpus if reason == NO_CPUS else request.demand.memory)}{where}"
