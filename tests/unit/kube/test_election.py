"""Leader election: never two at once, terms that grow, and the arithmetic behind both. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.kube.builtin import LEASE
from kumulus.kube.election import LOOK, Elector
from kumulus.kube.place import Place
from tests.unit.kube.api import FakeApi, FakeClient
from tests.unit.kube.virtual_time import run

DURATION = 15.0


class Seat:
    """One elector with what it did."""

    def __init__(
        self, api: FakeApi, name: str, place: Path | None = None, *, slow_start: float = 0.0, slow_stop: float = 0.0
    ) -> None:
        self.name = name
        self.place = Place(place) if place is not None else None
        self.client = FakeClient(api)
        self.terms: list[int] = []
        self.begun: list[int] = []
        self.stopped = 0
        self.rival: Seat | None = None
        self.overlapped = False

        async def started(term: int) -> None:
            # Two can only come to lead at once when one begins while the other still does.
            self.overlapped |= self.rival is not None and self.rival.elector.leading
            self.terms.append(term)
            await asyncio.sleep(slow_start)
            self.begun.append(term)

        async def stopped() -> None:
            await asyncio.sleep(slow_stop)
            self.stopped += 1

        self.elector = Elector(
            self.client,  # type: ignore[arg-type]
            namespace="kumulus-system",
            name="seat",
            identity=name,
            duration=DURATION,
            place=self.place,
            on_started=started,
            on_stopped=stopped,
        )
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.elector.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
            self.task = None
        if self.place is not None:
            self.place.leave()

    async def kill(self) -> None:
        """The process is gone from one moment to the next: nothing is given back, and the kernel unlocks its file."""
        self.client.cut, self.client.hangs = True, False
        await self.stop()
        self.client.cut = False


def scene(
    play: Callable[[FakeApi, Seat, Seat], Awaitable[None]], places: tuple[Path | None, ...] = (None, None)
) -> None:
    """Two electors, a play, and at no instant of it two leaders."""

    async def main() -> None:
        api = FakeApi()
        one, two = Seat(api, "one", places[0]), Seat(api, "two", places[1])
        one.rival, two.rival = two, one
        try:
            await play(api, one, two)
        finally:
            await one.stop()
            await two.stop()
        assert not one.overlapped and not two.overlapped
        terms = one.terms + two.terms
        assert len(set(terms)) == len(terms), "no term is given twice"
        for seat in (one, two):
            assert seat.terms == sorted(seat.terms)

    run(main())


async def until(condition: Callable[[], bool], within: float) -> float:
    """Wait for a condition; how long it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not condition():
        assert loop.time() - begun < within, "it did not come about"
        await asyncio.sleep(0.1)
    return loop.time() - begun


def test_the_first_leads_and_the_second_waits() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        two.start()
        await asyncio.sleep(600)
        assert one.elector.leading and one.terms == [1]
        assert two.terms == [] and two.stopped == 0

    scene(play)


def test_a_lease_given_back_is_taken_at_the_next_turn() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        two.start()
        await asyncio.sleep(20)
        await one.stop()
        assert await until(lambda: two.elector.leading, 4) <= DURATION / 5 + 0.2
        assert two.terms == [2]

    scene(play)


def test_a_leader_cut_off_stops_before_the_other_starts() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        two.start()
        await asyncio.sleep(30)
        one.client.cut = True
        gone = await until(lambda: not one.elector.leading, DURATION)
        taken = await until(lambda: two.elector.leading, DURATION)
        assert gone <= DURATION * 2 / 3
        assert taken >= DURATION / 3 - DURATION / 5, "there is time between the two"
        await until(lambda: one.stopped == 1, 1)
        one.client.cut = False
        await asyncio.sleep(100)
        assert two.elector.leading and one.terms == [1] and two.terms == [2]

    scene(play)


def test_an_api_server_that_hangs_ends_the_leadership_in_time() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        await asyncio.sleep(30)
        one.client.hangs = True
        await until(lambda: one.stopped == 1, DURATION * 2 / 3 + DURATION / 5 + 0.2)

    scene(play)


def test_when_the_api_is_away_for_all_the_old_leader_comes_back_in_a_new_term() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        one.client.cut = True
        await asyncio.sleep(60)
        assert not one.elector.leading and one.stopped == 1
        one.client.cut = False
        await until(lambda: one.elector.leading, DURATION * 2)
        assert one.terms == [1, 2]

    scene(play)


def test_terms_grow_and_no_two_lead_when_somebody_deletes_the_lease() -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        await one.stop()
        two.start()
        await until(lambda: two.elector.leading, 5)
        one.start()
        await asyncio.sleep(30)
        api.objects.clear()
        await asyncio.sleep(60)
        assert two.elector.leading, "the leader keeps its seat, and its term"
        api.objects.clear()
        two.client.cut = True
        await until(lambda: one.elector.leading, 60)
        assert one.terms == [1, 3] and two.terms == [2]

    scene(play)


def test_beginning_to_lead_may_take_longer_than_a_turn() -> None:
    """Reading a large cluster must not be cut off in the middle, and never begun again."""

    async def main() -> None:
        api = FakeApi()
        seat = Seat(api, "one", slow_start=DURATION / 2, slow_stop=DURATION)
        seat.start()
        await until(lambda: seat.begun == [1], DURATION)
        await asyncio.sleep(60)
        seat.client.cut = True
        await until(lambda: seat.stopped == 1, DURATION * 3)
        await seat.stop()

    run(main())


def test_stopping_does_not_hang_on_an_api_server_that_does() -> None:
    async def main() -> None:
        api = FakeApi()
        seat = Seat(api, "one")
        seat.start()
        await until(lambda: seat.elector.leading, 1)
        seat.client.hangs = True
        begun = asyncio.get_running_loop().time()
        await seat.stop()
        assert asyncio.get_running_loop().time() - begun <= DURATION / 3
        assert api.objects[LEASE.plural, "kumulus-system", "seat"]["spec"]["holderIdentity"] == "one"

    run(main())


def holder(api: FakeApi) -> str:
    return str(api.objects[LEASE.plural, "kumulus-system", "seat"]["spec"]["holderIdentity"])


def test_who_comes_after_a_dead_one_at_its_place_leads_at_once(tmp_path: Path) -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        await one.kill()
        assert holder(api).startswith("one@"), "the lease was not given back"
        two.start()
        assert await until(lambda: two.elector.leading, 1) < 0.2
        assert two.terms == [2]

    scene(play, (tmp_path / "lock", tmp_path / "lock"))


def test_who_waits_at_the_place_of_a_leader_takes_over_when_it_dies(tmp_path: Path) -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        two.start()
        await asyncio.sleep(600)
        assert one.elector.leading and two.terms == []
        await one.kill()
        await until(lambda: two.elector.leading, LOOK + 0.2)
        assert two.terms == [2] and holder(api).startswith("two@")

    scene(play, (tmp_path / "lock", tmp_path / "lock"))


def test_a_leader_that_is_paused_keeps_its_place_and_so_its_lease(tmp_path: Path) -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        one.client.hangs = True
        two.start()
        await asyncio.sleep(DURATION - 0.2)
        assert two.terms == []
        await until(lambda: two.elector.leading, LOOK + 1)
        assert holder(api) == "two", "it has not got the place, so it must not name it"

    scene(play, (tmp_path / "lock", tmp_path / "lock"))


def test_a_lock_elsewhere_proves_nothing(tmp_path: Path) -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        await until(lambda: one.elector.leading, 1)
        await one.kill()
        two.start()
        await asyncio.sleep(DURATION - 1)
        assert two.terms == []

    scene(play, (tmp_path / "lock", tmp_path / "other"))
    scene(play, (tmp_path / "third", None))
    scene(play, (None, tmp_path / "fourth"))


Event = tuple[int, str, int]
events = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["cut", "mend", "hang", "slow", "stop", "kill", "start"]),
        st.integers(0, 25),
    ),
    max_size=14,
)


@settings(max_examples=50, deadline=None)
@given(events, st.sampled_from([(None, None), ("here", "here"), ("here", "there")]))
def test_whatever_happens_never_two_leaders(happenings: list[Event], places: tuple[str | None, str | None]) -> None:
    async def play(api: FakeApi, one: Seat, two: Seat) -> None:
        one.start()
        two.start()
        for which, what, pause in happenings:
            seat = (one, two)[which]
            match what:
                case "cut":
                    seat.client.cut = True
                case "hang":
                    seat.client.hangs = True
                case "mend":
                    seat.client.cut = seat.client.hangs = False
                    seat.client.there = seat.client.back = 0.0
                case "slow":
                    seat.client.there, seat.client.back = 1.3, 1.7
                case "stop":
                    await seat.stop()
                case "kill":
                    await seat.kill()
                case "start" if seat.task is None:
                    seat.start()
            await asyncio.sleep(pause)
        for seat in (one, two):
            seat.client.cut = seat.client.hangs = False
            seat.client.there = seat.client.back = 0.0
            if seat.task is None:
                seat.start()
        await until(lambda: one.elector.leading or two.elector.leading, DURATION * 4)

    with TemporaryDirectory() as directory:
        scene(play, tuple(Path(directory) / place if place else None for place in places))
