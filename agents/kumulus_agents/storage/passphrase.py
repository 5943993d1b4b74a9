"""What a volume is encrypted with, and how it gets to programs: as an open file without a name, in memory.

Never in an argument, in an environment, in a log or in a status.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kumulus.api.host import VolumeOrigin
from kumulus_agents.storage.protocol import ProgressListener, Resize, StoredVolume

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
    ) -> StoredVolume:
        """As `StorageDriver.ensure_volume`, encrypted. Raises `StorageError(reason="EncryptedCopy")`, not retryable, for
        what had to be copied whole."""

    async def grow_encrypted_volume(
        self, uid: str, size: int, passphrase: Passphrase, live: Resize | None = None
    ) -> StoredVolume:
        """As `StorageDriver.grow_volume`. Raises `StorageError(reason="WrongPassphrase")`, not retryable."""
