"""A guest whose volume is moved from one pool to another and back while it writes (QUALITY G20).

The agent is the real one, on a real API server, with a real libvirt, QEMU and pools. The witness is a counter that the
guest writes and flushes; what it says on its console was acknowledged.
"""

# ruff: noqa: ASYNC221, ASYNC240 - small files and short programs, in tests

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name, volume_order_name
from kumulus.api.snapshots import QuiesceMode
from kumulus_agents.agent.instance_files import StoredFiles
from kumulus_agents.console import log
from kumulus_agents.hypervisor.domain import DomainDisk, DomainSpec, Quiesce
from kumulus_agents.hypervisor.libvirt import copying
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.marks import domain_name
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.storage import seed
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import LayerFile
from kumulus_agents.storage.tracking import Extent
from kumulus_lab.cluster import NativeCluster
from tests.contract import guest
from tests.contract.guest import Guest
from tests.contract.hypervisor import Heard, stopped
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.patience import PATIENCE
from tests.unit.agent.host import BEYOND, POOL, TestHost, eventually, host_on
from tests.unit.storage.material import pool_ref

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

CHECKOUT = Path(__file__).parents[2]
MIB = 1 << 20
BLOCK = 65536
BLOCKS = 64
SIZE = 96 * MIB


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> guest.Disks:
    return guest.Disks(tmp_path_factory.mktemp("guests"))


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Where the pools are: the second one is a small file system of its own. libvirtd sees what is mounted before."""
    beyond = tmp_path / "beyond"
    beyond.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=711", "beyond", beyond], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", beyond], check=True)


@pytest.fixture
def libvirtd(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    made = PrivateLibvirtd(tmp_path_factory.mktemp("libvirtd") / "root")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@dataclass
class Scene:
    """A host whose machine counts on its first volume."""

    host: TestHost
    libvirtd: PrivateLibvirtd
    kubeconfig: Path
    uid: str
    volume: str

    def hypervisor(self) -> LibvirtHypervisor:
        return LibvirtHypervisor(LibvirtSettings.model_validate({"uri": self.libvirtd.uri, "acceleration": "tcg"}))

    @property
    def directory(self) -> Path:
        assert self.host.directory is not None
        return self.host.directory

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[None]:
        async with self.host.running(hypervisor=self.hypervisor()):
            yield

    def console(self) -> str:
        path = self.host.files.console_log(self.uid)
        return log.tail(path.parent, path.name, 1 << 20)

    def acknowledged(self) -> int:
        """The last value that the guest said it had flushed."""
        return max((int(value) for value in re.findall(r"GUEST-WROTE:(\d+)\.", self.console())), default=0)

    async def counts(self, more: int = 5) -> None:
        """Wait until the guest has gone on."""
        last = self.acknowledged()
        await eventually(lambda: self.acknowledged() >= last + more, "the guest's counting", 60)

    def file(self, place: str) -> Path:
        return self.directory / place / "volumes" / f"{self.volume}.qcow2"

    def lying(self, place: str) -> set[str]:
        return {path.name for path in (self.directory / place / "volumes").glob(f"*{self.volume}*")}

    def in_one_pool(self, place: str) -> None:
        """All of it is there and nothing in the other one."""
        other = "pool" if place == "beyond" else "beyond"
        assert self.lying(place) == {f"{self.volume}.qcow2", f"{self.volume}.json"}
        assert self.lying(other) == set()

    def kill_qemu(self) -> None:
        os.kill(self.libvirtd.qemu(domain_name(self.uid)), signal.SIGKILL)

    def virsh(self, *words: str) -> str:
        command = ["virsh", "-q", "-c", self.libvirtd.uri, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    async def move(self, pool: dict[str, Any], **more: Any) -> int:
        """Ask for a move; the generation of the order that does."""
        patch = {"spec": {"disk": {"volume": {"move": {"pool": pool}, **more}}}}
        made = await self.host.client.patch(WorkOrder.KIND, volume_order_name(self.volume), patch, self.host.namespace)
        return int(made["metadata"]["generation"])

    async def settled(self, pool: dict[str, Any]) -> None:
        """The controllers' part when it has moved."""
        patch = {"spec": {"disk": {"pool": pool, "volume": {"move": None}}}}
        await self.host.client.patch(WorkOrder.KIND, volume_order_name(self.volume), patch, self.host.namespace)
        raw = await self.host.client.find(WorkOrder.KIND, instance_order_name(self.uid), self.host.namespace)
        assert raw is not None
        disks = raw["spec"]["instance"]["disks"]
        disks = [{**disk, "pool": pool} if disk["volume"] == self.volume else disk for disk in disks]
        await self.host.change(self.uid, disks=disks)

    async def moved(self, pool: dict[str, Any], generation: int, seconds: float = 90) -> None:
        status = await self.host.until_volume(self.volume, seconds, state="Ready", observedGeneration=generation)
        assert status["disk"]["pool"] == pool["uid"]

    async def copying(self) -> None:
        """Wait until the emulator copies."""
        await eventually(lambda: "<mirror" in self.virsh("dumpxml", domain_name(self.uid)), "the copy's begin", 30)

    def at_full_speed(self) -> None:
        self.virsh("blockjob", domain_name(self.uid), "sda", "--bandwidth", "0")

    async def lost(self, place: str) -> list[int]:
        """Values that the guest was told are safe and that are not on the disk; the machine is off."""
        last = self.acknowledged()
        raw = self.directory / "plain"
        await asyncio.to_thread(
            subprocess.run,
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.file(place), raw],
            check=True,
        )
        with raw.open("rb") as file:
            found = []
            for value in range(max(last - BLOCKS + 2, 1), last + 1):
                file.seek(value % BLOCKS * BLOCK)
                if file.read(BLOCK) != (f"{value}\n" * BLOCK).encode()[:BLOCK]:
                    found.append(value)
            file.seek(SIZE - MIB)
            assert file.read(MIB) == b"\x55" * MIB, "what was there all along"
        return found

    async def off(self) -> None:
        await self.host.change(self.uid, power="Stopped", stop={"mode": "Force", "gracePeriodSeconds": 0})
        await self.host.until_instance(self.uid, state="Stopped")


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulators copy 4 MiB a second."""
    monkeypatch.setattr(copying, "PARAMETERS", {"bandwidth": 4 * MIB})


@pytest.fixture
async def scene(
    cluster: NativeCluster, places: Path, libvirtd: PrivateLibvirtd, images: guest.Disks
) -> AsyncIterator[Scene]:
    async with host_on(
        cluster.kubeconfig, directory=places, files=StoredFiles(places / "machines", seed.write)
    ) as host:
        volume, boot, uid = (str(uuid.uuid4()) for _ in range(3))
        made = Scene(host, libvirtd, cluster.kubeconfig, uid, volume)
        async with made.agent():
            for one, size in ((volume, SIZE), (boot, 24 * MIB)):
                await host.volume_order(one, size=size)
                await host.until_volume(one, state="Ready")
        command = ["qemu-io", "-f", "qcow2", "-c", f"write -P 0x55 {8 * MIB} {SIZE - 8 * MIB}", str(made.file("pool"))]
        subprocess.run(command, check=True, capture_output=True)
        target = places / "pool/volumes" / f"{boot}.qcow2"
        subprocess.run(["qemu-img", "convert", "-n", "-O", "qcow2", images[Guest.ROUND], target], check=True)
        disks = [
            {"name": "data", "pool": POOL, "volume": volume, "bootOrder": 2},
            {"name": "boot", "pool": POOL, "volume": boot, "bootOrder": 1},
        ]
        async with made.agent():
            await host.order(uid=uid, disks=disks, memory=96 * MIB, restartPolicy="Never")
            await host.until_instance(uid, 60, state="Running")
            await eventually(lambda: made.acknowledged() > 3, "the guest's counting", 90)
        yield made


async def test_there_and_back_while_the_guest_writes(scene: Scene) -> None:
    async with scene.agent():
        for pool, place in ((BEYOND, "beyond"), (POOL, "pool")):
            await scene.moved(pool, await scene.move(pool))
            scene.in_one_pool(place)
            await scene.settled(pool)
            await scene.counts()
        await scene.off()
        assert await scene.lost("pool") == []
    assert scene.console().count(guest.READY) == 1


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("kumulus_agents.storage.dir.arrivals:begin", marks=pytest.mark.wide),
        pytest.param("libvirt:virDomain.blockCopy", marks=pytest.mark.wide),
        pytest.param("libvirt:virDomain.suspend", marks=pytest.mark.wide),
        "libvirt:virDomain.blockJobAbort",
        pytest.param("kumulus_agents.storage.dir.arrivals:settle", marks=pytest.mark.wide),
        pytest.param("libvirt:virDomain.resume", marks=pytest.mark.wide),
        pytest.param("kumulus_agents.storage.dir.volumes:remove", marks=pytest.mark.wide),
    ],
)
async def test_an_agent_that_is_killed_after_any_step_loses_nothing(scene: Scene, place: str) -> None:
    generation = await scene.move(BEYOND)
    await _doomed(scene, place)
    async with scene.agent():
        await scene.moved(BEYOND, generation)
        await scene.host.until_instance(scene.uid, state="Running")
        await scene.counts()
        scene.in_one_pool("beyond")
        await scene.settled(BEYOND)
        await scene.off()
        assert await scene.lost("beyond") == []
    assert scene.console().count(guest.READY) == 1


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("libvirt:virDomain.blockCopy", marks=pytest.mark.wide),
        pytest.param("libvirt:virDomain.suspend", marks=pytest.mark.wide),
        "libvirt:virDomain.blockJobAbort",
        pytest.param("kumulus_agents.storage.dir.arrivals:settle", marks=pytest.mark.wide),
    ],
)
async def test_an_emulator_that_is_killed_with_the_agent_loses_nothing(scene: Scene, place: str) -> None:
    """As when the host loses power, but for what its kernel has: nobody was told of anything else than what was flushed."""
    generation = await scene.move(BEYOND)
    await _doomed(scene, place)
    scene.kill_qemu()
    async with scene.agent():
        await scene.moved(BEYOND, generation)
        scene.in_one_pool("beyond")
        assert await scene.lost("beyond") == []
        await scene.settled(BEYOND)
        await scene.host.change(scene.uid, restartRequest="again")
        await scene.host.until_instance(scene.uid, 60, state="Running")
        await scene.counts(3)


@pytest.mark.wide
@pytest.mark.usefixtures("slowly")
async def test_an_emulator_that_is_killed_in_the_middle_leaves_the_rest_to_the_agent(scene: Scene) -> None:
    async with scene.agent():
        generation = await scene.move(BEYOND)
        await scene.copying()
        await scene.counts()
        scene.kill_qemu()
        await scene.moved(BEYOND, generation)
        scene.in_one_pool("beyond")
        assert await scene.lost("beyond") == []


@pytest.mark.usefixtures("slowly")
async def test_a_move_is_taken_back_in_the_middle(scene: Scene) -> None:
    async with scene.agent():
        await scene.move(BEYOND)
        await scene.copying()
        await scene.host.change_volume(scene.volume, move={"pool": BEYOND, "withdrawn": True})
        status = await scene.host.until_volume(scene.volume, state="Ready", observedGeneration=3)
        assert status["disk"]["pool"] == POOL["uid"]
        scene.in_one_pool("pool")
        await scene.counts()
        await scene.off()
        assert await scene.lost("pool") == []
    assert scene.console().count(guest.READY) == 1


@pytest.mark.wide
@pytest.mark.usefixtures("slowly")
async def test_a_target_that_is_full_harms_nobody(scene: Scene) -> None:
    """There is too little room to begin with; then it goes in the middle; then there is enough."""
    filler = scene.directory / "beyond/filler"
    (scene.directory / "beyond").mkdir(exist_ok=True)

    def free() -> int:
        room = os.statvfs(filler.parent)
        return room.f_bavail * room.f_frsize

    def leave(size: int) -> None:
        if free() < size:
            filler.unlink()
        with filler.open("ab") as file:
            while (much := free() - size) > 0:
                with contextlib.suppress(OSError):  # the emulator takes room as well
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, -(-much // 2))

    async with scene.agent():
        leave(32 * MIB)
        await scene.move(BEYOND)
        await scene.host.until_volume(scene.volume, state="Failed", reason="NoSpace")
        await eventually(lambda: not scene.lying("beyond"), "nothing lies there, unless it is just tried again")
        leave(120 * MIB)
        await scene.move(BEYOND, retain=True)
        await scene.copying()
        leave(1 * MIB)
        scene.at_full_speed()
        status = await scene.host.until_volume(scene.volume, 30, state="Failed", reason="NoSpace", observedGeneration=3)
        assert status["disk"]["pool"] == POOL["uid"]
        await eventually(lambda: not scene.lying("beyond"), "nothing lies there, unless it is just tried again")
        await scene.counts()
        filler.unlink()
        await scene.moved(BEYOND, await scene.move(BEYOND, retain=False))
        await scene.counts()
        await scene.settled(BEYOND)
        await scene.off()
        assert await scene.lost("beyond") == []
    assert scene.console().count(guest.READY) == 1


async def _doomed(scene: Scene, place: str) -> None:
    """Have an agent work until it is killed after that."""
    words = [str(scene.kubeconfig), scene.host.name, str(scene.directory), scene.libvirtd.uri, place]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.contract.doomed_mover", *words), cwd=CHECKOUT, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(90 * PATIENCE):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == -signal.SIGKILL, said.decode()[-2000:]


# What an emulator makes of a volume that it copies; the pools are real ones.


@pytest.fixture
def world(libvirtd: PrivateLibvirtd, images: guest.Disks, tmp_path: Path) -> Iterator[LibvirtWorld]:
    machines = tmp_path / "machines"
    machines.mkdir()
    made = LibvirtWorld(libvirtd, images, machines)
    try:
        yield made
    finally:
        made.clear()


@dataclass
class Mover:
    """A machine that is on, and the pools that its volumes go between."""

    world: LibvirtWorld
    driver: LibvirtHypervisor
    spec: DomainSpec
    one: DirStorage
    two: DirStorage

    async def attach(self, volume: str, passphrase: Passphrase | None = None) -> None:
        stored = await self.one.volume(volume)
        assert stored is not None
        disk = DomainDisk(
            "data", stored.source, stored.format, volume=volume, below=stored.below, passphrase=passphrase
        )
        await self.driver.attach_disk(self.spec.marks.uid, disk)

    async def move(self, volume: str, passphrase: Passphrase | None = None) -> None:
        uid, traits = self.spec.marks.uid, await self.one.traits(volume)
        arrival = await self.two.begin_arrival(volume, traits, passphrase, live=True)
        disk = DomainDisk("", arrival.source, arrival.format, volume=volume, passphrase=passphrase)
        await self.driver.copy_disk(uid, disk, lambda *_: None)
        await self.two.reserve_arrival(volume, traits)
        await self.driver.switch_disk(
            uid, volume, arrival.source.path, lambda: self.two.settle_arrival(volume, traits, "one 0")
        )
        await self.one.remove_volume(volume)


@pytest.fixture
async def mover(world: LibvirtWorld, tmp_path: Path) -> AsyncIterator[Mover]:
    settings = StorageSettings(roots=(PurePosixPath(tmp_path),), readers=())
    one, two = (DirStorage(pool_ref(tmp_path / name), settings) for name in ("one", "two"))
    driver, heard, spec = world.driver(), Heard(), world.spec()
    await driver.connect(heard)
    try:
        await heard.about("")
        await driver.start(spec)
        yield Mover(world, driver, spec, one, two)
    finally:
        await driver.close()


async def test_thin_stays_thin_and_thick_stays_thick_beside_a_guest(mover: Mover) -> None:
    for thick in (False, True):
        volume = str(uuid.uuid4())
        await mover.one.ensure_volume(volume, 64 * MIB, None, thick)
        await mover.attach(volume)
        mover.world.guest_io(mover.spec, volume, "write -P 1 1M 1M", "write -P 2 40M 64k", "flush")
        await mover.move(volume)
        stored = await mover.two.volume(volume)
        assert stored is not None
        assert (stored.used >= 64 * MIB) if thick else (stored.used < 4 * MIB)
        mover.world.guest_io(mover.spec, volume, "write -P 3 50M 8M", "flush")
        after = await mover.two.volume(volume)
        assert after is not None and (not thick or after.used < stored.used + 2 * MIB)


@pytest.mark.parametrize("killed", [False, True])
async def test_what_is_written_is_remembered_on(mover: Mover, killed: bool) -> None:
    """Also when an emulator was killed before, and nothing was remembered: then it is never less than was written."""
    volume, snapshot = str(uuid.uuid4()), str(uuid.uuid4())
    made = await mover.one.ensure_volume(volume, 64 * MIB, None, False)
    if killed:
        command = ["qemu-img", "bitmap", "--remove", "-f", "qcow2", made.path, "kumulus"]
        subprocess.run(command, check=True)
    await mover.attach(volume)
    mover.world.guest_io(mover.spec, volume, "write -P 1 1M 64k")
    await mover.move(volume)
    mover.world.guest_io(mover.spec, volume, "write -P 2 3M 64k")
    layer = await mover.two.begin_snapshot(volume, snapshot, live=True)
    layers = {volume: LayerFile(layer.path, layer.format)}
    await mover.driver.snapshot_disks(mover.spec.marks.uid, layers, Quiesce(QuiesceMode.NEVER))
    await mover.two.confirm_snapshot(volume, snapshot, "2026-11-20T12:00:00Z", ())
    mover.world.guest_io(mover.spec, volume, "write -P 3 5M 64k")
    changes = await mover.two.changes(volume, None, snapshot)
    if killed:
        assert changes == [Extent(0, 64 * MIB)]
    else:
        assert changes == [Extent(1 * MIB, BLOCK), Extent(3 * MIB, BLOCK)]
    await mover.driver.force_off(mover.spec.marks.uid)
    assert await mover.two.changes(volume, snapshot) == [Extent(5 * MIB, BLOCK)]


async def test_an_encrypted_volume_is_moved_beside_a_guest_and_stays_encrypted(mover: Mover, tmp_path: Path) -> None:
    passphrase, volume = Passphrase("correct horse battery staple"), str(uuid.uuid4())
    await mover.one.ensure_encrypted_volume(volume, 16 * MIB, None, False, passphrase)
    await mover.attach(volume, passphrase)
    mover.world.guest_io(mover.spec, volume, "write -P 0x5a 1M 64k", "flush")
    await mover.move(volume, passphrase)
    mover.world.guest_io(mover.spec, volume, "write -P 0x5b 3M 64k", "flush")
    assert mover.world.virsh("secret-list") == ""
    await mover.world.crash(mover.spec)
    await stopped(mover.driver, mover.spec)
    stored = await mover.two.volume(volume)
    assert stored is not None and stored.encrypted
    content = Path(stored.path).read_bytes()
    assert b"Z" * 512 not in content and b"[" * 512 not in content
    key = tmp_path / "key"
    key.write_text(passphrase.text)
    command = [
        *("qemu-io", "--object", f"secret,id=key,file={key}", "--image-opts"),
        *("-c", "read -P 0x5a 1M 64k", "-c", "read -P 0x5b 3M 64k", "-c", "read -P 0 8M 8M"),
        f"driver=qcow2,file.filename={stored.path},encrypt.key-secret=key",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "verification failed" not in said
