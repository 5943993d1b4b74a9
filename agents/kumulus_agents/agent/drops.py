"""The metric of what rules of networks have dropped. Looked up when somebody reads metrics, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kumulus_agents.network.protocol import Dropped

log = structlog.get_logger(__name__)

SECONDS = 5.0
"""Within which an agent has to answer; else there is nothing this time."""


class Drops(Collector):
    """Asks on the agents' event loop, from the thread that serves metrics."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dropped: Callable[[], Awaitable[Sequence[Dropped]]]) -> None:
        self._loop = loop
        self._dropped = dropped

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Nothing is asked to find out its name."""
        return [self._family()]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The metric as it is now; empty when nobody can say, for the agent has other metrics that people need then."""
        family = self._family()
        asked = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
        try:
            found = asked.result(SECONDS)
        except TimeoutError:
            asked.cancel()
            return [family]
        except Exception:
            log.exception("dropped packets not counted")
            return [family]
        for item in found:
            family.add_metric([item.network, item.interface, item.why], item.packets)
        return [family]

    async def _ask(self) -> Sequence[Dropped]:
        return await self._dropped()

    def _family(self) -> CounterMetricFamily:
        what = "Packets that rules of networks have dropped, by uids of network and interface, and why."
        return CounterMetricFamily("kumulus_network_dropped_packets", what, labels=["network", "interface", "why"])
