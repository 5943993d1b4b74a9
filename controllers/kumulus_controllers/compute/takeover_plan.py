"""Which machines of a fenced host start elsewhere, in which order, and why others do not. Pure (ADR 33)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from kumulus.api.compute import PowerState, RestartPolicy, VirtualMachine, VirtualMachineCondition
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.machine_import import UNMANAGE
from kumulus.runtime.clock import parse_time
from kumulus.runtime.conditions import Fact
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope

ASPECT = VirtualMachineCondition.HIGH_AVAILABILITY
NO_HOST = "NoHostFits"


def hindrance(scope: Scope, now: datetime) -> Problem | None:
    """Why the machine could not be started elsewhere, whatever happens to its host; None: it could."""
    return hindrance_of_place(scope) or _given_up(scope.vm, now)


def hindrance_of_place(scope: Scope) -> Problem | None:
    """What of the machine is on its host alone."""
    vm = scope.vm
    local = _local(scope)
    if local:
        return _problem(
            "LocalDisks",
            f"Disks that only its host has: {', '.join(local)}. A machine starts elsewhere only with all its disks in pools that"
            " hosts share.",
        )
    moving = sorted(use.volume.name for use in scope.volumes.values() if use.volume.status.moving_to is not None)
    if moving:
        why = f"Volume {moving[0]} is being moved from one pool to another, and only its host knows how far that is."
        return _problem("VolumeMoves", why)
    if vm.spec.firmware is not None and vm.spec.firmware.tpm:
        return _problem(
            "TpmOnHost", "What its TPM keeps is on its host's disk; with another TPM its guest may not start."
        )
    kept = scope.order is not None and scope.order.status.state is WorkState.SUSPENDED
    if vm.spec.power_state is PowerState.SUSPENDED or kept:
        return _problem("MemoryOnHost", "It is suspended, and its memory is on its host's disk.")
    return None


def elsewhere(host: Host, hosts: Iterable[str]) -> Problem | None:
    """Why a machine must wait that another host than its fenced one has an order of: it was being moved, and its guest may be
    there (ADR 29). `hosts`: those that have an order of it."""
    others = sorted(set(hosts) - {host.name})
    if not others:
        return None
    return _problem(
        "Moving",
        f"It was being moved between host {host.name} and host {others[0]}, which may have its guest: its"
        " VirtualMachineMigration ends first.",
    )


def _given_up(vm: VirtualMachine, now: datetime) -> Problem | None:
    ha, lately = vm.spec.high_availability, recent(vm, now)
    if len(lately) < ha.max_restarts:
        return None
    return _problem(
        "GaveUp",
        f"It was started elsewhere {len(lately)} times within {ha.window_seconds} s, as often as highAvailability.maxRestarts"
        " allows: it may be what takes its hosts down. It stays where it is until that is longer ago, or allowed.",
    )


def _local(scope: Scope) -> list[str]:
    """Disks that cannot be had from another host."""
    return sorted(
        disk.name
        for disk in scope.vm.spec.disks
        if disk.ephemeral is not None
        or ((use := scope.volumes.get(disk.name)) is not None and use.pool is not None and not use.shared)
    )


def let_go(vm: VirtualMachine, epoch: int) -> bool:
    """Whether the end of the machine leaves the domain of that placement as it is: it is the last one."""
    unmanaged = vm.deleting and vm.metadata.annotations.get(UNMANAGE) == "true"
    return unmanaged and epoch >= (vm.status.epoch or 0)


def recent(vm: VirtualMachine, now: datetime) -> tuple[str, ...]:
    """When it was started elsewhere, as far as that still counts."""
    since = now - timedelta(seconds=vm.spec.high_availability.window_seconds)
    return tuple(text for text in vm.status.failovers if (at := _time(text)) is not None and at > since)


def _time(text: str) -> datetime | None:
    try:
        return parse_time(text)
    except (ValueError, TypeError):
        return None


def wanted(vm: VirtualMachine, order: WorkOrder | None) -> bool:
    """Whether a machine on a fenced host is to be on, and was not off by itself."""
    if not vm.spec.high_availability.enabled or vm.deleting or vm.paused:
        return False
    if vm.spec.power_state not in (PowerState.RUNNING, PowerState.PAUSED):
        return False
    ended = order is not None and order.status.state is WorkState.STOPPED and order.status.reason is not None
    return vm.spec.restart_policy is RestartPolicy.ALWAYS or not ended


def ahead(vm: VirtualMachine, others: Iterable[VirtualMachine]) -> str | None:
    """Name of a machine of a fenced host that comes first, and could be started: of a higher priority, and nothing is known to
    hinder it."""
    priority = vm.spec.high_availability.priority
    for other in others:
        if other.uid != vm.uid and other.spec.high_availability.priority > priority and wanted(other, None):
            said = other.status.condition(ASPECT)
            if said is None or said.status == "True":
                return f"{other.namespace}/{other.name}"
    return None


def waits_for_room(vm: VirtualMachine) -> bool:
    """Whether its host is fenced, and no other one had room for it."""
    said = vm.status.condition(ASPECT)
    return said is not None and said.reason == NO_HOST


def fact(scope: Scope, problem: Problem | None, now: datetime) -> Fact:
    """The condition HighAvailability; none for a machine that does not ask for it."""
    if not scope.vm.spec.high_availability.enabled or scope.vm.deleting:
        return Fact(ASPECT, None)
    if problem is not None and problem.aspect == ASPECT:
        return Fact(ASPECT, False, problem.reason, problem.message)
    if (found := hindrance(scope, now)) is not None:
        return Fact(ASPECT, False, found.reason, found.message)
    said = "When its host is fenced it is started elsewhere. (A host that is only silent may still run it.)"
    return Fact(ASPECT, True, "Protected", said)


def left_there(host: Host, vm: VirtualMachine) -> str:
    """What is said of a machine that is on a fenced host and is not started elsewhere."""
    why = "spec.highAvailability is not enabled, so it is not started elsewhere"
    if vm.spec.high_availability.enabled:
        why = "its condition HighAvailability says why it is not started elsewhere"
    return f"Host {host.name} is off for certain, and the machine with it; it starts when the host is back: {why}."


def _problem(reason: str, message: str) -> Problem:
    return Problem(reason, message, ASPECT, stalled=False)
