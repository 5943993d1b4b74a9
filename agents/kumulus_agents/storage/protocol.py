"""What the agent asks of a storage driver, one object a pool. Every driver passes `tests/contract/storage.py`.

Paths derive from uids, never from user text. Every verb may be repeated and is safe after a crash
at any line: a half-made file is never taken for a whole one.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from kumulus.api.image import ImageContent
from kumulus.api.image_order import HttpFetch, ImageRef, OciFetch, UploadFetch
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.source import DiskSource, LayerFile
from kumulus_agents.storage.tracking import Extent


class StorageError(Exception):
    """Storage could not do it.

    `reason` is one CamelCase word for the status (ChecksumMismatch, SourceForbidden, SourceTimeout,
    ImageRejected, NoSpace, ...), `retryable` says whether trying again by itself makes sense. The
    text is a sentence for the user that says what to do.
    """

    def __init__(self, message: str, *, reason: str = "StorageError", retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Usage:
    """Room of a pool on this host, in bytes."""

    capacity: int
    used: int
    access: str | None = None
    """How the host reaches the pool and locks disks there, in sentences for people; None when there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who asks a server. Never in a log, a status, an argument or a file."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of the header Authorization (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class WebSource:
    """An image on a web server that asks who one is."""

    fetch: HttpFetch
    login: Login


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """An image in a registry, and what opens that."""

    fetch: OciFetch
    login: Login | None = None


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """What a volume of the same pool has, or had when a snapshot was taken."""

    volume: str
    snapshot: str | None = None


ImageSource = HttpFetch | WebSource | RegistrySource | UploadFetch | VolumeContent
"""Where an image comes from."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that is whole, verified and converted, in the pool."""

    uid: str
    source: DiskSource
    format: str
    """Format of what is in the pool. Of a file qcow2, or raw for a disc."""
    source_format: str
    """What the source turned out to be."""
    sha256: str
    """Of the source, as verified while it arrived."""
    virtual_size: int
    size: int
    """Bytes it takes."""
    digest: str | None = None
    """What its reference was resolved to, of an image that this pool got from a registry."""
    content: ImageContent | None = None
    """The file, to the byte, when that is known (`whole.WholeImages`)."""

    @property
    def path(self) -> str:
        """Of its source."""
        return self.source.path


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """A disk in the pool."""

    source: DiskSource
    format: str
    virtual_size: int
    below: tuple[LayerFile, ...] = ()
    """What it stands on, all the way down."""

    @property
    def path(self) -> str:
        """Of its source."""
        return self.source.path


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """A volume that is whole, in the pool."""

    source: DiskSource
    format: str
    virtual_size: int
    """Bytes of the disk inside, as it is now: an emulator may have grown it."""
    used: int
    """Bytes it takes, with its snapshots."""
    below: tuple[LayerFile, ...] = ()
    """What the file stands on, all the way down: layers that keep snapshots, an image. Never read from a header."""
    reverted: str | None = None
    """Uid of the last request to revert it that was carried out."""
    encrypted: bool = False
    """With LUKS: whoever opens it needs its passphrase."""

    @property
    def path(self) -> str:
        """Of its source."""
        return self.source.path


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """The content that a volume had at one instant."""

    virtual_size: int
    used: int
    """Bytes that its layer takes, which it may share with later content."""
    taken_at: str | None
    """The instant (RFC 3339). None: it was begun, nobody knows how far that came, and it is to be begun anew."""
    indications: tuple[Indication, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge:
    """Two files of a volume that are to become one: what is in the upper one goes down into the lower one."""

    upper: str
    """Path of the file that goes."""
    lower: str
    """Path of the file that stays."""
    active: bool
    """The upper one is what the volume is written to."""


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import or a copy is."""

    stage: str
    """Downloading, Unpacking, Inspecting or Converting; Copying; Merging."""
    bytes: int
    total: int | None
    rate: int | None
    """Bytes per second, lately."""

    @property
    def remaining(self) -> int | None:
        """Seconds that the stage still takes at that rate, rounded up; None when that cannot be said."""
        if self.total is None or not self.rate:
            return None
        return -(-max(self.total - self.bytes, 0) // self.rate)


ProgressListener = Callable[[ImportProgress], None]

Resize = Callable[[int], Awaitable[None]]
"""Has the emulator that uses a volume make its disk so many bytes large; returns when it is."""


def same(found: StoredImage, image: ImageRef, source: ImageSource) -> StoredImage:
    """The image that was found in a pool, if it is the wanted one. Raises `StorageError(reason="ImageConflict")`."""
    pinned = source.fetch.digest if isinstance(source, RegistrySource) else None
    other = pinned is not None and found.digest is not None and found.digest != pinned
    if (image.sha256 or found.sha256) != found.sha256 or other:
        raise StorageError(
            "The pool has this image with another checksum. Remove the image and make a new one.",
            reason="ImageConflict",
            retryable=False,
        )
    return found


class StorageDriver(Protocol):
    """A pool as this host sees it."""

    async def prepare(self) -> Usage:
        """Make the pool usable (directories, modes) and say how much room there is. Raises `StorageError`."""

    async def image(self, uid: str) -> StoredImage | None:
        """The image of that uid, if it is whole."""

    async def import_image(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> StoredImage:
        """Bring an image into the pool: fetch (resuming a cut transfer), verify while streaming, unpack, inspect by a
        parser that does not trust it, convert, all in a cage. There already: nothing. Cancelling leaves a resumable part.

        A registry's reference is resolved once: what it was resolved to is in the image's `digest`. Of a volume the
        image is a full copy, whose SHA-256 is that of the file that is made; VolumeNotReady when it is not in the pool,
        VolumeInUse while somebody writes to it.

        Raises `StorageError`; nothing of a refused image stays.
        """

    async def remove_image(self, uid: str) -> None:
        """Remove the image and parts of it. Disks and volumes that stand on it must be gone, or
        `StorageError(reason="ImageInUse")`."""

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """The disk `name` of the machine with uid `owner`: made as an overlay of the image, or found as it is.

        `size` is in bytes; less than the image's own is `StorageError(reason="DiskTooSmall", retryable=False)`,
        a missing image `StorageError(reason="ImageNotReady")`.
        """

    async def remove_disks(self, owner: str) -> None:
        """Remove every disk of that machine."""

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """Mark in a pool that hosts share that `host` sees to the volume, since it was handed over `epoch` times.

        A mark and no lock: it tells a host that a newer order went to another one. It goes with the volume.
        Raises `StorageError(reason="VolumeElsewhere")` when a newer mark is there, or one as new of another host.
        """

    async def volume(self, uid: str) -> StoredVolume | None:
        """The volume of that uid, if it is whole. Cheap."""

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """The volume of that uid, if it is whole, about to be opened by an emulator: what one that was killed left in it is
        put in order."""

    async def ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None = None,
    ) -> StoredVolume:
        """The volume of that uid: made, or found as it is, whatever size it has by now.

        `size` is in bytes, rounded up to sectors; that of the origin when None. Without origin it is blank. With an
        image it has the image's content and may stand on it, which keeps the image in use; with a volume or a snapshot
        it is a full copy that stands on nothing the copied one could take away, unless a snapshot is to be `linked` to:
        then the volume stands on it, which keeps the snapshot in use. `thick` takes all of its space at once.
        Cancelling a copy leaves nothing that is taken for a volume.

        Raises `StorageError`: ImageNotReady, VolumeNotReady or SnapshotNotReady when the origin is missing, VolumeInUse
        when somebody writes to the volume that is to be copied (a snapshot can be copied at any time), DiskTooSmall (not
        retryable) when `size` is less than the origin's, NoSpace.
        """

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """Make the volume at least `size` bytes large, rounded up to sectors. It is so large: nothing.

        With `live` a running machine has it: what is in the file is changed by calling that and by nobody else.

        Raises `StorageError`: ShrinkRefused (not retryable) when it is larger already, VolumeNotReady when it is
        missing, VolumeInUse when it is being copied, or is used by an emulator and there is no `live`, VolumeBusy while
        a snapshot was begun and not confirmed; NoSpace.
        """

    async def remove_volume(self, uid: str) -> None:
        """Remove the volume and what a creation that was cut short left of it. Nobody may use it: the caller knows.

        Raises `StorageError(reason="VolumeInUse")` while it is being copied or has snapshots.
        """

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """The volume's snapshot of that uid. Cheap."""

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """Put a new, empty layer on the volume: what there is becomes the snapshot as soon as nobody writes to it any more.

        Durable when it returns: whoever opens the volume from now on opens the new layer. An emulator that has the
        volume must be given the new one, or `adopt` must be told what it has. A snapshot of that uid that was begun and
        not confirmed is given up first; one that was confirmed is left as it is. `live`: an emulator that is on will go
        over to the layer, and goes on remembering there what is written. Of a pool that offers `Instants` the volume stays
        what it is; with `live` nothing is kept yet, but all is ready for `keep_instant`.

        Raises `StorageError`: VolumeNotReady, NoSpace.
        """

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """Nobody writes below the new layer: the snapshot that was begun was taken. Confirmed already: nothing.

        Raises `StorageError(reason="SnapshotLost")` when it was not begun.
        """

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """The snapshot is wanted no more. Its space is free after the merges that `next_merge` asks for. Gone: nothing.

        Raises `StorageError(reason="SnapshotInUse")` while it is being copied or a volume is linked to it.
        """

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """The parts of the disk that were written after the snapshot `since` was taken (None: since the volume was made)
        and before `until` (None: now), in order; never less than that, maybe a little more.

        Raises `StorageError`: VolumeNotReady or SnapshotNotReady when it is missing, VolumeInUse while somebody writes;
        ChangesUnsupported, not retryable, when nothing remembers that, as for images of a Ceph cluster.
        """

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """Give the volume the content of its snapshot, and keep its size; what it has now is lost. Nobody may use it: the
        caller knows. Durable when it returns. Carried out for that request already: nothing.

        Raises `StorageError`: VolumeNotReady or SnapshotNotReady when it is missing, VolumeInUse while it is being copied,
        VolumeBusy while a snapshot was begun and not confirmed; NoSpace.
        """

    async def adopt(self, volume: str, path: str) -> None:
        """An emulator that is on writes to this file of the volume. That decides what the volume is: after a crash
        between `begin_snapshot` and the emulator, or between the emulator and `merged`, the record may say otherwise.

        Raises `StorageError(reason="ChainMismatch", retryable=False)` for a file that it must not write.
        """

    async def next_merge(self, volume: str) -> Merge | None:
        """Remove files of the volume that nobody needs, and say which two should become one next. None: it is tidy."""

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """Do what `next_merge` asked for; nobody may use the volume. May be repeated, and cancelled at any time.

        Raises `StorageError`: VolumeInUse when an emulator has it or it is being copied, NoSpace.
        """

    async def merged(self, volume: str, merge: Merge) -> None:
        """An emulator did what `next_merge` asked for and has let go of the upper file. Durable when it returns; the
        file goes. May be repeated."""
