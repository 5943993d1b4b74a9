"""A host with a private libvirtd, as contracts and system tests use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

from kumulus_agents.console import log
from kumulus_agents.hypervisor.domain import DomainDisk, DomainNic, DomainSpec
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.marks import domain_name
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage import tracking
from kumulus_agents.storage.source import FileSource, LayerFile
from kumulus_agents.watchdog import guests
from tests.contract import guest
from tests.contract.guest import Disks, Guest
from tests.contract.hypervisor import FOREIGN_MAC, World, eventually, new_marks
from tests.contract.libvirtd import PrivateLibvirtd
from tests.unit.storage.material import iso

MEMORY = 96 << 20
VOLUME = 16 << 20

FOREIGN = """\
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<interface type='ethernet'><mac address='{mac}'/><target dev='{tap}'/><model type='virtio'/></interface>
</devices></domain>
"""


class LibvirtWorld(World):
    """A private libvirtd; machines and their files under one directory."""

    def __init__(self, libvirtd: PrivateLibvirtd, images: Disks, directory: Path) -> None:
        self.libvirtd = libvirtd
        self.directory = directory
        self._images = images
        self._bridge: str | None = None

    def driver(self, **settings: object) -> LibvirtHypervisor:
        given = {"uri": self.libvirtd.uri, "log_dir": self.libvirtd.root / "log/qemu", **settings}
        return LibvirtHypervisor(LibvirtSettings.model_validate(given))

    def guest(self) -> DomainSpec:
        return self.spec(Guest.WAIT)

    def spec(self, kind: Guest = Guest.HALT) -> DomainSpec:
        marks = new_marks()
        home = self.directory / marks.uid
        home.mkdir(mode=0o700)
        disk = home / "root.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self._images[kind]), str(disk)]
        subprocess.run(command, check=True)
        below = (LayerFile(str(self._images[kind]), "raw"),)
        disks = (DomainDisk("root", FileSource(str(disk)), "qcow2", boot_order=1, below=below),)
        return DomainSpec(marks, cpus=1, memory=MEMORY, disks=disks, console_log=str(home / "console.log"))

    def volume(self) -> DomainDisk:
        volume = str(uuid.uuid4())
        path = self.directory / f"{volume}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(VOLUME)], check=True)
        return DomainDisk("data", FileSource(str(path)), "qcow2", volume=volume)

    def writer(self) -> DomainSpec:
        spec, data = self.spec(Guest.ROUND), self.volume()
        self._track(data.path)
        return replace(spec, disks=[*spec.disks, data])

    def written(self, spec: DomainSpec) -> list[int]:
        """What the guest says that it has written, and that was flushed."""
        return [int(number) for number in re.findall(r"GUEST-WROTE:(\d+)\.", self.console(spec))]

    def empty(self, disk: DomainDisk) -> DomainDisk:
        path = self.directory / f"{uuid.uuid4()}.qcow2"
        told = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", disk.path], stdout=subprocess.PIPE, text=True, check=True
        )
        size = str(json.loads(told.stdout)["virtual-size"])
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
        return replace(disk, source=FileSource(str(path)), format="qcow2", below=(), copied=True)

    @staticmethod
    def _track(path: str) -> None:
        """As pools do it with volumes."""
        subprocess.run(
            ["qemu-img", "bitmap", "--add", "-g", str(tracking.GRANULARITY), path, tracking.NAME], check=True
        )

    def content(self, disk: DomainDisk) -> bytes:
        """What is on a disk that no machine uses."""
        raw = self.directory / f"{uuid.uuid4()}.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.path, str(raw)], check=True)
        return raw.read_bytes()

    def disc(self) -> FileSource:
        path = self.directory / f"{uuid.uuid4()}.raw"
        path.write_bytes(iso())
        return FileSource(str(path))

    def nic(self) -> DomainNic:
        uid = str(uuid.uuid4())
        if self._bridge is None:
            self._bridge = f"kb{uid[:10].replace('-', '')}"
            subprocess.run(["ip", "link", "add", self._bridge, "mtu", "1450", "type", "bridge"], check=True)
            subprocess.run(["ip", "link", "set", self._bridge, "up"], check=True)
        return DomainNic(uid, f"02:00:00:00:{uid[:2]}:{uid[2:4]}", Plug(f"kt{uid[:8]}", self._bridge, 1450))

    def taps(self) -> frozenset[str]:
        at = Path("/sys/class/net", self._bridge or "none", "brif")
        return frozenset(port.name for port in at.iterdir()) if at.exists() else frozenset()

    def layer(self, below: str) -> LayerFile:
        path = self.directory / f"{uuid.uuid4()}.qcow2"
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, str(path), str(VOLUME)]
        subprocess.run(command, check=True)
        return LayerFile(str(path), "qcow2")

    def guest_io(self, spec: DomainSpec, volume: str, *commands: str) -> str:
        """What `qemu-io` says within the machine's QEMU: reads and writes as its guest would do them."""
        said = ""
        for command in commands:
            order = f'qemu-io -d ua-volume-{volume} "{command}"'
            said += self.virsh("qemu-monitor-command", spec.marks.uid, "--hmp", order)
        return said

    def broken_spec(self) -> DomainSpec:
        spec = self.spec()
        return replace(spec, disks=(replace(spec.disks[0], source=FileSource(str(self.directory / "missing.qcow2"))),))

    def console(self, spec: DomainSpec, limit: int = 65536) -> str:
        """What the guest printed."""
        path = Path(spec.console_log)
        return log.tail(path.parent, path.name, limit)

    async def booted(self, spec: DomainSpec) -> None:
        await eventually(lambda: guest.READY in self.console(spec), "the guest did not boot", 60)

    async def crash(self, spec: DomainSpec) -> None:
        """As the host's watchdog ends it, which finds the emulators of a real libvirt."""
        assert self.qemu(spec)
        found = guests.living(self.libvirtd.root / "run/libvirt/qemu")
        guests.kill(found[domain_name(spec.marks.uid)])
        for descriptor in found.values():
            os.close(descriptor)

    def qemu(self, spec: DomainSpec) -> int:
        """Process id of the machine's QEMU."""
        return self.libvirtd.qemu(domain_name(spec.marks.uid))

    def virsh(self, *arguments: str) -> str:
        """What virsh says."""
        command = ["virsh", "-q", "-c", self.libvirtd.uri, *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    async def plant(self, name: str = "by-hand", *, exact: bool = False) -> str:
        domain = str(uuid.uuid4())
        disk = self.directory / f"{domain}.raw"
        disk.write_bytes(bytes(1 << 20))
        named = name if exact else f"{name}-{domain}"
        self._define(FOREIGN.format(name=named, uuid=domain, disk=disk, mac=FOREIGN_MAC, tap=f"kf{domain[:8]}"))
        self.virsh("start", domain)
        return domain

    async def uproot(self, uuid: str) -> None:
        self.virsh("destroy", uuid)
        self.virsh("undefine", uuid)

    def copy(self, spec: DomainSpec) -> str:
        """Define a copy of the machine's domain, marks and all, with another name and UUID; that UUID."""
        domain = str(uuid.uuid4())
        xml = self.virsh("dumpxml", "--inactive", spec.marks.uid)
        name = domain_name(spec.marks.uid)
        xml = xml.replace(f"<name>{name}</name>", "<name>copy</name>")
        self._define(xml.replace(f"<uuid>{spec.marks.uid}</uuid>", f"<uuid>{domain}</uuid>"))
        return domain

    def files_about(self, uid: str) -> list[Path]:
        """What libvirt keeps on the machine of that uid."""
        return list(self.libvirtd.root.rglob(f"*{uid}*"))

    def disks(self) -> list[str]:
        """The disks there are."""
        return [str(path) for path in self.directory.glob("*/*.qcow2")]

    def _define(self, xml: str) -> None:
        file = self.directory / f"{uuid.uuid4()}.xml"
        file.write_text(xml)
        self.virsh("define", str(file))

    async def foreign_is_on(self, uuid: str) -> bool:
        return self.virsh("domstate", uuid) == "running"

    async def cut(self) -> None:
        self.libvirtd.kill()

    async def heal(self) -> None:
        self.libvirtd.start()

    def clear(self) -> None:
        """Remove every domain."""
        for domain in self.virsh("list", "--all", "--uuid").split():
            for command in (["destroy", domain], ["undefine", domain, "--managed-save"]):
                subprocess.run(["virsh", "-q", "-c", self.libvirtd.uri, *command], capture_output=True, check=False)
        if self._bridge is not None:
            subprocess.run(["ip", "link", "delete", self._bridge], check=False)
            self._bridge = None
