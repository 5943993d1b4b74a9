"""How far the move of a volume is, in words, and when there is nothing more to wait for."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.storage import Volume
from kumulus.cli.explain import explain
from kumulus.cli.facts import Facts, Level
from kumulus.cli.moving import ended, said
from kumulus.cli.problem import Problem
from kumulus.cli.volume import reason, where
from tests.unit.cli.test_explain import NOW, condition, machine, running
from tests.unit.cli.test_explain import host as host_in
from tests.unit.cli.test_explain import order as order_in

MOVING = {"pool": "local", "movingTo": "nfs", "observedGeneration": 2}


def volume(status: dict[str, Any], *conditions: dict[str, Any], pool: str | None = "nfs") -> Volume:
    return Volume.parse(
        {
            "metadata": {"name": "data", "namespace": "shop", "generation": 2},
            "spec": {"size": "1Gi", **({"pool": pool} if pool else {})},
            "status": {**status, "conditions": list(conditions)},
        }
    )


UNDERWAY = condition("Moving", "True", "Moving", "It is being moved.")
STUCK = condition("Moving", "False", "NoSpace", "There is no room.\x1b[2J")


def test_how_far_a_move_is() -> None:
    at = {"bytes": 2**20, "total": 2**22, "rate": 2**19, "remainingSeconds": 6}
    assert said(volume({**MOVING, "progress": at}, UNDERWAY)) == "25% of 4 MiB, 512 KiB/s, 6s left"
    assert said(volume(MOVING, UNDERWAY)) == "begun"
    stuck = said(volume(MOVING, STUCK))
    assert stuck.startswith("NoSpace: There is no room.") and "\x1b" not in stuck
    assert said(volume({"pool": "nfs", "observedGeneration": 2})) == ""


def test_a_volume_on_its_way_is_shown_with_both_pools() -> None:
    assert where(volume(MOVING)) == "local > nfs" and where(volume({"pool": "nfs"})) == "nfs"
    assert where(volume({})) == ""
    ready = condition("Ready", "True", "InUse")
    assert reason(volume(MOVING, ready, STUCK)) == "NoSpace" and reason(volume(MOVING, ready, UNDERWAY)) == ""


def test_it_has_ended_when_a_status_of_the_present_spec_says_so() -> None:
    assert ended(volume({"pool": "nfs", "observedGeneration": 2}), "nfs")
    assert not ended(volume({"pool": "nfs", "observedGeneration": 1}), "nfs")
    assert not ended(volume(MOVING, UNDERWAY), "nfs")
    assert not ended(volume({"pool": "local", "observedGeneration": 2}, STUCK), "nfs"), "it may pass by itself"


def test_what_cannot_end_is_not_waited_for() -> None:
    with pytest.raises(Problem, match="sent elsewhere"):
        ended(volume(MOVING, pool="third"), "nfs")
    stalled = condition("Stalled", "True", "HasSnapshots", "Delete them.")
    with pytest.raises(Problem, match=r"HasSnapshots\): Delete them"):
        ended(volume(MOVING, stalled), "nfs")


def tell(vm: VirtualMachine, item: Volume) -> list[tuple[Level, str]]:
    facts = Facts(
        vm=vm, now=NOW, volumes={"data": item}, host=host_in("Ready", ready="True"), order=order_in("Running")
    )
    return [(finding.level, finding.what) for finding in explain(facts)]


def test_a_machine_whose_volume_moves_is_told_of_it_and_one_that_waits_why() -> None:
    at = {"bytes": 2**20, "total": 2**22}
    level, what = tell(machine(status=running()), volume({**MOVING, "progress": at}, UNDERWAY))[0]
    assert (level, what) == (Level.NOTE, "Its volume data is being moved to pool nfs: 25% of 4 MiB.")
    waits = {"phase": "Starting", "host": "h1", "conditions": [condition("VolumesReady", "False", "VolumeMoves", "x")]}
    level, what = tell(machine(status=waits), volume(MOVING, STUCK))[0]
    assert level is Level.WAITING and "does not get on (NoSpace)" in what
