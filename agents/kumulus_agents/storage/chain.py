"""A volume and the image it stands on, as qemu-img in the cage works with them.

A volume's header belongs to the emulator that wrote it last, and that to a guest, perhaps: what a
volume stands on is told to qemu-img here, never read from the header, and no other file exists for
it. Whoever is in the cage is "others" to the files: they are lent by that part of their modes, which
changes nothing for anybody else, because their directories let in root and the emulators' group alone.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kumulus_agents.storage import cage, qcow2
from kumulus_agents.storage.cage import Handed, Limits
from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rejection import Rejected
from kumulus_agents.storage.settings import StorageSettings

MODE = 0o600
"""Of a volume's file, when it is not lent."""

_VOLUME, _IMAGE, _TARGET = "volume", "image", "target"
_TABLES = 64 << 20
"""Bytes beside a disk's data, and its eighth, that a file of it may have."""
_LOCKED = ('Failed to get "write" lock', 'Failed to get shared "write" lock')


@dataclass(frozen=True, slots=True)
class Chain:
    """Open files: a volume, and the image it stands on or None. They stay the caller's to close."""

    volume: int
    image: int | None
    shared: bool = False
    """What is called volume is an image, which others read too."""

    def options(self) -> str:
        """What qemu-img shall open, by the names inside the cage.

        Locks are asked for: by itself QEMU does without where it finds no /dev/null to try them on.
        """
        below = (
            ",backing.driver=qcow2,backing.file.driver=file,backing.file.filename=/image"
            if self.image is not None
            else ""
        )
        return f"driver=qcow2,file.driver=file,file.locking=on,file.filename=/volume{below}"

    def handed(self, *, write: bool) -> list[Handed]:
        """The files, for the cage."""
        files = [Handed(self.volume, _VOLUME, write=write)]
        return files if self.image is None else [*files, Handed(self.image, _IMAGE)]


def virtual_size(fd: int) -> int:
    """Bytes of the disk in the open qcow2 file, as its header has it. Blocks. Raises `StorageError`."""
    try:
        return qcow2.parse(lambda offset, length: os.pread(fd, length, offset)).size
    except Rejected as error:
        raise StorageError(f"The volume's file is damaged: it {error}.", reason="VolumeDamaged") from error


async def copy(
    source: Chain, size: int, target: int, settings: StorageSettings, progress: Callable[[int, int], None]
) -> None:
    """Fill the open, empty qcow2 file `target`, at least as large and all zeros, with all `source` has.

    `size` is the source's, in bytes. The result is checked like an import: it names no other file.
    Raises `StorageError`: VolumeInUse when an emulator writes to the source, NoSpace, CageUnavailable.
    """
    os.fchown(target, settings.cage.uid, settings.cage.uid)

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(size, size * percent // 100), size)

    try:
        with _lent(source, write=False):
            outcome = await cage.run(
                [
                    *(str(settings.cage.qemu_img), "convert", "-p", "-n", "--target-is-zero"),
                    *("--image-opts", "--target-image-opts", source.options()),
                    f"driver=qcow2,file.driver=file,file.filename=/{_TARGET}",
                ],
                [*source.handed(write=False), Handed(target, _TARGET, write=True)],
                limits=_limits(virtual_size(target), settings.cage.convert_seconds, settings),
                settings=settings.cage,
                on_output=on_output,
            )
    finally:
        os.fchown(target, os.geteuid(), os.getegid())
    _judge(outcome, "copy the volume")
    try:
        qcow2.inspect(
            lambda offset, length: os.pread(target, length, offset), os.fstat(target).st_size, virtual_size(target)
        )
    except Rejected as error:
        raise StorageError(f"The copy of the volume is not in order: it {error}.", reason="VolumeDamaged") from error


async def grow(volume: Chain, size: int, settings: StorageSettings, *, thick: bool) -> None:
    """Make the volume's disk `size` bytes large, which is more than it has; flushed. Nobody may have it open.

    Raises `StorageError`: VolumeInUse when an emulator has, NoSpace, CageUnavailable.
    """
    reserve = ("--preallocation=falloc",) if thick else ()
    with _lent(volume, write=True):
        outcome = await cage.run(
            [
                *(str(settings.cage.qemu_img), "resize", "-q", *reserve),
                *("--image-opts", volume.options(), str(size)),
            ],
            volume.handed(write=True),
            limits=_limits(size, settings.cage.convert_seconds, settings),
            settings=settings.cage,
        )
    _judge(outcome, "grow the volume")
    os.fsync(volume.volume)


@contextmanager
def _lent(chain: Chain, *, write: bool) -> Iterator[None]:
    for image in (chain.image, chain.volume if chain.shared else None):
        if image is not None:
            # Not taken back: another copy may be about to open it.
            os.fchmod(image, stat.S_IMODE(os.fstat(image).st_mode) | stat.S_IROTH)
    if chain.shared:
        yield
        return
    os.fchmod(chain.volume, MODE | (0o006 if write else 0o004))
    try:
        yield
    finally:
        os.fchmod(chain.volume, MODE)


def _limits(size: int, seconds: float, settings: StorageSettings) -> Limits:
    return Limits(settings.cage.address_space, seconds, seconds, file_size=size // 8 * 9 + _TABLES)


def _judge(outcome: cage.Outcome, doing: str) -> None:
    if outcome.status == 0:
        return
    if "No space left on device" in outcome.errors or "Disk quota exceeded" in outcome.errors:
        raise StorageError(
            f"Could not {doing}: the pool is full. Free space in it or choose another pool.", reason="NoSpace"
        )
    if any(text in outcome.errors for text in _LOCKED):
        raise StorageError(
            f"Could not {doing}: a machine that is on uses it. Stop the machine or detach the volume.",
            reason="VolumeInUse",
        )
    if outcome.ended_by(signal.SIGXCPU) or outcome.ended_by(signal.SIGKILL):
        raise StorageError(f"Could not {doing}: it took too much time or memory.", reason="VolumeTimeout")
    raise StorageError(f"Could not {doing}: qemu-img ended with status {outcome.status}.", reason="VolumeDamaged")
