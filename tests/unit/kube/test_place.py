"""Proof of death: a lock that goes with its process, and only with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kumulus.kube import place
from kumulus.kube.place import Place

HOLDER = """
import sys, time
from pathlib import Path
from kumulus.kube.place import Place
place = Place(Path(sys.argv[1]))
print(place.take() and place.name, flush=True)
time.sleep(600)
"""


@contextmanager
def holder(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that has the place, and what it calls it."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_place_of_a_process_is_free_when_it_is_dead_and_not_while_it_is_paused(tmp_path: Path) -> None:
    mine = Place(tmp_path / "lock")
    with holder(tmp_path / "lock") as (process, name):
        assert not mine.take() and mine.name is None
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert not mine.take()
        process.kill()
        process.wait()
        assert mine.take() and mine.name == name
        assert mine.take(), "may be repeated"
    mine.leave()


def test_another_file_is_another_place_even_under_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    old, new = Place(path), Place(path)
    assert old.take()
    path.unlink()
    assert new.take() and new.name != old.name
    old.leave()
    new.leave()


def test_another_start_of_the_machine_is_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is another machine, with which the file may be shared."""
    here = Place(tmp_path / "lock")
    assert here.take()
    name = here.name
    here.leave()
    other = tmp_path / "boot_id"
    other.write_text("4c8f6c5e-0000-4000-8000-000000000000\n")
    monkeypatch.setattr(place, "_BOOT_ID", other)
    assert here.take() and here.name != name
    here.leave()


def test_what_cannot_be_proof_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Place(tmp_path / "missing" / "lock").take()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert not Place(tmp_path / "link").take() and not (tmp_path / "elsewhere").exists()
    monkeypatch.setattr(place, "_file_system", lambda file: "nfs4")
    assert not Place(tmp_path / "lock").take()
    monkeypatch.undo()
    monkeypatch.setattr(place, "_BOOT_ID", tmp_path / "none")
    assert not Place(tmp_path / "lock").take()
    monkeypatch.undo()
    mine = Place(tmp_path / "lock")
    assert mine.take(), "nothing is left locked by those who failed"
    mine.leave()
