"""From what a watch says to the journal: compares with what was told, and notes what there is to tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kumulus_services.events import metrics
from kumulus_services.events.envelope import Change, slim
from kumulus_services.events.journal import Entity, Journal
from kumulus_services.events.transitions import DELETED, Told, changed

Raw = Mapping[str, Any]

BATCH = 500
"""Observations that go into the journal in one transaction."""
WAITING = 4 * BATCH
"""So many may wait for that; then watches do."""
PAUSE = 0.01
"""Seconds between two transactions, in which more comes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one object."""

    kind: str
    raw: Raw
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A kind was watched up to that version."""

    kind: str
    version: str


def version_of(text: str) -> int:
    """A resource version as a number; 0 when it is none."""
    return int(text) if text.isdigit() else 0


class Recorder:
    """The one that writes what was noticed into the journal."""

    def __init__(self, journal: Journal, now: Callable[[], str], on_recorded: Callable[[], None]) -> None:
        """`on_recorded` is called after each transaction that has something to tell."""
        self._journal = journal
        self._now = now
        self._on_recorded = on_recorded
        self._waiting: list[Seen | Moved] = []
        self._some, self._room, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._idle.set()

    async def put(self, *observations: Seen | Moved) -> None:
        """Take these in, in this order; waits while there is no room."""
        await self._room.wait()
        self._waiting.extend(observations)
        self._idle.clear()
        self._some.set()
        if len(self._waiting) >= WAITING:
            self._room.clear()

    async def settled(self) -> None:
        """Return when all that was put is in the journal."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            self.record(batch)
            if len(self._waiting) < WAITING:
                self._room.set()
            if not self._waiting:
                self._some.clear()
                self._idle.set()
                await asyncio.sleep(PAUSE)
            else:
                await asyncio.sleep(0)

    def record(self, batch: Sequence[Seen | Moved], *, silent: bool = False) -> None:
        """Note what these mean, in one transaction. `silent`: nothing is told of them."""
        told, positions = 0, {}
        with self._journal.transaction():
            for one in batch:
                if isinstance(one, Moved):
                    positions[one.kind] = one.version
                    continue
                positions[one.kind] = one.raw["metadata"]["resourceVersion"]
                told += self._gone(one) if one.gone else self._there(one, silent=silent)
            for kind, version in positions.items():
                self._journal.move(kind, version)
        if told:
            self._on_recorded()

    def compare(self, kind: str, pages: Sequence[Sequence[Raw]], version: str, *, silent: bool = False) -> None:
        """All objects of the kind are these, as of `version`: note what is other than it was told, and what is gone."""
        journal, listed, told = self._journal, set(), 0
        with journal.transaction():
            known = journal.versions(kind)
            for page in pages:
                for raw in page:
                    uid = raw["metadata"]["uid"]
                    listed.add(uid)
                    if known.get(uid) != raw["metadata"]["resourceVersion"]:
                        told += self._there(Seen(kind, raw), silent=silent)
            for uid in known.keys() - listed:
                entity = journal.entity(uid)
                if entity is not None:
                    told += self._end(entity, entity.object, version)
            journal.move(kind, version)
        if told:
            self._on_recorded()

    def _there(self, seen: Seen, *, silent: bool) -> int:
        metadata = seen.raw["metadata"]
        before = self._journal.entity(metadata["uid"])
        if before is not None and version_of(before.version) >= version_of(metadata["resourceVersion"]):
            return 0
        told = () if silent else tuple(changed(seen.kind, json.loads(before.object) if before else None, seen.raw))
        entity = _entity(seen)
        self._journal.put(entity)
        if told:
            self._tell(entity, entity.version, entity.object, told)
        return len(told)

    def _gone(self, seen: Seen) -> int:
        metadata = seen.raw["metadata"]
        before = self._journal.entity(metadata["uid"])
        if before is None:
            return 0
        return self._end(before, _entity(seen).object, metadata["resourceVersion"])

    def _end(self, entity: Entity, item: str, version: str) -> int:
        self._journal.forget(entity.uid)
        self._tell(entity, version, item, (Told(DELETED),))
        return 1

    def _tell(self, entity: Entity, version: str, item: str, told: tuple[Told, ...]) -> None:
        self._journal.add(
            Change(
                0,
                entity.uid,
                entity.kind,
                entity.namespace,
                entity.name,
                version,
                self._now(),
                told,
                item,
                entity.labels,
            )
        )
        metrics.NOTICED.labels(entity.kind).inc()


def _entity(seen: Seen) -> Entity:
    metadata = seen.raw["metadata"]
    return Entity(
        uid=metadata["uid"],
        kind=seen.kind,
        namespace=metadata.get("namespace"),
        name=metadata["name"],
        version=metadata["resourceVersion"],
        labels=metadata.get("labels") or {},
        object=json.dumps(slim(seen.raw), separators=(",", ":"), ensure_ascii=False),
    )
