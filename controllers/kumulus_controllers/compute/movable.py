"""Whether a machine could move as it is now: the condition `Migratable`. Pure.

It is what the preflight of a migration says that asks for nothing but the machine (docs/adr/0029), so the two cannot
disagree. What is over in a moment by itself is left out: it would cost a write each time.
"""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import Phase, VirtualMachine, VirtualMachineCondition
from kumulus.runtime.conditions import Fact
from kumulus_controllers.compute.migration_asking import asked
from kumulus_controllers.compute.migration_preflight import PASSING, keeps
from kumulus_controllers.compute.scope import Scope

MIGRATABLE = VirtualMachineCondition.MIGRATABLE
ON = (Phase.RUNNING, Phase.PAUSED, Phase.SUSPENDED)
"""Phases of a machine that has a memory: only of one of these is it said."""


def migratable(scope: Scope, phase: Phase) -> Fact:
    """Whether the machine, which is in that phase, could move, and all that keeps it where it is."""
    if phase is Phase.UNKNOWN:
        message = "Its host does not answer, so nothing is known of what could move."
        return Fact(MIGRATABLE, ConditionStatus.UNKNOWN, "HostUnknown", message)
    if phase is Phase.MIGRATING or (phase in ON and not _answered(scope)):
        return _as_before(scope.vm)
    if phase not in ON:
        return Fact(MIGRATABLE, None)
    vm = scope.vm.model_copy(update={"status": scope.vm.status.model_copy(update={"phase": phase})})
    found = [lack for lack in keeps(asked(replace(scope, vm=vm), scope.report), vm) if lack.reason not in PASSING]
    found = [lack for lack in found if lack.stalled] or found  # what stays, rather than what passes
    if not found:
        return Fact(MIGRATABLE, True, "NothingInTheWay", "")
    return Fact(MIGRATABLE, False, found[0].reason, " ".join(lack.message for lack in found))


def _answered(scope: Scope) -> bool:
    order = scope.order
    return order is None or (order.status.observed_generation or 0) >= order.metadata.generation


def _as_before(vm: VirtualMachine) -> Fact:
    before = vm.status.condition(MIGRATABLE)
    return (
        Fact(MIGRATABLE, before.status, before.reason, before.message) if before is not None else Fact(MIGRATABLE, None)
    )
