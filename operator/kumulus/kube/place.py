"""Proof that a process is dead, for whoever comes after it on the same machine: a file that is locked while one lives.

The kernel takes a lock of `flock(2)` away when the last descriptor of the opened file is closed: at the end of a
process, however it ends, and not while it is stopped. Who gets the lock therefore knows that everybody who had it
before, *on the same file of the same kernel*, is gone. Which file of which kernel that is says the name of the place:
boot id, device and inode number, none of which is used again while anybody has the file open. Two machines never
have a place in common, even if they share the file. Says nothing of who may lead; see `election`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})
"""Where a lock is the kernel's own. A server that keeps it (NFS, SMB, Ceph, FUSE) may forget it while we live."""


class Place:
    """One file that may be locked by one process at a time. Not to be used by two threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._complained = False
        self.name: str | None = None
        """The name of the place while it is ours; None while it is not."""

    def take(self) -> bool:
        """Whether the place is ours, from now on until `leave` or our end. Makes the file; may be repeated.

        Where no proof is to be had (another file system, no directory) it never is, and the log says why, once.
        """
        if self.name is not None:
            return True
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self.name = self._locked(self._file)
        except (OSError, ValueError) as error:
            if not self._complained:
                log.warning("no proof to a successor", lock_file=str(self._path), error=str(error))
            self._complained = True
        finally:
            if self.name is None:
                self.leave()
        return self.name is not None

    def leave(self) -> None:
        """Let somebody else have it. Only when nothing is done any more in the name of who had it."""
        self.name = None
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    @staticmethod
    def _locked(file: int) -> str | None:
        """The name of the place of an open file that is locked now; None when somebody else has it. Raises OSError."""
        if (kind := _file_system(file)) not in _LOCAL:
            raise OSError(f"a lock on {kind or 'an unknown file system'} proves nothing; use a local file system")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        found = os.fstat(file)
        return f"{_BOOT_ID.read_text().strip()}:{found.st_dev:x}:{found.st_ino:x}"


def _file_system(file: int) -> str | None:
    """The type of file system that an open file is on (proc_pid_mountinfo(5)); None when it is not to be found."""
    info = dict(
        line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{file}").read_text().splitlines() if ":" in line
    )
    mount = info.get("mnt_id", "").strip()
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        head, _, tail = line.partition(" - ")
        if head.split(" ", 1)[0] == mount:
            return tail.split(" ", 1)[0]
    return None
