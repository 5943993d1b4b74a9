"""The demo's step with snapshots: a machine is kept as it is, copied, goes on, and gets back what it had.

After a restore it has to count its boots on from where it was when the snapshot was taken, and so has the copy.
"""

from __future__ import annotations

from rich.console import Console

from kumulus_lab import examples
from kumulus_lab.errors import LabError
from kumulus_lab.ledger import MACHINE, NAMESPACE, Ledger

COPY = "ledger-copy"


def run(ledger: Ledger, console: Console) -> None:
    """Take the steps of examples/snapshots, and see that what is restored is what it was. Done once: nothing."""
    if ledger.phase("vmrestore", "ledger-back") == "Succeeded":
        return
    directory = examples.render(ledger.lab, examples.SNAPSHOTS)

    def apply(step: str) -> None:
        examples.apply(ledger.lab.control_plane, directory / step)

    def boots(machine: str, more_than: int = 0) -> list[int]:
        return ledger.boots(machine, more_than) if real else []

    real, until, kumulusctl = ledger.real, ledger.until, ledger.kumulusctl
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
