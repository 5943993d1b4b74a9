"""Daemons: known by more than their number, found even without a record, never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus_lab import deadline
from kumulus_lab.errors import LabError
from kumulus_lab.processes import Daemon, Identity, end, gone, owned

_SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
_STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)",
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    end(owned(tmp_path))


def _started(daemon: Daemon, argv: list[str]) -> Identity:
    identity = daemon.start(argv)
    deadline.until(lambda: "here" in daemon.tail(), "the daemon's first word", seconds=10)
    return identity


def test_a_second_start_finds_the_first(home: Path) -> None:
    daemon = Daemon.within(home, "sleeper")
    assert _started(daemon, _SLEEP) == daemon.start(_SLEEP)


def test_it_has_a_session_of_its_own_and_no_pipe_of_ours(home: Path) -> None:
    identity = _started(Daemon.within(home, "sleeper"), _SLEEP)
    assert os.getsid(identity.pid) == identity.pid
    links = [Path(f"/proc/{identity.pid}/fd/{number}").readlink() for number in (0, 1, 2)]
    assert links == [Path("/dev/null"), home / "logs/sleeper.log", home / "logs/sleeper.log"]


def test_stopping_ends_it_and_may_be_repeated(home: Path) -> None:
    daemon = Daemon.within(home, "sleeper")
    identity = _started(daemon, _SLEEP)
    daemon.stop()
    daemon.stop()
    assert not identity.alive()
    assert not daemon.record.exists()


def test_what_ignores_a_polite_word_is_ended_by_force(home: Path) -> None:
    daemon = Daemon.within(home, "stubborn")
    identity = _started(daemon, _STUBBORN)
    daemon.stop(grace=0.2)
    assert not identity.alive()


def test_a_recycled_number_is_not_signalled(home: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        daemon = Daemon.within(home, "old")
        daemon.record.parent.mkdir(parents=True)
        daemon.record.write_text(json.dumps({"pid": stranger.pid, "started": 1}))
        assert not daemon.running()
        daemon.kill()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_record_is_no_process(home: Path) -> None:
    daemon = Daemon.within(home, "torn")
    daemon.record.parent.mkdir(parents=True)
    daemon.record.write_text('{"pid": 12')
    assert not daemon.running()
    daemon.stop()


def test_one_whose_record_was_lost_is_found_by_its_owner(home: Path) -> None:
    daemon = Daemon.within(home, "sleeper")
    identity = _started(daemon, _SLEEP)
    daemon.record.unlink()
    assert owned(home) == [identity]
    assert owned(home / "other") == []
    end([identity])
    assert not identity.alive()


def test_a_dead_child_that_nobody_reaped_does_not_run(home: Path) -> None:
    daemon = Daemon.within(home, "sleeper")
    identity = _started(daemon, _SLEEP)
    os.kill(identity.pid, signal.SIGKILL)
    assert gone(identity, 5)
    sentence = daemon.ended()
    assert sentence is not None
    assert "sleeper ended; its log is" in sentence
    assert "here" in sentence


def test_a_program_that_is_not_there_is_said_at_once(home: Path) -> None:
    with pytest.raises((LabError, FileNotFoundError)):
        Daemon.within(home, "missing").start(["/nonexistent/program"])
