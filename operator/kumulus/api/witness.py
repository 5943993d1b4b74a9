"""What is asked of witnesses about a host that is silent, and what they answer (ADR 39).

Alive is said by who has proof of it, Dead by who has proof of that, and Unknown by everybody else. Unknown is never dead.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from kumulus.api.addresses import Address
from kumulus.api.base import DnsLabel, Model
from kumulus.api.segments import Uid


class Says(StrEnum):
    """What a witness says of a host."""

    ALIVE = "Alive"
    DEAD = "Dead"
    UNKNOWN = "Unknown"


class WitnessKind(StrEnum):
    """How a witness knows."""

    PEER = "Peer"
    """Another host's agent, which asks the host's agent to prove that it is there."""
    STORAGE = "Storage"
    """Another host's agent, which looks for the host's heartbeat in pools that both use."""
    BMC = "BMC"
    """The controller of the host's power."""
    PLUGIN = "Plugin"
    """Another program, by a plug-in of the controllers."""


class WitnessOrder(Model):
    """Keep looking whether another host, which is silent, is alive."""

    host: DnsLabel = Field(description="Name of that host; its certificate has to say so.")
    addresses: tuple[Address, ...] = Field(
        default=(),
        description="Where its agent serves other hosts: at the first, and in its underlay too where it has another address there;"
        " empty: nowhere that is known.",
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    port: int | None = Field(default=None, description="Port there.", ge=1, le=65535)
    pools: tuple[Uid, ...] = Field(
        default=(),
        description="Uids of pools that both hosts use, in which it leaves its heartbeat.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class WitnessFacts(Model):
    """What was seen of the other host."""

    peer: Says | None = Field(default=None, description="What its agent's answer says; empty: it was not asked yet.")
    peer_message: str | None = Field(default=None, description="Why.", max_length=512)
    storage: Says | None = Field(
        default=None, description="What its heartbeat in pools says; empty: it was not watched for long enough."
    )
    storage_message: str | None = Field(default=None, description="Why.", max_length=512)


class Statement(Model):
    """What one witness says of the host while it is silent."""

    witness: str = Field(
        description="Who: the name of a host, `bmc`, or the name of a plug-in.", min_length=1, max_length=63
    )
    kind: WitnessKind = Field(description="How it knows.")
    says: Says = Field(description="Alive, Dead, or Unknown, which is neither.")
    message: str | None = Field(default=None, description="Why it says so.", max_length=512)
