"""What a pool of machines does next: which machines it makes, which it removes, and why. Pure.

A machine has a place in its pool, a number. Whoever is being removed keeps its place until it is gone, so that of one name
there is never a second machine, and never are there more machines than `replicas` and `maxSurge` say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import Phase, VirtualMachine, VirtualMachineCondition
from kumulus.api.machine_pool import (
    DELETION_COST,
    POOL,
    REVISION,
    HealingCause,
    MachineTemplate,
    Removal,
    RemovalReason,
    ScaleInPolicy,
    UpdateType,
    VirtualMachinePool,
    share_of,
)
from kumulus.runtime.clock import parse_time

HOST_FENCED = "HostFenced"
"""Reason of a machine's Ready: its host is off for certain, and the machine is not started elsewhere."""
CAUSES = {
    Phase.FAILED: HealingCause.FAILED,
    Phase.CRASH_LOOP_BACK_OFF: HealingCause.CRASH_LOOP_BACK_OFF,
}
"""For what a machine is deleted and made again, by its phase."""


@dataclass(frozen=True, slots=True)
class Scope:
    """All that one pass over a pool looks at."""

    pool: VirtualMachinePool
    machines: tuple[VirtualMachine, ...]
    """Those that are the pool's."""
    now: datetime
    taken: frozenset[int] = frozenset()
    """Places whose names other machines have."""
    ill_for: Mapping[str, float] = field(default_factory=dict)
    """For how many seconds this process has seen a machine need healing, by uid. Its own watch counts, because the clock
    on the wall may jump, and nothing is deleted for that."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many machines there are, of those that are not being removed."""

    replicas: int = 0
    ready: int = 0
    available: int = 0
    updated: int = 0
    leaving: int = 0
    """Those that are being removed."""
    lost: int = 0
    """Of `replicas`: those on hosts that do not answer, for whom others are made."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now, in this order."""

    revision: str
    counts: Counts
    remove: tuple[Removal, ...] = ()
    create: tuple[int, ...] = ()
    """Places."""
    again: float | None = None
    """In so many seconds time alone may have changed something."""
    outdated: tuple[str, ...] = field(default=())
    """Names of those of an older template."""
    unready: tuple[VirtualMachine, ...] = ()
    """Those that are not ready."""


def revision_of(template: MachineTemplate) -> str:
    """What tells one template from another. What has its default counts for nothing, so that a field that comes with a
    newer version does not replace all machines."""
    said = template.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def place_of(pool: str, machine: str) -> int | None:
    """The place of a machine of that name in a pool; None when it cannot be one of it."""
    prefix, _, number = machine.rpartition("-")
    if prefix != pool or not number.isascii() or not number.isdigit() or len(number) > 5:
        return None
    return int(number) if number == str(int(number)) else None


def machine_name(pool: str, place: int) -> str:
    """Name of the machine at a place."""
    return f"{pool}-{place}"


def selects(pool: VirtualMachinePool, vm: VirtualMachine) -> bool:
    """Whether the machine has the labels of the pool's selector."""
    return all(vm.metadata.labels.get(key) == value for key, value in pool.spec.selector.items())


def owns(pool: VirtualMachinePool, vm: VirtualMachine) -> bool:
    """Whether the pool is the machine's controller."""
    return any(owner.controller and owner.uid == pool.uid for owner in vm.metadata.owner_references)


def adopts(pool: VirtualMachinePool, vm: VirtualMachine) -> bool:
    """Whether a machine becomes the pool's: nobody else's, with its labels, and at a place of it by its name."""
    return (
        not pool.deleting
        and not vm.deleting
        and not any(owner.controller for owner in vm.metadata.owner_references)
        and place_of(pool.name, vm.name) is not None
        and selects(pool, vm)
    )


def owner_of(pool: VirtualMachinePool) -> dict[str, Any]:
    """How a machine names the pool as its controller."""
    return {
        "apiVersion": pool.KIND.api_version,
        "kind": pool.KIND.kind,
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def new_machine(pool: VirtualMachinePool, place: int, kept: Iterable[str]) -> dict[str, Any]:
    """The machine at a place. `kept`: names of volumes that an earlier machine of that name has left, and that this one
    takes over."""
    template, name, left = pool.spec.template, machine_name(pool.name, place), set(kept)
    spec = template.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for disk, written in zip(template.spec.disks, spec.get("disks", ()), strict=True):
        volume = disk.volume_of(name)
        if disk.volume_template is not None and volume in left:
            del written["volumeTemplate"]
            written["volume"] = volume
    labels = {**template.metadata.labels, POOL: pool.name, REVISION: revision_of(template)}
    metadata: dict[str, Any] = {"name": name, "labels": labels, "ownerReferences": [owner_of(pool)]}
    if template.metadata.annotations:
        metadata["annotations"] = dict(template.metadata.annotations)
    return {"metadata": metadata, "spec": spec}


def volumes_of(pool: VirtualMachinePool, place: int) -> list[str]:
    """Names of the volumes that the machine at a place brings along."""
    name = machine_name(pool.name, place)
    return [f"{name}-{disk.name}" for disk in pool.spec.template.spec.disks if disk.volume_template is not None]


def allowance(pool: VirtualMachinePool) -> tuple[int, int]:
    """How many machines may be away at a time, and how many may be more than wanted."""
    rolling, wanted = pool.spec.update_strategy.rolling_update, pool.spec.replicas
    away = share_of(rolling.max_unavailable, wanted, up=False)
    surge = share_of(rolling.max_surge, wanted, up=True)
    return (max(away, 1) if surge == 0 else away), surge


def cost_of(vm: VirtualMachine) -> int:
    """What it costs to remove the machine, as its owner says."""
    try:
        return int(vm.metadata.annotations.get(DELETION_COST, "0"))
    except ValueError:
        return 0


def stays(vm: VirtualMachine) -> bool:
    """Whether its owner keeps the pool from removing it."""
    return vm.spec.deletion_protection or vm.paused


def ready(vm: VirtualMachine) -> bool:
    """Whether the machine is what its spec says."""
    condition = vm.status.condition(VirtualMachineCondition.READY)
    return condition is not None and condition.status is ConditionStatus.TRUE


def ill(vm: VirtualMachine) -> HealingCause | None:
    """What a machine would have to be healed of."""
    cause = CAUSES.get(vm.status.phase) if vm.status.phase is not None else None
    found = vm.status.condition(VirtualMachineCondition.READY)
    if found is not None and (
        found.reason == HOST_FENCED or (cause is None and found.reason == HealingCause.HOST_UNKNOWN)
    ):
        return HealingCause.HOST_UNKNOWN
    return cause


def has_state(vm: VirtualMachine) -> bool:
    """Whether anything of the machine is to outlive it: a second one beside it would not have that, or have it twice."""
    return any(disk.volume_template is not None or disk.volume is not None for disk in vm.spec.disks)


@dataclass(slots=True)
class _Time:
    """What time alone will change, and when that is next."""

    now: datetime
    again: float | None = None

    def passed(self, since: str | None, seconds: float) -> bool:
        """Whether so long has passed; if not, somebody will look again when it has."""
        return since is not None and self.over(seconds - (self.now - parse_time(since)).total_seconds())

    def over(self, left: float) -> bool:
        """Whether no second is left; if one is, somebody will look again when it is over."""
        if left > 0:
            self.again = left if self.again is None else min(self.again, left)
        return left <= 0


def plan(scope: Scope) -> Plan:
    """What is to be done; nothing when there is what is wanted."""
    pool, time = scope.pool, _Time(scope.now)
    spec, revision = pool.spec, revision_of(pool.spec.template)
    ill_ones = {vm.uid: cause for vm in scope.machines if (cause := _to_heal(scope, vm, time)) is not None}
    lost = {uid for uid, cause in ill_ones.items() if cause is HealingCause.HOST_UNKNOWN}
    standing = [vm for vm in scope.machines if not vm.deleting]
    live = [vm for vm in standing if vm.uid not in lost]
    leaving = [vm for vm in scope.machines if vm.deleting and vm.uid not in lost]
    available = {vm.uid for vm in live if ready(vm) and _long_enough(pool, vm, time)}
    outdated = {vm.uid for vm in standing if vm.metadata.labels.get(REVISION) != revision}
    rolls = spec.update_strategy.type is UpdateType.ROLLING_UPDATE

    def most() -> int:
        more = rolls and any(vm.uid in outdated and not stays(vm) for vm in live if vm.uid not in removed)
        return spec.replicas + (allowance(pool)[1] if more else 0)

    removed: dict[str, Removal] = {}
    _scale_in(pool, standing if spec.replicas == 0 else live, most(), outdated, removed)
    if rolls:
        _update(pool, [vm for vm in live if vm.uid not in removed], outdated, available, removed)
    sick = [vm for vm in live if vm.uid in ill_ones and vm.uid not in removed]
    _heal(pool, sick, len(leaving) + len(removed), removed)
    missing = most() - len([vm for vm in live if vm.uid not in removed]) - len(leaving)
    missing -= len([uid for uid in removed if uid not in lost])
    counts = Counts(
        replicas=len(standing),
        ready=sum(ready(vm) for vm in standing),
        available=len(available),
        updated=len(standing) - len(outdated),
        leaving=sum(vm.deleting for vm in scope.machines),
        lost=sum(vm.uid in lost for vm in standing),
    )
    return Plan(
        revision=revision,
        counts=counts,
        remove=tuple(removed.values()),
        create=tuple(_free(scope, missing)),
        again=time.again,
        outdated=tuple(vm.name for vm in standing if vm.uid in outdated),
        unready=tuple(vm for vm in standing if not ready(vm)),
    )


def _to_heal(scope: Scope, vm: VirtualMachine, time: _Time) -> HealingCause | None:
    """What the machine is replaced for, if it is to be and needs it for long enough."""
    cause, healing = ill(vm), scope.pool.spec.healing
    if cause is None or cause not in healing.replace:
        return None
    if has_state(vm) if cause is HealingCause.HOST_UNKNOWN else vm.deleting:
        return None
    return cause if time.over(healing.after_seconds - scope.ill_for.get(vm.uid, 0.0)) else None


def _long_enough(pool: VirtualMachinePool, vm: VirtualMachine, time: _Time) -> bool:
    condition = vm.status.condition(VirtualMachineCondition.READY)
    if pool.spec.min_ready_seconds == 0 or condition is None:
        return True
    return time.passed(condition.last_transition_time, pool.spec.min_ready_seconds)


def _scale_in(
    pool: VirtualMachinePool, live: list[VirtualMachine], most: int, outdated: set[str], removed: dict[str, Removal]
) -> None:
    """Who is too many."""
    excess = len(live) - most
    if excess <= 0:
        return
    candidates = sorted((vm for vm in live if not stays(vm)), key=_rank(pool, outdated))
    for vm in candidates[:excess]:
        removed[vm.uid] = _removal(vm, RemovalReason.SCALE_IN)


class _Late(str):
    """A text that comes before those that are less: for sorting backwards."""

    def __lt__(self, other: object) -> bool:
        return str(other) < str(self)


def _rank(pool: VirtualMachinePool, outdated: set[str]) -> Any:
    """A key that puts first who goes first when fewer are wanted."""
    policy = pool.spec.scale_in.policy

    def rank(vm: VirtualMachine) -> tuple[Any, ...]:
        made, place = vm.metadata.creation_timestamp or "", place_of(pool.name, vm.name) or 0
        order: tuple[Any, ...]
        if policy is ScaleInPolicy.OLDEST:
            order = (made, place)
        elif policy is ScaleInPolicy.NEWEST:
            order = (_Late(made), -place)
        else:
            order = (hashlib.sha256(vm.uid.encode()).hexdigest(),)  # by chance, and the same in each pass
        return (vm.status.host is not None, ready(vm), vm.uid not in outdated, cost_of(vm), *order)

    return rank


def _update(
    pool: VirtualMachinePool,
    live: list[VirtualMachine],
    outdated: set[str],
    available: set[str],
    removed: dict[str, Removal],
) -> None:
    """Who of an older template goes now. As a Deployment does it: who is not available first, and never so many that
    those that are or come up are fewer than wanted."""
    old = [vm for vm in live if vm.uid in outdated and not stays(vm) and vm.status.phase is not Phase.UNKNOWN]
    least = max(pool.spec.replicas - allowance(pool)[0], 0)
    coming = sum(vm.uid not in outdated and vm.uid not in available for vm in live)
    budget = len(live) - least - coming
    spare = sum(vm.uid in available for vm in live) - least
    for vm in sorted(old, key=lambda vm: (vm.uid in available, cost_of(vm), -(place_of(pool.name, vm.name) or 0))):
        if budget <= 0 or (vm.uid in available and spare <= 0):
            return
        budget -= 1
        spare -= vm.uid in available
        removed[vm.uid] = _removal(vm, RemovalReason.UPDATE)


def _heal(pool: VirtualMachinePool, sick: list[VirtualMachine], busy: int, removed: dict[str, Removal]) -> None:
    """Who is deleted to be made again; not all at once, because what made them ill may last."""
    room = max(allowance(pool)[0], 1) - busy
    for vm in sorted((vm for vm in sick if not stays(vm)), key=lambda vm: vm.name)[: max(room, 0)]:
        removed[vm.uid] = _removal(vm, RemovalReason.HEALING)


def _removal(vm: VirtualMachine, reason: RemovalReason) -> Removal:
    return Removal(name=vm.name, uid=vm.uid, reason=reason)


def _free(scope: Scope, count: int) -> Iterable[int]:
    """The lowest places that nobody has: whoever plans again from the same names comes to the same ones."""
    names = (place_of(scope.pool.name, vm.name) for vm in scope.machines)
    used, place = scope.taken | {found for found in names if found is not None}, 0
    while count > 0:
        if place not in used:
            yield place
            count -= 1
        place += 1
