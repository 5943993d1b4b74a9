"""Domains that somebody defined with libvirt's own means, adopted and given back, by a libvirtd and QEMU of the test's own."""

# ruff: noqa: ASYNC221, ASYNC240 - small commands, in tests

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.snapshots import QuiesceMode
from kumulus_agents.hypervisor.domain import (
    AdoptedDisk,
    AdoptedNic,
    Adoption,
    AttachedNic,
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    DomainState,
    Marks,
    Quiesce,
)
from kumulus_agents.hypervisor.foreign import Orphan
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import FileSource
from tests.contract import guest
from tests.contract.hypervisor import Heard, eventually, new_marks
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.unit.storage.material import pool_ref

pytestmark = pytest.mark.libvirt

MAC = "52:54:00:00:00:0a"
DOMAIN = """
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<metadata><mine:note xmlns:mine='urn:somebody'>keep me</mine:note></metadata>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><mac address='{mac}'/><source bridge='{bridge}'/><model type='virtio'/></interface>
{more}</devices></domain>
"""
SCSI = "<controller type='scsi' index='0' model='virtio-scsi'/>"


@dataclass
class Host:
    """A host with a pool in whose directory somebody has a domain's disk, and a bridge of theirs."""

    world: LibvirtWorld
    driver: LibvirtHypervisor
    heard: Heard
    pool: DirStorage
    path: Path
    bridge: str

    def define(self, *, more: str = SCSI) -> Marks:
        """Somebody defines a domain, and starts it; the marks of the machine that it is to be."""
        marks = new_marks()
        disk = self.path / f"{marks.uid[:8]}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "16M"], check=True)
        file = self.path.parent / "domain.xml"
        file.write_text(
            DOMAIN.format(name=self.name(marks), uuid=marks.uid, disk=disk, mac=MAC, bridge=self.bridge, more=more)
        )
        self.world.virsh("define", str(file))
        self.world.virsh("start", marks.uid)
        return marks

    def name(self, marks: Marks) -> str:
        return f"by-hand-{marks.uid[:8]}"

    async def adopt(self, marks: Marks) -> Adoption:
        """It becomes a machine."""
        found = (await self.foreign(marks)).shape.disks[0]
        assert found.source is not None
        entry = await self.pool.identify(found.source)
        assert entry is not None
        volume = str(uuid.uuid4())
        stored = await self.pool.adopt_volume(volume, entry.id, {volume}, "tenant", foreign=True, beside=True)
        nic = self.world.nic()
        adoption = Adoption(marks, [AdoptedDisk("root", volume, stored.path)], [AdoptedNic(nic.uid, MAC, nic.plug)])
        await self.driver.adopt(adoption)
        return adoption

    async def foreign(self, marks: Marks):  # type: ignore[no-untyped-def]
        return next(domain for domain in await self.driver.foreign() if domain.uuid == marks.uid)

    async def is_foreign(self, marks: Marks) -> bool:
        return marks.uid in [domain.uuid for domain in await self.driver.foreign()]

    def qemu(self, name: str) -> int:
        return self.world.libvirtd.qemu(name)

    def spec(self, adoption: Adoption) -> DomainSpec:
        """What an agent has it defined as when it starts."""
        (disk,) = adoption.disks
        log = self.path.parent / "log" / "console.log"
        disks = (DomainDisk("root", FileSource(disk.path), "qcow2", boot_order=1, volume=disk.volume),)
        return DomainSpec(adoption.marks, cpus=1, memory=128 << 20, disks=disks, console_log=str(log))


@pytest.fixture
async def host(libvirtd: PrivateLibvirtd, images: guest.Disks, tmp_path: Path) -> AsyncIterator[Host]:
    world = LibvirtWorld(libvirtd, images, tmp_path)
    bridge = f"bh{os.urandom(3).hex()}"
    path = tmp_path / "pools" / "fast"
    pool = DirStorage(pool_ref(path), StorageSettings(roots=(PurePosixPath(path.parent),), readers=()))
    await pool.prepare()
    driver, heard = world.driver(), Heard()
    await driver.connect(heard)
    try:
        await heard.about("")
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        yield Host(world, driver, heard, pool, path, bridge)
    finally:
        await driver.close()
        world.clear()
        subprocess.run(["ip", "link", "del", bridge], check=False)


async def test_a_domain_is_adopted_as_it_runs_and_is_a_machine_like_any_other(host: Host) -> None:
    marks = host.define()
    name = host.name(marks)
    pid = host.qemu(name)
    assert await host.driver.domain(marks.uid) is None
    adoption = await host.adopt(marks)
    (disk,), (nic,) = adoption.disks, adoption.nics
    for again in (False, True):
        domain = await host.driver.domain(marks.uid)
        assert domain is not None and (domain.marks, domain.state) == (marks, DomainState.RUNNING)
        assert [(one.name, one.volume, one.path) for one in domain.disks] == [("root", disk.volume, disk.path)]
        assert [(one.uid, one.mac) for one in domain.nics] == [(nic.uid, MAC)]
        assert domain.started_at is not None and not await host.is_foreign(marks)
        assert [one.marks for one in await host.driver.domains()] == [marks]
        if not again:
            await host.driver.adopt(adoption)
    assert host.qemu(name) == pid, "it was not restarted"
    assert [one.elsewhere for one in domain.nics] == [True] and not host.world.taps()
    for _ in range(2):
        await host.driver.replug_nic(marks.uid, DomainNic(nic.uid, MAC, nic.plug))
        domain = await host.driver.domain(marks.uid)
        assert domain is not None and domain.nics == (AttachedNic(nic.uid, MAC, nic.plug.device),)
        assert host.world.taps() == {nic.plug.device} and not list(
            Path("/sys/class/net", host.bridge, "brif").iterdir()
        )
        assert Path("/sys/class/net", nic.plug.device, "mtu").read_text().strip() == "1450"
    assert host.qemu(name) == pid
    # It is a machine like any other.
    volume = host.world.volume()
    assert volume.volume is not None
    await host.driver.attach_disk(marks.uid, volume)
    domain = await host.driver.domain(marks.uid)
    assert domain is not None and domain.volumes == {disk.volume, volume.volume}
    await host.driver.resize_disk(marks.uid, disk.volume, 32 << 20)
    await host.driver.pause(marks.uid)
    await host.driver.resume(marks.uid)
    host.heard.clear()
    await host.driver.force_off(marks.uid)
    await host.heard.about(marks.uid)
    assert not host.world.taps() and not Path("/sys/class/net", nic.plug.device).exists()
    stored = await host.pool.open_volume(disk.volume)
    assert stored is not None and stored.virtual_size == 32 << 20
    assert not (host.path / f"{marks.uid[:8]}.qcow2").exists(), "its file has the volume's name alone"
    await host.driver.start(host.spec(adoption))
    assert host.world.virsh("domname", marks.uid) == f"kumulus-{marks.uid}"
    started = await host.driver.domain(marks.uid)
    assert started is not None and started.state is DomainState.RUNNING
    await host.driver.remove(marks.uid)
    assert marks.uid not in host.world.virsh("list", "--all", "--uuid")


async def test_what_is_disowned_goes_on_as_nobodys_with_its_own_metadata(host: Host) -> None:
    marks = host.define()
    pid = host.qemu(host.name(marks))
    adoption = await host.adopt(marks)
    for _ in range(2):
        await host.driver.disown(marks.uid)
        assert await host.is_foreign(marks) and await host.driver.domain(marks.uid) is None
    for xml in (host.world.virsh("dumpxml", marks.uid), host.world.virsh("dumpxml", "--inactive", marks.uid)):
        assert "kumulus.io" not in xml and "keep me" in xml
    assert host.qemu(host.name(marks)) == pid
    await host.pool.retain_volume(adoption.disks[0].volume, "tenant", "root")
    await host.adopt(marks)
    assert not await host.is_foreign(marks), "it can be had again"


async def test_a_domain_that_is_another_one_is_left_as_it_is(host: Host) -> None:
    marks = host.define()
    before = host.world.virsh("dumpxml", marks.uid)
    volume = host.world.volume()
    for disks, nics in (
        ([], []),
        ([AdoptedDisk("root", str(uuid.uuid4()), volume.path)], []),
        (
            [AdoptedDisk("root", str(uuid.uuid4()), str(host.path / f"{marks.uid[:8]}.qcow2"))],
            [AdoptedNic(str(uuid.uuid4()), "52:54:00:00:00:0b", host.world.nic().plug)],
        ),
    ):
        with pytest.raises(HypervisorError) as refused:
            await host.driver.adopt(Adoption(marks, disks, nics))
        assert (refused.value.reason, refused.value.retryable) == ("AdoptionMismatch", False)
    assert host.world.virsh("dumpxml", marks.uid) == before
    with pytest.raises(HypervisorError, match="not there any more"):
        await host.driver.adopt(Adoption(new_marks()))


@pytest.mark.wide
async def test_its_disks_and_interfaces_come_and_go_while_it_runs(host: Host) -> None:
    marks = host.define()
    adoption = await host.adopt(marks)
    (disk,), (nic,) = adoption.disks, adoption.nics
    layer = host.world.layer(disk.path)
    await host.driver.snapshot_disks(marks.uid, {disk.volume: layer}, Quiesce(QuiesceMode.NEVER))

    async def path() -> str:
        domain = await host.driver.domain(marks.uid)
        assert domain is not None
        return next(one.path for one in domain.disks if one.volume == disk.volume)

    async def merged() -> None:
        """The pool would note it."""

    assert await path() == layer.path
    await host.driver.merge_layers(marks.uid, disk.volume, layer.path, disk.path, lambda *_: None, merged)
    assert await path() == disk.path
    await host.driver.suspend(marks.uid)
    await host.pool.open_volume(disk.volume)
    await host.driver.wake(host.spec(adoption))
    domain = await host.driver.domain(marks.uid)
    assert domain is not None and domain.state is DomainState.RUNNING and domain.volumes == {disk.volume}
    # A guest that is not there lets go of nothing; what it is asked is what is looked at.
    with contextlib.suppress(HypervisorError):
        await host.driver.detach_nic(marks.uid, nic.uid)
    assert MAC not in host.world.virsh("domiflist", "--inactive", marks.uid)
    with contextlib.suppress(HypervisorError):
        await host.driver.detach_disk(marks.uid, disk.volume)
    assert disk.volume not in host.world.virsh("domblklist", "--inactive", marks.uid)
    assert "vda" not in host.world.virsh("domblklist", "--inactive", marks.uid)
    host.heard.clear()
    host.world.virsh("destroy", marks.uid)
    await host.heard.about(marks.uid)

    async def off() -> bool:
        domain = await host.driver.domain(marks.uid)
        return domain is not None and domain.state is DomainState.STOPPED and not domain.disks

    await eventually(off, "it is not off")


async def test_what_somebody_does_to_a_machine_is_noticed_and_put_back(host: Host) -> None:
    """By virsh, while it runs: its definition taken away, edited, its guest halted."""
    spec = host.world.spec()
    uid, driver, world = spec.marks.uid, host.driver, host.world
    await driver.start(spec)

    async def seen() -> Domain:
        found = await driver.domain(uid)
        assert found is not None
        return found

    async def heard(*virsh: str) -> None:
        host.heard.clear()
        world.virsh(*virsh)
        await host.heard.about(uid, 5)

    await heard("undefine", uid)
    assert (await seen()).lost and uid not in world.virsh("list", "--all", "--persistent", "--uuid")
    await driver.redefine(uid)
    assert not (await seen()).lost and uid in world.virsh("list", "--all", "--persistent", "--uuid")
    await driver.redefine(uid)
    assert (await seen()).edited == ()
    xml = world.virsh("dumpxml", "--inactive", uid)
    file = host.path.parent / "edited.xml"
    file.write_text(
        xml.replace("<on_reboot>restart", "<on_reboot>destroy").replace("<on_crash>destroy", "<on_crash>restart")
    )
    await heard("define", str(file))
    edited = await seen()
    assert (edited.edited, edited.cpus, edited.lost) == (("on_reboot", "on_crash"), 1, False)
    await heard("suspend", uid)
    assert (await seen()).state is DomainState.PAUSED and (await seen()).pause_reason is None
    await driver.resume(uid)
    await heard("destroy", uid)
    await driver.start(spec)
    assert (await seen()).edited == () and "<on_crash>destroy" in world.virsh("dumpxml", "--inactive", uid)


async def test_a_machine_that_nobody_orders_is_had_by_other_uids(host: Host) -> None:
    """Its objects were lost: its volume and its interface are others now, and its guest does not notice."""
    marks, nic = new_marks(), host.world.nic()
    before, after = str(uuid.uuid4()), str(uuid.uuid4())
    stored = await host.pool.ensure_volume(before, 16 << 20, None, thick=False)
    log = str(host.path.parent / "log" / "console.log")
    disks = (DomainDisk("root", stored.source, "qcow2", boot_order=1, volume=before),)
    spec = DomainSpec(marks, cpus=1, memory=128 << 20, disks=disks, console_log=log, nics=[nic])
    await host.driver.start(spec)
    pid = host.world.qemu(spec)
    (orphan,) = [one for one in await host.driver.foreign(orphans={marks.uid}) if one.uuid == marks.uid]
    assert orphan.machine == Orphan("tenant", "web", 1)
    found = await host.pool.identify(orphan.shape.disks[0].source or "")
    assert found is not None and found.id == before
    again = await host.pool.adopt_volume(after, found.id, {after}, "tenant", foreign=True, beside=True)
    other = host.world.nic()
    adoption = Adoption(
        replace(marks, epoch=2), [AdoptedDisk("root", after, again.path)], [AdoptedNic(other.uid, nic.mac, other.plug)]
    )
    await host.driver.adopt(adoption)
    await host.driver.replug_nic(marks.uid, DomainNic(other.uid, nic.mac, other.plug))
    domain = await host.driver.domain(marks.uid)
    assert domain is not None and (domain.marks.epoch, domain.state) == (2, DomainState.RUNNING)
    assert [(one.volume, one.path) for one in domain.disks] == [(after, again.path)]
    assert domain.nics == (AttachedNic(other.uid, nic.mac, other.plug.device),)
    assert host.world.taps() == {other.plug.device} and host.world.qemu(spec) == pid
    await host.driver.force_off(marks.uid)
    await host.pool.open_volume(after)
    assert sorted(file.name for file in (host.path / "volumes").iterdir()) == [f"{after}.json", f"{after}.qcow2"]
    await host.driver.start(host.spec(adoption))
    assert (await host.driver.domain(marks.uid)) is not None
