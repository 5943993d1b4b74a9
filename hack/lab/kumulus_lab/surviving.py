"""The demo's step with a disk that outlives its machine: the machine is deleted, and made anew from the same manifest."""

from __future__ import annotations

from rich.console import Console

from kumulus_lab import deadline, examples, moving
from kumulus_lab.errors import LabError
from kumulus_lab.ledger import MACHINE, NAMESPACE, SECONDS, VOLUME, Ledger


def run(ledger: Ledger, console: Console) -> None:
    """Delete the machine of examples/storage and make it again. Steps that come later were taken already: nothing."""
    if ledger.status("volume", VOLUME).get("pool") == moving.POOL:
        return
    real, volume = ledger.real, ledger.get("volume", VOLUME)["metadata"]["uid"]
    before = ledger.boots(MACHINE)[-1] if real else 0
    ledger.lab.control_plane.kubectl_run("-n", NAMESPACE, "delete", "vm", MACHINE, f"--timeout={SECONDS}s")
    # The other one goes with the machine, and one of its name is made anew.
    deadline.until(lambda: not ledger.get("volume", f"{MACHINE}-scratch"), "the end of its scratch", seconds=SECONDS)
    ledger.until("volume", VOLUME, "Available")
    directory = examples.render(ledger.lab, examples.STORAGE)
    examples.apply(ledger.lab.control_plane, directory / "3-machines.yaml")
    ledger.until("vm", MACHINE, "Running")
    if ledger.get("volume", VOLUME)["metadata"]["uid"] != volume:
        raise LabError(f"volume {VOLUME} was made anew with its machine")
    if not real:
        console.print(f"[dim]·[/] machine {MACHINE} deleted and made again, with the same volume {VOLUME}")
        return
    if (now := ledger.boots(MACHINE)[-1]) != before + 1:
        raise LabError(f"the data disk of {MACHINE} had {before} boots, and {now} when the machine was made again")
    console.print(f"[dim]·[/] machine {MACHINE} deleted and made again: its data disk went on with boot {now}")
