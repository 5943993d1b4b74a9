"""Acting at a pace, and half times."""

from __future__ import annotations

import asyncio

from tests.bench import burst
from tests.bench.machines import at_once, paced


async def test_paced_begins_each_in_its_turn_whether_the_earlier_have_ended_or_not() -> None:
    running = most = 0

    async def act(_: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1

    sent = await paced([str(number) for number in range(10)], 200, act)
    assert list(sent) == [str(number) for number in range(10)]
    assert most > 1


async def test_at_once_keeps_to_its_width_and_does_all() -> None:
    running = most = 0
    done: list[str] = []

    async def act(name: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(name)

    await at_once([str(number) for number in range(20)], 4, act)
    assert most == 4
    assert len(done) == 20


def test_half_time() -> None:
    assert burst.half_time(0, [1, 2, 3, 4]) == 0.5
    assert burst.half_time(0, [9, 9, 10, 10]) == 0
    assert burst.half_time(10, [11, 11, 11, 20]) == 0.75
