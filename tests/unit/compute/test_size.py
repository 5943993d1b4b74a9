"""Another size: what is kept, what waits for the next start, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import ResolvedSize
from kumulus.api.host import WorkOrder
from kumulus.api.instance_order import InstanceFacts
from kumulus.api.instance_type import InstanceType
from kumulus_controllers.compute.phase import derive_status
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.size import Sizes, changes, no_room, sizes, wanted_size
from tests.unit.compute.test_machine_status import NOW, PLACED, WHERE, host, machine, order

MI = 1 << 20
SMALL, LARGE = {"cpus": 1, "memory": "512Mi"}, {"cpus": 2, "memory": "1Gi"}


def size(of: dict[str, Any], type_: str | None = None) -> ResolvedSize:
    return ResolvedSize(**of, instance_type=type_)


def offering(name: str, of: dict[str, Any], *allowed: str) -> InstanceType:
    spec = {**of, "allowedNamespaces": list(allowed)}
    return InstanceType.parse({"metadata": {"name": name, "uid": "t", "resourceVersion": "1"}, "spec": spec})


def wanted(status: dict[str, Any], type_: InstanceType | None = None, **spec: Any) -> ResolvedSize | Problem:
    return wanted_size(Scope(machine(status=status, **spec), None, None, type_, {}))


@pytest.mark.parametrize(
    ("status", "spec", "found"),
    [
        ({"resources": {**SMALL, "instanceType": "s"}}, {"instanceType": "s"}, size(SMALL, "s")),
        ({"resources": {**SMALL, "instanceType": "l"}}, {"instanceType": "s"}, size(LARGE, "s")),
        ({"resources": SMALL}, {"instanceType": "s"}, size(LARGE, "s")),
        ({"resources": {**LARGE, "instanceType": "s"}}, {"resources": LARGE}, size(LARGE)),
        ({"resources": SMALL}, {"resources": {"cpus": 1, "memory": str(512 * MI)}}, size(SMALL)),
        ({"resources": SMALL, "pendingResources": LARGE}, {"resources": SMALL}, size(SMALL)),
        ({"resources": SMALL, "pendingResources": LARGE}, {"resources": LARGE}, size(LARGE)),
    ],
)
def test_what_was_resolved_is_kept_until_the_spec_asks_for_something_else(
    status: dict[str, Any], spec: dict[str, Any], found: ResolvedSize
) -> None:
    """The offering `s` has changed since: it is large now."""
    assert wanted(status, offering("s", LARGE), **spec) == found


def test_an_offering_that_is_not_to_be_had_is_said() -> None:
    for type_, reason in ((None, "InstanceTypeNotFound"), (offering("s", LARGE, "other"), "InstanceTypeNotAllowed")):
        problem = wanted({"resources": SMALL}, type_, instanceType="s")
        assert isinstance(problem, Problem) and problem.reason == reason


@pytest.mark.parametrize(
    ("given", "facts", "found"),
    [
        (LARGE, (1, 512 * MI), Sizes(size(SMALL), size(LARGE))),
        (LARGE, (2, 1024 * MI), Sizes(size(LARGE))),
        (LARGE, None, Sizes(size(LARGE))),
        (None, (1, 512 * MI), Sizes(size(SMALL))),
        ({"cpus": 1, "memory": "100k"}, (1, MI), Sizes(size({"cpus": 1, "memory": "100k"}))),
        (LARGE, (4, 512 * MI), Sizes(size({"cpus": 4, "memory": "512Mi"}), size(LARGE))),
    ],
)
def test_a_guest_keeps_its_size_until_its_next_start(
    given: dict[str, Any] | None, facts: tuple[int, int] | None, found: Sizes
) -> None:
    said = InstanceFacts(cpus=facts[0], memory=facts[1]) if facts is not None else None
    status = machine(status={"resources": SMALL}).status
    assert sizes(status, size(given) if given else None, said, off=True) == found


def test_nobody_takes_a_guest_for_off_that_was_not_said_to_be() -> None:
    """An agent that does not say sizes, or has not read the order yet."""
    status = machine(status={"resources": LARGE}).status
    assert sizes(status, size(SMALL), InstanceFacts(), off=False) == Sizes(size(LARGE), size(SMALL))
    assert sizes(status, size(LARGE), None, off=False) == Sizes(size(LARGE))
    assert sizes(status, size(SMALL), InstanceFacts(), off=True) == Sizes(size(SMALL))


def test_a_status_from_before_types_were_written_down_is_kept() -> None:
    status = {"resources": SMALL, "observedGeneration": 2}
    assert wanted(status, offering("s", LARGE), instanceType="s") == size(SMALL, "s")


GROWS = {**SMALL, "maxCpus": 4, "maxMemory": "2Gi"}


def parsed(of: dict[str, Any]) -> ResolvedSize:
    return ResolvedSize.model_validate(of)


@pytest.mark.parametrize(
    ("given", "facts", "pending", "said"),
    [
        (GROWS, {"cpus": 1, "memory": 512 * MI, "maxCpus": 4, "maxMemory": 2048 * MI}, None, []),
        (GROWS, {"cpus": 1, "memory": 512 * MI, "maxCpus": 4, "maxMemory": 2100 * MI}, None, []),
        ({**GROWS, "cpus": 4, "memory": "2Gi"}, {"cpus": 4, "memory": 2048 * MI}, None, []),
        (
            {**GROWS, "cpus": 2, "memory": "3Gi", "maxMemory": "4Gi"},
            {"cpus": 2, "memory": 512 * MI, "maxCpus": 4, "maxMemory": 2048 * MI},
            {**GROWS, "cpus": 2, "memory": "3Gi", "maxMemory": "4Gi"},
            ["memory 512Mi to 3Gi", "maxMemory 2Gi to 4Gi"],
        ),
        (GROWS, {"cpus": 1, "memory": 512 * MI}, GROWS, ["maxCpus 1 to 4", "maxMemory 512Mi to 2Gi"]),
        (GROWS, {"cpus": 3, "memory": 512 * MI, "maxCpus": 4, "maxMemory": 2048 * MI}, GROWS, ["CPUs 3 to 1"]),
    ],
)
def test_only_what_could_not_be_had_at_once_waits(
    given: dict[str, Any], facts: dict[str, Any], pending: dict[str, Any] | None, said: list[str]
) -> None:
    found = sizes(machine(status={}).status, parsed(given), InstanceFacts.model_validate(facts), off=False)
    assert found.pending == (parsed(pending) if pending else None)
    assert changes(found) == said


def test_what_a_host_can_do_at_once_does_not_wait_before_it_had_the_time() -> None:
    has = InstanceFacts.model_validate({"cpus": 1, "memory": 512 * MI, "maxCpus": 4, "maxMemory": 2048 * MI})
    for asked, said in (
        ({"cpus": 2, "memory": "1Gi"}, []),
        ({"memory": "256Mi"}, []),
        ({"memory": "3Gi", "maxMemory": "3Gi"}, ["memory 512Mi to 3Gi", "maxMemory 2Gi to 3Gi"]),
        ({"cpus": 5, "maxCpus": 5}, ["CPUs 1 to 5", "maxCpus 4 to 5"]),
    ):
        found = sizes(machine(status={"resources": GROWS}).status, parsed({**GROWS, **asked}), has, off=False)
        assert found.pending is not None and changes(found, has) == said


def running(order: WorkOrder, facts: dict[str, Any]) -> WorkOrder:
    return order.model_copy(update={"status": order.status.model_copy(update={"instance": InstanceFacts(**facts)})})


def test_all_that_waits_for_a_restart_is_named() -> None:
    vm = machine(resources=LARGE, status={**PLACED, "resources": SMALL})
    scope = Scope(vm, running(order("Running"), {"cpus": 1, "memory": 512 * MI}), host(), None, {})
    after = derive_status(scope, WHERE, None, None, NOW, size=size(LARGE))
    found = after.condition("RestartRequired")
    assert found is not None and found.status is ConditionStatus.TRUE
    assert "CPUs 1 to 2, memory 512Mi to 1Gi" in found.message and "`kumulusctl vm restart web`" in found.message
    assert (after.resources, after.pending_resources) == (size(SMALL), size(LARGE))
    ready = after.condition("Ready")
    assert ready is not None and ready.status is ConditionStatus.TRUE, "it runs as well as before"


def test_a_size_that_its_host_has_no_room_for_is_refused_with_the_numbers() -> None:
    vm = machine(resources=LARGE, status={**PLACED, "resources": SMALL})
    scope = Scope(vm, running(order("Running"), {"cpus": 1, "memory": 512 * MI}), host(), None, {})
    lack = no_room(size(LARGE), "its host h1 has 0 CPUs left")
    after = derive_status(scope, WHERE, None, None, NOW, too_large=lack)
    found = after.condition("RestartRequired")
    assert found is not None and (found.status, found.reason) == (ConditionStatus.FALSE, "NoRoomOnHost")
    assert "2 CPUs and 1Gi" in found.message and "h1 has 0 CPUs left" in found.message
    assert (after.resources, after.pending_resources) == (size(SMALL), None)
