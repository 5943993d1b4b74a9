"""What moving a running guest to another host is to drivers of hypervisors: how, how far, and by which connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

Connect = Callable[[str], Awaitable[Stream]]
"""Makes a connection to the driver of the other host, which is told the channel's name. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Sending:
    """How a guest is to be brought to another host."""

    migration: str
    """Uid of the migration, which both hosts name."""
    bandwidth: int | None = None
    """MiB a second at most; None: as fast as it goes."""
    max_downtime: int = 300
    """The guest is halted for the rest at most so long, in milliseconds, as far as that can be told before."""
    converge: bool = False
    """Slow the guest down when it writes faster than its memory, or its disks, can be copied."""
    disks: tuple[str, ...] = ()
    """Names of its disks that are copied along; the other host has them too, empty. It waits for all others to be the same."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a guest is, with the disks that go along. Bytes."""

    total: int
    remaining: int
    dirty_rate: int
    """Bytes a second that the guest writes anew."""
    iteration: int
    """How often its memory was gone through, from 1."""
    downtime: int
    """For how many milliseconds it would be halted, as it looks now."""
    disk_total: int = 0
    """Of the total, that of disks that go along."""
    disk_remaining: int = 0
    halted: bool = False
    """The guest is halted for the rest: unless the copy fails it does not go on here."""
