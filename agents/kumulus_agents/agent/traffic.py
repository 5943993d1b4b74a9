"""The metrics of how much passes interfaces, beside those of what rules have dropped (`drops`): `network` and `interface` are
the same uids in both. Looked up when somebody reads metrics; written nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kumulus_agents.agent.asking import ask
from kumulus_agents.network.protocol import Traffic

NAME = "kumulus_network_interface"
LABELS = ("network", "interface", "namespace", "machine", "name")


@dataclass(frozen=True, slots=True)
class Counted:
    """What has passed an interface, and whose it is."""

    traffic: Traffic
    namespace: str
    """Of the machine, as is its name; empty when no order is about it any more."""
    machine: str
    name: str
    """Of the interface within the machine."""


_FAMILIES: tuple[tuple[str, str, Callable[[Traffic], int]], ...] = (
    ("receive_bytes", "Bytes that came to the guest.", lambda one: one.received_bytes),
    ("receive_packets", "Packets that came to the guest.", lambda one: one.received_packets),
    ("transmit_bytes", "Bytes that the guest sent.", lambda one: one.sent_bytes),
    ("transmit_packets", "Packets that the guest sent.", lambda one: one.sent_packets),
)


class InterfaceTraffic(Collector):
    """Asks on the agents' event loop, from the thread that serves metrics."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counted: Callable[[], Awaitable[Sequence[Counted]]]) -> None:
        self._loop = loop
        self._counted = counted

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Nothing is asked to find out their names."""
        return [_family(name, what) for name, what, _ in _FAMILIES]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The metrics as they are now. Raises when somebody cannot say."""
        there = ask(self._loop, self._counted)
        for name, what, value in _FAMILIES:
            family = _family(name, what)
            for one in there:
                uids = [one.traffic.network, one.traffic.interface]
                family.add_metric([*uids, one.namespace, one.machine, one.name], value(one.traffic))
            yield family


def _family(name: str, what: str) -> CounterMetricFamily:
    more = "By uids of network and interface, and by whose it is; from the start of the guest."
    return CounterMetricFamily(f"{NAME}_{name}", f"{what} {more}", labels=LABELS)
