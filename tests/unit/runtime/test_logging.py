"""A process that runs logs more when it is told to, and as before when it is told so: with the loop that processes have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

PROCESS = """
import asyncio, sys
import structlog, uvloop
from kumulus.runtime import logging

log = structlog.get_logger("test")

async def main():
    logging.heed_signals(asyncio.get_running_loop())
    # As a process does: it waits in the loop, and nothing else happens.
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        log.debug("detail", at=line.decode().strip())
        log.info("fact", at=line.decode().strip())

logging.configure()
uvloop.run(main())
"""


def test_the_level_of_a_running_process_goes_up_and_down() -> None:
    environment = {**os.environ, "KUMULUS_LOG_FORMAT": "json", "KUMULUS_LOG_LEVEL": "info"}
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        told: list[tuple[str, str]] = []

        def say(word: str) -> None:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

        def hear(event: str) -> None:
            """Until it has told that."""
            assert process.stderr is not None
            for line in process.stderr:
                entry = json.loads(line)
                told.append((entry["event"], entry.get("at", "")))
                if entry["event"] == event:
                    return
            raise AssertionError(f"it ended: {told}")

        say("before")
        hear("fact")
        process.send_signal(signal.SIGUSR1)
        hear("log level changed")
        say("between")
        hear("fact")
        process.send_signal(signal.SIGUSR2)
        hear("log level changed")
        say("after")
        hear("fact")
        process.stdin.close()
        assert process.wait(20) == 0
    assert [event for event, at in told if at == "between"] == ["detail", "fact"]
    assert [event for event, at in told if at in ("before", "after")] == ["fact", "fact"]
