"""Disks that go along with a guest to another host (docs/adr/0037): which of its disks they are. Pure.

libvirt copies them by QEMU's mirror into the target's QEMU, which serves them by NBD until the guest has come. It names them
as the guest does (vda, sda); Kumulus names them by serial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from kumulus_agents.hypervisor.domain import DomainDisk
from kumulus_agents.hypervisor.libvirt.domain_xml import SERIAL_MAX

FLAGS = libvirt.VIR_MIGRATE_NON_SHARED_DISK | libvirt.VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES
"""How disks may be copied: in full, and with what the guest writes meanwhile going to both at once."""


class UnknownDisk(ValueError):
    """The guest has no such disk to copy, or two that are called so."""


def serials(names: Iterable[str]) -> frozenset[str]:
    """How the guest knows disks of these names."""
    return frozenset(name[:SERIAL_MAX] for name in names)


def of(disks: Sequence[DomainDisk]) -> frozenset[str]:
    """Serials of those disks of a machine that come with its guest."""
    return serials(disk.name for disk in disks if disk.copied)


def devices(xml: str, wanted: frozenset[str]) -> tuple[str, ...]:
    """What the guest of that definition calls the disks of these serials, in order. Raises `UnknownDisk`."""
    root = ElementTree.fromstring(xml)  # noqa: S314  # libvirt's own words, or this process'
    found = [disk for disk in root.iterfind("devices/disk") if is_one(disk, wanted)]
    targets = {disk.findtext("serial"): target.get("dev", "") for disk in found for target in disk.findall("target")}
    if targets.keys() != wanted or len(found) != len(wanted) or not all(targets.values()):
        raise UnknownDisk("a disk that is to be copied is not there, or there twice")
    return tuple(sorted(targets.values()))


def is_one(disk: Element, wanted: frozenset[str]) -> bool:
    """Whether the element is a disk that is written to, of one of these serials."""
    return disk.get("device") == "disk" and disk.find("readonly") is None and disk.findtext("serial") in wanted
