"""Label selectors in a form that can be a key, and what they select. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kumulus.api.affinity import HostOperator, HostTerm, LabelSelector


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a label has to be."""

    key: str
    operator: HostOperator
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is so of something with these labels. What has no such label is in no list of values, and no number."""
        value = labels.get(self.key)
        match self.operator:
            case HostOperator.IN:
                return value in self.values
            case HostOperator.NOT_IN:
                return value not in self.values
            case HostOperator.EXISTS:
                return value is not None
            case HostOperator.DOES_NOT_EXIST:
                return value is None
        number, bound = _number(value), _number(next(iter(self.values), None))
        if number is None or bound is None:
            return False
        return number > bound if self.operator is HostOperator.GT else number < bound

    def __str__(self) -> str:
        match self.operator:
            case HostOperator.EXISTS:
                return self.key
            case HostOperator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case HostOperator.GT | HostOperator.LT:
                return f"{self.key}{'>' if self.operator is HostOperator.GT else '<'}{next(iter(self.values), '')}"
        values, equal = sorted(self.values), self.operator is HostOperator.IN
        if len(values) == 1:
            return f"{self.key}{'=' if equal else '!='}{values[0]}"
        return f"{self.key} {'in' if equal else 'not in'} ({','.join(values)})"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


Labels = tuple[Requirement, ...]
"""All of them have to hold; none select everything."""


def labels_of(selector: LabelSelector) -> Labels:
    """A selector of the API. Equal ones, however they are written, are equal."""
    made = [Requirement(key, HostOperator.IN, frozenset((value,))) for key, value in selector.match_labels.items()]
    made += [Requirement(e.key, HostOperator(e.operator), frozenset(e.values)) for e in selector.match_expressions]
    return tuple(sorted(set(made), key=str))


def host_labels_of(term: HostTerm) -> Labels:
    """The labels of hosts that a term asks for."""
    return tuple(Requirement(e.key, e.operator, frozenset(e.values)) for e in term.match_expressions)


def selects(wanted: Labels, labels: Mapping[str, str]) -> bool:
    """Whether something with these labels is selected."""
    return all(requirement.holds(labels) for requirement in wanted)


def said(wanted: Labels) -> str:
    """As people write it: `app=web,tier in (a,b)`."""
    return ",".join(map(str, wanted))
