"""Guests that leave for another host, and guests that come (docs/adr/0029): libvirt's peer-to-peer migration through a tunnel.

The source's libvirtd is given two unix sockets of this process for the target's libvirtd and its QEMU; what goes in there
comes out in this module on the other host, which sifts it. The guest comes halted, and libvirt lets none go on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt

from kumulus.api.compute import PowerState
from kumulus_agents.hypervisor.domain import DomainDisk, DomainDrive, DomainSpec, Marks
from kumulus_agents.hypervisor.libvirt import arrival, disks_along, domain_xml, inventory, marks, secrets, sieve, verbs
from kumulus_agents.hypervisor.libvirt.connection import Connection
from kumulus_agents.hypervisor.libvirt.errors import UNAVAILABLE, translate
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.blocking import to_the_end

LIBVIRT = "libvirt"
MEMORY = "memory"
DISKS = "disks"
CHANNELS = (LIBVIRT, MEMORY, DISKS)

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    # That its disks can be used there and here is the controllers' to know; libvirt judges by the kind of file system.
    | libvirt.VIR_MIGRATE_UNSAFE
)
LONGEST = 86400.0
"""Seconds; who wants less gives it up."""
LOOK_EVERY = 1.0
LISTENS_WITHIN = 10.0
"""QEMU listens when libvirt's Prepare has been answered, so this is for a slow machine."""
LENT_FOR = 60.0
"""Seconds for which libvirt has the keys of disks at most; each layer of an encrypted one takes half a second to open."""
SENT_AT_ONCE = 2
"""A migration takes a thread for as long as it lasts."""


class Migrating:
    """Of one libvirtd."""

    def __init__(self, connection: Connection, settings: LibvirtSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._sends = asyncio.Semaphore(SENT_AT_ONCE)
        self._told: dict[str, Callable[[], None]] = {}
        """By uid of a domain that is being sent: called when its guest is halted."""

    async def send(self, uid: str, sending: Sending, connect: Connect, progress: Callable[[Progress], None]) -> None:
        """See the protocol."""
        async with self._sends, self._doors(uid, connect) as doors:
            last = Progress(0, 0, 0, 1, sending.max_downtime)

            def seen(now: Progress) -> None:
                nonlocal last
                last = now
                progress(now)

            self._told[uid] = lambda: progress(replace(last, halted=True))
            watch = asyncio.create_task(self._watch(uid, seen))
            try:
                await self._connection.call(functools.partial(_send, uid, sending, doors), seconds=LONGEST)
            except asyncio.CancelledError:
                await to_the_end(asyncio.ensure_future(self.end_sending(uid)))
                raise
            finally:
                watch.cancel()
                self._told.pop(uid, None)

    def halted(self, uid: str) -> None:
        """libvirt says that the guest is halted, for what is left of its memory is sent."""
        if (told := self._told.get(uid)) is not None:
            told()

    async def end_sending(self, uid: str) -> None:
        """See the protocol."""
        ends = asyncio.get_running_loop().time() + self._settings.verb_timeout
        while await self._connection.call(functools.partial(_abort, uid), seconds=self._settings.read_timeout):
            if asyncio.get_running_loop().time() > ends:
                raise HypervisorError("libvirt has not given up sending the guest.", reason="HypervisorBusy")
            await asyncio.sleep(0.1)

    async def receive(self, spec: DomainSpec, migration: str, platform: domain_xml.Platform) -> None:
        """See the protocol."""
        work = functools.partial(_receive, spec, migration, platform)
        await self._connection.call(work, seconds=self._settings.verb_timeout, key=spec.marks.uid)

    async def arrive(self, uid: str, wanted: Marks) -> None:
        """See the protocol."""
        work = functools.partial(_arrive, uid, wanted)
        await self._connection.call(work, seconds=self._settings.verb_timeout, key=uid)
        await asyncio.to_thread(shutil.rmtree, self._settings.migration_dir / f"{uid}.in", True)

    async def take(
        self, spec: DomainSpec, migration: str, channel: str, stream: Stream, platform: domain_xml.Platform
    ) -> None:
        """See the protocol."""
        uid = spec.marks.uid
        try:
            waits = await self._connection.call(
                functools.partial(_waits, uid, migration), seconds=self._settings.read_timeout
            )
            if not waits or channel not in CHANNELS:
                raise HypervisorError("The machine is not waited for by that migration.", reason="NotExpected")
            if channel == DISKS and not disks_along.of(spec.disks):
                raise HypervisorError("The machine waits for no disks.", reason="NotExpected")
            if channel != LIBVIRT:
                await _join(stream, await self._emulator(uid, channel))
                return
            own = await asyncio.to_thread(_render, spec, platform)
            loaders, copied = await self._loaders(spec, platform), disks_along.of(spec.disks)
            strict = sieve.Sieve(
                marks.domain_name(uid),
                f"unix://{_place(self._settings.migration_dir, uid, MEMORY)}",
                functools.partial(arrival.definition, own=own, migration=migration, loaders=loaders, copied=copied),
                copied,
                f"unix://{_place(self._settings.migration_dir, uid, DISKS)}",
            )
            await asyncio.to_thread(_make_place, self._settings.migration_dir / f"{uid}.in")
            async with self._lending(spec):
                daemon = await asyncio.open_unix_connection(_daemon(self._settings.uri))
                try:
                    await sieve.serve(strict, stream, daemon)
                except* arrival.Refused as refused:
                    said = f"{refused.exceptions[0]}."
                    raise HypervisorError(said, reason="GuestRefused", retryable=False) from refused
        except OSError as error:
            raise HypervisorError(f"The guest cannot come: {error}.", reason="MigrationFailed") from error
        finally:
            stream[1].close()

    async def _loaders(self, spec: DomainSpec, platform: domain_xml.Platform) -> frozenset[str]:
        if not spec.shape.uefi:
            return frozenset()
        kind = domain_xml.virtualisation(platform.acceleration)
        return await self._connection.call(
            functools.partial(inventory.loaders, kind), seconds=self._settings.verb_timeout
        )

    @contextlib.asynccontextmanager
    async def _lending(self, spec: DomainSpec) -> AsyncIterator[None]:
        """The keys of its disks are libvirt's, which gives them to QEMU when that opens the disks, before any memory comes."""
        disks: list[DomainDisk | DomainDrive] = [*spec.disks, *spec.drives]
        if not secrets.have_keys(disks):
            yield
            return
        seconds, key = self._settings.verb_timeout, f"keys of {spec.marks.uid}"  # one that was given up ends first

        async def take_back(after: float) -> None:
            await asyncio.sleep(after)
            await self._connection.call(functools.partial(secrets.take_back, disks), seconds=seconds, key=key)

        soon = asyncio.create_task(take_back(LENT_FOR))
        try:
            # Some may be libvirt's when it fails halfway, or is given up.
            await self._connection.call(functools.partial(secrets.lend, disks), seconds=seconds, key=key)
            yield
        finally:
            soon.cancel()
            await asyncio.gather(soon, return_exceptions=True)
            with contextlib.suppress(HypervisorError):
                await to_the_end(asyncio.ensure_future(take_back(0)))

    async def _emulator(self, uid: str, channel: str) -> Stream:
        path = _place(self._settings.migration_dir, uid, channel)
        ends = asyncio.get_running_loop().time() + LISTENS_WITHIN
        while True:
            try:
                return await asyncio.open_unix_connection(path)
            except OSError:
                if asyncio.get_running_loop().time() > ends:
                    raise
                await asyncio.sleep(0.02)

    async def _watch(self, uid: str, progress: Callable[[Progress], None]) -> None:
        seen = False
        while True:
            await asyncio.sleep(LOOK_EVERY if seen else LOOK_EVERY / 10)
            with contextlib.suppress(HypervisorError):
                look = functools.partial(_look, uid)
                found = await self._connection.call(look, seconds=self._settings.read_timeout)
                if found is not None:
                    seen = True
                    progress(found)

    @contextlib.asynccontextmanager
    async def _doors(self, uid: str, connect: Connect) -> AsyncIterator[_Doors]:
        """Sockets of this process, behind which are the other host's libvirtd and QEMU."""
        directory = self._settings.migration_dir / f"{uid}.out"
        await asyncio.to_thread(_make_place, directory)
        doors, joined = _Doors(*(str(directory / channel) for channel in CHANNELS)), set[asyncio.Task[None]]()

        async def through(channel: str, *near: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            joined.add(task)
            try:
                await _join((near[0], near[1]), await connect(channel))
            except (OSError, asyncio.CancelledError):  # asyncio would log that a task of its own was cancelled
                near[1].close()
            finally:
                joined.discard(task)

        servers = [
            await asyncio.start_unix_server(functools.partial(through, channel), path)
            for channel, path in ((LIBVIRT, doors.libvirt), (MEMORY, doors.memory), (DISKS, doors.disks))
        ]
        try:
            yield doors
        finally:
            for server in servers:
                server.close()
            for task in list(joined):
                task.cancel()
            await asyncio.gather(*joined, return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, directory, True)


@dataclass(frozen=True, slots=True)
class _Doors:
    libvirt: str
    memory: str
    disks: str


async def _join(one: Stream, other: Stream) -> None:
    """Two streams are one, until either ends."""
    ways = {
        asyncio.create_task(sieve.pump(one[0], other[1])),
        asyncio.create_task(sieve.pump(other[0], one[1])),
    }
    try:
        await asyncio.wait(ways)
    finally:
        for way in ways:
            way.cancel()
        for _, writer in (one, other):
            writer.close()


def _send(uid: str, sending: Sending, doors: _Doors, connection: ConnectionHandle) -> None:
    handle = verbs.lookup(connection, uid)
    if handle is None or marks.read(handle.XMLDesc(0)) is None:
        raise HypervisorError("The machine is not here.", reason="NotRunning")
    if _left(handle):
        return
    if handle.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
        raise HypervisorError("The machine is off or halted: only one that runs can move.", reason="NotRunning")
    parameters: dict[str, str | int | list[str]] = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{doors.memory}"}
    flags = FLAGS | (libvirt.VIR_MIGRATE_AUTO_CONVERGE if sending.converge else 0)
    if sending.bandwidth is not None:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = sending.bandwidth
    try:
        if sending.disks:
            parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{doors.disks}"
            wanted = disks_along.serials(sending.disks)
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [*disks_along.devices(handle.XMLDesc(0), wanted)]
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES if sending.converge else 0
        # Before it begins, for a guest whose memory is mostly empty has left before anybody looks. Less than was asked for is not
        # tried first: emulated guests lose writes with each pass more (docs/adr/0029).
        handle.migrateSetMaxDowntime(sending.max_downtime, 0)
        handle.migrateToURI3(f"qemu+unix:///system?socket={doors.libvirt}", parameters, flags)
    except disks_along.UnknownDisk as error:
        raise HypervisorError(f"The guest is not sent: {error}.", reason="MigrationFailed") from error
    except libvirt.libvirtError as error:
        if _left(handle):
            return
        raise HypervisorError(
            f"The guest was not brought to the other host. {translate(error)}", reason="MigrationFailed"
        ) from error


def _left(handle: DomainHandle) -> bool:
    return tuple(handle.state()) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)


def _abort(uid: str, connection: ConnectionHandle) -> bool:
    """Whether a guest is being sent still, which was asked to end."""
    handle = verbs.lookup(connection, uid)
    if handle is None or not handle.isActive():
        return False
    with verbs.tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
        if handle.jobStats(0).get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
            return False
        handle.abortJob()
        return True
    return False


def _look(uid: str, connection: ConnectionHandle) -> Progress | None:
    """How far it is; None when nothing is being copied."""
    handle = verbs.lookup(connection, uid)
    if handle is None:
        return None
    try:
        told = handle.jobStats(0)
        if told.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT or not told.get("data_total"):
            return None
    except libvirt.libvirtError:
        return None
    return Progress(
        total=told.get("data_total", 0),
        remaining=told.get("data_remaining", 0),
        dirty_rate=told.get("memory_dirty_rate", 0) * told.get("memory_page_size", 4096),
        iteration=max(told.get("memory_iteration", 1), 1),
        downtime=told.get("downtime", 0),
        disk_total=told.get("disk_total", 0),
        disk_remaining=told.get("disk_remaining", 0),
    )


def _render(spec: DomainSpec, platform: domain_xml.Platform) -> str:
    buffered = frozenset(disk.path for disk in spec.disks if not verbs.direct(disk.source))
    return domain_xml.render(spec, replace(platform, buffered=buffered))


def _receive(spec: DomainSpec, migration: str, platform: domain_xml.Platform, connection: ConnectionHandle) -> None:
    handle = verbs.lookup(connection, spec.marks.uid)
    if handle is not None:
        record = marks.read(handle.XMLDesc(0))
        if record is None:
            raise HypervisorError(
                f"There is a domain {handle.name()} with the UUID of this machine that is not Kumulus' own.",
                reason="DomainConflict",
                retryable=False,
            )
        if handle.isActive():
            if record.arriving == migration:
                return
            raise HypervisorError("The machine is on here already.", reason="AlreadyOn")
    Path(spec.console_log).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection.defineXML(arrival.awaiting(_render(spec, platform), migration))


def _waits(uid: str, migration: str, connection: ConnectionHandle) -> bool:
    handle = verbs.lookup(connection, uid)
    record = marks.read(handle.XMLDesc(0)) if handle is not None else None
    return record is not None and record.arriving == migration


def _arrive(uid: str, wanted: Marks, connection: ConnectionHandle) -> None:
    handle = verbs.lookup(connection, uid)
    record = marks.read(handle.XMLDesc(0)) if handle is not None else None
    if handle is None or record is None:
        raise HypervisorError("The guest has not come here.", reason="NotArrived")
    if record.arriving is None:
        return
    state, why = handle.state()
    if state != libvirt.VIR_DOMAIN_PAUSED or why in (
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    ):
        raise HypervisorError("The guest is not whole here.", reason="NotArrived")
    if record.marks != wanted or record.started_at is None:
        verbs.write_marks(wanted, handle)  # a file of libvirt's, twice, while the guest is halted
    # First that it is ours, then that it runs: who dies in between leaves one that is halted, and knows to let it go on.
    handle.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        None,
        marks.ARRIVING_PREFIX,
        marks.ARRIVING_NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    if wanted.wanted is PowerState.RUNNING:
        verbs.resume(handle)


def _daemon(uri: str) -> str:
    """The socket of libvirt's daemon."""
    given = parse_qs(urlsplit(uri).query).get("socket")
    if given:
        return given[0]
    places = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
    found = next((place for place in places if Path(place).is_socket()), None)
    if found is None:
        raise HypervisorError("libvirt's socket is not where it is looked for.", reason=UNAVAILABLE)
    return found


def _place(directory: Path, uid: str, channel: str) -> str:
    """Where QEMU listens for the memory, or the disks, of that guest."""
    return str(directory / f"{uid}.in" / channel)


def _make_place(place: Path) -> None:
    """QEMU makes sockets here itself, or connects to them, as whom libvirt runs it: its state directory belongs to that user."""
    _fresh(place)
    with contextlib.suppress(FileNotFoundError):
        owner = Path("/var/lib/libvirt/qemu").stat()
        os.chown(place, owner.st_uid, owner.st_gid)


def _fresh(directory: Path) -> None:
    directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
