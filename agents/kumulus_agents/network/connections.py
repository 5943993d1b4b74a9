"""Connections that a guest has when it goes to another host: what filters there have to know of them. Pure.

Only established ones of TCP, which nobody translates: others are short, or begun anew by themselves. What another host says
is held against the addresses that the guest has anyway, so it can say nothing of anybody else's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST = 2048
"""Of a guest; more begin anew, or go on with the guest's next packet."""
LONGEST = 432000
"""Seconds for which the kernel remembers one without a packet, by its default."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One of TCP, as it was opened."""

    source: str
    source_port: int
    target: str
    target_port: int
    seconds: int
    """For how long it is remembered without a packet."""


def to_json(connections: Sequence[Connection]) -> list[list[str | int]]:
    """As one host tells another."""
    return [[c.source, c.source_port, c.target, c.target_port, c.seconds] for c in connections]


def from_json(said: object, addresses: Collection[str]) -> tuple[Connection, ...]:
    """What another host says of a guest's connections, as far as they are of these addresses. What is none is left out."""
    if not isinstance(said, list):
        return ()
    found = (_one(item) for item in said[: 2 * MOST])
    own = {str(ipaddress.ip_address(address)) for address in addresses}
    return tuple(c for c in found if c is not None and (c.source in own) != (c.target in own))[:MOST]


def _one(item: object) -> Connection | None:
    if not isinstance(item, list) or len(item) != 5:
        return None
    source, source_port, target, target_port, seconds = item
    if not isinstance(source, str) or not isinstance(target, str):
        return None
    if any(not isinstance(n, int) or isinstance(n, bool) for n in (source_port, target_port, seconds)):
        return None
    try:
        one, other = ipaddress.ip_address(source), ipaddress.ip_address(target)
    except ValueError:
        return None
    if one.version != other.version or getattr(one, "scope_id", None) or getattr(other, "scope_id", None):
        return None
    if not (0 < source_port < 65536 and 0 < target_port < 65536 and seconds > 0):
        return None
    return Connection(str(one), source_port, str(other), target_port, min(seconds, LONGEST))
