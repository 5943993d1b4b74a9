"""How events reach a receiver: the protocol that webhooks and JetStream fulfil, and what can go wrong."""

from __future__ import annotations

from typing import Protocol

from kumulus.api.events import SinkReason
from kumulus_services.events.envelope import Event


class SendError(Exception):
    """An event did not arrive, or nobody knows whether it did. All but `Rejected` are about the receiver as a whole: events wait."""

    reason = SinkReason.UNREACHABLE

    def __init__(self, message: str, *, after: float | None = None) -> None:
        """`after`: seconds until which trying again is in vain, as far as is known."""
        super().__init__(message)
        self.after = after


class Unavailable(SendError):
    """Nobody answers, or says that he cannot now."""


class NoStream(SendError):
    """No stream takes the subject."""

    reason = SinkReason.NO_STREAM


class AddressRefused(SendError):
    """The sink may not reach that address."""

    reason = SinkReason.ADDRESS_REFUSED


class HandshakeRefused(SendError):
    """The receiver does not say that it wants events."""

    reason = SinkReason.HANDSHAKE_REFUSED


class SecretMissing(SendError):
    """A Secret, or a key in it, is not there or cannot be used."""

    reason = SinkReason.SECRET_NOT_FOUND


class Retired(SendError):
    """The receiver says that it is gone for good."""

    reason = SinkReason.RETIRED


class Rejected(SendError):
    """The receiver has answered to this event, and does not take it."""

    reason = SinkReason.REJECTING


class Transport(Protocol):
    """The way to one receiver. Its methods raise `SendError` and nothing else."""

    async def open(self) -> None:
        """Make sure that events may be sent. May be repeated; called again after an error other than `Rejected`."""

    async def send(self, event: Event) -> None:
        """Return when the receiver has the event for certain. May be called several times at once."""

    async def close(self) -> None:
        """Let go of everything. May be repeated; `open` may follow."""
