"""What drivers do that can say which of a pool's files nobody owns, and make a volume of one when they are asked to.

Apart from `StorageDriver`: a driver whose pool other agents work in too cannot know what nobody owns.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kumulus.api.pool_order import UnownedKind
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError, StoredVolume

LISTED = 64
"""So many files are named; the others are counted."""
LOOKED_AT = 10_000
"""So many names of a directory are looked at."""


@dataclass(frozen=True, slots=True)
class Unowned:
    """A file, or what else there is, that nobody owns."""

    id: str
    """Names it in orders: the uid of the volume that it was, or one made from its place. Never a path."""
    kind: UnownedKind
    name: str
    """For people: cut, and without what a terminal would not show."""
    size: int
    """Bytes it takes."""
    virtual_size: int | None = None
    """Bytes of the disk inside; None when it is no qcow2 file."""
    namespace: str | None = None
    """Of the volume that it was, when that was retained."""
    volume: str | None = None
    """Name of that volume."""
    encrypted: bool = False
    """The volume was; whoever knows its passphrase can have it again."""


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """All of them in a pool."""

    files: tuple[Unowned, ...]
    """At most `LISTED`, those that can become volumes first."""
    count: int
    size: int
    """Bytes they take together."""


@runtime_checkable
class Adopting(Protocol):
    """A pool that this host has for itself."""

    async def unowned(self, owned: Collection[str]) -> Unclaimed:
        """What is in the pool's directories that belongs to none of the uids in `owned`. Follows no link, opens no
        file but regular ones, changes nothing. Raises `StorageError`."""

    async def adopt_volume(
        self,
        uid: str,
        id: str,
        owned: Collection[str],
        namespace: str | None,
        *,
        foreign: bool,
        passphrase: Passphrase | None = None,
        beside: bool = False,
    ) -> StoredVolume:
        """Make the unowned file with that id the volume of that uid, by giving it its name: nothing is copied.

        `beside`: an emulator may have it open, and it keeps the name that it has as well, until the volume is opened for a
        machine that starts. To remove or retain such a volume before that is to take its new name away again.

        Unless `foreign` it must be a volume of `namespace` that was retained. It is inspected like an import first,
        and refused when it names other files. Done already: nothing. A refused file stays, by whatever name.
        `passphrase` is that of a volume that was encrypted.

        Raises `StorageError`: DataNotFound, DataRefused and WrongPassphrase (not retryable), VolumeInUse when an emulator
        has it open.
        """

    async def identify(self, path: str) -> Unowned | None:
        """What the file of that path is, when it is in the pool's directory and could become a volume; None when not.
        Raises `StorageError`."""

    async def retain_volume(self, uid: str, namespace: str | None, name: str) -> None:
        """Note whose the volume was before its order goes and its data stays. No such volume: nothing."""


def not_offered(pool: str) -> StorageError:
    """The error of a pool whose driver adopts nothing."""
    return StorageError(
        f"In the pool {pool}, which hosts share or whose driver cannot say, no data is adopted.",
        reason="AdoptionNotSupported",
        retryable=False,
    )
