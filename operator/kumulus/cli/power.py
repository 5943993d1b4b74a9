"""`kumulusctl vm start|stop|restart|pause|suspend|resume|resize`: each is one patch of the machine's spec, as the user.

A forced stop has to say so in the spec, and must not make every later stop a forced one. So it notes in
an annotation what the spec said before, and the next start or ordinary stop puts that back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kumulus.api.base import DOMAIN
from kumulus.api.compute import Phase, PowerState, StopMode, VirtualMachine
from kumulus.cli import vm as machines
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.vm import Name

STOP_MODE_BEFORE = f"{DOMAIN}/stop-mode-before"

Patch = dict[str, Any]


def power_patch(vm: VirtualMachine, wanted: PowerState, *, force: bool = False) -> Patch:
    """The merge patch that asks for that power state. Pure."""
    patch: Patch = {"spec": {"powerState": wanted.value}}
    before = vm.metadata.annotations.get(STOP_MODE_BEFORE)
    if force:
        patch["spec"]["stop"] = {"mode": StopMode.FORCE.value}
        if before is None and vm.spec.stop.mode is not StopMode.FORCE:
            patch["metadata"] = {"annotations": {STOP_MODE_BEFORE: vm.spec.stop.mode.value}}
    elif before is not None:
        patch["spec"]["stop"] = {"mode": before}
        patch["metadata"] = {"annotations": {STOP_MODE_BEFORE: None}}
    return patch


def size_patch(
    vm: VirtualMachine,
    type_: str | None,
    cpus: int | None,
    memory: str | None,
    max_cpus: int | None = None,
    max_memory: str | None = None,
) -> Patch:
    """The merge patch that asks for that size. Pure. Raises `Problem`: what is not given is not known either."""
    if type_ is not None:
        if (cpus, memory, max_cpus, max_memory) != (None, None, None, None):
            raise Problem("An instance type gives the whole size: give --type, or --cpus and --memory.")
        return {"spec": {"instanceType": type_, "resources": None}}
    if (cpus, memory, max_cpus, max_memory) == (None, None, None, None):
        raise Problem("Give --type, or --cpus, --memory or both.")
    has = vm.spec.resources or vm.status.pending_resources or vm.status.resources
    if has is None and (cpus is None or memory is None):
        raise Problem(f"{vm.name} has no size yet: give both --cpus and --memory.")
    size: Patch = {
        "cpus": cpus if cpus is not None or has is None else has.cpus,
        "memory": memory if memory is not None or has is None else has.memory,
    }
    most = {
        "maxCpus": max_cpus if max_cpus is not None or has is None else has.max_cpus,
        "maxMemory": max_memory if max_memory is not None or has is None else has.max_memory,
    }
    size.update({name: value for name, value in most.items() if value is not None})
    return {"spec": {"instanceType": None, "resources": size}}


def _apply(session: Session, name: str, patch: Mapping[str, Any], said: str) -> None:
    raw = session.cluster.patch(VirtualMachine.KIND, name, patch, session.namespace)
    session.printer.done(VirtualMachine.KIND, raw, said)


def _get(session: Session, name: str) -> VirtualMachine:
    vm = VirtualMachine.parse(machines.fetch(session, name))
    if vm.deleting:
        raise Problem(f"{name} is being deleted.")
    return vm


def _start(session: Session, name: Name) -> None:
    """Start a machine that is stopped, paused or suspended."""
    vm = _get(session, name)
    already = vm.spec.power_state is PowerState.RUNNING
    _apply(session, name, power_patch(vm, PowerState.RUNNING), "is to run already" if already else "will start")


def _stop(
    session: Session,
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Cut the power instead of pressing the button; the guest may lose data.")
    ] = False,
) -> None:
    """Stop a machine; its disks stay as they are."""
    vm = _get(session, name)
    already = vm.spec.power_state is PowerState.STOPPED and not force
    _apply(
        session,
        name,
        power_patch(vm, PowerState.STOPPED, force=force),
        "is to be stopped already" if already else "will stop",
    )


def _restart(session: Session, name: Name) -> None:
    """Restart a machine once."""
    vm = _get(session, name)
    if vm.spec.power_state is not PowerState.RUNNING:
        raise Problem(f"{name} is {vm.spec.power_state}, not Running; `kumulusctl vm start {name}` starts it.")
    request = session.now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    _apply(session, name, {"spec": {"restartRequest": request}}, "will restart")


def _pause(session: Session, name: Name) -> None:
    """Freeze a running machine; it keeps its memory and its host."""
    vm = _get(session, name)
    if vm.spec.power_state is PowerState.STOPPED:
        raise Problem(f"{name} is stopped, so there is nothing to pause; `kumulusctl vm start {name}` starts it.")
    _apply(session, name, power_patch(vm, PowerState.PAUSED), "will pause")


def _suspend(session: Session, name: Name) -> None:
    """Keep a running machine's memory on its host's disk and take its power away; `vm resume` lets it go on."""
    vm = _get(session, name)
    if vm.spec.power_state is PowerState.STOPPED:
        raise Problem(f"{name} is stopped, so there is nothing to suspend; `kumulusctl vm start {name}` starts it.")
    _apply(session, name, power_patch(vm, PowerState.SUSPENDED), "will be suspended")


def _resume(session: Session, name: Name) -> None:
    """Let a machine go on that is paused or suspended."""
    vm = _get(session, name)
    if vm.spec.power_state is PowerState.STOPPED:
        raise Problem(f"{name} is stopped, not paused or suspended; `kumulusctl vm start {name}` starts it.")
    _apply(session, name, power_patch(vm, PowerState.RUNNING), "will go on")


def _resize(
    session: Session,
    name: Name,
    type_: Annotated[str | None, typer.Option("--type", metavar="NAME", help="An InstanceType.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Virtual CPUs, when no type is given.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory, such as 4Gi, when no type is given.")
    ] = None,
    max_cpus: Annotated[
        int | None, typer.Option("--max-cpus", min=1, help="As many CPUs as it can get while it is on.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="As much memory as it can get while it is on.")
    ] = None,
) -> None:
    """Give a machine another size; one that is on gets what it can at once, the rest at its next start."""
    vm = _get(session, name)
    on = vm.status.phase not in (None, Phase.STOPPED, Phase.PENDING, Phase.SCHEDULING)
    later = f"gets at once what it can of that size, and the rest at its next start: `kumulusctl vm restart {name}`"
    patch = size_patch(vm, type_, cpus, memory, max_cpus, max_memory)
    _apply(session, name, patch, later if on else "gets that size")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "start")(_start)
    command(app, "stop")(_stop)
    command(app, "restart")(_restart)
    command(app, "pause")(_pause)
    command(app, "suspend")(_suspend)
    command(app, "resume")(_resume)
    command(app, "resize")(_resize)
