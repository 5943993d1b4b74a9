"""`explain` of networks, interfaces, routers, floating IPs and load balancers: why it is not as it shall be, and what to do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeVar

import typer

from kumulus.api.base import PAUSED, ConditionStatus, Resource, Status
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import FloatingIP, Router
from kumulus.cli.amounts import age
from kumulus.cli.explaining import controllers, tell
from kumulus.cli.facts import Finding, Level
from kumulus.cli.hints import hint
from kumulus.cli.problem import Problem, as_sentence
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

R = TypeVar("R", bound=Resource)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]

_SAY_THE_SAME = frozenset({"Stalled", "Reconciling"})
"""Beside Ready, which says so too."""


def explain(item: Resource, status: Status, *, now: datetime, trouble: str | None) -> list[Finding]:
    """The findings, the most important one first. `trouble`: what is wrong with the controllers. Never empty. Pure."""
    kind, namespace = item.KIND.kind, item.namespace or ""
    found: list[Finding] = []
    if item.paused:
        todo = f"kubectl -n {namespace} annotate {kind.lower()} {item.name} {PAUSED}-"
        found.append(Finding(Level.PROBLEM, f"The annotation {PAUSED} tells Kumulus to leave it alone.", todo))
    elif (status.observed_generation or 0) < item.metadata.generation:
        what = (
            "No controller has looked at it yet."
            if not status.observed_generation
            else "Its last change was not seen yet."
        )
        if trouble:
            found.append(
                Finding(Level.PROBLEM, f"{what} {as_sentence(trouble)}", "Start the controllers (`kumulus run`).")
            )
        else:
            found.append(Finding(Level.WAITING, what, "`kumulusctl status` shows whether the controllers run."))
    if item.deleting:
        found.append(Finding(Level.WAITING, f"It was deleted {age(item.metadata.deletion_timestamp, now)} ago."))
    stalled = {one.reason for one in status.conditions if one.type == "Stalled" and one.status is ConditionStatus.TRUE}
    for one in status.conditions:
        if one.type in _SAY_THE_SAME or one.status is ConditionStatus.TRUE:
            continue
        stuck = one.reason in stalled
        level = Level.PROBLEM if stuck else Level.WAITING if one.type == "Ready" else Level.NOTE
        said = f"{one.type} is {one.status} ({one.reason}): {as_sentence(one.message or one.reason)}"
        found.append(Finding(level, said, hint(one.reason, namespace=namespace, name=item.name)))
    if not found:
        ready = status.condition("Ready")
        message = f": {as_sentence(ready.message)}" if ready is not None and ready.message else "."
        found.append(Finding(Level.OK, f"All is well{message}"))
    return found


def _register(app: typer.Typer, model: type[R], what: str) -> None:
    def run(session: Session, name: Name) -> None:
        raw = session.cluster.find(model.KIND, name, session.namespace)
        if raw is None:
            raise Problem(f"There is no {what} {one_line(name)} in namespace {session.namespace}.")
        item = model.parse(raw)
        status: Status = item.status  # type: ignore[attr-defined]  # each of these kinds has one
        findings = explain(item, status, now=session.now, trouble=controllers(session))
        phase = raw.get("status", {}).get("phase")
        tell(session, item, phase, findings, f"{item.name} is {phase or 'new'}.")

    run.__doc__ = f"Say why a {what} is not as it shall be, and what to do."
    command(app, "explain")(run)


def register(
    networks: typer.Typer, interfaces: typer.Typer, routers: typer.Typer, floating: typer.Typer, balancers: typer.Typer
) -> None:
    """Add the commands."""
    _register(networks, Network, "network")
    _register(interfaces, NetworkInterface, "network interface")
    _register(routers, Router, "router")
    _register(floating, FloatingIP, "floating IP")
    _register(balancers, LoadBalancer, "load balancer")
