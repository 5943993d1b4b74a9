"""Power commands patch the spec and nothing else; `vm wait` believes only a status that answers the present spec."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.cli.power import STOP_MODE_BEFORE, power_patch, size_patch
from kumulus.cli.problem import Problem
from kumulus.cli.vm import Goal, reached


def raw(*, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web1", "namespace": "shop", "generation": 3, **metadata},
        "spec": {"instanceType": "small", **(spec or {})},
        "status": {"observedGeneration": 3, "phase": "Running", **(status or {})},
    }


def test_start_and_stop_touch_the_power_state_only() -> None:
    vm = VirtualMachine.parse(raw())
    assert power_patch(vm, PowerState.STOPPED) == {"spec": {"powerState": "Stopped"}}
    assert power_patch(vm, PowerState.RUNNING) == {"spec": {"powerState": "Running"}}


def test_a_forced_stop_does_not_make_later_stops_forced() -> None:
    forced = power_patch(VirtualMachine.parse(raw()), PowerState.STOPPED, force=True)
    assert forced == {
        "spec": {"powerState": "Stopped", "stop": {"mode": "Force"}},
        "metadata": {"annotations": {STOP_MODE_BEFORE: "Graceful"}},
    }
    after = raw(spec={"stop": {"mode": "Force"}}, annotations={STOP_MODE_BEFORE: "Graceful"})
    again = power_patch(VirtualMachine.parse(after), PowerState.STOPPED, force=True)
    assert again == {"spec": {"powerState": "Stopped", "stop": {"mode": "Force"}}}
    start = power_patch(VirtualMachine.parse(after), PowerState.RUNNING)
    assert start == {
        "spec": {"powerState": "Running", "stop": {"mode": "Graceful"}},
        "metadata": {"annotations": {STOP_MODE_BEFORE: None}},
    }


def test_a_spec_that_says_force_keeps_saying_so() -> None:
    vm = VirtualMachine.parse(raw(spec={"stop": {"mode": "Force"}}))
    assert "metadata" not in power_patch(vm, PowerState.STOPPED, force=True)
    assert "stop" not in power_patch(vm, PowerState.RUNNING)["spec"]


@pytest.mark.parametrize(
    ("asked", "spec"),
    [
        (("large", None, None), {"instanceType": "large", "resources": None}),
        ((None, 4, None), {"instanceType": None, "resources": {"cpus": 4, "memory": "2Gi"}}),
        ((None, None, "4Gi"), {"instanceType": None, "resources": {"cpus": 2, "memory": "4Gi"}}),
        ((None, 1, "1Gi"), {"instanceType": None, "resources": {"cpus": 1, "memory": "1Gi"}}),
    ],
)
def test_a_size_is_a_type_or_what_is_not_said_stays(
    asked: tuple[str | None, int | None, str | None], spec: dict[str, Any]
) -> None:
    vm = VirtualMachine.parse(raw(status={"resources": {"cpus": 2, "memory": "2Gi", "instanceType": "small"}}))
    assert size_patch(vm, *asked) == {"spec": spec}


@pytest.mark.parametrize("asked", [(None, None, None), ("large", 1, None), (None, 1, None)])
def test_half_a_size_is_none(asked: tuple[str | None, int | None, str | None]) -> None:
    with pytest.raises(Problem):
        size_patch(VirtualMachine.parse(raw()), *asked)


@pytest.mark.parametrize(
    ("goal", "machine", "there"),
    [
        (Goal.RUNNING, raw(), True),
        (Goal.RUNNING, raw(status={"observedGeneration": 2}), False),
        (Goal.RUNNING, raw(spec={"restartRequest": "b"}, status={"lastRestartRequest": "a"}), False),
        (Goal.RUNNING, raw(spec={"restartRequest": "b"}, status={"lastRestartRequest": "b"}), True),
        (Goal.READY, raw(), False),
        (Goal.READY, raw(status={"conditions": [{"type": "Ready", "status": "True"}]}), True),
        (Goal.STOPPED, raw(status={"phase": "Stopping"}), False),
        (Goal.STOPPED, raw(status={"phase": "Stopped"}), True),
        (Goal.PAUSED, raw(status={"phase": "Paused"}), True),
        (Goal.DELETED, raw(), False),
        (Goal.DELETED, None, True),
        (Goal.RUNNING, None, False),
    ],
)
def test_when_a_goal_is_reached(goal: Goal, machine: dict[str, Any] | None, there: bool) -> None:
    assert reached(machine, goal) is there
