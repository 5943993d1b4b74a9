"""Connections of aiohttp that are gone when their pool says so, for whoever closes a pool and then ends its loop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler


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
