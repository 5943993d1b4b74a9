"""JSON-RPC with programs of Open vSwitch and OVN, over their unix sockets. Blocks.

A connection for a few questions, where a process for each would cost more than the answers (`bridge/dump-flows` of each guest's
bridge), and where a copy of the whole database in memory would (`transact`). Sources: RFC 7047, 4; ovs-vswitchd(8).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kumulus_agents.network.protocol import NetworkError

SECONDS = 20.0
"""Within which all answers have to be there."""
_CHUNK = 1 << 16
_DECODER = json.JSONDecoder()

Question = tuple[str, Sequence[object]]
"""Method and parameters."""


def ask(path: Path, questions: Sequence[Question]) -> Sequence[Any]:
    """The answers, in the order of the questions; None for one that the program refuses. Raises `NetworkError`."""
    if not questions:
        return ()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS)
            connection.connect(str(path))
            return [_answer(connection, number, question) for number, question in enumerate(questions)]
    except (OSError, ValueError, KeyError) as error:
        raise NetworkError(f"{path} does not answer: {error}.", reason="NotAnswering") from error


def _answer(connection: socket.socket, number: int, question: Question) -> Any:
    method, parameters = question
    connection.sendall(json.dumps({"id": number, "method": method, "params": list(parameters)}).encode())
    said = b""
    while True:
        chunk = connection.recv(_CHUNK)
        if not chunk:
            raise ValueError("it hung up")
        said += chunk
        while said.rstrip().endswith(b"}"):
            try:
                message, end = _DECODER.raw_decode(said.decode())
            except json.JSONDecodeError:  # a part that happens to end so
                break
            if message.get("id") == number and message.get("method") is None:
                return message["result"]
            said = said.decode()[end:].lstrip().encode()
