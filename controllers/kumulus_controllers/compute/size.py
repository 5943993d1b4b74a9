"""The size of a machine: what its spec asks, what it has, and what it gets at its next start. Pure.

What was resolved once is kept (`status.resources`, `status.pendingResources`) until the spec asks for something else:
a changed offering never changes a machine behind its owner's back.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import ResolvedSize, VirtualMachineCondition, VirtualMachineSpec, VirtualMachineStatus
from kumulus.api.instance_order import InstanceFacts, InstanceOrder
from kumulus.api.quantity import from_bytes, to_bytes
from kumulus_controllers.compute import hardware
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope

MEMORY_UNIT = 1 << 20
"""Hypervisors give memory in whole MiB, rounded up. Bytes."""
ROOM_UNIT = 128 << 20
"""Room for memory that may come they give in pieces of at most this, rounded up. Bytes."""


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
    spec, status = scope.vm.spec, scope.vm.status
    for kept in (status.pending_resources, status.resources):
        if kept is not None and _asked_for(spec, kept):
            return kept
    if _from_before(scope):
        assert status.resources is not None
        return status.resources.model_copy(update={"instance_type": spec.instance_type})
    if spec.resources is not None:
        asked = spec.resources
        return ResolvedSize(cpus=asked.cpus, memory=asked.memory, max_cpus=asked.max_cpus, max_memory=asked.max_memory)
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
    return ResolvedSize(
        cpus=offering.spec.cpus,
        memory=offering.spec.memory,
        max_cpus=offering.spec.max_cpus,
        max_memory=offering.spec.max_memory,
        instance_type=offering.name,
    )


def _from_before(scope: Scope) -> bool:
    """Whether its status is of a controller that did not write down the type, and the spec is as it was then."""
    vm = scope.vm
    has = vm.status.resources
    unsaid = has is not None and has.instance_type is None and vm.status.pending_resources is None
    return unsaid and vm.spec.instance_type is not None and vm.status.observed_generation == vm.metadata.generation


def _asked_for(spec: VirtualMachineSpec, size: ResolvedSize) -> bool:
    if spec.resources is None:
        return size.instance_type == spec.instance_type
    asked = spec.resources
    found = ResolvedSize(cpus=asked.cpus, memory=asked.memory, max_cpus=asked.max_cpus, max_memory=asked.max_memory)
    return size.instance_type is None and _numbers(size) == _numbers(found)


def _numbers(size: ResolvedSize) -> tuple[int, int, int, int]:
    return size.cpus, size.memory_bytes, size.most_cpus, size.most_memory


def most_cpus(size: ResolvedSize) -> int | None:
    """CPUs that it can get while it is on, where that is more."""
    return size.most_cpus if size.most_cpus > size.cpus else None


def most_memory(size: ResolvedSize) -> int | None:
    """Bytes of memory that it can get while it is on, where that is more."""
    return size.most_memory if size.most_memory > size.memory_bytes else None


def is_ordered(size: ResolvedSize, order: InstanceOrder) -> bool:
    """Whether the order gives it that size."""
    ordered = (order.cpus, order.memory, order.max_cpus, order.max_memory)
    return ordered == (size.cpus, size.memory_bytes, most_cpus(size), most_memory(size))


def sizes(status: VirtualMachineStatus, given: ResolvedSize | None, facts: InstanceFacts | None, *, off: bool) -> Sizes:
    """What it has and what it gets, when its order says `given` and its host says `facts` of it. `off`: it has no guest, and
    begins with what is given."""
    given, has = given or granted(status), status.resources
    running = facts if facts is not None and facts.cpus is not None and facts.memory is not None else None
    if running is None and not off and has is not None and given is not None:
        return Sizes(has) if _same(has, given) else Sizes(has, given)
    if given is None or running is None or _is(given, running):
        return Sizes(given)
    if status.resources is not None and _is(status.resources, running):
        return Sizes(status.resources, given)
    has_now = ResolvedSize(
        cpus=running.cpus or 0,
        memory=from_bytes(running.memory or 0),
        max_cpus=running.max_cpus,
        max_memory=from_bytes(running.max_memory) if running.max_memory is not None else None,
    )
    return Sizes(has_now, given)


def _same(one: ResolvedSize, other: ResolvedSize) -> bool:
    return (_numbers(one), one.instance_type) == (_numbers(other), other.instance_type)


def _is(size: ResolvedSize, facts: InstanceFacts) -> bool:
    units = -(-size.memory_bytes // MEMORY_UNIT)
    return size.cpus == facts.cpus and units == -(-(facts.memory or 0) // MEMORY_UNIT) and _is_room(size, facts)


def _is_room(size: ResolvedSize, facts: InstanceFacts) -> bool:
    """Whether it can get as much while it is on; room for memory is rounded up."""
    cpus, memory = facts.max_cpus or facts.cpus, facts.max_memory or facts.memory or 0
    return size.most_cpus == cpus and -MEMORY_UNIT < memory - size.most_memory < ROOM_UNIT


def unsuited(scope: Scope, size: ResolvedSize) -> Problem | None:
    """Why a machine that has its place cannot have that size there, whatever room there is."""
    if (why := hardware.topology_lack(scope.vm, size.most_cpus)) is not None:
        return no_room(size, why, reason="CpuTopologyInvalid")
    labels = scope.host.labels if scope.host is not None else {}
    wants = scope.instance_type.spec.host_selector if size.instance_type and scope.instance_type else {}
    for key, value in wants.items():
        if labels.get(key) != value:
            return no_room(
                size, f"its host is without label {key}={value}, which InstanceType {size.instance_type} asks for"
            )
    for image in scope.images.values():
        if image.spec.min_memory is not None and size.memory_bytes < to_bytes(image.spec.min_memory):
            return no_room(size, f"image {image.name} needs {image.spec.min_memory} of memory", reason="MemoryTooSmall")
    return None


def no_room(size: ResolvedSize, lack: str, *, reason: str = "NoRoomOnHost") -> Problem:
    """Its host cannot give it that size; `lack` says why."""
    return Problem(
        reason,
        f"It cannot have {size.cpus} CPUs and {size.memory} of memory: {lack}. It keeps the size it has until that is otherwise,"
        " or another one is asked for.",
        VirtualMachineCondition.RESTART_REQUIRED,
        hinders=False,
    )


def changes(found: Sizes, unanswered: InstanceFacts | None = None) -> list[str]:
    """What a restart changes, in words. `unanswered`: what its host says of it, if it has not read its order yet: what it can
    give it without a restart is none of it."""
    now, pending, host = found.now, found.pending, unanswered or InstanceFacts()
    if now is None or pending is None:
        return []
    said = []
    if now.cpus != pending.cpus and not now.cpus < pending.cpus <= (host.max_cpus or 0):
        said.append(f"CPUs {now.cpus} to {pending.cpus}")
    elastic = unanswered is not None and now.max_memory is not None
    soon = elastic and pending.memory_bytes <= max(host.max_memory or 0, now.memory_bytes)
    if now.memory_bytes != pending.memory_bytes and not soon:
        said.append(f"memory {now.memory} to {pending.memory}")
    if now.most_cpus != pending.most_cpus:
        said.append(f"maxCpus {now.most_cpus} to {pending.most_cpus}")
    if not -MEMORY_UNIT < now.most_memory - pending.most_memory < ROOM_UNIT:
        said.append(f"maxMemory {from_bytes(now.most_memory)} to {from_bytes(pending.most_memory)}")
    return said
