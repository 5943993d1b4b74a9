"""The client against a small HTTP server: what is sent, what answers mean, and what is never sent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from kubernetes.aio import client as kube_client

from kumulus.api.compute import VirtualMachine
from kumulus.kube import client as kube
from kumulus.kube import errors
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.connector import Connector
from tests.patience import PATIENCE

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
VM = VirtualMachine.KIND


class Server:
    """Answers everything with `answer`, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Answer = self.status(500)

    @staticmethod
    def status(code: int, reason: str = "", message: str = "", body: str | None = None) -> Answer:
        async def give(_: web.Request) -> web.Response:
            text = json.dumps({"kind": "Status", "reason": reason, "message": message}) if body is None else body
            return web.Response(status=code, text=text)

        return give

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        return await self.answer(request)


@asynccontextmanager
async def connected(server: Server, may_write: Callable[[], bool] | None = None) -> AsyncIterator[KubeClient]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = kube_client.Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = KubeClient(configuration, user_agent="test", may_write=may_write)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (404, "NotFound", errors.NotFound),
        (409, "AlreadyExists", errors.AlreadyExists),
        (409, "Conflict", errors.Conflict),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.Refused),
        (403, "Forbidden", errors.Refused),
        (401, "Unauthorized", errors.Refused),
        (500, "InternalError", errors.ApiError),
    ],
)
def test_what_an_answer_means(code: int, reason: str, kind: type[errors.ApiError]) -> None:
    body = json.dumps({"reason": reason, "message": "because"}).encode()
    error = errors.from_response(code, body)
    assert type(error) is kind and error.status == code
    assert "because" in str(error) and reason in str(error)
    assert error.retryable is (kind is not errors.Refused)


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[1]", b"\xff\xfe"])
def test_an_answer_of_a_proxy_is_an_error_like_others(body: bytes) -> None:
    assert isinstance(errors.from_response(502, body), errors.ApiError)


@pytest.mark.parametrize("code", [429, 500, 503, 504])
async def test_an_error_is_reported_at_once_and_not_tried_again_by_the_library(code: int) -> None:
    server = Server()
    server.answer = server.status(code, "Down")
    async with connected(server) as client, asyncio.timeout(5 * PATIENCE):
        for ask in (client.get(VM, "web", "ns"), client.delete(VM, "web", "ns")):
            with pytest.raises(errors.ApiError):
                await ask
    assert len(server.asked) == 2


async def test_nobody_there_is_unreachable() -> None:
    configuration = kube_client.Configuration()
    configuration.host = "http://127.0.0.1:1"
    client = KubeClient(configuration, user_agent="test")
    with pytest.raises(errors.Unreachable):
        await client.get(VM, "web", "ns")
    await client.close()


async def test_something_that_is_no_api_server_is_unreachable() -> None:
    server = Server()
    server.answer = server.status(200, body="<html>Welcome</html>")
    async with connected(server) as client:
        with pytest.raises(errors.Unreachable, match="no API server"):
            await client.get(VM, "web", "ns")


@pytest.mark.parametrize("name", ["../../other/secrets/theirs", "..", ".", "a/b", "a?x=1", "a%2Fb", "a b", "", "ä"])
async def test_a_name_of_a_tenant_is_never_a_path(name: str) -> None:
    server = Server()
    server.answer = server.status(200, body='{"data": {"key": "c2VjcmV0"}}')
    async with connected(server) as client:
        assert await client.find(SECRET, name, "ns") is None
    assert server.asked == []


async def test_names_that_exist_go_through() -> None:
    server = Server()
    server.answer = server.status(200, body="{}")
    async with connected(server) as client:
        await client.get(SECRET, "a.b-c_d:e@f", "ns")
    assert server.asked == [("GET", "/api/v1/namespaces/ns/secrets/a.b-c_d:e@f")]


async def test_who_does_not_lead_any_more_writes_nothing_but_may_read() -> None:
    server = Server()
    server.answer = server.status(200, body="{}")
    leading = True
    async with connected(server, may_write=lambda: leading) as client:
        await client.patch(VM, "web", {}, "ns", subresource="status")
        leading = False
        for write in (
            client.create(VM, {}, "ns"),
            client.patch(VM, "web", {}, "ns"),
            client.delete(VM, "web", "ns"),
            client.replace(VM, {"metadata": {"name": "web"}}, "ns"),
            client.create_sub(VM, "web", "token", {}, "ns"),
        ):
            with pytest.raises(errors.NotLeading):
                await write
        await client.get(VM, "web", "ns")
    assert [method for method, _ in server.asked] == ["PATCH", "GET"]


async def test_deleting_what_is_gone_is_no_error() -> None:
    server = Server()
    server.answer = server.status(404, "NotFound")
    async with connected(server) as client:
        assert await client.delete(VM, "web", "ns") is None


async def test_pages_of_a_list() -> None:
    server = Server()

    async def pages(request: web.Request) -> web.Response:
        more = "continue" not in request.query
        metadata = {"resourceVersion": "7", **({"continue": "c=1&x"} if more else {})}
        return web.json_response({"metadata": metadata, "items": [{"n": len(server.asked)}]})

    server.answer = pages
    async with connected(server) as client:
        found = [page async for page in client.list_pages(VM, None, fields="metadata.name=web", labels="a=b")]
    assert "labelSelector=a%3Db" in server.asked[1][1]
    assert found == [([{"n": 1}], "7"), ([{"n": 2}], "7")]
    assert "fieldSelector=metadata.name%3Dweb" in server.asked[1][1] and "c%3D1%26x" in server.asked[1][1]


def watching(*chunks: bytes, cut: bool = False) -> Answer:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return stream


def line(type_: str, **rest: object) -> bytes:
    return json.dumps({"type": type_, "object": {"metadata": {"resourceVersion": "1"}, **rest}}).encode() + b"\n"


async def test_a_watch_is_read_whatever_pieces_it_comes_in() -> None:
    server = Server()
    whole = line("ADDED", pad="x" * 300_000) + line("BOOKMARK")
    server.answer = watching(*(whole[at : at + 70_001] for at in range(0, len(whole), 70_001)))
    async with connected(server) as client:
        seen = [event.type async for event in client.watch(VM, "ns", since="1")]
    assert seen == ["ADDED", "BOOKMARK"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (watching(line("ADDED"), json.dumps({"type": "ERROR", "object": {"code": 410}}).encode()), errors.Gone),
        (watching(line("ADDED"), b'{"type": "MODI', cut=True), errors.Unreachable),
        (watching(line("ADDED"), b"not json\n"), errors.Unreachable),
        (Server.status(410, "Expired"), errors.Gone),
        (Server.status(503, "Down"), errors.ApiError),
    ],
)
async def test_how_a_watch_ends(answer: Answer, error: type[errors.KubeError]) -> None:
    server = Server()
    server.answer = answer
    async with connected(server) as client:
        with pytest.raises(error):
            async for event in client.watch(VM, "ns", since="1"):
                assert event.type == "ADDED"


@pytest.mark.parametrize(("said", "dead"), [(line("BOOKMARK"), True), (b"", False)])
async def test_a_watch_that_falls_silent_is_taken_for_dead_and_not_one_that_never_spoke(
    monkeypatch: pytest.MonkeyPatch, said: bytes, dead: bool
) -> None:
    monkeypatch.setattr(kube, "WATCH_SILENCE", 0.05)
    server = Server()
    closing = asyncio.Event()

    async def silence(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if said:
            await response.write(said)
        await closing.wait()
        return response

    async def watch(client: KubeClient) -> list[str]:
        return [event.type async for event in client.watch(VM, "ns", since="1")]

    server.answer = silence
    async with connected(server) as client:
        if dead:
            with pytest.raises(errors.Unreachable):
                await watch(client)
        else:
            watching = asyncio.create_task(watch(client))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.shield(watching)
        closing.set()
        if not dead:
            assert await watching == [], "it ends when the server ends it"


async def test_a_watch_that_is_not_answered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "REQUEST_TIMEOUT", 0.05)
    server = Server()
    closing = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        await closing.wait()
        return web.Response()

    server.answer = never
    async with connected(server) as client:
        with pytest.raises(errors.Unreachable):
            async for _ in client.watch(VM, "ns", since="1"):
                pass
        closing.set()


async def test_the_kernel_looks_after_connections_that_are_quiet() -> None:
    server = Server()
    server.answer = watching(line("BOOKMARK"))
    made: list[asyncio.BaseTransport] = []

    class Seen(Connector):
        async def _create_connection(self, *args: Any, **more: Any) -> ResponseHandler:
            protocol = await super()._create_connection(*args, **more)
            assert protocol.transport is not None
            made.append(protocol.transport)
            return protocol

    async with (
        connected(server) as client,
        aiohttp.ClientSession(connector=Seen()) as session,
        session.get(client.server),
    ):
        connection = made[0].get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        dead_after = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        assert 0 < dead_after <= 60
