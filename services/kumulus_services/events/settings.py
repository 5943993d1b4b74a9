"""What an operator says of the exporter of events."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from kumulus.api.base import PLATFORM_NAMESPACE


class EventsSettings(BaseModel):
    """Settings of the module `services.events`."""

    model_config = ConfigDict(extra="forbid")

    directory: Path = Field(
        default=Path("/var/lib/kumulus/events"),
        description="Where the journal is: on a disk that outlives the process, of this process alone.",
    )
    source: str = Field(
        default="/kumulus",
        pattern=r"^[^\s]{1,256}$",
        description="`source` of all events, a URI reference; one a cluster, where several send to one receiver.",
    )
    origin: str = Field(
        default="kumulus.io",
        pattern=r"^[A-Za-z0-9.-]{1,253}$",
        description="The name by which receivers of webhooks are asked (WebHook-Request-Origin).",
    )
    allowed_ranges: list[IPvAnyNetwork] = Field(
        default_factory=list,
        description="Ranges that sinks of tenants may reach although they are not public.",
    )
    denied_ranges: list[IPvAnyNetwork] = Field(
        default_factory=list,
        description="Public ranges that sinks of tenants may not reach, such as the cluster's nodes.",
    )
    journal_changes: int = Field(
        default=500_000,
        ge=100,
        description="Of more changes that wait, intermediate states of objects are dropped.",
    )
    journal_seconds: float = Field(
        default=8 * 86400,
        gt=0,
        description="Changes that waited for longer are dropped, those for suspended sinks too.",
    )
    namespace_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=0,
        description="Of a tenant's namespace of which more waits, the oldest changes are dropped, intermediate states first.",
    )
    namespace_sinks: int = Field(
        default=20,
        ge=0,
        description="So many sinks of a namespace are served, the oldest; in kumulus-system all.",
    )
    namespace: str = Field(default=PLATFORM_NAMESPACE, description="Where the Lease of the exporter lives.")
    lease: str = Field(default="kumulus-events", description="Name of the Lease: one exporter tells at a time.")
    lease_seconds: float = Field(default=40.0, ge=2, description="How long it outlives its last renewal.")
    status_seconds: float = Field(
        default=30.0, ge=0, description="So often the numbers in a sink's status are written at most."
    )
