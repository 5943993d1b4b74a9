"""How the agent tells the metadata server where to answer: one packet a question on a unix socket, sockets along with it.

The server's end is `control`, which an agent has no need to import.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

CONTROL, LOCK = "control", "lock"
"""Names of the socket, and of the file that the one server has locked."""
PACKET = 1 << 16
SECONDS = 5.0


class Line:
    """The agent's end. Calls block for some seconds at most and raise `OSError`, also when no server runs."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def networks(self) -> dict[str, int]:
        """Where the server answers, with the inodes of the namespaces."""
        return self._ask({"list": True})

    def add(self, network: str, inode: int, listener: socket.socket) -> None:
        """Have it answer there."""
        self._ask({"add": network, "inode": inode}, listener.fileno())

    def drop(self, network: str) -> None:
        """Have it answer there no longer."""
        self._ask({"drop": network})

    def stop(self) -> None:
        """Have it end."""
        with contextlib.suppress(OSError, ValueError):
            self._ask({"stop": True})

    def close(self) -> None:
        """Hang up; the server goes on."""
        self._socket.close()

    def _ask(self, question: dict[str, Any], *descriptors: int) -> dict[str, int]:
        socket.send_fds(self._socket, [json.dumps(question).encode()], list(descriptors))
        answer = json.loads(self._socket.recv(PACKET) or b"{}")
        if "networks" not in answer:
            raise OSError("the metadata server hung up")
        found: dict[str, int] = answer["networks"]
        return found
