"""`kumulusctl vm explain`: gather what is known of a machine, and tell what `explain` makes of it.

What the user may not read is left out: a tenant sees no hosts and no work orders, and still gets what
the machine's own conditions say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml

from kumulus.api.base import PLATFORM_NAMESPACE, Kind, Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.order_names import instance_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.cli import overview, previewing
from kumulus.cli import vm as machines
from kumulus.cli.explain import explain
from kumulus.cli.facts import Absence, Facts, Finding, Level, SecretRef, image_names, secret_refs
from kumulus.cli.image import parse, resolve
from kumulus.cli.output import Format
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE, SECRET
from kumulus.kube.service import VM_NETWORK, Service

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

_MARKS = {
    Level.OK: ("ok", "green"),
    Level.NOTE: ("note", ""),
    Level.WAITING: ("waiting", "yellow"),
    Level.PROBLEM: ("problem", "red"),
}


def gather(session: Session, vm: VirtualMachine) -> Facts:
    """Read all that an explanation needs, as far as the user may."""
    namespace, host = session.namespace, vm.status.host
    type_, order = vm.spec.instance_type, instance_order_name(vm.uid)
    return Facts(
        vm=vm,
        now=session.now,
        instance_type=_typed(session, InstanceType, type_) if type_ else None,
        images={name: _image(session, name, namespace) for name in image_names(vm)},
        secrets={ref: _secret(session, ref, namespace) for ref in secret_refs(vm)},
        pools=[] if host else _pools(session),
        volumes={name: _typed(session, Volume, name, namespace) for name in _volumes(vm)},
        host=_typed(session, Host, host) if host else None,
        order=_typed(session, WorkOrder, order, host_namespace(host)) if host else None,
        services=_services(session, vm),
        controllers=controllers(session),
    )


def _volumes(vm: VirtualMachine) -> list[str]:
    """Names of the volumes that its disks are."""
    names = (disk.volume_of(vm.name) for disk in vm.spec.disks)
    return [name for name in names if name is not None]


def _visible(read: Callable[[], T | None]) -> T | Absence:
    try:
        found = read()
    except errors.Refused:
        return Absence.HIDDEN
    return Absence.MISSING if found is None else found


def _typed(session: Session, model: type[R], name: str, namespace: str | None = None) -> R | Absence:
    kind: Kind = model.KIND
    raw = _visible(lambda: session.cluster.find(kind, name, namespace))
    return raw if isinstance(raw, Absence) else model.parse(raw)


def _pools(session: Session) -> list[StoragePool]:
    try:
        return [StoragePool.parse(raw) for raw in session.cluster.objects(StoragePool.KIND)]
    except errors.Refused:
        return []


def _services(session: Session, vm: VirtualMachine) -> list[Service]:
    try:
        raws = session.cluster.objects(Service.KIND, session.namespace, labels=VM_NETWORK)
    except errors.Refused:
        return []
    return [service for service in map(Service.parse, raws) if service.selects(vm.metadata.labels)]


def _image(session: Session, name: str, namespace: str) -> Image | ClusterImage | Absence:
    raw = _visible(lambda: resolve(session, name, namespace))
    return raw if isinstance(raw, Absence) else parse(raw)


def _secret(session: Session, ref: SecretRef, namespace: str) -> bool | Absence:
    raw = _visible(lambda: session.cluster.find(SECRET, ref.name, namespace))
    return raw if isinstance(raw, Absence) else ref.key in (raw.get("data") or {})


def controllers(session: Session) -> str | None:
    """What is wrong with the controllers, if that can be seen."""
    namespace, name = PLATFORM_NAMESPACE, overview.CONTROLLERS_LEASE
    try:
        lease = session.cluster.find(LEASE, name, namespace)
    except errors.Refused:
        return None
    said = overview.controllers(lease, session.now)
    return None if overview.leads(lease, session.now) else f"Of the controllers, {said}."


def _explain(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the machine.", show_default=False)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where the machines of a file would go. Nothing is made.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--filename", "-f", metavar="FILE", help="Manifests, for --dry-run; - reads stdin.")
    ] = None,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Say of each host whether the machine would fit on it now, and why not.")
    ] = False,
) -> None:
    """Say why a machine is not what it shall be, and what to do; or where one would go before it is made.

    With --hosts and --dry-run the exit code is 3 when a machine would go nowhere. Both need to see all hosts and machines.
    """
    previewing.checked(name, file, dry_run=dry_run, hosts=hosts)
    if file is not None:
        previewing.rehearse(session, file)
        return
    raw = machines.fetch(session, name or "")
    if hosts:
        previewing.judge(session, raw)
        return
    vm = VirtualMachine.parse(raw)
    findings = explain(gather(session, vm))
    where = f" on {vm.status.host}" if vm.status.host else ""
    state = f"is {vm.status.phase}{where}" if vm.status.phase else "is new"
    gone = ", and being deleted" if vm.deleting else ""
    phase = vm.status.phase.value if vm.status.phase else None
    tell(session, vm, phase, findings, f"{vm.name} shall be {vm.spec.power_state}; it {state}{gone}.")


def tell(session: Session, item: Resource, phase: str | None, findings: list[Finding], title: str) -> None:
    """Print findings, for people or for programs."""
    if _for_programs(session, item, phase, findings):
        return
    printer = session.printer
    printer.line(title)
    for finding in findings:
        mark, style = _MARKS[finding.level]
        printer.line()
        printer.indented(one_line(finding.what), by=9, label=mark, label_style=style)
        if finding.todo:
            printer.indented(one_line(finding.todo), by=9, label="to do", label_style="bold")


def _for_programs(session: Session, item: Resource, phase: str | None, findings: list[Finding]) -> bool:
    if session.printer.format not in (Format.JSON, Format.YAML):
        return False
    body = {
        "name": item.name,
        "namespace": item.namespace,
        "phase": phase,
        "findings": [{"level": f.level.value, "what": f.what, "toDo": f.todo} for f in findings],
    }
    text = (
        json.dumps(body, indent=2) if session.printer.format is Format.JSON else yaml.safe_dump(body, sort_keys=False)
    )
    session.printer.text(text.rstrip("\n"))
    return True


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "explain")(_explain)
