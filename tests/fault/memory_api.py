"""An API server in memory, for thousands of runs: what Kumulus relies on of the real one, and no more.

It has versions, generations, uids, merge patches, status subresources, preconditions, finalizers, the ends of namespaces, the
garbage collection of what is owned, selectors, watches that replay, and defaults out of the generated CRDs. It validates
nothing: the same plans run against a real API server, which does. Clients are real ones (`kube.client.KubeClient`) up to the
request.
"""

from __future__ import annotations

import asyncio
import functools
import marshal
import random
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from kumulus.api.base import Kind
from kumulus.kube import errors
from kumulus.kube.client import KubeClient, WatchEvent
from kumulus.runtime.clock import rfc3339

Raw = dict[str, Any]
Sort = tuple[str, str]
"""Group and plural of a kind."""
Place = tuple[str | None, str]
"""Namespace and name."""
CRDS = Path(__file__).parents[2] / "crds"
HISTORY = 20_000
"""So many changes can be watched from; older versions are gone."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def moment() -> datetime:
    """What time it is, by the loop's clock, which may be virtual."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


def _copy(value: Any) -> Any:
    """A deep copy of what JSON can say, ten times as fast as `copy.deepcopy`."""
    return marshal.loads(marshal.dumps(value))


@dataclass(frozen=True, slots=True)
class Schema:
    """What matters of a kind's CRD."""

    status: bool
    properties: Mapping[str, Any]


@functools.cache
def schemas() -> Mapping[Sort, Schema]:
    """The kinds that have a CRD."""
    found: dict[Sort, Schema] = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        version = spec["versions"][-1]
        found[spec["group"], spec["names"]["plural"]] = Schema(
            "status" in version.get("subresources", {}), version["schema"]["openAPIV3Schema"]
        )
    return found


def _fill(schema: Mapping[str, Any], value: Any) -> None:
    """Give what is absent its default, as the API server does."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = _copy(part["default"])
            if name in value:
                _fill(part, value[name])
        if isinstance(rest := schema.get("additionalProperties"), dict):
            for item in value.values():
                _fill(rest, item)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _fill(schema["items"], item)


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return _copy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


@dataclass(frozen=True, slots=True)
class _Where:
    sort: Sort
    namespace: str | None
    name: str | None
    subresource: str | None


def _where(path: str) -> _Where:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] != "status":
        namespace, rest = rest[1], rest[2:]
    return _Where((group, rest[0]), namespace, rest[1] if len(rest) > 1 else None, rest[2] if len(rest) > 2 else None)


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    sort: Sort
    before: Raw | None
    after: Raw | None
    last: Raw
    """The object as it was in the end, with the version of this change."""


class MemoryApi:
    """What all clients share."""

    def __init__(self, seed: int = 0) -> None:
        self.version = 1000
        self.objects: dict[Sort, dict[Place, Raw]] = {}
        self._chance = random.Random(seed)
        self._history: dict[Sort, list[_Change]] = {}
        self._dropped = 1000
        """The version up to which changes are forgotten."""
        self._changed: dict[Sort, asyncio.Event] = {}

    # Requests

    def request(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Raw:
        """Answer at once. Raises `errors.ApiError`."""
        at = _where(path)
        if method == "GET":
            return self._list(at, query) if at.name is None else _copy(self._get(at))
        if method == "POST":
            return {"status": {"token": "none"}} if at.subresource else self._create(at, body)
        if method == "DELETE":
            return self._delete(at, (body or {}).get("preconditions") or {})
        known = self._get(at)
        version = body.get("metadata", {}).get("resourceVersion")
        if version is not None and version != known["metadata"]["resourceVersion"]:
            raise errors.Conflict(409, "Conflict", f"{path} has changed")
        return self._update(at, known, _merged(known, body) if method == "PATCH" else _copy(body))

    def _get(self, at: _Where) -> Raw:
        try:
            return self.objects.get(at.sort, {})[at.namespace, at.name or ""]
        except KeyError:
            raise errors.NotFound(404, "NotFound", f"{at.sort[1]} {at.namespace}/{at.name}") from None

    def _list(self, at: _Where, query: Mapping[str, str]) -> Raw:
        version = int(query.get("resourceVersion") or self.version)
        items = dict(self.objects.get(at.sort, {}))
        for change in reversed(self._since(at.sort, version)):
            key = (change.last["metadata"].get("namespace"), change.last["metadata"]["name"])
            if change.before is None:
                items.pop(key, None)
            else:
                items[key] = change.before
        found = [
            _copy(item)
            for (namespace, _), item in items.items()
            if at.namespace in (None, namespace) and _fits(item, query)
        ]
        return {"items": found, "metadata": {"resourceVersion": str(version)}}

    def _create(self, at: _Where, body: Raw) -> Raw:
        raw = _copy(dict(body))
        name = raw["metadata"]["name"]
        if at.namespace is not None:
            room = self.objects.get(("", "namespaces"), {}).get((None, at.namespace))
            if room is None:
                raise errors.NotFound(404, "NotFound", f"namespace {at.namespace}")
            if "deletionTimestamp" in room["metadata"]:
                raise errors.Refused(403, "Forbidden", f"namespace {at.namespace} is being terminated")
        if (at.namespace, name) in self.objects.get(at.sort, {}):
            raise errors.AlreadyExists(409, "AlreadyExists", f"{at.sort[1]} {name}")
        schema = schemas().get(at.sort)
        if schema is not None:
            if schema.status:
                raw.pop("status", None)
            _fill(schema.properties, raw)
        metadata = {key: value for key, value in raw["metadata"].items() if key != "resourceVersion"}
        raw["metadata"] = metadata | {
            "uid": str(uuid.UUID(int=self._chance.getrandbits(128), version=4)),
            "generation": 1,
            "creationTimestamp": rfc3339(moment()),
        }
        if at.namespace is not None:
            raw["metadata"]["namespace"] = at.namespace
        made = self._store(at.sort, (at.namespace, name), None, raw)
        owners = [one["uid"] for one in raw["metadata"].get("ownerReferences", ())]
        if owners and not any(map(self._exists, owners)):
            # Its owner went while it was made.
            self._delete(_Where(at.sort, at.namespace, name, None), {})
        return made

    def _update(self, at: _Where, known: Raw, wanted: Raw) -> Raw:
        schema = schemas().get(at.sort)
        has_status = schema is not None and schema.status
        metadata = dict(known["metadata"])
        if at.subresource == "status":
            raw = {**known, "status": wanted.get("status", {})}
        else:
            for part in ("labels", "annotations", "finalizers", "ownerReferences"):
                metadata.pop(part, None)
                if wanted["metadata"].get(part):
                    metadata[part] = wanted["metadata"][part]
            raw = dict(wanted)
            if has_status:
                raw.pop("status", None)
                if "status" in known:
                    raw["status"] = known["status"]
            new = set(metadata.get("finalizers", ())) - set(known["metadata"].get("finalizers", ()))
            if "deletionTimestamp" in metadata and new:
                raise errors.Refused(422, "Invalid", "no new finalizers can be added while the object is being deleted")
        raw["metadata"] = metadata
        if schema is not None:
            _fill(schema.properties, raw)
        if raw == known:
            return _copy(known)
        if schema is not None and raw.get("spec") != known.get("spec"):
            metadata["generation"] += 1
        key = (at.namespace, at.name or "")
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and at.sort != ("", "namespaces"):
            return self._remove(at.sort, key, raw)
        return self._store(at.sort, key, known, raw)

    def _delete(self, at: _Where, preconditions: Mapping[str, str]) -> Raw:
        known = self._get(at)
        if preconditions.get("uid", known["metadata"]["uid"]) != known["metadata"]["uid"]:
            raise errors.Conflict(409, "Conflict", "the uid is another one")
        version = known["metadata"]["resourceVersion"]
        if preconditions.get("resourceVersion", version) != version:
            raise errors.Conflict(409, "Conflict", "it has changed")
        key = (at.namespace, at.name or "")
        if known["metadata"].get("finalizers") or at.sort == ("", "namespaces"):
            if "deletionTimestamp" in known["metadata"]:
                return _copy(known)
            metadata = {**known["metadata"], "deletionTimestamp": rfc3339(moment())}
            metadata["generation"] += 1
            raw = self._store(at.sort, key, known, {**known, "metadata": metadata})
            if at.sort == ("", "namespaces"):
                self._empty(str(at.name))
            return raw
        return self._remove(at.sort, key, known)

    # Changes

    def _store(self, sort: Sort, key: Place, before: Raw | None, raw: Raw) -> Raw:
        self.version += 1
        raw["metadata"] = {**raw["metadata"], "resourceVersion": str(self.version)}
        self.objects.setdefault(sort, {})[key] = raw
        self._note(_Change(self.version, sort, before, raw, raw))
        return _copy(raw)

    def _remove(self, sort: Sort, key: Place, raw: Raw) -> Raw:
        self.version += 1
        before = self.objects[sort].pop(key)
        # Watches are told of it as it was stored last: with the finalizer that just went.
        last, answer = (
            {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}} for item in (before, raw)
        )
        self._note(_Change(self.version, sort, before, None, last))
        self._collect(raw["metadata"]["uid"])
        if key[0] is not None:
            self._empty(key[0])
        return _copy(answer)

    def _note(self, change: _Change) -> None:
        self._history.setdefault(change.sort, []).append(change)
        if len(self._history[change.sort]) > HISTORY:
            self.forget(self._history[change.sort][HISTORY // 2].version)
        if (changed := self._changed.pop(change.sort, None)) is not None:
            changed.set()

    def forget(self, version: int | None = None) -> None:
        """Changes up to this version cannot be watched any more: watches from there are told 410."""
        self._dropped = self.version if version is None else version
        for sort, changes in self._history.items():
            self._history[sort] = [change for change in changes if change.version > self._dropped]

    def _collect(self, owner: str) -> None:
        """What is owned by nobody else goes too."""
        for sort, items in list(self.objects.items()):
            for (namespace, name), item in list(items.items()):
                owners = [one["uid"] for one in item["metadata"].get("ownerReferences", ())]
                if owner in owners and not any(self._exists(one) for one in owners if one != owner):
                    self._delete(_Where(sort, namespace, name, None), {})

    def _exists(self, uid: str) -> bool:
        return any(item["metadata"]["uid"] == uid for items in self.objects.values() for item in items.values())

    def _empty(self, namespace: str) -> None:
        """A namespace that ends takes everything along, and is gone when it is empty."""
        spaces = self.objects.get(("", "namespaces"), {})
        room = spaces.get((None, namespace))
        if room is None or "deletionTimestamp" not in room["metadata"]:
            return
        for sort, items in list(self.objects.items()):
            for (where, name), item in list(items.items()):
                if where == namespace and "deletionTimestamp" not in item["metadata"]:
                    self._delete(_Where(sort, where, name, None), {})
        if (None, namespace) in spaces and not any(
            where == namespace for items in self.objects.values() for where, _ in items
        ):
            self._remove(("", "namespaces"), (None, namespace), room)

    # Watches

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[WatchEvent]:
        """Changes after `resourceVersion`, for ever. Raises `errors.Gone`."""
        at, version = _where(path), int(query["resourceVersion"])
        while True:
            if version < self._dropped:
                raise errors.Gone(410, "Expired", f"version {version} is too old")
            changed = self._changed.setdefault(at.sort, asyncio.Event())
            for change in self._since(at.sort, version):
                version = change.version
                event = _seen(change, at, query)
                if event is not None:
                    yield event
            await changed.wait()

    def _since(self, sort: Sort, version: int) -> list[_Change]:
        history = self._history.get(sort, [])
        at = len(history)
        while at and history[at - 1].version > version:
            at -= 1
        return history[at:]


def _seen(change: _Change, at: _Where, query: Mapping[str, str]) -> WatchEvent | None:
    """What a watch with these selectors is told of a change."""
    if at.namespace not in (None, change.last["metadata"].get("namespace")):
        return None
    before = change.before is not None and _fits(change.before, query)
    after = change.after is not None and _fits(change.after, query)
    if not before and not after:
        return None
    type_ = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
    return WatchEvent(type_, _copy(change.last))


def _fits(item: Raw, query: Mapping[str, str]) -> bool:
    metadata = item["metadata"]
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        name, _, value = term.partition("=")
        if metadata.get(name.removeprefix("metadata.")) != value.lstrip("="):
            return False
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, value = term.partition("=")
        labels = metadata.get("labels", {})
        if name not in labels or (equals and labels[name] != value.lstrip("=")):
            return False
    return True


class MemoryClient(KubeClient):
    """A client of a `MemoryApi`. Each way takes up to `latency` seconds, by chance."""

    def __init__(self, api: MemoryApi, *, latency: float = 0.0, seed: int = 0) -> None:
        self.api, self._latency, self._chance = api, latency, random.Random(seed)
        self._on_write = self._may_write = None

    @property
    def server(self) -> str:
        return "memory://"

    async def close(self) -> None:
        """Nothing is open."""

    async def _travel(self) -> None:
        await asyncio.sleep(self._chance.uniform(0, self._latency) if self._latency else 0)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Raw:
        await self._travel()
        answer = self.api.request(method, path, query or {}, body)
        await self._travel()
        return answer

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        since: str,
        fields: str | None = None,
        labels: str | None = None,
    ) -> AsyncIterator[WatchEvent]:
        query = {"resourceVersion": since, "fieldSelector": fields or "", "labelSelector": labels or ""}
        async for event in self.api.watch(self._path(kind, namespace), query):
            await self._travel()
            yield event
