"""What Kumulus knows of a domain that it did not define, in the domain's metadata: its name, and which of its disks and
interfaces is which volume and interface. Pure.

The devices of a domain that is on keep the aliases that libvirt gave them, and a disk the path that somebody chose. So the
element `adopted`, in the persistent and the live definition, says of each what Kumulus' own domains say by alias; `note`
writes that into the XML as it was read, for whoever looks for a device. It is gone when the domain is defined anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from kumulus_agents.hypervisor.domain import AdoptedDisk, AdoptedNic
from kumulus_agents.hypervisor.libvirt import sources

NAMESPACE = "https://kumulus.io/xmlns/adopted/1"
PREFIX = "kumulus-adopted"
_PLACE = f"metadata/{{{NAMESPACE}}}adopted"
KNOWN_AS = f"{{{NAMESPACE}}}as"
"""Element that `note` puts into a device."""


@dataclass(frozen=True, slots=True)
class Known:
    """A disk of the domain and what it is."""

    target: str
    source: str
    """Path that the domain names."""
    disk: AdoptedDisk


def xml(name: str, disks: Iterable[Known], nics: Iterable[AdoptedNic]) -> str:
    """The element for `virDomainSetMetadata`. `name` is the domain's."""
    root = Element("adopted", name=name)
    for one in disks:
        SubElement(
            root,
            "disk",
            target=one.target,
            source=one.source,
            name=one.disk.name,
            volume=one.disk.volume,
            path=one.disk.path,
        )
    for nic in nics:
        SubElement(root, "nic", mac=nic.mac.lower(), uid=nic.uid, device=nic.plug.device, bridge=nic.plug.bridge)
    return ElementTree.tostring(root, encoding="unicode")


def with_plugged(root: Element, uid: str) -> str | None:
    """The element again, in which the interface of that uid is plugged into its network; None when there is no element."""
    found = root.find(_PLACE)
    if found is None:
        return None
    said = Element("adopted", dict(found.attrib))
    for one in found:
        more = {"plugged": "yes"} if one.get("uid") == uid else {}
        SubElement(said, one.tag.rpartition("}")[2], {**one.attrib, **more})
    return ElementTree.tostring(said, encoding="unicode")


def name_of(root: Element) -> str | None:
    """The name of the domain, as it was when it was adopted; None when it was not."""
    found = root.find(_PLACE)
    return found.get("name") if found is not None else None


def note(root: Element) -> Element:
    """The same XML, in which devices say what they are known as."""
    found = root.find(_PLACE)
    if found is None:
        return root
    disks = {one.get("target"): one for one in found.iterfind("{*}disk")}
    for element in root.iterfind("devices/disk"):
        _name(element, disks.get(sources.attribute(element, "target", "dev")))
    nics = {one.get("mac"): one for one in found.iterfind("{*}nic")}
    for element in root.iterfind("devices/interface"):
        _name(element, nics.get(sources.attribute(element, "mac", "address").lower()))
    return root


def _name(element: Element, known: Element | None) -> None:
    if known is not None and element.find(KNOWN_AS) is None:
        SubElement(element, KNOWN_AS, dict(known.attrib))


def known_as(element: Element, what: str) -> str | None:
    """What a device that was noted is known as: volume, name, uid, device; None of one of Kumulus' own making."""
    found = element.find(KNOWN_AS)
    return found.get(what) if found is not None else None


def path_of(element: Element) -> str | None:
    """The path of a disk: that of its volume's file where the domain calls that by another name."""
    path = sources.path_of(element)
    return ours(element, path) if path is not None else None


def ours(disk: Element, path: str) -> str:
    """What the pool calls a file of that disk's chain which the domain calls so. `disk` was noted."""
    known = disk.find(KNOWN_AS)
    return known.get("path", path) if known is not None and path == known.get("source") else path


def theirs(disk: Element, path: str) -> str:
    """What the domain calls a file of that disk's chain which the pool calls so. `disk` was noted."""
    known = disk.find(KNOWN_AS)
    return known.get("source", path) if known is not None and path == known.get("path") else path


def as_libvirt_knows(element: Element) -> str:
    """A device without what `note` put into it."""
    for found in element.findall(KNOWN_AS):
        element.remove(found)
    return ElementTree.tostring(element, encoding="unicode")
