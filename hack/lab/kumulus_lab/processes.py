"""Daemons that outlive the command that started them, each with a log and a record of what it is.

A process is known by its id *and* its start time, so a recycled id is never signalled. Only what a record
in the lab's own directory names is ever ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import deadline
from kumulus_lab.errors import LabError

OWNER = "KUMULUS_LAB_OWNER"
"""In the environment of every process of a lab, so that `down` finds even one whose start was cut short."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from later ones with the same id by its start time in clock ticks since boot."""

    pid: int
    started: int

    @staticmethod
    def of(pid: int) -> Identity | None:
        """The identity of a process that runs now; None when there is none or it is only waiting to be reaped."""
        fields = _stat(pid)
        if fields is None or fields[0] == "X" or (fields[0] == "Z" and not _threads(pid)):
            return None
        return Identity(pid=pid, started=int(fields[19]))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self


def _threads(pid: int) -> bool:
    """Whether other threads still run although the first has ended: until they have too, ports and files are held."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, state first (proc(5), field 3 onwards)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def owned(directory: Path) -> list[Identity]:
    """Every process whose environment says that the lab in that directory started it, recorded or not."""
    marker = f"{OWNER}={directory}".encode()
    found: list[Identity] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found += filter(None, [Identity.of(int(entry.name))])
    return found


def end(identities: Sequence[Identity]) -> None:
    """Kill processes, known to be the lab's. Gone when it returns.

    All are told before one is waited for: who waits for a file system ends with the process that serves it.
    """
    for identity in identities:
        with contextlib.suppress(ProcessLookupError):
            if identity.alive():
                os.kill(identity.pid, signal.SIGKILL)
    for identity in identities:
        if not gone(identity, 10.0):
            raise LabError(f"process {identity.pid} does not end, not even by SIGKILL")


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process of the lab: its name, and where its record and its log are."""

    name: str
    home: Path
    record: Path
    log: Path

    @staticmethod
    def within(directory: Path, name: str) -> Daemon:
        """The daemon of that name in a lab's directory."""
        return Daemon(
            name=name, home=directory, record=directory / "run" / f"{name}.json", log=directory / "logs" / f"{name}.log"
        )

    def identity(self) -> Identity | None:
        """The process, if it runs."""
        try:
            data = json.loads(self.record.read_text())
            recorded = Identity(pid=int(data["pid"]), started=int(data["started"]))
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return recorded if recorded.alive() else None

    def running(self) -> bool:
        """Whether it runs."""
        return self.identity() is not None

    def start(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Identity:
        """Start it in a session of its own, unless it runs. It inherits no pipe and no terminal."""
        if (running := self.identity()) is not None:
            return running
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(word) for word in argv]
        pid = os.posix_spawnp(
            command[0],
            command,
            {**(os.environ if env is None else env), OWNER: str(self.home)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        identity = Identity.of(pid)
        if identity is None:
            reap(pid)
            raise LabError(f"{self.name} ended at once; its log is {self.log}:\n{self.tail()}")
        self.adopt(identity, command)
        return identity

    def adopt(self, identity: Identity, command: Sequence[str] = ()) -> None:
        """Record a process that is this daemon, whoever started it."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        draft = self.record.with_suffix(".new")
        draft.write_text(json.dumps({"pid": identity.pid, "started": identity.started, "argv": list(command)}))
        draft.replace(self.record)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if (identity := self.identity()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, number)

    def stop(self, grace: float = 10.0) -> None:
        """End it: politely, and by force after `grace` seconds. May be repeated; gone when it returns."""
        identity = self.identity()
        if identity is not None:
            self.signal(signal.SIGTERM)
            if not gone(identity, grace):
                self.kill()
        self.record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it without asking. Gone when it returns."""
        identity = self.identity()
        if identity is not None:
            self.signal(signal.SIGKILL)
            if not gone(identity, 10.0):
                raise LabError(f"{self.name} (process {identity.pid}) does not end, not even by SIGKILL")
        self.record.unlink(missing_ok=True)

    def ended(self) -> str | None:
        """A sentence when it does not run, for `deadline.until(alive=...)`."""
        return None if self.running() else f"{self.name} ended; its log is {self.log}:\n{self.tail()}"

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def reap(pid: int) -> None:
    """Collect a dead child, so that it does not stay as a zombie of this process."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def gone(identity: Identity, seconds: float) -> bool:
    """Whether the process ends within that time."""

    def probe() -> bool:
        reap(identity.pid)
        return not identity.alive()

    try:
        return deadline.until(probe, f"the end of process {identity.pid}", seconds=seconds, every=0.02)
    except LabError:
        return False
