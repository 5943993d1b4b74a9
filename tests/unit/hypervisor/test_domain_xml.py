"""What a spec becomes: golden files, and text that tries to become more than text."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.compute import PowerState
from kumulus.api.disks import DriveBus
from kumulus.api.hardware import Shape, WatchdogAction
from kumulus.api.qos import Burst, Qos
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.domain import DomainDisk, DomainDrive, DomainNic, DomainSpec, Marks
from kumulus_agents.hypervisor.foreign import NotedNic
from kumulus_agents.hypervisor.libvirt import allowlist, attached, marks
from kumulus_agents.hypervisor.libvirt.domain_xml import (
    Platform,
    as_attached,
    drives_as_attached,
    render,
    render_copy,
    render_volume,
)
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import BlockSource, FileSource, LayerFile, RbdSource

GOLDEN = Path(__file__).parent / "golden"
UID = "6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a01"
MARKS = Marks(UID, 3, "tenant-a", "web", PowerState.RUNNING, restart_request="2026-11-20 again", restarts=2)
ROOT = DomainDisk("root", FileSource(f"/var/lib/kumulus/pools/p/{UID}-root.qcow2"), "qcow2", boot_order=1)
DATA = DomainDisk("a-name-of-more-than-twenty", FileSource("/var/lib/kumulus/pools/p/data"), "raw", boot_order=2)
SEED = DomainDisk("seed", FileSource("/var/lib/kumulus/instances/seed.iso"), "raw", read_only=True, cdrom=True)
KEYS = DomainDisk("keys", FileSource("/var/lib/kumulus/instances/keys.img"), "raw", read_only=True)
VOLUME_UID = "0d6a5f52-2d4c-4a34-8a53-3f5a3b2f9d11"
VOLUME = DomainDisk(
    "pg",
    FileSource(f"/var/lib/kumulus/pools/p/volumes/{VOLUME_UID}.{UID}.qcow2"),
    "qcow2",
    3,
    volume=VOLUME_UID,
    below=(
        LayerFile(f"/var/lib/kumulus/pools/p/volumes/{VOLUME_UID}.qcow2", "qcow2"),
        LayerFile(f"/var/lib/kumulus/pools/p/images/{UID}.raw", "raw"),
    ),
)
RBD = RbdSource(
    ("10.0.0.1", "ceph-b.example.org:16789", "[fd00::c]:3300"), "vms", f"volume.{VOLUME_UID}", "kumulus", "c2VjcmV0"
)
NETWORK = DomainDisk("far", RBD, "raw", volume=VOLUME_UID)
LVM = DomainDisk("near", BlockSource(f"/dev/vg0/disk.{UID}"), "raw")
LIMITED = Qos(iops=500, read_bytes_per_second=1 << 20, burst=Burst(iops=2000, seconds=30))
DRIVES = (
    DomainDrive("cd", DriveBus.SATA, FileSource(f"/var/lib/kumulus/pools/p/images/{VOLUME_UID}.raw"), boot_order=2),
    DomainDrive("empty", DriveBus.SATA),
    DomainDrive("drivers", DriveBus.SCSI, boot_order=4),
)
NIC = DomainNic(VOLUME_UID, "02:4b:00:00:00:01", Plug("kt0d6a5f522d", "kb1111111111", 1450))
OVS_NIC = DomainNic(UID, "02:4b:00:00:00:02", Plug("kt6f1c2d7e0b", "br-int", 1442, openvswitch=UID, whole=True))
NOTED = (
    NotedNic("eth0", NIC.uid, NIC.mac, ("10.0.0.3", "fd00::3"), "tenant/front", 5000),
    NotedNic("eth1", UID, OVS_NIC.mac, (), "tenant/back", None, 17),
)
SPEC = DomainSpec(MARKS, cpus=2, memory=1 << 30, disks=(ROOT,), console_log="/var/lib/kumulus/instances/console.log")

CASES = {
    "tcg": (SPEC, Platform("tcg")),
    "tcg-maximum": (SPEC, Platform("tcg", emulated_cpu="maximum")),
    "kvm": (SPEC, Platform("kvm")),
    "disks": (
        replace(SPEC, disks=(ROOT, SEED, DATA, KEYS)),
        Platform("kvm", buffered=frozenset({DATA.path})),
    ),
    "volumes": (replace(SPEC, disks=(ROOT, VOLUME, SEED)), Platform("kvm")),
    "encrypted": (
        replace(
            SPEC,
            disks=(
                ROOT,
                replace(
                    VOLUME,
                    below=(replace(VOLUME.below[0], encrypted=True), VOLUME.below[1]),
                    passphrase=Passphrase("of the tenant's own"),
                ),
            ),
        ),
        Platform("kvm"),
    ),
    "limits": (
        replace(
            SPEC,
            disks=(
                ROOT,
                replace(VOLUME, qos=LIMITED, cache=CacheMode.DIRECTSYNC),
                replace(DATA, boot_order=4, cache=CacheMode.DIRECTSYNC),
            ),
        ),
        Platform("kvm", buffered=frozenset({DATA.path})),
    ),
    "drives": (replace(SPEC, disks=(ROOT, SEED, VOLUME), drives=DRIVES), Platform("kvm")),
    "sources": (replace(SPEC, disks=(ROOT, NETWORK, LVM)), Platform("kvm")),
    "nics": (replace(SPEC, nics=(NIC, OVS_NIC)), Platform("kvm")),
    "noted": (replace(SPEC, nics=(NIC, OVS_NIC), marks=replace(MARKS, nics=NOTED)), Platform("kvm")),
    "growing": (replace(SPEC, nics=(NIC,), max_cpus=4, max_memory=(3 << 30) + 1), Platform("kvm")),
    "shaped": (
        replace(
            SPEC,
            machine_type="pc-q35-7.1",
            shape=Shape(
                cpu_model="Skylake-Server",
                sockets=2,
                threads=1,
                uefi=True,
                secure_boot=True,
                tpm=True,
                watchdog=WatchdogAction.POWER_OFF,
            ),
        ),
        Platform("kvm"),
    ),
    "shaped-tcg": (
        replace(SPEC, shape=Shape(cpu_model="host-passthrough", cores=1, threads=2, uefi=True)),
        Platform("tcg"),
    ),
    "diskless": (replace(SPEC, disks=(), marks=replace(MARKS, restart_request=None)), Platform("tcg")),
}

HOSTILE = (
    "</name><devices><hostdev mode='subsystem' type='pci'/></devices>",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/shadow'>]>&e;",
    "<![CDATA[<qemu:commandline/>]]>",
    "a\" b='c",
    "../../etc/shadow",
    "$(id)",
    "-o x",
    "nul\x00",
    "line\nbreak",
    "x" * 300,
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    xml = render(*CASES[name]) + "\n"
    assert xml == (GOLDEN / f"{name}.xml").read_text(), f"if this is meant: write it to golden/{name}.xml"


def shape(xml: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every element with the names of its attributes, in order."""
    return [(element.tag, tuple(element.attrib)) for element in ElementTree.fromstring(xml).iter()]


@given(text=st.text(max_size=253), name=st.sampled_from(HOSTILE))
def test_a_users_text_stays_text(text: str, name: str) -> None:
    wanted = replace(MARKS, namespace=name, name=text, restart_request=text + name)
    xml = render(replace(SPEC, marks=wanted), Platform("tcg"))
    assert shape(xml) == shape(render(*CASES["tcg"]))
    record = marks.read(xml)
    assert record is not None
    assert record.marks == wanted


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_disk_name_path_uid_or_cpu_is_refused_or_stays_in_its_place(text: str) -> None:
    specs = (
        (replace(SPEC, disks=(replace(ROOT, name=text),)), Platform("tcg")),
        (replace(SPEC, disks=(replace(ROOT, source=FileSource(text)),)), Platform("tcg")),
        (replace(SPEC, disks=(replace(ROOT, source=FileSource("/pool/" + text)),)), Platform("tcg")),
        (replace(SPEC, console_log=text), Platform("tcg")),
        (replace(SPEC, marks=replace(MARKS, uid=text)), Platform("tcg")),
        (SPEC, Platform("tcg", emulated_cpu=text)),
    )
    for spec, platform in specs:
        try:
            xml = render(spec, platform)
        except HypervisorError as error:
            assert error.reason == "InvalidDomain"
            assert not error.retryable
        else:
            assert shape(xml) == shape(render(*CASES["tcg"]))


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, disks=(replace(ROOT, format="vmdk"),)),
        replace(SPEC, disks=(replace(ROOT, format="qcow2' /><hostdev"),)),
        replace(SPEC, disks=(ROOT, replace(DATA, boot_order=1))),
        replace(SPEC, disks=(replace(ROOT, source=FileSource("relative")),)),
        replace(SPEC, disks=(replace(ROOT, boot_order=0),)),
        replace(SPEC, disks=tuple(replace(ROOT, boot_order=None) for _ in range(27))),
        replace(SPEC, cpus=0),
        replace(SPEC, memory=-1),
        replace(SPEC, marks=replace(MARKS, epoch=-1)),
    ],
)
def test_what_cannot_be_a_domain_is_refused(spec: DomainSpec) -> None:
    with pytest.raises(HypervisorError) as caught:
        render(spec, Platform("tcg"))
    assert caught.value.reason == "InvalidDomain"
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<devices>", "<devices><hostdev mode='subsystem' type='pci'/>"),
        ("<devices>", "<devices><interface type='network'/>"),
        ("<devices>", "<devices><interface type='bridge'><filterref filter='allow-arp'/></interface>"),
        ("<devices>", "<devices><interface type='bridge'><script path='/tmp/x'/></interface>"),
        ("<devices>", "<devices><interface type='bridge'><source bridge='a b'/></interface>"),
        ("<devices>", "<devices><panic model='isa'/>"),
        ("<devices>", "<devices>text"),
        ("</os>", "<kernel>/etc/shadow</kernel></os>"),
        ("</domain>", "<seclabel type='none'/></domain>"),
        ("</domain>", "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>"),
        ("<domain ", "<domain id='1' "),
        ('cache="none"', 'cache="none" io="native"'),
        ('type="kvm"', 'type="lxc"'),
        ("<vcpu ", "<vcpu cpuset='1' "),
        (">/dev/urandom<", ">/dev/sda<"),
        ('type="pty"', 'type="tcp"'),
        ("<acpi />", "<acpi>x</acpi>"),
        ("</pm>", "</pm>text"),
        ("</domain>", "&x;</domain>"),
    ],
)
def test_the_allow_list_refuses_everything_else(before: str, after: str) -> None:
    xml = render(*CASES["kvm"])
    assert allowlist.violation(xml) is None
    assert before in xml
    changed = xml.replace(before, after, 1)
    assert allowlist.violation(changed) is not None


def test_a_volume_is_the_same_disk_whether_it_was_there_at_the_start_or_came_later() -> None:
    domain = ElementTree.fromstring(
        render(replace(SPEC, disks=(ROOT, SEED, replace(VOLUME, boot_order=None))), Platform("kvm"))
    )
    late = ElementTree.fromstring(render_volume(VOLUME, "sdb", direct=True))
    (early,) = (disk for disk in domain.iterfind("devices/disk") if disk.findtext("serial") == "pg")
    assert [(e.tag, e.attrib, (e.text or "").strip()) for e in early.iter()] == [
        (e.tag, e.attrib, (e.text or "").strip()) for e in late.iter()
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_volume_is_refused_or_stays_in_its_place(text: str) -> None:
    for volume in (
        replace(VOLUME, name=text),
        replace(VOLUME, source=FileSource("/pool/" + text)),
        replace(VOLUME, volume=text),
    ):
        try:
            xml = render_volume(volume, "sdb", direct=True)
        except HypervisorError as error:
            assert (error.reason, error.retryable) == ("InvalidDomain", False)
        else:
            assert shape(xml) == shape(render_volume(VOLUME, "sdb", direct=True))


@pytest.mark.parametrize("text", [*HOSTILE, "a/b", "a,b=c", ""])
def test_a_hostile_network_disk_is_refused_or_stays_in_its_place(text: str) -> None:
    for source in (
        replace(RBD, pool=text),
        replace(RBD, image=text),
        replace(RBD, user=text),
        replace(RBD, monitors=(*RBD.monitors[:2], text)),
        replace(RBD, key=text),
    ):
        try:
            xml = render_volume(replace(NETWORK, source=source), "sdb", direct=True)
        except HypervisorError as error:
            assert (error.reason, error.retryable) == ("InvalidDomain", False)
        else:
            assert source.key == text
            assert xml == render_volume(replace(NETWORK, source=replace(source, key="other")), "sdb", direct=True)


def test_a_key_is_in_no_definition_and_no_text() -> None:
    assert RBD.key not in repr(NETWORK) + str(NETWORK) + render(*CASES["sources"])
    assert NETWORK.path == f"rbd:vms/volume.{VOLUME_UID}"


def test_the_disks_of_a_domain_are_found_in_its_xml() -> None:
    xml = render(*CASES["volumes"])
    assert [(disk.name, disk.volume) for disk in attached.disks(ElementTree.fromstring(xml))] == [
        ("root", None),
        ("pg", VOLUME_UID),
        ("seed", None),
    ]
    for spec, platform in CASES.values():
        assert attached.disks(ElementTree.fromstring(render(spec, platform))) == as_attached(
            spec.disks, platform.buffered
        )
        found = attached.drives(ElementTree.fromstring(render(spec, platform)))
        assert found == drives_as_attached(spec.drives)
    assert attached.target_of(xml, VOLUME_UID) == "sda"
    assert attached.target_of(xml, UID) is None
    assert attached.free_target([xml, render(*CASES["diskless"])]) == "sdc"
    full = replace(SPEC, disks=[replace(SEED, name=str(number)) for number in range(26)])
    with pytest.raises(HypervisorError):
        attached.free_target([render(full, Platform("kvm"))])


def test_what_a_disk_is_copied_to_stands_on_nothing_and_has_no_secret_in_it() -> None:
    text = render_copy(replace(VOLUME, passphrase=Passphrase("open sesame")))
    disk = ElementTree.fromstring(text)
    below = disk.find("backingStore")
    assert below is not None and len(below) == 0
    assert disk.find("source/encryption/secret") is not None and "open sesame" not in text
    network = ElementTree.fromstring(render_copy(NETWORK))
    assert network.get("type") == "network" and network.find("backingStore") is None
    assert RBD.key not in ElementTree.tostring(network, encoding="unicode")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_place_to_copy_to_is_refused_or_stays_in_its_place(text: str) -> None:
    try:
        xml = render_copy(replace(VOLUME, source=FileSource("/pool/" + text)))
    except HypervisorError as error:
        assert (error.reason, error.retryable) == ("InvalidDomain", False)
    else:
        assert shape(xml) == shape(render_copy(VOLUME))


@pytest.mark.parametrize("job", ["copy", "active-commit"])
@pytest.mark.parametrize("ready", [True, False])
def test_what_a_disk_is_copied_to_is_found_in_a_domain(job: str, ready: bool) -> None:
    root = ElementTree.fromstring(render(*CASES["volumes"]))
    disk = next(one for one in root.iterfind("devices/disk") if one.findtext("serial") == "pg")
    mirror = ElementTree.SubElement(disk, "mirror", {"type": "file", "job": job, **({"ready": "yes"} if ready else {})})
    ElementTree.SubElement(mirror, "source", file="/beyond/copy.qcow2")
    xml = ElementTree.tostring(root, encoding="unicode")
    wanted = "/beyond/copy.qcow2" if job == "copy" else None
    assert attached.copied_to(xml, VOLUME_UID) == wanted
    assert {one.volume: one.copied_to for one in attached.disks(root)} == {None: None, VOLUME_UID: wanted}
    assert attached.has_caught_up(xml, VOLUME_UID) is ready
    assert attached.chain_of(xml, VOLUME_UID)[0] == VOLUME.path
    assert attached.copied_to(xml, UID) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_drive_is_refused_or_stays_in_its_place(text: str) -> None:
    for drive in (replace(DRIVES[0], name=text), replace(DRIVES[0], source=FileSource(text))):
        try:
            xml = render(replace(SPEC, drives=(drive,)), Platform("tcg"))
        except HypervisorError as error:
            assert (error.reason, error.retryable) == ("InvalidDomain", False)
        else:
            assert shape(xml) == shape(render(replace(SPEC, drives=DRIVES[:1]), Platform("tcg")))


def test_a_disc_is_changed_in_the_drive_that_is_meant() -> None:
    xml = render(*CASES["drives"])
    assert attached.with_disc(xml, "cd", DRIVES[0].source) is None
    assert attached.with_disc(xml, "empty", None) is None
    assert attached.with_disc(xml, "seed", FileSource("/x")) is None
    for name, path in (("cd", None), ("cd", "/new"), ("empty", "/new"), ("drivers", "/a'\"<>&b")):
        changed = attached.with_disc(xml, name, FileSource(path) if path else None)
        assert changed is not None
        root = ElementTree.fromstring(f"<domain><devices>{changed}</devices></domain>")
        assert [(drive.name, drive.path) for drive in attached.drives(root)] == [(name, path)]


def test_marks_of_others_are_not_ours() -> None:
    xml = render(*CASES["kvm"])
    assert marks.read(xml) is not None
    for before, after in (
        (f"<uuid>{UID}", f"<uuid>{uuid.uuid4()}"),
        ("<name>kumulus-", "<name>copy-of-kumulus-"),
        ('epoch="3"', 'epoch="x"'),
        ('wanted="Running"', 'wanted="Sideways"'),
        (' restarts="2"', ""),
        (marks.NAMESPACE, "https://example.org/other"),
    ):
        assert before in xml
        assert marks.read(xml.replace(before, after)) is None
