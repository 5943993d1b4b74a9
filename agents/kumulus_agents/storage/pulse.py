"""The heartbeat of a host in a pool that hosts share (ADR 39).

It says that who writes it lives. That it is not there, or stands still, says nothing: the pool may be slow. Nobody is ever
switched off, or ends, because a pool is.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

BEAT_MAX = 64
"""Characters of a beat, at most."""


@runtime_checkable
class Pulsed(Protocol):
    """A pool in which hosts leave their heartbeat."""

    async def beat(self, host: str, beat: str) -> None:
        """Leave that text, at most `BEAT_MAX` characters, as the host's last beat. Raises `StorageError`."""

    async def last_beat(self, host: str) -> str | None:
        """The text that the host left last; None: it never did. Raises `StorageError`."""
