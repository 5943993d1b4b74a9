"""The machine of examples/storage as the demo's steps look at it: what the API says, and what its guest says.

The tiny guest counts the boots of each disk on the disk itself: what is on a disk shows in how it counts on, and not in
what an object's status says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kumulus_lab import deadline
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab

NAMESPACE, MACHINE, VOLUME = "quickstart", "ledger", "ledger-data"
SECONDS = 180
_BOOT = re.compile(r"kumulus-guest: boot (\d+) of disk data\b")

Kumulusctl = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The objects of the example in a lab."""

    lab: Lab
    kumulusctl: Kumulusctl

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The object; empty when it is not there."""
        done = self.lab.control_plane.kubectl_run("-n", NAMESPACE, "get", kind, name, "-o", "json", check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """Its status."""
        return dict(self.get(kind, name).get("status", {}))

    def phase(self, kind: str, name: str) -> str:
        """Its state in one word."""
        return str(self.status(kind, name).get("phase", ""))

    def why(self, kind: str, name: str, condition: str = "Ready") -> str:
        """What that condition of it says."""
        conditions = self.status(kind, name).get("conditions", [])
        said = (item.get("message") for item in conditions if item.get("type") == condition)
        return str(next(said, "no controller has looked at it"))

    def until(self, kind: str, name: str, phase: str) -> None:
        """Wait until it is in that phase. Raises LabError, also when it fails."""

        def probe() -> bool:
            now = self.phase(kind, name)
            if now == "Failed":
                raise LabError(f"{kind} {name} failed: {self.why(kind, name)}")
            return now == phase

        try:
            deadline.until(probe, f"{kind} {name} {phase}", seconds=SECONDS, every=0.3)
        except LabError as error:
            raise LabError(f"{error}: {self.why(kind, name)}") from error

    @property
    def real(self) -> bool:
        """Whether there is a guest: simulated ones say nothing."""
        host = self.status("vm", MACHINE).get("host")
        return host in {item.name for item in self.lab.hosts}

    def boots(self, machine: str, more_than: int = 0) -> list[int]:
        """What the guest said of its data disk, boot for boot, once it said it more often."""

        def probe() -> list[int] | None:
            said = self.kumulusctl("vm", "logs", machine, "-n", NAMESPACE)
            found = [int(number) for number in _BOOT.findall(said)]
            return found if len(found) > more_than else None

        return deadline.until(probe, f"the boot of {machine}", seconds=SECONDS, every=0.5)
