"""Asks the agents something on their event loop, from a thread that serves metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0
"""After which nobody is waited for any more. Who reads metrics waits no so long: he gets what was known before."""


def ask(
    loop: asyncio.AbstractEventLoop, question: Callable[[], Awaitable[Sequence[T]]], *, seconds: float = SECONDS
) -> Sequence[T]:
    """The answer. Raises what the question raises, and `TimeoutError`: who serves metrics then keeps what was known."""

    async def asking() -> Sequence[T]:
        return await question()

    asked = asyncio.run_coroutine_threadsafe(asking(), loop)
    try:
        return asked.result(seconds)
    except TimeoutError:
        asked.cancel()
        raise
