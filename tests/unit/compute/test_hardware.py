"""What a machine is made of: what is asked, kept, ordered, and what waits for the next start."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.base import ConditionStatus
from kumulus.api.hardware import HostFeature, Shape
from kumulus.api.instance_order import InstanceFacts, InstanceOrder
from kumulus_controllers.compute import hardware
from kumulus_controllers.compute.order import instance_order, renewed
from kumulus_controllers.compute.phase import derive_status
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import Resolution, placement_request, resolve
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.wakeups import offers
from kumulus_controllers.planning.views import HostView
from tests.unit.compute.test_machine_status import NOW, PLACED, WHERE, host, machine, order

HOST = HostView(
    "h1",
    "u",
    "z1",
    8,
    1 << 34,
    cpu_models=frozenset({"Nehalem"}),
    machine_types=frozenset({"q35", "pc-q35-7.2"}),
    features=frozenset({HostFeature.UEFI}),
)


def instance(**changes: Any) -> InstanceOrder:
    made = order("Running").spec.instance
    assert made is not None
    return made.model_copy(update=changes)


@pytest.mark.parametrize(
    ("spec", "status", "baseline", "found"),
    [
        ({}, {}, None, None),
        ({}, {}, "Skylake-Server", "Skylake-Server"),
        ({}, {"cpuModel": "Nehalem"}, "Skylake-Server", "Nehalem"),
        ({"cpu": {"cores": 2}}, {}, "Skylake-Server", "Skylake-Server"),
        ({"cpu": {"model": "host-model"}}, {"cpuModel": "Nehalem"}, "Skylake-Server", "host-model"),
    ],
)
def test_the_processor_is_the_spec_s_or_the_one_it_has_or_the_zone_s(
    spec: dict[str, Any], status: dict[str, Any], baseline: str | None, found: str | None
) -> None:
    assert hardware.cpu_model(machine(status=status, **spec), baseline) == found


def test_a_baseline_that_changes_does_not_change_a_machine_that_has_its_order() -> None:
    """Nor does one that comes: it has the processor of its host then."""
    vm, before = machine(status=PLACED), instance(shape=Shape(cpu_model="Nehalem"))
    assert hardware.granted(vm, before, HOST) == (hardware.ordered(before), None)
    assert hardware.shape(vm, "Skylake-Server", instance()) is None


def test_what_is_by_default_is_not_said() -> None:
    resolution = resolve(Scope(machine(), None, None, None, {}))
    assert isinstance(resolution, Resolution)
    made = instance_order(machine(), resolution, None, (), (), 1, 1, None).instance
    assert made is not None and "shape" not in made.to_json() and "machineType" not in made.to_json()


def test_the_board_of_the_first_start_comes_along() -> None:
    vm = machine(status={**PLACED, "machineType": "pc-q35-7.1"})
    resolution = resolve(Scope(vm, None, None, None, {}))
    assert isinstance(resolution, Resolution)
    made = instance_order(vm, resolution, None, (), (), 2, 1, None).instance
    assert made is not None and made.machine_type == "pc-q35-7.1"
    assert placement_request(Scope(vm, None, None, None, {}), resolution).machine_type == "pc-q35-7.1"
    before = order("Running").spec
    assert renewed(vm, before, (), (), 1) == before, "that alone is no reason to write"
    stopped = renewed(machine(status=vm.status.to_json(), powerState="Stopped"), before, (), (), 1).instance
    assert stopped is not None and stopped.machine_type == "pc-q35-7.1"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"cpu": {"model": "Nehalem"}}, None),
        ({"cpu": {"model": "host-passthrough"}}, None),
        ({"cpu": {"model": "EPYC"}}, "its host h1 is without CPU model EPYC"),
        ({"cpu": {"threads": 2}}, None),
        ({"cpu": {"sockets": 2, "cores": 2}}, "2 CPUs cannot be 2 sockets x 2 cores"),
        ({"machineType": "q35"}, None),
        ({"machineType": "pc-q35-9.2"}, "its host h1 is without machine type pc-q35-9.2"),
        ({"firmware": {"tpm": True}}, "its host h1 is without a TPM for machines (packages swtpm and swtpm-tools)"),
        ({"watchdog": {}}, "its host h1 is without a watchdog for machines"),
    ],
)
def test_a_machine_that_has_its_place_gets_only_what_its_host_can(spec: dict[str, Any], why: str | None) -> None:
    vm, before = machine(status=PLACED, **spec), instance()
    made, problem = hardware.granted(vm, before, HOST)
    assert (made == hardware.ordered(before)) == (why is not None)
    assert (problem is None) == (why is None)
    if problem is not None and why is not None:
        assert why in problem.message and not problem.hinders


def test_a_topology_that_does_not_fit_an_instance_type_is_said_before_it_is_placed() -> None:
    found = resolve(Scope(machine(cpu={"cores": 3}), None, None, None, {}))
    assert (
        isinstance(found, Problem) and found.reason == "CpuTopologyInvalid" and "2 CPUs cannot be 3 cores" in str(found)
    )


@pytest.mark.parametrize(
    ("wanted", "has", "said"),
    [
        ({}, {"cpus": 2}, []),
        ({"shape": Shape(tpm=True)}, {}, []),
        ({"shape": Shape(cpu_model="EPYC")}, {"cpus": 2}, ["CPU model of the host to EPYC"]),
        (
            {"shape": Shape(cpu_model="EPYC", tpm=True, cores=1)},
            {"cpus": 2, "shape": {"cpuModel": "Nehalem", "watchdog": "Reset"}},
            [
                "CPU model Nehalem to EPYC",
                "CPU topology of one socket to any x 1 x any",
                "TPM no to yes",
                "watchdog Reset to none",
            ],
        ),
        ({"machine_type": "q35"}, {"cpus": 2, "machineType": "pc-q35-7.1"}, []),
        ({"machine_type": "pc-q35-7.2"}, {"cpus": 2, "machineType": "pc-q35-7.2"}, []),
        (
            {"machine_type": "pc-q35-7.2"},
            {"cpus": 2, "machineType": "pc-q35-7.1"},
            ["machine type pc-q35-7.1 to pc-q35-7.2"],
        ),
    ],
)
def test_what_waits_for_the_next_start_is_named(wanted: dict[str, Any], has: dict[str, Any], said: list[str]) -> None:
    assert hardware.changes(instance(**wanted), InstanceFacts.model_validate(has)) == said


@pytest.mark.parametrize(("connected", "status"), [(True, ConditionStatus.TRUE), (False, ConditionStatus.FALSE)])
def test_what_the_guest_says_is_in_the_status(connected: bool, status: ConditionStatus) -> None:
    said = {
        "connected": connected,
        "hostname": "web",
        "os": "Debian",
        "agentVersion": "7.2.0",
        "addresses": ["10.0.0.2"],
    }
    scope = Scope(machine(status=PLACED), order("Running", instance={"guest": said}), host(), None, {})
    after = derive_status(scope, WHERE, None, None, NOW)
    assert after.guest is not None
    assert after.guest.to_json() == {name: value for name, value in said.items() if name != "connected"}
    found = after.condition("AgentConnected")
    assert found is not None and found.status is status
    without = derive_status(Scope(machine(status=PLACED), order("Running"), host(), None, {}), WHERE, None, None, NOW)
    assert without.guest is None and without.condition("AgentConnected") is None


def test_the_status_says_what_it_is_made_of_and_what_waits() -> None:
    work = order("Running", instance={"cpus": 2, "memory": 1 << 31, "machineType": "pc-q35-7.2"})
    assert work.spec.instance is not None
    spec = work.spec.model_copy(update={"instance": instance(shape=Shape(cpu_model="Nehalem"))})
    vm = machine(status=PLACED)
    after = derive_status(Scope(vm, work.model_copy(update={"spec": spec}), host(), None, {}), WHERE, None, None, NOW)
    assert (after.cpu_model, after.machine_type) == ("Nehalem", "pc-q35-7.2")
    found = after.condition("RestartRequired")
    assert (
        found is not None
        and found.status is ConditionStatus.TRUE
        and "CPU model of the host to Nehalem" in found.message
    )


@pytest.mark.parametrize(
    "status", [{"features": ["UEFI"]}, {"machineTypes": ["pc-q35-8.0"]}, {"cpu": {"models": ["Nehalem"]}}]
)
def test_machines_that_wait_are_placed_once_a_host_can_give_more(status: dict[str, Any]) -> None:
    before = host()
    said = before.to_json()
    after = type(before).parse(said | {"status": said["status"] | status})
    assert offers(before) != offers(after) and offers(after) == offers(type(before).parse(after.to_json()))


def test_machines_that_wait_are_placed_once_a_hosts_watchdog_is_armed() -> None:
    raw = host().to_json()
    raw["status"]["allocatable"] = {"cpus": 4, "memory": 4096}
    plain, armed, unarmed = (
        type(host()).parse(
            raw
            | {
                "status": raw["status"]
                | {
                    "conditions": [
                        {"type": type_, "status": status, "reason": "R", "message": "", "lastTransitionTime": NOW}
                        for type_, status in said.items()
                    ]
                }
            }
        )
        for said in (
            {"Ready": "True"},
            {"Ready": "True", "WatchdogArmed": "True"},
            {"Ready": "True", "WatchdogArmed": "False"},
        )
    )
    assert offers(unarmed) != offers(armed) == offers(plain)
