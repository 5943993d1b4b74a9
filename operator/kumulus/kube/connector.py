"""Connections of aiohttp whose sockets have one owner, the loop, and are gone when their pool says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

_PROBES = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}
"""A machine or a way there that is gone without a word is noticed within a minute (tcp(7); seconds, number, ms)."""


class Connector(aiohttp.TCPConnector):
    """Lets the loop make its sockets, and is closed when the last of them is.

    aiohttp makes a socket of Python's and gives it to the loop. uvloop works with the number of its descriptor alone; of a
    connection that is reset as TLS begins (an API server that is killed does that to everybody) it closes that number and
    lets the socket keep it. When the socket is collected, seconds later, it closes whoever has the number by then, in
    whichever thread: watches fall silent for good.

    aiohttp forgets a connection that was given up (a watch that ended, a request that was cancelled) while the two
    sides still say good-bye, and a loop that ends meanwhile leaves its socket open.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sockets: dict[asyncio.Future[None], asyncio.BaseTransport] = {}

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **more: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """Connects to the first address; aiohttp comes again with the next ones when that fails."""
        host, port, *_ = addr_infos[0][4]
        return await self._wrap_existing_connection(*args, host=host, port=port, **more)

    async def _create_connection(self, *args: Any, **more: Any) -> ResponseHandler:
        protocol = await super()._create_connection(*args, **more)
        closed, transport = protocol.closed, protocol.transport
        if closed is not None and transport is not None:
            _probe(transport)
            self._sockets[closed] = transport
            closed.add_done_callback(self._forget)
        return protocol

    def _forget(self, closed: asyncio.Future[None]) -> None:
        self._sockets.pop(closed, None)
        if not closed.cancelled():
            closed.exception()

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, without a good-bye, and return when they are."""
        await super().close(abort_ssl=abort_ssl)
        for transport in self._sockets.values():
            cast(asyncio.Transport, transport).abort()
        if self._sockets:
            await asyncio.wait(list(self._sockets), timeout=1.0)


def _probe(transport: asyncio.BaseTransport) -> None:
    """Have the kernel look whether the other side is still there while nothing is said."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    with contextlib.suppress(OSError, ValueError):  # closed this moment, which who asks will notice
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
