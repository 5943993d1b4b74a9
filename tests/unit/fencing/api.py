"""An API server in memory for reconcilers and agents: versions, generations, finalizers, subresources, and something that may
happen before each request."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from kumulus.api.base import Kind
from kumulus.kube.errors import AlreadyExists, Conflict, NotFound

Raw = dict[str, Any]
Place = tuple[str, str | None, str]


class Api:
    """What everybody sees."""

    def __init__(self) -> None:
        self.version = 0
        self.objects: dict[Place, Raw] = {}

    def listed(self, kind: Kind, namespace: str | None = None) -> list[Raw]:
        """All of a kind, by name."""
        found = [
            raw
            for (plural, place, _), raw in sorted(self.objects.items(), key=lambda item: str(item[0]))
            if plural == kind.plural and namespace in (None, place)
        ]
        return copy.deepcopy(found)

    def put(self, place: Place, raw: Raw) -> Raw:
        """Store it in a new version; what is on its way out and has no finalizer is gone."""
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        if raw["metadata"].get("deletionTimestamp") and not raw["metadata"].get("finalizers"):
            self.objects.pop(place, None)
        else:
            self.objects[place] = raw
        return copy.deepcopy(raw)


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    after = dict(before) if isinstance(before, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = merged(after.get(key), value)
    return after


class Client:
    """One process' way to it. `before` happens before each request, and may raise: the process died, or cannot be heard."""

    server = "memory"

    def __init__(self, api: Api, before: Callable[[str], Awaitable[None]]) -> None:
        self._api = api
        self._before = before

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Raw:
        await self._before("get")
        return copy.deepcopy(self._known(kind, name, namespace))

    async def find(self, kind: Kind, name: str, namespace: str | None = None) -> Raw | None:
        try:
            return await self.get(kind, name, namespace)
        except NotFound:
            return None

    async def list_pages(
        self, kind: Kind, namespace: str | None = None, **_: Any
    ) -> AsyncIterator[tuple[list[Raw], str]]:
        await self._before("list")
        yield self._api.listed(kind, namespace), str(self._api.version)

    async def create(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        await self._before("create")
        name = body["metadata"]["name"]
        if (place := (kind.plural, namespace, name)) in self._api.objects:
            raise AlreadyExists(409, "AlreadyExists", name)
        raw = copy.deepcopy({"apiVersion": kind.api_version, "kind": kind.kind, **body})
        meta = {"namespace": namespace, "uid": f"00000000-0000-4000-8000-{self._api.version:012}", "generation": 1}
        raw["metadata"] |= {**meta, "creationTimestamp": f"2026-01-01T00:00:00.{self._api.version:06}Z"}
        return self._api.put(place, raw)

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
    ) -> Raw:
        await self._before("patch")
        known = self._known(kind, name, namespace)
        version = patch.get("metadata", {}).get("resourceVersion")
        if version is not None and version != known["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", name)
        after = merged(copy.deepcopy(known), copy.deepcopy(dict(patch)))
        if subresource == "status":
            after = {**copy.deepcopy(known), "status": after.get("status", {})}
        elif "status" in known:
            after["status"] = known["status"]
        if after.get("spec") != known.get("spec"):
            after["metadata"]["generation"] += 1
        return self._api.put((kind.plural, namespace, name), after)

    async def replace(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        await self._before("replace")
        name = body["metadata"]["name"]
        known = self._known(kind, name, namespace)
        if known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            raise Conflict(409, "Conflict", name)
        after = {**copy.deepcopy(dict(body)), "metadata": {**known["metadata"], **copy.deepcopy(body["metadata"])}}
        return self._api.put((kind.plural, namespace, name), after)

    async def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, uid: str | None = None, version: str | None = None
    ) -> Raw | None:
        await self._before("delete")
        known = self._api.objects.get((kind.plural, namespace, name))
        if known is None:
            return None
        if uid is not None and uid != known["metadata"]["uid"]:
            raise Conflict(409, "Conflict", name)
        if version is not None and version != known["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", name)
        after = copy.deepcopy(known)
        after["metadata"].setdefault("deletionTimestamp", "2026-01-02T00:00:00Z")
        return self._api.put((kind.plural, namespace, name), after)

    def _known(self, kind: Kind, name: str, namespace: str | None) -> Raw:
        known = self._api.objects.get((kind.plural, namespace, name))
        if known is None:
            raise NotFound(404, "NotFound", name)
        return known
