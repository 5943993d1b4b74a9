"""Of a guest that comes from another host: its size and what it is made of, held against this host's order. Pure.

What it was started with counts, not what it gets at its next start: the one is in the definition that the other host sends,
the other one in what this host has made of its order. Firmware is this host's own file, in which the variables that come
with the guest's memory are written; so is the state of its TPM, which comes from swtpm to swtpm.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from xml.etree.ElementTree import Element

from kumulus_agents.hypervisor.libvirt import allowlist, attached, growing, shaping
from kumulus_agents.hypervisor.libvirt.allowlist import COUNT, NUMBER, PATH, Rule

MOST_CPUS = 4096
KIB = {"unit": "KiB|b"}
HEX = r"0x[0-9a-f]{1,4}"
PCI = {"type": "pci", "domain": HEX, "bus": HEX, "slot": HEX, "function": HEX, "multifunction": "on"}

RULES: Mapping[str, Rule] = {
    "domain/maxMemory": Rule({"slots": "1", **KIB}, NUMBER),
    "domain/memory": Rule(KIB, NUMBER),
    "domain/currentMemory": Rule(KIB, NUMBER),
    "domain/os/loader": Rule({"readonly": "yes", "secure": "yes|no", "type": "pflash"}, PATH),
    "domain/vcpus": Rule(),
    "domain/vcpus/vcpu": Rule(
        {"id": COUNT, "enabled": "yes|no", "hotpluggable": "yes|no", "order": NUMBER}, most=MOST_CPUS
    ),
    "domain/cpu/numa/cell": Rule({"id": "0", "cpus": "0(-[1-9][0-9]{0,3})?", "memory": NUMBER, **KIB}),
    "domain/devices/memory/target/size": Rule(KIB, NUMBER),
    "domain/devices/memory/target/block": Rule(KIB, NUMBER),
    "domain/devices/memory/target/requested": Rule(KIB, COUNT),
    "domain/devices/memory/target/current": Rule(KIB, COUNT),
    "domain/devices/memory/address": Rule(PCI),
    "domain/devices/watchdog/address": Rule(PCI),
}
"""What a definition of libvirt's may have beside what this host itself makes."""

SHAPE = f"metadata/{{{shaping.NAMESPACE}}}shape"


class Unlike(Exception):
    """It is not what this host's order speaks of. The text is for the operator, and quotes nothing of what came."""


def size(guest: Element, own: Element) -> None:
    """Raises `Unlike` when the guest has another size than its order gives it, or can grow to another one."""
    try:
        theirs, mine = attached.size(_in_kib(guest)), attached.size(_in_kib(own))
        adds_up = _has_cells(guest, theirs)
    except (ValueError, TypeError) as error:
        raise Unlike("its size cannot be read") from error
    if not adds_up:
        raise Unlike("its size does not fit together")
    most, limit = theirs.growth, mine.growth
    if None in (theirs.cpus, theirs.memory, mine.memory) or theirs.cpus != mine.cpus:
        raise Unlike("it has another size than its order says: restart it before it moves")
    if (most is None) != (limit is None):
        raise Unlike("it can grow to another size than its order says: restart it before it moves")
    if most is None or limit is None:
        if theirs.memory != mine.memory:
            raise Unlike("it has another size than its order says: restart it before it moves")
        return
    if most.memory_asked != most.memory(limit.memory_asked):
        raise Unlike("it has another size than its order says: restart it before it moves")
    if most.cpus != limit.cpus or abs(most.memory_most - limit.memory_most) >= growing.BLOCK:
        raise Unlike("it can grow to another size than its order says: restart it before it moves")
    total, device = guest.findtext("memory"), guest.find("devices/memory")
    if (device is not None and guest.findtext("maxMemory") != total) or most.memory_least <= 0:
        raise Unlike("its size does not fit together")


def _has_cells(guest: Element, found: attached.Size) -> bool:
    """Whether the memory that it begins with is in one cell, where there is a device for more, and in none else: libvirt
    believes cells before it believes the sum."""
    cells, least = guest.findall("cpu/numa/cell"), found.growth.memory_least if found.growth is not None else None
    if guest.find("devices/memory") is None:
        return not cells
    units = {"KiB": 1024, "b": 1}
    return len(cells) == 1 and least == int(cells[0].get("memory", "")) * units.get(cells[0].get("unit", ""), 0)


def firmware(guest: Element, own: Element, loaders: Collection[str]) -> None:
    """What starts the guest is a file of this host: one of `loaders`. libvirt finds what its variables begin with by that
    file. Raises `Unlike` when there is none such, or its order says something else."""
    theirs, mine = guest.find("os"), own.find("os")
    if theirs is None or mine is None:
        raise Unlike("it does not say what starts it")
    loader = theirs.find("loader")
    if (loader is not None) != (mine.get("firmware") == "efi"):
        raise Unlike("it has another firmware than its order says")
    if loader is not None and loader.text not in loaders:
        raise Unlike("its firmware is not on this host: both hosts need the same package of it")
    theirs.attrib.clear()
    for tag in ("nvram", "firmware"):
        for child in theirs.findall(tag):
            theirs.remove(child)


def shape(guest: Element, own: Element) -> None:
    """Have this host's metadata say what the guest was started with. Raises `Unlike` when it cannot have been."""
    came, ordered = guest.find(SHAPE), own.find(SHAPE)
    if came is not None and next(allowlist.violations(came, allowlist.RULES, f"domain/{SHAPE}"), None):
        raise Unlike("what it says of its shape is not understood")
    was, wanted = shaping.recall(guest), shaping.recall(own)
    if (was.uefi, was.secure_boot) != (wanted.uefi, wanted.secure_boot) or (was.tpm and not wanted.tpm):
        raise Unlike("it has another firmware or TPM than its order says")
    metadata = own.find("metadata")
    assert metadata is not None
    if ordered is not None:
        metadata.remove(ordered)
    if came is not None:
        metadata.append(Element(came.tag, dict(came.attrib)))


def _in_kib(domain: Element) -> Element:
    """With amounts as libvirt writes them, that is in KiB, and whole units of memory."""
    found = copy.deepcopy(domain)
    for element in found.iter():
        if element.get("unit") == "b" and element.tag in ("memory", "maxMemory", "size", "requested", "current"):
            amount = int(element.text or "")
            element.text = str(-(-amount // attached.MEMORY_UNIT) * attached.MEMORY_UNIT // 1024)
            element.set("unit", "KiB")
    return found
