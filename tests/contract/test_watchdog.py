"""The watchdog as it runs on a host: its own process, real emulators, and an agent that is stopped, cut off or gone (ADR 44)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kumulus_agents.watchdog.daemon import boottime
from kumulus_lab import deadline
from tests.unit.storage.material import needs_root

pytestmark = needs_root

SECONDS = 1.5
AGENT = """
import asyncio, sys
from pathlib import Path
from kumulus_agents.watchdog.client import Watchdog
from kumulus_agents.watchdog.daemon import boottime
async def main(socket, seconds, renewals, end):
    dog = Watchdog(Path(socket))
    await dog.arm(seconds, boottime())
    print("armed", flush=True)
    for _ in range(renewals):
        await asyncio.sleep(seconds / 8)
        await dog.renew(boottime())
    if end:
        await dog.disarm()
        print("disarmed", flush=True)
    print("cut off", boottime(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "disarm"))
"""
"""As far as the watchdog sees one."""


@dataclass
class Bench:
    """A host, as far as it matters here."""

    directory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def pids(self) -> Path:
        return self.directory / "qemu"

    @property
    def socket(self) -> Path:
        return self.directory / "watchdog.sock"

    def run(self, *argv: str) -> subprocess.Popen[str]:
        with (self.directory / f"log-{len(self.started)}").open("w") as log:
            made = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        self.started.append(made)
        return made

    def watchdog(self) -> subprocess.Popen[str]:
        self.socket.unlink(missing_ok=True)
        module = (sys.executable, "-m", "kumulus_agents.watchdog")
        made = self.run(*module, f"--socket={self.socket}", f"--pids={self.pids}")
        deadline.until(self.socket.exists, "the watchdog listens", seconds=20, every=0.02)
        return made

    def guest(self, name: str | None = None) -> subprocess.Popen[str]:
        """An emulator as libvirt starts one, as far as its name and its file go."""
        name = name or f"kumulus-{uuid.uuid4()}"
        argv = ("qemu-system-x86_64", "-name", f"guest={name},debug-threads=on", "-machine", "none", "-nodefaults")
        made = self.run(*argv, "-display", "none", "-S", "-pidfile", str(self.pids / f"{name}.pid"))
        deadline.until((self.pids / f"{name}.pid").exists, "the emulator runs", seconds=20, every=0.02)
        return made

    def agent(self, renewals: int = 0, then: str = "stay") -> subprocess.Popen[str]:
        made = self.run(sys.executable, "-c", AGENT, str(self.socket), str(SECONDS), str(renewals), then)
        assert made.stdout is not None and made.stdout.readline() == "armed\n"
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.pids.mkdir()
    yield made
    for process in made.started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def dead(process: subprocess.Popen[str], seconds: float = SECONDS + 3) -> bool:
    """Whether it is killed within that time."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds) == -signal.SIGKILL
    return False


def test_when_the_agent_is_stopped_its_machines_end_in_time_and_the_agent_with_them(bench: Bench) -> None:
    bench.watchdog()
    ours, foreign = [bench.guest(), bench.guest()], bench.guest("somebodys-own")
    (bench.pids / f"kumulus-{uuid.uuid4()}.pid").write_text(str(foreign.pid))  # a file that lies
    (bench.pids / f"kumulus-{uuid.uuid4()}.pid").write_text("rubbish")
    agent = bench.agent(renewals=2)
    assert agent.stdout is not None
    line = agent.stdout.readline()
    assert line.startswith("cut off")
    began = float(line.split()[2])
    os.kill(agent.pid, signal.SIGSTOP)
    assert all(dead(guest) for guest in ours) and dead(agent)
    took = boottime() - began
    assert SECONDS - 0.5 <= took < SECONDS + 3, "not before, and before anybody takes over"
    assert foreign.poll() is None

    # What something starts in spite of it ends as well, and only a new agent makes an end of that.
    assert dead(bench.guest())
    bench.agent()
    assert not dead(bench.guest(), 0.3)
    assert foreign.poll() is None


@pytest.mark.wide
def test_what_renews_its_lease_is_left_alone_and_who_says_good_bye_too(bench: Bench) -> None:
    watchdog, guest = bench.watchdog(), bench.guest()
    agent = bench.agent(renewals=12, then="disarm")
    watchdog.send_signal(signal.SIGTERM)  # not while somebody counts on it
    assert agent.stdout is not None and agent.stdout.readline() == "disarmed\n"
    assert guest.poll() is None and watchdog.poll() is None
    agent.kill()
    assert not dead(guest, SECONDS + 0.3)
    watchdog.send_signal(signal.SIGTERM)
    assert watchdog.wait(10) == 0


@pytest.mark.wide
def test_a_watchdog_that_was_killed_is_armed_again_with_what_is_left(bench: Bench) -> None:
    first, guest = bench.watchdog(), bench.guest()
    bench.agent().kill()
    first.kill()
    first.wait(10)
    bench.watchdog()
    assert not dead(guest, 0.5), "a new watchdog knows nothing before it is told"
    bench.agent()
    assert dead(guest)
