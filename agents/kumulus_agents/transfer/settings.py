"""Settings of the exchange of images between hosts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress


class TransferSettings(BaseModel):
    """How a host gives images to others and gets them from there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="Whether images are exchanged with other hosts at all.")
    address: IPvAnyAddress | None = Field(
        default=None,
        description="The address other hosts reach this one at, and the only one that is listened on; default: the one from which the API server is reached.",
    )
    port: int = Field(default=9411, ge=0, le=65535, description="Port there; 0: a free one.")
    sends: int = Field(
        default=4, ge=1, le=256, description="Images given to other hosts at once; more are told to wait."
    )
    upload_port: int | None = Field(
        default=9412, ge=0, le=65535, description="Port at which images are uploaded; 0: a free one, null: none are."
    )
    migration_port: int | None = Field(
        default=9413,
        ge=0,
        le=65535,
        description="Port at which guests come from other hosts; 0: a free one, null: none come, and none leave.",
    )
    uploads: int = Field(default=4, ge=1, le=256, description="Uploads taken at once; more are told to wait.")
    upload_idle_seconds: float = Field(
        default=86400.0, gt=0, description="What has arrived of an image is removed when nothing is added for so long."
    )
    upload_least_rate: int = Field(
        default=1 << 10, ge=0, description="Bytes a second that an upload must bring; a slower one is cut off."
    )
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect to a host, TLS included.")
    idle_timeout: float = Field(default=20.0, gt=0, description="Seconds without a byte, either way.")
    least_rate: int = Field(
        default=64 << 10, ge=0, description="Bytes a second that a host must give; a slower one is left for another."
    )
    rate_window: float = Field(default=30.0, gt=0, description="Seconds over which that is measured.")
    busy_patience: float = Field(
        default=600.0, ge=0, description="Seconds to wait for hosts that are busy before the source is asked."
    )
