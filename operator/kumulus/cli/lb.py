"""`kumulusctl lb`: the load balancers of a namespace, and which of their members are well."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.load_balancer import Listener, LoadBalancer, LoadBalancerMember
from kumulus.cli import conditions
from kumulus.cli.amounts import age
from kumulus.cli.net import AllNamespaces, reason
from kumulus.cli.output import Column
from kumulus.cli.session import Session, command

Raw = dict[str, Any]

KIND = LoadBalancer.KIND


def _port(listener: Listener) -> str:
    """A listener in short: protocol, port, and the members' port when it is another one."""
    target = listener.target_port
    return f"{listener.protocol.value} {listener.port}" + (
        f" to {target}" if target not in (None, listener.port) else ""
    )


def _list(session: Session, all_namespaces: AllNamespaces = False) -> None:
    """Show the load balancers: their addresses and ports, and how many members are well."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(KIND, namespace)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[LoadBalancer]] = [
        Column("Name", lambda lb: lb.name),
        Column("Network", lambda lb: lb.spec.network),
        Column("Addresses", lambda lb: ", ".join(lb.status.addresses)),
        Column("Listens", lambda lb: ", ".join(map(_port, lb.spec.listeners))),
        Column("Healthy", lambda lb: lb.status.healthy or ""),
        Column("Phase", lambda lb: lb.status.phase or "-"),
        Column("Reason", lambda lb: reason(lb.status)),
        Column("Age", lambda lb: age(lb.metadata.creation_timestamp, now), right=True),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda lb: lb.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(LoadBalancer.parse, raws), empty=f"There are no load balancers {where}.")


def _show(
    session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the load balancer.")]
) -> None:
    """Show one load balancer with its conditions and its members."""
    raw = session.fetch(KIND, name, "load balancer", "`kumulusctl lb list -A` shows all")
    if session.printer.objects(KIND, [raw], many=False):
        return
    balancer, printer, now = LoadBalancer.parse(raw), session.printer, session.now
    spec, status = balancer.spec, balancer.status
    selector = ", ".join(f"{key}={value}" for key, value in sorted((spec.members.selector or {}).items()))
    check = spec.health_check
    printer.facts(
        [
            ("Name", balancer.name),
            ("Namespace", balancer.namespace or ""),
            ("Phase", status.phase or "-"),
            ("Network", spec.network),
            ("Addresses", ", ".join(status.addresses)),
            ("Listens", ", ".join(map(_port, spec.listeners))),
            ("Members", f"machines with {selector}" if selector else ", ".join(spec.members.interfaces or ())),
            ("Healthy", status.healthy or ""),
            ("Check", f"{check.type.value} {check.path or ''}".strip() + f", every {check.interval_seconds} s"),
            ("Host", status.active_host or ""),
            ("Standby", ", ".join(status.standby_hosts)),
            ("Created", f"{age(balancer.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(balancer.metadata.deletion_timestamp, now)} ago" if balancer.deleting else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)
    if status.members:
        printer.heading("Members")
        columns: list[Column[LoadBalancerMember]] = [
            Column("Interface", lambda member: member.name),
            Column("Machine", lambda member: member.vm or ""),
            Column("Address", lambda member: member.address),
            Column("Healthy", lambda member: "yes" if member.healthy else "no"),
        ]
        printer.table(columns, status.members, empty="")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
