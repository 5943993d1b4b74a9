"""The files of a machine that are not disks: its seed and its console log, in a directory of its own.

`<state>/instances/<uid>/`. Names derive from the uid alone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

SEED = "seed.iso"
CONSOLE = "console.log"
DIRECTORY_MODE = 0o711
"""QEMU, which is not root, must get through to the seed. Nobody can list, and the files are closed themselves."""

SeedWriter = Callable[[Path, Mapping[str, bytes]], Awaitable[None]]
"""Writes a NoCloud seed with these files to that path, whole or not at all."""


class InstanceFiles(Protocol):
    """Where the files of machines are."""

    def console_log(self, uid: str) -> Path:
        """The file that the serial console is logged to."""

    async def prepare(self, uid: str, seed: Mapping[str, bytes] | None) -> Path | None:
        """Make the directory and write the seed, if there is one; returns its path. May be repeated."""

    async def remove(self, uid: str) -> None:
        """Remove everything. Gone already: nothing."""


class StoredFiles:
    """Files on this host."""

    def __init__(self, root: Path, write_seed: SeedWriter) -> None:
        self._root = root
        self._write_seed = write_seed

    def _directory(self, uid: str) -> Path:
        if not uid or "/" in uid or uid.startswith("."):
            raise ValueError(f"{uid!r} is no uid")
        return self._root / uid

    def console_log(self, uid: str) -> Path:
        """The file that the serial console is logged to."""
        return self._directory(uid) / CONSOLE

    async def prepare(self, uid: str, seed: Mapping[str, bytes] | None) -> Path | None:
        """Make the directory and write the seed, if there is one; returns its path. May be repeated."""
        directory = self._directory(uid)
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path = directory / SEED
        if seed is None:
            path.unlink(missing_ok=True)
            return None
        await self._write_seed(path, seed)
        return path

    async def remove(self, uid: str) -> None:
        """Remove everything. Gone already: nothing."""
        directory = self._directory(uid)
        if directory.is_symlink():
            directory.unlink(missing_ok=True)
        elif directory.exists():
            await asyncio.to_thread(shutil.rmtree, directory)


class NoFiles:
    """Files of simulated machines: there are none."""

    def console_log(self, uid: str) -> Path:
        """A path where nothing will be."""
        return Path("/nonexistent") / uid / CONSOLE

    async def prepare(self, uid: str, seed: Mapping[str, bytes] | None) -> Path | None:
        """Nothing to make; a seed would be here."""
        return Path("/nonexistent") / uid / SEED if seed is not None else None

    async def remove(self, uid: str) -> None:
        """Nothing to remove."""
