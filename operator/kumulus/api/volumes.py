"""What volumes are made from and what becomes of them. Shared by machines and storage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule
from kumulus.api.quantity import MeasuredBytes

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""Name of an object of the namespace: a DNS label."""


class ReclaimPolicy(StrEnum):
    """What becomes of the data when its volume is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"


class CacheMode(StrEnum):
    """How the host caches a disk, in QEMU's words. A flush of the guest reaches the medium with each of them."""

    NONE = "none"
    """Past the host's memory, with the write cache of the medium."""
    WRITEBACK = "writeback"
    """Through the host's memory: faster to read again, and takes memory from the host."""
    WRITETHROUGH = "writethrough"
    """Read through the host's memory, and each write is on the medium before the guest hears of it."""
    DIRECTSYNC = "directsync"
    """Past the host's memory, and each write is on the medium before the guest hears of it."""


IMAGE_NAMESPACE = (
    "Namespace of the Image when it is another one's, which has to name this one in its spec.allowedNamespaces."
)


class CloneMode(StrEnum):
    """How a volume is made from a snapshot."""

    FULL = "Full"
    LINKED = "Linked"


_CLONE_MODE = Rule("!has(self.cloneMode) || has(self.snapshot)", "cloneMode is for a snapshot", field=".cloneMode")

_IMAGE_NAMESPACE = Rule(
    "has(self.image) || !has(self.imageNamespace)", "imageNamespace is for image", field=".imageNamespace"
)

_CLONE_MODE_IS = (
    "Full, the default, copies the snapshot: slower to make, and independent of it. Linked stands on it: made at once,"
    " and the snapshot cannot be deleted while such a volume is there."
)


class Encryption(Model):
    """A volume is encrypted with LUKS, by a passphrase that a Secret of the volume's own namespace has."""

    secret: ObjectName = Field(description="Name of the Secret, in the namespace of the volume.")
    key: str = Field(
        default="passphrase",
        description="Key within the Secret: text of 16 to 512 bytes, taken as it is.",
        min_length=1,
        max_length=253,
        pattern=r"^[-._A-Za-z0-9]+$",
    )


class Content(Model):
    """Content that a volume begins with, when its machine brings it along."""

    rules = (
        Rule("has(self.image) != has(self.snapshot)", "set exactly one of image and snapshot"),
        _CLONE_MODE,
        _IMAGE_NAMESPACE,
    )

    image: ObjectName | None = Field(
        default=None, description="Name of an Image of the namespace, else of a ClusterImage."
    )
    image_namespace: ObjectName | None = Field(default=None, description=IMAGE_NAMESPACE)
    snapshot: ObjectName | None = Field(default=None, description="Name of a VolumeSnapshot of the namespace.")
    clone_mode: CloneMode | None = Field(default=None, description=_CLONE_MODE_IS)


DomainUuid = Annotated[
    str, StringConstraints(min_length=36, max_length=36, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
]
"""UUID of a domain."""


class ExistingData(Model):
    """Data that lies in a pool and that nobody owns: it becomes the volume, and is not copied."""

    rules = (Rule("!has(self.domain) || self.foreign", "domain goes with foreign", field=".domain"),)

    pool: ObjectName = Field(description="Name of the StoragePool.")
    host: ObjectName = Field(description="The host that has it.")
    id: str = Field(
        description="Its id: the uid of the Volume that it was, or what `kumulusctl pool unowned` shows.",
        min_length=36,
        max_length=36,
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    )
    foreign: bool = Field(
        default=False,
        description="It was no volume of this namespace. Only who has the verb adopt on the StoragePool may say so.",
    )
    domain: DomainUuid | None = Field(
        default=None,
        description="UUID of the domain, not Kumulus' own, that has it and may write to it. The data keeps its name beside that of"
        " the volume until the machine that the domain becomes is started anew.",
    )


class VolumeSource(Model):
    """What a volume begins with."""

    rules = (
        Rule(
            "[has(self.image), has(self.volume), has(self.snapshot), has(self.existing)].filter(set, set).size() == 1",
            "set exactly one of image, volume, snapshot and existing",
        ),
        _CLONE_MODE,
        _IMAGE_NAMESPACE,
    )

    image: ObjectName | None = Field(
        default=None, description="Name of an Image of the namespace, else of a ClusterImage."
    )
    image_namespace: ObjectName | None = Field(default=None, description=IMAGE_NAMESPACE)
    volume: ObjectName | None = Field(
        default=None, description="Name of a Volume of the namespace that no running machine writes to: a full copy."
    )
    snapshot: ObjectName | None = Field(default=None, description="Name of a VolumeSnapshot of the namespace.")
    clone_mode: CloneMode | None = Field(default=None, description=_CLONE_MODE_IS)
    existing: ExistingData | None = Field(
        default=None, description="Data in a pool that nobody owns, such as that of a retained volume."
    )


class Progress(Model):
    """How far a transfer is."""

    bytes: MeasuredBytes = Field(default=0, description="What has arrived.")
    total: MeasuredBytes | None = Field(default=None, description="What there is to fetch, when known.")
    rate: MeasuredBytes | None = Field(default=None, description="Bytes per second, lately.")
    remaining_seconds: int | None = Field(
        default=None, description="How long this stage still takes at that rate, in seconds.", ge=0
    )
