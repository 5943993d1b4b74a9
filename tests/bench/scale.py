"""How much is measured: short while developing, full for a result, long for a night."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of everything."""

    name: str
    rounds: int
    """Of ours and the baseline in turn."""
    machines: int
    """Created at a pace on each number of hosts, over all rounds."""
    hosts: tuple[int, ...]
    rate: float
    """Machines a second."""
    burst: int
    """Machines at once."""
    bursts: int
    existing: int
    """Machines that are there already in a further burst; 0: no such burst."""
    idle_seconds: float
    resident: int
    """Machines on one simulated agent whose memory is measured."""
    guests: int
    """Machines on one libvirt host whose memory is measured."""
    guest_rounds: int
    moves: int
    """Guests moved to another host, one after the other."""
    failovers: int
    """Hosts killed, one after the other."""
    attaches: int
    """Interfaces attached, one after the other."""
    group_changes: int
    """Times that a group is opened and closed."""
    traffic_seconds: float
    """Of traffic between two guests, a round."""

    def with_rounds(self, rounds: int | None) -> Scale:
        """The same with so many rounds of everything."""
        return (
            self
            if rounds is None
            else replace(self, rounds=rounds, bursts=rounds, guest_rounds=rounds, moves=rounds, failovers=rounds)
        )


_FULL = Scale(
    name="full",
    rounds=5,
    machines=500,
    hosts=(10, 200, 1000),
    rate=10,
    burst=1000,
    bursts=2,
    existing=0,
    idle_seconds=60,
    resident=50,
    guests=6,
    guest_rounds=7,
    moves=12,
    failovers=10,
    attaches=200,
    group_changes=60,
    traffic_seconds=2,
)

SCALES: Mapping[str, Scale] = {
    "short": replace(
        _FULL,
        name="short",
        rounds=2,
        machines=100,
        hosts=(10,),
        burst=200,
        bursts=1,
        idle_seconds=20,
        resident=20,
        guests=2,
        guest_rounds=2,
        moves=3,
        failovers=2,
        attaches=20,
        group_changes=10,
        traffic_seconds=1,
    ),
    "full": _FULL,
    "long": replace(
        _FULL,
        name="long",
        rounds=7,
        machines=1400,
        bursts=3,
        existing=5000,
        idle_seconds=600,
        guests=10,
        moves=50,
        failovers=30,
    ),
}
