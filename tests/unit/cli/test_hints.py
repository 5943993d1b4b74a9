"""Every reason that something of a network can be given has a hint, and hints name commands that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from kumulus.api.base import PAUSED
from kumulus.api.routing import Router
from kumulus.cli.facts import Level
from kumulus.cli.hints import HINTS, hint
from kumulus.cli.net_explain import explain
from kumulus.cli.people import app

ROOT = Path(__file__).parents[3]
PHASE = "controllers/kumulus_controllers/compute/phase.py"
"""Of which only the condition of networks counts."""
SOURCES = (
    "controllers/kumulus_controllers/network",
    "controllers/kumulus_controllers/compute/links.py",
    PHASE,
    "agents/kumulus_agents/network",
    "agents/kumulus_agents/agent",
)
_FIRST = {"Lack": 0, "Wait": 0, "Problem": 0, "Fact": 2}
"""Where a call has its reason."""
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def _constants(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Constants that stand for a reason, of modules and classes."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[attr-defined]
            for name in (one.id for one in targets if isinstance(one, ast.Name) and one.id.isupper()):
                yield from ((name, text) for text in _texts(value, {}) if _REASON.fullmatch(text))


_REASON = re.compile(r"[A-Z][A-Za-z]+")


def _texts(node: ast.expr, constants: Mapping[str, Collection[str]]) -> Iterator[str]:
    """The texts that an expression may come to, as far as they stand in it or in what it names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name):
        yield from constants.get(node.id, ())
    elif isinstance(node, ast.Attribute) and node.attr.isupper():
        yield from constants.get(node.attr, ())
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value, constants)


def _files(source: str) -> list[Path]:
    path = ROOT / source
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def reasons() -> dict[str, str]:
    """Reasons that controllers and drivers of networks give, and where."""
    found: dict[str, str] = {}
    shared: dict[str, set[str]] = {}  # constants that other modules may import
    for tree in (ast.parse(file.read_text()) for source in SOURCES for file in _files(source)):
        for name, text in _constants(tree):
            shared.setdefault(name, set()).add(text)
    for source in SOURCES:
        for file in _files(source):
            tree = ast.parse(file.read_text())
            own: dict[str, set[str]] = {}
            for name, text in _constants(tree):
                own.setdefault(name, set()).add(text)
            constants = {**shared, **own}
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                name = call.func.id if isinstance(call.func, ast.Name) else ""
                good = name == "Fact" and isinstance(call.args[1], ast.Constant) and call.args[1].value is True
                if source == PHASE and not (name == "Fact" and ast.unparse(call.args[0]) == "network"):
                    continue
                if (at := _FIRST.get(name)) is not None and len(call.args) > at and not good:
                    found |= dict.fromkeys(_texts(call.args[at], constants), file.name)
                said = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
                if name == "NetworkError" or (name == "WorkOrderStatus" and file.name == "orders.py"):
                    texts = [text for value in said for text in _texts(value, constants)] if said else ["NetworkError"]
                    found |= dict.fromkeys(texts, file.name)
    return {reason: where for reason, where in found.items() if reason}


def test_every_reason_has_a_hint_and_every_hint_a_reason() -> None:
    known = reasons()
    assert len(known) > 80, "the sources are not read as they should be"
    missing = {reason: where for reason, where in known.items() if reason not in HINTS}
    assert missing == {}
    assert HINTS.keys() - known.keys() == set()


def _commands(of: typer.Typer, before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = {(*before, str(one.name)) for one in of.registered_commands}
    for group in of.registered_groups:
        assert group.typer_instance is not None
        found |= _commands(group.typer_instance, (*before, str(group.name)))
    return found


def test_hints_can_be_followed() -> None:
    commands = _commands(app)
    for reason in HINTS:
        said = hint(reason, namespace="shop", name="web")
        assert said and "{" not in said, reason
        for quoted in re.findall(r"`kumulusctl ([^`]*)`", said):
            words = re.sub(r"^-n shop ", "", quoted).split()
            assert tuple(words[:2]) in commands or tuple(words[:1]) in commands, quoted


def router(*conditions: tuple[str, str, str, str], generation: int = 1, **metadata: Any) -> Router:
    said = [
        {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-11-20T11:00:00Z",
        }
        for type_, status, reason, message in conditions
    ]
    meta = {"name": "gw", "namespace": "shop", "uid": "u", "generation": 1, **metadata}
    return Router.parse({"metadata": meta, "status": {"observedGeneration": generation, "conditions": said}})


def findings(item: Router, trouble: str | None = None) -> list[tuple[Level, str, str]]:
    return [(one.level, one.what, one.todo) for one in explain(item, item.status, now=NOW, trouble=trouble)]


def test_a_router_without_a_host() -> None:
    why = "No host can have it (h1: cannot have routers: keepalived is missing)."
    stuck = router(("Ready", "False", "NoGatewayHost", why), ("Stalled", "True", "NoGatewayHost", why))
    ((level, what, todo),) = findings(stuck)
    assert level is Level.PROBLEM
    assert "keepalived is missing" in what
    assert "networkclass" in todo


def test_what_passes_by_itself_what_is_only_a_pity_and_what_is_well() -> None:
    waits = router(
        ("Ready", "False", "NotActive", "No host says yet that it routes."), ("Reconciling", "True", "NotActive", "")
    )
    assert [level for level, _, _ in findings(waits)] == [Level.WAITING]
    alone = router(
        ("Ready", "True", "Active", "Host h1 routes."), ("Redundant", "False", "NoStandby", "No other host.")
    )
    ((level, _, todo),) = findings(alone)
    assert (level, bool(todo)) == (Level.NOTE, True)
    assert findings(router(("Ready", "True", "Active", "Host h1 routes."))) == [
        (Level.OK, "All is well: Host h1 routes.", "")
    ]


def test_nobody_looks_after_it() -> None:
    ((level, what, _),) = findings(router(generation=0), "no controller leads")
    assert level is Level.PROBLEM and "no controller leads" in what
    ((level, what, todo),) = findings(router(annotations={PAUSED: "true"}))
    assert level is Level.PROBLEM and todo.endswith(f"{PAUSED}-")
    kinds = [level for level, _, _ in findings(router(deletionTimestamp="2026-11-20T11:00:00Z"))]
    assert kinds == [Level.WAITING]
