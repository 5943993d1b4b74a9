"""Disks of a machine: made of an image, brought along, attached, or a disc in a drive."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import DnsLabel, Model, Rule
from kumulus.api.quantity import DiskSize
from kumulus.api.volumes import IMAGE_NAMESPACE, Content, ObjectName, ReclaimPolicy

DiskName = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

DISKS_FIXED = "only disks with a volume can be added and taken away, and of the others only the disc in a CD-ROM drive can be changed"

DRIVES_MOST = 4
"""CD-ROM drives of a machine: an emulated SATA controller has six ports."""


class EphemeralDisk(Model):
    """A disk made from an image for this machine; it lives and dies with it."""

    image: str = Field(
        description="Name of an Image of the namespace, else of a ClusterImage.",
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    )
    image_namespace: ObjectName | None = Field(default=None, description=IMAGE_NAMESPACE)
    size: DiskSize | None = Field(
        default=None, description="Size of the disk; default and least is the image's own size."
    )


class VolumeTemplate(Model):
    """A volume that the machine brings along: it is made with the machine, as `<machine>-<disk>`."""

    rules = (Rule("has(self.size) || has(self.source)", "set size, source or both", field=".size"),)

    size: DiskSize | None = Field(
        default=None, description="Size of the disk; default and least is the size of its source."
    )
    volume_class: DnsLabel | None = Field(
        default=None, alias="class", description="Name of a VolumeClass; the default one when empty."
    )
    source: Content | None = Field(default=None, description="What it begins with; blank when empty.")
    reclaim_policy: ReclaimPolicy | None = Field(
        default=None,
        description="Delete: the volume goes with the machine. Retain: it stays, and so does its data. Default is the class's.",
    )


class DriveBus(StrEnum):
    """What a CD-ROM drive is connected to."""

    SATA = "sata"
    """Known to every guest and its installer."""
    SCSI = "scsi"
    """virtio-scsi: for guests without a driver for SATA, such as kernels that are made for clouds."""


class CdRom(Model):
    """A CD-ROM drive. The disc in it can be changed while the machine runs."""

    rules = (
        Rule("has(self.image) || !has(self.imageNamespace)", "imageNamespace is for image", field=".imageNamespace"),
    )

    image: ObjectName | None = Field(
        default=None,
        description="Name of an Image of the namespace, else of a ClusterImage, of the format iso; empty: no disc is in the drive.",
    )
    image_namespace: ObjectName | None = Field(default=None, description=IMAGE_NAMESPACE)
    bus: DriveBus = Field(
        default=DriveBus.SATA,
        description="sata, or scsi for guests that know virtio-scsi and no SATA.",
    )


class Disk(Model):
    """A disk of the machine."""

    rules = (
        Rule(
            "[has(self.ephemeral), has(self.volumeTemplate), has(self.volume), has(self.cdrom)]"
            ".filter(set, set).size() == 1",
            "a disk needs one source: set exactly one of volumeTemplate, volume, ephemeral and cdrom",
        ),
    )

    name: DiskName = Field(description="Name of the disk within the machine; the guest sees it as the disk's serial.")
    volume_template: VolumeTemplate | None = Field(
        default=None, description="A volume of the machine's own, made with it."
    )
    volume: ObjectName | None = Field(
        default=None,
        description="Name of a Volume of the namespace. Such disks can be added and taken away while the machine runs.",
    )
    ephemeral: EphemeralDisk | None = Field(
        default=None, description="A disk made from an image; it is deleted with the machine."
    )
    cdrom: CdRom | None = Field(default=None, description="A CD-ROM drive, with a disc in it or empty: `{}`.")
    boot_order: int | None = Field(
        default=None, description="Position in the boot order; default is the order of the list.", ge=1, le=64
    )

    def volume_of(self, machine: str) -> str | None:
        """Name of the Volume that the disk is, in a machine of that name; None for a disk that is none."""
        if self.volume_template is not None:
            return f"{machine}-{self.name}"
        return self.volume

    @property
    def image(self) -> str | None:
        """Name of the image that the disk is made from, or that is the disc in the drive; None without one."""
        if self.ephemeral is not None:
            return self.ephemeral.image
        return self.cdrom.image if self.cdrom is not None else None

    @property
    def image_namespace(self) -> str | None:
        """The namespace that is named for that image."""
        if self.ephemeral is not None:
            return self.ephemeral.image_namespace
        return self.cdrom.image_namespace if self.cdrom is not None else None
