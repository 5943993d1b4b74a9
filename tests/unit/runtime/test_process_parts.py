"""Conditions, settings, health over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import pytest
from pydantic import ValidationError

from kumulus.api.base import Condition, ConditionStatus
from kumulus.api.compute import VirtualMachine
from kumulus.runtime import http, metrics
from kumulus.runtime.conditions import MESSAGE_MAX, Fact, derive
from kumulus.runtime.kopf_shell import KopfShell
from kumulus.runtime.settings import load
from tests.patience import PATIENCE

OLD, NOW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def before(**more: object) -> Condition:
    return Condition(type="Ready", status=ConditionStatus.TRUE, last_transition_time=OLD, reason="A", **more)


def test_the_time_changes_with_the_status_only() -> None:
    (same,) = derive([before()], [Fact("Ready", True, "B", "other words")], generation=4, now=NOW)
    assert same.last_transition_time == OLD and same.reason == "B" and same.observed_generation == 4
    (turned,) = derive([before()], [Fact("Ready", False, "B")], generation=4, now=NOW)
    assert turned.last_transition_time == NOW
    (unknown,) = derive([before()], [Fact("Ready", ConditionStatus.UNKNOWN)], generation=4, now=NOW)
    assert (
        unknown.status is ConditionStatus.UNKNOWN
        and unknown.last_transition_time == NOW
        and unknown.reason == "Unknown"
    )


def test_what_does_not_apply_or_is_not_named_is_dropped_and_the_order_is_the_facts() -> None:
    found = derive([before()], [Fact("B", True), Fact("Ready", None), Fact("A", False)], generation=1, now=NOW)
    assert [condition.type for condition in found] == ["B", "A"]


def test_a_message_fits() -> None:
    (found,) = derive([], [Fact("A", True, "R", "x" * 9999)], generation=1, now=NOW)
    assert len(found.message) == MESSAGE_MAX


def test_settings_come_from_the_file_then_the_environment_then_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "kumulus.yaml"
    file.write_text("workers: 3\nhttp_port: 1\nlease: file\nmodules: {controllers.compute: {x: 1}}\n")
    environment = {
        "KUMULUS_CONFIG": str(file),
        "KUMULUS_HTTP_PORT": "2",
        "KUMULUS_LEASE": "env",
        "KUMULUS_INCLUDE": "a, b,",
    }
    found = load({"lease": "line", "workers": None}, environment)
    assert (found.workers, found.http_port, found.lease, found.include) == (3, 2, "line", ["a", "b"])
    assert found.modules == {"controllers.compute": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers: 0", "workers"),
        ("wrokers: 3", "wrokers"),
        ("lease_seconds: 1", "lease_seconds"),
        ("- a", "mapping"),
        ("a: {", "kumulus.yaml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "kumulus.yaml"
    file.write_text(text)
    with pytest.raises((ValidationError, OSError), match=says):
        load(environment={"KUMULUS_CONFIG": str(file)})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        load(environment={"KUMULUS_CONFIG": str(tmp_path / "nothing.yaml")})


async def test_health_says_what_is_wrong() -> None:
    why: list[str | None] = ["still reading"]
    async with (
        http.serve(0, healthy={"process": lambda: None}, ready={"caches": lambda: why[0]}) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        async with session.get("/readyz") as answer:
            assert answer.status == 503 and await answer.text() == "[-]caches still reading\n"
        why[0] = None
        for path in ("/readyz", "/healthz"):
            async with session.get(path) as answer:
                assert answer.status == 200 and "ok" in await answer.text()
        metrics.QUEUE_DEPTH.labels("test").set(3)
        async with session.get("/metrics") as answer:
            assert 'kumulus_queue_depth{controller="test"} 3.0' in await answer.text()
        async with session.get("/other") as answer:
            assert answer.status == 404


def fetch(port: int, path: str) -> tuple[int, str]:
    """A request that holds up the loop it is made in."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5 * PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_stuck_loop_is_not_healthy_until_it_turns_again() -> None:
    async with http.serve(0, healthy={}, ready={"caches": lambda: None}, patience=0.3) as port:
        assert await asyncio.to_thread(fetch, port, "/healthz") == (200, "[+]loop ok\n")
        end = time.monotonic() + 10 * PATIENCE
        while (found := fetch(port, "/healthz"))[0] == 200:  # nothing else runs in this loop meanwhile
            assert time.monotonic() < end
        assert found[0] == 503 and found[1].startswith("[-]loop stuck: nothing has run in its loop for")
        assert fetch(port, "/readyz")[0] == 200, "it is not for readiness to end a process"
        while (await asyncio.to_thread(fetch, port, "/healthz"))[0] != 200:
            assert time.monotonic() < end


async def test_a_port_that_is_taken_is_said() -> None:
    async with http.serve(0, healthy={}, ready={}) as port:
        with pytest.raises(OSError, match=str(port)):
            async with http.serve(port, healthy={}, ready={}):
                pass


async def test_kopf_that_ended_by_itself_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(**_: object) -> None:
        """What kopf does when it cannot go on; it takes more than a minute to see that by itself."""

    monkeypatch.setattr("kumulus.runtime.kopf_shell.kopf.operator", ends)
    shell = KopfShell([VirtualMachine.KIND], lambda *_: None, "test")
    assert shell.why() is None, "it was not started"
    shell.start()
    try:
        async with asyncio.timeout(20 * PATIENCE):
            await shell.failed.wait()
            while shell.why() is None:  # noqa: ASYNC110 - the thread is at its last line
                await asyncio.sleep(0)
        assert shell.why() == "ended by itself; see the log"
    finally:
        await shell.stop()
    assert shell.why() is None, "it was asked to stop"


async def test_a_watch_of_kopf_that_ended_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf says so to its log alone, and may then try for ever to end itself."""
    ended = threading.Event()

    async def goes_on(*, stop_flag: threading.Event, **_: object) -> None:
        watch = asyncio.create_task(asyncio.to_thread(ended.wait), name="watcher for virtualmachines@none")
        await asyncio.to_thread(stop_flag.wait)
        await watch

    monkeypatch.setattr("kumulus.runtime.kopf_shell.kopf.operator", goes_on)
    monkeypatch.setattr("kumulus.runtime.kopf_shell.GUARD_SECONDS", 0.05)
    shell = KopfShell([VirtualMachine.KIND], lambda *_: None, "test")
    shell.start()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(shell.failed.wait(), 0.3)
        ended.set()
        await asyncio.wait_for(shell.failed.wait(), 20 * PATIENCE)
    finally:
        ended.set()
        await shell.stop()
