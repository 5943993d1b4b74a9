"""`kumulusctl vm import` and `vm unmanage`: a domain that is not Kumulus' own becomes a machine while it runs, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.machine_import import UNMANAGE, ImportPhase, PlanItem, VirtualMachineImport
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.cli import vm as machines
from kumulus.cli.output import Column, qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.cli.vm import Name
from kumulus.kube.errors import KubeError, NotFound

Raw = dict[str, Any]

KIND = VirtualMachineImport.KIND
SAID = frozenset({ImportPhase.PLANNED, ImportPhase.BLOCKED})
ENDED = frozenset({ImportPhase.SUCCEEDED, ImportPhase.FAILED, ImportPhase.BLOCKED})
PLAN_SECONDS = 30.0
ABSENT = ("HostFenced", "HostUnknown")
"""Reasons of a machine whose host does not answer."""


def chosen(found: list[UnmanagedInstance], host: str, domain: str) -> UnmanagedInstance:
    """The domain of that name or UUID. Pure. Raises `Problem`."""
    fits = [one for one in found if domain in (one.name, one.status.name)]
    if len(fits) == 1:
        return fits[0]
    names = ", ".join(sorted(one_line(one.status.name or one.name) for one in found)) or "none"
    if fits:
        raise Problem(f"Host {host} has {len(fits)} domains called {one_line(domain)}: name its UUID.")
    raise Problem(f"Host {host} has no domain {one_line(domain)} that is not Kumulus' own. It has: {names}.")


def pair(text: str, what: str) -> tuple[str, str]:
    """Both sides of `LEFT=RIGHT`. Pure. Raises `Problem`."""
    left, _, right = text.partition("=")
    if not left or not right:
        raise Problem(f"{one_line(text)} is not {what}.")
    return left, right


def template(namespace: str, name: str, disks: list[str], nics: list[str], instance_type: str | None) -> dict[str, Any]:
    """What the import is asked for. Pure. Raises `Problem`."""
    named = [pair(text, "TARGET=NAME, such as vda=root") for text in disks]
    placed = [pair(text, "MAC=NETWORK, such as 52:54:00:00:00:01=front") for text in nics]
    found: dict[str, Any] = {
        "namespace": namespace,
        "name": name,
        "disks": [{"target": target, "name": disk} for target, disk in named],
        "interfaces": [{"macAddress": mac.lower(), "network": network} for mac, network in placed],
    }
    return found | ({"instanceType": instance_type} if instance_type is not None else {})


def _await(session: Session, name: str, namespace: str, wanted: frozenset[ImportPhase], seconds: float) -> Raw:
    """Follow the import until it is in one of these phases. Raises `Problem`."""
    told = ""
    for raw in session.cluster.follow(KIND, name, namespace, seconds=seconds):
        if raw is None:
            raise Problem(f"The import {name} was deleted meanwhile.")
        item = VirtualMachineImport.parse(raw)
        ready = item.status.condition("Ready")
        if item.status.observed_generation == item.metadata.generation and item.status.phase in wanted:
            return raw
        if ready is not None and ready.message != told:
            told = ready.message
            session.printer.err.print(f"{item.status.phase}: {one_line(told)}")
    raise Problem(f"The import is not {' or '.join(sorted(wanted))} after {seconds:g}s ({one_line(told)}).")


@contextmanager
def _nothing_stays(session: Session, made: Raw, home: str) -> Iterator[None]:
    """Who stops here, by an error or by hand, leaves no import that is carried out another day."""
    try:
        yield
    except BaseException:
        with suppress(KubeError):
            _discard(session, made, home)
        raise


@contextmanager
def _goes_on(session: Session, made: Raw, home: str) -> Iterator[None]:
    """Who stops here by an error or by hand is told that the import does not."""
    try:
        yield
    except BaseException:
        name = made["metadata"]["name"]
        session.printer.err.print(f"The import goes on; to take it back: kubectl -n {home} delete vmimport {name}")
        raise


def _discard(session: Session, made: Raw, home: str) -> None:
    with suppress(NotFound):
        session.cluster.delete(KIND, made["metadata"]["name"], home, uid=made["metadata"]["uid"])


def _show(session: Session, raw: Raw) -> None:
    columns: list[Column[PlanItem]] = [
        Column("Item", lambda item: item.item),
        Column("When", lambda item: item.when),
        Column("Becomes", lambda item: item.becomes or ""),
        Column("Reason", lambda item: item.reason or ""),
        Column("Message", lambda item: item.message or ""),
    ]
    session.printer.table(columns, VirtualMachineImport.parse(raw).status.plan, empty="There is nothing to be said.")


def _import(
    session: Session,
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host that has the domain.", show_default=False)],
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its name or UUID.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the machine; the domain's when not given.")
    ] = None,
    disk: Annotated[
        list[str] | None, typer.Option("--disk", metavar="TARGET=NAME", help="How a disk is called, such as vda=root.")
    ] = None,
    nic: Annotated[
        list[str] | None,
        typer.Option("--nic", metavar="MAC=NETWORK", help="Network of the namespace that an interface comes into."),
    ] = None,
    instance_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="InstanceType; the domain's own size when not given.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Carry it out; else it is only said what would become of it.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 120,
) -> None:
    """Make a machine of a domain that is not Kumulus' own. The domain is not restarted."""
    home = host_namespace(host)
    found = [UnmanagedInstance.parse(raw) for raw in session.cluster.objects(UnmanagedInstance.KIND, home)]
    it = chosen(found, host, domain)
    wanted = template(session.namespace, name or it.status.name or it.name, disk or [], nic or [], instance_type)
    spec = {"unmanagedInstance": {"host": host, "name": it.name}, "template": wanted, "dryRun": True}
    made = session.cluster.create(KIND, {"metadata": {"generateName": "import-"}, "spec": spec}, home)
    item = made["metadata"]["name"]
    with _nothing_stays(session, made, home):
        raw = _await(session, item, home, SAID, PLAN_SECONDS)
        _show(session, raw)
    blocked = VirtualMachineImport.parse(raw).status.phase is ImportPhase.BLOCKED
    if blocked or not yes:
        _discard(session, made, home)
    if blocked:
        raise Problem("It cannot be imported, and nothing was done: see what is Never.")
    if not yes:
        session.printer.text("Nothing was done. The same with --yes carries it out.")
        return
    with _goes_on(session, made, home):
        session.cluster.patch(KIND, item, {"spec": {"dryRun": False}}, home)
        ended = VirtualMachineImport.parse(_await(session, item, home, ENDED, timeout))
    if ended.status.phase is ImportPhase.BLOCKED:  # it would be carried out once nothing is in the way any more
        _discard(session, made, home)
    if ended.status.phase is not ImportPhase.SUCCEEDED:
        ready = ended.status.condition("Ready")
        raise Problem(f"It was not imported: {one_line(ready.message) if ready is not None else ended.status.phase}")
    session.printer.done(VirtualMachine.KIND, machines.fetch(session, wanted["name"]), f"is what {domain} was")


def _unmanage(
    session: Session,
    name: Name,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 120,
) -> None:
    """Let go of a machine: its domain goes on as nobody's, with its disks where they are. Its objects are deleted."""
    vm = VirtualMachine.parse(machines.fetch(session, name))
    if vm.spec.deletion_protection and not vm.deleting:
        raise Problem(f"{name} is protected from deletion: set spec.deletionProtection to false first.")
    kind, where = VirtualMachine.KIND, vm.status.host or "no host"
    session.cluster.patch(kind, name, {"metadata": {"annotations": {UNMANAGE: "true"}}}, session.namespace)
    session.cluster.delete(kind, name, session.namespace, uid=vm.uid)
    _await_end(session, name, timeout)
    session.printer.text(f"{qualified(kind, name)} is nobody's; its domain is on {where} as it was")


def _await_end(session: Session, name: str, seconds: float) -> None:
    """Follow the machine until it is gone. Raises `Problem`, at once when only a host that does not answer can let go of it."""
    said = ""
    for raw in session.cluster.follow(VirtualMachine.KIND, name, session.namespace, seconds=seconds):
        if raw is None:
            return
        vm = VirtualMachine.parse(raw)
        ready = vm.status.condition("Ready")
        said = one_line(ready.message) if ready is not None and vm.deleting else ""
        if vm.deleting and ready is not None and ready.reason in ABSENT:
            raise Problem(f"{name} is not let go of yet, and will be without another command. {said}")
    raise Problem(f"{name} is still there after {seconds:g}s; it goes on by itself. {said}".rstrip())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "import")(_import)
    command(app, "unmanage")(_unmanage)
