"""What drivers do whose pools come and go: they can be away, with something else in their place, or be let go of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Expecting(Protocol):
    """A pool that can be told from an empty place."""

    def expect(self) -> None:
        """This host had the pool before. From now on every verb raises `StorageError(reason="PoolNotThere")` while it is
        away, and nothing is made in its place. A driver expects by itself what it has seen once."""


@runtime_checkable
class Releasing(Protocol):
    """A pool that this host holds something for, such as a mount."""

    async def release(self) -> None:
        """The pool is no longer this host's business: what was held for it on this host is gone when it returns, its
        content stays where it is. May be repeated, also by a driver that was never prepared, and never waits for the
        pool's server."""
