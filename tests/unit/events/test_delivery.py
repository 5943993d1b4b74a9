"""Sending: order, retries, what is given up, and that one object that is refused holds up no other."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.events import EventSink, SinkReason
from kumulus_services.events import delivery as deliveries
from kumulus_services.events.delivery import Delivery
from kumulus_services.events.envelope import Event
from kumulus_services.events.journal import Journal
from kumulus_services.events.recorder import Recorder, Seen
from kumulus_services.events.transport import Rejected, Unavailable
from tests.patience import PATIENCE
from tests.unit.events.test_journal import VM, vm


class Receiver:
    """A transport whose other end is the test."""

    def __init__(self, answer: Callable[[dict[str, Any]], Exception | None] = lambda event: None) -> None:
        self.answer = answer
        self.taken: list[dict[str, Any]] = []
        self.tries = self.opened = 0
        self.at_once = self.most = 0

    async def open(self) -> None:
        self.opened += 1

    async def send(self, event: Event) -> None:
        self.tries += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(random.uniform(0, 0.002))
        self.at_once -= 1
        body = json.loads(event.body)
        if (error := self.answer(body)) is not None:
            raise error
        self.taken.append(body)

    async def close(self) -> None:
        pass

    def versions(self, name: str) -> list[int]:
        return [int(event["sequence"]) for event in self.taken if event["kumulusname"] == name]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "PAUSE_FIRST", 0.005)
    monkeypatch.setattr(deliveries, "PAUSE_MOST", 0.02)
    monkeypatch.setattr(deliveries, "KEEP_SECONDS", 0.01)


def sink(**spec: Any) -> EventSink:
    metadata = {"name": "s", "namespace": "kumulus-system", "uid": "s", "resourceVersion": "1"}
    return EventSink.parse({"metadata": metadata, "spec": {"http": {"url": "https://x.test/"}, **spec}})


def filled(directory: Path, *seen: Seen) -> Journal:
    journal = Journal(directory)
    journal.begin("s", None)
    Recorder(journal, lambda: "t", lambda: None).record(list(seen))
    return journal


@asynccontextmanager
async def delivering(journal: Journal, receiver: Receiver, **spec: Any) -> AsyncIterator[Delivery]:
    made = Delivery(journal, sink(**spec), None, receiver, "/kumulus", lambda: "t")
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10 * PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours
            await asyncio.sleep(0.005)


async def test_each_object_in_order_and_several_at_once(tmp_path: Path) -> None:
    journal = filled(tmp_path, *(Seen(VM, vm(f"vm-{n % 7}", n)) for n in range(1, 200)))
    failing = random.Random(1)

    def moody(event: dict[str, Any]) -> Exception | None:
        return failing.choice([None, None, None, Rejected("500"), Unavailable("503")])

    receiver = Receiver(moody)
    async with delivering(journal, receiver, retry={"parallel": 4, "attempts": 100}) as sending:
        await until(lambda: len(receiver.taken) == 199)
        for n in range(7):
            assert receiver.versions(f"vm-{n}") == sorted(receiver.versions(f"vm-{n}"))
        assert 2 <= receiver.most <= 4
        await until(lambda: sending.cursor == 199)
    standing = journal.standing("s")
    assert standing is not None and (standing.cursor, standing.delivered) == (199, 199)
    journal.close()


async def test_what_is_refused_again_and_again_is_buried_and_holds_up_no_other(tmp_path: Path) -> None:
    journal = filled(tmp_path, *(Seen(VM, vm(name, n)) for n, name in enumerate(["bad", "good", "bad", "good"], 1)))
    receiver = Receiver(lambda event: Rejected("400") if event["kumulusname"] == "bad" else None)
    async with delivering(journal, receiver, retry={"attempts": 3}) as sending:
        await until(lambda: sending.cursor == 4)
    assert receiver.versions("good") == [2, 4]
    assert receiver.tries == 2 + 2 * 3
    letters = journal.letters("s")
    assert [(letter.change.version, letter.reason) for letter in letters] == [("1", "400"), ("3", "400")]
    journal.close()


async def test_while_nobody_answers_one_at_a_time_is_tried_and_nothing_is_given_up(tmp_path: Path) -> None:
    journal = filled(tmp_path, *(Seen(VM, vm(f"vm-{n}", n)) for n in range(1, 30)))
    down = True
    receiver = Receiver(lambda event: Unavailable("refused") if down else None)
    async with delivering(journal, receiver, retry={"attempts": 1, "parallel": 8}) as sending:
        await until(lambda: receiver.tries > 30)
        assert sending.state.reason is SinkReason.UNREACHABLE
        receiver.most = receiver.at_once
        await until(lambda: receiver.tries > 40)
        assert receiver.most == 1
        assert receiver.opened > 2, "a way that failed is opened anew"
        assert sending.cursor == 0 and not journal.dead_letters("s")
        down = False
        await until(lambda: sending.cursor == 29)
        assert sending.state.reason is SinkReason.DELIVERING
    assert len(receiver.taken) == 29
    journal.close()


async def test_what_waited_for_too_long_is_buried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path, Seen(VM, vm("a", 1)), Seen(VM, vm("b", 2)))
    receiver = Receiver(lambda event: Unavailable("refused"))
    monkeypatch.setattr(deliveries.time, "time", lambda: 2e10)
    async with delivering(journal, receiver) as sending:
        await until(lambda: sending.cursor == 2)
    assert (receiver.tries, journal.dead_letters("s")) == (0, 2)
    journal.close()


async def test_who_begins_again_leaves_nothing_out(tmp_path: Path) -> None:
    """Cut off anywhere: what comes then begins at the oldest that was not taken for certain."""
    journal = filled(tmp_path, *(Seen(VM, vm(f"vm-{n % 3}", n)) for n in range(1, 60)))
    taken: list[dict[str, Any]] = []

    async def take(cut: int) -> None:
        receiver = Receiver()
        async with delivering(journal, receiver, retry={"parallel": 3}):
            # Some come twice, and count once.
            await until(lambda: len({event["sequence"] for event in (*taken, *receiver.taken)}) >= cut)
        taken.extend(receiver.taken)

    for cut in (5, 20, 33, 59):
        await take(cut)
    assert {int(event["sequence"]) for event in taken} == set(range(1, 60))
    journal.close()


async def test_while_one_is_stuck_no_more_are_sent_than_may_come_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "WINDOW", 10)
    monkeypatch.setattr(deliveries, "PAGE", 8)
    journal = filled(tmp_path, *(Seen(VM, vm(f"vm-{n}", n)) for n in range(1, 31)))
    stuck, refused = True, 0

    def answer(event: dict[str, Any]) -> Exception | None:
        nonlocal refused
        if not stuck or event["kumulusname"] != "vm-1":
            return None
        refused += 1
        return Rejected("500")

    receiver = Receiver(answer)
    async with delivering(journal, receiver, retry={"parallel": 4, "attempts": 100}) as sending:
        await until(lambda: len(receiver.taken) >= 9)
        before = refused
        await until(lambda: refused > before + 5)
        assert len(receiver.taken) == 9
        stuck = False
        await until(lambda: sending.cursor == 30)
    assert len(receiver.taken) == 30
    journal.close()
