"""`kumulusctl router` and `kumulusctl fip`: routers of a namespace, and addresses of the world."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.routing import FloatingIP, Router
from kumulus.cli import conditions
from kumulus.cli.amounts import age
from kumulus.cli.net import AllNamespaces, reason
from kumulus.cli.output import Column
from kumulus.cli.session import Session, command

Raw = dict[str, Any]


def _list(session: Session, all_namespaces: AllNamespaces = False) -> None:
    """Show the routers: their networks, their address in the world, and where they are."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(Router.KIND, namespace)
    if session.printer.objects(Router.KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[Router]] = [
        Column("Name", lambda router: router.name),
        Column("Networks", lambda router: ", ".join(router.spec.networks)),
        Column("External", lambda router: router.status.external_address or ""),
        Column("Phase", lambda router: router.status.phase.value if router.status.phase else "-"),
        Column("Reason", lambda router: reason(router.status)),
        Column("Active", lambda router: router.status.active_host or ""),
        Column("Standby", lambda router: ", ".join(router.status.standby_hosts)),
        Column("Age", lambda router: age(router.metadata.creation_timestamp, now), right=True),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda router: router.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(Router.parse, raws), empty=f"There are no routers {where}.")


def _show(session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the router.")]) -> None:
    """Show one router with its conditions, its networks and its floating addresses."""
    raw = session.fetch(Router.KIND, name, "router", "`kumulusctl router list -A` shows all")
    if session.printer.objects(Router.KIND, [raw], many=False):
        return
    router, printer, now = Router.parse(raw), session.printer, session.now
    spec, status = router.spec, router.status
    printer.facts(
        [
            ("Name", router.name),
            ("Namespace", router.namespace or ""),
            ("Phase", status.phase.value if status.phase else "-"),
            ("World", f"{spec.external_network}, {status.external_address or '-'}" if spec.external_network else ""),
            ("Source NAT", ("on" if spec.source_nat else "off") if spec.external_network else ""),
            ("Active", status.active_host or ""),
            ("Standby", ", ".join(status.standby_hosts)),
            ("Routes", ", ".join(f"{route.destination} by {route.next_hop}" for route in spec.static_routes)),
            ("Created", f"{age(router.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(router.metadata.deletion_timestamp, now)} ago" if router.deleting else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)
    if status.networks:
        printer.heading("Networks")
        printer.table(
            [
                Column("Name", lambda part: part.name),
                Column("Addresses", lambda part: ", ".join(part.addresses)),
            ],
            status.networks,
            empty="",
        )
    found = map(FloatingIP.parse, session.cluster.objects(FloatingIP.KIND, session.namespace))
    floating = [item for item in found if item.status.router == router.name]
    if floating:
        printer.heading("Floating addresses")
        printer.table(_columns(session), floating, empty="")


def _columns(session: Session) -> list[Column[FloatingIP]]:
    now = session.now
    return [
        Column("Name", lambda item: item.name),
        Column("Address", lambda item: item.status.address or ""),
        Column("For", _for),
        Column("Phase", lambda item: item.status.phase.value if item.status.phase else "-"),
        Column("Reason", lambda item: reason(item.status)),
        Column("Router", lambda item: item.status.router or ""),
        Column("Host", lambda item: item.status.host or ""),
        Column("Age", lambda item: age(item.metadata.creation_timestamp, now), right=True),
    ]


def _for(item: FloatingIP) -> str:
    """Whom it stands for, in short."""
    if item.spec.target is not None:
        return item.spec.target.interface
    return ", ".join(
        f"{one.protocol.value} {one.port} to {one.interface}"
        + (f":{one.target_port}" if one.target_port not in (None, one.port) else "")
        for one in item.spec.port_forwards
    )


def _list_floating(session: Session, all_namespaces: AllNamespaces = False) -> None:
    """Show the floating addresses, and whom they stand for."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(FloatingIP.KIND, namespace)
    if session.printer.objects(FloatingIP.KIND, raws, many=True):
        return
    columns = _columns(session)
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda item: item.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(FloatingIP.parse, raws), empty=f"There are no floating addresses {where}.")


def register(routers: typer.Typer, floating: typer.Typer) -> None:
    """Add the commands."""
    command(routers, "list")(_list)
    command(routers, "show")(_show)
    command(floating, "list")(_list_floating)
