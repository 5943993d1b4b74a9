"""`kumulusctl vm`: list, show, delete, wait."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from kumulus.api.compute import Interface, Phase, VirtualMachine
from kumulus.api.disks import Disk
from kumulus.api.hardware import Firmware
from kumulus.cli import conditions
from kumulus.cli.amounts import age, count
from kumulus.cli.output import Column, qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

Raw = dict[str, Any]

KIND = VirtualMachine.KIND

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the machine.", show_default=False)]


class Goal(StrEnum):
    """What `vm wait` can wait for."""

    RUNNING = "Running"
    READY = "Ready"
    STOPPED = "Stopped"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    DELETED = "Deleted"


def fetch(session: Session, name: str) -> Raw:
    """The machine of that name. Raises `Problem` when there is none."""
    return session.fetch(KIND, name, "machine", "`kumulusctl vm list -A` shows all, -n NAME chooses a namespace")


def reached(raw: Raw | None, goal: Goal) -> bool:
    """Whether the machine is there, by a status that answers its present spec. Pure."""
    if raw is None or goal is Goal.DELETED:
        return raw is None and goal is Goal.DELETED
    vm = VirtualMachine.parse(raw)
    if (vm.status.observed_generation or 0) < vm.metadata.generation:
        return False
    restarting = vm.spec.restart_request is not None and vm.spec.restart_request != vm.status.last_restart_request
    match goal:
        case Goal.READY:
            condition = vm.status.condition("Ready")
            return not restarting and condition is not None and condition.status == "True"
        case Goal.RUNNING:
            return not restarting and vm.status.phase in (Phase.RUNNING, Phase.MIGRATING)
        case _:
            return vm.status.phase is not None and vm.status.phase.value == goal.value


def await_goal(session: Session, name: str, goal: Goal, seconds: float) -> Raw | None:
    """Follow the machine until it is there. Raises `Problem` when it is not in time, or is gone instead."""
    last: Raw | None = None
    seen = False
    for raw in session.cluster.follow(KIND, name, session.namespace, seconds=seconds):
        if reached(raw, goal):
            return raw
        if raw is None:
            how = "was deleted meanwhile" if seen else f"is not in namespace {session.namespace}"
            raise Problem(f"The machine {one_line(name)} {how}.")
        seen, last = True, raw
    phase = (last or {}).get("status", {}).get("phase") or "not seen by a controller yet"
    wanted = "there" if goal is Goal.DELETED else "not " + goal.value
    raise Problem(
        f"{name} is still {wanted} after {seconds:g}s (it is {one_line(phase)}); `kumulusctl vm explain {name}` says why."
    )


def _reason(vm: VirtualMachine) -> str:
    """Why it is not what it shall be, in a word; empty when it is."""
    ready = vm.status.condition("Ready")
    return ready.reason if ready is not None and ready.status != "True" else ""


def _list(
    session: Session,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
) -> None:
    """Show the machines: where they are and what state they are in."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(KIND, namespace)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[VirtualMachine]] = [
        Column("Name", lambda vm: vm.name),
        Column("Phase", lambda vm: vm.status.phase or "-"),
        Column("Reason", _reason),
        Column("Host", lambda vm: vm.status.host or ""),
        Column("CPUs", lambda vm: str(vm.status.resources.cpus) if vm.status.resources else "", right=True),
        Column("Memory", lambda vm: vm.status.resources.memory if vm.status.resources else "", right=True),
        Column("Age", lambda vm: age(vm.metadata.creation_timestamp, now), right=True),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda vm: vm.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(VirtualMachine.parse, raws), empty=f"There are no machines {where}.")


def _content(vm: VirtualMachine, disk: Disk) -> str:
    """What a disk is, in two words."""
    if disk.cdrom is not None:
        return f"disc {disk.cdrom.image}" if disk.cdrom.image is not None else "empty drive"
    return f"image {disk.image}" if disk.image is not None else f"volume {disk.volume_of(vm.name)}"


def _attached_to(item: Interface) -> str:
    """What an interface is in, or is, in two words."""
    return f"network {item.network}" if item.network is not None else f"interface {item.interface}"


def _hardware(vm: VirtualMachine) -> str:
    """What it is made of, where that is known or was asked for."""
    spec, status = vm.spec, vm.status
    firmware = spec.firmware or Firmware()
    said = [status.machine_type, status.cpu_model, firmware.type.value if spec.firmware else None]
    said += ["Secure Boot" if firmware.secure_boot else None, "TPM" if firmware.tpm else None]
    said.append(f"watchdog ({spec.watchdog.action})" if spec.watchdog else None)
    return ", ".join(text for text in said if text)


def _guest(vm: VirtualMachine) -> str:
    """What the guest says of itself."""
    found = vm.status.guest
    return ", ".join(text for text in (found.hostname, found.os, *found.addresses) if text) if found else ""


def _show(session: Session, name: Name) -> None:
    """Show one machine with its conditions."""
    raw = fetch(session, name)
    if session.printer.objects(KIND, [raw], many=False):
        return
    vm, printer, now = VirtualMachine.parse(raw), session.printer, session.now
    status, spec = vm.status, vm.spec
    size = f"{count(status.resources.cpus, 'CPU')}, {status.resources.memory}" if status.resources else ""
    if spec.instance_type:
        size = f"{spec.instance_type} ({size})" if size else spec.instance_type
    if status.pending_resources is not None:
        pending = status.pending_resources
        size += f"; at its next start {count(pending.cpus, 'CPU')}, {pending.memory}"
    disks = [f"{d.name} ({_content(vm, d)})" for d in spec.disks]
    printer.facts(
        [
            ("Name", vm.name),
            ("Namespace", vm.namespace or ""),
            ("Phase", status.phase or "-"),
            ("Wanted", f"{spec.power_state}, restart policy {spec.restart_policy}"),
            ("Host", status.host or "none yet"),
            ("Zone", status.zone or spec.zone or ""),
            ("Size", size),
            ("Hardware", _hardware(vm)),
            ("Disks", ", ".join(disks)),
            ("Interfaces", ", ".join(f"{i.name} ({_attached_to(i)})" for i in spec.interfaces)),
            ("Addresses", ", ".join(status.addresses)),
            ("Guest", _guest(vm)),
            ("Hours", f"{status.scheduled.action} at {status.scheduled.at}" if status.scheduled else ""),
            ("Started", f"{age(status.started_at, now)} ago" if status.started_at else ""),
            ("Restarts", str(status.restarts) if status.restarts else ""),
            ("Created", f"{age(vm.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(vm.metadata.deletion_timestamp, now)} ago" if vm.deleting else ""),
            ("Protected", "from deletion" if spec.deletion_protection else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)


def _delete(
    session: Session,
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 120,
) -> None:
    """Delete a machine, its disks and the volumes it brought along."""
    vm = VirtualMachine.parse(fetch(session, name))
    if vm.spec.deletion_protection and not vm.deleting:
        raise Problem(
            f"{name} is protected from deletion; if you mean it, turn that off first: kubectl -n {session.namespace} "
            f"""patch vm {name} --type=merge -p '{{"spec":{{"deletionProtection":false}}}}'"""
        )
    session.cluster.delete(KIND, name, session.namespace, uid=vm.uid)
    if wait:
        await_goal(session, name, Goal.DELETED, timeout)
    session.printer.text(f"{qualified(KIND, name)} {'deleted' if wait else 'is being deleted'}")


def _wait(
    session: Session,
    name: Name,
    goal: Annotated[Goal, typer.Option("--for", help="What to wait for.")] = Goal.RUNNING,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 300,
) -> None:
    """Wait until a machine is in a state."""
    raw = await_goal(session, name, goal, timeout)
    if raw is None:
        session.printer.text(f"{qualified(KIND, name)} is gone")
    else:
        session.printer.done(KIND, raw, f"is {goal.value}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
    command(app, "delete")(_delete)
    command(app, "wait")(_wait)
