"""Looks whether another host is alive, while a work order of type Witness asks for it (ADR 39).

Alive is what has proof: an answer in which the host has proved who it is, a heartbeat that goes on. Everything else is Unknown;
an agent never says that another host is dead. What it says is written when it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.order_names import pool_order_name
from kumulus.api.witness import Says, WitnessFacts, WitnessOrder
from kumulus.runtime.clock import Clock
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.pulse import Pulsed
from kumulus_agents.transfer.tunnel import End

log = structlog.get_logger(__name__)

ASK_EVERY = 4.0
"""Seconds between two questions to the other host."""
LOOK_EVERY = 1.0
"""Seconds between two looks at its heartbeats."""
STALE_BEATS = 2.5
"""A heartbeat that has stood still for so many of its periods says nothing any more; and for so long one is watched before that is
said."""

Unproved = Callable[[End], Awaitable[str | None]]
"""Why nobody can say that the other host's agent is there; None: it has proved it."""


@dataclass(slots=True)
class Beats:
    """What was seen of one host's heartbeats since one began to look, by uid of the pool. Times are monotonic seconds."""

    began: float
    stale: float
    """Seconds after which one that has not changed says nothing."""
    last: dict[str, str] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Of pools, for people; one that is not known is called by its uid."""

    def saw(self, pool: str, beat: str | None, now: float) -> None:
        """The beat that is in the pool. The first one says nothing: who knows how old it is."""
        self.troubles.pop(pool, None)
        if beat is None:
            return
        if pool in self.last and self.last[pool] != beat:
            self.changed[pool] = now
        self.last[pool] = beat

    def failed(self, pool: str, why: str) -> None:
        """The pool could not be looked at."""
        self.troubles[pool] = why

    def says(self, now: float) -> tuple[Says, str] | None:
        """What follows, and why; None: it was not watched for long enough. Pure."""
        fresh = sorted(self._name(pool) for pool, at in self.changed.items() if now - at < self.stale)
        if fresh:
            return Says.ALIVE, f"its heartbeat in pool {fresh[0]} goes on"
        if now - self.began < self.stale:
            return None
        if self.troubles:
            pool, why = min((self._name(pool), why) for pool, why in self.troubles.items())
            return Says.UNKNOWN, f"pool {pool} cannot be looked at: {why}"[:512]
        return Says.UNKNOWN, "its heartbeat stands still in every pool that both use, or there is none"

    def _name(self, pool: str) -> str:
        return self.names.get(pool, pool)


@dataclass(slots=True)
class _Looking:
    asked: WitnessOrder
    task: asyncio.Task[None]
    facts: WitnessFacts = field(default_factory=WitnessFacts)


class Witnesses:
    """Performs work orders of type Witness."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        unproved: Unproved | None,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        *,
        beat_seconds: float,
        wake: Callable[[str], None],
    ) -> None:
        """`unproved` is None where this host exchanges nothing with others. `beat_seconds` is how often hosts leave their heartbeats.
        `wake` has an order looked at soon, by name."""
        self._stale = STALE_BEATS * beat_seconds
        self._orders = orders
        self._pools = pools
        self._unproved = unproved
        self._clock = clock
        self._tasks = tasks
        self._wake = wake
        self._looking: dict[str, _Looking] = {}

    def forget(self, name: str) -> None:
        """The order of that name is gone: nobody wants to know any more."""
        if (looking := self._looking.pop(name, None)) is not None:
            looking.task.cancel()

    async def perform(self, order: WorkOrder) -> Result:
        """Keep looking, and report what is known by now. Raises `KubeError`."""
        asked = order.spec.witness
        if asked is None or order.deleting:
            self.forget(order.name)
            return Done()
        looking = self._looking.get(order.name)
        if looking is None or looking.asked != asked:
            self.forget(order.name)
            task = self._tasks.create_task(self._look(order.name, asked))
            looking = self._looking[order.name] = _Looking(asked, task)
        settled = looking.facts.peer is not None and looking.facts.storage is not None
        status = WorkOrderStatus(
            observed_generation=order.metadata.generation,
            state=WorkState.READY if settled else WorkState.WORKING,
            witness=looking.facts,
        )
        await self._orders.report(order, status)
        return Done()

    async def _look(self, name: str, asked: WitnessOrder) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask(name, asked))
            tasks.create_task(self._watch(name, asked))

    def _found(self, name: str, **facts: object) -> None:
        looking = self._looking.get(name)
        if looking is None:
            return
        after = looking.facts.model_copy(update=facts)
        if after != looking.facts:
            looking.facts = after
            self._wake(name)

    async def _ask(self, name: str, asked: WitnessOrder) -> None:
        while True:
            says, why = await self._answer(asked)
            self._found(name, peer=says, peer_message=why)
            await asyncio.sleep(ASK_EVERY)

    async def _answer(self, asked: WitnessOrder) -> tuple[Says, str]:
        if self._unproved is None:
            return Says.UNKNOWN, "this host exchanges nothing with other hosts (transfer.enabled)"
        if not asked.addresses or asked.port is None:
            return Says.UNKNOWN, "it is not known where its agent could be asked"
        ends = [End(asked.host, address, asked.port) for address in asked.addresses]
        try:
            why = await asyncio.gather(*map(self._unproved, ends))
        except Exception:
            log.exception("a host could not be asked whether it is alive", peer=asked.host)
            return Says.UNKNOWN, "it could not be asked; the log of this host's agent says why"
        if None in why:
            return Says.ALIVE, "its agent answers, and has proved that it is this host"
        return Says.UNKNOWN, "; ".join(item for item in why if item is not None)[:512]

    async def _watch(self, name: str, asked: WitnessOrder) -> None:
        if not asked.pools:
            self._found(name, storage=Says.UNKNOWN, storage_message="the two hosts share no pool")
            return
        beats = Beats(self._clock.monotonic(), self._stale)
        async with asyncio.TaskGroup() as tasks:
            for uid in asked.pools:
                tasks.create_task(self._follow(uid, asked.host, beats))
            while True:
                if (found := beats.says(self._clock.monotonic())) is not None:
                    self._found(name, storage=found[0], storage_message=found[1])
                await asyncio.sleep(LOOK_EVERY)

    async def _follow(self, uid: str, host: str, beats: Beats) -> None:
        """One pool: another one that does not answer holds it up in nothing."""
        while True:
            order = self._orders.get(pool_order_name(uid))
            pool = order.spec.pool.pool if order is not None and order.spec.pool is not None else None
            if pool is None:
                beats.failed(uid, "this host does not have it any more")
            else:
                beats.names[uid] = pool.name
                try:
                    driver = self._pools.driver(pool)
                    if isinstance(driver, Pulsed):
                        beats.saw(uid, await driver.last_beat(host), self._clock.monotonic())
                    else:
                        beats.failed(uid, "hosts leave no heartbeat in pools of this kind")
                except StorageError as error:
                    beats.failed(uid, error.reason)
                except Exception:
                    log.exception("a pool's heartbeats could not be read", pool=pool.name)
                    beats.failed(uid, "the log of this host's agent says why")
            await asyncio.sleep(LOOK_EVERY)
