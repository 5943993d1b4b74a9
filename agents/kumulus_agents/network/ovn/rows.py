"""Rows of an OVSDB database as they shall be. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Key = tuple[str, str]
"""Table, and what the row is known by: its name, or a text that follows from what is in it."""

Value = str | int | frozenset[str] | Mapping[str, str] | Mapping[str, int]

MARK = "kumulus"
"""In `external_ids`: that the row is Kumulus' own, and its key."""


@dataclass(frozen=True, slots=True)
class Row:
    """What Kumulus says of a row. Other columns are somebody else's."""

    columns: Mapping[str, Value]
    refers: Mapping[str, frozenset[Key]] = field(default_factory=dict)
    """Columns that name other rows."""


Rows = Mapping[Key, Row]


def binding(port: str, address: str) -> str:
    """What a row of Static_MAC_Binding is known by, which has no column for a mark."""
    return f"{port} {address}"
