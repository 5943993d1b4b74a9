"""Takes the steps that a plan for a machine asks for. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from kumulus.api.host import WorkOrder
from kumulus.api.image import OPTICAL
from kumulus.api.image_order import ImageRef
from kumulus.api.instance_order import InstanceDisk, InstanceOrder, MigrationFacts, SeedRef
from kumulus.api.qos import UNLIMITED
from kumulus.api.segments import Nic
from kumulus.api.volumes import CacheMode
from kumulus_agents.agent.instance_files import InstanceFiles
from kumulus_agents.agent.instance_scope import (
    Adopt,
    Arrive,
    Attach,
    ChangeDisc,
    Detach,
    Disown,
    DropMemory,
    EndSending,
    Filter,
    ForceOff,
    Limit,
    Mark,
    Moving,
    Pause,
    PlugIn,
    PressButton,
    Receive,
    Redefine,
    Refill,
    Remove,
    RemovePort,
    Replug,
    Resize,
    Resume,
    Send,
    Start,
    Step,
    Suspend,
    Unplug,
    Wake,
)
from kumulus_agents.agent.migrations import Migrations
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.passphrases import Passphrases
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.agent.whereabouts import Whereabouts
from kumulus_agents.hypervisor.domain import (
    DEFAULT_SHAPE,
    AdoptedDisk,
    AdoptedNic,
    Adoption,
    DomainDisk,
    DomainDrive,
    DomainNic,
    DomainSpec,
    Marks,
)
from kumulus_agents.hypervisor.protocol import Hypervisor
from kumulus_agents.storage.moving import ReceivingDisks
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.source import DiskSource, FileSource

SLOW = 1.0
"""A start that takes longer than this, in seconds, is worth a word."""
SEED_DISK = "seed"


Begin = Callable[[DomainSpec], Awaitable[object]]
"""The verb of the hypervisor that brings a machine to run."""


class InstanceSteps:
    """The hands of the agent on one host's machines."""

    def __init__(
        self,
        secrets: Secrets,
        hypervisor: Hypervisor,
        pools: Pools,
        files: InstanceFiles,
        reservations: Reservations,
        whereabouts: Whereabouts,
        networks: Networks,
        migrations: Migrations,
        *,
        has: Callable[[str], Awaitable[bool]],
        image_failure: Callable[[str, str], str | None],
    ) -> None:
        """`has` says whether this host sees to a volume of a pool that hosts share, as the pool itself says; `image_failure` why it could not get
        an image into a pool, by their uids."""
        self._has = has
        self._image_failure = image_failure
        self._secrets = secrets
        self._hypervisor = hypervisor
        self._passphrases = Passphrases(secrets)
        self._pools = pools
        self._files = files
        self._reservations = reservations
        self._whereabouts = whereabouts
        self._networks = networks
        self._migrations = migrations

    def moving(self, order: WorkOrder, instance: InstanceOrder) -> Moving | None:
        """What is being done to bring the machine to another host, or from one."""
        return self._migrations.moving(instance, _said(order))

    def halted_for_a_moment(self, uid: str) -> bool:
        """Whether the machine may be paused just now and goes on by itself: it is neither resumed nor reported."""
        return self._reservations.may_be_halted(uid)

    async def take(self, step: Step, order: WorkOrder, slow: Callable[[], Awaitable[None]]) -> None:
        """Take one step; it may have been taken already. `slow` is awaited once when a start takes its time.

        Raises `Missing`, `HypervisorError`, `StorageError`, `NetworkError`, `KubeError`.
        """
        instance = order.spec.instance
        if instance is None:
            raise ValueError(f"work order {order.name} is about no instance")
        uid = instance.uid
        match step:
            case Start(marks):
                await self._start(instance, marks, slow, self._hypervisor.start)
            case Wake(marks):
                await self._start(await self._as_kept(instance), marks, slow, self._hypervisor.wake)
            case Suspend():
                await self._hypervisor.suspend(uid)
            case DropMemory():
                await self._hypervisor.drop_memory(uid)
            case Adopt(marks):
                await self._adopt(instance, marks)
            case Disown(ports):
                await self._hypervisor.disown(uid)
                await self._let_go(instance, ports)
            case Mark(marks):
                await self._hypervisor.mark(uid, marks)
            case Pause():
                await self._hypervisor.pause(uid)
            case Resume():
                await self._resume(instance)
            case PressButton():
                await self._hypervisor.power_button(uid)
            case ForceOff():
                await self._hypervisor.force_off(uid)
            case Attach(volume):
                await self._attach(instance, volume)
            case Detach(volume):
                with self._reservations.hold((volume,), "a machine is asked to let go of it"):
                    await self._hypervisor.detach_disk(uid, volume)
            case Filter(nic):
                await self._networks.ensure_port(nic, uid)
            case PlugIn(nic):
                seed = await self._seed(instance.seed) if instance.seed is not None else {}
                await self._networks.describe(uid, order.spec.for_.namespace or "", order.spec.for_.name, seed)
                await self._hypervisor.attach_nic(uid, await self._nic(nic, uid))
            case Replug(nic):
                await self._hypervisor.replug_nic(uid, await self._nic(nic, uid))
            case Unplug(old):
                await self._hypervisor.detach_nic(uid, old)
            case RemovePort(old):
                await self._networks.remove_port(old, uid)
            case Limit(volume):
                await self._limit(instance, volume)
            case Resize(cpus, memory):
                await self._hypervisor.resize(uid, cpus, memory)
            case Redefine():
                await self._hypervisor.redefine(uid)
            case Refill():
                await self._hypervisor.refill(uid)
            case ChangeDisc(drive, disc, force):
                await self._hypervisor.change_disc(uid, drive, disc, force=force)
            case Send(outgoing):
                self._migrations.send(order, instance, outgoing)
            case EndSending():
                await self._migrations.end(uid, _said(order))
            case Receive(marks, migration):
                await self._start(instance, marks, slow, lambda spec: self._migrations.receive(spec, migration))
            case Arrive(marks):
                domain = await self._hypervisor.domain(uid)
                await self._migrations.arrive(instance, domain.arriving if domain is not None else None, marks)
            case Remove(ports):
                await self._remove(instance, ports)

    async def discs(self, order: InstanceOrder) -> dict[str, DiskSource]:
        """Where the discs are that the machine is to have in its drives, by name of the drive, as far as they are there.

        A pool that fails has none.
        """
        found: dict[str, DiskSource] = {}
        for drive in order.drives:
            if drive.image is None or drive.pool is None:
                continue
            try:
                image = await self._pools.driver(drive.pool).image(drive.image.uid)
            except StorageError:
                continue
            if image is not None and image.source_format in OPTICAL:
                found[drive.name] = image.source
        return found

    async def _as_kept(self, order: InstanceOrder) -> InstanceOrder:
        """The order with what its memory knows of: what has come since is for when it is on."""
        domain = await self._hypervisor.domain(order.uid)
        has = domain.volumes if domain is not None else frozenset()
        disks = tuple(disk for disk in order.disks if disk.volume is None or disk.volume in has)
        return order.model_copy(update={"disks": disks, "drives": ()})

    async def _start(
        self, order: InstanceOrder, marks: Marks, slow: Callable[[], Awaitable[None]], begin: Begin
    ) -> None:
        for nic in order.nics:
            self._networks.demand(nic)
        coming = {disk.name for disk in order.incoming.disks} if order.incoming is not None else set()
        for disk in order.disks:
            if disk.name in coming:
                continue
            if disk.volume is not None:
                await self._present(disk, disk.volume)
            elif disk.image is not None and not await self._has_disk(order.uid, disk, disk.image):
                what = f"the image of disk {disk.name} is not in pool {disk.pool.name} on this host yet"
                why = self._image_failure(disk.image.uid, disk.pool.uid)
                raise Missing("ImageNotReady", f"{what}: {why}" if why else what)
        discs = await self.discs(order)
        for drive in order.drives:
            if drive.image is not None and drive.name not in discs:
                raise Missing("ImageNotReady", f"the disc of drive {drive.name} is not in its pool on this host yet")
        seed = await self._seed(order.seed) if order.seed is not None else None
        if order.nics:
            await self._networks.describe(order.uid, marks.namespace, marks.name, seed or {})
        async with asyncio.TaskGroup() as group:
            work = group.create_task(_failure_of(self._make_and_start(order, marks, seed, discs, begin)))
            await asyncio.wait([work], timeout=SLOW)
            if not work.done():
                await slow()
        failure = work.result()
        if failure is not None:
            raise failure

    async def _make_and_start(
        self,
        order: InstanceOrder,
        marks: Marks,
        seed: Mapping[str, bytes] | None,
        discs: Mapping[str, DiskSource],
        begin: Begin,
    ) -> None:
        volumes = [disk.volume for disk in order.disks if disk.volume is not None]
        with self._reservations.hold(volumes, "a machine that has it is being started"):
            await self._make_and_start_now(order, marks, seed, discs, begin)

    async def _make_and_start_now(
        self,
        order: InstanceOrder,
        marks: Marks,
        seed: Mapping[str, bytes] | None,
        discs: Mapping[str, DiskSource],
        begin: Begin,
    ) -> None:
        disks = []
        copied = await self._migrations.disks.make(order, order.incoming) if order.incoming is not None else {}
        for disk in order.disks:
            if disk.name in copied:
                disks.append(copied[disk.name])
            elif disk.volume is not None:
                # The host that it comes from sees to it until it has come.
                disks.append(await self._volume(disk, disk.volume, seen_to=order.incoming is not None))
            elif disk.image is not None:
                pool = self._pools.driver(disk.pool)
                stored = await pool.ensure_disk(order.uid, disk.name, disk.image.uid, disk.size)
                disks.append(
                    DomainDisk(disk.name, stored.source, stored.format, boot_order=disk.boot_order, below=stored.below)
                )
        path = await self._files.prepare(order.uid, seed)
        if path is not None:
            disks.append(DomainDisk(SEED_DISK, FileSource(str(path)), "raw", read_only=True, cdrom=True))
        await begin(
            DomainSpec(
                marks=marks,
                cpus=order.cpus,
                memory=order.memory,
                disks=disks,
                console_log=str(self._files.console_log(order.uid)),
                drives=[
                    DomainDrive(drive.name, drive.bus, discs.get(drive.name), drive.boot_order)
                    for drive in order.drives
                ],
                nics=[await self._nic(nic, order.uid) for nic in order.nics],
                max_cpus=order.max_cpus,
                max_memory=order.max_memory,
                shape=order.shape or DEFAULT_SHAPE,
                machine_type=order.machine_type,
            )
        )

    async def _nic(self, nic: Nic, machine: str) -> DomainNic:
        """The interface with its filter in force: the guest may have it from now on."""
        return DomainNic(nic.uid, nic.mac, await self._networks.ensure_port(nic, machine))

    async def _attach(self, order: InstanceOrder, volume: str) -> None:
        with self._reservations.hold((volume,), "it is being attached to a machine"):
            for disk in order.disks:
                if disk.volume == volume:
                    await self._hypervisor.attach_disk(order.uid, await self._volume(disk, volume))

    async def _resume(self, order: InstanceOrder) -> None:
        """Before a guest writes, the pools learn what it writes to: an agent may have died before it noted that."""
        volumes = {disk.volume: disk.pool for disk in order.disks if disk.volume is not None}
        with self._reservations.resuming(order.uid, volumes):
            domain = await self._hypervisor.domain(order.uid)
            for disk in domain.disks if domain is not None else ():
                if disk.volume in volumes:
                    await self._whereabouts.adopt(disk.volume, volumes[disk.volume], disk.path)
            await self._hypervisor.resume(order.uid)

    async def _limit(self, order: InstanceOrder, volume: str) -> None:
        for disk in order.disks:
            if disk.volume == volume:
                await self._hypervisor.limit_disk(order.uid, volume, disk.qos or UNLIMITED)

    async def _has_disk(self, owner: str, disk: InstanceDisk, image: ImageRef) -> bool:
        """Whether the disk is there, or its image is. What came with a guest does not stand on that."""
        driver = self._pools.driver(disk.pool)
        if await driver.image(image.uid) is not None:
            return True
        return isinstance(driver, ReceivingDisks) and await driver.disk(owner, disk.name) is not None

    async def _present(self, disk: InstanceDisk, volume: str) -> None:
        if await self._pools.driver(disk.pool).volume(volume) is None:
            raise _not_there(disk)

    async def _volume(self, disk: InstanceDisk, volume: str, *, seen_to: bool = False) -> DomainDisk:
        if disk.pool.shared and not seen_to and not await self._has(volume):
            raise _not_there(disk)
        await self._whereabouts.demand(volume, disk.pool)
        stored = await self._pools.driver(disk.pool).open_volume(volume)
        if stored is None:
            raise Missing(
                "VolumeNotReady", f"the volume of disk {disk.name} is not in pool {disk.pool.name} on this host yet"
            )
        if stored.encrypted != (disk.secret is not None):
            raise StorageError(
                f"The volume of disk {disk.name} is {'encrypted' if stored.encrypted else 'not encrypted'}, and its order"
                " says otherwise: it is not given to a machine.",
                reason="EncryptionMismatch",
                retryable=False,
            )
        return DomainDisk(
            disk.name,
            stored.source,
            stored.format,
            boot_order=disk.boot_order,
            volume=volume,
            qos=disk.qos or UNLIMITED,
            cache=disk.cache or CacheMode.NONE,
            below=stored.below,
            passphrase=await self._passphrases.read(disk.secret) if disk.secret is not None else None,
        )

    async def _seed(self, seed: SeedRef) -> Mapping[str, bytes]:
        if seed.secret is None:
            return {name: text.encode() for name, text in (seed.data or {}).items()}
        return await self._secrets.read(seed.secret, "the first-boot data")

    async def _adopt(self, order: InstanceOrder, marks: Marks) -> None:
        """The volumes are the files that the domain has, and are not opened: it has them open."""
        for nic in order.nics:
            self._networks.demand(nic)
        disks, kept = [], []
        for disk in order.disks:
            driver = self._pools.driver(disk.pool)
            if disk.volume is None:
                own = await driver.disk(order.uid, disk.name) if isinstance(driver, ReceivingDisks) else None
                if own is None:
                    raise _not_there(disk)
                kept.append(own.source.path)
                continue
            found = await driver.volume(disk.volume)
            if found is None:
                raise _not_there(disk)
            disks.append(AdoptedDisk(disk.name, disk.volume, found.path))
        if order.nics:
            seed = await self._seed(order.seed) if order.seed is not None else {}
            await self._networks.describe(order.uid, marks.namespace, marks.name, seed)
        nics = [AdoptedNic(nic.uid, nic.mac, await self._networks.ensure_port(nic, order.uid)) for nic in order.nics]
        await self._hypervisor.adopt(Adoption(marks, disks, nics, kept))

    async def _remove(self, order: InstanceOrder, ports: Sequence[str]) -> None:
        """What was made for the machine alone; volumes have a life of their own."""
        await self._hypervisor.remove(order.uid)
        await self._migrations.disks.abandon(order)
        await self._let_go(order, ports)

    async def _let_go(self, order: InstanceOrder, ports: Sequence[str]) -> None:
        """What was made beside the domain."""
        for nic in (*(nic.uid for nic in order.nics), *ports):
            await self._networks.remove_port(nic, order.uid)
        await self._networks.forget_machine(order.uid)
        for pool in {disk.pool.uid: disk.pool for disk in order.disks}.values():
            await self._pools.driver(pool).remove_disks(order.uid)
        await self._files.remove(order.uid)


def _said(order: WorkOrder) -> MigrationFacts | None:
    """What was reported last of a migration of the machine."""
    return order.status.instance.migration if order.status.instance is not None else None


def _not_there(disk: InstanceDisk) -> Missing:
    return Missing("VolumeNotReady", f"the volume of disk {disk.name} is not in pool {disk.pool.name} on this host yet")


async def _failure_of(work: Awaitable[None]) -> Exception | None:
    """How it failed, as a value: a task group would wrap it."""
    try:
        await work
    except Exception as error:
        return error
    return None
