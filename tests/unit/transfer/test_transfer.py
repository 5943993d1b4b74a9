"""Whole images between hosts: who gets them, who is believed, and that nobody can keep anybody waiting."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from kumulus.api.host import CertificateOrder, transfer_name
from kumulus.api.image_order import ImagePeer
from kumulus_agents.transfer import alive, keys, listener
from kumulus_agents.transfer.fetch import NoPeer
from kumulus_agents.transfer.identity import TransferIdentity
from kumulus_agents.transfer.transfer import Transfer
from kumulus_agents.transfer.tunnel import End
from kumulus_controllers.fabric.authority import LIFETIME, Authority, BadRequest
from tests.patience import PATIENCE
from tests.unit.storage.server import Answer
from tests.unit.transfer.hosts import DATA, PATH, SHA256, UID, Peer, context, host, liar, now, settings

AUTHORITY = Authority.made(now())
OTHERS = Authority.made(now())


async def test_a_host_copies_an_image_and_learns_from_whom(tmp_path: Path) -> None:
    async with host("a", AUTHORITY, tmp_path) as a, host("b", AUTHORITY) as b:
        found = await b.fetch(tmp_path, a.peer())
    assert found.data == DATA and found.host == "a" and not found.dropped


async def test_a_host_without_a_certificate_yet_says_that_it_has_a_port_for_guests() -> None:
    for port in (0, None):
        transfer = Transfer("a", settings(migration_port=port), "https://127.0.0.1")
        await transfer.open(lambda uid, sha256: nothing())
        try:
            said = transfer.facts()
            assert said is not None and said.tunnel is (port is not None) and transfer.migration_facts() is None
        finally:
            await transfer.close()


async def nothing() -> None:
    """No image."""


async def test_what_has_arrived_is_not_fetched_again_and_may_come_from_another_host(tmp_path: Path) -> None:
    async with (
        liar("a", AUTHORITY, tmp_path) as (server, cut),
        host("c", AUTHORITY, tmp_path) as c,
        host("b", AUTHORITY) as b,
    ):
        server.on(PATH, Answer(DATA, cut=2 << 20), Answer(status=404))
        found = await b.fetch(tmp_path, cut, c.peer())
        assert found.data == DATA and found.host == "c"
        # An agent that is killed leaves its part; the next one goes on there.
        (tmp_path / f"{UID}.copy").write_bytes(DATA[: 1 << 20])
        server.on(PATH, Answer(DATA))
        found = await b.fetch(tmp_path, cut)
        assert found.data == DATA and found.had == 1 << 20
        assert server.asked(PATH)[-1].headers["range"] == f"bytes={1 << 20}-"


async def test_a_host_that_dies_in_the_middle_is_left_for_another(tmp_path: Path) -> None:
    async with (
        liar("a", AUTHORITY, tmp_path) as (server, dying),
        host("c", AUTHORITY, tmp_path) as c,
        host("b", AUTHORITY) as b,
    ):
        server.on(PATH, Answer(DATA, cut=1 << 20))
        found = await b.fetch(tmp_path, dying, ImagePeer(host="gone", address="127.0.0.1", port=1), c.peer())
    assert found.data == DATA and found.host == "c" and found.reasons == {"gone": "Unreachable"}


LIES = {
    "another image": (Answer(bytes(len(DATA))), "WrongDigest"),
    "a shorter one": (Answer(DATA[:-1]), "WrongAnswer"),
    "a longer one": (Answer(DATA + b"more"), "WrongAnswer"),
    "without an end": (Answer(DATA * 2, length=False), "WrongAnswer"),
    "more than it says": (Answer(DATA, more_length=-1), "WrongAnswer"),
    "a web page": (Answer(b"<html>", status=401), "WrongAnswer"),
    "elsewhere": (Answer(status=302, headers=(("Location", "http://169.254.169.254/"),)), "WrongAnswer"),
    "gone": (Answer(status=404), "NotThere"),
    "silence": (Answer(DATA, stall=0), "Unreachable"),
}


@pytest.mark.parametrize(("lie", "reason"), LIES.values(), ids=LIES.keys())
async def test_a_host_that_lies_is_left_with_a_reason(tmp_path: Path, lie: Answer, reason: str) -> None:
    async with (
        liar("a", AUTHORITY, tmp_path) as (server, lying),
        host("c", AUTHORITY, tmp_path) as c,
        host("b", AUTHORITY, **({"idle_timeout": 0.5} if lie.stall is not None else {})) as b,
    ):
        server.on(PATH, lie)
        found = await b.fetch(tmp_path, lying, c.peer())
        assert found.data == DATA and found.host == "c" and found.reasons == {"a": reason}
        with pytest.raises(NoPeer) as none:
            (tmp_path / f"{UID}.copy").unlink()
            await b.fetch(tmp_path, lying)
    assert none.value.retryable and none.value.reason == "PeersUnavailable"


async def test_wrong_bytes_among_right_ones_are_all_fetched_again_from_one_host(tmp_path: Path) -> None:
    async with (
        liar("a", AUTHORITY, tmp_path) as (server, lying),
        host("c", AUTHORITY, tmp_path) as c,
        host("b", AUTHORITY) as b,
    ):
        server.on(PATH, Answer(bytes(len(DATA)), cut=1 << 20))
        found = await b.fetch(tmp_path, lying, c.peer())
    assert found.data == DATA and found.host == "c", "the honest one is not blamed for what it did not give"


async def test_a_host_that_is_slower_than_it_may_be_is_left(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA))
        try:
            while True:
                writer.write(DATA[:1])
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            writer.close()
            gone.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0, ssl=context(AUTHORITY, "a", tmp_path))
    async with server, host("c", AUTHORITY, tmp_path) as c, host("b", AUTHORITY, rate_window=1.0) as b:
        slow = ImagePeer(host="a", address="127.0.0.1", port=server.sockets[0].getsockname()[1])
        found = await b.fetch(tmp_path, slow, c.peer())
        async with asyncio.timeout(10 * PATIENCE):
            await gone.wait()
    assert found.host == "c" and found.reasons == {"a": "TooSlow"}


async def test_only_hosts_of_the_installation_are_believed_and_answered(tmp_path: Path) -> None:
    async with host("a", AUTHORITY, tmp_path) as a, host("b", AUTHORITY) as b, host("s", OTHERS, tmp_path) as stranger:
        with pytest.raises(NoPeer) as asked:
            await b.fetch(tmp_path, stranger.peer())
        assert [peer.reason for peer in asked.value.dropped] == ["Untrusted"]
        with pytest.raises(NoPeer):
            await stranger.fetch(tmp_path, a.peer())
        # Its name says who it is: another host's port is not taken for it.
        named = a.peer().model_copy(update={"host": "b"})
        with pytest.raises(NoPeer) as asked:
            await b.fetch(tmp_path, named)
        assert [peer.reason for peer in asked.value.dropped] == ["Untrusted"]
        # A certificate that has ended.
        assert await b.certified(AUTHORITY, now() - LIFETIME)
        with pytest.raises(NoPeer):
            await b.fetch(tmp_path, a.peer())
        assert not (tmp_path / f"{UID}.copy").stat().st_size
        # Renewed, without closing the port.
        port = a.peer().port
        assert await b.certified(AUTHORITY) and await a.certified(AUTHORITY)
        found = await b.fetch(tmp_path, a.peer())
        assert found.data == DATA and a.peer().port == port
        assert not await b.transfer.adopt(CertificateOrder(certificate=AUTHORITY.pem(), authorities=AUTHORITY.pem()))


async def ask(port: int, context: ssl.SSLContext | None, request: bytes, name: str = "a") -> bytes:
    """Everything the port answers."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=transfer_name(name) if context else None
    )
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10 * PATIENCE):
            return await reader.read()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def test_nothing_is_given_to_who_does_not_know_digest_and_uid(tmp_path: Path) -> None:
    async with host("a", AUTHORITY, tmp_path) as a, host("b", AUTHORITY) as b:
        known = b.transfer._identity.client
        port = a.peer().port
        other = "0" * 64
        paths = ["/", "/v1/images", "/v1/images/", f"/v1/images/{UID}", f"/v1/images/{UID}/{other}"]
        paths += [f"/v1/images/../{UID}/{SHA256}", f"/v1/images/{UID}/{SHA256}/", f"/v1/images/{UID}/{SHA256}%00"]
        paths += [f"//v1/images/{UID}/{SHA256}", f"/v1/images/{UID}/../../../../etc/passwd", PATH + "?x=1"]
        for path in paths:
            answer = await ask(port, known, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 404"), path
        for method in ("PUT", "POST", "DELETE", "HEAD"):
            answer = await ask(port, known, f"{method} {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 405"), method
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, ConnectionError)):  # shows no certificate
            assert not await ask(port, old, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            raise ConnectionError("nothing was answered")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(port, old, b"")
        assert not await ask(port, None, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "no TLS, no answer"


async def test_who_says_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host("a", AUTHORITY, tmp_path) as a, host("b", AUTHORITY) as b:
        # Both together are counted from the start: enough for the handshake of a busy machine.
        monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 1.0)
        monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
        assert not await ask(a.peer().port, b.transfer._identity.client, b"GET / HTTP/1.1\r\nX: ")
        monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.3)
        assert await a.certified(AUTHORITY)
        assert not await ask(a.peer().port, None, b"")


async def test_a_busy_host_asks_for_patience_and_is_asked_again(tmp_path: Path) -> None:
    async with host("a", AUTHORITY, tmp_path, sends=1) as a, host("b", AUTHORITY) as b:
        known = b.transfer._identity.client
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", a.peer().port, ssl=known, server_hostname=transfer_name("a"), limit=1 << 16
        )
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readexactly(100)  # it gives the image to somebody who does not take it
        answer = await ask(a.peer().port, known, f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in answer
        waiting = asyncio.create_task(b.fetch(tmp_path, a.peer()))
        await asyncio.sleep(0)
        assert not waiting.done()
        writer.close()
        found = await waiting
    assert found.data == DATA and not found.dropped


async def test_a_host_that_is_always_busy_is_given_up(tmp_path: Path) -> None:
    async with (
        liar("a", AUTHORITY, tmp_path) as (server, busy),
        host("b", AUTHORITY, busy_patience=0) as b,
    ):
        server.on(PATH, Answer(status=503, headers=(("Retry-After", "0"),)))
        with pytest.raises(NoPeer) as asked:
            await b.fetch(tmp_path, busy)
    assert [peer.reason for peer in asked.value.dropped] == ["Busy"]


def test_a_certificate_is_renewed_in_time_and_only_for_its_key() -> None:
    first, second = (keys.made("evil/../name")["request"] for _ in range(2))
    signed = AUTHORITY.sign(first, "a", now())
    left = AUTHORITY.good_for(signed, first, now())
    assert LIFETIME / 2 < left < LIFETIME
    assert not AUTHORITY.good_for(signed, first, now() + left + timedelta(minutes=10))
    assert not AUTHORITY.good_for(signed, second, now())
    assert not OTHERS.good_for(signed, first, now())
    assert not AUTHORITY.good_for("garbage", first, now())
    assert Authority.parse(AUTHORITY.pem().encode(), AUTHORITY.key_pem().encode()).good_for(signed, first, now())


@pytest.mark.parametrize("request_", ["", "garbage", AUTHORITY.pem()])
def test_what_is_no_signing_request_is_not_signed(request_: str) -> None:
    with pytest.raises(BadRequest):
        AUTHORITY.sign(request_, "a", now())


async def test_the_key_is_made_by_a_program_of_its_own_and_is_on_no_disk() -> None:
    identity = TransferIdentity("a")
    await identity.prepare()
    signed = AUTHORITY.sign(identity.request or "", "a", now())
    assert identity.adopt(CertificateOrder(certificate=signed, authorities=AUTHORITY.pem()))
    assert identity.server is not None and identity.server.verify_mode is ssl.CERT_REQUIRED
    assert "PRIVATE" not in (identity.request or "")
    names = x509.load_pem_x509_certificate(signed.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == [transfer_name("a")]


async def test_a_host_proves_that_it_is_there_and_nobody_else_can_in_its_name(tmp_path: Path) -> None:
    async with (
        host("h1", AUTHORITY) as here,
        host("h2", AUTHORITY) as there,
        host("h3", OTHERS) as stranger,
        host("h4", None) as mute,
    ):

        async def asked(other: Peer, name: str | None = None) -> str | None:
            at = other.peer()
            return await here.transfer.unproved(End(name or other.name, at.address, at.port))

        assert await asked(there) is None
        assert "did not prove to be host h9" in (await asked(there, "h9") or ""), "another host answers at its address"
        assert "did not prove" in (await asked(stranger) or "")
        gone = End("h2", "127.0.0.1", 1)
        assert "refuses connections" in (await here.transfer.unproved(gone) or "")
        assert "certificate" in (await mute.transfer.unproved(gone) or "")


async def test_a_host_that_takes_the_connection_and_says_nothing_is_not_known_to_be_there() -> None:
    """Its agent is stopped: the kernel alone answers."""
    async with host("h1", AUTHORITY) as here:
        assert here.transfer._identity.client is not None
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            end = End("h2", "127.0.0.1", deaf.getsockname()[1])
            why = await alive.unproved(here.transfer._identity.client, end, 0.3)
        assert "nobody answers" in (why or "")


async def test_a_host_can_be_asked_in_its_underlay_too() -> None:
    here = Transfer("h1", settings(), "https://127.0.0.1:6443", also="127.0.0.2")
    async with host("h2", AUTHORITY) as there:
        peer = Peer("h1", here)
        await here.open(peer.find)
        try:
            assert await peer.certified(AUTHORITY)
            port = peer.peer().port
            assert peer.peer().address == "127.0.0.1"
            for address in ("127.0.0.1", "127.0.0.2"):
                assert await there.transfer.unproved(End("h1", address, port)) is None
        finally:
            await here.close()
        assert "refuses" in (await there.transfer.unproved(End("h1", "127.0.0.2", port)) or "")
