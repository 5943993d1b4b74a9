"""A watch that notes when each object reaches a phase, and when it is gone, to the microsecond it is seen.

Times are the event loop's. Nothing is asked for while it records: what it sees is what any user's watch sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from kumulus.api.base import Kind
from kumulus.kube.client import KubeClient, Raw
from kumulus.kube.errors import Gone, KubeError


def phase_of(raw: Raw) -> str | None:
    """`status.phase`."""
    phase = raw.get("status", {}).get("phase")
    return str(phase) if phase is not None else None


class Recorder:
    """Watches one kind in one namespace (None: in all) inside an `async with` block."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind,
        namespace: str | None,
        *,
        state: Callable[[Raw], str | None] = phase_of,
    ) -> None:
        self._client = client
        self._kind = kind
        self._namespace = namespace
        self._state = state
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.first: dict[str, dict[str, float]] = {}
        """By state: when each object, by name, was first seen in it."""
        self.gone: dict[str, float] = {}
        self.states: dict[str, str] = {}
        """What each object that is there was last seen in."""
        self.events = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._record(await self._list(None)))
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _list(self, now: float | None) -> str:
        """Everything there is; the version to watch from. At the time `now` what is not there any more is gone."""
        version, there = "", set()
        async for page, version in self._client.list_pages(self._kind, self._namespace):  # noqa: B007
            for raw in page:
                there.add(raw["metadata"]["name"])
                self._take(raw, now)
        for name in self.states.keys() - there:
            del self.states[name]
            if now is not None:
                self.gone[name] = now
        return version

    async def _record(self, version: str) -> None:
        """What a watch misses, because the API server was away too long, is seen when it is listed again."""
        lost = False
        while True:
            try:
                if lost:
                    version = await self._list(asyncio.get_running_loop().time())
                    self._news.set()
                    lost = False
                async for event in self._client.watch(self._kind, self._namespace, since=version):
                    now = asyncio.get_running_loop().time()
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type == "BOOKMARK":
                        continue
                    self.events += 1
                    if event.type == "DELETED":
                        name = event.object["metadata"]["name"]
                        self.gone[name] = now
                        self.states.pop(name, None)
                    else:
                        self._take(event.object, now)
                    self._news.set()
            except Gone:
                lost = True
            except KubeError:
                await asyncio.sleep(0.02)

    def _take(self, raw: Raw, now: float | None = None) -> None:
        state, name = self._state(raw), raw["metadata"]["name"]
        if state is None:
            return
        self.states[name] = state
        if now is not None:
            self.first.setdefault(state, {}).setdefault(name, now)

    def at(self, state: str) -> dict[str, float]:
        """When each object was first seen in that state."""
        return self.first.get(state, {})

    async def reached(self, names: Collection[str], state: str, *, seconds: float) -> list[str]:
        """Wait until all of them have been seen in it, or for so long; returns those that have not."""
        return await self._wait(lambda: [name for name in names if name not in self.at(state)], seconds)

    async def vanished(self, names: Collection[str], *, seconds: float) -> list[str]:
        """Wait until all of them are gone, or for so long; returns those that are not."""
        return await self._wait(lambda: [name for name in names if name not in self.gone], seconds)

    async def _wait(self, missing: Callable[[], list[str]], seconds: float) -> list[str]:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while left := missing():
            wait = end - loop.time()
            if wait <= 0:
                return left
            self._news.clear()
            try:
                async with asyncio.timeout(min(wait, 1.0)):
                    await self._news.wait()
                await asyncio.sleep(0.02 if len(left) > 20 else 0)
            except TimeoutError:
                continue
        return []

    def forget(self, names: Collection[str]) -> None:
        """Names that will be used again."""
        for times in (*self.first.values(), self.gone):
            for name in names:
                times.pop(name, None)


def spans(since: dict[str, float], until: dict[str, float]) -> list[float]:
    """Seconds from the one to the other for every name that has both."""
    return [until[name] - start for name, start in since.items() if name in until]
