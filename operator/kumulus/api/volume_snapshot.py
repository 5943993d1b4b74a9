"""storage.kumulus.io: what a volume had in it at one instant."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from kumulus.api.base import AGE, PHASE, VERSION, Column, Kind, Model, Resource, immutable, reason_of
from kumulus.api.snapshots import Quiesce, SnapshotStatus
from kumulus.api.storage import GROUP
from kumulus.api.volumes import ObjectName


class VolumeSnapshotSpec(Model):
    """Which volume is kept as it is, and how."""

    volume: ObjectName = Field(
        description="Name of a Volume of the namespace; a machine may be using it.",
        json_schema_extra=immutable("volume"),
    )
    quiesce: Quiesce = Field(
        default_factory=Quiesce,
        description="Whether the guest that uses the volume is brought to rest for it.",
        json_schema_extra=immutable("quiesce", ": a snapshot is taken once"),
    )
    deletion_protection: bool = Field(default=False, description="Refuse to delete the snapshot while true.")


class VolumeSnapshotStatus(SnapshotStatus):
    """What the snapshot is."""

    volume_uid: str | None = Field(default=None, description="Uid of the Volume that it is of.")
    pool: str | None = Field(default=None, description="The StoragePool that has it: the volume's own.")


class VolumeSnapshot(Resource):
    """The content of a volume at one instant. It lives in the volume's own pool: it is no backup."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VolumeSnapshot",
        plural="volumesnapshots",
        short_names=("volsnap", "volsnaps"),
        categories=("kumulus",),
        columns=(
            Column("Volume", ".spec.volume"),
            PHASE,
            Column("Size", ".status.size"),
            Column("Used", ".status.used", priority=1),
            Column("Taken", ".status.takenAt", "date"),
            Column("Indications", ".status.indications", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: VolumeSnapshotSpec = Field(description="Which volume is kept as it is, and how.")
    status: VolumeSnapshotStatus = Field(default_factory=VolumeSnapshotStatus, description="What the snapshot is.")
