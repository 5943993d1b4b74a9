"""A process that runs already is found without looking at all others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus_agents.network.linux import daemons
from kumulus_agents.network.linux.daemons import Daemon, Options


def test_a_process_that_is_known_is_found_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon("it", tmp_path, "/bin/tail", os.getgid(), options=Options("-f"))
    looked = 0
    processes = daemons._processes

    def counted() -> Iterator[int]:
        nonlocal looked
        looked += 1
        yield from processes()

    monkeypatch.setattr(daemons, "_processes", counted)
    configuration = daemon._configuration("x")
    configuration.touch()
    with subprocess.Popen(["/bin/tail", "-f", str(configuration)]) as process:
        try:
            while not daemon.there():
                assert process.poll() is None
            before = looked
            assert daemon.runs("x")
            assert looked == before
        finally:
            process.kill()
