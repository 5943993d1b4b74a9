"""Domains: what they are made of, what is wanted of them, and how they are. Frozen; drivers make and read them.

Sizes are bytes, moments seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kumulus.api.compute import PowerState
from kumulus.api.disks import DriveBus
from kumulus.api.hardware import Shape
from kumulus.api.qos import UNLIMITED, Qos
from kumulus.api.snapshots import QuiesceMode
from kumulus.api.unmanaged import ARRIVING, DEPARTED
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.foreign import NotedNic, Orphan
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, LayerFile


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk as the hypervisor sees it."""

    name: str
    """Serial that the guest sees, at most 20 characters of it."""
    source: DiskSource
    """Where it is, said by a storage driver."""
    format: str
    """qcow2 or raw; pinned, never guessed."""
    boot_order: int | None = None
    """Position in the boot order, from 1; each at most once a domain. None: not booted from."""
    read_only: bool = False
    cdrom: bool = False
    """A CD-ROM drive, which a guest needs another driver for than for its disks; always read-only."""
    volume: str | None = None
    """Uid of the Volume that it is: it can come and go while the machine is on. None: it stays."""
    below: tuple[LayerFile, ...] = ()
    """What the file stands on, all the way down. No header is asked: a guest may have written it."""
    qos: Qos = UNLIMITED
    """How fast it may be."""
    cache: CacheMode = CacheMode.NONE
    """How the host caches it. Where its file cannot be opened past the host's memory, it is cached in it, with the
    same promise about writes."""
    passphrase: Passphrase | None = None
    """What it is encrypted with (LUKS). None: it is not."""
    copied: bool = False
    """Its content comes with the guest, from another host (`take`): it is empty until then."""

    @property
    def path(self) -> str:
        """Of its source."""
        return self.source.path


GROWTH_STEP = 4 << 20
"""Memory of a guest that is on grows and shrinks by whole multiples of this, in bytes: guests give back no smaller pieces."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How far the size of a domain that is on can change. Bytes."""

    cpus: int
    """As many CPUs as it can get."""
    memory_least: int
    """What it began with, and cannot be without."""
    memory_asked: int
    """What it is to have. A guest takes it and gives it back by itself, if it has a driver for that."""
    memory_most: int

    def memory(self, wanted: int) -> int | None:
        """What to ask for, as near to `wanted` as it comes without being more; None when it cannot come near."""
        if not self.memory_least <= wanted <= self.memory_most:
            return None
        return wanted - (wanted - self.memory_least) % GROWTH_STEP


DEFAULT_SHAPE = Shape()


@dataclass(frozen=True, slots=True)
class GuestSays:
    """What the agent in a guest says of it, in the guest's own words."""

    hostname: str | None = None
    os: str | None = None
    agent_version: str | None = None
    addresses: tuple[str, ...] = ()


TRAY_LOCKED = "TrayLocked"
"""Reason of an error: the guest holds the tray of a drive shut."""


@dataclass(frozen=True, slots=True)
class DomainDrive:
    """A CD-ROM drive."""

    name: str
    """Serial that the guest sees; tells the drives of a domain from each other."""
    bus: DriveBus
    source: DiskSource | None = None
    """Where the disc in it is, byte by byte, made by a storage driver. None: it is empty."""
    boot_order: int | None = None


@dataclass(frozen=True, slots=True)
class AttachedDrive:
    """A CD-ROM drive that a domain has."""

    name: str
    path: str | None = None
    """Of the source of the disc in it."""


@dataclass(frozen=True, slots=True)
class DomainNic:
    """An interface as the hypervisor is to make it."""

    uid: str
    """Uid of the NetworkInterface."""
    mac: str
    plug: Plug
    """Said by a network driver."""


@dataclass(frozen=True, slots=True)
class AttachedNic:
    """An interface that a domain has."""

    uid: str
    """Uid of the NetworkInterface."""
    mac: str
    device: str
    """Name of the tap on the host. It is there while the domain is on."""
    elsewhere: bool = False
    """It was somebody else's, and is still plugged into what it was then; `replug_nic` changes that."""


@dataclass(frozen=True, slots=True)
class Quiesce:
    """Whether a guest's file systems are brought to rest, and how long that may take."""

    mode: QuiesceMode
    seconds: int = 30


@dataclass(frozen=True, slots=True)
class Still:
    """What is to be done while a guest writes nothing: pools keep by themselves what is in some of its volumes."""

    volumes: frozenset[str]
    """Their uids."""
    keep: Callable[[], Awaitable[None]]
    """Awaited once, while the guest is halted and all that it has written is in the pools."""
    seconds: float
    """`keep` is given up after so long."""


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk that a domain has."""

    name: str
    """Serial that the guest sees."""
    path: str
    """Of its source."""
    volume: str | None = None
    """Uid of the Volume that it is."""
    qos: Qos = UNLIMITED
    """How fast it may be."""
    cache: CacheMode | None = None
    """How the host caches it; None when the hypervisor does not say."""
    copied_to: str | None = None
    """Path of the source that all of it is being copied to, until that is switched to or given up."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What Kumulus writes into a domain's own metadata, so that the host can be understood without the API server."""

    uid: str
    epoch: int
    namespace: str
    name: str
    wanted: PowerState
    """The power state last carried out. Running on a domain that is off means: it ended by itself."""
    restart_request: str | None = None
    """The restart request last carried out."""
    restarts: int = 0
    """How often it was started again after it ended by itself."""
    nics: tuple[NotedNic, ...] = ()
    """What is known of its interfaces."""
    departed: str | None = None
    """Uid of the migration by which its guest left for another host. It is never started again here (docs/adr/0029)."""


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """Everything a driver needs to define a domain. No user text decides a name or a path."""

    marks: Marks
    cpus: int
    memory: int
    """Bytes."""
    disks: Sequence[DomainDisk]
    console_log: str
    """Absolute path of the file that the serial console is logged to."""
    drives: Sequence[DomainDrive] = ()
    nics: Sequence[DomainNic] = ()
    max_cpus: int | None = None
    """CPUs that it can get while it is on; None: no more than it has."""
    max_memory: int | None = None
    """Bytes of memory that it can get while it is on; None: no more than it has."""
    shape: Shape = DEFAULT_SHAPE
    machine_type: str | None = None
    """Its board. None: the one that it has, or the newest."""


class DomainState(StrEnum):
    """What a domain is."""

    RUNNING = "Running"
    PAUSED = "Paused"
    STOPPED = "Stopped"


class ExitReason(StrEnum):
    """Why a domain is off."""

    SHUTDOWN = "Shutdown"
    """The guest powered off."""
    CRASHED = "Crashed"
    """The guest panicked or QEMU died."""
    DESTROYED = "Destroyed"
    """Somebody forced it off."""
    FAILED = "Failed"
    """It could not be started."""
    MIGRATED = "Migrated"
    """Its guest is on another host, whole: `send` has brought it there."""
    UNKNOWN = "Unknown"
    """Nobody saw it end: the host was restarted, or it never ran."""


class PauseReason(StrEnum):
    """Why a guest was paused that nobody paused."""

    DISK_FULL = "DiskFull"
    """There was no room for what it wrote; the write is repeated when it goes on."""
    DISK_ERROR = "DiskError"
    """A disk failed; what failed is repeated when it goes on."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of Kumulus as it really is."""

    marks: Marks
    state: DomainState
    exit_reason: ExitReason | None = None
    """Why it is off; None unless Stopped."""
    started_at: float | None = None
    """When this run began, in seconds since the epoch; None unless it is on."""
    pause_reason: PauseReason | None = None
    """Why it was paused by itself; None unless Paused, and when somebody did it."""
    disks: Sequence[AttachedDisk] = ()
    """What the guest has, also what it has not let go of yet; of a domain that is off, what its definition has."""
    drives: Sequence[AttachedDrive] = ()
    """Its CD-ROM drives; the same holds of the discs in them."""
    nics: Sequence[AttachedNic] = ()
    """Its interfaces; the same holds of them."""
    cpus: int | None = None
    """Virtual CPUs; of a domain that is off, those of its definition."""
    memory: int | None = None
    """Bytes; the same holds of it. Of what came while it is on, only what the guest has taken."""
    growth: Growth | None = None
    """How far its size can change while it is on; None: not at all."""
    shape: Shape = DEFAULT_SHAPE
    """As it was started."""
    machine_type: str | None = None
    """Its board, by its exact name."""
    agent: bool = False
    """It is on, and its guest has opened the port of its agent."""
    saved: int | None = None
    """It is off, and its memory is kept: `wake` goes on from there. The epoch of the placement it is of. Its disks, drives,
    interfaces and size are those of that memory then."""
    held: bool = False
    """It is halted, or its file systems are frozen, for a snapshot (`snapshot_disks`), and goes on without being resumed."""
    arriving: str | None = None
    """Uid of the migration by which its guest is to come from another host (`receive`). It is off until that begins; then
    halted, until `arrive`."""

    adopted: bool = False
    """It was adopted, and has not been started by its machine's order since."""
    lost: bool = False
    """It is on, and somebody took its definition away: it would be gone once it is off."""
    squeezed: bool = False
    """It is on, and somebody had its guest give memory back that is its own."""
    edited: Sequence[str] = ()
    """It is on, and somebody changed its definition: what of it, which has no effect before its next start."""

    @property
    def volumes(self) -> frozenset[str]:
        """Uids of the Volumes among its disks."""
        return frozenset(disk.volume for disk in self.disks if disk.volume is not None)


def leftover(marks: Marks, arriving: str | None) -> str | None:
    """What is told in place of its state of an orphan that a migration left behind; None of any other. Pure."""
    if arriving is not None:
        return ARRIVING
    return DEPARTED if marks.departed is not None else None


def orphan_of(marks: Marks) -> Orphan:
    """The machine of these marks, when nobody orders it. Pure."""
    return Orphan(marks.namespace, marks.name, marks.epoch, marks.nics)


@dataclass(frozen=True, slots=True)
class AdoptedDisk:
    """What a disk of a domain that is adopted is from then on."""

    name: str
    volume: str
    """Uid of the Volume."""
    path: str
    """Of the volume's file, which is the file that the domain has, perhaps by another name."""


@dataclass(frozen=True, slots=True)
class AdoptedNic:
    """What an interface of a domain that is adopted is from then on."""

    uid: str
    mac: str
    plug: Plug
    """What it is to be plugged into."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """A domain that is not Kumulus' own becomes one that is."""

    marks: Marks
    disks: Sequence[AdoptedDisk] = ()
    nics: Sequence[AdoptedNic] = ()
    kept: Sequence[str] = ()
    """Paths of disks that the domain has, and that are its machine's own by the same names."""
