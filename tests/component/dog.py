"""The watchdog of a simulated host: the product's deadline and socket, in the test's own process, with simulated machines to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kumulus_agents.watchdog.daemon import boottime
from kumulus_agents.watchdog.watch import State, Watch


@asynccontextmanager
async def watchdog(socket: Path, fire: Callable[[], Awaitable[None]]) -> AsyncIterator[Watch]:
    """It runs inside the block; `fire` ends the host's agent and machines."""
    watch = Watch()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            said, now = json.loads(line), boottime()
            match said["verb"]:
                case "arm":
                    done = watch.arm(said["seconds"], said["renewed"], now)
                case "renew":
                    done = watch.renew(said["renewed"], now)
                case "disarm":
                    done = watch.disarm(now)
                case _:
                    done = False
            writer.write(json.dumps({"ok": done, "state": watch.state}).encode() + b"\n")
        writer.close()

    async def look() -> None:
        while True:
            before = watch.state
            if watch.look(boottime()) is State.FIRED and before is not State.FIRED:
                await fire()
            await asyncio.sleep(0.05)

    server = await asyncio.start_unix_server(serve, str(socket))
    looking = asyncio.create_task(look())
    try:
        yield watch
    finally:
        failed = looking.done()
        looking.cancel()
        server.close()
        if failed:
            looking.result()
