"""Volumes on their way into a pool: a file that has its name already and no record, which makes it no volume.

It has its name from the first, for the emulator that copies into it goes on using it by that name.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import replace

from kumulus_agents.storage import chain
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.dir import volumes as files
from kumulus_agents.storage.dir.creation import create, track
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.dir.volumes import Record, coming, file_of, known, making, note
from kumulus_agents.storage.layers import Layers
from kumulus_agents.storage.moving import Arrival, Content, Outside, Traits, unsupported
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.refusals import no_volume
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import FileSource

_TABLES, _HEADERS = 4096, 1 << 20
"""A qcow2 file has tables of less than the 4096th part of its disk, and little else."""


def traits(pool: PoolDirectory, uid: str) -> Traits:
    """What the volume takes along. Blocks. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        record = known(volumes, uid)
        if record is None:
            raise no_volume()
        pinned = bool(record.layers.snapshots) or bool(files.linked(volumes, uid))
        with volumes.reading(file_of(uid, record.layers.active)) as fd:
            size, tracked = chain.virtual_size(fd), chain.is_tracked(fd)
    return Traits(size, record.thick, record.reverted, record.encrypted, tracked, pinned)


def find(pool: PoolDirectory, uid: str) -> Arrival | None:
    """What is here of the volume. Blocks."""
    with pool.volumes() as volumes:
        if (record := known(volumes, uid)) is not None:
            active = file_of(uid, record.layers.active)
            if volumes.exists(active):
                return Arrival(FileSource(pool.volume_path(active)), "qcow2", whole=True, move=record.moved)
        elif volumes.exists(file_of(uid, uid)):
            return _arrival(pool, volumes, uid)
    return None


def begin(
    pool: PoolDirectory,
    settings: StorageSettings,
    uid: str,
    wanted: Traits,
    passphrase: Passphrase | None,
    *,
    live: bool,
    move: str | None = None,
) -> Arrival:
    """Make the empty file, which is that move's. Blocks. Raises `StorageError` or `OSError`; nothing is left then."""
    with pool.volumes() as volumes:
        _clear(volumes, uid)
        if move is not None:  # before there is a file, for one that says nothing is of an agent from before this
            write_record(volumes, coming(uid), {"move": move})
        fd = volumes.fresh(file_of(uid, uid))
        try:
            create(settings, fd, wanted.virtual_size, thick=wanted.thick, passphrase=passphrase)
            if live and passphrase is None and not wanted.tracked:
                track(settings, fd)
        except BaseException:
            _clear(volumes, uid)
            raise
        finally:
            os.close(fd)
        return _arrival(pool, volumes, uid)


async def fill(
    pool: PoolDirectory,
    settings: StorageSettings,
    uid: str,
    wanted: Traits,
    content: Content,
    pace: Pace,
    passphrase: Passphrase | None,
) -> None:
    """Copy the content into the file. Raises `StorageError` or `OSError`."""
    if not isinstance(content, Chain | Outside):
        raise unsupported("Pools of files do not take what such a pool has")
    with pool.volumes() as volumes:
        fd = volumes.open(file_of(uid, uid), os.O_RDWR)
        try:
            size = chain.virtual_size(fd)
            pace.stage("Copying", 0, size)
            if isinstance(content, Outside):
                await content.fill(fd, pace.at)
            else:
                source = replace(content, passphrase=passphrase)
                await chain.copy(source, size, fd, settings, pace.at, passphrase, thick=wanted.thick)
            if passphrase is None:
                await in_thread(track, settings, fd)
        finally:
            os.close(fd)


def reserve(pool: PoolDirectory, uid: str, wanted: Traits) -> None:
    """Have the file system keep room for all that can be written to the file. Blocks. Raises `StorageError` or `OSError`.

    Not by `posix_fallocate`: where a file system cannot, that writes to the file, beside the emulator.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with pool.volumes() as volumes:
        fd = volumes.open(file_of(uid, uid), os.O_RDWR)
        try:
            length = wanted.virtual_size + wanted.virtual_size // _TABLES + _HEADERS
            if libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(max(length, os.fstat(fd).st_size))):
                code = ctypes.get_errno()
                if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise unsupported("The pool cannot reserve space for a thick volume that a machine uses")
                raise OSError(code, os.strerror(code))
        finally:
            os.close(fd)


def settle(pool: PoolDirectory, uid: str, wanted: Traits, move: str) -> None:
    """Make the record; file and name are flushed before. Blocks. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        if known(volumes, uid) is not None:
            return
        try:
            with volumes.reading(file_of(uid, uid)) as fd:
                os.fsync(fd)
        except FileNotFoundError:
            raise StorageError("Nothing of the volume has come to the pool.", reason="VolumeNotReady") from None
        volumes.flush()
        record = Record(
            Layers.first(uid),
            thick=wanted.thick,
            reverted=wanted.reverted,
            encrypted=wanted.encrypted,
            moved=move,
        )
        note(volumes, uid, record)
        volumes.remove(coming(uid))


def abandon(pool: PoolDirectory, uid: str) -> None:
    """Remove the file, unless it is a volume. Blocks. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        if known(volumes, uid) is None:
            _clear(volumes, uid)
            volumes.flush()


def _clear(volumes: Directory, uid: str) -> None:
    for name in files.files_of(volumes, uid):
        with volumes.reading(name) as fd:
            if chain.is_written(fd):
                raise StorageError(
                    "An emulator writes to what has come of the volume. This goes on when it has ended.",
                    reason="VolumeInUse",
                )
        volumes.remove(name)
    volumes.remove(making(uid))
    volumes.remove(coming(uid))


def _arrival(pool: PoolDirectory, volumes: Directory, uid: str) -> Arrival:
    name, size = file_of(uid, uid), None
    with volumes.reading(name) as fd, suppress(StorageError):  # a damaged one is for whoever uses it to find out
        size = chain.virtual_size(fd) if os.fstat(fd).st_size else 0
    said = (read_record(volumes, coming(uid)) or {}).get("move")
    move = said if isinstance(said, str) else None
    return Arrival(FileSource(pool.volume_path(name)), "qcow2", whole=False, move=move, size=size)
