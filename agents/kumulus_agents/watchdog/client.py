"""The agent's side of the watchdog's socket."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

SECONDS = 2.0
"""Within which the watchdog has to answer."""


class WatchdogError(Exception):
    """The watchdog is not there, or does not do what it is asked."""


class WatchdogGone(WatchdogError):
    """Nobody is at the socket: nothing is armed."""


class WatchdogFired(WatchdogError):
    """It ends the host's machines, until it is armed anew."""


class Watchdog:
    """One connection, made when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def arm(self, seconds: float, renewed: float) -> None:
        """Have it end the machines so many seconds after that renewal began (`daemon.boottime`), unless it hears of another.
        Raises `WatchdogError`."""
        await self._ask(verb="arm", seconds=seconds, renewed=renewed)

    async def renew(self, renewed: float) -> None:
        """There was another. Raises `WatchdogError`."""
        await self._ask(verb="renew", renewed=renewed)

    async def disarm(self) -> None:
        """Nobody counts on it any more. Raises `WatchdogError`: `WatchdogFired` when it has to be armed first."""
        await self._ask(verb="disarm")

    async def close(self) -> None:
        """End the connection; what is armed stays so."""
        if self._stream is not None:
            (_, writer), self._stream = self._stream, None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _ask(self, **said: object) -> None:
        async with self._turn:
            try:
                async with asyncio.timeout(SECONDS):
                    if self._stream is None:
                        self._stream = await asyncio.open_unix_connection(str(self._path))
                    reader, writer = self._stream
                    writer.write(json.dumps(said).encode() + b"\n")
                    await writer.drain()
                    line = await reader.readline()
                answer = json.loads(line or b"null")
            except (FileNotFoundError, ConnectionRefusedError) as error:
                await self.close()
                raise WatchdogGone(f"no watchdog listens at {self._path}") from error
            except (OSError, TimeoutError, ValueError) as error:
                await self.close()
                raise WatchdogError(f"the watchdog does not answer at {self._path}") from error
            if not isinstance(answer, dict):
                await self.close()
                raise WatchdogError(f"the watchdog at {self._path} has ended the connection")
            if not answer.get("ok"):
                refused = WatchdogFired if answer.get("state") == "Fired" else WatchdogError
                raise refused(f"the watchdog refuses to {said['verb']}: it is {answer.get('state')}")
