"""Files below a directory, reached without following a symbolic link.

A `Directory` is an open directory; what is in it is named by one component. Nothing is looked up by
a path twice, so what was checked is what is used (the races of CVE-2026-7374 and CVE-2025-64433 have
no room). Files appear whole: they are written under another name, flushed, and renamed.

All calls block; callers on an event loop use a thread. Errors are `OSError`; a link where a file or
directory should be is ELOOP or ENOTDIR.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory. A context manager; closes itself once."""

    __slots__ = ("fd", "mark", "path")

    def __init__(self, fd: int, path: PurePosixPath, mark: str = "") -> None:
        self.fd = fd
        self.path = path
        """For people and for programs that need a name. Never opened here."""
        self.mark = mark
        """In the names of unfinished files of `write`, here and below: other hosts have others."""

    @classmethod
    def trusted(cls, path: PurePosixPath, mark: str = "") -> Self:
        """A directory an administrator named: links above and in it are theirs and are followed."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path, mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def directory(self, name: str, *, make: bool = False, mode: int = 0o700, gid: int = -1) -> Directory:
        """The directory of that name. With `make` it is made when missing, and gets mode and group either way.

        With `make`, one that belongs to another user is EPERM.
        """
        _component(name)
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.fd)
        fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        try:
            if make:
                _own(fd, mode, gid)
        except BaseException:
            os.close(fd)
            raise
        return Directory(fd, self.path / name, self.mark)

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """Open a regular file; the caller closes the descriptor. Anything but a regular file is ELOOP."""
        _component(name)
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=self.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, "not a regular file", name)
        return fd

    @contextmanager
    def reading(self, name: str) -> Iterator[int]:
        """A descriptor to read the file, closed at the end."""
        fd = self.open(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def fresh(self, name: str, mode: int = 0o600) -> int:
        """A new, empty file of that name, whatever was there before; the caller closes the descriptor."""
        self.remove(name)
        return self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, name: str, limit: int = 1 << 20) -> bytes | None:
        """The file's content, at most `limit` bytes; None when there is none."""
        try:
            with self.reading(name) as fd:
                return os.pread(fd, limit, 0)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, *, flush: bool = True) -> None:
        """Make the file have this content, all at once, mode 0600.

        Without `flush` the name may be lost in a crash of the machine, until the directory is flushed.
        """
        temporary = self._unfinished(name)
        fd = self.fresh(temporary)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                self.settle(fd, temporary, name, flush=flush)
            finally:
                os.close(fd)
        except BaseException:
            self.remove(temporary)
            raise

    def settle(
        self,
        fd: int,
        temporary: str,
        name: str,
        *,
        mode: int = 0o600,
        gid: int = -1,
        into: Directory | None = None,
        flush: bool = True,
    ) -> None:
        """Flush the file that `fd` has open and give it its name, here or in another directory, mode and group."""
        into = into or self
        _own(fd, mode, gid)
        os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=into.fd)
        if flush:
            into.flush()

    def flush(self) -> None:
        """Make names that were added or removed outlive a crash."""
        os.fsync(self.fd)

    def exists(self, name: str) -> bool:
        """Whether there is a regular file of that name."""
        try:
            return stat.S_ISREG(os.stat(_component(name), dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> bool:
        """Remove the file, or the link itself; False when there was none."""
        try:
            os.unlink(_component(name), dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def erase(self, name: str) -> None:
        """Remove the file, and what a `write` that was killed left of it."""
        self.remove(name)
        self.remove(self._unfinished(name))

    def remove_directory(self, name: str) -> None:
        """Remove the directory if it is there; it must be empty."""
        with suppress(FileNotFoundError):
            os.rmdir(_component(name), dir_fd=self.fd)

    def _unfinished(self, name: str) -> str:
        return f".{name}{self.mark}.new"

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self.fd)  # noqa: PTH208


def _component(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(name) > 255:
        raise OSError(errno.EINVAL, "not the name of a file", name)
    return name


def _own(fd: int, mode: int, gid: int) -> None:
    """Give what is open the mode and the group (-1: leave it). It must belong to this process' user."""
    now = os.fstat(fd)
    if now.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "belongs to another user")
    if gid >= 0 and now.st_gid != gid:
        os.fchown(fd, -1, gid)
    if stat.S_IMODE(now.st_mode) != mode:
        os.fchmod(fd, mode)
