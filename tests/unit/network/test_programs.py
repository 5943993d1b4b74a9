"""Programs that the driver `linux` runs."""

from __future__ import annotations

import os
import signal

import pytest
import uvloop

from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.protocol import NetworkError


def test_what_a_program_leaves_behind_is_not_waited_for() -> None:
    """keepalived and haproxy go on, and keep what the loop of the agent left open for them."""
    status, out, err = uvloop.run(attempt(["/bin/sh", "-c", "sleep 999 & cat; echo $! >&2; exit 3"], "given"))
    os.kill(int(err), signal.SIGKILL)  # it is there still
    assert (status, out) == (3, "given")


def test_a_program_that_fails_or_is_not_there_is_an_error() -> None:
    with pytest.raises(NetworkError, match="said"):
        uvloop.run(run(["/bin/sh", "-c", "echo said; exit 1"]))
    with pytest.raises(NetworkError) as missing:
        uvloop.run(run(["/nonexistent/program"]))
    assert missing.value.reason == "ProgramMissing"
