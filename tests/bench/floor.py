"""The floor by hand on a libvirt host: qemu-img and virsh, with a domain equal to the one that Kumulus made there.

Runs in the lab's host, on its libvirtd and its image, and leaves nothing behind.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from kumulus_lab.host import LibvirtHost

DIRECTORY = PurePosixPath("/var/lib/kumulus/bench-floor")

_TIMED = """set -e
began=$EPOCHREALTIME
{commands}
ended=$EPOCHREALTIME
echo $(( (${{ended/./}} - ${{began/./}}) ))
"""


@dataclass(frozen=True, slots=True)
class Template:
    """What a domain on a host is made of."""

    host: LibvirtHost
    xml: str
    base: str
    """The image file that its disk is an overlay of."""
    size: int
    """Bytes of the disk."""


def equal(xml: str, name: str, uid: str, directory: object = DIRECTORY) -> tuple[str, str, dict[str, str]]:
    """The definition under another name; the disk it has and the one it shall have; files to copy for it. Pure.

    Takes what `virsh dumpxml --inactive` says.
    """
    root = ElementTree.fromstring(xml)
    for element in list(root):
        if element.tag in ("metadata", "name", "uuid"):
            root.remove(element)
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "uuid").text = uid
    disk, copies = "", {}
    for element in root.iter("disk"):
        source = element.find("source")
        if source is None:
            continue
        before = source.get("file", "")
        if element.get("device") == "disk":
            disk = before
            source.set("file", f"{directory}/{name}.qcow2")
        else:
            copies[before] = f"{directory}/{name}-{PurePosixPath(before).name}"
            source.set("file", copies[before])
    for log in root.iter("log"):
        log.set("file", f"{directory}/{name}.log")
    return ElementTree.tostring(root, encoding="unicode"), disk, copies


def template(host: LibvirtHost, domain: str) -> Template:
    """Of a domain that Kumulus made and that is there now."""
    xml = host.exec(["virsh", "dumpxml", "--inactive", domain]).stdout
    name = "floor"
    made, disk, copies = equal(xml, name, str(uuid.uuid4()))
    host.exec(["mkdir", "-p", str(DIRECTORY)])
    for source, target in copies.items():
        host.exec(["cp", source, target])
    info = json.loads(host.exec(["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", disk]).stdout)
    outside = host.directory / str(DIRECTORY).lstrip("/")
    (outside / "floor.xml").write_text(made)
    base = info.get("full-backing-filename") or info["backing-filename"]
    return Template(host, made, posixpath.normpath(base), int(info["virtual-size"]))


def bring_up(of: Template) -> float:
    """Overlay, define, start; seconds."""
    disk = DIRECTORY / "floor.qcow2"
    return timed(
        of.host,
        f"qemu-img create -q -f qcow2 -b '{of.base}' -F qcow2 '{disk}' {of.size}",
        f"virsh -q define '{DIRECTORY / 'floor.xml'}' >/dev/null",
        "virsh -q start floor >/dev/null",
    )


def remove(of: Template) -> float:
    """Destroy, undefine, remove the files; seconds."""
    disk = DIRECTORY / "floor.qcow2"
    return timed(of.host, "virsh -q destroy floor", "virsh -q undefine floor", f"rm -f '{disk}'")


def clear(host: LibvirtHost) -> None:
    """Nothing of it is on that host."""
    host.exec(["virsh", "-q", "destroy", "floor"], check=False)
    host.exec(["virsh", "-q", "undefine", "floor"], check=False)
    host.exec(["rm", "-rf", str(DIRECTORY)])


def timed(host: LibvirtHost, *commands: str) -> float:
    """Run the commands in one shell on the host; seconds they took."""
    script = _TIMED.format(commands="\n".join(commands))
    return int(host.exec(["bash", "-c", script], seconds=120).stdout.strip().splitlines()[-1]) / 1e6
