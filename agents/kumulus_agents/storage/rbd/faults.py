"""How Ceph's programs end, in the words of this boundary. Pure."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

from kumulus_agents.storage.protocol import StorageError

STALLED = "PoolStalled"
_NUMBER = re.compile(r"^error .*: \((\d+)\) ", re.MULTILINE)


class NotThere(StorageError):
    """There is no such image, snapshot or key; the pool itself is there."""

    def __init__(self) -> None:
        super().__init__("It is not in the Ceph pool.", reason="NotThere")


class AlreadyThere(StorageError):
    """There is one of that name."""

    def __init__(self) -> None:
        super().__init__("There is one of that name in the Ceph pool already.", reason="AlreadyThere")


class Busy(StorageError):
    """Somebody has it open, or stands on it."""

    def __init__(self) -> None:
        super().__init__("It is in use in the Ceph pool.", reason="Busy")


class Crashed(StorageError):
    """The program was ended by a signal that nobody sent."""

    def __init__(self, pool: str, signal: int) -> None:
        super().__init__(
            f"A command on the Ceph pool of {pool} crashed (signal {signal}). It is tried again.", reason="PoolFailed"
        )


Judge = Callable[[int, str, str, str], StorageError | None]
"""From status, standard error, names of the StoragePool and of the Ceph pool: the error, or None when it was done."""


def stalled(pool: str, seconds: float) -> StorageError:
    """The cluster does not answer."""
    return StorageError(
        f"The Ceph cluster of the pool {pool} did not answer within {seconds:.0f} s. Look at `ceph status`, and whether"
        " this host reaches its monitors and OSDs. It is tried again.",
        reason=STALLED,
    )


def forbidden(pool: str, ceph_pool: str) -> StorageError:
    """The cluster does not know the user, or does not let it."""
    return StorageError(
        f"The Ceph cluster does not let the user of the pool {pool} do this. Give it the capabilities mon `profile rbd`"
        f" and osd `profile rbd pool={ceph_pool}`, and put its key into the pool's Secret.",
        reason="PoolForbidden",
    )


def unknown_key(errors: str) -> bool:
    """Whether a program that does not end says that it is not let in: it tries all addresses again and again."""
    return "handle_auth_bad_method" in errors


def judged(status: int, errors: str, pool: str, ceph_pool: str) -> StorageError | None:
    """The error for a program that ended with that status, which is an error number; None when it was done."""
    if status == 0:
        return None
    if status < 0:
        return Crashed(pool, -status)
    if "error opening pool" in errors or "error opening default pool" in errors:
        if status == errno.ENOENT:
            return StorageError(
                f"The Ceph cluster has no pool {ceph_pool}. Create it (`ceph osd pool create`, `rbd pool init`), or"
                f" correct the StoragePool {pool}.",
                reason="PoolMissing",
            )
    elif status == errno.ENOENT:
        return NotThere()
    if status in (errno.EPERM, errno.EACCES):
        return forbidden(pool, ceph_pool)
    if status == errno.EEXIST:
        return AlreadyThere()
    if status in (errno.EBUSY, errno.ENOTEMPTY):
        return Busy()
    if status in (errno.ENOSPC, errno.EDQUOT):
        return _full(pool)
    if status == errno.ETIMEDOUT:
        return StorageError(
            f"The Ceph cluster of the pool {pool} does not answer. Look at `ceph status`, and whether this host reaches"
            " its monitors. It is tried again.",
            reason=STALLED,
        )
    return StorageError(f"A command on the Ceph pool of {pool} ended with status {status}.", reason="PoolFailed")


def judged_copy(status: int, errors: str, pool: str, ceph_pool: str) -> StorageError | None:
    """The same for qemu-img, whose status says nothing."""
    if status == 0:
        return None
    if "No space left on device" in errors or "Disk quota exceeded" in errors:
        return _full(pool)
    if "Unknown driver 'rbd'" in errors or "Unknown protocol" in errors:
        return StorageError(
            "QEMU on this host cannot use Ceph. Install its block driver for rbd there (qemu-block-extra).",
            reason="DriverUnsupported",
        )
    return StorageError(
        f"Could not copy data in the Ceph pool {ceph_pool} of {pool}: qemu-img ended with status {status}.",
        reason="PoolFailed",
    )


def judged_rados(status: int, errors: str, pool: str, ceph_pool: str) -> StorageError | None:
    """The same for rados, which ends with 1 and writes the error number: `error getting POOL/OBJECT: (2) No such file`."""
    if status == 0:
        return None
    if status == 1 and (said := _NUMBER.search(errors)) is not None:
        number = errno.ENOENT if (found := int(said[1])) == errno.ENODATA else found
        return judged(number, errors, pool, ceph_pool)
    return judged(status, errors, pool, ceph_pool)


def _full(pool: str) -> StorageError:
    return StorageError(
        f"The Ceph pool of {pool} is full. Free space in it, raise its quota or choose another pool.", reason="NoSpace"
    )
