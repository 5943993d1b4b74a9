"""`/metrics` answers within its deadline, and health meanwhile, whatever those do who are asked for numbers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterable, Iterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kumulus.runtime import http
from kumulus.runtime.exposition import Exposition

SECONDS = 0.3
AGE = 'kumulus_metrics_age_seconds{of="held"}'


class Held(Collector):
    """Answers when it may, as one does that waits for a lock."""

    def __init__(self) -> None:
        self.free, self.fails, self.asked, self.at_once = threading.Event(), False, 0, 0
        self.began = threading.Event()
        self._there = 0

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        self.asked += 1
        self.began.set()
        self._there += 1
        self.at_once = max(self.at_once, self._there)
        try:
            self.free.wait()
            if self.fails:
                raise RuntimeError("the kernel says nothing")
            return [GaugeMetricFamily("held", "Something.", value=self.asked)]
        finally:
            self._there -= 1


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.free.set()


class Quick(Collector):
    """Answers at once."""

    def collect(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("quick", "Something.", value=1)]


def exposition(held: Held, seconds: float = SECONDS) -> Exposition:
    counted = CollectorRegistry()
    Gauge("counted", "Something else.", registry=counted).set(7)
    return Exposition(counted, {"held": held, "quick": Quick()}, seconds=seconds)


def values(text: str) -> dict[str, float]:
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_who_does_not_answer_holds_up_neither_health_nor_what_is_known(held: Held) -> None:
    async with (
        http.serve(0, healthy={}, ready={}, exposition=exposition(held)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):

        async def metrics() -> dict[str, float]:
            async with session.get("/metrics") as answer:
                assert answer.status == 200
                return values(await answer.text())

        first = await metrics()
        assert first["counted"] == 7
        assert first["quick"] == 1
        assert "held" not in first
        assert math.isnan(first[AGE]), "there is nothing yet"
        await metrics()
        assert (held.asked, held.at_once) == (1, 1), "nobody is asked twice at a time"
        held.free.set()
        fresh = await metrics()
        while "held" not in fresh:
            fresh = await metrics()
        assert fresh[AGE] < 60
        held.free.clear()
        before = (await metrics())["held"]
        began = time.monotonic()
        stale = await metrics()
        assert stale["held"] == before, "what was known is served"
        assert stale[AGE] > 0
        assert time.monotonic() - began < 30 * SECONDS
        held.fails = True
        held.free.set()
        assert (await metrics())["held"] == before
        assert (await metrics())["counted"] == 7


async def test_health_is_told_while_somebody_is_asked(held: Held) -> None:
    async with (
        http.serve(0, healthy={}, ready={}, exposition=exposition(held, 60.0)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        waits = asyncio.ensure_future(session.get("/metrics"))
        assert await asyncio.to_thread(held.began.wait, 30)
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        assert not waits.done()
        held.free.set()
        async with await waits as answer:
            assert values(await answer.text())["held"] == 1
