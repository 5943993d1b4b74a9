"""One lab: a control plane, hosts, Kumulus' own processes, brought up and taken down as a whole.

Every method looks at what there is and does the rest, so each may be repeated after a crash at any line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kumulus_lab import binaries, images, kind, machine, network, openvswitch, outside, places, ports, state
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.controlplane import ControlPlane
from kumulus_lab.errors import LabError
from kumulus_lab.host import LibvirtHost, end_all_within
from kumulus_lab.kind import KindCluster
from kumulus_lab.network import Network
from kumulus_lab.processes import Daemon, end, owned
from kumulus_lab.services import Services
from kumulus_lab.state import HostState, Hypervisor, LabState, Networking

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a lab shall have. Hosts are added to those it has, never taken away."""

    hosts: int = 2
    hypervisor: Hypervisor = Hypervisor.LIBVIRT
    controllers: bool = True
    agents: bool = True
    simulated: int = 0
    """Simulated hosts besides; all there are where the hypervisor is simulated."""
    networking: Networking | None = None
    """None: as it is; `linux` in a new lab."""


class Lab:
    """A lab by its name."""

    def __init__(self, name: str = state.DEFAULT, say: Say = lambda _: None, data: Path | None = None) -> None:
        """`data`: what its etcd begins with instead of an installation of Kumulus, of `installed.ensure`."""
        self.name = name
        self._data = data
        self.directory = state.directory(name)
        os.environ["PATH"] = machine.path()
        self._say = say

    @property
    def state(self) -> LabState:
        """What was decided for it. Raises LabError when there is no such lab."""
        found = state.load(self.name)
        if found is None:
            raise LabError(f"there is no lab {self.name}; `kumulus-lab up --name {self.name}` makes one")
        return found

    @property
    def exists(self) -> bool:
        """Whether anything of it was made."""
        return self.directory.exists()

    @cached_property
    def binaries(self) -> binaries.Binaries:
        """The Kubernetes programs."""
        return binaries.ensure(self._say)

    @property
    def network(self) -> Network | None:
        """The hosts' network; None where there are only simulated hosts."""
        subnet = self.state.subnet
        return Network(lab=self.name, subnet=subnet) if subnet else None

    @property
    def control_plane(self) -> ControlPlane:
        """The Kubernetes cluster, whatever runs it."""
        if not self.state.kind:
            return self.cluster
        network_ = self.network
        address = network_.address if network_ else None
        return KindCluster(self.name, self.directory, self.state.cluster_ports[2], address)

    @property
    def cluster(self) -> NativeCluster:
        """The control plane as processes of our own, which can be stopped, killed and frozen one by one."""
        if self.state.kind:
            raise LabError(f"lab {self.name} runs on kind, which does not let its parts be handled one by one")
        network_ = self.network
        return NativeCluster(
            directory=self.directory,
            binaries=self.binaries,
            ports=self.state.cluster_ports,
            address=network_.address if network_ else None,
        )

    @property
    def kubeconfig(self) -> Path:
        """Credentials of an administrator."""
        return self.directory / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every request to the API server, one JSON object a line."""
        return self.directory / "logs" / "audit.log"

    @property
    def services(self) -> Services:
        """Kumulus' own processes."""
        return Services(
            directory=self.directory,
            state=self.state,
            cluster=self.control_plane,
        )

    @property
    def hosts(self) -> list[LibvirtHost]:
        """The libvirt hosts."""
        return [self._host(host) for host in self.state.hosts]

    def host(self, name: str) -> LibvirtHost:
        """The libvirt host of that name. Raises LabError when there is none."""
        return self._host(self.state.host(name))

    def _host(self, host: HostState) -> LibvirtHost:
        network_ = self.network
        if network_ is None:
            raise LabError(f"lab {self.name} has no network for libvirt hosts")
        ovn = self.state.networking is Networking.OVN
        return LibvirtHost(lab_directory=self.directory, network=network_, state=host, ovn=ovn)

    @property
    def image_url(self) -> str:
        """Where the lab serves guest images, without a slash at the end."""
        network_ = self.network
        address = network_.image_address if network_ else "127.0.0.1"
        return f"http://{address}:{self.state.image_port}"

    @property
    def image_directory(self) -> Path:
        """The files that are served."""
        return self.directory / "images"

    def up(self, wanted: Wanted) -> None:
        """Everything wanted is there and answers."""
        self._decide(wanted)
        if (network_ := self.network) is not None:
            network_.ensure()
        self._say("control plane")
        installing = wanted.controllers or wanted.agents
        data = self._data if not self.state.kind else None
        installed = installing and data is not None and self.cluster.begin_with(data)
        self.control_plane.start()
        self.start_image_server()
        self.start_world_server()
        if installing:
            self._say("kinds, roles and admission policies")
            if not installed:
                self.services.install()
            self.services.offer_networks()
        if wanted.controllers:
            self._say("controllers")
            self.services.start_controllers()
        for host in self.hosts:
            self._say(f"host {host.name}")
            self.start_host(host.name, agent=wanted.agents)
        if wanted.agents:
            self.services.start_fleet()
            if wanted.controllers:
                self._say("agents")
                self.services.wait_for_hosts([*(host.name for host in self.hosts), *self.services.simulated_hosts()])

    def add_host(self, name: str, *, agent: bool = True) -> LibvirtHost:
        """One more libvirt host."""
        state.check_host_name(name)
        current = self.state
        if self.network is None:
            raise LabError(f"lab {self.name} has simulated hosts only; make another lab for libvirt hosts")
        if name not in {host.name for host in current.hosts}:
            number = max((host.number for host in current.hosts), default=0) + 1
            hosts = (*current.hosts, HostState(name=name, number=number))
            state.save(current.model_copy(update={"hosts": hosts}))
        return self.start_host(name, agent=agent)

    def start_host(self, name: str, *, agent: bool = True) -> LibvirtHost:
        """The host is on, has joined, and runs its agent."""
        host = self.host(name)
        host.power_on()
        if agent:
            self.services.join(host)
            self.services.start_agent(host)
        return host

    def kill_host(self, name: str) -> None:
        """Cut a host's power."""
        self.host(name).power_off()

    def start_image_server(self) -> None:
        """Guest images are served to the hosts."""
        self.image_directory.mkdir(parents=True, exist_ok=True)
        network_ = self.network
        Daemon.within(self.directory, "images").start(
            [
                sys.executable,
                "-m",
                "kumulus_lab.imageserver",
                f"--address={network_.image_address if network_ else '127.0.0.1'}",
                f"--port={self.state.image_port}",
                f"--directory={self.image_directory}",
            ],
        )

    def start_world_server(self) -> None:
        """In the network outside somebody answers requests, with the address that they come from."""
        if (network_ := self.network) is not None:
            argv = [sys.executable, "-m", "kumulus_lab.worldserver", f"--port={outside.PORT}"]
            Daemon.within(self.directory, "outside").start([*network_.outside.enter, *argv])

    def serve_image(self, name: str) -> images.GuestImage:
        """A guest image of the cache is on the lab's image server; made when it is not in the cache."""
        image = images.ensure(name, self._say)
        target = self.image_directory / f"{name}.qcow2"
        if not target.exists() or not target.samefile(image.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(image.path)
        return image

    def down(self) -> None:
        """Nothing of it is left: no process, namespace, bridge, mount or file. Needs none of its records."""
        if shutil.which("kind"):
            KindCluster(self.name, self.directory, port=0).remove()
        records = sorted((self.directory / "run").glob("*.json"))
        recorded = [Daemon.within(self.directory, record.stem).identity() for record in records]
        end([*filter(None, recorded), *owned(self.directory)])
        if os.geteuid() == 0 and shutil.which("ip"):
            for namespace in network.namespaces(self.name):
                end_all_within(namespace)
            network.remove_everything(self.name)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise LabError(f"{self.directory} cannot be removed; remove it by hand")
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def _decide(self, wanted: Wanted) -> None:
        libvirt = wanted.hypervisor is Hypervisor.LIBVIRT
        if libvirt and wanted.hosts and (why := machine.why_no_libvirt()) is not None:
            raise LabError(why)
        if wanted.networking is Networking.OVN:
            if not libvirt:
                raise LabError("simulated hosts have no networks; `--network ovn` is for libvirt hosts")
            if (why := openvswitch.why_none(machine.path())) is not None:
                raise LabError(why)
        simulated = wanted.simulated if libvirt else wanted.hosts
        found = state.load(self.name)
        if found is not None and found.hypervisor is not wanted.hypervisor:
            raise LabError(
                f"lab {self.name} runs {found.hypervisor} hosts; `kumulus-lab down --name {self.name}` first,"
                " or choose another name"
            )
        if found is not None and wanted.networking not in (None, found.networking):
            raise LabError(
                f"networks of lab {self.name} are made by {found.networking}; `kumulus-lab down --name {self.name}` first,"
                " or choose another name"
            )
        if found is None:
            with places.exclusive("lab"):
                found = self._new(wanted, with_network=libvirt and wanted.hosts > 0)
                state.save(found)
                if (network_ := self.network) is not None:
                    network_.ensure()
        missing = (wanted.hosts if libvirt else 0) - len(found.hosts)
        first = max((host.number for host in found.hosts), default=0) + 1
        new = [HostState(name=f"h{number}", number=number) for number in range(first, first + max(0, missing))]
        hosts = (*found.hosts, *new)
        state.save(found.model_copy(update={"hosts": hosts, "simulated": max(found.simulated, simulated)}))

    def _new(self, wanted: Wanted, *, with_network: bool) -> LabState:
        # A daemon that is not up yet, or down for a while, has its port all the same.
        chosen = ports.free(7, [port for other in state.everybody() for port in other.ports])
        return LabState(
            name=self.name,
            hypervisor=wanted.hypervisor,
            networking=wanted.networking or Networking.LINUX,
            cluster_ports=(chosen[0], chosen[1], chosen[2], chosen[3]),
            http_port=chosen[4],
            fleet_port=chosen[5],
            image_port=chosen[6],
            subnet=network.choose_subnet() if with_network else None,
            kind=kind.chosen(),
        )
