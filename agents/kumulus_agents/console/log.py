"""Reads the end of a serial console's log, as virtlogd keeps it: `NAME`, then `NAME.0`, `NAME.1`, ... older ones.

A guest decides what is in the log, so nothing here interprets it; and an agent that is root must not
be led elsewhere, so no link is followed and nothing but plain files is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

LIMIT = 1 << 20
"""Bytes; more is never read, whatever is asked."""

OLDER_MOST = 16
"""Rotated files that are looked at; virtlogd keeps 3 unless told otherwise."""

CONTINUATION = range(0x80, 0xC0)
"""Bytes that cannot begin a character of UTF-8."""


def tail(directory: Path, name: str, limit: int) -> str:
    """The last `limit` bytes of the log `name` in the instance's own `directory`, as text.

    Goes back over rotated files as far as needed. Bytes that are no UTF-8 become U+FFFD; a character that
    the limit cuts is left out. No log yet: the empty string. Raises `OSError` when the directory or a log is
    not what it should be (a link, a device, no permission), `ValueError` when `name` is no plain file name.
    Blocks; at most `LIMIT` bytes are read.
    """
    if name in ("", ".", "..") or "/" in name:
        raise ValueError("the name of a log must be a plain file name")
    wanted = min(limit, LIMIT)
    pieces: list[bytes] = []
    seen: set[tuple[int, int]] = set()
    with contextlib.ExitStack() as stack:
        try:
            parent = _open(directory, os.O_DIRECTORY)
        except FileNotFoundError:
            return ""
        stack.callback(os.close, parent)
        for file in (name, *(f"{name}.{number}" for number in range(OLDER_MOST))):
            if wanted <= 0:
                break
            piece = _end(parent, file, wanted, seen)
            if piece is None and file != name:
                break
            pieces.append(piece or b"")
            wanted -= len(pieces[-1])
    return _text(b"".join(reversed(pieces)), cut=wanted <= 0)


def _end(parent: int, name: str, wanted: int, seen: set[tuple[int, int]]) -> bytes | None:
    """The last bytes of a file; None if there is none, nothing if it was `seen` under another name.

    (When virtlogd rotates while we look, what was `NAME` a moment ago is `NAME.0` now.)
    """
    try:
        file = _open(name, os.O_NONBLOCK, parent=parent)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", name)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return b""
        seen.add(identity)
        return os.pread(file, wanted, max(0, status.st_size - wanted))
    finally:
        os.close(file)


def _open(path: Path | str, flags: int, *, parent: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)


def _text(data: bytes, *, cut: bool) -> str:
    if cut:
        begin = next((at for at, byte in enumerate(data[:4]) if byte not in CONTINUATION), 0)
        data = data[begin:]
    return data.decode("utf-8", errors="replace")
