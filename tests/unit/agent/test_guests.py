"""What guests say: cut to size, and told seldom, whatever a guest does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from kumulus.api.instance_order import GuestFacts
from kumulus_agents.agent.guests import ADDRESSES_MOST, ASK_EVERY, SILENT_EVERY, TOLD_EVERY, Guests, bounded
from kumulus_agents.hypervisor.domain import Domain, DomainState, GuestSays
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from tests.unit.agent.test_instance_plan import UID, marks


class TestClock:
    """Time that passes when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def monotonic(self) -> float:
        return self.at


class Told:
    """Guests of a simulated host with one machine, and how often something was to be said."""

    def __init__(self) -> None:
        self.host, self.clock, self.count = SimulatedHost(), TestClock(), 0
        self.host.put(Domain(marks(), DomainState.RUNNING, started_at=1.0))
        self.hypervisor = SimulatedHypervisor(self.host)
        self.guests = Guests(self.hypervisor, self.clock, changed=self._changed)

    def _changed(self, uid: str) -> None:
        assert uid == UID
        self.count += 1

    async def __aenter__(self) -> Told:
        await self.hypervisor.connect(lambda _: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hypervisor.close()

    async def after(self, seconds: float, **says: str) -> GuestFacts | None:
        self.clock.at += seconds
        if says:
            self.host.guests[UID] = GuestSays(**says)  # type: ignore[arg-type]
        await self.guests.look()
        domain = self.host.domains.get(UID)
        return self.guests.told(UID, domain.started_at if domain is not None else None, None)


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    async with Told() as made:
        yield made


async def test_a_guest_that_has_an_agent_is_asked_and_told(told: Told) -> None:
    assert await told.after(1) is None, "it has none"
    found = await told.after(1, hostname="web")
    assert found == GuestFacts(connected=True, hostname="web") and told.count == 1
    assert await told.after(ASK_EVERY - 1, hostname="other") == found, "it is not asked all the time"
    found = await told.after(1)
    assert found is not None and found.hostname == "other"
    del told.host.guests[UID]
    found = await told.after(TOLD_EVERY)
    assert found == GuestFacts(connected=False, hostname="other"), "what it said last"


async def test_a_guest_that_says_something_else_all_the_time_is_told_seldom(told: Told) -> None:
    for second in range(3600):
        if second % 2:
            told.host.guests.pop(UID, None)
            await told.after(1)
        else:
            await told.after(1, hostname=f"host-{second}")
    assert told.count <= 3600 / TOLD_EVERY + 1


async def test_another_run_begins_anew(told: Told) -> None:
    await told.after(1, hostname="web")
    told.host.put(Domain(marks(), DomainState.RUNNING, started_at=2.0))
    del told.host.guests[UID]
    assert told.guests.told(UID, 2.0, None) is None, "not what was said in the one before"
    assert await told.after(1) is None and told.count == 2
    told.host.domains.clear()
    assert await told.after(1) is None


async def test_an_agent_that_begins_keeps_what_was_told_until_it_has_looked(told: Told) -> None:
    before = GuestFacts(connected=True, hostname="web")
    assert told.guests.told(UID, 1.0, before) == before
    await told.after(1)
    assert told.guests.told(UID, 1.0, before) == GuestFacts(connected=False, hostname="web")


async def test_an_agent_that_begins_and_gets_no_answer_tells_what_others_heard(told: Told) -> None:
    before = GuestFacts(connected=True, hostname="web")
    told.host.guests[UID] = GuestSays()

    async def silent(uid: str) -> None:
        pass

    told.hypervisor.ask_guest = silent  # type: ignore[method-assign]
    await told.after(TOLD_EVERY)
    assert told.guests.told(UID, 1.0, before) == GuestFacts(connected=False, hostname="web")


async def test_a_guest_that_does_not_answer_is_asked_less_often(told: Told) -> None:
    asked = 0

    async def ask(uid: str) -> None:
        nonlocal asked
        asked += 1

    told.host.guests[UID] = GuestSays()
    told.hypervisor.ask_guest = ask  # type: ignore[method-assign]
    for _ in range(60):
        await told.after(SILENT_EVERY / 20)
    assert asked <= 60 / 20 + 1


def test_what_is_told_is_cut_to_size() -> None:
    addresses = [
        "127.0.0.1",
        "fe80::1",
        "::1",
        "0.0.0.0",
        "nonsense",
        "10.0.0.1\n",
        "2001:db8::1",
        "10.0.0.2",
        "10.0.0.2",
    ]
    addresses += [f"10.1.0.{n}" for n in range(99)]
    found = bounded(GuestSays("h\x00\u202e" * 10**6, "o" * 10**6, "  ", tuple(addresses)))
    assert found.hostname is not None and len(found.hostname) == 253 and found.hostname.startswith("h??h??")
    assert found.os == "o" * 128 and found.agent_version is None
    assert found.addresses[0] == "10.0.0.2" and len(found.addresses) == ADDRESSES_MOST
    assert "2001:db8::1" not in found.addresses
    assert bounded(GuestSays(addresses=("10.0.0.1", "2001:db8::1"))).addresses == ("10.0.0.1", "2001:db8::1")


@pytest.mark.parametrize(
    "said", ["2001:db8::1%x", "2001:db8::1%" + "x" * 99, "::ffff:10.0.0.1", "1" * 64, "", "%", "fe80::1%eth0"]
)
def test_no_address_that_a_guest_says_is_too_odd(said: str) -> None:
    assert all("%" not in address for address in bounded(GuestSays(addresses=(said,))).addresses)


async def test_a_guest_whose_words_nobody_can_take_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Told() as told:
        monkeypatch.setattr("kumulus_agents.agent.guests.bounded", lambda _: 1 / 0)
        assert await told.after(0, hostname="web") is None
        monkeypatch.undo()
        found = await told.after(SILENT_EVERY + 1, hostname="web")
        assert found is not None and found.hostname == "web"
