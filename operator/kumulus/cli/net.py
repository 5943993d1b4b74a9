"""`kumulusctl net` and `kumulusctl nic`: the networks of a namespace, and the interfaces in them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.base import Status
from kumulus.api.network import DEFAULT_GROUP, Network, NetworkInterface, NetworkStatus
from kumulus.cli import conditions
from kumulus.cli.amounts import age
from kumulus.cli.output import Column
from kumulus.cli.session import Session, command
from kumulus.kube import errors

Raw = dict[str, Any]

KIND = Network.KIND

AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")]


def reason(status: Status) -> str:
    """Why it cannot be used, in a word; empty when it can."""
    ready = status.condition("Ready")
    return ready.reason if ready is not None and ready.status != "True" else ""


def _number(value: int | None) -> str:
    return str(value) if value is not None else ""


def _list(session: Session, all_namespaces: AllNamespaces = False) -> None:
    """Show the networks: their ranges, and how many addresses are in use."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(KIND, namespace)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[Network]] = [
        Column("Name", lambda n: n.name),
        Column("Type", lambda n: n.spec.type.value),
        Column("Ranges", lambda n: ", ".join(n.spec.cidrs)),
        Column("Phase", lambda n: n.status.phase or "-"),
        Column("Reason", lambda n: reason(n.status)),
        Column("Addresses", lambda n: _number(n.status.allocated), right=True),
        Column("Hosts", lambda n: _number(n.status.hosts), right=True),
        Column("Age", lambda n: age(n.metadata.creation_timestamp, now), right=True),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda n: n.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(Network.parse, raws), empty=f"There are no networks {where}.")


def _interfaces_of(session: Session, network: Network) -> list[NetworkInterface]:
    """The interfaces in a network, as far as the user may see them: of one that several namespaces share, those of his own."""
    try:
        raws = session.cluster.objects(NetworkInterface.KIND, fields=f"spec.network={network.name}")
    except errors.Refused:
        fields = f"spec.network={network.name}"
        raws = session.cluster.objects(NetworkInterface.KIND, session.namespace, fields=fields)
    found = map(NetworkInterface.parse, raws)
    return [nic for nic in found if (nic.spec.network_namespace or nic.namespace) == network.namespace]


def _show(session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the network.")]) -> None:
    """Show one network with its conditions and the interfaces in it."""
    raw = session.fetch(KIND, name, "network", "`kumulusctl net list -A` shows all")
    if session.printer.objects(KIND, [raw], many=False):
        return
    network, printer, now = Network.parse(raw), session.printer, session.now
    status, spec = network.status, network.spec
    ranges = [f"{part.start} to {part.end}" for part in spec.dhcp.ranges]
    printer.facts(
        [
            ("Name", network.name),
            ("Namespace", network.namespace or ""),
            ("Type", spec.type.value),
            ("Phase", status.phase or "-"),
            ("Class", spec.network_class or "the default"),
            ("Ranges", ", ".join(spec.cidrs)),
            ("Given out", ", ".join(ranges)),
            ("DHCP", "on" if spec.dhcp.enabled else "off: guests set their addresses themselves"),
            ("Kept", f"{', '.join(status.gateways)} for a router" if status.gateways else ""),
            ("Services", ", ".join(status.services)),
            ("Domain", spec.dns.domain or ""),
            ("In use", f"{status.allocated} addresses" if status.allocated is not None else ""),
            ("Hosts", _number(status.hosts)),
            ("MTU", _number(status.mtu)),
            ("Made by", f"{status.driver.value}, {_carried(status)}" if status.driver is not None else ""),
            ("Open to", ", ".join(spec.allowed_namespaces)),
            ("Created", f"{age(network.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(network.metadata.deletion_timestamp, now)} ago" if network.deleting else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)
    interfaces = _interfaces_of(session, network)
    if interfaces:
        printer.heading("Interfaces")
        columns = _columns(session, with_network=False)
        if any(nic.namespace != network.namespace for nic in interfaces):
            columns.insert(0, Column("Namespace", lambda nic: nic.namespace or ""))
        printer.table(columns, interfaces, empty="")


def _columns(session: Session, *, with_network: bool) -> list[Column[NetworkInterface]]:
    now = session.now
    columns: list[Column[NetworkInterface]] = [
        Column("Name", lambda nic: nic.name),
        Column("Phase", lambda nic: nic.status.phase.value if nic.status.phase else "-"),
        Column("Reason", lambda nic: reason(nic.status)),
        Column("Addresses", lambda nic: ", ".join(nic.status.addresses)),
        Column("MAC", lambda nic: nic.status.mac_address or ""),
        Column("Machine", lambda nic: nic.status.vm or ""),
        Column("Host", lambda nic: nic.status.host or ""),
        Column("Groups", lambda nic: ", ".join(nic.spec.security_groups or (DEFAULT_GROUP,))),
        Column("Age", lambda nic: age(nic.metadata.creation_timestamp, now), right=True),
    ]
    if with_network:
        columns.insert(1, Column("Network", _network))
    return columns


def _network(nic: NetworkInterface) -> str:
    """The network as people of the interface's namespace call it."""
    foreign = nic.spec.network_namespace
    return f"{foreign}/{nic.spec.network}" if foreign not in (None, nic.namespace) else nic.spec.network


def _list_interfaces(session: Session, all_namespaces: AllNamespaces = False) -> None:
    """Show the interfaces: their addresses, and which machine has them."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(NetworkInterface.KIND, namespace)
    if session.printer.objects(NetworkInterface.KIND, raws, many=True):
        return
    columns = _columns(session, with_network=True)
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda nic: nic.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    found = map(NetworkInterface.parse, raws)
    session.printer.table(columns, found, empty=f"There are no network interfaces {where}.")


def _show_interface(
    session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the network interface.")]
) -> None:
    """Show one interface with its conditions, and where its traffic is counted."""
    raw = session.fetch(NetworkInterface.KIND, name, "network interface", "`kumulusctl nic list` shows all")
    if session.printer.objects(NetworkInterface.KIND, [raw], many=False):
        return
    nic, now = NetworkInterface.parse(raw), session.now
    spec, status, width = nic.spec, nic.status, nic.spec.bandwidth
    limits = (
        [f"{bits} {way}" for bits, way in ((width.inbound, "in"), (width.outbound, "out")) if bits] if width else []
    )
    session.printer.facts(
        [
            ("Name", nic.name),
            ("Namespace", nic.namespace or ""),
            ("Phase", status.phase.value if status.phase else "-"),
            ("Network", _network(nic)),
            ("Addresses", ", ".join(status.addresses)),
            ("MAC", status.mac_address or ""),
            ("Groups", ", ".join(spec.security_groups or (DEFAULT_GROUP,))),
            ("May use", ", ".join(pair.address for pair in spec.allowed_address_pairs)),
            ("Bandwidth", ", ".join(limits)),
            ("Machine", status.vm or ""),
            ("Host", status.host or ""),
            ("Uid", nic.uid),
            ("Created", f"{age(nic.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(nic.metadata.deletion_timestamp, now)} ago" if nic.deleting else ""),
        ]
    )
    conditions.show(session.printer, status.conditions, now)
    if status.host is not None:
        session.printer.heading("Traffic and drops")
        for metric in ("kumulus_network_interface_*", "kumulus_network_dropped_packets_total"):
            session.printer.line(f'  {metric}{{interface="{nic.uid}"}} in the metrics of the agent of {status.host}')


def register(networks: typer.Typer, interfaces: typer.Typer) -> None:
    """Add the commands."""
    command(networks, "list")(_list)
    command(networks, "show")(_show)
    command(interfaces, "list")(_list_interfaces)
    command(interfaces, "show")(_show_interface)


def _carried(status: NetworkStatus) -> str:
    """What leads to other hosts."""
    return f"VLAN {status.vlan} of {status.physical_network}" if status.vlan is not None else f"VNI {status.vni}"
