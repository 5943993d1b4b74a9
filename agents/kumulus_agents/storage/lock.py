"""What storage itself can do to keep a host out that had a volume and did not give it up (ADR 46).

It is a second line. It proves nothing of whether that host is off, and a machine there whose disk it has lost may run on in its memory:
nobody takes over from a host on the strength of it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Locking(Protocol):
    """A pool whose storage can refuse clients that have a volume open."""

    async def release_volume(self, uid: str, host: str, epoch: int) -> None:
        """This host, which sees to the volume by an order of that epoch, gives it up: nothing of it writes to it any more. It is another
        one's by now, or not there: nothing. May be repeated. Raises `StorageError`."""

    async def shut_out(self, uid: str, host: str, epoch: int, *, used: bool) -> None:
        """This host is about to claim the volume with that epoch, and again: has claimed it. If the one before did not give it up, have the
        storage refuse all clients that have it open, for good; when it returns what they still send is refused. Once for each claim. `used`: a machine of this host has
        it open already, as one that has come by a migration: then nobody is shut out. May be repeated.

        Raises `StorageError`: VolumeInUse, retryable, when they cannot be shut out.
        """
