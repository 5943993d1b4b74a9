"""What libvirt says of the host, as an Inventory."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from kumulus.api.hardware import HostFeature
from kumulus_agents.hypervisor.libvirt import domain_xml
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle
from kumulus_agents.hypervisor.protocol import Inventory

ALL_CELLS = -1

FAMILY = "q35"
"""The machine types that domains of Kumulus can have."""


def read(handle: ConnectionHandle) -> Inventory:
    """What the host has, all but how guests are accelerated. Blocks. Raises `libvirtError`."""
    memory = handle.getMemoryStats(ALL_CELLS)["total"] * 1024
    return parse(handle.getCapabilities(), memory, version(handle.getLibVersion()), version(handle.getVersion()))


def read_offer(handle: ConnectionHandle, found: Inventory) -> Inventory:
    """The same, with what domains can have that are accelerated so. Blocks. Raises `libvirtError`."""
    kind = domain_xml.virtualisation(found.acceleration)
    return with_offer(found, handle.getDomainCapabilities(None, found.architecture, FAMILY, kind))


def with_offer(found: Inventory, domain_capabilities: str) -> Inventory:
    """The same, with what domains can have (https://libvirt.org/formatdomaincaps.html). Pure."""
    root = ElementTree.fromstring(domain_capabilities)  # noqa: S314  # libvirt wrote it
    efi = "efi" in _values(root, "os/enum[@name='firmware']")
    said = {
        HostFeature.UEFI: efi,
        HostFeature.SECURE_BOOT: efi and "yes" in _values(root, "os/loader/enum[@name='secure']"),
        HostFeature.TPM: "emulator" in _values(root, "devices/tpm[@supported='yes']/enum[@name='backendModel']"),
        HostFeature.WATCHDOG: True,
    }
    custom = root.findall("cpu/mode[@name='custom']/model[@usable='yes']")
    beyond = root.findall("cpu/mode[@name='host-model']/feature[@policy='require']")
    return replace(
        found,
        cpu_models=tuple(sorted(model.text for model in custom if model.text)),
        cpu_features=tuple(sorted(name for feature in beyond if (name := feature.get("name")))),
        features=frozenset(feature for feature, has in said.items() if has),
    )


def loaders(virtualisation: str, handle: ConnectionHandle) -> frozenset[str]:
    """The files of firmware that libvirt has descriptors of. Blocks. Raises `libvirtError`."""
    root = ElementTree.fromstring(handle.getDomainCapabilities(None, None, FAMILY, virtualisation))  # noqa: S314
    return frozenset(_values(root, "os/loader"))


def _values(root: ElementTree.Element, enum: str) -> set[str]:
    return {value.text or "" for value in root.findall(f"{enum}/value")}


def parse(capabilities: str, memory: int, hypervisor_version: str, emulator_version: str) -> Inventory:
    """An Inventory from libvirt's capabilities (https://libvirt.org/formatcaps.html). Pure."""
    root = ElementTree.fromstring(capabilities)  # noqa: S314  # libvirt wrote it
    architecture = root.findtext("host/cpu/arch")
    guest = f"guest[os_type='hvm']/arch[@name='{architecture}']"
    machines = {machine.text or "" for machine in root.findall(f"{guest}/machine")}
    cpus = root.findall("host/topology/cells/cell/cpus/cpu")
    return Inventory(
        cpus=len(cpus),
        memory=memory,
        cpu_model=root.findtext("host/cpu/model"),
        cpu_vendor=root.findtext("host/cpu/vendor"),
        architecture=architecture,
        hypervisor_version=hypervisor_version,
        emulator_version=emulator_version,
        machine_types=tuple(sorted(name for name in machines if FAMILY in name)),
    )


def emulator(capabilities: str) -> str | None:
    """Path of the emulator for the host's own architecture. Pure."""
    root = ElementTree.fromstring(capabilities)  # noqa: S314  # libvirt wrote it
    return root.findtext(f"guest[os_type='hvm']/arch[@name='{root.findtext('host/cpu/arch')}']/emulator")


def version(number: int) -> str:
    """libvirt's way to write a version in a number: major * 1,000,000 + minor * 1,000 + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
