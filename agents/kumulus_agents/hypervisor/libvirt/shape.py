"""What a domain that is not ours consists of, as libvirt's XML tells. Pure; nothing that is secret is asked for or read."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignNic, ForeignShape
from kumulus_agents.hypervisor.libvirt import adopted, sources

NIC_SOURCES = ("bridge", "network", "dev", "portgroup", "path")
"""Attributes of an interface's source that name it, the best first (https://libvirt.org/formatdomain.html)."""


def read(domain_xml: str) -> ForeignShape:
    """The shape in a domain's XML."""
    root = adopted.note(ElementTree.fromstring(domain_xml))  # noqa: S314  # libvirt wrote it
    machine = root.find("os/type")
    return ForeignShape(
        machine=machine.get("machine") if machine is not None else None,
        firmware=_firmware(root),
        disks=tuple(_disk(element) for element in root.iterfind("devices/disk")),
        nics=tuple(_nic(element) for element in root.iterfind("devices/interface")),
        others=_others(root),
    )


_USUAL = frozenset(
    {
        "emulator",
        "disk",
        "interface",
        "controller",
        "serial",
        "console",
        "channel",
        "input",
        "video",
        "memballoon",
        "rng",
    }
) | {"panic", "audio", "hub", "lease"}
"""Devices that are not told of by themselves: of our own they have their like, or no guest misses them."""


def _others(root: Element) -> tuple[str, ...]:
    found = root.find("devices")
    if found is None:
        return ()
    named = (" ".join(filter(None, (one.tag, one.get("type") or one.get("model")))) for one in found)
    return tuple(sorted({name for name in named if name.split(" ")[0] not in _USUAL}))


def _firmware(root: Element) -> str:
    os = root.find("os")
    loader = os.find("loader") if os is not None else None
    if os is not None and os.get("firmware") is not None:
        return os.get("firmware", "")
    return "efi" if loader is not None and loader.get("type") == "pflash" else "bios"


def _disk(element: Element) -> ForeignDisk:
    target, driver = element.find("target"), element.find("driver")
    return ForeignDisk(
        target=_get(target, "dev") or "",
        device=element.get("device", "disk"),
        bus=_get(target, "bus"),
        kind=element.get("type"),
        source=_source(element),
        format=_get(driver, "type"),
        read_only=element.find("readonly") is not None,
        layered=element.find("backingStore/source") is not None,
        name=adopted.known_as(element, "name") or element.findtext("serial"),
    )


def _source(element: Element) -> str | None:
    """Path or name. A network source's user and secret, which are beside it, are not read."""
    source = element.find("source")
    if source is None:
        return None
    if (pool := source.get("pool")) is not None:
        return f"{pool}/{source.get('volume', '')}"
    if (protocol := source.get("protocol")) is not None:
        return f"{protocol}:{source.get('name', '')}"
    return sources.path_of(element) or source.get("dir")


def _nic(element: Element) -> ForeignNic:
    source, kind = element.find("source"), element.get("type")
    named = (_get(source, name) for name in NIC_SOURCES)
    return ForeignNic(
        mac=_get(element.find("mac"), "address") or "",
        kind="openvswitch" if kind == "bridge" and element.find("virtualport") is not None else kind,
        source=next((name for name in named if name), None),
        model=_get(element.find("model"), "type"),
    )


def _get(element: Element | None, name: str) -> str | None:
    return element.get(name) if element is not None else None
