"""What a reconciler is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from kumulus.api.base import Resource
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import Clock
from kumulus.runtime.result import Result

R = TypeVar("R", bound=Resource)


class Enqueue(Protocol):
    """Asks for a pass over an object of the reconciler's own kind."""

    def __call__(self, key: Key, *, urgent: bool = False) -> None:
        """Soon. `urgent` is for what finishes started work: it goes before what starts new work."""


@dataclass(frozen=True, slots=True)
class Reflection:
    """A store that a reflector feeds, and which objects it is shown."""

    store: Store[Any]
    fields: str | None = None
    """A field selector."""
    labels: str | None = None
    """A label selector."""


class Caches:
    """The stores of a process. Asking for a store declares that its kind is to be watched."""

    def __init__(self) -> None:
        self._stores: dict[str, Store[Any]] = {}
        self._reflections: dict[str, Reflection] = {}
        self._reserving: dict[str, None] = {}

    def store(self, model: type[R]) -> Store[R]:
        """The store of that kind, fed by kopf."""
        return self._stores.setdefault(model.KIND.plural + "." + model.KIND.group, Store(model))

    def reserving(self, model: type[R]) -> Store[R]:
        """The store of a kind whose objects say what is given away already: whoever begins to lead lists it once more, for its
        watch may be behind by what the leader before wrote last."""
        self._reserving[model.KIND.plural + "." + model.KIND.group] = None
        return self.store(model)

    def reservations(self) -> Iterator[Store[Any]]:
        """Stores to be listed before anything is given away."""
        return (self._stores[name] for name in self._reserving)

    def reflected(self, model: type[R], *, fields: str | None = None, labels: str | None = None) -> Store[R]:
        """The store of a kind that changes too often to go through kopf, or of which only some objects are wanted; `fields`
        is a field selector, `labels` a label selector."""
        store = self.store(model)
        self._reflections[model.KIND.plural + "." + model.KIND.group] = Reflection(store, fields, labels)
        return store

    def watched(self) -> Iterator[Store[Any]]:
        """Stores that kopf feeds."""
        return (store for name, store in self._stores.items() if name not in self._reflections)

    def reflections(self) -> Iterator[Reflection]:
        """Stores that a reflector feeds, each with its selectors."""
        return iter(self._reflections.values())

    def __iter__(self) -> Iterator[Store[Any]]:
        return iter(self._stores.values())

    @property
    def synced(self) -> bool:
        """Whether every store has seen everything once. May be asked from any thread."""
        return all(store.synced for store in tuple(self._stores.values()))


@dataclass(frozen=True, slots=True)
class Services:
    """What every reconciler may use."""

    client: KubeClient
    caches: Caches
    clock: Clock
    term: Callable[[], int]
    """The leader's term, for what is written into work orders."""


class Reconciler(Protocol):
    """Brings objects of one kind to what their spec says. One pass over one object at a time."""

    @property
    def name(self) -> str:
        """For logs and metrics."""

    def attach(self, enqueue: Enqueue) -> None:
        """Listen to the stores whose changes mean a pass. Called once, before anything is read."""

    def everything(self) -> list[Key]:
        """All objects there are; each gets a pass when this process begins to lead."""

    async def reconcile(self, key: Key) -> Result:
        """One pass. Starts from what is observed, may be repeated at any time, ends with at most one status write."""
