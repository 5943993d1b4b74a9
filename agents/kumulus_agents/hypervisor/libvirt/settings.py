"""What an operator can set of the libvirt driver."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Acceleration(StrEnum):
    """How guests are run."""

    AUTO = "auto"
    """Find out by running something (`acceleration.probe`)."""
    KVM = "kvm"
    TCG = "tcg"


class LibvirtSettings(BaseModel):
    """Settings of the libvirt driver. Unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(default="qemu:///system", description="Where libvirtd is.")
    acceleration: Acceleration = Field(default=Acceleration.AUTO, description="auto, kvm or tcg.")
    acceleration_file: Path | None = Field(
        default=Path("/run/kumulus/acceleration"),
        description="Where it is kept what was found out about it, until the host boots. None: found out each time.",
    )
    emulated_cpu: str = Field(
        default="Nehalem",
        description="CPU model of guests that are emulated (tcg): a model of libvirt, or `maximum`. The default"
        " is the oldest that has x86-64-v2; newer ones boot more slowly.",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
    )
    log_dir: Path | None = Field(
        default=Path("/var/log/libvirt/qemu"),
        description="Where libvirt keeps a log a domain; the log goes when the domain is removed. None: left alone.",
    )
    migration_dir: Path = Field(
        default=Path("/run/kumulus/migration"),
        description="Where the sockets are through which guests leave and come. QEMU makes some of them.",
    )
    read_timeout: float = Field(default=10, gt=0, le=600, description="Seconds until a question is given up.")
    suspend_timeout: float = Field(
        default=1800, gt=0, le=86400, description="Seconds until writing or reading a guest's memory is given up."
    )
    verb_timeout: float = Field(default=60, gt=0, le=600, description="Seconds until a verb is given up.")
