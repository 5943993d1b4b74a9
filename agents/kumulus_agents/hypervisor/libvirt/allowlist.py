"""What may be in a domain's XML: every element with its attributes and what they may say. Pure.

The second look at what `domain_xml` made: whatever a mistake there lets through, a definition with
another element, another attribute or another value does not get to libvirt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from kumulus.api.hardware import WatchdogAction
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.libvirt import iotune, marks, shaping
from kumulus_agents.hypervisor.libvirt.attached import DRIVE_ALIAS, GUEST_AGENT, NIC_ALIAS, VOLUME_ALIAS

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
NUMBER = r"[1-9][0-9]{0,18}"
COUNT = r"0|[1-9][0-9]{0,9}"
ENCODED = r"[A-Za-z0-9_.~%/:+,@= -]{0,4096}"
MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
PATH = r"/[^\x00-\x1f\x7f]{1,1023}"
DEVICE = r"/dev/[A-Za-z0-9_+./-]{1,255}"
LINK = r"[a-z][a-z0-9-]{1,14}"
"""Name of a bridge or a tap."""
CPU_MODEL = r"[A-Za-z0-9_.-]{1,64}"
DEEPEST = 64
"""Files that a disk may stand on. More is refused: every one of them is opened."""
CEPH = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an element may have: attributes and text as whole-match patterns, and how often it may occur."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    most: int = 1


RULES: Mapping[str, Rule] = {
    "domain": Rule({"type": "kvm|qemu"}),
    "domain/name": Rule(text=f"kumulus-{UUID}"),
    "domain/uuid": Rule(text=UUID),
    "domain/metadata": Rule(),
    f"domain/metadata/{{{marks.NAMESPACE}}}instance": Rule(
        {
            "uid": UUID,
            "epoch": COUNT,
            "namespace": ENCODED,
            "name": ENCODED,
            "wanted": "Running|Stopped|Paused",
            "restarts": COUNT,
            "restartRequest": ENCODED,
            "departed": UUID,
        }
    ),
    f"domain/metadata/{{{marks.NAMESPACE}}}instance/{{{marks.NAMESPACE}}}nic": Rule(
        {
            **dict.fromkeys(("name", "addresses", "network"), ENCODED),
            "uid": UUID,
            "mac": MAC,
            "vni": NUMBER,
            "vlan": NUMBER,
        },
        most=16,
    ),
    f"domain/metadata/{{{shaping.NAMESPACE}}}shape": Rule(
        {
            "cpuModel": CPU_MODEL,
            **dict.fromkeys(("sockets", "cores", "threads"), NUMBER),
            **dict.fromkeys(("uefi", "secureBoot", "tpm"), "True"),
            "watchdog": "|".join(WatchdogAction),
        }
    ),
    "domain/maxMemory": Rule({"slots": "1", "unit": "b"}, NUMBER),
    f"domain/metadata/{{{marks.ARRIVING_NAMESPACE}}}arriving": Rule({"migration": UUID}),
    "domain/memory": Rule({"unit": "b"}, NUMBER),
    "domain/vcpu": Rule({"placement": "static", "current": NUMBER}, NUMBER),
    "domain/os": Rule({"firmware": "efi"}),
    "domain/os/firmware": Rule(),
    "domain/os/firmware/feature": Rule({"enabled": "yes|no", "name": "secure-boot|enrolled-keys"}, most=2),
    "domain/sysinfo": Rule({"type": "smbios"}),
    "domain/sysinfo/system": Rule(),
    "domain/sysinfo/system/entry": Rule({"name": "manufacturer|product"}, "Kumulus|OpenStack Compute", most=2),
    "domain/os/smbios": Rule({"mode": "sysinfo"}),
    "domain/os/type": Rule({"arch": "x86_64", "machine": r"q35|pc-q35-[a-z0-9.]{1,24}"}, "hvm"),
    "domain/features": Rule(),
    "domain/features/acpi": Rule(),
    "domain/features/apic": Rule(),
    "domain/features/smm": Rule({"state": "on"}),
    "domain/features/tcg": Rule(),
    "domain/features/tcg/tb-cache": Rule({"unit": "MiB"}, NUMBER),
    "domain/cpu": Rule(
        {"mode": "host-model|host-passthrough|maximum|custom", "match": "exact", "check": "none|partial"}
    ),
    "domain/cpu/model": Rule({"fallback": "forbid"}, CPU_MODEL),
    "domain/cpu/topology": Rule({"sockets": NUMBER, "dies": "1", "cores": NUMBER, "threads": NUMBER}),
    "domain/cpu/numa": Rule(),
    "domain/cpu/numa/cell": Rule({"id": "0", "cpus": "0(-[1-9][0-9]{0,3})?", "memory": NUMBER, "unit": "b"}),
    "domain/clock": Rule({"offset": "utc"}),
    "domain/on_poweroff": Rule(text="destroy"),
    "domain/on_reboot": Rule(text="restart"),
    "domain/on_crash": Rule(text="destroy"),
    "domain/pm": Rule(),
    "domain/pm/suspend-to-mem": Rule({"enabled": "no"}),
    "domain/pm/suspend-to-disk": Rule({"enabled": "no"}),
    "domain/devices": Rule(),
    "domain/devices/disk": Rule({"type": "file|block|network", "device": "disk|cdrom"}, most=52),
    "domain/devices/disk/driver": Rule(
        {
            "name": "qemu",
            "type": "qcow2|raw",
            "cache": "|".join(CacheMode),
            "discard": "unmap",
            "error_policy": "stop",
            "rerror_policy": "stop",
        }
    ),
    "domain/devices/disk/source": Rule({"file": PATH, "dev": DEVICE, "protocol": "rbd", "name": f"{CEPH}/{CEPH}"}),
    "domain/devices/disk/source/host": Rule({"name": r"[A-Za-z0-9.:-]{1,253}", "port": r"[0-9]{1,5}"}, most=16),
    "domain/devices/disk/source/auth": Rule({"username": CEPH}),
    "domain/devices/disk/source/auth/secret": Rule({"type": "ceph", "uuid": UUID}),
    **{
        f"domain/devices/disk{'/backingStore' * depth}{part}": rule
        for depth in range(1, DEEPEST + 2)
        for part, rule in (
            ("", Rule({"type": "file"})),
            ("/format", Rule({"type": "qcow2|raw"})),
            ("/source", Rule({"file": PATH})),
        )
    },
    **{
        f"{source}{part}": rule
        for source in (
            "domainsnapshot/disks/disk/source",
            *(f"domain/devices/disk{'/backingStore' * depth}/source" for depth in range(DEEPEST + 1)),
        )
        for part, rule in (
            ("/encryption", Rule({"format": "luks"})),
            ("/encryption/secret", Rule({"type": "passphrase", "uuid": UUID})),
        )
    },
    "domain/devices/disk/target": Rule({"dev": "[sv]d[a-z]", "bus": "virtio|scsi|sata"}),
    "domain/devices/disk/iotune": Rule(),
    **{
        f"domain/devices/disk/iotune/{name}{suffix}": Rule(text=NUMBER)
        for name in iotune.NAMES.values()
        for suffix in ("", "_max", "_max_length")
    },
    "domain/devices/disk/serial": Rule(text=r"[A-Za-z0-9_.-]{1,20}"),
    "domain/devices/disk/boot": Rule({"order": NUMBER}),
    "domain/devices/disk/readonly": Rule(),
    "domain/devices/disk/alias": Rule({"name": f"{VOLUME_ALIAS}{UUID}|{DRIVE_ALIAS}[a-z0-9-]{{1,32}}"}),
    "domain/devices/disk/address": Rule(
        {"type": "drive", "controller": "0", "bus": "0", "target": "[0-9]|1[0-9]|2[0-5]", "unit": "[0-5]"}
    ),
    "domain/devices/controller": Rule(
        {"type": "usb|scsi|pci", "index": "[0-9]{1,2}", "model": "none|virtio-scsi|pcie-root|pcie-root-port"}, most=64
    ),
    "domain/devices/interface": Rule({"type": "bridge"}, most=16),
    "domain/devices/interface/mac": Rule({"address": MAC}),
    "domain/devices/interface/source": Rule({"bridge": LINK}),
    "domain/devices/interface/virtualport": Rule({"type": "openvswitch"}),
    "domain/devices/interface/virtualport/parameters": Rule({"interfaceid": UUID}),
    "domain/devices/interface/target": Rule({"dev": LINK}),
    "domain/devices/interface/model": Rule({"type": "virtio"}),
    "domain/devices/interface/driver": Rule(),
    "domain/devices/interface/driver/host": Rule(dict.fromkeys(("csum", "gso", "tso4", "tso6", "ecn", "ufo"), "off")),
    "domain/devices/interface/mtu": Rule({"size": NUMBER}),
    "domain/devices/interface/rom": Rule({"enabled": "no"}),
    "domain/devices/interface/alias": Rule({"name": f"{NIC_ALIAS}{UUID}"}),
    "domain/devices/serial": Rule({"type": "pty"}),
    "domain/devices/serial/log": Rule({"file": PATH, "append": "on"}),
    "domain/devices/serial/target": Rule({"type": "isa-serial", "port": "0"}),
    "domain/devices/console": Rule({"type": "pty"}),
    "domain/devices/console/target": Rule({"type": "serial", "port": "0"}),
    "domain/devices/channel": Rule({"type": "unix"}),
    "domain/devices/channel/target": Rule({"type": "virtio", "name": re.escape(GUEST_AGENT)}),
    "domain/devices/video": Rule(),
    "domain/devices/video/model": Rule({"type": "none"}),
    "domain/devices/memballoon": Rule({"model": "virtio", "freePageReporting": "on", "autodeflate": "on"}),
    "domain/devices/tpm": Rule({"model": "tpm-crb"}),
    "domain/devices/tpm/backend": Rule({"type": "emulator", "version": "2.0"}),
    "domain/devices/watchdog": Rule({"model": "i6300esb", "action": "reset|poweroff"}),
    "domain/devices/memory": Rule({"model": "virtio-mem"}),
    "domain/devices/memory/target": Rule(),
    "domain/devices/memory/target/size": Rule({"unit": "b"}, NUMBER),
    "domain/devices/memory/target/node": Rule(text="0"),
    "domain/devices/memory/target/block": Rule({"unit": "b"}, NUMBER),
    "domain/devices/memory/target/requested": Rule({"unit": "b"}, "0"),
    "domain/devices/rng": Rule({"model": "virtio"}),
    "domain/devices/rng/backend": Rule({"model": "random"}, "/dev/urandom"),
    "domain/devices/panic": Rule({"model": "isa"}),
    "domainsnapshot": Rule(),
    "domainsnapshot/disks": Rule(),
    "domainsnapshot/disks/disk": Rule({"name": "[sv]d[a-z]", "snapshot": "no|external", "type": "file"}, most=52),
    "domainsnapshot/disks/disk/driver": Rule({"type": "qcow2"}),
    "domainsnapshot/disks/disk/source": Rule({"file": PATH}),
}


def violation(xml: str, place: str = "domain") -> str | None:
    """The first thing in the XML that is not allowed, in words, or None. Never quotes a value.

    `place` is where the XML belongs: a whole domain, or an element of one.
    """
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  # we have just written it
    except ElementTree.ParseError:
        return "a character that XML cannot carry"
    if root.tag != place.rpartition("/")[2]:
        return f"an element {root.tag}"
    return next(violations(root, RULES, place), None)


def violations(element: ElementTree.Element, rules: Mapping[str, Rule], path: str = "domain") -> Iterator[str]:
    """All that these rules do not allow, in words. Never quotes a value."""
    rule = rules.get(path)
    if rule is None:
        yield f"an element {path}"
        return
    for name, value in element.attrib.items():
        pattern = rule.attributes.get(name)
        if pattern is None or not re.fullmatch(pattern, value):
            yield f"an unexpected attribute {name} of {path}"
    if not re.fullmatch(rule.text, (element.text or "").strip()):
        yield f"an unexpected text in {path}"
    seen: dict[str, int] = {}
    for child in element:
        if (child.tail or "").strip():
            yield f"a text beside {path}/{child.tag}"
        at = f"{path}/{child.tag}"
        seen[at] = seen.get(at, 0) + 1
        if at in rules and seen[at] > rules[at].most:
            yield f"too many elements {at}"
        yield from violations(child, rules, at)
