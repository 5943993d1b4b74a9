"""Downloads: resumed, bounded, verified."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.image_order import HttpFetch
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import ImportProgress, Login, StorageError
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.unit.storage.conftest import SERVER
from tests.unit.storage.material import MIB, disk, http, ignore
from tests.unit.storage.server import Answer, Server, certificate, serving

BODY = disk()
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with Directory.trusted(PurePosixPath(tmp_path)) as made:
        yield made


@pytest.fixture
async def part(directory: Directory) -> AsyncIterator[Part]:
    made = await Part.open(directory, "part", Claims("local"))
    yield made
    made.close()


@pytest.fixture
def limits(settings: StorageSettings) -> FetchSettings:
    return settings.fetch


async def no_time(_: float) -> None:
    await asyncio.sleep(0)


async def fetch(url: str, part: Part, limits: FetchSettings, sha256: str = SHA, **more: object) -> None:
    await Fetcher(limits, sleep=no_time).fetch(http(url), part, sha256, Pace(ignore))


async def refused(url: str, part: Part, limits: FetchSettings, sha256: str = SHA) -> StorageError:
    with pytest.raises(StorageError) as error:
        await fetch(url, part, limits, sha256)
    return error.value


async def test_the_bytes_arrive(server: Server, part: Part, limits: FetchSettings, tmp_path) -> None:
    await fetch(server.on("/i", Answer(BODY)), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY
    assert "range" not in server.requests[0].headers


@pytest.mark.parametrize("length", [True, False])
async def test_a_cut_transfer_goes_on_where_it_was(server, part, limits, tmp_path, length) -> None:
    honest = Answer(BODY, etag='"1"', length=length)
    cuts = [Answer(BODY, etag='"1"', length=length, cut=n) for n in (1_000_000, 1_500_000, 100)]
    await fetch(server.on("/i", *cuts, honest), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY
    starts = [int(request.headers["range"].removeprefix("bytes=").removesuffix("-")) for request in server.requests[1:]]
    assert starts == sorted(starts)  # what was buffered when the cut came may be asked for again
    assert 0 < starts[0] <= 1_000_000 < starts[1] <= 2_500_000
    assert {request.headers.get("if-range") for request in server.requests[1:]} == {'"1"'}


async def test_a_server_that_ignores_range_starts_again(server, part, limits, tmp_path) -> None:
    answers = (Answer(BODY, cut=MIB), Answer(BODY, ranges=False))
    await fetch(server.on("/i", *answers), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY


async def test_another_version_of_the_file_starts_again(server, part, limits, tmp_path) -> None:
    answers = (Answer(b"x" * len(BODY), etag='"old"', cut=MIB), Answer(BODY, etag='"new"'))
    await fetch(server.on("/i", *answers), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY


async def test_halves_of_two_versions_are_noticed_by_the_digest(server, part, limits, tmp_path) -> None:
    answers = (Answer(b"x" * len(BODY), cut=MIB), Answer(BODY))
    await fetch(server.on("/i", *answers), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY
    assert len(server.requests) == 3


async def test_halves_of_two_versions_are_tried_again_once_only(server, part, limits) -> None:
    cut = Answer(b"x" * len(BODY), cut=MIB)
    error = await refused(server.on("/i", cut, Answer(BODY), cut, Answer(BODY)), part, limits)
    assert error.reason == "ChecksumMismatch"
    assert len(server.requests) == 4


async def test_a_range_that_is_not_the_one_asked_for_starts_again(server, part, limits, tmp_path) -> None:
    answers = (Answer(BODY, cut=MIB), Answer(BODY, range_shift=7), Answer(BODY))
    await fetch(server.on("/i", *answers), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY
    assert "range" not in server.requests[2].headers


async def test_the_agent_may_die_and_go_on(server, directory, limits, tmp_path) -> None:
    url = server.on("/i", Answer(BODY, etag='"1"', cut=2 * MIB), Answer(status=503), Answer(BODY, etag='"1"'))
    first = await Part.open(directory, "part", Claims("local"))
    await refused(url, first, limits.model_copy(update={"retries": 0}))
    had = first.size
    first.close()
    assert had > MIB
    second = await Part.open(directory, "part", Claims("local"))
    await fetch(url, second, limits)
    second.close()
    assert server.requests[-1].headers["range"] == f"bytes={had}-"
    assert server.requests[-1].headers["if-range"] == '"1"'
    assert (tmp_path / "part").read_bytes() == BODY


async def test_a_whole_part_costs_no_request(server, directory, limits, tmp_path) -> None:
    (tmp_path / "part").write_bytes(BODY)
    part = await Part.open(directory, "part", Claims("local"))
    await fetch(server.url("/i"), part, limits)
    part.close()
    assert server.connections == 0


async def test_a_part_that_is_longer_than_the_file_starts_again(server, directory, limits, tmp_path) -> None:
    (tmp_path / "part").write_bytes(BODY + b"more")
    part = await Part.open(directory, "part", Claims("local"))
    await fetch(server.on("/i", Answer(BODY)), part, limits)
    part.close()
    assert (tmp_path / "part").read_bytes() == BODY


async def test_two_agents_do_not_write_one_part(directory, part) -> None:
    with pytest.raises(StorageError) as error:
        await Part.open(directory, "part", Claims("local"))
    assert (error.value.reason, error.value.retryable) == ("Busy", True)


async def test_a_wrong_checksum_is_said_with_both_digests(server, part, limits) -> None:
    error = await refused(server.on("/i", Answer(BODY)), part, limits, "0" * 64)
    assert (error.reason, error.retryable) == ("ChecksumMismatch", False)
    assert SHA in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (Answer(status=404), "SourceNotFound", 1),
        (Answer(status=410), "SourceNotFound", 1),
        (Answer(status=401), "SourceUnauthorized", 1),
        (Answer(status=403), "SourceUnauthorized", 1),
        (Answer(status=304), "SourceRefused", 1),
        (Answer(status=500), "SourceUnavailable", 6),
        (Answer(status=503), "SourceUnavailable", 6),
        (Answer(status=429), "SourceUnavailable", 6),
        (Answer(BODY, cut=0), "SourceUnavailable", 6),
        (Answer(BODY, more_length=10, ranges=False), "SourceUnavailable", 7),
    ],
)
async def test_servers_that_do_not_deliver(server, part, limits, answer, reason, requests) -> None:
    error = await refused(server.on("/i", answer), part, limits)
    assert (error.reason, error.retryable) == (reason, True)
    assert len(server.requests) == requests


async def test_more_than_it_said_is_not_read(server, part, limits, tmp_path) -> None:
    await fetch(server.on("/i", Answer(BODY + b"more", more_length=-4)), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY


async def test_a_server_in_trouble_for_a_while_is_waited_for(server, part, limits) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    url = server.on("/i", *([Answer(status=503)] * 5), Answer(BODY))
    slow = limits.model_copy(update={"backoff": 1.0})
    await Fetcher(slow, sleep=sleep).fetch(http(url), part, SHA, Pace(ignore))
    assert slept == [2, 4, 8, 16, 30]


async def test_a_server_that_says_nothing_times_out(server, part, limits) -> None:
    short = limits.model_copy(update={"idle_timeout": 0.05, "retries": 1})
    error = await refused(server.on("/i", Answer(BODY, stall=0)), part, short)
    assert (error.reason, error.retryable) == ("SourceTimeout", True)


async def test_a_server_that_trickles_times_out(server, part, limits) -> None:
    short = limits.model_copy(update={"total_timeout": 0.2})
    error = await refused(server.on("/i", Answer(BODY, stall=MIB)), part, short)
    assert (error.reason, error.retryable) == ("SourceTimeout", True)


async def test_nobody_listens(server, part, limits) -> None:
    async with serving(SERVER) as gone:
        pass
    error = await refused(gone.url("/i"), part, limits)
    assert (error.reason, error.retryable) == ("SourceUnavailable", True)


@pytest.mark.parametrize("length", [True, False])
async def test_more_than_an_import_may_have_is_refused(server, part, limits, length) -> None:
    small = limits.model_copy(update={"max_bytes": MIB})
    error = await refused(server.on("/i", Answer(BODY, length=length)), part, small)
    assert (error.reason, error.retryable) == ("ImageTooLarge", False)
    assert part.size <= MIB


async def test_more_than_there_is_room_for_is_refused_before_it_comes(server, part, limits) -> None:
    endless = limits.model_copy(update={"max_bytes": 1 << 60})
    error = await refused(server.on("/i", Answer(BODY, more_length=1 << 55)), part, endless)
    assert (error.reason, error.retryable) == ("InsufficientCapacity", True)
    assert part.size == 0


async def test_redirects_are_followed_a_few_times(server, part, limits) -> None:
    for n in range(5):
        server.on(f"/{n}", Answer(status=302, headers=(("Location", f"/{n + 1}"),)))
    await fetch(server.on("/5", Answer(BODY)).replace("/5", "/0"), part, limits)


async def test_redirects_in_a_circle_end(server, part, limits) -> None:
    error = await refused(server.on("/i", Answer(status=302, headers=(("Location", "/i"),))), part, limits)
    assert (error.reason, error.retryable) == ("SourceForbidden", False)
    assert len(server.requests) == 6


async def test_compressed_transfer_is_not_undone(server, part, limits, tmp_path) -> None:
    await fetch(server.on("/i", Answer(BODY, headers=(("Content-Encoding", "gzip"),))), part, limits)
    assert (tmp_path / "part").read_bytes() == BODY


async def test_progress_is_told_at_most_twice_a_second_with_the_rate(server, part, limits) -> None:
    told: list[ImportProgress] = []
    now = iter(n / 10 for n in range(10_000))
    pace = Pace(told.append, monotonic=lambda: next(now))
    await Fetcher(limits).fetch(http(server.on("/i", Answer(BODY))), part, SHA, pace)
    assert told[0].rate is None
    assert all(progress.stage == "Downloading" and progress.total == len(BODY) for progress in told)
    for before, after in pairwise(told):
        assert after.bytes > before.bytes
        assert after.rate
    assert len(told) <= 1 + next(now) / 0.5


async def test_https_trusts_the_images_own_bundle_and_nobody_else(part, limits, tmp_path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return [SERVER]

    bundle, context = certificate(tmp_path, "images.example")
    async with serving(SERVER, tls=context) as server:
        server.on("/i", Answer(BODY))
        fetcher = Fetcher(limits, resolve=resolve, sleep=no_time)
        url = server.url("/i", "images.example")
        for source in (http(url), HttpFetch(url=server.url("/i", "other.example"), ca_bundle=bundle)):
            with pytest.raises(StorageError) as error:
                await fetcher.fetch(source, part, SHA, Pace(ignore))
            assert error.value.reason == "SourceUntrusted"
        assert server.requests == []
        await fetcher.fetch(HttpFetch(url=url, ca_bundle=bundle), part, SHA, Pace(ignore))


async def test_a_login_goes_to_its_server_over_tls_and_to_nobody_else(part, limits, tmp_path) -> None:
    login = Login("mallory", "pass:word \N{SNOWMAN}")
    assert base64.b64decode(login.basic.removeprefix("Basic ")).decode() == "mallory:pass:word \N{SNOWMAN}"
    assert "snowman" not in repr(login) and "word" not in repr(login)
    bundle, context = certificate(tmp_path, SERVER)
    fetcher = Fetcher(limits, sleep=no_time)
    async with serving(SERVER, tls=context) as server, serving(SERVER, tls=context) as other:
        fetch = HttpFetch(url=server.on("/i", Answer(BODY, login=login.basic)), ca_bundle=bundle)
        for wrong in (None, Login("mallory", "other")):
            with pytest.raises(StorageError) as refused:
                await fetcher.fetch(fetch, part, SHA, Pace(ignore), wrong)
            assert refused.value.reason == "SourceUnauthorized" and refused.value.retryable
        elsewhere = other.on("/there", Answer(BODY))
        server.on("/moved", Answer(status=302, headers=(("Location", elsewhere),), login=login.basic))
        moved = HttpFetch(url=server.url("/moved"), ca_bundle=bundle)
        await fetcher.fetch(moved, part, SHA, Pace(ignore), login)
        assert [request.headers.get("authorization") for request in other.requests] == [None]
        await part.begin("", None)
        await fetcher.fetch(fetch, part, SHA, Pace(ignore), login)
    async with serving(SERVER) as plain:
        url = plain.on("/i", Answer(BODY))
        await part.begin("", None)
        with pytest.raises(StorageError) as refused:
            await fetcher.fetch(HttpFetch(url=url), part, SHA, Pace(ignore), login)
        assert refused.value.reason == "SourceForbidden" and plain.connections == 0


async def test_a_bundle_without_certificates_is_refused(server, part, limits) -> None:
    source = HttpFetch(url=server.url("/i"), ca_bundle="no certificate")
    with pytest.raises(StorageError) as error:
        await Fetcher(limits).fetch(source, part, SHA, Pace(ignore))
    assert (error.value.reason, error.value.retryable) == ("SourceUntrusted", False)
