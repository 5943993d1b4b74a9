"""compute.kumulus.io: moving a running machine to another host."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.base import AGE, PHASE, VERSION, Column, Kind, Model, Resource, Rule, Status, list_map, reason_of
from kumulus.api.compute import GROUP
from kumulus.api.disks import DiskName
from kumulus.api.segments import Uid
from kumulus.api.volumes import ObjectName


class MigrationMode(StrEnum):
    """How memory is copied."""

    PRE_COPY = "PreCopy"
    POST_COPY = "PostCopy"
    AUTO = "Auto"


class OnStall(StrEnum):
    """What becomes of a copy that gets no closer to its end."""

    THROTTLE = "Throttle"
    CANCEL = "Cancel"
    WAIT = "Wait"


class MigrationLimits(Model):
    """What a migration may take."""

    bandwidth: int | None = Field(
        default=None, description="MiB a second at most; as fast as it goes when empty.", ge=1, le=1 << 20
    )
    max_downtime_ms: int = Field(
        default=300,
        description="The guest is halted for the rest of the copy when that takes no longer, in milliseconds. To it comes"
        " the time in which the hosts agree that it has moved.",
        ge=10,
        le=60000,
    )
    stall_seconds: int = Field(
        default=60,
        description="A copy that has got no closer to its end for so long is stalled: no pass over the memory began with less"
        " to copy, and of none that did so became less. See onStall.",
        ge=5,
        le=86400,
    )
    timeout_seconds: int = Field(
        default=600,
        description="The migration is given up when the guest has not moved so long after it began; it runs on where it is.",
        ge=10,
        le=86400,
    )


class VirtualMachineMigrationSpec(Model):
    """Which machine moves, and how."""

    rules = (
        Rule(
            "self.vm == oldSelf.vm && self.mode == oldSelf.mode && self.withLocalDisks == oldSelf.withLocalDisks"
            " && self.limits == oldSelf.limits && has(self.onStall) == has(oldSelf.onStall)"
            " && (!has(self.onStall) || self.onStall == oldSelf.onStall) && has(self.targetHost) == has(oldSelf.targetHost)"
            " && (!has(self.targetHost) || self.targetHost == oldSelf.targetHost)",
            "a migration is carried out once and cannot be changed: delete it, which cancels it, and make a new one",
        ),
        Rule(
            "self.mode != 'PostCopy'",
            "PostCopy is not offered: a guest of which each host has a part is lost with either, or with the network between"
            " them. Use Auto, which slows a guest down that writes faster than it can be copied",
            field=".mode",
        ),
        Rule(
            "self.mode != 'PreCopy' || !has(self.onStall) || self.onStall != 'Throttle'",
            "PreCopy slows no guest down: use Auto, or onStall Cancel or Wait",
            field=".onStall",
        ),
    )

    vm: ObjectName = Field(description="Name of the VirtualMachine of the namespace that moves. It must be running.")
    target_host: str | None = Field(
        default=None,
        description="Name of the host it goes to; one is chosen, as for a new machine, when empty.",
        min_length=1,
        max_length=63,
    )
    mode: MigrationMode = Field(
        default=MigrationMode.AUTO,
        description="PreCopy copies while the guest runs and halts it for the rest. Auto slows it down besides when it writes"
        " faster than its memory can be copied.",
    )
    on_stall: OnStall | None = Field(
        default=None,
        description="What becomes of a copy that is stalled. Throttle: its guest is slowed down, more and more, from when it"
        " first writes faster than its memory can be copied, and the time limit decides if that does not help; what Auto does"
        " when this is empty. Cancel: it is given up, and the guest runs on where it is; with Auto that is after it was slowed"
        " down in vain. Wait: no guest is slowed down, and the time limit decides; what PreCopy does when this is empty.",
    )
    with_local_disks: bool = Field(
        default=False,
        description="Copy disks along that its host alone has: those of the machine's own, and volumes in pools of one host. Each"
        " goes into the pool of the same name on the other host. Without it such disks keep the machine where it is.",
    )
    limits: MigrationLimits = Field(default_factory=MigrationLimits, description="What it may take.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        description="It deletes itself so long after it has ended; it stays when empty.",
        ge=0,
        le=31536000,
    )


class MigrationPhase(StrEnum):
    """How far a migration is, in one word."""

    PENDING = "Pending"
    """Nothing is ordered yet: something is in the way, or no host fits."""
    PREPARING = "Preparing"
    """The target gets everything ready."""
    MIGRATING = "Migrating"
    """Memory is being copied; the machine runs where it was."""
    FINISHING = "Finishing"
    """The machine is on its new host; the old one clears up."""
    CANCELLING = "Cancelling"
    """It is given up, unless the guest has moved already."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    """The machine is where it was."""


FINISHED = frozenset({MigrationPhase.SUCCEEDED, MigrationPhase.FAILED})
"""Phases in which nothing happens any more."""


class MigrationProgress(Model):
    """How far the copy is, as the hypervisor says."""

    total_bytes: int | None = Field(default=None, description="Bytes to copy, all in all.")
    remaining_bytes: int | None = Field(default=None, description="Bytes left to copy.")
    dirty_rate: int | None = Field(default=None, description="Bytes a second that the guest writes anew.")
    iteration: int | None = Field(default=None, description="How often its memory was gone through, from 1.")
    downtime_ms: int | None = Field(
        default=None, description="For how long it would be halted, as it looks now, in milliseconds."
    )
    stalled_seconds: int | None = Field(
        default=None, description="For how many seconds it has got no closer to its end; not said of a moment."
    )
    disk_total_bytes: int | None = Field(
        default=None, description="Of the bytes to copy, those of disks that go along."
    )
    disk_remaining_bytes: int | None = Field(default=None, description="Of the bytes left to copy, those of disks.")


class MovingDisk(Model):
    """A disk that goes along with its machine."""

    name: DiskName = Field(description="Name of the disk.")
    volume: Uid | None = Field(default=None, description="Uid of the Volume that it is; empty: the machine's own.")
    pool: ObjectName = Field(description="Name of the StoragePool that it is in, on both hosts.")
    size: int = Field(description="Size in bytes.", ge=1)


class VirtualMachineMigrationStatus(Status):
    """How far the migration is."""

    phase: MigrationPhase | None = Field(default=None, description="How far it is, in one word.")
    vm_uid: str | None = Field(default=None, description="Uid of the machine.")
    source_host: str | None = Field(default=None, description="Name of the host it leaves.")
    target_host: str | None = Field(default=None, description="Name of the host it goes to.")
    epoch: int | None = Field(default=None, description="The placement of the machine that it becomes there.")
    disks: tuple[MovingDisk, ...] = Field(
        default=(),
        description="Disks that go along, for which there is room on the target.",
        max_length=16,
        json_schema_extra=list_map("name"),
    )
    progress: MigrationProgress | None = Field(default=None, description="How far the copy is.")
    failure: str | None = Field(
        default=None, description="Why it is given up, in one word, as soon as that is decided.", max_length=64
    )
    failure_message: str | None = Field(default=None, description="The same in a sentence.", max_length=2048)
    started_at: str | None = Field(default=None, description="When the target was chosen (RFC 3339).")
    finished_at: str | None = Field(default=None, description="When it ended (RFC 3339).")


class VirtualMachineMigration(Resource):
    """Moves a running machine to another host; its guest notices a short pause. Deleting it cancels it."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachineMigration",
        plural="virtualmachinemigrations",
        short_names=("vmm", "vmms"),
        categories=("kumulus",),
        columns=(
            Column("VM", ".spec.vm"),
            PHASE,
            Column("Source", ".status.sourceHost"),
            Column("Target", ".status.targetHost"),
            Column("Remaining", ".status.progress.remainingBytes", "integer", priority=1),
            reason_of(priority=0),
            Column("Finished", ".status.finishedAt", "date"),
            AGE,
        ),
    )

    spec: VirtualMachineMigrationSpec = Field(description="Which machine moves, and how.")
    status: VirtualMachineMigrationStatus = Field(
        default_factory=VirtualMachineMigrationStatus, description="How far the migration is."
    )
