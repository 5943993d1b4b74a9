"""Snapshots of volumes in a pool: layers that are put on, and merged when nobody needs them.

Two rules make it safe to be killed at any line. A record names a layer only when its file is there, and
a file goes only when no record names it: what is in no record is swept. And the record changes only
when what is read through the old layers and through the new ones is the same.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import replace

from kumulus.api.snapshots import Indication
from kumulus_agents.storage import chain
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import volumes as files
from kumulus_agents.storage.dir.creation import create, track
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.dir.volumes import Record, bytes_of, file_of, known, making, note
from kumulus_agents.storage.layers import Kept, Taken
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import Merge, StorageError, StoredSnapshot
from kumulus_agents.storage.refusals import no_snapshot, no_volume
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import Extent, union


def stored(pool: PoolDirectory, volume: str, snapshot: str) -> StoredSnapshot | None:
    """The snapshot, if its layer is there. Blocks."""
    with pool.volumes() as volumes:
        record = known(volumes, volume)
        while record is not None and snapshot in record.layers.snapshots:
            try:
                return _stored(volumes, volume, record.layers.snapshots[snapshot])
            except FileNotFoundError:
                before, record = record, known(volumes, volume)
                if record == before:
                    return None
        return None


def _stored(volumes: Directory, volume: str, kept: Kept) -> StoredSnapshot:
    file = file_of(volume, kept.layer)
    with volumes.reading(file) as fd:
        size = chain.virtual_size(fd)
    taken = kept.taken
    indications = tuple(Indication(one) for one in taken.indications) if taken is not None else ()
    return StoredSnapshot(size, bytes_of(volumes, file), taken.at if taken is not None else None, indications)


def begin(
    pool: PoolDirectory,
    settings: StorageSettings,
    volume: str,
    snapshot: str,
    *,
    live: bool,
    passphrase: Passphrase | None = None,
) -> None:
    """Put a layer on the volume; `passphrase` is that of an encrypted one. Blocks. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        before = record.layers.snapshots.get(snapshot)
        if before is not None and before.taken is not None:
            return
        layers = record.layers.forgotten(snapshot)
        if len(files.chain_of(volumes, volume, record, layers.active)[0]) >= files.MOST:
            raise files.too_many()
        below = file_of(volume, layers.active)
        with volumes.reading(below) as fd:
            size = chain.virtual_size(fd)
        layer = _new_layer(volumes, settings, volume, below, size, tracked=not live, passphrase=passphrase)
        note(volumes, volume, replace(record, layers=layers.frozen(snapshot, layer)))


def _new_layer(
    volumes: Directory,
    settings: StorageSettings,
    volume: str,
    below: str,
    size: int,
    *,
    tracked: bool,
    passphrase: Passphrase | None,
) -> str:
    """An empty file that stands on the file `below`; its layer, which is in no record yet."""
    layer = str(uuid.uuid4())
    fd = volumes.fresh(making(volume))
    try:
        create(settings, fd, size, backing=below, passphrase=passphrase)
        if tracked and passphrase is None:
            track(settings, fd)
        volumes.settle(fd, making(volume), file_of(volume, layer))
    except BaseException:
        volumes.remove(making(volume))
        raise
    finally:
        os.close(fd)
    return layer


def revert(
    pool: PoolDirectory,
    settings: StorageSettings,
    volume: str,
    snapshot: str,
    request: str,
    passphrase: Passphrase | None = None,
) -> None:
    """Go on from the snapshot. Blocks. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        if record.reverted == request:
            return
        kept = record.layers.snapshots.get(snapshot)
        if kept is None or kept.taken is None:
            raise no_snapshot()
        with volumes.reading(file_of(volume, record.layers.active)) as fd:
            size = chain.virtual_size(fd)
        below = file_of(volume, kept.layer)
        layer = _new_layer(volumes, settings, volume, below, size, tracked=True, passphrase=passphrase)
        note(volumes, volume, replace(record, layers=record.layers.reverted(snapshot, layer), reverted=request))


def confirm(
    pool: PoolDirectory, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
) -> None:
    """The snapshot was taken. Blocks."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        kept = record.layers.snapshots.get(snapshot)
        if kept is None:
            raise StorageError("The snapshot was not begun, or is gone.", reason="SnapshotLost", retryable=False)
        if kept.taken is None:
            layers = record.layers.confirmed(snapshot, Taken(taken_at, indications))
            note(volumes, volume, replace(record, layers=layers))


def forget(pool: PoolDirectory, volume: str, snapshot: str) -> None:
    """The snapshot is wanted no more. Blocks."""
    with pool.volumes() as volumes:
        record = known(volumes, volume)
        if record is not None and snapshot in record.layers.snapshots:
            if users := files.linked(volumes, volume).get(record.layers.snapshots[snapshot].layer):
                raise StorageError(
                    f"Volumes are linked to the snapshot: {', '.join(users)}. Delete them first, or copy them in full.",
                    reason="SnapshotInUse",
                )
            note(volumes, volume, replace(record, layers=record.layers.forgotten(snapshot)))


def refuse_begun(pool: PoolDirectory, volume: str) -> None:
    """Blocks. Raises `StorageError(reason="VolumeBusy")` while a snapshot was begun: who writes to which layer is open."""
    with pool.volumes() as volumes:
        record = known(volumes, volume)
        if record is not None and any(kept.taken is None for kept in record.layers.snapshots.values()):
            raise StorageError("A snapshot of the volume is being taken. Wait until that is done.", reason="VolumeBusy")


def adopt(pool: PoolDirectory, volume: str, path: str) -> None:
    """An emulator writes to this file. Blocks."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        layer = _layer_of(pool, volume, record, path)
        try:
            if layer is None:
                raise ValueError("no layer of the volume")
            layers = record.layers.adopted(layer)
        except ValueError as error:
            raise StorageError(
                f"A machine that is on writes to a file of the volume that it must not write: {error}. Stop it.",
                reason="ChainMismatch",
                retryable=False,
            ) from error
        if layers != record.layers:
            note(volumes, volume, replace(record, layers=layers))
            _sweep(volumes, volume, record=replace(record, layers=layers))


def next_merge(pool: PoolDirectory, volume: str) -> Merge | None:
    """Remove what nobody needs, and say what is to be merged. Blocks."""
    with pool.volumes() as volumes:
        record = known(volumes, volume)
        if record is None:
            return None
        held = files.linked(volumes, volume).keys()
        while useless := record.layers.useless(held):
            record = replace(record, layers=record.layers.without(useless[0]))
            note(volumes, volume, record)
        _sweep(volumes, volume, record)
        found = record.layers.next_merge(held)
        if found is None:
            return None
        if found != record.layers.merging:
            note(volumes, volume, replace(record, layers=replace(record.layers, merging=found)))
        upper, lower = (pool.volume_path(file_of(volume, layer)) for layer in found)
        return Merge(upper, lower, found[0] == record.layers.active)


async def merge(
    pool: PoolDirectory,
    settings: StorageSettings,
    volume: str,
    wanted: Merge,
    pace: Pace,
    passphrase: Passphrase | None = None,
) -> None:
    """Write what the upper file has into the lower one; then it goes. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        upper = _layer_of(pool, volume, record, wanted.upper)
        if upper is None:
            return
        with files.open_chain(pool, volume, upper, write=2, passphrase=passphrase) as merged:
            size = await in_thread(chain.virtual_size, merged.layers[0])
            await chain.mend(merged.layers[1], settings)  # the disk may have grown since, and it has to
            pace.stage("Merging", 0, size)
            await chain.commit(merged, size, settings, pace.at)
        below = file_of(volume, record.layers.parents[upper] or volume)
        for child in record.layers.children(upper):
            fd = volumes.open(file_of(volume, child), os.O_RDWR)
            try:
                await chain.name_below(fd, below, settings, passphrase)
            finally:
                os.close(fd)
    await in_thread(merged_by_emulator, pool, volume, wanted)


def merged_by_emulator(pool: PoolDirectory, volume: str, done: Merge) -> None:
    """The two are one; the upper file goes. Blocks."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        upper = _layer_of(pool, volume, record, done.upper)
        lower = _layer_of(pool, volume, record, done.lower)
        if upper is not None and lower is not None:
            record = replace(record, layers=record.layers.merged(upper, lower))
            note(volumes, volume, record)
        _sweep(volumes, volume, record)


def changes(pool: PoolDirectory, volume: str, since: str | None, until: str | None) -> list[Extent]:
    """What was written between the two. Blocks."""
    with pool.volumes() as volumes:
        record = _known(volumes, volume)
        layers = record.layers
        last = layers.active if until is None else _kept(record, until).layer
        upper = set(layers.chain(last))
        between = upper if since is None else upper ^ set(layers.chain(_kept(record, since).layer))
        found: list[Extent] = []
        for layer in sorted(between):
            with volumes.reading(file_of(volume, layer)) as fd:
                if chain.is_written(fd):
                    raise StorageError(
                        "A machine that is on writes to the volume. Take a snapshot, and ask what changed until then.",
                        reason="VolumeInUse",
                    )
                found += chain.written(fd)
        with volumes.reading(file_of(volume, last)) as fd:
            return union(found, chain.virtual_size(fd))


def _kept(record: Record, snapshot: str) -> Kept:
    kept = record.layers.snapshots.get(snapshot)
    if kept is None or kept.taken is None:
        raise no_snapshot()
    return kept


def _known(volumes: Directory, volume: str) -> Record:
    record = known(volumes, volume)
    if record is None:
        raise no_volume()
    return record


def _layer_of(pool: PoolDirectory, volume: str, record: Record, path: str) -> str | None:
    """The layer that this is the file of."""
    found = (layer for layer in record.layers.parents if pool.volume_path(file_of(volume, layer)) == path)
    return next(found, None)


def _sweep(volumes: Directory, volume: str, record: Record) -> None:
    """Remove files of the volume that its record does not name: somebody died between the two."""
    named = {file_of(volume, layer) for layer in record.layers.parents}
    for file in files.files_of(volumes, volume):
        if file not in named:
            volumes.remove(file)
