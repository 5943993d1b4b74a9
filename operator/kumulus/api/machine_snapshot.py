"""compute.kumulus.io: what all volumes of a machine had in them at one instant, and giving it back."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.base import (
    AGE,
    PHASE,
    VERSION,
    Column,
    Kind,
    Model,
    Resource,
    Rule,
    Status,
    immutable,
    list_map,
    reason_of,
)
from kumulus.api.compute import GROUP, VirtualMachineSpec
from kumulus.api.disks import DiskName
from kumulus.api.quantity import Bytes
from kumulus.api.snapshots import Quiesce, SnapshotStatus
from kumulus.api.volumes import CloneMode, ObjectName


class VirtualMachineSnapshotSpec(Model):
    """Which machine is kept as it is, and how."""

    vm: ObjectName = Field(
        description="Name of a VirtualMachine of the namespace; it may run.", json_schema_extra=immutable("vm")
    )
    quiesce: Quiesce = Field(
        default_factory=Quiesce,
        description="Whether the guest is brought to rest for it.",
        json_schema_extra=immutable("quiesce", ": a snapshot is taken once"),
    )
    deletion_protection: bool = Field(default=False, description="Refuse to delete the snapshot while true.")


class KeptDisk(Model):
    """A disk of the machine that is in the snapshot."""

    disk: DiskName = Field(description="Name of the disk within the machine.")
    volume: str = Field(description="Name of the Volume that it was.", max_length=63)
    volume_uid: str = Field(description="Uid of that Volume.", max_length=36)
    snapshot: str = Field(description="Name of the VolumeSnapshot that has its content.", max_length=63)
    volume_class: str | None = Field(
        default=None, alias="class", description="The VolumeClass that it named.", max_length=63
    )
    size: Bytes | None = Field(default=None, description="Size of the disk at that instant.")
    host: str | None = Field(
        default=None,
        description="The host that has the volume's part of the snapshot; empty while the volume goes from one host to"
        " another.",
        max_length=63,
    )


class LeftOutDisk(Model):
    """A disk of the machine that is not in the snapshot."""

    disk: DiskName = Field(description="Name of the disk within the machine.")
    reason: str = Field(description="Why, in a few words.", max_length=128)


class VirtualMachineSnapshotStatus(SnapshotStatus):
    """What the snapshot is."""

    vm_uid: str | None = Field(default=None, description="Uid of the machine that it is of.")
    volumes: tuple[KeptDisk, ...] = Field(
        default=(),
        description="The machine's volumes, all at the same instant.",
        max_length=16,
        json_schema_extra=list_map("disk"),
    )
    left_out: tuple[LeftOutDisk, ...] = Field(
        default=(), description="Disks that are not included.", max_length=16, json_schema_extra=list_map("disk")
    )
    machine: VirtualMachineSpec | None = Field(
        default=None, description="What the machine's spec was; a new machine is made from it, also when it is gone."
    )


class VirtualMachineSnapshot(Resource):
    """The content of all volumes of a machine at one instant, and what the machine was. Memory is not included."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachineSnapshot",
        plural="virtualmachinesnapshots",
        short_names=("vmsnap", "vmsnaps"),
        categories=("kumulus",),
        columns=(
            Column("VM", ".spec.vm"),
            PHASE,
            Column("Size", ".status.size"),
            Column("Used", ".status.used", priority=1),
            Column("Taken", ".status.takenAt", "date"),
            Column("Indications", ".status.indications"),
            reason_of(),
            AGE,
        ),
    )

    spec: VirtualMachineSnapshotSpec = Field(description="Which machine is kept as it is, and how.")
    status: VirtualMachineSnapshotStatus = Field(
        default_factory=VirtualMachineSnapshotStatus, description="What the snapshot is."
    )


class RestoreTarget(Model):
    """What gets the content back."""

    rules = (
        Rule("has(self.vm) != has(self.newVM)", "set exactly one of vm and newVM"),
        Rule("!has(self.cloneMode) || has(self.newVM)", "cloneMode is for newVM", field=".cloneMode"),
    )

    vm: ObjectName | None = Field(
        default=None,
        description="Name of the machine that the snapshot is of: its volumes get back what they had in them. What they have now is lost. The machine must be stopped; its spec stays as it is.",
    )
    new_vm: ObjectName | None = Field(
        default=None,
        alias="newVM",
        description="Name of a machine to make, as the one that the snapshot is of was, with volumes made from it.",
    )
    clone_mode: CloneMode | None = Field(
        default=None, description="How the volumes of the new machine are made; Full when empty."
    )


class VirtualMachineRestoreSpec(Model):
    """Which snapshot is restored, and to what."""

    rules = (
        Rule(
            "self.snapshot == oldSelf.snapshot && self.target == oldSelf.target",
            "a restore is carried out once and cannot be changed: make a new one",
        ),
    )

    snapshot: ObjectName = Field(description="Name of a VirtualMachineSnapshot of the namespace.")
    target: RestoreTarget = Field(description="What gets the content back.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        description="It deletes itself so long after it has ended; it stays when empty.",
        ge=0,
        le=31536000,
    )


class RestorePhase(StrEnum):
    """How far a restore is, in one word."""

    PENDING = "Pending"
    RESTORING = "Restoring"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


FINISHED = frozenset({RestorePhase.SUCCEEDED, RestorePhase.FAILED})
"""Phases in which nothing happens any more."""


class RestoreState(StrEnum):
    """How far one volume of a restore is."""

    PENDING = "Pending"
    RESTORING = "Restoring"
    RESTORED = "Restored"
    FAILED = "Failed"


class RestoredDisk(Model):
    """One volume of a restore."""

    disk: DiskName = Field(description="Name of the disk within the machine.")
    volume: str = Field(description="Name of the Volume that gets the content.", max_length=63)
    snapshot: str = Field(description="Name of the VolumeSnapshot that has it.", max_length=63)
    state: RestoreState = Field(default=RestoreState.PENDING, description="How far it is.")


class VirtualMachineRestoreStatus(Status):
    """How far the restore is."""

    phase: RestorePhase | None = Field(default=None, description="How far it is, in one word.")
    vm_uid: str | None = Field(default=None, description="Uid of the machine that is restored, or was made.")
    volumes: tuple[RestoredDisk, ...] = Field(
        default=(), description="The volumes.", max_length=16, json_schema_extra=list_map("disk")
    )
    started_at: str | None = Field(default=None, description="When it began (RFC 3339).")
    finished_at: str | None = Field(default=None, description="When it ended (RFC 3339).")


class VirtualMachineRestore(Resource):
    """Gives a machine back what a snapshot has kept of it, or makes a new machine of that. Carried out once."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachineRestore",
        plural="virtualmachinerestores",
        short_names=("vmrestore", "vmrestores"),
        categories=("kumulus",),
        columns=(
            Column("Snapshot", ".spec.snapshot"),
            Column("VM", ".spec.target.vm"),
            Column("New-VM", ".spec.target.newVM"),
            PHASE,
            reason_of(priority=0),
            Column("Finished", ".status.finishedAt", "date"),
            AGE,
        ),
    )

    spec: VirtualMachineRestoreSpec = Field(description="Which snapshot is restored, and to what.")
    status: VirtualMachineRestoreStatus = Field(
        default_factory=VirtualMachineRestoreStatus, description="How far the restore is."
    )
