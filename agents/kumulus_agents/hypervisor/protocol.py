"""What the agent asks of a hypervisor. Every driver passes `tests/contract/hypervisor.py`.

A driver does what it is told and reports what is so. It decides nothing: restart policy, epochs
and power states are the agent's. Every verb may be repeated, tolerates "already so" and "already
gone", and is safe after a crash of the agent at any line. Verbs about one domain are serialised by
the driver; different domains proceed in parallel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kumulus.api.hardware import HostFeature
from kumulus.api.qos import Qos
from kumulus.api.snapshots import Indication
from kumulus_agents.hypervisor.domain import (
    Adoption,
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    GuestSays,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
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
