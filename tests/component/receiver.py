"""A receiver of events: a web server that answers the handshake, checks signatures by itself, and keeps what it took."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat

Raw = dict[str, Any]


@dataclass
class Receiver:
    """What it took, in the order in which it came, what came twice included."""

    key: bytes | None = None
    origins: str | None = "kumulus.io"
    """Whose events it wants; None answers OPTIONS as a server that knows nothing of webhooks."""
    answer: Callable[[Raw], int] = lambda event: 204
    taken: list[Raw] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    forged: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def once(self) -> list[Raw]:
        """What came, each event the first time."""
        return list({event["id"]: event for event in self.taken}.values())

    def types(self, name: str) -> list[str]:
        """The types of an object's events, in their order."""
        return [event["type"].removeprefix("io.kumulus.") for event in self.once() if event["kumulusname"] == name]

    async def _options(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers["WebHook-Request-Origin"])
        if self.origins is None:
            return web.Response(status=405)
        return web.Response(headers={"WebHook-Allowed-Origin": self.origins, "Allow": "POST"})

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.key is not None and not self._genuine(request, body):
            self.forged += 1
            return web.Response(status=401)
        # The SDK of CloudEvents refuses what is none.
        from_http_event(HTTPMessage(dict(request.headers), body), JSONFormat())
        event = await request.json()
        status = self.answer(event)
        if status < 300:
            self.taken.append(event)
        return web.Response(status=status)

    def _genuine(self, request: web.Request, body: bytes) -> bool:
        head = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode()
        digest = hmac.new(self.key or b"", head + body, hashlib.sha256).digest()
        return request.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


@asynccontextmanager
async def receiving(**options: Any) -> AsyncIterator[Receiver]:
    """A receiver that listens on loopback."""
    receiver = Receiver(**options)
    application = web.Application(client_max_size=1 << 22)
    application.router.add_route("OPTIONS", "/events", receiver._options)
    application.router.add_post("/events", receiver._post)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
