"""What a pool of machines says of itself: counts, how far it is, and what hinders it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from kumulus.api.base import PAUSED
from kumulus.api.compute import VirtualMachine, VirtualMachineCondition
from kumulus.api.machine_pool import (
    HealingCause,
    PoolCondition,
    Removal,
    UpdateType,
    VirtualMachinePool,
    VirtualMachinePoolStatus,
)
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.vm_pool_plan import Counts, Plan, allowance, has_state, ill, stays

SHOWN = 5
"""So many machines are named in a message."""


def selector_text(selector: Mapping[str, str]) -> str:
    """A selector as autoscalers read it."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def derive_status(
    pool: VirtualMachinePool,
    plan: Plan,
    machines: Sequence[VirtualMachine],
    problem: Problem | None,
    now: datetime,
) -> VirtualMachinePoolStatus:
    """The whole status. What the plan removes is said before it is done."""
    before, counts, wanted = pool.status, plan.counts, pool.spec.replicas
    lack = problem or _lack(pool, plan, machines)
    done = lack is None
    progressed = _progressed(pool, counts, now)
    stalled = problem if problem is not None and problem.stalled else None
    if stalled is None and lack is not None and overdue(pool, progressed, now) <= 0:
        stalled = Problem(
            "ProgressDeadlineExceeded",
            f"Nothing has come nearer to what is wanted for {pool.spec.progress_deadline_seconds} s. {lack.message}",
        )
    hinders = stalled or lack
    least = max(wanted - allowance(pool)[0], 0)
    enough = f"{counts.available} of {wanted} machines are available; {least} have to be."
    facts = [
        Fact(PoolCondition.READY, done, hinders.reason if hinders else "AllReady", _said(pool, plan, hinders)),
        Fact(
            PoolCondition.AVAILABLE,
            counts.available >= least,
            "EnoughAvailable" if counts.available >= least else "TooFewAvailable",
            enough,
        ),
        Fact(PoolCondition.RECONCILING, None)
        if lack is None or stalled is not None
        else Fact(PoolCondition.RECONCILING, True, lack.reason, lack.message),
        Fact(PoolCondition.STALLED, None)
        if stalled is None
        else Fact(PoolCondition.STALLED, True, stalled.reason, stalled.message),
    ]
    complete = done and not plan.outdated
    return VirtualMachinePoolStatus(
        observed_generation=pool.metadata.generation,
        conditions=derive(before.conditions, facts, generation=pool.metadata.generation, now=rfc3339(now)),
        replicas=counts.replicas,
        ready_replicas=counts.ready,
        available_replicas=counts.available,
        updated_replicas=counts.updated,
        selector=selector_text(pool.spec.selector),
        current_revision=plan.revision if complete else before.current_revision or plan.revision,
        update_revision=plan.revision,
        removing=_removing(before.removing, plan.remove, machines),
        last_progress_at=progressed,
    )


def _removing(
    before: Iterable[Removal], now: Iterable[Removal], machines: Sequence[VirtualMachine]
) -> tuple[Removal, ...]:
    """Those whose end was asked for and who are still there, and those whose end is asked for next."""
    going = {vm.uid for vm in machines if vm.deleting}
    found = {item.uid: item for item in before if item.uid in going}
    found.update((item.uid, item) for item in now if item.uid not in found)
    return tuple(found.values())


def _lack(pool: VirtualMachinePool, plan: Plan, machines: Sequence[VirtualMachine]) -> Problem | None:
    """What is not as it is wanted yet; None when all is."""
    counts, wanted = plan.counts, pool.spec.replicas
    standing = counts.replicas - counts.lost
    rolls = pool.spec.update_strategy.type is UpdateType.ROLLING_UPDATE
    parts: list[str | None]
    if rolls and plan.outdated:
        outdated = set(plan.outdated)
        has = (
            f"{counts.updated} of {counts.replicas} machines are of the new template, {counts.available} are available."
        )
        parts = [has, _kept(vm for vm in machines if vm.name in outdated), _unready(pool, plan), _leaving(machines)]
        return _waits("RollingUpdate", parts)
    if standing < wanted:
        return _waits("ScalingOut", [f"There are {standing} of {wanted} machines.", _leaving(machines)])
    if standing > wanted or counts.leaving:
        has = f"There are {standing} machines, {wanted} are wanted."
        return _waits("ScalingIn", [has, _kept(machines) if standing > wanted else None, _leaving(machines)])
    if counts.available < wanted:
        has = f"{counts.available} of {wanted} machines are available."
        return _waits("MachinesNotReady", [has, _unready(pool, plan)])
    return None


def _waits(reason: str, parts: Iterable[str | None]) -> Problem:
    return Problem(reason, " ".join(part for part in parts if part), stalled=False)


def _kept(machines: Iterable[VirtualMachine]) -> str | None:
    """Who is kept by his owner."""
    names = [vm.name for vm in machines if not vm.deleting and stays(vm)]
    return f"{_names(names)} kept by deletionProtection or the annotation {PAUSED}." if names else None


def _unready(pool: VirtualMachinePool, plan: Plan) -> str | None:
    """Who is not ready, and why."""
    if not plan.unready:
        return None
    more = f"; and {len(plan.unready) - SHOWN} more" if len(plan.unready) > SHOWN else ""
    return f"Not ready: {'; '.join(f'{vm.name}: {_why(pool, vm)}' for vm in plan.unready[:SHOWN])}{more}."


def _leaving(machines: Iterable[VirtualMachine]) -> str | None:
    """Who is being removed; its name comes free when it is gone."""
    found = sorted((vm for vm in machines if vm.deleting), key=lambda vm: vm.name)
    if not found:
        return None
    silent = [vm.name for vm in found if ill(vm) is HealingCause.HOST_UNKNOWN]
    why = f" The host of {_listed(silent)} does not answer." if silent else ""
    return f"Being removed: {_listed([vm.name for vm in found])}.{why}"


def _why(pool: VirtualMachinePool, vm: VirtualMachine) -> str:
    condition = vm.status.condition(VirtualMachineCondition.READY)
    if condition is None:
        return "new"
    note = ""
    if (
        ill(vm) is HealingCause.HOST_UNKNOWN
        and HealingCause.HOST_UNKNOWN in pool.spec.healing.replace
        and has_state(vm)
    ):
        note = " (none is made beside it, because it has volumes)"
    return f"{condition.reason}{note}"


def _names(names: Sequence[str]) -> str:
    return _listed(names) + (" is" if len(names) == 1 else " are")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _said(pool: VirtualMachinePool, plan: Plan, lack: Problem | None) -> str:
    if lack is not None:
        return lack.message
    parts = [f"{plan.counts.available} of {pool.spec.replicas} machines are available."]
    if plan.outdated:
        parts.append(f"{len(plan.outdated)} of an older template are replaced when somebody deletes them.")
    if plan.counts.lost:
        parts.append(f"{plan.counts.lost} more on hosts that do not answer.")
    return " ".join(parts)


def _distance(wanted: int, replicas: int, ready: int, available: int, updated: int) -> int:
    """How far counts are from what is wanted."""
    return abs(wanted - replicas) + max(wanted - ready, 0) + max(wanted - available, 0) + max(replicas - updated, 0)


def _progressed(pool: VirtualMachinePool, counts: Counts, now: datetime) -> str:
    """When it last came nearer to what is wanted; a new wish is a new beginning, and so is the first that goes amiss."""
    before, wanted = pool.status, pool.spec.replicas
    was = _distance(
        wanted,
        before.replicas or 0,
        before.ready_replicas or 0,
        before.available_replicas or 0,
        before.updated_replicas or 0,
    )
    now_is = _distance(wanted, counts.replicas, counts.ready, counts.available, counts.updated)
    new = before.last_progress_at is None or before.observed_generation != pool.metadata.generation
    if new or now_is < was or (was == 0 and now_is > 0):
        return rfc3339(now)
    assert before.last_progress_at is not None
    return before.last_progress_at


def overdue(pool: VirtualMachinePool, progressed: str, now: datetime) -> float:
    """Seconds until the pool is stalled, if nothing happens; none or fewer when it is."""
    return pool.spec.progress_deadline_seconds - (now - parse_time(progressed)).total_seconds()
