"""What is done about a host in maintenance, and that whoever dies between two writes is followed by one who ends it the same."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from kumulus.api.base import PAUSED, ObjectMeta, Resource
from kumulus.api.compute import Resources, VirtualMachine, VirtualMachineSpec, VirtualMachineStatus
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.maintenance import ATTEMPT, DIRECTION, FOR_MAINTENANCE, Eviction, MaintenanceStatus, WaitingGuest
from kumulus.api.migration import VirtualMachineMigration
from kumulus.kube.client import KubeClient
from kumulus.runtime.clock import SystemClock, parse_time
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.maintenance import MaintenanceReconciler
from kumulus_controllers.compute.maintenance_attempts import Move, body
from kumulus_controllers.compute.maintenance_plan import (
    Action,
    Cancel,
    Guest,
    Mark,
    Outlook,
    Scope,
    besides,
    plan,
    waits_to_leave,
)
from kumulus_controllers.compute.migration_plan import derive_status
from kumulus_controllers.compute.migration_plan import plan as next_step
from kumulus_controllers.compute.migration_turns import (
    LEAVES,
    RETURNS,
    MigrationSettings,
    Way,
    astray,
    before,
    busy,
    full,
    under_way,
)
from kumulus_controllers.fabric.host_maintenance import under_work
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.volume_plan import Lack
from tests.unit.compute import test_migration_plan as moving

HERE, THERE = "h1", "h2"
BEGAN = "2027-01-15T08:00:00Z"
NOW = parse_time(BEGAN).timestamp() + 100
READY = [{"type": "Ready", "status": "True", "reason": "AgentAlive"}]
LOCAL = Lack("LocalDisks", "Disk tmp is ephemeral.")
PENDING = Lack("PendingChanges", "Something is pending.", stalled=False)


def host(maintenance: Mapping[str, Any] | None, *, alive: bool = True) -> Host:
    spec = {"zone": "z", **({"maintenance": maintenance} if maintenance is not None else {})}
    return Host.parse({"metadata": {"name": HERE}, "spec": spec, "status": {"conditions": READY if alive else []}})


def machine(name: str = "vm", *, at: str = HERE, policy: str = "LiveMigrate", **more: Any) -> VirtualMachine:
    notes = {PAUSED: "true"} if more.pop("paused", False) else {}
    gone = {"deletion_timestamp": BEGAN} if more.pop("deleting", False) else {}
    priority = {"priority": more.pop("priority", 100)}
    spec = VirtualMachineSpec(
        resources=Resources(cpus=1, memory="64Mi"),
        eviction_policy=policy,
        high_availability=priority,
        power_state=more.pop("power", "Running"),
    )
    return VirtualMachine(
        metadata=ObjectMeta(
            name=name, namespace="ns", uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), annotations=notes, **gone
        ),
        spec=spec,
        status=VirtualMachineStatus(host=at, epoch=1, **more),
    )


def order(vm: VirtualMachine, state: WorkState = WorkState.RUNNING, power: str = "Running") -> WorkOrder:
    instance = {
        "uid": vm.uid, "epoch": 1, "power": power, "restartPolicy": "Always", "cpus": 1, "memory": 1 << 26,
    }  # fmt: skip
    for_ = {"kind": "VirtualMachine", "namespace": "ns", "name": vm.name, "uid": vm.uid}
    return WorkOrder.parse(
        {
            "metadata": {"name": "i", "namespace": f"kumulus-host-{vm.status.host}", "generation": 1},
            "spec": {"type": "Instance", "for": for_, "instance": instance},
            "status": {"state": state, "observedGeneration": 1},
        }
    )


def guest(name: str = "vm", state: WorkState = WorkState.RUNNING, **more: Any) -> Guest:
    found = {key: more.pop(key) for key in ("blocked", "bound", "ours") if key in more}
    vm = machine(name, **more)
    return Guest(vm, order(vm, state, "Stopped" if state is WorkState.STOPPED else "Running"), **found)


def migration(
    name: str, phase: str, direction: str = LEAVES, attempt: int = 1, **status: Any
) -> VirtualMachineMigration:
    return VirtualMachineMigration.parse(
        {
            "metadata": {
                "name": f"{name}-{attempt}", "namespace": "ns", "uid": f"m-{name}-{attempt}",
                "labels": {"kumulus.io/maintenance": HERE, DIRECTION: direction},
                "annotations": {ATTEMPT: str(attempt)}, "creationTimestamp": BEGAN,
            },
            "spec": {"vm": name},
            "status": {"phase": phase, **status},
        }
    )  # fmt: skip


def raw(item: Resource, version: str) -> dict[str, Any]:
    """As the API server gives it."""
    found = item.to_json()
    return {**found, "metadata": {**found["metadata"], "resourceVersion": version}}


def look(*guests: Guest, returns: bool = False, mode: str = "Evacuate", **more: Any) -> Outlook:
    found = {"host": host({"mode": mode, "returnGuests": returns}), "now": NOW, "at_once": 2, **more}
    return plan(Scope(guests=guests, **found), BEGAN)


def reasons(outlook: Outlook) -> list[tuple[str, str]]:
    assert outlook.status is not None
    return [(item.name, item.reason) for item in outlook.status.waiting]


def done(outlook: Outlook) -> list[str]:
    """What is done, in words."""
    said = []
    for action in outlook.actions:
        match action:
            case Move(vm=vm, direction=direction, attempt=attempt):
                said.append(f"{vm.name} {direction} {attempt}")
            case Cancel(migration=item):
                said.append(f"cancel {item.spec.vm}")
            case Mark(vm=vm, eviction=found):
                said.append(f"{vm.name}: {found.action if found is not None else 'nothing'}")
    return said


def test_those_of_a_higher_priority_leave_first_and_not_more_than_may_at_once() -> None:
    outlook = look(guest("a"), guest("b", priority=500), guest("c", priority=300))
    assert done(outlook) == ["b Leaves 1", "c Leaves 1"]
    assert reasons(outlook) == [("a", "Queued")]
    assert outlook.status is not None and (outlook.status.left, outlook.status.moving) == (3, 2)
    slow = [guest(f"s{n}", policy="Stop") for n in range(5)] + [guest("z", deleting=True)]
    outlook = look(*slow, guest("a", priority=1), guest("b"), guest("c", blocked=LOCAL))
    assert done(outlook)[-2:] == ["s4: Stop", "a Leaves 1"], "what ends takes nobody's place"
    many = [guest(f"q{n}", priority=900) for n in range(20)]
    assert reasons(look(*many, guest("c", blocked=LOCAL)))[0] == ("c", "LocalDisks"), "it is not hidden by a queue"


@pytest.mark.parametrize(
    ("found", "actions", "waits"),
    [
        ({}, ["vm Leaves 1"], []),
        ({"blocked": LOCAL}, [], ["LocalDisks"]),
        ({"policy": "LiveMigrateIfPossible", "blocked": LOCAL}, ["vm: Restart"], []),
        ({"policy": "LiveMigrateIfPossible", "blocked": PENDING}, [], ["PendingChanges"]),
        ({"policy": "LiveMigrateIfPossible", "blocked": LOCAL, "bound": LOCAL}, [], ["LocalDisks"]),
        ({"policy": "Restart"}, ["vm: Restart"], []),
        ({"policy": "Restart", "bound": LOCAL}, [], ["LocalDisks"]),
        ({"policy": "Stop", "blocked": LOCAL, "bound": LOCAL}, ["vm: Stop"], []),
        ({"paused": True}, [], ["LeftAlone"]),
        ({"policy": "Stop", "power": "Paused"}, [], ["NotRunning"]),
        ({"policy": "None", "eviction": Eviction(host=HERE, action="Stop")}, ["vm: nothing", "vm: nothing"], []),
        ({"blocked": Lack("AlreadyMoving", "")}, [], []),
    ],
)
def test_each_policy(found: dict[str, Any], actions: list[str], waits: list[str]) -> None:
    outlook = look(guest(**found))
    assert done(outlook) == actions
    assert [reason for _, reason in reasons(outlook)] == waits
    emptied = "Evacuating" if found.get("policy") != "None" else "Emptied"
    assert outlook.status is not None and outlook.status.phase == ("Blocked" if waits else emptied)


@pytest.mark.parametrize(
    "found",
    [
        {"policy": "None"}, {"state": WorkState.STOPPED}, {"state": WorkState.SUSPENDED},
        {"state": WorkState.STOPPED, "policy": "Stop", "eviction": Eviction(host=HERE, action="Stop")},
    ],
)  # fmt: skip
def test_what_stays_holds_nothing_up(found: dict[str, Any]) -> None:
    outlook = look(guest(**found))
    assert outlook.status is not None and not outlook.actions
    assert (outlook.status.phase, outlook.status.staying) == ("Emptied", 1)
    assert under_work(outlook.status).status is True


def test_no_machine_is_shut_down_that_no_other_host_takes() -> None:
    full = Lack("NoHostFits", "0 of 2 hosts fit.", stalled=False)
    outlook = look(guest(policy="Restart"), room=lambda guest: full)
    assert not outlook.actions and reasons(outlook) == [("vm", "NoHostFits")]
    off = {"state": WorkState.STOPPED, "policy": "Restart", "eviction": Eviction(host=HERE, action="Restart")}
    assert done(look(guest(**off))) == []
    assert done(look(guest(**off), room=lambda guest: full)) == ["vm: nothing"], "it is started again where it was"
    many = [guest(f"m{number}", policy="Restart") for number in range(30)]
    asked: list[Guest] = []
    look(*many, room=lambda guest: asked.append(guest) or full)  # type: ignore[func-returns-value]
    assert len(asked) == 8


def test_two_are_not_shut_down_for_one_place() -> None:
    one = guest("b", policy="Restart")
    outlook = look(guest("a", policy="Restart"), one, guest("c"))
    assert done(outlook) == ["a: Restart", "c Leaves 1"] and reasons(outlook) == [("b", "Queued")]
    begun = {"policy": "Restart", "eviction": Eviction(host=HERE, action="Restart")}
    for state in (WorkState.RUNNING, WorkState.STOPPED):
        assert done(look(guest("a", state, **begun), one)) == []
    assert done(look(one)) == ["b: Restart"], "when that has left"
    full = Lack("NoHostFits", "0 of 2 hosts fit.", stalled=False)
    stuck = look(guest("a", WorkState.STOPPED, **begun), one, room=lambda guest: full if guest.vm.name == "a" else None)
    assert done(stuck) == ["a: nothing", "b: Restart"], "it holds up no other"


def test_what_failed_is_tried_again_after_pauses_that_grow() -> None:
    def failed(attempt: int, ago: float) -> Guest:
        at = datetime.fromtimestamp(NOW - ago, UTC).isoformat()
        said = [{"type": "Ready", "status": "False", "reason": "MigrationFailed", "message": "It broke."}]
        return guest(ours=(migration("vm", "Failed", attempt=attempt, finishedAt=at, conditions=said),))

    waiting = look(failed(1, 29))
    assert reasons(waiting) == [("vm", "MigrationFailed")] and not waiting.actions
    assert waiting.after is not None and 1 < waiting.after < 2
    assert done(look(failed(1, 31))) == ["vm Leaves 2"]
    assert not done(look(failed(3, 110))) and done(look(failed(3, 121))) == ["vm Leaves 4"]
    assert done(look(failed(9, 601))) == ["vm Leaves 10"]
    earlier = failed(1, 5)
    old = earlier.ours[0].model_copy(
        update={"metadata": earlier.ours[0].metadata.model_copy(update={"creation_timestamp": "2027-01-15T07:00:00Z"})}
    )
    assert done(look(replace(earlier, ours=(old,)))) == ["vm Leaves 1"], "of an earlier maintenance"


def test_a_migration_that_cannot_begin_is_taken_back() -> None:
    asked = migration("vm", "Pending")
    assert done(look(guest(ours=(asked,)))) == []
    assert done(look(guest(ours=(asked,), blocked=LOCAL))) == ["cancel vm"]
    assert done(look(guest(ours=(asked,), policy="None"))) == ["cancel vm"]
    assert done(look(guest(ours=(asked,)), room=lambda guest: Lack("NoHostFits", ""))) == ["cancel vm"]
    begun = migration("vm", "Migrating", targetHost=THERE)
    assert done(look(guest(ours=(begun,), blocked=LOCAL))) == [], "it has begun: it comes to its own end"


def test_a_host_that_does_not_answer_is_left_as_it_is() -> None:
    outlook = look(guest(policy="Restart"), guest("other"), host=host({}, alive=False))
    assert not outlook.actions and {reason for _, reason in reasons(outlook)} == {"HostNotReady"}


def test_taken_away_it_takes_back_what_it_began_and_brings_back_what_is_to_come_back() -> None:
    open_ = {"host": host(None)}
    moving = guest("a", ours=(migration("a", "Migrating", targetHost=THERE),))
    stopped = guest("b", WorkState.STOPPED, eviction=Eviction(host=HERE, action="Stop"))
    over = look(moving, stopped, **open_)
    assert done(over) == ["cancel a", "b: nothing"] and over.status is None
    evicted = {"at": THERE, "eviction": Eviction(host=HERE, action="LiveMigrate", returns=True)}
    away = (guest("c", **evicted), guest("d", blocked=LOCAL, **evicted), guest("e", WorkState.STOPPED, **evicted))
    back = look(away=away, **open_)
    assert done(back) == ["c Returns 1", "d: nothing", "e: nothing"]
    assert back.status is not None and (back.status.phase, back.status.left) == ("Returning", 1)
    (made,) = [action for action in back.actions if isinstance(action, Move)]
    assert body(made)["spec"] == {"vm": "c", "ttlSecondsAfterFinished": 3600, "targetHost": HERE}
    closed = look(away=away[:1], closed="cordoned", **open_)
    assert not closed.actions and reasons(closed) == [("c", "HostClosed")]
    again = replace(away[0], ours=(migration("c", "Pending", RETURNS),))
    assert done(look(away=(again,), returns=True)) == ["cancel c"], "worked on again before it was back"
    assert done(look(away=away[:1])) == ["c: nothing"], "returnGuests was taken away"


def test_what_is_refused_holds_up_nobody_and_is_told() -> None:
    outlook = look(guest("a"))
    assert besides(outlook.status, []) is outlook.status
    told = besides(outlook.status, [WaitingGuest(namespace="ns", name="a", reason="Refused", message="quota")])
    assert told is not None and (told.phase, told.moving, told.waiting[0].reason) == ("Blocked", 0, "Refused")


def test_in_place_nothing_moves() -> None:
    outlook = look(guest(ours=(migration("vm", "Pending"),)), guest("b", policy="Stop"), mode="InPlace")
    assert done(outlook) == ["cancel vm"]
    assert outlook.status is not None and under_work(outlook.status).reason == "InPlace"
    disarming = under_work(outlook.status, guarded=True)
    assert (disarming.status, disarming.reason) == (False, "WatchdogArmed"), "its guests would end with its agent"


# Whoever dies between two writes


@dataclass
class World:
    """What is on record, and hosts that do what they are told; one that dies does so after so many actions."""

    maintenance: dict[str, Any] | None
    vms: dict[str, VirtualMachine] = field(default_factory=dict)
    off: set[str] = field(default_factory=set)
    migrations: dict[str, VirtualMachineMigration] = field(default_factory=dict)
    status: MaintenanceStatus | None = None
    most: int = 0
    made: list[str] = field(default_factory=list)

    def scope(self) -> Scope:
        def as_guest(vm: VirtualMachine) -> Guest:
            state = WorkState.STOPPED if vm.name in self.off else WorkState.RUNNING
            ours = tuple(item for item in self.migrations.values() if item.spec.vm == vm.name)
            return Guest(vm, order(vm, state, "Stopped" if vm.name in self.off else "Running"), ours=ours)

        here = [vm for vm in self.vms.values() if vm.status.host == HERE]
        away = [vm for vm in self.vms.values() if vm.status.host != HERE and vm.status.eviction is not None]
        return Scope(
            host=host(self.maintenance), now=NOW, at_once=2,
            guests=tuple(map(as_guest, here)), away=tuple(map(as_guest, away)),
        )  # fmt: skip

    def act(self, action: Action) -> None:
        match action:
            case Move() as move:
                self.made.append(move.name)
                found = migration(move.vm.name, "Pending", move.direction, move.attempt)
                self.migrations.setdefault(
                    move.name,
                    found.model_copy(update={"metadata": found.metadata.model_copy(update={"name": move.name})}),
                )
            case Cancel(migration=item):
                self.migrations.pop(item.name)
            case Mark(vm=vm, eviction=eviction):
                self._change(vm.name, eviction=eviction)

    def _change(self, name: str, **update: Any) -> None:
        vm = self.vms[name]
        self.vms[name] = vm.model_copy(update={"status": vm.status.model_copy(update=update)})

    def others(self) -> None:
        """Migrations and hosts get on by one step."""
        going = [item for item in self.migrations.values() if item.status.phase != "Succeeded"]
        self.most = max(self.most, len(going))
        for item in going:
            to = THERE if item.metadata.labels[DIRECTION] == LEAVES else HERE
            self._change(item.spec.vm, host=to)
            ended = item.status.model_copy(update={"phase": "Succeeded", "target_host": to})
            self.migrations[item.name] = item.model_copy(update={"status": ended})
        for name, vm in self.vms.items():
            found = vm.status.eviction
            emptied = self.maintenance is not None and found is not None and found.host == vm.status.host
            shut = emptied and found is not None and found.action != "LiveMigrate"
            if shut and name not in self.off:
                self.off.add(name)
            elif found is not None and found.action == "Restart" and name in self.off:
                self._change(name, host=THERE)
                self.off.discard(name)
            elif not shut:
                self.off.discard(name)

    def run(self, die: Callable[[], bool], rounds: int = 40) -> None:
        for _ in range(rounds):
            if self.maintenance is None and self.status is None:
                return
            outlook = plan(self.scope(), BEGAN)
            for action in outlook.actions:
                if die():
                    break
                self.act(action)
            else:
                if not die():
                    self.status = outlook.status
            self.others()

    def placed(self) -> dict[str, tuple[str | None, bool, bool]]:
        return {
            name: (vm.status.host, name in self.off, vm.status.eviction is not None) for name, vm in self.vms.items()
        }


def story(at: int) -> tuple[World, int]:
    """A host is emptied and opened again; who carries that out dies at the so-manyth write, 0 for never."""
    policies = ["LiveMigrate", "LiveMigrate", "LiveMigrate", "Restart", "Stop", "None"]
    vms = {f"m{n}": machine(f"m{n}", policy=policy) for n, policy in enumerate(policies)}
    world = World({"returnGuests": True}, vms, status=MaintenanceStatus(phase="Evacuating", began_at=BEGAN))
    writes = itertools.count(1)
    count = 0

    def die() -> bool:
        nonlocal count
        count = next(writes)
        return count == at

    world.run(die)
    assert world.status is not None and world.status.phase == "Emptied"
    assert {name for name, (where, off, _) in world.placed().items() if where == HERE and not off} == {"m5"}
    world.maintenance = None
    world.run(die)
    assert world.status is None
    return world, count


def test_a_crash_at_any_write_changes_nothing() -> None:
    right, writes = story(0)
    assert right.placed() == {f"m{n}": (HERE, False, False) for n in range(6)}
    assert right.most <= 2 and writes > 15
    for at in range(1, writes + 1):
        found, _ = story(at)
        assert found.placed() == right.placed(), at
        assert found.most <= 2
        assert sorted(set(found.made)) == sorted(right.made), "each is made once, by its name"


# How many at once


def test_so_many_machines_move_at_once() -> None:
    limits = MigrationSettings(at_once=3, leaving=2, coming=1)
    going = [
        migration("a", "Migrating", sourceHost="x", targetHost="y"),
        migration("b", "Preparing", attempt=2, sourceHost="x", targetHost="z"),
        migration("c", "Finishing", attempt=3, sourceHost="x", targetHost="z"),
        migration("d", "Succeeded", attempt=4, sourceHost="x", targetHost="z"),
        migration("e", "Pending", attempt=5),
    ]
    ways = under_way(going)
    assert set(ways.values()) == {Way("x", "y"), Way("x", "z")}
    found = full(ways, "x", limits)
    assert found is not None and found.reason == "Queued" and "leave host x" in found.message
    assert full(ways, "w", limits) is None
    assert full({**ways, "more": Way("w", "v")}, "u", limits) is not None
    assert set(busy(ways, limits)) == {"y", "z"}


def test_one_that_is_given_up_and_waits_for_a_silent_target_holds_up_no_other_and_is_told() -> None:
    going = moving.migration(**moving.BEGUN, phase="Cancelling", failure="TimedOut", failure_message="It took long.")
    ending = moving.scope(going, target=moving.order(moving.THERE, 5, **moving.IN, deleting=True))
    conditions = [item.to_json() for item in derive_status(ending, next_step(ending), BEGAN).conditions]
    kept = {"sourceHost": HERE, "targetHost": THERE, "conditions": conditions}
    stuck = [migration(name, "Cancelling", **kept) for name in ("a", "b")]
    assert under_way(stuck) == {}
    outlook = look(*(guest(item.spec.vm, ours=(item,)) for item in stuck), guest("c"))
    assert done(outlook) == ["c Leaves 1"]
    assert reasons(outlook) == [("a", "TargetClearsUp"), ("b", "TargetClearsUp")]
    assert reasons(look(arriving=tuple(stuck)))[0] == ("a", "TargetClearsUp")
    unanswered = [migration(name, "Cancelling", targetHost=THERE) for name in ("a", "b")]
    outlook = look(*(guest(item.spec.vm, ours=(item,)) for item in unanswered), guest("c"))
    assert done(outlook) == [] and len(under_way(unanswered)) == 2, "a guest may still be sent"


def test_what_was_to_leave_a_host_on_which_its_machine_is_not_any_more_is_taken_back() -> None:
    """It was brought back to another host first, from which it would be moved later."""
    waiting, begun = migration("a", "Pending"), migration("b", "Migrating", targetHost=THERE)
    assert waits_to_leave(waiting, HERE) and not waits_to_leave(waiting, THERE) and not waits_to_leave(begun, HERE)
    assert not waits_to_leave(migration("a", "Pending", RETURNS), HERE)
    for maintenance in ({}, {"mode": "InPlace"}, None):
        assert done(look(host=host(maintenance), astray=(waiting,))) == ["cancel a"]
    assert astray(waiting, HERE) is None and astray(migration("a", "Pending", RETURNS), THERE) is None
    lack = astray(waiting, THERE)
    assert lack is not None and lack.reason == "NotThere", "nor does it begin meanwhile"


def test_two_hosts_that_are_worked_on_do_not_move_a_machine_to_and_fro() -> None:
    """What the maintenance of one does with it is in the way of that of the other, which then has nothing to do about it."""
    services = Services(cast(KubeClient, None), Caches(), SystemClock(), lambda: 1)
    reconciler, store = MaintenanceReconciler(services, Fleet()), services.caches.store
    version = itertools.count(1)

    def put(*items: Resource) -> None:
        for item in items:
            store(type(item)).apply(raw(item, str(next(version))))

    back = migration("a", "Migrating", RETURNS, targetHost=HERE, sourceHost=THERE)
    vm = machine("a", at=THERE)
    other = Host.parse({**host({}).to_json(), "metadata": {"name": THERE}})
    put(other, vm, order(vm), back)
    assert done(plan(reconciler._observe(other), BEGAN)) == [], "it is brought back just now"
    label = {FOR_MAINTENANCE: THERE, DIRECTION: LEAVES}
    waiting = migration("a", "Pending", attempt=2)
    waiting = waiting.model_copy(update={"metadata": waiting.metadata.model_copy(update={"labels": label})})
    put(waiting)
    assert done(plan(reconciler._observe(other), BEGAN)) == []
    put(machine("a", at=HERE))
    assert done(plan(reconciler._observe(other), BEGAN)) == ["cancel a"]


def test_who_waits_longest_goes_first_and_people_before_hosts() -> None:
    person = VirtualMachineMigration.parse(
        {"metadata": {"name": "p", "uid": "p", "creationTimestamp": "2028-01-01T00:00:00Z"}, "spec": {"vm": "p"}}
    )
    first = migration("a", "Pending")
    assert sorted([first, person], key=before) == [person, first]
