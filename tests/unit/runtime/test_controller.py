"""The loop around a reconciler: what follows from a result, from an error, from losing the lead, from stopping."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from kumulus.kube.errors import Conflict, NotLeading, Unreachable
from kumulus.kube.store import Key
from kumulus.runtime.controller import GRACE_SECONDS, RESYNC_SECONDS, Controller
from kumulus.runtime.reconciler import Enqueue
from kumulus.runtime.result import Done, Failed, Gone, Requeue, Result, Wait
from tests.unit.kube.virtual_time import run

KEY = Key("ns", "web")


class Scripted:
    """A reconciler that does as told and notes when."""

    name = "scripted"

    def __init__(self, do: Callable[[int], Awaitable[Result]], keys: list[Key] | None = None) -> None:
        self._do = do
        self._keys = [KEY] if keys is None else keys
        self.at: list[float] = []
        self.enqueue: Enqueue | None = None

    def attach(self, enqueue: Enqueue) -> None:
        self.enqueue = enqueue

    def everything(self) -> list[Key]:
        return self._keys

    async def reconcile(self, key: Key) -> Result:
        self.at.append(asyncio.get_running_loop().time())
        return await self._do(len(self.at))


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 2) for earlier, later in itertools.pairwise(times)]


def observe(do: Callable[[int], Awaitable[Result]], seconds: float) -> list[float]:
    """Pauses between the passes over one object within so many seconds."""

    async def main() -> list[float]:
        reconciler = Scripted(do)
        controller = Controller(reconciler)
        await controller.start()
        await asyncio.sleep(seconds)
        await controller.stop()
        return gaps(reconciler.at)

    with capture_logs():
        return run(main())


def always(result: Result) -> Callable[[int], Awaitable[Result]]:
    async def do(_: int) -> Result:
        return result

    return do


def failing(error: Exception) -> Callable[[int], Awaitable[Result]]:
    async def do(_: int) -> Result:
        raise error

    return do


def test_done_comes_again_now_and_then() -> None:
    found = observe(always(Done()), RESYNC_SECONDS * 3)
    assert len(found) >= 2 and all(RESYNC_SECONDS * 0.8 <= gap <= RESYNC_SECONDS * 1.2 for gap in found)


def test_what_is_gone_never_comes_again() -> None:
    """Else every machine there ever was would cost a pass every five minutes, for ever."""
    assert observe(always(Gone()), RESYNC_SECONDS * 5) == []


def test_requeue_is_exact_and_wait_spreads() -> None:
    assert observe(always(Requeue(7)), 30) == [7, 7, 7, 7]
    assert all(9 <= gap <= 11 for gap in observe(always(Wait("x", 10)), 60))


@pytest.mark.parametrize(
    "do", [always(Failed("x")), failing(RuntimeError("bug")), failing(Unreachable("x")), failing(Conflict(409, "", ""))]
)
def test_failures_wait_longer_and_longer(do: Callable[[int], Awaitable[Result]]) -> None:
    found = observe(do, 400)
    for number, gap in enumerate(found):
        middle = min(2.0**number, 60)
        assert 0.79 * middle <= gap <= 1.21 * middle


def test_a_success_ends_the_back_off() -> None:
    async def do(number: int) -> Result:
        return Requeue(5) if number == 4 else Failed("x")

    found = observe(do, 20)
    assert found[2] >= 3 and found[3] == 5 and found[4] <= 1.2


def test_a_change_during_a_pass_means_another_and_never_two_at_once() -> None:
    async def main() -> None:
        busy = 0

        async def do(number: int) -> Result:
            nonlocal busy
            busy += 1
            assert busy == 1
            if number == 1:
                assert reconciler.enqueue is not None
                reconciler.enqueue(KEY)
                reconciler.enqueue(KEY, urgent=True)
            await asyncio.sleep(1)
            busy -= 1
            return Done()

        reconciler = Scripted(do)
        controller = Controller(reconciler)
        await controller.start()
        await asyncio.sleep(10)
        assert gaps(reconciler.at) == [1]
        await controller.stop()

    run(main())


def test_nothing_is_done_before_the_start_and_after_the_stop() -> None:
    async def main() -> None:
        reconciler = Scripted(always(Done()), [])
        controller = Controller(reconciler)
        assert reconciler.enqueue is not None
        reconciler.enqueue(KEY)
        await controller.start()
        await asyncio.sleep(5)
        await controller.stop()
        reconciler.enqueue(KEY)
        await asyncio.sleep(5)
        assert reconciler.at == [] and controller.idle

    run(main())


def test_who_does_not_lead_begins_no_pass() -> None:
    async def main() -> None:
        leading = True
        reconciler = Scripted(always(Requeue(1)))
        controller = Controller(reconciler, leading=lambda: leading)
        await controller.start()
        await asyncio.sleep(5.5)
        done = len(reconciler.at)
        leading = False
        await asyncio.sleep(20)
        assert len(reconciler.at) == done
        leading = True
        await asyncio.sleep(3)
        assert len(reconciler.at) > done, "nothing is lost"
        await controller.stop()

    run(main())


def test_a_pass_whose_write_was_fenced_comes_again_when_we_lead_again() -> None:
    assert observe(failing(NotLeading("fenced")), 3.5) == [1, 1, 1], "no error, no back-off"


def test_stopping_lets_a_pass_end() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def do(_: int) -> Result:
            await asyncio.sleep(GRACE_SECONDS / 2)
            ended.set()
            return Done()

        controller = Controller(Scripted(do))
        await controller.start()
        await asyncio.sleep(0.1)
        await controller.stop()
        assert ended.is_set()

    run(main())


def test_stopping_does_not_wait_for_ever() -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def do(_: int) -> Result:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return Done()

        controller = Controller(Scripted(do))
        await controller.start()
        await asyncio.sleep(0.1)
        begun = asyncio.get_running_loop().time()
        await controller.stop()
        assert cancelled.is_set() and asyncio.get_running_loop().time() - begun <= GRACE_SECONDS + 0.1

    run(main())


def test_beginning_again_looks_at_everything_again() -> None:
    async def main() -> None:
        reconciler = Scripted(always(Done()), [Key("ns", str(number)) for number in range(100)])
        controller = Controller(reconciler, workers=4)
        for _ in range(2):
            await controller.start()
            await asyncio.sleep(1)
            await controller.stop()
        assert len(reconciler.at) == 200

    run(main())
