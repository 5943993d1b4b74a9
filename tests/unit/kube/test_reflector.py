"""The reflector: when it goes on, when it lists again, and what it makes of what it cannot read. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.kube.client import WatchEvent
from kumulus.kube.errors import ApiError, Gone, KubeError, NotFound, Refused, Unreachable
from kumulus.kube.reflector import Reflector, fill
from kumulus.kube.store import Store
from tests.unit.kube.test_store import vm
from tests.unit.kube.virtual_time import run

Raw = dict[str, Any]


class Feed:
    """Lists and watches as told: each watch is a list of events, then how it ends."""

    def __init__(self, lists: list[list[Raw] | KubeError], watches: list[list[WatchEvent | KubeError]]) -> None:
        self._lists, self._watches = lists, watches
        self.listed = 0
        self.versions: list[int] = []
        """Of lists, where they are not hundreds."""
        self.since: list[str] = []
        self.quiet = asyncio.Event()

    async def list_pages(
        self, kind: Kind, namespace: str | None, *, fields: str | None = None, labels: str | None = None
    ) -> AsyncIterator[tuple[list[Raw], str]]:
        self.listed += 1
        found = self._lists.pop(0)
        if isinstance(found, KubeError):
            raise found
        yield found, str(self.versions.pop(0) if self.versions else 100 * self.listed)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        since: str,
        fields: str | None = None,
        labels: str | None = None,
        seconds: int = 300,
    ) -> AsyncIterator[WatchEvent]:
        self.since.append(since)
        if not self._watches:
            self.quiet.set()
            await asyncio.Event().wait()
        for event in self._watches.pop(0):
            if isinstance(event, KubeError):
                raise event
            yield event


def reflect(
    lists: list[list[Raw] | KubeError],
    watches: list[list[WatchEvent | KubeError]],
    check: Callable[[Store[VirtualMachine], Feed], None],
) -> None:
    """Run a reflector until its feed has nothing more, then check."""

    async def main() -> None:
        feed, store = Feed(lists, watches), Store(VirtualMachine)
        task = asyncio.create_task(Reflector(store, feed).run())  # type: ignore[arg-type]
        async with asyncio.timeout(600):
            await feed.quiet.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        check(store, feed)

    run(main())


def names(store: Store[VirtualMachine]) -> list[str]:
    return sorted(item.name for item in store)


def changed(raw: Raw) -> WatchEvent:
    return WatchEvent("MODIFIED", raw)


def test_what_fits_a_selector_again_comes_back() -> None:
    """The watch says DELETED when an object does not fit any more, with the version of that change, and ADDED later."""

    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert names(store) == ["a"] and store.get("a", "ns").metadata.resource_version == "130"  # type: ignore[union-attr]
        assert not store.apply(vm(119, name="b", uid="b")), "what was before its end stays gone"

    left = [WatchEvent("DELETED", vm(120, name="a", uid="a")), WatchEvent("DELETED", vm(121, name="b", uid="b"))]
    back = WatchEvent("ADDED", vm(130, name="a", uid="a"))
    reflect([[vm(1, name="a", uid="a"), vm(2, name="b", uid="b")]], [[*left, back]], check)


def test_events_and_bookmarks_move_the_version_on() -> None:
    bookmark = WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "150"}})

    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert names(store) == ["a", "b"] and store.synced
        assert feed.since == ["100", "120", "150"] and feed.listed == 1

    reflect([[vm(1, name="a", uid="a")]], [[changed(vm(120, name="b", uid="b"))], [bookmark]], check)


def test_too_old_a_version_means_listing_again_and_noticing_what_is_gone() -> None:
    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert names(store) == ["b"] and feed.listed == 2 and feed.since == ["100", "200"]

    lists: list[list[Raw] | KubeError] = [
        [vm(1, name="a", uid="a"), vm(2, name="b", uid="b")],
        [vm(2, name="b", uid="b")],
    ]
    reflect(lists, [[Gone(410, "Expired", "")]], check)


@pytest.mark.parametrize("error", [Unreachable("x"), ApiError(503, "Down", ""), ApiError(429, "TooManyRequests", "")])
def test_a_broken_watch_goes_on_where_it_was(error: KubeError) -> None:
    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert feed.listed == 1 and feed.since == ["100", "107"]

    reflect([[]], [[changed(vm(107)), error]], check)


@pytest.mark.parametrize(
    "error", [Refused(401, "Unauthorized", ""), NotFound(404, "NotFound", ""), ApiError(504, "Timeout", "Too large")]
)
def test_after_an_answer_that_time_does_not_heal_everything_is_listed(error: KubeError) -> None:
    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert feed.listed == 2

    reflect([[], []], [[error]], check)


def test_while_nothing_can_be_listed_it_is_not_synced_and_pauses_grow_to_a_limit() -> None:
    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert feed.listed == 13 and store.synced

    reflect([*[Unreachable("x") for _ in range(12)], []], [], check)


def test_an_object_that_does_not_fit_its_model_is_left_out_alone() -> None:
    def check(store: Store[VirtualMachine], feed: Feed) -> None:
        assert names(store) == ["good"]

    bad = vm(3, name="bad", uid="bad")
    bad["spec"] = {"powerState": "Sideways"}
    reflect(
        [[bad, vm(4, name="good", uid="good")]],
        [[changed({**bad, "metadata": {**bad["metadata"], "resourceVersion": "9"}})]],
        check,
    )


def test_of_another_server_that_counts_from_the_beginning_everything_is_taken_and_nothing_kept() -> None:
    async def main() -> None:
        store, feed = Store(VirtualMachine), Feed([], [])
        await fill(store, Feed([[vm(90, name="a", uid="a"), vm(95, name="b", uid="b")]], []), VirtualMachine.KIND, None)  # type: ignore[arg-type]
        feed._lists, feed.versions = [[vm(3, name="b", uid="b2")]], [7]
        await fill(store, feed, VirtualMachine.KIND, None)  # type: ignore[arg-type]
        assert [(item.name, item.uid) for item in store] == [("b", "b2")]

    run(main())


def test_who_doubts_has_everything_listed_anew_with_the_next_word_of_the_watch() -> None:
    async def main() -> None:
        feed = Feed([[], [vm(150)]], [[WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "120"}})], []])
        store = Store(VirtualMachine)
        reflector = Reflector(store, feed)  # type: ignore[arg-type]
        told: list[bool] = []
        watch = feed.watch

        async def watched(*args: Any, **how: Any) -> AsyncIterator[WatchEvent]:
            if not told:
                reflector.doubt()
            told.append(reflector.sure)
            async for event in watch(*args, **how):
                yield event

        feed.watch = watched  # type: ignore[method-assign]
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(600):
            await feed.quiet.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert feed.listed == 2 and told[:2] == [False, True] and names(store) == ["web"]

    run(main())
