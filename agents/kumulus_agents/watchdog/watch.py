"""When a host has to end its machines: a deadline that every renewal of its Lease moves on. Pure (ADR 44).

Times are seconds of one clock of the host (`CLOCK_BOOTTIME`, which goes on while it sleeps). A renewal counts from its *beginning*:
when it was written, and when others saw it, is later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What a watch is at."""

    IDLE = "Idle"
    """Nobody counts on it."""
    ARMED = "Armed"
    FIRED = "Fired"
    """The host's machines are being ended, and whatever starts is ended as well, until it is armed anew."""


@dataclass(slots=True)
class Watch:
    """One host's."""

    seconds: float = 0.0
    """From the beginning of the last renewal to the deadline."""
    renewed: float = 0.0
    state: State = State.IDLE

    @property
    def deadline(self) -> float | None:
        """When the machines are ended; None: never."""
        return self.renewed + self.seconds if self.state is State.ARMED else None

    def look(self, now: float) -> State:
        """What it is at now. At the deadline it fires, and nothing that arrives then or later takes that back."""
        if (deadline := self.deadline) is not None and now >= deadline:
            self.state = State.FIRED
        return self.state

    def arm(self, seconds: float, renewed: float, now: float) -> bool:
        """Begin to watch; False when that renewal is too old: then it fires at once. Ends what has fired: who arms it has just begun,
        and has read what the host is to do since that renewal. Armed already: an earlier renewal does not count any more."""
        if self.look(now) is State.ARMED and renewed < self.renewed:
            return False
        if not 0 <= now - renewed < seconds:
            self.state = State.FIRED
            return False
        self.seconds, self.renewed, self.state = seconds, renewed, State.ARMED
        return True

    def renew(self, renewed: float, now: float) -> bool:
        """The Lease was renewed; False when it is too late, or nobody watches."""
        if self.look(now) is not State.ARMED or not renewed <= now:
            return False
        self.renewed = max(self.renewed, renewed)
        return True

    def disarm(self, now: float) -> bool:
        """Nobody counts on it any more; False when it has fired."""
        if self.look(now) is State.FIRED:
            return False
        self.state = State.IDLE
        return True
