"""What to do about one machine: from what is, and what its order asks, to the next steps. Pure.

A pass observes, plans, acts and observes again until the plan has no steps; then it reports. All
that decides about a machine's life (epochs, power, restarts, deletion) is here and in the two
modules beside it. The table at the end is the whole state machine; `state_table` renders it, and the
first lines of the docstrings of what is in it, into the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kumulus.api.compute import PowerState, RestartPolicy, StopMode
from kumulus.api.host import WorkState
from kumulus.api.instance_order import STALE_TERM
from kumulus.api.qos import UNLIMITED
from kumulus_agents.agent import instance_moving, instance_others
from kumulus_agents.agent.instance_scope import (
    Adopt,
    Attach,
    ChangeDisc,
    Detach,
    Disown,
    DropMemory,
    EndSending,
    Filter,
    ForceOff,
    Limit,
    Mark,
    Pause,
    Plan,
    PlugIn,
    PressButton,
    Remove,
    RemovePort,
    Resize,
    Resume,
    Scope,
    Situation,
    Start,
    Step,
    Suspend,
    Unplug,
    Wake,
    exit_of,
    marks_of,
    situation,
)
from kumulus_agents.hypervisor.domain import TRAY_LOCKED, DomainState, ExitReason, Marks, PauseReason
from kumulus_agents.storage.source import DiskSource

PRESS_EVERY = 5.0
"""Seconds between two presses of the power button: a guest that is still booting misses the first."""
DELETE_GRACE = 5.0
"""At most so many seconds does a machine get to shut down when it is deleted."""
RESUME_EVERY = 10.0
"""A guest that pauses by itself (its storage fails) is resumed at most so often."""
ON_TRIAL = 3.0
"""A guest that had paused by itself and was resumed is said to run when it has for so long: what it lacked may lack still,
and its status would say something else every few seconds."""
DETACH_EVERY = 15.0
"""Seconds between two requests to a guest to let go of the same volume or interface."""
TRAY_EVERY = 10.0
"""Seconds between two requests to a guest to open the tray of a drive."""
TRAY_PATIENCE = 30.0
"""A guest that holds a tray shut is asked for so long; then the disc is changed by force."""
DISC_EVERY = 10.0
"""Whether a disc has come is looked at so often, should nobody tell."""
TAKEN_EVERY = 10.0
"""Whether another machine has let go of a volume is looked at so often, should nobody tell."""


def plan(scope: Scope) -> Plan:
    """The next steps, or what to report when there are none."""
    marks = scope.domain.marks if scope.domain is not None else None
    if marks is not None and marks.epoch > scope.order.epoch:
        if scope.deleting:
            return Plan(release=True)
        return Plan(
            state=WorkState.REFUSED,
            reason="StaleEpoch",
            message=f"this order is of placement {scope.order.epoch}, the machine here is of placement {marks.epoch}",
        )
    if (of_another := instance_others.taken(scope)) is not None:
        return of_another
    if scope.term < scope.highest_term and not scope.deleting:
        return Plan(
            state=WorkState.REFUSED,
            reason=STALE_TERM,
            message=f"a controller of term {scope.term} wrote this, one of term {scope.highest_term} wrote before it",
        )
    if not scope.deleting and (gone := instance_moving.departed(scope)) is not None:
        return gone
    on_its_way = scope.order.outgoing is not None or scope.order.incoming is not None
    if scope.moving is not None and (scope.deleting or not on_its_way):
        return Plan((EndSending(),))
    hold = scope.memory.hold
    if hold is not None and scope.now < hold.until:
        return Plan(
            state=_state_while_on(scope) or hold.state,
            reason=hold.reason,
            message=hold.message,
            after=hold.until - scope.now,
        )
    if scope.deleting:
        return _delete(scope)
    if (moved := _moved(scope)) is not None:
        return moved
    if instance_others.to_adopt(scope):
        return Plan((Adopt(_new_marks(scope, wanted=scope.order.power, restarts=0)),))
    return TRANSITIONS[situation(scope), scope.order.power](scope)


def _moved(scope: Scope) -> Plan | None:
    """What is done of a machine that is on its way from or to another host; None of one that is not."""

    def new_marks() -> Marks:
        return _new_marks(scope, wanted=PowerState.RUNNING, restarts=0)

    if scope.order.incoming is not None:
        return instance_moving.come(scope, scope.order.incoming.migration, new_marks)
    if scope.order.outgoing is not None:
        return instance_moving.leave(scope, scope.order.outgoing)
    return instance_moving.taken_over(scope, new_marks)


def _state_while_on(scope: Scope) -> WorkState | None:
    """What a machine that is on is reported as, even if something about it fails."""
    domain = scope.domain
    if domain is None or domain.state is DomainState.STOPPED:
        return None
    if scope.memory.stopping_since is not None:
        return WorkState.STOPPING
    return WorkState.PAUSED if domain.state is DomainState.PAUSED else WorkState.RUNNING


def _new_marks(scope: Scope, *, wanted: PowerState, restarts: int) -> Marks:
    return Marks(
        uid=scope.order.uid,
        epoch=scope.order.epoch,
        namespace=scope.namespace,
        name=scope.name,
        wanted=wanted,
        restart_request=scope.order.restart_request,
        restarts=restarts,
        nics=scope.nics,
    )


def _remark(scope: Scope, wanted: PowerState) -> tuple[Mark, ...]:
    """Marks for the domain as it is now in power state `wanted`; nothing when it has them."""
    domain = scope.domain
    if domain is None:
        return ()
    marks = replace(
        domain.marks,
        wanted=wanted,
        epoch=scope.order.epoch,
        namespace=scope.namespace,
        name=scope.name,
        nics=scope.nics,
    )
    if marks.epoch != domain.marks.epoch:
        marks = replace(marks, departed=None)
    return () if marks == domain.marks else (Mark(marks),)


def _start(scope: Scope) -> Plan:
    """Make what is missing and start it; pause it at once if that is wanted."""
    marks = marks_of(scope)
    restarts = marks.restarts if marks is not None and marks.epoch == scope.order.epoch else 0
    return _start_with(scope, restarts)


def _start_with(scope: Scope, restarts: int) -> Plan:
    if scope.taken:
        return Plan(state=WorkState.REFUSED, reason="VolumeInUse", message=_taken(scope), after=TAKEN_EVERY)
    start = Start(_new_marks(scope, wanted=scope.order.power, restarts=restarts))
    return Plan((start, Pause()) if scope.order.power is PowerState.PAUSED else (start,))


def _after_end(scope: Scope) -> Plan:
    """Start it again if `restartPolicy` says so, after pauses that grow; else leave it off."""
    policy, exit_reason = scope.order.restart_policy, exit_of(scope)
    if policy is RestartPolicy.NEVER or (policy is RestartPolicy.ON_FAILURE and exit_reason is ExitReason.SHUTDOWN):
        reason, message = ENDINGS[exit_reason]
        return Plan(
            _partings(scope),
            state=WorkState.STOPPED,
            reason=reason,
            message=f"{message}; restartPolicy {policy} leaves it off until it is started or restarted",
        )
    due = scope.memory.next_start if scope.memory.next_start is not None else scope.now
    marks = marks_of(scope)
    restarts = marks.restarts if marks is not None else 0
    if due <= scope.now:
        return _start_with(scope, restarts + 1)
    reason, message = ENDINGS[exit_reason]
    return Plan(
        _partings(scope),
        state=WorkState.BACK_OFF,
        reason=reason,
        message=f"{message}; it was started again {restarts} times and will be again after a pause",
        after=due - scope.now,
    )


ENDINGS: Mapping[ExitReason, tuple[str, str]] = {
    ExitReason.SHUTDOWN: ("GuestShutDown", "the guest shut down by itself"),
    ExitReason.CRASHED: ("GuestCrashed", "the guest crashed, or its QEMU died"),
    ExitReason.DESTROYED: ("ForcedOff", "somebody forced it off on the host"),
    ExitReason.FAILED: ("StartFailed", "it could not be started"),
    ExitReason.MIGRATED: ("Departed", "its guest was brought to another host"),
    ExitReason.UNKNOWN: ("EndedUnseen", "it ended while nobody watched, most likely with its host"),
}


def _keep(scope: Scope) -> Plan:
    """Leave it on; attach and detach volumes and interfaces, limit and filter them, resize it, change discs."""
    found, since = _keep_on(scope, WorkState.RUNNING), scope.memory.resumed_at
    before = scope.status
    stood = before.state is WorkState.PAUSED and before.reason in {reason for reason, _ in PAUSES.values()}
    if found.steps or not stood or since is None or scope.now >= since + ON_TRIAL:
        return found
    return Plan(
        state=WorkState.PAUSED, reason=before.reason, message=before.message, after=since + ON_TRIAL - scope.now
    )


def _keep_on(scope: Scope, state: WorkState) -> Plan:
    steps = (
        *_remark(scope, scope.order.power),
        *_partings(scope),
        *_filters(scope),
        *_attaches(scope),
        *_plugs(scope),
        *instance_others.replugs(scope),
        *_limits(scope),
        *_resizes(scope),
        *instance_others.restored(scope),
        *_discs(scope),
    )
    if steps:
        return Plan(steps)
    held = [*_surplus(scope), *_surplus_nics(scope)]
    if held and scope.domain is not None:
        disks = sorted(disk.name for disk in scope.domain.disks if disk.volume in held)
        names = ", ".join((*disks, *sorted(nic.mac for nic in scope.domain.nics if nic.uid in held)))
        due = min(scope.memory.asked.get(uid, scope.now) for uid in held) + DETACH_EVERY
        return Plan(
            state=state,
            reason="Detaching",
            message=f"the guest has not let go of {names} yet; it is asked again every {DETACH_EVERY:.0f} s,"
            " and loses it at the latest when it is stopped",
            after=max(due - scope.now, 0.0),
        )
    if scope.taken:
        return Plan(state=state, reason="VolumeInUse", message=_taken(scope), after=TAKEN_EVERY)
    return _drives(scope, state)


def _drives(scope: Scope, state: WorkState) -> Plan:
    """What is said while a disc is not where it is wanted."""
    shut = _other_discs(scope).keys() & scope.memory.trays.keys()
    if shut:
        due = min(scope.memory.trays[name].last for name in shut) + TRAY_EVERY
        return Plan(
            state=state,
            reason=TRAY_LOCKED,
            message=f"the guest holds the tray of {', '.join(sorted(shut))} shut: eject the disc in the guest; it is asked"
            f" again every {TRAY_EVERY:.0f} s, and after {TRAY_PATIENCE:.0f} s the disc is changed by force",
            after=max(due - scope.now, 0.0),
        )
    missing = sorted(drive.name for drive in scope.order.drives if drive.image and drive.name not in scope.discs)
    if missing:
        return Plan(
            state=state,
            reason="ImageNotReady",
            message=f"the disc of {', '.join(missing)} is not in its pool on this host yet",
            after=DISC_EVERY,
        )
    return instance_others.said(scope, state)


def _other_discs(scope: Scope) -> dict[str, DiskSource | None]:
    """Drives that have another disc than the order says, and that one; not those whose disc is not there."""
    has = {drive.name: drive.path for drive in scope.domain.drives} if scope.domain is not None else {}
    found: dict[str, DiskSource | None] = {}
    for drive in scope.order.drives:
        disc = scope.discs.get(drive.name)
        there = disc is not None or drive.image is None
        if drive.name in has and there and has[drive.name] != (disc.path if disc is not None else None):
            found[drive.name] = disc
    return found


def _discs(scope: Scope) -> tuple[Step, ...]:
    """Changes of discs; none for what the guest was asked a moment ago."""
    steps = []
    for name, disc in _other_discs(scope).items():
        tray = scope.memory.trays.get(name)
        if tray is None or scope.now >= tray.last + TRAY_EVERY:
            force = tray is not None and scope.now >= tray.first + TRAY_PATIENCE
            steps.append(ChangeDisc(name, disc, force))
    return tuple(steps)


def _surplus(scope: Scope) -> list[str]:
    """Volumes that the machine has and its order does not name."""
    has = scope.domain.volumes if scope.domain is not None else frozenset()
    return sorted(has - {disk.volume for disk in scope.order.disks})


def _surplus_nics(scope: Scope) -> list[str]:
    """Interfaces that the machine has and its order does not name."""
    has = {nic.uid for nic in scope.domain.nics} if scope.domain is not None else set()
    return sorted(has - {nic.uid for nic in scope.order.nics})


def _partings(scope: Scope) -> tuple[Step, ...]:
    """Requests to let go of what the order does not name; none for what was asked a moment ago. And the ports of interfaces
    that the guest has let go of."""
    asked = scope.memory.asked

    def due(uid: str) -> bool:
        return scope.now >= asked.get(uid, float("-inf")) + DETACH_EVERY

    return (
        *(Detach(volume) for volume in _surplus(scope) if due(volume)),
        *(Unplug(nic) for nic in _surplus_nics(scope) if due(nic)),
        *(RemovePort(nic) for nic in _old_ports(scope)),
    )


def _old_ports(scope: Scope) -> list[str]:
    """Interfaces that this process has brought into force and that the machine neither has nor is to have."""
    has = {nic.uid for nic in scope.domain.nics} if scope.domain is not None else set()
    return sorted(scope.memory.ports.keys() - has - {nic.uid for nic in scope.order.nics})


def _filters(scope: Scope) -> tuple[Step, ...]:
    """Interfaces that the machine has and of which the order says something that is not known to be in force."""
    has = {nic.uid for nic in scope.domain.nics} if scope.domain is not None else set()
    return tuple(Filter(nic) for nic in scope.order.nics if nic.uid in has and scope.memory.ports.get(nic.uid) != nic)


def _plugs(scope: Scope) -> tuple[Step, ...]:
    """Interfaces that the order names and the machine, which is on, has not got."""
    has = {nic.uid for nic in scope.domain.nics} if scope.domain is not None else set()
    return tuple(PlugIn(nic) for nic in scope.order.nics if nic.uid not in has)


def _attaches(scope: Scope) -> tuple[Step, ...]:
    """What the order names and the machine, which is on, has not got; but nothing that another machine has."""
    has = scope.domain.volumes if scope.domain is not None else frozenset()
    wanted = (disk.volume for disk in scope.order.disks)
    return tuple(Attach(volume) for volume in wanted if volume is not None and volume not in {*has, *scope.taken})


def _limits(scope: Scope) -> tuple[Step, ...]:
    """Volumes that are faster or slower than the order says: it changed, or somebody on the host did that."""
    wanted = {disk.volume: disk.qos or UNLIMITED for disk in scope.order.disks if disk.volume is not None}
    has = scope.domain.disks if scope.domain is not None else ()
    return tuple(
        Limit(disk.volume) for disk in has if disk.volume is not None and wanted.get(disk.volume, disk.qos) != disk.qos
    )


def _resizes(scope: Scope) -> tuple[Step, ...]:
    """What of another size the guest can get at once. The rest waits for the next start."""
    domain, order = scope.domain, scope.order
    if domain is None or (growth := domain.growth) is None:
        return ()
    more = (domain.cpus or order.cpus) < order.cpus <= growth.cpus
    asked = growth.memory(order.memory)
    if not more and asked in (None, growth.memory_asked):
        return ()
    return (Resize(order.cpus, order.memory),)


def _taken(scope: Scope) -> str:
    names = [
        f"{disk.name} ({machine})" for disk in scope.order.disks if (machine := scope.taken.get(disk.volume or ""))
    ]
    return f"other machines have volumes of this one and must let go first: {', '.join(names)}"


def _pause(scope: Scope) -> Plan:
    """Halt its CPUs."""
    return Plan((*_remark(scope, PowerState.PAUSED), Pause()))


def _keep_paused(scope: Scope) -> Plan:
    """Leave it paused; attach and detach volumes and interfaces, limit and filter them, resize it, change discs."""
    return _keep_on(scope, WorkState.PAUSED)


PAUSES: Mapping[PauseReason | None, tuple[str, str]] = {
    PauseReason.DISK_FULL: (
        "DiskFull",
        "the guest is paused because there is no room for what it writes: free space in the pool of its disks, or give"
        " it more; nothing is lost, and the guest goes on by itself",
    ),
    PauseReason.DISK_ERROR: (
        "DiskError",
        "the guest is paused because a disk of it fails: look at the pool; nothing that it has written is lost, and it"
        " goes on by itself when the disk is back",
    ),
    None: (
        "PausedByItself",
        "the guest is paused although nobody asked for it, most likely because its storage fails or is full",
    ),
}


def _resume(scope: Scope) -> Plan:
    """Let its CPUs go on; if it paused by itself, not again before 10 s have passed."""
    since, marks = scope.memory.resumed_at, marks_of(scope)
    by_itself = marks is not None and marks.wanted is PowerState.RUNNING
    if by_itself and since is not None and scope.now < since + RESUME_EVERY:
        reason, message = PAUSES[scope.domain.pause_reason if scope.domain is not None else None]
        return Plan(
            state=WorkState.PAUSED,
            reason=reason,
            message=message,
            after=since + RESUME_EVERY - scope.now,
        )
    return Plan((*_remark(scope, PowerState.RUNNING), Resume()))


def _suspend(scope: Scope) -> Plan:
    """Keep its memory on disk, and take the power away."""
    return Plan((*_remark(scope, PowerState.SUSPENDED), Suspend()))


def _nothing_to_suspend(scope: Scope) -> Plan:
    """Note that it is to be off, and leave it off: there is no memory to keep."""
    if stale := _stale_memory(scope):
        return Plan(stale)
    message = "it is off, so there is no memory to keep; it boots when it is wanted to run"
    return Plan((*_remark(scope, PowerState.STOPPED), *_partings(scope)), state=WorkState.STOPPED, message=message)


def _stay_suspended(scope: Scope) -> Plan:
    """Leave it off, and its memory where it is."""
    if marked := _remark(scope, PowerState.SUSPENDED):
        return Plan(marked)
    held = [*_surplus(scope), *_surplus_nics(scope)]
    if not held:
        return Plan(state=WorkState.SUSPENDED)
    message = "it keeps what was taken out of its spec until it is on again, or its memory is dropped"
    return Plan(state=WorkState.SUSPENDED, reason="Detaching", message=message)


def _wake(scope: Scope) -> Plan:
    """Let it go on from the memory that is kept; halted if that is wanted."""
    marks = marks_of(scope)
    assert marks is not None
    return Plan((Wake(replace(marks, wanted=scope.order.power, namespace=scope.namespace, name=scope.name)),))


def _stop_suspended(scope: Scope) -> Plan:
    """Wake it, so that it can be asked to shut down; with `stop.mode: Force` drop its memory."""
    if scope.order.stop.mode is not StopMode.FORCE:
        return _wake(scope)
    return Plan((*_remark(scope, PowerState.STOPPED), DropMemory()))


def _stop(scope: Scope) -> Plan:
    """Press its power button until it is off or its grace period ends, then force it off."""
    return _stop_within(scope, float(scope.order.stop.grace_period_seconds))


def _stop_within(scope: Scope, grace: float) -> Plan:
    mark = _remark(scope, PowerState.STOPPED)
    if mark:
        return Plan(mark)
    memory = scope.memory
    since = memory.stopping_since if memory.stopping_since is not None else scope.now
    paused = scope.domain is not None and scope.domain.state is DomainState.PAUSED and not scope.domain.held
    deadline = since + grace
    if scope.order.stop.mode is StopMode.FORCE or paused or scope.now >= deadline:
        return Plan((ForceOff(),))
    if memory.pressed_at is None or scope.now >= memory.pressed_at + PRESS_EVERY:
        return Plan((PressButton(),))
    return Plan(
        state=WorkState.STOPPING,
        after=max(min(memory.pressed_at + PRESS_EVERY, deadline) - scope.now, 0.0),
    )


def _stale_memory(scope: Scope) -> tuple[Step, ...]:
    """A memory of an older placement is worth nothing: its disks may have been written elsewhere."""
    return (DropMemory(),) if scope.domain is not None and scope.domain.saved is not None else ()


def _record_stop(scope: Scope) -> Plan:
    """Note that it is to be off, and leave it off."""
    if stale := _stale_memory(scope):
        return Plan(stale)
    return Plan((*_remark(scope, PowerState.STOPPED), *_partings(scope)), state=WorkState.STOPPED)


def _stay_off(scope: Scope) -> Plan:
    """Leave it off."""
    return Plan(_partings(scope), state=WorkState.STOPPED)


def _delete(scope: Scope) -> Plan:
    order, domain = scope.order, scope.domain
    if order.unmanage and not order.superseded:
        return Plan((Disown(tuple(sorted({*_surplus_nics(scope), *_old_ports(scope)}))),), release=True)
    ask = (
        domain is not None
        and (domain.state is DomainState.RUNNING or domain.held)
        and order.power is PowerState.RUNNING
        and order.stop.mode is StopMode.GRACEFUL
    )
    if ask:
        stop = _stop_within(scope, min(float(order.stop.grace_period_seconds), DELETE_GRACE))
        if ForceOff() not in stop.steps:
            return stop
    return Plan((Remove(tuple(sorted({*_surplus_nics(scope), *_old_ports(scope)}))),), release=True)


Transition = Callable[[Scope], Plan]

TRANSITIONS: Mapping[tuple[Situation, PowerState], Transition] = {
    (Situation.ABSENT, PowerState.RUNNING): _start,
    (Situation.ABSENT, PowerState.PAUSED): _start,
    (Situation.ABSENT, PowerState.STOPPED): _stay_off,
    (Situation.ABSENT, PowerState.SUSPENDED): _nothing_to_suspend,
    (Situation.OFF, PowerState.RUNNING): _start,
    (Situation.OFF, PowerState.PAUSED): _start,
    (Situation.OFF, PowerState.STOPPED): _record_stop,
    (Situation.OFF, PowerState.SUSPENDED): _nothing_to_suspend,
    (Situation.ENDED, PowerState.RUNNING): _after_end,
    (Situation.ENDED, PowerState.PAUSED): _after_end,
    (Situation.ENDED, PowerState.STOPPED): _record_stop,
    (Situation.ENDED, PowerState.SUSPENDED): _nothing_to_suspend,
    (Situation.RUNNING, PowerState.RUNNING): _keep,
    (Situation.RUNNING, PowerState.PAUSED): _pause,
    (Situation.RUNNING, PowerState.STOPPED): _stop,
    (Situation.RUNNING, PowerState.SUSPENDED): _suspend,
    (Situation.PAUSED, PowerState.RUNNING): _resume,
    (Situation.PAUSED, PowerState.PAUSED): _keep_paused,
    (Situation.PAUSED, PowerState.STOPPED): _stop,
    (Situation.PAUSED, PowerState.SUSPENDED): _suspend,
    (Situation.SUSPENDED, PowerState.RUNNING): _wake,
    (Situation.SUSPENDED, PowerState.PAUSED): _wake,
    (Situation.SUSPENDED, PowerState.STOPPED): _stop_suspended,
    (Situation.SUSPENDED, PowerState.SUSPENDED): _stay_suspended,
    (Situation.STOPPING, PowerState.RUNNING): _stop,
    (Situation.STOPPING, PowerState.PAUSED): _stop,
    (Situation.STOPPING, PowerState.STOPPED): _stop,
    (Situation.STOPPING, PowerState.SUSPENDED): _stop,
}
