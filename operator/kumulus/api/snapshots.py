"""What snapshots of volumes and of machines have in common."""

from __future__ import annotations

from enum import StrEnum


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
    """No agent answered in the guest: the content is that of a disk after a power cut."""
    QUIESCE_FAILED = "QuiesceFailed"
    """The agent answered and could not bring the file systems to rest."""
