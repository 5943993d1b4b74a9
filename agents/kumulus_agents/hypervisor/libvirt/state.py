"""What libvirt's states and reasons mean to Kumulus. Pure tables, each row seen on libvirt 9.0 with QEMU 7.2.

What happens                          state, reason            events
guest powers off                      SHUTOFF, SHUTDOWN        SHUTDOWN/GUEST, STOPPED/SHUTDOWN
QEMU gets SIGTERM                     SHUTOFF, SHUTDOWN (!)    SHUTDOWN/HOST, STOPPED/SHUTDOWN
virsh destroy                         SHUTOFF, DESTROYED       SHUTDOWN/HOST, STOPPED/DESTROYED
guest panics (pvpanic)                SHUTOFF, CRASHED         CRASHED/PANICKED, STOPPED/CRASHED
QEMU gets SIGKILL                     SHUTOFF, CRASHED         STOPPED/FAILED
QEMU dies while libvirtd is gone      SHUTOFF, CRASHED         (after its restart)
start fails                           SHUTOFF, FAILED          STOPPED/FAILED
guest has gone to another host        SHUTOFF, MIGRATED        STOPPED/MIGRATED
off, libvirtd restarted               SHUTOFF, UNKNOWN         -
a write fails                         PAUSED, IOERROR          SUSPENDED/IOERROR; diskErrors() says for want of space

So the state alone takes a SIGTERM from outside for a guest that powered off: the event before tells.
"""

from __future__ import annotations

from collections.abc import Mapping

import libvirt

from kumulus_agents.hypervisor.domain import DomainState, ExitReason, PauseReason

STATES: Mapping[int, DomainState] = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    # QEMU is still there: its disks are not free yet.
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
}
"""Every other state is off."""

PASSING_PAUSES = frozenset(
    {
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
        libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
        libvirt.VIR_DOMAIN_PAUSED_CRASHED,
    }
)
"""Pauses that libvirt itself ends at once, on the way up or down."""

NO_SPACE = 1000
"""Ours, beside libvirt's reasons of a pause: an I/O error for want of space, which libvirt tells per disk."""

PAUSES: Mapping[int, PauseReason] = {
    NO_SPACE: PauseReason.DISK_FULL,
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: PauseReason.DISK_ERROR,
}

EXITS: Mapping[int, ExitReason] = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: ExitReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: ExitReason.DESTROYED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: ExitReason.CRASHED,
    # libvirtd, restarted, could not go on with it and killed it.
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: ExitReason.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: ExitReason.FAILED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: ExitReason.MIGRATED,
}

STOPPED: Mapping[int, ExitReason] = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: ExitReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: ExitReason.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: ExitReason.CRASHED,
    # Of a domain that ran, this is QEMU's sudden death; a failed start is told by its own error.
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: ExitReason.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: ExitReason.MIGRATED,
}

NAMES: Mapping[int, str] = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "idle",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "in shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}
"""virsh's words, for domains that are not ours."""


def state_of(state: int, reason: int) -> DomainState:
    """What a domain is, from libvirt's state and reason."""
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in PASSING_PAUSES:
        return DomainState.RUNNING
    return STATES.get(state, DomainState.STOPPED)


def exit_of(state: int, reason: int) -> ExitReason:
    """Why a domain that is off is off, from libvirt's state and reason alone."""
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return ExitReason.CRASHED
    return EXITS.get(reason, ExitReason.UNKNOWN)


class Exits:
    """Why runs ended, as events told: better than the state where libvirt mixes reasons up or forgets them.

    Holds one word a domain that ended and was not started again.
    """

    def __init__(self) -> None:
        self._exits: dict[str, ExitReason] = {}

    def note(self, uid: str, event: int, detail: int) -> None:
        """Take in a lifecycle event of a domain."""
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STARTED | libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
                self._exits.pop(uid, None)
            case libvirt.VIR_DOMAIN_EVENT_SHUTDOWN if detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST:
                self._exits[uid] = ExitReason.DESTROYED
            case libvirt.VIR_DOMAIN_EVENT_CRASHED:
                self._exits[uid] = ExitReason.CRASHED
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._exits.setdefault(uid, STOPPED.get(detail, ExitReason.UNKNOWN))

    def why(self, uid: str, told: ExitReason) -> ExitReason:
        """Why it ended, when libvirt's state says `told`."""
        if told in (ExitReason.SHUTDOWN, ExitReason.UNKNOWN):
            return self._exits.get(uid, told)
        return told
