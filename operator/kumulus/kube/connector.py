"""Connections of aiohttp that are gone when their pool says so, for whoever closes a pool and then ends its loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

_PROBES = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}
"""A machine or a way there that is gone without a word is noticed within a minute (tcp(7); seconds, number, ms)."""


class Connector(aiohttp.TCPConnector):
    """Closed when its last socket is.

    aiohttp forgets a connection that was given up (a watch that ended, a request that was cancelled) while the two
    sides still say good-bye, and a loop that ends meanwhile leaves its socket open.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sockets: dict[asyncio.Future[None], asyncio.BaseTransport] = {}

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
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
