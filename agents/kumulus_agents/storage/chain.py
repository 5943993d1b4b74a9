"""A volume's layers and the image below them, as qemu-img in the cage works with them.

A volume's header belongs to the emulator that wrote it last, and that to a guest, perhaps: what a
layer stands on is told to qemu-img here, never read from the header, and no other file exists for
it. Whoever is in the cage is "others" to the files: they are lent by that part of their modes, which
changes nothing for anybody else, because their directories let in root and the emulators' group alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from kumulus_agents.storage import cage, qcow2, tracking
from kumulus_agents.storage.cage import Handed, Limits
from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.passphrase import WRONG, Passphrase
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rejection import Read, Rejected
from kumulus_agents.storage.settings import StorageSettings

MODE = 0o600
"""Of a volume's file, when it is not lent."""

_IMAGE, _TARGET = "image", "target"
_KEY, _TARGET_KEY = "key", "target-key"
_TABLES = 64 << 20
"""Bytes beside a disk's data, and its eighth, that a file of it may have."""
_LOCKED = ('Failed to get "write" lock', 'Failed to get shared "write" lock')

_WRITER = 100 + 1
"""The byte of a file that QEMU locks while it may write to it: `RAW_PERM_BASE` and the bit `BLK_PERM_WRITE`."""

_lent: Counter[tuple[int, int]] = Counter()
"""Files of volumes by how many programs have them just now: device and inode."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Open files: layers from the top, and the image below them or None. They stay the caller's to close."""

    layers: tuple[int, ...]
    image: int | None = None
    frozen: bool = False
    """Nobody writes to any of them, although an emulator may have them open."""
    passphrase: Passphrase | None = None
    """What all the layers are encrypted with; an image below never is. None: they are not."""
    lent: bool = False
    """Whoever opened them has lent them to the cage already."""

    def options(self) -> str:
        """What qemu-img shall open, by the names inside the cage.

        Locks are asked for: by itself QEMU does without where it finds no /dev/null to try them on. A layer that is
        frozen may be locked by the emulator that wrote to it once.
        """
        node: dict[str, object] | None = None
        for name in reversed(self._names()):
            file = {"driver": "file", "locking": "on", "filename": f"/{name}"}
            node = {"driver": "qcow2", "file": file, "backing": node}
            if self.passphrase is not None and name != _IMAGE:
                node["encrypt"] = {"format": "luks", "key-secret": _KEY}
        return "json:" + json.dumps({**(node or {}), **({"force-share": True} if self.frozen else {})})

    def handed(self, *, write: int = 0) -> list[Handed]:
        """The files, for the cage. The topmost `write` of them may be written."""
        fds = (*self.layers, *(() if self.image is None else (self.image,)))
        return [
            Handed(fd, name, write=number < write)
            for number, (fd, name) in enumerate(zip(fds, self._names(), strict=True))
        ]

    @contextmanager
    def unlocked(self) -> Iterator[tuple[list[str], list[Handed]]]:
        """What tells qemu-img the passphrase, and the file for the cage that has it; nothing of what is not encrypted."""
        with _keyed(self.passphrase, _KEY) as (secret, handed):
            yield secret, handed

    def _names(self) -> list[str]:
        layers = [f"layer{number}" for number in range(len(self.layers))]
        return layers if self.image is None else [*layers, _IMAGE]


def virtual_size(fd: int) -> int:
    """Bytes of the disk in the open qcow2 file, as its header has it. Blocks. Raises `StorageError`."""
    try:
        return qcow2.parse(lambda offset, length: os.pread(fd, length, offset)).size
    except Rejected as error:
        raise StorageError(f"The volume's file is damaged: it {error}.", reason="VolumeDamaged") from error


async def copy(
    source: Chain,
    size: int,
    target: int,
    settings: StorageSettings,
    progress: Callable[[int, int], None],
    passphrase: Passphrase | None = None,
    *,
    thick: bool = False,
) -> None:
    """Fill the open, empty qcow2 file `target`, at least as large and all zeros, with all `source` has.

    `size` is the source's, in bytes; `passphrase` is what the target is encrypted with, and a `thick` one that is encrypted
    is all zeros only when they are written. The result is checked like an import: it names no other file.
    Raises `StorageError`: VolumeInUse when an emulator writes to the source, WrongPassphrase when it is not the source's,
    NoSpace, CageUnavailable.
    """
    os.fchown(target, settings.cage.uid, settings.cage.uid)
    encrypted = passphrase is not None

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(size, size * percent // 100), size)

    to = f"driver=qcow2,file.driver=file,file.filename=/{_TARGET}"
    if passphrase is not None:
        to += f",encrypt.format=luks,encrypt.key-secret={_TARGET_KEY}"
    zeros = [] if encrypted and thick else ["--target-is-zero"]
    try:
        with (
            nullcontext() if source.lent else lending(source),
            source.unlocked() as (key, keys),
            _keyed(passphrase, _TARGET_KEY) as (own_key, own_keys),
        ):
            outcome = await cage.run(
                [
                    *(str(settings.cage.qemu_img), "convert", *key, *own_key, "-p", "-n", *zeros),
                    *("--target-image-opts", source.options(), to),
                ],
                [*source.handed(), *keys, *own_keys, Handed(target, _TARGET, write=True)],
                limits=_limits(virtual_size(target), settings.cage.convert_seconds, settings),
                settings=settings.cage,
                on_output=on_output,
            )
    finally:
        os.fchown(target, os.geteuid(), os.getegid())
    _judge(outcome, "copy the volume")
    try:
        qcow2.inspect(
            lambda offset, length: os.pread(target, length, offset),
            os.fstat(target).st_size,
            virtual_size(target),
            encrypted=encrypted,
        )
    except Rejected as error:
        raise StorageError(f"The copy of the volume is not in order: it {error}.", reason="VolumeDamaged") from error


async def expand(
    source: Chain, size: int, target: int, settings: StorageSettings, progress: Callable[[int, int], None]
) -> None:
    """Fill the open, empty file `target` with the disk of `size` bytes that `source` is, byte by byte, with holes.

    Raises `StorageError`: VolumeInUse when an emulator writes to the source, NoSpace, CageUnavailable.
    """
    os.fchown(target, settings.cage.uid, settings.cage.uid)

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(size, size * percent // 100), size)

    try:
        with nullcontext() if source.lent else lending(source), source.unlocked() as (key, keys):
            outcome = await cage.run(
                [
                    *(str(settings.cage.qemu_img), "convert", *key, "-p", "-O", "raw"),
                    *(source.options(), f"/{_TARGET}"),
                ],
                [*source.handed(), *keys, Handed(target, _TARGET, write=True)],
                limits=_limits(size, settings.cage.convert_seconds, settings),
                settings=settings.cage,
                on_output=on_output,
            )
    finally:
        os.fchown(target, os.geteuid(), os.getegid())
    _judge(outcome, "copy the volume")
    if os.fstat(target).st_size != size:
        raise StorageError("The copy of the volume has another size than the volume.", reason="VolumeDamaged")


async def grow(volume: Chain, size: int, settings: StorageSettings, *, thick: bool) -> None:
    """Make the volume's disk `size` bytes large, which is more than it has; flushed. Nobody may have it open.

    Of one that is encrypted nothing is reserved: it would be no zeros.
    Raises `StorageError`: VolumeInUse when an emulator has, NoSpace, CageUnavailable.
    """
    reserve = ("--preallocation=falloc",) if thick and volume.passphrase is None else ()
    with lending(volume, write=1), volume.unlocked() as (key, keys):
        outcome = await cage.run(
            [str(settings.cage.qemu_img), "resize", *key, "-q", *reserve, volume.options(), str(size)],
            [*volume.handed(write=1), *keys],
            limits=_limits(size, settings.cage.convert_seconds, settings),
            settings=settings.cage,
        )
    _judge(outcome, "grow the volume")
    os.fsync(volume.layers[0])


async def commit(volume: Chain, size: int, settings: StorageSettings, progress: Callable[[int, int], None]) -> None:
    """Write all that the topmost layer has into the one below it; flushed. Nobody may have the two open.

    What is read through the topmost layer is the same before, after and at every moment of it: it may be repeated.
    Raises `StorageError`: VolumeInUse when an emulator has them, NoSpace, CageUnavailable.
    """

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(size, size * percent // 100), size)

    with lending(volume, write=2), volume.unlocked() as (key, keys):
        outcome = await cage.run(
            [str(settings.cage.qemu_img), "commit", *key, "-p", "-d", volume.options()],
            [*volume.handed(write=2), *keys],
            limits=_limits(size, settings.cage.convert_seconds, settings),
            settings=settings.cage,
            on_output=on_output,
        )
    _judge(outcome, "merge the volume's layers")
    os.fsync(volume.layers[1])


async def mend(layer: int, settings: StorageSettings) -> None:
    """Drop the bitmap of a layer whose emulator was killed: it is not right any more, and QEMU would not let the disk grow.

    What was written is told from what is allocated then. Somebody has it open: nothing. Raises `StorageError`.
    """
    try:
        found = tracking.bitmap(_reader(layer), qcow2.parse(_reader(layer)))
    except Rejected as error:
        raise StorageError(f"The volume's file is damaged: it {error}.", reason="VolumeDamaged") from error
    if found is None or found.consistent or is_written(layer):
        return
    alone = Chain((layer,))
    with lending(alone, write=1):
        outcome = await cage.run(
            [str(settings.cage.qemu_img), "bitmap", "--remove", alone.options(), tracking.NAME],
            alone.handed(write=1),
            limits=_limits(_TABLES, settings.cage.convert_seconds, settings),
            settings=settings.cage,
        )
    if not any(text in outcome.errors for text in _LOCKED):
        _judge(outcome, "put the volume in order")


def is_written(layer: int) -> bool:
    """Whether an emulator has the open file open to write to it: QEMU's lock (block/file-posix.c)."""
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _WRITER, 1, 0)
    kind: int = struct.unpack_from("h", fcntl.fcntl(layer, fcntl.F_OFD_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK


def is_tracked(layer: int) -> bool:
    """Whether the open layer has a bitmap of what is written. Blocks. Raises `StorageError`."""
    try:
        return tracking.bitmap(_reader(layer), qcow2.parse(_reader(layer))) is not None
    except Rejected as error:
        raise StorageError(f"The volume's file is damaged: it {error}.", reason="VolumeDamaged") from error


def written(layer: int) -> list[tracking.Extent]:
    """The parts of the disk that were written in the open layer, which nobody writes to. Blocks. Raises `StorageError`."""
    try:
        return tracking.written(_reader(layer))
    except Rejected as error:
        raise StorageError(f"The volume's file is damaged: it {error}.", reason="VolumeDamaged") from error


def _reader(fd: int) -> Read:
    end = os.fstat(fd).st_size
    return lambda offset, length: os.pread(fd, length, offset) if offset < end else b""


async def name_below(layer: int, below: str, settings: StorageSettings, passphrase: Passphrase | None = None) -> None:
    """Write the name of the file it stands on into the layer's header, for people who look at it by hand."""
    alone = Chain((layer,), passphrase=passphrase)
    with lending(alone, write=1), alone.unlocked() as (key, keys):
        outcome = await cage.run(
            [str(settings.cage.qemu_img), "rebase", *key, "-u", "-F", "qcow2", "-b", below, alone.options()],
            [*alone.handed(write=1), *keys],
            limits=_limits(_TABLES, settings.cage.convert_seconds, settings),
            settings=settings.cage,
        )
    _judge(outcome, "merge the volume's layers")


async def unlock(layer: int, passphrase: Passphrase, settings: StorageSettings) -> None:
    """See whether that is the passphrase of the open layer, which an emulator may have open.

    Raises `StorageError(reason="WrongPassphrase")`, not retryable.
    """
    alone = Chain((layer,), frozen=True, passphrase=passphrase)
    with lending(alone), alone.unlocked() as (key, keys):
        outcome = await cage.run(
            [
                # `info` opens a disk without its passphrase; this asks of its first sector whether it is written.
                *(str(settings.cage.qemu_img), "map", *key, "--output=json"),
                *("--start-offset=0", "--max-length=512", alone.options()),
            ],
            [*alone.handed(), *keys],
            limits=_limits(_TABLES, settings.cage.convert_seconds, settings),
            settings=settings.cage,
        )
    _judge(outcome, "open the volume")


@contextmanager
def _keyed(passphrase: Passphrase | None, name: str) -> Iterator[tuple[list[str], list[Handed]]]:
    """What tells qemu-img a passphrase by that name, and the file of that name for the cage."""
    if passphrase is None:
        yield [], []
        return
    with passphrase.opened() as fd:
        yield ["--object", f"secret,id={name},file=/{name}"], [Handed(fd, name, copied=True)]


@contextmanager
def lending(chain: Chain, *, write: int = 0) -> Iterator[None]:
    """Let others read the files, and write the topmost `write` of them."""
    if chain.image is not None:
        # Not taken back: another copy may be about to open it.
        os.fchmod(chain.image, stat.S_IMODE(os.fstat(chain.image).st_mode) | stat.S_IROTH)
    keys = []
    for number, fd in enumerate(chain.layers):
        now = os.fstat(fd)
        keys.append((now.st_dev, now.st_ino))
        _lent[keys[-1]] += 1
        os.fchmod(fd, stat.S_IMODE(now.st_mode) & 0o006 | MODE | (0o006 if number < write else 0o004))
    try:
        yield
    finally:
        for key, fd in zip(keys, chain.layers, strict=True):
            _lent[key] -= 1
            if not _lent[key]:
                del _lent[key]
                os.fchmod(fd, MODE)


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
    if WRONG in outcome.errors:
        raise StorageError(
            f"Could not {doing}: the passphrase is not the one that it was encrypted with.",
            reason="WrongPassphrase",
            retryable=False,
        )
    if outcome.ended_by(signal.SIGXCPU) or outcome.ended_by(signal.SIGKILL):
        raise StorageError(f"Could not {doing}: it took too much time or memory.", reason="VolumeTimeout")
    raise StorageError(f"Could not {doing}: qemu-img ended with status {outcome.status}.", reason="VolumeDamaged")
