"""Has the host's watchdog armed while a work order of type Watchdog asks for it, and tells it of renewals of the Lease (ADR 44).

The order's Ready is a promise: others start the host's machines when it has been silent for long enough. So it is given only when
the watchdog is armed, nothing starts here while it should be and is not, and it is taken back before the watchdog is. The order is let go of
only when the watchdog is at rest: one that has fired would end machines for ever, with nobody to arm it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kumulus.api.host import NOT_DISARMED, WorkOrder, WorkOrderStatus, WorkState, WorkType
from kumulus.api.order_names import WATCHDOG_ORDER
from kumulus.runtime.result import Done, Requeue, Result
from kumulus_agents.agent.lease import Heartbeat
from kumulus_agents.agent.orders import Orders
from kumulus_agents.watchdog.client import Watchdog, WatchdogError, WatchdogFired, WatchdogGone

log = structlog.get_logger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks at whether the watchdog is still there."""


class SelfFence:
    """Performs the work order of type Watchdog, of which there is at most one."""

    def __init__(
        self,
        orders: Orders,
        heartbeat: Heartbeat,
        watchdog: Watchdog | None,
        *,
        lease_seconds: float,
        wake: Callable[[str], None],
    ) -> None:
        """`watchdog` is None on hosts that cannot have one; `wake` has an order looked at soon, by name."""
        self._orders = orders
        self._heartbeat = heartbeat
        self._watchdog = watchdog
        self._lease_seconds = lease_seconds
        self._wake = wake
        self._armed: int | None = None
        """For how many seconds this process has armed it."""
        self._held = False
        """It may be armed, and orders were read: it is told of renewals."""
        self._turn = asyncio.Lock()
        self._unordered = asyncio.Event()
        self._unordered.set()

    def unarmed(self) -> bool:
        """Whether nothing may be started here: the watchdog should be armed, and is not, as far as this process knows; or it may have
        fired, and is not known to be at rest."""
        return self._orders.get(WATCHDOG_ORDER) is not None and self._armed is None

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        if name == WATCHDOG_ORDER:
            self._unordered.set()
            self._let_go_on()

    async def tend(self, synced: Callable[[], Awaitable[object]]) -> None:
        """Disarm it when nobody orders it: at the start, for an agent before this one may have armed it, and when its order was taken
        away without this agent. Until cancelled; `synced` returns when orders were read."""
        await synced()
        while True:
            await self._unordered.wait()
            async with self._turn:
                if self._orders.get(WATCHDOG_ORDER) is not None or await self._rests() is None:
                    self._unordered.clear()
                    continue
            await asyncio.sleep(LOOK_EVERY)

    async def renewed(self, stamp: float) -> None:
        """The Lease was renewed; the renewal began at that time (`daemon.boottime`)."""
        if self._watchdog is None or not self._held:
            return
        try:
            await self._watchdog.renew(stamp)
        except WatchdogError as error:
            if self._armed is not None:
                log.warning("the watchdog was not told of a renewal", error=str(error))
            self._armed = None
            self._wake(WATCHDOG_ORDER)

    async def perform(self, order: WorkOrder) -> Result:
        """Keep it armed, or let go of it. Raises `KubeError`."""
        asked = order.spec.watchdog
        if asked is None:
            return Done()
        try:
            if order.deleting:
                return await self._disarm(order)
            if asked.seconds > self._lease_seconds:
                why = f"the host's Lease lasts {self._lease_seconds:g} s (lease_seconds), less than the {asked.seconds} s asked for"
                told = await self._say(order, WorkState.WAITING, "LeaseTooShort", why)
                # A process before this one may have armed it. Nobody counts on it since that was written.
                async with self._turn:
                    await self._rests()
                return told
            if (stamp := self._heartbeat.stamp) is None:
                return Requeue(1.0)
            if self._watchdog is None:
                return await self._say(order, WorkState.WAITING, "NoWatchdog", "this host's agent has no watchdog")
            async with self._turn:
                self._held = True
                await self._watchdog.arm(asked.seconds, stamp)
        except WatchdogError as error:
            self._armed = None
            why = f"{error}; run kumulus-agent watchdog on the host. Nothing is started here before it is armed"
            return await self._say(order, WorkState.WAITING, "NoWatchdog", why)
        if self._armed != asked.seconds:
            self._armed = asked.seconds
            self._let_go_on()
        said = f"machines end {asked.seconds} s after the last renewal of the Lease that succeeded"
        return await self._say(order, WorkState.READY, "Armed", said)

    async def _disarm(self, order: WorkOrder) -> Result:
        """Nobody counts on it from when the order's end was asked for, which is written before this is read."""
        async with self._turn:
            why = await self._rests()
        if why is not None:
            return await self._say(order, WorkState.WAITING, NOT_DISARMED, f"{why}; it is tried again")
        await self._orders.release(order)
        return Done()

    async def _rests(self) -> str | None:
        """Have it disarmed, whoever has armed it; why it is not, or None: it is at rest, or there is none. One that has fired is armed
        first, with a renewal that this process has made, and it has read since what it is to do."""
        if self._watchdog is None:
            return None
        self._held = True
        try:
            try:
                await self._watchdog.disarm()
            except WatchdogFired:
                if (stamp := self._heartbeat.stamp) is None:
                    return "the Lease was not renewed yet"
                await self._watchdog.arm(self._lease_seconds, stamp)
                await self._watchdog.disarm()
        except WatchdogGone:
            pass
        except WatchdogError as error:
            log.warning("the watchdog was not disarmed", error=str(error))
            return str(error)
        self._held, self._armed = False, None
        return None

    async def _say(self, order: WorkOrder, state: WorkState, reason: str, message: str) -> Result:
        status = WorkOrderStatus(
            observed_generation=order.metadata.generation, state=state, reason=reason, message=message[:1024]
        )
        await self._orders.report(order, status)
        return Requeue(LOOK_EVERY)

    def _let_go_on(self) -> None:
        for item in self._orders.store:
            if item.spec.type is WorkType.INSTANCE:
                self._wake(item.name)
