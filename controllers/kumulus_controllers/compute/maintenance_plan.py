"""What is to be done next about the maintenance of a host, and how far it is (ADR 38). Pure.

Everything follows from what is on record: the host's spec, what machines' status says is done to them (`eviction`), the migrations
that were made for it, the orders. Nothing is remembered, so whoever dies between two writes is followed by one who goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.maintenance import (
    DIRECTION,
    FOR_MAINTENANCE,
    WAITING_TOLD,
    Eviction,
    EvictionAction,
    EvictionPolicy,
    MaintenancePhase,
    MaintenanceStatus,
    WaitingGuest,
)
from kumulus.api.migration import FINISHED, MigrationPhase, VirtualMachineMigration
from kumulus_controllers.compute.maintenance_attempts import Move, number, pause, tried
from kumulus_controllers.compute.migration_preflight import ALREADY_MOVING
from kumulus_controllers.compute.migration_turns import LEAVES, QUEUED, RETURNS, given_up
from kumulus_controllers.orders import at_rest
from kumulus_controllers.storage.volume_plan import Lack

RETURN_ATTEMPTS = 5
"""A machine that could not be brought back so often stays where it is."""
LOOK_SECONDS = 15.0
"""How soon those that wait are looked at again: not all that they wait for announces itself."""
REFUSED_MOST = 8
"""So many machines for which no host has room are looked at in one pass: each looks at every host."""

SHUT_DOWN = (EvictionPolicy.RESTART, EvictionPolicy.STOP)
OFF = (WorkState.STOPPED, WorkState.SUSPENDED, WorkState.BACK_OFF, WorkState.FAILED, WorkState.REFUSED)


@dataclass(frozen=True, slots=True)
class Guest:
    """A machine that is on the host, or has left it for its maintenance."""

    vm: VirtualMachine
    order: WorkOrder | None = None
    """By which it is placed now."""
    blocked: Lack | None = None
    """Why it cannot be moved while it runs, wherever to."""
    bound: Lack | None = None
    """Why it cannot be started on another host."""
    ours: tuple[VirtualMachineMigration, ...] = ()
    """Migrations of it that were made for this maintenance."""

    @property
    def going(self) -> VirtualMachineMigration | None:
        """The migration that was made for this and has not ended."""
        return next((item for item in self.ours if item.status.phase not in FINISHED), None)


Room = Callable[[Guest], Lack | None]
"""Why no other host takes a guest now; None: one does."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    host: Host
    now: float
    """Seconds since the epoch."""
    at_once: int
    """So many machines leave or come back at once."""
    guests: tuple[Guest, ...] = ()
    """Machines on the host."""
    away: tuple[Guest, ...] = ()
    """Machines that left it, and say so."""
    arriving: tuple[VirtualMachineMigration, ...] = ()
    """Migrations to the host that have begun and not ended."""
    astray: tuple[VirtualMachineMigration, ...] = ()
    """Migrations that were to get machines off the host, have not begun, and whose machines are not there any more."""
    room: Room = field(default=lambda guest: None)
    closed: str | None = None
    """Why the host takes no machines, maintenance left aside."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take a migration back."""

    migration: VirtualMachineMigration


@dataclass(frozen=True, slots=True)
class Mark:
    """Put on record what is done to a machine; None: nothing any more."""

    vm: VirtualMachine
    eviction: Eviction | None


Action = Move | Cancel | Mark


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is done now, and how far it is then."""

    actions: tuple[Action, ...]
    status: MaintenanceStatus | None
    """None: it is over, and nothing is left to do."""
    after: float | None = None
    """Seconds until it is looked at again, should nobody tell."""


def plan(scope: Scope, began: str) -> Outlook:
    """What comes next. `began`: when the maintenance began (RFC 3339)."""
    wanted = scope.host.spec.maintenance
    if wanted is None:
        found = _Ending(scope, began).plan()
    elif not scope.host.emptied:
        actions = [*_let_be(scope), *(Mark(guest.vm, None) for guest in scope.away)]
        found = Outlook(tuple(actions), MaintenanceStatus(phase=MaintenancePhase.IN_PLACE, began_at=began))
    else:
        found = _Emptying(scope, began, returns=wanted.return_guests).plan()
    return replace(found, actions=(*map(Cancel, scope.astray), *found.actions))


def _let_be(scope: Scope) -> Iterable[Action]:
    """What was begun about machines on the host is taken back."""
    for guest in scope.guests:
        if (going := guest.going) is not None and not going.deleting and _leaves(going):
            yield Cancel(going)
        if guest.vm.status.eviction is not None and guest.vm.status.eviction.host == scope.host.name:
            yield Mark(guest.vm, None)


def waits_to_leave(migration: VirtualMachineMigration, host: str) -> bool:
    """Whether it was made to get a machine off that host, and has not begun."""
    ours = migration.metadata.labels.get(FOR_MAINTENANCE) == host and _leaves(migration)
    begun = migration.status.target_host is not None or migration.status.phase in FINISHED
    return ours and not begun and not migration.deleting


def _leaves(migration: VirtualMachineMigration) -> bool:
    return migration.metadata.labels.get(DIRECTION) == LEAVES


def _cancelling(migration: VirtualMachineMigration) -> Lack:
    """What one that is being given up waits for, in its own words."""
    said = migration.status.condition("Ready")
    why = said.message if said is not None else ""
    reason = said.reason if said is not None else MigrationPhase.CANCELLING
    return Lack(reason, f"Its migration is given up. {why}".strip(), stalled=False)


def on(guest: Guest) -> bool:
    """Whether it may be on: nobody says for certain that it is off."""
    order = guest.order
    if order is None:
        return False
    said = order.status.instance
    return order.status.state not in OFF or (said is not None and said.cpus is not None)


def in_order(guest: Guest) -> tuple[int, str, str]:
    """Those of a higher priority first."""
    vm = guest.vm
    return (-vm.spec.high_availability.priority, vm.namespace or "", vm.name)


class _Pass:
    """What both directions share."""

    def __init__(self, scope: Scope, began: str) -> None:
        self.scope, self.began = scope, began
        self.host = scope.host.name
        self.actions: list[Action] = []
        self.waiting: list[WaitingGuest] = []
        self.left = self.moving = self.staying = 0
        self.taken = 0
        """Of the places of those that leave or come back at once."""
        self.after: float | None = None

    def waits(self, guest: Guest, lack: Lack, after: float = LOOK_SECONDS) -> None:
        """It cannot go now."""
        self.tell(guest.vm.namespace, guest.vm.name, lack, after)

    def tell(self, namespace: str | None, name: str, lack: Lack, after: float = LOOK_SECONDS) -> None:
        found = WaitingGuest(namespace=namespace or "", name=name, reason=lack.reason[:64], message=lack.message[:512])
        self.waiting.append(found)
        self.again(after)

    def takes(self) -> None:
        """It is on its way."""
        self.moving += 1
        self.taken += 1

    def goes(self, guest: Guest, going: VirtualMachineMigration) -> None:
        """It is on its way; one that is being given up waits for a host to answer, and what it waits for is told."""
        if going.status.phase is not MigrationPhase.CANCELLING:
            self.takes()
            return
        if not given_up(going):
            self.taken += 1
        self.waits(guest, _cancelling(going))

    def again(self, after: float) -> None:
        self.after = after if self.after is None else min(self.after, after)

    def move(self, guest: Guest, direction: str) -> None:
        """The next attempt, unless it is too soon."""
        failed = tried(guest.ours, direction, self.began)
        if (wait := pause(failed, self.scope.now)) > 0:
            ready = failed[-1].status.condition("Ready")
            why = f" {ready.message}" if ready is not None else ""
            reason = ready.reason if ready is not None else "Failed"
            times = "once" if len(failed) == 1 else f"{number(failed[-1])} times"
            said = f"It was tried {times}, and is tried again by itself.{why}"
            self.waits(guest, Lack(reason, said, stalled=False), wait + 0.1)
            return
        attempt = number(failed[-1]) + 1 if failed else 1
        self.actions.append(Move(guest.vm, self.host, direction, attempt, self.began))
        self.takes()

    def outlook(self, phase: MaintenancePhase | None) -> Outlook:
        status = None
        if phase is not None:
            status = MaintenanceStatus(
                phase=phase,
                began_at=self.began,
                left=self.left,
                moving=self.moving,
                staying=self.staying,
                # Those that only wait for their turn last: what somebody has to look at is to be seen.
                waiting=tuple(sorted(self.waiting, key=lambda guest: guest.reason == QUEUED)[:WAITING_TOLD]),
            )
        return Outlook(tuple(self.actions), status, self.after)


class _Emptying(_Pass):
    """Machines leave."""

    def __init__(self, scope: Scope, began: str, *, returns: bool) -> None:
        super().__init__(scope, began)
        self._returns = returns
        self._refused = 0
        self._restarts = False
        """Whether a machine is on its way by being shut down: one at a time, for two might be for one place."""

    def plan(self) -> Outlook:
        for guest in self.scope.away:
            found = guest.vm.status.eviction
            if found is not None and not (found.returns and self._returns):
                self.actions.append(Mark(guest.vm, None))
            if (back := guest.going) is not None and not _leaves(back) and not back.deleting:
                self.actions.append(Cancel(back))
        for coming in self.scope.arriving:
            self._arriving(coming)
        begun = [guest for guest in self.scope.guests if self._begun(guest)]
        others = [guest for guest in self.scope.guests if not self._begun(guest)]
        for guest in sorted(begun, key=in_order) + sorted(others, key=in_order):
            self._guest(guest)
        phase = MaintenancePhase.EVACUATING if self.moving else MaintenancePhase.BLOCKED
        return self.outlook(phase if self.left else MaintenancePhase.EMPTIED)

    def _arriving(self, coming: VirtualMachineMigration) -> None:
        self.left += 1
        if coming.status.phase is MigrationPhase.CANCELLING:
            self.tell(coming.namespace, coming.spec.vm, _cancelling(coming))
        else:
            self.moving += 1

    def _eviction(self, guest: Guest) -> Eviction | None:
        found = guest.vm.status.eviction
        return found if found is not None and found.host == self.host else None

    def _begun(self, guest: Guest) -> bool:
        """Whether something is being done about it, which takes one of the places of those that leave."""
        found = self._eviction(guest)
        return guest.going is not None or (found is not None and found.action is EvictionAction.RESTART)

    def _guest(self, guest: Guest) -> None:
        vm, found = guest.vm, self._eviction(guest)
        going = guest.going
        if vm.deleting:
            self.left += 1
            self.moving += 1
            return
        if going is not None and going.status.target_host is not None:
            self.left += 1
            self.goes(guest, going)
            return
        if found is not None and found.action is EvictionAction.RESTART:
            self._restarting(guest)
            return
        stopped = found is not None and found.action is EvictionAction.STOP
        if stopped and vm.spec.eviction_policy is not EvictionPolicy.STOP:  # its owner wants something else by now
            self.actions.append(Mark(vm, None))
        if not on(guest):
            self.staying += 1
            if going is not None and not going.deleting:
                self.actions.append(Cancel(going))
            return
        policy = self._policy(guest)
        pointless = policy is not EvictionPolicy.LIVE_MIGRATE or guest.blocked is not None
        if going is not None and pointless and not going.deleting and not self._moved_by_another(guest):
            self.actions.append(Cancel(going))
        if policy is EvictionPolicy.NONE:
            self.staying += 1
            if found is not None:
                self.actions.append(Mark(vm, None))
            return
        self.left += 1
        if vm.paused:
            self.waits(
                guest, Lack("LeftAlone", "Its owner asked Kumulus to leave it alone (annotation kumulus.io/paused).")
            )
        elif not self.scope.host.alive:
            self.waits(
                guest, Lack("HostNotReady", "The host does not answer, so nothing can be done about what runs there.")
            )
        elif policy in SHUT_DOWN and vm.spec.power_state not in (PowerState.RUNNING, PowerState.STOPPED):
            said = f"It is to be {vm.spec.power_state}, and would lose its memory: its owner may suspend or stop it."
            self.waits(guest, Lack("NotRunning", said, stalled=False))
        elif policy is EvictionPolicy.STOP:
            self._mark(guest, EvictionAction.STOP)
            self.moving += 1
        elif policy is EvictionPolicy.RESTART:
            self._restart(guest)
        else:
            self._live(guest)

    def _policy(self, guest: Guest) -> EvictionPolicy:
        """What its policy comes to. What hinders only for a while is waited for."""
        policy = guest.vm.spec.eviction_policy
        if policy is not EvictionPolicy.LIVE_MIGRATE_IF_POSSIBLE:
            return policy
        never = guest.blocked is not None and guest.blocked.stalled
        return EvictionPolicy.RESTART if never else EvictionPolicy.LIVE_MIGRATE

    @staticmethod
    def _moved_by_another(guest: Guest) -> bool:
        return guest.blocked is not None and guest.blocked.reason == ALREADY_MOVING

    def _live(self, guest: Guest) -> None:
        if self._moved_by_another(guest):
            self.moving += 1
            return
        if guest.blocked is not None:
            self.waits(guest, guest.blocked)
            return
        if guest.going is not None:
            self._pending(guest, guest.going)
            return
        if (lack := self._turn(guest)) is not None:
            self.waits(guest, lack)
            return
        if self._returns:
            self._mark(guest, EvictionAction.LIVE_MIGRATE)
        self.move(guest, LEAVES)

    def _pending(self, guest: Guest, going: VirtualMachineMigration) -> None:
        """It was asked for, and has not begun."""
        if going.deleting:
            self.takes()
        elif (lack := self.scope.room(guest)) is not None:
            self.actions.append(Cancel(going))
            self.waits(guest, lack)
        else:
            self.takes()
            self.again(LOOK_SECONDS)

    def _restart(self, guest: Guest) -> None:
        if guest.bound is not None:
            self.waits(guest, guest.bound)
        elif self._restarts:
            said = "Another machine is shut down to be started elsewhere, and no room is kept for it: it is its turn later."
            self.waits(guest, Lack(QUEUED, said, stalled=False))
        elif (lack := self._turn(guest)) is not None:
            self.waits(guest, lack)
        else:
            self._restarts = True
            self._mark(guest, EvictionAction.RESTART)
            self.takes()

    def _restarting(self, guest: Guest) -> None:
        """It is being shut down, or is off and about to leave. Should no host take it any more it is not left off."""
        order = guest.order
        self.left += 1
        stuck = guest.bound or (self.scope.room(guest) if order is not None and at_rest(order) else None)
        if stuck is not None and order is not None and not order.deleting:
            self.actions.append(Mark(guest.vm, None))
            self.waits(guest, stuck)
            return
        self._restarts = True
        self.takes()
        self.again(LOOK_SECONDS)

    def _turn(self, guest: Guest) -> Lack | None:
        """Why it is not begun now although it could go."""
        if self.taken >= self.scope.at_once:
            return Lack(
                QUEUED,
                f"{self.taken} machines leave already, as many as may at once: it is its turn later.",
                stalled=False,
            )
        return self._no_room(guest)

    def _no_room(self, guest: Guest) -> Lack | None:
        if self._refused >= REFUSED_MOST:
            return Lack(
                "NoHostFits", "No host had room for several others before it: it is looked at later.", stalled=False
            )
        lack = self.scope.room(guest)
        if lack is not None:
            self._refused += 1
        return lack

    def _mark(self, guest: Guest, action: EvictionAction) -> None:
        returns = self._returns and action is not EvictionAction.STOP
        wanted = Eviction(host=self.host, action=action, returns=returns)
        if guest.vm.status.eviction != wanted:
            self.actions.append(Mark(guest.vm, wanted))


class _Ending(_Pass):
    """It is over, or cancelled: what was begun is taken back, and machines that are to come back do."""

    def plan(self) -> Outlook:
        self.actions += _let_be(self.scope)
        for guest in sorted(self.scope.away, key=lambda guest: (guest.going is None, *in_order(guest))):
            self._guest(guest)
        return self.outlook(MaintenancePhase.RETURNING if self.left else None)

    def _guest(self, guest: Guest) -> None:
        vm, going = guest.vm, guest.going
        found = vm.status.eviction
        failed = tried(guest.ours, RETURNS, self.began)
        blocked = guest.blocked if guest.blocked is None or guest.blocked.reason != ALREADY_MOVING else None
        in_vain = len(failed) >= RETURN_ATTEMPTS or (failed and number(failed[-1]) >= RETURN_ATTEMPTS)
        never = blocked is not None and blocked.stalled
        stays = found is None or not found.returns or vm.deleting or vm.paused or not on(guest) or in_vain or never
        if stays and (going is None or _leaves(going)):
            self.actions.append(Mark(vm, None))
            return
        self.left += 1
        if going is not None:
            self.goes(guest, going)
            if never and going.status.target_host is None and not going.deleting:
                self.actions.append(Cancel(going))
        elif self.scope.closed is not None:
            self.waits(
                guest, Lack("HostClosed", f"Host {self.host} takes no machines: {self.scope.closed}.", stalled=False)
            )
        elif guest.blocked is not None:
            self.waits(guest, guest.blocked)
        elif self.taken >= self.scope.at_once:
            self.waits(
                guest, Lack(QUEUED, f"{self.taken} machines come back already: it is its turn later.", stalled=False)
            )
        else:
            self.move(guest, RETURNS)


def besides(status: MaintenanceStatus | None, refused: Sequence[WaitingGuest]) -> MaintenanceStatus | None:
    """The same, with those for which something was refused that was to be done: they are not on their way."""
    if status is None or not refused:
        return status
    moving = max(status.moving - len(refused), 0)
    stuck = status.phase is MaintenancePhase.EVACUATING and not moving
    waiting = (*refused, *status.waiting)[:WAITING_TOLD]
    phase = MaintenancePhase.BLOCKED if stuck else status.phase
    return status.model_copy(update={"phase": phase, "moving": moving, "waiting": waiting})
