"""`python -m tests.bench.event_receiver PORT FILE`: takes events as fast as can be, and notes each one's id and moment.

A line an event: seconds of the monotonic clock, a space, the id. Checks nothing: that is for tests.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import IO, cast

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb'"id":"([^"]+)"')
_TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
_ALLOWED = b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: *\r\nContent-Length: 0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self, notes: IO[str]) -> None:
        self._notes = notes
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of uvloop, whose transports are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end])
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(self._data) < end + 4 + length:
                return
            body = bytes(self._data[end + 4 : end + 4 + length])
            del self._data[: end + 4 + length]
            if head.startswith(b"OPTIONS"):
                self._transport.write(_ALLOWED)
                continue
            identity = _ID.search(body)
            assert identity is not None
            self._notes.write(f"{time.monotonic()} {identity[1].decode()}\n")
            self._transport.write(_TAKEN)


async def _serve(port: int, path: Path) -> None:
    with path.open("w") as notes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(notes), "127.0.0.1", port)
        async with server:
            while True:
                await asyncio.sleep(0.1)
                notes.flush()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
