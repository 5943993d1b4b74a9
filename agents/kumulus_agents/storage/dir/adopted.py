"""An unowned file becomes a volume by getting the volume's name.

    1. found by its id among what nobody owns, opened without following a link, inspected through that descriptor
    2. renamed to `.<volume uid>.adopting`; what has that name now must be the file that was inspected, else it goes back
    3. its record is written, then it gets the volume's name; the record of what it was goes

A death between 2 and 3 is gone on from: the file waits under that name, which nothing else touches or removes.

A file that an emulator has open as the disk of a domain which is taken over gets the volume's name *beside* its own: the
domain's definition names that. It loses its own when the volume is opened for a machine that starts: whoever starts one has
the definition made anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from kumulus.api.pool_order import UnownedKind
from kumulus_agents.storage import cage, chain, qcow2
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import unowned
from kumulus_agents.storage.dir.images import stored as stored_image
from kumulus_agents.storage.dir.pool import PoolDirectory, uid_of
from kumulus_agents.storage.dir.unowned import Found
from kumulus_agents.storage.dir.volumes import Record, file_of, known, note
from kumulus_agents.storage.layers import Layers, from_record
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.rejection import Rejected
from kumulus_agents.storage.settings import StorageSettings

_KNOWN = frozenset({"image", "thick", "retained", "active", "layers", "snapshots", "encrypted", "moved", "reverted"})
"""What a record says of a volume that is one file. What was done for it by its old uid is not carried over."""
_VOLUMES = "volumes"
_DATA_FILE = 1 << 2
_LOCKS = (100, 200)
"""QEMU's locks of an open image are bytes from 100 and from 200 (block/file-posix.c)."""


async def adopt(
    pool: PoolDirectory,
    settings: StorageSettings,
    uid: str,
    id: str,
    owned: Collection[str],
    namespace: str | None,
    *,
    foreign: bool,
    passphrase: Passphrase | None = None,
    beside: bool = False,
) -> None:
    """See `Adopting.adopt_volume`. One at a time in a pool. Raises `StorageError` or `OSError`."""
    with pool.volumes() as volumes, pool.top() as top:
        waiting = not beside and await in_thread(volumes.exists, _adopting(uid))
        if waiting:
            where, name, old = volumes, _adopting(uid), id
        else:
            found = await in_thread(_find, pool, id, owned)
            if found is None or not (foreign or _is_of(found, namespace)):
                raise _not_found(foreign)
            where, name, old = (volumes if found.in_volumes else top), found.name, found.about.id
        record = await in_thread(read_record, volumes, f"{old}.json") or {}
        fd = await in_thread(_open_beside if beside else _open, where, name)
        try:
            was_ours = beside and bool(record)  # the machine that has it was a machine of ours
            await _judge(pool, settings, fd, old, record, passphrase, was_ours=was_ours)
            if beside:
                place = name if where is top else f"{_VOLUMES}/{name}"
                await in_thread(_name_beside, where, name, volumes, uid, fd, _as_it_was(uid, record, place))
                return
            if not waiting:
                await in_thread(_take, where, name, volumes, uid, fd)
            await in_thread(_settle, volumes, uid, old, fd, record)
        finally:
            os.close(fd)


def settle(pool: PoolDirectory, uid: str) -> None:
    """The volume's file has no other name than the volume's from now on. Idempotent. Blocks.

    Raises `StorageError`: VolumeInUse while a program has it open, such as the domain that it was of: that one runs on by the
    name which would go.
    """
    with pool.volumes() as volumes, pool.top() as top:
        record = known(volumes, uid)
        if record is None or record.beside is None:
            return
        where, name = _place(record.beside, volumes, top)
        if _same(where, name, volumes, file_of(uid, uid)):
            _refuse_in_use(volumes, file_of(uid, uid))
            os.unlink(name, dir_fd=where.fd)
            where.flush()
            if where is volumes:  # it was a volume by another uid
                volumes.erase(f"{name.removesuffix('.qcow2')}.json")
        note(volumes, uid, replace(record, beside=None))


def retain(pool: PoolDirectory, uid: str, namespace: str | None, name: str) -> None:
    """See `Adopting.retain_volume`. Blocks."""
    if _withdrawn(pool, uid):
        return
    with pool.volumes() as volumes:
        record = read_record(volumes, f"{uid}.json")
        whose = {"namespace": namespace, "name": name}
        if record is not None and record.get("retained") != whose:
            write_record(volumes, f"{uid}.json", {**record, "retained": whose})


def _withdrawn(pool: PoolDirectory, uid: str) -> bool:
    """Whether the volume's file goes on under the name that it has besides, and has no other one now."""
    with pool.volumes() as volumes, pool.top() as top:
        record = known(volumes, uid)
        if record is None or record.beside is None or len(record.layers.parents) > 1:
            return False
        where, other = _place(record.beside, volumes, top)
        if not _same(where, other, volumes, file_of(uid, uid)):
            return False
        volumes.remove(file_of(uid, uid))
        volumes.flush()
        volumes.erase(f"{uid}.json")
        return True


def _place(beside: str, volumes: Directory, top: Directory) -> tuple[Directory, str]:
    inside, _, name = beside.rpartition("/")
    return (volumes, name) if inside == _VOLUMES else (top, beside)


def _same(where: Directory, name: str, volumes: Directory, file: str) -> bool:
    """Whether both names are of one file."""
    try:
        one = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        other = os.stat(file, dir_fd=volumes.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _find(pool: PoolDirectory, id: str, owned: Collection[str]) -> Found | None:
    found = next((item for item in unowned.scan(pool, owned) if item.about.id == id), None)
    if found is not None and found.about.kind not in (UnownedKind.VOLUME, UnownedKind.FILE):
        raise _refused("is not a file of its own that a volume could be made of")
    return found


def _is_of(found: Found, namespace: str | None) -> bool:
    return found.about.kind is UnownedKind.VOLUME and found.about.namespace == namespace is not None


def _open(where: Directory, name: str) -> int:
    try:
        fd = where.open(name, os.O_RDWR)
    except FileNotFoundError:
        raise _not_found(True) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _refused("is not a plain file") from error
        raise
    try:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid():
            raise _refused("belongs to another user, who could go on writing to it: make root its owner")
        if about.st_nlink != 1:
            raise _refused("has another name (a hard link) elsewhere: remove that")
        if _locked(fd):
            raise StorageError("The file is in use: stop the program that has it open.", reason="VolumeInUse")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_beside(where: Directory, name: str) -> int:
    """An emulator may have it, and whoever started that one chose whose it is: the operator vouches for it."""
    try:
        return where.open(name, os.O_RDONLY)
    except FileNotFoundError:
        raise _not_found(True) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _refused("is not a plain file") from error
        raise


def _as_it_was(uid: str, record: dict[str, object], place: str) -> Record:
    """What is known of the volume: of one that was a volume what its record said, by another uid."""
    image = record.get("image")
    return Record(
        Layers.first(uid),
        uid_of(image) if isinstance(image, str) else None,
        record.get("thick") is True,
        encrypted=bool(record.get("encrypted")),
        beside=place,
    )


def _name_beside(where: Directory, name: str, volumes: Directory, uid: str, fd: int, record: Record) -> None:
    """Give what was inspected the volume's name as well. The record first: a volume that exists has one."""
    if os.fstat(fd).st_nlink > 1 + volumes.exists(_adopting(uid)):
        raise _refused("has another name (a hard link) elsewhere: remove that")
    volumes.remove(_adopting(uid))
    os.link(name, _adopting(uid), src_dir_fd=where.fd, dst_dir_fd=volumes.fd, follow_symlinks=False)
    inspected, taken = os.fstat(fd), os.stat(_adopting(uid), dir_fd=volumes.fd, follow_symlinks=False)
    if (inspected.st_dev, inspected.st_ino) != (taken.st_dev, taken.st_ino):
        volumes.remove(_adopting(uid))
        raise _refused("was replaced while it was looked at")
    note(volumes, uid, record, flush=False)
    os.rename(_adopting(uid), file_of(uid, uid), src_dir_fd=volumes.fd, dst_dir_fd=volumes.fd)
    volumes.flush()


async def _judge(
    pool: PoolDirectory,
    settings: StorageSettings,
    fd: int,
    old: str,
    record: dict[str, object],
    passphrase: Passphrase | None,
    *,
    was_ours: bool = False,
) -> None:
    """Whether the file may be used: as an import when it is foreign, by what our record says when it was a volume."""
    try:
        one_file = from_record(old, record) == Layers.first(old) and not record.keys() - _KNOWN
    except ValueError:
        one_file = False
    if not one_file:
        raise _refused("is not all there is of the volume that it was, which had snapshots or stood on one")
    encrypted, image = bool(record.get("encrypted")), record.get("image")
    if encrypted != (passphrase is not None):
        raise _refused("is encrypted, and a class that encrypts is to take it" if encrypted else "is not encrypted")
    if isinstance(image, str):
        with pool.images() as images:
            if await in_thread(stored_image, pool, images.whole, image) is None:
                raise StorageError(
                    "The image that the data stands on is not in the pool any more.", reason="ImageNotReady"
                )
    if isinstance(image, str) or "retained" in record or passphrase is not None or was_ours:
        below = pool.backing_of_volume(image) if isinstance(image, str) else ""
        await in_thread(_stands_on, fd, below, encrypted=encrypted)
        if passphrase is not None:
            await chain.unlock(fd, passphrase, settings)
        return
    answer = await cage.inspect(fd, "qcow2", settings.max_virtual_size, settings=settings.cage)
    if isinstance(why := answer.get("rejected"), str):
        raise _refused(why)
    if answer.get("format") != "qcow2":
        raise _refused("could not be inspected")


def _stands_on(fd: int, backing: str, *, encrypted: bool) -> None:
    """The header names the image that the record names, in our words, or none, and no other file.

    It may have a bitmap, which an import may not: ours, or an emulator's that a guest took over. Nothing reads it
    but `tracking`, whose reads are bounded, and what qemu-img opens is told to it.
    """

    def read(offset: int, length: int) -> bytes:
        return os.pread(fd, length, offset)

    try:
        header = qcow2.parse(read)
    except Rejected as error:
        raise _refused(str(error)) from error
    named = read(header.backing_offset, min(header.backing_size, 1024)) if header.backing_offset else b""
    if named != backing.encode() or header.incompatible & _DATA_FILE or bool(header.crypt_method) != encrypted:
        raise _refused("is encrypted otherwise than it was, or names other files than the image that it was made from")


def _take(where: Directory, name: str, volumes: Directory, uid: str, fd: int) -> None:
    """Give what was inspected a name of ours. What was put in its place meanwhile goes back."""
    target = _adopting(uid)
    os.rename(name, target, src_dir_fd=where.fd, dst_dir_fd=volumes.fd)
    inspected, taken = os.fstat(fd), os.stat(target, dir_fd=volumes.fd, follow_symlinks=False)
    if (inspected.st_dev, inspected.st_ino) != (taken.st_dev, taken.st_ino) or not stat.S_ISREG(taken.st_mode):
        with suppress(OSError):  # a directory cannot be linked: it stays under the name it has now, and is listed
            os.link(target, name, src_dir_fd=volumes.fd, dst_dir_fd=where.fd, follow_symlinks=False)
            os.unlink(target, dir_fd=volumes.fd)
        raise _refused("was replaced while it was looked at")
    volumes.flush()
    if where.fd != volumes.fd:
        where.flush()


def _settle(volumes: Directory, uid: str, old: str, fd: int, record: dict[str, object]) -> None:
    """The record first: a volume that exists has one."""
    known = {key: record[key] for key in ("image", "encrypted") if record.get(key)}
    known["thick"] = record.get("thick") is True
    write_record(volumes, f"{uid}.json", known, flush=False)
    volumes.settle(fd, _adopting(uid), f"{uid}.qcow2")
    if not volumes.exists(f"{old}.qcow2"):
        volumes.erase(f"{old}.json")


def _refuse_in_use(where: Directory, name: str) -> None:
    fd = where.open(name, os.O_RDONLY)
    try:
        if _locked(fd):
            raise StorageError(
                "The volume's file is that of a domain on this host that still runs: switch that off, or delete the volume,"
                " which leaves the file where it is.",
                reason="VolumeInUse",
            )
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Whether a program has locks on the file as QEMU's are. Asks, and takes none."""
    for start in _LOCKS:
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 64, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
        if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
            return True
    return False


def _not_found(foreign: bool) -> StorageError:
    what = "file that nobody owns" if foreign else "volume of this namespace that was retained"
    return StorageError(
        f"There is no {what} with that id in the pool: kumulusctl pool unowned shows what there is.",
        reason="DataNotFound",
    )


def _refused(why: str) -> StorageError:
    return StorageError(f"The data is not taken: it {why}.", reason="DataRefused", retryable=False)


def _adopting(uid: str) -> str:
    return f".{uid}.adopting"
