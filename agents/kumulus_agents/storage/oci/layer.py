"""A container's layer that is a containerDisk: a tar archive with exactly one file below disk/.

Nothing is made by the names in it, so they can do no harm; what they would do elsewhere is refused all
the same. Runs in the cage (`unpacker`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator

from kumulus_agents.storage.rejection import Rejected, TooLarge

_READ = 1 << 20
_BUFFER = 64 << 10
_HEADER = 1 << 20
"""Bytes that what comes before a file may have: its header, and long names and attributes."""
_ENTRIES = 4096
_DIRECTORY = "disk"


class _Stream:
    """What tarfile reads from: pieces in a row, no more than `limit` bytes of them, and `budget` of those for now."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces = pieces
        self._left = limit
        self._waiting = memoryview(b"")
        self.budget: int | None = None

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        out: list[bytes] = []
        while size > 0:
            if not self._waiting:
                found = next((piece for piece in self._pieces if piece), b"")
                if not found:
                    break
                self._waiting = memoryview(found)
            taken, self._waiting = self._waiting[:size], self._waiting[size:]
            size -= len(taken)
            self._count(len(taken))
            out.append(bytes(taken))
        return b"".join(out)

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise Rejected("is a container's layer with a header that is too large")


def unpack(pieces: Iterator[bytes], add: Callable[[bytes], None], limit: int) -> None:
    """Add what the one file below disk/ has. Bounded by `limit` bytes of the archive, files elsewhere included.

    Raises `Rejected` when there is no such file, are several, or something else than a file below disk/,
    and for what no archive needs; `TooLarge`, and what `add` does.
    """
    stream = _Stream(pieces, limit)
    found = False
    entries = 0
    stream.budget = _HEADER  # opening reads the first header
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER) as archive:  # type: ignore[call-overload]
            while True:
                stream.budget = _HEADER
                entry = archive.next()
                stream.budget = None
                if entry is None:
                    break
                archive.members.clear()  # it would keep them all
                entries += 1
                if entries > _ENTRIES:
                    raise Rejected(f"is a container's layer with more than {_ENTRIES} entries")
                wanted = _is_disk(entry)
                if wanted and found:
                    raise Rejected("is a container's layer with several files below disk/")
                if entry.isreg():
                    _read(archive, entry, add if wanted else _forget)
                found = found or wanted
    except tarfile.TarError:
        raise Rejected("is a container's layer, but no tar archive in order") from None
    if not found:
        raise Rejected("is a container's layer without a file below disk/")


def _is_disk(entry: tarfile.TarInfo) -> bool:
    """Whether it is the file, or may become one of several."""
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Rejected("is a container's layer with a name that leads out of it")
    if entry.issparse() or entry.type == tarfile.GNUTYPE_SPARSE:
        raise Rejected("is a container's layer with a sparse file")
    if parts[:1] != [_DIRECTORY]:
        return False
    if entry.isdir():
        if len(parts) > 1:
            raise Rejected("is a container's layer with a directory below disk/")
        return False
    if not entry.isreg() or len(parts) != 2:
        raise Rejected("is a container's layer with something else than a file below disk/")
    return True


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo, add: Callable[[bytes], None]) -> None:
    content = archive.extractfile(entry)
    left = entry.size
    while content is not None and left > 0:
        data = content.read(min(_READ, left))
        if not data:
            raise Rejected("is cut off: its container's layer ends too early")
        add(data)
        left -= len(data)


def _forget(data: bytes) -> None:
    """A file elsewhere."""
