"""Connections under uvloop, which is what processes of Kumulus run in."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct

import aiohttp
import pytest
import uvloop

from kumulus.kube.connector import Connector

RESET = struct.pack("ii", 1, 0)
"""How long a socket lingers when it is closed: not at all, it resets."""


def test_a_connection_that_is_reset_as_tls_begins_closes_nobody_elses_socket() -> None:
    """Its descriptor is another's soon after."""

    async def attempt(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        async def reset_them() -> None:
            while True:
                peer, _ = await loop.sock_accept(listener)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                peer.close()

        resetting = asyncio.create_task(reset_them())
        async with aiohttp.ClientSession(connector=Connector(ssl=ssl.create_default_context())) as session:
            for _ in range(10):
                with pytest.raises(aiohttp.ClientError):
                    await session.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        resetting.cancel()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        gc.disable()
        try:
            uvloop.run(attempt(listener))
            others = [socket.socket() for _ in range(30)]
        finally:
            gc.enable()
        gc.collect()
        for other in others:
            other.bind(("127.0.0.1", 0))
            other.close()
