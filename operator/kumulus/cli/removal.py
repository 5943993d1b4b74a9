"""`kumulusctl may-uninstall`: whether anybody would miss Kumulus. The chart asks before it is uninstalled."""

from __future__ import annotations

import typer

from kumulus.api.compute import VirtualMachine
from kumulus.cli.amounts import count
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.kube import errors

_NAMED = 5


def obstacle(machines: list[tuple[str, str]]) -> str | None:
    """Why Kumulus should stay, given the namespaces and names of all machines; None when nothing speaks for it. Pure."""
    if not machines:
        return None
    named = ", ".join(f"{namespace}/{name}" for namespace, name in sorted(machines)[:_NAMED])
    more = f" and {len(machines) - _NAMED} more" if len(machines) > _NAMED else ""
    there = "There is" if len(machines) == 1 else "There are"
    return (
        f"{there} {count(len(machines), 'VirtualMachine')}: {named}{more}. Nobody would look after them. Delete them first, or"
        " uninstall all the same with `helm uninstall --no-hooks`: guests run on, and can be managed again once Kumulus is"
        " back"
    )


def _may_uninstall(session: Session) -> None:
    """Say whether Kumulus may be uninstalled: there are no VirtualMachines. Fails, and names some, when there are."""
    try:
        raws = session.cluster.objects(VirtualMachine.KIND)
    except errors.NotFound:  # not even the kind is there
        raws = []
    if (why := obstacle([(raw["metadata"]["namespace"], raw["metadata"]["name"]) for raw in raws])) is not None:
        raise Problem(why)
    session.printer.text("There are no VirtualMachines: Kumulus may be uninstalled.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "may-uninstall")(_may_uninstall)
