"""What the agents in guests say of them: asked now and then, cut to size, and told seldom.

A guest decides what its agent says, when, and how much. So nothing of it is done anything with but telling it; every text is
cut, addresses are counted, and however often a guest says something else, its machine's status changes once in a while only.
Guests are asked one after the other, and one that does not answer holds up the others for a few seconds, and rarely.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kumulus.api.instance_order import GuestFacts
from kumulus.runtime.clock import Clock
from kumulus_agents.agent.report import clean
from kumulus_agents.hypervisor.domain import Domain, DomainState, GuestSays
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError

log = structlog.get_logger(__name__)

LOOK_EVERY = 15.0
"""Seconds between two looks at which guests have an agent."""
ASK_EVERY = 300.0
"""Seconds until a guest that has answered is asked again."""
SILENT_EVERY = 600.0
"""Seconds until a guest that has not answered is asked again."""
TOLD_EVERY = 60.0
"""At most so often, in seconds, is something else said of a guest."""
ADDRESSES_MOST = 16


@dataclass(slots=True)
class _Guest:
    """What is known of one guest. Moments are monotonic seconds."""

    run: float | None
    ask_at: float
    open: bool = True
    """It had the port of its agent open when it was looked at last."""
    now: GuestFacts | None = None
    told: GuestFacts | None = None
    told_at: float = float("-inf")


class Guests:
    """The guests of one host."""

    def __init__(self, hypervisor: Hypervisor, clock: Clock, *, changed: Callable[[str], None]) -> None:
        """`changed` is told of uids of machines of whose guest there is something else to say."""
        self._hypervisor = hypervisor
        self._clock = clock
        self._changed = changed
        self._guests: dict[str, _Guest] = {}
        self._looked = False

    def told(self, uid: str, run: float | None, before: GuestFacts | None) -> GuestFacts | None:
        """What is to be said of the guest in the run that began then, of which `before` was said; None when it had no agent
        in it."""
        guest = self._guests.get(uid)
        if guest is not None and guest.run != run:
            return None
        if guest is not None and guest.told is not None:
            silent = guest.told == lost(None)  # since this agent began: others asked it
            return lost(before) if silent else guest.told
        return before if before is None or guest is not None or not self._looked else lost(before)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY * random.uniform(0.8, 1.2))  # noqa: S311 - spread, not secret
            try:
                await self.look()
            except HypervisorError as error:
                log.debug("guests were not asked", error=str(error))

    async def look(self) -> None:
        """Ask whoever is due, and tell what has changed. Raises `HypervisorError`."""
        on = {
            item.marks.uid: item for item in await self._hypervisor.domains() if item.state is not DomainState.STOPPED
        }
        for uid in self._guests.keys() - on.keys():
            del self._guests[uid]
        for uid, domain in on.items():
            guest = self._guests.get(uid)
            if guest is None or guest.run != domain.started_at:
                if not domain.agent:
                    if self._guests.pop(uid, None) is not None:
                        self._changed(uid)  # of the run before something may have been said
                    continue
                guest = self._guests[uid] = _Guest(domain.started_at, self._clock.monotonic())
            try:
                await self._look_at(uid, domain, guest)
            except HypervisorError:
                raise
            except Exception as error:
                log.warning("what a guest says is left aside", uid=uid, error=type(error).__name__)
                guest.ask_at = self._clock.monotonic() + SILENT_EVERY
        self._looked = True

    async def _look_at(self, uid: str, domain: Domain, guest: _Guest) -> None:
        now = self._clock.monotonic()
        if domain.agent and not guest.open:  # it has opened its port again
            guest.ask_at = min(guest.ask_at, guest.told_at + TOLD_EVERY)
        guest.open = domain.agent
        if not domain.agent:
            guest.now = lost(guest.now)
        elif domain.state is DomainState.RUNNING and now >= guest.ask_at:
            says = await self._hypervisor.ask_guest(uid)
            guest.ask_at = now + (ASK_EVERY if says is not None else SILENT_EVERY)
            guest.now = bounded(says) if says is not None else lost(guest.now)
        if guest.now != guest.told and now >= guest.told_at + TOLD_EVERY:
            guest.told, guest.told_at = guest.now, now
            self._changed(uid)


def lost(before: GuestFacts | None) -> GuestFacts:
    """What it said last, and that it says nothing now."""
    return (before or GuestFacts()).model_copy(update={"connected": False})


def bounded(says: GuestSays) -> GuestFacts:
    """What is told of all that a guest says. Pure."""
    return GuestFacts(
        connected=True,
        hostname=_text(says.hostname, 253),
        os=_text(says.os, 128),
        agent_version=_text(says.agent_version, 32),
        addresses=_addresses(says.addresses),
    )


def _text(text: str | None, limit: int) -> str | None:
    return clean(text[: 4 * limit].strip(), limit) or None if text is not None else None


def _addresses(said: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses by which others could reach it, sorted."""
    found = set()
    for text in said[:256]:
        try:
            address = ipaddress.ip_address(text[:64])
        except ValueError:
            continue
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
            found.add(address)
    return tuple(str(address) for address in sorted(found, key=lambda a: (a.version, int(a)))[:ADDRESSES_MOST])
