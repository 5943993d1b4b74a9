"""Settings of a host's networks."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress

from kumulus_agents.metadata.settings import MetadataSettings


class NetworkSettings(BaseModel):
    """What an administrator of the host can decide of its networks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Whether the host makes networks at all.")
    underlay: IPvAnyAddress | None = Field(
        default=None,
        description="The address at which other hosts reach this one's tunnels; default: the host's first one.",
    )
    drivers: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of drivers, by the driver's name."
    )
    metadata: MetadataSettings = Field(
        default_factory=MetadataSettings, description="What guests are told of themselves."
    )
