"""The floor of storage by hand on a libvirt host: curl, qemu-img and virsh, on the files that Kumulus made there.

Runs in the lab's host beside a domain that `floor` brought up, and leaves nothing behind.
"""

from __future__ import annotations

from pathlib import PurePath
from xml.etree import ElementTree

from tests.bench.floor import DIRECTORY, Template, timed

TARGET = "sdz"
SERIAL = "floor-disk"
_DISK = DIRECTORY / "floor-disk.qcow2"
_XML = DIRECTORY / "floor-disk.xml"


def disk_xml() -> str:
    """The disk as virsh is told of it: like those that Kumulus attaches. Pure."""
    disk = ElementTree.Element("disk", type="file", device="disk")
    ElementTree.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    ElementTree.SubElement(disk, "source", file=str(_DISK))
    ElementTree.SubElement(disk, "target", dev=TARGET, bus="scsi")
    ElementTree.SubElement(disk, "serial").text = SERIAL
    # By itself libvirt wants one more controller for it, which there is no slot for.
    ElementTree.SubElement(disk, "address", type="drive", controller="0", bus="0", target="25", unit="0")
    return ElementTree.tostring(disk, encoding="unicode")


def fetch(of: Template, url: str, form: str) -> float:
    """Download, checksum, convert to qcow2; seconds."""
    source, target = DIRECTORY / "fetched", DIRECTORY / "fetched.qcow2"
    return timed(
        of.host,
        f"python3 -c 'import sys, urllib.request as r; r.urlretrieve(sys.argv[1], sys.argv[2])' '{url}' '{source}'",
        f"sha256sum '{source}' >/dev/null",
        f"qemu-img convert -f {form} -O qcow2 '{source}' '{target}'",
        f"rm -f '{source}' '{target}'",
    )


def clone(of: Template, base: str) -> float:
    """An overlay of the image file, and the running domain gets it; seconds."""
    _write(of)
    return timed(of.host, f"qemu-img create -q -f qcow2 -b '{base}' -F qcow2 '{_DISK}'", _attaching())


def attach(of: Template) -> float:
    """The running domain gets the disk that is there; seconds."""
    return timed(of.host, _attaching())


def detach(of: Template) -> float:
    """Until the guest has let go of it; seconds."""
    return timed(
        of.host,
        f"virsh -q detach-device floor --live --config '{_XML}'",
        f"while virsh dumpxml floor | grep -q {SERIAL}; do sleep 0.02; done",
    )


def snapshot(of: Template) -> float:
    """The running domain goes over to a new layer on that disk, and the layer is merged again; seconds of the first."""
    layer = DIRECTORY / "floor-layer.qcow2"
    seconds = timed(
        of.host,
        "virsh -q snapshot-create-as floor --no-metadata --disk-only --atomic"
        f" --diskspec {TARGET},snapshot=external,file='{layer}' --diskspec vda,snapshot=no >/dev/null",
    )
    timed(of.host, f"virsh -q blockcommit floor {TARGET} --active --pivot --wait >/dev/null", f"rm -f '{layer}'")
    return seconds


def block_copy(of: Template) -> float:
    """The running domain goes over to a full copy of that disk, and back; seconds of the first."""
    there, back = DIRECTORY / "floor-there.qcow2", DIRECTORY / "floor-back.qcow2"

    def to(path: PurePath) -> str:
        words = f"virsh -q blockcopy floor {TARGET} --dest '{path}' --format qcow2 --transient-job"
        return f"{words} --wait --pivot >/dev/null"

    seconds = timed(of.host, to(there))
    timed(of.host, to(back), f"rm -f '{there}'", f"mv '{back}' '{_DISK}'")
    return seconds


def copy(of: Template, source: str) -> float:
    """A full copy of a disk; seconds."""
    target = DIRECTORY / "copy.qcow2"
    return timed(of.host, f"qemu-img convert -f qcow2 -O qcow2 '{source}' '{target}'", f"rm -f '{target}'")


def _attaching() -> str:
    return f"virsh -q attach-device floor --live --config '{_XML}'"


def _write(of: Template) -> None:
    (of.host.directory / str(_XML).lstrip("/")).write_text(disk_xml())
