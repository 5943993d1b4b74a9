"""Disks in a pool: qcow2 overlays on a verified image, or what came with a guest, which stands on nothing. Blocks.

A disk's record is written before the disk gets its name: a disk that exists has one. Which image a
disk stands on is told by the record alone; the disk's own header belongs to a guest's emulator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.dir.creation import create
from kumulus_agents.storage.dir.images import stored
from kumulus_agents.storage.dir.pool import PoolDirectory, disk_of, uid_of
from kumulus_agents.storage.moving import disk_conflict
from kumulus_agents.storage.protocol import StorageError, StoredDisk, StoredImage
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.sizes import at_least
from kumulus_agents.storage.source import FileSource, LayerFile


def ensure(
    pool: PoolDirectory, settings: StorageSettings, owner: str, name: str, image_uid: str, size: int | None
) -> StoredDisk:
    """The machine's disk of that name, made or found. Raises `StorageError` or `OSError`."""
    disk = disk_of(owner, name)
    with pool.disks() as disks, pool.directory_of(disks, owner) as mine:
        record = read_record(mine, f"{disk}.json")
        if record is not None and mine.exists(f"{disk}.qcow2"):
            size, below = int(str(record["virtualSize"])), _below(pool, record)
            return StoredDisk(FileSource(pool.disk_path(owner, disk)), "qcow2", size, below)
        with pool.images() as images:
            image = stored(pool, images.whole, image_uid)
        if image is None:
            raise StorageError("The disk's image is not in the pool yet.", reason="ImageNotReady")
        virtual_size = at_least(size, image.virtual_size, "disk", "image")
        _make(pool, settings, mine, disk, image, virtual_size)
    below = (LayerFile(image.path, image.format),)
    return StoredDisk(FileSource(pool.disk_path(owner, disk)), "qcow2", virtual_size, below)


def find(pool: PoolDirectory, owner: str, name: str) -> StoredDisk | None:
    """The machine's disk of that name, if there is one. Raises `OSError`."""
    disk = disk_of(owner, name)
    with pool.disks() as disks:
        try:
            mine = disks.directory(uid_of(owner))
        except FileNotFoundError:
            return None
        with mine:
            record = read_record(mine, f"{disk}.json")
            if record is None or not mine.exists(f"{disk}.qcow2"):
                return None
    source = FileSource(pool.disk_path(owner, disk))
    return StoredDisk(source, "qcow2", int(str(record["virtualSize"])), _below(pool, record))


def receive(
    pool: PoolDirectory, settings: StorageSettings, owner: str, name: str, size: int, migration: str
) -> StoredDisk:
    """An empty disk of the machine for what comes by that migration, made or found. Raises `StorageError` or `OSError`."""
    disk = disk_of(owner, name)
    with pool.disks() as disks, pool.directory_of(disks, owner) as mine:
        record = read_record(mine, f"{disk}.json")
        if mine.exists(f"{disk}.qcow2"):
            if record is None or (record.get("migration"), record.get("virtualSize")) != (migration, size):
                raise disk_conflict(name)
        else:
            _settle(mine, disk, {"migration": migration, "virtualSize": size}, lambda fd: create(settings, fd, size))
    return StoredDisk(FileSource(pool.disk_path(owner, disk)), "qcow2", size)


def remove(pool: PoolDirectory, owner: str) -> None:
    """Remove everything in the machine's directory, and the directory; disks before their records."""
    with pool.disks() as disks:
        try:
            mine = disks.directory(uid_of(owner))
        except FileNotFoundError:
            return
        with mine:
            for file in sorted(mine.names(), key=lambda file: file.endswith(".json")):
                mine.remove(file)
        disks.remove_directory(owner)
        disks.flush()


def users(pool: PoolDirectory, image_uid: str) -> int:
    """How many disks stand on the image."""
    count = 0
    with pool.disks() as disks:
        for owner in disks.names():
            try:
                mine = disks.directory(owner)
            except (FileNotFoundError, NotADirectoryError):
                continue
            with mine:
                for file in mine.names():
                    if file.startswith(".") or not file.endswith(".json"):
                        continue
                    record = read_record(mine, file)
                    if record is None or record.get("image") == image_uid:
                        count += mine.exists(f"{file.removesuffix('.json')}.qcow2")
    return count


def _below(pool: PoolDirectory, record: Mapping[str, object]) -> tuple[LayerFile, ...]:
    """What the disk stands on. A record that is older than this question does not name the format."""
    if "migration" in record:
        return ()
    image, form = uid_of(str(record.get("image"))), record.get("format")
    if form not in ("qcow2", "raw"):
        with pool.images() as images:
            form = "raw" if images.whole.exists(f"{image}.raw") else "qcow2"
    return (LayerFile(pool.image_path(image, str(form)), str(form)),)


def _make(
    pool: PoolDirectory, settings: StorageSettings, mine: Directory, disk: str, image: StoredImage, virtual_size: int
) -> None:
    record: dict[str, object] = {"image": image.uid, "format": image.format, "virtualSize": virtual_size}
    backing = pool.backing(image.uid, image.format)
    _settle(mine, disk, record, lambda fd: create(settings, fd, virtual_size, backing=backing, form=image.format))


def _settle(mine: Directory, disk: str, record: dict[str, object], write: Callable[[int], None]) -> None:
    temporary = f".{disk}.new"
    fd = mine.fresh(temporary)
    try:
        write(fd)
        write_record(mine, f"{disk}.json", record, flush=False)  # the disk's own flush keeps both names
        mine.settle(fd, temporary, f"{disk}.qcow2")
    except BaseException:
        mine.remove(temporary)
        mine.remove(f"{disk}.json")
        raise
    finally:
        os.close(fd)
