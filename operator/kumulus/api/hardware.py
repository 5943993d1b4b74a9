"""What a machine is made of beside its size and its disks: processor, firmware, watchdog."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from kumulus.api.base import Model, Rule

HOST_MODEL = "host-model"
HOST_PASSTHROUGH = "host-passthrough"

CpuModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", min_length=1, max_length=64)]
MachineTypeName = Annotated[str, Field(pattern=r"^(q35|pc-q35-[a-z0-9.]{1,24})$", max_length=32)]
Known = Annotated[str, AfterValidator(sys.intern)]
"""A name that many hosts report: it is kept once."""
NEWEST_MACHINE_TYPE = "q35"
"""Whatever is the newest on the host that a machine is started on."""

_Count = Annotated[int, Field(ge=1, le=1024)]


class Cpu(Model):
    """The processor that a guest sees."""

    model: CpuModelName | None = Field(
        default=None,
        description="host-model, host-passthrough, or a model of libvirt such as `Skylake-Server`. When empty, the"
        " cpuBaseline of the zone, or host-model. A machine that is on gets another one at its next start.",
    )
    sockets: _Count | None = Field(
        default=None, description="Sockets; as many as there are CPUs for cores and threads when empty."
    )
    cores: _Count | None = Field(default=None, description="Cores of a socket; all of them in one when empty.")
    threads: _Count | None = Field(default=None, description="Threads of a core; 1 when empty.")


class FirmwareType(StrEnum):
    """What starts a guest."""

    BIOS = "BIOS"
    UEFI = "UEFI"


class Firmware(Model):
    """What starts the guest, and what it can prove."""

    rules = (
        Rule(
            "!(has(self.secureBoot) && self.secureBoot) || (has(self.type) && self.type == 'UEFI')",
            "secureBoot needs the type UEFI",
            field=".secureBoot",
        ),
    )

    type: FirmwareType = Field(default=FirmwareType.BIOS, description="BIOS or UEFI. Cannot be changed.")
    secure_boot: bool = Field(
        default=False,
        description="Start only what is signed with a key of the usual distributions and Microsoft. Cannot be changed.",
    )
    tpm: bool = Field(
        default=False,
        description="Give it a TPM 2.0. What it keeps is the machine's, over stop and start, and goes with the machine. Can be"
        " added, and comes with the next start then, but not be taken away.",
    )


def _has(of: str, what: str) -> str:
    """A comparison with a literal is cheap; the API server takes any other text for as long as can be."""
    return f"(has({of}.firmware) && has({of}.firmware.{what}) && {of}.firmware.{what}{FIRMWARE_ASKED[what]})"


FIRMWARE_ASKED = {"type": " == 'UEFI'", "secureBoot": "", "tpm": ""}
FIRMWARE_FIXED = (
    Rule(
        " && ".join(f"{_has('self', what)} == {_has('oldSelf', what)}" for what in ("type", "secureBoot")),
        "type and secureBoot cannot be changed: what was installed with one does not start with the other",
        field=".firmware",
    ),
    Rule(
        f"{_has('self', 'tpm')} || !{_has('oldSelf', 'tpm')}",
        "tpm cannot be taken away: what is sealed with it would be lost",
        field=".firmware",
    ),
)
"""Rules of what has a firmware."""


class WatchdogAction(StrEnum):
    """What happens to a machine whose guest does not say that it is alive."""

    RESET = "Reset"
    POWER_OFF = "PowerOff"


class Watchdog(Model):
    """A card (i6300esb) that a guest has to tell again and again that it is alive, once it has begun to."""

    action: WatchdogAction = Field(
        default=WatchdogAction.RESET,
        description="What happens when it does not: Reset boots it again in the same run, PowerOff ends it as a crash does, and"
        " restartPolicy decides.",
    )


class Shape(Model):
    """What a machine is made of; another one comes into force at its next start. What is empty is as it is by default."""

    cpu_model: CpuModelName | None = Field(
        default=None, description="Processor: a model, host-model or host-passthrough."
    )
    sockets: int | None = Field(default=None, description="Sockets.", ge=1)
    cores: int | None = Field(default=None, description="Cores of a socket.", ge=1)
    threads: int | None = Field(default=None, description="Threads of a core.", ge=1)
    uefi: bool = Field(default=False, description="Its firmware is UEFI.")
    secure_boot: bool = Field(default=False, description="It starts only what is signed.")
    tpm: bool = Field(default=False, description="It has a TPM 2.0.")
    watchdog: WatchdogAction | None = Field(default=None, description="What its watchdog does, if it has one.")


class HostFeature(StrEnum):
    """What a host can give machines, if it has what that takes."""

    UEFI = "UEFI"
    SECURE_BOOT = "SecureBoot"
    TPM = "TPM"
    WATCHDOG = "Watchdog"


def features_of(firmware: Firmware | None, watchdog: Watchdog | None) -> frozenset[HostFeature]:
    """What a machine needs of its host."""
    firmware = firmware or Firmware()
    asked = {
        HostFeature.UEFI: firmware.type is FirmwareType.UEFI,
        HostFeature.SECURE_BOOT: firmware.secure_boot,
        HostFeature.TPM: firmware.tpm,
        HostFeature.WATCHDOG: watchdog is not None,
    }
    return frozenset(feature for feature, needed in asked.items() if needed)
