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
        others = self._taken()
        needed = (2 * size if others else size) - arrived()
        if needed > max(free - others, 0):
            raise self._refusal(rounded(needed), free)
        self._claims[name] = (size, arrived)

    def most(self, free: int) -> int:
        """Bytes that an image without a claim may take while it is unpacked. More is what `exceeded` is for."""
        others = self._taken()
        return max(free - others, 0) // (2 if others else 1)

    def exceeded(self, most: int, free: int) -> StorageError:
        """The error for an image that turned out to be larger than `most`, which it had been let in with."""
        return self._refusal(f"more than {rounded(most)}", free)

    def drop(self, name: str) -> None:
        """The import of that name has ended. No claim: nothing."""
        self._claims.pop(name, None)

    def _taken(self) -> int:
        return sum(max(2 * size - arrived(), 0) for size, arrived in self._claims.values())

    def _refusal(self, needed: str, free: int) -> StorageError:
        others = self._taken()
        beside = f", of which imports under way will take up to {rounded(others)}" if others else ""
        return StorageError(
            f"The pool {self._pool} has no room for the image: {needed} needed, {rounded(free)} free{beside}."
            " It is tried again; free space in the pool or choose another one.",
            reason="InsufficientCapacity",
        )
