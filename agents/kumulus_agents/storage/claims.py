"""Room in a pool that imports under way are still going to take, so that no two are let in where one fits.

In memory only: an import that a restart ended claims again when it goes on. Belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from kumulus.api.quantity import rounded
from kumulus_agents.storage.protocol import StorageError


class Claims:
    """The claims on one pool."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._claims: dict[str, tuple[int, Callable[[], int]]] = {}

    def take(self, name: str, size: int, arrived: Callable[[], int], free: int) -> None:
        """Claim room for a download of `size` bytes, of which `arrived()` are there; in place of an earlier claim.

        While it is converted an image is there twice, at most. An import that is alone is let in when its download
        fits, because most take less; beside others it has to fit in full, and leave them what they claimed.
        Raises `StorageError(reason="InsufficientCapacity")`.
        """
        self.drop(name)
        others = sum(max(2 * other - there(), 0) for other, there in self._claims.values())
        needed = (2 * size if others else size) - arrived()
        if needed > max(free - others, 0):
            beside = f", of which imports under way will take up to {rounded(others)}" if others else ""
            raise StorageError(
                f"The pool {self._pool} has no room for the image: {rounded(needed)} needed, {rounded(free)} free{beside}."
                " It is tried again; free space in the pool or choose another one.",
                reason="InsufficientCapacity",
            )
        self._claims[name] = (size, arrived)

    def drop(self, name: str) -> None:
        """The import of that name has ended. No claim: nothing."""
        self._claims.pop(name, None)
