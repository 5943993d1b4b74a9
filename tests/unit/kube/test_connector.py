"""Connections under uvloop, which is what processes of Kumulus run in."""

from __future__ import annotations

import gc
import socket

import aiohttp
import uvloop
from aiohttp import web

from kumulus.kube.connector import Connector


def test_no_connection_has_a_second_owner() -> None:
    """A socket of Python's beside the loop's own would be closed when it is collected, whoever has its number then."""

    async def ask(connector: aiohttp.BaseConnector) -> int:
        """How many sockets of Python's there are after a request, while its connection waits for the next."""
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"http://127.0.0.1:{port}/") as answer:
                assert answer.status == 404
            found = [item for item in gc.get_objects() if isinstance(item, socket.socket)]
            return sum(1 for item in found if item.fileno() != -1 and _peer(item) == ("127.0.0.1", port))

    async def both() -> tuple[int, int]:
        nonlocal port
        runner = web.AppRunner(web.Application())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            return await ask(aiohttp.TCPConnector()), await ask(Connector())
        finally:
            await runner.cleanup()

    port = 0
    assert uvloop.run(both()) == (1, 0)


def _peer(item: socket.socket) -> object:
    try:
        return item.getpeername()
    except OSError:
        return None
