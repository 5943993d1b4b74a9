"""Takes images from people: `HEAD` and `PUT /v1/uploads/<image uid>`, each with the token of an upload.

`PUT` brings the bytes `a` to `b` of `total` (`Content-Range: bytes a-b/total`), `a` being what `HEAD` says has arrived
(`Upload-Offset`). What an image must add up to is what its owner said in the Image. Whoever shows no token that a work
order tells of learns nothing, not even whether there is such an image.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from aiohttp import web

from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.whole import TakesUploads
from kumulus_agents.transfer.fetch import Window
from kumulus_agents.transfer.settings import TransferSettings

log = structlog.get_logger(__name__)

KEEP_OPEN = 30.0
"""A part is kept open for so long after a request: to open it anew, all that has arrived must be read."""
_PATH = re.compile(r"/v1/uploads/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_BEARER = re.compile(r"Bearer ([A-Za-z0-9_-]{32,128})")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_WRITE = 1 << 20

_STATUS = {"ImageTooLarge": 413, "InsufficientCapacity": 507, "NoSpace": 507, "Busy": 503}


@dataclass(frozen=True, slots=True)
class Ticket:
    """Somebody may upload an image."""

    image: str
    """Uid."""
    sha256: str
    """What it must add up to."""
    token_sha256: str
    expires_at: datetime
    driver: TakesUploads
    done: Callable[[], None]
    """Called when all of it has arrived and was verified."""


@dataclass(slots=True)
class _Open:
    """An image that is arriving."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stack: AsyncExitStack | None = None
    part: Part | None = None
    closing: asyncio.TimerHandle | None = None
    complete: bool = False


class _Refused(Exception):
    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Uploads:
    """Who may upload what to this host, and what has arrived."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._tickets: dict[str, Ticket] = {}
        self._open: dict[str, _Open] = {}
        self._taking = 0
        self._closers: set[asyncio.Task[None]] = set()

    def admit(self, name: str, ticket: Ticket) -> None:
        """Let whoever has that token upload; `name` is the work order's."""
        self._tickets[name] = ticket

    def dismiss(self, name: str) -> None:
        """That upload is over. What has arrived stays for the next."""
        self._tickets.pop(name, None)

    async def close(self) -> None:
        """Give up what is open; it can be gone on with later."""
        self._tickets.clear()
        for arriving in list(self._open.values()):
            await self._close(arriving)
        self._open.clear()
        await asyncio.gather(*self._closers, return_exceptions=True)

    async def forget(self, image: str) -> None:
        """The image is being removed, or imported: its part is let go of."""
        arriving = self._open.pop(image, None)
        if arriving is not None:
            await self._close(arriving)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, after which the connection is closed."""
        try:
            ticket = self._ticket(request)
            if request.method == "HEAD":
                response = await self._tell(ticket)
            elif request.method == "PUT":
                response = await self._take(request, ticket)
            else:
                raise _Refused(405, "MethodNotAllowed", "Only HEAD and PUT are known here.")
        except _Refused as refused:
            response = _said(refused.status, refused.reason, str(refused), refused.headers)
        except StorageError as error:
            response = _said(_STATUS.get(error.reason, 500 if error.retryable else 422), error.reason, str(error))
        response.force_close()
        return response

    def _ticket(self, request: web.BaseRequest) -> Ticket:
        asked = _PATH.fullmatch(request.raw_path)
        bearer = _BEARER.fullmatch(request.headers.get("Authorization", ""))
        shown = hashlib.sha256((bearer[1] if bearer is not None else "").encode()).hexdigest()
        now = datetime.now(UTC)
        for ticket in self._tickets.values():
            known = hmac.compare_digest(shown, ticket.token_sha256)
            if known and asked is not None and ticket.image == asked[1] and now < ticket.expires_at:
                return ticket
        raise _Refused(401, "Unauthorized", "This token is for no upload here, or its time is over: ask for a new one.")

    async def _tell(self, ticket: Ticket) -> web.Response:
        arriving = self._arriving(ticket)
        async with arriving.lock:
            part = await self._part(ticket, arriving)
            headers = {"Upload-Offset": str(part.size), "Upload-Complete": "?1" if arriving.complete else "?0"}
        return web.Response(status=200, headers=headers)

    async def _take(self, request: web.BaseRequest, ticket: Ticket) -> web.Response:
        match = _RANGE.fullmatch(request.headers.get("Content-Range", ""))
        length = request.content_length
        if match is None or length is None:
            raise _Refused(411, "RangeMissing", "An upload says Content-Length and Content-Range.")
        first, last, total = (int(number) for number in match.groups())
        if not first <= last < total or length != last - first + 1:
            raise _Refused(416, "BadRange", "Content-Range does not fit itself or Content-Length.")
        most = ticket.driver.upload_max
        if total > most:
            raise _Refused(413, "ImageTooLarge", f"The image is larger than the {most} bytes it may have.")
        arriving = self._arriving(ticket)
        if arriving.lock.locked() or self._taking >= self._settings.uploads:
            raise _Refused(503, "Busy", "Other uploads are under way: try again.", {"Retry-After": "2"})
        self._taking += 1
        try:
            async with arriving.lock:
                part = await self._part(ticket, arriving)
                if first != part.size:
                    raise _Refused(
                        409, "OtherOffset", f"{part.size} bytes have arrived.", {"Upload-Offset": str(part.size)}
                    )
                part.claim(total)
                await self._receive(request, part, last + 1)
                if part.size == total:
                    await self._finish(ticket, arriving, part)
                    return web.Response(status=201, headers={"Upload-Offset": str(total), "Upload-Complete": "?1"})
                return web.Response(status=200, headers={"Upload-Offset": str(part.size), "Upload-Complete": "?0"})
        finally:
            self._taking -= 1

    async def _receive(self, request: web.BaseRequest, part: Part, end: int) -> None:
        """Take the body into the part; what has come of a body that is cut stays."""
        waiting = bytearray()
        window = Window(self._settings.upload_least_rate, self._settings.rate_window)
        try:
            while part.size + len(waiting) < end:
                began = time.monotonic()
                async with asyncio.timeout(self._settings.idle_timeout):
                    data = await request.content.readany()
                if not data:
                    raise _Refused(400, "Cut", "The request ended early.")
                if window.too_slow(len(data), time.monotonic() - began):
                    raise _Refused(408, "TooSlow", "The upload is too slow.")
                waiting += data
                if part.size + len(waiting) > end:
                    raise _Refused(400, "BadRange", "The request has more bytes than it says.")
                if len(waiting) >= _WRITE:
                    await part.append(bytes(waiting))
                    waiting.clear()
        except TimeoutError:
            raise _Refused(408, "TooSlow", "Nothing has come for a while.") from None
        except (OSError, web.RequestPayloadError) as error:
            raise _Refused(400, "Cut", "The connection ended early.") from error
        finally:
            if part.size + len(waiting) <= end:
                await part.append(bytes(waiting))

    async def _finish(self, ticket: Ticket, arriving: _Open, part: Part) -> None:
        """All of it has arrived: is it what its owner said?"""
        if part.digest() != ticket.sha256:
            found = part.digest()
            await part.discard()
            await self._close(arriving)
            raise _Refused(
                422,
                "ChecksumMismatch",
                f"The SHA-256 of what has arrived is {found}, not {ticket.sha256} as the image says. Upload it again;"
                " if the file has changed, make a new image.",
            )
        await part.complete()
        await self._close(arriving)
        arriving.complete = True
        log.info("image uploaded", image=ticket.image, bytes=part.size)
        ticket.done()

    def _arriving(self, ticket: Ticket) -> _Open:
        return self._open.setdefault(ticket.image, _Open())

    async def _part(self, ticket: Ticket, arriving: _Open) -> Part:
        """The part, opened when it is not. Under the lock."""
        if await ticket.driver.uploaded(ticket.image, self._settings.upload_idle_seconds):
            arriving.complete = True
            raise _Refused(409, "Complete", "All of it has arrived.", {"Upload-Complete": "?1"})
        arriving.complete = False
        if arriving.part is None:
            arriving.stack = AsyncExitStack()
            arriving.part = await arriving.stack.enter_async_context(ticket.driver.upload(ticket.image))
        if arriving.closing is not None:
            arriving.closing.cancel()
        arriving.closing = asyncio.get_running_loop().call_later(KEEP_OPEN, self._tidy, ticket.image)
        return arriving.part

    def _tidy(self, image: str) -> None:
        """Close what nobody has asked about for a while; while a request is under way, later."""
        arriving = self._open.get(image)
        if arriving is None:
            return
        if arriving.lock.locked():
            arriving.closing = asyncio.get_running_loop().call_later(KEEP_OPEN, self._tidy, image)
            return
        self._open.pop(image)
        task = asyncio.get_running_loop().create_task(self._close(arriving))
        self._closers.add(task)
        task.add_done_callback(self._closers.discard)

    async def _close(self, arriving: _Open) -> None:
        if arriving.closing is not None:
            arriving.closing.cancel()
        stack, arriving.stack, arriving.part, arriving.closing = arriving.stack, None, None, None
        if stack is not None:
            await stack.aclose()


def _said(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    response = web.json_response({"reason": reason, "message": message}, status=status, headers=headers)
    response.force_close()
    return response
