"""Ways from host to host by which guests move: as `kumulus_agents.transfer` has them, without TLS and without sockets.

Who connects names what for, and the agent there answers or not, by its orders. When an agent dies, or the way is cut, what was
open ends for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from kumulus.api.host import CertificateOrder, MigrationEndpoint
from kumulus_agents.hypervisor.migration import Stream
from kumulus_agents.transfer.server import Find
from kumulus_agents.transfer.settings import TransferSettings
from kumulus_agents.transfer.transfer import Transfer
from kumulus_agents.transfer.tunnel import HELLO_SECONDS, End, Purpose, Serve, Tunnel, purpose_of
from tests.fault.parties import Crash, Life

PORT = 9413


class Ways:
    """Of all hosts of a world."""

    def __init__(self) -> None:
        self.open: dict[str, MemoryTunnel] = {}
        """The tunnels of agents that answer, by host."""
        self.cut = False
        """Nothing gets from host to host."""
        self._ends: dict[_Writer, None] = {}

    def pair(self) -> tuple[Stream, Stream]:
        """Both ends of a connection."""
        one, two = asyncio.StreamReader(), asyncio.StreamReader()
        ends = _Writer(two, self._end), _Writer(one, self._end)
        self._ends.update(dict.fromkeys(ends))
        return (one, cast(asyncio.StreamWriter, ends[0])), (two, cast(asyncio.StreamWriter, ends[1]))

    def _end(self, end: _Writer) -> None:
        self._ends.pop(end, None)

    def break_(self) -> None:
        """What is open ends."""
        for end in list(self._ends):
            end.close()


class _Writer:
    """One end, as far as it is written to."""

    def __init__(self, there: asyncio.StreamReader, ended: Callable[[_Writer], None]) -> None:
        self._there, self._ended, self._closed = there, ended, False

    def write(self, data: bytes) -> None:
        if not self._closed:
            self._there.feed_data(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise ConnectionResetError("the connection has ended")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ended(self)
            self._there.feed_eof()

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)


class MemoryTunnel(Tunnel):
    """The end of one agent's life."""

    def __init__(self, host: str, ways: Ways, life: Life) -> None:
        super().__init__(lambda: None)
        self.port = PORT
        self._host, self._ways, self._life = host, ways, life
        self._answer: Serve | None = None

    def serve(self, serve: Serve) -> None:
        self._answer = serve

    async def dial(self, end: End) -> Stream:
        self._life.check()
        there = self._ways.open.get(end.host)
        if there is None or self._ways.cut:
            raise ConnectionRefusedError(f"host {end.host} does not answer")
        ours, theirs = self._ways.pair()
        there.come(self._host, theirs)
        return ours

    async def begin(self, stream: Stream, end: End, purpose: Purpose, more: bytes = b"") -> None:
        self._life.check()
        await super().begin(stream, end, purpose, more)

    def come(self, peer: str, stream: Stream) -> None:
        """A connection of another host."""
        task = asyncio.get_running_loop().create_task(self._accepted(peer, stream))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _accepted(self, peer: str, stream: Stream) -> None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                purpose = purpose_of(await stream[0].readline())
            if self._answer is not None and purpose is not None:
                await self._answer(peer, purpose, stream)
        except (Exception, Crash):
            pass
        finally:
            stream[1].close()


class MemoryTransfer(Transfer):
    """A host's part in it. Images are not exchanged."""

    def __init__(self, host: str, address: str, ways: Ways, life: Life) -> None:
        super().__init__(host, TransferSettings(), "")
        self._host, self._ways, self._address = host, ways, address
        self.tunnel: MemoryTunnel = MemoryTunnel(host, ways, life)

    def facts(self) -> None:
        return None

    def migration_facts(self) -> MigrationEndpoint:
        return MigrationEndpoint(address=self._address, port=PORT)

    async def open(self, find: Find) -> None:
        self._ways.open[self._host] = self.tunnel

    async def adopt(self, given: CertificateOrder) -> bool:
        return False

    async def close(self) -> None:
        if self._ways.open.get(self._host) is self.tunnel:
            del self._ways.open[self._host]
        await super().close()
