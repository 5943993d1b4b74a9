"""Files in a pool's directories that nobody owns: found, described, left alone. Blocks.

Links and directories are named and never followed. What is told of a file comes from its inode, from our own record
beside it, and from a parser of headers that trusts nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kumulus.api.pool_order import UnownedKind
from kumulus_agents.storage import qcow2
from kumulus_agents.storage.adoption import LISTED, LOOKED_AT, Unclaimed, Unowned
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.record import read_record
from kumulus_agents.storage.rejection import Rejected

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OURS = frozenset({"images", "disks", "volumes", "lost+found", marker.NAME})
_NAME_MAX = 200
_ADOPTABLE = (UnownedKind.VOLUME, UnownedKind.FILE)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and where it is: in `volumes`, or at the top of the pool."""

    about: Unowned
    name: str
    """As the file system has it. Never leaves this machine."""
    in_volumes: bool


def summary(pool: PoolDirectory, owned: Collection[str]) -> Unclaimed:
    """All of them, bounded. Raises `OSError` or `StorageError`."""
    found = [item.about for item in scan(pool, owned)]
    found.sort(key=lambda item: (item.kind not in _ADOPTABLE, item.kind, item.id))
    return Unclaimed(tuple(found[:LISTED]), len(found), sum(item.size for item in found))


def at(pool: PoolDirectory, path: str) -> Unowned | None:
    """The file of that path, when it lies in the pool's own directory, or in that of its volumes, and could become one.
    Raises `OSError` or `StorageError`."""
    parent, name = os.path.split(path)
    here = str(pool.path)
    if not name or parent not in (here, f"{here}/volumes") or (parent == here and name in _OURS):
        return None
    with pool.top() as top, pool.volumes() as volumes:
        inside = parent != here
        for found in _entry(pool, volumes if inside else top, name, in_volumes=inside):
            return found.about if found.about.kind in _ADOPTABLE else None
    return None


def scan(pool: PoolDirectory, owned: Collection[str]) -> Iterator[Found]:
    """What there is that belongs to no uid in `owned`."""
    with pool.top() as top, pool.volumes() as volumes:
        beside = _beside(volumes, owned)
        for name in _names(top):
            about = _stat(top, name) if beside else None
            if name not in _OURS and (about is None or (about.st_dev, about.st_ino) not in beside):
                yield from _entry(pool, top, name, in_volumes=False)
        yield from _volumes(pool, volumes, owned)
    with pool.images() as images:
        yield from _strays(pool, images.whole, "images", owned, UnownedKind.IMAGE)
    with pool.disks() as disks:
        yield from _strays(pool, disks, "disks", owned, UnownedKind.DISK)


def _volumes(pool: PoolDirectory, volumes: Directory, owned: Collection[str]) -> Iterator[Found]:
    names = _names(volumes)
    spoken_of = _spoken_of(volumes, names)
    for name in names:
        uids = _UID.findall(name)
        if any(uid in owned for uid in uids) or (uids and name == f"{uids[0]}.json"):
            continue
        # What another volume's record speaks of, that volume stands on.
        layer = any(spoken_of.get(uid, set()) - {f"{uid}.json"} for uid in uids)
        yield from _entry(pool, volumes, name, in_volumes=True, layer=layer)


def _beside(volumes: Directory, owned: Collection[str]) -> frozenset[tuple[int, int]]:
    """Files of volumes that have another name as well, by device and inode."""
    found = (_stat(volumes, name) for name in _names(volumes) if name.removesuffix(".qcow2") in owned)
    return frozenset((about.st_dev, about.st_ino) for about in found if about is not None and about.st_nlink > 1)


def _spoken_of(volumes: Directory, names: Collection[str]) -> dict[str, set[str]]:
    """Uids in records, each with the records that have them."""
    found: dict[str, set[str]] = {}
    for name in names:
        if name.endswith(".json"):
            try:
                text = (volumes.read(name) or b"").decode(errors="replace")
            except OSError:
                continue
            for uid in _UID.findall(text):
                found.setdefault(uid, set()).add(name)
    return found


def _strays(
    pool: PoolDirectory, where: Directory, place: str, owned: Collection[str], kind: UnownedKind
) -> Iterator[Found]:
    """What is in the directory of images or of disks: named and counted, nothing that a volume could be made of."""
    for name in _names(where):
        uids = _UID.findall(name)
        if name == ".partial" or any(uid in owned for uid in uids) or (uids and name == f"{uids[0]}.json"):
            continue
        about = _stat(where, name)
        if about is not None:
            size = about.st_blocks * 512
            if kind is UnownedKind.DISK and stat.S_ISDIR(about.st_mode):
                size = _size_within(where, name)
            known = kind if uids else UnownedKind.OTHER
            yield Found(Unowned(_id(pool, f"{place}/{name}"), known, f"{place}/{_shown(name)}", size), name, False)


def _entry(
    pool: PoolDirectory, where: Directory, name: str, *, in_volumes: bool, layer: bool = False
) -> Iterator[Found]:
    about = _stat(where, name)
    if about is None:
        return
    place = f"volumes/{name}" if in_volumes else name
    shown = f"volumes/{_shown(name)}" if in_volumes else _shown(name)
    size = about.st_blocks * 512
    if not stat.S_ISREG(about.st_mode) or layer:
        yield Found(Unowned(_id(pool, place), UnownedKind.OTHER, shown, size), name, in_volumes)
        return
    uid = name.removesuffix(".qcow2")
    record = read_record(where, f"{uid}.json") if in_volumes and _UID.fullmatch(uid) and uid != name else None
    if record is None:
        yield Found(
            Unowned(_id(pool, place), UnownedKind.FILE, shown, size, _virtual_size(where, name)), name, in_volumes
        )
        return
    kept = record.get("retained")
    whose = kept if isinstance(kept, dict) else {}
    namespace, volume = whose.get("namespace"), whose.get("name")
    yield Found(
        Unowned(
            uid,
            UnownedKind.VOLUME,
            shown,
            size,
            _virtual_size(where, name),
            namespace if isinstance(namespace, str) else None,
            volume if isinstance(volume, str) else None,
            bool(record.get("encrypted")),
        ),
        name,
        in_volumes,
    )


def _virtual_size(where: Directory, name: str) -> int | None:
    try:
        with where.reading(name) as fd:
            size = qcow2.parse(lambda offset, length: os.pread(fd, length, offset)).size
    except (OSError, Rejected):
        return None
    return size if 0 < size < 1 << 62 else None


def _size_within(where: Directory, name: str) -> int:
    try:
        with where.directory(name) as inner:
            return sum(about.st_blocks * 512 for each in _names(inner) if (about := _stat(inner, each)) is not None)
    except OSError:
        return 0


def _stat(where: Directory, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=where.fd, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _names(where: Directory) -> list[str]:
    """At most `LOOKED_AT` of what is in it, the first by name."""
    return sorted(where.names())[:LOOKED_AT]


def _id(pool: PoolDirectory, place: str) -> str:
    """The same as long as the file has its name."""
    return str(uuid.uuid5(uuid.UUID(pool.uid), place.encode(errors="surrogateescape").hex()))


def _shown(name: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in name)[:_NAME_MAX]
