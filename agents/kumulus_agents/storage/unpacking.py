"""Unpacks what nobody trusts: bounded in memory, in output and in parts. Pure but for the reads and writes it is given.

Several packed files behind each other are one, as for gzip(1), xz(1), zstd(1) and bzip2(1); anything
else behind them is refused, as is an end before the end. Runs in the cage (`unpacker`).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from kumulus_agents.storage.compressed import LENGTH, MAGIC
from kumulus_agents.storage.oci import layer
from kumulus_agents.storage.rejection import Read, Rejected, TooLarge

_READ = 64 << 10
_MOST = 1 << 20
"""Bytes a decoder is asked for at a time."""
_MEMORY = 256 << 20
"""What a file may ask of a decoder: `xz -9` and `zstd --ultra -22` take half of it."""
_SLICE = 2 << 10
"""Bytes zstd is fed at a time: its output cannot be bounded otherwise, and each may become 32 KiB."""
_PART = 1 << 10
"""Bytes a part takes on average at least, once there are many."""
_HOLE = 64 << 10
_ZEROS = bytes(_HOLE)
_GZIP = 16 + zlib.MAX_WBITS


class NoRoom(Exception):
    """There is more in it than there is room for."""


class Decoder(Protocol):
    """As `bz2.BZ2Decompressor` and `lzma.LZMADecompressor` are: one packed file from its begin to its end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """What comes out next."""

    @property
    def eof(self) -> bool:
        """Whether its end was reached."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out without more going in."""

    @property
    def unused_data(self) -> bytes:
        """What went in behind its end."""


class _Gzip:
    """One member of a gzip file."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


class _Zstd:
    """One frame of a zstd file."""

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=_MEMORY // 2).decompressobj()
        self._waiting = memoryview(b"")

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._waiting = memoryview(bytes(self._waiting) + data)
        out, size = [], 0
        while self._waiting and size < max_length and not self._frame.eof:
            piece, self._waiting = self._waiting[:_SLICE], self._waiting[_SLICE:]
            out.append(self._frame.decompress(piece))
            size += len(out[-1])
        return b"".join(out)

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data) + bytes(self._waiting)


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _Gzip,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY),
    "zstd": _Zstd,
    "bzip2": bz2.BZ2Decompressor,
}
_PADDED = frozenset({"gzip", "xz"})
"""Those behind which zeros are nothing."""


class Sparse:
    """Writes what it is given behind each other, zeros as holes: no more than `limit` bytes, and `room` without holes."""

    def __init__(self, write: Callable[[memoryview, int], int], limit: int, room: int) -> None:
        self._write = write
        self.limit = limit
        self._room = room
        self.size = 0
        self.taken = 0
        """Bytes that were written, holes not counted."""

    def add(self, data: bytes) -> None:
        """Raises `TooLarge`, `NoRoom`, and what the write does."""
        if self.size + len(data) > self.limit:
            raise TooLarge
        view = memoryview(data)
        while view:
            length = _HOLE - self.size % _HOLE
            piece, view = view[:length], view[length:]
            if piece != _ZEROS[: len(piece)]:
                self.taken += len(piece)
                if self.taken > self._room:
                    raise NoRoom
                self._all(piece)
            self.size += len(piece)

    def _all(self, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            done += self._write(piece[done:], self.size + done)


def unpack(read: Read, packing: str, target: Sparse, tick: Callable[[int], None]) -> None:
    """Unpack all of it into the target. `tick` is told how far it has read, often.

    `packing` is a compression, or that of a container's layer: `tar`, `tar+gzip`, `tar+zstd`; of that it is the one file
    below disk/. Raises `Rejected`, `TooLarge`, `NoRoom`, `MemoryError`, and what reading and writing do.
    """
    if packing == "tar" or packing.startswith("tar+"):
        compression = packing.removeprefix("tar").removeprefix("+")
        pieces = decoded(read, compression, tick) if compression else _stored(read, tick)
        layer.unpack(pieces, target.add, target.limit)
        return
    for piece in decoded(read, packing, tick):
        target.add(piece)


def _stored(read: Read, tick: Callable[[int], None]) -> Iterator[bytes]:
    """What is not packed at all."""
    at = 0
    while piece := read(at, _READ):
        at += len(piece)
        yield piece
        tick(at)


def decoded(read: Read, compression: str, tick: Callable[[int], None]) -> Iterator[bytes]:
    """What is packed, piece by piece, each of about `_MOST` bytes at most. Raises `Rejected`, `MemoryError`."""
    at = parts = 0
    waiting = b""
    while True:
        if not waiting:
            waiting = read(at, _READ)
            at += len(waiting)
            if not waiting and parts:
                return
        if parts and compression in _PADDED:
            waiting = waiting.lstrip(b"\0")
            if not waiting:
                continue
        _begins(read, at - len(waiting), compression, parts)
        parts += 1
        if parts > 1 << 10 and parts > at // _PART:
            raise Rejected(f"has {parts} parts in {at} bytes")
        decoder = _DECODERS[compression]()
        while not decoder.eof:
            if not waiting and decoder.needs_input:
                waiting = read(at, _READ)
                at += len(waiting)
                if not waiting:
                    raise Rejected(f"is cut off: its {compression} data ends too early")
            yield _decoded(decoder, compression, waiting)
            waiting = b""
            tick(at)
        waiting = decoder.unused_data


def _begins(read: Read, at: int, compression: str, parts: int) -> None:
    head = read(at, LENGTH)
    if head.startswith(MAGIC[compression]):
        return
    if compression == "zstd" and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return  # a frame that is skipped (RFC 8878, 3.1.2)
    if parts:
        raise Rejected(f"has something behind its {compression} data")
    raise Rejected(f"is not compressed with {compression} as was said")


def _decoded(decoder: Decoder, compression: str, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, _MOST)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError) as error:
        if "emory" in str(error):
            raise MemoryError from error
        raise Rejected(f"is damaged: its {compression} data cannot be unpacked") from error
