"""The module tree: what loads, what does not and why, who sees what, and in which order it ends."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from kumulus.runtime.clock import SystemClock
from kumulus.runtime.modules import Context, Module, ModuleTree, Node, Registry, State, discover
from kumulus.runtime.reconciler import Caches, Services

HOME = "kumulus_test_modules"
Setup = Callable[[Context], None]


class Workshop:
    """Makes entry points out of functions."""

    def __init__(self) -> None:
        self.home = types.ModuleType(HOME)
        self.entries: list[EntryPoint] = []
        self.log: list[str] = []

    def module(self, name: str, do: Setup | None = None, settings: type[BaseModel] | None = None) -> None:
        async def setup(context: Context) -> None:
            self.log.append(f"+{name}")
            if do is not None:
                do(context)

        async def stop() -> None:
            self.log.append(f"-{name}")

        more = {"settings": settings} if settings else {}
        self.put(name, Module(description=name, setup=setup, stop=stop, **more))

    def put(self, name: str, what: object) -> None:
        attribute = name.replace(".", "_")
        setattr(self.home, attribute, what)
        self.entries.append(EntryPoint(name, f"{HOME}:{attribute}", "kumulus.modules"))

    def tree(self, include: list[str], exclude: list[str] | None = None) -> ModuleTree:
        return ModuleTree(discover(self.entries), include=include, exclude=exclude or [])


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    made = Workshop()
    sys.modules[HOME] = made.home
    yield made
    del sys.modules[HOME]


async def start(tree: ModuleTree, settings: dict[str, dict[str, Any]] | None = None) -> list[Any]:
    services = Services(None, Caches(), SystemClock(), lambda: 1)  # type: ignore[arg-type]
    return await tree.setup(services, settings or {})


def states(tree: ModuleTree) -> dict[str, State]:
    return {node.name: node.state for node in tree.nodes}


def node(tree: ModuleTree, name: str) -> Node:
    return next(item for item in tree.nodes if item.name == name)


def broken(_: Context) -> None:
    raise RuntimeError("no such luck")


async def test_parents_start_before_children_and_stop_after_them(workshop: Workshop) -> None:
    for name in ("a.b.c", "a.b", "a", "a.d"):
        workshop.module(name)
    tree = workshop.tree(["a"])
    await start(tree)
    await tree.stop()
    assert workshop.log == ["+a", "+a.b", "+a.d", "+a.b.c", "-a.b.c", "-a.d", "-a.b", "-a"]


def test_a_child_brings_its_ancestors_and_nobody_else(workshop: Workshop) -> None:
    for name in ("a", "a.b", "a.c", "z"):
        workshop.module(name)
    assert states(workshop.tree(["a.b"])) == {
        "a": State.LOADED,
        "a.b": State.LOADED,
        "a.c": State.NOT_SELECTED,
        "z": State.NOT_SELECTED,
    }


def test_what_is_not_selected_is_not_even_imported(workshop: Workshop) -> None:
    workshop.module("a")
    workshop.entries.append(EntryPoint("z", "no_such_package_at_all:x", "kumulus.modules"))
    assert states(workshop.tree(["a"]))["z"] is State.NOT_SELECTED


def test_excluding_takes_out_all_below(workshop: Workshop) -> None:
    for name in ("a", "a.b", "a.b.c", "a.bb"):
        workshop.module(name)
    found = states(workshop.tree(["a"], ["a.b"]))
    assert found == {"a": State.LOADED, "a.b": State.EXCLUDED, "a.b.c": State.EXCLUDED, "a.bb": State.LOADED}


def test_a_module_without_its_parent_is_left_out(workshop: Workshop) -> None:
    workshop.module("a.b")
    tree = workshop.tree(["a"])
    assert node(tree, "a.b").state is State.NO_PARENT and "a is not loaded" in node(tree, "a.b").why


async def test_one_that_fails_to_start_takes_its_children_out_and_nobody_else(workshop: Workshop) -> None:
    def fails_late(context: Context) -> None:
        context.reconcilers.append("half-made")  # type: ignore[arg-type]
        broken(context)

    workshop.module("a", lambda context: context.reconcilers.append("ours"))  # type: ignore[arg-type]
    workshop.module("a.bad", fails_late)
    workshop.module("a.bad.child")
    workshop.module("a.bad.child.child")
    workshop.module("a.good")
    tree = workshop.tree(["a"])
    with capture_logs():
        reconcilers = await start(tree)
    assert reconcilers == ["ours"]
    assert states(tree) == {
        "a": State.LOADED,
        "a.bad": State.FAILED,
        "a.good": State.LOADED,
        "a.bad.child": State.NO_PARENT,
        "a.bad.child.child": State.NO_PARENT,
    }
    assert "no such luck" in node(tree, "a.bad").why
    await tree.stop()
    assert workshop.log == ["+a", "+a.bad", "+a.good", "-a.good", "-a"]


def test_one_that_cannot_be_imported_or_is_no_module_is_failed(workshop: Workshop) -> None:
    workshop.entries.append(EntryPoint("gone", "no_such_package_at_all:x", "kumulus.modules"))
    workshop.put("odd", object())
    with capture_logs():
        tree = workshop.tree(["gone", "odd"])
    assert "ModuleNotFoundError" in node(tree, "gone").why
    assert "is not a kumulus.runtime.modules.Module" in node(tree, "odd").why


async def test_settings_of_a_module_are_checked_and_the_field_is_named(workshop: Workshop) -> None:
    class Knobs(BaseModel):
        size: int = 3

    seen: list[int] = []
    workshop.module("a", lambda context: seen.append(context.settings.size), Knobs)
    workshop.module("b", None)
    tree = workshop.tree(["a", "b"])
    with capture_logs():
        await start(tree, {"a": {"size": "many"}, "b": {"unknown": 1}})
    assert "size" in node(tree, "a").why and "unknown" in node(tree, "b").why and seen == []
    await start(workshop.tree(["a"]), {"a": {"size": 5}})
    await start(workshop.tree(["a"]))
    assert seen == [5, 3]


async def test_a_module_sees_its_ancestors_extension_points_and_no_siblings(workshop: Workshop) -> None:
    seen: dict[str, Any] = {}

    def parent(context: Context) -> None:
        context.registry.offer("drivers")

    def left(context: Context) -> None:
        context.registry.plug("drivers", "left", 1)
        context.registry.offer("private")

    def right(context: Context) -> None:
        seen.update(context.registry.plugged("drivers"))
        with pytest.raises(LookupError, match="private"):
            context.registry.plugged("private")
        with pytest.raises(LookupError):
            context.registry.plug("private", "x", 1)

    workshop.module("a", parent)
    workshop.module("a.left", left)
    workshop.module("a.right", right)
    tree = workshop.tree(["a"])
    await start(tree)
    assert seen == {"left": 1} and node(tree, "a.right").state is State.LOADED


def test_a_broken_plugin_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("good", "json:loads", "g"), EntryPoint("bad", "no_such_package_at_all:x", "g")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    registry = Registry()
    with capture_logs() as logs:
        registry.offer("point", "g")
    assert list(registry.plugged("point")) == ["good"]
    assert [entry["name"] for entry in logs] == ["bad"]


def test_of_two_with_one_name_one_is_kept_and_the_other_is_told() -> None:
    class Entry:
        def __init__(self, package: str) -> None:
            self.name, self.value = "a", "x:y"
            self.dist = types.SimpleNamespace(name=package)

    with capture_logs() as logs:
        nodes = discover([Entry("zeta"), Entry("alpha"), Entry("alpha")])  # type: ignore[list-item]
    assert [item.package for item in nodes] == ["alpha"]
    assert [(entry["kept"], entry["left_out"]) for entry in logs] == [("alpha", "zeta")]


async def test_one_that_fails_to_stop_keeps_nobody_else(workshop: Workshop) -> None:
    async def fine(context: Context) -> None:
        pass

    async def stuck() -> None:
        raise RuntimeError("stuck")

    workshop.module("a")
    workshop.put("a.bad", Module(description="", setup=fine, stop=stuck))
    tree = workshop.tree(["a"])
    await start(tree)
    with capture_logs():
        await tree.stop()
    assert workshop.log == ["+a", "-a"]


def test_our_own_modules_are_there() -> None:
    names = {item.name for item in discover()}
    assert {"controllers", "controllers.compute", "controllers.fabric", "controllers.storage"} <= names
    tree = ModuleTree(discover(), include=["controllers"], exclude=["controllers.network.endpoints"])
    states = {item.name: item.state for item in tree.nodes}
    assert states["controllers.network.endpoints"] is State.EXCLUDED and states["controllers.network"] is State.LOADED


def test_a_name_that_no_module_has_is_told() -> None:
    tree = ModuleTree([], include=["controllers.compute"], exclude=["controllers.typo"])
    assert tree.unknown == ["controllers.compute", "controllers.typo"]
