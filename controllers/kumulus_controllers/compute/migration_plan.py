"""What is to be done next about a migration (docs/adr/0029). Pure.

Everything follows from what is on record and what the two hosts say; nothing is remembered. The right to run is the source's
until its agent says that it has given it away, or the target's agent that it was given it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_order import STALE_TERM, MigrationFacts, MigrationState
from kumulus.api.migration import (
    FINISHED,
    MigrationPhase,
    MigrationProgress,
    VirtualMachineMigration,
    VirtualMachineMigrationStatus,
)
from kumulus.runtime.clock import parse_time
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.compute import migration_stall
from kumulus_controllers.compute.migration_preflight import blocked
from kumulus_controllers.compute.migration_scope import Scope, facts, given
from kumulus_controllers.storage.volume_plan import Lack

SOURCE_FENCED = "SourceFenced"
"""Reason: the host that the guest was to leave is off for certain."""
TARGET_CLEARS_UP = "TargetClearsUp"
"""Reason: the host that the guest was to come to removes what it had ready."""


class Step(StrEnum):
    """What is done next."""

    WAIT = "Wait"
    """Nothing: report, and be told when something changes."""
    CHOOSE = "Choose"
    """Choose a target, keep room there, and put it on record."""
    MAKE_TARGET = "MakeTarget"
    """Order the target to get everything ready."""
    SEND = "Send"
    """Order the source to send the guest."""
    TAKE_OVER = "TakeOver"
    """Move the machine's placement: host and epoch, in one write."""
    SETTLE = "Settle"
    """Let the target's order be one like any other."""
    END_SOURCE = "EndSource"
    GIVE_UP = "GiveUp"
    """Put on record that it is given up, and why."""
    WITHDRAW = "Withdraw"
    """Order the source not to send the guest."""
    END_TARGET = "EndTarget"
    FINISH = "Finish"
    """It has ended, as `phase` says."""
    LEAVE = "Leave"
    """Nothing of it is left: it may go."""


@dataclass(frozen=True, slots=True)
class Move:
    """The next step, and how far it is."""

    step: Step
    phase: MigrationPhase
    lack: Lack | None = None
    """What it waits for, or why it failed."""
    after: float | None = None
    """Seconds until it is looked at again, should nobody tell."""


def plan(scope: Scope) -> Move:
    """The next step."""
    migration, status = scope.migration, scope.migration.status
    if status.phase in FINISHED:
        return Move(Step.LEAVE if migration.deleting else Step.WAIT, status.phase or MigrationPhase.FAILED)
    if not scope.begun:
        return _begin(scope)
    if scope.taken_over:
        return _finish(scope)
    vm = scope.vm
    if vm is None or (vm.deleting and not status.disks) or vm.uid != status.vm_uid:
        gone = Lack("MachineGone", f"Machine {migration.spec.vm} was deleted: nothing moves.")
        return Move(Step.FINISH, MigrationPhase.FAILED, gone)
    if vm.status.host is None and (scope.source is not None or scope.target is not None):
        lack = Lack("StatusLost", f"Where machine {vm.name} is has to be found again first.", stalled=False)
        return Move(Step.WAIT, status.phase or MigrationPhase.MIGRATING, lack, after=5.0)
    if (vm.status.host, vm.status.epoch) != (status.source_host, (status.epoch or 0) - 1):
        return _displaced(scope, vm)
    if given(scope):
        # Were its order to end there, the guest would be lost, and boot there from its disks: but only when that is over.
        ending = scope.target is not None and scope.target.deleting
        return Move(Step.WAIT if ending else Step.TAKE_OVER, MigrationPhase.FINISHING)
    if migration.deleting or status.failure is not None:
        return _give_up(scope)
    if (why := failing(scope, vm)) is not None:
        return Move(Step.GIVE_UP, MigrationPhase.CANCELLING, why)
    return _go_on(scope)


def _begin(scope: Scope) -> Move:
    if scope.migration.deleting:
        return Move(Step.LEAVE, MigrationPhase.FAILED)
    if (lack := blocked(scope)) is not None:
        return Move(Step.WAIT, MigrationPhase.PENDING, lack, after=30.0)
    return Move(Step.CHOOSE, MigrationPhase.PENDING)


def _go_on(scope: Scope) -> Move:
    left = scope.migration.spec.limits.timeout_seconds - _age(scope)
    if scope.target is None:
        return Move(Step.MAKE_TARGET, MigrationPhase.PREPARING)
    said = facts(scope.target, scope.migration)
    if said is None and scope.target.status.reason == STALE_TERM:
        lack = Lack(STALE_TERM, f"Host {scope.migration.status.target_host}: {scope.target.status.message}")
        return Move(Step.GIVE_UP, MigrationPhase.CANCELLING, lack)
    if said is None:
        message = scope.target.status.message or "Its host has not answered yet."
        lack = Lack(scope.target.status.reason or "Preparing", f"Host {scope.migration.status.target_host}: {message}")
        return Move(Step.WAIT, MigrationPhase.PREPARING, lack, after=max(left, 0.1))
    if scope.source is not None and not _outgoing(scope.source, scope.migration):
        return Move(Step.SEND, MigrationPhase.MIGRATING)
    return Move(Step.WAIT, MigrationPhase.MIGRATING, after=max(left, 0.1))


def _finish(scope: Scope) -> Move:
    finishing = MigrationPhase.FINISHING
    target = scope.target
    if target is not None and target.spec.instance is not None and target.spec.instance.incoming is not None:
        if not given(scope):
            # Somebody else has placed it there: what came, if anything, may be older than what its disks have.
            lack = Lack("Displaced", "It was placed there anew meanwhile: what came of its guest is given up.")
            return Move(Step.WAIT if target.deleting else Step.END_TARGET, MigrationPhase.CANCELLING, lack)
        return Move(Step.SETTLE, finishing)
    if scope.source is None and _booted(scope):
        lost = f"Host {scope.migration.status.source_host} was lost meanwhile: the machine was started anew on host"
        return Move(
            Step.FINISH, MigrationPhase.FAILED, Lack("Displaced", f"{lost} {scope.migration.status.target_host}.")
        )
    if scope.source is None:
        return Move(Step.FINISH, MigrationPhase.SUCCEEDED)
    status = scope.migration.status
    behind = {name for name, use in scope.volumes.items() if use.volume.status.host == status.source_host}
    left = sorted(behind | scope.unsettled)
    if left:
        # Its order there keeps that host from touching what the guest writes to, which is at rest as far as it can see.
        message = f"The volumes of {', '.join(left)} follow to host {status.target_host}."
        return Move(Step.WAIT, finishing, Lack("VolumesFollow", message, stalled=False), after=5.0)
    if not scope.source.deleting:
        return Move(Step.END_SOURCE, finishing)
    said = scope.source.status.message or ""
    lack = Lack("SourceClearsUp", f"Host {scope.migration.status.source_host} clears up. {said}".strip(), stalled=False)
    return Move(Step.WAIT, finishing, lack)


def _give_up(scope: Scope) -> Move:
    """By way of the source: what is at the target stays until the source has answered that the guest is its own. One that is
    fenced has no guest any more: what the target was not given by then it loses, and the machine boots from its disks once
    nothing of it is there."""
    status, source = scope.migration.status, scope.source
    cancelling = MigrationPhase.CANCELLING
    asked = source is not None and not scope.source_fenced
    if asked and source is not None and _outgoing(source, scope.migration):
        return Move(Step.WITHDRAW, cancelling)
    if asked and source is not None and (source.status.observed_generation or 0) < source.metadata.generation:
        lack = Lack(
            "WaitsForSource",
            f"Host {status.source_host} has not answered whether the guest has left. Until then nothing is done, so that it"
            " never runs twice.",
        )
        return Move(Step.WAIT, cancelling, lack)
    if scope.source_fenced and status.disks and scope.target is not None and not scope.target.deleting:
        # Where else than on these two hosts are its disks? Should the target have been told to go on, it says so.
        off = f"Host {status.source_host} is off for certain: when it is back it says which host has what was written last."
        return Move(Step.WAIT, cancelling, Lack(SOURCE_FENCED, f"{off} Until then the disks on both stay as they are."))
    if scope.target is not None:
        if not scope.target.deleting:
            return Move(Step.END_TARGET, cancelling)
        lack = Lack(TARGET_CLEARS_UP, f"Host {status.target_host} removes what it had ready.", stalled=False)
        return Move(Step.WAIT, cancelling, lack)
    if source is not None and scope.source_fenced and _outgoing(source, scope.migration):
        # Its host may come back: it is asked then, and knows whether the guest had left.
        off = f"Host {status.source_host} is off for certain: the machine starts there when it is back, or elsewhere before."
        return Move(Step.WAIT, cancelling, Lack(SOURCE_FENCED, off))
    if scope.migration.deleting:
        return Move(Step.LEAVE, cancelling)
    return Move(Step.FINISH, MigrationPhase.FAILED, _failure(status))


def _failure(status: VirtualMachineMigrationStatus) -> Lack:
    return Lack(status.failure or "Failed", status.failure_message or "It was given up.")


def _displaced(scope: Scope, vm: VirtualMachine) -> Move:
    """Somebody has placed the machine anew. What is at the target is nobody's, unless that is where it was placed."""
    target = scope.target
    lack = Lack("Displaced", f"Machine {vm.name} was placed anew meanwhile.")
    mine = target is not None and target.spec.instance is not None and target.spec.instance.incoming is not None
    if target is not None and mine and not target.deleting:
        return Move(Step.END_TARGET, MigrationPhase.CANCELLING, lack)
    return Move(Step.FINISH, MigrationPhase.FAILED, lack)


def _booted(scope: Scope) -> bool:
    """Whether it is at the target because it was started there anew, when its host was lost: the next placement is the same."""
    started = scope.migration.status.started_at
    anew = scope.vm.status.failovers[-1:] if scope.vm is not None else ()
    return started is not None and any(parse_time(at) >= parse_time(started) for at in anew)


def _outgoing(order: WorkOrder, migration: VirtualMachineMigration) -> bool:
    instance = order.spec.instance
    return instance is not None and instance.outgoing is not None and instance.outgoing.migration == migration.uid


def _age(scope: Scope) -> float:
    started = scope.migration.status.started_at
    return scope.now - parse_time(started).timestamp() if started is not None else 0.0


def failing(scope: Scope, vm: VirtualMachine) -> Lack | None:
    """Why a migration that has begun is given up."""
    spec, status, source = scope.migration.spec, scope.migration.status, scope.source
    if source is None or source.deleting or source.spec.instance is None:
        return Lack("SourceGone", f"Machine {vm.name} is not on host {status.source_host} any more.")
    if scope.source_fenced:
        off = f"Host {status.source_host} is off for certain, and had not said that the guest has left."
        return Lack(SOURCE_FENCED, off)
    if vm.deleting:
        return Lack("MachineGone", f"Machine {vm.name} is being deleted.")
    said, other = facts(source, scope.migration), facts(scope.target, scope.migration)
    if said is not None and said.state is MigrationState.FAILED:
        beside = f" Host {status.target_host}: {other.message}" if other is not None and other.message else ""
        return Lack(said.reason or "Failed", f"Host {status.source_host}: {said.message or 'it failed.'}{beside}")
    if vm.spec.power_state is not PowerState.RUNNING:
        return Lack("PowerStateChanged", f"Machine {vm.name} is to be {vm.spec.power_state}: that comes first.")
    if vm.spec.restart_request != source.spec.instance.restart_request:
        return Lack("RestartRequested", f"Machine {vm.name} is to be restarted: that comes first.")
    there = scope.target.spec.instance if scope.target is not None else None
    if there is not None and there.restart_request != source.spec.instance.restart_request:
        # Its order there is of before: by that it would be restarted once more when it has come.
        return Lack("RestartRequested", f"Machine {vm.name} was restarted while host {status.target_host} got ready.")
    if scope.restoring is not None:
        return Lack("RestoreInProgress", f"VirtualMachineRestore {scope.restoring} comes first.")
    if status.disks and scope.pinned:
        return next(iter(scope.pinned.values()))
    for use in scope.volumes.values():
        if use.volume.status.moving_to is not None:
            return Lack("VolumeMoves", f"Volume {use.volume.name} moves to another pool: that comes first.")
    if source.spec.instance.outgoing is None and source.status.state is not WorkState.RUNNING:
        return Lack("NotRunning", f"Machine {vm.name} does not run any more.")
    target = scope.target
    if target is not None and target.status.state in (WorkState.FAILED, WorkState.REFUSED):
        said_there = f"{target.status.reason}: {target.status.message}"
        return Lack(target.status.reason or "TargetFailed", f"Host {status.target_host}: {said_there}")
    if (stalls := migration_stall.given_up(spec, said)) is not None:
        return stalls
    if _age(scope) >= spec.limits.timeout_seconds:
        where = f" {migration_stall.left(said)}" if said is not None else ""
        return Lack(
            "TimedOut",
            f"It had not moved after {spec.limits.timeout_seconds} s (spec.limits.timeoutSeconds).{where} Give it more time"
            " or bandwidth, or try when the guest writes less.",
        )
    return None


def derive_status(scope: Scope, move: Move, now: str) -> VirtualMachineMigrationStatus:
    """The status as this pass has come to it. What was put on record before stays."""
    migration, before = scope.migration, scope.migration.status
    if before.phase in FINISHED:
        return before
    phase, lack = move.phase, move.lack
    ended = phase in FINISHED
    generation = migration.metadata.generation
    ready = _ready(scope, phase, lack)
    progressing = Fact("Reconciling", None if ended else True, ready.reason, ready.message)
    if phase is MigrationPhase.FAILED or (phase is MigrationPhase.PENDING and lack is not None and lack.stalled):
        progressing = Fact("Stalled", True, ready.reason, ready.message)
    said = facts(scope.source, migration)
    moved = phase is MigrationPhase.SUCCEEDED  # also when it was given up, too late
    return before.model_copy(
        update={
            "failure": None if moved else before.failure,
            "failure_message": None if moved else before.failure_message,
            "observed_generation": generation,
            "conditions": derive(before.conditions, [ready, progressing], generation=generation, now=now),
            "phase": phase,
            "progress": _progress(said) or before.progress,
            "finished_at": before.finished_at or (now if ended else None),
        }
    )


def _progress(said: MigrationFacts | None) -> MigrationProgress | None:
    if said is None or said.total_bytes is None:
        return None
    return MigrationProgress(
        total_bytes=said.total_bytes,
        remaining_bytes=said.remaining_bytes,
        dirty_rate=said.dirty_rate,
        iteration=said.iteration,
        downtime_ms=said.downtime_ms,
        stalled_seconds=said.stalled_seconds,
        disk_total_bytes=said.disk_total_bytes,
        disk_remaining_bytes=said.disk_remaining_bytes,
    )


def _ready(scope: Scope, phase: MigrationPhase, lack: Lack | None) -> Fact:
    status = scope.migration.status
    if phase is MigrationPhase.SUCCEEDED:
        return Fact("Ready", True, "Moved", f"Machine {scope.migration.spec.vm} is on host {status.target_host}.")
    if lack is not None:
        return Fact("Ready", False, lack.reason, lack.message)
    said = facts(scope.source, scope.migration)
    left = f" {migration_stall.left(said)}" if said is not None and said.remaining_bytes is not None else ""
    left += migration_stall.told(scope.migration.spec, said)
    ways = {
        MigrationPhase.PREPARING: f"Host {status.target_host} gets everything ready.",
        MigrationPhase.MIGRATING: f"Memory is copied to host {status.target_host}.{left}",
        MigrationPhase.FINISHING: f"Machine {scope.migration.spec.vm} is on host {status.target_host}.",
        MigrationPhase.CANCELLING: "It is given up, unless the guest has moved already.",
    }
    return Fact("Ready", False, str(phase), ways.get(phase, ""))
