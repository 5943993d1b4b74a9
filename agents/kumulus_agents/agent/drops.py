"""The metric of what rules of networks have dropped. Looked up when somebody reads metrics, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kumulus_agents.agent.asking import ask
from kumulus_agents.network.protocol import Dropped


class Drops(Collector):
    """Asks on the agents' event loop, from the thread that serves metrics."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dropped: Callable[[], Awaitable[Sequence[Dropped]]]) -> None:
        self._loop = loop
        self._dropped = dropped

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Nothing is asked to find out its name."""
        return [self._family()]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The metric as it is now. Raises when somebody cannot say."""
        family = self._family()
        for item in ask(self._loop, self._dropped):
            family.add_metric([item.network, item.interface, item.why], item.packets)
        return [family]

    def _family(self) -> CounterMetricFamily:
        what = "Packets that rules of networks have dropped, by uids of network and interface, and why."
        return CounterMetricFamily("kumulus_network_dropped_packets", what, labels=["network", "interface", "why"])
