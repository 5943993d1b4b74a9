"""Uploads over real TLS, with kumulusctl's own sender: who may, how they go on, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from kumulus.api.host import transfer_name
from kumulus.cli import upload as cli
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.part import Part, expire, is_complete
from kumulus_agents.transfer import uploads
from kumulus_agents.transfer.uploads import Ticket
from kumulus_controllers.fabric.authority import Authority
from tests.patience import PATIENCE
from tests.unit.transfer.hosts import UID, Peer, host, now

AUTHORITY = Authority.made(now())
OTHER = UID.replace("0", "1").replace("a", "b")
DATA = os.urandom(2 << 20)
SHA256 = hashlib.sha256(DATA).hexdigest()
TOKEN = secrets.token_urlsafe(32)


class Pool:
    """A pool's uploads, in a directory."""

    upload_max = 8 << 20

    def __init__(self, path: Path) -> None:
        self.path = path

    @asynccontextmanager
    async def upload(self, uid: str) -> AsyncIterator[Part]:
        with Directory.trusted(PurePosixPath(self.path)) as directory:
            part = await Part.open(directory, f"{uid}.source", Claims("pool"))
            try:
                yield part
            finally:
                part.close()

    async def uploaded(self, uid: str, idle_seconds: float) -> bool:
        with Directory.trusted(PurePosixPath(self.path)) as directory:
            expire(directory, f"{uid}.source", idle_seconds)
            return is_complete(directory, f"{uid}.source")

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()]

    def arrived(self) -> bytes:
        return (self.path / f"{UID}.source").read_bytes()


class Hall:
    """A host that takes an upload."""

    def __init__(self, peer: Peer, path: Path) -> None:
        self.peer, self.pool, self.done = peer, Pool(path), 0
        self.port = peer.transfer.upload_port

    def admit(self, **changes: Any) -> None:
        def done() -> None:
            self.done += 1

        ticket: dict[str, Any] = {
            "image": UID,
            "sha256": SHA256,
            "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            "expires_at": now() + timedelta(minutes=5),
            "driver": self.pool,
            "done": done,
        }
        self.peer.transfer.uploads.admit("upload-1", Ticket(**{**ticket, **changes}))

    def sender(self, data: bytes = DATA, *, token: str = TOKEN, ca: str | None = None, name: str = "a") -> cli.Sender:
        at = cli.Door(
            f"https://127.0.0.1:{self.port}/v1/uploads/{UID}", transfer_name(name), ca or AUTHORITY.pem(), token
        )
        return cli.Sender(at, io.BytesIO(data), len(data), cli.Meter(Session(), "Uploading", len(data)))

    async def ask(self, request: bytes, body: bytes = b"") -> bytes:
        """Everything it answers to a request as somebody without a client's manners sends it."""
        context = ssl.create_default_context(cadata=AUTHORITY.pem())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=transfer_name("a")
        )
        try:
            writer.write(request + body)
            async with asyncio.timeout(10 * PATIENCE):
                return await reader.read()
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def put(self, span: str, body: bytes, length: int | None = None, token: str = TOKEN, path: str = "") -> bytes:
        length = len(body) if length is None else length
        head = f"PUT {path or '/v1/uploads/' + UID} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        return await self.ask(f"{head}Content-Range: bytes {span}\r\nContent-Length: {length}\r\n\r\n".encode(), body)


@asynccontextmanager
async def hall(tmp_path: Path, **changes: Any) -> AsyncIterator[Hall]:
    async with host("a", AUTHORITY, upload_port=0, **changes) as peer:
        made = Hall(peer, tmp_path)
        made.admit()
        yield made


async def in_thread(call: Any, *args: Any) -> Any:
    """What the call returns, or the exception that it ends with."""

    def run() -> Any:
        try:
            return call(*args)
        except Exception as error:  # looked at by the test
            return error

    return await asyncio.to_thread(run)


async def test_a_file_arrives_in_parts_and_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "PART", 1 << 20)
    async with hall(tmp_path) as at:
        sender = at.sender()
        assert await in_thread(sender.offset) == 0
        assert await in_thread(sender.send, 0) == 1 << 20
        assert isinstance(await in_thread(sender.send, 1 << 20), cli._Done)
        assert at.pool.arrived() == DATA and at.done == 1
        assert isinstance(await in_thread(sender.offset), cli._Done), "who asks later is told that it is there"


async def test_it_goes_on_where_it_was_cut_also_with_another_agent(tmp_path: Path) -> None:
    async with hall(tmp_path, idle_timeout=0.5) as at:
        answer = await at.put(f"0-{len(DATA) - 1}/{len(DATA)}", DATA[: 1 << 20], length=len(DATA))
        assert b"Cut" in answer or b"TooSlow" in answer or not answer
    async with hall(tmp_path) as at:
        sender = at.sender()
        offset = await in_thread(sender.offset)
        assert offset == 1 << 20
        assert isinstance(await in_thread(sender.send, offset), cli._Done)
        assert at.pool.arrived() == DATA


async def test_what_is_not_the_image_is_refused_and_removed(tmp_path: Path) -> None:
    async with hall(tmp_path) as at:
        wrong = at.sender(bytes(1 << 20))
        refused = await in_thread(wrong.send, 0)
        assert isinstance(refused, Problem) and SHA256 in str(refused)
        assert not at.pool.names() and not at.done
        assert await in_thread(at.sender().offset) == 0


async def test_only_the_token_of_the_image_opens_and_only_in_its_time(tmp_path: Path) -> None:
    async with hall(tmp_path) as at:
        other = secrets.token_urlsafe(32)
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        for token in (other, digest, "", TOKEN[:-1], f"{TOKEN}\\"):
            assert b"401" in (await at.put("0-0/1", b"x", token=token))[:20], token
        for path in ("/", "/v1/uploads", f"/v1/uploads/{OTHER}", f"/v1/uploads/{UID}/", f"/v1/images/{UID}/{SHA256}"):
            assert b"401" in (await at.put("0-0/1", b"x", path=path))[:20], path
        at.admit(expires_at=now())
        again = await in_thread(at.sender().offset)
        assert isinstance(again, cli._Again) and again.anew
        at.admit()
        at.peer.transfer.uploads.dismiss("upload-1")
        assert isinstance(await in_thread(at.sender().offset), cli._Again)
        assert not at.pool.names()


async def test_the_sender_trusts_nobody_but_the_host_it_was_told_of(tmp_path: Path) -> None:
    async with hall(tmp_path) as at:
        for sender in (at.sender(ca=Authority.made(now()).pem()), at.sender(name="b")):
            refused = await in_thread(sender.offset)
            assert isinstance(refused, Problem) and "did not prove" in str(refused)


BAD = {
    "past its end": ("5-9/10", b"x" * 5, 409),
    "longer than it says": ("0-4/5", b"x" * 6, 416),
    "backwards": ("4-0/5", b"x", 416),
    "beyond all": ("0-4/4", b"x" * 5, 416),
    "no range": ("*", b"x", 411),
    "too large": (f"0-0/{(8 << 20) + 1}", b"x", 413),
    "larger than the pool": (f"0-0/{10**18 - 1}", b"x", 413),
}


@pytest.mark.parametrize(("span", "body", "status"), BAD.values(), ids=BAD.keys())
async def test_requests_that_make_no_sense_change_nothing(tmp_path: Path, span: str, body: bytes, status: int) -> None:
    async with hall(tmp_path) as at:
        answer = await at.put(span, body)
        assert answer.startswith(f"HTTP/1.1 {status}".encode()), answer[:200]
        assert await in_thread(at.sender().offset) == 0


async def test_who_stands_still_is_cut_off_and_makes_room(tmp_path: Path) -> None:
    async with hall(tmp_path, uploads=1, idle_timeout=0.5) as at:
        slow = asyncio.create_task(at.put(f"0-{len(DATA) - 1}/{len(DATA)}", DATA[:1000], length=len(DATA)))
        while not at.peer.transfer.uploads._taking:  # noqa: ASYNC110 - the server says so to nobody
            await asyncio.sleep(0.01)
        assert b"503" in (await at.put("0-0/1", b"x"))[:20]
        assert b"408" in (await slow)[:20]
        offset = await in_thread(at.sender().offset)
        assert offset == 1000
        assert isinstance(await in_thread(at.sender().send, offset), cli._Done)


async def test_what_stands_still_for_long_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "KEEP_OPEN", 0.05)
    async with hall(tmp_path, upload_idle_seconds=0.2) as at:
        assert b"200" in (await at.put(f"0-9/{len(DATA)}", DATA[:10]))[:20]
        deadline = asyncio.get_running_loop().time() + 10 * PATIENCE
        while (tmp_path / f"{UID}.source").exists() and (tmp_path / f"{UID}.source").stat().st_size:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.3)
            await at.pool.uploaded(UID, 0.2)
        assert await in_thread(at.sender().offset) == 0
