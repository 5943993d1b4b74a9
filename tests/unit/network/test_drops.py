"""What rules have dropped, as the kernel's listing has it, and as a metric."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from kumulus.runtime.exposition import Exposition
from kumulus_agents.agent.asking import ask
from kumulus_agents.agent.drops import Drops
from kumulus_agents.network.linux import drops, names
from kumulus_agents.network.protocol import Dropped, NetworkError
from tests.unit.network.material import NETWORK, layout, nic_uid

TAP, SHORT = names.tap(nic_uid(11)), names.short(NETWORK)


def rule(chain: str, packets: int, verdict: str = "drop", comment: str | None = "why") -> dict[str, object]:
    said = {"chain": chain, "expr": [{"counter": {"packets": packets, "bytes": 0}}, {verdict: None}]}
    return {"rule": said | ({"comment": comment} if comment else {})}


def test_who_lost_what() -> None:
    rules = (
        rule(f"enter-{TAP}", 3, comment="not its own"),
        rule(f"from-{TAP}", 4, comment="not its own"),
        rule(f"to-{TAP}", 0, comment="over its bandwidth"),
        rule(f"count-{TAP}", 7, "accept"),
        rule(f"ingress-answer-{SHORT}-0123456789", 5),
        rule(f"tunnel-{SHORT}", 1, comment="not a host of it"),
        rule("entry", 2, comment=None),
        rule("enter-kt0123456789", 6),
    )
    found = drops.parse([json.dumps({"nftables": [{"metainfo": {}}, *rules]})], layout())
    assert found == [
        Dropped("", "", "other", 2),
        Dropped("", "", "why", 6),
        Dropped(NETWORK, "", "not a host of it", 1),
        Dropped(NETWORK, "", "why", 5),
        Dropped(NETWORK, nic_uid(11), "not its own", 7),
    ]


async def test_the_metric_is_looked_up_when_it_is_read() -> None:
    asked = 0

    async def dropped() -> Sequence[Dropped]:
        nonlocal asked
        asked += 1
        return [Dropped("n", "i", "not its own", 10 * asked)]

    registry = CollectorRegistry()
    registry.register(Drops(asyncio.get_running_loop(), dropped))
    assert asked == 0
    for number in (1, 2):
        said = (await asyncio.to_thread(generate_latest, registry)).decode()
        line = f'kumulus_network_dropped_packets_total{{interface="i",network="n",why="not its own"}} {number}0.0'
        assert line in said.splitlines()


async def test_who_cannot_say_keeps_no_other_metric_back_and_what_was_known_stays() -> None:
    known = True

    async def dropped() -> Sequence[Dropped]:
        if not known:
            raise NetworkError("nft does not answer", reason="NotAnswering")
        return [Dropped("n", "i", "not its own", 10)]

    registry = CollectorRegistry()
    Gauge("other", "Another metric.", registry=registry).set(3)
    exposition = Exposition(registry, {"drops": Drops(asyncio.get_running_loop(), dropped)})
    for knows in (True, False):
        known = knows
        said = (await exposition.text()).decode().splitlines()
        assert "other 3.0" in said
        assert 'kumulus_network_dropped_packets_total{interface="i",network="n",why="not its own"} 10.0' in said
    age = [line for line in said if line.startswith('kumulus_metrics_age_seconds{of="drops"}')]
    assert float(age[0].split()[-1]) > 0


async def test_who_does_not_answer_is_asked_no_longer() -> None:
    ended = asyncio.Event()

    async def never() -> Sequence[int]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ()

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(ask, asyncio.get_running_loop(), never, seconds=0.01)
    async with asyncio.timeout(10):
        await ended.wait()
