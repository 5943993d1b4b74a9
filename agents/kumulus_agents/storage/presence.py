"""What drivers do whose pools can be away, with something else in their place."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Expecting(Protocol):
    """A pool that can be told from an empty place."""

    def expect(self) -> None:
        """This host had the pool before. From now on every verb raises `StorageError(reason="PoolNotThere")` while it is
        away, and nothing is made in its place. A driver expects by itself what it has seen once."""
