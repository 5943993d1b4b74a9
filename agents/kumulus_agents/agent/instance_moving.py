"""What to do about a machine that leaves for another host, or comes from one (docs/adr/0029). Pure.

The right to run is the source's until its domain is marked as departed, which it is only when the hypervisor says that it
is off because its guest was brought to the other host. From then on it is never started again here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkState
from kumulus.api.instance_order import MigrationFacts, MigrationState, Outgoing
from kumulus_agents.agent.instance_scope import (
    Arrive,
    EndSending,
    Mark,
    Plan,
    Receive,
    Resume,
    Scope,
    Send,
)
from kumulus_agents.hypervisor.domain import Domain, DomainState, ExitReason, Marks

SAID_EVERY = 5.0
"""Seconds between two words about how far a guest is."""
STALLED_SAID_AFTER = 5.0
"""Seconds; what is shorter is how a copy goes."""
RESUMED_WITHIN = 10.0
"""A guest that was let go on a moment ago and stands still does not move."""

NewMarks = Callable[[], Marks]


def departed(scope: Scope) -> Plan | None:
    """Whether the guest has left, which is first of all put on record; None when it has not."""
    domain = scope.domain
    if domain is None or domain.state is not DomainState.STOPPED or domain.marks.epoch != scope.order.epoch:
        return None
    if domain.marks.departed is None:
        if domain.exit_reason is not ExitReason.MIGRATED:
            return None
        return Plan((Mark(replace(domain.marks, departed=_migration(scope))),))
    message = "its guest was brought to another host and is that host's; here nothing is started"
    facts = MigrationFacts(migration=domain.marks.departed, state=MigrationState.SENT)
    return Plan(state=WorkState.STOPPED, reason="Departed", message=message, migration=facts)


def _migration(scope: Scope) -> str:
    """By which migration the guest has left: the order's, the one that was reported, or that of an agent before this one."""
    if scope.order.outgoing is not None:
        return scope.order.outgoing.migration
    said = scope.status.instance.migration if scope.status.instance is not None else None
    return said.migration if said is not None else scope.order.uid


def leave(scope: Scope, outgoing: Outgoing) -> Plan:
    """Have the guest sent. Nothing else is done to the machine meanwhile, and it is not started again if it ends."""
    domain, moving = scope.domain, scope.moving
    if domain is None or domain.state is DomainState.STOPPED:
        why = "the guest ended while it was to be brought to the other host; what restartPolicy says is done when the"
        return _failed(WorkState.STOPPED, outgoing, "GuestEnded", f"{why} migration is given up")
    if moving is not None and moving.failure is not None:
        if domain.state is DomainState.PAUSED and _may_resume(scope):
            return Plan((EndSending(), Resume()))
        return _failed(_on(domain), outgoing, *moving.failure)
    if moving is not None:
        at = moving.progress
        facts = MigrationFacts(
            migration=outgoing.migration,
            state=MigrationState.SENDING,
            total_bytes=at.total if at is not None else None,
            remaining_bytes=at.remaining if at is not None else None,
            dirty_rate=at.dirty_rate if at is not None else None,
            iteration=at.iteration if at is not None else None,
            downtime_ms=at.downtime if at is not None else None,
            stalled_seconds=int(moving.stalled) if moving.stalled >= STALLED_SAID_AFTER else None,
            disk_total_bytes=at.disk_total if at is not None and outgoing.disks else None,
            disk_remaining_bytes=at.disk_remaining if at is not None and outgoing.disks else None,
        )
        return Plan(state=WorkState.RUNNING, after=SAID_EVERY, migration=facts)
    if domain.state is DomainState.PAUSED:
        # By an agent or a libvirtd that died in the middle: the guest is this host's still.
        if _may_resume(scope):
            return Plan((EndSending(), Resume()))
        return _failed(WorkState.PAUSED, outgoing, "NotRunning", "the guest is halted: only one that runs can move")
    if scope.order.power is not PowerState.RUNNING:
        return _failed(_on(domain), outgoing, "NotRunning", "it is not to run, so it does not move")
    return Plan((Send(outgoing),))


def _rested(scope: Scope) -> bool:
    """Whether it was not let go on a moment ago."""
    since = scope.memory.resumed_at
    return since is None or scope.now >= since + RESUMED_WITHIN


def _may_resume(scope: Scope) -> bool:
    held = scope.domain is not None and scope.domain.held
    return scope.order.power is PowerState.RUNNING and not held and _rested(scope)


def _on(domain: Domain) -> WorkState:
    return WorkState.PAUSED if domain.state is DomainState.PAUSED else WorkState.RUNNING


def _failed(state: WorkState, outgoing: Outgoing, reason: str, message: str) -> Plan:
    facts = MigrationFacts(
        migration=outgoing.migration, state=MigrationState.FAILED, reason=reason[:64], message=message[:1024]
    )
    return Plan(state=state, migration=facts)


def come(scope: Scope, migration: str, new_marks: NewMarks) -> Plan:
    """Have everything ready for the guest, and wait for it. It is not started here."""
    domain, moving = scope.domain, scope.moving
    if domain is not None and domain.arriving is None and domain.marks.epoch == scope.order.epoch:
        return _has_come(scope, domain, migration)
    off = domain is None or domain.state is DomainState.STOPPED
    if off and (domain is None or domain.arriving != migration or moving is None):
        return Plan((Receive(new_marks(), migration),))
    if domain is not None and domain.arriving != migration:
        return Plan(
            state=WorkState.FAILED,
            reason="AlreadyOn",
            message="the machine is on here already, and not by this migration",
        )
    failure = moving.failure if moving is not None else None
    reason, message = failure if failure is not None else (None, None)
    facts = MigrationFacts(
        migration=migration,
        state=MigrationState.PREPARED,
        reason=reason[:64] if reason else None,
        message=message[:1024] if message else None,
    )
    return Plan(
        state=WorkState.WORKING, reason="Arriving", message="its guest comes from another host", migration=facts
    )


def _has_come(scope: Scope, domain: Domain, migration: str) -> Plan:
    """The other host has given it away: it is this one's, before the controllers say so."""
    facts = MigrationFacts(migration=migration, state=MigrationState.ARRIVED)
    if domain.state is DomainState.PAUSED and _rested(scope):
        return Plan((Resume(),))
    state = WorkState.STOPPED if domain.state is DomainState.STOPPED else _on(domain)
    return Plan(state=state, migration=facts)


def taken_over(scope: Scope, new_marks: NewMarks) -> Plan | None:
    """The placement is this host's: what has come goes on. None when there is nothing that has come, and waits."""
    domain = scope.domain
    if domain is None or domain.arriving is None or domain.state is DomainState.STOPPED:
        return None
    return Plan((Arrive(new_marks()),))
