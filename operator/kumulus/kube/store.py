"""What a process knows of the objects of one kind: a cache fed by a watch, typed, with indexes.

Own writes go in as well (`apply` with the server's answer), and an older version never replaces a
newer one, so whoever wrote reads what it wrote. Answers, pages of a list and watches arrive over
different connections and so in any order: an object that was removed does not come back by an answer
that was slower than its end. One that a selector does not show any more has ended, too, until a later
version of it is shown. Used from one event loop only. Does no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from kumulus.api.base import Resource

R = TypeVar("R", bound=Resource)

log = structlog.get_logger(__name__)

REMEMBERED = 4096
"""So many removed objects are remembered, by uid: far more than end while one answer is on its way."""


class Key(NamedTuple):
    """Which object of a kind."""

    namespace: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


Index = Callable[[R], Iterable[str]]
Listener = Callable[[R | None, R | None], None]
"""Called with the object before and after; None for not there. One that raises is logged and keeps nobody else."""


def key_of(raw: Mapping[str, Any]) -> Key:
    """The key of an object as the API gives it."""
    metadata = raw["metadata"]
    return Key(metadata.get("namespace"), metadata["name"])


def _version(resource_version: str) -> int:
    return int(resource_version) if resource_version.isdigit() else 0


class Store(Generic[R]):
    """All objects of one kind that this process can see."""

    def __init__(self, model: type[R], indexes: Mapping[str, Index[R]] | None = None) -> None:
        self.model = model
        self._indexes: dict[str, Index[R]] = dict(indexes or {})
        self._objects: dict[Key, R] = {}
        self._buckets: dict[str, dict[str, dict[Key, R]]] = {name: {} for name in self._indexes}
        self._listeners: list[Listener[R]] = []
        self._removed: OrderedDict[str, int | None] = OrderedDict()
        """Up to which version objects have ended, by uid; None for all."""
        self.synced = False
        """Whether everything that exists has been seen once. Before that, absence means nothing."""

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._objects.values()))

    def get(self, name: str, namespace: str | None = None) -> R | None:
        """The object, as last seen."""
        return self._objects.get(Key(namespace, name))

    def keys(self) -> list[Key]:
        """Keys of all objects."""
        return list(self._objects)

    def add_index(self, name: str, index: Index[R]) -> None:
        """Index all objects, present and future, by what `index` says. The same name again: nothing."""
        if name in self._indexes:
            return
        self._indexes[name] = index
        bucket: dict[str, dict[Key, R]] = {}
        self._buckets[name] = bucket
        for key, item in self._objects.items():
            for value in index(item):
                bucket.setdefault(value, {})[key] = item

    def by(self, index: str, value: str) -> list[R]:
        """The objects whose index says `value`."""
        return list(self._buckets[index].get(value, {}).values())

    def listen(self, listener: Listener[R]) -> None:
        """Have `listener` called after each change."""
        self._listeners.append(listener)

    def apply(self, raw: Mapping[str, Any]) -> bool:
        """Take in an object, from the watch or from an own write. False when it is known already or older."""
        metadata = raw["metadata"]
        key = key_of(raw)
        uid, version = metadata.get("uid", ""), _version(metadata.get("resourceVersion", ""))
        if uid in self._removed and ((until := self._removed[uid]) is None or version <= until):
            return False
        before = self._objects.get(key)
        if before is not None:
            # Versions of one kind grow across objects, so this also tells which of two namesakes is the later one.
            known = _version(before.metadata.resource_version)
            if known >= version and (known > 0 or before.uid == uid):
                return False
        after = self.model.parse(raw)
        self._put(key, before, after)
        return True

    def remove(self, key: Key, uid: str | None = None, *, as_of: str | None = None) -> bool:
        """Forget an object, with `uid` only that very one; with `as_of` until there is a later version of it."""
        before = self._objects.get(key)
        self._remember(uid or (before.uid if before else ""), _version(as_of) if as_of else None)
        if before is None or (uid is not None and before.uid != uid):
            return False
        self._put(key, before, None)
        return True

    def retain(self, keys: Iterable[Key], as_of: str) -> None:
        """Forget all objects that a complete list of the version `as_of` did not have and that are not newer."""
        kept, limit = set(keys), _version(as_of)
        for key, item in list(self._objects.items()):
            if key not in kept and _version(item.metadata.resource_version) <= limit:
                self._remember(item.uid, limit)
                self._put(key, item, None)

    def newest(self) -> int:
        """The highest version of an object that is there; 0 of none."""
        return max((_version(item.metadata.resource_version) for item in self._objects.values()), default=0)

    def clear(self) -> None:
        """Forget all objects, and which have ended: versions count anew."""
        self._removed.clear()
        for key, item in list(self._objects.items()):
            self._put(key, item, None)

    def _remember(self, uid: str, until: int | None) -> None:
        if uid:
            self._removed[uid] = until
            if len(self._removed) > REMEMBERED:
                self._removed.popitem(last=False)

    def _put(self, key: Key, before: R | None, after: R | None) -> None:
        if before is not None:
            for name, index in self._indexes.items():
                bucket = self._buckets[name]
                for value in index(before):
                    members = bucket.get(value)
                    if members is not None:
                        members.pop(key, None)
                        if not members:
                            del bucket[value]
        if after is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = after
            for name, index in self._indexes.items():
                bucket = self._buckets[name]
                for value in index(after):
                    bucket.setdefault(value, {})[key] = after
        for listener in self._listeners:
            try:
                listener(before, after)
            except Exception:
                log.exception("listener failed", kind=self.model.KIND.kind, key=str(key))
