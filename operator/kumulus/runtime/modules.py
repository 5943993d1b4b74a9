"""The module tree: which modules a process loads makes it what it is.

A module is an entry point in the group `kumulus.modules`. Its dotted name says its parent
(`controllers.compute` is a child of `controllers`), so a module that is not selected is never
imported. It loads when it is not excluded and all its ancestors are loaded. Parents start before
children and stop after them. A module sees what its ancestors and itself have registered, never a
sibling's. One that fails to load or to start takes its own children out, and nobody else.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from kumulus.runtime.reconciler import Reconciler, Services

log = structlog.get_logger(__name__)

GROUP = "kumulus.modules"


class NoSettings(BaseModel):
    """Settings of a module that has none."""

    model_config = ConfigDict(extra="forbid")


class Registry:
    """Extension points and what plugs into them, of one module and its ancestors."""

    def __init__(self, parent: Registry | None = None) -> None:
        self._parent = parent
        self._points: dict[str, dict[str, Any]] = {}

    def offer(self, point: str, group: str | None = None) -> None:
        """Offer an extension point. With `group`, entry points of that group are plugged in; a broken one is left out."""
        plugs = self._points.setdefault(point, {})
        for entry in importlib.metadata.entry_points(group=group) if group else ():
            try:
                plugs.setdefault(entry.name, entry.load())
            except Exception:
                log.exception("extension left out", point=point, name=entry.name)

    def plug(self, point: str, name: str, extension: object) -> None:
        """Plug `extension` into a point that this module or an ancestor offers. Raises `LookupError`."""
        plugs = self._find(point)
        if plugs is None:
            raise LookupError(f"no module above offers the extension point {point!r}")
        plugs.setdefault(name, extension)

    def plugged(self, point: str) -> Mapping[str, Any]:
        """What is plugged into a point, by name. Raises `LookupError`."""
        plugs = self._find(point)
        if plugs is None:
            raise LookupError(f"no module above offers the extension point {point!r}")
        return plugs

    def _find(self, point: str) -> dict[str, Any] | None:
        if point in self._points:
            return self._points[point]
        return self._parent._find(point) if self._parent else None


@dataclass(frozen=True, slots=True)
class Context:
    """What a module is given when it is set up."""

    services: Services
    settings: Any
    """An instance of the module's own settings model."""
    registry: Registry
    reconcilers: list[Reconciler]
    """Where the module puts its reconcilers."""


@dataclass(frozen=True, slots=True)
class Module:
    """A part of Kumulus that can be switched on and off."""

    description: str
    setup: Callable[[Context], Awaitable[None]]
    """Registers reconcilers and extensions; starts what the module runs beside them."""
    stop: Callable[[], Awaitable[None]] | None = None
    settings: type[BaseModel] = NoSettings


class State(StrEnum):
    """What became of a module."""

    LOADED = "loaded"
    EXCLUDED = "excluded"
    NOT_SELECTED = "not selected"
    NO_PARENT = "parent not loaded"
    FAILED = "failed"


@dataclass(slots=True)
class Node:
    """A module in the tree."""

    name: str
    entry: importlib.metadata.EntryPoint
    state: State = State.NOT_SELECTED
    why: str = ""
    module: Module | None = None
    registry: Registry | None = None
    reconcilers: list[Reconciler] = field(default_factory=list)
    package: str = ""

    @property
    def parent(self) -> str | None:
        """Name of the parent module; None for a root."""
        return self.name.rpartition(".")[0] or None


def discover(entries: Iterable[importlib.metadata.EntryPoint] | None = None) -> list[Node]:
    """All modules that are installed, parents first, none imported. Of two with one name the first package by name wins."""
    found: dict[str, Node] = {}
    listed = importlib.metadata.entry_points(group=GROUP) if entries is None else entries
    for entry in sorted(listed, key=lambda e: (e.name, e.dist.name if e.dist else "")):
        package = entry.dist.name if entry.dist else ""
        if entry.name in found:
            if found[entry.name].package != package:
                log.error("module name taken", name=entry.name, kept=found[entry.name].package, left_out=package)
            continue
        found[entry.name] = Node(entry.name, entry, package=package)
    return sorted(found.values(), key=lambda node: (node.name.count("."), node.name))


def _below(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


class ModuleTree:
    """The modules of this process."""

    def __init__(self, nodes: list[Node], *, include: Sequence[str], exclude: Sequence[str] = ()) -> None:
        self.nodes = nodes
        self._by_name = {node.name: node for node in nodes}
        self.unknown = [name for name in (*include, *exclude) if name not in self._by_name]
        """Names in the settings that no module has."""
        for node in nodes:
            wanted = _below(node.name, include) or any(root.startswith(node.name + ".") for root in include)
            if _below(node.name, exclude):
                node.state, node.why = State.EXCLUDED, "excluded by settings"
            elif not wanted:
                node.state, node.why = State.NOT_SELECTED, "not among the modules of this process"
            elif node.parent and (
                node.parent not in self._by_name or self._by_name[node.parent].state is not State.LOADED
            ):
                node.state, node.why = State.NO_PARENT, f"{node.parent} is not loaded"
            else:
                self._load(node)

    @staticmethod
    def _load(node: Node) -> None:
        try:
            module = node.entry.load()
        except Exception as error:
            log.exception("module not loaded", module=node.name)
            node.state, node.why = State.FAILED, f"{type(error).__name__}: {error}"
            return
        if not isinstance(module, Module):
            node.state, node.why = State.FAILED, f"{node.entry.value} is not a kumulus.runtime.modules.Module"
            return
        node.state, node.module = State.LOADED, module

    async def setup(self, services: Services, settings: Mapping[str, Mapping[str, Any]]) -> list[Reconciler]:
        """Set up all loaded modules, parents first; returns the reconcilers of all."""
        for node in self.nodes:
            if node.state is not State.LOADED or node.module is None:
                continue
            parent = self._by_name.get(node.parent) if node.parent else None
            if parent is not None and parent.state is not State.LOADED:
                node.state, node.why = State.NO_PARENT, f"{parent.name} is not loaded"
                continue
            node.registry = Registry(parent.registry if parent else None)
            try:
                parsed = node.module.settings.model_validate(settings.get(node.name, {}))
                await node.module.setup(Context(services, parsed, node.registry, node.reconcilers))
            except ValidationError as error:
                node.state, node.why = (
                    State.FAILED,
                    f"settings: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}",
                )
                node.reconcilers.clear()
                log.error("module left out", module=node.name, why=node.why)
            except Exception as error:
                log.exception("module left out", module=node.name)
                node.state, node.why = State.FAILED, f"{type(error).__name__}: {error}"
                node.reconcilers.clear()
        return [reconciler for node in self.nodes for reconciler in node.reconcilers]

    async def stop(self) -> None:
        """Stop all, children before parents. One that fails to stop does not keep the others."""
        for node in reversed(self.nodes):
            if node.state is State.LOADED and node.module is not None and node.module.stop is not None:
                try:
                    await node.module.stop()
                except Exception:
                    log.exception("module did not stop", module=node.name)
