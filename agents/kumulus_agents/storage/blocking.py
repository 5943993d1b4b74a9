"""Blocking calls off the event loop, and things that must reach their end, without leaving any behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of the call, made in a thread.

    Cancelling waits for the call to end before it goes on, so that no thread works with a file or a
    directory that its caller has closed. Calls must therefore end by themselves.
    """
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, lambda: call(*args, **kwargs)))


async def to_the_end(future: asyncio.Future[T]) -> T:
    """The result of the future; when this is cancelled, it first waits until the future is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise
