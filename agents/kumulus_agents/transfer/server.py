"""Gives whole images of this host to other hosts: `GET /v1/images/<uid>/<sha256>`; says that it is there: `GET /v1/alive`.

Who asks has proved to be a host of the installation before a byte of the request is read. There is no list: only who
was told uid and digest of an image gets it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from prometheus_client import Counter

from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.transfer import alive
from kumulus_agents.transfer.identity import peer_of
from kumulus_agents.transfer.settings import TransferSettings

log = structlog.get_logger(__name__)

SENT = Counter("kumulus_agent_image_bytes_sent_total", "Bytes of images given to other hosts.")

Find = Callable[[str, str], Awaitable[int | None]]
"""A descriptor of the whole image with that uid and digest, which the caller closes; None when there is none."""

_PATH = re.compile(r"/v1/images/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d{1,18})-")
_CHUNK = 1 << 20
_RETRY_AFTER = "1"


class ImageServer:
    """Answers other hosts."""

    def __init__(self, settings: TransferSettings, find: Find) -> None:
        self._settings = settings
        self._find = find
        self._sending = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, after which the connection is closed."""
        transport = request.transport
        peer = peer_of(transport.get_extra_info("peercert")) if transport is not None else None
        asked = _PATH.fullmatch(request.raw_path)
        if peer is None:
            return _short(403)
        if request.method != "GET":
            return _short(405)
        if request.raw_path == alive.PATH:
            return _short(204)
        if asked is None:
            return _short(404)
        if self._sending >= self._settings.sends:
            return _short(503, {"Retry-After": _RETRY_AFTER})
        self._sending += 1
        try:
            return await self._send(request, peer, asked[1], asked[2])
        finally:
            self._sending -= 1

    async def _send(self, request: web.BaseRequest, peer: str, uid: str, sha256: str) -> web.StreamResponse:
        fd = await self._find(uid, sha256)
        if fd is None:
            return _short(404)
        try:
            total = os.fstat(fd).st_size
            wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
            start = int(wanted[1]) if wanted is not None else 0
            if start >= total:
                return _short(416, {"Content-Range": f"bytes */{total}"})
            response = web.StreamResponse(status=206 if wanted is not None else 200)
            response.content_length = total - start
            response.content_type = "application/octet-stream"
            if wanted is not None:
                response.headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            response.force_close()
            await response.prepare(request)
            at = start
            while at < total:
                data = await in_thread(os.pread, fd, _CHUNK, at)
                if not data:
                    break
                async with asyncio.timeout(self._settings.idle_timeout):  # a reader that stands still holds a place
                    await response.write(data)
                at += len(data)
                SENT.inc(len(data))
            async with asyncio.timeout(self._settings.idle_timeout):
                await response.write_eof()
        except TimeoutError:
            log.warning("a host reads too slowly", peer=peer, image=uid)
            request.protocol.force_close()
            return response
        finally:
            os.close(fd)
        log.info("image given to another host", peer=peer, image=uid, bytes=at - start)
        return response


def _short(status: int, headers: dict[str, str] | None = None) -> web.Response:
    response = web.Response(status=status, headers=headers)
    response.force_close()
    return response
