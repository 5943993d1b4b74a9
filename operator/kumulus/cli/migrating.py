"""`kumulusctl vm migrate`: move a running machine to another host, and say how far that is."""

from __future__ import annotations

from typing import Annotated

import typer

from kumulus.api.compute import VirtualMachine
from kumulus.api.migration import FINISHED, MigrationPhase, VirtualMachineMigration
from kumulus.cli import vm as machines
from kumulus.cli.amounts import size
from kumulus.cli.output import qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.cli.vm import Name

KEPT_SECONDS = 86400
"""Migrations that this command made delete themselves a day after they have ended."""


def said(migration: VirtualMachineMigration) -> str:
    """How far it is, in a line. Pure."""
    status = migration.status
    ready, progress = status.condition("Ready"), status.progress
    why = f": {one_line(ready.message)}" if ready is not None and ready.message else ""
    left = ""
    if status.phase is MigrationPhase.MIGRATING and progress is not None and progress.remaining_bytes is not None:
        left = f", {size(progress.remaining_bytes)} left"
    return f"{status.phase or MigrationPhase.PENDING}{left}{why}"


def ended(migration: VirtualMachineMigration) -> bool:
    """Whether the machine has moved. Pure. Raises `Problem` when it has not and will not."""
    if migration.status.phase is MigrationPhase.FAILED:
        raise Problem(f"{migration.spec.vm} was not moved: {said(migration)}")
    return migration.status.phase is MigrationPhase.SUCCEEDED


def hopeless(migration: VirtualMachineMigration) -> bool:
    """Whether it has not begun, and will not by itself: somebody has to change something first. Pure."""
    stalled = migration.status.condition("Stalled")
    return migration.status.phase is MigrationPhase.PENDING and stalled is not None and stalled.status == "True"


def _await(session: Session, name: str, seconds: float) -> None:
    """Follow it to its end. One that cannot begin is taken back: it would move the machine some day when nobody expects it.
    Raises `Problem`."""
    out, told, last = session.printer.err, "", ""
    for raw in session.cluster.follow(VirtualMachineMigration.KIND, name, session.namespace, seconds=seconds):
        if raw is None:
            raise Problem(f"The migration {name} was deleted meanwhile: that cancels it.")
        migration = VirtualMachineMigration.parse(raw)
        if ended(migration):
            session.printer.done(
                VirtualMachine.KIND,
                machines.fetch(session, migration.spec.vm),
                f"is on host {migration.status.target_host}",
            )
            return
        last = said(migration)
        if hopeless(migration):
            session.cluster.delete(migration.KIND, name, session.namespace, uid=migration.uid)
            raise Problem(
                f"{migration.spec.vm} cannot be moved, and nothing was begun: {last.removeprefix('Pending: ')}"
            )
        if last != told:
            told = last
            out.print(f"{migration.spec.vm}: {last}")
    raise Problem(
        f"It has not moved after {seconds:g}s ({last}). It goes on; to cancel it:"
        f" kubectl -n {session.namespace} delete vmm {name}"
    )


def _migrate(
    session: Session,
    name: Name,
    to: Annotated[
        str | None, typer.Option("--to", metavar="HOST", help="The host; one is chosen when not given.")
    ] = None,
    with_local_disks: Annotated[
        bool, typer.Option("--with-local-disks", help="Copy disks along that only its host has.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel what moves the machine; it runs on where it is.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has moved.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 900,
) -> None:
    """Move a running machine to another host; its guest notices a short pause."""
    vm = VirtualMachine.parse(machines.fetch(session, name))
    kind, namespace = VirtualMachineMigration.KIND, session.namespace
    if cancel:
        found = [VirtualMachineMigration.parse(raw) for raw in session.cluster.objects(kind, namespace)]
        going = [item for item in found if item.spec.vm == name and item.status.phase not in FINISHED]
        if not going:
            raise Problem(f"Nothing moves {name}.")
        for item in going:
            session.cluster.delete(kind, item.name, namespace, uid=item.uid)
            session.printer.text(f"{qualified(kind, item.name)} is cancelled, unless the guest has moved already")
        return
    asked = {"targetHost": to, "withLocalDisks": with_local_disks or None}
    spec = {"vm": vm.name, "ttlSecondsAfterFinished": KEPT_SECONDS} | {k: v for k, v in asked.items() if v is not None}
    body = {"metadata": {"generateName": f"{name[:50]}-"}, "spec": spec}
    made = session.cluster.create(kind, body, namespace)
    if wait:
        _await(session, made["metadata"]["name"], timeout)
    else:
        session.printer.done(kind, made, f"moves {name}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "migrate")(_migrate)
