"""A real NFS server, nfs-ganesha, in a network namespace of its own: the kernel that runs the tests has neither server nor client."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab.network import Network
from tests.patience import PATIENCE

CONFIGURATION = """
NFS_CORE_PARAM {{ Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryRoot = {directory}/recovery; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /vol; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
          Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }} }}
"""

RUN = (
    "mount -t tmpfs tmpfs /run && mkdir -p /run/ganesha /run/rpcbind && rpcbind -w && echo $$ > {directory}/pid"
    " && exec ganesha.nfsd -F -f {directory}/ganesha.conf -L {directory}/log -p {directory}/ganesha.pid"
)

TOOLS = all(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("ganesha.nfsd", "rpcbind", "ip"))


@dataclass
class NfsServer:
    """A server that can be stopped in the middle of things."""

    address: str
    export: Path
    space: str
    """Network namespace."""
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Of the server."""
        return int((self.directory / "pid").read_text())

    def stall(self) -> None:
        """It answers nothing any more; connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again."""
        os.kill(self.pid, signal.SIGCONT)

    def die(self) -> None:
        """Every process of it is gone; its address refuses connections."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def come_back(self) -> None:
        """It runs, and takes connections."""
        if self.process.poll() is not None:
            self.process = _started(self.directory, self.space)
        deadline = time.monotonic() + 20 * PATIENCE
        while True:
            try:
                socket.create_connection((self.address, 2049), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    logs = (self.directory / name for name in ("out", "log"))
                    raise AssertionError("".join(log.read_text() for log in logs if log.exists())) from None
                time.sleep(0.05)


def _started(directory: Path, space: str) -> subprocess.Popen[bytes]:
    with (directory / "out").open("w") as out:
        return subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", "-m", "sh", "-c", RUN.format(directory=directory)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def nfs_server(directory: Path, network: Network | None = None) -> Iterator[NfsServer]:
    """A server that exports a directory, until the block ends: for this machine, or on a lab's network for its hosts."""
    tag, net = secrets.token_hex(3), f"10.213.{secrets.randbelow(250)}"
    address = f"{net}.2" if network is None else network.spare_address
    space, here, there = f"nfs-{tag}", f"nfs-{tag}-a", f"nfs-{tag}-b"
    export = directory / "export"
    (directory / "recovery").mkdir(parents=True)
    export.mkdir()
    (directory / "ganesha.conf").write_text(CONFIGURATION.format(directory=directory, export=export))
    _ip("netns", "add", space)
    server = None
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        if network is None:
            _ip("addr", "add", f"{net}.1/24", "dev", here)
        else:
            _ip("link", "set", here, "master", network.bridge)
        _ip("link", "set", here, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", there)
        for device in (there, "lo"):
            _ip("-n", space, "link", "set", device, "up")
        server = NfsServer(address, export, space, directory, _started(directory, space))
        server.come_back()
        yield server
    finally:
        if server is not None:
            server.die()
        _ip("netns", "del", space)
