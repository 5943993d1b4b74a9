"""An NFS export mounted in the agent's own place: by the kernel's client where there is one, else by ours in userspace.

Both wait for a server that does not answer (`hard`): a guest's write is never answered by an error that its file system
would take for a broken disk. Attributes of directories are not kept, for other hosts change them. Blocks.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kumulus.api.pools import NfsParameters, NfsVersion
from kumulus_agents.storage.nfs import libnfs
from kumulus_agents.storage.protocol import StorageError

USERSPACE = "fuse.kumulus-nfs"
"""Type of a mount by our own client."""

_PROGRAM = "kumulus_agents.storage.nfs.filesystem"
_SAFE = ("nosuid", "nodev", "noexec", "hard", "lookupcache=none", "acdirmin=0", "acdirmax=0")
_MOUNT_SECONDS = 30.0
_UMOUNT = "/usr/bin/umount"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount as the kernel lists it."""

    source: str
    type: str


def kernel_has_client() -> bool:
    """Whether this host can mount NFS by itself: the kernel knows it, or has a module, and there is the program."""
    if shutil.which("mount.nfs", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        return False
    if (modprobe := shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")) is not None:
        subprocess.run([modprobe, "-q", "nfs"], check=False, timeout=_MOUNT_SECONDS, env={})
    return any(line.split()[-1] in ("nfs", "nfs4") for line in Path("/proc/filesystems").read_text().splitlines())


def source_of(export: NfsParameters) -> str:
    """What is mounted, as mount(8) writes it."""
    return f"{bracketed(export.server)}:{export.path}"


def bracketed(server: str) -> str:
    """A server's address as it stands before a colon."""
    try:
        return f"[{server}]" if ipaddress.ip_address(server).version == 6 else server
    except ValueError:
        return server


def kernel_arguments(export: NfsParameters, target: Path) -> list[str]:
    """The command that has the kernel mount it. Options are from the list that admission allows, ours are last. Pure."""
    version = [f"vers={export.version}"] if export.version is not None else []
    options = ",".join((*export.mount_options, *version, *_SAFE))
    return ["/usr/bin/mount", "-i", "-t", "nfs", "-o", options, "--", source_of(export), str(target)]


def mounted(target: Path) -> Mounted | None:
    """What is mounted there, on top. Asks nobody but the kernel, so it never waits for a server."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(target):
            kind, source = after.split()[:2]
            found = Mounted(source, kind)
    return found


class Mount:
    """One export, mounted at one place."""

    def __init__(self, export: NfsParameters, target: Path, pool: str) -> None:
        self._export = export
        self.target = target
        self._pool = pool
        self._client: int | None = None

    def ensure(self) -> Mounted:
        """Have it mounted; what is mounted. Raises `StorageError`."""
        self._reap()
        found = mounted(self.target)
        if found is not None and found.type == USERSPACE and self._died():
            _unmount(self.target)
            found = None
        if found is None:
            self._mount()
            found = mounted(self.target)
        if found is None or found.source != source_of(self._export) or not found.type.startswith(("nfs", "fuse.")):
            raise self._failure("something else is mounted in its place on this host, or it went away at once")
        return found

    def release(self) -> None:
        """Have it mounted no more. Our client ends when the last file of it is closed. Never waits for the server."""
        if mounted(self.target) is not None:
            _unmount(self.target)
        for left in (self.target, self.target.parent / f"{self.target.name}.log"):
            with suppress(FileNotFoundError):
                left.rmdir() if left == self.target else left.unlink()
        self._reap()

    def access(self, found: Mounted) -> str:
        """How the pool is reached and its disks are locked, for people."""
        if found.type == USERSPACE:
            return (
                "Reached by a client in userspace (libnfs, NFSv3), for the kernel has none; QEMU's locks on disks hold on"
                " one host only, so between hosts the orders and marks of Kumulus alone keep a second writer away."
            )
        version = "NFSv3 with its lock manager" if found.type == "nfs" else "NFSv4"
        return f"Reached by the kernel's client ({version}); QEMU's locks on disks hold between hosts."

    def _mount(self) -> None:
        self.target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.target.mkdir(mode=0o000, exist_ok=True)
        if kernel_has_client():
            self._by_kernel()
        elif self._export.version not in (None, NfsVersion.V3):
            raise self._failure(
                f"this host's kernel has no NFS client, and the one in userspace speaks version 3, not"
                f" {self._export.version}. Load the kernel's module nfs and install nfs-common, or leave version empty",
                retryable=False,
            )
        elif libnfs.available() and Path("/dev/fuse").exists():
            self._in_userspace()
        else:
            raise self._failure(
                "this host has no NFS client: install nfs-common, or libnfs and libfuse3", retryable=False
            )

    def _by_kernel(self) -> None:
        try:
            done = subprocess.run(
                kernel_arguments(self._export, self.target),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_MOUNT_SECONDS,
                env={},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failure("its server does not answer") from None
        if done.returncode:
            raise self._failure(f"mount ended with status {done.returncode}: {done.stderr.strip()[-300:]}")

    def _in_userspace(self) -> None:
        """The client is a process of its own session: it stays when the agent goes, as guests do."""
        log = str(self.target.parent / f"{self.target.name}.log")
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", _PROGRAM, self._export.server, self._export.path, str(self.target)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        deadline = time.monotonic() + _MOUNT_SECONDS
        while mounted(self.target) is None:
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise self._failure("its server refuses it, or there is no such export (root must be root there)")
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise self._failure("its server does not answer")
            time.sleep(0.05)
        self._client = pid

    def _reap(self) -> None:
        """Take notice of a client of ours that ended."""
        if self._client is not None:
            with suppress(ChildProcessError):
                if os.waitpid(self._client, os.WNOHANG)[0]:
                    self._client = None

    def _died(self) -> bool:
        """Whether the client in userspace is gone, and its mount is a shell."""
        try:
            os.statvfs(self.target)
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False

    def _failure(self, why: str, *, retryable: bool = True) -> StorageError:
        return StorageError(
            f"The export {source_of(self._export)} of pool {self._pool} cannot be mounted: {why}.",
            reason="MountFailed",
            retryable=retryable,
        )


def _unmount(target: Path) -> None:
    subprocess.run(
        [_UMOUNT, "-l", "-i", "-c", "--", str(target)],
        check=False,
        timeout=_MOUNT_SECONDS,
        env={},
        stderr=subprocess.DEVNULL,
    )
