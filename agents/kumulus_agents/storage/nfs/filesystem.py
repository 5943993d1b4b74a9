"""A file system in userspace that is an NFS export, for hosts whose kernel has no NFS client.

Run as a program (`python -m kumulus_agents.storage.nfs.filesystem SERVER EXPORT MOUNTPOINT`) it mounts
and serves until it is unmounted. It is a process of its own and outlives the agent, because guests have
their disks on it. It keeps no content and no attributes: what another host has changed is seen at once.

It has no locks of its own, so the kernel's are used, which hold on this host only.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from kumulus_agents.storage.nfs.libnfs import Connection, File

os.environ["FUSE_LIBRARY_PATH"] = "libfuse3.so.3"
import mfusepy

CONNECTIONS = 4
"""A disk's requests go one after the other over one of them."""

TYPE = "fuse.kumulus-nfs"
"""Type of the mount."""


class Export(mfusepy.Operations):  # type: ignore[misc]
    """The export as libfuse asks for it. Called from many threads."""

    use_ns = True

    def __init__(self, server: str, export: str) -> None:
        self._connections = [Connection(server, export) for _ in range(CONNECTIONS)]
        self._turn = itertools.count()
        self._numbers = itertools.count(1)
        self._files: dict[int, File] = {}

    def _one(self) -> Connection:
        """A connection that is not busy, if there is one."""
        for connection in self._connections:
            if not connection.lock.locked():
                return connection
        return self._next()

    def _next(self) -> Connection:
        return self._connections[next(self._turn) % CONNECTIONS]

    def _opened(self, file: File) -> int:
        number = next(self._numbers)
        self._files[number] = file
        return number

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = self._one().stat(path)
        return {
            **{f"st_{name}": getattr(found, name) for name in ("mode", "nlink", "uid", "gid", "size", "blksize")},
            "st_ino": found.ino,
            "st_blocks": -(-found.used // 512),
            **{
                f"st_{name}": getattr(found, name) * 10**9 + getattr(found, f"{name}_nsec")
                for name in ("atime", "mtime", "ctime")
            },
        }

    def statfs(self, path: str) -> dict[str, int]:
        found = self._one().room()
        return {
            "f_bsize": found.bsize,
            "f_frsize": found.frsize,
            "f_blocks": found.blocks,
            "f_bfree": found.bfree,
            "f_bavail": found.bavail,
            "f_files": found.files,
            "f_ffree": found.ffree,
            "f_favail": found.favail,
            "f_namemax": found.namemax or 255,
        }

    def open(self, path: str, flags: int) -> int:
        connection = self._next()
        if flags & os.O_TRUNC:  # libfuse has the kernel leave it to us (FUSE_CAP_ATOMIC_O_TRUNC)
            connection.truncate(path, 0)
        return self._opened(connection.open(path, flags))

    def create(self, path: str, mode: int, flags: int) -> int:
        return self._opened(self._next().create(path, flags, mode & 0o7777))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        file = self._files[fh]
        return file.connection.read(file, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        file = self._files[fh]
        return file.connection.write(file, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        file = self._files[fh]
        file.connection.fsync(file)
        return 0

    def release(self, path: str, fh: int) -> int:
        file = self._files.pop(fh)
        file.connection.close(file)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0  # a server has written names out before it answers (RFC 1813, 1.6)

    def readdir(self, path: str, fh: int) -> list[str]:
        return self._one().names(path)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._one().truncate(path, length)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._one().mkdir(path, mode & 0o7777)
        return 0

    def rmdir(self, path: str) -> int:
        self._one().rmdir(path)
        return 0

    def unlink(self, path: str) -> int:
        self._one().unlink(path)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        if flags:
            raise mfusepy.FuseOSError(errno.EINVAL)
        self._one().rename(old, new)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._one().chmod(path, mode & 0o7777)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._one().chown(path, uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int]) -> int:
        self._one().touch(path, times[0] / 1e9, times[1] / 1e9)
        return 0


def _end_when_asked(mountpoint: str) -> None:
    """SIGTERM ends it whatever it waits for: who waits for a server that is gone would never come to look at a signal.
    What was not answered was promised to nobody."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for all threads, libfuse's too

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        try:
            subprocess.run(["/usr/bin/umount", "-l", "-i", "-c", "--", mountpoint], check=False, env={}, timeout=10)
        finally:
            os._exit(0)

    threading.Thread(target=wait, name="end", daemon=True).start()


def main(server: str, export: str, mountpoint: str) -> None:
    """Mount and serve. Returns when it is unmounted; SIGTERM unmounts it, and ends what uses it still with an error."""
    _end_when_asked(mountpoint)
    mfusepy.FUSE(
        Export(server, export),
        mountpoint,
        foreground=True,
        allow_other=True,
        default_permissions=True,
        nosuid=True,
        nodev=True,
        noexec=True,
        fsname=f"{server}:{export}",
        subtype=TYPE.removeprefix("fuse."),
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
