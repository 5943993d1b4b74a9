"""When a guest that moves is halted, has come, has left and goes on, as the libvirtds of both hosts say.

Moments are seconds of this machine's monotonic clock, taken when the event comes here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libvirt

from kumulus_agents.hypervisor.libvirt import events

HALTED = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
WHOLE = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
LEFT = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED)
GOES_ON = (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED)

STEPS = ("halted until it is whole there", "QEMU ends at the source", "the word, and it goes on", "its first answer")


@dataclass(frozen=True, slots=True)
class Event:
    """Of one domain."""

    at: float
    domain: str
    what: tuple[int, int]


def steps(seen: Sequence[Event], domain: str, answers: Sequence[float]) -> Mapping[str, float]:
    """How long each step of a move took, in milliseconds; none when an event of it is missing. Pure."""
    moments: list[float] = []
    for what in (HALTED, WHOLE, LEFT, GOES_ON):
        found = [event.at for event in seen if event.domain == domain and event.what == what]
        if not found:
            return {}
        moments.append(found[-1])
    first = next((at for at in answers if at > moments[-1]), None)
    if first is None:
        return {}
    moments.append(first)
    return {name: (moments[n + 1] - moments[n]) * 1000 for n, name in enumerate(STEPS)}


@contextmanager
def watching(uris: Sequence[str]) -> Iterator[list[Event]]:
    """What libvirtds say of their domains while the block runs; the list grows."""
    events.ensure_running()
    seen: list[Event] = []

    def told(_connection: Any, domain: Any, event: int, detail: int, _opaque: None) -> None:
        seen.append(Event(time.monotonic(), domain.UUIDString(), (event, detail)))

    opened = []
    try:
        for uri in uris:
            connection = libvirt.open(uri)
            number = connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
            opened.append((connection, number))
        yield seen
    finally:
        for connection, number in opened:
            connection.domainEventDeregisterAny(number)
            connection.close()
