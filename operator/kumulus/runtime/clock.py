"""Time, injected so that tests can set it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where a process takes the time from."""

    def now(self) -> datetime:
        """Wall clock, UTC. For people and for the API only; never to decide whether something expired."""

    def monotonic(self) -> float:
        """Seconds that only go forward. For deadlines."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Wall clock, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()


def rfc3339(moment: datetime) -> str:
    """A `Time` of the API: whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """A `Time` or `MicroTime` of the API. Raises `ValueError`."""
    return datetime.fromisoformat(text)
