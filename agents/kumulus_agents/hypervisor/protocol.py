"""What the agent asks of a hypervisor. Every driver passes `tests/contract/hypervisor.py`.

A driver does what it is told and reports what is so. It decides nothing: restart policy, epochs
and power states are the agent's. Every verb may be repeated, tolerates "already so" and "already
gone", and is safe after a crash of the agent at any line. Verbs about one domain are serialised by
the driver; different domains proceed in parallel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kumulus.api.compute import PowerState
from kumulus.api.disks import DriveBus
from kumulus.api.hardware import HostFeature, Shape
from kumulus.api.qos import UNLIMITED, Qos
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus.api.volumes import CacheMode
from kumulus_agents.hypervisor.foreign import ForeignDomain, Orphan
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.source import DiskSource, LayerFile


class HypervisorError(Exception):
    """The hypervisor could not do it.

    `reason` is one CamelCase word for the status, `retryable` says whether trying again by itself
    makes sense. The text is a sentence for the operator.
    """

    def __init__(self, message: str, *, reason: str = "HypervisorError", retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


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


def orphan_of(marks: Marks) -> Orphan:
    """The machine of these marks, when nobody orders it. Pure."""
    return Orphan(marks.namespace, marks.name, marks.epoch)


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


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the host has."""

    cpus: int
    """Hardware threads."""
    memory: int
    """Bytes."""
    cpu_model: str | None = None
    cpu_vendor: str | None = None
    architecture: str | None = None
    acceleration: str | None = None
    """kvm when guests really run on the hardware, tcg when QEMU emulates them."""
    hypervisor_version: str | None = None
    emulator_version: str | None = None
    machine_types: Sequence[str] = ()
    cpu_models: Sequence[str] = ()
    """CPU models that a domain can have here."""
    cpu_features: Sequence[str] = ()
    """What a domain's processor can do here beyond `cpu_model`."""
    features: frozenset[HostFeature] = frozenset()


DomainListener = Callable[[str], None]
"""Called in the event loop with the uid of a domain of Kumulus that changed, or with "" when anything may have (reconnected)."""


class Hypervisor(Protocol):
    """Runs domains on this host."""

    async def connect(self, listener: DomainListener) -> None:
        """Connect and keep connected: reconnects by itself, then calls `listener("")`. Returns at once; until
        the connection stands every verb raises `HypervisorError(reason="HypervisorUnavailable")`."""

    async def close(self) -> None:
        """Disconnect. Domains keep running."""

    async def inventory(self) -> Inventory:
        """What the host has. Cached by the driver where it is costly."""

    async def domain(self, uid: str) -> Domain | None:
        """The domain of that uid, or None. Cheap: called in every pass."""

    async def domains(self) -> Sequence[Domain]:
        """All domains of Kumulus, on or off."""

    async def foreign(self, *, fresh: bool = False, orphans: Collection[str] = ()) -> Sequence[ForeignDomain]:
        """All other domains, on or off, and those of Kumulus with these UUIDs. `fresh`: as they are now in every respect, also
        where nobody tells of a change."""

    def watch_foreign(self, listener: Callable[[], None]) -> None:
        """Have `listener` called in the event loop when one of the other domains may have changed, come or gone."""

    async def start(self, spec: DomainSpec) -> Domain:
        """Define the domain as `spec` says (replacing an older definition of the same uid) and start it.

        Already running or paused: only the marks are brought up to date, the guest is not touched. Otherwise it
        boots anew: a memory that is kept is dropped. The directory of the console log is made. What its firmware and its
        TPM keep is made once and stays until `remove`.
        Raises `HypervisorError`, with reason `DomainConflict` when a domain that is not Kumulus' own has its
        UUID or name, `DiskInUse` when another process holds a disk (maybe another copy of the machine).
        """

    async def adopt(self, adoption: Adoption) -> None:
        """Make the domain with the UUID of the marks' uid, which is not Kumulus' own, one that is: it gets the marks, and its disks
        and interfaces are known as what the adoption says. It goes on as it was; its next start is a `start`. It is Kumulus' own
        already: nothing.

        Raises `HypervisorError`, not retryable, and the domain is as it was: `NothingToAdopt` when there is no such domain,
        `AdoptionMismatch` when it has disks that the adoption does not name, or the other way round.
        """

    async def disown(self, uid: str) -> None:
        """Take everything of Kumulus' out of the domain, which goes on, or stays off, and is nobody's from then on. It is that
        already, or gone: nothing."""

    async def mark(self, uid: str, marks: Marks) -> None:
        """Write the marks into the domain's metadata, persistent and live. Gone already: nothing."""

    async def attach_disk(self, uid: str, disk: DomainDisk) -> None:
        """Give the guest a disk that is a volume; its definition gets it too. Its boot order counts from the next
        start on. The domain has that volume, is off or gone: nothing; `start` makes the definition anew.

        Raises `HypervisorError`: `DiskInUse` when another process holds the file.
        """

    async def detach_disk(self, uid: str, volume: str) -> None:
        """Take the disk that is this volume out of the definition and ask the guest to let go of it. Waits for the
        guest some seconds at most: it is done when `domain` shows the disk no longer, which the listener is told.
        Asked again, it asks again. The domain has not got it, or is gone: nothing."""

    async def resize_disk(self, uid: str, volume: str, size: int) -> None:
        """Make the disk that is this volume `size` bytes large, in its file too; the guest sees it at once. It is as
        large or larger: nothing.

        Raises `HypervisorError(reason="DiskNotAttached")` when the domain is off, gone or has not got it.
        """

    async def limit_disk(self, uid: str, volume: str, qos: Qos) -> None:
        """Let the disk that is this volume be so fast and no faster, from now on and in the definition. The domain has
        not got it, is off or gone: nothing; `start` makes the definition anew."""

    async def resize(self, uid: str, cpus: int, memory: int) -> None:
        """Give a guest that is on so many CPUs, and ask it to have so much memory (bytes, of which `Growth.memory` says
        whether it can be). CPUs only become more: a guest need not let go of one. What it has already, or more than it can
        get, is left as it is; so is a domain that is off or gone. `start` makes the definition anew.

        The listener is told when the guest has taken memory, or given it back."""

    async def redefine(self, uid: str) -> None:
        """Give a domain that is on, and whose definition somebody took away, one as it is. It has one, is off or gone: nothing."""

    async def refill(self, uid: str) -> None:
        """Have a guest that is on take all the memory that is its own. It has, is off or gone: nothing."""

    async def ask_guest(self, uid: str) -> GuestSays | None:
        """What the agent in a guest says of it; None when it says nothing within some seconds, has no agent, is off or gone.

        It is the guest's word: of any length, and whatever it likes. Other verbs about the domain may wait for as long."""

    async def change_disc(self, uid: str, drive: str, disc: DiskSource | None, *, force: bool = False) -> None:
        """Put the disc into the drive, or take out what is in it; the definition follows. It is so already,
        or the domain has no such drive, is off or gone: nothing; `start` makes the definition anew.

        Waits for the guest some seconds at most. Raises `HypervisorError(reason=TRAY_LOCKED)` when it holds the tray
        shut, unless by `force`, which it may take for a broken disc.
        """

    async def attach_nic(self, uid: str, nic: DomainNic) -> None:
        """Give the guest an interface; its definition gets it too. The domain has that interface, is off or gone:
        nothing; `start` makes the definition anew.

        Raises `HypervisorError`: `NoFreeSlot` when the machine has no room for one more until it is started anew.
        """

    async def replug_nic(self, uid: str, nic: DomainNic) -> None:
        """Plug an interface of a domain that was adopted, and that is on, into what `nic` says, by the tap's name there. The
        guest goes on, and loses what was sent meanwhile. It is plugged in there, or the domain has not got it, is off or gone:
        nothing.

        Raises `HypervisorError(reason="InterfaceMovesLater")`, not retryable, for one that cannot be changed while it is on.
        """

    async def detach_nic(self, uid: str, nic: str) -> None:
        """Take the interface of that uid out of the definition and ask the guest to let go of it. Waits for the guest some
        seconds at most: it is done when `domain` shows the interface no longer, which the listener is told; its tap is gone
        then. Asked again, it asks again. The domain has not got it, or is gone: nothing."""

    async def snapshot_disks(
        self,
        uid: str,
        layers: Mapping[str, LayerFile],
        quiesce: Quiesce,
        passphrases: Mapping[str, Passphrase] | None = None,
        still: Still | None = None,
    ) -> tuple[Indication, ...]:
        """Have the guest write to these new layers from now on, all at one instant; they are by uid of the volume, and so are
        the passphrases of those that are encrypted. What it wrote to until then is not written any more. It has the layers
        already: nothing. Says how far the content can be trusted. The guest's file systems are never left frozen.

        With `still` the same instant is that of what a pool keeps: the guest is halted from before `keep` until it has the
        layers. It goes on in any case, whatever fails and however this ends: a guest that an agent left halted or frozen
        goes on as soon as the next one is connected.

        Raises `HypervisorError`: `DiskNotAttached` when the domain is off, gone or has not got one of the volumes,
        `QuiesceFailed` when rest is required and the guest does not come to it, `HaltedTooLong` when `keep` was given up;
        and what `keep` raises. `domain` tells whether it happened.
        """

    async def merge_layers(
        self,
        uid: str,
        volume: str,
        upper: str,
        lower: str,
        progress: Callable[[int, int], None],
        merged: Callable[[], Awaitable[None]],
    ) -> None:
        """Have the emulator write all that the file `upper` of a volume has into `lower`, the one it stands on, and let go
        of `upper`. `progress` is told bytes that are done, and of how many; `merged` is awaited when `upper` is let go of.

        When the guest writes to `upper`, it writes to `lower` from then on. It is halted for that moment, and goes on only
        when `merged` has returned: until then the two say the same. A merge that was begun before is continued; one that
        is done already: `merged` is awaited.

        Raises `HypervisorError`: `DiskNotAttached` when the domain is off, gone or has not got the volume, `MergeFailed`
        when the emulator gave up, `NoSpace`. All that the guest has written is there in any case.
        """

    async def copy_disk(self, uid: str, disk: DomainDisk, progress: Callable[[int, int], None]) -> None:
        """Have the emulator copy all that the volume of `disk` has, with what it stands on, to where `disk` says: an empty
        disk as large, which stands on nothing. The guest goes on. Returns when the copy has caught up; from then on what the
        guest writes goes to both, until `switch_disk` or `end_copy`. `progress` is told bytes that are done, and of how many.

        A copy there that was begun before is continued. The guest uses that already: nothing.
        Raises `HypervisorError`: `DiskNotAttached` when the domain is off, gone or has not got the volume, `CopyFailed` when
        the emulator gave up, or does something else with the disk, `CacheUnsupported` (not retryable) when the disk is not
        cached and the copy could only be cached, `NoSpace`. The guest is not disturbed in any case.
        """

    async def switch_disk(self, uid: str, volume: str, path: str, switched: Callable[[], Awaitable[None]]) -> None:
        """Have the guest use the copy of the volume, at that path, that `copy_disk` made and nothing else, in the definition
        too. The guest is halted for that moment, and goes on only when `switched` has returned: until then both have all
        that it was told to be written. One that is paused stays paused. It uses it already: `switched` is awaited.

        Raises `HypervisorError` as `copy_disk`; the guest uses what it did before then, and goes on.
        """

    async def end_copy(self, uid: str, volume: str) -> None:
        """Give up a copy of the volume; the guest goes on with what it has. There is none, or the domain is off or gone:
        nothing."""

    async def power_button(self, uid: str) -> None:
        """Ask the guest to shut down (ACPI). Returns at once. Off or gone already: nothing."""

    async def force_off(self, uid: str) -> None:
        """Take the power away; returns when QEMU is gone. Off or gone already: nothing."""

    async def pause(self, uid: str) -> None:
        """Halt the CPUs. Paused, off or gone already: nothing."""

    async def resume(self, uid: str) -> None:
        """Let the CPUs go on. Running, off or gone already: nothing."""

    async def suspend(self, uid: str) -> None:
        """Write the guest's memory to the host's disk and take the power away; returns when that is done. Off or gone: nothing.

        Raises `HypervisorError`, with reason `SuspendRefused` when something is under way that forbids it, `NoSpace` among
        others; the guest goes on then.
        """

    async def wake(self, spec: DomainSpec) -> None:
        """Let a guest go on whose memory is kept, with these marks, and its volumes where `spec` says they are now; halted when
        the marks want it Paused. What else `spec` says is for its next start. Nothing is kept, or it is on: nothing.

        Raises `HypervisorError`, with reason `WakeFailed` when its memory cannot be used, is of another placement, or knows of
        a volume that `spec` does not name; it is kept then.
        """

    async def drop_memory(self, uid: str) -> None:
        """Drop the memory that is kept of a guest, which ends it as a power cut does. Nothing is kept: nothing."""

    async def remove(self, uid: str) -> None:
        """Force off and forget the domain and what the hypervisor keeps for it (nvram, saves, its own log). Files of
        disks and the console log stay."""

    async def send(self, uid: str, sending: Sending, connect: Connect, progress: Callable[[Progress], None]) -> None:
        """Bring the guest, which runs, to the host at the other end of `connect`, where it stands halted then; here the
        domain is off by `MIGRATED`. Returns when that is so. It is so already: nothing. `progress` is told now and then.

        Disks that go along are there as they are here when it has come, flushed.

        Raises `HypervisorError`: `NotRunning` when it is off, or halted, `MigrationFailed` when it did not get there. The
        guest goes on then, or has ended by itself: `domain` tells. Cancelled, it is given up, like by `end_sending`.
        """

    async def end_sending(self, uid: str) -> None:
        """Give up a `send` of the guest, also one that an agent before this one has begun; returns when that has ended.
        It may have come there all the same: `domain` tells. Nothing is being sent, or it is off or gone: nothing."""

    async def receive(self, spec: DomainSpec, migration: str) -> None:
        """Define the domain as `spec` says, off, for a guest that is to come by that migration (`Domain.arriving`). It is
        there for that migration already: nothing. Raises `HypervisorError`: `DomainConflict` as `start`, `AlreadyOn` when
        it is on, and not by that migration."""

    async def take(self, spec: DomainSpec, migration: str, channel: str, stream: Stream) -> None:
        """Serve a connection that the `send` of the other host makes, to its end. Of what comes nothing is believed but the
        guest: disks, interfaces and marks are those of `spec`, and it stands halted. Closes the stream.

        Raises `HypervisorError`: `NotExpected` when the domain does not wait for that migration.
        """

    async def arrive(self, uid: str, marks: Marks) -> None:
        """The guest that has come, and stands halted, is this host's from now on: write the marks, then let it go on, unless
        they want it Paused. It is that already: nothing. Raises `HypervisorError(reason="NotArrived")` when it is not here."""
