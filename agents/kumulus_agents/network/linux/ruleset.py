"""What nftables shall hold, as values, and the one transaction that makes it so. Pure.

The JSON is that of libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kumulus_agents.network.linux.names import TABLE

Json = Mapping[str, object]
Name = tuple[str, str]
"""Family and name of a chain, set or map."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a chain."""

    does: tuple[Json, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, with where the kernel enters it if it does by itself."""

    rules: tuple[Rule, ...]
    hook: str = ""
    priority: int = 0
    kind: str = "filter"
    """filter or nat, for one that the kernel enters."""
    policy: str = "accept"
    """What becomes of a packet that comes to the end of one that the kernel enters."""


@dataclass(frozen=True, slots=True)
class Members:
    """A set of values of one type, or of pairs of values."""

    type: str | tuple[str, str]
    members: frozenset[str] | frozenset[tuple[int, int]] = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Learned:
    """A set of values of one type, or of tuples of values, that rules put in, no more than so many, each for so long."""

    type: str | tuple[str, ...]
    size: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Ways:
    """A map from values to chains that are jumped to, or accept."""

    type: str
    ways: Mapping[str | int, str]
    """The name of a chain; empty: accept."""
    for_good: bool = False
    """Whether what ends the chain goes on where the one with the map was called from (goto)."""
    size: int | None = None
    """The most that it may have. The kernel finds something quicker in what cannot grow."""


@dataclass(frozen=True, slots=True)
class Marks:
    """A map from values to what a packet is marked with."""

    type: str
    marks: Mapping[str, int]
    size: int | None = None
    """As that of `Ways`."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that Kumulus has in nftables on this host."""

    chains: Mapping[Name, Chain] = field(default_factory=dict)
    sets: Mapping[Name, Members] = field(default_factory=dict)
    maps: Mapping[Name, Ways] = field(default_factory=dict)
    marks: Mapping[Name, Marks] = field(default_factory=dict)
    learned: Mapping[Name, Learned] = field(default_factory=dict)


FAMILIES = ("bridge", "inet")


def whole(new: Ruleset, families: Sequence[str] = FAMILIES) -> list[Json]:
    """Commands that put this in the place of whatever is there; no table is left when it is nothing."""
    tables: list[Json] = []
    for family in families:
        table = {"table": {"family": family, "name": TABLE}}
        tables += [{"add": table}, {"delete": table}, *([{"add": table}] if new.chains else [])]
    return tables + changes(Ruleset(), new)


def changes(old: Ruleset, new: Ruleset) -> list[Json]:
    """Commands that make the new of the old; none when they are the same. Chains and sets that are the same in both are
    not touched, so what they count goes on."""
    said: list[Json] = []
    for name, members in new.sets.items():
        if name not in old.sets:
            said.append({"add": {"set": _at(name) | {"type": members.type}}})
        now, before = (_members(these.sets.get(name)) for these in (new, old))
        said += _elements("delete", name, sorted(before - now, key=str))
        said += _elements("add", name, sorted(now - before, key=str))
    for name, learned in new.learned.items():
        if name not in old.learned:
            many: dict[str, object] = {"size": learned.size, "timeout": learned.seconds, "flags": ["timeout"]}
            said.append({"add": {"set": _at(name) | {"type": learned.type} | many}})
    for name, ways in new.maps.items():
        if name not in old.maps:
            said.append({"add": {"map": _at(name) | {"type": ways.type, "map": "verdict"} | _size(ways.size)}})
    for name, marks in new.marks.items():
        if name not in old.marks:
            said.append({"add": {"map": _at(name) | {"type": marks.type, "map": "mark"} | _size(marks.size)}})
        now_marks, before_marks = (
            set(these.marks[name].marks.items()) if name in these.marks else set() for these in (new, old)
        )
        said += _elements("delete", name, [list(one) for one in sorted(before_marks - now_marks)])
        said += _elements("add", name, [list(one) for one in sorted(now_marks - before_marks)])
    for name, chain in new.chains.items():
        if name not in old.chains:
            said.append({"add": {"chain": _at(name) | _hook(chain)}})
    changed = [name for name, chain in new.chains.items() if old.chains.get(name) != chain]
    gone = [name for name in old.chains if name not in new.chains]
    said += [{"flush": {"chain": _at(name)}} for name in (*changed, *gone) if name in old.chains]
    for name in changed:
        said += [_rule(name, rule) for rule in new.chains[name].rules]
    for name in {**old.maps, **new.maps}:
        before_ways, now_ways = (_ways(these.maps.get(name)) for these in (old, new))
        said += _elements("delete", name, _pairs(before_ways, now_ways))
        said += _elements("add", name, _pairs(now_ways, before_ways))
    said += [{"delete": {"chain": _at(name)}} for name in gone]
    said += [{"delete": {"set": _at(name)}} for name in old.sets if name not in new.sets]
    said += [{"delete": {"set": _at(name)}} for name in old.learned if name not in new.learned]
    said += [{"delete": {"map": _at(name)}} for name in old.maps if name not in new.maps]
    said += [{"delete": {"map": _at(name)}} for name in old.marks if name not in new.marks]
    return said


def _at(name: Name) -> dict[str, object]:
    return {"family": name[0], "table": TABLE, "name": name[1]}


def _hook(chain: Chain) -> dict[str, object]:
    if not chain.hook:
        return {}
    return {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": chain.policy}


def _size(size: int | None) -> dict[str, object]:
    return {} if size is None else {"size": size}


def _rule(name: Name, rule: Rule) -> Json:
    said: dict[str, object] = {"family": name[0], "table": TABLE, "chain": name[1], "expr": list(rule.does)}
    return {"add": {"rule": said | ({"comment": rule.comment} if rule.comment else {})}}


def _members(these: Members | None) -> frozenset[str | tuple[int, int]]:
    return frozenset(these.members) if these else frozenset()


def _ways(these: Ways | None) -> dict[str | int, Json]:
    """Verdicts, as nft reads them."""
    if these is None:
        return {}
    verb = "goto" if these.for_good else "jump"
    return {key: {verb: {"target": to}} if to else {"accept": None} for key, to in these.ways.items()}


def _pairs(these: Mapping[str | int, Json], not_these: Mapping[str | int, Json]) -> list[object]:
    return [[key, verdict] for key, verdict in these.items() if not_these.get(key) != verdict]


def _elements(verb: str, name: Name, elements: Sequence[object]) -> list[Json]:
    said = [{"concat": list(element)} if isinstance(element, tuple) else element for element in elements]
    return [{verb: {"element": _at(name) | {"elem": said}}}] if said else []
