"""Connections by which guests move: who gets one, and that nobody can pass for another host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kumulus.api.host import CertificateOrder
from kumulus_agents.hypervisor.migration import Stream
from kumulus_agents.transfer.identity import TransferIdentity
from kumulus_agents.transfer.tunnel import READY, End, Purpose, Tunnel, purpose_of
from kumulus_controllers.fabric.authority import Authority
from tests.unit.transfer.hosts import now

OURS, OTHERS = Authority.made(now()), Authority.made(now())
GO = Purpose("6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a01", "memory")


@asynccontextmanager
async def tunnel(name: str, authority: Authority = OURS) -> AsyncIterator[Tunnel]:
    identity = TransferIdentity(name)
    await identity.prepare()
    assert identity.request is not None
    given = authority.sign(identity.request, name, now())
    assert identity.adopt(CertificateOrder(certificate=given, authorities=authority.pem()))
    made = Tunnel(lambda: identity.client)
    made.listen("127.0.0.1", 0)
    assert identity.server is not None
    await made.use(identity.server)
    try:
        yield made
    finally:
        await made.close()


def end(of: Tunnel, name: str) -> End:
    assert of.port is not None
    return End(name, "127.0.0.1", of.port)


async def test_bytes_pass_both_ways_and_it_is_known_who_connects() -> None:
    seen: list[tuple[str, Purpose]] = []

    async def serve(peer: str, purpose: Purpose, stream: Stream) -> None:
        seen.append((peer, purpose))
        stream[1].write(READY)
        while data := await stream[0].read(1 << 16):
            stream[1].write(data.upper())

    async with tunnel("a") as a, tunnel("b") as b:
        b.serve(serve)
        reader, writer = await a.connect(end(b, "b"), GO)
        writer.write(b"memory")
        assert await asyncio.wait_for(reader.readexactly(6), 10) == b"MEMORY"
        writer.close()
    assert seen == [("a", GO)]


async def test_what_is_not_served_is_refused() -> None:
    async def serve(peer: str, purpose: Purpose, stream: Stream) -> None:
        raise RuntimeError("not expected")

    async with tunnel("a") as a, tunnel("b") as b:
        b.serve(serve)
        with pytest.raises(OSError, match="does not expect"):
            await a.connect(end(b, "b"), GO)


async def test_hosts_that_do_not_prove_themselves_get_nothing() -> None:
    async def serve(peer: str, purpose: Purpose, stream: Stream) -> None:
        raise AssertionError("somebody else was served")

    async with tunnel("a") as a, tunnel("b") as b, tunnel("b", OTHERS) as foreign:
        b.serve(serve)
        foreign.serve(serve)
        with pytest.raises(OSError):
            await a.connect(end(b, "c"), GO)  # it is b, and says so
        with pytest.raises(OSError):
            await a.connect(end(foreign, "b"), GO)
        with pytest.raises(OSError):
            await foreign.connect(end(b, "b"), GO)
        reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
        writer.write(b"garbage\n" * 100)
        assert await asyncio.wait_for(reader.read(), 10) is not None
        writer.close()


@pytest.mark.parametrize(
    "line", [b"", b"x\n", b"[]\n", b'{"migration": 1, "channel": "go"}\n', b'{"channel": "go"}\n', b"{" * 2000]
)
def test_what_is_no_purpose(line: bytes) -> None:
    assert purpose_of(line) is None
