"""The watchdog's process: one loop, one socket, one deadline. It needs neither the agent, nor libvirt, nor the network (ADR 44).

The agent arms it, and tells it of renewals of the Lease. At the deadline it kills the agent, so that nothing starts what it ends, and
the emulators of the host's machines, over and over until an agent that has just begun arms it anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from kumulus_agents.watchdog import guests
from kumulus_agents.watchdog.watch import State, Watch

log = structlog.get_logger(__name__)

SOCKET = Path("/run/kumulus/watchdog.sock")
AGAIN_SECONDS = 0.05
"""Between two looks at what runs while it ends machines."""
LOOK_SECONDS = 0.5
"""Between two looks at the clock while it is armed."""
LINE_MAX = 1 << 10
_MCL_CURRENT_AND_FUTURE = 3


def boottime() -> float:
    """Seconds since the host booted, those in which it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Daemon:
    """One host's."""

    def __init__(self, path: Path, pids: Path, *, clock: Callable[[], float] = boottime) -> None:
        self._path = path
        self._pids = pids
        self._clock = clock
        self._watch = Watch()
        self._selector = selectors.DefaultSelector()
        self._agent: int | None = None
        """Descriptor of the process that armed it."""
        self._lines: dict[socket.socket, bytes] = {}
        self._told: list[str] = []

    def run(self) -> None:
        """Until the process ends."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(self._path))
        self._path.chmod(0o600)
        server.listen(4)
        self._selector.register(server, selectors.EVENT_READ)
        log.info("watchdog runs", socket=str(self._path))
        while True:
            self._step(server)

    def _step(self, server: socket.socket) -> None:
        now = self._clock()
        before = self._watch.state
        if self._watch.look(now) is State.FIRED:
            self._fire(first=before is not State.FIRED)
        deadline = self._watch.deadline
        wait = AGAIN_SECONDS if self._watch.state is State.FIRED else None
        if deadline is not None:  # timers stand still while the host sleeps
            wait = min(deadline - now, LOOK_SECONDS)
        for key, _ in self._selector.select(None if wait is None else max(0.0, wait)):
            if key.fileobj is server:
                self._welcome(server)
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj)

    def _fire(self, *, first: bool) -> None:
        if self._agent is not None:  # before anything else: nothing starts any more
            guests.kill(self._agent)
            os.close(self._agent)
            self._agent = None
        ended = guests.end(self._pids)
        if first:
            for connection in tuple(self._lines):  # what the agent still had to say does not count
                self._part(connection)
            log.error("the Lease was not renewed in time: the host's machines are ended", seconds=self._watch.seconds)
        if ended != self._told:
            log.error("machines are ended", domains=ended)
        self._told = ended

    def _welcome(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.settimeout(1.0)
        self._lines[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(LINE_MAX)
        except OSError:
            data = b""
        text = self._lines[connection] + data
        if not data or len(text) > LINE_MAX:
            self._part(connection)
            return
        *lines, self._lines[connection] = text.split(b"\n")
        for line in lines:
            answer = json.dumps({"ok": self._does(line, connection), "state": self._watch.state}).encode() + b"\n"
            try:
                connection.sendall(answer)
            except OSError:
                self._part(connection)
                return

    def _part(self, connection: socket.socket) -> None:
        """Whoever was there is gone; the deadline stays."""
        self._selector.unregister(connection)
        self._lines.pop(connection)
        connection.close()

    def _does(self, line: bytes, connection: socket.socket) -> bool:
        """What one line asks for; False: it was not done."""
        now = self._clock()
        try:
            said = json.loads(line)
            match said["verb"]:
                case "arm":
                    return self._arm(float(said["seconds"]), float(said["renewed"]), now, connection)
                case "renew":
                    return self._watch.renew(float(said["renewed"]), now)
                case "disarm":
                    return self._watch.disarm(now)
        except (ValueError, KeyError, TypeError):
            pass
        return False

    def _arm(self, seconds: float, renewed: float, now: float, connection: socket.socket) -> bool:
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            agent = os.pidfd_open(pid)
        except OSError:
            return False
        if self._agent is not None:
            os.close(self._agent)
        self._agent = agent
        before = self._watch.state
        armed = self._watch.arm(seconds, renewed, now)
        if self._watch.state is not before:
            log.info("watchdog", state=self._watch.state, seconds=seconds, agent=pid)
        return armed

    @property
    def armed(self) -> bool:
        """Whether somebody counts on it."""
        return self._watch.state is not State.IDLE


def serve(path: Path, pids: Path) -> None:
    """Be the watchdog of this host. Does not return."""
    daemon = Daemon(path, pids)

    def asked_to_end(number: int, frame: object) -> None:
        if not daemon.armed:
            raise SystemExit(0)
        log.error("the watchdog is armed and stays: set spec.fencing.watchdog of the Host to false first")

    signal.signal(signal.SIGTERM, asked_to_end)
    signal.signal(signal.SIGINT, asked_to_end)
    _insist()
    daemon.run()


def _insist() -> None:
    """Run before others, stay in memory, and be the last to be killed for memory; as far as this process may."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
