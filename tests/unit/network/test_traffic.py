"""How much has passed interfaces: as the kernel's file has it, and as metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest

from kumulus_agents.agent.traffic import Counted, InterfaceTraffic
from kumulus_agents.network.linux import names, traffic
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.protocol import Traffic
from tests.unit.network.material import NETWORK, layout, nic_uid

LISTING = f"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
{names.tap(nic_uid(11))}:     100       2    0    0    0     0          0         0     3000      40    0    0    0     0       0          0
kt0123456789: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0
"""


def test_what_the_host_received_the_guest_has_sent() -> None:
    assert traffic.parse(LISTING, layout()) == [Traffic(NETWORK, nic_uid(11), 3000, 40, 100, 2)]
    assert traffic.parse(LISTING, Layout()) == []


def test_the_kernel_of_this_machine_writes_such_a_file() -> None:
    assert traffic.read(layout()) == []


async def test_the_metrics_say_whose_it_is_beside_what_drops_say() -> None:
    async def counted() -> Sequence[Counted]:
        return [Counted(Traffic("n", "i", 3000, 40, 100, 2), "shop", "web", "eth0")]

    registry = CollectorRegistry()
    registry.register(InterfaceTraffic(asyncio.get_running_loop(), counted))
    said = (await asyncio.to_thread(generate_latest, registry)).decode().splitlines()
    whose = 'interface="i",machine="web",name="eth0",namespace="shop",network="n"'
    for name, value in (
        ("receive_bytes", 3000),
        ("receive_packets", 40),
        ("transmit_bytes", 100),
        ("transmit_packets", 2),
    ):
        assert f"kumulus_network_interface_{name}_total{{{whose}}} {value}.0" in said
