"""The word by which a guest goes on elsewhere: by a way that stands before, and heard when it is said, not earlier."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from kumulus.api.segments import Nic
from kumulus_agents.agent import word
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.word import GO, Word
from kumulus_agents.hypervisor.migration import Stream
from kumulus_agents.network.connections import Connection
from kumulus_agents.transfer.tunnel import READY, End, Purpose, Tunnel
from tests.unit.agent.host import eventually
from tests.unit.network.material import layout, nic_uid
from tests.unit.transfer.test_tunnel import tunnel

MIGRATION = "6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a01"
NIC = layout().places[nic_uid(11)].port.nic
ONE = Connection("10.20.30.11", 40000, "10.20.30.99", 7001, 60)


class Filters:
    """Of the source's networks."""

    def __init__(self) -> None:
        self.asked = 0

    async def connections(self, nic: Nic) -> list[Connection]:
        self.asked += 1
        return [ONE]


class Target:
    """What the other host hears, and who is connected to it."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel, self.heard = tunnel, list[tuple[Purpose, object]]()
        tunnel.serve(self.serve)

    async def serve(self, peer: str, purpose: Purpose, stream: Stream) -> None:
        stream[1].write(READY)
        self.heard.append((purpose, json.loads(await stream[0].readline())))
        stream[1].write(b"taken\n")

    @property
    def ways(self) -> int:
        return len(self.tunnel._open)

    def hang_up(self) -> None:
        for task in self.tunnel._open:
            task.cancel()


@pytest.mark.parametrize("before", ["stands", "broke", "none"])
async def test_it_is_heard_once_when_it_is_said_whatever_became_of_the_way(before: str) -> None:
    filters = Filters()
    async with tunnel("a") as a, tunnel("b") as b:
        target = Target(b)
        assert b.port is not None
        said = Word(a, End("b", "127.0.0.1", b.port), MIGRATION, [NIC], cast(Networks, filters))
        ready = asyncio.create_task(said.stand_ready())
        try:
            if before != "none":
                await eventually(lambda: target.ways == 1, "the way")
            if before == "broke":
                target.hang_up()
                await eventually(lambda: target.ways == 0, "the way's end")
            said.halted()
            said.halted()
            known = await said.known()
            assert target.heard == [] and filters.asked == 1
            await said.say(known)
        finally:
            ready.cancel()
            await said.close()
        assert target.heard == [
            (Purpose(MIGRATION, GO), {NIC.uid: [[*("10.20.30.11", 40000, "10.20.30.99", 7001, 60)]]})
        ]


async def test_the_way_is_renewed_before_the_other_host_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "RENEWED_EVERY", 0.02)
    async with tunnel("a") as a, tunnel("b") as b:
        target, dialled = Target(b), 0
        assert b.port is not None
        dial = a.dial

        async def counted(end: End) -> Stream:
            nonlocal dialled
            dialled += 1
            return await dial(end)

        a.dial = counted  # type: ignore[method-assign]
        said = Word(a, End("b", "127.0.0.1", b.port), MIGRATION, [NIC], cast(Networks, Filters()))
        ready = asyncio.create_task(said.stand_ready())
        try:
            await eventually(lambda: dialled >= 3, "another way")
            await eventually(lambda: target.ways == 1, "the end of the earlier ones")
        finally:
            ready.cancel()
            await said.close()
        await eventually(lambda: target.ways == 0, "the end of all")
        assert target.heard == [], "a way that stands says nothing"
