"""The size of a machine: what its spec asks, what it has, and what it gets at its next start. Pure.

What was resolved once is kept (`status.resources`, `status.pendingResources`) until the spec asks for something else:
a changed offering never changes a machine behind its owner's back.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import ResolvedSize, VirtualMachineCondition, VirtualMachineSpec, VirtualMachineStatus
from kumulus.api.instance_order import InstanceFacts
from kumulus.api.quantity import from_bytes, to_bytes
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope

MEMORY_UNIT = 1 << 20
"""Hypervisors give memory in whole MiB, rounded up. Bytes."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a machine has, and what it gets at its next start where that is another size."""

    now: ResolvedSize | None
    pending: ResolvedSize | None = None


def granted(status: VirtualMachineStatus) -> ResolvedSize | None:
    """The size that room is kept for: the one of the next start."""
    return status.pending_resources or status.resources


def wanted_size(scope: Scope) -> ResolvedSize | Problem:
    """The size that the spec asks for, as it was resolved when it asked for that first; or why it cannot be had."""
    spec, kept = scope.vm.spec, granted(scope.vm.status)
    if kept is not None and _asked_for(spec, kept):
        return kept
    if spec.resources is not None:
        return ResolvedSize(cpus=spec.resources.cpus, memory=spec.resources.memory)
    offering = scope.instance_type
    if offering is None or offering.deleting:
        return Problem(
            "InstanceTypeNotFound",
            f"There is no InstanceType {spec.instance_type}. What there is: kubectl get instancetypes.",
        )
    allowed = offering.spec.allowed_namespaces
    if allowed and scope.vm.namespace not in allowed:
        return Problem(
            "InstanceTypeNotAllowed", f"InstanceType {offering.name} may not be used in namespace {scope.vm.namespace}."
        )
    return ResolvedSize(cpus=offering.spec.cpus, memory=offering.spec.memory, instance_type=offering.name)


def _asked_for(spec: VirtualMachineSpec, size: ResolvedSize) -> bool:
    if spec.resources is None:
        return size.instance_type == spec.instance_type
    asked = (spec.resources.cpus, to_bytes(spec.resources.memory))
    return size.instance_type is None and (size.cpus, size.memory_bytes) == asked


def sizes(status: VirtualMachineStatus, given: ResolvedSize | None, facts: InstanceFacts | None) -> Sizes:
    """What it has and what it gets, when its order says `given` and its host says `facts` of it."""
    given = given or granted(status)
    running = facts if facts is not None and facts.cpus is not None and facts.memory is not None else None
    if given is None or running is None or _is(given, running):
        return Sizes(given)
    if status.resources is not None and _is(status.resources, running):
        return Sizes(status.resources, given)
    return Sizes(ResolvedSize(cpus=running.cpus or 0, memory=from_bytes(running.memory or 0)), given)


def _is(size: ResolvedSize, facts: InstanceFacts) -> bool:
    units = -(-size.memory_bytes // MEMORY_UNIT)
    return size.cpus == facts.cpus and units == -(-(facts.memory or 0) // MEMORY_UNIT)


def no_room(size: ResolvedSize, lack: str) -> Problem:
    """Its host cannot give it that size."""
    return Problem(
        "NoRoomOnHost",
        f"It cannot have {size.cpus} CPUs and {size.memory} of memory: {lack}. It keeps the size it has until there is room"
        " or it asks for less.",
        VirtualMachineCondition.RESTART_REQUIRED,
        hinders=False,
    )


def changes(found: Sizes) -> list[str]:
    """What a restart changes, in words."""
    now, pending = found.now, found.pending
    if now is None or pending is None:
        return []
    said = []
    if now.cpus != pending.cpus:
        said.append(f"CPUs {now.cpus} to {pending.cpus}")
    if now.memory_bytes != pending.memory_bytes:
        said.append(f"memory {now.memory} to {pending.memory}")
    return said
