"""What is noted, and what of it is still there when the exporter begins again."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kumulus_services.events import journal as journals
from kumulus_services.events.envelope import Change
from kumulus_services.events.journal import InUse, Journal, Limits
from kumulus_services.events.recorder import Moved, Recorder, Seen

Raw = dict[str, Any]
VM = "VirtualMachine"


def vm(name: str, version: int, *, namespace: str = "shop", **status: Any) -> Raw:
    metadata = {"name": name, "namespace": namespace, "uid": f"u-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}, "status": status}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.close()


def recorder(journal: Journal) -> Recorder:
    return Recorder(journal, lambda: "2026-01-01T00:00:00.000Z", lambda: None)


def told(journal: Journal, sink: str = "s", namespace: str | None = None) -> list[tuple[str, str, list[str]]]:
    changes = journal.after(0, sink, namespace, 1000)
    return [(change.name, change.version, [one.verb for one in change.told]) for change in changes]


def prune(
    journal: Journal,
    *,
    changes: int = 1000,
    namespace_bytes: int = 2**30,
    seconds: float = 1e9,
    now: float | None = None,
) -> int:
    return sum(journal.prune(Limits(changes, namespace_bytes, seconds), time.time() if now is None else now))


async def test_what_was_seen_is_there_after_the_end_of_the_process(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.begin("s", None)
    note = recorder(first)
    note.record([Seen(VM, vm("web", 5)), Seen(VM, vm("web", 6, phase="Paused")), Moved(VM, "9")])
    with pytest.raises(InUse):
        Journal(tmp_path)
    first.close()
    again = Journal(tmp_path)
    assert again.position(VM) == "9"
    assert told(again) == [("web", "5", ["created"]), ("web", "6", ["updated", "paused"])]
    recorder(again).record([Seen(VM, vm("web", 6, phase="Paused")), Seen(VM, vm("web", 5))])
    assert len(told(again)) == 2, "what is known already is no news"
    again.close()


async def test_after_a_gap_the_difference_is_told(journal: Journal) -> None:
    note = recorder(journal)
    note.compare(VM, [[vm("old", 3), vm("web", 4), vm("same", 5)]], "6", silent=True)
    assert not told(journal), "what was there before anybody was told is no news"
    assert journal.position(VM) == "6"
    note.compare(VM, [[vm("web", 8, phase="Failed")], [vm("same", 5), vm("new", 9)]], "10")
    assert sorted(told(journal)) == [
        ("new", "9", ["created"]),
        ("old", "10", ["deleted"]),
        ("web", "8", ["updated", "failed"]),
    ]
    assert journal.position(VM) == "10"


async def test_another_object_of_the_same_name_is_another_one(journal: Journal) -> None:
    note = recorder(journal)
    note.record([Seen(VM, vm("web", 1))])
    other = vm("web", 5)
    other["metadata"]["uid"] = "u-2"
    note.compare(VM, [[other]], "6")
    assert [verbs for _, _, verbs in told(journal)] == [["created"], ["created"], ["deleted"]]


async def test_a_sink_in_a_namespace_sees_that_and_keeps_nothing_of_others(journal: Journal) -> None:
    note = recorder(journal)
    journal.begin("shop", "shop")
    journal.begin("all", None)
    note.record([Seen(VM, vm("a", 1)), Seen(VM, vm("b", 2, namespace="bank")), Seen(VM, vm("c", 3))])
    assert [name for name, _, _ in told(journal, "shop", "shop")] == ["a", "c"]
    journal.advance("all", journal.last(), 3)
    prune(journal)
    assert [name for name, _, _ in told(journal, "all")] == ["a", "c"], "what shop has not got yet"
    journal.advance("shop", journal.last(), 2)
    prune(journal)
    assert journal.size() == 0
    assert journal.last() == 3, "numbers are not used again"
    journal.end(["all"])
    assert journal.standing("shop") is None


async def test_a_replay_is_for_one_sink(journal: Journal) -> None:
    recorder(journal).compare(VM, [[vm("a", 1), vm("b", 2, namespace="bank")]], "3", silent=True)
    for sink, namespace in (("one", "shop"), ("all", None), ("late", None)):
        journal.begin(sink, namespace)
    journal.replay("one", "t", "shop")
    journal.replay("all", "t", None)
    assert told(journal, "one", "shop") == [("a", "1", ["present"])]
    assert [name for name, _, _ in told(journal, "all")] == ["b", "a"]
    assert not told(journal, "late")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from("abcde"), min_size=30, max_size=80), most=st.integers(1, 20))
def test_of_too_many_only_intermediate_states_go(
    tmp_path_factory: pytest.TempPathFactory, steps: str, most: int
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal"))
    try:
        journal.begin("slow", None)
        note = Recorder(journal, lambda: "t", lambda: None)
        note.record([Seen(VM, vm(name, number)) for number, name in enumerate(steps, 1)])
        for _ in range(20):
            prune(journal, changes=most)
        last = {name: str(number) for number, name in enumerate(steps, 1)}
        seen = told(journal, "slow")
        versions = {name: version for name, version, _ in seen}
        assert versions == last, "the final state of each is kept"
        assert [int(version) for _, version, _ in seen] == sorted(int(version) for _, version, _ in seen)
        standing = journal.standing("slow")
        assert standing is not None and standing.lost == len(steps) - len(seen)
    finally:
        journal.close()


async def test_dead_letters_are_bounded_and_go_once_more(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "DEAD_MOST", 3)
    journal.begin("s", None)
    recorder(journal).record([Seen(VM, vm(f"vm-{number}", number)) for number in range(1, 6)])
    changes: list[Change] = journal.after(0, "s", None, 10)
    for change in changes:
        journal.bury("s", change, "500", "t")
    journal.advance("s", journal.last(), 0)
    assert journal.dead_letters("s") == 3
    assert [letter.change.name for letter in journal.letters("s")] == ["vm-3", "vm-4", "vm-5"]
    standing = journal.standing("s")
    assert standing is not None and standing.lost == 2
    upto = journal.last_letter("s")
    assert [journal.redeliver("s", upto=upto, limit=2) for _ in range(3)] == [2, 1, 0]
    again = journal.after(standing.cursor, "s", None, 10)
    assert [(change.uid, change.version, change.at) for change in again] == [
        (change.uid, change.version, change.at) for change in changes[2:]
    ]
    assert journal.dead_letters("s") == 0
    assert not journal.after(standing.cursor, "other", None, 10)


async def test_a_greedy_namespace_costs_others_nothing(journal: Journal) -> None:
    """Not even by what ended, which has no later state, nor by what is a sink's own."""
    for sink, namespace in (("all", None), ("bank", "bank"), ("shop", "shop")):
        journal.begin(sink, namespace)
    note = recorder(journal)
    note.record([Seen(VM, vm("first", 1, namespace="bank"))])
    for number in range(2, 602, 2):
        note.record([Seen(VM, vm(f"x{number}", number)), Seen(VM, vm(f"x{number}", number + 1), gone=True)])
    note.record([Seen(VM, vm("kept", 700))])
    journal.replay("shop", "t", "shop")
    assert prune(journal, namespace_bytes=100_000) > 300
    left = told(journal, "shop", "shop")
    assert 0 < len(left) < 200 and left[-1] == ("kept", "700", ["present"]), "the latest stay"
    assert "created" not in [verbs[0] for _, _, verbs in left[:-2]], "intermediate states go first"
    assert told(journal, "bank", "bank") == [("first", "1", ["created"])]
    lost = {sink: (found.lost if (found := journal.standing(sink)) else None) for sink in ("all", "bank", "shop")}
    assert lost["bank"] == 0 and lost["shop"] == 602 - len(left)
    assert prune(journal, namespace_bytes=100_000) == 0
    assert prune(journal, namespace_bytes=0) == len(left) + 1, "whatever it is"
    assert journal.size() == 0


async def test_what_nobody_fetches_does_not_stay_for_ever(journal: Journal) -> None:
    journal.begin("suspended", "shop")
    recorder(journal).record([Seen(VM, vm("a", 1)), Seen(VM, vm("b", 2))])
    assert prune(journal, seconds=3600) == 0
    assert prune(journal, seconds=3600, now=time.time() + 3601) == 2
    standing = journal.standing("suspended")
    assert standing is not None and standing.lost == 2


async def test_a_journal_of_before_knows_how_much_it_has(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.begin("s", None)
    recorder(first).record([Seen(VM, vm("a", 1)), Seen(VM, vm("b", 2, namespace="bank"))])
    first.close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as old:
        old.executescript(
            "DROP TRIGGER changes_come; DROP TRIGGER changes_go; DROP TABLE usage; PRAGMA user_version = 1"
        )
    old.close()
    again = Journal(tmp_path)
    assert again.size() == 2
    assert prune(again, namespace_bytes=0) == 2
    again.close()


async def test_what_everybody_has_goes_a_bit_at_a_time(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "BIT", 3)
    journal.begin("all", None)
    journal.begin("slow", "shop")
    homes = ("shop", "shop", "own", "shop", "own")
    recorder(journal).record([Seen(VM, vm(f"vm-{n}", n, namespace=homes[n % 5])) for n in range(1, 31)])
    journal.advance("all", 30, 30)
    journal.advance("slow", 10, 6)
    sizes = [journal.size()]
    for lost in journal.prune(Limits(1000, 2**30, 1e9), time.time()):
        assert lost == 0
        sizes.append(journal.size())
    assert max(before - after for before, after in pairwise(sizes)) == 3
    left = [change.seq for change in journal.after(0, "slow", None, 100)]
    assert left == [n for n in range(11, 31) if homes[n % 5] == "shop"]
