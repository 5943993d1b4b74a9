"""Rules that somebody else may have changed are looked at soon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

SECONDS = 1.0
"""How often it is asked whether nftables has changed."""
SHARE = 10
"""Looking at rules takes no more than one part in so many of the time, whatever else changes nftables on the host."""


class Watch:
    """Over what is in nftables. It is waited for by one at a time."""

    def __init__(
        self,
        disturbed: Callable[[], bool],
        mend: Callable[[], Awaitable[Sequence[str]]],
        *,
        seconds: float = SECONDS,
    ) -> None:
        """`disturbed` asks the kernel for one number; `mend` compares rules, has them so, and says what was wrong."""
        self._disturbed, self._mend, self._seconds = disturbed, mend, seconds
        self._pause = seconds

    async def until_wrong(self) -> Sequence[str]:
        """Return what was wrong, when it was and has been mended. Raises what `mend` does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._pause)
            self._pause = self._seconds
            if not self._disturbed():
                continue
            began = loop.time()
            try:
                wrong = await self._mend()
            finally:
                self._pause = max(self._seconds, SHARE * (loop.time() - began))
            if wrong:
                return wrong
