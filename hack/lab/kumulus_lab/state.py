"""What was decided for a lab when it was made, so that a later command finds the same ports and addresses.

Facts (what runs, what answers) are never stored here; they are looked up.
"""

from __future__ import annotations

import re
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kumulus_lab import places
from kumulus_lab.cuts import API, OUTSIDE
from kumulus_lab.errors import LabError

_NAME = re.compile(r"^[a-z][a-z0-9]{0,7}$")
_HOST_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
DEFAULT = "demo"
ZONE = "z1"


class Hypervisor(StrEnum):
    """What runs machines on the hosts of a lab."""

    LIBVIRT = "libvirt"
    SIMULATED = "simulated"


class Networking(StrEnum):
    """What makes networks of machines that name no class."""

    LINUX = "linux"
    OVN = "ovn"
    """Hosts have Open vSwitch and OVN; networks of a class with the driver `linux` can be made there, too."""


class HostState(BaseModel):
    """One libvirt host: its name, and the number its address and its cable are made from."""

    model_config = ConfigDict(frozen=True)

    name: str
    number: int
    zone: str = ZONE


class LabState(BaseModel):
    """One lab."""

    name: str
    hypervisor: Hypervisor
    cluster_ports: tuple[int, int, int, int]
    """etcd's for clients and for peers, the API server's, the controller manager's."""
    http_port: int
    """Health and metrics of the controllers."""
    fleet_port: int
    """Health and metrics of the simulated hosts."""
    image_port: int
    subnet: str | None = None
    """The hosts' network, such as 10.213.7.0/24; None where there are only simulated hosts."""
    networking: Networking = Networking.LINUX
    kind: bool = False
    """Whether the cluster is kind's rather than our own."""
    hosts: tuple[HostState, ...] = ()
    simulated: int = Field(default=0, ge=0)

    @property
    def ports(self) -> tuple[int, ...]:
        """All ports of it."""
        return (*self.cluster_ports, self.http_port, self.fleet_port, self.image_port)

    def host(self, name: str) -> HostState:
        """The host of that name. Raises LabError when there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts) or "none"
        raise LabError(f"lab {self.name} has no libvirt host {name}; its hosts are: {known}")


def directory(name: str) -> Path:
    """Where a lab keeps its files. Raises LabError when the name cannot become the name of a bridge."""
    if not _NAME.match(name):
        raise LabError(f"'{name}' cannot name a lab: use 1 to 8 small letters and digits, a letter first")
    return places.labs() / name


def check_host_name(name: str) -> None:
    """Raises LabError when a host cannot have that name."""
    if name in (API, OUTSIDE):
        raise LabError(f"'{name}' cannot name a host: it names an end of a link; choose another")
    if not _HOST_NAME.match(name):
        raise LabError(f"'{name}' cannot name a host: use up to 40 small letters, digits and dashes, a letter first")


def load(name: str) -> LabState | None:
    """The lab of that name; None when there is none."""
    try:
        return LabState.model_validate_json((directory(name) / "lab.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LabError(
            f"{directory(name) / 'lab.json'} is damaged; `kumulus-lab down --name {name}` clears it"
        ) from error


def everybody() -> list[LabState]:
    """Every lab of this checkout whose record can be read."""
    found = []
    for record in places.labs().glob("*/lab.json"):
        with suppress(OSError, ValueError):
            found.append(LabState.model_validate_json(record.read_text()))
    return found


def save(state: LabState) -> None:
    """Write it down, in one step."""
    home = directory(state.name)
    home.mkdir(parents=True, exist_ok=True)
    draft = home / "lab.json.new"
    draft.write_text(state.model_dump_json(indent=2))
    draft.replace(home / "lab.json")
