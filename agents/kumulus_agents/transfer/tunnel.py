"""Connections between the agents of two hosts by which guests move: TLS, in which each proves which host it is.

Who connects says in one line what for, is answered in one line, and from then on bytes pass as they are. There is no list of
what may be asked for: that is decided by the orders that this host has (docs/adr/0029).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import structlog

from kumulus.api.host import transfer_name
from kumulus_agents.hypervisor.migration import Stream
from kumulus_agents.transfer.identity import peer_of

log = structlog.get_logger(__name__)

HELLO_SECONDS = 10.0
CONNECT_SECONDS = 10.0
LONGEST_LINE = 1 << 10
CONNECTIONS = 64
BACKLOG = 64
BUFFER = 1 << 20
READY = b"ready\n"


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a connection is for."""

    migration: str
    """Uid of the migration."""
    channel: str


@dataclass(frozen=True, slots=True)
class End:
    """Where the agent of a host is reached."""

    host: str
    address: str
    port: int


Serve = Callable[[str, Purpose, Stream], Awaitable[None]]
"""Serves a connection of that host to its end. Raises what it does not serve, before which nothing was answered."""


class Tunnel:
    """One host's port, and its way to the others'."""

    def __init__(self, context: Callable[[], ssl.SSLContext | None]) -> None:
        """`context` gives what to prove ourselves to others by, as it is at the time."""
        self._context = context
        self._serve: Serve | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port: int | None = None
        """Where it listens; None: nowhere."""

    def listen(self, address: str, port: int) -> None:
        """Take the port, without answering yet. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])

    def serve(self, serve: Serve) -> None:
        """What is done with connections."""
        self._serve = serve

    async def use(self, context: ssl.SSLContext) -> None:
        """Answer with that context from the next connection on."""
        if self._socket is None:
            return
        before = self._server
        self._server = await asyncio.start_server(
            self._accept, sock=self._socket.dup(), ssl=context, ssl_handshake_timeout=HELLO_SECONDS, limit=BUFFER
        )
        if before is not None:
            before.close()

    async def connect(self, end: End, purpose: Purpose) -> Stream:
        """A connection to that host for that purpose, which it has agreed to. Raises `OSError`."""
        stream = await self.dial(end)
        await self.begin(stream, end, purpose)
        return stream

    async def dial(self, end: End) -> Stream:
        """A connection to that host, which proves which one it is and for `HELLO_SECONDS` waits to be told what it is for.
        Raises `OSError`."""
        context = self._context()
        if context is None:
            raise ConnectionRefusedError("this host has no certificate yet to prove itself with")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(
                    end.address, end.port, ssl=context, server_hostname=transfer_name(end.host), limit=BUFFER
                )
        except TimeoutError as error:
            raise ConnectionError(f"host {end.host} does not answer at {end.address} port {end.port}") from error
        except ssl.SSLError as error:
            raise ConnectionError(f"host {end.host} did not prove itself, or does not take us for one") from error

    async def begin(self, stream: Stream, end: End, purpose: Purpose, more: bytes = b"") -> None:
        """Say what a connection is for, with what comes right after that, and have it agreed to; else it is closed. Raises
        `OSError`."""
        reader, writer = stream
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                writer.write(json.dumps(asdict(purpose)).encode() + b"\n" + more)
                await writer.drain()
                if await reader.readline() != READY:
                    raise ConnectionError(f"host {end.host} does not expect this guest")
        except BaseException as error:
            writer.close()
            if isinstance(error, TimeoutError | ValueError | ssl.SSLError):
                raise ConnectionError(f"host {end.host} does not answer") from error
            raise

    async def close(self) -> None:
        """Give up the port, and every connection that came there."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._socket = self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS or self._serve is None:
            writer.close()
            return
        self._open.add(task)
        peer = peer_of(writer.get_extra_info("peercert"))
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                purpose = purpose_of(await reader.readline())
            if peer is not None and purpose is not None:
                await self._serve(peer, purpose, (reader, writer))
        except Exception as error:
            log.warning("a connection by which a guest moves has ended", peer=peer, error=str(error))
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()


def purpose_of(line: bytes) -> Purpose | None:
    """What a connection is for, as its first line says; None when that is none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or said.keys() != {"migration", "channel"}:
        return None
    if not all(isinstance(value, str) for value in said.values()):
        return None
    return Purpose(said["migration"], said["channel"])
