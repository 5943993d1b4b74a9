"""Work orders for snapshots of volumes, and what the agent took."""

from __future__ import annotations

from pydantic import Field

from kumulus.api.base import Model, list_map
from kumulus.api.pool_order import PoolRef
from kumulus.api.segments import Uid
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus.api.volume_order import SecretName


class SnapshotItem(Model):
    """One volume's part of a snapshot."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot; names the layer.")
    volume: Uid = Field(description="Uid of the Volume.")
    pool: PoolRef = Field(description="The pool that the volume is in.")
    secret: SecretName | None = Field(
        default=None, description="Name of the Secret with the passphrase of the volume, if it is encrypted."
    )


class SnapshotOrder(Model):
    """Keep the content of volumes of this host as it is at one instant. Deleting the order removes the snapshots, unless it
    says retain. An item that is taken out of it is left where it is: in a pool that hosts share, another host has it then."""

    items: tuple[SnapshotItem, ...] = Field(
        description="The volumes: of one machine, or one that no machine that is on has.",
        min_length=1,
        max_length=16,
        json_schema_extra=list_map("snapshot"),
    )
    quiesce: QuiesceMode = Field(
        default=QuiesceMode.IF_POSSIBLE, description="Whether the guest's file systems are brought to rest for it."
    )
    quiesce_seconds: int = Field(
        default=30, description="How long the guest may take for that, in seconds.", ge=1, le=600
    )
    taken: bool = Field(
        default=False,
        description="It was taken already: when it is not there any more, that is a failure (SnapshotLost), and none is taken in its place.",
    )
    retain: bool = Field(default=False, description="Deleting the order leaves the snapshots where they are.")


class SnapshotSize(Model):
    """What one volume's part of a snapshot is."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot.")
    virtual_size: int | None = Field(default=None, description="Size of the disk at that instant, in bytes.")
    size: int | None = Field(default=None, description="Bytes it takes.")


class SnapshotFacts(Model):
    """What is so of a snapshot."""

    taken_at: str | None = Field(default=None, description="The instant (RFC 3339).")
    indications: tuple[Indication, ...] = Field(
        default=(),
        description="How far its content can be trusted.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    items: tuple[SnapshotSize, ...] = Field(
        default=(), description="The parts, by volume.", max_length=16, json_schema_extra=list_map("snapshot")
    )
