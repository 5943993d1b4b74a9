"""Guests that were asked to rest are told to go on until they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from kumulus_agents.hypervisor.libvirt import resting
from kumulus_agents.hypervisor.libvirt.resting import Resting
from kumulus_agents.hypervisor.protocol import HypervisorError
from tests.patience import PATIENCE

UID = "6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a01"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "AGAIN_FIRST", 0.001)


class Guest:
    """One that answers after a while."""

    def __init__(self, *answers: bool | HypervisorError) -> None:
        self._answers: Iterator[bool | HypervisorError] = chain(answers, repeat(True))
        self.asked = 0
        self.goes_on = asyncio.Event()

    async def thaw(self, _: str) -> bool:
        self.asked += 1
        answer = next(self._answers)
        if isinstance(answer, HypervisorError):
            raise answer
        if answer:
            self.goes_on.set()
        return answer


async def test_a_guest_is_told_to_go_on_until_it_says_so() -> None:
    guest = Guest(False, HypervisorError("libvirt is away"), False)
    watch = Resting(guest.thaw)
    for _ in range(3):
        watch.see_to(UID)
    await asyncio.wait_for(guest.goes_on.wait(), 5 * PATIENCE)
    await watch.close()
    assert guest.asked == 4, "once more for each time that it did not answer, however many asked for it"


async def test_nobody_has_it_go_on_while_it_is_asked_to_rest() -> None:
    guest = Guest()
    watch = Resting(guest.thaw)
    with pytest.raises(HypervisorError):
        async with watch.asking(UID):
            watch.see_to(UID)
            for _ in range(5):
                await asyncio.sleep(0)
            assert guest.asked == 0
            raise HypervisorError("it was not taken")
    await asyncio.wait_for(guest.goes_on.wait(), 5 * PATIENCE)
    await watch.close()


async def test_what_is_open_is_left_to_the_next_process() -> None:
    guest = Guest(*[False] * 1000)
    watch = Resting(guest.thaw)
    watch.see_to(UID)
    await asyncio.sleep(0)
    await asyncio.wait_for(watch.close(), 5 * PATIENCE)
    assert not guest.goes_on.is_set()
