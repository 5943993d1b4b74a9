"""What a host can be of a machine: its processor, board, firmware and devices. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set

from kumulus.api.hardware import HOST_MODEL, HOST_PASSTHROUGH, HostFeature
from kumulus_controllers.planning.views import HostView

LACKS: Mapping[HostFeature, str] = {
    HostFeature.UEFI: "UEFI firmware (package ovmf)",
    HostFeature.SECURE_BOOT: "UEFI firmware with Secure Boot (package ovmf)",
    HostFeature.TPM: "a TPM for machines (packages swtpm and swtpm-tools)",
    HostFeature.WATCHDOG: "a watchdog for machines",
}


def lack(host: HostView, model: str | None, machine_type: str | None, features: Set[HostFeature]) -> str | None:
    """What the host is without, in words that follow "a host"; None when it has all. `model` None: the one of its zone."""
    model = model or host.baseline
    if model not in (None, HOST_MODEL, HOST_PASSTHROUGH) and model not in host.cpu_models:
        return f"without CPU model {model}"
    if machine_type is not None and machine_type not in host.machine_types:
        return f"without machine type {machine_type}"
    missing = sorted(features - host.features)
    return f"without {LACKS[missing[0]]}" if missing else None
