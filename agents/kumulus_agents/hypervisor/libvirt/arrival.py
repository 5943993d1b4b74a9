"""The definition of a guest that comes from another host: what it can see as it was there, all else as it is here. Pure.

The other host sends the definition that its libvirt has. Whatever is in it is held against patterns; disks, taps, logs and
marks are put in from the definition that this host has made of its own order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from kumulus_agents.hypervisor.libvirt import allowlist, arrival_shape, disks_along, marks, sources
from kumulus_agents.hypervisor.libvirt.allowlist import NUMBER, Rule
from kumulus_agents.hypervisor.libvirt.arrival_shape import HEX, PCI


class Refused(Exception):
    """What another host wants is not done. The text is for the operator, and quotes nothing of what it said."""


DRIVE = {"type": "drive", "controller": "0", "bus": "0", "target": r"[0-9]{1,2}", "unit": r"[0-9]{1,2}"}
WORD = r"[A-Za-z0-9_.-]{1,64}"

RULES: Mapping[str, Rule] = {
    **allowlist.RULES,
    **arrival_shape.RULES,
    "domain/os/type": Rule({"arch": "x86_64", "machine": r"pc-q35-[a-z0-9.]{1,24}"}, "hvm"),
    "domain/features/tcg/tb-cache": Rule({"unit": "KiB|MiB"}, NUMBER),
    "domain/cpu": Rule({"mode": "host-model|maximum|custom", "match": "exact", "check": "none|partial|full"}),
    "domain/cpu/model": Rule({"fallback": "forbid|allow"}, WORD),
    "domain/cpu/vendor": Rule({}, "Intel|AMD|Hygon"),
    "domain/cpu/feature": Rule({"policy": "require|disable", "name": WORD}, most=512),
    "domain/devices/disk/address": Rule({**PCI, **DRIVE, "type": "pci|drive", "bus": f"0|{HEX}"}),
    "domain/devices/controller": Rule(
        {
            "type": "usb|scsi|pci|sata|virtio-serial",
            "index": "[0-9]{1,2}",
            "model": "none|virtio-scsi|pcie-root|pcie-root-port|pcie-to-pci-bridge",
        },
        most=64,
    ),
    "domain/devices/controller/model": Rule({"name": "pcie-root-port|pcie-pci-bridge"}),
    "domain/devices/controller/target": Rule({"chassis": r"[0-9]{1,3}", "port": HEX}),
    "domain/devices/controller/address": Rule(PCI),
    "domain/devices/interface/address": Rule(PCI),
    "domain/devices/serial/target/model": Rule({"name": "isa-serial"}),
    "domain/devices/channel/address": Rule({"type": "virtio-serial", "controller": "0", "bus": "0", "port": "1"}),
    "domain/devices/input": Rule({"type": "mouse|keyboard", "bus": "ps2"}, most=2),
    "domain/devices/audio": Rule({"id": "1", "type": "none"}),
    "domain/devices/memballoon/address": Rule(PCI),
    "domain/devices/rng/address": Rule(PCI),
}
"""What the other host's definition may have when all that is this host's own was taken out of it."""

OWN = ("resource", "seclabel")
"""Elements of a domain that are libvirt's own on each host."""


def definition(
    theirs: str, own: str, *, migration: str, loaders: Collection[str] = (), copied: frozenset[str] = frozenset()
) -> str:
    """The definition by which the guest is to come. `own` is what `domain_xml.render` makes of this host's order; `loaders`
    are the files of firmware that this host's libvirt knows, `copied` serials of the disks whose content comes with it, which
    stand on other files here.

    Raises `Refused`.
    """
    try:
        guest = ElementTree.fromstring(theirs)  # noqa: S314  # expat of this Python bounds what entities may grow to
    except ElementTree.ParseError as error:
        raise Refused("the other host's definition is no XML") from error
    mine = ElementTree.fromstring(own)  # noqa: S314  # this process wrote it
    for tag in ("name", "uuid", "vcpu"):
        if guest.findtext(tag) != mine.findtext(tag):
            raise Refused(f"its {tag} is not that of the machine which is to come")
    try:
        arrival_shape.size(guest, mine)
        arrival_shape.firmware(guest, mine, loaders)
        arrival_shape.shape(guest, mine)
    except arrival_shape.Unlike as error:
        raise Refused(str(error)) from error
    started = _started(guest)
    for tag in ("metadata", *OWN):
        for element in guest.findall(tag):
            guest.remove(element)
    devices, here = guest.find("devices"), mine.find("devices")
    if devices is None or here is None:
        raise Refused("the other host's definition has no devices")
    for element in devices.findall("emulator"):
        devices.remove(element)
    _disks(devices, here, copied)
    _interfaces(devices, here)
    _consoles(devices, here)
    guest.set("type", mine.get("type", ""))
    if found := next(allowlist.violations(guest, RULES), None):
        raise Refused(f"the other host's definition has {found}, which this one does not take")
    metadata = mine.find("metadata")
    if metadata is not None:
        guest.insert(2, metadata)
        metadata.append(arriving(migration))
        if started is not None:
            SubElement(metadata, f"{{{marks.RUN_NAMESPACE}}}run", {"startedAt": f"{started:.{marks.DECIMALS}f}"})
    return ElementTree.tostring(guest, encoding="unicode")


def arriving(migration: str) -> Element:
    """The element that says that a guest is to come."""
    return Element(f"{{{marks.ARRIVING_NAMESPACE}}}arriving", {"migration": migration})


def awaiting(own: str, migration: str) -> str:
    """This host's definition, for as long as its guest is not here."""
    root = ElementTree.fromstring(own)  # noqa: S314  # this process wrote it
    metadata = root.find("metadata")
    assert metadata is not None
    metadata.append(arriving(migration))
    return ElementTree.tostring(root, encoding="unicode")


def _started(guest: Element) -> float | None:
    element = guest.find(f"metadata/{{{marks.RUN_NAMESPACE}}}run")
    try:
        return float(element.get("startedAt", "")) if element is not None else None
    except ValueError:
        return None


def _disks(devices: Element, here: Element, copied: frozenset[str]) -> None:
    """Every disk with this host's source, and all that goes with it."""
    mine = {_identity(disk): disk for disk in here.findall("disk")}
    theirs = devices.findall("disk")
    if {_identity(disk) for disk in theirs} != mine.keys() or len(theirs) != len(mine):
        raise Refused("it has other disks than its order says")
    for disk in theirs:
        own = mine[_identity(disk)]
        alike = own.find("readonly") is not None or disks_along.is_one(own, copied)
        if not alike and list(_chain(disk)) != list(_chain(own)):
            raise Refused("a disk of it is made of other files there than here: it was changed meanwhile")
        if disk.find("target") is None or disk.find("mirror") is not None:
            raise Refused("a disk of it is being copied")
        disk.set("type", own.get("type", ""))
        for tag in ("driver", "source", "backingStore", "iotune"):
            for child in disk.findall(tag):
                disk.remove(child)
            disk.extend(own.findall(tag))


def _identity(disk: Element) -> tuple[str, str]:
    """Which disk of the machine it is: by its uid, or the name that its guest sees."""
    alias = disk.find("alias")
    name = alias.get("name", "") if alias is not None else ""
    return (name if name.startswith("ua-") else "", disk.findtext("serial") or "")


def _chain(disk: Element) -> Iterator[str | None]:
    at: Element | None = disk
    while at is not None and at.find("source") is not None:
        yield sources.path_of(at)
        at = at.find("backingStore")


def _interfaces(devices: Element, here: Element) -> None:
    """Every interface plugged in as this host does it."""
    mine = {_alias(nic): nic for nic in here.findall("interface")}
    theirs = devices.findall("interface")
    if {_alias(nic) for nic in theirs} != mine.keys() or len(theirs) != len(mine):
        raise Refused("it has other interfaces than its order says")
    for nic in theirs:
        own = mine[_alias(nic)]
        for tag in ("mac", "mtu", "model"):
            if _attributes(nic, tag) != _attributes(own, tag):
                raise Refused(f"an interface of it has another {tag} there than here")
        nic.set("type", own.get("type", ""))
        for tag in ("source", "virtualport", "target"):
            for child in nic.findall(tag):
                nic.remove(child)
            nic.extend(own.findall(tag))


def _alias(element: Element) -> str:
    alias = element.find("alias")
    return alias.get("name", "") if alias is not None else ""


def _attributes(element: Element, tag: str) -> Mapping[str, str]:
    child = element.find(tag)
    return child.attrib if child is not None else {}


def _consoles(devices: Element, here: Element) -> None:
    """Consoles are logged here; where libvirt connects them is its own."""
    log = here.find("serial/log")
    for device in (*devices.findall("serial"), *devices.findall("console"), *devices.findall("channel")):
        logged = device.find("log") is not None
        for tag in ("source", "log"):
            for child in device.findall(tag):
                device.remove(child)
        device.attrib.pop("tty", None)
        if logged and log is not None and device.tag == "serial":
            device.insert(0, log)
