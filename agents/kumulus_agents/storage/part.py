"""The bytes of a source that have arrived, with their running digest.

A part outlives the process: opened again, its digest is made from the file. Beside it lies what the
server said of the version it is from (RFC 9110: an entity tag or a date), for `If-Range`. Nobody
takes a part for an image; it only becomes one after its digest was verified.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time

from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.record import read_record, write_record

_CHUNK = 8 << 20
COMPLETE = "complete"
"""In place of a version: the part is all there, and was verified."""
_DOING = "keep what was downloaded"


class Part:
    """A partial download. One writer at a time, also across processes (flock). Close it with `close()`."""

    def __init__(self, directory: Directory, name: str, fd: int, claims: Claims) -> None:
        self._claims = claims
        self._directory = directory
        self._name = name
        self._fd = fd
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes it has."""
        self.most = 0
        """Bytes it ever had; grows only when something new arrives."""
        self.resumed = False
        """Whether bytes of more than one answer of the server are in it."""
        self.url: str | None = None
        self.validator: str | None = None
        """What `If-Range` may be sent with: a strong entity tag or a date."""

    @classmethod
    async def open(cls, directory: Directory, name: str, claims: Claims) -> Part:
        """Open or begin the part of that name. Raises `StorageError(reason="Busy")` when another process has it."""
        with told_as(_DOING):
            fd = await in_thread(directory.open, name, os.O_RDWR | os.O_CREAT)
        part = cls(directory, name, fd, claims)
        try:
            await part._recover()
        except BaseException:
            part.close()
            raise
        return part

    def close(self) -> None:
        """Give it up, keeping what has arrived. Its claim ends."""
        if self._fd >= 0:
            self._claims.drop(self._name)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def digest(self) -> str:
        """SHA-256 of what has arrived, in hexadecimal."""
        return self._hash.hexdigest()

    def claim(self, total: int) -> None:
        """Claim the room that an image of `total` bytes takes. Raises `StorageError(reason="InsufficientCapacity")`."""
        stat = os.fstatvfs(self._fd)
        self._claims.take(self._name, total, lambda: self.size, stat.f_bavail * stat.f_frsize)

    async def append(self, data: bytes) -> None:
        """Add bytes at the end. Raises `StorageError`."""
        with told_as(_DOING):
            await in_thread(self._append, data)

    async def begin(self, url: str, validator: str | None) -> None:
        """Forget all bytes, and remember which version of the source the next ones are from."""
        self.resumed = False
        self.url, self.validator = url, validator
        with told_as(_DOING):
            await in_thread(self._truncate)
            await in_thread(write_record, self._directory, self._record, {"url": url, "validator": validator})

    async def complete(self) -> None:
        """Remember that all of it is there and was verified: `is_complete` says so from now on."""
        self.validator = COMPLETE
        with told_as(_DOING):
            await in_thread(os.fsync, self._fd)
            await in_thread(write_record, self._directory, self._record, {"url": self.url, "validator": COMPLETE})

    async def discard(self) -> None:
        """Remove it from the disk, with its record."""
        with told_as("remove what was downloaded"):
            await in_thread(discard, self._directory, self._name)

    @property
    def _record(self) -> str:
        return _record_of(self._name)

    async def _recover(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError("Another process is importing this image into the pool.", reason="Busy") from None
        with told_as(_DOING):
            while data := await in_thread(os.pread, self._fd, _CHUNK, self.size):
                await in_thread(self._hash.update, data)
                self.size += len(data)
            if self.size:
                record = await in_thread(read_record, self._directory, self._record) or {}
                self.url, self.validator = (_text(record.get(key)) for key in ("url", "validator"))
        self.most = self.size
        self.resumed = self.size > 0

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.size)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]
        self.most = max(self.most, self.size)

    def _truncate(self) -> None:
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.size = 0


def is_complete(directory: Directory, name: str) -> bool:
    """Whether the part of that name is all there, and was verified. Blocks."""
    record = read_record(directory, _record_of(name)) or {}
    return record.get("validator") == COMPLETE and directory.exists(name)


def expire(directory: Directory, name: str, seconds: float) -> bool:
    """Remove the part of that name if nothing was added to it for so long, and nobody has it open. Blocks."""
    try:
        with directory.reading(name) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if time.time() - os.fstat(fd).st_mtime < seconds:
                return False
            discard(directory, name)
    except FileNotFoundError:
        return False
    return True


def discard(directory: Directory, name: str) -> None:
    """Remove the part of that name, if there is one. Blocks."""
    directory.remove(name)
    directory.erase(_record_of(name))


def _record_of(name: str) -> str:
    return f"{name}.json"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
