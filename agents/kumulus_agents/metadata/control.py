"""The end of the line to the agent that the metadata server has: does what it is told. Only root can reach it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

from kumulus_agents.metadata.line import PACKET, SECONDS
from kumulus_agents.metadata.server import Server


class Control:
    """Listens, and does what it is told."""

    def __init__(self, listening: socket.socket, server: Server) -> None:
        self._listening = listening
        self._server = server
        self._stop = asyncio.Event()

    @staticmethod
    def listen(path: Path) -> socket.socket:
        """The socket, at that path; what an earlier process left there goes."""
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(4)
        listening.setblocking(False)
        return listening

    async def run(self) -> None:
        """Answer until told to stop."""
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(self._accept(tasks))
            await self._stop.wait()
            accepting.cancel()
            for network in list(self._server.networks):
                await self._server.drop(network)
        self._listening.close()

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listening)
            tasks.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        connection.setblocking(False)
        loop.add_reader(connection, readable.set)
        try:
            while not self._stop.is_set():
                async with asyncio.timeout(SECONDS):
                    await readable.wait()
                readable.clear()
                try:
                    data, descriptors, _, _ = socket.recv_fds(connection, PACKET, 1, socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:  # told of what was read already
                    continue
                if not data:
                    return
                answer = await self._do(json.loads(data), [socket.socket(fileno=fd) for fd in descriptors])
                connection.send(json.dumps(answer).encode())
        except (OSError, ValueError, KeyError, TimeoutError):
            return
        finally:
            loop.remove_reader(connection)
            connection.close()

    async def _do(self, asked: dict[str, Any], sockets: list[socket.socket]) -> dict[str, Any]:
        if "add" in asked:
            (listener,) = sockets
            listener.setblocking(False)
            await self._server.add(str(asked["add"]), int(asked["inode"]), listener)
        elif "drop" in asked:
            await self._server.drop(str(asked["drop"]))
        elif "stop" in asked:
            self._stop.set()
        return {"networks": self._server.networks}
