"""The word by which a guest goes on at the host that it has come to (docs/adr/0029), with the connections that go along.

The guest is halted until that has come, so the way there stands before: a connection that has not said yet what it is for. It
says nothing by itself, and whoever has it may do nothing with it but say it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence

import structlog

from kumulus.api.segments import Nic
from kumulus_agents.agent.networks import Networks
from kumulus_agents.hypervisor.migration import Stream
from kumulus_agents.network import connections
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.protocol import NetworkError
from kumulus_agents.transfer.tunnel import HELLO_SECONDS, End, Purpose, Tunnel

log = structlog.get_logger(__name__)

GO = "go"
"""Channel by which the source says that the guest is the target's."""
HEARD_WITHIN = 5.0
"""Seconds for a word from host to host; the guest is halted meanwhile."""
CONNECTIONS_WITHIN = 1.0
"""Seconds within which an interface's connections are found out, while the guest is halted."""
RENEWED_EVERY = HELLO_SECONDS / 2
"""Seconds; the other host ends a connection that does not say what it is for."""


class Word:
    """About one guest, to one host."""

    def __init__(self, tunnel: Tunnel, end: End, migration: str, nics: Sequence[Nic], networks: Networks) -> None:
        self._tunnel = tunnel
        self._end = end
        self._migration = migration
        self._nics = nics
        self._networks = networks
        self._way: Stream | None = None
        self._known: asyncio.Task[bytes] | None = None

    async def stand_ready(self) -> None:
        """Have a way to the other host, until cancelled."""
        while True:
            with contextlib.suppress(OSError):
                new = await self._tunnel.dial(self._end)
                before, self._way = self._way, new  # whoever said the word meanwhile has taken the one before
                if before is not None:
                    before[1].close()
            await asyncio.sleep(RENEWED_EVERY)

    def halted(self) -> None:
        """The guest does nothing here any more: its connections can be asked for, while the rest of it is brought there."""
        if self._known is None:
            self._known = asyncio.create_task(self._ask())

    async def close(self) -> None:
        """It is not said, or was."""
        if self._known is not None:
            self._known.cancel()
            await asyncio.gather(self._known, return_exceptions=True)
        if self._way is not None:
            self._way[1].close()
            self._way = None

    async def known(self) -> bytes:
        """What connections the guest has, as it is said."""
        self.halted()
        assert self._known is not None
        return await self._known

    async def _ask(self) -> bytes:
        known = {nic.uid: connections.to_json(await self._of(nic)) for nic in self._nics}
        return json.dumps(known).encode() + b"\n"

    async def say(self, known: bytes) -> None:
        """The guest is the other host's. If that is not heard, the controllers say it."""
        way, self._way = self._way, None
        if way is not None:
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                await self._say(way, known)
                return
        try:
            await self._say(await self._tunnel.dial(self._end), known)
        except OSError as error:
            log.info("the other host is told by the controllers", host=self._end.host, error=str(error))

    async def _say(self, way: Stream, known: bytes) -> None:
        """Said twice is said once. Raises `OSError` when the other host did not take it."""
        await self._tunnel.begin(way, self._end, Purpose(self._migration, GO), known)
        reader, writer = way
        try:
            async with asyncio.timeout(HEARD_WITHIN):
                await reader.readline()
        except (OSError, TimeoutError, ValueError):
            log.info("the other host did not say that it has heard", host=self._end.host)
        finally:
            writer.close()

    async def _of(self, nic: Nic) -> Sequence[Connection]:
        """A guest whose connections cannot be told goes on without: they are judged anew."""
        try:
            async with asyncio.timeout(CONNECTIONS_WITHIN):
                return await self._networks.connections(nic)
        except (NetworkError, OSError, ValueError) as error:  # TimeoutError is one of OSError
            log.warning("connections do not go along", interface=nic.uid, error=str(error))
            return ()
