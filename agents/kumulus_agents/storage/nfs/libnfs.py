"""Calls of libnfs, the NFS client that needs no kernel: NFSv3, synchronous, one call at a time on a connection.

Structures and prototypes are those of nfsc/libnfs.h, versions 4 and 5 (libnfs.so.13 and .14); version 6
changed the order of arguments and is not loaded. A server that does not answer is waited for, as by a
hard mount: a guest's write ends when it is done, and never in an error that it would believe.

Every file is opened for synchronous writing: libnfs does not look at the verifier by which a server says
that it was restarted and lost what it had only promised (RFC 1813, 4.8), so nothing is ever left unwritten.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint64, c_void_p
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


_PROTOTYPES = {
    "init_context": (c_void_p, ()),
    "destroy_context": (None, (c_void_p,)),
    "get_error": (c_char_p, (c_void_p,)),
    "set_autoreconnect": (None, (c_void_p, c_int)),
    "set_timeout": (None, (c_void_p, c_int)),
    "set_dircache": (None, (c_void_p, c_int)),
    "set_version": (c_int, (c_void_p, c_int)),
    "mount": (c_int, (c_void_p, c_char_p, c_char_p)),
    "lstat64": (c_int, (c_void_p, c_char_p, POINTER(Stat))),
    "statvfs64": (c_int, (c_void_p, c_char_p, POINTER(Room))),
    "open2": (c_int, (c_void_p, c_char_p, c_int, c_int, POINTER(c_void_p))),
    "create": (c_int, (c_void_p, c_char_p, c_int, c_int, POINTER(c_void_p))),
    "close": (c_int, (c_void_p, c_void_p)),
    "pread": (c_int, (c_void_p, c_void_p, c_uint64, c_uint64, c_void_p)),
    "pwrite": (c_int, (c_void_p, c_void_p, c_uint64, c_uint64, c_char_p)),
    "fsync": (c_int, (c_void_p, c_void_p)),
    "truncate": (c_int, (c_void_p, c_char_p, c_uint64)),
    "mkdir2": (c_int, (c_void_p, c_char_p, c_int)),
    "rmdir": (c_int, (c_void_p, c_char_p)),
    "unlink": (c_int, (c_void_p, c_char_p)),
    "rename": (c_int, (c_void_p, c_char_p, c_char_p)),
    "chmod": (c_int, (c_void_p, c_char_p, c_int)),
    "lchown": (c_int, (c_void_p, c_char_p, c_int, c_int)),
    "utimes": (c_int, (c_void_p, c_char_p, POINTER(_Time))),
    "opendir": (c_int, (c_void_p, c_char_p, POINTER(c_void_p))),
    "readdir": (POINTER(_Entry), (c_void_p, c_void_p)),
    "closedir": (None, (c_void_p, c_void_p)),
}


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
        return library
    raise OSError(f"there is none of {', '.join(LIBRARIES)}")


class File:
    """An open file, on the connection it was opened on."""

    __slots__ = ("connection", "handle")

    def __init__(self, connection: Connection, handle: int) -> None:
        self.connection = connection
        self.handle = handle


class Connection:
    """One connection to an export. Every method blocks, may wait for the server for ever, and raises `OSError`."""

    def __init__(self, server: str, export: str) -> None:
        self._nfs = _library()
        self.lock = Lock()
        self._context = self._nfs.nfs_init_context()
        if not self._context:
            raise MemoryError
        self._nfs.nfs_set_version(self._context, 3)
        self._nfs.nfs_set_autoreconnect(self._context, -1)
        self._nfs.nfs_set_dircache(self._context, 0)
        self._call("mount", server.encode(), export.encode())

    def stat(self, path: str) -> Stat:
        """What lstat says."""
        found = Stat()
        self._call("lstat64", path.encode(), byref(found))
        return found

    def room(self) -> Room:
        """What statvfs says."""
        found = Room()
        self._call("statvfs64", b"/", byref(found))
        return found

    def open(self, path: str, flags: int) -> File:
        """Open a file that is there."""
        handle = c_void_p()
        # The kernel sees to O_APPEND and O_TRUNC; O_DIRECT and such mean nothing here.
        self._call("open2", path.encode(), flags & os.O_ACCMODE | os.O_SYNC, 0, byref(handle))
        return File(self, handle.value or 0)

    def create(self, path: str, flags: int, mode: int) -> File:
        """Make a file and open it."""
        handle = c_void_p()
        kept = flags & (os.O_ACCMODE | os.O_EXCL) | os.O_CREAT | os.O_SYNC
        self._call("create", path.encode(), kept, mode, byref(handle))
        return File(self, handle.value or 0)

    def close(self, file: File) -> None:
        """Close it; once."""
        self._call("close", file.handle)

    def read(self, file: File, size: int, offset: int) -> bytes:
        """At most so many bytes."""
        buffer = ctypes.create_string_buffer(size)
        got = self._call("pread", file.handle, offset, size, buffer)
        return ctypes.string_at(buffer, got)

    def write(self, file: File, data: bytes, offset: int) -> int:
        """Write; it is on the server's disk afterwards."""
        return self._call("pwrite", file.handle, offset, len(data), data)

    def fsync(self, file: File) -> None:
        """Have the server write out what it has of the file."""
        self._call("fsync", file.handle)

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        handle = c_void_p()
        with self.lock:
            self._check("opendir", self._nfs.nfs_opendir(self._context, path.encode(), byref(handle)))
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

    def _call(self, name: str, *arguments: object) -> int:
        with self.lock:
            return self._check(name, getattr(self._nfs, f"nfs_{name}")(self._context, *arguments))

    def _check(self, name: str, result: int) -> int:
        if result >= 0:
            return result
        text = (self._nfs.nfs_get_error(self._context) or b"").decode(errors="replace")
        raise OSError(-result, f"{name}: {text}")
