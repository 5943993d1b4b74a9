"""For how long machines of pools have needed healing, as this process has seen it. Does no I/O; keeps nothing beyond the process."""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_pool import HealingCause
from kumulus_controllers.compute.vm_pool_plan import ill

WELL_SECONDS = 120.0
"""Who was well for so long is well. A machine whose guest ends soon after each start is well for a moment each time."""


@dataclass(slots=True)
class _Illness:
    cause: HealingCause
    since: float
    well_since: float | None = None


class Health:
    """What machines are ill of, and since when."""

    def __init__(self) -> None:
        self._known: dict[str, _Illness] = {}

    def forget(self, uid: str) -> None:
        """The machine is gone."""
        self._known.pop(uid, None)

    def ill_for(self, vm: VirtualMachine, now: float) -> float | None:
        """For how many seconds it has been ill; None when it is well just now. `now` in seconds of a monotonic clock."""
        cause, known = ill(vm), self._known.get(vm.uid)
        if known is not None and known.well_since is not None and now - known.well_since > WELL_SECONDS:
            self.forget(vm.uid)
            known = None
        if cause is None:
            if known is not None and known.well_since is None:
                known.well_since = now
            return None
        if known is None or known.cause is not cause:
            known = self._known[vm.uid] = _Illness(cause, now)
        known.well_since = None
        return now - known.since
