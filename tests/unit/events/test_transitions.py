"""What changes mean, and that the table says something of every kind and only of fields that there are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from kumulus.api.base import Resource
from kumulus.api.compute import Phase
from kumulus.api.events import EventSink
from kumulus.api.registry import KINDS
from kumulus.crdgen.command import CHECKOUT
from kumulus_services.events.transitions import NOUNS, ROWS, UNTOLD, changed, type_of

Raw = dict[str, Any]


def vm(**status: Any) -> Raw:
    return {"metadata": {"name": "web"}, "spec": {}, "status": status}


def verbs(kind: str, before: Raw | None, after: Raw) -> list[str]:
    return [told.verb for told in changed(kind, before, after)]


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (None, vm(), []),
        (vm(), vm(host="h1"), ["placed"]),
        (vm(host="h1", phase="Starting"), vm(host="h1", phase="Running", startedAt="t1"), ["started"]),
        (vm(phase="Running"), vm(phase="Paused"), ["paused"]),
        (vm(phase="Paused"), vm(phase="Running"), ["resumed"]),
        (vm(phase="Pending"), vm(phase="Stopped"), []),
        (vm(phase="Running"), vm(phase="Stopped"), ["stopped"]),
        (vm(host="h1", phase="Migrating"), vm(host="h2", phase="Running"), ["moved"]),
        (vm(failovers=["a", "b"]), vm(failovers=["b", "c"]), ["failedover"]),
        (vm(failovers=["a", "b"]), vm(failovers=["b"]), []),
        (vm(restarts=1), vm(restarts=2), ["restarted"]),
        (vm(restarts=2), vm(), []),
        (vm(phase="Running"), vm(phase="Unknown"), ["lost"]),
        (vm(), vm(conditions=[{"type": "Ready", "status": "True"}]), ["ready"]),
        (vm(conditions=[{"type": "Ready", "status": "True"}]), vm(), ["unready"]),
        (vm(phase="Running"), vm(phase="Running"), []),
    ],
)
def test_what_becomes_of_a_machine(before: Raw | None, after: Raw, news: list[str]) -> None:
    assert verbs("VirtualMachine", before, after) == ["created" if before is None else "updated", *news]


def test_a_volume_that_changes_hands_leaves_one_machine_first() -> None:
    one, two = ({"status": {"attachedTo": {"vm": name, "uid": name}}} for name in ("a", "b"))
    assert verbs("Volume", one, two) == ["updated", "detached", "attached"]
    assert verbs("Volume", {"status": {}}, one) == ["updated", "attached"]
    assert verbs("Volume", one, {"status": {}}) == ["updated", "detached"]


@pytest.mark.parametrize(
    ("phases", "news"),
    [
        (("Joining", "Maintenance", "Ready"), ["joined"]),
        (("Joining", "Ready", "Maintenance"), ["joined"]),
        (("Ready", "Unknown", "Maintenance"), ["lost", "returned"]),
        (("Unknown", "Fenced", "Maintenance", "Ready"), ["fenced", "returned"]),
        (("Ready", "Maintenance", "Ready"), []),
    ],
)
def test_a_host_that_is_worked_on_joins_and_returns_as_any(phases: tuple[str, ...], news: list[str]) -> None:
    seen = [{"status": {"phase": phase}} for phase in phases]
    told = [verb for before, after in pairwise(seen) for verb in verbs("Host", before, after)]
    assert [verb for verb in told if verb != "updated"] == news


def test_what_was_missed_is_told_when_its_outcome_is_seen() -> None:
    """A machine that was first seen when it ran already: made, placed, started."""
    assert verbs("VirtualMachine", None, vm(host="h1", phase="Running", startedAt="t")) == [
        "created",
        "placed",
        "started",
    ]


def test_every_kind_is_told_of_or_not_for_a_reason() -> None:
    told = {model.KIND.kind for model in NOUNS}
    assert told | UNTOLD.keys() == {model.KIND.kind for model in KINDS}
    assert not told & UNTOLD.keys()
    assert len(set(NOUNS.values())) == len(NOUNS)
    assert type_of("VirtualMachine", "started") == "io.kumulus.vm.started"


def test_the_exporter_may_watch_what_it_tells_of_and_little_else() -> None:
    rights = yaml.safe_load_all((CHECKOUT / "charts/kumulus/manifests/rbac.yaml").read_text())
    role = next(one for one in rights if one["kind"] == "ClusterRole" and one["metadata"]["name"] == "kumulus-events")
    watched = {
        (group, plural)
        for rule in role["rules"]
        if rule["verbs"] == ["list", "watch"]
        for group in rule["apiGroups"]
        for plural in rule["resources"]
    }
    wanted = {(model.KIND.group, model.KIND.plural) for model in (*NOUNS, EventSink)}
    assert watched == wanted
    other = [rule for rule in role["rules"] if rule["verbs"] != ["list", "watch"]]
    assert [(rule["resources"], rule["verbs"]) for rule in other] == [
        (["eventsinks/status"], ["patch"]),
        (["secrets"], ["get"]),
    ]


@pytest.mark.parametrize("model", ROWS, ids=lambda model: model.KIND.kind)
def test_rows_are_about_fields_that_there_are(model: type[Resource]) -> None:
    for row in ROWS[model]:
        found: type[BaseModel] | None = model
        for part in row.field.split("."):
            assert found is not None, row
            fields = {field.alias or name: field for name, field in found.model_fields.items()}
            assert part in fields, row
            kinds = [fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())]
            found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


@given(st.lists(st.sampled_from([None, *Phase]), min_size=2, max_size=8))
def test_who_paused_was_resumed_or_something_else_was_told(phases: list[str | None]) -> None:
    """Whatever is seen, in whatever order: an event never repeats the state that the one before it led to."""
    words = {"paused": "Paused", "suspended": "Suspended", "stopped": "Stopped", "lost": "Unknown"}
    for before, after in pairwise(phases):
        told = verbs("VirtualMachine", vm(phase=before), vm(phase=after))
        for verb, phase in words.items():
            assert verb not in told or (after == phase and before != phase)
