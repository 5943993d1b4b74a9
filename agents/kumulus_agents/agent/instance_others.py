"""What others than the agent do, and did, to a machine's domain on the host: it was theirs before, or they changed it. Pure."""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.host import WorkOrderStatus, WorkState
from kumulus_agents.agent.instance_scope import Memory, Plan, Redefine, Refill, Replug, Scope, Step, told_once_more

REFILL_EVERY = 10.0
"""Seconds between two requests to a guest to take memory again that somebody had it give back."""
SQUEEZED_MOST = 300.0
"""A guest that keeps giving memory back is told of less and less often, and at least when it has lacked it for so long, in seconds."""
SQUEEZES_FORGOTTEN = 900.0
"""Seconds without being told of it after which the times before do not count."""
MEMORY_TAKEN = "MemoryTaken"


def to_adopt(scope: Scope) -> bool:
    """Whether the machine is a domain that nobody has taken over yet. One of this placement that was reported once is Kumulus'
    own since, and made anew when it is lost. A domain of an older placement is taken over with other disks and interfaces."""
    if not scope.order.adopt or scope.domain is not None:
        return scope.order.adopt and scope.domain is not None and scope.domain.marks.epoch < scope.order.epoch
    facts = scope.status.instance
    return facts is None or facts.epoch != scope.order.epoch


def taken(scope: Scope) -> Plan | None:
    """What is done when the domain that was to become this machine is another one's by now, or is to be left as it is before it
    became this one: nothing."""
    domain, order = scope.domain, scope.order
    if not order.adopt or domain is None:
        return None
    if domain.marks.epoch < order.epoch:
        return Plan(release=True) if scope.deleting else None
    has = (domain.marks.namespace, domain.marks.name)
    if has == (scope.namespace, scope.name):
        return None
    if scope.deleting:
        return Plan(release=True)
    return Plan(
        state=WorkState.REFUSED,
        reason="DomainTaken",
        message=f"the domain {order.uid} is machine {has[0]}/{has[1]}: two imports were made of it; delete this machine",
    )


def replugs(scope: Scope) -> tuple[Step, ...]:
    """Interfaces that were somebody else's and are still plugged into what they were then."""
    elsewhere = {nic.uid for nic in scope.domain.nics if nic.elsewhere} if scope.domain is not None else set()
    return tuple(Replug(nic) for nic in scope.order.nics if nic.uid in elsewhere)


def restored(scope: Scope) -> tuple[Step, ...]:
    """What somebody on the host took from a machine that is on: its definition, and memory of its guest."""
    domain, since = scope.domain, scope.memory.refilled_at
    if domain is None:
        return ()
    refill = domain.squeezed and (since is None or scope.now >= since + REFILL_EVERY)
    return (*((Redefine(),) if domain.lost else ()), *((Refill(),) if refill else ()))


def said(scope: Scope, state: WorkState) -> Plan:
    """What is said while its definition is not what it was started by, or its guest lacks memory."""
    domain = scope.domain
    if domain is not None and domain.edited:
        return Plan(
            state=state,
            reason="DefinitionChanged",
            message=f"somebody changed its definition on the host ({', '.join(domain.edited)[:200]}): that has no effect, and"
            " is put back when it is started anew; change the machine's spec",
        )
    if domain is not None and domain.squeezed:
        if scope.status.reason != MEMORY_TAKEN and (quiet := _unsaid(scope)) > 0:
            return Plan(state=state, after=min(quiet, REFILL_EVERY))
        return Plan(
            state=state,
            reason=MEMORY_TAKEN,
            message=f"its guest, or somebody on the host, gave memory of it back; it is asked to take it again every"
            f" {REFILL_EVERY:.0f} s",
            after=REFILL_EVERY,
        )
    return Plan(state=state)


def _unsaid(scope: Scope) -> float:
    """For how many seconds more nothing is said of memory that was given back.

    A guest can give back and take by itself, as often as it likes. So it has to hold for a while, and for ever longer when it
    was told of before.
    """
    memory = scope.memory
    since = scope.now if memory.squeezed_since is None else memory.squeezed_since
    return max(since + min(REFILL_EVERY * 2.0**memory.squeezes, SQUEEZED_MOST) - scope.now, 0.0)


def noticed(scope: Scope, memory: Memory) -> Memory:
    """What is remembered of a guest that lacks memory, or does not."""
    if scope.domain is None or not scope.domain.squeezed:
        return memory if memory.squeezed_since is None else replace(memory, squeezed_since=None)
    return memory if memory.squeezed_since is not None else replace(memory, squeezed_since=scope.now)


def told(scope: Scope, said: WorkOrderStatus, memory: Memory) -> Memory:
    """What is remembered once that was reported."""
    if said.reason != MEMORY_TAKEN or scope.status.reason == MEMORY_TAKEN:
        return memory
    squeezes = told_once_more(memory.squeezes, memory.squeeze_told_at, scope.now, SQUEEZES_FORGOTTEN)
    return replace(memory, squeezes=squeezes, squeeze_told_at=scope.now)
