"""What a volume is encrypted with, and how it gets to programs: as an open file without a name, in memory.

Never in an argument, in an environment, in a log or in a status.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.protocol import Merge, ProgressListener, Resize, StoredVolume

WRONG = "Invalid password"
"""What QEMU says of a passphrase that is not the volume's."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Text that a volume is encrypted with."""

    text: str = field(repr=False)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of a file that has it, in memory and without a name: for this process and those it hands it to."""
        fd = os.memfd_create("passphrase", os.MFD_CLOEXEC)
        try:
            os.write(fd, self.text.encode())
            yield fd
        finally:
            os.close(fd)


@runtime_checkable
class EncryptedVolumes(Protocol):
    """A pool that can have volumes which are encrypted with LUKS."""

    async def ensure_encrypted_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        passphrase: Passphrase,
        progress: ProgressListener | None = None,
        *,
        origin_passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        """As `StorageDriver.ensure_volume`, encrypted: all that is copied, but not an image that it stands on.

        `origin_passphrase` is that of the volume it begins with, or with a snapshot of. What is linked has that one too.
        Raises `StorageError`, not retryable: WrongPassphrase; EncryptionMismatch when the origin is encrypted and there is
        no passphrase for it, or the other way round; LinkedPassphrase for a link with another one.
        """

    async def grow_encrypted_volume(
        self, uid: str, size: int, passphrase: Passphrase, live: Resize | None = None
    ) -> StoredVolume:
        """As `StorageDriver.grow_volume`. Raises `StorageError(reason="WrongPassphrase")`, not retryable."""

    async def begin_encrypted_snapshot(
        self, volume: str, snapshot: str, passphrase: Passphrase, *, live: bool = False
    ) -> StoredVolume:
        """As `StorageDriver.begin_snapshot`. Raises `StorageError(reason="WrongPassphrase")`, not retryable: a layer with
        another one would be a volume that nobody can open."""

    async def revert_encrypted_volume(
        self, volume: str, snapshot: str, request: str, passphrase: Passphrase
    ) -> StoredVolume:
        """As `StorageDriver.revert_volume`. Raises `StorageError(reason="WrongPassphrase")`, not retryable."""

    async def merge_encrypted(
        self, volume: str, merge: Merge, passphrase: Passphrase, progress: ProgressListener | None = None
    ) -> None:
        """As `StorageDriver.merge`. Raises `StorageError(reason="WrongPassphrase")`, not retryable."""
