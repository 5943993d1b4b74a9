"""What comes next of a migration, from every state of its two hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.base import PAUSED, ObjectMeta, ObjectRef
from kumulus.api.compute import (
    PowerState,
    Resources,
    RestartPolicy,
    VirtualMachine,
    VirtualMachineSpec,
    VirtualMachineStatus,
)
from kumulus.api.fabric import Host
from kumulus.api.hardware import Shape, WatchdogAction
from kumulus.api.host import (
    HostReport,
    MigrationEndpoint,
    WorkOrder,
    WorkOrderSpec,
    WorkOrderStatus,
    WorkState,
    WorkType,
)
from kumulus.api.instance_order import (
    Incoming,
    InstanceDisk,
    InstanceFacts,
    InstanceOrder,
    MigrationFacts,
    MigrationState,
    Outgoing,
)
from kumulus.api.migration import (
    MigrationLimits,
    MigrationMode,
    MigrationPhase,
    OnStall,
    VirtualMachineMigration,
    VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus,
)
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_controllers.compute.migration_orders import sending, settled, target_order, withdrawn
from kumulus_controllers.compute.migration_plan import Move, Step, derive_status, plan
from kumulus_controllers.compute.migration_preflight import barred
from kumulus_controllers.compute.migration_scope import Scope

UID, GO, OTHER = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3))
NOW, STARTED = 1_800_000_000.0, "2027-01-15T08:00:00Z"
SHARED = PoolRef(uid=OTHER, name="p", driver=PoolDriver.DIR, parameters=PoolParameters(path="/p", shared=True))
LOCAL = PoolRef(uid=OTHER, name="p", driver=PoolDriver.DIR, parameters=PoolParameters(path="/p"))
HERE, THERE = "a", "b"


def machine(**status: Any) -> VirtualMachine:
    power = status.pop("power", PowerState.RUNNING)
    notes = {PAUSED: "true"} if status.pop("paused", False) else {}
    return VirtualMachine(
        metadata=ObjectMeta(name="vm", namespace="ns", uid=UID, generation=1, annotations=notes),
        spec=VirtualMachineSpec(resources=Resources(cpus=1, memory="64Mi"), power_state=power),
        status=VirtualMachineStatus(**{"host": HERE, "epoch": 4, **status}),
    )


def migration(*, deleting: bool = False, **status: Any) -> VirtualMachineMigration:
    gone = {"deletion_timestamp": STARTED} if deleting else {}
    return VirtualMachineMigration(
        metadata=ObjectMeta(name="go", namespace="ns", uid=GO, generation=1, **gone),
        spec=VirtualMachineMigrationSpec(vm="vm"),
        status=VirtualMachineMigrationStatus(**status),
    )


BEGUN = {"vm_uid": UID, "source_host": HERE, "target_host": THERE, "epoch": 5, "started_at": STARTED}


def order(host: str, epoch: int, *, said: MigrationFacts | None = None, **changes: Any) -> WorkOrder:
    """The machine's order on that host, which has answered it."""
    generation, observed = changes.pop("generation", 1), changes.pop("observed", 1)
    state, deleting = changes.pop("state", WorkState.RUNNING), changes.pop("deleting", False)
    pool = changes.pop("pool", SHARED)
    disk = InstanceDisk(name="root", pool=pool, volume=OTHER, boot_order=1)
    instance = InstanceOrder(
        uid=UID,
        epoch=epoch,
        power=PowerState.RUNNING,
        restart_policy=RestartPolicy.ALWAYS,
        cpus=1,
        memory=64 << 20,
        disks=(disk,),
        **changes,
    )
    facts = InstanceFacts(epoch=epoch, cpus=1, memory=64 << 20, volumes=(OTHER,), migration=said)
    gone = {"deletion_timestamp": STARTED} if deleting else {}
    return WorkOrder(
        metadata=ObjectMeta(name="i", namespace=f"kumulus-host-{host}", uid=OTHER, generation=generation, **gone),
        spec=WorkOrderSpec(
            type=WorkType.INSTANCE,
            for_=ObjectRef(kind="VirtualMachine", namespace="ns", name="vm", uid=UID),
            instance=instance,
        ),
        status=WorkOrderStatus(observed_generation=observed, state=state, instance=facts),
    )


def facts(state: MigrationState, **more: Any) -> MigrationFacts:
    return MigrationFacts(migration=GO, state=state, **more)


OUT = {"outgoing": Outgoing(migration=GO, host=THERE, address="192.0.2.2", port=9413)}
IN = {"incoming": Incoming(migration=GO, host=HERE), "state": WorkState.WORKING}
PREPARED = facts(MigrationState.PREPARED)


def report(*, takes: bool = True, **cpu: str) -> HostReport:
    at: dict[str, Any] = {"migration": {"address": "192.0.2.2", "port": 9413}} if takes else {}
    return HostReport.parse({"metadata": {"name": HERE}, "status": {"cpu": cpu, **at}})


def restarted() -> HostReport:
    """Of an agent that waits for its certificate."""
    at = {"address": "192.0.2.2", "port": 9411, "request": "PEM", "tunnel": True}
    return HostReport.parse({"metadata": {"name": HERE}, "status": {"transfer": at}})


def made_of(shape: Shape, host: str = HERE) -> WorkOrder:
    """The order of a machine that was started so."""
    found = order(host, 4, shape=shape)
    assert found.status.instance is not None
    instance = found.status.instance.model_copy(update={"shape": shape})
    return found.model_copy(update={"status": found.status.model_copy(update={"instance": instance})})


def passing_through() -> WorkOrder:
    return made_of(Shape(cpu_model="host-passthrough"))


def scope(going: VirtualMachineMigration | None = None, **changes: Any) -> Scope:
    found = {"vm": machine(), "source": order(HERE, 4), "source_report": report(), **changes}
    return Scope(migration=going or migration(), now=NOW, **found)


def next_of(going: VirtualMachineMigration, **changes: Any) -> tuple[Step, MigrationPhase]:
    move = plan(scope(going, **changes))
    return move.step, move.phase


def test_the_way_of_one_that_succeeds() -> None:
    assert plan(scope()).step is Step.CHOOSE
    going = migration(**BEGUN)
    assert next_of(going) == (Step.MAKE_TARGET, MigrationPhase.PREPARING)
    waiting = order(THERE, 5, **IN, observed=0)
    assert next_of(going, target=waiting) == (Step.WAIT, MigrationPhase.PREPARING)
    ready = order(THERE, 5, **IN, said=PREPARED)
    assert next_of(going, target=ready) == (Step.SEND, MigrationPhase.MIGRATING)
    sent = order(HERE, 4, **OUT, said=facts(MigrationState.SENDING))
    assert next_of(going, source=sent, target=ready) == (Step.WAIT, MigrationPhase.MIGRATING)
    gone = order(HERE, 4, **OUT, said=facts(MigrationState.SENT), state=WorkState.STOPPED)
    assert next_of(going, source=gone, target=ready) == (Step.TAKE_OVER, MigrationPhase.FINISHING)
    moved = {"vm": machine(host=THERE, epoch=5)}
    assert next_of(going, source=gone, target=ready, **moved) == (Step.SETTLE, MigrationPhase.FINISHING)
    runs = order(THERE, 5)
    assert next_of(going, source=gone, target=runs, **moved) == (Step.END_SOURCE, MigrationPhase.FINISHING)
    ending = order(HERE, 4, **OUT, said=facts(MigrationState.SENT), deleting=True)
    assert next_of(going, source=ending, target=runs, **moved) == (Step.WAIT, MigrationPhase.FINISHING)
    assert next_of(going, source=None, target=runs, **moved) == (Step.FINISH, MigrationPhase.SUCCEEDED)


def test_that_the_target_was_told_is_as_good_as_the_sources_word() -> None:
    """The source's host may be lost in that moment."""
    told = order(THERE, 5, **IN, said=facts(MigrationState.ARRIVED))
    silent = order(HERE, 4, **OUT, said=facts(MigrationState.SENDING))
    assert next_of(migration(**BEGUN), source=silent, target=told)[0] is Step.TAKE_OVER


@pytest.mark.parametrize("cancelled", [{"deleting": True}, {"failure": "TimedOut", "failure_message": "late"}])
def test_nothing_is_done_at_the_target_before_the_source_has_answered(cancelled: dict[str, Any]) -> None:
    going = migration(**BEGUN, **cancelled)
    ready = order(THERE, 5, **IN, said=PREPARED)
    sent = order(HERE, 4, **OUT, said=facts(MigrationState.SENDING))
    assert next_of(going, source=sent, target=ready)[0] is Step.WITHDRAW
    unanswered = order(HERE, 4, said=facts(MigrationState.SENDING), generation=3, observed=2)
    waits = plan(scope(going, source=unanswered, target=ready))
    assert waits.step is Step.WAIT and waits.lack is not None and waits.lack.reason == "WaitsForSource"
    late = order(HERE, 4, said=facts(MigrationState.SENT), generation=3, observed=3)
    assert next_of(going, source=late, target=ready)[0] is Step.TAKE_OVER, "too late to cancel"
    stays = order(HERE, 4, generation=3, observed=3)
    assert next_of(going, source=stays, target=ready)[0] is Step.END_TARGET
    assert next_of(going, source=stays, target=order(THERE, 5, **IN, deleting=True))[0] is Step.WAIT
    last = Step.LEAVE if going.deleting else Step.FINISH
    assert next_of(going, source=stays)[0] is last


def test_a_source_that_is_off_for_certain_answers_nothing_any_more() -> None:
    """What the target was given before goes on there; else it is taken down, and only then may the machine boot elsewhere."""
    sent = order(HERE, 4, **OUT, said=facts(MigrationState.SENDING))
    off: dict[str, Any] = {"source": sent, "source_fenced": True}
    told = order(THERE, 5, **IN, said=facts(MigrationState.ARRIVED))
    assert next_of(migration(**BEGUN), target=told, **off)[0] is Step.TAKE_OVER
    ready = order(THERE, 5, **IN, said=PREPARED)
    move = plan(scope(migration(**BEGUN), target=ready, **off))
    assert move.step is Step.GIVE_UP and move.lack is not None and move.lack.reason == "SourceFenced"
    for ended in ({"failure": "SourceFenced", "failure_message": "off"}, {"deleting": True}):
        going = migration(**BEGUN, **ended)
        assert next_of(going, target=ready, **off)[0] is Step.END_TARGET
        assert next_of(going, target=order(THERE, 5, **IN, deleting=True), **off)[0] is Step.WAIT
        assert next_of(going, **off)[0] is Step.WAIT, "whether the guest had left is known there alone"
        assert next_of(going, source=sent)[0] is Step.WITHDRAW, "it is back"


@pytest.mark.parametrize(
    ("spec", "seconds", "step"),
    [
        ({"on_stall": OnStall.CANCEL}, 60, Step.GIVE_UP),
        ({"on_stall": OnStall.CANCEL}, 59, Step.WAIT),
        ({"on_stall": OnStall.CANCEL, "limits": MigrationLimits(stall_seconds=120)}, 60, Step.WAIT),
        ({}, 60, Step.WAIT),
        ({"mode": MigrationMode.PRE_COPY}, 600, Step.WAIT),
    ],
)
def test_a_copy_that_gets_no_closer_to_its_end(spec: dict[str, Any], seconds: int, step: Step) -> None:
    said = facts(MigrationState.SENDING, stalled_seconds=seconds, remaining_bytes=5 << 20, dirty_rate=9 << 20)
    going = migration(**BEGUN)
    going = going.model_copy(update={"spec": going.spec.model_copy(update=spec)})
    here = scope(going, source=order(HERE, 4, **OUT, said=said), target=order(THERE, 5, **IN, said=PREPARED))
    move = plan(here)
    assert move.step is step
    if move.lack is not None:
        assert move.lack.reason == "CopyStalled" and "5 MiB were left, and the guest wrote 9 MiB/s" in move.lack.message
    elif seconds >= going.spec.limits.stall_seconds:
        ready = derive_status(here, move, "2027-02-01T00:00:00Z").condition("Ready")
        does = "decides" if going.spec.mode is MigrationMode.PRE_COPY else "is slowed down"
        assert ready is not None and f"no closer to its end for {seconds} s" in ready.message and does in ready.message


@pytest.mark.parametrize(
    ("spec", "slows"),
    [
        ({}, True),
        ({"on_stall": OnStall.THROTTLE}, True),
        ({"on_stall": OnStall.CANCEL}, True),
        ({"on_stall": OnStall.WAIT}, False),
        ({"mode": MigrationMode.PRE_COPY, "on_stall": OnStall.CANCEL}, False),
        ({"mode": MigrationMode.PRE_COPY}, False),
    ],
)
def test_a_guest_is_slowed_down_only_when_that_was_asked_for(spec: dict[str, Any], slows: bool) -> None:
    going = migration(**BEGUN)
    going = going.model_copy(update={"spec": going.spec.model_copy(update=spec)})
    sends = sending(order(HERE, 4).spec, going, MigrationEndpoint(address="192.0.2.2", port=9413), 7)
    assert sends.instance is not None and sends.instance.outgoing is not None
    assert sends.instance.outgoing.converge is slows


def test_one_that_was_not_begun_goes_at_once() -> None:
    assert next_of(migration(deleting=True)) == (Step.LEAVE, MigrationPhase.FAILED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"source": order(HERE, 4, **OUT, said=facts(MigrationState.FAILED, reason="MigrationFailed"))},
            "MigrationFailed",
        ),
        ({"vm": machine(power=PowerState.STOPPED)}, "PowerStateChanged"),
        ({"source": order(HERE, 4, state=WorkState.STOPPED)}, "NotRunning"),
        ({"target": order(THERE, 5, incoming=IN["incoming"], state=WorkState.FAILED)}, "TargetFailed"),
        ({"now": NOW + 600}, "TimedOut"),
        ({"restoring": "r"}, "RestoreInProgress"),
        ({"source": None}, "SourceGone"),
        ({"target": order(THERE, 5, **IN, said=PREPARED, restart_request="before")}, "RestartRequested"),
    ],
)
def test_what_ends_one_that_has_begun(changes: dict[str, Any], reason: str) -> None:
    changed = replace(scope(migration(**BEGUN), target=order(THERE, 5, **IN, said=PREPARED)), **changes)
    move = plan(changed)
    assert move.step is Step.GIVE_UP
    assert move.lack is not None and move.lack.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": order(HERE, 4, max_memory=256 << 20)}, "PendingChanges"),
        ({"source": order(HERE, 4, max_cpus=2)}, "PendingChanges"),
        ({"source": passing_through(), "source_report": report(acceleration="kvm")}, "HostPassthrough"),
        ({"vm": machine(paused=True)}, "LeftAlone"),
        ({"vm": None}, "MachineNotFound"),
        ({"vm": machine(power=PowerState.PAUSED)}, "NotRunning"),
        ({"source": order(HERE, 4, state=WorkState.PAUSED)}, "NotRunning"),
        ({"source": order(HERE, 4, generation=2)}, "PendingChanges"),
        ({"source": order(HERE, 4, pool=LOCAL)}, "LocalDisks"),
        ({"source_report": report(takes=False)}, "NoTunnel"),
        ({"source_report": restarted()}, "TunnelComes"),
        ({"restoring": "r"}, "RestoreInProgress"),
        ({"others": (migration(**BEGUN),)}, "AlreadyMoving"),
    ],
)
def test_what_keeps_a_machine_where_it_is(changes: dict[str, Any], reason: str) -> None:
    move = plan(scope(**changes))
    assert (move.step, move.phase) == (Step.WAIT, MigrationPhase.PENDING)
    assert move.lack is not None and move.lack.reason == reason


@pytest.mark.parametrize(
    "shape", [Shape(uefi=True, secure_boot=True, tpm=True, watchdog=WatchdogAction.RESET), Shape(cpu_model="Nehalem")]
)
def test_what_it_is_made_of_does_not(shape: Shape) -> None:
    assert plan(scope(source=made_of(shape))).step is Step.CHOOSE
    waits = order(HERE, 4, shape=shape)
    assert plan(scope(source=waits)).step is Step.CHOOSE, "what waits for its next start waits there"
    assert plan(scope(source=passing_through(), source_report=report(acceleration="tcg"))).step is Step.CHOOSE


def test_a_machine_that_was_placed_anew_is_left_alone() -> None:
    ready = order(THERE, 5, **IN, said=PREPARED)
    elsewhere = {"vm": machine(host="c", epoch=5)}
    assert next_of(migration(**BEGUN), target=ready, **elsewhere)[0] is Step.END_TARGET
    assert next_of(migration(**BEGUN), **elsewhere) == (Step.FINISH, MigrationPhase.FAILED)


def test_one_that_was_placed_anew_at_the_target_does_not_go_on_from_what_came() -> None:
    """As after the death of its host: nobody has said that what came is the last that it did."""
    moved = {"vm": machine(host=THERE, epoch=5)}
    ready = order(THERE, 5, **IN, said=PREPARED)
    assert next_of(migration(**BEGUN), source=None, target=ready, **moved)[0] is Step.END_TARGET
    silent = order(HERE, 4, **OUT, said=facts(MigrationState.SENDING))
    assert next_of(migration(**BEGUN), source=silent, target=ready, **moved)[0] is Step.END_TARGET


def test_one_that_was_started_anew_at_the_target_has_not_moved() -> None:
    moved = {"vm": machine(host=THERE, epoch=5, failovers=("2027-01-15T08:00:30Z",))}
    assert next_of(migration(**BEGUN), source=None, target=order(THERE, 5), **moved)[1] is MigrationPhase.FAILED
    before = {"vm": machine(host=THERE, epoch=5, failovers=("2027-01-15T07:59:00Z",))}
    assert next_of(migration(**BEGUN), source=None, target=order(THERE, 5), **before)[1] is MigrationPhase.SUCCEEDED


def test_one_that_was_given_up_too_late_says_nothing_of_a_failure() -> None:
    going = migration(**BEGUN, failure="TimedOut", failure_message="too slow")
    after = derive_status(scope(going), Move(Step.FINISH, MigrationPhase.SUCCEEDED), STARTED)
    assert (after.failure, after.failure_message) == (None, None)


def test_a_machine_that_goes_takes_its_orders_along() -> None:
    assert next_of(migration(**BEGUN), vm=None) == (Step.FINISH, MigrationPhase.FAILED)


def test_orders_say_what_each_host_is_to_do() -> None:
    going, source = migration(**BEGUN), order(HERE, 4).spec
    target = target_order(source, going, 7)
    assert target.instance is not None and target.term == 7
    assert (target.instance.epoch, target.instance.incoming) == (5, IN["incoming"])
    assert settled(target, 7).instance == source.instance.model_copy(update={"epoch": 5})  # type: ignore[union-attr]
    sends = sending(source, going, MigrationEndpoint(address="192.0.2.2", port=9413), 7)
    assert sends.instance is not None and sends.instance.outgoing is not None
    assert (sends.instance.outgoing.host, sends.instance.outgoing.converge, sends.instance.epoch) == (THERE, True, 4)
    assert withdrawn(sends, 7).instance == source.instance


def test_hosts_that_do_not_come_into_question_are_named_with_the_reason() -> None:
    def host(name: str, emulator: str = "7.2", **cpu: Any) -> Host:
        said = {"cpu": {"architecture": "x86_64", "acceleration": "kvm", "vendor": "Intel", "model": "Skylake", **cpu}}
        status = {**said, "versions": {"emulator": f"{emulator}.0"}}
        return Host.parse({"metadata": {"name": name}, "spec": {"zone": "z"}, "status": status})

    hosts = [
        host(HERE),
        host(THERE),
        host("old", emulator="7.1"),
        host("other", model="Zen"),
        host("deaf"),
        host("tcg", acceleration="tcg"),
        host("left"),
    ]
    reports = {name: report() for name in (HERE, THERE, "old", "other", "tcg", "left")} | {"deaf": report(takes=False)}
    found = barred(scope(kept_on={"left": "root"}), hosts, reports, here=hosts[0])
    assert found.keys() == {HERE, "old", "other", "deaf", "tcg", "left"}
    assert "disk root" in found["left"]
    assert "already" in found[HERE] and "older QEMU" in found["old"] and "another processor" in found["other"]
    assert "migration_port" in found["deaf"] and "another way" in found["tcg"]
    hosts = [hosts[0], host("both", model="Broadwell", models=["Nehalem"]), host("other", model="Zen", models=["EPYC"])]
    hosts.append(host("maker", vendor="AMD", model="EPYC", models=["Nehalem"]))
    reports = {item.name: report() for item in hosts}
    assert barred(scope(), hosts, reports, here=hosts[0]).keys() == {HERE, "both", "other", "maker"}
    pinned = scope(source=made_of(Shape(cpu_model="Nehalem")))
    assert barred(pinned, hosts, reports, here=hosts[0]).keys() == {HERE, "other", "maker"}


def test_what_ended_stays_as_it_ended() -> None:
    ended = migration(**BEGUN, phase=MigrationPhase.FAILED, finished_at=STARTED)
    assert plan(scope(ended)).step is Step.WAIT
    assert derive_status(scope(ended), Move(Step.WAIT, MigrationPhase.FAILED), "2027-02-01T00:00:00Z") == ended.status
    assert plan(scope(migration(deleting=True, **BEGUN, phase=MigrationPhase.SUCCEEDED))).step is Step.LEAVE
