"""CPUs and memory that come while a domain is on: how they are rendered, and given. https://libvirt.org/formatdomain.html

CPUs are hot-plugged. Memory is a virtio-mem device, of which the guest takes as much as it is asked to: it says how
much that is, gives back what it can, and one of any size does, where a DIMM can neither be asked nor given back and
takes one of a few slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt

from kumulus_agents.hypervisor.domain import DomainSpec, Growth
from kumulus_agents.hypervisor.libvirt import attached, verbs
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle

BLOCK = 128 << 20
"""Linux takes memory on x86 in blocks of this size, in bytes; of less than a whole one it takes nothing."""
UNIT = 2 << 20
"""The smallest piece that QEMU gives, in bytes."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a domain can get while it is on."""

    cpus: int
    memory: int = 0
    """Bytes beside those that it begins with."""


def room(spec: DomainSpec) -> Room:
    """The room that the definition of the machine has."""
    more = max((spec.max_memory or 0) - spec.memory, 0)
    return Room(max(spec.cpus, spec.max_cpus or 0), -(-more // BLOCK) * BLOCK)


def begun(spec: DomainSpec) -> attached.Size:
    """The size of a domain that was just started, as `attached.size` finds it."""
    least, has = -(-spec.memory // attached.MEMORY_UNIT) * attached.MEMORY_UNIT, room(spec)
    if not has.memory and has.cpus == spec.cpus:
        return attached.Size(spec.cpus, least)
    return attached.Size(spec.cpus, least, Growth(has.cpus, least, least, least + has.memory))


def head(domain: Element, spec: DomainSpec) -> None:
    """What the definition says of the size."""
    has, least = room(spec), -(-spec.memory // attached.MEMORY_UNIT) * attached.MEMORY_UNIT
    if has.memory:
        SubElement(domain, "maxMemory", slots="1", unit="b").text = str(least + has.memory)
    SubElement(domain, "memory", unit="b").text = str(least + has.memory if has.memory else spec.memory)
    vcpu = SubElement(domain, "vcpu", placement="static")
    vcpu.text = str(has.cpus)
    if has.cpus > spec.cpus:
        vcpu.set("current", str(spec.cpus))


def cell(cpu: Element, spec: DomainSpec) -> None:
    """Memory comes into a NUMA cell, of which there has to be one."""
    has = room(spec)
    if has.memory:
        numa = SubElement(cpu, "numa")
        least = -(-spec.memory // attached.MEMORY_UNIT) * attached.MEMORY_UNIT
        cpus = f"0-{has.cpus - 1}" if has.cpus > 1 else "0"
        SubElement(numa, "cell", id="0", cpus=cpus, memory=str(least), unit="b")


def device(devices: Element, spec: DomainSpec) -> None:
    """By which memory comes."""
    has = room(spec)
    if has.memory:
        target = SubElement(SubElement(devices, "memory", model="virtio-mem"), "target")
        SubElement(target, "size", unit="b").text = str(has.memory)
        SubElement(target, "node").text = "0"
        SubElement(target, "block", unit="b").text = str(UNIT)
        SubElement(target, "requested", unit="b").text = "0"


def resize(cpus: int, memory: int, handle: DomainHandle) -> None:
    """See `protocol.Hypervisor.resize`."""
    if not handle.isActive():
        return
    with verbs.tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        xml = handle.XMLDesc(0)
        has = attached.size(ElementTree.fromstring(xml))  # noqa: S314  # libvirt wrote it
        if has.growth is None:
            return
        if (has.cpus or cpus) < cpus <= has.growth.cpus:
            handle.setVcpusFlags(cpus, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        asked = has.growth.memory(memory)
        if asked is not None and asked != has.growth.memory_asked and (found := attached.memory_xml(xml, asked)):
            handle.updateDeviceFlags(found, libvirt.VIR_DOMAIN_AFFECT_LIVE)
