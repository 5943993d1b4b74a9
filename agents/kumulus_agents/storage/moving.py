"""Volumes that are brought from one pool of a host into another: what both pools do for it.

The record of the pool that a volume is brought to decides: as long as it has none, the volume is where it
was, and what lies there is nothing. The record is made when all of it is there, durably, and names the
move, so that what another move left there long ago is never taken for it. Then the other pool's copy goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ProgressListener, StorageError, StoredDisk
from kumulus_agents.storage.source import DiskSource


@dataclass(frozen=True, slots=True)
class Traits:
    """What a volume takes along besides its content."""

    virtual_size: int
    """Bytes of the disk inside."""
    thick: bool = False
    reverted: str | None = None
    """The last request to revert it that was carried out."""
    encrypted: bool = False
    tracked: bool = False
    """What is written to it is remembered, which an emulator that copies it takes along."""
    pinned: bool = False
    """It has snapshots, or others are linked to those: it stays where it is. Never taken along."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a pool has of a volume that is brought to it, or was."""

    source: DiskSource
    format: str
    whole: bool
    """It is a volume of this pool."""
    move: str | None = None
    """The move that brought it, of one that is whole; else the one that it was begun for, where that is known."""
    size: int | None = None
    """Bytes of the disk that is being filled, where the driver knows them; 0: there is a file, and no disk in it yet."""


@dataclass(frozen=True, slots=True)
class Imagined:
    """The content of a volume of a simulated pool."""


Fill = Callable[[int, Callable[[int, int], None]], Awaitable[None]]
"""Fills the open, empty qcow2 file, as large and all zeros, and tells bytes that are done, and of how many."""


class Outside:
    """Content that only the pool's own driver can read, byte by byte."""

    def __init__(self, fill: Fill) -> None:
        """`fill` is called in the event loop that this is made in."""
        self._fill = fill
        self._home = asyncio.get_running_loop()

    async def fill(self, target: int, progress: Callable[[int, int], None]) -> None:
        """Fill the file. Pools in event loops of their own may ask. Raises `StorageError`."""
        work = self._filled(target, progress)
        if asyncio.get_running_loop() is self._home:
            await work
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._home))

    async def _filled(self, target: int, progress: Callable[[int, int], None]) -> None:
        await self._fill(target, progress)


Content = Chain | Outside | Imagined
"""How the content of a volume can be read."""

Use = Callable[[Content], Awaitable[None]]


@runtime_checkable
class MovableVolumes(Protocol):
    """A pool whose volumes can be moved to others, and theirs to it. Every verb may be repeated."""

    async def traits(self, uid: str) -> Traits:
        """What the volume takes along. Raises `StorageError(reason="VolumeNotReady")`."""

    async def send_volume(self, uid: str, use: Use) -> None:
        """Await `use` with the content of the volume, which nobody may write to; it is neither grown nor removed meanwhile.

        Raises `StorageError`: VolumeNotReady, VolumeInUse.
        """

    async def arrival(self, uid: str) -> Arrival | None:
        """What is here of the volume. Cheap."""

    async def begin_arrival(
        self,
        uid: str,
        traits: Traits,
        passphrase: Passphrase | None = None,
        *,
        live: bool = False,
        move: str | None = None,
    ) -> Arrival:
        """Make an empty disk for a volume that is brought here; what is here of an earlier attempt is replaced. `live`: an
        emulator will fill it, and no `fill_arrival`. `move`: the disk is that move's, and `arrival` says so, where the pool can
        take disks that come with a guest.

        Thick ones take their space at once. It is no volume yet.
        Raises `StorageError`: NoSpace; VolumeInUse while an emulator writes to what is here.
        """

    async def fill_arrival(
        self,
        uid: str,
        traits: Traits,
        content: Content,
        progress: ProgressListener,
        passphrase: Passphrase | None = None,
    ) -> None:
        """Copy the content into what `begin_arrival` made. Holes stay holes.

        Raises `StorageError`: NoSpace; MoveUnsupported (not retryable) for content that this pool cannot take.
        """

    async def reserve_arrival(self, uid: str, traits: Traits) -> None:
        """An emulator has filled what `begin_arrival` made, and goes on writing to it: a thick volume has all of its space
        again, which the emulator may have given back. Any other: nothing.

        Raises `StorageError`: NoSpace; MoveUnsupported (not retryable) where space cannot be reserved beside an emulator.
        """

    async def settle_arrival(self, uid: str, traits: Traits, move: str) -> None:
        """All of it is here, by that move: it is a volume of this pool from now on. Durable when it returns; short, for a
        guest may be halted meanwhile. It is one already: nothing.

        Raises `StorageError(reason="VolumeNotReady")` when nothing is here.
        """

    async def abandon_arrival(self, uid: str) -> None:
        """Remove what is here of a volume that did not come. Of one that is whole: nothing.

        Raises `StorageError(reason="VolumeInUse")` while an emulator writes to it.
        """


@runtime_checkable
class ReceivingDisks(Protocol):
    """A pool into which machines can bring their own disks from another host."""

    async def disk(self, owner: str, name: str) -> StoredDisk | None:
        """The disk `name` of the machine with uid `owner`, if there is one. Cheap."""

    async def receive_disk(self, owner: str, name: str, size: int, migration: str) -> StoredDisk:
        """The same disk, empty, of so many bytes, standing on nothing: made, or found as an earlier call for that migration
        left it. `remove_disks` removes it.

        Raises `StorageError`: DiskConflict (not retryable) when there is one that did not come by that migration; NoSpace.
        """


def disk_conflict(name: str) -> StorageError:
    """The refusal of a disk that would take the place of another one."""
    return StorageError(
        f"The pool has a disk {name} of this machine already, which does not come with its guest. Look at it, and take it"
        " away.",
        reason="DiskConflict",
        retryable=False,
    )


def unsupported(what: str) -> StorageError:
    """The refusal of a move that cannot be. `what` is a sentence without its end."""
    return StorageError(
        f"{what}. Make a new volume in the other pool and copy what is in this one within a machine.",
        reason="MoveUnsupported",
        retryable=False,
    )


def has_snapshots() -> StorageError:
    """The refusal of a volume that others stand on."""
    return StorageError(
        "Volumes with snapshots, or with others linked to those, are not moved yet. Delete the snapshots first, or copy the"
        " volume.",
        reason="HasSnapshots",
        retryable=False,
    )
