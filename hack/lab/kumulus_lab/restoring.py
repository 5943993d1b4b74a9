"""The demo's step with snapshots: a machine is kept as it is, copied, goes on, and gets back what it had.

The tiny guest counts the boots of each disk on the disk itself. So after a restore it has to count on from where it was
when the snapshot was taken, and so has the copy: that is what is looked at, not what an object's status says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from rich.console import Console

from kumulus_lab import deadline, examples
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab

NAMESPACE, MACHINE, COPY = "quickstart", "ledger", "ledger-copy"
_SECONDS = 180
_BOOT = re.compile(r"kumulus-guest: boot (\d+) of disk data\b")

Kumulusctl = Callable[..., str]


def run(lab: Lab, console: Console, kumulusctl: Kumulusctl) -> None:
    """Take the steps of examples/snapshots, and see that what is restored is what it was. Done once: nothing."""
    if _phase(lab, "vmrestore", "ledger-back") == "Succeeded":
        return
    directory = examples.render(lab, examples.SNAPSHOTS)

    def apply(step: str) -> None:
        examples.apply(lab.control_plane, directory / step)

    def until(kind: str, name: str, phase: str) -> None:
        def probe() -> bool:
            now = _phase(lab, kind, name)
            if now == "Failed":
                raise LabError(f"{kind} {name} failed: {_why(lab, kind, name)}")
            return now == phase

        try:
            deadline.until(probe, f"{kind} {name} {phase}", seconds=_SECONDS, every=0.3)
        except LabError as error:
            raise LabError(f"{error}: {_why(lab, kind, name)}") from error

    def boots(machine: str, more_than: int = 0) -> list[int]:
        """What the guest said of its data disk, boot for boot, once it said it more often. Simulated guests say nothing."""
        if not real:
            return []

        def probe() -> list[int] | None:
            said = kumulusctl("vm", "logs", machine, "-n", NAMESPACE)
            found = [int(number) for number in _BOOT.findall(said)]
            return found if len(found) > more_than else None

        return deadline.until(probe, f"the boot of {machine}", seconds=_SECONDS, every=0.5)

    host = _get(lab, "vm", MACHINE).get("status", {}).get("host")
    real = host in {item.name for item in lab.hosts}
    before = boots(MACHINE)
    apply("1-snapshot.yaml")
    until("vmsnap", "ledger-then", "Ready")
    apply("2-clone.yaml")
    until("vmrestore", "ledger-copy", "Succeeded")
    until("vm", COPY, "Running")
    copied = boots(COPY)
    kumulusctl("vm", "restart", MACHINE, "-n", NAMESPACE)
    later = boots(MACHINE, len(before))
    kumulusctl("vm", "stop", MACHINE, "-n", NAMESPACE)
    until("vm", MACHINE, "Stopped")
    apply("3-restore.yaml")
    until("vmrestore", "ledger-back", "Succeeded")
    kumulusctl("vm", "start", MACHINE, "-n", NAMESPACE)
    until("vm", MACHINE, "Running")
    restored = boots(MACHINE, len(later))
    if not real:
        console.print("[dim]·[/] snapshot of ledger taken, copied to ledger-copy, and restored")
        return
    was, wanted = before[-1], before[-1] + 1
    if (copied[-1], later[-1], restored[-1]) != (wanted, wanted, wanted):
        raise LabError(
            f"the data disk of {MACHINE} had {was} boots when its snapshot was taken; then {later[-1]} in the machine,"
            f" {copied[-1]} in the copy and {restored[-1]} after the restore, where each should say {wanted}"
        )
    console.print(
        f"[dim]·[/] snapshot of {MACHINE} taken at boot {was} of its data disk; the copy {COPY} went on with boot"
        f" {copied[-1]}, the machine with {later[-1]}, and after the restore with {restored[-1]} again"
    )


def _get(lab: Lab, kind: str, name: str) -> dict[str, Any]:
    done = lab.control_plane.kubectl_run("-n", NAMESPACE, "get", kind, name, "-o", "json", check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def _phase(lab: Lab, kind: str, name: str) -> str:
    return str(_get(lab, kind, name).get("status", {}).get("phase", ""))


def _why(lab: Lab, kind: str, name: str) -> str:
    conditions = _get(lab, kind, name).get("status", {}).get("conditions", [])
    return str(
        next((c.get("message") for c in conditions if c.get("type") == "Ready"), "no controller has looked at it")
    )
