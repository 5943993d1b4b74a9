"""A way to the API server that a test can cut: bytes pass as they are until then, and not at all while it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from kumulus.kube.client import KubeClient


@dataclass
class Relay:
    """One way to one server."""

    host: str
    port: int
    down: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Everything that is open ends, and nothing new comes through."""
        self.down = True
        for writer in tuple(self._open):
            writer.transport.abort()

    def heal(self) -> None:
        """It is as it was."""
        self.down = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(self.host, self.port)
        self._open |= {writer, back}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass(reader, back))
                tasks.create_task(_pass(there, writer))
        finally:
            self._open -= {writer, back}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def relayed(kubeconfig: Path, directory: Path) -> AsyncIterator[tuple[Relay, KubeClient]]:
    """A client whose way to the API server can be cut."""
    config = yaml.safe_load(kubeconfig.read_text())  # noqa: ASYNC240 - a small file
    at = config["clusters"][0]["cluster"]
    parts = urlsplit(at["server"])
    relay = Relay(parts.hostname or "", parts.port or 443)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    at["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    copy = directory / "relayed.kubeconfig"
    copy.write_text(yaml.safe_dump(config))
    client = await KubeClient.from_kubeconfig(copy, user_agent="test-relayed")
    try:
        yield relay, client
    finally:
        await client.close()
        relay.cut()
        server.close()
