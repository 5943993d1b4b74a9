"""The cache: indexes that agree with it, and that no order of arrival makes it older than it was."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kumulus.api.compute import VirtualMachine
from kumulus.kube.store import Key, Store

WEB = Key("ns", "web")


def vm(version: int, *, name: str = "web", uid: str = "u1", host: str | None = None) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)},
        "spec": {"resources": {"cpus": 1, "memory": "1Gi"}},
        "status": {"host": host} if host else {},
    }


def store() -> Store[VirtualMachine]:
    made = Store(VirtualMachine)
    made.add_index("host", lambda item: (item.status.host,) if item.status.host else ())
    return made


def test_an_older_or_equal_version_changes_nothing() -> None:
    held = store()
    assert held.apply(vm(5, host="a"))
    assert not held.apply(vm(4, host="b"))
    assert not held.apply(vm(5, host="b"))
    found = held.get("web", "ns")
    assert found is not None and found.status.host == "a"


def test_versions_are_numbers() -> None:
    held = store()
    held.apply(vm(9))
    assert held.apply(vm(10))


def test_indexes_follow_changes_and_removal() -> None:
    held = store()
    held.apply(vm(1, host="a"))
    assert [item.name for item in held.by("host", "a")] == ["web"]
    held.apply(vm(2, host="b"))
    assert held.by("host", "a") == [] and len(held.by("host", "b")) == 1
    held.remove(WEB)
    assert held.by("host", "b") == [] and len(held) == 0


def test_an_index_added_later_knows_what_is_there() -> None:
    held = store()
    held.apply(vm(1))
    held.add_index("name", lambda item: (item.name,))
    assert len(held.by("name", "web")) == 1


def test_removal_by_uid_spares_the_successor() -> None:
    held = store()
    held.apply(vm(7, uid="u2"))
    assert not held.remove(WEB, "u1")
    assert held.get("web", "ns") is not None


def test_an_answer_slower_than_the_end_of_its_object_does_not_bring_it_back() -> None:
    """The answer to an own write and the watch come over different connections."""
    held = store()
    held.apply(vm(1))
    held.remove(WEB, "u1")
    assert not held.apply(vm(2)), "the slow answer to our patch"
    assert held.get("web", "ns") is None
    held.remove(Key("ns", "other"), "u9")
    assert not held.apply(vm(3, name="other", uid="u9")), "a page of a list that was made before"


def test_what_a_selector_does_not_show_any_more_comes_back_by_a_later_version_alone() -> None:
    held = store()
    held.apply(vm(1))
    held.remove(WEB, "u1", as_of="5")
    assert not held.apply(vm(4)) and not held.apply(vm(5)), "what was before"
    assert held.apply(vm(6)) and held.get("web", "ns") is not None


def test_news_of_a_predecessor_do_not_replace_the_successor() -> None:
    """kopf delivers objects of different uids in no particular order."""
    held = store()
    held.apply(vm(10, uid="u1"))
    assert held.apply(vm(20, uid="u2"))
    assert not held.apply(vm(15, uid="u1"))
    held.remove(WEB, "u1")
    found = held.get("web", "ns")
    assert found is not None and found.uid == "u2"


def test_retain_forgets_what_a_full_list_did_not_have_unless_it_is_newer() -> None:
    held = store()
    held.apply(vm(5, name="kept", uid="a"))
    held.apply(vm(6, name="gone", uid="b"))
    held.apply(vm(12, name="new", uid="c"))
    held.retain([Key("ns", "kept")], "10")
    assert sorted(key.name for key in held.keys()) == ["kept", "new"]  # noqa: SIM118 - a store, not a dict
    assert not held.apply(vm(6, name="gone", uid="b"))


def test_listeners_hear_before_and_after_and_one_that_fails_keeps_nobody_else() -> None:
    held = store()
    heard: list[tuple[bool, bool]] = []

    def broken(before: object, after: object) -> None:
        raise RuntimeError("a third party's")

    held.listen(broken)
    held.listen(lambda before, after: heard.append((before is not None, after is not None)))
    with capture_logs() as logs:
        held.apply(vm(1))
        held.apply(vm(2))
        held.apply(vm(2))
        held.remove(WEB)
    assert heard == [(False, True), (True, True), (True, False)]
    assert {entry["event"] for entry in logs} == {"listener failed"}


News = tuple[int, int, int]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_order_of_arrival_ends_in_the_same_state(lives: list[int], chance: Any) -> None:
    """Successive objects of one name, each with so many changes; all but the last end. What arrives is shuffled."""
    version, news = 0, []
    for number, changes in enumerate(lives):
        for _ in range(changes + 1):
            version += 1
            news.append(("put", number, version))
        if number < len(lives) - 1:
            news.append(("end", number, version))
    chance.shuffle(news)
    held = store()
    for what, number, at in news:
        if what == "put":
            held.apply(vm(at, uid=f"u{number}", host=f"h{at}"))
        else:
            held.remove(WEB, f"u{number}")
    found = held.get("web", "ns")
    assert found is not None and found.metadata.resource_version == str(version)
    assert [item.uid for item in held.by("host", f"h{version}")] == [f"u{len(lives) - 1}"]
    assert sum(len(held.by("host", f"h{at}")) for at in range(version + 1)) == 1
