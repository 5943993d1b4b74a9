"""The process that answers guests: `python -m kumulus_agents.metadata DIRECTORY UID`.

It opens the directory and the socket on which the agent hands it sockets, gives up all privileges, and answers until it is
told to stop. It outlives the agent. Only one runs in a directory.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from kumulus_agents.metadata.control import Control
from kumulus_agents.metadata.line import CONTROL, LOCK
from kumulus_agents.metadata.records import Reader
from kumulus_agents.metadata.server import Server


def main(directory: Path, uid: int) -> int:
    """Exit status: 0, also when another one runs."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    listening = Control.listen(directory / CONTROL)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    asyncio.run(Control(listening, Server(Reader(root))).run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
