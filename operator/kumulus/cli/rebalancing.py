"""`kumulusctl host rebalance --apply`: makes the moves of a plan that was shown, as migrations, and says how far they are.

How many move at once is the controllers' business (`controllers.compute.migration`): the others wait for their turn.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from kumulus.api.maintenance import FOR_REBALANCE
from kumulus.api.migration import MigrationPhase, VirtualMachineMigration
from kumulus.api.preview import Move, Plan
from kumulus.cli.amounts import count
from kumulus.cli.migrating import KEPT_SECONDS, hopeless, said
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session
from kumulus.cli.terminal import one_line

KIND = VirtualMachineMigration.KIND


def body(move: Move, plan: str) -> dict[str, Any]:
    """The migration of a move. Pure."""
    metadata = {"generateName": f"{move.name[:50]}-", "labels": {FOR_REBALANCE: plan}}
    spec = {"vm": move.name, "targetHost": move.target, "ttlSecondsAfterFinished": KEPT_SECONDS}
    return {"metadata": metadata, "spec": spec}


def carry_out(session: Session, plan: Plan, *, wait: bool, timeout: float) -> None:
    """Make all moves. Raises `Problem` when some machine has not moved in the end; the others have, and stay where they are."""
    label = secrets.token_hex(4)
    made = [session.cluster.create(KIND, body(move, label), move.namespace) for move in plan.moves]
    which = f"-A -l {FOR_REBALANCE}={label}"
    session.printer.note(f"{count(len(made), 'migration')} made: kubectl get vmm {which}")
    if not wait:
        return
    deadline, failed = time.monotonic() + timeout, 0
    for raw in made:
        failed += not _moved(session, VirtualMachineMigration.parse(raw), deadline, timeout, which)
    if failed:
        raise Problem(
            f"{count(failed, 'machine')} of {len(made)} did not move; the others did, and stay where they are."
        )


def _moved(session: Session, made: VirtualMachineMigration, deadline: float, timeout: float, which: str) -> bool:
    """Whether it has moved in the end. One that cannot begin is taken back."""
    out, told = session.printer.err, ""
    for raw in session.cluster.follow(KIND, made.name, made.namespace, seconds=max(deadline - time.monotonic(), 0.1)):
        if raw is None:
            out.print(one_line(f"{made.namespace}/{made.spec.vm}: its migration was deleted"))
            return False
        now = VirtualMachineMigration.parse(raw)
        line = one_line(f"{now.namespace}/{now.spec.vm}: {said(now)}")
        if line != told:
            told = line
            out.print(line)
        if now.status.phase in (MigrationPhase.SUCCEEDED, MigrationPhase.FAILED):
            return now.status.phase is MigrationPhase.SUCCEEDED
        if hopeless(now):
            session.cluster.delete(KIND, now.name, now.namespace, uid=now.uid)
            return False
    raise Problem(
        f"Not all have moved after {timeout:g}s. It goes on; to cancel what is left: kubectl delete vmm {which}"
    )
