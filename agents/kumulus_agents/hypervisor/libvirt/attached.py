"""The disks of a domain as libvirt tells them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.domain import AttachedDisk, AttachedDrive, AttachedNic, Growth
from kumulus_agents.hypervisor.libvirt import adopted, iotune, sources
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.source import DiskSource

GUEST_AGENT = "org.qemu.guest_agent.0"
"""Name of the port that a guest's agent opens."""

TARGETS = "abcdefghijklmnopqrstuvwxyz"
"""Last letters of device names."""

VOLUME_ALIAS = "ua-volume-"
"""A disk that is a volume has an alias of this and the volume's uid; "ua-" keeps libvirt from giving its own."""

DRIVE_ALIAS = "ua-drive-"
"""A CD-ROM drive that a user asked for has an alias of this and its name."""

NIC_ALIAS = "ua-nic-"
"""An interface has an alias of this and its uid."""

MEMORY_UNIT = 1 << 20
"""QEMU is given memory in whole MiB; libvirt rounds up. Bytes."""

_CACHES = frozenset(CacheMode)
_ALIAS = re.compile(f"{VOLUME_ALIAS}([0-9a-f-]{{36}})")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a domain is; None where its XML does not say."""

    cpus: int | None = None
    memory: int | None = None
    """Bytes; of what came while it is on, what the guest has taken."""
    growth: Growth | None = None


UNKNOWN_SIZE = Size()


def size(root: Element) -> Size:
    """The size in a domain's XML. libvirt writes memory in KiB."""
    vcpu, memory = root.find("vcpu"), _bytes(root.find("memory"))
    most = int(vcpu.text or 0) if vcpu is not None else None
    cpus = int(vcpu.get("current") or most or 0) if vcpu is not None else None
    device = root.find("devices/memory[@model='virtio-mem']")
    if cpus is None or most is None or memory is None:
        return Size(cpus, memory)
    if device is None:
        return Size(cpus, memory, Growth(most, memory, memory, memory) if most > cpus else None)
    room, asked, taken = (_bytes(device.find(f"target/{name}")) or 0 for name in ("size", "requested", "current"))
    least = memory - room  # libvirt counts all that could come
    return Size(cpus, least + taken, Growth(most, least, least + asked, memory))


def squeezed(root: Element) -> bool:
    """Whether the guest has given memory back that is its own (`virsh setmem`). One that was adopted is as it was."""
    if root.find("devices/memory") is not None or adopted.name_of(root) is not None:
        return False
    now, whole = root.findtext("currentMemory"), root.findtext("memory")
    return now is not None and whole is not None and int(now) < int(whole)


def memory_xml(domain_xml: str, asked: int) -> str | None:
    """The device by which memory comes and goes, asking the guest to have so many bytes in all; None when there is none."""
    root = _root(domain_xml)
    device, growth = root.find("devices/memory[@model='virtio-mem']"), size(root).growth
    requested = device.find("target/requested") if device is not None else None
    if device is None or requested is None or growth is None:
        return None
    requested.text, requested.attrib["unit"] = str((asked - growth.memory_least) // 1024), "KiB"
    target = device.find("target")
    current = target.find("current") if target is not None else None
    if target is not None and current is not None:
        target.remove(current)
    return ElementTree.tostring(device, encoding="unicode")


def _bytes(element: Element | None) -> int | None:
    """libvirt writes amounts in KiB."""
    return int(element.text) * 1024 if element is not None and element.text else None


def disks(root: Element) -> tuple[AttachedDisk, ...]:
    """The disks in a domain's XML that have a source; not what is in CD-ROM drives that a user asked for."""
    found = []
    for element in root.iterfind("devices/disk"):
        path = adopted.path_of(element)
        if path is not None and _drive(element) is None:
            serial = adopted.known_as(element, "name") or element.findtext("serial") or ""
            copied_to = _copied_to(element)
            found.append(AttachedDisk(serial, path, _volume(element), iotune.read(element), _cache(element), copied_to))
    return tuple(found)


def drives(root: Element) -> tuple[AttachedDrive, ...]:
    """The CD-ROM drives in a domain's XML that a user asked for."""
    found = []
    for element in root.iterfind("devices/disk"):
        if (name := _drive(element)) is not None:
            found.append(AttachedDrive(name, sources.path_of(element)))
    return tuple(found)


def open_drives(domain_xml: str) -> frozenset[str]:
    """Names of the CD-ROM drives whose tray libvirt takes for open."""
    elements = _root(domain_xml).iterfind("devices/disk")
    found = ((_drive(element), element.find("target")) for element in elements)
    return frozenset(name for name, target in found if name is not None and _is_open(target))


def nics(root: Element) -> tuple[AttachedNic, ...]:
    """The interfaces of Kumulus in a domain's XML."""
    found = []
    for element in root.iterfind("devices/interface"):
        mac, target = element.find("mac"), element.find("target")
        if (uid := _nic(element)) is not None and mac is not None and target is not None:
            device = adopted.known_as(element, "device") or target.get("dev") or ""
            found.append(AttachedNic(uid, mac.get("address", ""), device, _is_elsewhere(element)))
    return tuple(found)


def _is_elsewhere(element: Element) -> bool:
    """Whether it is plugged into what it was when it was somebody else's, and could be plugged into ours."""
    ours, done = adopted.known_as(element, "bridge"), adopted.known_as(element, "plugged")
    return ours is not None and done is None and can_be_replugged(element)


def can_be_replugged(element: Element) -> bool:
    """Whether it is a tap on a bridge of the kernel, with a name: libvirt puts such a one into another bridge."""
    source, target = element.find("source"), element.find("target")
    on_bridge = element.get("type") in ("bridge", "network") and source is not None and source.get("bridge")
    return bool(on_bridge and target is not None and target.get("dev") and element.find("virtualport") is None)


def nic_xml(domain_xml: str, uid: str) -> str | None:
    """The interface of that uid, as the domain has it, or None."""
    for element in _root(domain_xml).iterfind("devices/interface"):
        if _nic(element) == uid:
            return adopted.as_libvirt_knows(element)
    return None


def with_disc(domain_xml: str, drive: str, disc: DiskSource | None) -> str | None:
    """The drive as the domain has it, with another disc in it or empty; None when it has no such drive, or is so already."""
    for element in _root(domain_xml).iterfind("devices/disk"):
        if _drive(element) != drive:
            continue
        if sources.path_of(element) == (disc.path if disc is not None else None):
            return None
        for tag in ("source", "backingStore"):
            for child in element.findall(tag):
                element.remove(child)
        if disc is not None:
            sources.add(element, disc)
        driver = element.find("driver")
        if driver is not None:
            driver.set("type", "raw")  # of an empty drive libvirt forgets it
        target = element.find("target")
        if target is not None:
            target.attrib.pop("tray", None)  # it may move until libvirt reads this, which takes none for any
        return ElementTree.tostring(element, encoding="unicode")
    return None


def with_volumes_of(domain_xml: str, other_xml: str) -> str:
    """The domain, with those of its disks that are volumes as the other definition has them now: their file, or what it
    stands on, may have changed while the domain was off. Raises `LookupError` with the name of one that it has not got."""
    root, other = _root(domain_xml), _root(other_xml)
    now = {_volume(element): element for element in other.iterfind("devices/disk")}
    for element in root.iterfind("devices/disk"):
        volume = _volume(element)
        if volume is None:
            continue
        found = now.get(volume)
        if found is None:
            raise LookupError(element.findtext("serial") or volume)
        element.set("type", found.get("type", "file"))
        for tag in ("driver", "source", "backingStore", "mirror"):
            for child in element.findall(tag):
                element.remove(child)
            if tag != "mirror":
                element.extend(found.findall(tag))
    return ElementTree.tostring(root, encoding="unicode")


def target_of(domain_xml: str, volume: str) -> str | None:
    """Device name of the disk that is this volume, or None when the domain has not got it."""
    element = _find(domain_xml, volume)
    return None if element is None else _target(element)


def xml_of(domain_xml: str, volume: str) -> str | None:
    """The disk that is this volume, as the domain has it, or None."""
    element = _find(domain_xml, volume)
    return None if element is None else adopted.as_libvirt_knows(element)


def targets(domain_xml: str) -> tuple[str, ...]:
    """Device names of all its disks."""
    return tuple(_target(element) for element in _root(domain_xml).iterfind("devices/disk"))


def paths(domain_xml: str) -> dict[str, str]:
    """What its disks are written to, by device name."""
    found = {_target(element): adopted.path_of(element) for element in _root(domain_xml).iterfind("devices/disk")}
    return {target: path for target, path in found.items() if path is not None}


def chain_of(domain_xml: str, volume: str) -> tuple[str, ...]:
    """The files that the disk which is this volume is made of, from the top; nothing when the domain has not got it."""
    disk, found = _find(domain_xml, volume), list[str]()
    at = disk
    while disk is not None and at is not None and (path := sources.path_of(at)) is not None:
        found.append(adopted.ours(disk, path))
        at = at.find("backingStore")
    return tuple(found)


def called(domain_xml: str, volume: str, path: str) -> str:
    """What libvirt calls a file of the chain of that volume."""
    disk = _find(domain_xml, volume)
    return adopted.theirs(disk, path) if disk is not None else path


def copied_to(domain_xml: str, volume: str) -> str | None:
    """Path of what the disk that is this volume is being copied to."""
    element = _find(domain_xml, volume)
    return None if element is None else _copied_to(element)


def is_direct(domain_xml: str, volume: str) -> bool:
    """Whether the disk that is this volume is used past the host's memory."""
    element = _find(domain_xml, volume)
    return element is not None and _cache(element) in (CacheMode.NONE, CacheMode.DIRECTSYNC)


def has_caught_up(domain_xml: str, volume: str) -> bool:
    """Whether a copy, or a merge of the file that is written, has caught up with the guest."""
    element = _find(domain_xml, volume)
    mirror = element.find("mirror") if element is not None else None
    return mirror is not None and mirror.get("ready") == "yes"


def has_agent(domain_xml: str) -> bool:
    """Whether the guest has opened the port of its agent, as libvirt tells of a domain that is on."""
    return agent_is_there(_root(domain_xml))


def agent_is_there(root: Element) -> bool:
    """The same, of XML that was read."""
    found = root.iterfind("devices/channel/target")
    return any(port.get("name") == GUEST_AGENT and port.get("state") == "connected" for port in found)


def free_target(domain_xmls: Sequence[str]) -> str:
    """The first device name for a SCSI disk that none of these definitions of a domain has. Raises `HypervisorError`."""
    taken = {_target(element) for xml in domain_xmls for element in _root(xml).iterfind("devices/disk")}
    for letter in TARGETS:
        if f"sd{letter}" not in taken:
            return f"sd{letter}"
    raise too_many()


def too_many() -> HypervisorError:
    """There is no name for one more disk."""
    return HypervisorError("A machine can have at most 26 disks.", reason="InvalidDomain", retryable=False)


def _find(domain_xml: str, volume: str) -> Element | None:
    found = (element for element in _root(domain_xml).iterfind("devices/disk") if _volume(element) == volume)
    return next(found, None)


def _volume(element: Element) -> str | None:
    if (known := adopted.known_as(element, "volume")) is not None:
        return known
    alias = element.find("alias")
    match = _ALIAS.fullmatch(alias.get("name", "")) if alias is not None else None
    return match[1] if match is not None else None


def _copied_to(element: Element) -> str | None:
    mirror = element.find("mirror")
    return sources.path_of(mirror) if mirror is not None and mirror.get("job") == "copy" else None


def _cache(element: Element) -> CacheMode | None:
    driver = element.find("driver")
    cache = driver.get("cache") if driver is not None else None
    return CacheMode(cache) if cache in _CACHES else None


def _drive(element: Element) -> str | None:
    alias = element.find("alias")
    name = alias.get("name", "") if alias is not None else ""
    return name.removeprefix(DRIVE_ALIAS) if name.startswith(DRIVE_ALIAS) else None


def _is_open(target: Element | None) -> bool:
    return target is not None and target.get("tray") == "open"


def _nic(element: Element) -> str | None:
    if (known := adopted.known_as(element, "uid")) is not None:
        return known
    alias = element.find("alias")
    name = alias.get("name", "") if alias is not None else ""
    return name.removeprefix(NIC_ALIAS) if name.startswith(NIC_ALIAS) else None


def _target(element: Element) -> str:
    target = element.find("target")
    return target.get("dev", "") if target is not None else ""


def _root(domain_xml: str) -> Element:
    return adopted.note(ElementTree.fromstring(domain_xml))  # noqa: S314  # libvirt wrote it
