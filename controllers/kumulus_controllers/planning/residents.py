"""Which machines are where, counted by what their rules ask: in memory, kept up to date one machine at a time. Pure.

A `Tally` is the answer to "how many machines that these labels select are in which place". It is made when it is first asked
for, and then follows: a decision costs the same with ten machines and with ten thousand.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kumulus_controllers.planning.labels import Labels, selects

TALLIES_MOST = 64
"""So many tallies are kept for a namespace. One that was not asked for longest goes; asked again, it is counted again."""

Locate = Callable[[str, str], str | None]
"""Host and topology key to the value of that label there; None for a host without it, or one that is not there."""


@dataclass(frozen=True, slots=True)
class Term:
    """Machines, and how near is near."""

    selector: Labels
    key: str
    """Topology key."""


@dataclass(frozen=True, slots=True)
class Resident:
    """What is known of a machine, placed or not."""

    uid: str
    namespace: str | None
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    repels: tuple[Term, ...] = ()
    """Machines that it is required to be away from, whoever comes first."""
    of: str = ""
    """Uid of the machine, when this is only another place that it has, while it moves: to itself it is nobody else."""


class Tally:
    """Where the machines of one kind are."""

    __slots__ = ("_locate", "_places", "members")

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self.members: dict[str, str] = {}
        """Hosts by uid."""
        self._places: dict[str, Counter[str]] = {}

    def places(self, key: str) -> Mapping[str, int]:
        """How many are where, by value of a topology key; only places with any."""
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = Counter()
            for host in self.members.values():
                if (value := self._locate(host, key)) is not None:
                    found[value] += 1
        return found

    def put(self, uid: str, host: str) -> None:
        """It is there, and nowhere else."""
        if self.members.get(uid) == host:
            return
        self.drop(uid)
        self.members[uid] = host
        for key, places in self._places.items():
            if (value := self._locate(host, key)) is not None:
                places[value] += 1

    def drop(self, uid: str) -> None:
        """It is nowhere, or not of this kind any more."""
        host = self.members.pop(uid, None)
        if host is None:
            return
        for key, places in self._places.items():
            if (value := self._locate(host, key)) is not None:
                places[value] -= 1
                if places[value] <= 0:
                    del places[value]

    def recount(self) -> None:
        """Labels of hosts have changed."""
        self._places.clear()

    def at(self, key: str, value: str, but: Collection[str]) -> list[str]:
        """Uids of those in a place, without `but`. Looks at all members."""
        return [uid for uid, host in self.members.items() if uid not in but and self._locate(host, key) == value]


class Residents:
    """All machines that have a promise, and tallies of them."""

    def __init__(self, locate: Locate) -> None:
        self.locate = locate
        """Which place a host is in."""
        self._known: dict[str, Resident] = {}
        self._gone: set[str] = set()
        """Known, but their objects are not there any more; forgotten when they have left their host."""
        self._where: dict[str, str] = {}
        self._placed: dict[str | None, dict[str, None]] = {}
        """Uids of machines that have a place, by namespace."""
        self._tallies: dict[str | None, OrderedDict[Labels, Tally]] = {}
        self._guards: dict[str | None, dict[Term, Tally]] = {}
        self._further: dict[str, set[str]] = {}
        """Names of the further places of machines, by uid of the machine."""

    def put(self, resident: Resident) -> None:
        """Take in a machine, new or changed."""
        self._gone.discard(resident.uid)
        if self._known.get(resident.uid) == resident:
            return
        host = self._where.get(resident.uid)
        if host is not None:
            self._leave(resident.uid)
        self._known[resident.uid] = resident
        if resident.of:
            self._further.setdefault(resident.of, set()).add(resident.uid)
        if host is not None:
            self._enter(resident.uid, host)

    def drop(self, uid: str) -> None:
        """Its object is gone. While it has a place it counts."""
        if uid in self._where:
            self._gone.add(uid)
        else:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        known = self._known.pop(uid, None)
        if known is not None and known.of:
            further = self._further.get(known.of, set())
            further.discard(uid)
            if not further:
                self._further.pop(known.of, None)

    def own(self, uid: str) -> tuple[str, ...]:
        """Under which uids a machine has places: its own, and those of its further ones."""
        further = self._further.get(uid)
        return (uid, *further) if further else (uid,)

    def place(self, uid: str, host: str) -> None:
        """It has a promise on that host."""
        if self._where.get(uid) == host:
            return
        if uid in self._where:
            self._leave(uid)
        self._enter(uid, host)

    def release(self, uid: str) -> None:
        """It has no promise any more."""
        if uid in self._where:
            self._leave(uid)
        if uid in self._gone:
            self._gone.discard(uid)
            self._forget(uid)

    def _enter(self, uid: str, host: str) -> None:
        self._where[uid] = host
        resident = self._known.get(uid)
        if resident is None:
            return
        self._placed.setdefault(resident.namespace, {})[uid] = None
        for selector, tally in self._tallies.get(resident.namespace, {}).items():
            if selects(selector, resident.labels):
                tally.put(uid, host)
        for term in resident.repels:
            self._guards.setdefault(resident.namespace, {}).setdefault(term, Tally(self.locate)).put(uid, host)

    def _leave(self, uid: str) -> None:
        del self._where[uid]
        resident = self._known.get(uid)
        if resident is None:
            return
        placed = self._placed.get(resident.namespace, {})
        placed.pop(uid, None)
        if not placed:  # nothing of a namespace stays that has no machines
            self._placed.pop(resident.namespace, None)
            self._tallies.pop(resident.namespace, None)
            self._guards.pop(resident.namespace, None)
            return
        for tally in self._tallies.get(resident.namespace, {}).values():
            tally.drop(uid)
        guards = self._guards.get(resident.namespace, {})
        for term in resident.repels:
            if (guard := guards.get(term)) is not None:
                guard.drop(uid)
                if not guard.members:
                    del guards[term]

    def tally(self, namespace: str | None, selector: Labels) -> Tally:
        """Where the machines of a namespace are that a selector selects. To be read, and not to be kept."""
        if namespace not in self._placed:
            return Tally(self.locate)
        tallies = self._tallies.setdefault(namespace, OrderedDict())
        found = tallies.get(selector)
        if found is None:
            found = tallies[selector] = Tally(self.locate)
            for uid in self._placed.get(namespace, ()):
                if selects(selector, self._known[uid].labels):
                    found.put(uid, self._where[uid])
            if len(tallies) > TALLIES_MOST:
                tallies.popitem(last=False)
        tallies.move_to_end(selector)
        return found

    def guards(self, namespace: str | None) -> Mapping[Term, Tally]:
        """What machines of a namespace that are placed are required to be away from, and where these are."""
        return self._guards.get(namespace, {})

    def names(self, uids: Iterable[str]) -> list[str]:
        """Names of machines, sorted."""
        return sorted({self._known[uid].name if uid in self._known else uid for uid in uids})

    def recount(self) -> None:
        """Labels of hosts have changed."""
        for tallies in self._tallies.values():
            for tally in tallies.values():
                tally.recount()
        for guards in self._guards.values():
            for tally in guards.values():
                tally.recount()
