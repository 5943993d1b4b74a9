"""Guests that are held: none stays so, whoever died and whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kumulus_agents.hypervisor.libvirt import holds
from kumulus_agents.hypervisor.libvirt.holds import Holds
from kumulus_agents.hypervisor.protocol import HypervisorError
from tests.contract.hypervisor import eventually


class Host:
    """Guests, and a hypervisor that fails when told so."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.failures = 0
        self.halts: dict[str, asyncio.Lock] = {}

    def halt(self, uid: str) -> asyncio.Lock:
        return self.halts.setdefault(uid, asyncio.Lock())

    async def list_held(self) -> list[str]:
        self._perhaps_fail()
        return sorted(self.held)

    async def let_go(self, uid: str) -> None:
        self._perhaps_fail()
        self.held.discard(uid)

    def _perhaps_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise HypervisorError("It does not answer.", reason="HypervisorTimeout")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(holds, "AGAIN_FIRST", 0.01)
    return Host()


@pytest.fixture
async def held(host: Host) -> AsyncIterator[Holds]:
    made = Holds(host.list_held, host.let_go, host.halt)
    made.open()
    yield made
    await made.close()


async def test_a_guest_goes_on_at_the_end_however_that_comes(host: Host, held: Holds) -> None:
    for error in (None, RuntimeError(), asyncio.CancelledError()):
        try:
            async with held.holding("a"):
                host.held.add("a")
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
        assert host.held == set()


@pytest.mark.parametrize("failures", [1, 2, 5])
async def test_a_guest_that_could_not_be_let_go_goes_on_later(host: Host, held: Holds, failures: int) -> None:
    async with held.holding("a"):
        host.held.add("a")
        host.failures = failures
    await eventually(lambda: not host.held, "it goes on", 10)


@pytest.mark.parametrize("failures", [0, 3])
async def test_what_nobody_holds_goes_on_when_it_is_looked_for(host: Host, held: Holds, failures: int) -> None:
    host.failures, host.held = failures, {"left", "other", "mine"}
    async with held.holding("mine"):
        held.look()
        await eventually(lambda: host.held == {"mine"}, "they go on", 10)
    assert host.held == set()


async def test_what_somebody_halts_for_something_else_is_left_to_him(host: Host, held: Holds) -> None:
    host.held = {"a", "b"}
    async with host.halt("a"):
        held.look()
        await eventually(lambda: "b" not in host.held, "the other one goes on", 10)
        assert host.held == {"a"}
    await eventually(lambda: not host.held, "it goes on", 10)
