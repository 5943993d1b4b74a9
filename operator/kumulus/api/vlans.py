"""VLANs of physical networks, as kinds name them."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from kumulus.api.base import Model, Rule
from kumulus.api.segments import FIRST_VLAN, LAST_VLAN

RANGES_MOST = 64


class VlanRange(Model):
    """Numbers of VLANs from one to another, both in it."""

    rules = (Rule("!has(self.last) || self.first <= self.last", "a range goes from the lower to the higher"),)

    first: int = Field(description="The lowest.", ge=FIRST_VLAN, le=LAST_VLAN)
    last: int | None = Field(
        default=None, description="The highest; the lowest alone when empty.", ge=FIRST_VLAN, le=LAST_VLAN
    )

    def __str__(self) -> str:
        return str(self.first) if self.last in (None, self.first) else f"{self.first}-{self.last}"


def numbers(ranges: Iterable[VlanRange]) -> list[int]:
    """All numbers of the ranges, each once, from the lowest."""
    found = {number for part in ranges for number in range(part.first, (part.last or part.first) + 1)}
    return sorted(found)


def said(ranges: Iterable[VlanRange]) -> str:
    """The ranges, for people."""
    return ", ".join(map(str, ranges)) or "none"
