"""The condition `Migratable`: what a migration would say of the machine if somebody asked for one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.compute import Phase, PowerState, VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.machine_snapshot import VirtualMachineRestore
from kumulus.api.network import NetworkInterface
from kumulus.api.segments import NetworkDriverName
from kumulus.cli.keeping import TODO, keeping
from kumulus_controllers.compute import migration_hardware, migration_preflight
from kumulus_controllers.compute.movable import MIGRATABLE, migratable
from kumulus_controllers.compute.phase import Placed, derive_status
from kumulus_controllers.compute.scope import Link, Scope
from tests.unit.compute import test_migration_plan as moving

NOW = "2027-01-15T08:00:00Z"
INTERFACE = NetworkInterface.parse({"metadata": {"name": "n", "namespace": "ns"}, "spec": {"network": "net"}})


def scope(vm: VirtualMachine | None = None, **changes: Any) -> Scope:
    host = Host.parse({"metadata": {"name": moving.HERE}, "spec": {"zone": "z"}, "status": {"phase": "Ready"}})
    found = {"order": moving.order(moving.HERE, 4), "report": moving.report(), **changes}
    return Scope(vm=vm or moving.machine(), host=host, instance_type=None, images={}, **found)


def link(driver: NetworkDriverName | None) -> dict[str, Link]:
    return {"eth0": Link(INTERFACE, {}, driver)}


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"order": moving.order(moving.HERE, 4, pool=moving.LOCAL)},) * 2,
    ({"order": moving.order(moving.HERE, 4, max_memory=256 << 20)},) * 2,
    ({"links": link(None)},) * 2,
    ({"report": None}, {"source_report": None}),
    (
        {"restore": VirtualMachineRestore.parse({"metadata": {"name": "r"}, "spec": {"snapshot": "s", "target": {}}})},
        {"restoring": "r"},
    ),
]


@pytest.mark.parametrize(("changes", "theirs"), CASES)
def test_it_says_what_a_migration_says(changes: dict[str, Any], theirs: dict[str, Any]) -> None:
    asked = {("source" if name == "order" else name): value for name, value in theirs.items()}
    lack = migration_preflight.blocked(moving.scope(**asked))
    said = migratable(scope(**changes), Phase.RUNNING)
    assert said.status is (lack is None)
    if lack is not None:
        assert (said.reason, said.message) == (lack.reason, lack.message)


def test_all_that_keeps_it_is_told_at_once() -> None:
    said = migratable(scope(order=moving.order(moving.HERE, 4, pool=moving.LOCAL), report=None), Phase.RUNNING)
    assert said.reason == "NoTunnel" and "Disk root is in a pool that its host alone has" in said.message


def with_before(status: str, reason: str) -> VirtualMachine:
    said = {"type": "Migratable", "status": status, "reason": reason, "message": "m", "lastTransitionTime": NOW}
    vm = moving.machine()
    return VirtualMachine.parse({**vm.to_json(), "status": {**vm.status.to_json(), "conditions": [said]}})


@pytest.mark.parametrize("before", [("True", "NothingInTheWay"), ("False", "LocalDisks")])
def test_what_passes_in_a_moment_costs_no_write(before: tuple[str, str]) -> None:
    vm, unanswered = with_before(*before), moving.order(moving.HERE, 4, generation=2)
    for found, phase in (
        (scope(vm, order=unanswered), Phase.RUNNING),
        (scope(vm, order=unanswered), Phase.MIGRATING),
    ):
        said = migratable(found, phase)
        assert (str(said.status), said.reason, said.message) == (*before, "m")


def test_an_agent_that_starts_again_keeps_no_machine_for_good() -> None:
    """It has no certificate for some seconds: a machine that moves if possible is not shut down for that."""
    assert migratable(scope(report=moving.restarted()), Phase.RUNNING).status is True
    lack = migration_preflight.blocked(moving.scope(source_report=moving.restarted()))
    assert lack is not None and not lack.stalled
    never = migration_preflight.blocked(moving.scope(source_report=moving.report(takes=False)))
    assert never is not None and never.stalled, "no port is configured"


def order(state: WorkState) -> WorkOrder:
    return moving.order(moving.HERE, 4, state=state)


def test_it_is_said_of_what_has_a_memory_only_and_names_the_phase_that_is() -> None:
    assert migratable(scope(), Phase.STOPPED).status is None
    assert migratable(scope(), Phase.STARTING).status is None
    vm = moving.machine(power=PowerState.PAUSED, phase=Phase.RUNNING)
    after = derive_status(scope(vm, order=order(WorkState.PAUSED)), Placed(moving.HERE, "z", 4), None, None, NOW)
    said = after.condition(MIGRATABLE)
    assert said is not None and said.reason == "NotRunning" and "is Paused" in said.message
    assert str(migratable(scope(), Phase.UNKNOWN).status) == "Unknown"


def test_the_owner_is_told_what_to_do_about_each_reason() -> None:
    """All reasons of the preflight that can come to stand in the condition."""
    sources = (migration_preflight, migration_hardware)
    trees = [ast.parse(Path(module.__file__ or "").read_text()) for module in sources]
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    reasons = {
        call.args[0].value
        for call in calls
        if ast.unparse(call.func) == "Lack" and isinstance(call.args[0], ast.Constant)
    } - {"MachineNotFound", "MachineGone", "AlreadyMoving", "LeftAlone"}
    reasons.add("LocalDisks")  # of `migration_disks`, whose others are given only when disks are to be copied along
    assert reasons == TODO.keys()
    for reason in reasons:
        (finding,) = keeping(with_before("False", reason))
        assert reason in finding.what and finding.todo and "{" not in finding.todo
    assert keeping(with_before("True", "NothingInTheWay")) == []
