"""A machine of its own for libvirt: namespaces, a file system of its own where it matters, an init.

`power_off` is a power cut: the init is killed and everything in its process namespace with it. Disks, domain
definitions and the agent's state survive in the host's directory, as they would on a machine. What the host
runs, and why, is not decided here: `services` starts the agent.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import commands, deadline, openvswitch
from kumulus_lab.cuts import Direction
from kumulus_lab.errors import LabError
from kumulus_lab.network import Network
from kumulus_lab.processes import Daemon, Identity, children, end, gone
from kumulus_lab.state import HostState

_BOOT = Path(__file__).with_name("boot.sh")
_STATE = "var/lib/kumulus"

_LIBVIRTD = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
max_clients = 100
host_uuid = "{uuid}"
"""

# Guests are confined by the agent's own means, not by what a machine without systemd cannot offer.
_QEMU = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
migration_address = "{address}"
"""


@dataclass(frozen=True, slots=True)
class LibvirtHost:
    """One host of a lab."""

    lab_directory: Path
    network: Network
    state: HostState
    ovn: bool = False
    """Whether it has Open vSwitch and OVN."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @property
    def address(self) -> str:
        """Its address on the lab's bridge."""
        return self.network.host_address(self.state.number)

    @property
    def directory(self) -> Path:
        """What survives a power cut."""
        return self.lab_directory / "hosts" / self.name

    @property
    def state_directory(self) -> Path:
        """The agent's /var/lib/kumulus, seen from outside."""
        return self.directory / _STATE

    def daemon(self, service: str) -> Daemon:
        """One of `init`, `virtlogd`, `libvirtd`, `agent` of this host, or of `openvswitch.DAEMONS`."""
        return Daemon.within(self.lab_directory, f"{self.name}-{service}")

    def running(self) -> bool:
        """Whether its init runs."""
        return self.daemon("init").running()

    def power_on(self) -> None:
        """Boot it, unless it runs, and start libvirt on it."""
        if not self.running():
            self._clear()
            self._configure()
            self.network.ensure_host(self.name, self.state.number)
            self._boot()
        if self.ovn:
            self.network.fill_in(self.state.number)
            openvswitch.start(self, f"{self.address}/{self.network.prefix}")
        self.start_libvirt()

    def power_off(self) -> None:
        """Cut the power: every process of it is gone at once, and so is its network."""
        self.daemon("init").kill()
        self._clear()

    def remove(self) -> None:
        """Nothing of it is left on this machine."""
        self.power_off()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start_libvirt(self) -> None:
        """virtlogd and libvirtd run, and libvirtd answers."""
        self.start_service("virtlogd", ["virtlogd"])
        self.start_service("libvirtd", ["libvirtd"])
        socket = Path(f"/proc/{self._init().pid}/root/run/libvirt/libvirt-sock")
        deadline.until(
            socket.is_socket, f"libvirt's socket on {self.name}", seconds=30, alive=self.daemon("libvirtd").ended
        )

    def start_service(self, service: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start a program in this host, unless it runs. It is ended like any other daemon, or by a power cut."""
        daemon = self.daemon(service)
        if daemon.running():
            return
        entered = daemon.start([*self._enter(), *argv], env)
        inner = deadline.until(
            lambda: next((found for pid in children(entered.pid) if (found := Identity.of(pid))), None),
            f"the start of {service} on {self.name}",
            seconds=10,
            every=0.005,
            alive=daemon.ended,
        )
        daemon.adopt(inner, [str(word) for word in argv])

    def exec(self, argv: Sequence[str | Path], *, check: bool = True, seconds: float = 60) -> commands.Finished:
        """Run a program in this host to its end."""
        return commands.run([*self._enter(), *argv], check=check, seconds=seconds)

    def exec_here(self, argv: Sequence[str]) -> int:
        """Run a program in this host with this terminal; returns its exit status."""
        return subprocess.run([str(word) for word in (*self._enter(), *argv)], check=False).returncode

    def partition(self, direction: Direction = Direction.BOTH) -> None:
        """Cut it off from the lab's network: other hosts and the API server."""
        self.network.switch.cut(self.network.cable(self.state.number), direction=direction)

    def heal(self) -> None:
        """Undo every cut between it and other hosts or the API server."""
        self.network.switch.heal(self.network.cable(self.state.number))

    def _init(self) -> Identity:
        identity = self.daemon("init").identity()
        if identity is None:
            raise LabError(f"host {self.name} is off; `kumulus-lab host start {self.name}` boots it")
        return identity

    def _enter(self) -> list[str]:
        # Root and working directory too: the lab may itself run in a chroot.
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        return ["nsenter", f"--target={self._init().pid}", *spaces]

    def _boot(self) -> None:
        marker = self.directory / "init"
        marker.unlink(missing_ok=True)
        starter = Daemon.within(self.lab_directory, f"{self.name}-boot")
        entered = starter.start(
            [
                "nsenter",
                f"--net=/run/netns/{self.network.namespace(self.name)}",
                "unshare",
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "bash",
                _BOOT,
                self.directory,
                self.name,
                self.lab_directory / "shared",
            ]
        )
        deadline.until(marker.exists, f"the boot of {self.name}", seconds=20, every=0.01, alive=starter.ended)
        identity = Identity.of(int(marker.read_text()))
        if identity is None or not entered.alive():
            raise LabError(f"host {self.name} ended while booting; its log is {starter.log}")
        self.daemon("init").adopt(identity, ["init"])

    def _clear(self) -> None:
        """Remove what a host that is off leaves: records, stray processes of a cut start, cable, namespace."""
        for service in ("agent", "libvirtd", "virtlogd", *openvswitch.DAEMONS, "init", "boot"):
            daemon = Daemon.within(self.lab_directory, f"{self.name}-{service}")
            if service == "boot" and (identity := daemon.identity()) is not None:
                gone(identity, 5)
            daemon.kill()
        end_all_within(self.network.namespace(self.name))
        self.network.remove_host(self.name, self.state.number)

    def _configure(self) -> None:
        """libvirt's configuration: the distribution's, with what makes this host its own."""
        etc = self.directory / "etc/libvirt"
        if not etc.exists():
            draft = self.directory / "etc/libvirt.new"
            shutil.rmtree(draft, ignore_errors=True)
            source = Path("/etc/libvirt")
            if source.is_dir():
                shutil.copytree(source, draft, symlinks=True)
            shutil.rmtree(draft / "qemu", ignore_errors=True)
            draft.mkdir(parents=True, exist_ok=True)
            (draft / "libvirtd.conf").write_text(_LIBVIRTD.format(uuid=uuid.uuid4()))
            (draft / "qemu.conf").write_text(_QEMU.format(address=self.address))
            draft.rename(etc)
        self.state_directory.mkdir(parents=True, exist_ok=True)


def end_all_within(namespace: str) -> None:
    """Kill every process in a network namespace of the lab, recorded or not."""
    try:
        wanted = Path("/run/netns", namespace).stat().st_ino
    except FileNotFoundError:
        return
    found: list[Identity] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino == wanted:
                found += filter(None, [Identity.of(int(entry.name))])
    end(found)
