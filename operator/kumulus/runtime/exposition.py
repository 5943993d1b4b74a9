"""What `/metrics` answers, within a deadline, whatever those do who are asked for numbers.

What the process has counted itself is there at once. What has to be asked of somebody first (`ASKED`: drivers, the kernel)
may take long, for it may wait for a lock: then what was known last is served, and `kumulus_metrics_age_seconds` says how old
that is. One is asked by one thread at a time, holds up no other, and nothing waits for that thread but the request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

log = structlog.get_logger(__name__)

ASKED: dict[str, Collector] = {}
"""Collectors that ask somebody, by a word for each. They may block, and raise."""
SECONDS = 3.0
"""Within which there is an answer. Prometheus itself waits for 10 s unless told otherwise."""

AGE_NAME = "kumulus_metrics_age_seconds"
AGE_HELP = "How old metrics are that somebody has to be asked for; NaN: there are none yet."
_AGE = f"# HELP {AGE_NAME} {AGE_HELP}\n# TYPE {AGE_NAME} gauge\n"


class Exposition:
    """Of one server. Its methods are called in one loop."""

    def __init__(
        self,
        counted: CollectorRegistry = REGISTRY,
        asked: Mapping[str, Collector] = ASKED,
        *,
        seconds: float = SECONDS,
    ) -> None:
        """`asked` may change at any time."""
        self._counted, self._asked = _Part(counted), asked
        self._parts: dict[Collector, _Part] = {}
        self._seconds = seconds

    async def text(self) -> bytes:
        """All there is to say, within the deadline."""
        until = time.monotonic() + self._seconds
        asked = dict(self._asked)
        parts = {name: self._parts.get(one) or _Part(_alone(one)) for name, one in asked.items()}
        self._parts = {one: parts[name] for name, one in asked.items()}
        texts = await asyncio.gather(*(part.latest(until) for part in (self._counted, *parts.values())))
        ages = "".join(f'{AGE_NAME}{{of="{name}"}} {part.age()}\n' for name, part in parts.items())
        return b"".join(texts) + (_AGE + ages).encode()


def _alone(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


class _Part:
    """One registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._text = b""
        self._at: float | None = None
        """When what is known was begun to be looked up."""
        self._looking: asyncio.Event | None = None

    def age(self) -> float:
        """Seconds since what is known was looked up."""
        return time.monotonic() - self._at if self._at is not None else float("nan")

    async def latest(self, until: float) -> bytes:
        """What there is to say: of now if that comes in time, else what is known."""
        if self._looking is None:
            self._looking = asyncio.Event()
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._look, args=(loop, self._looking), name="metrics", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._looking.wait()
        return self._text

    def _look(self, loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
        """In a thread of its own. One that ends the process does not wait for."""
        began, text = time.monotonic(), None
        try:
            text = generate_latest(self._registry)
        except Exception:
            log.exception("metrics not looked up")
        with suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(self._found, began, text, done)

    def _found(self, began: float, text: bytes | None, done: asyncio.Event) -> None:
        if text is not None:
            self._text, self._at = text, began
        self._looking = None
        done.set()
