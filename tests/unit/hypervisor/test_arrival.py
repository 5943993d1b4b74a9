"""What a host takes over of what another one sends: the guest, and nothing that is the host's own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.compute import PowerState
from kumulus.api.hardware import Shape, WatchdogAction
from kumulus_agents.hypervisor.domain import DomainDisk, DomainNic, DomainSpec, Marks
from kumulus_agents.hypervisor.libvirt import arrival, domain_xml, marks, wire
from kumulus_agents.hypervisor.libvirt.arrival import Refused
from kumulus_agents.hypervisor.libvirt.sieve import Sieve
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.source import FileSource, LayerFile

UID, GO, VOLUME, NIC = (f"6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a0{n}" for n in range(1, 5))
TCG = domain_xml.Platform("tcg")
DISK = DomainDisk(
    "root", FileSource("/p/v.qcow2"), "qcow2", 1, volume=VOLUME, below=(LayerFile("/p/image.raw", "raw"),)
)


def spec(epoch: int, host: str, disk: DomainDisk = DISK, *, memory: int = 128 << 20) -> DomainSpec:
    seed = DomainDisk("seed", FileSource(f"/var/{host}/seed.iso"), "raw", read_only=True, cdrom=True)
    nic = DomainNic(NIC, "02:00:00:00:00:01", Plug(f"kt{host}", f"kb{host}", 1450))
    return DomainSpec(
        Marks(UID, epoch, "ns", "vm", PowerState.RUNNING),
        1,
        memory,
        [disk, seed],
        f"/var/{host}/console.log",
        nics=[nic],
    )


OWN = domain_xml.render(spec(2, "east"), TCG)


def theirs(**changes: str) -> str:
    """What the other host's libvirt says of the guest, as far as it matters, with texts replaced."""
    xml = domain_xml.render(spec(1, "west"), TCG)
    xml = xml.replace('machine="q35"', 'machine="pc-q35-7.2"')
    xml = xml.replace("<devices>", "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>")
    xml = xml.replace(
        '<model type="virtio" />',
        '<model type="virtio" /><address type="pci" domain="0x0000" bus="0x09" slot="0x00" function="0x0" />',
    )
    for old, new in changes.items():
        xml = xml.replace(old, new)
    return xml


def altered(pattern: str, to: str) -> str:
    found, number = re.subn(pattern, to, theirs())
    assert number, pattern
    return found


def test_the_guest_is_as_it_was_and_all_else_is_this_hosts() -> None:
    found = arrival.definition(theirs(), OWN, migration=GO)
    assert "west" not in found and "emulator" not in found
    root = ElementTree.fromstring(found)
    assert root.find("os/type").get("machine") == "pc-q35-7.2"  # type: ignore[union-attr]
    nic = root.find("devices/interface")
    assert nic is not None
    assert nic.find("source").get("bridge") == "kbeast" and nic.find("target").get("dev") == "kteast"  # type: ignore[union-attr]
    assert nic.find("address").get("bus") == "0x09", "where the guest has it"  # type: ignore[union-attr]
    assert root.find("devices/serial/log").get("file") == "/var/east/console.log"  # type: ignore[union-attr]
    record = marks.read(found)
    assert record is not None and record.arriving == GO and record.marks.epoch == 2
    awaited = marks.read(arrival.awaiting(OWN, GO))
    assert awaited is not None and awaited.arriving == GO


@pytest.mark.parametrize(
    ("pattern", "to"),
    [
        (UID, GO),
        (r"<vcpu placement=\"static\">1", '<vcpu placement="static">64'),
        (r"<memory unit=\"b\">\d+", '<memory unit="b">999999999999'),
        (r"/p/v.qcow2", "/etc/shadow"),
        (r"/p/image.raw", "/dev/sda"),
        (r"<devices>", '<devices><filesystem type="mount"><source dir="/"/><target dir="x"/></filesystem>'),
        (r"<devices>", '<devices><hostdev mode="subsystem" type="pci"/>'),
        (
            r"<devices>",
            '<devices><disk type="file" device="disk"><source file="/etc/shadow"/><target dev="sdz" bus="scsi"/></disk>',
        ),
        (r"<devices>", '<devices><interface type="bridge"><source bridge="br0"/></interface>'),
        (r"02:00:00:00:00:01", "02:00:00:00:00:99"),
        (r"<pm>", '<qemu:commandline xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"/><pm>'),
        (r"pc-q35-7.2", "../../x"),
        (r"<serial>root", "<serial>other"),
        (r"<features>", "<launchSecurity type='sev'/><features>"),
        (r"</domain>", ""),
    ],
)
def test_what_is_no_guest_of_the_order_is_refused(pattern: str, to: str) -> None:
    with pytest.raises(Refused):
        arrival.definition(altered(pattern, to), OWN, migration=GO)


def sieve() -> Sieve:
    return Sieve("kumulus-x", "unix:///run/x", lambda xml: f"own of {xml}")


def call(procedure: int, body: bytes = b"", *, program: int = wire.REMOTE, kind: int = wire.CALL) -> bytes:
    return wire.HEADER.pack(wire.HEADER.size + len(body), program, 1, procedure, kind, 7, 0) + body


def asks(procedure: int, flags: int, rest: bytes = b"", **texts: str) -> bytes:
    head = wire.Head.of(call(procedure))
    return wire.message(head, wire.Arguments({name: (7, text) for name, text in texts.items()}, b"cookie", flags, rest))


def test_prepare_is_this_hosts_and_halted() -> None:
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_TUNNELLED
    asked = asks(wire.PREPARE, flags, destination_xml="theirs", migrate_uri="tcp://6.6.6.6", destination_name="root")
    found = wire.arguments_of(sieve().sift(asked))
    assert found.text("destination_xml") == "own of theirs" and found.text("migrate_uri") == "unix:///run/x"
    assert found.parameters.keys() == {"destination_xml", "migrate_uri"} and found.cookie == b"cookie"
    assert found.flags == libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PAUSED


def copies(*disks: str, flags: int = libvirt.VIR_MIGRATE_NON_SHARED_DISK) -> bytes:
    """Prepare, with disks that are copied."""
    texts = {"destination_xml": (7, theirs()), "disks_uri": (7, "tcp://6.6.6.6")}
    return wire.message(wire.Head.of(call(wire.PREPARE)), wire.Arguments(texts, b"", flags, disks=disks))


def copying() -> Sieve:
    return Sieve("kumulus-x", "unix:///run/x", lambda xml: xml, frozenset({"root"}), "unix:///run/disks")


def test_the_disks_that_come_are_those_of_this_hosts_order() -> None:
    found = wire.arguments_of(copying().sift(copies("sda")))
    assert found.disks == ("sda",) and found.text("disks_uri") == "unix:///run/disks"
    assert found.flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK


@pytest.mark.parametrize(
    "asked", [copies(), copies("sda", "sdb"), copies("sdb"), copies("sda", "sda"), copies("sda", flags=0)]
)
def test_other_disks_do_not_come(asked: bytes) -> None:
    with pytest.raises(Refused, match="other disks"):
        copying().sift(asked)


def test_disks_that_nobody_waits_for_do_not_come() -> None:
    with pytest.raises(Refused, match="other disks"):
        sieve().sift(copies("sda"))


def test_a_disk_that_comes_stands_on_this_hosts_file_alone() -> None:
    mine = replace(DISK, source=FileSource("/here/v.qcow2"), below=(), copied=True)
    own = domain_xml.render(spec(2, "east", mine), TCG)
    with pytest.raises(Refused, match="changed meanwhile"):
        arrival.definition(theirs(), own, migration=GO)
    root = ElementTree.fromstring(arrival.definition(theirs(), own, migration=GO, copied=frozenset({"root"})))
    found = root.find("devices/disk[@device='disk']")
    assert found is not None and found.find("source").get("file") == "/here/v.qcow2"  # type: ignore[union-attr]
    assert [child.find("source") for child in found.iter("backingStore")] in ([], [None])


def test_finish_is_of_this_machine_and_leaves_it_halted() -> None:
    found = wire.arguments_of(
        sieve().sift(asks(wire.FINISH, libvirt.VIR_MIGRATE_LIVE, b"\0\0\0\1", destination_name="o"))
    )
    assert found.text("destination_name") == "kumulus-x" and found.rest == b"\0\0\0\1"
    assert found.flags == libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PAUSED


@pytest.mark.parametrize(
    "message",
    [
        *(call(number) for number in (3, 9, 12, 23, 107, 195, 212, 294, 335, 400)),
        call(wire.SUPPORTS_FEATURE, program=0x20008087),
        call(wire.SUPPORTS_FEATURE, kind=3),
        call(wire.OPEN, b"\0\0\0\1\0\0\0\7lxc:///\0\0\0\0\0"),
        call(wire.OPEN, b"\0\0\0\0\0\0\0\0"),
    ],
)
def test_nothing_else_gets_through(message: bytes) -> None:
    with pytest.raises(Refused):
        sieve().sift(message)


def test_a_second_prepare_is_refused() -> None:
    strict = sieve()
    strict.sift(asks(wire.PREPARE, 0, destination_xml="theirs"))
    with pytest.raises(Refused):
        strict.sift(asks(wire.PREPARE, 0, destination_xml="theirs"))


@given(procedure=st.sampled_from([wire.PREPARE, wire.FINISH, wire.OPEN]), body=st.binary(max_size=200))
def test_garbage_is_refused_or_becomes_a_message_of_ours(procedure: int, body: bytes) -> None:
    try:
        found = sieve().sift(call(procedure, body))
    except (Refused, wire.Malformed):
        return
    assert int.from_bytes(found[:4], "big") == len(found)
    if procedure != wire.OPEN:
        assert wire.arguments_of(found).flags & libvirt.VIR_MIGRATE_PAUSED


def test_another_chain_of_the_disk_is_refused() -> None:
    other = replace(DISK, source=FileSource("/p/layer.qcow2"), below=(LayerFile("/p/v.qcow2", "qcow2"), *DISK.below))
    own = domain_xml.render(spec(2, "east", other), TCG)
    with pytest.raises(Refused, match="changed meanwhile"):
        arrival.definition(theirs(), own, migration=GO)


FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
MADE = Shape(uefi=True, tpm=True, watchdog=WatchdogAction.RESET)


def grown(epoch: int, **changes: Any) -> DomainSpec:
    """A machine with all that a machine can have, of 128 MiB that can become 512."""
    found = replace(spec(epoch, "east" if epoch > 1 else "west"), max_cpus=4, max_memory=512 << 20, shape=MADE)
    return replace(found, **changes)


def started(**changes: str) -> str:
    """What the other host's libvirt says of it."""
    xml = domain_xml.render(grown(1), TCG, "pc-q35-7.2")
    xml = re.sub(r'<os firmware="efi">', "<os>", xml)
    xml = re.sub(
        r"<firmware>.*</firmware>", f'<loader readonly="yes" type="pflash">{FIRMWARE}</loader>', xml, flags=re.S
    )
    for old, new in changes.items():
        assert old in xml, old
        xml = xml.replace(old, new)
    return xml


def comes(xml: str, own: DomainSpec) -> Element:
    made = domain_xml.render(own, TCG)
    return ElementTree.fromstring(arrival.definition(xml, made, migration=GO, loaders={FIRMWARE}))


def test_what_it_was_started_with_is_told_and_its_firmware_is_this_hosts_file() -> None:
    waits = MADE.model_copy(update={"cpu_model": "Nehalem", "watchdog": None})
    root = comes(
        started().replace("</loader>", '</loader><nvram template="/etc/shadow">/x</nvram>'), grown(2, shape=waits)
    )
    record = marks.read(ElementTree.tostring(root, encoding="unicode"))
    assert record is not None and record.shape == MADE and record.marks.epoch == 2
    assert root.findtext("os/loader") == FIRMWARE and root.find("os/nvram") is None
    assert root.find("devices/tpm") is not None and root.find("devices/watchdog") is not None


def test_one_that_has_grown_has_the_size_of_its_order() -> None:
    """It began with 128 MiB and has taken 64 more; its order begins with what it has."""
    requested = '<requested unit="b">0</requested>'
    xml = started(**{requested: f'<requested unit="b">{64 << 20}</requested>', 'current="1"': 'current="2"'})
    assert comes(xml, grown(2, cpus=2, memory=192 << 20)).findtext("vcpu") == "4"
    for own in (grown(2, cpus=2), grown(2, cpus=2, memory=192 << 20, max_memory=2 << 30), grown(2, memory=192 << 20)):
        with pytest.raises(Refused, match="size"):
            comes(xml, own)


@pytest.mark.parametrize(
    ("old", "new", "own"),
    [
        (FIRMWARE, "/etc/shadow", {}),
        ('secureBoot="', 'x="', {"shape": MADE.model_copy(update={"secure_boot": True})}),
        ("", "", {"shape": MADE.model_copy(update={"tpm": False})}),
        ("", "", {"shape": MADE.model_copy(update={"uefi": False})}),
        ('memory="134217728"', 'memory="999999999999"', {}),
        ("<numa>", "<cell/><numa>", {}),
        ('<size unit="b">', '<size unit="b">9', {}),
        ('uefi="True"', 'uefi="/etc"', {}),
        ('unit="b">0</requested>', 'unit="b">99999999999</requested>', {}),
    ],
)
def test_what_its_order_does_not_say_is_refused(old: str, new: str, own: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        comes(started().replace(old, new) if old else started(), grown(2, **own))
