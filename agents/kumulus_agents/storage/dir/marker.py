"""A file in a pool's directory that says which pool it is: an empty directory where a file system should be mounted has none.

Written when a host meets a pool for the first time, and demanded from then on. Blocks.
"""

from __future__ import annotations

import errno

from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.protocol import StorageError

NAME = ".kumulus-pool"


def put(pool: Directory, uid: str) -> bool:
    """Make it this pool's directory, whatever pool was there before it; False when there is no room for that now."""
    if _read(pool) != uid:
        try:
            pool.write(NAME, uid.encode())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise
    return True


def demand(pool: Directory, uid: str, name: str) -> None:
    """Raises `StorageError(reason="PoolNotThere")` when it is not this pool's directory."""
    if _read(pool) != uid:
        raise not_there(name)


def not_there(name: str) -> StorageError:
    """The error of a pool whose directory is not what it was."""
    return StorageError(
        f"The directory of the pool {name} is not the one that this host had: most likely its file system is not"
        f" mounted. Mount it. If its data is lost, delete the pool's volumes and machines, or put the file {NAME} with"
        " the pool's uid into the directory.",
        reason="PoolNotThere",
    )


def _read(pool: Directory) -> str:
    return (pool.read(NAME, 64) or b"").decode(errors="replace").strip()
