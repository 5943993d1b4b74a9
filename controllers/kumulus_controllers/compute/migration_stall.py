"""A copy that gets no closer to its end, and what becomes of it (docs/adr/0036). Pure."""

from __future__ import annotations

from kumulus.api.instance_order import MigrationFacts
from kumulus.api.migration import MigrationMode, OnStall, VirtualMachineMigrationSpec
from kumulus_controllers.storage.volume_plan import Lack


def answer(spec: VirtualMachineMigrationSpec) -> OnStall:
    """What the migration says is to become of it."""
    return spec.on_stall or (OnStall.THROTTLE if spec.mode is MigrationMode.AUTO else OnStall.WAIT)


def throttles(spec: VirtualMachineMigrationSpec) -> bool:
    """Whether its guest is slowed down when that is needed. QEMU is told so before the copy begins, or never."""
    return spec.mode is MigrationMode.AUTO and answer(spec) is not OnStall.WAIT


def stalled(spec: VirtualMachineMigrationSpec, said: MigrationFacts | None) -> bool:
    """Whether it has got no closer to its end for longer than it may."""
    return said is not None and (said.stalled_seconds or 0) >= spec.limits.stall_seconds


def given_up(spec: VirtualMachineMigrationSpec, said: MigrationFacts | None) -> Lack | None:
    """Why it is given up for that; None: it is not."""
    if said is None or answer(spec) is not OnStall.CANCEL or not stalled(spec, said):
        return None
    return Lack(
        "CopyStalled",
        f"It got no closer to its end for {said.stalled_seconds} s (spec.limits.stallSeconds). {left(said)} Give it more"
        " bandwidth, let it slow the guest down (onStall: Throttle), or try when the guest writes less.".replace(
            "  ", " "
        ),
    )


def left(said: MigrationFacts) -> str:
    """How far it was."""
    if said.remaining_bytes is None:
        return ""
    return f"{said.remaining_bytes >> 20} MiB were left, and the guest wrote {(said.dirty_rate or 0) >> 20} MiB/s."


def told(spec: VirtualMachineMigrationSpec, said: MigrationFacts | None) -> str:
    """What is so of a copy that is stalled and goes on, and what is being done; empty of any other."""
    if said is None or not stalled(spec, said):
        return ""
    done = "its guest is slowed down" if throttles(spec) else "spec.limits.timeoutSeconds decides"
    return f" It has got no closer to its end for {said.stalled_seconds} s: {done}."
