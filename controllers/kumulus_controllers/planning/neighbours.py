"""Whether a machine may be beside the machines that are placed already, and where it would rather be. Pure.

Made for one decision, from tallies: what is asked of each host is a look into a few dictionaries. A rule that is required
holds against machines that come later as well: who keeps away from others is kept away from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from kumulus.api.affinity import HOSTNAME, TOPOLOGY_ZONE
from kumulus.api.placement_group import GroupPolicy
from kumulus_controllers.planning.labels import Labels, said, selects
from kumulus_controllers.planning.residents import Residents, Tally, Term
from kumulus_controllers.planning.rules import GroupRule, HostLiking, Liking, Spread
from kumulus_controllers.planning.views import HostView, Request, Why

GROUP_WEIGHT = 100.0
"""What a soft group, and a spread that is only preferred, counts beside preferences of a machine (1 to 100 each)."""

NAMED = 3
"""So many machines are named that are in a machine's way."""

Places = Callable[[str], Collection[str]]
"""Topology key to the values of the hosts that the machine could be on, were it not for other machines."""

_Check = Callable[[HostView], Why | None]
_Score = Callable[[HostView], float]


def _within(key: str) -> str:
    """What comes after `with a machine ...`."""
    if key == HOSTNAME:
        return ""
    return " in its zone" if key == TOPOLOGY_ZONE else f" in its {key}"


def _machines(wanted: Labels) -> str:
    return f"labelled {said(wanted)}" if wanted else "of the namespace"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The rules of one machine, as they are at this instant."""

    checks: tuple[_Check, ...] = ()
    scores: tuple[_Score, ...] = ()
    most: float = 0.0
    """All that it could like."""
    reachable: float = 0.0
    """No host has more of that, as things are."""

    def refuses(self, host: HostView) -> Why | None:
        """Why it may not be beside the machines there; None when it may."""
        for check in self.checks:
            if (why := check(host)) is not None:
                return why
        return None

    def against(self, host: HostView) -> Iterator[Why]:
        """All that is against it there; what the same machines are the reason of is told once."""
        told: set[str] = set()
        for check in self.checks:
            why = check(host)
            if why is not None and why.detail not in told:
                told |= {why.detail} if why.detail else set()
                yield why

    def liking(self, host: HostView) -> float:
        """How much it would like to be there, 0 to `most`."""
        return sum(score(host) for score in self.scores)


def neighbours(request: Request, residents: Residents, places: Places) -> Neighbours | None:
    """The rules that hold for a machine; None when there are none, which is so of most."""
    guards = residents.guards(request.namespace)
    if not guards and not request.rules.of_machines:
        return None
    return _Compiler(request, residents, places).compiled(guards)


@dataclass(frozen=True, slots=True)
class _Wish:
    """Something that is liked. A host without the label that it is about has nothing of it."""

    score: _Score
    most: float
    reachable: float
    """No host has more of it, as things are: it need not be looked for any further."""


class _Compiler:
    def __init__(self, request: Request, residents: Residents, places: Places) -> None:
        self._request, self._residents, self._places = request, residents, places
        self._mine = residents.own(request.uid)

    def compiled(self, guards: Mapping[Term, Tally]) -> Neighbours:
        rules = self._request.rules
        checks: list[_Check] = [self._near(term) for term in rules.near]
        checks += [self._apart(term) for term in rules.apart]
        scores: list[_Wish] = []
        for rule in rules.groups:
            match rule.policy:
                case GroupPolicy.ANTI_AFFINITY:
                    checks.append(self._group_apart(rule))
                case GroupPolicy.AFFINITY:
                    checks.append(self._group_near(rule))
                case GroupPolicy.SOFT_ANTI_AFFINITY:
                    scores.append(self._rather_apart(rule))
                case GroupPolicy.SOFT_AFFINITY:
                    scores.append(self._rather_near(rule))
        for spread in rules.spreads:
            if spread.required:
                checks.append(self._even(spread))
            else:
                scores.append(self._rather_even(spread))
        checks += [
            self._guarded(term, guard) for term, guard in guards.items() if selects(term.selector, self._request.labels)
        ]
        scores += [self._liked(liking) for liking in rules.likings]
        scores += [self._host_liked(hosts) for hosts in rules.host_likings]
        return Neighbours(
            tuple(checks),
            tuple(wish.score for wish in scores),
            float(sum(wish.most for wish in scores)),
            float(sum(wish.reachable for wish in scores)),
        )

    def _tally(self, term: Term) -> Tally:
        return self._residents.tally(self._request.namespace, term.selector)

    def _counted(self, term: Term, tally: Tally | None = None) -> Callable[[str | None], int]:
        """How many others are in a place."""
        tally = tally if tally is not None else self._tally(term)
        places, own = tally.places(term.key), self._own(tally, term.key)

        def count(value: str | None) -> int:
            return places.get(value, 0) - own.count(value) if value is not None else 0

        return count

    def _own(self, tally: Tally, key: str) -> list[str | None]:
        """The places in which the machine itself counts."""
        hosts = (tally.members.get(uid) for uid in self._mine)
        return [self._residents.locate(host, key) for host in hosts if host is not None]

    def _others(self, tally: Tally) -> int:
        return len(tally.members) - sum(uid in tally.members for uid in self._mine)

    def _named(self, tally: Tally, key: str, value: str) -> str:
        names = self._residents.names(tally.at(key, value, self._mine))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more

    def _near(self, term: Term) -> _Check:
        tally = self._tally(term)
        there = self._counted(term, tally)
        first = not self._others(tally) and selects(term.selector, self._request.labels)

        def check(host: HostView) -> Why | None:
            value = host.label(term.key)
            if value is None:
                return Why(f"without label {term.key}")
            if first or there(value) > 0:
                return None
            return Why(f"without a machine {_machines(term.selector)}{_within(term.key)}")

        return check

    def _apart(self, term: Term) -> _Check:
        tally = self._tally(term)
        there = self._counted(term, tally)

        def check(host: HostView) -> Why | None:
            value = host.label(term.key)
            if value is None or there(value) <= 0:
                return None
            return Why(
                f"with a machine {_machines(term.selector)}{_within(term.key)}", self._named(tally, term.key, value)
            )

        return check

    def _guarded(self, term: Term, guard: Tally) -> _Check:
        there = self._counted(term, guard)

        def check(host: HostView) -> Why | None:
            value = host.label(term.key)
            if value is None or there(value) <= 0:
                return None
            return Why(
                f"with a machine{_within(term.key)} that keeps away from it (vmAntiAffinity)",
                self._named(guard, term.key, value),
            )

        return check

    def _group_apart(self, rule: GroupRule) -> _Check:
        tally = self._tally(rule.term)
        there, key = self._counted(rule.term, tally), rule.term.key
        which = "a machine" if rule.most == 1 else f"{rule.most} machines"

        def check(host: HostView) -> Why | None:
            value = host.label(key)
            if value is None:
                return Why(f"without label {key}, which PlacementGroup {rule.name} is about")
            if there(value) < rule.most:
                return None
            return Why(
                f"with {which} of the same PlacementGroup {rule.name}{_within(key)}", self._named(tally, key, value)
            )

        return check

    def _group_near(self, rule: GroupRule) -> _Check:
        tally = self._tally(rule.term)
        there, key, alone = self._counted(rule.term, tally), rule.term.key, not self._others(tally)

        def check(host: HostView) -> Why | None:
            value = host.label(key)
            if value is None:
                return Why(f"without label {key}, which PlacementGroup {rule.name} is about")
            if alone or there(value) > 0:
                return None
            return Why(f"without the other machines of PlacementGroup {rule.name}{_within(key)}")

        return check

    def _liked(self, liking: Liking) -> _Wish:
        tally, key, weight = self._tally(liking.term), liking.term.key, float(liking.weight)
        there, near = self._counted(liking.term, tally), liking.near

        def score(host: HostView) -> float:
            value = host.label(key)
            return weight if value is not None and (there(value) > 0) is near else 0.0

        taken = len(tally.places(key))
        if near:
            had = taken > 0
        else:
            had = taken < len(self._places(key)) or any(there(value) <= 0 for value in self._places(key))
        return _Wish(score, weight, weight if had else 0.0)

    def _host_liked(self, liking: HostLiking) -> _Wish:
        weight = float(liking.weight)
        return _Wish(lambda host: weight if host.has(liking.labels) else 0.0, weight, weight)

    def _rather_apart(self, rule: GroupRule) -> _Wish:
        tally, key = self._tally(rule.term), rule.term.key
        there = self._counted(rule.term, tally)

        def worth(count: int) -> float:
            return GROUP_WEIGHT / (1 + max(0, count - rule.most + 1))

        def score(host: HostView) -> float:
            value = host.label(key)
            return worth(there(value)) if value is not None else 0.0

        return _Wish(score, GROUP_WEIGHT, worth(_fewest(there, self._places(key), len(tally.places(key)))))

    def _rather_near(self, rule: GroupRule) -> _Wish:
        tally, key = self._tally(rule.term), rule.term.key
        there = self._counted(rule.term, tally)
        fullest = max((there(value) for value in tally.places(key)), default=0)

        def score(host: HostView) -> float:
            return GROUP_WEIGHT * there(host.label(key)) / fullest if fullest > 0 else GROUP_WEIGHT

        return _Wish(score, GROUP_WEIGHT, GROUP_WEIGHT)

    def _excess(self, spread: Spread) -> Callable[[str], int]:
        """By how much a place would be too full with the machine."""
        tally, key = self._tally(spread.term), spread.term.key
        there, places = self._counted(spread.term, tally), self._places(key)
        fewest = _fewest(there, places, len(tally.places(key)))
        own = int(selects(spread.term.selector, self._request.labels))
        return lambda value: there(value) + own - fewest - spread.skew

    def _even(self, spread: Spread) -> _Check:
        excess, key = self._excess(spread), spread.term.key
        reason = (
            f"with more machines {_machines(spread.term.selector)}{_within(key)} than elsewhere (maxSkew {spread.skew})"
        )

        def check(host: HostView) -> Why | None:
            value = host.label(key)
            if value is None:
                return Why(f"without label {key}")
            return Why(reason) if excess(value) > 0 else None

        return check

    def _rather_even(self, spread: Spread) -> _Wish:
        excess, key = self._excess(spread), spread.term.key

        def score(host: HostView) -> float:
            value = host.label(key)
            return GROUP_WEIGHT / (1 + max(0, excess(value))) if value is not None else 0.0

        return _Wish(score, GROUP_WEIGHT, GROUP_WEIGHT)


def _fewest(there: Callable[[str], int], places: Collection[str], taken: int) -> int:
    """How many machines the place with the fewest has; `taken` places have any."""
    return 0 if len(places) > taken else min(map(there, places), default=0)
