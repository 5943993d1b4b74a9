"""What of a lab runs, as tables for people. Looks only; starts and stops nothing."""

from __future__ import annotations

from rich.table import Column, Table

from kumulus_lab import links, openvswitch
from kumulus_lab.lab import Lab
from kumulus_lab.outside import GATEWAYS, LEG, WORLD
from kumulus_lab.processes import Daemon
from kumulus_lab.state import Networking


def processes(lab: Lab) -> Table:
    """The processes of a lab, with where their logs are."""
    table = Table(
        "process", "state", "pid", Column("log", overflow="fold"), title=f"lab {lab.name}", title_justify="left"
    )
    names = ["etcd", "kube-apiserver", "kube-controller-manager", "images", "controllers"]
    if lab.state.simulated:
        names.append("fleet")
    if lab.network is not None:
        names.append("outside")
    for name in names:
        _row(table, Daemon.within(lab.directory, name))
    return table


def hosts(lab: Lab) -> Table:
    """The libvirt hosts of a lab."""
    services = ["libvirtd", *(openvswitch.DAEMONS if lab.state.networking is Networking.OVN else ()), "agent"]
    table = Table("host", "address", "power", "cable", *services, title="libvirt hosts", title_justify="left")
    cut, slow = links.cuts(lab), links.rates(lab)
    for host in lab.hosts:
        on = host.running()
        cable = "-"
        if on:
            cable = f"cut: {', '.join(cut[host.name])}" if cut[host.name] else "plugged"
            cable += f"; slow: {', '.join(slow[host.name])}" if slow[host.name] else ""
        states = ["running" if host.daemon(name).running() else "-" for name in services]
        table.add_row(host.name, host.address, "on" if on else "off", cable, *states)
    return table


def outside(lab: Lab) -> Table:
    """The network outside, where there is one."""
    table = Table("namespace", "client", "behind it", "hosts' leg", title="outside network", title_justify="left")
    if (network := lab.network) is not None:
        table.add_row(network.outside.namespace, ", ".join(GATEWAYS), ", ".join(WORLD), LEG)
    return table


def _row(table: Table, daemon: Daemon) -> None:
    identity = daemon.identity()
    pid = str(identity.pid) if identity else "-"
    table.add_row(daemon.name, "running" if identity else "-", pid, str(daemon.log))
