"""Webhooks: one POST an event, after the receiver has said that it wants them.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping

import aiohttp

from kumulus.api.events import HttpTarget
from kumulus_services.events.envelope import CONTENT_TYPE, Event
from kumulus_services.events.guard import Guard, GuardedConnector
from kumulus_services.events.signing import signed
from kumulus_services.events.transport import HandshakeRefused, Rejected, Retired, SendError, Unavailable

_NOT_NOW = (408, 425, 429, 502, 503, 504)
"""Answers that are about the receiver, and not about the event."""
_RETIRED_SECONDS = 86400.0
_ASK_AGAIN_SECONDS = 60.0


class Webhook:
    """The way to one URL."""

    def __init__(
        self, target: HttpTarget, guard: Guard, *, key: bytes | None, origin: str, timeout: float, parallel: int
    ) -> None:
        self._target = target
        self._guard = guard
        self._key = key
        self._origin = origin
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._parallel = parallel
        self._session: aiohttp.ClientSession | None = None
        self._allowed = not target.handshake
        self._gap = 0.0
        """Seconds between two requests, as the receiver wants it."""
        self._next = 0.0

    async def open(self) -> None:
        """The receiver was asked, if it has to be, and allows it."""
        if self._session is None:
            context = ssl.create_default_context(cadata=self._target.ca_bundle)
            connector = GuardedConnector(self._guard, limit=self._parallel, ssl=context)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        if not self._allowed:
            headers = await self._request("OPTIONS", None, {"WebHook-Request-Origin": self._origin})
            self._take(headers)
            self._allowed = True

    def _take(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("WebHook-Allowed-Origin", "")
        if origin not in (self._origin, "*"):
            raise HandshakeRefused(
                f"the receiver does not answer OPTIONS with WebHook-Allowed-Origin: {self._origin}; have it do so, or set"
                " http.handshake to false",
                after=_ASK_AGAIN_SECONDS,
            )
        rate = headers.get("WebHook-Allowed-Rate", "")
        self._gap = 60.0 / int(rate) if rate.isdigit() and int(rate) > 0 else 0.0

    async def send(self, event: Event) -> None:
        """Return when the receiver has answered with 2xx."""
        await self._turn()
        headers = {"Content-Type": CONTENT_TYPE}
        if self._key is not None:
            headers |= signed(self._key, event.id, int(time.time()), event.body)
        await self._request("POST", event.body, headers)

    async def close(self) -> None:
        """All connections are closed."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _turn(self) -> None:
        """Wait until one more request is welcome."""
        if self._gap:
            now = asyncio.get_running_loop().time()
            at, self._next = max(now, self._next), max(now, self._next) + self._gap
            await asyncio.sleep(at - now)

    async def _request(self, method: str, body: bytes | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        assert self._session is not None
        try:
            async with self._session.request(
                method, self._target.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                status, given = answer.status, answer.headers
        except SendError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            text = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            raise Unavailable(text[:500]) from error
        if 200 <= status < 300:
            return given
        if method == "OPTIONS" and status not in _NOT_NOW:
            raise HandshakeRefused(
                f"the receiver answers OPTIONS with {status}; have it allow webhooks, or set http.handshake to false",
                after=_ASK_AGAIN_SECONDS,
            )
        raise _error(status, given.get("Retry-After", ""))


def _error(status: int, retry_after: str) -> SendError:
    text = f"the receiver answers {status}"
    if status == 410:
        return Retired(text + ": it is gone for good; delete the sink, or change its url", after=_RETIRED_SECONDS)
    if status in _NOT_NOW:
        return Unavailable(text, after=min(float(retry_after), 3600.0) if retry_after.isdigit() else None)
    if 300 <= status < 400:
        return Rejected(text + ": redirections are not followed")
    return Rejected(text)
