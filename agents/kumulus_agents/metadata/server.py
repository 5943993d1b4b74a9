"""Answers guests. Knows the asking machine by the network that a socket is in and by the address that it asks from.

Filters make the address true; no header says who asks, and a request that was forwarded is refused. Everything a guest can
send is bounded. Runs without privileges; sockets are handed to it (`control`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from kumulus_agents.metadata import documents
from kumulus_agents.metadata.records import REMEMBERED, MachineRecord, Reader

TOKEN, TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
LONGEST = 21600
"""Seconds that a token may be good for, as with EC2."""
HOPS = 1
"""A token goes no further than to the guest itself: not through a proxy or to a container behind its own NAT."""
CONNECTIONS_EACH = 16
CONNECTIONS_ALL = 1024
LIFE = 30.0
"""A connection is cut after so many seconds."""
RATE, BURST = 50.0, 200.0
"""Requests a second that an address may make, and how many at once."""
KNOWN = 4096
"""Addresses whose rate is remembered."""

Peer = tuple[str, str]
"""Network and address."""


class Tokens:
    """Session tokens: nothing is kept of them. They are good in the network and for the address that asked, until they end
    or this process does."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def issue(self, peer: Peer, seconds: int) -> str:
        """A new one."""
        until = int(self._clock()) + seconds
        return f"{until:x}.{self._sign(peer, until)}"

    def holds(self, peer: Peer, token: str) -> bool:
        """Whether it is one of ours for that peer, and not over."""
        try:
            until = int(token.partition(".")[0], 16)
        except ValueError:
            return False
        signed = hmac.compare_digest(token.partition(".")[2].encode(), self._sign(peer, until).encode())
        return signed and self._clock() < until

    def _sign(self, peer: Peer, until: int) -> str:
        return hmac.new(self._key, f"{peer} {until}".encode(), hashlib.sha256).hexdigest()


class Rates:
    """How often an address may ask: a bucket each, the least recently used forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[Peer, tuple[float, float]] = OrderedDict()

    def allow(self, peer: Peer) -> bool:
        """Count a request; whether it may be answered."""
        now = self._clock()
        level, before = self._buckets.pop(peer, (BURST, now))
        level = min(BURST, level + (now - before) * RATE)
        self._buckets[peer] = (max(level - 1, 0.0), now)
        if len(self._buckets) > KNOWN:
            self._buckets.popitem(last=False)
        return level >= 1


class Server:
    """Of all networks of this host."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._tokens = Tokens()
        self._rates = Rates()
        self._open: Counter[Peer] = Counter()
        self._listening: dict[str, tuple[int, asyncio.Server, web.Server]] = {}
        self._trees: OrderedDict[str, tuple[MachineRecord, documents.Tree]] = OrderedDict()
        self._making = asyncio.Lock()
        # Made, and its module read, while the process may still read its own libraries.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="documents")

    @property
    def networks(self) -> dict[str, int]:
        """Where it answers, and the inode of the network namespace that the socket is in."""
        return {uid: inode for uid, (inode, _, _) in self._listening.items()}

    async def add(self, network: str, inode: int, listener: socket.socket) -> None:
        """Answer in that network; a socket that it had there before is closed."""
        await self.drop(network)
        answering = web.Server(
            lambda request: self._answer(network, request),
            access_log=None,
            max_line_size=2048,
            max_field_size=2048,
            max_headers=32,
            keepalive_timeout=5,
            tcp_keepalive=False,
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Bounded(answering(), network, self._open), sock=listener, backlog=64)
        self._listening[network] = (inode, server, answering)

    async def drop(self, network: str) -> None:
        """Answer there no longer."""
        if (found := self._listening.pop(network, None)) is not None:
            found[1].close()
            await found[2].shutdown(1.0)

    async def _answer(self, network: str, request: web.BaseRequest) -> web.StreamResponse:
        address = _address_of(request.transport)
        peer = (network, address)
        if not self._rates.allow(peer):
            return _refuse(503, "Too many requests.")
        if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
            return _refuse(403, "Requests that were forwarded are refused.")
        machine = self._machine(network, address)
        if machine is None:
            return _refuse(404, "Nothing is known of the machine at this address.")
        if request.path == "/latest/api/token":
            return self._token(peer, request)
        if request.method not in ("GET", "HEAD"):
            return _refuse(405, "Only GET.")
        token = request.headers.get(TOKEN)
        if token is not None and not self._tokens.holds(peer, token):
            return _refuse(401, "The token is not good any more.")
        text = documents.find(await self._tree(machine), request.path)
        if text is None:
            return _refuse(404, "There is nothing here.")
        kind = "application/json" if request.path.endswith(".json") else "text/plain"
        return web.Response(text=text, content_type=kind)

    def _machine(self, network: str, address: str) -> MachineRecord | None:
        try:
            return self._reader.machine_at(network, address)
        except (OSError, ValueError):
            return None

    async def _tree(self, machine: MachineRecord) -> documents.Tree:
        """What the machine may ask: made once for each state of its file, beside the loop, and one at a time, for making it
        is work that a tenant gives."""
        if (known := self._trees.get(machine.uid)) is None or known[0] is not machine:
            async with self._making:
                if (known := self._trees.get(machine.uid)) is None or known[0] is not machine:
                    loop = asyncio.get_running_loop()
                    known = (machine, await loop.run_in_executor(self._pool, documents.tree, machine))
                    self._trees[machine.uid] = known
        self._trees.move_to_end(machine.uid)
        if len(self._trees) > REMEMBERED:
            self._trees.popitem(last=False)
        return known[1]

    def _token(self, peer: Peer, request: web.BaseRequest) -> web.Response:
        if request.method != "PUT":
            return _refuse(405, "Only PUT.")
        wanted = request.headers.get(TOKEN_TTL, "")
        if not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 5 and 1 <= int(wanted) <= LONGEST):
            return _refuse(400, f"{TOKEN_TTL} must be from 1 to {LONGEST}.")
        connection = request.transport.get_extra_info("socket") if request.transport else None
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)
        return web.Response(text=self._tokens.issue(peer, int(wanted)), headers={TOKEN_TTL: wanted})


class Bounded(asyncio.Protocol):
    """A connection that ends after a while, of which an address has only so many."""

    def __init__(self, inner: Any, network: str, opened: Counter[Peer]) -> None:
        self._inner = inner
        self._network = network
        self._opened = opened
        self._peer: Peer | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = (self._network, _address_of(transport))
        self._inner.connection_made(transport)
        if self._opened[peer] >= CONNECTIONS_EACH or self._opened.total() >= CONNECTIONS_ALL:
            # Reset, or what is refused would be kept in the kernel for a minute each.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return
        self._peer = peer
        self._opened[peer] += 1
        self._end = asyncio.get_running_loop().call_later(LIFE, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        if self._peer is not None:
            self._opened[self._peer] -= 1
            if not self._opened[self._peer]:
                del self._opened[self._peer]
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        answer: bool | None = self._inner.eof_received()
        return answer

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _address_of(transport: asyncio.BaseTransport | None) -> str:
    """Where a connection comes from; empty when it is over already."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else ""


def _refuse(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
