"""What is reported of a machine, derived from what was observed and planned. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from kumulus.api.host import WorkOrderStatus, WorkState
from kumulus.api.instance_order import DiskManner, GuestFacts, InstanceFacts
from kumulus.api.qos import UNLIMITED
from kumulus.api.segments import NicFacts
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus_agents.agent.instance_scope import Memory, Plan, Scope, marks_of, told_once_more
from kumulus_agents.hypervisor.domain import DEFAULT_SHAPE, Domain, DomainState

SAME_START = 2.0
"""Two readings of when a guest started that are closer than this, in seconds, are the same start."""


RESIZED_WITHIN = 3.0
"""A guest that takes memory, or gives it back, mostly has done so after as many seconds: until then nothing is said of it."""
STOPPING_SAID_AFTER = 2.0
"""A machine that is deleted mostly stops sooner than this, in seconds; saying so would be a write that nobody sees."""
AMOUNT_KEPT_MOST = 60.0
"""A guest that keeps changing how much memory it has is told of less and less often, and at least so often, in seconds."""
AMOUNTS_FORGOTTEN = 600.0
"""Seconds without a change after which those before it do not count."""
VOLUMES_MOST = 16
NICS_MOST = 16


def seconds(text: str | None) -> float | None:
    """A time of the API in seconds since the epoch; None for none, or for what is none."""
    if text is None:
        return None
    try:
        return parse_time(text).timestamp()
    except ValueError:
        return None


def moment(wall: float) -> str:
    """Seconds since the epoch as a time of the API."""
    return rfc3339(datetime.fromtimestamp(wall, UTC))


def unsaid(scope: Scope, plan: Plan) -> float:
    """For how many seconds nothing need be reported yet: of the stop of a machine that is being deleted, of what a
    machine of which nothing was reported so far waits for, until that was looked for a second time, and of a guest that has
    just been asked to have more or less memory."""
    held, since = scope.memory.hold, scope.memory.stopping_since
    if (resizing := _resizing(scope)) > 0 and not scope.deleting:
        return resizing
    if plan.state is WorkState.WAITING and scope.status.state is None and held is not None and held.attempts == 1:
        return max(held.until - scope.now, 0.0)
    if not scope.deleting or plan.state is not WorkState.STOPPING or since is None or plan.after is None:
        return 0.0
    return min(since + STOPPING_SAID_AFTER - scope.now, plan.after)


def _resizing(scope: Scope) -> float:
    """For how many seconds more a guest may take memory, or give it back, before that is news."""
    domain, since = scope.domain, scope.memory.resized_at
    if domain is None or domain.growth is None or since is None or domain.memory == domain.growth.memory_asked:
        return 0.0
    return since + RESIZED_WITHIN - scope.now


def amount_kept(scope: Scope) -> float:
    """For how many seconds more nothing is said of the memory that a guest has come to have.

    A guest may take and give back at any time what it was offered, so the first changes are told at once, and of one that
    goes on they are told ever more seldom.
    """
    facts, domain, memory = scope.status.instance, scope.domain, scope.memory
    if domain is None or domain.growth is None or memory.amount_told_at is None or not memory.amounts:
        return 0.0
    if facts is None or facts.memory in (None, domain.memory):
        return 0.0
    return max(memory.amount_told_at + min(2.0**memory.amounts, AMOUNT_KEPT_MOST) - scope.now, 0.0)


def told(scope: Scope, said: WorkOrderStatus) -> Memory:
    """What is remembered once that was reported."""
    before, after, memory = scope.status.instance, said.instance, scope.memory
    if before is None or after is None or None in (before.memory, after.memory) or before.memory == after.memory:
        return memory
    amounts = told_once_more(memory.amounts, memory.amount_told_at, scope.now, AMOUNTS_FORGOTTEN)
    return replace(memory, amounts=amounts, amount_told_at=scope.now)


def derive(scope: Scope, plan: Plan, generation: int) -> WorkOrderStatus:
    """The status, whole."""
    return WorkOrderStatus(
        observed_generation=generation,
        state=plan.state,
        reason=plan.reason,
        message=plan.message,
        instance=_facts(scope, plan),
    )


def _facts(scope: Scope, plan: Plan) -> InstanceFacts:
    before = scope.status.instance or InstanceFacts()
    marks, due = marks_of(scope), scope.memory.next_start_wall
    domain = scope.domain
    kept = domain is not None and domain.saved is not None
    on = domain if domain is not None and (kept or domain.state is not DomainState.STOPPED) else None
    return InstanceFacts(
        epoch=marks.epoch if marks is not None else None,
        started_at=_started_at(scope, before.started_at),
        restarts=marks.restarts if marks is not None else None,
        last_restart_request=marks.restart_request if marks is not None else before.last_restart_request,
        cpus=on.cpus if on is not None else None,
        memory=_memory(scope, on, before) if on is not None else None,
        max_cpus=_more(on.growth.cpus, on.cpus) if on is not None and on.growth is not None else None,
        max_memory=_more(on.growth.memory_most, on.memory) if on is not None and on.growth is not None else None,
        shape=on.shape if on is not None and on.shape != DEFAULT_SHAPE else None,
        machine_type=on.machine_type if on is not None else before.machine_type,
        adopted=True if on is not None and on.adopted else None,
        guest=scope.guest if on is not None else None,
        last_exit=scope.memory.last_exit or before.last_exit,
        next_start_at=moment(due) if plan.state is WorkState.BACK_OFF and due is not None else None,
        volumes=_volumes(scope),
        manners=_manners(scope),
        nics=_nics(scope, before),
        migration=plan.migration,
    )


def guest_before(domain: Domain | None, facts: InstanceFacts | None) -> GuestFacts | None:
    """What was told of the guest in the run that it is in."""
    if domain is None or facts is None or domain.started_at is None:
        return None
    known = seconds(facts.started_at)
    return facts.guest if known is not None and abs(known - domain.started_at) < SAME_START else None


def _memory(scope: Scope, on: Domain, before: InstanceFacts) -> int | None:
    return before.memory if amount_kept(scope) > 0 else on.memory


def _more(most: int, now: int | None) -> int | None:
    return most if now is None or most > now else None


def _volumes(scope: Scope) -> tuple[str, ...]:
    """What the hypervisor says; those the order does not name first, should there be more than can be said."""
    has = scope.domain.volumes if scope.domain is not None else frozenset()
    wanted = {disk.volume for disk in scope.order.disks}
    return tuple(sorted(has, key=lambda volume: (volume in wanted, volume))[:VOLUMES_MOST])


def _nics(scope: Scope, before: InstanceFacts) -> tuple[NicFacts, ...]:
    """The interfaces of the order, and those that the guest has not let go of yet, by their old names where these are free."""
    domain = scope.domain
    on = domain is not None and (domain.saved is not None or domain.state is not DomainState.STOPPED)
    has = {nic.uid for nic in domain.nics} if domain is not None else set()
    found = {nic.name: NicFacts(name=nic.name, uid=nic.uid, attached=on and nic.uid in has) for nic in scope.order.nics}
    names = {fact.uid: fact.name for fact in before.nics}
    for uid in sorted(has - {nic.uid for nic in scope.order.nics}):
        name = names.get(uid, "")
        if not name or name in found:
            name = f"old-{uid[:8]}"
        found[name] = NicFacts(name=name, uid=uid, attached=on)
    return tuple(found.values())[:NICS_MOST]


def _manners(scope: Scope) -> tuple[DiskManner, ...]:
    """How a machine that is on has its volumes, where that was asked for or somebody made it so.

    Of one that is off nobody knows how it will.
    """
    domain = scope.domain
    if domain is None or domain.state is DomainState.STOPPED:
        return ()
    wanted = {disk.volume: disk for disk in scope.order.disks if disk.volume is not None}
    found = []
    for disk in sorted(domain.disks, key=lambda disk: disk.volume or ""):
        ordered = wanted.get(disk.volume or "")
        if disk.volume is None or ordered is None:
            continue
        if disk.qos != UNLIMITED or ordered.qos is not None or ordered.cache is not None:
            qos = disk.qos if disk.qos != UNLIMITED else None
            found.append(DiskManner(volume=disk.volume, qos=qos, cache=disk.cache))
    return tuple(found)


def _started_at(scope: Scope, before: str | None) -> str | None:
    if scope.domain is None or scope.domain.started_at is None:
        return before
    known, started = seconds(before), scope.domain.started_at
    return before if known is not None and abs(known - started) < SAME_START else moment(started)
