"""UnmanagedInstance: a domain on a host that is not Kumulus' own. Part of fabric.kumulus.io, in the host's namespace."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from kumulus.api.base import AGE, VERSION, Column, Kind, Model, Resource, list_map
from kumulus.api.fabric import GROUP
from kumulus.api.quantity import Bytes

DEVICES_MOST = 32
"""So many disks, and so many interfaces, are shown of a domain."""
ARRIVING, DEPARTED = "arriving", "departed"
LEFTOVERS = frozenset({ARRIVING, DEPARTED})
"""In place of a state: what a machine's migration left of it, on the host that its guest was to come to, or has left."""


class UnmanagedDisk(Model):
    """A disk or drive of a domain."""

    target: str = Field(description="Name that libvirt gives it within the domain, such as vda.", max_length=32)
    device: str | None = Field(default=None, description="disk, cdrom, floppy or lun.", max_length=16)
    bus: str | None = Field(default=None, description="What it is connected to, such as virtio.", max_length=16)
    kind: str | None = Field(
        default=None, description="What its source is: file, block, network, volume, ...", max_length=16
    )
    source: str | None = Field(
        default=None, description="Path or name of its source, cut to 1024 characters.", max_length=1024
    )
    format: str | None = Field(default=None, description="Format of the source, such as qcow2.", max_length=16)
    read_only: bool | None = Field(default=None, description="Whether the guest can only read it.")
    layered: bool | None = Field(default=None, description="Whether it stands on other files.")
    pool: str | None = Field(default=None, description="The StoragePool whose directory its file is in.", max_length=63)
    data: str | None = Field(
        default=None,
        description="The id by which a Volume can be made of that file; empty of an ephemeral disk of a machine.",
        max_length=36,
    )
    size: Bytes | None = Field(default=None, description="Size of the disk in that file, when it is qcow2.")
    name: str | None = Field(
        default=None, description="Name of the disk within its machine, when the domain is of one.", max_length=63
    )


class UnmanagedNic(Model):
    """An interface of a domain."""

    mac_address: str = Field(description="Its MAC address.", max_length=17)
    kind: str | None = Field(
        default=None, description="What it is plugged into: bridge, network, direct, ethernet, ...", max_length=16
    )
    source: str | None = Field(
        default=None, description="Name of that bridge, network or device, cut to 253 characters.", max_length=253
    )
    model: str | None = Field(default=None, description="What the guest sees, such as virtio.", max_length=32)
    name: str | None = Field(
        default=None, description="Name of the interface within its machine, when the domain is of one.", max_length=63
    )
    addresses: tuple[Annotated[str, Field(max_length=45)], ...] = Field(
        default=(), description="Addresses that the machine had by it.", max_length=16
    )
    network: str | None = Field(
        default=None, description="The Network that it was in, as `<namespace>/<name>`.", max_length=317
    )
    vni: int | None = Field(default=None, description="Number of that network's VXLAN on the host.")
    vlan: int | None = Field(default=None, description="Number of that network's VLAN on the host.")


class UnmanagedMachine(Model):
    """The machine that a domain is of, as its metadata says."""

    namespace: str = Field(description="Namespace of the VirtualMachine.", max_length=63)
    name: str = Field(description="Name of it.", max_length=253)
    epoch: int = Field(description="The placement that the domain is of.")


class UnmanagedInstanceSpec(Model):
    """Empty: such a domain is told about, and nothing is wanted of it."""


class UnmanagedInstanceStatus(Model):
    """What the agent found."""

    name: str | None = Field(default=None, description="Name of the domain, cut to 253 characters.", max_length=253)
    state: str | None = Field(
        default=None,
        description="running, paused, shut off, ...; arriving or departed of what a machine's migration left.",
        max_length=32,
    )
    cpus: int | None = Field(default=None, description="Virtual CPUs.")
    memory: Bytes | None = Field(default=None, description="Memory.")
    machine_type: str | None = Field(default=None, description="Its machine type.", max_length=64)
    firmware: str | None = Field(default=None, description="bios, or efi.", max_length=16)
    persistent: bool | None = Field(
        default=None, description="Whether it has a definition; one that has not is gone once it is off."
    )
    machine: UnmanagedMachine | None = Field(
        default=None,
        description="The machine that it is of, when it is Kumulus' own and nobody orders it: its objects were lost.",
    )
    disks: tuple[UnmanagedDisk, ...] = Field(
        default=(),
        description="Its disks and drives; at most 32 are shown.",
        max_length=DEVICES_MOST,
        json_schema_extra=list_map("target"),
    )
    devices: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        default=(),
        description="What it has besides those and what every domain has, such as `hostdev pci` or `graphics vnc`; at most 32.",
        max_length=DEVICES_MOST,
    )
    nics: tuple[UnmanagedNic, ...] = Field(
        default=(), description="Its interfaces; at most 32 are shown.", max_length=DEVICES_MOST
    )


class UnmanagedInstance(Resource):
    """A domain on a host that is not Kumulus' own, or whose machine is no more, by its UUID. Kumulus leaves it alone. Written by
    the host's agent."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="UnmanagedInstance",
        plural="unmanagedinstances",
        short_names=("unmanaged",),
        categories=("kumulus-admin",),
        columns=(
            Column("Domain", ".status.name"),
            Column("State", ".status.state"),
            Column("CPUs", ".status.cpus", "integer"),
            Column("Memory", ".status.memory"),
            Column("Machine-Type", ".status.machineType", priority=1),
            Column("Firmware", ".status.firmware", priority=1),
            AGE,
        ),
    )

    spec: UnmanagedInstanceSpec = Field(default_factory=UnmanagedInstanceSpec, description="Empty.")
    status: UnmanagedInstanceStatus = Field(
        default_factory=UnmanagedInstanceStatus, description="What the agent found."
    )
