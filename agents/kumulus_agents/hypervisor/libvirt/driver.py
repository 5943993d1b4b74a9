"""The hypervisor protocol on libvirt and QEMU. Decides nothing; `protocol.Hypervisor` is the contract.

Every verb is one function that runs in a thread under its domain's lock, looks at what is so first,
and leaves domains alone that are not Kumulus' own, whatever their UUID.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import glob
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import libvirt

from kumulus.api.qos import Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.domain import (
    Adoption,
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    DomainState,
    GuestSays,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.libvirt import (
    acceleration,
    adopting,
    block_jobs,
    copying,
    discs,
    domain_xml,
    drift,
    growing,
    guest_agent,
    holding,
    inventory,
    listing,
    marks,
    memory,
    merging,
    plugging,
    secrets,
    snapshots,
    state,
    verbs,
)
from kumulus_agents.hypervisor.libvirt.connection import Connection, DomainEvent
from kumulus_agents.hypervisor.libvirt.errors import is_code
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.libvirt.holds import Holds
from kumulus_agents.hypervisor.libvirt.marks import Record
from kumulus_agents.hypervisor.libvirt.migrating import Migrating
from kumulus_agents.hypervisor.libvirt.resting import Resting
from kumulus_agents.hypervisor.libvirt.settings import Acceleration, LibvirtSettings
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import DomainListener, Hypervisor, HypervisorError, Inventory
from kumulus_agents.storage.blocking import to_the_end
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, LayerFile

T = TypeVar("T")

UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
NOWAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
HALTED = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
REDEFINED = (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED)
ON = (DomainState.RUNNING, DomainState.PAUSED)
_UNSEEN = object()
SAVING_MOST = 2
"""So many memories are written or read at once: it takes long, and libvirtd serves five calls of a connection."""


def create(settings: Mapping[str, object]) -> Hypervisor:
    """A driver from its settings. Raises `pydantic.ValidationError`."""
    return LibvirtHypervisor(LibvirtSettings.model_validate(settings))


class LibvirtHypervisor:
    """Domains of one libvirtd."""

    def __init__(self, settings: LibvirtSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings.uri, self)
        self._listener: DomainListener = _ignore
        self._exits = state.Exits()
        self._records: dict[str, Record | None] = {}
        """What is in the metadata of each domain, by UUID; None: not ours. Events about a domain drop it."""
        self._foreign: dict[str, ForeignDomain] = {}
        """The other domains, by UUID, whose devices need not be asked for again. Events about a domain drop it."""
        self._redefined: set[str] = set()
        """Domains of ours whose definition changed since they were started: by somebody else."""
        self._foreign_listener: Callable[[], None] = _nobody
        self._changes = 0
        """Grows with each event, so that what was read before one is not kept after it."""
        self._inventory: Inventory | None = None
        self._probing = asyncio.Lock()
        self._resting = Resting(self._thaw)
        self._halts: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By uid of the domain: who halts a guest lets it go on before another one halts it, or finds it halted."""
        self._saving = asyncio.Semaphore(SAVING_MOST)
        self._holds = Holds(self._held, self._let_go, self._halt)
        self._migrating = Migrating(self._connection, settings)

    # What the connection tells.

    def connected(self) -> None:
        """Observer: anything may have happened; libvirt itself, and what it has for guests, may be another."""
        self._changes += 1
        self._inventory = None
        self._records.clear()
        self._foreign.clear()
        self._holds.look()
        self._listener("")
        self._foreign_listener()

    def happened(self, event: DomainEvent) -> None:
        """Observer: forget what is known of the domain; tell the listener if it can be ours."""
        self._changes += 1
        self._foreign.pop(event.uuid, None)
        known, named = self._records.pop(event.uuid, _UNSEEN), event.name == marks.domain_name(event.uuid)
        if known is None or not named:
            self._foreign_listener()
        if not named and known is None:  # of one that was not seen yet either may be so: it may have been adopted
            return
        if event.lifecycle is not None:
            self._exits.note(event.uuid, *event.lifecycle)
            if event.lifecycle == HALTED:
                self._migrating.halted(event.uuid)
            if event.lifecycle == REDEFINED:
                self._redefined.add(event.uuid)
            elif event.lifecycle[0] in (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED):
                self._redefined.discard(event.uuid)  # who starts it has it defined anew
        if event.lifecycle is not None or event.devices:
            self._listener(event.uuid)

    # The protocol.

    async def connect(self, listener: DomainListener) -> None:
        self._listener = listener
        self._connection.open()
        self._holds.open()

    async def close(self) -> None:
        await self._resting.close()
        await self._holds.close()
        await self._connection.close()
        self._listener = _ignore

    async def inventory(self) -> Inventory:
        async with self._probing:
            if self._inventory is None:
                self._inventory = await self._connection.call(self._measure, seconds=self._settings.verb_timeout)
            return self._inventory

    async def domain(self, uid: str) -> Domain | None:
        found = await self._ask(functools.partial(_observe, uid, uid in self._redefined))
        return None if found is None else self._domain(*found)

    async def domains(self) -> Sequence[Domain]:
        known, before = dict(self._records), self._changes
        found = await self._ask(functools.partial(listing.everything, known=known))
        if before == self._changes:
            # What a memory says is read each time: nobody tells when it is removed by hand.
            self._records = {
                entry.uuid: entry.record for entry in found if entry.record is None or entry.record.saved is None
            }
        for entry in found:
            if entry.record is not None and entry.record.resting:
                self._resting.see_to(entry.uuid)
        return [self._domain(entry.record, entry.state) for entry in found if entry.record is not None]

    async def foreign(self, *, fresh: bool = False, orphans: Collection[str] = ()) -> Sequence[ForeignDomain]:
        seen, before = {} if fresh else dict(self._foreign), self._changes
        ask = functools.partial(listing.foreign, known=dict(self._records), seen=seen, orphans=frozenset(orphans))
        found = await self._ask(ask)
        if before == self._changes:
            self._foreign = {domain.uuid: domain for domain in found}
        return found

    def watch_foreign(self, listener: Callable[[], None]) -> None:
        self._foreign_listener = listener

    async def start(self, spec: DomainSpec) -> Domain:
        return self._domain(*await self._do(spec.marks.uid, functools.partial(_start, spec, await self._platform())))

    async def adopt(self, adoption: Adoption) -> None:
        await self._do_with_disks(
            adoption.marks.uid, functools.partial(adopting.adopt, adoption), self._settings.verb_timeout
        )
        self._foreign_listener()

    async def disown(self, uid: str) -> None:
        await self._tell_of_device(uid, adopting.disown)
        self._foreign_listener()

    async def mark(self, uid: str, marks: Marks) -> None:
        await self._tell(uid, functools.partial(verbs.write_marks, marks))

    async def attach_disk(self, uid: str, disk: DomainDisk) -> None:
        await self._tell_of_device(uid, functools.partial(verbs.attach_disk, disk))

    async def detach_disk(self, uid: str, volume: str) -> None:
        await self._tell_of_device(uid, functools.partial(verbs.detach_disk, volume))

    async def resize_disk(self, uid: str, volume: str, size: int) -> None:
        resized = await self._do(uid, functools.partial(verbs.resize_disk, uid, volume, size))
        if not resized:
            raise HypervisorError("The machine has not got the disk, or is off.", reason="DiskNotAttached")

    async def limit_disk(self, uid: str, volume: str, qos: Qos) -> None:
        await self._tell_of_device(uid, functools.partial(verbs.limit_disk, volume, qos))

    async def resize(self, uid: str, cpus: int, memory: int) -> None:
        await self._tell_of_device(uid, functools.partial(growing.resize, cpus, memory))

    async def redefine(self, uid: str) -> None:
        await self._tell_of_device(uid, drift.redefine)

    async def refill(self, uid: str) -> None:
        await self._tell_of_device(uid, drift.refill)

    async def ask_guest(self, uid: str) -> GuestSays | None:
        # Not in the domain's turn: what libvirt can do beside is not held up.
        return await self._connection.call(
            functools.partial(guest_agent.says, uid), seconds=self._settings.verb_timeout
        )

    async def change_disc(self, uid: str, drive: str, disc: DiskSource | None, *, force: bool = False) -> None:
        await self._tell_of_device(uid, functools.partial(discs.change_disc, drive, disc, force))

    async def attach_nic(self, uid: str, nic: DomainNic) -> None:
        await self._tell_of_device(uid, functools.partial(verbs.attach_nic, nic))

    async def replug_nic(self, uid: str, nic: DomainNic) -> None:
        await self._tell_of_device(uid, functools.partial(plugging.replug, nic))

    async def detach_nic(self, uid: str, nic: str) -> None:
        await self._tell_of_device(uid, functools.partial(verbs.detach_nic, nic))

    async def snapshot_disks(
        self,
        uid: str,
        layers: Mapping[str, LayerFile],
        quiesce: Quiesce,
        passphrases: Mapping[str, Passphrase] | None = None,
        still: Still | None = None,
    ) -> tuple[Indication, ...]:
        known = passphrases or {}
        async with contextlib.AsyncExitStack() as stack:
            if quiesce.mode is not QuiesceMode.NEVER:
                await stack.enter_async_context(self._resting.asking(uid))
            # Freezing and thawing may each take as long as the guest is given.
            seconds = 2 * quiesce.seconds + self._settings.verb_timeout
            if still is None:
                take = functools.partial(snapshots.take, uid, layers, known, quiesce)
                return await self._do_with_disks(uid, take, seconds)
            hold = holding.Holding(uid, layers, known, still.volumes | layers.keys(), quiesce)
            async with self._holds.holding(uid):
                # To its end: who was given up would halt the guest when nobody lets it go on any more.
                how = await to_the_end(asyncio.ensure_future(self._do_with_disks(uid, hold.begin, seconds)))
                await _within(still.seconds, still.keep)
                if layers:
                    await self._do_with_disks(uid, hold.switch, self._settings.verb_timeout)
                return how

    async def merge_layers(
        self,
        uid: str,
        volume: str,
        upper: str,
        lower: str,
        progress: Callable[[int, int], None],
        merged: Callable[[], Awaitable[None]],
    ) -> None:
        wanted = merging.Merging(uid, volume, upper, lower)
        seconds = self._settings.verb_timeout
        await self._do_with_disks(uid, wanted.begin, seconds)
        while (job := await self._do(uid, wanted.look)) is not None and not job.ready:
            progress(job.done, job.total)
            await asyncio.sleep(block_jobs.LOOK_EVERY)

        async def end() -> None:
            async with self._halt(uid):
                halted = job is not None and await self._do_with_disks(uid, wanted.switch, seconds)
                await merged()
                if halted:
                    await self.resume(uid)

        # Not to be cut short: the guest would stay halted until the next agent finds it.
        await to_the_end(asyncio.ensure_future(end()))

    async def copy_disk(self, uid: str, disk: DomainDisk, progress: Callable[[int, int], None]) -> None:
        wanted = copying.Copying(uid, disk.volume or "", disk.path)
        await self._do_with_disks(uid, functools.partial(wanted.begin, disk), self._settings.verb_timeout)
        while (job := await self._do_with_disks(uid, wanted.look, self._settings.verb_timeout)) is not None:
            progress(job.done, job.total)
            if job.ready:
                return
            await asyncio.sleep(block_jobs.LOOK_EVERY)

    async def switch_disk(self, uid: str, volume: str, path: str, switched: Callable[[], Awaitable[None]]) -> None:
        wanted = copying.Copying(uid, volume, path)

        async def end() -> None:
            async with self._halt(uid):
                halted = await self._do_with_disks(uid, wanted.switch, self._settings.verb_timeout)
                await switched()
                if halted:
                    await self.resume(uid)

        # Not to be cut short: the guest would stay halted until the next agent finds it.
        await to_the_end(asyncio.ensure_future(end()))

    async def end_copy(self, uid: str, volume: str) -> None:
        await self._do_with_disks(uid, functools.partial(copying.end, uid, volume), self._settings.verb_timeout)

    async def power_button(self, uid: str) -> None:
        await self._tell(uid, verbs.press)

    async def force_off(self, uid: str) -> None:
        await self._tell(uid, verbs.force_off)

    async def pause(self, uid: str) -> None:
        await self._tell(uid, verbs.pause)

    async def resume(self, uid: str) -> None:
        await self._tell(uid, verbs.resume)

    async def suspend(self, uid: str) -> None:
        work = functools.partial(verbs.if_ours, uid, memory.keep)
        async with self._saving, self._halt(uid):
            await self._do_with_disks(uid, work, self._settings.suspend_timeout)

    async def wake(self, spec: DomainSpec) -> None:
        work = functools.partial(memory.wake, spec, await self._platform())
        async with self._saving:
            await self._do_with_disks(spec.marks.uid, work, self._settings.suspend_timeout)

    async def drop_memory(self, uid: str) -> None:
        await self._tell_of_device(uid, memory.drop)

    async def remove(self, uid: str) -> None:
        await self._tell(uid, verbs.remove)
        if self._settings.log_dir is not None:
            await asyncio.to_thread(_remove_logs, self._settings.log_dir, uid)

    async def send(self, uid: str, sending: Sending, connect: Connect, progress: Callable[[Progress], None]) -> None:
        await self._migrating.send(uid, sending, connect, progress)

    async def end_sending(self, uid: str) -> None:
        await self._migrating.end_sending(uid)

    async def receive(self, spec: DomainSpec, migration: str) -> None:
        await self._migrating.receive(spec, migration, await self._platform())

    async def take(self, spec: DomainSpec, migration: str, channel: str, stream: Stream) -> None:
        await self._migrating.take(spec, migration, channel, stream, await self._platform())

    async def arrive(self, uid: str, marks: Marks) -> None:
        await self._migrating.arrive(uid, marks)

    async def _platform(self) -> domain_xml.Platform:
        return domain_xml.Platform(
            acceleration=(await self.inventory()).acceleration or domain_xml.TCG,
            emulated_cpu=self._settings.emulated_cpu,
        )

    # In threads.

    def _measure(self, connection: ConnectionHandle) -> Inventory:
        found = inventory.read(connection)
        wanted = self._settings.acceleration
        if wanted is not Acceleration.AUTO:
            return inventory.read_offer(connection, replace(found, acceleration=wanted.value))
        emulator = inventory.emulator(connection.getCapabilities())
        accelerated = self._accelerated(emulator) if emulator else domain_xml.TCG
        return inventory.read_offer(connection, replace(found, acceleration=accelerated))

    def _accelerated(self, emulator: str) -> str:
        return acceleration.probe(emulator, memory=self._settings.acceleration_file)

    def _domain(self, record: Record, told: tuple[int, int]) -> Domain:
        now = state.state_of(*told)
        if now in ON:
            paused = state.PAUSES.get(told[1]) if now is DomainState.PAUSED else None
            return Domain(
                record.marks,
                now,
                started_at=record.started_at,
                pause_reason=paused,
                disks=record.disks,
                drives=record.drives,
                nics=record.nics,
                cpus=record.size.cpus,
                memory=record.size.memory,
                growth=record.size.growth,
                shape=record.shape,
                machine_type=record.machine_type,
                agent=record.agent,
                held=record.hold is not None,
                arriving=record.arriving,
                adopted=record.adopted,
                lost=record.lost,
                squeezed=record.squeezed,
                edited=record.edited,
            )
        why = self._exits.why(record.marks.uid, state.exit_of(*told))
        return Domain(
            record.marks,
            now,
            exit_reason=why,
            disks=record.disks,
            drives=record.drives,
            nics=record.nics,
            cpus=record.size.cpus,
            memory=record.size.memory,
            growth=record.size.growth,
            shape=record.shape,
            machine_type=record.machine_type,
            saved=record.saved,
            arriving=record.arriving,
        )

    async def _thaw(self, uid: str) -> bool:
        """Not in the domain's turn: an agent that does not answer holds up nobody else."""
        work = functools.partial(snapshots.thaw, uid)
        return await self._connection.call(work, seconds=self._settings.verb_timeout)

    async def _held(self) -> list[str]:
        found = await self._ask(functools.partial(listing.everything, known={}))
        return [entry.uuid for entry in found if entry.record is not None and entry.record.hold is not None]

    async def _let_go(self, uid: str) -> None:
        await self._tell(uid, holding.let_go)

    async def _ask(self, work: Callable[[ConnectionHandle], T]) -> T:
        return await self._connection.call(work, seconds=self._settings.read_timeout)

    async def _do(self, uid: str, work: Callable[[ConnectionHandle], T]) -> T:
        return await self._connection.call(work, seconds=self._settings.verb_timeout, key=uid)

    async def _tell(self, uid: str, verb: verbs.Verb) -> None:
        await self._do(uid, functools.partial(verbs.if_ours, uid, verb))

    def _halt(self, uid: str) -> asyncio.Lock:
        return self._halts.setdefault(uid, asyncio.Lock())

    async def _do_with_disks(self, uid: str, work: Callable[[ConnectionHandle], T], seconds: float) -> T:
        """What disks the domain has may be different afterwards, and no event tells."""
        try:
            return await self._connection.call(work, seconds=seconds, key=uid)
        finally:
            self._changes += 1
            self._records.pop(uid, None)

    async def _tell_of_device(self, uid: str, verb: verbs.Verb) -> None:
        """The event comes a moment later: until then nobody shall be told of the devices there were before."""
        try:
            await self._tell(uid, verb)
        finally:
            self._changes += 1
            self._records.pop(uid, None)


def _start(
    spec: DomainSpec, platform: domain_xml.Platform, connection: ConnectionHandle
) -> tuple[Record, tuple[int, int]]:
    handle = verbs.lookup(connection, spec.marks.uid)
    if handle is not None:
        if marks.read(handle.XMLDesc(0)) is None:
            raise HypervisorError(
                f"There is a domain {handle.name()} with the UUID of this machine that is not Kumulus' own."
                " Remove it, or delete the machine.",
                reason="DomainConflict",
                retryable=False,
            )
        if handle.isActive():
            return _already_on(handle, spec.marks)
    Path(spec.console_log).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    buffered = frozenset(disk.path for disk in spec.disks if not verbs.direct(disk.source))
    has = marks.board_of(handle) if handle is not None else None
    xml = domain_xml.render(spec, replace(platform, buffered=buffered), has)
    if handle is not None:
        adopting.replaced(handle, spec.marks.uid)
    handle = connection.defineXML(xml)
    try:
        # FORCE_BOOT: a state that somebody saved belongs to another run, maybe to other disks.
        with secrets.lent(connection, (*spec.disks, *spec.drives)):
            handle.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_OPERATION_INVALID) and handle.isActive():
            return _already_on(handle, spec.marks)
        raise
    disks, drives = domain_xml.as_attached(spec.disks, buffered), domain_xml.drives_as_attached(spec.drives)
    nics = domain_xml.nics_as_attached(spec.nics)
    begun = growing.begun(spec)
    record = Record(spec.marks, verbs.write_run(handle), disks, drives, nics, begun, shape=spec.shape)
    return replace(record, machine_type=marks.board_of(handle)), handle.state()


def _already_on(handle: DomainHandle, wanted: Marks) -> tuple[Record, tuple[int, int]]:
    verbs.write_marks(wanted, handle)
    return marks.read(handle.XMLDesc(0)) or Record(wanted, None), handle.state()


def _observe(uid: str, redefined: bool, connection: ConnectionHandle) -> tuple[Record, tuple[int, int]] | None:
    handle = verbs.lookup(connection, uid)
    if handle is None:
        return None
    try:
        xml = handle.XMLDesc(0)
        record = marks.read(xml)
        if record is None:
            return None
        if handle.isActive():
            persistent = bool(handle.isPersistent())
            now = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if redefined and persistent else None
            edited = drift.edited(xml, now) if now is not None else ()
            record = replace(record, lost=not persistent, edited=edited)
        elif handle.hasManagedSaveImage(0):
            record = marks.with_memory(record, handle.managedSaveGetXMLDesc(0))
        return record, verbs.state_now(handle)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


async def _within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Raises `HypervisorError(reason="HaltedTooLong")` when it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            await work()
    except TimeoutError:
        raise HypervisorError(
            f"The pools of the machine's volumes did not keep what is in them within {seconds:.0f} s, and the guest must"
            " not be halted longer: it went on, and there is no snapshot. Look at the pools; it is tried again.",
            reason="HaltedTooLong",
        ) from None


def _remove_logs(directory: Path, uid: str) -> None:
    for file in directory.glob(f"{glob.escape(marks.domain_name(uid))}.log*"):
        with contextlib.suppress(OSError):
            file.unlink()


def _ignore(_uid: str) -> None:
    """Nobody listens."""


def _nobody() -> None:
    """Nobody listens."""
