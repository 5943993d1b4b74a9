"""Work orders for disks, that is volumes and images in a pool: what a volume begins with, and what becomes of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule, immutable, list_map
from kumulus.api.image import ImageContent
from kumulus.api.image_order import DroppedPeer, ImageImport, ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.segments import Uid
from kumulus.api.volumes import Progress

SecretName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""Name of a Secret of the host's namespace."""

PASSPHRASE = "passphrase"  # noqa: S105  # the name of a key
"""Key of a Secret of the host's namespace that has what a volume is encrypted with."""


class SnapshotRef(Model):
    """The content that a volume had at one instant."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot.")
    volume: Uid = Field(description="Uid of the Volume that it was taken of.")


class VolumeOrigin(Model):
    """What a volume begins with."""

    rules = (
        Rule(
            "(has(self.image) ? 1 : 0) + (has(self.volume) ? 1 : 0) + (has(self.snapshot) ? 1 : 0)"
            " + (has(self.existing) ? 1 : 0) == 1",
            "set exactly one of image, volume, snapshot and existing",
        ),
        Rule("!has(self.linked) || !self.linked || has(self.snapshot)", "only a snapshot can be linked to"),
        Rule(
            "!has(self.secret) || has(self.volume) || has(self.snapshot)", "only volumes are encrypted", field=".secret"
        ),
    )

    image: ImageRef | None = Field(default=None, description="An image in the same pool; the volume waits for it.")
    volume: Uid | None = Field(default=None, description="Uid of a Volume in the same pool: a full copy.")
    snapshot: SnapshotRef | None = Field(
        default=None, description="A snapshot in the same pool: a full copy, or linked to it."
    )
    existing: ExistingFile | None = Field(
        default=None, description="A file in the same pool that nobody owns becomes the volume."
    )
    linked: bool = Field(
        default=False, description="Stand on the snapshot, which cannot be removed then, in place of copying it."
    )
    secret: SecretName | None = Field(
        default=None,
        description="Name of the Secret with the passphrase of the volume, or of that of the snapshot, if it is encrypted."
        " It is read while the volume is made.",
    )


class ExistingFile(Model):
    """Data that is in the pool and that nobody owns."""

    id: Uid = Field(description="Its id, as the Pool order's facts list it. Never a path.")
    foreign: bool = Field(default=False, description="It need not be a volume of the same namespace that was retained.")
    domain: Uid | None = Field(
        default=None,
        description="UUID of the domain, not Kumulus' own, that has it and may write to it: it keeps its name as well.",
    )


class Revert(Model):
    """Give a volume the content of one of its snapshots again. What it has now is lost."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot; the volume's own.")
    request: Uid = Field(description="Uid of the VirtualMachineRestore that asks: each is carried out once.")


class Move(Model):
    """Bring a volume into another pool of this host. A machine that has it goes on meanwhile.

    As long as an order says so, the agent reports in `status.disk.pool` where the volume is.
    """

    rules = (
        Rule(
            "self.pool.uid == oldSelf.pool.uid",
            "a move that was asked for has its pool until it is over",
            field=".pool",
        ),
        Rule("!oldSelf.withdrawn || self.withdrawn", "a move that was withdrawn stays so", field=".withdrawn"),
    )

    pool: PoolRef = Field(description="Where it is to be.")
    withdrawn: bool = Field(
        default=False,
        description="Not any more: what was brought there is removed, unless all of it is there. Then it stays there.",
    )


FORGET_MOST = 64
"""Snapshots that an order of a volume says to forget, the last ones."""


class VolumeOrder(Model):
    """A volume in a pool on this host. It is made, grown when `size` grows, and moved."""

    rules = (
        Rule(
            "!has(self.origin) || has(oldSelf.origin) && self.origin == oldSelf.origin",
            "origin cannot be changed; it can be left out once the volume is made",
            field=".origin",
        ),
    )

    uid: Uid = Field(description="Uid of the Volume; names the file.", json_schema_extra=immutable("uid"))
    size: int | None = Field(default=None, description="Size in bytes; that of its origin when empty.", ge=1)
    thick: bool = Field(default=False, description="Take all of its space at once.")
    origin: VolumeOrigin | None = Field(default=None, description="What it begins with; blank when empty.")
    existing: bool = Field(
        default=False,
        description="It was made already: when it is not there any more, that is a failure (VolumeLost), and it is not made anew.",
    )
    secret: SecretName | None = Field(
        default=None,
        description="Name of the Secret with the passphrase that it is encrypted with; not encrypted when empty.",
        json_schema_extra=immutable("secret"),
    )
    revert: Revert | None = Field(
        default=None, description="Give it the content of a snapshot, once; no machine may have it meanwhile."
    )
    move: Move | None = Field(default=None, description="Bring it into another pool, once it is made.")
    retain: bool = Field(default=False, description="Deleting the order leaves the data where it is.")
    forget: tuple[Uid, ...] = Field(
        default=(),
        description="Uids of VolumeSnapshots of it that are wanted no more and whose orders went while the host was silent:"
        " what the host still has of them goes.",
        max_length=FORGET_MOST,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    epoch: int = Field(
        default=0,
        description="In a pool that hosts share: how often the volume was handed from host to host. A host that finds"
        " a newer one marked in the pool leaves the volume alone.",
        ge=0,
    )
    came_by: Uid | None = Field(
        default=None,
        description="Uid of the VirtualMachineMigration by which it has come to this host with its machine: what that left in the"
        " pool is the volume.",
    )


class DiskOrder(Model):
    """Work on a volume or an image."""

    rules = (
        Rule("has(self.importImage) != has(self.volume)", "set exactly one of importImage and volume"),
        Rule(
            "self.pool.uid == oldSelf.pool.uid || (has(self.volume) && has(oldSelf.volume) && !has(self.volume.move)"
            " && has(oldSelf.volume.move) && self.pool.uid == oldSelf.volume.move.pool.uid)",
            "pool becomes the one that the volume was moved to, when that is over, and no other",
            field=".pool",
        ),
    )

    pool: PoolRef = Field(description="Where.")
    import_image: ImageImport | None = Field(
        default=None, description="Bring an image into the pool. Deleting the order removes it from there."
    )
    volume: VolumeOrder | None = Field(
        default=None, description="Have a volume in the pool. Deleting the order removes it, unless it says retain."
    )


class DiskFacts(Model):
    """What is so of a volume or an image."""

    progress: Progress | None = Field(default=None, description="How far the work is.")
    sha256: str | None = Field(default=None, description="SHA-256 of the download, as verified.")
    digest: str | None = Field(
        default=None, description="What an image's reference was resolved to by its registry.", max_length=71
    )
    format: str | None = Field(default=None, description="What it turned out to be.")
    virtual_size: int | None = Field(default=None, description="Size of the disk inside, in bytes.")
    size: int | None = Field(default=None, description="Bytes it takes.")
    content: ImageContent | None = Field(
        default=None, description="The file of an image in the pool, as other hosts may copy it."
    )
    copied_from: str | None = Field(default=None, description="The host an image was copied from.", max_length=63)
    dropped: tuple[DroppedPeer, ...] | None = Field(
        default=None,
        description="Hosts that an image could not be copied from.",
        max_length=8,
        json_schema_extra=list_map("host"),
    )
    pool: Uid | None = Field(
        default=None,
        description="Uid of the StoragePool that a volume is in whose order says that it is to be moved. Who moves it waits until nothing of it is left in the other one.",
    )
    reverted: Uid | None = Field(
        default=None,
        description="The last request to revert that was carried out, as the volume's record has it. Whoever asked waits for it: an agent that knows of no reverts is `Ready` as well.",
    )
