"""Gets a whole image from one of several hosts: resumed where the last one ended, bounded in everything.

A host that lies, is slow or is not there is left, with a reason, and the next is asked. Which bytes are right is
decided by the digest alone.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import structlog

from kumulus.api.host import transfer_name
from kumulus.api.image import ImageContent
from kumulus.api.image_order import DroppedPeer, ImageCopy, ImagePeer
from kumulus.kube.connector import Connector
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.transfer.settings import TransferSettings

log = structlog.get_logger(__name__)

ATTEMPTS = 5
"""With one host, of which each but the last must have brought something new."""
_WRITE = 1 << 20
_LONGEST_WAIT = 15.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class NoPeer(StorageError):
    """None of the hosts gave the image; `dropped` says why of each."""

    def __init__(self, dropped: tuple[DroppedPeer, ...]) -> None:
        why = "; ".join(f"{peer.host}: {peer.message}" for peer in dropped)
        super().__init__(f"No host that has the image gave it ({why}).", reason="PeersUnavailable")
        self.dropped = dropped


class _Dropped(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Busy(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Cut(Exception):
    """The connection ended early."""


@dataclass(slots=True)
class _Try:
    peer: ImagePeer
    attempts: int = 0
    afresh: bool = False
    """The digest was wrong, and others' bytes were among its own: it got a chance to give all of them."""


class PeerFetcher:
    """Asks hosts for images."""

    def __init__(
        self,
        settings: TransferSettings,
        context: Callable[[], ssl.SSLContext | None],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`context` gives what to prove ourselves and to know others by, as it is at the time."""
        self._settings = settings
        self._context = context
        self._sleep = sleep

    async def fetch(self, uid: str, wanted: ImageCopy, part: Part, pace: Pace) -> tuple[str, tuple[DroppedPeer, ...]]:
        """Make the part the image's file; returns the host that gave the last of it, and those that were dropped.

        Raises `NoPeer`, and `StorageError` for what the pool says. Cancelling keeps what has arrived.
        """
        content = wanted.content
        dropped: list[DroppedPeer] = []
        left = [_Try(peer) for peer in wanted.peers]
        if part.url != content.sha256 or part.size > content.size:
            await part.begin(content.sha256, None)
        part.claim(content.size)
        waiting_since = time.monotonic()
        while left:
            busy: list[float] = []
            for one in tuple(left):
                try:
                    await self._attempt(uid, content, one, part, pace)
                except _Busy as error:
                    busy.append(error.seconds)
                except _Cut as cut:
                    if one.attempts >= ATTEMPTS:
                        self._drop(one, _Dropped("Unreachable", str(cut)), left, dropped)
                except _Dropped as error:
                    self._drop(one, error, left, dropped)
                else:
                    return one.peer.host, tuple(dropped)
            if busy and len(busy) == len(left):
                if time.monotonic() - waiting_since > self._settings.busy_patience:
                    for one in tuple(left):
                        self._drop(one, _Dropped("Busy", "it gives images to others all the time"), left, dropped)
                else:
                    await self._sleep(min(busy) * random.uniform(0.5, 1.5))  # noqa: S311 - spread, not secret
        raise NoPeer(tuple(dropped))

    def _drop(self, one: _Try, why: _Dropped, left: list[_Try], dropped: list[DroppedPeer]) -> None:
        left.remove(one)
        dropped.append(DroppedPeer(host=one.peer.host, reason=why.reason, message=str(why)[:512]))
        log.warning("an image is not taken from a host", peer=one.peer.host, reason=why.reason, error=str(why))

    async def _attempt(self, uid: str, content: ImageContent, one: _Try, part: Part, pace: Pace) -> None:
        """Ask one host for what is missing, and see whether it all adds up."""
        before = part.most
        mixed = part.size > 0
        if part.size < content.size:
            one.attempts += 1
            try:
                await self._request(uid, content, one.peer, part, pace)
            except _Cut as cut:
                if part.most <= before:
                    raise _Dropped("Unreachable", str(cut)) from cut
                raise
        if part.digest() == content.sha256:
            return
        await part.begin(content.sha256, None)
        if mixed and not one.afresh:
            one.afresh = True
            await self._attempt(uid, content, one, part, pace)
            return
        raise _Dropped("WrongDigest", "what it gave is not the image: its digest is another")

    async def _request(self, uid: str, content: ImageContent, peer: ImagePeer, part: Part, pace: Pace) -> None:
        context = self._context()
        if context is None:
            raise _Dropped("NoCertificate", "this host has no certificate yet to prove itself with")
        host = f"[{peer.address}]" if ":" in peer.address else peer.address
        url = f"https://{host}:{peer.port}/v1/images/{uid}/{content.sha256}"
        timeout = aiohttp.ClientTimeout(
            total=None, connect=self._settings.connect_timeout, sock_read=self._settings.idle_timeout
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=Connector(force_close=True, limit=1),
                    timeout=timeout,
                    trust_env=False,
                    auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity", "User-Agent": "kumulus-agent"},
                ) as session,
                session.get(
                    url,
                    ssl=context,
                    server_hostname=transfer_name(peer.host),
                    allow_redirects=False,
                    headers={"Range": f"bytes={part.size}-"} if part.size else {},
                ) as response,
            ):
                self._judge(response, part.size, content.size)
                await self._take(response.content, content.size, part, pace)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise _Dropped("Untrusted", "it did not prove that it is this host, or does not take us for one") from error
        except TimeoutError as error:
            raise _Cut("it does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Cut(f"the connection failed: {type(error).__name__}") from error

    def _judge(self, response: aiohttp.ClientResponse, start: int, total: int) -> None:
        """Whether what follows are the bytes that are missing."""
        if response.status == 503:
            after = response.headers.get("Retry-After", "")
            raise _Busy(min(float(after), _LONGEST_WAIT) if after.isdigit() else 1.0)
        if response.status == 404:
            raise _Dropped("NotThere", "it does not have the image any more")
        if start:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == 206 and match and (int(match[1]), int(match[3])) == (start, total):
                return
        elif response.status == 200 and response.content_length == total:
            return
        raise _Dropped("WrongAnswer", f"it answers with something else than the image (HTTP {response.status})")

    async def _take(self, body: aiohttp.StreamReader, total: int, part: Part, pace: Pace) -> None:
        waiting = bytearray()
        part.resumed = part.size > 0
        window = Window(self._settings.least_rate, self._settings.rate_window)
        try:
            chunks = body.iter_any()
            while part.size + len(waiting) < total:
                began = time.monotonic()
                try:
                    data = await anext(chunks)
                except StopAsyncIteration:
                    raise _Cut("the connection ended early") from None
                if window.too_slow(len(data), time.monotonic() - began):
                    raise _Dropped("TooSlow", "it gives less than the host's agent is content with")
                waiting += data
                if part.size + len(waiting) > total:
                    raise _Dropped("WrongAnswer", "it gives more than the image has")
                pace.at(part.size + len(waiting), total)
                if len(waiting) >= _WRITE:
                    await part.append(bytes(waiting))
                    waiting.clear()
        except (_Cut, aiohttp.ClientError, OSError):
            await part.append(bytes(waiting))
            raise
        await part.append(bytes(waiting))


class Window:
    """Sees whether somebody is slower than they may be. Time that our own disk takes does not count."""

    def __init__(self, least_rate: int, seconds: float) -> None:
        self._least_rate = least_rate
        self._window = seconds
        self._bytes = 0
        self._seconds = 0.0

    def too_slow(self, size: int, seconds: float) -> bool:
        """So many bytes came in so many seconds; whether that, with what came before, is too little."""
        self._bytes += size
        self._seconds += seconds
        if self._seconds < self._window:
            return False
        slow = self._bytes < self._least_rate * self._seconds
        self._bytes, self._seconds = 0, 0.0
        return slow
