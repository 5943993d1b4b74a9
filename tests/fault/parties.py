"""Who takes part in a run: controllers and agents, each with a way to the API server and drivers that can be tampered with.

A party is a process that is started again whenever it dies; a life is one such process. Everything that a life changes, at the
API server or on its host, is a deed: it is counted, and a life can die before it, after it, or never learn its answer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from kumulus.api.base import Kind
from kumulus.kube import errors
from kumulus.kube.client import PAGE, KubeClient, WatchEvent
from kumulus.runtime.clock import Clock

Raw = dict[str, Any]


class Crash(BaseException):
    """The process died here. Nothing of the product catches it."""


class How(StrEnum):
    """Where in a deed a fault lies."""

    BEFORE = "before"
    """Dead, and the deed is not done."""
    AFTER = "after"
    """Dead, and the deed is done: nobody has learned its answer."""
    LOST = "answer lost"
    """The deed is done, an error is all that is learned, and the process goes on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong at one deed of one party."""

    party: str
    at: int
    """Which deed, from 1."""
    how: How


@dataclass(slots=True)
class Wire:
    """A party's way to the API server."""

    cut: bool = False
    """Nothing gets through."""
    deaf: bool = False
    """What it sends gets through, answers do not."""
    slow: float = 0.0
    """So many seconds later are changes heard of, ..."""
    behind: int = 0
    """... or when so many later ones have come."""
    blind: bool = False
    """Changes are not heard of at all, and nobody notices."""
    rewound: str | None = None
    """Everything is listed as it was at this version."""


class Party:
    """The controllers, or the agent of a host."""

    def __init__(self, name: str, tell: Callable[[Party, str], None]) -> None:
        """`tell` hears of each deed that was done while deeds are counted."""
        self.name = name
        self.wire = Wire()
        self.counting = False
        self.deeds: list[str] = []
        self.faults: tuple[Fault, ...] = ()
        self.struck: list[str] = []
        """The deeds at which faults struck."""
        self.offset = 0.0
        """By how many seconds its wall clock is wrong."""
        self.downtime = 0.0
        """How long it takes to start again."""
        self.births = 0
        self.versions: list[str] = []
        """Of what it wrote, in the order in which it did."""
        self.on_birth: Callable[[], None] = lambda: None
        """Told when its next process begins."""
        self.life: Life | None = None
        self.under_way = 0
        """Requests and deeds."""
        self._tell = tell
        self._breaks: dict[asyncio.Future[None], None] = {}  # in their order: the same seed is the same run

    def born(self) -> Life:
        """Its next process."""
        self.births += 1
        if self.births > 1:
            self.on_birth()
        self.life = Life(self)
        return self.life

    def crash(self) -> None:
        """Its process is dead from one moment to the next."""
        if self.life is not None:
            self.life.dead.set()

    def break_watches(self, error: Exception | None = None) -> None:
        """All its watches end, with that error."""
        for broken in list(self._breaks):
            if not broken.done():
                broken.set_exception(error or errors.Unreachable("the watch was broken"))

    def fault(self, number: int, how: How) -> bool:
        """Whether that is to happen at this deed."""
        return any(fault.at == number and fault.how is how for fault in self.faults)

    def did(self, label: str) -> None:
        """A deed is done."""
        self._tell(self, label)

    async def watched(self, stream: AsyncIterator[WatchEvent]) -> AsyncIterator[WatchEvent]:
        """A watch as this party hears it."""
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()
        self._breaks[broken] = None
        held: deque[tuple[float, WatchEvent]] = deque()
        coming: asyncio.Task[WatchEvent] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(_next(stream))
                due = held[0][0] + self.wire.slow - loop.time() if held else None
                if due is None or due > 0:
                    await asyncio.wait({coming, broken}, timeout=due, return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    broken.result()
                if coming.done():
                    done, coming = coming, None
                    held.append((loop.time(), done.result()))
                while held and (held[0][0] + self.wire.slow <= loop.time() or len(held) > self.wire.behind > 0):
                    _, event = held.popleft()
                    if not self.wire.blind:
                        yield event
        except StopAsyncIteration:
            return
        finally:
            self._breaks.pop(broken, None)
            if broken.done() and not broken.cancelled():
                broken.exception()
            broken.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


async def _next(stream: AsyncIterator[WatchEvent]) -> WatchEvent:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise errors.Unreachable("the watch has ended") from None


@dataclass(eq=False)
class Life:
    """One process of a party."""

    party: Party
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    idle: Callable[[], bool] = lambda: False
    """Whether its queues are empty and nothing is in work."""

    def check(self) -> None:
        """Raises `Crash` when it is dead."""
        if self.dead.is_set():
            raise Crash(self.party.name)

    def die(self, label: str, how: How) -> None:
        """It is dead. Raises `Crash`."""
        self.party.struck.append(f"{how} {label}")
        self.dead.set()
        raise Crash(f"{self.party.name}: {how} {label}")

    async def deed(self, label: str, work: Callable[[], Awaitable[Any]], lost: Callable[[str], Exception]) -> Any:
        """Do something that lasts, unless a fault comes in between. `lost` makes the error when its answer is lost."""
        party = self.party
        self.check()
        number = 0
        if party.counting:
            party.deeds.append(label)
            number = len(party.deeds)
        if party.fault(number, How.BEFORE):
            self.die(label, How.BEFORE)
        party.under_way += 1
        try:
            answer = await work()
        finally:
            party.under_way -= 1
        self.check()
        if number:
            party.did(label)
        if party.fault(number, How.AFTER):
            self.die(label, How.AFTER)
        if party.fault(number, How.LOST):
            party.struck.append(f"{How.LOST} {label}")
            raise lost(f"the answer to {label} was lost")
        return answer


class Tapped(KubeClient):
    """The client of one life. A mixin: it comes before the client that really sends."""

    life: Life
    learn: Callable[[Raw], None] = staticmethod(lambda answer: None)
    """Shown every answer to a write."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Raw:
        life, wire = self.life, self.life.party.wire
        life.check()
        if wire.cut:
            await asyncio.sleep(0.05)
            raise errors.Unreachable("cut off")

        async def send() -> Raw:
            answer = await super(Tapped, self).request(method, path, query=query, body=body, content_type=content_type)
            if method != "GET":
                self.learn(answer)
                if version := answer.get("metadata", {}).get("resourceVersion"):
                    life.party.versions.append(version)
            if wire.cut or wire.deaf:
                raise errors.Unreachable("no answer")
            return answer

        if method == "GET" or "/leases/" in path or path.endswith("/leases"):
            answer = await send()
            life.check()
            return answer
        made: Raw = await life.deed(_label(method, path, body), send, errors.Unreachable)
        return made

    async def list_pages(
        self, kind: Kind, namespace: str | None = None, *, fields: str | None = None, labels: str | None = None
    ) -> AsyncIterator[tuple[list[Raw], str]]:
        version = self.life.party.wire.rewound
        if version is None:
            async for page in super().list_pages(kind, namespace, fields=fields, labels=labels):
                yield page
            return
        query = {"limit": str(PAGE), "resourceVersion": version, "resourceVersionMatch": "Exact"}
        query |= {k: v for k, v in {"fieldSelector": fields, "labelSelector": labels}.items() if v}
        answer = await self.request("GET", self._path(kind, namespace), query=query)
        yield answer["items"], version

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        since: str,
        fields: str | None = None,
        labels: str | None = None,
    ) -> AsyncIterator[WatchEvent]:
        life, party = self.life, self.life.party
        life.check()
        if party.wire.cut or party.wire.deaf:
            await asyncio.sleep(0.05)
            raise errors.Unreachable("cut off")
        stream = super().watch(kind, namespace, since=since, fields=fields, labels=labels)
        heard = party.watched(stream)
        try:
            async for event in heard:
                life.check()
                yield event
        finally:
            await heard.aclose()  # type: ignore[attr-defined]
            await stream.aclose()  # type: ignore[attr-defined]


def _label(method: str, path: str, body: object) -> str:
    """A deed in words: the verb, and what it is about."""
    parts = [part for part in path.split("/") if part]
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    made = body.get("metadata", {}).get("name", "") if method == "POST" and isinstance(body, dict) else ""
    verb = {"POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}[method]
    return " ".join(filter(None, (verb, *parts, made)))


READS = {
    *("connect", "close", "inventory", "domain", "domains", "foreign"),
    *("prepare", "image", "volume", "open_volume", "traits", "arrival", "snapshot", "changes", "next_merge"),
    *("send_volume", "missing", "unowned", "identify", "usage", "keeper"),
    "power",
    *("functions", "uplinks", "found", "guard", "mend", "dropped", "traffic", "missing_certificates", "gateway_facts"),
}
"""Verbs of drivers that change nothing, or only tell where to look. Every other one is a deed."""
_NO_VERB = {"told", "fail"}


def tap(driver: Any, life: Life, lost: Callable[[str], Exception]) -> Any:
    """A driver whose deeds count as those of a life, and which does nothing more when that has ended."""
    cls = type(driver)
    verbs: dict[str, Any] = {}
    for name in dir(cls):
        if not name.startswith("_") and name not in _NO_VERB and inspect.iscoroutinefunction(getattr(cls, name)):
            verbs[name] = _read(name) if name in READS else _deed(name)
    made: Any = type(f"Tapped{cls.__name__}", (_TappedDriver,), verbs)(driver, life, lost)
    return made


class _TappedDriver:
    def __init__(self, inner: Any, life: Life, lost: Callable[[str], Exception]) -> None:
        self._inner, self._life, self._lost = inner, life, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _read(name: str) -> Any:
    async def read(self: _TappedDriver, *arguments: Any, **options: Any) -> Any:
        if name != "close":
            self._life.check()
        return await getattr(self._inner, name)(*arguments, **options)

    return read


def _deed(name: str) -> Any:
    async def deed(self: _TappedDriver, *arguments: Any, **options: Any) -> Any:
        verb = getattr(self._inner, name)
        return await self._life.deed(name, lambda: verb(*arguments, **options), self._lost)

    return deed


class PartyClock:
    """The clocks of a party: its wall clock can be wrong, its monotonic one cannot."""

    def __init__(self, party: Party, true: Clock) -> None:
        self._party, self._true = party, true

    def now(self) -> datetime:
        """Wall clock, UTC."""
        return self._true.now() + timedelta(seconds=self._party.offset)

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return self._true.monotonic()
