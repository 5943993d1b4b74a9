"""Bring the bytes of a source into a part: resumed when cut, checked at each hop, bounded in everything.

The digest decides whether the bytes are right; nothing here looks into them.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from kumulus.api.image_order import HttpFetch
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.origin import Resolve, checked, forbidden, parsed, session, system_resolve, trust
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import Login, StorageError
from kumulus_agents.storage.settings import FetchSettings

_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})")
_WRITE = 1 << 20
_LONGEST_PAUSE = 30.0
_CHALLENGES = 2
"""A token may end once, on the way."""


class _Cut(Exception):
    """The attempt ended early; another may go further. `error` is what to say when there is none."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(str(error))
        self.error = error


class Authorizer(Protocol):
    """Opens what is not open to everybody."""

    def headers(self, url: URL) -> Mapping[str, str]:
        """What to send along to that URL."""

    async def challenged(self, url: URL, response: aiohttp.ClientResponse) -> bool:
        """It was not enough: whether it makes sense to ask again. Raises `StorageError`."""


class Only:
    """Sends the same to one server, and nothing to where that redirects."""

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        self._origin = url.origin()
        self._headers = headers

    def headers(self, url: URL) -> Mapping[str, str]:
        """See `Authorizer.headers`."""
        return self._headers if url.origin() == self._origin else {}

    async def challenged(self, url: URL, response: aiohttp.ClientResponse) -> bool:
        """See `Authorizer.challenged`: a second time would not help."""
        return False


@dataclass(frozen=True, slots=True)
class Download:
    """What is fetched."""

    url: URL
    sha256: str
    """What its bytes must add up to."""
    wrong: str
    """Who says so, and what to do when they do not; ends the sentence."""
    trusted: ssl.SSLContext
    most: int
    """Bytes it may have."""
    authorizer: Authorizer | None = None
    version: str | None = None
    """What it is, when its content has a name of its own; else what the server says of it decides whether a cut
    download is resumed. URLs are not kept with it then, for they may have a key in them."""
    secure: bool = False
    """No hop may go without TLS."""


class Fetcher:
    """Fetches over http and https."""

    def __init__(
        self,
        settings: FetchSettings,
        *,
        resolve: Resolve = system_resolve,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._sleep = sleep

    async def fetch(self, source: HttpFetch, part: Part, sha256: str, pace: Pace, login: Login | None = None) -> None:
        """Make the part whole: when this returns, its SHA-256 is `sha256`. The login goes to that server alone, over TLS.

        May be repeated; a part that is whole already costs no request. Raises `StorageError`:
        SourceForbidden, SourceNotFound, SourceRefused, SourceUnavailable, SourceTimeout, SourceUntrusted,
        ImageTooLarge, ChecksumMismatch or what the pool says. Cancelling keeps what has arrived.
        """
        url = parsed(source.url)
        if login is not None and url.scheme != "https":
            raise forbidden("A user name and a password are sent over TLS only: use an https URL.")
        if part.size and part.digest() == sha256:
            return
        await self.download(
            Download(
                url,
                sha256,
                "the image says. Correct the image's checksum or its source.",
                await in_thread(trust, source.ca_bundle),
                self._settings.max_bytes,
                Only(url, {"Authorization": login.basic}) if login is not None else None,
            ),
            part,
            pace,
        )

    async def download(self, wanted: Download, part: Part, pace: Pace) -> None:
        """Make the part what is wanted; like `fetch`."""
        if part.size and wanted.version is not None and part.url != wanted.version:
            await part.begin(wanted.version, None)
        if part.size and part.digest() == wanted.sha256:
            return
        try:
            async with asyncio.timeout(self._settings.total_timeout):
                await self._until_whole(wanted, part, pace)
        except TimeoutError:
            raise StorageError("The source is too slow: the download took too long.", reason="SourceTimeout") from None

    async def _until_whole(self, wanted: Download, part: Part, pace: Pace) -> None:
        in_vain = 0
        mixed = True
        while True:
            before = part.most
            try:
                await self._attempt(wanted, part, pace)
                if part.digest() == wanted.sha256:
                    return
                if not (part.resumed and mixed):
                    raise StorageError(
                        f"The source's SHA-256 is {part.digest()}, not {wanted.sha256} as {wanted.wrong}",
                        reason="ChecksumMismatch",
                        retryable=False,
                    )
                mixed = False  # halves of two versions, perhaps: once more from the start
                await part.begin(wanted.version or str(wanted.url), None)
            except _Cut as cut:
                in_vain = 0 if part.most > before else in_vain + 1
                if in_vain > self._settings.retries:
                    raise cut.error from cut
                await self._sleep(min(self._settings.backoff * 2**in_vain, _LONGEST_PAUSE))

    async def _attempt(self, wanted: Download, part: Part, pace: Pace) -> None:
        """Receive what the last hop has."""

        async def take(response: aiohttp.ClientResponse) -> None:
            await self._receive(response, wanted, part, pace)

        await self.visit(wanted.url, wanted.trusted, take, lambda: _resume(part), wanted.authorizer, wanted.secure)

    async def small(
        self, url: URL, trusted: ssl.SSLContext, most: int, headers: Mapping[str, str], authorizer: Authorizer | None
    ) -> bytes:
        """What is at that URL, of at most `most` bytes, over TLS only. Raises `StorageError` like `fetch`."""
        body = bytearray()

        async def take(response: aiohttp.ClientResponse) -> None:
            if response.status != 200:
                raise _answer(response.status, response.url.host or "")
            async for data in response.content.iter_any():
                body.extend(data)
                if len(body) > most:
                    raise StorageError(
                        f"The answer of {response.url.host} has more than the {most} bytes it may have.",
                        reason="SourceRefused",
                        retryable=False,
                    )

        try:
            async with asyncio.timeout(self._settings.idle_timeout):
                await self.visit(url, trusted, take, lambda: headers, authorizer, True)
        except _Cut as cut:
            raise cut.error from cut
        except TimeoutError:
            raise StorageError(f"The server {url.host} is too slow.", reason="SourceTimeout") from None
        return bytes(body)

    async def visit(
        self,
        url: URL,
        trusted: ssl.SSLContext,
        take: Callable[[aiohttp.ClientResponse], Awaitable[None]],
        headers: Callable[[], Mapping[str, str]],
        authorizer: Authorizer | None = None,
        secure: bool = False,
    ) -> None:
        """Follow redirects by hand, each checked like the first URL, and have the last one's answer taken.

        What the authorizer sends along is for the URLs it knows: a redirect elsewhere gets none of it.
        """
        hops = challenges = 0
        try:
            while hops <= self._settings.max_redirects:
                if secure and url.scheme != "https":
                    raise forbidden("The registry, or what it points to, is not reached by https.")
                origin = await checked(url, self._settings, self._resolve)
                sent = {**headers(), **(authorizer.headers(url) if authorizer is not None else {})}
                async with (
                    session(origin, trusted, self._settings) as client,
                    client.get(url, headers=sent, allow_redirects=False) as response,
                ):
                    if response.status == 401 and authorizer is not None and challenges < _CHALLENGES:
                        challenges += 1
                        if await authorizer.challenged(url, response):
                            continue
                    if response.status not in _REDIRECTS:
                        await take(response)
                        return
                    url = _next(url, response.headers.get("Location"))
                    hops += 1
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as error:
            raise StorageError(
                f"The server {url.host} did not prove who it is. Check its certificate or the image's caBundle.",
                reason="SourceUntrusted",
            ) from error
        except TimeoutError as error:
            raise _Cut(StorageError(f"The server {url.host} does not answer.", reason="SourceTimeout")) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Cut(
                StorageError(
                    f"The connection to {url.host} failed: {type(error).__name__}.", reason="SourceUnavailable"
                )
            ) from error
        raise forbidden("The image's source redirects too often.")

    async def _receive(self, response: aiohttp.ClientResponse, wanted: Download, part: Part, pace: Pace) -> None:
        """Take the body of a final answer into the part, at its end or from its start."""
        total: int | None
        version = wanted.version or str(response.url)
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != part.size:
                await part.begin(version, None)
                raise _Cut(StorageError("The server sends other bytes than it was asked for.", reason="SourceRefused"))
            total = None if match[3] == "*" else int(match[3])
            part.resumed = True
        elif response.status == 200:
            total = response.content_length
            await part.begin(version, None if wanted.version else _validator(response))
        elif response.status == 416 and part.size:
            match = _UNSATISFIED.fullmatch(response.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == part.size:
                part.resumed = True
                return  # it is all there; the digest decides
            await part.begin(version, None)
            raise _Cut(StorageError("The server does not resume downloads.", reason="SourceRefused"))
        else:
            raise _answer(response.status, response.url.host or "")
        _bound(total if total is not None else part.size, wanted.most)
        if total is not None:
            part.claim(total)
        await self._take(response.content, part, total, wanted.most, pace)

    async def _take(self, body: aiohttp.StreamReader, part: Part, total: int | None, most: int, pace: Pace) -> None:
        waiting = bytearray()
        try:
            async for data in body.iter_any():
                waiting += data
                _bound(part.size + len(waiting), most)
                pace.at(part.size + len(waiting), total)
                if len(waiting) >= _WRITE:
                    await part.append(bytes(waiting))
                    waiting.clear()
        except (aiohttp.ClientError, OSError):
            await part.append(bytes(waiting))
            raise
        await part.append(bytes(waiting))


def _bound(size: int, most: int) -> None:
    if size > most:
        raise StorageError(
            f"The image is larger than the {most} bytes it may have.",
            reason="ImageTooLarge",
            retryable=False,
        )


def _resume(part: Part) -> dict[str, str]:
    """Headers that ask for the rest, provided it is of the same version where that can be told (RFC 9110, 13.1.5)."""
    if not part.size:
        return {}
    headers = {"Range": f"bytes={part.size}-"}
    if part.validator:
        headers["If-Range"] = part.validator
    return headers


def _validator(response: aiohttp.ClientResponse) -> str | None:
    tag = response.headers.get("ETag")
    if tag and tag.startswith('"') and tag.endswith('"') and len(tag) <= 256:
        return tag
    date = response.headers.get("Last-Modified")
    return date if date and len(date) <= 64 else None


def _next(url: URL, location: str | None) -> URL:
    if not location:
        raise forbidden("The image's source redirects to nowhere.")
    try:
        return parsed(str(url.join(URL(location))))
    except ValueError as error:
        raise forbidden("The image's source redirects to something that is not a URL.") from error


def _answer(status: int, host: str) -> Exception:
    if status in (404, 410):
        return StorageError(
            f"The server {host} has no such file (HTTP {status}). Check the image's source.", reason="SourceNotFound"
        )
    if status >= 500 or status in (408, 425, 429):
        return _Cut(StorageError(f"The server {host} is in trouble (HTTP {status}).", reason="SourceUnavailable"))
    if status in (401, 403):
        return StorageError(
            f"The server {host} refuses (HTTP {status}). Check the image's source, and the login to it if it has one.",
            reason="SourceUnauthorized",
        )
    return StorageError(f"The server {host} refuses (HTTP {status}). Check the image's source.", reason="SourceRefused")
