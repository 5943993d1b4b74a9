"""An API server in memory, just enough for code that reads and writes whole objects: versions, uids, conflicts."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

from kumulus.api.base import Kind
from kumulus.kube.errors import AlreadyExists, Conflict, NotFound, Unreachable

Raw = dict[str, Any]


class FakeApi:
    """What all clients share."""

    def __init__(self) -> None:
        self.version = 0
        self.objects: dict[tuple[str, str | None, str], Raw] = {}

    def put(self, key: tuple[str, str | None, str], body: Mapping[str, Any], uid: str | None = None) -> Raw:
        self.version += 1
        stored = copy.deepcopy(dict(body))
        stored["metadata"] = {
            **stored["metadata"],
            "namespace": key[1],
            "resourceVersion": str(self.version),
            "uid": uid or f"uid-{self.version}",
        }
        self.objects[key] = stored
        return copy.deepcopy(stored)


class FakeClient:
    """One client's view: it can be cut off, and be slow on the way there and on the way back."""

    def __init__(self, api: FakeApi, *, there: float = 0.0, back: float = 0.0) -> None:
        self._api = api
        self.there, self.back = there, back
        self.cut = False
        self.hangs = False
        self.writes = 0

    async def _travel(self, seconds: float) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(seconds)
        if self.cut:
            raise Unreachable("cut off")

    async def find(self, kind: Kind, name: str, namespace: str | None = None) -> Raw | None:
        await self._travel(self.there)
        found = copy.deepcopy(self._api.objects.get((kind.plural, namespace, name)))
        await self._travel(self.back)
        return found

    async def create(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        await self._travel(self.there)
        key = (kind.plural, namespace, body["metadata"]["name"])
        if key in self._api.objects:
            raise AlreadyExists(409, "AlreadyExists", key[2])
        self.writes += 1
        made = self._api.put(key, body)
        await self._travel(self.back)
        return made

    async def replace(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        await self._travel(self.there)
        key = (kind.plural, namespace, body["metadata"]["name"])
        known = self._api.objects.get(key)
        if known is None:
            raise NotFound(404, "NotFound", key[2])
        if known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            raise Conflict(409, "Conflict", key[2])
        self.writes += 1
        made = self._api.put(key, body, known["metadata"]["uid"])
        await self._travel(self.back)
        return made
