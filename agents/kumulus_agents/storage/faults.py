"""What the operating system says of a pool, in the words of this boundary. Must not decide what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from kumulus_agents.storage.protocol import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, doing: str) -> StorageError:
    """The error as users see it. `doing` completes "Could not ..."; no path of the host is told."""
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageError(
            f"Could not {doing}: the pool is full. Free space in it or choose another pool.", reason="NoSpace"
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return StorageError(
            f"Could not {doing}: a part of the pool's path is a symbolic link or no directory."
            " Use a path of plain directories.",
            reason="PoolUnsafe",
            retryable=False,
        )
    if error.errno == errno.EROFS:
        return StorageError(f"Could not {doing}: the pool is mounted read-only.", reason="PoolReadOnly")
    return StorageError(f"Could not {doing}: {why}.", reason="PoolFailed")


@contextmanager
def told_as(doing: str) -> Iterator[None]:
    """Raise `StorageError` for the `OSError` of what is inside, chained."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing) from error
