"""What an agent says of another host: alive by proof alone, and otherwise that it does not know (ADR 39)."""

from __future__ import annotations

import asyncio
import uuid
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.host import WorkOrder, WorkOrderStatus
from kumulus.api.order_names import pool_order_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.witness import Says
from kumulus.runtime.clock import SystemClock
from kumulus_agents.agent import witness
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.pulse import Pulse, beating
from kumulus_agents.agent.witness import Beats
from kumulus_agents.storage.protocol import StorageError
from tests.patience import PATIENCE
from tests.unit.agent.host import eventually

STALE = 12.5


def test_a_heartbeat_is_proof_when_it_changes_and_for_a_while() -> None:
    beats = Beats(0.0, STALE)
    beats.saw("p", "life-1", 1.0)
    assert beats.says(1.0) is None, "who knows how old the first one is"
    beats.saw("p", "life-2", 5.0)
    found = beats.says(5.0)
    assert found is not None and found[0] is Says.ALIVE
    beats.saw("p", "life-2", 5.0 + STALE)
    found = beats.says(5.0 + STALE)
    assert found is not None and found[0] is Says.UNKNOWN


def test_a_pool_that_does_not_answer_says_nothing_and_is_named() -> None:
    beats = Beats(0.0, STALE)
    beats.failed("slow", "PoolNotAnswering")
    beats.saw("other", None, 1.0)
    assert beats.says(STALE - 0.1) is None
    found = beats.says(STALE)
    assert found == (Says.UNKNOWN, "pool slow cannot be looked at: PoolNotAnswering")


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from((None, "a", "b", "failed"))), max_size=20))
def test_nothing_that_pools_do_makes_a_host_dead(happened: list[tuple[str, str | None]]) -> None:
    beats = Beats(0.0, STALE)
    for second, (pool, what) in enumerate(happened):
        if what == "failed":
            beats.failed(pool, "slow")
        else:
            beats.saw(pool, what, float(second))
        found = beats.says(float(second))
        assert found is None or found[0] in (Says.ALIVE, Says.UNKNOWN)


class Pool:
    """A pool's driver as far as heartbeats go."""

    def __init__(self, *, answers: bool = True) -> None:
        self.beats: list[str] = []
        self.asked = 0
        self._answers = answers

    async def beat(self, host: str, beat: str) -> None:
        self.asked += 1
        if not self._answers:
            await asyncio.Event().wait()
        self.beats.append(beat)

    async def last_beat(self, host: str) -> str | None:
        return self.beats[-1] if self.beats else None


class Drivers:
    def __init__(self, **pools: Pool) -> None:
        self.pools = pools

    def driver(self, pool: PoolRef) -> Pool:
        if pool.name not in self.pools:
            raise StorageError("It is not there.", reason="MountFailed")
        return self.pools[pool.name]


def presence(name: str, *, shared: bool = True, state: str = "Ready") -> WorkOrder:
    pool = {"uid": str(uuid.uuid4()), "name": name, "driver": "dir", "parameters": {"path": "/p", "shared": shared}}
    spec = {"type": "Pool", "for": {"kind": "StoragePool", "name": name, "uid": "u"}, "pool": {"pool": pool}}
    return WorkOrder.parse(
        {"metadata": {"name": f"pool-{name}", "uid": name}, "spec": spec, "status": {"state": state}}
    )


def test_heartbeats_are_left_in_pools_that_are_shared_and_can_be_used() -> None:
    orders = [presence("yes"), presence("own", shared=False), presence("away", state="Failed")]
    assert [pool.name for pool in beating(orders)] == ["yes"]


async def test_a_pool_that_does_not_answer_holds_up_no_other_and_is_asked_once() -> None:
    slow, well = Pool(answers=False), Pool()
    orders = [presence("slow"), presence("well"), presence("gone")]
    pulse = Pulse("h1", lambda: orders, cast(Pools, Drivers(slow=slow, well=well)), every=0.01)
    beating_now = asyncio.create_task(pulse.run())
    try:
        await eventually(lambda: len(well.beats) >= 4, "it beats")
    finally:
        beating_now.cancel()
        await asyncio.gather(beating_now, return_exceptions=True)
    assert slow.asked == 1 and len(set(well.beats)) == len(well.beats)


class Orders:
    """Work orders as far as witnesses go."""

    def __init__(self) -> None:
        self.known: dict[str, WorkOrder] = {}
        self.said: WorkOrderStatus | None = None

    def get(self, name: str) -> WorkOrder | None:
        return self.known.get(name)

    async def report(self, order: WorkOrder, status: WorkOrderStatus) -> bool:
        self.said = status
        return True


async def test_the_trouble_of_a_pool_ends_when_the_host_has_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "LOOK_EVERY", 0.005)
    orders, shared = Orders(), presence("shared")
    assert shared.spec.pool is not None and shared.spec.pool.pool is not None
    uid = shared.spec.pool.pool.uid
    spec = {
        "type": "Witness",
        "for": {"kind": "Host", "name": "h2", "uid": "u"},
        "witness": {"host": "h2", "pools": [uid]},
    }
    asked = WorkOrder.parse({"metadata": {"name": "witness-h2", "uid": "w"}, "spec": spec})
    pools = cast(Pools, Drivers(shared=Pool()))
    async with asyncio.TaskGroup() as tasks:
        witnesses = witness.Witnesses(
            cast(witness.Orders, orders), pools, None, SystemClock(), tasks, beat_seconds=0.01, wake=lambda _: None
        )

        async def says(text: str) -> None:
            async def said() -> bool:
                await witnesses.perform(asked)
                facts = orders.said.witness if orders.said is not None else None
                return facts is not None and text in (facts.storage_message or "")

            async with asyncio.timeout(10 * PATIENCE):
                while not await said():  # noqa: ASYNC110 - what is waited for is not ours
                    await asyncio.sleep(0.005)

        await says(f"pool {uid} cannot be looked at: this host does not have it any more")
        orders.known[pool_order_name(uid)] = shared
        await says("its heartbeat stands still in every pool")
        del orders.known[pool_order_name(uid)]
        await says("pool shared cannot be looked at")
        witnesses.forget(asked.name)
