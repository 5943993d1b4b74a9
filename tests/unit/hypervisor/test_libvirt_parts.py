"""The pure parts of the libvirt driver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import libvirt
import pytest

from kumulus.api.compute import PowerState
from kumulus_agents.hypervisor.domain import DomainDisk, DomainSpec, DomainState, ExitReason, Marks
from kumulus_agents.hypervisor.foreign import NotedNic
from kumulus_agents.hypervisor.libvirt import acceleration, errors, inventory, marks, verbs
from kumulus_agents.hypervisor.libvirt.connection import Connection
from kumulus_agents.hypervisor.libvirt.marks import Hold, Record
from kumulus_agents.hypervisor.libvirt.migrating import Migrating
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.hypervisor.libvirt.state import Exits, exit_of, state_of
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import FileSource

UID = "6f1c2d7e-0b51-4f0c-9a57-3c1d5e8f9a01"

CAPABILITIES = """
<capabilities>
  <host>
    <cpu><arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor></cpu>
    <topology><cells num='2'>
      <cell id='0'><cpus num='2'><cpu id='0'/><cpu id='2'/></cpus></cell>
      <cell id='1'><cpus num='1'><cpu id='1'/></cpus></cell>
    </cells></topology>
  </host>
  <guest><os_type>hvm</os_type><arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator>
    <machine>pc-q35-1.0</machine></arch></guest>
  <guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-7.2</machine><machine>pc-i440fx-7.2</machine>
    <machine>pc-q35-7.2</machine></arch></guest>
</capabilities>
"""


@pytest.mark.parametrize(
    "hold", [None, *(Hold(halted, frozen) for halted in (True, False) for frozen in (True, False))]
)
def test_that_a_guest_is_held_is_in_its_metadata(hold: Hold | None) -> None:
    own = Marks(UID, 1, "tenant", "web", PowerState.RUNNING)
    xml = (
        f"<domain><uuid>{UID}</uuid><name>{marks.domain_name(UID)}</name><metadata>"
        + marks.instance_xml(own).replace("<instance", f'<instance xmlns="{marks.NAMESPACE}"')
        + (marks.hold_xml(hold).replace("<hold", f'<hold xmlns="{marks.HOLD_NAMESPACE}"') if hold is not None else "")
        + "</metadata></domain>"
    )
    assert marks.read(xml) == Record(own, None, hold=hold)


def test_what_is_known_of_interfaces_is_in_its_metadata() -> None:
    nics = (
        NotedNic("eth0", UID, "02:00:00:00:00:01", ("10.0.0.3", "fd00::3"), "tenant/front", 5000),
        NotedNic("eth1", UID, "02:00:00:00:00:02", (), "tenant/back", None, 17),
        NotedNic("eth2", UID, "02:00:00:00:00:03"),
    )
    own = Marks(UID, 1, "tenant", "web", PowerState.RUNNING, nics=nics)
    # libvirt gives the element the namespace, as a prefix, and leaves what is in it as it is.
    live = (
        marks.instance_xml(own)
        .replace("instance", "k:instance")
        .replace(" epoch", f' xmlns:k="{marks.NAMESPACE}" epoch')
    )
    defined = ElementTree.tostring(marks.instance(own, f"{{{marks.NAMESPACE}}}instance", f"{{{marks.NAMESPACE}}}nic"))
    for said in (live, defined.decode()):
        head = f"<domain><uuid>{UID}</uuid><name>{marks.domain_name(UID)}</name><metadata>"
        assert marks.read(f"{head}{said}</metadata></domain>") == Record(own, None)


def test_inventory() -> None:
    found = inventory.parse(CAPABILITIES, 1 << 34, inventory.version(9_000_000), inventory.version(7_002_022))
    assert (found.cpus, found.memory, found.cpu_model, found.cpu_vendor) == (3, 1 << 34, "EPYC-Rome", "AMD")
    assert (found.architecture, found.hypervisor_version, found.emulator_version) == ("x86_64", "9.0.0", "7.2.22")
    assert found.machine_types == ("pc-q35-7.2", "q35")
    assert inventory.emulator(CAPABILITIES) == "/usr/bin/qemu-system-x86_64"
    assert inventory.emulator("<capabilities><host/></capabilities>") is None


def event(name: str) -> int:
    """A constant of a lifecycle event."""
    value: int = getattr(libvirt, f"VIR_DOMAIN_EVENT_{name}")
    return value


@pytest.mark.parametrize(
    ("events", "told", "why"),
    [
        ([("SHUTDOWN", "SHUTDOWN_GUEST"), ("STOPPED", "STOPPED_SHUTDOWN")], "SHUTDOWN", ExitReason.SHUTDOWN),
        ([("SHUTDOWN", "SHUTDOWN_HOST"), ("STOPPED", "STOPPED_SHUTDOWN")], "SHUTDOWN", ExitReason.DESTROYED),
        ([("SHUTDOWN", "SHUTDOWN_HOST"), ("STOPPED", "STOPPED_DESTROYED")], "DESTROYED", ExitReason.DESTROYED),
        ([("CRASHED", "CRASHED_PANICKED"), ("STOPPED", "STOPPED_CRASHED")], "CRASHED", ExitReason.CRASHED),
        ([("STOPPED", "STOPPED_FAILED")], "CRASHED", ExitReason.CRASHED),
        ([("STOPPED", "STOPPED_FAILED")], "UNKNOWN", ExitReason.CRASHED),
        ([("STOPPED", "STOPPED_SHUTDOWN")], "UNKNOWN", ExitReason.SHUTDOWN),
        ([], "UNKNOWN", ExitReason.UNKNOWN),
        ([], "SAVED", ExitReason.UNKNOWN),
        ([], "FAILED", ExitReason.FAILED),
        ([("SHUTDOWN", "SHUTDOWN_HOST"), ("STARTED", "STARTED_BOOTED")], "SHUTDOWN", ExitReason.SHUTDOWN),
        ([("SHUTDOWN", "SHUTDOWN_HOST"), ("UNDEFINED", "UNDEFINED_REMOVED")], "UNKNOWN", ExitReason.UNKNOWN),
    ],
)
def test_why_a_run_ended(events: list[tuple[str, str]], told: str, why: ExitReason) -> None:
    exits = Exits()
    for name, detail in events:
        exits.note(UID, event(name), event(detail))
    reason: int = getattr(libvirt, f"VIR_DOMAIN_SHUTOFF_{told}")
    assert exits.why(UID, exit_of(libvirt.VIR_DOMAIN_SHUTOFF, reason)) is why


@pytest.mark.parametrize(
    ("state", "reason", "what"),
    [
        ("RUNNING", 1, DomainState.RUNNING),
        ("BLOCKED", 0, DomainState.RUNNING),
        ("SHUTDOWN", 1, DomainState.RUNNING),
        ("PAUSED", libvirt.VIR_DOMAIN_PAUSED_USER, DomainState.PAUSED),
        ("PAUSED", libvirt.VIR_DOMAIN_PAUSED_IOERROR, DomainState.PAUSED),
        ("PAUSED", libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, DomainState.RUNNING),
        ("SHUTOFF", 0, DomainState.STOPPED),
        ("CRASHED", 0, DomainState.STOPPED),
        ("NOSTATE", 0, DomainState.STOPPED),
    ],
)
def test_states(state: str, reason: int, what: DomainState) -> None:
    assert state_of(getattr(libvirt, f"VIR_DOMAIN_{state}"), reason) is what


class FakeError(libvirt.libvirtError):  # type: ignore[misc, unused-ignore]
    """An error of libvirt that nothing raised."""

    def __init__(self, code: int, domain: int, message: str) -> None:
        Exception.__init__(self, message)
        self.err = (code, domain, message, 2, None, None, None, 0, 0)


@pytest.mark.parametrize(
    ("code", "domain", "message", "reason", "retryable"),
    [
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            libvirt.VIR_FROM_RPC,
            "client socket is closed",
            "HypervisorUnavailable",
            True,
        ),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, "End of file", "HypervisorUnavailable", True),
        (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_FROM_NONE, "no", "HypervisorUnavailable", True),
        (libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_FROM_DOMAIN, "no", "InvalidDomain", False),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_FROM_QEMU, "no", "UnsupportedByHost", False),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_FROM_QEMU, "no", "HypervisorBusy", True),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, 'qemu: Failed to get "write" lock', "DiskInUse", True),
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            libvirt.VIR_FROM_QEMU,
            "cannot set up guest memory 'pc.ram'",
            "OutOfMemory",
            True,
        ),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, "something else" * 1000, "HypervisorError", True),
    ],
)
def test_errors(code: int, domain: int, message: str, reason: str, retryable: bool) -> None:
    error = errors.translate(FakeError(code, domain, message))
    assert (error.reason, error.retryable) == (reason, retryable)
    assert len(str(error)) <= errors.MESSAGE_MAX


def test_the_probe_program_is_a_boot_sector() -> None:
    assert len(acceleration.PROGRAM) <= acceleration.SECTOR - 2


def test_without_the_device_there_is_no_kvm(tmp_path: Path) -> None:
    assert acceleration.probe("/nowhere/qemu", tmp_path / "kvm") == "tcg"
    (tmp_path / "kvm").touch()
    assert acceleration.probe("/nowhere/qemu", tmp_path / "kvm") == "tcg"


def test_what_was_found_out_holds_for_the_same_emulator_and_device(tmp_path: Path) -> None:
    emulator, device, memory = tmp_path / "qemu", tmp_path / "kvm", tmp_path / "run/acceleration"
    device.touch()

    def emulates(status: int) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f"#!/bin/sh\nexit {status}\n")
        fresh.chmod(0o755)
        fresh.rename(emulator)

    emulates(acceleration.PASSED)
    assert acceleration.probe(str(emulator), device, memory=memory) == "kvm"
    kept = memory.read_text()
    memory.write_text(kept.removesuffix("kvm") + "tcg")
    assert acceleration.probe(str(emulator), device, memory=memory) == "tcg", "nothing is run"
    os.utime(memory, (0, time.time() - acceleration.DOUBT_SECONDS - 1))
    assert acceleration.probe(str(emulator), device, memory=memory) == "kvm", "there may be by now"
    emulates(1)
    assert acceleration.probe(str(emulator), device, memory=memory) == "tcg"
    emulates(acceleration.PASSED)
    assert acceleration.probe(str(emulator), device, memory=memory) == "kvm", "another emulator is asked anew"
    for garbage in ("", "kvm", "\0", "x " * 9000):
        memory.write_text(garbage)
        assert acceleration.probe(str(emulator), device, memory=memory) == "kvm"
    assert acceleration.probe(str(emulator), device, memory=device / "below") == "kvm", "it cannot be kept"
    assert list(memory.parent.iterdir()) == [memory]


def test_direct_leaves_what_cannot_be_opened_to_qemu(tmp_path: Path) -> None:
    assert verbs.direct(FileSource(str(tmp_path / "missing")))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        LibvirtSettings.model_validate({"urii": "x"})


class _Keys:
    """libvirt's secrets, by UUID; it takes one, and no more. Also the connection by which they are given to it."""

    def __init__(self) -> None:
        self.lent = set[str]()

    async def call(self, work: Callable[[Any], Any], *, seconds: float, key: str | None = None) -> Any:
        return work(self)

    def secretDefineXML(self, xml: str, flags: int) -> Any:  # noqa: N802
        if self.lent:
            raise HypervisorError("libvirt is gone.", reason=errors.UNAVAILABLE)
        uuid = ElementTree.fromstring(xml).findtext("uuid")
        assert uuid is not None
        self.lent.add(uuid)
        return SimpleNamespace(setValue=lambda value, flags: None)

    def secretLookupByUUIDString(self, uuid: str) -> Any:  # noqa: N802
        if uuid not in self.lent:
            raise libvirt.libvirtError("no secret")
        return SimpleNamespace(undefine=lambda: self.lent.discard(uuid))


async def test_keys_that_libvirt_took_are_taken_back_when_it_did_not_take_all() -> None:
    """The one that it took would be libvirt's until that is started anew."""
    keys = _Keys()
    disks = [
        DomainDisk(name, FileSource(f"/p/{name}"), "qcow2", volume=name, passphrase=Passphrase("secret"))
        for name in ("one", "two")
    ]
    spec = SimpleNamespace(disks=disks, drives=[], marks=SimpleNamespace(uid="1"))
    with pytest.raises(HypervisorError):
        async with Migrating(cast(Connection, keys), LibvirtSettings())._lending(cast(DomainSpec, spec)):
            raise AssertionError("no guest comes without them")
    assert keys.lent == set()
