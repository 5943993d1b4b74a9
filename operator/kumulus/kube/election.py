"""Leader election by a Lease, with a term that fences an old leader's writes.

After client-go's `leaderelection`, with two differences: the clock is monotonic (a lease counts as
expired when *we* have seen it unchanged for its whole duration, whatever anybody's wall clock
says), and each acquisition has a term (`leaseTransitions` + 1) that goes into what the leader
writes. A leader stops leading two thirds into a lease it could not renew, so before anybody else can start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kumulus.kube.builtin import LEASE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, Conflict, KubeError
from kumulus.kube.lease import Lease, LeaseSpec, lease_body, micro_time

log = structlog.get_logger(__name__)


class Elector:
    """Takes part in one election until cancelled or stopped.

    `duration` is the lease's in seconds; it is renewed every fifth of that.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        on_started: Callable[[int], Awaitable[None]],
        on_stopped: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed = 0.0
        self.term: int | None = None
        """The term we lead in; None while somebody else leads."""

    @property
    def leading(self) -> bool:
        """Whether we lead, by our own clock: False once the lease could not be renewed for two thirds of its duration."""
        return self.term is not None and self._now() < self._renewed + self._duration * 2 / 3

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Campaign and renew until cancelled; then give the lease back."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._duration / 3):
                        await self._turn()
                except (KubeError, TimeoutError) as error:
                    log.warning("election", lease=self._name, error=str(error) or "timed out")
                if self.term is not None and not self.leading:
                    await self._lost()
                await asyncio.sleep(self._duration / 5)
        finally:
            await self._release()

    async def _turn(self) -> None:
        raw = await self._client.find(LEASE, self._name, self._namespace)
        started = self._now()
        if raw is None:
            try:
                await self._client.create(LEASE, lease_body(self._name, self._mine(1, None)), self._namespace)
            except AlreadyExists:
                return
            await self._won(1, started)
            return
        lease = Lease.parse(raw)
        spec, version = lease.spec, lease.metadata.resource_version
        if version != self._seen[0]:
            self._seen = (version, started)
        held_by_us = spec.holder_identity == self._identity and self.term is not None
        expired = started >= self._seen[1] + (spec.lease_duration_seconds or self._duration)
        if not held_by_us and spec.holder_identity and not expired:
            if self.term is not None:
                await self._lost()
            return
        term = (spec.lease_transitions or 0) + (0 if held_by_us else 1)
        acquired = spec.acquire_time if held_by_us else None
        try:
            await self._client.replace(
                LEASE, lease_body(self._name, self._mine(term, acquired), version), self._namespace
            )
        except Conflict:
            return
        await self._won(term, started)

    def _mine(self, term: int, acquired: str | None) -> LeaseSpec:
        now = micro_time()
        return LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=int(self._duration),
            acquire_time=acquired or now,
            renew_time=now,
            lease_transitions=term,
        )

    async def _won(self, term: int, at: float) -> None:
        self._renewed = at
        if self.term != term:
            self.term = term
            log.info("leading", lease=self._name, term=term)
            await self._on_started(term)

    async def _lost(self) -> None:
        self.term = None
        log.warning("no longer leading", lease=self._name)
        await self._on_stopped()

    async def _release(self) -> None:
        if self.term is None:
            return
        term, self.term = self.term, None
        try:
            raw = await self._client.find(LEASE, self._name, self._namespace)
            if raw is None or Lease.parse(raw).spec.holder_identity != self._identity:
                return
            released = LeaseSpec(lease_duration_seconds=1, renew_time=micro_time(), lease_transitions=term)
            body = lease_body(self._name, released, raw["metadata"]["resourceVersion"])
            await self._client.replace(LEASE, body, self._namespace)
        except KubeError as error:
            log.info("lease not given back; it will expire", lease=self._name, error=str(error))
