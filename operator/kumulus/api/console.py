"""ConsoleRequest of compute.kumulus.io: what a machine wrote to its console."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.base import AGE, PHASE, VERSION, Column, DnsLabel, Kind, Model, Resource, Rule, Status
from kumulus.api.compute import GROUP


class ConsoleRequestType(StrEnum):
    """What of the console is asked for."""

    LOG = "Log"


class ConsoleRequestSpec(Model):
    """What of a machine's console is asked for."""

    rules = (Rule("self == oldSelf", "a request cannot be changed: make a new one"),)

    vm: DnsLabel = Field(description="Name of the machine, in the same namespace.")
    type: ConsoleRequestType = Field(
        default=ConsoleRequestType.LOG, description="Log: the end of what the serial console printed."
    )
    max_bytes: int = Field(default=65536, description="At most so many bytes from the end.", ge=1, le=262144)
    ttl_seconds: int = Field(
        default=60, description="The request is deleted so long after it was answered.", ge=5, le=3600
    )


class ConsoleRequestStatus(Status):
    """The answer."""

    phase: str | None = Field(default=None, description="Pending, Ready or Failed.")
    log: str | None = Field(
        default=None,
        description="What the console printed. A guest decides what is in it: do not send it to a terminal unfiltered.",
        max_length=1048576,
    )
    answered_at: str | None = Field(default=None, description="When it was answered (RFC 3339).")


class ConsoleRequest(Resource):
    """Asks once for what a machine's console printed; deletes itself after a while."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="ConsoleRequest",
        plural="consolerequests",
        short_names=("console",),
        categories=("kumulus",),
        columns=(
            Column("VM", ".spec.vm"),
            Column("Type", ".spec.type"),
            PHASE,
            AGE,
        ),
    )

    spec: ConsoleRequestSpec = Field(description="What is asked for.")
    status: ConsoleRequestStatus = Field(default_factory=ConsoleRequestStatus, description="The answer.")
