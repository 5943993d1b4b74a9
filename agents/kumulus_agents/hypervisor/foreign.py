"""Domains on a host that are not Kumulus' own, as a hypervisor shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForeignDisk:
    """A disk or drive of a domain that is not Kumulus' own."""

    target: str
    device: str | None = None
    bus: str | None = None
    kind: str | None = None
    """What its source is: file, block, network, volume, ..."""
    source: str | None = None
    """Path or name of that."""
    format: str | None = None
    read_only: bool = False
    layered: bool = False
    """It stands on other files."""
    pool: str | None = None
    """The StoragePool whose directory its file is in, as far as that was looked for."""
    data: str | None = None
    """The id by which a volume can be made of that file."""
    size: int | None = None
    """Bytes of the disk in that file, when it is qcow2."""
    name: str | None = None
    """Serial that the guest sees: of a machine's disk its name."""


@dataclass(frozen=True, slots=True)
class ForeignNic:
    """An interface of a domain that is not Kumulus' own."""

    mac: str
    kind: str | None = None
    """What it is plugged into: bridge, openvswitch, network, direct, ethernet, ..."""
    source: str | None = None
    """Name of that."""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ForeignShape:
    """What a domain that is not Kumulus' own consists of."""

    machine: str | None = None
    firmware: str | None = None
    """bios or efi."""
    disks: Sequence[ForeignDisk] = ()
    nics: Sequence[ForeignNic] = ()
    others: Sequence[str] = ()
    """What it has besides disks, interfaces, and what every domain has: `hostdev pci`, `filesystem`, `tpm`, `graphics vnc`, ..."""


@dataclass(frozen=True, slots=True)
class NotedNic:
    """What Kumulus knows of an interface, so that a host can be understood without the API server."""

    name: str
    """Of the interface within its machine."""
    uid: str
    """Of the NetworkInterface."""
    mac: str
    addresses: tuple[str, ...] = ()
    network: str | None = None
    """Namespace and name of its Network, with a slash between."""
    vni: int | None = None
    """Number of that network's VXLAN here."""
    vlan: int | None = None
    """Number of that network's VLAN here."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A machine that nobody orders any more, by the marks of its domain."""

    namespace: str
    name: str
    epoch: int
    nics: tuple[NotedNic, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignDomain:
    """A domain that is not Kumulus' own, or that nobody ordered. Reported, never touched."""

    uuid: str
    name: str
    state: str
    cpus: int | None = None
    memory: int | None = None
    """Bytes."""
    persistent: bool | None = None
    """Whether it has a definition, or is gone once it is off."""
    shape: ForeignShape = ForeignShape()
    machine: Orphan | None = None
    """The machine that it is of, when it is Kumulus' own, and no order is about it."""
