"""Leader election by a Lease, with a term that fences an old leader's writes.

After client-go's `leaderelection`, with two differences: the clock is monotonic (a lease counts as
expired when *we* have seen it unchanged for its whole duration, whatever anybody's wall clock
says), and each acquisition has a term (`leaseTransitions` + 1) that goes into what the leader
writes. A leader stops leading two thirds into a lease it could not renew, so before anybody else can start.

A lease of a holder that is proved to be dead is taken at once. The proof is a `Place`: who holds one names it in the
lease, and who gets it afterwards is alone with it (`docs/adr/0026-proof-of-death.md`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from kumulus.kube.builtin import LEASE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus.kube.lease import Lease, LeaseSpec, lease_body, micro_time
from kumulus.kube.place import Place

log = structlog.get_logger(__name__)

LOOK = 3.0
"""Seconds between two looks of who waits: nobody leads for so long after a lease was given back."""


@dataclass(frozen=True, slots=True)
class _Held:
    """The lease is ours in this term, counted from when we began to ask for it."""

    term: int
    since: float


class Elector:
    """Takes part in one election until cancelled or stopped.

    `duration` is the lease's in seconds; it is renewed every third of that, and looked at every 3 s by who does not
    have it. `place` is taken when it is free and never left: that is for who ends the process.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        place: Place | None = None,
        on_started: Callable[[int], Awaitable[None]],
        on_stopped: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration
        self._place = place
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._seen: tuple[str, float] | None = None
        """Version of the lease (none while there is no lease) and when we saw it first."""
        self._written: tuple[str, str | None] | None = None
        """Version and acquire time of the lease as we wrote it last; None when somebody may have written since."""
        self._renewed = 0.0
        self._highest = 0
        """The highest term seen, so that terms grow even when somebody deletes the lease."""
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
                held: _Held | None = None
                try:
                    async with asyncio.timeout(self._patience):
                        held = await self._turn()
                except (KubeError, TimeoutError) as error:
                    log.warning("election", lease=self._name, error=str(error) or "timed out")
                else:
                    if held is None and self.term is not None:
                        await self._lost()
                # Beginning and ending may take their time: they are not part of the turn that may time out.
                if held is not None:
                    await self._won(held)
                if self.term is not None and not self.leading:
                    await self._lost()
                await asyncio.sleep(self._pause(held))
        finally:
            await self._release()

    @property
    def _holder(self) -> str:
        """What we are called in the lease: the same for a whole term, because a place is taken only between two."""
        place = self._place.name if self._place is not None else None
        return f"{self._identity}@{place}" if place else self._identity

    def _ours(self, spec: LeaseSpec) -> bool:
        return spec.holder_identity in (self._identity, self._holder)

    def _proved_dead(self, holder: str) -> bool:
        """Whether the holder named our place: it had it for as long as it lived, and now we have it."""
        place = self._place.name if self._place is not None else None
        return place is not None and holder.rpartition("@")[2] == place

    def _pause(self, held: _Held | None) -> float:
        """How long until the next turn, which had this outcome."""
        if self.term is None:
            return min(self._duration / 5, LOOK)
        if held is None:
            # What is left of the leadership is there to try again.
            return min(self._duration / 15, 1.0)
        # Beginning to lead may have taken a while, of the time that the lease is good for.
        return max(held.since + self._duration / 3 - self._now(), 0.0)

    @property
    def _patience(self) -> float:
        """How long a turn may take. While leading it ends with the leadership, so that its end is not noticed late."""
        if self.term is None:
            return self._duration / 3
        left = self._renewed + self._duration * 2 / 3 - self._now()
        return max(min(left, self._duration / 5), 0.0)

    async def _turn(self) -> _Held | None:
        """Take or renew the lease if we may: the term, and since when it counts; None when somebody else has it.

        Raises `KubeError`, which `Conflict` with a competitor is too: then the next turn tells.
        """
        if self.term is not None and self._written is not None:
            return await self._renew(self.term, *self._written)
        if self.term is None and self._place is not None:
            self._place.take()
        raw = await self._client.find(LEASE, self._name, self._namespace)
        started = self._now()
        lease = Lease.parse(raw) if raw is not None else None
        spec = lease.spec if lease else LeaseSpec()
        version = lease.metadata.resource_version if lease else ""
        self._highest = max(self._highest, spec.lease_transitions or 0)
        first_look = self._seen is None
        if self._seen is None or version != self._seen[0]:
            self._seen = (version, started)
        expired = started >= self._seen[1] + (spec.lease_duration_seconds or self._duration)
        if lease is None:
            # A lease that vanished under its holder's hands still counts for as long as it would have.
            if self.term is None and not first_look and not expired:
                return None
            term = self.term or self._highest + 1
            await self._client.create(LEASE, lease_body(self._name, self._mine(term, None)), self._namespace)
            return _Held(term, started)
        ours = self._ours(spec)
        held_by_us = ours and self.term is not None
        # Ours from before an outage in which we stopped leading: nobody else can have led since, so we need not wait.
        if not ours and spec.holder_identity and not expired:
            if not self._proved_dead(spec.holder_identity):
                return None
            log.info("the holder is dead", lease=self._name, holder=spec.holder_identity)
        term = self.term if held_by_us and self.term is not None else self._highest + 1
        acquired = spec.acquire_time if held_by_us else None
        await self._write(term, version, acquired)
        return _Held(term, started)

    async def _renew(self, term: int, version: str, acquired: str | None) -> _Held:
        """Renew what we wrote last without looking first: one request, and a conflict if anybody wrote since."""
        self._written, started = None, self._now()
        await self._write(term, version, acquired)
        return _Held(term, started)

    async def _write(self, term: int, version: str, acquired: str | None) -> None:
        mine = self._mine(term, acquired)
        raw = await self._client.replace(LEASE, lease_body(self._name, mine, version), self._namespace)
        self._written = (raw["metadata"]["resourceVersion"], mine.acquire_time)

    def _mine(self, term: int, acquired: str | None) -> LeaseSpec:
        now = micro_time()
        return LeaseSpec(
            holder_identity=self._holder,
            lease_duration_seconds=int(self._duration),
            acquire_time=acquired or now,
            renew_time=now,
            lease_transitions=term,
        )

    async def _won(self, held: _Held) -> None:
        self._renewed = held.since
        if self.term != held.term:
            self.term = held.term
            self._highest = max(self._highest, held.term)
            log.info("leading", lease=self._name, term=held.term)
            await self._on_started(held.term)

    async def _lost(self) -> None:
        self.term = self._written = None
        log.warning("no longer leading", lease=self._name)
        await self._on_stopped()

    async def _release(self) -> None:
        if self.term is None:
            return
        term, self.term = self.term, None
        try:
            async with asyncio.timeout(self._duration / 3):
                await self._give_back(term)
        except (KubeError, TimeoutError) as error:
            log.info("lease not given back; it will expire", lease=self._name, error=str(error) or "timed out")

    async def _give_back(self, term: int) -> None:
        raw = await self._client.find(LEASE, self._name, self._namespace)
        if raw is None or not self._ours(Lease.parse(raw).spec):
            return
        released = LeaseSpec(lease_duration_seconds=1, renew_time=micro_time(), lease_transitions=term)
        body = lease_body(self._name, released, raw["metadata"]["resourceVersion"])
        await self._client.replace(LEASE, body, self._namespace)
