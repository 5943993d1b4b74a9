"""Images in a pool: the records of those that are whole, and the way of a source to become one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kumulus.api.image import OPTICAL, Compression, ImageContent, ImageFormat
from kumulus.api.image_order import HttpFetch, ImageRef, UploadFetch
from kumulus_agents.storage import chain, convert
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.dir.creation import create
from kumulus_agents.storage.dir.pool import Images, PoolDirectory
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.oci import client as registry
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part, discard, expire, is_complete
from kumulus_agents.storage.protocol import RegistrySource, StorageError, StoredImage, WebSource
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.rejection import Found
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import FileSource
from kumulus_agents.storage.unpack import NoRoom, unpack
from kumulus_agents.storage.whole import Receive

_FORMATS = ("qcow2", "raw")
"""What a file in the pool may be of."""
_AHEAD = 8
"""An image that is unpacked claims room for as much again, divided by this."""
_LEAST = 1 << 20
_HASHED = 4 << 20
_MEASURED = 16 << 20
"""Bytes that are measured in one go."""
Fetched = HttpFetch | WebSource | RegistrySource | UploadFetch
"""Sources whose bytes come as a file, from elsewhere."""


def stored(pool: PoolDirectory, images: Directory, uid: str) -> StoredImage | None:
    """The image of that uid if it is whole: its record is there and its file is as recorded. Blocks."""
    record = read_record(images, f"{uid}.json")
    if record is None:
        return None
    try:
        form = str(record.get("format", "qcow2"))
        if form not in _FORMATS:
            return None
        file = os.stat(f"{uid}.{form}", dir_fd=images.fd, follow_symlinks=False)
        if file.st_size != record["fileSize"]:
            return None
        return StoredImage(
            uid=uid,
            source=FileSource(pool.image_path(uid, form)),
            format=form,
            source_format=str(record["sourceFormat"]),
            sha256=str(record["sha256"]),
            virtual_size=int(str(record["virtualSize"])),
            size=file.st_blocks * 512,
            digest=_text(record.get("digest")),
            content=_content(record, form, file.st_size),
        )
    except (FileNotFoundError, KeyError, ValueError):
        return None


def _content(record: dict[str, object], form: str, size: int) -> ImageContent | None:
    digest = record.get("contentSha256")
    return ImageContent(sha256=digest, size=size, format=ImageFormat(form)) if isinstance(digest, str) else None


async def measure(images: Images, image: StoredImage) -> str:
    """SHA-256 of the image's file. Raises `OSError` when it is gone."""
    digest, at = hashlib.sha256(), 0
    with images.whole.reading(f"{image.uid}.{image.format}") as fd:
        while data := await in_thread(os.pread, fd, _MEASURED, at):
            await in_thread(digest.update, data)
            at += len(data)
    return digest.hexdigest()


def remember(images: Images, uid: str, digest: str) -> None:
    """Keep the digest of the image's file with what is known of it. Blocks."""
    record = read_record(images.whole, f"{uid}.json")
    if record is not None:
        write_record(images.whole, f"{uid}.json", {**record, "contentSha256": digest})


async def copy_in(
    pool: PoolDirectory,
    images: Images,
    image: ImageRef,
    content: ImageContent,
    receive: Receive,
    pace: Pace,
    settings: StorageSettings,
    claims: Claims,
) -> None:
    """Make the image whole as another pool has it: receive, inspect, record. Raises `StorageError` or `OSError`.

    What has arrived stays when another attempt can use it, and goes when the file is refused or the pool is full.
    """
    part = await Part.open(images.partial, pool.unfinished(image.uid, "copy"), claims)
    try:
        await receive(part, pace)
        with images.partial.reading(pool.unfinished(image.uid, "copy")) as fd:
            pace.stage("Inspecting", content.size, content.size)
            disc = content.format is not ImageFormat.QCOW2
            found = await convert.inspect(fd, image.format if disc else content.format, settings)
            size = -(-content.size // 512) * 512 if disc else found.virtual_size
            record: dict[str, object] = {
                "sha256": image.sha256,
                "sourceFormat": image.format,
                "format": content.format,
                "virtualSize": size,
                "fileSize": content.size,
                "contentSha256": content.sha256,
            }
            await in_thread(_settle, pool, images, image.uid, fd, pool.unfinished(image.uid, "copy"), record)
    except StorageError as error:
        if not error.retryable or error.reason in ("NoSpace", "InsufficientCapacity"):
            await part.discard()
        raise
    except OSError:
        await part.discard()
        raise
    finally:
        part.close()


@asynccontextmanager
async def uploading(pool: PoolDirectory, images: Images, uid: str, claims: Claims) -> AsyncIterator[Part]:
    """What has arrived of an image that is uploaded."""
    part = await Part.open(images.partial, pool.unfinished(uid, "source"), claims)
    try:
        yield part
    finally:
        part.close()


def uploaded(pool: PoolDirectory, images: Images, uid: str, idle_seconds: float) -> bool:
    """Whether all of it has arrived; a part that stands still for so long is removed. Blocks."""
    name = pool.unfinished(uid, "source")
    if is_complete(images.partial, name):
        return True
    expire(images.partial, name, idle_seconds)
    return False


async def take_in(
    pool: PoolDirectory,
    images: Images,
    image: ImageRef,
    source: Fetched,
    pace: Pace,
    fetcher: Fetcher,
    settings: StorageSettings,
    claims: Claims,
) -> None:
    """Make the image whole: fetch, unpack, inspect, convert, record. Raises `StorageError` or `OSError`.

    What was downloaded stays when another attempt can use it, and goes when the image is refused or
    the pool is full.
    """
    part = await Part.open(images.partial, pool.unfinished(image.uid, "source"), claims)
    try:
        arrived = await _arrive(image, source, part, pace, fetcher, settings)
        async with _plain(pool, images, image.uid, arrived.packing, pace, settings, claims) as (name, fd):
            size = os.fstat(fd).st_size
            pace.stage("Inspecting", size, size)
            found = await convert.inspect(fd, image.format, settings)
            if image.format in OPTICAL:
                sectors = -(-size // 512) * 512
                record = {**arrived.known(found), "format": "raw", "virtualSize": sectors, "fileSize": size}
                await in_thread(_settle, pool, images, image.uid, fd, name, record)
            else:
                await _converted(pool, images, image.uid, fd, found, arrived, pace, settings)
    except StorageError as error:
        if not error.retryable or error.reason in ("NoSpace", "InsufficientCapacity"):
            await part.discard()
        raise
    except OSError:
        await part.discard()
        raise
    finally:
        part.close()


async def take_volume(
    pool: PoolDirectory,
    images: Images,
    image: ImageRef,
    source: Chain,
    size: int,
    pace: Pace,
    settings: StorageSettings,
) -> None:
    """Make the image a full copy of a volume of so many bytes: copy, inspect, record. Raises `StorageError` or `OSError`.

    A guest wrote what is in it, so it is looked at like what comes from elsewhere.
    """
    name = pool.unfinished(image.uid, "converting")
    target = await in_thread(images.partial.fresh, name)
    try:
        await in_thread(create, settings, target, size)
        pace.stage("Copying", 0, size)
        await chain.copy(source, size, target, settings, pace.at)
        length = os.fstat(target).st_size
        pace.stage("Inspecting", length, length)
        found = await convert.inspect(target, "qcow2", settings)
        digest = await _sha256(target)
        if image.sha256 not in (None, digest):
            raise StorageError(
                "The volume has other content than when the image was made of it. Make a new image.",
                reason="ChecksumMismatch",
                retryable=False,
            )
        known = _Arrived(digest, Compression.NONE).known(found)
        record = {**known, "virtualSize": found.virtual_size, "fileSize": length}
        await in_thread(_settle, pool, images, image.uid, target, name, record)
    except BaseException:
        images.partial.remove(name)
        raise
    finally:
        os.close(target)


async def _sha256(fd: int) -> str:
    digest, at = hashlib.sha256(), 0
    while data := await in_thread(os.pread, fd, _HASHED, at):
        await in_thread(digest.update, data)
        at += len(data)
    return digest.hexdigest()


def _judge_upload(part: Part, image: ImageRef) -> None:
    """It was verified when the last of it came; a disk that lost some of that since is told from one that did not."""
    if part.digest() != image.sha256:
        raise StorageError(
            "What was uploaded is not in the pool any more as it arrived. Upload it again.",
            reason="UploadDamaged",
            retryable=False,
        )


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What was downloaded."""

    sha256: str
    packing: str
    """As `unpacking` has it; `None` when it is not packed."""
    digest: str | None = None

    def known(self, found: Found) -> dict[str, object]:
        """What is recorded of where it came from."""
        return {"sha256": self.sha256, "digest": self.digest, "sourceFormat": found.format}


async def _arrive(
    image: ImageRef, source: Fetched, part: Part, pace: Pace, fetcher: Fetcher, settings: StorageSettings
) -> _Arrived:
    """Make the part whole."""
    if isinstance(source, UploadFetch):
        _judge_upload(part, image)
        return _Arrived(part.digest(), source.compression)
    if isinstance(source, RegistrySource):
        digest, packing = await registry.bring(fetcher, source, image, part, pace, settings.fetch.max_bytes)
        return _Arrived(part.digest(), packing, digest)
    if image.sha256 is None:
        raise StorageError("An image from a web server needs its checksum.", reason="ChecksumMissing", retryable=False)
    fetch, login = (source.fetch, source.login) if isinstance(source, WebSource) else (source, None)
    await fetcher.fetch(fetch, part, image.sha256, pace, login)
    return _Arrived(image.sha256, fetch.compression)


@asynccontextmanager
async def _plain(
    pool: PoolDirectory,
    images: Images,
    uid: str,
    packing: str,
    pace: Pace,
    settings: StorageSettings,
    claims: Claims,
) -> AsyncIterator[tuple[str, int]]:
    """The name and a descriptor of what was downloaded, or of what is packed in it; that is gone at the end."""
    with images.partial.reading(pool.unfinished(uid, "source")) as packed:
        if packing == Compression.NONE:
            yield pool.unfinished(uid, "source"), packed
            return
        name = pool.unfinished(uid, "unpacked")
        target = images.partial.fresh(name)
        total = os.fstat(packed).st_size

        def taken() -> int:
            return os.fstat(target).st_blocks * 512

        def free() -> int:
            room = os.fstatvfs(target)
            return room.f_bavail * room.f_frsize

        def progress(done: int) -> None:
            now = taken()
            claims.take(name, max(min(now + max(now // _AHEAD, _LEAST), most), now), taken, free())
            pace.at(done, total)

        try:
            claims.drop(pool.unfinished(uid, "source"))  # it is all there, and nothing is converted from it
            most = claims.most(free())
            pace.stage("Unpacking", 0, total)
            progress(0)
            try:
                await unpack(packed, packing, target, most, settings, progress)
            except NoRoom:
                raise claims.exceeded(most, free() + taken()) from None
            yield name, target
        finally:
            claims.drop(name)
            os.close(target)
            images.partial.remove(name)


async def _converted(
    pool: PoolDirectory,
    images: Images,
    uid: str,
    source: int,
    found: Found,
    arrived: _Arrived,
    pace: Pace,
    settings: StorageSettings,
) -> None:
    """Make the file and then its record, which is what makes an image of it."""
    target = images.partial.fresh(pool.unfinished(uid, "converting"))
    try:
        pace.stage("Converting", 0, found.virtual_size)
        virtual_size = await convert.convert(source, found, target, settings, pace.at)
        record = {**arrived.known(found), "virtualSize": virtual_size, "fileSize": os.fstat(target).st_size}
        await in_thread(_settle, pool, images, uid, target, pool.unfinished(uid, "converting"), record)
    except BaseException:
        images.partial.remove(pool.unfinished(uid, "converting"))
        raise
    finally:
        os.close(target)


def _settle(
    pool: PoolDirectory, images: Images, uid: str, target: int, temporary: str, record: dict[str, object]
) -> None:
    """Give the file its name, drop what it was made from, and write the record last: then nothing is left over.

    Blocks, and is one call, so that cancelling does not end it halfway.
    """
    if pool.shared and stored(pool, images.whole, uid) is not None:
        # Another host was faster, and disks may stand on its file already.
        images.partial.remove(temporary)
        discard(images.partial, pool.unfinished(uid, "source"))
        discard(images.partial, pool.unfinished(uid, "copy"))
        return
    name = f"{uid}.{record.get('format', 'qcow2')}"
    images.partial.settle(target, temporary, name, mode=pool.image_mode, gid=pool.gid, into=images.whole, flush=False)
    discard(images.partial, pool.unfinished(uid, "source"))
    discard(images.partial, pool.unfinished(uid, "copy"))
    try:
        write_record(images.whole, f"{uid}.json", record)
    except BaseException:
        images.whole.remove(name)
        raise


def remove(pool: PoolDirectory, images: Images, uid: str) -> None:
    """Remove the image and everything on its way to it; the record first. Blocks."""
    images.whole.erase(f"{uid}.json")
    images.whole.flush()
    for form in _FORMATS:
        images.whole.remove(f"{uid}.{form}")
    discard(images.partial, pool.unfinished(uid, "source"))
    discard(images.partial, pool.unfinished(uid, "copy"))
    images.partial.remove(pool.unfinished(uid, "unpacked"))
    images.partial.remove(pool.unfinished(uid, "converting"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
