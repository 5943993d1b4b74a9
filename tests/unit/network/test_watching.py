"""Rules that somebody else may have changed are looked at soon, and not all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from kumulus_agents.network.linux.watching import SHARE, Watch


async def test_it_waits_until_something_is_wrong() -> None:
    asked, found = iter([False, True, False, True]), iter([(), ("gone",)])

    async def mend() -> Sequence[str]:
        return next(found)

    async with asyncio.timeout(30):
        assert await Watch(lambda: next(asked), mend, seconds=0.001).until_wrong() == ("gone",)
    assert list(asked) == []


async def test_looking_takes_a_tenth_of_the_time_also_for_who_asks_again() -> None:
    """Each look takes 20 ms and finds something, as where another program loads its rules all the time; or fails."""
    loop = asyncio.get_running_loop()
    looked: list[float] = []

    async def mend() -> Sequence[str]:
        looked.append(loop.time())
        await asyncio.sleep(0.02)
        if len(looked) == 2:
            raise OSError("nft does not answer")
        return ("gone",)

    watch = Watch(lambda: True, mend, seconds=0.001)
    async with asyncio.timeout(30):
        assert await watch.until_wrong() == ("gone",)
        with pytest.raises(OSError, match="does not answer"):
            await watch.until_wrong()
        assert await watch.until_wrong() == ("gone",)
    pauses = [after - before for before, after in pairwise(looked)]
    assert min(pauses) >= 0.02 * SHARE
