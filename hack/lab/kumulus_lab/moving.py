"""The demo's step with a move: a volume goes into another pool while its machine runs.

What is looked at is the machine, not only what the volume's status says: it must not have been started again. That the
guest's data went along shows in the next step, where its disk goes on counting boots.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from kumulus_lab import deadline, examples
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab

NAMESPACE, MACHINE, VOLUME, POOL = "quickstart", "ledger", "ledger-data", "second"
_SECONDS = 180


def run(lab: Lab, console: Console) -> None:
    """Take the steps of examples/moving. Done once: nothing."""
    if _status(lab, "volume", VOLUME).get("pool") == POOL:
        return
    directory = examples.render(lab, examples.MOVING)
    before = _status(lab, "vm", MACHINE)
    examples.apply(lab.control_plane, directory / "1-pool.yaml")
    deadline.until(lambda: _ready(lab, str(before.get("host"))), f"pool {POOL} on the machine's host", seconds=_SECONDS)
    examples.apply(lab.control_plane, directory / "2-volume.yaml")

    def there() -> bool:
        status = _status(lab, "volume", VOLUME)
        return status.get("pool") == POOL and "movingTo" not in status

    try:
        deadline.until(there, f"volume {VOLUME} in pool {POOL}", seconds=_SECONDS, every=0.3)
    except LabError as error:
        raise LabError(f"{error}: {_why(lab)}") from error
    after = _status(lab, "vm", MACHINE)
    if (after.get("startedAt"), after.get("phase")) != (before.get("startedAt"), before.get("phase")):
        raise LabError(f"machine {MACHINE} was started again or ended while its volume was moved")
    console.print(f"[dim]·[/] volume {VOLUME} moved to pool {POOL}; machine {MACHINE} went on meanwhile")


def _status(lab: Lab, kind: str, name: str) -> dict[str, Any]:
    done = lab.control_plane.kubectl_run("-n", NAMESPACE, "get", kind, name, "-o", "json", check=False)
    found: dict[str, Any] = json.loads(done.stdout).get("status", {}) if done.returncode == 0 else {}
    return found


def _ready(lab: Lab, host: str) -> bool:
    """Whether the pool can be used on the host."""
    hosts = _status(lab, "storagepool", POOL).get("hosts", [])
    return any(item["name"] == host and item["ready"] for item in hosts)


def _why(lab: Lab) -> str:
    conditions = _status(lab, "volume", VOLUME).get("conditions", [])
    return str(next((c.get("message") for c in conditions if c.get("type") == "Moving"), "nobody has begun to move it"))
