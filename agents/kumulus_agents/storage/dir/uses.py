"""Images of a pool that hosts share: who makes something of one, and who removes one. Blocks.

Either whoever removes an image sees the mark of whoever makes something of it, or that one sees that the image is being
removed: each writes its own mark before it looks for the other's. What was made stands in the records; a mark is there
only while it is made, or since its host died.
"""

from __future__ import annotations

from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.protocol import StorageError


def begin(pool: PoolDirectory, image: str) -> None:
    """Something is about to be made of the image. Raises `StorageError(reason="ImageNotReady")` when it is being removed."""
    with pool.uses() as uses:
        uses.write(_mine(pool, image), b"")
        if uses.exists(_removing(image)):
            uses.remove(_mine(pool, image))
            raise StorageError("The disk's image is being removed.", reason="ImageNotReady")


def end(pool: PoolDirectory, image: str) -> None:
    """Nothing is being made of the image here any more."""
    with pool.uses() as uses:
        uses.remove(_mine(pool, image))


def remove(pool: PoolDirectory, image: str) -> int:
    """Mark the image as being removed; how many hosts are making something of it."""
    with pool.uses() as uses:
        uses.write(_removing(image), b"")
        return sum(name.startswith(f"{image}.") and name.endswith(_MAKING) for name in uses.names())


def keep(pool: PoolDirectory, image: str) -> None:
    """The image is gone, or stays after all."""
    with pool.uses() as uses:
        uses.erase(_removing(image))


def forget_mine(pool: PoolDirectory) -> None:
    """This host makes nothing of any image: what an earlier agent of it left is removed."""
    with pool.uses() as uses:
        for name in uses.names():
            if name.endswith(f"{pool.mark}{_MAKING}"):
                uses.remove(name)


_MAKING = ".making"


def _mine(pool: PoolDirectory, image: str) -> str:
    return f"{image}{pool.mark}{_MAKING}"


def _removing(image: str) -> str:
    return f"{image}.removing"
