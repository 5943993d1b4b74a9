"""Calls of libnfs, the NFS client that needs no kernel: NFSv3, one call at a time on a connection.

Structures and prototypes are those of nfsc/libnfs.h, versions 4 and 5 (libnfs.so.13 and .14); version 6
changed the order of arguments and is not loaded. A server that does not answer is waited for, as by a
hard mount: a guest's write ends when it is done, and never in an error that it would believe. While a server
refuses to be connected to, it is asked again with pauses: libnfs's own waiting asks without any, for good.

Every file is opened for synchronous writing: libnfs does not look at the verifier by which a server says
that it was restarted and lost what it had only promised (RFC 1813, 4.8), so nothing is ever left unwritten.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_uint64, c_void_p, cast
from threading import Lock

LIBRARIES = ("libnfs.so.13", "libnfs.so.14")


class Stat(Structure):
    """struct nfs_stat_64."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
        )
    )


class Room(Structure):
    """struct nfs_statvfs_64."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("bsize", "frsize", "blocks", "bfree", "bavail"),
            *("files", "ffree", "favail", "fsid", "flag", "namemax"),
        )
    )


class _Entry(Structure):
    """The beginning of struct nfsdirent."""

    _fields_ = (("next", c_void_p), ("name", c_char_p))


class _Time(Structure):
    """struct timeval."""

    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


_ANSWERED = CFUNCTYPE(None, c_int, c_void_p, c_void_p, c_void_p)
"""typedef void (*nfs_cb)(int err, struct nfs_context *nfs, void *data, void *private_data)"""

_PROTOTYPES = {
    "init_context": (c_void_p, ()),
    "destroy_context": (None, (c_void_p,)),
    "get_error": (c_char_p, (c_void_p,)),
    "set_autoreconnect": (None, (c_void_p, c_int)),
    "set_dircache": (None, (c_void_p, c_int)),
    "set_version": (c_int, (c_void_p, c_int)),
    "get_fd": (c_int, (c_void_p,)),
    "which_events": (c_int, (c_void_p,)),
    "service": (c_int, (c_void_p, c_int)),
    "readdir": (POINTER(_Entry), (c_void_p, c_void_p)),
    "closedir": (None, (c_void_p, c_void_p)),
}

_CALLS = {
    "mount": (c_char_p, c_char_p),
    "lstat64": (c_char_p,),
    "statvfs64": (c_char_p,),
    "open2": (c_char_p, c_int, c_int),
    "create": (c_char_p, c_int, c_int),
    "close": (c_void_p,),
    "pread": (c_void_p, c_uint64, c_uint64),
    "pwrite": (c_void_p, c_uint64, c_uint64, c_char_p),
    "fsync": (c_void_p,),
    "truncate": (c_char_p, c_uint64),
    "mkdir2": (c_char_p, c_int),
    "rmdir": (c_char_p,),
    "unlink": (c_char_p,),
    "rename": (c_char_p, c_char_p),
    "chmod": (c_char_p, c_int),
    "lchown": (c_char_p, c_int, c_int),
    "utimes": (c_char_p, POINTER(_Time)),
    "opendir": (c_char_p,),
}
"""What is asked of a server, `nfs_..._async`: what comes between the context and who is to be told."""

POLL_SECONDS = 0.1
PAUSE_FIRST, PAUSE_MOST = 0.05, 2.0
"""Seconds between attempts to connect to a server that refuses it; doubled from the first to the longest."""


def available() -> bool:
    """Whether there is a library of a version that is known here."""
    try:
        _library()
    except OSError:
        return False
    return True


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for call, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, f"nfs_{call}")
            function.restype, function.argtypes = result, arguments
        for call, between in _CALLS.items():
            function = getattr(library, f"nfs_{call}_async")
            function.restype, function.argtypes = c_int, (c_void_p, *between, _ANSWERED, c_void_p)
        return library
    raise OSError(f"there is none of {', '.join(LIBRARIES)}")


class File:
    """An open file, on the connection it was opened on."""

    __slots__ = ("connection", "handle")

    def __init__(self, connection: Connection, handle: int) -> None:
        self.connection = connection
        self.handle = handle


Take = Callable[[int, int], object]
"""What an answer is: from what the call returned, and the address of its data, which is there only meanwhile."""


def _number(result: int, data: int) -> int:
    return result


def _handle(result: int, data: int) -> int:
    return data


def _bytes(result: int, data: int) -> bytes:
    return ctypes.string_at(data, result) if result else b""


def _stat(result: int, data: int) -> Stat:
    return Stat.from_buffer_copy(cast(data, POINTER(Stat)).contents)


def _room(result: int, data: int) -> Room:
    return Room.from_buffer_copy(cast(data, POINTER(Room)).contents)


class Connection:
    """One connection to an export. Every method blocks, may wait for the server for ever, and raises `OSError`."""

    def __init__(self, server: str, export: str) -> None:
        self._nfs = _library()
        self.lock = Lock()
        self._asked = 0
        self._take: Take = _number
        self._answer: tuple[int, object] | None = None
        self._answered = _ANSWERED(self._hear)
        self._context = self._nfs.nfs_init_context()
        if not self._context:
            raise MemoryError
        self._nfs.nfs_set_version(self._context, 3)
        self._nfs.nfs_set_autoreconnect(self._context, -1)
        self._nfs.nfs_set_dircache(self._context, 0)
        self._call("mount", server.encode(), export.encode())

    def stat(self, path: str) -> Stat:
        """What lstat says."""
        found = self._call("lstat64", path.encode(), take=_stat)
        assert isinstance(found, Stat)
        return found

    def room(self) -> Room:
        """What statvfs says."""
        found = self._call("statvfs64", b"/", take=_room)
        assert isinstance(found, Room)
        return found

    def open(self, path: str, flags: int) -> File:
        """Open a file that is there."""
        # The kernel sees to O_APPEND, the file system to O_TRUNC; O_DIRECT and such mean nothing here.
        return self._opened("open2", path, flags & os.O_ACCMODE | os.O_SYNC, 0)

    def create(self, path: str, flags: int, mode: int) -> File:
        """Make a file and open it."""
        kept = flags & (os.O_ACCMODE | os.O_EXCL) | os.O_CREAT | os.O_SYNC
        return self._opened("create", path, kept, mode)

    def _opened(self, call: str, path: str, flags: int, mode: int) -> File:
        handle = self._call(call, path.encode(), flags, mode, take=_handle)
        assert isinstance(handle, int)
        return File(self, handle)

    def close(self, file: File) -> None:
        """Close it; once."""
        self._call("close", file.handle)

    def read(self, file: File, size: int, offset: int) -> bytes:
        """At most so many bytes."""
        found = self._call("pread", file.handle, offset, size, take=_bytes)
        assert isinstance(found, bytes)
        return found

    def write(self, file: File, data: bytes, offset: int) -> int:
        """Write; it is on the server's disk afterwards."""
        written = self._call("pwrite", file.handle, offset, len(data), data)
        assert isinstance(written, int)
        return written

    def fsync(self, file: File) -> None:
        """Have the server write out what it has of the file."""
        self._call("fsync", file.handle)

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        with self.lock:
            handle = self._ask("opendir", (path.encode(),), _handle)
            try:
                found = []
                while entry := self._nfs.nfs_readdir(self._context, handle):
                    found.append(os.fsdecode(entry.contents.name))
                return found
            finally:
                self._nfs.nfs_closedir(self._context, handle)

    def truncate(self, path: str, size: int) -> None:
        """Make a file so large."""
        self._call("truncate", path.encode(), size)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        self._call("mkdir2", path.encode(), mode)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._call("rmdir", path.encode())

    def unlink(self, path: str) -> None:
        """Remove a file."""
        self._call("unlink", path.encode())

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, whatever was there."""
        self._call("rename", old.encode(), new.encode())

    def chmod(self, path: str, mode: int) -> None:
        """Set the mode."""
        self._call("chmod", path.encode(), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set owner and group; -1 leaves one as it is."""
        self._call("lchown", path.encode(), uid, gid)

    def touch(self, path: str, accessed: float, modified: float) -> None:
        """Set both times."""
        times = (_Time * 2)(*(_Time(int(at), int(at % 1 * 1e6)) for at in (accessed, modified)))
        self._call("utimes", path.encode(), times)

    def _call(self, name: str, *arguments: object, take: Take = _number) -> object:
        with self.lock:
            return self._ask(name, arguments, take)

    def _ask(self, name: str, arguments: tuple[object, ...], take: Take) -> object:
        """Have libnfs ask, and wait for the answer however long that takes."""
        self._asked += 1
        self._answer, self._take = None, take
        call = getattr(self._nfs, f"nfs_{name}_async")
        if call(self._context, *arguments, self._answered, self._asked) != 0:
            raise OSError(errno.EIO, f"{name}: {self._why()}")
        pause = PAUSE_FIRST
        while self._answer is None:
            ready = self._wait()
            if self._nfs.nfs_service(self._context, ready) < 0 and self._answer is None:
                self._asked += 1  # should it be answered after all, nobody listens
                raise OSError(errno.EIO, f"{name}: {self._why()}")
            if ready & (select.POLLERR | select.POLLHUP) and self._answer is None:
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_MOST)
        result, found = self._answer
        if result < 0:
            raise OSError(-result, f"{name}: {self._why()}")
        return found

    def _wait(self) -> int:
        """Until there is something to do, and for a moment at most: for what."""
        socket = self._nfs.nfs_get_fd(self._context)
        if socket < 0:
            time.sleep(POLL_SECONDS)
            return 0
        waiting = select.poll()
        waiting.register(socket, self._nfs.nfs_which_events(self._context))
        ready = waiting.poll(POLL_SECONDS * 1000)
        return ready[0][1] if ready else 0

    def _hear(self, result: int, _context: int | None, data: int | None, asked: int | None) -> None:
        if asked == self._asked:
            self._answer = (result, self._take(result, data or 0) if result >= 0 else None)

    def _why(self) -> str:
        return (self._nfs.nfs_get_error(self._context) or b"").decode(errors="replace")
