"""The work queue: one pass a key at a time, nothing lost, nothing done twice for one reason."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kumulus.kube.queue import BACK_OFF_FIRST, BACK_OFF_MOST, WorkQueue
from tests.unit.kube.virtual_time import VirtualLoop, run


async def taken(queue: WorkQueue[str]) -> str | None:
    """What a worker would get now; None when it would wait."""
    getting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    if getting.done():
        return getting.result()
    getting.cancel()
    with suppress(asyncio.CancelledError):
        await getting
    return None


def test_adds_of_one_key_become_one_pass() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for _ in range(5):
            queue.add("a")
        assert len(queue) == 1 and await taken(queue) == "a" and await taken(queue) is None

    run(main())


def test_a_key_in_work_is_not_given_out_again_and_runs_once_more_afterwards() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await taken(queue) == "a"
        queue.add("a")
        queue.add("a")
        assert await taken(queue) is None and not queue.idle
        queue.done("a")
        assert await taken(queue) == "a"
        queue.done("a")
        assert await taken(queue) is None and queue.idle

    run(main())


def test_urgent_goes_first_and_stays_urgent_while_in_work() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("new-1")
        queue.add("new-2")
        queue.add("new-2", urgent=True)
        assert await taken(queue) == "new-2"
        queue.add("new-2", urgent=True)
        queue.add("new-2")
        queue.done("new-2")
        assert await taken(queue) == "new-2"
        assert await taken(queue) == "new-1"

    run(main())


def test_of_planned_passes_the_earliest_counts() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue()
        begun = loop.time()
        queue.add_after("a", 30)
        queue.add_after("a", 10)
        queue.add_after("a", 20)
        assert await queue.get() == "a" and loop.time() == begun + 10
        queue.done("a")
        assert queue.delayed == 0 and queue.idle

    run(main())


def test_a_waiting_worker_notices_an_earlier_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("late", 100)
        worker = asyncio.ensure_future(queue.get())
        await asyncio.sleep(1)
        queue.add_after("early", 5)
        begun = loop.time()
        assert await worker == "early" and loop.time() == begun + 5

    run(main())


def test_back_off_doubles_to_its_limit_and_begins_anew_after_success() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for failures in range(10):
            middle = min(BACK_OFF_FIRST * 2**failures, BACK_OFF_MOST)
            assert 0.8 * middle <= queue.retry("a") <= 1.2 * middle
            assert await queue.get() == "a"
            queue.done("a")
        queue.forget("a")
        assert queue.retry("a") <= 1.2 * BACK_OFF_FIRST

    run(main())


def test_many_workers_do_everything_and_nothing_twice_at_once() -> None:
    async def main() -> None:
        queue: WorkQueue[int] = WorkQueue()
        wanted = dict.fromkeys(range(40), 0)
        seen: dict[int, int] = dict.fromkeys(wanted, 0)
        busy: set[int] = set()
        chance = random.Random(7)

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in busy
                busy.add(key)
                seen[key] = wanted[key]
                await asyncio.sleep(chance.uniform(0, 0.2))
                busy.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for _ in range(600):
            key = chance.randrange(40)
            wanted[key] += 1
            queue.add(key, urgent=chance.random() < 0.3)
            await asyncio.sleep(chance.uniform(0, 0.02))
        while not queue.idle:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        for worker in workers:
            worker.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert seen == wanted, "whatever was added was seen by a pass that began after it"

    run(main())


def test_a_worker_cancelled_while_it_waits_takes_nothing_with_it() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        first, second = asyncio.ensure_future(queue.get()), asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.add("a")
        first.cancel()
        assert await asyncio.wait_for(second, 1) == "a"
        with suppress(asyncio.CancelledError):
            await first

    run(main())


def test_a_key_wakes_one_worker_and_every_key_wakes_one() -> None:
    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        woken: list[str] = []

        async def work(name: str) -> None:
            key = await queue.get()
            woken.append(f"{name} {key}")

        workers = [asyncio.create_task(work(str(number))) for number in range(4)]
        await asyncio.sleep(0)
        queue.add("a")
        queue.add("a")
        queue.add("a", urgent=True)
        queue.add_after("b", 5)
        queue.add_after("c", 5)
        await asyncio.sleep(1)
        assert woken == ["0 a"]
        await asyncio.sleep(4.5)
        assert woken == ["0 a", "1 b", "2 c"]
        workers[3].cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    run(main())


KEYS = st.sampled_from("abcd")


class QueueMachine(RuleBasedStateMachine):
    """The queue against the plainest model there is."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.queue: WorkQueue[str] = WorkQueue()
        self.pending: set[str] = set()
        self.running: set[str] = set()
        self.again: set[str] = set()
        self.due: dict[str, float] = {}

    def teardown(self) -> None:
        asyncio.set_event_loop(None)
        self.loop.close()

    def _add(self, key: str) -> None:
        (self.again if key in self.running else self.pending).add(key)

    def _ripen(self) -> None:
        for key, when in list(self.due.items()):
            if when <= self.loop.time():
                del self.due[key]
                self._add(key)

    @rule(key=KEYS, urgent=st.booleans())
    def add(self, key: str, urgent: bool) -> None:
        self.queue.add(key, urgent=urgent)
        self._add(key)

    @rule(key=KEYS, delay=st.integers(0, 20))
    def add_after(self, key: str, delay: int) -> None:
        async def plan() -> None:
            self.queue.add_after(key, delay)

        self.loop.run_until_complete(plan())
        self.due[key] = min(self.due.get(key, float("inf")), self.loop.time() + delay)

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule()
    def take(self) -> None:
        got = self.loop.run_until_complete(taken(self.queue))
        if got is None:
            assert not self.pending
        else:
            assert got in self.pending and got not in self.running
            self.pending.discard(got)
            self.running.add(got)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.queue.done(key)
        self.running.discard(key)
        if key in self.again:
            self.again.discard(key)
            self.pending.add(key)

    @invariant()
    def agrees(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self._ripen()
        assert self.queue.running == len(self.running)
        assert self.queue.delayed == len(self.due)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
