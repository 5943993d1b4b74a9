"""A hypervisor without a machine: the same protocol, believable delays, failures on request.

For tests and for scale: thousands of hosts in one process, so a host is a few dictionaries, and a
timer exists only while something is going to happen. `SimulatedHost` is the machine and outlives its
driver, so that an agent can be restarted beside running guests; `SimulatedHypervisor` is the driver.
Files of disks are not touched, but for a volume that is grown or copied while a guest has it.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kumulus.api.qos import Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus_agents.hypervisor.protocol import (
    TRAY_LOCKED,
    AttachedDisk,
    AttachedDrive,
    AttachedNic,
    Domain,
    DomainDisk,
    DomainListener,
    DomainNic,
    DomainSpec,
    DomainState,
    ExitReason,
    ForeignDomain,
    Hypervisor,
    HypervisorError,
    Inventory,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, LayerFile

GIB = 1 << 30
DETACH_WAITS = 5.0
"""Seconds that `detach_disk` waits for a guest."""


class SimulatedSettings(BaseModel):
    """What a simulated host has and how it behaves. Unknown settings are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(default=64, ge=1, description="Hardware threads.")
    memory: int = Field(default=256 * GIB, ge=1, description="Bytes.")
    cpu_model: str = Field(default="simulated", description="Model of the processor.")
    start_seconds: float = Field(default=0, ge=0, description="How long a start takes.")
    stop_seconds: float = Field(default=0, ge=0, description="How long QEMU takes to go.")
    shutdown_seconds: float = Field(default=0, ge=0, description="How long a guest takes after the power button.")
    detach_seconds: float = Field(default=0, ge=0, description="How long a guest takes to let go of a disk.")
    merge_seconds: float = Field(default=0, ge=0, description="How long a merge of a disk's layers takes.")
    copy_seconds: float = Field(default=0, ge=0, description="How long copying a disk to another place takes.")
    jitter: float = Field(default=0.2, ge=0, le=1, description="How much of each delay is left to chance.")
    failure_rate: float = Field(default=0, ge=0, le=1, description="Share of starts that fail.")
    seed: int = Field(default=0, description="Of chance: the same seed, the same run.")
    console: bool = Field(default=False, description="Whether guests print a line to their console log.")


class SimulatedHost:
    """A machine with a hypervisor. Its guests go on whether a driver is connected or not.

    The methods are what can happen to it from outside; the driver uses the state.
    """

    def __init__(self, settings: SimulatedSettings | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings or SimulatedSettings()
        self.domains: dict[str, Domain] = {}
        self.foreign: dict[str, ForeignDomain] = {}
        self.available = True
        self.starts: dict[str, int] = {}
        """How often each domain was really started."""
        self.deaf: set[str] = set()
        """Domains whose guest does not react to the power button."""
        self.clinging: set[str] = set()
        """Domains whose guest does not let go of a disk or a disc."""
        self.sizes: dict[str, int] = {}
        """Volumes that were resized while a guest had them: bytes the guest sees."""
        self.agents: dict[str, bool] = {}
        """Domains whose guest has an agent, and whether that can bring the file systems to rest."""
        self.snapshots: list[tuple[str, frozenset[str]]] = []
        """Every snapshot that was taken: of which domain and volumes."""
        self.merges: list[tuple[str, str, str]] = []
        """Every merge while a guest had the volume: the volume, the upper file, the lower one."""
        self.copies: list[tuple[str, str]] = []
        """Every copy of a disk that was begun while a guest had it: the volume, where to."""
        self.switches: list[tuple[str, str]] = []
        """Every time a guest went over to such a copy: the volume, where to."""
        self._clock = clock
        self._chance = random.Random(self.settings.seed)  # noqa: S311  # not a secret
        self._failures: deque[HypervisorError] = deque()
        self._drivers: weakref.WeakSet[SimulatedHypervisor] = weakref.WeakSet()

    def fail_next_start(self, reason: str = "StartFailed", *, retryable: bool = True, times: int = 1) -> None:
        """The next start, or so many of them, fail."""
        error = HypervisorError(f"The simulated host was told to fail: {reason}.", reason=reason, retryable=retryable)
        self._failures.extend([error] * times)

    def end(self, uid: str, why: ExitReason = ExitReason.SHUTDOWN) -> None:
        """The guest ends by itself: it powers off, it panics or QEMU dies (Crashed). Off already: nothing."""
        domain = self.domains.get(uid)
        if domain is not None and domain.state is not DomainState.STOPPED:
            disks = tuple(replace(disk, copied_to=None) for disk in domain.disks)
            self.put(replace(domain, state=DomainState.STOPPED, exit_reason=why, started_at=None, disks=disks))

    def plant(self, domain: ForeignDomain) -> None:
        """Somebody else makes a domain here."""
        self.foreign[domain.uuid] = domain

    def disconnect(self) -> None:
        """The hypervisor is out of reach; its guests go on."""
        self.available = False

    def reconnect(self) -> None:
        """The hypervisor can be reached again."""
        self.available = True
        self.tell("")

    def reboot(self) -> None:
        """Power fails and comes back: every guest is off and nobody saw it end."""
        for uid in list(self.domains):
            self.end(uid, ExitReason.UNKNOWN)

    def attach(self, driver: SimulatedHypervisor) -> None:
        """A driver wants to hear of changes."""
        self._drivers.add(driver)

    def detach(self, driver: SimulatedHypervisor) -> None:
        """A driver has heard enough."""
        self._drivers.discard(driver)

    def put(self, domain: Domain) -> None:
        """A domain is so from now on; drivers are told."""
        self.domains[domain.marks.uid] = domain
        self.tell(domain.marks.uid)

    def drop(self, uid: str) -> None:
        """A domain is no more; drivers are told."""
        if self.domains.pop(uid, None) is not None:
            self.deaf.discard(uid)
            self.clinging.discard(uid)
            self.tell(uid)

    def tell(self, uid: str) -> None:
        """Tell every driver that a domain has changed."""
        if self.available:
            for driver in list(self._drivers):
                driver.told(uid)

    def started(self, spec: DomainSpec) -> Domain:
        """Start a domain that is off, now. Raises what it was told to, or by chance."""
        if not self._failures and self._chance.random() < self.settings.failure_rate:
            self.fail_next_start()
        if self._failures:
            failed = Domain(spec.marks, DomainState.STOPPED, exit_reason=ExitReason.FAILED, disks=_attached(spec))
            self.put(replace(failed, drives=_drives(spec), nics=_nics(spec)))
            raise self._failures.popleft()
        self.starts[spec.marks.uid] = self.starts.get(spec.marks.uid, 0) + 1
        if self.settings.console:
            _print(spec.console_log, f"{spec.marks.namespace}/{spec.marks.name}: simulated guest is up\n")
        domain = Domain(
            spec.marks,
            DomainState.RUNNING,
            started_at=self._clock(),
            disks=_attached(spec),
            drives=_drives(spec),
            nics=_nics(spec),
        )
        self.put(domain)
        return domain

    def detached(self, uid: str, volume: str, run: float | None) -> None:
        """The guest has let go of a volume, unless that was another run, or it clings to it."""
        domain = self.domains.get(uid)
        if domain is not None and domain.started_at == run and volume in domain.volumes and uid not in self.clinging:
            self.put(replace(domain, disks=tuple(disk for disk in domain.disks if disk.volume != volume)))

    def unplugged(self, uid: str, nic: str, run: float | None) -> None:
        """The guest has let go of an interface, unless that was another run, or it clings to it."""
        domain = self.domains.get(uid)
        if domain is not None and domain.started_at == run and uid not in self.clinging:
            left = tuple(item for item in domain.nics if item.uid != nic)
            if left != tuple(domain.nics):
                self.put(replace(domain, nics=left))

    def let_go(self, uid: str) -> None:
        """A domain that is held goes on."""
        domain = self.domains.get(uid)
        if domain is not None and domain.held:
            on = domain.state is not DomainState.STOPPED
            self.put(replace(domain, state=DomainState.RUNNING if on else domain.state, held=False))

    def delay(self, seconds: float) -> float:
        """Seconds, more or less."""
        if not seconds:
            return 0
        jitter = self.settings.jitter
        return seconds * (1 + self._chance.uniform(-jitter, jitter))


class SimulatedHypervisor:
    """The driver of a simulated host. Verbs take the time that the host's settings say."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self._listener: DomainListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def told(self, uid: str) -> None:
        """The host says that a domain has changed; the listener hears of it a moment later."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._forward, uid)

    def _forward(self, uid: str) -> None:
        if self._listener is not None:
            self._listener(uid)

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
            machine_types=("q35",),
        )

    async def domain(self, uid: str) -> Domain | None:
        return self._reach().domains.get(uid)

    async def domains(self) -> Sequence[Domain]:
        return tuple(self._reach().domains.values())

    async def foreign(self) -> Sequence[ForeignDomain]:
        return tuple(self._reach().foreign.values())

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
            host.put(replace(domain, disks=(*domain.disks, _as_attached(disk))))

    async def detach_disk(self, uid: str, volume: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or volume not in domain.volumes:
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
            host.put(replace(domain, nics=(*domain.nics, _plugged(nic))))

    async def detach_nic(self, uid: str, nic: str) -> None:
        async with self._one_at_a_time(uid):
            host = self._reach()
            domain = host.domains.get(uid)
            if domain is None or all(item.uid != nic for item in domain.nics):
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


def _attached(spec: DomainSpec) -> tuple[AttachedDisk, ...]:
    return tuple(_as_attached(disk) for disk in spec.disks)


def _drives(spec: DomainSpec) -> tuple[AttachedDrive, ...]:
    return tuple(AttachedDrive(drive.name, drive.source.path if drive.source else None) for drive in spec.drives)


def _nics(spec: DomainSpec) -> tuple[AttachedNic, ...]:
    return tuple(_plugged(nic) for nic in spec.nics)


def _plugged(nic: DomainNic) -> AttachedNic:
    return AttachedNic(nic.uid, nic.mac, nic.plug.device)


def _as_attached(disk: DomainDisk) -> AttachedDisk:
    return AttachedDisk(disk.name, disk.path, disk.volume, disk.qos, disk.cache)


def _grow(path: str, size: int) -> None:
    """What QEMU does to the file of a disk that it grows; simulated pools have none."""
    if Path(path).is_file():
        subprocess.run(["/usr/bin/qemu-img", "resize", "-q", "-f", "qcow2", path, str(size)], check=True)


def _copy(path: str, to: str) -> None:
    """What QEMU does to the file that it copies a disk to; simulated pools have none."""
    if Path(path).is_file() and Path(to).is_file():
        command = ["/usr/bin/qemu-img", "convert", "-n", "-U", "-f", "qcow2", "-O", "qcow2", path, to]
        subprocess.run(command, check=True)


def _print(path: str, text: str) -> None:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Path(path).open("a") as log:
        log.write(text)
