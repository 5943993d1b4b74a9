"""`kumulusctl host maintenance`: have a host emptied, or kept as it is, while somebody works on it; and open it again (ADR 38)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.fabric import Host, HostCondition
from kumulus.api.maintenance import MaintenanceMode, MaintenanceStatus
from kumulus.cli.problem import Problem, Usage
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

KIND = Host.KIND


def said(host: Host) -> str:
    """How far it is, in a line. Pure."""
    found = host.status.condition(HostCondition.MAINTENANCE)
    if host.status.maintenance is None or found is None:
        return "the controllers have not begun"
    return f"{host.status.maintenance.phase}: {one_line(found.message)}"


def answered(host: Host, generation: int) -> MaintenanceStatus | None:
    """How far the maintenance is that was asked for then; None: nobody has looked at it yet. Pure."""
    found = host.status.maintenance
    return found if found is not None and (found.observed_generation or 0) >= generation else None


def may_begin(host: Host, generation: int) -> bool:
    """Whether whoever works on the host may begin. Pure."""
    ready = host.status.condition(HostCondition.MAINTENANCE)
    return answered(host, generation) is not None and ready is not None and ready.status == "True"


def _maintenance(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the host.", show_default=False)],
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Machines on it stay; it only takes no new ones, and is not fenced.")
    ] = False,
    return_guests: Annotated[
        bool, typer.Option("--return-guests", help="Machines that leave come back when it is over.")
    ] = False,
    end: Annotated[bool, typer.Option("--end", help="It is over, or is to be cancelled.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until you may begin, or all are back.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 1800,
) -> None:
    """Empty a host so that somebody can work on it: each machine leaves as its evictionPolicy says.

    It says how far that is, and what is in the way of those that cannot leave. It goes on when this command ends.
    """
    if end and (in_place or return_guests):
        raise Usage("--end goes with neither --in-place nor --return-guests.")
    if in_place and return_guests:
        raise Usage("--return-guests is for hosts that are emptied: it does not go with --in-place.")
    session.fetch(KIND, name, "host", "`kumulusctl host list` shows all")
    wanted: dict[str, Any] | None = None
    if not end:
        mode = MaintenanceMode.IN_PLACE if in_place else MaintenanceMode.EVACUATE
        wanted = {"mode": mode.value, "returnGuests": return_guests}
    host = Host.parse(session.cluster.patch(KIND, name, {"spec": {"maintenance": wanted}}))
    if wait:
        _await(session, host, timeout, end=end)
    raw = session.cluster.find(KIND, name) or {}
    now = Host.parse(raw) if raw else host
    session.printer.done(KIND, raw, _done(now, end=end, wait=wait))


def _done(host: Host, *, end: bool, wait: bool) -> str:
    if not wait:
        return "is opened again" if end else "is being prepared for maintenance"
    return "is open again" if end else f"may be worked on: {said(host)}"


def _await(session: Session, host: Host, seconds: float, *, end: bool) -> None:
    """Follow it. Raises `Problem` when it is not so in time; it goes on by itself then."""
    generation, told, last = host.metadata.generation, "", "the controllers have not begun"
    for raw in session.cluster.follow(KIND, host.name, seconds=seconds):
        if raw is None:
            raise Problem(f"The host {host.name} was removed meanwhile.")
        now = Host.parse(raw)
        if (now.spec.maintenance is None) is not end:
            raise Problem(f"Somebody else has {'begun' if end else 'ended'} the maintenance of {host.name} meanwhile.")
        if (end and now.status.maintenance is None) or (not end and may_begin(now, generation)):
            return
        if end or answered(now, generation) is not None:
            last = said(now)
        if last != told:
            told = last
            session.printer.err.print(f"{host.name}: {last}")
    todo = "" if end else f" To cancel it: kumulusctl host maintenance {host.name} --end"
    raise Problem(f"After {seconds:g}s it is not done yet ({last}). It goes on by itself.{todo}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "maintenance")(_maintenance)
