"""The heartbeat: renews the host's Lease, and says nothing else.

Whoever reads it judges by how long *they* have seen it unchanged; the times in it are for people.
Stopping leaves it as it is: it then runs out, as it would if the host had died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.kube.builtin import LEASE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from kumulus.kube.lease import Lease, LeaseSpec, lease_body, micro_time
from kumulus.runtime.clock import Clock
from kumulus_agents.watchdog.daemon import boottime

log = structlog.get_logger(__name__)

RETRY = 2.0
"""Seconds between attempts while renewing fails."""


class Heartbeat:
    """One host's Lease."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        host: str,
        clock: Clock,
        *,
        duration: int,
        every: float,
        phase: float = 0.0,
        recovered: Callable[[], None] = lambda: None,
        renewed: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """`phase`, from 0 to 1, is where in the interval the renewals lie: a process with many hosts spreads them.

        `recovered` is called when a renewal succeeds after one that did not; `renewed` after each, with its `stamp`.
        """
        self._told = renewed
        self._client = client
        self._namespace = namespace
        self._host = host
        self._clock = clock
        self._duration = duration
        self._every = every
        self._phase = phase
        self._recovered = recovered
        self._known: Lease | None = None
        self._down = False
        self._renewed: float | None = None
        self.stamp: float | None = None
        """When the last renewal that succeeded began, in seconds since the host booted, those in which it slept too."""
        self.begun = asyncio.Event()
        """Set once the Lease was renewed by this process."""

    @property
    def age(self) -> float | None:
        """Seconds since the last renewal that succeeded; None before the first."""
        return None if self._renewed is None else self._clock.monotonic() - self._renewed

    async def run(self) -> None:
        """Renew until cancelled."""
        loop = asyncio.get_running_loop()
        await self.beat()
        due = loop.time() + self._every * (self._phase or 1.0)
        while True:
            pause = due - loop.time()
            await asyncio.sleep(min(pause, RETRY) if self._down else pause)
            await self.beat()
            if loop.time() >= due:
                due += self._every * max(1, -(-(loop.time() - due) // self._every))

    async def beat(self) -> None:
        """Renew once, and again if somebody changed the lease in between. Failures are logged once an outage."""
        began, stamp = self._clock.monotonic(), boottime()
        try:
            async with asyncio.timeout(self._every):
                try:
                    await self._renew()
                except (Conflict, AlreadyExists, NotFound):
                    self._known = None
                    await self._renew()
        except (KubeError, TimeoutError) as error:
            if not self._down:
                log.warning("lease not renewed", host=self._host, error=str(error) or "timed out")
            self._down, self._known = True, None
            return
        self._renewed, self.stamp = began, stamp
        if self._told is not None:
            await self._told(stamp)
        self.begun.set()
        if self._down:
            log.info("lease renewed again", host=self._host)
            self._down = False
            self._recovered()

    async def _renew(self) -> None:
        now = micro_time(self._clock.now())
        if self._known is None:
            raw = await self._client.find(LEASE, LEASE_NAME, self._namespace)
            self._known = Lease.parse(raw) if raw is not None else None
        known = self._known
        mine = known is not None and known.spec.holder_identity == self._host
        spec = LeaseSpec(
            holder_identity=self._host,
            lease_duration_seconds=self._duration,
            acquire_time=known.spec.acquire_time if known is not None and mine else now,
            renew_time=now,
            lease_transitions=(known.spec.lease_transitions or 0) + (0 if mine else 1) if known is not None else 0,
        )
        if known is None:
            answer = await self._client.create(LEASE, lease_body(LEASE_NAME, spec), self._namespace)
        else:
            body = lease_body(LEASE_NAME, spec, known.metadata.resource_version)
            answer = await self._client.replace(LEASE, body, self._namespace)
        self._known = Lease.parse(answer)
