"""Images in a pool: the records of those that are whole, and the way of a source to become one."""

from __future__ import annotations

import os

from kumulus.api.host import HttpFetch, ImageRef
from kumulus_agents.storage import convert
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.dir.pool import Images, PoolDirectory
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part, discard
from kumulus_agents.storage.protocol import StorageError, StoredImage
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.rejection import Found
from kumulus_agents.storage.settings import StorageSettings


def stored(pool: PoolDirectory, images: Directory, uid: str) -> StoredImage | None:
    """The image of that uid if it is whole: its record is there and its file is as recorded. Blocks."""
    record = read_record(images, f"{uid}.json")
    if record is None:
        return None
    try:
        file = os.stat(f"{uid}.qcow2", dir_fd=images.fd, follow_symlinks=False)
        if file.st_size != record["fileSize"]:
            return None
        return StoredImage(
            uid=uid,
            path=pool.image_path(uid),
            format="qcow2",
            source_format=str(record["sourceFormat"]),
            sha256=str(record["sha256"]),
            virtual_size=int(str(record["virtualSize"])),
            size=file.st_blocks * 512,
        )
    except (FileNotFoundError, KeyError, ValueError):
        return None


async def take_in(
    pool: PoolDirectory,
    images: Images,
    image: ImageRef,
    source: HttpFetch,
    pace: Pace,
    fetcher: Fetcher,
    settings: StorageSettings,
    claims: Claims,
) -> None:
    """Make the image whole: fetch, inspect, convert, record. Raises `StorageError` or `OSError`.

    What was downloaded stays when another attempt can use it, and goes when the image is refused or
    the pool is full.
    """
    part = await Part.open(images.partial, _source(image.uid), claims)
    try:
        await fetcher.fetch(source, part, image.sha256, pace)
        pace.stage("Inspecting", part.size, part.size)
        with images.partial.reading(_source(image.uid)) as fd:
            found = await convert.inspect(fd, image.format, settings)
            await _converted(pool, images, image, fd, found, pace, settings)
    except StorageError as error:
        if not error.retryable or error.reason in ("NoSpace", "InsufficientCapacity"):
            await part.discard()
        raise
    except OSError:
        await part.discard()
        raise
    finally:
        part.close()


async def _converted(
    pool: PoolDirectory,
    images: Images,
    image: ImageRef,
    source: int,
    found: Found,
    pace: Pace,
    settings: StorageSettings,
) -> None:
    """Make the file and then its record, which is what makes an image of it."""
    target = images.partial.fresh(_converting(image.uid))
    try:
        pace.stage("Converting", 0, found.virtual_size)
        virtual_size = await convert.convert(source, found, target, settings, pace.at)
        record: dict[str, object] = {
            "sha256": image.sha256,
            "sourceFormat": found.format,
            "virtualSize": virtual_size,
            "fileSize": os.fstat(target).st_size,
        }
        await in_thread(_settle, pool, images, image.uid, target, record)
    except BaseException:
        images.partial.remove(_converting(image.uid))
        raise
    finally:
        os.close(target)


def _settle(pool: PoolDirectory, images: Images, uid: str, target: int, record: dict[str, object]) -> None:
    """Give the file its name, drop what it was made from, and write the record last: then nothing is left over.

    Blocks, and is one call, so that cancelling does not end it halfway.
    """
    name = f"{uid}.qcow2"
    images.partial.settle(
        target, _converting(uid), name, mode=pool.image_mode, gid=pool.gid, into=images.whole, flush=False
    )
    discard(images.partial, _source(uid))
    try:
        write_record(images.whole, f"{uid}.json", record)
    except BaseException:
        images.whole.remove(name)
        raise


def remove(images: Images, uid: str) -> None:
    """Remove the image and everything on its way to it; the record first. Blocks."""
    images.whole.erase(f"{uid}.json")
    images.whole.flush()
    images.whole.remove(f"{uid}.qcow2")
    discard(images.partial, _source(uid))
    images.partial.remove(_converting(uid))


def _source(uid: str) -> str:
    return f"{uid}.source"


def _converting(uid: str) -> str:
    return f"{uid}.converting"
