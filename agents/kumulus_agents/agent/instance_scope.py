"""What one round of planning about a machine looks at, and what it may come to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrderStatus, WorkState
from kumulus.api.instance_order import GuestFacts, InstanceOrder, MigrationFacts, Outgoing
from kumulus.api.segments import Nic
from kumulus_agents.agent.hold import Hold
from kumulus_agents.hypervisor.domain import Domain, DomainState, ExitReason, Marks
from kumulus_agents.hypervisor.foreign import NotedNic
from kumulus_agents.hypervisor.migration import Progress
from kumulus_agents.storage.source import DiskSource


class Situation(StrEnum):
    """What is, as far as it decides."""

    ABSENT = "Absent"
    """No domain, and none is known to have run for this order."""
    OFF = "Off"
    """Off because we were asked to, or because it could not be started."""
    ENDED = "Ended"
    """Off although it was wanted to run: the guest or QEMU ended by itself, or the host was restarted."""
    RUNNING = "Running"
    """On, and its CPUs run."""
    PAUSED = "Paused"
    """On, and its CPUs are halted: by us, by somebody on the host, or by itself when its storage fails."""
    SUSPENDED = "Suspended"
    """Off, and its memory is kept on the host's disk: by us, or by somebody on the host."""
    STOPPING = "Stopping"
    """On, and a stop has begun or a restart is asked for. A stop that has begun is finished."""


@dataclass(frozen=True, slots=True)
class Tray:
    """A guest holds the tray of a drive shut. Moments are monotonic seconds."""

    first: float
    """When it was asked first."""
    last: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process remembers of a machine between passes. Losing it costs patience, never correctness.

    Moments are monotonic seconds.
    """

    stopping_since: float | None = None
    pressed_at: float | None = None
    resumed_at: float | None = None
    next_start: float | None = None
    """When policy starts it again."""
    next_start_wall: float | None = None
    """The same for people, in seconds since the epoch."""
    forgiven: int = 0
    """Restarts that no longer count for the back-off."""
    last_exit: str | None = None
    """Why it last ended, as seen by this process."""
    hold: Hold | None = None
    asked: Mapping[str, float] = field(default_factory=dict)
    """When the guest was last asked to let go of a volume, or of an interface."""
    ports: Mapping[str, Nic | None] = field(default_factory=dict)
    """Interfaces that this process has brought into force, as they were then, by uid; None: it knows of one that an agent
    before it did."""
    resized_at: float | None = None
    """When the guest was last asked to have another size."""
    amounts: int = 0
    """How often another amount of memory was told since then that the guest came to have."""
    amount_told_at: float | None = None
    refilled_at: float | None = None
    """When the guest was last asked to take memory that somebody had it give back."""
    squeezed_since: float | None = None
    """Since when it has lacked memory without a break, as seen by this process."""
    squeezes: int = 0
    """How often that was told of late."""
    squeeze_told_at: float | None = None
    trays: Mapping[str, Tray] = field(default_factory=dict)
    """By name of the drive."""


@dataclass(frozen=True, slots=True)
class Moving:
    """What this process does to bring a machine to another host, or has ready for one that comes."""

    progress: Progress | None = None
    failure: tuple[str, str] | None = None
    """Reason and sentence; of one that comes, why the last attempt was refused."""
    stalled: float = 0.0
    """For how many seconds its copy has got no closer to its end."""


@dataclass(frozen=True, slots=True)
class Scope:
    """All that one round of planning looks at."""

    order: InstanceOrder
    deleting: bool
    term: int
    highest_term: int
    """The highest term of a leader that was ever seen for this order."""
    namespace: str
    name: str
    domain: Domain | None
    status: WorkOrderStatus
    """What was reported last; after a restart of the agent the only memory."""
    memory: Memory
    now: float
    """Monotonic seconds."""
    wall: float
    """Seconds since the epoch."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """Volumes of the order that another machine of this host had first, and that machine's name."""
    guest: GuestFacts | None = None
    """What is to be told of its guest."""
    discs: Mapping[str, DiskSource] = field(default_factory=dict)
    """Where the discs are that the order wants in drives, by the drive's name; only those that are in their pools."""
    nics: tuple[NotedNic, ...] = ()
    """What is to be noted of its interfaces."""
    moving: Moving | None = None
    """Of the migration that the order speaks of; or, when it speaks of none, of one that is not ended yet."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Write the marks into the domain."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class Start:
    """Make disks and seed, define and start, with these marks."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make a domain that is not Kumulus' own the machine, with these marks."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class Disown:
    """Leave the domain as it is, and be it nobody's."""

    ports: tuple[str, ...] = ()
    """Interfaces that this process knows of and that the order does not name."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Halt the CPUs."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the CPUs go on."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Keep its memory on disk, and take the power away."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Go on from the memory that is kept, with these marks."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class DropMemory:
    """Drop the memory that is kept."""


@dataclass(frozen=True, slots=True)
class PressButton:
    """Ask the guest to shut down."""


@dataclass(frozen=True, slots=True)
class ForceOff:
    """Take the power away."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Give the guest, which is on, a volume of its order."""

    volume: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Ask the guest to let go of a volume; of a machine that is off, take it out of the definition."""

    volume: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Bring into force what the order says of an interface that the guest has."""

    nic: Nic


@dataclass(frozen=True, slots=True)
class PlugIn:
    """Bring an interface of the order into force, then give it to the guest, which is on."""

    nic: Nic


@dataclass(frozen=True, slots=True)
class Replug:
    """Plug an interface of a domain that was somebody else's into its network."""

    nic: Nic


@dataclass(frozen=True, slots=True)
class Unplug:
    """Ask the guest to let go of an interface; of a machine that is off, take it out of the definition."""

    nic: str


@dataclass(frozen=True, slots=True)
class RemovePort:
    """Have nothing on the host of an interface that the machine has not got, and is not to have."""

    nic: str


@dataclass(frozen=True, slots=True)
class Limit:
    """Make a volume that the guest has as fast as its order says, and no faster."""

    volume: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Give the guest, which is on, more CPUs, and ask it to take memory or to give it back."""

    cpus: int
    memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Redefine:
    """Give the domain, which is on, a definition again that somebody took away."""


@dataclass(frozen=True, slots=True)
class Refill:
    """Have the guest, which is on, take memory again that somebody had it give back."""


@dataclass(frozen=True, slots=True)
class ChangeDisc:
    """Put a disc into a drive, or take out what is in it; by force when the guest has held the tray shut for long."""

    drive: str
    disc: DiskSource | None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Begin to bring the guest to another host; that goes on beside the passes."""

    outgoing: Outgoing


@dataclass(frozen=True, slots=True)
class EndSending:
    """Give up bringing the guest to another host. It may be there all the same."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Have everything ready for a guest that comes from another host, with these marks."""

    marks: Marks
    migration: str


@dataclass(frozen=True, slots=True)
class Arrive:
    """Let the guest go on that has come, with these marks."""

    marks: Marks


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the domain and everything that was made for it."""

    ports: tuple[str, ...] = ()
    """Interfaces that it has, or had, besides those of the order."""


Step = (
    Mark
    | Adopt
    | Disown
    | Start
    | Pause
    | Resume
    | Suspend
    | Wake
    | DropMemory
    | PressButton
    | ForceOff
    | Attach
    | Detach
    | Filter
    | PlugIn
    | Replug
    | Unplug
    | RemovePort
    | Limit
    | Resize
    | Redefine
    | Refill
    | ChangeDisc
    | Send
    | EndSending
    | Receive
    | Arrive
    | Remove
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to take now; without steps, what to report and when to look again (None: when something changes)."""

    steps: tuple[Step, ...] = ()
    state: WorkState = WorkState.PENDING
    reason: str | None = None
    message: str | None = None
    after: float | None = None
    migration: MigrationFacts | None = None
    """What is said of a migration."""
    release: bool = False
    """Once the steps are taken nothing of it is left: the order may go."""


def marks_of(scope: Scope) -> Marks | None:
    """The domain's marks; of a domain that is gone, what was reported of it while it ran for this placement."""
    if scope.domain is not None:
        return scope.domain.marks
    facts = scope.status.instance
    if facts is None or facts.epoch != scope.order.epoch or not _known_to_have_run(scope.status):
        return None
    return Marks(
        uid=scope.order.uid,
        epoch=facts.epoch,
        namespace=scope.namespace,
        name=scope.name,
        wanted=PowerState.RUNNING,
        restart_request=facts.last_restart_request,
        restarts=facts.restarts or 0,
    )


def situation(scope: Scope) -> Situation:
    """Which row of the table applies."""
    domain, order, marks = scope.domain, scope.order, marks_of(scope)
    if marks is None:
        return Situation.ABSENT
    restart = marks.restart_request != order.restart_request
    if domain is not None and domain.state is not DomainState.STOPPED:
        if marks.wanted is PowerState.STOPPED or restart:
            return Situation.STOPPING
        return Situation.PAUSED if domain.state is DomainState.PAUSED else Situation.RUNNING
    # Of an older placement a memory is worth nothing: the disks may have been written elsewhere.
    if domain is not None and domain.saved == order.epoch:
        return Situation.SUSPENDED
    if marks.wanted is PowerState.STOPPED or marks.epoch < order.epoch or restart:
        return Situation.OFF
    if domain is None:
        return Situation.ENDED
    if domain.exit_reason is ExitReason.FAILED:
        return Situation.OFF
    if domain.exit_reason in (None, ExitReason.UNKNOWN) and not _ran_as(scope.status, marks):
        return Situation.OFF
    return Situation.ENDED


def _known_to_have_run(status: WorkOrderStatus) -> bool:
    if status.state in (WorkState.RUNNING, WorkState.PAUSED, WorkState.SUSPENDED, WorkState.BACK_OFF):
        return True
    return status.state is WorkState.STOPPED and status.reason is not None


def _ran_as(status: WorkOrderStatus, marks: Marks) -> bool:
    """Whether a run with these marks was reported. If not, an agent died between defining and starting it."""
    facts = status.instance
    return (
        facts is not None
        and facts.epoch == marks.epoch
        and facts.last_restart_request == marks.restart_request
        and _known_to_have_run(status)
    )


def exit_of(scope: Scope) -> ExitReason:
    """Why the domain is off."""
    return (scope.domain.exit_reason if scope.domain is not None else None) or ExitReason.UNKNOWN


def told_once_more(times: int, last: float | None, now: float, forgotten: float) -> int:
    """How often something was told of late, this time included: after `forgotten` seconds without it those before do not count."""
    return 1 if last is None or now - last > forgotten else times + 1
