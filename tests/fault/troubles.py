"""What goes wrong in a run, besides a crash at a deed: stale and hidden changes, rivals, partitions, clocks, lost versions.

A trouble is armed when the steps of a plan begin, and strikes at a deed of a party. Each has to end by itself: the end of the
plan is the same as without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kumulus.kube import errors
from tests.fault.parties import Fault, How, Party
from tests.fault.world import CONTROLLERS, RIVALS, World

Arm = Callable[[World], object]
BACK = 3
"""So many deeds of its predecessor does a process not see at first that is born into the past."""
Strike = Callable[[World], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A name, and what is done when the steps begin."""

    name: str
    arm: Arm
    again: bool = False
    """Whether things that ended a moment ago may be made once more, and removed."""


def crash(party: str, at: int, how: How) -> Trouble:
    """The process dies at a deed, or never learns its answer."""

    def arm(world: World) -> None:
        world.parties[party].faults = (Fault(party, at, how),)

    return Trouble(f"{party} {at}: {how}", arm)


def twice(party: str, at: int, after: int) -> Trouble:
    """It dies after a deed, and its successor a few deeds later."""

    def arm(world: World) -> None:
        world.parties[party].faults = tuple(Fault(party, number, How.AFTER) for number in (at, at + after))

    return Trouble(f"{party} {at} and {at + after}: after", arm)


def at_deed(name: str, party: str, at: int, strike: Strike) -> Trouble:
    """Something begins when a party has done so many deeds."""

    def arm(world: World) -> None:
        done = 0

        def deed(who: Party, label: str) -> None:
            nonlocal done
            if who.name == party:
                done += 1
                if done == at:
                    who.struck.append(f"{name} at {label}")
                    world.during(strike(world))

        world.on_deed = deed

    return Trouble(f"{party} {at}: {name}", arm)


def stale(party: str, seconds: float, events: int) -> Trouble:
    """Whoever it is hears of changes late, from the start: after so many seconds, or when so many more have come."""

    def arm(world: World) -> None:
        wire = world.parties[party].wire
        wire.slow, wire.behind = seconds, events
        world.parties[party].struck.append("stale")

    return Trouble(f"{party}: {events} changes behind, {seconds} s at most", arm)


def hidden(party: str, whose: str, at: int, seconds: float) -> Trouble:
    """From a deed on it hears of no change for a while; then it lists everything again (410)."""

    async def strike(world: World) -> None:
        victim = world.parties[party]
        victim.wire.blind = True
        await asyncio.sleep(seconds)
        victim.wire.blind = False
        victim.break_watches(errors.Gone(410, "Expired", "too old"))

    return at_deed(f"{party} hear nothing for {seconds} s", whose, at, strike)


def expired(at: int, whose: str = CONTROLLERS) -> Trouble:
    """All watches of all parties end with 410 at once."""

    async def strike(world: World) -> None:
        for party in world.parties.values():
            party.break_watches(errors.Gone(410, "Expired", "too old"))

    return at_deed("410 for all watches", whose, at, strike)


def rewound(at: int, seconds: float, back: int = BACK) -> Trouble:
    """The controllers die after a deed, and the next ones read everything as it was some deeds of theirs before; what
    happened since they hear late (time travel)."""

    def arm(world: World) -> None:
        party = world.parties[CONTROLLERS]
        party.faults = (Fault(CONTROLLERS, at, How.AFTER),)
        party.versions = [world.version]
        party.on_birth = lambda: _rewind(party, seconds, back)

    return Trouble(f"{CONTROLLERS} {at}: born into the past", arm, again=True)


def _rewind(party: Party, seconds: float, back: int) -> None:
    party.on_birth = lambda: None
    party.wire.rewound, party.wire.slow = party.versions[max(0, len(party.versions) - 1 - back)], seconds


def rivals(at: int, seconds: float) -> Trouble:
    """A second process of controllers leads as well, in the next term, for a while; then both are gone, and the next one leads
    in a term of its own: no older one goes on after a newer one."""

    async def strike(world: World) -> None:
        world.start(RIVALS)
        await asyncio.sleep(seconds)
        await world.stop(RIVALS)
        world.parties[CONTROLLERS].crash()

    return at_deed(f"two leaders for {seconds} s", CONTROLLERS, at, strike)


def cut(party: str, whose: str, at: int, seconds: float, *, one_way: bool) -> Trouble:
    """The way from a party to the API server is cut, both ways or only for answers, and heals."""

    async def strike(world: World) -> None:
        victim = world.parties[party]
        victim.wire.cut, victim.wire.deaf = not one_way, one_way
        victim.break_watches()
        await asyncio.sleep(seconds)
        victim.wire.cut = victim.wire.deaf = False

    ways = "answers to it are lost" if one_way else "cut off"
    return at_deed(f"{party} {ways} for {seconds} s", whose, at, strike)


def apart(whose: str, at: int, seconds: float) -> Trouble:
    """Hosts do not reach each other for a while, and what was open between them ends."""

    async def strike(world: World) -> None:
        world.ways.cut = True
        world.ways.break_()
        await asyncio.sleep(seconds)
        world.ways.cut = False

    return at_deed(f"hosts do not reach each other for {seconds} s", whose, at, strike)


def clock(party: str, whose: str, at: int, hours: float) -> Trouble:
    """Its wall clock jumps and stays wrong."""

    async def strike(world: World) -> None:
        world.parties[party].offset = hours * 3600

    return at_deed(f"the clock of {party} jumps by {hours:+} h", whose, at, strike)


def outage(name: str, at: int, whose: str, act: Strike) -> Trouble:
    """Something is done to the API server."""
    return at_deed(name, whose, at, act)
