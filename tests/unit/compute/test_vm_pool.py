"""What a pool of machines does next and what it says: state in, plan out; and never too many, never too few."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_pool import DELETION_COST, REVISION, RemovalReason, VirtualMachinePool, share_of
from kumulus.runtime.clock import rfc3339
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.vm_pool_health import Health
from kumulus_controllers.compute.vm_pool_plan import (
    Plan,
    Scope,
    adopts,
    allowance,
    ill,
    new_machine,
    place_of,
    plan,
    revision_of,
)
from kumulus_controllers.compute.vm_pool_status import derive_status

Raw = dict[str, Any]
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL_UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"


def ago(seconds: float) -> str:
    return rfc3339(NOW - timedelta(seconds=seconds))


def pool(replicas: int = 3, *, memory: str = "1Gi", status: Raw | None = None, generation: int = 1, **spec: Any) -> Any:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"resources": {"cpus": 1, "memory": memory}}}
    template["spec"].update(spec.pop("machine", {}))
    body = {"replicas": replicas, "selector": {"app": "web"}, "template": template, **spec}
    metadata = {"name": "web", "namespace": "ns", "uid": POOL_UID, "generation": generation}
    return VirtualMachinePool.parse({"metadata": metadata, "spec": body, "status": status or {}})


OLD = revision_of(pool(memory="512Mi").spec.template)
NEW = revision_of(pool().spec.template)


def vm(place: int, *, state: str = "Ready", revision: str = NEW, since: float = 1000, **more: Any) -> VirtualMachine:
    """A machine of the pool. `state`: New, Starting, Ready, Failed, CrashLoopBackOff or HostUnknown."""
    status: Raw = {}
    if state != "New":
        ready = {"Ready": "True", "HostUnknown": "Unknown"}.get(state, "False")
        conditions = [{"type": "Ready", "status": ready, "reason": state, "lastTransitionTime": ago(since)}]
        phase = {"Ready": "Running", "HostUnknown": "Unknown"}.get(state, state)
        status = {"phase": phase, "host": "h1", "conditions": conditions}
    owner = {"apiVersion": "x", "kind": "VirtualMachinePool", "name": "web", "uid": POOL_UID, "controller": True}
    metadata = {
        "name": f"web-{place}",
        "namespace": "ns",
        "uid": f"uid-{place}-{more.pop('life', 0)}",
        "labels": {"app": "web", REVISION: revision},
        "creationTimestamp": ago(more.pop("age", 5000 - place)),
        "ownerReferences": [owner],
        "annotations": more.pop("annotations", {}),
        **({"deletionTimestamp": ago(10)} if more.pop("deleting", False) else {}),
    }
    spec = {"resources": {"cpus": 1, "memory": "1Gi"}, **more}
    return VirtualMachine.parse({"metadata": metadata, "spec": spec, "status": status})


def planned(item: VirtualMachinePool, *machines: VirtualMachine, **more: Any) -> Plan:
    return plan(Scope(item, machines, NOW, **more))


def gone(decided: Plan) -> list[str]:
    return [item.name for item in decided.remove]


def rolling(away: str | int, surge: str | int) -> Raw:
    return {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": away, "maxSurge": surge}}}


# How many


def test_places_that_are_free_are_filled_from_the_lowest() -> None:
    assert planned(pool(3)).create == (0, 1, 2)
    assert planned(pool(3), vm(1)).create == (0, 2)
    assert planned(pool(3), vm(1), taken=frozenset({0})).create == (2, 3)
    done = planned(pool(3), vm(0), vm(1), vm(2))
    assert (done.create, done.remove, done.again) == ((), (), None)


def test_who_is_being_removed_keeps_its_place_until_it_is_gone() -> None:
    assert planned(pool(3), vm(0), vm(1, deleting=True), vm(2)).create == ()
    assert planned(pool(3), vm(0), vm(2)).create == (1,)


@pytest.mark.parametrize(
    ("policy", "first"), [("Newest", "web-3"), ("Oldest", "web-0"), ("Random", None)], ids=lambda item: str(item)
)
def test_who_goes_first_when_all_are_well(policy: str, first: str | None) -> None:
    machines = [vm(place) for place in range(4)]
    found = gone(planned(pool(3, scaleIn={"policy": policy}), *machines))
    assert len(found) == 1
    assert first in (None, found[0])
    assert gone(planned(pool(3, scaleIn={"policy": policy}), *reversed(machines))) == found


def test_who_is_not_ready_goes_first_then_who_is_old_then_who_is_cheap() -> None:
    costly = {"annotations": {DELETION_COST: "5"}}
    ranked = [
        vm(0, state="New"),
        vm(1, state="Starting", annotations={DELETION_COST: "9"}),
        vm(2, revision=OLD),
        vm(3, annotations={DELETION_COST: "-1"}),
        vm(5),
        vm(4),
        vm(6, **costly),
    ]
    for left in range(len(ranked)):
        strategy = {"updateStrategy": {"type": "OnDelete"}}
        found = planned(pool(left, **strategy), *ranked)
        assert gone(found) == [item.name for item in ranked[: len(ranked) - left]]
        assert {item.reason for item in found.remove} <= {RemovalReason.SCALE_IN}
    assert gone(planned(pool(1), vm(0, annotations={DELETION_COST: "much"}), vm(1))) == ["web-1"]


def test_who_is_kept_by_its_owner_stays() -> None:
    kept = vm(1, deletionProtection=True), vm(2, annotations={"kumulus.io/paused": "true"})
    assert gone(planned(pool(0), vm(0), *kept)) == ["web-0"]
    status = derive_status(pool(0), planned(pool(0), *kept), kept, None, NOW)
    ready = status.condition("Ready")
    assert ready is not None and "web-1, web-2 are kept" in ready.message


# Another template


def test_old_machines_are_replaced_as_many_at_a_time_as_allowed() -> None:
    old = [vm(place, revision=OLD) for place in range(4)]
    assert gone(planned(pool(4), *old)) == ["web-3"]
    assert gone(planned(pool(4, **rolling(2, 0)), *old)) == ["web-3", "web-2"]
    assert gone(planned(pool(4, **rolling("50%", 0)), *old)) == ["web-3", "web-2"]
    surging = planned(pool(4, **rolling(0, 1)), *old)
    assert (gone(surging), surging.create) == ([], (4,))
    waiting = planned(pool(4, **rolling(0, 1)), *old, vm(4, state="Starting"))
    assert (gone(waiting), waiting.create) == ([], ())
    assert gone(planned(pool(4, **rolling(0, 1)), *old, vm(4))) == ["web-3"]


def test_a_new_machine_that_does_not_come_up_ends_the_rollout() -> None:
    machines = vm(0, revision=OLD), vm(1, revision=OLD), vm(2, state="CrashLoopBackOff")
    assert planned(pool(3), *machines).remove == ()
    # an old one that is not well goes before one that is
    assert gone(planned(pool(3), vm(0, revision=OLD, state="Failed"), vm(1, revision=OLD), vm(2))) == ["web-0"]


def test_machines_stay_as_they_are_until_somebody_deletes_them() -> None:
    strategy = {"updateStrategy": {"type": "OnDelete"}}
    decided = planned(pool(2, **strategy), vm(0, revision=OLD), vm(1, revision=OLD))
    assert (decided.remove, decided.create, decided.outdated) == ((), (), ("web-0", "web-1"))
    status = derive_status(pool(2, **strategy), decided, (), None, NOW)
    assert (ready := status.condition("Ready")) is not None and ready.status == "True"
    assert "2 of an older template" in ready.message


def test_a_machine_on_a_host_that_does_not_answer_is_not_replaced_for_a_template() -> None:
    machines = vm(0, revision=OLD, state="HostUnknown"), vm(1), vm(2)
    assert planned(pool(3), *machines).remove == ()


def test_a_machine_is_available_once_it_was_ready_for_long_enough() -> None:
    decided = planned(pool(2, minReadySeconds=60), vm(0, since=50), vm(1, since=70))
    assert (decided.counts.ready, decided.counts.available, decided.again) == (2, 1, 10)


def test_what_has_its_default_makes_no_other_template() -> None:
    assert revision_of(pool(machine={"restartPolicy": "Always", "disks": []}).spec.template) == NEW
    assert revision_of(pool(machine={"restartPolicy": "Never"}).spec.template) != NEW


@pytest.mark.parametrize(("share", "whole", "down", "up"), [("3", 10, 3, 3), ("25%", 10, 2, 3), ("0%", 10, 0, 0)])
def test_shares(share: str, whole: int, down: int, up: int) -> None:
    assert (share_of(share, whole, up=False), share_of(share, whole, up=True)) == (down, up)
    assert allowance(pool(3, **rolling("10%", 0))) == (1, 0)
    assert allowance(pool(3, **rolling("10%", "10%"))) == (0, 1)


# Healing


def heals(*causes: str) -> Raw:
    return {"healing": {"replace": list(causes), "afterSeconds": 60}}


@pytest.mark.parametrize("state", ["Failed", "CrashLoopBackOff"])
def test_what_is_broken_is_replaced_where_that_is_asked_for_and_not_all_at_once(state: str) -> None:
    broken, long = [vm(place, state=state) for place in range(3)], {f"uid-{place}-0": 61.0 for place in range(3)}
    assert planned(pool(3), *broken, ill_for=long).remove == ()
    assert planned(pool(3, **heals("HostUnknown")), *broken, ill_for=long).remove == ()
    short = planned(pool(3, **heals(state)), *broken, ill_for={"uid-0-0": 50.0})
    assert (short.remove, short.again) == ((), 10.0)
    found = planned(pool(3, **heals(state)), *broken, ill_for=long)
    assert [(item.name, item.reason) for item in found.remove] == [("web-0", RemovalReason.HEALING)]
    busy = planned(pool(3, **heals(state)), *broken[1:], vm(0, deleting=True), ill_for=long)
    assert (busy.remove, busy.create) == ((), ())


def test_who_is_well_for_a_moment_only_is_still_ill() -> None:
    health = Health()
    seen = [(0.0, "CrashLoopBackOff", 0.0), (50.0, "Ready", None), (60.0, "CrashLoopBackOff", 60.0)]
    seen += [(70.0, "Failed", 0.0), (80.0, "Failed", 10.0), (90.0, "Ready", None), (300.0, "Failed", 0.0)]
    for now, state, wanted in seen:
        assert health.ill_for(vm(1, state=state), now) == wanted, (now, state)
    health.forget("uid-1-0")
    assert health.ill_for(vm(1, state="Failed"), 310.0) == 0.0


def test_another_machine_is_made_for_one_on_a_host_that_does_not_answer_and_goes_when_that_returns() -> None:
    item, long = pool(3, **heals("HostUnknown")), {"uid-1-0": 61.0}
    machines = vm(0), vm(1, state="HostUnknown"), vm(2)
    assert planned(item, *machines).create == ()
    assert planned(pool(3), *machines, ill_for=long).create == ()
    away = planned(item, *machines, ill_for=long)
    assert (away.create, away.remove) == ((3,), ())
    stood_in = planned(item, *machines, vm(3), ill_for=long)
    assert (stood_in.create, stood_in.remove, stood_in.counts.lost) == ((), (), 1)
    assert gone(planned(item, vm(0), vm(1), vm(2), vm(3))) == ["web-3"]
    assert set(gone(planned(pool(0, **heals("HostUnknown")), *machines, ill_for=long))) == {"web-0", "web-1", "web-2"}
    # also when somebody has deleted it, and its host cannot let go of it
    stuck = planned(item, vm(0), vm(1, state="HostUnknown", deleting=True), vm(2), ill_for=long)
    assert (stuck.create, stuck.remove) == ((3,), ())


def test_no_machine_is_made_for_one_with_state_that_may_still_run() -> None:
    item, disks = pool(3, **heals("HostUnknown")), [{"name": "root", "volumeTemplate": {"size": "1Gi"}}]
    machines = vm(0, disks=disks), vm(1, state="HostUnknown", disks=disks), vm(2, disks=disks)
    decided = planned(item, *machines, ill_for={"uid-1-0": 9999.0})
    assert (decided.create, decided.remove) == ((), ())
    ready = derive_status(item, decided, machines, None, NOW).condition("Ready")
    assert ready is not None and "because it has volumes" in ready.message


# Whose a machine is


def test_names_are_places() -> None:
    names = {"web-0": 0, "web-17": 17, "web-01": None, "web-": None, "web-x": None, "web-1-2": None, "wob-1": None}
    assert {name: place_of("web", name) for name in names} == names
    assert place_of("web-1", "web-1-2") == 2
    assert place_of("web", "web-\u0661") is None


def test_only_what_is_nobody_s_and_has_labels_and_a_name_is_adopted() -> None:
    def orphan(name: str = "web-1", app: str = "web", **more: Any) -> VirtualMachine:
        metadata = {"name": name, "namespace": "ns", "uid": "u", "labels": {"app": app}, **more}
        return VirtualMachine.parse({"metadata": metadata, "spec": {"resources": {"cpus": 1, "memory": "1Gi"}}})

    other = {"apiVersion": "x", "kind": "VirtualMachinePool", "name": "x", "uid": "x", "controller": True}
    assert adopts(pool(), orphan())
    assert adopts(pool(), orphan(ownerReferences=[{**other, "controller": False}]))
    assert not adopts(pool(), orphan(ownerReferences=[other]))
    assert not adopts(pool(), orphan(app="db"))
    assert not adopts(pool(), orphan("pet"))
    assert not adopts(pool(), orphan(deletionTimestamp=ago(1)))


def test_a_machine_takes_over_the_volumes_that_its_predecessor_left() -> None:
    disks = [{"name": name, "volumeTemplate": {"size": "1Gi", "reclaimPolicy": "Retain"}} for name in ("a", "b")]
    made = new_machine(pool(machine={"disks": disks}), 4, ["web-4-b"])
    assert made["spec"]["disks"] == [disks[0], {"name": "b", "volume": "web-4-b"}]
    assert made["metadata"]["name"] == "web-4"
    assert made["metadata"]["labels"]["kumulus.io/pool"] == "web"
    assert made["metadata"]["ownerReferences"][0]["controller"]


# What it says


def said(
    item: VirtualMachinePool, *machines: VirtualMachine, problem: Problem | None = None, now: datetime = NOW
) -> Raw:
    decided = planned(item, *machines)
    found = derive_status(item, decided, machines, problem, now)
    return {c.type: (c.status.value, c.reason) for c in found.conditions} | {"status": found}


def test_progress_is_said_and_that_there_is_none() -> None:
    first = said(pool(2), vm(0), vm(1, state="Starting"))
    assert first["Ready"] == ("False", "MachinesNotReady")
    assert first["Reconciling"] == ("True", "MachinesNotReady")
    assert first["Available"] == ("True", "EnoughAvailable")
    before = first["status"].to_json()
    late = NOW + timedelta(seconds=601)
    stuck = said(pool(2, status=before), vm(0), vm(1, state="Starting"), now=late)
    assert stuck["Stalled"] == ("True", "ProgressDeadlineExceeded") and "Reconciling" not in stuck
    moved = said(pool(3, status=before, generation=2), vm(0), vm(1, state="Starting"), now=late)
    assert moved["Reconciling"] == ("True", "ScalingOut") and "Stalled" not in moved
    done = said(pool(2, status=before), vm(0), vm(1), now=late)
    assert done["Ready"] == ("True", "AllReady") and {"Reconciling", "Stalled"}.isdisjoint(done)
    refused = said(pool(3), vm(0), vm(1), problem=Problem("Refused", "no"))
    assert refused["Stalled"] == ("True", "Refused") and refused["Ready"] == ("False", "Refused")


@pytest.mark.parametrize(
    ("wanted", "machines", "reason", "words"),
    [
        (2, [vm(0), vm(1, deleting=True)], "ScalingOut", "There are 1 of 2 machines. Being removed: web-1."),
        (1, [vm(0), vm(1, deleting=True, state="HostUnknown")], "ScalingIn", "The host of web-1 does not answer."),
        (2, [vm(0, revision=OLD), vm(1, state="HostUnknown")], "RollingUpdate", "Not ready: web-1: HostUnknown."),
        (7, [vm(place, state="Failed") for place in range(7)], "MachinesNotReady", "web-4: Failed; and 2 more."),
    ],
    ids=lambda item: str(item)[:20],
)
def test_what_it_waits_for_is_named(wanted: int, machines: list[VirtualMachine], reason: str, words: str) -> None:
    found = said(pool(wanted), *machines)["status"].condition("Ready")
    assert (found.reason, words in found.message) == (reason, True), found.message


def test_the_revision_that_all_had_is_kept_until_all_have_another() -> None:
    status = said(pool(2, status={"currentRevision": OLD}), vm(0, revision=OLD), vm(1))["status"]
    assert (status.current_revision, status.update_revision, status.updated_replicas) == (OLD, NEW, 1)
    status = said(pool(2, status={"currentRevision": OLD}), vm(0), vm(1))["status"]
    assert (status.current_revision, status.update_revision) == (NEW, NEW)


# A world in which anything happens


@dataclass
class World:
    """Machines that come up, break and go by chance; and controllers that do what is planned, or die before all is done."""

    replicas: int
    away: int
    surge: int
    memory: str = "1Gi"
    lives: int = 0
    machines: dict[int, Raw] = field(default_factory=dict)
    bad: bool = False

    def pool(self) -> VirtualMachinePool:
        return pool(self.replicas, memory=self.memory, **rolling(self.away, self.surge), **heals("Failed"))

    def seen(self) -> list[VirtualMachine]:
        return [vm(place, **one) for place, one in sorted(self.machines.items())]

    def step(self, *, mortal: int = 99) -> Plan:
        """A pass, of which so many deeds are done."""
        item, seen = self.pool(), self.seen()
        decided = plan(Scope(item, tuple(seen), NOW, ill_for={one.uid: 99.0 for one in seen if ill(one)}))
        for removal in decided.remove:
            if (mortal := mortal - 1) < 0:
                return decided
            place = place_of("web", removal.name)
            assert place is not None and not self.machines[place].get("deleting")
            self.machines[place]["deleting"] = True
        for place in decided.create:
            if (mortal := mortal - 1) < 0:
                return decided
            assert place not in self.machines
            self.lives += 1
            self.machines[place] = {"state": "Starting", "revision": decided.revision, "life": self.lives}
        return decided

    def calm(self) -> None:
        """Everything that can happen by itself does."""
        self.machines = {place: one for place, one in self.machines.items() if not one.get("deleting")}
        for one in self.machines.values():
            one["state"] = "Ready"


EVENTS = st.sampled_from(["up", "fail", "unknown", "gone", "delete", "more", "fewer", "template", "nothing"])


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(0, 6),
    share=st.sampled_from([(1, 0), (0, 1), (2, 0), (1, 1), (0, 3)]),
    events=st.lists(st.tuples(EVENTS, st.integers(0, 8), st.integers(0, 4)), max_size=30),
)
def test_never_too_many_and_in_the_end_what_is_wanted(
    replicas: int, share: tuple[int, int], events: list[tuple[str, int, int]]
) -> None:
    world = World(replicas, *share)
    ceiling = replicas + share[1]
    for event, place, mortal in events:
        one = world.machines.get(place, {})
        match event:
            case "up" | "fail" | "unknown":
                states = {"up": "Ready", "fail": "Failed", "unknown": "HostUnknown"}
                one["state"] = states[event]
            case "gone" if one.get("deleting"):
                del world.machines[place]
            case "delete":
                one["deleting"] = True
            case "more":
                world.replicas = min(world.replicas + 1, 6)
            case "fewer":
                world.replicas = max(world.replicas - 1, 0)
            case "template":
                world.memory = "2Gi" if world.memory == "1Gi" else "1Gi"
        before = {place for place, one in world.machines.items() if one["state"] == "Ready" and not one.get("deleting")}
        ceiling = max(world.replicas + share[1], min(ceiling, len(world.machines)))
        decided = world.step(mortal=mortal)
        assert len(world.machines) <= ceiling
        # an update never has fewer available than promised
        updates = {place_of("web", r.name) for r in decided.remove if r.reason is RemovalReason.UPDATE}
        if updates & before:
            left = before - {place_of("web", r.name) for r in decided.remove}
            assert len(left) >= world.replicas - max(allowance(world.pool())[0], 0)
    for _ in range(40):
        world.calm()
        decided = world.step()
    assert not decided.remove and not decided.create and not decided.outdated
    assert len(world.machines) == world.replicas
    assert {one["state"] for one in world.machines.values()} <= {"Ready"}
