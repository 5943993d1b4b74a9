"""Webhooks against a real web server: the handshake, what answers mean, and which addresses are connected to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from kumulus.api.events import HttpTarget
from kumulus_lab import ports
from kumulus_services.events.envelope import CONTENT_TYPE, Event
from kumulus_services.events.guard import Guard
from kumulus_services.events.transport import (
    AddressRefused,
    HandshakeRefused,
    Rejected,
    Retired,
    SendError,
    Unavailable,
)
from kumulus_services.events.webhook import Webhook

EVENT = Event("u-1.2.started", "io.kumulus.vm.started", "shop", b'{"specversion":"1.0"}')


class Server:
    """Answers as the test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, tuple[int, dict[str, str]]] = {
            "OPTIONS": (200, {"WebHook-Allowed-Origin": "kumulus.io"}),
            "POST": (204, {}),
        }
        self.pause = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, dict(request.headers)))
        await asyncio.sleep(self.pause)
        status, headers = self.answers[request.method]
        return web.Response(status=status, headers=headers)

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@asynccontextmanager
async def hook(
    port: int, *, host: str = "127.0.0.1", handshake: bool = True, mine: bool = True, timeout: float = 5
) -> AsyncIterator[Webhook]:
    target = HttpTarget(url=f"http://{host}:{port}/hook", handshake=handshake)
    made = Webhook(target, Guard(mine), key=b"k", origin="kumulus.io", timeout=timeout, parallel=4)
    try:
        yield made
    finally:
        await made.close()


async def test_one_is_asked_once_and_then_sent_to(server: Server) -> None:
    async with hook(server.port) as way:
        for _ in range(2):
            await way.open()
            await way.send(EVENT)
    assert server.methods() == ["OPTIONS", "POST", "POST"]
    headers = server.asked[1][1]
    assert headers["Content-Type"] == CONTENT_TYPE
    assert headers["webhook-id"] == EVENT.id
    assert headers["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize(
    "answer", [(405, {}), (200, {}), (200, {"WebHook-Allowed-Origin": "example.com"}), (302, {"Location": "/"})]
)
async def test_nothing_is_sent_to_who_does_not_want_it(server: Server, answer: tuple[int, dict[str, str]]) -> None:
    server.answers["OPTIONS"] = answer
    async with hook(server.port) as way:
        with pytest.raises(HandshakeRefused, match="handshake"):
            await way.open()
    assert server.methods() == ["OPTIONS"]


async def test_the_pace_is_the_receiver_s(server: Server) -> None:
    server.answers["OPTIONS"] = (200, {"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "600"})
    loop = asyncio.get_running_loop()
    async with hook(server.port) as way:
        await way.open()
        began = loop.time()
        await asyncio.gather(*(way.send(EVENT) for _ in range(4)))
        assert loop.time() - began >= 0.3


@pytest.mark.parametrize(
    ("status", "headers", "error", "after"),
    [
        (500, {}, Rejected, None),
        (400, {}, Rejected, None),
        (302, {"Location": "http://127.0.0.1/"}, Rejected, None),
        (503, {}, Unavailable, None),
        (429, {"Retry-After": "7"}, Unavailable, 7.0),
        (410, {}, Retired, 86400.0),
    ],
)
async def test_what_answers_mean(
    server: Server, status: int, headers: dict[str, str], error: type[SendError], after: float | None
) -> None:
    server.answers["POST"] = (status, headers)
    async with hook(server.port, handshake=False) as way:
        await way.open()
        with pytest.raises(error) as caught:
            await way.send(EVENT)
    assert caught.value.after == after
    assert server.methods() == ["POST"]


async def test_who_does_not_answer_is_unavailable(server: Server) -> None:
    server.pause = 60
    async with hook(server.port, handshake=False, timeout=0.1) as way:
        await way.open()
        with pytest.raises(Unavailable, match="no answer in time"):
            await way.send(EVENT)
    (closed,) = ports.free(1)
    async with hook(closed) as way:
        with pytest.raises(Unavailable):
            await way.open()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "127.1"])
async def test_a_name_is_judged_by_the_address_that_is_connected_to(server: Server, host: str) -> None:
    async with hook(server.port, host=host, mine=False) as way:
        with pytest.raises((AddressRefused, Unavailable)) as caught:
            await way.open()
        if host not in ("2130706433", "127.1"):
            assert isinstance(caught.value, AddressRefused)
    assert not server.asked
