"""Where a disk is, as libvirt says it: the part of a disk's XML that depends on the kind of its source. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from kumulus_agents.storage.source import BlockSource, DiskSource, FileSource, LayerFile, RbdSource

_SECRETS = uuid.UUID("7b1c0d3e-54a2-4c0e-9d0a-0f6a6f1f3b52")
"""Names of secrets derive from this one."""


def add(disk: Element, source: DiskSource) -> None:
    """Say in the element of a disk where it is. A key is not in it, but the name of the secret that has it."""
    match source:
        case FileSource(path):
            disk.set("type", "file")
            SubElement(disk, "source", file=path)
        case BlockSource(path):
            disk.set("type", "block")
            SubElement(disk, "source", dev=path)
        case RbdSource():
            disk.set("type", "network")
            element = SubElement(disk, "source", protocol="rbd", name=f"{source.pool}/{source.image}")
            for monitor in source.monitors:
                host, port = host_and_port(monitor)
                SubElement(element, "host", {"name": host} if port is None else {"name": host, "port": port})
            auth = SubElement(element, "auth", username=source.user)
            SubElement(auth, "secret", type="ceph", uuid=secret_of(source))


def add_below(disk: Element, source: DiskSource, below: Sequence[LayerFile]) -> None:
    """Say what the disk, which is there, stands on, all the way down, and where that ends: libvirt then reads no header,
    which a guest may have written. Layers that are encrypted have the passphrase of the disk."""
    at = disk
    for file in below:
        at = SubElement(at, "backingStore", type="file")
        SubElement(at, "format", type=file.format)
        _add_encryption(SubElement(at, "source", file=file.path), source if file.encrypted else None)
    SubElement(at, "backingStore")


def add_encryption(disk: Element, source: DiskSource) -> None:
    """Say that what is there is encrypted. The passphrase is not in it, but the name of the secret that has it."""
    element = disk.find("source")
    assert element is not None
    _add_encryption(element, source)


def _add_encryption(element: Element, source: DiskSource | None) -> None:
    if source is not None:
        encryption = SubElement(element, "encryption", format="luks")
        SubElement(encryption, "secret", type="passphrase", uuid=luks_secret_of(source))


def attribute(element: Element, tag: str, name: str) -> str:
    """That attribute of the first element of that tag; empty when there is none."""
    found = element.find(tag)
    return found.get(name, "") if found is not None else ""


def luks_secret_of(source: DiskSource) -> str:
    """UUID of the libvirt secret with the passphrase of what is there."""
    return str(uuid.uuid5(_SECRETS, f"luks {source.path}"))


def path_of(disk: Element) -> str | None:
    """The path of the source in the element of a disk, as `DiskSource.path` has it; None when it has none we know."""
    source = disk.find("source")
    if source is None:
        return None
    if source.get("protocol") == "rbd":
        return f"rbd:{source.get('name')}"
    return source.get("file") or source.get("dev")


def secret_of(source: RbdSource) -> str:
    """UUID of the libvirt secret with the source's key: one an image, so that no machine needs another one's."""
    return str(uuid.uuid5(_SECRETS, "\n".join((*sorted(source.monitors), source.path, source.user))))


def host_and_port(monitor: str) -> tuple[str, str | None]:
    """The two parts of `host`, `host:port`, `[v6]` or `[v6]:port`; no port is None."""
    if monitor.startswith("["):
        host, _, rest = monitor[1:].partition("]")
        return host, rest.removeprefix(":") or None
    host, _, port = monitor.partition(":")
    return host, port or None
