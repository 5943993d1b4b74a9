"""The directory of a pool: where it may lie, how it is reached, what lies where. Blocks; no image is opened.

    images/<image uid>.qcow2           the converted image, never written again
    images/<image uid>.raw             in its place, a disc as it came
    images/<image uid>.json            what is known of it; an image without this record is none
    images/.partial/<image uid>.*      what is on its way
    .kumulus-pool                      the pool's uid (`marker`)
    disks/<machine uid>/<disk id>.qcow2, .json   a disk and what it was made from
    volumes/<volume uid>.qcow2, .json  a volume's first layer, and of which layers it is
    volumes/<volume uid>.<layer>.qcow2 another layer, which began with a snapshot
    keepers/<volume uid>.json          which host sees to it, in a pool that hosts share
    uses/<image uid>.*                 who makes something of it, or removes it, in a pool that hosts share
    hosts/<digest>.json                the heartbeat of a host, in a pool that hosts share (`pulses`)

All names derive from uids, or are digests.
"""

from __future__ import annotations

import grp
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.dir import marker
from kumulus_agents.storage.protocol import StorageError, Usage
from kumulus_agents.storage.settings import StorageSettings

_IMAGES, _PARTIAL, _DISKS, _VOLUMES, _KEEPERS, _USES = "images", ".partial", "disks", "volumes", "keepers", "uses"
_HOSTS = "hosts"


@dataclass(frozen=True, slots=True)
class Images:
    """The open directories of images."""

    whole: Directory
    partial: Directory


def uid_of(text: str) -> str:
    """The uid, if it is one; anything else never becomes the name of a file."""
    try:
        is_uid = str(uuid.UUID(text)) == text
    except ValueError:
        is_uid = False
    if not is_uid:
        raise StorageError("The order names something by what is no uid.", reason="BadName", retryable=False)
    return text


def disk_of(owner: str, name: str) -> str:
    """The id of a machine's disk: a name that any text may have made, and that has none of it."""
    return str(uuid.uuid5(uuid.UUID(uid_of(owner)), name))


class PoolDirectory:
    """Opens the directories of one pool, each time anew: file systems come and go."""

    def __init__(self, pool: PoolRef, settings: StorageSettings, *, mounted: bool = False) -> None:
        """`mounted`: its root must be a mount, for nothing may be made below a place where nothing is mounted."""
        self._mounted = mounted
        self.path = PurePosixPath(pool.parameters.path or "")
        self.uid = pool.uid
        self._name = pool.name
        self._met = False
        """This host had the pool before: its directory has a marker, and is not made anew."""
        self._roots = settings.roots
        self.shared = pool.shared
        self.mark = f".{hashlib.sha256(settings.host.encode()).hexdigest()[:12]}" if pool.shared else ""
        self.gid = _group(settings.readers)
        """Group that may pass through and read images; -1 for none."""
        self._mode = 0o710 if self.gid >= 0 else 0o700
        self.image_mode = 0o640 if self.gid >= 0 else 0o600

    def expect(self) -> None:
        """This host had the pool before this process began."""
        self._met = True

    def prepare(self) -> Usage:
        """Make the directories, with their modes, and say how much room there is."""
        with (
            self._open(make=True) as pool,
            self._images(pool, make=True),
            self._disks(pool, make=True),
            self._volumes(pool, make=True),
        ):
            stat = os.fstatvfs(pool.fd)
        if stat.f_flag & os.ST_RDONLY:
            raise StorageError(f"The pool {self._name} is mounted read-only on this host.", reason="PoolReadOnly")
        return Usage(capacity=stat.f_blocks * stat.f_frsize, used=(stat.f_blocks - stat.f_bavail) * stat.f_frsize)

    @contextmanager
    def images(self) -> Iterator[Images]:
        """The directories of images; made when missing."""
        with self._open(make=True) as pool, self._images(pool, make=True) as images:
            yield images

    @contextmanager
    def disks(self) -> Iterator[Directory]:
        """The directory that has one for each machine; made when missing."""
        with self._open(make=True) as pool, self._disks(pool, make=True) as disks:
            yield disks

    @contextmanager
    def volumes(self) -> Iterator[Directory]:
        """The directory of volumes; made when missing."""
        with self._open(make=True) as pool, self._volumes(pool, make=True) as volumes:
            yield volumes

    @contextmanager
    def top(self) -> Iterator[Directory]:
        """The pool's own directory; made when missing."""
        with self._open(make=True) as pool:
            yield pool

    @contextmanager
    def uses(self) -> Iterator[Directory]:
        """The directory of marks of what is being made of images; made when missing."""
        with self._open(make=True) as pool, pool.directory(_USES, make=True) as uses:
            yield uses

    @contextmanager
    def hosts(self, *, make: bool) -> Iterator[Directory]:
        """The directory of heartbeats; with `make` made when missing, else that is `FileNotFoundError`."""
        with self._open(make=make) as pool, pool.directory(_HOSTS, make=make) as hosts:
            yield hosts

    @contextmanager
    def keepers(self) -> Iterator[Directory]:
        """The directory of the marks of volumes; made when missing."""
        with self._open(make=True) as pool, pool.directory(_KEEPERS, make=True) as keepers:
            yield keepers

    def directory_of(self, disks: Directory, owner: str) -> Directory:
        """The directory of a machine's disks; made when missing."""
        return disks.directory(uid_of(owner), make=True, mode=self._mode, gid=self.gid)

    def unfinished(self, uid: str, what: str) -> str:
        """Name of a file on the way to an image; in a pool that hosts share each host has its own."""
        return f"{uid}{self.mark}.{what}"

    def image_path(self, uid: str, form: str = "qcow2") -> str:
        """Absolute path of an image, for programs."""
        return str(self.path / _IMAGES / f"{uid}.{form}")

    def disk_path(self, owner: str, disk: str) -> str:
        """Absolute path of a disk, for programs."""
        return str(self.path / _DISKS / owner / f"{disk}.qcow2")

    def volume_path(self, file: str) -> str:
        """Absolute path of a file of a volume, for programs."""
        return str(self.path / _VOLUMES / file)

    def backing(self, image: str, form: str = "qcow2") -> str:
        """An image as its disks name it: relative, so that a pool may be moved or mounted elsewhere."""
        return f"../../{_IMAGES}/{image}.{form}"

    def backing_of_volume(self, image: str) -> str:
        """An image as its volumes name it."""
        return f"../{_IMAGES}/{image}.qcow2"

    @contextmanager
    def _open(self, *, make: bool) -> Iterator[Directory]:
        with ExitStack() as stack:
            yield self._reach(stack, make=make)

    def _reach(self, stack: ExitStack, *, make: bool) -> Directory:
        """The pool's directory; what this host had before is not made anew where something else should be mounted."""
        root = self._root()
        *above, last = self.path.relative_to(root).parts
        anew = make and not self._met
        try:
            if anew and not self._mounted:
                Path(root).mkdir(mode=0o711, parents=True, exist_ok=True)
            at = stack.enter_context(Directory.trusted(root, self.mark))
            if self._mounted and os.fstat(at.fd).st_dev == Path(root).parent.stat().st_dev:
                raise StorageError(f"The pool {self._name} is not mounted on this host.", reason="MountFailed")
            for part in above:
                at = stack.enter_context(self._between(at, part, make=anew))
            if self._met:
                with at.directory(last) as pool:
                    marker.demand(pool, self.uid, self._name)
            pool = stack.enter_context(at.directory(last, make=make, mode=self._mode, gid=self.gid))
        except FileNotFoundError:
            if self._met:
                raise marker.not_there(self._name) from None
            raise
        if anew:
            self._met = marker.put(pool, self.uid)
        return pool

    def _between(self, at: Directory, part: str, *, make: bool) -> Directory:
        """A directory on the way to the pool. One that is there keeps its mode."""
        try:
            return at.directory(part)
        except FileNotFoundError:
            if not make:
                raise
            return at.directory(part, make=make, mode=0o711)

    def _root(self) -> PurePosixPath:
        for root in self._roots:
            if self.path.is_relative_to(root) and self.path != root and ".." not in self.path.parts:
                return root
        roots = ", ".join(str(root) for root in self._roots)
        raise StorageError(
            f"The path of the pool {self._name} lies below none of the directories this host allows ({roots})."
            " Choose a path below one, or allow its directory in the agent's settings (storage.roots).",
            reason="PathNotAllowed",
            retryable=False,
        )

    @contextmanager
    def _images(self, pool: Directory, *, make: bool) -> Iterator[Images]:
        with (
            pool.directory(_IMAGES, make=make, mode=self._mode, gid=self.gid) as whole,
            whole.directory(_PARTIAL, make=make) as partial,
        ):
            yield Images(whole, partial)

    def _disks(self, pool: Directory, *, make: bool) -> Directory:
        return pool.directory(_DISKS, make=make, mode=self._mode, gid=self.gid)

    def _volumes(self, pool: Directory, *, make: bool) -> Directory:
        return pool.directory(_VOLUMES, make=make, mode=self._mode, gid=self.gid)


def _group(names: tuple[str, ...]) -> int:
    for name in names:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return -1
