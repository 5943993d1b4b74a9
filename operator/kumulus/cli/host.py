"""`kumulusctl host`: list, show, cordon, uncordon, remove; what is about fencing is in `fencing`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.base import FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Capacity, Host, host_namespace
from kumulus.api.storage import PoolHost, StoragePool
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.api.witness import Statement
from kumulus.cli import conditions, fencing
from kumulus.cli.amounts import age, count, size
from kumulus.cli.output import Column, qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

Raw = dict[str, Any]

KIND = Host.KIND

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the host.", show_default=False)]


def fetch(session: Session, name: str) -> Raw:
    """The host of that name. Raises `Problem` when there is none."""
    return session.fetch(KIND, name, "host", "`kumulusctl host list` shows all")


def machines_on(session: Session, host: str) -> list[VirtualMachine]:
    """The machines that are placed there, of all namespaces."""
    raws = session.cluster.objects(VirtualMachine.KIND)
    return [VirtualMachine.parse(raw) for raw in raws if raw.get("status", {}).get("host") == host]


def share(of: Capacity | None, allocated: Capacity | None) -> str:
    """`3/16 CPUs, 2 GiB/30 GiB`: what is promised of what may be."""
    if of is None:
        return ""
    done = allocated or Capacity()
    return f"{done.cpus}/{of.cpus} CPUs, {size(done.memory)}/{size(of.memory)}"


def _reason(host: Host) -> str:
    ready = host.status.condition("Ready")
    if ready is not None and ready.status != "True":
        return ready.reason
    return "Cordoned" if host.spec.unschedulable else ""


def _list(session: Session) -> None:
    """Show the hosts: their state and what is promised of them."""
    raws = session.cluster.objects(KIND)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[Host]] = [
        Column("Name", lambda h: h.name),
        Column("Zone", lambda h: h.spec.zone),
        Column("Phase", lambda h: h.status.phase or "-"),
        Column("Reason", _reason),
        Column("VMs", lambda h: str(h.status.instances or 0), right=True),
        Column("CPUs", lambda h: _of(h, "cpus"), right=True),
        Column("Memory", lambda h: _of(h, "memory"), right=True),
        Column("Age", lambda h: age(h.metadata.creation_timestamp, now), right=True),
    ]
    empty = "There are no hosts yet; `kumulusctl host add NAME --zone ZONE` makes one."
    session.printer.table(columns, map(Host.parse, raws), empty=empty)


def _of(host: Host, what: str) -> str:
    """Promised of what may be promised, in short."""
    total = host.status.allocatable
    if total is None:
        return ""
    done = host.status.allocated or Capacity()
    if what == "cpus":
        return f"{done.cpus}/{total.cpus}"
    return f"{done.memory / 2**30:.1f}/{total.memory / 2**30:.1f}Gi"


def _show(session: Session, name: Name) -> None:
    """Show one host: what it has, what is on it, and how it does."""
    raw = fetch(session, name)
    if session.printer.objects(KIND, [raw], many=False):
        return
    host, printer, now = Host.parse(raw), session.printer, session.now
    status, versions, cpu = host.status, host.status.versions, host.status.cpu
    printer.facts(
        [
            ("Name", host.name),
            ("Zone", host.spec.zone),
            ("Phase", status.phase or "-"),
            ("Schedulable", "no: cordoned" if host.spec.unschedulable else ""),
            ("Taints", ", ".join(f"{t.key}={t.value}:{t.effect}" for t in host.spec.taints)),
            ("Only for", ", ".join(host.spec.allowed_namespaces)),
            ("Namespace", status.namespace or ""),
            ("Addresses", ", ".join(status.addresses)),
            ("Processor", _join(cpu.vendor, cpu.model, cpu.architecture, cpu.acceleration) if cpu else ""),
            ("Has", f"{count(status.capacity.cpus, 'CPU')}, {size(status.capacity.memory)}" if status.capacity else ""),
            ("Promised", share(status.allocatable, status.allocated)),
            ("Agent", (versions.agent if versions else None) or ""),
            ("Hypervisor", _join(host.spec.hypervisor, versions.hypervisor if versions else None)),
            ("Emulator", (versions.emulator if versions else None) or ""),
            ("System", _join(versions.os, versions.kernel) if versions else ""),
            ("Added", f"{age(host.metadata.creation_timestamp, now)} ago"),
        ]
    )
    conditions.show(printer, status.conditions, now)
    _witnesses(session, host)
    _machines(session, name)
    _pools(session, name)
    _unmanaged(session, name)


def _witnesses(session: Session, host: Host) -> None:
    if not host.status.witnesses:
        return
    session.printer.heading("What witnesses say of it while it is silent")
    columns: list[Column[Statement]] = [
        Column("Witness", lambda item: item.witness),
        Column("By", lambda item: item.kind),
        Column("Says", lambda item: item.says),
        Column("Message", lambda item: item.message or ""),
    ]
    session.printer.table(columns, host.status.witnesses, empty="")


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _machines(session: Session, name: str) -> None:
    session.printer.heading("Machines on it")
    try:
        machines = machines_on(session, name)
    except errors.Refused:
        session.printer.line("  you may not see the machines of all namespaces")
        return
    if not machines:
        session.printer.line("  none")
        return
    columns: list[Column[VirtualMachine]] = [
        Column("Namespace", lambda vm: vm.namespace or ""),
        Column("Name", lambda vm: vm.name),
        Column("Phase", lambda vm: vm.status.phase or "-"),
        Column("CPUs", lambda vm: str(vm.status.resources.cpus) if vm.status.resources else "", right=True),
        Column("Memory", lambda vm: vm.status.resources.memory if vm.status.resources else "", right=True),
    ]
    session.printer.table(columns, machines, empty="")


def _pools(session: Session, name: str) -> None:
    session.printer.heading("Pools on it")
    try:
        pools = [StoragePool.parse(raw) for raw in session.cluster.objects(StoragePool.KIND)]
    except errors.Refused:
        session.printer.line("  you may not see the pools")
        return
    rows = [(pool.name, entry) for pool in pools for entry in pool.status.hosts if entry.name == name]
    if not rows:
        session.printer.line("  none: a machine needs a StoragePool that this host has")
        return
    columns: list[Column[tuple[str, PoolHost]]] = [
        Column("Name", lambda row: row[0]),
        Column("Ready", lambda row: "True" if row[1].ready else "False"),
        Column("Used", lambda row: size(row[1].used), right=True),
        Column("Capacity", lambda row: size(row[1].capacity), right=True),
        Column("Message", lambda row: row[1].message or ""),
    ]
    session.printer.table(columns, rows, empty="")


def _unmanaged(session: Session, name: str) -> None:
    try:
        raws = list(session.cluster.objects(UnmanagedInstance.KIND, host_namespace(name)))
    except (errors.Refused, errors.NotFound):  # who may not see them, or a cluster that does not know them yet
        return
    found = sorted((UnmanagedInstance.parse(raw) for raw in raws), key=lambda item: item.status.name or "")
    if not found:
        return
    session.printer.heading(f"{count(len(found), 'domain')} that Kumulus leaves alone")
    columns: list[Column[UnmanagedInstance]] = [
        Column("Name", lambda item: item.status.name or ""),
        Column("State", lambda item: item.status.state or ""),
        Column("CPUs", lambda item: str(item.status.cpus or ""), right=True),
        Column("Memory", lambda item: size(item.status.memory), right=True),
        Column("Disks", lambda item: str(len(item.status.disks)), right=True),
        Column("NICs", lambda item: str(len(item.status.nics)), right=True),
        Column("UUID", lambda item: item.name),
    ]
    session.printer.table(columns, found, empty="")


def _cordon(session: Session, name: Name) -> None:
    """Keep new machines away from a host; those on it stay."""
    fetch(session, name)
    session.printer.done(KIND, session.cluster.patch(KIND, name, {"spec": {"unschedulable": True}}), "cordoned")


def _uncordon(session: Session, name: Name) -> None:
    """Let new machines come to a host again."""
    fetch(session, name)
    session.printer.done(KIND, session.cluster.patch(KIND, name, {"spec": {"unschedulable": False}}), "uncordoned")


def _remove(
    session: Session,
    name: Name,
    force_detach: Annotated[
        bool,
        typer.Option(
            "--force-detach",
            help="The machine is gone for good: forget what ran on it. Never use it while the host may still run.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 120,
) -> None:
    """Remove a host from the cloud, with its namespace and its agent's credentials."""
    host = Host.parse(fetch(session, name))
    on_it = machines_on(session, name)
    if on_it and not force_detach:
        names = ", ".join(f"{vm.namespace}/{vm.name}" for vm in on_it[:5]) + (", ..." if len(on_it) > 5 else "")
        raise Problem(
            f"On {name} there is still {count(len(on_it), 'machine')} ({names}): delete them first. If the host itself is gone for "
            "good, --force-detach removes it all the same."
        )
    if force_detach:
        session.cluster.patch(KIND, name, {"metadata": {"annotations": {FORCE_DETACH: "true"}}})
    session.cluster.delete(KIND, name, uid=host.uid)
    if wait:
        _await_gone(session, name, timeout)
    session.printer.text(f"{qualified(KIND, name)} {'removed' if wait else 'is being removed'}")


def _await_gone(session: Session, name: str, seconds: float) -> None:
    last: Raw | None = None
    for last in session.cluster.follow(KIND, name, seconds=seconds):
        if last is None:
            return
    stalled = Host.parse(last or {}).status.condition("Stalled")
    why = f": {one_line(stalled.message)}" if stalled is not None and stalled.message else ""
    raise Problem(f"The host {name} is still there after {seconds:g}s{why}; `kumulusctl host show {name}` says more.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
    command(app, "cordon")(_cordon)
    command(app, "uncordon")(_uncordon)
    command(app, "remove")(_remove)
    fencing.register(app)
