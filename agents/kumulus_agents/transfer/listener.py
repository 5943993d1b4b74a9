"""A TLS port: one request a connection, deadlines for everything, certificates that change while it is open."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
"""From the end of the handshake to the end of the request's head."""
LINGER_SECONDS = 2.0
"""What still comes after an answer is read for so long, so that who sends it gets to read the answer."""
BACKLOG = 128

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Refusal(asyncio.Protocol):
    """Too many connections are open: this one is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Listener:
    """One port. It takes connections from when it is first given a context."""

    def __init__(self, handler: Handler, *, connections: int) -> None:
        self._handler = handler
        self._most = connections
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._requests: web.Server | None = None
        self._waiting: dict[object, asyncio.TimerHandle] = {}

    def open(self, address: str, port: int) -> int:
        """Take the port, without answering yet; returns it. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        return int(self._socket.getsockname()[1])

    async def use(self, context: ssl.SSLContext) -> None:
        """Answer with that context from the next connection on; those that are open go on with theirs."""
        if self._socket is None:
            return
        if self._requests is None:
            self._requests = web.Server(self._handle, access_log=None, lingering_time=LINGER_SECONDS)
        before = self._server
        # Another descriptor of the same socket: nobody who connects meanwhile is turned away.
        self._server = await asyncio.get_running_loop().create_server(
            self._connection,
            sock=self._socket.dup(),
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=1.0,
            backlog=BACKLOG,
        )
        if before is not None:
            before.close()

    async def close(self) -> None:
        """Give up the port; whoever is being answered is cut off."""
        if self._server is not None:
            self._server.close()
        if self._requests is not None:
            for protocol in self._requests.connections:
                if protocol.transport is not None:
                    protocol.transport.abort()
            await self._requests.shutdown(0.1)
            await asyncio.sleep(0)  # what was cut off is told so
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._server = self._requests = None

    def _connection(self) -> asyncio.Protocol:
        assert self._requests is not None
        if len(self._requests.connections) >= self._most:
            return _Refusal()
        protocol = self._requests()
        loop = asyncio.get_running_loop()

        def too_slow() -> None:
            self._waiting.pop(protocol, None)
            protocol.force_close()

        self._waiting[protocol] = loop.call_later(HANDSHAKE_SECONDS + HEAD_SECONDS, too_slow)
        return protocol

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        handle = self._waiting.pop(request.protocol, None)
        if handle is not None:
            handle.cancel()
        return await self._handler(request)
