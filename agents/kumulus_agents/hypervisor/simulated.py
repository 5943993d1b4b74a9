"""A hypervisor without a machine: the same protocol, believable delays, failures on request.

For tests and for scale: thousands of hosts in one process, so a host is a few dictionaries, and a
timer exists only while something is going to happen. `SimulatedHypervisor` is the driver of a
`SimulatedHost`, which outlives it, so that an agent can be restarted beside running guests.
Files of disks are not touched, but for a volume that is grown or copied while a guest has it.
"""

from __future__ import annotations

import asyncio
import subprocess
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kumulus.api.qos import Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor import simulated_adopting, simulated_moving
from kumulus_agents.hypervisor.domain import (
    TRAY_LOCKED,
    Adoption,
    AttachedDisk,
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    DomainState,
    ExitReason,
    GuestSays,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import DomainListener, Hypervisor, HypervisorError, Inventory
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings, as_attached, plugged
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, LayerFile

DETACH_WAITS = 5.0
"""Seconds that `detach_disk` waits for a guest."""


class SimulatedHypervisor:
    """The driver of a simulated host. Verbs take the time that the host's settings say."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self._listener: DomainListener | None = None
        self._foreign_listener: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def told(self, uid: str) -> None:
        """The host says that a domain has changed; the listener hears of it a moment later."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._forward, uid)

    def _forward(self, uid: str) -> None:
        if self._listener is not None:
            self._listener(uid)
        if not uid:
            self._forward_foreign()

    def told_foreign(self) -> None:
        """The host says that a domain which is not ours has changed; the listener hears of it a moment later."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._forward_foreign)

    def _forward_foreign(self) -> None:
        if self._foreign_listener is not None:
            self._foreign_listener()

    async def connect(self, listener: DomainListener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._host.attach(self)
        for uid in list(self._host.domains):
            self._host.let_go(uid)
        if self._host.available:
            self.told("")

    async def close(self) -> None:
        self._host.detach(self)
        self._listener = None

    async def inventory(self) -> Inventory:
        settings = self._reach().settings
        return Inventory(
            cpus=settings.cpus,
            memory=settings.memory,
            cpu_model=settings.cpu_model,
            cpu_vendor="Kumulus",
            architecture="x86_64",
            acceleration="kvm",
            hypervisor_version="0.0.0",
            emulator_version="0.0.0",
            machine_types=("q35", *settings.machine_types),
            cpu_models=settings.cpu_models,
            features=frozenset(settings.features),
        )

    async def domain(self, uid: str) -> Domain | None:
        host = self._reach()
        domain = host.domains.get(uid)
        return host.seen(domain) if domain is not None else None

    async def domains(self) -> Sequence[Domain]:
        host = self._reach()
        return tuple(host.seen(domain) for domain in host.domains.values())

    async def foreign(self, *, fresh: bool = False, orphans: Collection[str] = ()) -> Sequence[ForeignDomain]:
        host = self._reach()
        ours = (simulated_adopting.described(domain) for uid, domain in host.domains.items() if uid in orphans)
        return (*host.foreign.values(), *ours)

    def watch_foreign(self, listener: Callable[[], None]) -> None:
        self._foreign_listener = listener

    async def start(self, spec: DomainSpec) -> Domain:
        uid = spec.marks.uid
        async with self._one_at_a_time(uid):
            host = self._reach()
            if uid in host.foreign:
                raise HypervisorError(
                    "There is a domain with the UUID of this machine that is not Kumulus' own.",
                    reason="DomainConflict",
                    retryable=False,
                )
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED:
                await self._pass(host.settings.start_seconds)
                return self._reach().started(spec)
            host.domains[uid] = replace(domain, marks=spec.marks)
            return host.domains[uid]

    async def adopt(self, adoption: Adoption) -> None:
        async with self._one_at_a_time(adoption.marks.uid):
            simulated_adopting.adopt(self._reach(), adoption)

    async def disown(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            simulated_adopting.disown(self._reach(), uid)

    async def mark(self, uid: str, marks: Marks) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            if domain := host.domains.get(uid):
                host.domains[uid] = replace(domain, marks=marks)

    async def attach_disk(self, uid: str, disk: DomainDisk) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED or disk.volume in domain.volumes:
                return
            others = (other for other in host.domains.values() if other.state is not DomainState.STOPPED)
            if any(disk.volume in other.volumes for other in others):
                raise HypervisorError("Another simulated machine holds the disk.", reason="DiskInUse")
            host.put(replace(domain, disks=(*domain.disks, as_attached(disk))))

    async def detach_disk(self, uid: str, volume: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.saved is not None or volume not in domain.volumes:
                return
            if domain.state is DomainState.STOPPED:
                host.put(replace(domain, disks=tuple(disk for disk in domain.disks if disk.volume != volume)))
                return
            if not (pause := host.delay(host.settings.detach_seconds)):
                host.detached(uid, volume, domain.started_at)
                return
            asyncio.get_running_loop().call_later(pause, host.detached, uid, volume, domain.started_at)
            await asyncio.sleep(min(pause, DETACH_WAITS))

    async def attach_nic(self, uid: str, nic: DomainNic) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED or any(n.uid == nic.uid for n in domain.nics):
                return
            host.put(replace(domain, nics=(*domain.nics, plugged(nic))))

    async def replug_nic(self, uid: str, nic: DomainNic) -> None:
        async with self._one_at_a_time(uid):
            simulated_adopting.replug(self._reach(), uid, nic)

    async def detach_nic(self, uid: str, nic: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.saved is not None or all(item.uid != nic for item in domain.nics):
                return
            if domain.state is DomainState.STOPPED:
                host.put(replace(domain, nics=tuple(item for item in domain.nics if item.uid != nic)))
                return
            if not (pause := host.delay(host.settings.detach_seconds)):
                host.unplugged(uid, nic, domain.started_at)
                return
            asyncio.get_running_loop().call_later(pause, host.unplugged, uid, nic, domain.started_at)
            await asyncio.sleep(min(pause, DETACH_WAITS))

    async def resize_disk(self, uid: str, volume: str, size: int) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED or volume not in domain.volumes:
                raise HypervisorError("The simulated machine has no such disk now.", reason="DiskNotAttached")
            if size > host.sizes.get(volume, 0):
                for disk in domain.disks:
                    if disk.volume == volume:
                        await asyncio.to_thread(_grow, disk.path, size)
                host.sizes[volume] = size

    async def limit_disk(self, uid: str, volume: str, qos: Qos) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED or volume not in domain.volumes:
                return
            disks = tuple(replace(disk, qos=qos) if disk.volume == volume else disk for disk in domain.disks)
            if disks != tuple(domain.disks):
                host.put(replace(domain, disks=disks))

    async def resize(self, uid: str, cpus: int, memory: int) -> None:
        async with self._one_at_a_time(uid):
            self._reach().resized(uid, cpus, memory)

    async def redefine(self, uid: str) -> None:
        host = self._reach()
        if (domain := host.domains.get(uid)) is not None and domain.lost:
            host.put(replace(domain, lost=False))

    async def refill(self, uid: str) -> None:
        host = self._reach()
        if (domain := host.domains.get(uid)) is not None and domain.squeezed:
            host.put(replace(domain, squeezed=uid in host.clinging))

    async def ask_guest(self, uid: str) -> GuestSays | None:
        host = self._reach()
        domain = host.domains.get(uid)
        return host.guests.get(uid) if domain is not None and domain.state is not DomainState.STOPPED else None

    async def change_disc(self, uid: str, drive: str, disc: DiskSource | None, *, force: bool = False) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED:
                return
            path = disc.path if disc is not None else None
            drives = tuple(replace(item, path=path) if item.name == drive else item for item in domain.drives)
            if drives == tuple(domain.drives):
                return
            if uid in host.clinging and not force:
                raise HypervisorError("The simulated guest holds the tray shut.", reason=TRAY_LOCKED)
            host.put(replace(domain, drives=drives))

    async def snapshot_disks(
        self,
        uid: str,
        layers: Mapping[str, LayerFile],
        quiesce: Quiesce,
        passphrases: Mapping[str, Passphrase] | None = None,
        still: Still | None = None,
    ) -> tuple[Indication, ...]:
        """See the protocol. An agent that is cancelled meanwhile leaves the guest as one that is killed."""
        volumes = layers.keys() | (still.volumes if still is not None else frozenset())
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = self._having(uid, volumes)
            rest = Indication.NO_GUEST_AGENT
            if quiesce.mode is not QuiesceMode.NEVER and (able := host.agents.get(uid)) is not None:
                rest = Indication.GUEST_AGENT if able else Indication.QUIESCE_FAILED
            if quiesce.mode is QuiesceMode.REQUIRED and rest is not Indication.GUEST_AGENT:
                raise HypervisorError("The simulated guest did not come to rest.", reason="QuiesceFailed")
            if still is not None and domain.state is DomainState.RUNNING:
                host.put(replace(domain, state=DomainState.PAUSED, held=True))
        if still is not None:
            await self._keep(uid, still)
        async with self._one_at_a_time(uid):
            try:
                domain = self._having(uid, volumes)
                moved = tuple(
                    replace(disk, path=layers[disk.volume].path) if disk.volume and disk.volume in layers else disk
                    for disk in domain.disks
                )
                if moved != tuple(domain.disks) or still is not None:
                    host.snapshots.append((uid, frozenset(volumes)))
                    host.put(replace(domain, disks=moved))
            finally:
                host.let_go(uid)
            return (Indication.ONLINE,) if quiesce.mode is QuiesceMode.NEVER else (Indication.ONLINE, rest)

    def _having(self, uid: str, volumes: Set[str]) -> Domain:
        domain = self._reach().domains.get(uid)
        if domain is None or domain.state is DomainState.STOPPED or not volumes <= domain.volumes:
            raise HypervisorError("The simulated machine has not got the disks now.", reason="DiskNotAttached")
        return domain

    async def _keep(self, uid: str, still: Still) -> None:
        """The guest goes on when it fails."""
        try:
            async with asyncio.timeout(still.seconds):
                await still.keep()
        except TimeoutError:
            self._host.let_go(uid)
            raise HypervisorError("The simulated guest must not be halted longer.", reason="HaltedTooLong") from None
        except Exception:
            self._host.let_go(uid)
            raise

    async def merge_layers(
        self,
        uid: str,
        volume: str,
        upper: str,
        lower: str,
        progress: Callable[[int, int], None],
        merged: Callable[[], Awaitable[None]],
    ) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            progress(0, 1 << 20)
            await self._pass(host.settings.merge_seconds)
            domain = self._reach().domains.get(uid)
            if domain is None or domain.state is DomainState.STOPPED or volume not in domain.volumes:
                raise HypervisorError("The simulated machine has not got the disk now.", reason="DiskNotAttached")
            host.merges.append((volume, upper, lower))
            disks = tuple(
                replace(disk, path=lower) if (disk.volume, disk.path) == (volume, upper) else disk
                for disk in domain.disks
            )
            if disks == tuple(domain.disks):
                await merged()
                return
            host.put(replace(domain, state=DomainState.PAUSED, disks=disks))
            await merged()
            if (halted := host.domains.get(uid)) is not None and halted.state is DomainState.PAUSED:
                host.put(replace(halted, state=domain.state))

    async def copy_disk(self, uid: str, disk: DomainDisk, progress: Callable[[int, int], None]) -> None:
        async with self._one_at_a_time(uid):
            now = self._attached(uid, disk.volume)
            if now.path == disk.path:
                return
            if now.copied_to not in (None, disk.path):
                raise HypervisorError("The simulated disk is being copied to another place.", reason="CopyFailed")
            if now.copied_to is None:
                self._host.copies.append((disk.volume or "", disk.path))
                self._change_disk(uid, replace(now, copied_to=disk.path))
        progress(0, 1 << 20)
        await self._pass(self._host.settings.copy_seconds)
        now = self._attached(uid, disk.volume)
        if now.copied_to != disk.path and now.path != disk.path:
            raise HypervisorError("The simulated emulator gave up.", reason="CopyFailed")

    async def switch_disk(self, uid: str, volume: str, path: str, switched: Callable[[], Awaitable[None]]) -> None:
        async with self._one_at_a_time(uid):
            now = self._attached(uid, volume)
            if now.path == path:
                await switched()
                return
            if now.copied_to != path:
                raise HypervisorError("The simulated disk is not being copied there.", reason="CopyFailed")
            await asyncio.to_thread(_copy, now.path, path)
            host = self._host
            state = host.domains[uid].state
            host.put(replace(host.domains[uid], state=DomainState.PAUSED))
            host.switches.append((volume, path))
            self._change_disk(uid, replace(now, path=path, copied_to=None))
            await switched()
            if (halted := host.domains.get(uid)) is not None and halted.state is DomainState.PAUSED:
                host.put(replace(halted, state=state))

    async def end_copy(self, uid: str, volume: str) -> None:
        async with self._one_at_a_time(uid):
            try:
                now = self._attached(uid, volume)
            except HypervisorError as error:
                if error.reason != "DiskNotAttached":
                    raise
                return
            if now.copied_to is not None:
                self._change_disk(uid, replace(now, copied_to=None))

    def _attached(self, uid: str, volume: str | None) -> AttachedDisk:
        """The volume as a machine that is on has it."""
        domain = self._reach().domains.get(uid)
        for disk in domain.disks if domain is not None and domain.state is not DomainState.STOPPED else ():
            if disk.volume == volume:
                return disk
        raise HypervisorError("The simulated machine has not got the disk now.", reason="DiskNotAttached")

    def _change_disk(self, uid: str, disk: AttachedDisk) -> None:
        domain = self._host.domains[uid]
        disks = tuple(disk if one.volume == disk.volume else one for one in domain.disks)
        self._host.put(replace(domain, disks=disks))

    async def power_button(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or domain.state is not DomainState.RUNNING or uid in host.deaf:
                return
            run = domain.started_at
            asyncio.get_running_loop().call_later(
                host.delay(host.settings.shutdown_seconds), _shut_down, host, uid, run
            )

    async def force_off(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            await self._off(uid)

    async def pause(self, uid: str) -> None:
        await self._change(uid, DomainState.RUNNING, DomainState.PAUSED)

    async def resume(self, uid: str) -> None:
        await self._change(uid, DomainState.PAUSED, DomainState.RUNNING)

    async def suspend(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is not None and domain.state is not DomainState.STOPPED:
                await self._pass(host.settings.stop_seconds)
                self._reach().suspended(uid)

    async def wake(self, spec: DomainSpec) -> None:
        async with self._one_at_a_time(spec.marks.uid):
            self._reach().woken(spec)

    async def drop_memory(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            if (domain := host.domains.get(uid)) is not None and domain.saved is not None:
                host.put(replace(domain, saved=None))

    async def send(self, uid: str, sending: Sending, connect: Connect, progress: Callable[[Progress], None]) -> None:
        await simulated_moving.send(self._reach(), uid, sending, connect, progress)

    async def end_sending(self, uid: str) -> None:
        self._reach().sending.discard(uid)

    async def receive(self, spec: DomainSpec, migration: str) -> None:
        async with self._one_at_a_time(spec.marks.uid):
            simulated_moving.receive(self._reach(), spec, migration)

    async def take(self, spec: DomainSpec, migration: str, channel: str, stream: Stream) -> None:
        await simulated_moving.take(self._reach(), spec, migration, stream)

    async def arrive(self, uid: str, marks: Marks) -> None:
        async with self._one_at_a_time(uid):
            simulated_moving.arrive(self._reach(), uid, marks)

    async def remove(self, uid: str) -> None:
        async with self._one_at_a_time(uid):
            await self._off(uid)
            self._reach().drop(uid)

    async def _off(self, uid: str) -> None:
        host = self._reach()
        domain = host.domains.get(uid)
        if domain is not None and domain.state is not DomainState.STOPPED:
            await self._pass(host.settings.stop_seconds)
            self._reach().end(uid, ExitReason.DESTROYED)

    async def _change(self, uid: str, before: DomainState, after: DomainState) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is not None and domain.state is before:
                host.put(replace(domain, state=after))

    async def _pass(self, seconds: float) -> None:
        if delay := self._host.delay(seconds):
            await asyncio.sleep(delay)

    def _reach(self) -> SimulatedHost:
        if self._listener is None or not self._host.available:
            raise HypervisorError("The simulated hypervisor cannot be reached.", reason="HypervisorUnavailable")
        return self._host

    @asynccontextmanager
    async def _one_at_a_time(self, uid: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(uid, asyncio.Lock())
        async with lock:
            yield


def create(settings: Mapping[str, object]) -> Hypervisor:
    """A driver with a host of its own. Raises `pydantic.ValidationError`."""
    return SimulatedHypervisor(SimulatedHost(SimulatedSettings.model_validate(settings)))


def _shut_down(host: SimulatedHost, uid: str, run: float | None) -> None:
    domain = host.domains.get(uid)
    if domain is not None and domain.started_at == run and domain.state is DomainState.RUNNING:
        host.end(uid, ExitReason.SHUTDOWN)


def _grow(path: str, size: int) -> None:
    """What QEMU does to the file of a disk that it grows; simulated pools have none."""
    if Path(path).is_file():
        subprocess.run(["/usr/bin/qemu-img", "resize", "-q", "-f", "qcow2", path, str(size)], check=True)


def _copy(path: str, to: str) -> None:
    """What QEMU does to the file that it copies a disk to; simulated pools have none."""
    if Path(path).is_file() and Path(to).is_file():
        command = ["/usr/bin/qemu-img", "convert", "-n", "-U", "-f", "qcow2", "-O", "qcow2", path, to]
        subprocess.run(command, check=True)
