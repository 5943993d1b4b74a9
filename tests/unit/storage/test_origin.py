"""URLs and names: nothing is sent to what was not checked."""

from __future__ import annotations

import ipaddress

import pytest
from yarl import URL

from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.origin import Origin, checked, parsed, session, system_resolve, trust
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.unit.storage.conftest import FORBIDDEN, SERVER
from tests.unit.storage.material import http, ignore
from tests.unit.storage.server import Answer, Server, serving

NOTHING = FetchSettings(backoff=0)


async def never(host: str, port: int) -> list[str]:
    raise AssertionError(f"{host} was asked for")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "nfs://10.0.0.1/share", "gopher://10.0.0.1/", "ftp://10.0.0.1/a", "metalink:http://a/b",
        "//10.0.0.1/a", "10.0.0.1/a", "", "http://", "http:///path", "http://user@10.0.0.1/", "http://u:p@10.0.0.1/",
        "http://@10.0.0.1/", "http://:@10.0.0.1/", "http://10.0.0.1\\@8.8.8.8/", "http://10.0.0.1 /", "http://a\tb/",
        "http://10.0.0.1/\r\nHost: x", "http://10.0.0.1:99999/", "http://10.0.0.1:x/", "http://[::1", "http://[fe80::1%25eth0]/",
        "javascript:alert(1)", "data:text/plain,hello", "unix:///run/x", "http+unix://%2Frun%2Fx/",
    ],
)  # fmt: skip
async def test_what_is_not_an_address_of_an_image_is_refused(url: str) -> None:
    with pytest.raises(StorageError) as refused:
        await checked(parsed(url), NOTHING, never)
    assert refused.value.reason == "SourceForbidden"
    assert not refused.value.retryable


ODD = (
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.0.0.01", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "0X7F000001",
    "2130706433", "017700000001", "0", "0x", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "localhost", "LOCALHOST",
    "localhost.", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "①②⑦.0.0.1", "127。0。0。1", "１２７.0.0.1", "127.0.0.1%00.example.com",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:a9fe:a9fe]", "[fe80::1]", "1.127.0.0.1.0x1", "256.1", "a..b..1",
)  # fmt: skip


@pytest.mark.parametrize("host", ODD)
async def test_loopback_and_metadata_are_refused_in_every_spelling(host: str, tmp_path, settings) -> None:
    """Also when the name service would answer; the listener on all addresses sees nobody."""
    async with serving("0.0.0.0") as canary:
        with pytest.raises(StorageError) as refused:
            await fetch(f"http://{host}:{canary.port}/", NOTHING, tmp_path)
        assert refused.value.reason in ("SourceForbidden", "SourceNotFound")
        assert canary.connections == 0


async def fetch(url: str, settings: FetchSettings, path, resolve=system_resolve, sha256: str = "0" * 64) -> None:
    from pathlib import PurePosixPath

    from kumulus_agents.storage.beneath import Directory

    with Directory.trusted(PurePosixPath(path)) as directory:
        part = await Part.open(directory, "part", Claims("local"))
        try:
            await Fetcher(settings, resolve=resolve).fetch(http(url), part, sha256, Pace(ignore))
        finally:
            part.close()


async def test_a_name_with_one_closed_address_among_open_ones_is_refused(server, canary, settings, tmp_path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [SERVER, FORBIDDEN]

    with pytest.raises(StorageError) as refused:
        await fetch(server.url("/i", "mixed.example"), settings.fetch, tmp_path, resolve)
    assert refused.value.reason == "SourceForbidden"
    assert server.connections == 0


async def test_a_name_that_changes_after_the_check_changes_nothing(server, canary, settings, tmp_path) -> None:
    answers = [SERVER]

    async def resolve(host: str, port: int) -> list[str]:
        return [answers.pop()] if answers else [FORBIDDEN]

    server.on("/i", Answer(b"hello", cut=2, ranges=False))
    with pytest.raises(StorageError) as refused:
        await fetch(server.url("/i", "rebinding.example"), settings.fetch, tmp_path, resolve)
    assert refused.value.reason == "SourceForbidden"
    assert server.connections == 1
    assert server.requests[0].headers["host"] == f"rebinding.example:{server.port}"


async def test_each_request_asks_for_the_name_once(server, settings, tmp_path) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return [SERVER]

    server.on("/i", Answer(status=302, headers=(("Location", "/j"),)))
    server.on("/j", Answer(b"hello"))
    with pytest.raises(StorageError) as refused:
        await fetch(server.url("/i", "one.example"), settings.fetch, tmp_path, resolve)
    assert refused.value.reason == "ChecksumMismatch"
    assert asked == ["one.example", "one.example"]


@pytest.mark.parametrize(
    "location",
    [
        "http://{forbidden}:{port}/secret", "//{forbidden}:{port}/secret", "http://0x7f000002:{port}/", "http://127.2:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/", "http://2130706434:{port}/", "file:///etc/passwd", "gopher://{forbidden}:{port}/",
        "http://user:pass@{forbidden}:{port}/", "ftp://{forbidden}/", "http://169.254.169.254/latest", "", "http://[::1]:{port}/",
    ],
)  # fmt: skip
async def test_a_redirect_is_checked_like_the_first_url(location: str, server, canary, settings, tmp_path) -> None:
    target = location.format(forbidden=FORBIDDEN, port=canary.port)
    server.on("/hop", Answer(status=307, headers=(("Location", target),)))
    url = server.on("/i", Answer(status=301, headers=(("Location", "/hop"),)))
    with pytest.raises(StorageError) as refused:
        await fetch(url, settings.fetch, tmp_path)
    assert refused.value.reason == "SourceForbidden"
    assert [request.target for request in server.requests] == ["/i", "/hop"]


async def test_proxies_and_credentials_of_the_host_are_not_used(
    server, canary, settings, tmp_path, monkeypatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {SERVER} login root password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{FORBIDDEN}:{canary.port}")
    with pytest.raises(StorageError):
        await fetch(server.on("/i", Answer(b"hello")), settings.fetch, tmp_path)
    headers = server.requests[0].headers
    assert headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "proxy-authorization"} & headers.keys()
    assert server.requests[0].method == "GET"


async def test_the_api_servers_address_is_closed_by_the_agents_settings(server: Server, tmp_path) -> None:
    settings = StorageSettings(fetch=NOTHING).forbidding(ipaddress.ip_network("10.0.0.7/32"))
    with pytest.raises(StorageError) as refused:
        await fetch("http://10.0.0.7:6443/", settings.fetch, tmp_path)
    assert refused.value.reason == "SourceForbidden"


async def test_a_name_that_does_not_exist_may_exist_later(tmp_path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(StorageError) as refused:
        await fetch("http://nowhere.example/", NOTHING, tmp_path, resolve)
    assert (refused.value.reason, refused.value.retryable) == ("SourceNotFound", True)


async def test_no_connection_is_made_to_what_was_not_checked() -> None:
    """Not even when the host of the URL is an address itself, for which nobody asks a name service."""
    async with serving("127.0.0.1") as canary:
        origin = Origin(URL(f"http://127.0.0.1:{canary.port}/"), (ipaddress.ip_address("203.0.113.1"),))
        async with session(origin, trust(None), NOTHING) as asking:
            with pytest.raises(OSError, match="was not checked"):
                await asking.get(origin.url)
        assert canary.connections == 0
