"""Deriving a machine's status: phase and conditions from what is so. Pure; nothing here is stored to decide by."""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.base import FORCE_DETACH, PAUSED, ConditionStatus
from kumulus.api.compute import (
    GuestInfo,
    Phase,
    PowerState,
    ResolvedSize,
    VirtualMachineCondition,
    VirtualMachineStatus,
)
from kumulus.api.fabric import HostPhase
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_order import InstanceFacts, MigrationState
from kumulus.api.volumes import CacheMode
from kumulus.runtime.clock import parse_time
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.compute import hardware, takeover_plan
from kumulus_controllers.compute.links import addresses, attached
from kumulus_controllers.compute.movable import migratable
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import Resolution
from kumulus_controllers.compute.schedule import Hours, Unreadable
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.size import Sizes, changes, sizes
from kumulus_controllers.orders import claim

PHASES: dict[WorkState | None, Phase] = {
    None: Phase.STARTING,
    WorkState.PENDING: Phase.STARTING,
    WorkState.WAITING: Phase.PROVISIONING,
    WorkState.WORKING: Phase.PROVISIONING,
    WorkState.STARTING: Phase.STARTING,
    WorkState.RUNNING: Phase.RUNNING,
    WorkState.PAUSED: Phase.PAUSED,
    WorkState.SUSPENDED: Phase.SUSPENDED,
    WorkState.STOPPING: Phase.STOPPING,
    WorkState.STOPPED: Phase.STOPPED,
    WorkState.BACK_OFF: Phase.CRASH_LOOP_BACK_OFF,
    WorkState.FAILED: Phase.FAILED,
    WorkState.REFUSED: Phase.FAILED,
    WorkState.READY: Phase.RUNNING,
}
"""Phase of a placed machine by the state of its work order."""

ON_ITS_WAY = (WorkState.RUNNING, WorkState.PAUSED, WorkState.STOPPED, WorkState.WORKING)
"""States of the order of a machine that moves: it runs; it has left, or come, and is halted for the moment."""

DISC_ELSEWHERE = ("TrayLocked", "ImageNotReady")
"""Reasons of a machine that is on, and has not got the disc in a drive that it is to have."""

SILENT = (HostPhase.UNKNOWN, HostPhase.FENCING, HostPhase.FENCED)
"""Phases of a host that does not answer, or takes no machines yet."""

REACHED = {power: Phase(power.value) for power in PowerState}
"""The phase that a wanted power state ends in."""


UNSATISFIED_MOST = 8
"""So many broken rules are told."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the machine is."""

    host: str
    zone: str
    epoch: int


def placed(scope: Scope) -> Placed | None:
    """Where the machine is placed: its status says so, or its work order does when the status was lost."""
    status = scope.vm.status
    if status.host is not None and status.epoch is not None:
        return Placed(status.host, status.zone or "", status.epoch)
    return None


def phase_of(scope: Scope, where: Placed | None, problem: Problem | None) -> Phase:
    """The state in one word."""
    if scope.vm.deleting:
        return Phase.TERMINATING
    if where is None:
        if problem is not None and problem.reason != "NoHostFits":
            return Phase.PENDING
        return Phase.SCHEDULING
    if scope.host is not None and scope.host.fenced:
        return Phase.STOPPED
    if scope.host is None or scope.host.status.phase in SILENT:
        return Phase.UNKNOWN
    if scope.order is None:
        return Phase.STARTING
    if moves(scope.order):
        return Phase.MIGRATING
    return PHASES[scope.order.status.state]


def moves(order: WorkOrder) -> bool:
    """Whether its guest is on its way to another host, or has come and the order there does not say so yet."""
    instance, said = order.spec.instance, order.status.instance
    if instance is None or claim(order) == 0:
        return False
    migration = said.migration if said is not None else None
    failed = migration is not None and migration.state is MigrationState.FAILED
    return not failed and order.status.state in ON_ITS_WAY


def derive_status(
    scope: Scope,
    where: Placed | None,
    resolution: Resolution | None,
    problem: Problem | None,
    now: str,
    *,
    size: ResolvedSize | None = None,
    too_large: Problem | None = None,
    failovers: tuple[str, ...] | None = None,
) -> VirtualMachineStatus:
    """The whole status. `size`: what its order gives it at its next start; `too_large`: why that is not what it asks for;
    `failovers`: when it was started elsewhere, if that changes."""
    vm, before = scope.vm, scope.vm.status
    phase = phase_of(scope, where, problem)
    facts = [
        _ready(scope, phase, problem),
        _scheduled(where, problem),
        _volumes(scope, problem),
        _network(scope, problem),
    ]
    if vm.spec.power_state is PowerState.PAUSED or phase is Phase.PAUSED:
        facts.append(
            Fact(
                VirtualMachineCondition.PAUSED,
                phase is Phase.PAUSED,
                "PausedByUser" if phase is Phase.PAUSED else "NotYet",
            )
        )
    instance = scope.order.status.instance if scope.order else None
    found = sizes(before, resolution.size if resolution else size, instance, off=_without_a_guest(scope))
    facts.append(_agent(instance))
    facts.append(_on_schedule(scope.hours))
    facts.append(_restart_required(scope, found, too_large))
    facts.append(_satisfied(scope, where))
    facts.append(migratable(scope, phase))
    facts.append(takeover_plan.fact(scope, problem, parse_time(now)))
    facts.append(_progress(scope, phase, facts[0], problem))
    return VirtualMachineStatus(
        observed_generation=vm.metadata.generation,
        conditions=derive(before.conditions, facts, generation=vm.metadata.generation, now=now),
        phase=phase,
        host=where.host if where else None,
        zone=where.zone or None if where else None,
        epoch=where.epoch if where else before.epoch,
        started_at=instance.started_at if instance else None,
        restarts=instance.restarts or None if instance else None,
        failovers=before.failovers if failovers is None else failovers,
        eviction=before.eviction,
        last_restart_request=instance.last_restart_request if instance else before.last_restart_request,
        resources=found.now if where else before.resources,
        pending_resources=found.pending if where else None,
        cpu_model=_cpu_model(scope, where),
        machine_type=(instance.machine_type if instance else None) or before.machine_type,
        addresses=addresses(scope),
        scheduled=scope.hours.told if isinstance(scope.hours, Hours) else None,
        guest=_guest(instance),
        images=resolution.images if resolution and where else before.images,
    )


def _cpu_model(scope: Scope, where: Placed | None) -> str | None:
    """The processor that its order says; before there is one, the one that it had."""
    order = scope.order.spec.instance if scope.order is not None else None
    if order is None or where is None:
        return scope.vm.status.cpu_model
    return order.shape.cpu_model if order.shape is not None else None


def _guest(instance: InstanceFacts | None) -> GuestInfo | None:
    """What the guest says of itself."""
    said = instance.guest if instance is not None else None
    if said is None:
        return None
    return GuestInfo(hostname=said.hostname, os=said.os, agent_version=said.agent_version, addresses=said.addresses)


def _on_schedule(found: Hours | Unreadable | None) -> Fact:
    """Whether its schedule is followed, and how."""
    followed = VirtualMachineCondition.ON_SCHEDULE
    if found is None:
        return Fact(followed, None)
    if isinstance(found, Unreadable):
        message = f"The schedule is not followed, and the machine runs at any time: {found.message}."
        return Fact(followed, False, "ScheduleInvalid", message)
    if found.runs:
        return Fact(followed, True, "WithinHours", f"It is stopped at {found.told.at}.")
    return Fact(followed, True, "OutsideHours", f"It is off until {found.told.at}.")


def _agent(instance: InstanceFacts | None) -> Fact:
    """Whether its guest's agent answers; not said of a guest that never had one."""
    connected = VirtualMachineCondition.AGENT_CONNECTED
    if instance is None or instance.guest is None:
        return Fact(connected, None)
    if instance.guest.connected:
        return Fact(connected, True, "AgentAnswers")
    return Fact(connected, False, "AgentSilent", "The guest's agent does not answer; what it said last may be old.")


def _ready(scope: Scope, phase: Phase, problem: Problem | None) -> Fact:
    ready = VirtualMachineCondition.READY
    if _left_alone(scope):
        return Fact(
            ready,
            False,
            "LeftAlone",
            f"The annotation {PAUSED} tells Kumulus to leave the machine alone, so it is not removed either. To let it go:"
            f" kubectl annotate vm {scope.vm.name} {PAUSED}-",
        )
    if problem is not None and problem.hinders and not scope.vm.deleting:
        return Fact(ready, False, problem.reason, problem.message)
    if phase is Phase.UNKNOWN and scope.host is None:
        return Fact(
            ready,
            False,
            "HostGone",
            f"Host {scope.vm.status.host} was removed, and the machine's ephemeral disks with it: delete the machine and make it again.",
        )
    if phase is Phase.UNKNOWN:
        host = scope.vm.status.host
        return Fact(
            ready,
            ConditionStatus.UNKNOWN,
            "HostUnknown",
            f"Host {host} does not answer. The machine may still run there; it is not started elsewhere, so that it never runs twice.",
        )
    if phase is Phase.STOPPED and scope.host is not None and scope.host.fenced and not scope.vm.deleting:
        off = scope.vm.spec.power_state is PowerState.STOPPED
        return Fact(ready, off, "HostFenced", takeover_plan.left_there(scope.host, scope.vm))
    if phase is Phase.TERMINATING and problem is not None and problem.aspect == ready:
        return Fact(ready, False, problem.reason, problem.message)
    wanted = REACHED[scope.vm.spec.power_state]
    reason, message = _said(scope.order)
    if phase is Phase.TERMINATING and scope.host is not None and scope.host.fencing and _let_go(scope):
        return Fact(
            ready,
            False,
            "HostFenced",
            f"Host {scope.host.name} is fenced. When it is back its agent lets go of the machine's domain, and leaves it as it"
            " finds it. If the host is gone for good:"
            f" kubectl annotate vm {scope.vm.name} {FORCE_DETACH}=true",
        )
    if phase is Phase.TERMINATING and scope.host is not None and scope.host.status.phase in SILENT:
        return Fact(
            ready,
            False,
            "HostUnknown",
            f"Host {scope.host.name} does not answer, so the machine cannot be removed from it. If the host is gone for good:"
            f" kubectl annotate vm {scope.vm.name} {FORCE_DETACH}=true",
        )
    if phase is Phase.TERMINATING:
        return Fact(ready, False, "Terminating", message or "The machine is being removed from its host.")
    if phase in (wanted, Phase.MIGRATING) and scope.order is not None and _current(scope.order):
        return Fact(ready, True, str(phase), message)
    return Fact(ready, False, reason or str(phase), message)


def _let_go(scope: Scope) -> bool:
    """Whether its end waits for a host that is to leave its domain as it is."""
    instance = scope.order.spec.instance if scope.order is not None else None
    return instance is not None and takeover_plan.let_go(scope.vm, instance.epoch)


def _without_a_guest(scope: Scope) -> bool:
    """Whether it is off for sure, by an answer to its order as it is now."""
    if scope.order is None:
        return True
    if moves(scope.order):
        return False
    return _current(scope.order) and scope.order.status.state in (WorkState.STOPPED, WorkState.BACK_OFF)


def _restart_required(scope: Scope, found: Sizes, too_large: Problem | None) -> Fact:
    """All that waits for the next start, by name."""
    required, waits = VirtualMachineCondition.RESTART_REQUIRED, _waiting(scope, found)
    if waits and not scope.vm.deleting:
        todo = f"`kumulusctl vm restart {scope.vm.name}` restarts it"
        beside = f" {too_large.message}" if too_large is not None else ""
        return Fact(required, True, "PendingChanges", f"At its next start it gets: {', '.join(waits)}. {todo}.{beside}")
    if too_large is not None and not scope.vm.deleting:
        return Fact(required, False, too_large.reason, too_large.message)
    return Fact(required, None)


def _waiting(scope: Scope, found: Sizes) -> list[str]:
    unanswered = scope.order.status.instance if scope.order is not None and not _current(scope.order) else None
    order = scope.order.spec.instance if scope.order is not None else None
    facts = scope.order.status.instance if scope.order is not None else None
    return [*changes(found, unanswered), *hardware.changes(order, facts), *_other_caches(scope.order)]


def _other_caches(order: WorkOrder | None) -> list[str]:
    """Disks that are cached in another way than they will be."""
    instance, said = (order.spec.instance, order.status.instance) if order is not None else (None, None)
    if instance is None or said is None:
        return []
    has = {manner.volume: manner.cache for manner in said.manners if manner.cache is not None}
    wanted = ((disk, disk.cache or CacheMode.NONE) for disk in instance.disks if disk.volume is not None)
    return [
        f"cache of disk {disk.name} {has[disk.volume]} to {cache}"
        for disk, cache in wanted
        if disk.volume in has and has[disk.volume] != cache
    ]


def _left_alone(scope: Scope) -> bool:
    """Whether its owner asked for two things that exclude each other: to delete it, and to leave it alone."""
    return scope.vm.deleting and scope.vm.paused


def _said(order: WorkOrder | None) -> tuple[str, str]:
    if order is None:
        return "", ""
    return order.status.reason or "", order.status.message or ""


def _current(order: WorkOrder) -> bool:
    """Whether the agent's answer is about the order as it is now."""
    return (order.status.observed_generation or 0) >= order.metadata.generation


def _scheduled(where: Placed | None, problem: Problem | None) -> Fact:
    scheduled = VirtualMachineCondition.SCHEDULED
    if where is not None:
        return Fact(scheduled, True, "Placed", f"Placed on host {where.host}.")
    if problem is not None:
        network = problem.aspect == VirtualMachineCondition.NETWORK_READY
        follows = "NetworkNotReady" if network else "VolumesNotReady"
        reason = problem.reason if problem.aspect == scheduled else follows
        return Fact(scheduled, False, reason, problem.message)
    return Fact(scheduled, False, "Pending", "")


def _satisfied(scope: Scope, where: Placed | None) -> Fact:
    """What of its placement does not hold any more: it is told, and the machine is left where it is."""
    satisfied = VirtualMachineCondition.PLACEMENT_SATISFIED
    if where is None or not scope.unsatisfied or scope.vm.deleting:
        return Fact(satisfied, None)
    broken = "; ".join(scope.unsatisfied[:UNSATISFIED_MOST])
    return Fact(
        satisfied,
        False,
        "RuleBroken",
        f"It would not be placed on host {where.host} now, which is {broken}. It stays where it is until it is moved or made anew.",
    )


def _volumes(scope: Scope, problem: Problem | None) -> Fact:
    volumes = VirtualMachineCondition.VOLUMES_READY
    if problem is not None and problem.aspect == volumes:
        return Fact(volumes, False, problem.reason, problem.message)
    beside = problem is not None and problem.aspect == VirtualMachineCondition.NETWORK_READY and not problem.hinders
    if problem is not None and not beside:
        return Fact(volumes, None)
    state = scope.order.status.state if scope.order else None
    if state in (WorkState.WAITING, WorkState.WORKING):
        reason, message = _said(scope.order)
        return Fact(volumes, None) if _of_network(reason) else Fact(volumes, False, reason, message)
    if state is None:
        return Fact(volumes, None)
    reason, message = _said(scope.order)
    if reason in DISC_ELSEWHERE:
        return Fact(volumes, False, reason, message)
    return Fact(volumes, True, "DisksReady")


def _of_network(reason: str) -> bool:
    """Whether a host speaks of the machine's networks."""
    return reason.startswith(("Network", "Segment", "Interface", "Port"))


def _network(scope: Scope, problem: Problem | None) -> Fact:
    network, wanted = VirtualMachineCondition.NETWORK_READY, [item.name for item in scope.vm.spec.interfaces]
    if not wanted:
        return Fact(network, None)
    if problem is not None and problem.aspect == network:
        return Fact(network, False, problem.reason, problem.message)
    if scope.order is None:
        return Fact(network, None)
    reason, message = _said(scope.order)
    if _of_network(reason):
        return Fact(network, False, reason, message)
    state = scope.order.status.state
    missing = [name for name in wanted if name not in attached(scope)]
    if missing and state in (WorkState.RUNNING, WorkState.PAUSED) and not scope.vm.deleting:
        return Fact(network, False, "NotAttached", f"The guest has not got {', '.join(missing)} yet.")
    if state in (None, WorkState.PENDING, WorkState.WAITING):
        return Fact(network, None)
    return Fact(network, True, "InterfacesReady")


def _progress(scope: Scope, phase: Phase, ready: Fact, problem: Problem | None) -> Fact:
    """Reconciling or Stalled (kstatus), whichever holds; neither when the guest has ended and shall stay so."""
    if phase is Phase.STOPPED and scope.order is not None and _current(scope.order):
        return Fact(VirtualMachineCondition.RECONCILING, None)
    if (
        _left_alone(scope)
        or phase in (Phase.FAILED, Phase.CRASH_LOOP_BACK_OFF)
        or (problem is not None and problem.stalled and problem.hinders)
    ):
        return Fact(VirtualMachineCondition.STALLED, True, ready.reason, ready.message)
    if ready.status is False:
        return Fact(VirtualMachineCondition.RECONCILING, True, ready.reason, ready.message)
    return Fact(VirtualMachineCondition.RECONCILING, None)
