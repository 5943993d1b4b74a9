"""dnsmasq, keepalived and conntrackd as processes of their own, that outlive the agent and are found again.

Its command line names the file with its configuration, and the file's name follows from what is in it. So whoever looks
at the process knows whether it runs what it should.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kumulus_agents.network.linux.programs import run
from kumulus_agents.network.linux.record import write_whole
from kumulus_agents.network.protocol import NetworkError

_SECONDS = 5.0
_LOOK_SECONDS = 0.01
_READABLE = 0o640


@dataclass(frozen=True, slots=True)
class Options:
    """What a program calls the options that name its files."""

    configuration: str
    """A word by itself if it does not end in `=`."""
    pid: str = ""
    """Empty for one that writes its number nowhere."""
    child: str = ""
    """For the file that its child writes its number to, if it has one."""
    more: Sequence[str] = ()
    """Others, the same for each."""
    rereads: bool = True
    """It reads its other files anew when it gets SIGHUP."""

    def named(self, configuration: Path) -> list[str]:
        """The words that name its configuration."""
        if self.configuration.endswith("="):
            return [f"{self.configuration}{configuration}"]
        return [self.configuration, str(configuration)]


DNSMASQ = Options("--conf-file=", "--pid-file=")
KEEPALIVED = Options("--use-file=", "--pid=", "--vrrp_pid=", ("--vrrp",))
CONNTRACKD = Options("-C", more=("-d",), rereads=False)


class Daemon:
    """One process. Its verbs are called one at a time."""

    def __init__(
        self,
        name: str,
        directory: Path,
        program: str,
        gid: int,
        *,
        inside: Sequence[str] = (),
        options: Options = DNSMASQ,
    ) -> None:
        """`inside`: command that goes to where it runs, such as nsenter with its arguments."""
        self._options = options
        self._name = name
        self._directory = directory
        self._program = program
        self._gid = gid
        self._inside = inside
        self._told = False
        self._pid: int | None = None

    async def ensure(self, configuration: str, files: dict[str, str], *, forgets: bool = False) -> bool:
        """Have it run with this configuration and these files. `forgets`: what it was told before must be forgotten, so
        it starts anew. Whether it was not running, or not with this configuration. Raises `NetworkError`."""
        wanted = self._configuration(configuration)
        self._directory.mkdir(parents=True, exist_ok=True)
        os.chown(self._directory, -1, self._gid)
        os.chmod(self._directory, 0o750)  # noqa: PTH101, S103 - of root, and the group that dnsmasq runs in
        pid, running = self._found()
        anew = running != wanted
        if pid is not None and (anew or forgets):
            await self._end(pid)
            pid = None
        written = [
            write_whole(self._directory / name, text, _READABLE, self._gid) for name, text in sorted(files.items())
        ]
        if pid is not None:
            if self._options.rereads and (any(written) or not self._told):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
            self._told = True
            return False
        write_whole(wanted, configuration, _READABLE, self._gid)
        options = self._options.named(wanted)
        if self._options.pid:
            options.append(f"{self._options.pid}{self._pid_file}")
        child = self._directory / f"{self._name}-child.pid"
        if self._options.child:
            child.unlink(missing_ok=True)
            options.append(f"{self._options.child}{child}")
        await run([*self._inside, self._program, *options, *self._options.more])
        for _ in range(int(_SECONDS / _LOOK_SECONDS)):
            if not self._options.child or child.exists():
                break
            await asyncio.sleep(_LOOK_SECONDS)  # a signal to reread its files would end one that is not ready for it
        self._told = True
        for other in self._directory.glob(f"{self._name}-*.conf"):
            if other != wanted:
                other.unlink(missing_ok=True)
        return anew

    def runs(self, configuration: str) -> bool:
        """Whether it runs with this configuration."""
        return self._found()[1] == self._configuration(configuration)

    def there(self) -> bool:
        """Whether it runs, whatever its configuration."""
        return self._found()[0] is not None

    async def remove(self) -> None:
        """Have it not run. Its files are the directory's."""
        pid, _ = self._found()
        if pid is not None:
            await self._end(pid)
        self._told = False

    @property
    def _pid_file(self) -> Path:
        return self._directory / f"{self._name}.pid"

    def _configuration(self, text: str) -> Path:
        return self._directory / f"{self._name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.conf"

    def _found(self) -> tuple[int | None, Path | None]:
        """The process and its configuration; by its command line, for the number in a file may be somebody else's now."""
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if (configuration := self._runs(pid)) is not None:
                return pid, configuration
        for pid in itertools.chain([self._pid] if self._pid is not None else [], _processes()):
            if (configuration := self._runs(pid)) is not None:
                self._pid = pid
                return pid, configuration
        self._pid = None
        return None, None

    def _runs(self, pid: int) -> Path | None:
        *before, start = self._options.named(self._directory / f"{self._name}-")
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            at = 1 + len(before)
            named = "".join(words[at : at + 1])
            if Path(words[0]).name == Path(self._program).name and words[1:at] == before and named.startswith(start):
                return Path(named.removeprefix("" if before else self._options.configuration))
        return None

    async def _end(self, pid: int) -> None:
        deadline = time.monotonic() + _SECONDS
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        # Its command line is gone before its sockets are, which the next one wants.
        while self._runs(pid) is not None or _is_ending(pid):
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                if time.monotonic() > deadline + _SECONDS:
                    program = Path(self._program).name
                    raise NetworkError(f"{program} (process {pid}) does not end; look at that process.", reason="Stuck")
            await asyncio.sleep(0.005)


def _is_ending(pid: int) -> bool:
    """Whether the process has let go of its memory and not of everything else yet."""
    with suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and not Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)
