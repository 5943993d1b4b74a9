"""What an agent remembers of a machine between passes, and the back-off of its restarts. Pure."""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkState
from kumulus_agents.agent import instance_others
from kumulus_agents.agent.instance_scope import Memory, Scope, Situation, exit_of, marks_of, situation
from kumulus_agents.hypervisor.domain import DomainState, ExitReason

CALM = 600.0
"""After so long a run the restarts before it are forgiven."""
BACK_OFF_FIRST = 10.0
"""Seconds between the first restart and the second, should that be needed; each after it waits twice as long."""
BACK_OFF_MOST = 300.0


def remember(scope: Scope, started: float | None, next_start: float | None) -> Memory:
    """The memory, brought up to date with what was observed.

    `started` (when the last run began) and `next_start` (when policy was going to start it) are what
    was reported before, in seconds since the epoch.
    """
    memory, seen = instance_others.noticed(scope, scope.memory), situation(scope)
    on = scope.domain is not None and scope.domain.state is not DomainState.STOPPED
    stop_wanted = on and (seen is Situation.STOPPING or scope.order.power is PowerState.STOPPED or scope.deleting)
    if not stop_wanted:
        memory = replace(memory, stopping_since=None, pressed_at=None)
    elif memory.stopping_since is None:
        memory = replace(memory, stopping_since=scope.now)
    has = set(scope.domain.volumes).union(nic.uid for nic in scope.domain.nics) if scope.domain is not None else set()
    if memory.asked.keys() - has:
        memory = replace(memory, asked={uid: at for uid, at in memory.asked.items() if uid in has})
    if memory.trays and not on:
        memory = replace(memory, trays={})
    marks = marks_of(scope)
    if ended := _ending(scope, seen):
        memory = replace(memory, last_exit=ended)
    if seen is not Situation.ENDED:
        if seen is Situation.OFF and marks is not None and exit_of(scope) is not ExitReason.FAILED:
            memory = replace(memory, forgiven=marks.restarts)
        return replace(memory, next_start=None, next_start_wall=None)
    if memory.next_start is not None or marks is None:
        return memory
    facts = scope.status.instance
    told = scope.status.state is WorkState.BACK_OFF and facts is not None and facts.restarts == marks.restarts
    if told and next_start is not None:
        delay = min(max(next_start - scope.wall, 0.0), BACK_OFF_MOST)
        return replace(memory, next_start=scope.now + delay, next_start_wall=next_start)
    ran = scope.wall - started if started is not None else 0.0
    forgiven = marks.restarts if ran >= CALM else min(memory.forgiven, marks.restarts)
    delay = back_off(marks.restarts - forgiven)
    return replace(memory, forgiven=forgiven, next_start=scope.now + delay, next_start_wall=scope.wall + delay)


def back_off(streak: int) -> float:
    """Seconds to wait before a machine is started again that was restarted `streak` times in a row; none the first time."""
    if streak == 0:
        return 0.0
    return float(min(BACK_OFF_FIRST * 2 ** min(streak - 1, 16), BACK_OFF_MOST))


def _ending(scope: Scope, seen: Situation) -> str | None:
    domain = scope.domain
    if domain is None or domain.state is not DomainState.STOPPED or domain.exit_reason is None:
        return None
    if domain.exit_reason is ExitReason.UNKNOWN and seen is not Situation.ENDED:
        return None
    return domain.exit_reason.lower()
