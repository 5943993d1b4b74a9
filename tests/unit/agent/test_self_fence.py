"""What an agent does with its host's watchdog, with the product's deadline at a real socket (ADR 44)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from kumulus.api.base import FINALIZER
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import WATCHDOG_ORDER
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import take
from kumulus.kube.store import Key
from kumulus_agents.agent.lease import Heartbeat
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.self_fence import SelfFence
from kumulus_agents.watchdog.client import Watchdog, WatchdogError
from kumulus_agents.watchdog.daemon import boottime
from kumulus_agents.watchdog.watch import State, Watch
from tests.component.dog import watchdog
from tests.unit.agent.host import eventually
from tests.unit.fabric.test_host import FakeClock
from tests.unit.fencing.api import Api, Client

SECONDS = 20
NAMESPACE = host_namespace("h1")


class Bench:
    """An agent that has renewed its Lease, as far as its watchdog goes."""

    def __init__(self, socket: Path, lease: int = SECONDS) -> None:
        async def nothing(verb: str) -> None:
            return None

        self.client = Client(Api(), nothing)
        client = cast(KubeClient, self.client)
        self.orders = Orders(client, NAMESPACE)
        self.dog = Watchdog(socket)
        self.heartbeat = Heartbeat(
            client, NAMESPACE, "h1", FakeClock(), duration=lease, every=5, renewed=lambda s: self.fence.renewed(s)
        )
        self.fence = SelfFence(self.orders, self.heartbeat, self.dog, lease_seconds=lease, wake=lambda name: None)

    async def order(self) -> None:
        body = {
            "metadata": {"name": WATCHDOG_ORDER, "finalizers": [FINALIZER]},
            "spec": {
                "type": "Watchdog",
                "for": {"kind": "Host", "name": "h1", "uid": "h"},
                "watchdog": {"seconds": 20},
            },
        }
        take(self.orders.store, await self.client.create(WorkOrder.KIND, body, NAMESPACE))

    async def end(self) -> None:
        raw = await self.client.delete(WorkOrder.KIND, WATCHDOG_ORDER, NAMESPACE)
        assert raw is not None
        take(self.orders.store, raw)

    async def perform(self) -> Any:
        order = self.orders.get(WATCHDOG_ORDER)
        assert order is not None
        await self.fence.perform(order)
        return (known := self.orders.get(WATCHDOG_ORDER)) and known.status


@asynccontextmanager
async def bench(path: Path, lease: int = SECONDS) -> AsyncIterator[SimpleNamespace]:
    async def fire() -> None:
        return None

    async with watchdog(path / "dog", fire) as watch:
        made = Bench(path / "dog", lease)
        try:
            yield SimpleNamespace(agent=made, watch=watch)
        finally:
            await made.dog.close()


def fire(watch: Watch) -> None:
    """An agent before this one had armed it, and its time is over."""
    watch.arm(SECONDS, boottime() - SECONDS - 1, boottime())
    assert watch.look(boottime()) is State.FIRED


async def test_one_that_has_fired_is_at_rest_when_its_order_is_let_go_of(tmp_path: Path) -> None:
    """Else it would end machines for ever: nobody arms it any more."""
    async with bench(tmp_path) as it:
        await it.agent.order()
        await it.agent.end()
        fire(it.watch)
        await it.agent.heartbeat.beat()
        assert it.agent.fence.unarmed(), "what starts would be ended"
        assert await it.agent.perform() is None
        assert it.watch.state is State.IDLE and not it.agent.fence.unarmed()


async def test_while_it_is_not_disarmed_the_order_stays_and_renewals_go_on(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        agent, disarm = it.agent, it.agent.dog.disarm

        async def hangs() -> None:
            raise WatchdogError("the watchdog does not answer")

        await agent.order()
        await agent.heartbeat.beat()
        assert (await agent.perform()).reason == "Armed"
        agent.dog.disarm = hangs
        await agent.end()
        assert (await agent.perform()).reason == "NotDisarmed"
        before = it.watch.deadline
        await agent.heartbeat.beat()
        assert it.watch.state is State.ARMED and it.watch.deadline > before
        agent.dog.disarm = disarm
        assert await agent.perform() is None and it.watch.state is State.IDLE


async def test_one_armed_for_a_longer_lease_is_disarmed_when_that_was_said(tmp_path: Path) -> None:
    """An agent that was started with a shorter one does not renew it, and would have its guests ended."""
    async with bench(tmp_path, lease=SECONDS // 2) as it:
        await it.agent.order()
        assert it.watch.arm(SECONDS, boottime(), boottime())
        await it.agent.heartbeat.beat()
        assert (await it.agent.perform()).reason == "LeaseTooShort"
        assert it.watch.state is State.IDLE and it.agent.fence.unarmed()


async def test_with_nobody_at_the_socket_the_order_goes(tmp_path: Path) -> None:
    agent = Bench(tmp_path / "dog")
    await agent.order()
    await agent.end()
    assert await agent.perform() is None


async def test_without_an_order_it_is_disarmed_at_the_start_and_when_the_order_was_taken_away(tmp_path: Path) -> None:
    """A host that was removed by force and joined again, or whose order somebody took away with its finalizer."""
    async with bench(tmp_path) as it:
        agent, synced = it.agent, asyncio.Event()
        fire(it.watch)
        await agent.heartbeat.beat()
        tending = asyncio.create_task(agent.fence.tend(synced.wait))
        try:
            assert it.watch.state is State.FIRED, "not before orders were read"
            synced.set()
            await eventually(lambda: it.watch.state is State.IDLE, "it is disarmed")
            await agent.order()
            assert (await agent.perform()).reason == "Armed"
            agent.orders.store.remove(Key(NAMESPACE, WATCHDOG_ORDER), None)
            agent.fence.forget(WATCHDOG_ORDER)
            await eventually(lambda: it.watch.state is State.IDLE, "it is disarmed again")
        finally:
            tending.cancel()
