"""Sends the changes of the journal to one receiver: each object's one after the other, those of several side by side.

What is on its way is a window over the journal: its lower end is what is kept as done. Who begins again there sends
some events twice, and leaves none out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import structlog

from kumulus.api.events import EventSink, SinkReason
from kumulus_services.events import metrics
from kumulus_services.events.envelope import Change, Event, events
from kumulus_services.events.filters import wanted
from kumulus_services.events.journal import Journal
from kumulus_services.events.transitions import type_of
from kumulus_services.events.transport import Rejected, SendError, Transport

log = structlog.get_logger(__name__)

WINDOW = 1000
"""Changes from the oldest that is not done on, those among them that are done included: what may come twice after a crash."""
PAGE = 250
KEEP_SECONDS = 0.25
"""So often how far it is goes into the journal."""
PAUSE_FIRST = 1.0
PAUSE_MOST = 60.0


HINTS: Mapping[SinkReason, str] = {
    SinkReason.UNREACHABLE: "it is tried again, and events wait: have the receiver answer, or change the URL",
    SinkReason.REJECTING: "its own log says why; what it refuses again and again becomes a dead letter",
    SinkReason.ADDRESS_REFUSED: "use a public one, or ask the operator to allow this one",
}
"""What to do, where the error does not say it itself."""


@dataclass(frozen=True, slots=True)
class State:
    """How it goes, for the status."""

    reason: SinkReason
    message: str


class Delivery:
    """Of one sink, as its spec is. `run` once."""

    def __init__(
        self,
        journal: Journal,
        sink: EventSink,
        namespace: str | None,
        transport: Transport,
        source: str,
        now: Callable[[], str],
    ) -> None:
        """`namespace`: whose objects it may see; None for all."""
        self._journal = journal
        self._sink = sink
        self._namespace = namespace
        self._transport = transport
        self._source = source
        self._now = now
        self._more = asyncio.Event()
        self._more.set()
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._lanes: dict[str, deque[tuple[Change, frozenset[str]]]] = {}
        """Of each object what waits, and which types of its events the sink wants."""
        self._window: dict[int, bool] = {}
        """Changes from the oldest that is not done on, by their places in the journal, and whether they are done."""
        standing = journal.standing(sink.uid)
        self._read = self._kept = standing.cursor if standing else 0
        self._taken = 0
        """Events that were taken and are not in the journal's count yet."""
        self._failures = 0
        self._open_at = 0.0
        self._probe = asyncio.Lock()
        self._opened = False
        self.state = State(SinkReason.STARTING, "Nothing was sent yet.")
        self.last_error: str | None = None
        self.last_delivered_at: str | None = None
        self._labels = (sink.namespace or "", sink.name)

    def wake(self) -> None:
        """There may be more to send."""
        self._more.set()

    @property
    def cursor(self) -> int:
        """All up to here are done with."""
        return next(iter(self._window)) - 1 if self._window else self._read

    async def run(self) -> None:
        """Send until cancelled; how far it is is kept."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._greet())
                group.create_task(self._feed())
                group.create_task(self._keep_now_and_then())
                for _ in range(self._sink.spec.retry.parallel):
                    group.create_task(self._work())
        finally:
            self.keep()
            await self._transport.close()

    # What is to be sent

    async def _feed(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while (room := min(PAGE, WINDOW - len(self._window))) > 0:
                last = self._journal.last()
                page = self._journal.after(self._read, self._sink.uid, self._namespace, room)
                for change in page:
                    self._take(change)
                if len(page) < room:
                    self._read = max(self._read, last)
                    break
                await asyncio.sleep(0)

    def _take(self, change: Change) -> None:
        self._read = max(self._read, change.seq)
        types = wanted(self._sink.spec.filter, self._sink.namespace or "", change)
        if not types:
            return
        self._window[change.seq] = False
        lane = self._lanes.get(change.uid)
        if lane is None:
            self._lanes[change.uid] = deque([(change, types)])
            self._ready.put_nowait(change.uid)
        else:
            lane.append((change, types))

    async def _work(self) -> None:
        while True:
            uid = await self._ready.get()
            lane = self._lanes[uid]
            change, types = lane[0]
            await self._deliver(change, types)
            lane.popleft()
            self._done(change.seq)
            if lane:
                self._ready.put_nowait(uid)
            else:
                del self._lanes[uid]
            self._more.set()

    def _done(self, seq: int) -> None:
        self._window[seq] = True
        while self._window and self._window[first := next(iter(self._window))]:
            del self._window[first]

    # Sending

    async def _deliver(self, change: Change, types: frozenset[str]) -> None:
        """Send the change's events of these types; return when they were taken, or given up."""
        for number, event in enumerate(events(change, self._source, types)):
            why = await self._send(change, event)
            if why is not None:
                self._bury(change, types, number, why)
                return
            self._taken += 1
            self.last_delivered_at = self._now()
            metrics.DELIVERED.labels(*self._labels).inc()
        metrics.DELAY.observe(max(0.0, time.time() - change.queued))

    async def _send(self, change: Change, event: Event) -> str | None:
        """Send one event until it is taken; why it was given up if it was."""
        retry, attempts = self._sink.spec.retry, 0
        while True:
            if time.time() - change.queued > retry.max_age_seconds:
                return self.last_error or "it waited for too long"
            try:
                async with self._turn():
                    await self._transport.send(event)
            except Rejected as error:
                self._failed(error)
                attempts += 1
                if attempts >= retry.attempts:
                    return str(error)
                await asyncio.sleep(_pause(attempts))
            except SendError:
                continue
            else:
                self.state = State(SinkReason.DELIVERING, "Events reach it.")
                return None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The moment to send. While the receiver does not answer, one at a time tries, with growing pauses."""
        if self._failures or not self._opened:
            async with self._probe:
                await self._attend()
                async with self._watched():
                    await self._open()
                    yield
                return
        async with self._watched():
            yield

    async def _attend(self) -> None:
        if (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _open(self) -> None:
        if not self._opened:
            await self._transport.open()
            self._opened = True

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        try:
            yield
        except Rejected:
            self._failures = 0
            raise
        except SendError as error:
            self._opened = False
            self._failed(error)
            # Of those on their way together one counts.
            if time.monotonic() >= self._open_at:
                self._failures += 1
                self._open_at = time.monotonic() + (error.after or _pause(self._failures))
            raise
        self._failures = 0

    async def _greet(self) -> None:
        """Open at once, and again until it works: that a receiver cannot be reached is told before there is an event."""
        while not self._opened:
            with suppress(SendError):
                async with self._probe:
                    await self._attend()
                    async with self._watched():
                        await self._open()
                        self.state = State(SinkReason.DELIVERING, "Nothing was sent yet.")

    def _failed(self, error: SendError) -> None:
        if self.state.reason is not error.reason:
            log.info(
                "events not taken",
                namespace=self._sink.namespace,
                sink=self._sink.name,
                reason=str(error.reason),
                error=str(error),
            )
        text = "; ".join(part for part in (str(error), HINTS.get(error.reason)) if part)
        self.state, self.last_error = State(error.reason, f"{text}."), str(error)
        metrics.FAILED.labels(*self._labels, str(error.reason)).inc()

    def _bury(self, change: Change, types: frozenset[str], number: int, why: str) -> None:
        """What is left of a change, from its event `number` of these types on, goes to the dead letters."""
        of_interest = [one for one in change.told if type_of(change.kind, one.verb) in types]
        rest = tuple(of_interest[number:])
        with self._journal.transaction():
            self._journal.bury(self._sink.uid, replace(change, told=rest), why, self._now())
        metrics.BURIED.labels(*self._labels).inc(len(rest))

    # How far it is

    async def _keep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            self.keep()

    def keep(self) -> None:
        """How far it is is in the journal."""
        cursor = self.cursor
        if cursor != self._kept or self._taken:
            taken, self._taken = self._taken, 0
            with self._journal.transaction():
                self._journal.advance(self._sink.uid, cursor, taken)
            self._kept = cursor


def _pause(failures: int) -> float:
    """Seconds until the next attempt after so many failures: 1, 2, 4, ..., 60, and up to half of that less."""
    return min(PAUSE_MOST, PAUSE_FIRST * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - spread
