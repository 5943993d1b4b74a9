"""From a Scope to a machine's status: one behaviour a test, and a checker that knows what may never be.

In the style of canonical/operator's scenario tests: state in, state out.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.base import PAUSED, ConditionStatus
from kumulus.api.compute import Phase, VirtualMachine, VirtualMachineStatus
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_order import SeedRef
from kumulus.api.pool_order import PoolRef
from kumulus_controllers.compute.order import instance_order, renewed
from kumulus_controllers.compute.phase import PHASES, REACHED, Placed, derive_status, placed
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import Resolution, placement_request, resolve
from kumulus_controllers.compute.scope import Scope

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
SHA = "ab" * 32
GI = 2**30
POOL = {"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}}


def machine(*, deleting: bool = False, status: dict[str, Any] | None = None, **spec: Any) -> VirtualMachine:
    metadata = {"name": "web", "namespace": "ns", "uid": UID, "generation": 2}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    size = {} if "instanceType" in spec else {"resources": {"cpus": 2, "memory": "2Gi"}}
    return VirtualMachine.parse({"metadata": metadata, "spec": {**size, **spec}, "status": status or {}})


PLACED = {"host": "h1", "zone": "z1", "epoch": 1, "resources": {"cpus": 2, "memory": "2Gi"}}
WHERE = Placed("h1", "z1", 1)


def host(phase: str = "Ready") -> Host:
    return Host.parse({"metadata": {"name": "h1"}, "spec": {"zone": "z1"}, "status": {"phase": phase}})


def order(state: str | None, *, observed: int | None = 1, generation: int = 1, **status: Any) -> WorkOrder:
    instance = {"uid": UID, "epoch": 1, "power": "Running", "restartPolicy": "Always", "cpus": 2, "memory": 2 * GI}
    return WorkOrder.parse(
        {
            "metadata": {"name": f"instance-{UID}", "namespace": "kumulus-host-h1", "generation": generation},
            "spec": {
                "type": "Instance",
                "for": {"kind": "VirtualMachine", "namespace": "ns", "name": "web", "uid": UID},
                "term": 4,
                "instance": instance,
            },
            "status": {"state": state, "observedGeneration": observed, **status},
        }
    )


def scope(vm: VirtualMachine | None = None, work: WorkOrder | None = None, where: Host | None = None) -> Scope:
    return Scope(vm or machine(status=PLACED), work, where or host(), None, {})


def check(before: Scope, after: VirtualMachineStatus) -> None:
    """Refuse statuses that may never be."""
    by_type = {condition.type: condition for condition in after.conditions}
    assert len(by_type) == len(after.conditions), "no condition twice"
    ready = by_type["Ready"]
    wanted = REACHED[before.vm.spec.power_state]
    assert not {"Reconciling", "Stalled"} <= set(by_type), "it makes progress or it does not"
    if ready.status is ConditionStatus.TRUE:
        assert after.phase is wanted, "ready means what was wanted"
        assert not {"Reconciling", "Stalled"} & set(by_type)
        assert by_type["Scheduled"].status is ConditionStatus.TRUE
    assert (after.host is None) or after.epoch is not None, "a host without an epoch is no placement"
    assert (by_type["Scheduled"].status is ConditionStatus.TRUE) == (after.host is not None)
    assert after.phase is not Phase.UNKNOWN or ready.status is not ConditionStatus.TRUE
    assert after.observed_generation == before.vm.metadata.generation
    for condition in after.conditions:
        assert condition.reason and condition.reason[0].isupper() and " " not in condition.reason
        assert condition.last_transition_time
    if "Stalled" in by_type:
        assert by_type["Stalled"].status is ConditionStatus.TRUE


def derived(
    before: Scope, where: Placed | None = WHERE, problem: Problem | None = None, resolution: Resolution | None = None
) -> VirtualMachineStatus:
    after = derive_status(before, where, resolution, problem, NOW)
    check(before, after)
    return after


def says(after: VirtualMachineStatus, type_: str) -> tuple[str, str] | None:
    found = after.condition(type_)
    return (str(found.status), found.reason) if found else None


def test_running_as_wanted_is_ready_and_nothing_else() -> None:
    after = derived(scope(work=order("Running", instance={"startedAt": NOW})))
    assert after.phase is Phase.RUNNING and says(after, "Ready") == ("True", "Running")
    assert says(after, "Reconciling") is None and says(after, "Stalled") is None and after.started_at == NOW


def test_a_rule_of_its_placement_that_is_broken_is_told_and_hinders_nothing() -> None:
    broken = replace(scope(work=order("Running")), unsatisfied=("with taint broken", *(f"x{n}" for n in range(20))))
    after = derived(broken)
    assert says(after, "PlacementSatisfied") == ("False", "RuleBroken") and says(after, "Ready") == ("True", "Running")
    condition = after.condition("PlacementSatisfied")
    assert condition is not None and "host h1 now, which is with taint broken; x0" in condition.message
    assert len(condition.message) < 300
    assert says(derived(scope(work=order("Running"))), "PlacementSatisfied") is None
    gone = replace(broken, vm=machine(status=PLACED, deleting=True))
    assert says(derived(gone), "PlacementSatisfied") is None


def test_what_the_agent_said_of_an_older_order_is_not_ready() -> None:
    after = derived(scope(work=order("Running", observed=1, generation=2)))
    assert says(after, "Ready") == ("False", "Running") and says(after, "Reconciling") == ("True", "Running")


@pytest.mark.parametrize("state", list(WorkState))
def test_every_state_of_a_work_order_has_a_phase(state: WorkState) -> None:
    assert derived(scope(work=order(state))).phase is PHASES[state]


def test_before_the_agent_has_looked_it_is_starting() -> None:
    assert derived(scope(work=order(None, observed=None))).phase is Phase.STARTING
    assert derived(scope()).phase is Phase.STARTING


def test_disks_in_the_making_are_told_apart() -> None:
    after = derived(scope(work=order("Working", reason="ImageImporting", message="40 %")))
    assert says(after, "VolumesReady") == ("False", "ImageImporting") and after.phase is Phase.PROVISIONING
    assert says(derived(scope(work=order("Running"))), "VolumesReady") == ("True", "DisksReady")


def test_a_guest_that_ended_for_good_is_neither_ready_nor_in_progress() -> None:
    after = derived(scope(work=order("Stopped", reason="Shutdown")))
    assert says(after, "Ready") == ("False", "Shutdown")
    assert says(after, "Reconciling") is None and says(after, "Stalled") is None


def test_stopped_as_wanted_is_ready() -> None:
    vm = machine(status=PLACED, powerState="Stopped")
    assert says(derived(scope(vm, order("Stopped"))), "Ready") == ("True", "Stopped")


def test_paused_has_its_condition_while_it_is_wanted() -> None:
    vm = machine(status=PLACED, powerState="Paused")
    assert says(derived(scope(vm, order("Paused"))), "Paused") == ("True", "PausedByUser")
    assert says(derived(scope(vm, order("Running"))), "Paused") == ("False", "NotYet")
    assert says(derived(scope(work=order("Running"))), "Paused") is None


@pytest.mark.parametrize("state", ["BackOff", "Failed", "Refused"])
def test_what_does_not_go_on_by_itself_is_stalled_with_the_agents_reason(state: str) -> None:
    after = derived(scope(work=order(state, reason="DomainInvalid", message="do this")))
    assert says(after, "Stalled") == ("True", "DomainInvalid") and says(after, "Reconciling") is None


@pytest.mark.parametrize("state", ["Running", "Stopped", None])
def test_a_host_that_is_not_heard_makes_its_machines_unknown(state: str | None) -> None:
    after = derived(scope(work=order(state), where=host("Unknown")))
    ready = after.condition("Ready")
    assert after.phase is Phase.UNKNOWN and ready is not None and ready.status is ConditionStatus.UNKNOWN
    assert after.host == "h1", "it stays where it may still run"
    assert "h1" in ready.message


def test_a_machine_of_a_host_that_is_gone_is_unknown() -> None:
    gone = replace(scope(work=order("Running")), host=None)
    assert derived(gone).phase is Phase.UNKNOWN


def test_no_host_fits_is_scheduling_and_goes_on_by_itself() -> None:
    after = derived(scope(machine()), None, Problem("NoHostFits", "0 of 2 hosts fit", stalled=False))
    assert after.phase is Phase.SCHEDULING and says(after, "Scheduled") == ("False", "NoHostFits")
    assert says(after, "Reconciling") == ("True", "NoHostFits") and after.host is None


def test_an_image_that_is_missing_is_pending_and_stalled() -> None:
    after = derived(scope(machine()), None, Problem("ImageNotFound", "There is no Image x", "VolumesReady"))
    assert after.phase is Phase.PENDING and says(after, "Stalled") == ("True", "ImageNotFound")
    assert says(after, "VolumesReady") == ("False", "ImageNotFound")
    assert says(after, "Scheduled") == ("False", "VolumesNotReady")


def test_terminating_shows_why_it_takes_long_and_what_to_do() -> None:
    vm = machine(deleting=True, status=PLACED)
    assert says(derived(scope(vm, order("Stopping"))), "Ready") == ("False", "Terminating")
    after = derived(scope(vm, order("Running"), host("Unknown")))
    ready = after.condition("Ready")
    assert ready is not None and ready.reason == "HostUnknown" and "kumulus.io/force-detach=true" in ready.message


def test_a_machine_that_is_left_alone_is_not_removed_and_says_so() -> None:
    vm = machine(deleting=True, status=PLACED)
    vm = vm.model_copy(update={"metadata": vm.metadata.model_copy(update={"annotations": {PAUSED: "true"}})})
    for where in (host(), host("Unknown")):
        after = derived(scope(vm, order("Running"), where))
        ready = after.condition("Ready")
        assert after.phase is Phase.TERMINATING
        assert (
            ready is not None and ready.reason == "LeftAlone" and "annotate vm web kumulus.io/paused-" in ready.message
        )
        assert says(after, "Stalled") == ("True", "LeftAlone")


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    since = "2025-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Running", "lastTransitionTime": since}
    before = scope(machine(status={**PLACED, "conditions": [ready]}), order("Running"))
    found = derived(before).condition("Ready")
    assert found is not None and found.last_transition_time == since
    found = derived(replace(before, order=order("Stopping"))).condition("Ready")
    assert found is not None and found.last_transition_time == NOW


def test_deriving_twice_changes_nothing() -> None:
    before = scope(work=order("Running", instance={"startedAt": NOW, "restarts": 2}))
    once = derived(before)
    again = replace(before, vm=machine(status=once.to_json()))
    assert derive_status(again, placed(again), None, None, "2027-01-01T00:00:00Z") == once


PROBLEMS = (
    None,
    Problem("NoHostFits", "x", stalled=False),
    Problem("ImageNotFound", "x", "VolumesReady"),
    Problem("HostNotUsable", "x", stalled=False),
)


def test_no_combination_gives_an_impossible_status() -> None:
    states = [*WorkState, None, "none"]
    phases = ("Ready", "Unknown", "NotReady", None)
    powers = ("Running", "Stopped", "Paused")
    combinations = itertools.product(states, phases, powers, (True, False), (True, False), PROBLEMS)
    for state, phase, power, deleting, fresh, problem in combinations:
        is_placed = state != "none" or problem is None
        work = None if state == "none" else order(state, observed=1 if fresh else 0)
        vm = machine(deleting=deleting, powerState=power, status=PLACED if is_placed else {})
        read = replace(scope(vm, work), host=host(phase) if phase else None)
        derived(read, WHERE if is_placed else None, problem)


# Resolving


def image(
    name: str = "debian",
    *,
    model: Any = ClusterImage,
    phase: str = "Ready",
    ready: dict[str, Any] | None = None,
    **spec: Any,
) -> Any:
    full = {
        "source": {"http": {"url": "https://x.example/y"}},
        "checksum": {"sha256": SHA},
        "format": "qcow2",
        **spec,
    }
    conditions = [{"type": "Ready", "status": "False", **ready}] if ready else []
    status = {"phase": phase, "virtualSize": 2 * GI, "conditions": conditions}
    return model.parse(
        {
            "metadata": {"name": name, "uid": UID, "namespace": "ns" if model is Image else None},
            "spec": full,
            "status": status,
        }
    )


def offering(**spec: Any) -> Any:
    from kumulus.api.instance_type import InstanceType

    return InstanceType.parse({"metadata": {"name": "small"}, "spec": {"cpus": 4, "memory": "4Gi", **spec}})


DISKS = [{"name": "root", "ephemeral": {"image": "debian", "size": "10Gi"}}]


def wanting(found: Any, **more: Any) -> Scope:
    return Scope(machine(disks=DISKS), None, None, None, {"debian": found} if found else {}, **more)


def test_a_disk_is_as_large_as_asked_and_at_least_as_its_image() -> None:
    resolution = resolve(wanting(image()))
    assert isinstance(resolution, Resolution) and resolution.demand.disk == 10 * GI
    small = Scope(
        machine(disks=[{"name": "root", "ephemeral": {"image": "debian", "size": "1Gi"}}]),
        None,
        None,
        None,
        {"debian": image()},
    )
    resolution = resolve(small)
    assert isinstance(resolution, Resolution) and resolution.demand.disk == 2 * GI


@pytest.mark.parametrize(
    ("before", "reason", "stalled"),
    [
        (wanting(None), "ImageNotFound", True),
        (wanting(image(phase="Pending")), "ImageNotReady", False),
        (
            wanting(image(phase="Failed", ready={"reason": "ChecksumMismatch", "message": "it differs"})),
            "ImageFailed",
            True,
        ),
        (wanting(image(allowedNamespaces=["other"])), "ImageNotAllowed", True),
        (wanting(image(minDisk="20Gi")), "DiskTooSmall", True),
        (wanting(image(minMemory="4Gi")), "MemoryTooSmall", True),
        (replace(wanting(image()), vm=machine(zone="z9"), zone_exists=False), "ZoneNotFound", True),
        (replace(wanting(None), vm=machine(instanceType="small")), "InstanceTypeNotFound", True),
        (
            replace(
                wanting(None), vm=machine(instanceType="small"), instance_type=offering(allowedNamespaces=["other"])
            ),
            "InstanceTypeNotAllowed",
            True,
        ),
    ],
)
def test_why_a_machine_cannot_be_placed_yet(before: Scope, reason: str, stalled: bool) -> None:
    problem = resolve(before)
    assert isinstance(problem, Problem) and problem.reason == reason and problem.stalled is stalled
    assert problem.message.count(" ") > 3, "a sentence"
    derived(before, None, problem)


def test_an_offering_that_changes_does_not_change_a_machine_that_has_its_size() -> None:
    vm = machine(instanceType="small", status={"resources": {"cpus": 1, "memory": "1Gi", "instanceType": "small"}})
    resolution = resolve(Scope(vm, None, None, offering(), {}))
    assert isinstance(resolution, Resolution) and resolution.size.cpus == 1


def test_the_machines_own_selector_goes_before_its_offerings() -> None:
    vm = machine(instanceType="small", placement={"hostSelector": {"disk": "nvme"}, "profile": "Pack"})
    before = Scope(vm, None, None, offering(hostSelector={"disk": "hdd", "gpu": "yes"}), {})
    resolution = resolve(before)
    assert isinstance(resolution, Resolution) and resolution.selector == {"disk": "nvme", "gpu": "yes"}
    request = placement_request(before, resolution)
    assert request.profile == "Pack" and request.demand.cpus == 4


# The order


def test_the_order_is_fully_resolved() -> None:
    disks = [
        {"name": "a", "ephemeral": {"image": "debian"}},
        {"name": "b", "ephemeral": {"image": "debian"}, "bootOrder": 1},
    ]
    vm = machine(disks=disks, restartRequest="today")
    resolution = resolve(Scope(vm, None, None, None, {"debian": image()}))
    assert isinstance(resolution, Resolution)
    spec = instance_order(vm, resolution, PoolRef.model_validate(POOL), (), (), 3, 7, SeedRef(data={"meta-data": "x"}))
    assert spec.instance is not None and spec.term == 7 and spec.instance.epoch == 3
    assert {disk.name: disk.boot_order for disk in spec.instance.disks} == {"b": 1, "a": 2}
    assert spec.instance.memory == 2 * GI and spec.instance.restart_request == "today"
    assert spec.for_.uid == UID


def test_an_image_of_unknown_size_gets_a_disk_without_one() -> None:
    unknown = image()
    unknown = unknown.model_copy(update={"status": unknown.status.model_copy(update={"virtual_size": None})})
    vm = machine(disks=[{"name": "a", "ephemeral": {"image": "debian"}}])
    resolution = resolve(Scope(vm, None, None, None, {"debian": unknown}))
    assert isinstance(resolution, Resolution)
    spec = instance_order(vm, resolution, PoolRef.model_validate(POOL), (), (), 1, 1, None)
    assert spec.instance is not None and spec.instance.disks[0].size is None


def test_only_what_may_change_is_renewed_and_the_term_never_goes_back() -> None:
    work = order("Running").spec
    assert renewed(machine(), work, (), (), 9) is work, "nothing differs, nothing is written"
    changed = renewed(machine(powerState="Stopped", resources={"cpus": 64, "memory": "1Ti"}), work, (), (), 2)
    assert changed.instance is not None and changed.instance.power == "Stopped"
    assert changed.term == 4 and changed.instance.cpus == 2 and changed.instance.epoch == 1
    assert renewed(machine(powerState="Paused"), work, (), (), 9).term == 9
