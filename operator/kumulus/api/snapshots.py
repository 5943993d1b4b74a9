"""What snapshots of volumes and of machines have in common."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from kumulus.api.base import Model, Status
from kumulus.api.quantity import Bytes, MeasuredBytes


class QuiesceMode(StrEnum):
    """Whether a guest's file systems are brought to rest while a snapshot is taken."""

    IF_POSSIBLE = "IfPossible"
    """By the guest agent when it answers; without it the snapshot is like a disk after a power cut, and says so."""
    REQUIRED = "Required"
    """No snapshot without."""
    NEVER = "Never"


class Indication(StrEnum):
    """How far the content of a snapshot can be trusted."""

    ONLINE = "Online"
    """The machine was on."""
    GUEST_AGENT = "GuestAgent"
    """The guest's file systems were at rest, by its agent."""
    NO_GUEST_AGENT = "NoGuestAgent"
    """No agent runs in the guest: the content is that of a disk after a power cut."""
    QUIESCE_FAILED = "QuiesceFailed"
    """There is an agent, and it did not bring the file systems to rest in time."""


class Quiesce(Model):
    """How a guest is brought to rest while a snapshot is taken."""

    mode: QuiesceMode = Field(
        default=QuiesceMode.IF_POSSIBLE,
        description="IfPossible asks the guest agent and goes on without it, Required takes no snapshot without it, Never does not ask.",
    )
    timeout_seconds: int = Field(default=30, description="How long the guest may take for it.", ge=1, le=600)


class SnapshotPhase(StrEnum):
    """A snapshot's state in one word; derived."""

    PENDING = "Pending"
    TAKING = "Taking"
    READY = "Ready"
    MOVING = "Moving"
    """It was taken, and its volume goes from one host to another: it follows."""
    DELETING = "Deleting"
    FAILED = "Failed"


class SnapshotStatus(Status):
    """What snapshots of volumes and of machines have in common."""

    phase: SnapshotPhase | None = Field(default=None, description="The state in one word.")
    ready_to_use: bool = Field(default=False, description="Whether it can be restored and cloned.")
    taken_at: str | None = Field(default=None, description="The instant whose content it has (RFC 3339).")
    size: Bytes | None = Field(default=None, description="Size of the disk, or of all disks together, at that instant.")
    used: MeasuredBytes | None = Field(default=None, description="What it takes in the pool.")
    host: str | None = Field(
        default=None, description="The host that has it; empty while its volume goes from one host to another."
    )
    indications: tuple[Indication, ...] = Field(
        default=(),
        description="How far its content can be trusted: Online, GuestAgent, NoGuestAgent, QuiesceFailed.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
