"""Secrets that a driver may need: of this host's namespace, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Secrets(Protocol):
    """Reads Secrets that controllers copied to this host."""

    async def read(self, name: str) -> Mapping[str, bytes]:
        """What is in the Secret of that name. Raises `StorageError`: SecretNotFound, SecretUnreadable."""
