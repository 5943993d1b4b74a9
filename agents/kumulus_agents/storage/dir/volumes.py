"""Volumes in a pool: qcow2 files with a life of their own, blank, on a verified image, or copied.

A volume's record is written before the volume gets its name: a volume that exists has one. It says
which image the volume stands on; the header of the volume belongs to a guest's emulator.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kumulus_agents.storage import chain
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.dir.creation import create
from kumulus_agents.storage.dir.images import stored as stored_image
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import StorageError, StoredVolume
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.sectors import whole_sectors
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import FileSource


@dataclass(frozen=True, slots=True)
class Plan:
    """What a volume is made of."""

    size: int
    """Bytes it shall have, whole sectors."""
    thick: bool
    overlay_of: str | None = None
    """Uid of the image it shall stand on."""
    copied: int = 0
    """Bytes of the disk that is copied into it."""


def stored(pool: PoolDirectory, uid: str) -> StoredVolume | None:
    """The volume of that uid, if it is whole. Blocks."""
    with pool.volumes() as volumes:
        if read_record(volumes, _record(uid)) is None:
            return None
        try:
            with volumes.reading(_file(uid)) as fd:
                return StoredVolume(
                    FileSource(pool.volume_path(uid)), "qcow2", chain.virtual_size(fd), os.fstat(fd).st_blocks * 512
                )
        except FileNotFoundError:
            return None


def users(pool: PoolDirectory, image_uid: str) -> int:
    """How many volumes stand on the image. Blocks."""
    count = 0
    with pool.volumes() as volumes:
        for file in volumes.names():
            if file.startswith(".") or not file.endswith(".json"):
                continue
            record = read_record(volumes, file)
            if record is None or record.get("image") == image_uid:
                count += volumes.exists(f"{file.removesuffix('.json')}.qcow2")
    return count


def plan_on_image(pool: PoolDirectory, image_uid: str, size: int | None, thick: bool) -> Plan:
    """A volume that begins as the image: standing on it, or a copy when it is to be thick. Blocks.

    (qcow2 has no preallocated overlays.)
    """
    with pool.images() as images:
        image = stored_image(pool, images.whole, image_uid)
    if image is None:
        raise StorageError("The volume's image is not in the pool yet.", reason="ImageNotReady")
    if image.format != "qcow2":
        raise StorageError(
            f"The volume's image is a disc ({image.source_format}), of which no volume is made."
            " Name an image of a disk.",
            reason="ImageNotADisk",
            retryable=False,
        )
    wanted = _at_least(size, image.virtual_size, "image")
    if thick:
        return Plan(wanted, thick, copied=image.virtual_size)
    return Plan(wanted, thick, overlay_of=image_uid)


def plan_copy(pool: PoolDirectory, volume_uid: str, size: int | None, thick: bool) -> Plan:
    """A volume that begins as a copy of another one. Blocks."""
    source = stored(pool, volume_uid)
    if source is None:
        raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
    return Plan(_at_least(size, source.virtual_size, "volume it is copied from"), thick, copied=source.virtual_size)


def plan_blank(size: int | None, thick: bool) -> Plan:
    """A volume with nothing in it."""
    if size is None:
        raise StorageError("A blank volume needs a size.", reason="SizeMissing", retryable=False)
    return Plan(whole_sectors(size), thick)


async def make(
    pool: PoolDirectory, settings: StorageSettings, uid: str, plan: Plan, source: Chain | None, pace: Pace
) -> None:
    """Make the volume. `source` is what it is copied from. Raises `StorageError` or `OSError`.

    Whatever an earlier attempt left is replaced; nothing is left of this one when it fails.
    """
    with pool.volumes() as volumes:
        fd = await in_thread(volumes.fresh, _making(uid))
        try:
            backing = pool.backing_of_volume(plan.overlay_of) if plan.overlay_of is not None else None
            await in_thread(create, settings, fd, plan.size, backing=backing, thick=plan.thick)
            if source is not None:
                pace.stage("Copying", 0, plan.copied)
                await chain.copy(source, plan.copied, fd, settings, pace.at)
            await in_thread(_settle, volumes, uid, fd, {"image": plan.overlay_of, "thick": plan.thick})
        except BaseException:
            volumes.remove(_making(uid))
            raise
        finally:
            os.close(fd)


async def grow(pool: PoolDirectory, settings: StorageSettings, uid: str, size: int) -> None:
    """Make the disk in the file larger; nobody may use it. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes:
        record = await in_thread(read_record, volumes, _record(uid))
    with open_chain(pool, uid, write=True) as volume:
        await chain.grow(volume, size, settings, thick=bool((record or {}).get("thick")))


@contextmanager
def open_chain(pool: PoolDirectory, uid: str, *, write: bool = False) -> Iterator[Chain]:
    """The volume's file and that of the image it stands on, open. Blocks shortly."""
    with pool.volumes() as volumes, pool.images() as images:
        record = read_record(volumes, _record(uid))
        if record is None:
            raise FileNotFoundError(uid)
        image = record.get("image")
        fd = volumes.open(_file(uid), os.O_RDWR if write else os.O_RDONLY)
        try:
            below = images.whole.open(f"{image}.qcow2") if isinstance(image, str) else None
            try:
                yield Chain(fd, below)
            finally:
                if below is not None:
                    os.close(below)
        finally:
            os.close(fd)


@contextmanager
def open_image(pool: PoolDirectory, uid: str) -> Iterator[Chain]:
    """The image's file, open to be copied. Blocks shortly."""
    with pool.images() as images, images.whole.reading(f"{uid}.qcow2") as fd:
        yield Chain(fd, None, shared=True)


def take_back(pool: PoolDirectory, uid: str) -> None:
    """Nobody but its owner may read the volume's file, whatever it was lent for. Blocks."""
    with suppress(FileNotFoundError), pool.volumes() as volumes, volumes.reading(_file(uid)) as fd:
        if stat.S_IMODE(os.fstat(fd).st_mode) != chain.MODE:
            os.fchmod(fd, chain.MODE)


def remove(pool: PoolDirectory, uid: str) -> None:
    """Remove the volume and everything on the way to it; the volume before its record. Blocks."""
    with pool.volumes() as volumes:
        volumes.remove(_file(uid))
        volumes.flush()
        volumes.erase(_record(uid))
        volumes.remove(_making(uid))


def _settle(volumes: Directory, uid: str, fd: int, record: dict[str, object]) -> None:
    """Give the file its name, its record first. One call, so that cancelling does not end it halfway."""
    write_record(volumes, _record(uid), record, flush=False)  # the volume's own flush keeps both names
    try:
        volumes.settle(fd, _making(uid), _file(uid))
    except BaseException:
        volumes.remove(_record(uid))
        raise


def _at_least(size: int | None, least: int, what: str) -> int:
    if size is not None and size < least:
        raise StorageError(
            f"The volume's size of {size} bytes is less than the {least} bytes of its {what}. Ask for a larger volume.",
            reason="DiskTooSmall",
            retryable=False,
        )
    return whole_sectors(size if size is not None else least)


def _file(uid: str) -> str:
    return f"{uid}.qcow2"


def _record(uid: str) -> str:
    return f"{uid}.json"


def _making(uid: str) -> str:
    return f".{uid}.new"
