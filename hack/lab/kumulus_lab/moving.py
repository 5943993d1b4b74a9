"""The demo's step with a move: a volume goes into another pool while its machine runs.

What is looked at is the machine, not only what the volume's status says: it must not have been started again. That the
guest's data went along shows in the next step, where its disk goes on counting boots.
"""

from __future__ import annotations

from rich.console import Console

from kumulus_lab import deadline, examples
from kumulus_lab.errors import LabError
from kumulus_lab.ledger import MACHINE, SECONDS, VOLUME, Ledger

POOL = "second"


def run(ledger: Ledger, console: Console) -> None:
    """Take the steps of examples/moving. Done once: nothing."""
    if ledger.status("volume", VOLUME).get("pool") == POOL:
        return
    control_plane, directory = ledger.lab.control_plane, examples.render(ledger.lab, examples.MOVING)
    before = ledger.status("vm", MACHINE)
    examples.apply(control_plane, directory / "1-pool.yaml")
    deadline.until(lambda: _ready(ledger, before.get("host")), f"pool {POOL} on the machine's host", seconds=SECONDS)
    examples.apply(control_plane, directory / "2-volume.yaml")

    def there() -> bool:
        status = ledger.status("volume", VOLUME)
        return status.get("pool") == POOL and "movingTo" not in status

    try:
        deadline.until(there, f"volume {VOLUME} in pool {POOL}", seconds=SECONDS, every=0.3)
    except LabError as error:
        raise LabError(f"{error}: {ledger.why('volume', VOLUME, 'Moving')}") from error
    after = ledger.status("vm", MACHINE)
    if (after.get("startedAt"), after.get("phase")) != (before.get("startedAt"), before.get("phase")):
        raise LabError(f"machine {MACHINE} was started again or ended while its volume was moved")
    console.print(f"[dim]·[/] volume {VOLUME} moved to pool {POOL}; machine {MACHINE} went on meanwhile")


def _ready(ledger: Ledger, host: object) -> bool:
    """Whether the pool can be used on the host."""
    hosts = ledger.status("storagepool", POOL).get("hosts", [])
    return any(item["name"] == host and item["ready"] for item in hosts)
