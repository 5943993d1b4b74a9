"""A libvirtd of one's own for tests: private mount namespace, reached over its unix socket, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.patience import PATIENCE

LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_dir = "/run/libvirt"
"""

QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = []
max_core = 0
"""

VIRTLOGD_CONF = """\
max_size = {size}
max_backups = {backups}
"""

MOUNTS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run",
}


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for a condition; AssertionError with `what` when it does not come true in time."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} within {seconds} s")
        time.sleep(0.01)


class PrivateLibvirtd:
    """libvirtd and virtlogd in a mount namespace of their own.

    A shell holds the namespace and starts what it is told on its standard input, so that libvirtd can be
    killed and started again beside running guests. Above it `tini -s` reaps orphaned QEMU processes at
    once, which the first process of a machine may be slow to do.
    """

    log_size = 65536
    log_backups = 3
    """How big a log gets before virtlogd rotates it, and how many older ones it keeps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"qemu+unix:///system?socket={root}/run/libvirt/libvirt-sock"
        for name in MOUNTS:
            (root / name).mkdir(parents=True)
        (root / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        (root / "etc/qemu.conf").write_text(QEMU_CONF)
        virtlogd = VIRTLOGD_CONF.format(size=self.log_size, backups=self.log_backups)
        (root / "etc/virtlogd.conf").write_text(virtlogd)
        with (root / "daemons.log").open("wb") as output:
            self._shell = subprocess.Popen(
                ["tini", "-s", "--", "unshare", "-m", "--propagation", "private", "bash", "-e"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=root,  # where a core is left
            )
        self._tell("ulimit -c unlimited")
        for name, target in MOUNTS.items():
            self._tell(f"mount --bind {root / name} {target}")
        self._spawn("virtlogd")

    def start(self) -> None:
        """Start libvirtd, which does not run, and wait until it answers."""
        self._spawn("libvirtd")
        until(self._answers, f"libvirtd did not answer (see {self.root}/daemons.log)")

    def kill(self) -> None:
        """kill -9 libvirtd; returns when it is gone. Guests go on."""
        pid = self._pid("libvirtd")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "libvirtd did not die")

    def ended(self) -> int | None:
        """What libvirtd ended with, as a shell says it (128 and the signal's number); None while it runs."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.root / "libvirtd.ended").read_text())
        return None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """libvirtd does not answer."""
        pid = self._pid("libvirtd")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def qemu(self, name: str) -> int:
        """Process id of the QEMU of the domain with that name, which runs."""
        pid = int((self.root / f"run/libvirt/qemu/{name}.pid").read_text())
        # Numbers come round again: the file may be older than whoever has the number now.
        assert f"guest={name}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes(), f"{pid} is not {name}"
        return pid

    def stop(self) -> None:
        """End every process of the namespace, the guests too, and remove its files, unless a daemon left its core there."""
        stdin = self._shell.stdin
        assert stdin is not None
        while len(pids := list(self._descendants(self._shell.pid))) > 1:
            for pid in pids[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            if self._shell.poll() is not None:
                break
        stdin.close()
        self._shell.wait(timeout=30 * PATIENCE)
        if not list(self.root.glob("core*")):
            shutil.rmtree(self.root, ignore_errors=True)

    def _spawn(self, daemon: str) -> None:
        file, ended = self.root / f"{daemon}.pid", self.root / f"{daemon}.ended"
        for one in (file, ended):
            one.unlink(missing_ok=True)
        begun = f"/usr/sbin/{daemon} & echo $! > {file}.new; mv {file}.new {file}"
        self._tell(f"({begun}; wait $! && true; echo $? > {ended}.new; mv {ended}.new {ended}) &")
        until(file.exists, f"{daemon} was not started (see {self.root}/daemons.log)")

    def _pid(self, daemon: str) -> int:
        return int((self.root / f"{daemon}.pid").read_text())

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line.encode() + b"\n")
        self._shell.stdin.flush()

    def _answers(self) -> bool:
        command = ["virsh", "-q", "-c", self.uri, "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _descendants(self, pid: int) -> Iterator[int]:
        """The process, its children, their children, and so on."""
        yield pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                yield from self._descendants(int(child))
