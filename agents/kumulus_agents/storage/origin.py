"""Where a request goes: a URL, and the addresses that were checked before anything is sent.

A name is resolved once for each request; the connection can only be made to an address that was
checked. That closes DNS rebinding, odd spellings of addresses (0x7f000001, 2130706433, 127.1) and
redirects into closed networks, because every hop passes here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from kumulus.kube.connector import Connector
from kumulus_agents.storage.addresses import Address, Policy, canonical, refusal
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import FetchSettings

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name, for a port. Raises `OSError` when there are none."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9.])?", re.IGNORECASE)
_AUTHORITY_WITH_USER = re.compile(r"[^:]*://[^/?#]*@")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


def forbidden(message: str) -> StorageError:
    """The refusal of a source."""
    return StorageError(message, reason="SourceForbidden", retryable=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """A URL that may be asked, and the only addresses the connection may go to."""

    url: URL
    addresses: tuple[Address, ...]


def parsed(text: str) -> URL:
    """The URL, if it is one that may be asked at all: http or https, a plain host, no credentials."""
    if any(c <= " " or c == "\x7f" or c == "\\" for c in text):
        raise forbidden("The image's URL has spaces, control characters or backslashes in it.")
    try:
        url = URL(text)
        host, _ = url.raw_host, url.port
    except ValueError as error:
        raise forbidden(f"The image's URL is not a URL: {error}.") from None
    if url.scheme not in ("http", "https"):
        raise forbidden("Images are fetched over http or https only.")
    if url.raw_user is not None or url.raw_password is not None or _AUTHORITY_WITH_USER.match(text):
        raise forbidden("The image's URL must not have a user name or password in it.")
    if not host or not url.port:
        raise forbidden("The image's URL has no host or no port.")
    return url.with_fragment(None)


def literal(host: str) -> Address | None:
    """The address that the host is, if it is one. Raises `StorageError` for spellings only some programs read."""
    host = host.rstrip(".")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise forbidden("The image's URL has a host that is neither a name nor an address in its usual form.")
    return None


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Ask the host's own resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


async def checked(url: URL, settings: FetchSettings, resolve: Resolve) -> Origin:
    """The origin of the URL. Raises `StorageError` when any of its addresses is closed, before anything is sent."""
    host, port = url.raw_host or "", url.port or 0
    address = literal(host)
    addresses: tuple[Address, ...]
    if address is not None:
        addresses = (address,)
    else:
        try:
            async with asyncio.timeout(settings.connect_timeout):
                names = await resolve(host, port)
            addresses = tuple(dict.fromkeys(ipaddress.ip_address(name) for name in names))
        except TimeoutError:
            raise StorageError(f"The name {host} was not resolved in time.", reason="SourceTimeout") from None
        except (OSError, ValueError) as error:
            raise StorageError(
                f"The name {host} could not be resolved. Check the image's URL.", reason="SourceNotFound"
            ) from error
        if not addresses:
            raise StorageError(f"The name {host} has no address.", reason="SourceNotFound")
    policy = Policy(forbidden=settings.forbidden_networks, allowed=settings.allowed_networks)
    for candidate in addresses:
        if why := refusal(candidate, policy):
            raise forbidden(
                f"The host {host} of the image's URL is {why}. Use another source, or ask an administrator to allow it."
            )
    return Origin(url, addresses)


def trust(ca_bundle: str | None) -> ssl.SSLContext:
    """What https servers must prove themselves with: the bundle alone if there is one, else the host's own."""
    try:
        return ssl.create_default_context(cadata=ca_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise StorageError(
            "The image's caBundle has no certificates in PEM form.", reason="SourceUntrusted", retryable=False
        ) from error


def session(origin: Origin, context: ssl.SSLContext, settings: FetchSettings) -> aiohttp.ClientSession:
    """A session for one request to that origin: no proxy, no cookies, no credentials, no decoding."""
    connector = _Gate(
        origin,
        resolver=_Pinned(origin),
        use_dns_cache=False,
        ssl=context,
        limit=1,
        force_close=True,
    )
    return aiohttp.ClientSession(
        connector=connector,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "kumulus-agent"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.idle_timeout
        ),
    )


class _Pinned(AbstractResolver):
    """Answers with what was checked, and for that host only."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host.rstrip(".") != (self._origin.url.raw_host or "").rstrip("."):
            raise OSError(f"{host} was not checked")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._origin.addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


class _Gate(Connector):
    """The only maker of connections: it makes none to an address that was not checked."""

    def __init__(self, origin: Origin, **options: Any) -> None:
        super().__init__(**options)
        self._open_to = frozenset(canonical(address) for address in origin.addresses)

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **more: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        host, *_ = addr_infos[0][4]
        if canonical(ipaddress.ip_address(str(host))) not in self._open_to:
            raise OSError(f"{host} was not checked")
        return await super()._wrap_create_connection(*args, addr_infos=addr_infos, **more)
