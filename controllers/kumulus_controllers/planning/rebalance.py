"""Which moves would make hosts even. Pure; the fleet that it is given is tried on, so it has to be one of its own.

First go machines that break a rule where they are. Then, again and again, the one move that makes hosts most even: of the
fullest hosts' machines to the emptiest hosts that take them. A machine moves once at most, and never into a place where it
breaks a rule, or where there is no room for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kumulus.api.preview import Goal, Metric, Move, Plan
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Placement, Request

CONSIDERED = 8
"""So many of the fullest and of the emptiest hosts are considered for each move."""


EVEN = "evens out"
"""Why most machines are moved."""


@dataclass(frozen=True, slots=True)
class Movable:
    """A machine that has a place, and may have another."""

    request: Request
    fixed: str = ""
    """Why it cannot be moved."""


def rebalance(fleet: Fleet, machines: Iterable[Movable], hosts: Iterable[str], goal: Goal) -> Plan:
    """The plan. `hosts` are those that count: they take machines. Each zone is made even for itself, and machines stay in theirs."""
    return _Planner(fleet, list(machines), sorted(hosts), goal).plan()


class _Planner:
    def __init__(self, fleet: Fleet, machines: list[Movable], hosts: list[str], goal: Goal) -> None:
        self._fleet, self._hosts, self._goal = fleet, hosts, goal
        self._movable = {item.request.uid: item for item in sorted(machines, key=lambda item: _said(item.request))}
        self._zones: dict[str, list[str]] = {}
        for name in hosts:
            self._zones.setdefault(self._zone(name) or "", []).append(name)
        self._on: dict[str, dict[str, None]] = {}
        """Uids of the machines of each host that have not been moved."""
        for uid in self._movable:
            if (where := fleet.where(uid)) is not None:
                self._on.setdefault(where, {})[uid] = None
        self._moves: list[Move] = []
        self._stuck: dict[str, str] = {}

    def _zone(self, name: str) -> str | None:
        host = self._fleet.host(name)
        return host.zone if host is not None else None

    def plan(self) -> Plan:
        before = self._shares(self._hosts)
        self._repair()
        for hosts in self._zones.values():
            while len(self._moves) < self._goal.most and Plan.apart(self._shares(hosts)) > self._goal.tolerance:
                if (best := self._best(hosts)) is None:
                    break
                self._move(*best, EVEN)
        return Plan(tuple(self._moves), before, self._shares(self._hosts), self._stuck)

    def _share(self, name: str, more: int = 0) -> float:
        host, load = self._fleet.host(name), self._fleet.load(name)
        assert host is not None
        has, promised = (host.memory, load.memory) if self._goal.metric is Metric.MEMORY else (host.cpus, load.cpus)
        return (promised + more) / has if has else 1.0

    def _shares(self, hosts: list[str]) -> Mapping[str, float]:
        return {name: self._share(name) for name in hosts}

    def _weight(self, uid: str) -> int:
        demand = self._movable[uid].request.demand
        return demand.memory if self._goal.metric is Metric.MEMORY else demand.cpus

    def _repair(self) -> None:
        """Machines that break a rule go where they break none."""
        for uid, item in self._movable.items():
            where = self._fleet.where(uid)
            broken = self._fleet.unsatisfied(item.request)
            if not broken or where is None:
                continue
            why = "; ".join(map(str, broken))
            if item.fixed or len(self._moves) == self._goal.most:
                self._stuck[_said(item.request)] = (
                    f"{why}; {item.fixed or 'there are more than enough moves before it'}"
                )
                continue
            found = self._fleet.place(replace(item.request, zone=self._zone(where)))
            if isinstance(found, Placement):
                self._move(uid, found.host, f"breaks a rule: {why}")
            else:
                self._stuck[_said(item.request)] = f"{why}; {found}"

    def _move(self, uid: str, target: str, why: str) -> None:
        request, source = self._movable[uid].request, self._fleet.where(uid)
        assert source is not None
        demand, host = request.demand, self._fleet.host(target)
        pool = self._fleet.pool_for(demand, host, uid, request.namespace) if host is not None else None
        self._moves.append(Move(request.namespace or "", request.name, source, target, demand.cpus, demand.memory, why))
        self._on[source].pop(uid, None)
        self._fleet.assign(uid, target, demand, pool.uid if pool is not None else None)

    def _best(self, hosts: list[str]) -> tuple[str, str] | None:
        """The machine and the host that make the most of it; None when nothing does."""
        ranked = sorted(hosts, key=lambda name: (-self._share(name), name))
        best: tuple[float, str, str] | None = None
        for source in ranked[:CONSIDERED]:
            for uid in self._on.get(source, ()):
                if self._movable[uid].fixed:
                    continue
                for target in reversed(ranked[-CONSIDERED:]):
                    gain = self._gain(uid, source, target)
                    if gain > 1e-9 and (best is None or gain > best[0]) and self._fits(uid, target):
                        best = gain, uid, target
        return (best[1], best[2]) if best is not None else None

    def _gain(self, uid: str, source: str, target: str) -> float:
        """By how much the sum of the squares of the shares falls: it is least when all are the same."""
        weight = self._weight(uid)
        before = self._share(source) ** 2 + self._share(target) ** 2
        return before - self._share(source, -weight) ** 2 - self._share(target, weight) ** 2

    def _fits(self, uid: str, target: str) -> bool:
        host = self._fleet.host(target)
        return host is not None and self._fleet.fits(self._movable[uid].request, host)


def _said(request: Request) -> str:
    return f"{request.namespace}/{request.name}"
