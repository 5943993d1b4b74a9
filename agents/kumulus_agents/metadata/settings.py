"""Settings of the metadata that guests can ask for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MetadataSettings(BaseModel):
    """How guests are told of themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Whether 169.254.169.254 answers guests.")
    uid: int = Field(
        default=65530,
        description="User and group number of the process that answers; nobody else's, and no entry in passwd is needed.",
        ge=1,
    )
