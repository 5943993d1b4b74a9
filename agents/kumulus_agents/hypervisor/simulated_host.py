"""The machine that a simulated hypervisor drives: its guests, and what can happen to them from outside.

It outlives its driver, so that an agent can be restarted beside running guests.
"""

from __future__ import annotations

import random
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from kumulus.api.compute import PowerState
from kumulus.api.hardware import NEWEST_MACHINE_TYPE, HostFeature
from kumulus_agents.hypervisor.domain import (
    AttachedDisk,
    AttachedDrive,
    AttachedNic,
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    DomainState,
    ExitReason,
    Growth,
    GuestSays,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.protocol import HypervisorError

GIB = 1 << 30


class SimulatedSettings(BaseModel):
    """What a simulated host has and how it behaves. Unknown settings are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(default=64, ge=1, description="Hardware threads.")
    memory: int = Field(default=256 * GIB, ge=1, description="Bytes.")
    cpu_model: str = Field(default="simulated", description="Model of the processor.")
    cpu_models: tuple[str, ...] = Field(
        default=("Nehalem", "Skylake-Server"), description="Models that guests can have."
    )
    machine_types: tuple[str, ...] = Field(
        default=("pc-q35-6.2", "pc-q35-7.2"), min_length=1, description="Boards that guests can have, the newest last."
    )
    features: tuple[HostFeature, ...] = Field(default=tuple(HostFeature), description="What guests can have besides.")
    start_seconds: float = Field(default=0, ge=0, description="How long a start takes.")
    stop_seconds: float = Field(default=0, ge=0, description="How long QEMU takes to go.")
    shutdown_seconds: float = Field(default=0, ge=0, description="How long a guest takes after the power button.")
    detach_seconds: float = Field(default=0, ge=0, description="How long a guest takes to let go of a disk.")
    merge_seconds: float = Field(default=0, ge=0, description="How long a merge of a disk's layers takes.")
    migrate_seconds: float = Field(default=0, ge=0, description="How long copying a guest to another host takes.")
    copy_seconds: float = Field(default=0, ge=0, description="How long copying a disk to another place takes.")
    jitter: float = Field(default=0.2, ge=0, le=1, description="How much of each delay is left to chance.")
    failure_rate: float = Field(default=0, ge=0, le=1, description="Share of starts that fail.")
    seed: int = Field(default=0, description="Of chance: the same seed, the same run.")
    console: bool = Field(default=False, description="Whether guests print a line to their console log.")


class Hearing(Protocol):
    """Who hears of what happens on a simulated host: its driver."""

    def told(self, uid: str) -> None:
        """The host says that a domain has changed."""

    def told_foreign(self) -> None:
        """The host says that a domain which is not ours has changed."""


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
        """Domains whose guest does not let go of a disk or a disc, and takes no memory and gives none back."""
        self.sizes: dict[str, int] = {}
        """Volumes that were resized while a guest had them: bytes the guest sees."""
        self.agents: dict[str, bool] = {}
        """Domains whose guest has an agent, and whether that can bring the file systems to rest."""
        self.guests: dict[str, GuestSays] = {}
        """What the agents of guests say, of those that have one."""
        self.snapshots: list[tuple[str, frozenset[str]]] = []
        """Every snapshot that was taken: of which domain and volumes."""
        self.merges: list[tuple[str, str, str]] = []
        """Every merge while a guest had the volume: the volume, the upper file, the lower one."""
        self.copies: list[tuple[str, str]] = []
        """Every copy of a disk that was begun while a guest had it: the volume, where to."""
        self.switches: list[tuple[str, str]] = []
        """Every time a guest went over to such a copy: the volume, where to."""
        self.sending: set[str] = set()
        """Domains whose guest is being copied to another host."""
        self._runs: dict[str, float | None] = {}
        """When the run of a domain began whose memory is kept."""
        self._clock = clock
        self._chance = random.Random(self.settings.seed)  # noqa: S311  # not a secret
        self._failures: deque[HypervisorError] = deque()
        self._drivers: weakref.WeakSet[Hearing] = weakref.WeakSet()

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

    def suspended(self, uid: str) -> None:
        """The guest's memory is on disk, and it is off. Off already: nothing."""
        domain = self.domains.get(uid)
        if domain is not None and domain.state is not DomainState.STOPPED:
            self._runs[uid] = domain.started_at
            off = replace(domain, state=DomainState.STOPPED, exit_reason=ExitReason.UNKNOWN, started_at=None)
            self.put(replace(off, saved=domain.marks.epoch))

    def woken(self, spec: DomainSpec) -> None:
        """The guest goes on from its memory, in the same run."""
        uid = spec.marks.uid
        domain = self.domains.get(uid)
        if domain is None or domain.saved is None:
            return
        known = {disk.volume for disk in spec.disks}
        if domain.saved != spec.marks.epoch or domain.volumes - known:
            raise HypervisorError("The simulated memory does not fit.", reason="WakeFailed")
        paths = {disk.volume: disk.path for disk in spec.disks if disk.volume is not None}
        state = DomainState.PAUSED if spec.marks.wanted is PowerState.PAUSED else DomainState.RUNNING
        self.put(
            replace(
                domain,
                marks=spec.marks,
                state=state,
                exit_reason=None,
                started_at=self._runs.pop(uid, None),
                disks=tuple(replace(disk, path=paths.get(disk.volume or "", disk.path)) for disk in domain.disks),
                saved=None,
            )
        )

    def plant(self, domain: ForeignDomain) -> None:
        """Somebody else makes a domain here, or changes it; drivers are told."""
        self.foreign[domain.uuid] = domain
        self._tell_foreign()

    def uproot(self, uuid: str) -> None:
        """Somebody else removes such a domain; drivers are told."""
        if self.foreign.pop(uuid, None) is not None:
            self._tell_foreign()

    def _tell_foreign(self) -> None:
        if self.available:
            for driver in list(self._drivers):
                driver.told_foreign()

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

    def attach(self, driver: Hearing) -> None:
        """A driver wants to hear of changes."""
        self._drivers.add(driver)

    def detach(self, driver: Hearing) -> None:
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
        domain = replace(self.as_defined(spec), state=DomainState.RUNNING, started_at=self._clock())
        self.put(domain)
        return domain

    def seen(self, domain: Domain) -> Domain:
        """A domain as its driver shows it."""
        agent = domain.marks.uid in self.guests and domain.state is not DomainState.STOPPED
        return replace(domain, agent=True) if agent else domain

    def _board(self, spec: DomainSpec) -> str:
        """The one that is asked for, else the one that it has, else the newest."""
        before = self.domains.get(spec.marks.uid)
        has = before.machine_type if before is not None else None
        wanted = spec.machine_type or has or NEWEST_MACHINE_TYPE
        return self.settings.machine_types[-1] if wanted == NEWEST_MACHINE_TYPE else wanted

    def resized(self, uid: str, cpus: int, memory: int) -> None:
        """The guest gets CPUs, and takes memory or gives it back, unless it clings to what it has."""
        domain = self.domains.get(uid)
        if domain is None or domain.state is DomainState.STOPPED or (growth := domain.growth) is None:
            return
        asked = growth.memory(memory)
        now = replace(
            domain,
            cpus=cpus if (domain.cpus or 0) < cpus <= growth.cpus else domain.cpus,
            growth=growth if asked is None else replace(growth, memory_asked=asked),
            memory=domain.memory if asked is None or uid in self.clinging else asked,
        )
        if now != domain:
            self.put(now)

    def as_defined(self, spec: DomainSpec) -> Domain:
        """The domain as it is before it ever runs."""
        return Domain(
            spec.marks,
            DomainState.STOPPED,
            disks=_attached(spec),
            drives=_drives(spec),
            nics=_nics(spec),
            cpus=spec.cpus,
            memory=spec.memory,
            growth=_growth(spec),
            shape=spec.shape,
            machine_type=self._board(spec),
        )

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

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def delay(self, seconds: float) -> float:
        """Seconds, more or less."""
        if not seconds:
            return 0
        jitter = self.settings.jitter
        return seconds * (1 + self._chance.uniform(-jitter, jitter))


def _attached(spec: DomainSpec) -> tuple[AttachedDisk, ...]:
    return tuple(as_attached(disk) for disk in spec.disks)


def _growth(spec: DomainSpec) -> Growth | None:
    cpus, memory = max(spec.cpus, spec.max_cpus or 0), max(spec.memory, spec.max_memory or 0)
    if (cpus, memory) == (spec.cpus, spec.memory):
        return None
    return Growth(cpus, spec.memory, spec.memory, memory)


def _drives(spec: DomainSpec) -> tuple[AttachedDrive, ...]:
    return tuple(AttachedDrive(drive.name, drive.source.path if drive.source else None) for drive in spec.drives)


def _nics(spec: DomainSpec) -> tuple[AttachedNic, ...]:
    return tuple(plugged(nic) for nic in spec.nics)


def plugged(nic: DomainNic) -> AttachedNic:
    """The interface as a machine that is on has it."""
    return AttachedNic(nic.uid, nic.mac, nic.plug.device)


def as_attached(disk: DomainDisk) -> AttachedDisk:
    """The disk as a machine that is on has it."""
    return AttachedDisk(disk.name, disk.path, disk.volume, disk.qos, disk.cache)


def _print(path: str, text: str) -> None:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Path(path).open("a") as log:
        log.write(text)
