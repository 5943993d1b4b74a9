"""A domain's XML from its spec. Pure: made by a tree library, then held against an allow-list.

The shape is fixed here; of a user's text only numbers, paths that a storage driver made and
percent-encoded marks get in. https://libvirt.org/formatdomain.html decides what elements mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from xml.etree.ElementTree import Element, SubElement, indent, register_namespace, tostring

from kumulus.api.disks import DriveBus
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.domain import (
    AttachedDisk,
    AttachedDrive,
    AttachedNic,
    DomainDisk,
    DomainDrive,
    DomainNic,
    DomainSpec,
)
from kumulus_agents.hypervisor.libvirt import allowlist, growing, iotune, marks, shaping, sources
from kumulus_agents.hypervisor.libvirt.attached import (
    DRIVE_ALIAS,
    GUEST_AGENT,
    NIC_ALIAS,
    TARGETS,
    VOLUME_ALIAS,
    too_many,
)
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.source import FileSource, LayerFile

SERIAL_MAX = 20
"""virtio-blk shows the guest no more of a disk's serial."""

BUFFERED: Mapping[CacheMode, CacheMode] = {
    CacheMode.NONE: CacheMode.WRITEBACK,
    CacheMode.DIRECTSYNC: CacheMode.WRITETHROUGH,
}
"""What comes nearest where O_DIRECT cannot be."""

SPARE_PORTS = 4
"""Places for interfaces that come while a machine is on. One that went makes its place free."""
OWN_PORTS = 4
"""Of the SCSI controller, the serial one, the balloon and the random numbers."""

KVM = "kvm"
TCG = "tcg"

register_namespace(marks.PREFIX, marks.NAMESPACE)
register_namespace(shaping.PREFIX, shaping.NAMESPACE)
register_namespace(marks.RUN_PREFIX, marks.RUN_NAMESPACE)
register_namespace(marks.ARRIVING_PREFIX, marks.ARRIVING_NAMESPACE)


@dataclass(frozen=True, slots=True)
class Platform:
    """What the host decides of a domain."""

    acceleration: str
    """kvm or tcg."""
    emulated_cpu: str = "Nehalem"
    """CPU model with tcg, or `maximum`."""
    buffered: Set[str] = frozenset()
    """Paths of disks whose file system cannot do O_DIRECT."""


def virtualisation(acceleration: str | None) -> str:
    """What libvirt calls domains that are accelerated so; None: it is not known yet."""
    return "kvm" if acceleration == KVM else "qemu"


def render(spec: DomainSpec, platform: Platform, machine_type: str | None = None) -> str:
    """The XML to define, on the board `machine_type` unless `spec` names one. The same spec and platform give the same text.

    Raises `HypervisorError(reason="InvalidDomain", retryable=False)` for a spec that cannot be a domain.
    """
    _check(spec)
    domain = Element("domain", type=virtualisation(platform.acceleration))
    _text(domain, "name", marks.domain_name(spec.marks.uid))
    _text(domain, "uuid", spec.marks.uid)
    metadata = SubElement(domain, "metadata")
    metadata.append(marks.instance(spec.marks, f"{{{marks.NAMESPACE}}}instance", f"{{{marks.NAMESPACE}}}nic"))
    shaping.remember(metadata, spec.shape)
    growing.head(domain, spec)
    if spec.nics:
        # By the product guests know that there is metadata to ask for, of which shape (cloud-init's DataSourceOpenStack).
        system = SubElement(SubElement(domain, "sysinfo", type="smbios"), "system")
        _text(system, "entry", "Kumulus", name="manufacturer")
        _text(system, "entry", "OpenStack Compute", name="product")
    firmware = shaping.firmware(domain, spec, machine_type)
    if spec.nics:
        SubElement(firmware, "smbios", mode="sysinfo")
    _features(domain, spec, platform)
    _cpu(domain, spec, platform)
    SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    power = SubElement(domain, "pm")
    SubElement(power, "suspend-to-mem", enabled="no")
    SubElement(power, "suspend-to-disk", enabled="no")
    _devices(SubElement(domain, "devices"), spec, platform)
    indent(domain)
    xml = tostring(domain, encoding="unicode")
    return _allowed(xml, "domain")


def render_volume(disk: DomainDisk, target: str, *, direct: bool) -> str:
    """The XML of a disk that is attached to a domain as `target`, sda or the like. Boot order is the definition's.

    Raises `HypervisorError(reason="InvalidDomain", retryable=False)`.
    """
    _check_format(disk)
    devices = Element("devices")
    _disk(devices, replace(disk, boot_order=None), target, direct=direct)
    return _allowed(tostring(devices[0], encoding="unicode"), "domain/devices/disk")


def render_copy(disk: DomainDisk) -> str:
    """The XML of what a disk is copied to: it stands on nothing. How it is cached is the copied disk's.

    Raises `HypervisorError(reason="InvalidDomain", retryable=False)`.
    """
    _check_format(disk)
    element = Element("disk", type="", device="disk")
    SubElement(element, "driver", name="qemu", type=disk.format)
    sources.add(element, disk.source)
    if disk.passphrase is not None:
        sources.add_encryption(element, disk.source)
    if disk.format != "raw":
        sources.add_below(element, disk.source, ())
    return _allowed(tostring(element, encoding="unicode"), "domain/devices/disk")


def render_snapshot(layers: Mapping[str, LayerFile], others: Iterable[str]) -> str:
    """The XML of a snapshot that puts these layers on the disks of these device names, and none on the others."""
    disks = SubElement(root := Element("domainsnapshot"), "disks")
    for target, layer in layers.items():
        disk = SubElement(disks, "disk", name=target, snapshot="external", type="file")
        SubElement(disk, "driver", type=layer.format)
        SubElement(disk, "source", file=layer.path)
        if layer.encrypted:
            sources.add_encryption(disk, FileSource(layer.path))
    for target in others:
        SubElement(disks, "disk", name=target, snapshot="no")
    return _allowed(tostring(root, encoding="unicode"), "domainsnapshot")


def render_nic(nic: DomainNic) -> str:
    """The XML of an interface. Raises `HypervisorError(reason="InvalidDomain", retryable=False)`."""
    devices = Element("devices")
    _nic(devices, nic)
    return _allowed(tostring(devices[0], encoding="unicode"), "domain/devices/interface")


def nics_as_attached(nics: Sequence[DomainNic]) -> tuple[AttachedNic, ...]:
    """The interfaces as `attached.nics` finds them in the XML of a domain that has them."""
    return tuple(AttachedNic(nic.uid, nic.mac, nic.plug.device) for nic in nics)


def as_attached(disks: Sequence[DomainDisk], buffered: Set[str]) -> tuple[AttachedDisk, ...]:
    """The disks as `attached.disks` finds them in the XML of a domain that has them."""
    return tuple(
        AttachedDisk(
            disk.name[:SERIAL_MAX], disk.path, disk.volume, disk.qos, _cache(disk, direct=disk.path not in buffered)
        )
        for disk in disks
    )


def drives_as_attached(drives: Sequence[DomainDrive]) -> tuple[AttachedDrive, ...]:
    """The drives as `attached.drives` finds them in the XML of a domain that has them."""
    return tuple(AttachedDrive(drive.name, drive.source.path if drive.source else None) for drive in drives)


def _allowed(xml: str, place: str) -> str:
    if found := allowlist.violation(xml, place):
        raise HypervisorError(
            f"The definition of the machine has {found}, which is not allowed.",
            reason="InvalidDomain",
            retryable=False,
        )
    return xml


def _check(spec: DomainSpec) -> None:
    places = (*(disk.boot_order for disk in spec.disks), *(drive.boot_order for drive in spec.drives))
    orders = [place for place in places if place is not None]
    if len(orders) != len(set(orders)):
        raise HypervisorError("Two disks have the same boot order.", reason="InvalidDomain", retryable=False)
    for disk in spec.disks:
        _check_format(disk)


def _check_format(disk: DomainDisk) -> None:
    if disk.format not in ("qcow2", "raw"):
        raise HypervisorError(
            f"Disk {disk.name} has the format {disk.format}; only qcow2 and raw can be attached.",
            reason="InvalidDomain",
            retryable=False,
        )


def _features(domain: Element, spec: DomainSpec, platform: Platform) -> None:
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    shaping.features(features, spec.shape)
    if platform.acceleration == TCG:
        # Translated code is memory of the host that nobody accounts for; QEMU's own bound is 1 GiB a guest.
        _text(SubElement(features, "tcg"), "tb-cache", "128", unit="MiB")


def _cpu(domain: Element, spec: DomainSpec, platform: Platform) -> None:
    emulated = None if platform.acceleration == KVM else platform.emulated_cpu
    growing.cell(shaping.processor(domain, spec, growing.room(spec).cpus, emulated=emulated), spec)


def _devices(devices: Element, spec: DomainSpec, platform: Platform) -> None:
    targets = _targets(spec.disks, spec.drives)
    for disk, target in zip(spec.disks, targets, strict=False):
        _disk(devices, disk, target, direct=disk.path not in platform.buffered)
    ports = count()
    for drive, target in zip(spec.drives, targets, strict=True):
        _drive(devices, drive, target, ports)
    for nic in spec.nics:
        _nic(devices, nic)
    SubElement(devices, "controller", type="usb", index="0", model="none")
    _ports(devices, spec)
    # For CD-ROMs, not SATA, q35's own: Debian's kernel for clouds, for one, is built without AHCI. For volumes, because
    # disks come and go on it in any state of the guest and in any number. A virtio-blk disk each is a PCI device: q35
    # has no free slot for one but in pcie-root-ports that every machine would have to have in spare, and a guest that
    # is still booting, or has halted, never lets go of it. So there is always one, with or without disks.
    SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    serial = SubElement(devices, "serial", type="pty")
    # virtlogd writes and rotates it, within max_size and max_backups of virtlogd.conf.
    SubElement(serial, "log", file=spec.console_log, append="on")
    SubElement(serial, "target", type="isa-serial", port="0")
    console = SubElement(devices, "console", type="pty")
    SubElement(console, "target", type="serial", port="0")
    # Where the guest's agent listens, for those that have one: it brings file systems to rest for a snapshot.
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name=GUEST_AGENT)
    SubElement(SubElement(devices, "video"), "model", type="none")
    SubElement(devices, "memballoon", model="virtio", freePageReporting="on", autodeflate="on")
    _text(SubElement(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    SubElement(devices, "panic", model="isa")
    growing.device(devices, spec)
    shaping.devices(devices, spec.shape)


def _disk(devices: Element, disk: DomainDisk, target: str, *, direct: bool) -> None:
    element = SubElement(devices, "disk", type="", device="cdrom" if disk.cdrom else "disk")
    driver = SubElement(element, "driver", name="qemu", type=disk.format, cache=_cache(disk, direct=direct))
    if not (disk.cdrom or disk.read_only):
        driver.set("discard", "unmap")
        # The guest is paused and told nothing: it goes on, and the write with it, when there is room or the disk is back.
        driver.set("error_policy", "stop")
        driver.set("rerror_policy", "stop")
    sources.add(element, disk.source)
    if disk.passphrase is not None:
        sources.add_encryption(element, disk.source)
    if disk.format != "raw":
        sources.add_below(element, disk.source, disk.below)
    SubElement(element, "target", dev=target, bus="scsi" if _on_scsi(disk) else "virtio")
    iotune.render(element, disk.qos)
    _text(element, "serial", disk.name[:SERIAL_MAX])
    if disk.boot_order is not None:
        SubElement(element, "boot", order=str(disk.boot_order))
    if disk.cdrom or disk.read_only:
        SubElement(element, "readonly")
    if disk.volume is not None:
        SubElement(element, "alias", name=f"{VOLUME_ALIAS}{disk.volume}")
    if _on_scsi(disk):
        # By itself libvirt puts 15 disks on a controller and the 16th on another one.
        number = str(TARGETS.index(target[-1]))
        SubElement(element, "address", type="drive", controller="0", bus="0", target=number, unit="0")


def _drive(devices: Element, drive: DomainDrive, target: str, ports: Iterator[int]) -> None:
    element = SubElement(devices, "disk", type="file", device="cdrom")
    # Through the host's memory: many machines may read the same disc.
    SubElement(element, "driver", name="qemu", type="raw", cache=CacheMode.WRITEBACK)
    if drive.source is not None:
        sources.add(element, drive.source)
    SubElement(element, "target", dev=target, bus=drive.bus)
    _text(element, "serial", drive.name[:SERIAL_MAX])
    if drive.boot_order is not None:
        SubElement(element, "boot", order=str(drive.boot_order))
    SubElement(element, "readonly")
    SubElement(element, "alias", name=f"{DRIVE_ALIAS}{drive.name}")
    if drive.bus is DriveBus.SATA:
        SubElement(element, "address", type="drive", controller="0", bus="0", target="0", unit=str(next(ports)))
    else:
        number = str(TARGETS.index(target[-1]))
        SubElement(element, "address", type="drive", controller="0", bus="0", target=number, unit="0")


def _ports(devices: Element, spec: DomainSpec) -> None:
    """Room on q35 for what there is and for interfaces that come later: a PCI device can only come into a free root port."""
    SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    virtio = sum(not _on_scsi(disk) for disk in spec.disks)
    # The watchdog is a PCI device, and in the bridge that libvirt makes for it.
    more = (growing.room(spec).memory > 0) + (spec.shape.watchdog is not None)
    for index in range(1, virtio + len(spec.nics) + more + OWN_PORTS + SPARE_PORTS + 1):
        SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


_LEFT_TO_HOST = ("csum", "gso", "tso4", "tso6", "ecn", "ufo")
"""What a guest otherwise leaves to be done to the packets that it sends (virtio 1.1, 5.1.3)."""


def _nic(devices: Element, nic: DomainNic) -> None:
    """A tap of that name on that bridge. libvirt makes it when the guest starts, and takes it away when it ends. It filters
    nothing: the network driver does."""
    element = SubElement(devices, "interface", type="bridge")
    SubElement(element, "mac", address=nic.mac)
    SubElement(element, "source", bridge=nic.plug.bridge)
    if nic.plug.openvswitch is not None:
        port = SubElement(element, "virtualport", type="openvswitch")
        SubElement(port, "parameters", interfaceid=nic.plug.openvswitch)
    SubElement(element, "target", dev=nic.plug.device)
    SubElement(element, "model", type="virtio")
    if nic.plug.whole:
        SubElement(SubElement(element, "driver"), "host", dict.fromkeys(_LEFT_TO_HOST, "off"))
    SubElement(element, "mtu", size=str(nic.plug.mtu))
    # Nobody boots from the network: without its own program a card does not hold up the boot.
    SubElement(element, "rom", enabled="no")
    SubElement(element, "alias", name=f"{NIC_ALIAS}{nic.uid}")


def _cache(disk: DomainDisk, *, direct: bool) -> CacheMode:
    return disk.cache if direct else BUFFERED.get(disk.cache, disk.cache)


def _on_scsi(disk: DomainDisk) -> bool:
    """Volumes are on the same bus whether they were there at the start or came later: a guest finds them again."""
    return disk.cdrom or disk.volume is not None


def _targets(disks: Sequence[DomainDisk], drives: Sequence[DomainDrive]) -> Iterator[str]:
    """Device names in the order of the list: vda, vdb, ...; sda, sdb, ... for CD-ROMs and volumes; then the drives'."""
    virtio, scsi = iter(TARGETS), iter(TARGETS)
    for disk in disks:
        letter = next(scsi if _on_scsi(disk) else virtio, None)
        if letter is None:
            raise too_many()
        yield f"sd{letter}" if _on_scsi(disk) else f"vd{letter}"
    for _ in drives:
        letter = next(scsi, None)
        if letter is None:
            raise too_many()
        yield f"sd{letter}"


def _text(parent: Element, tag: str, text: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = text
