"""The agent that sends a real guest is killed, or the move is cancelled: the guest runs once, has lost nothing, and moves again
(QUALITY F13, G20).

Real are the API server, controllers, agents, TLS between them, libvirt, QEMU and the guest. What its owner would notice is what
`counting` sees. The agent is killed at several moments of a move, and started again at once, as systemd would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum

import pytest

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from tests.fault.campaign import TABLE
from tests.fault.counting import Scene, scene_on
from tests.fault.runner import Result
from tests.system.world import Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide, pytest.mark.timeout(1800)]

SLOWLY = {"bandwidth": 6}
"""So that a copy takes some seconds: MiB a second."""
SOILS = "#kumulus-run: mkdir -p /soil; mount -t tmpfs soil /soil; while :; do yes | head -c 12000000 >/soil/file; done"
"""A guest that writes 12 MB of its memory anew all the time."""


class Moment(StrEnum):
    """How far the move is then."""

    CHOSEN = "chosen"
    """The target is on record."""
    COMING = "coming"
    """The target's QEMU is there."""
    COPYING = "copying"
    """The source has said how far the copy is."""
    LEFT = "left"
    """The source's QEMU has ended, and the target's is there: the guest is halted, or has just gone on."""


@pytest.fixture
def scene(real_world: World) -> Iterator[Scene]:
    with scene_on(real_world) as made:
        yield made


def _reached(scene: Scene, name: str, moment: Moment, source: LibvirtHost, target: LibvirtHost) -> None:
    """Return when the move is as far as that. AssertionError when it ends before."""
    watcher = scene.watcher

    def there() -> bool:
        if moment is Moment.COMING:
            return bool(watcher.living(target.name))
        if moment is Moment.LEFT:
            return bool(watcher.living(target.name)) and not watcher.living(source.name)
        status = (scene.world.find("vmm", name) or {"status": {}})["status"]
        if moment is Moment.CHOSEN:
            return "targetHost" in status
        assert status.get("phase") not in ("Succeeded", "Failed"), f"it was over before: {status}"
        return "progress" in status

    deadline.until(there, f"a move that is {moment}", seconds=60, every=0.01)


def _kill(scene: Scene, host: LibvirtHost) -> None:
    """Its agent is killed, and started again as an init would."""
    host.daemon("agent").kill()
    scene.lab.services.start_agent(host)


def _ended(scene: Scene, name: str) -> Object:
    """The status of a move that is over, and says what came of it."""
    status = scene.migration(name, lambda status: status["phase"] in ("Succeeded", "Failed"), "is over", seconds=120)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["status"] == ("True" if status["phase"] == "Succeeded" else "False")
    assert ready["reason"] and ready["message"], f"it does not say what came of it: {status}"
    return status


def test_the_agent_that_sends_a_guest_is_killed_and_it_runs_once_and_moves_again(scene: Scene) -> None:
    scene.begin()
    tried = []
    for number, moment in enumerate(Moment):
        source, target = scene.where()
        began = time.monotonic()
        scene.move(f"harmed-{number}", limits=SLOWLY)
        _reached(scene, f"harmed-{number}", moment, source, target)
        _kill(scene, source)
        status = _ended(scene, f"harmed-{number}")
        here = scene.runs_once()
        assert here.name == (target if status["phase"] == "Succeeded" else source).name, status
        assert scene.watcher.boots == 1, f"{moment}: the guest was started anew"
        tried.append(f"{moment}: {status['phase']}")
        scene.move(f"again-{number}")
        assert _ended(scene, f"again-{number}")["phase"] == "Succeeded", "it can be moved again"
        scene.runs_once()
        scene.right()
        TABLE.add("source agent", Result("a real guest moves", moment, time.monotonic() - began, (), struck=(moment,)))
    TABLE.numbers["a real guest moves, source agent killed"] = "; ".join(tried)


def _stays(scene: Scene, host: LibvirtHost, runs: int) -> None:
    """It runs on where it was, in the same emulator, and nothing of it is anywhere else."""
    assert scene.runs_once().name == host.name
    mine = [run for run in scene.watcher.runs if run.host == host.name]
    assert len(mine) == runs and scene.watcher.boots == 1, "the guest was started anew"
    scene.right()


def test_a_move_that_is_deleted_in_the_middle_leaves_the_guest_where_it_is(scene: Scene) -> None:
    scene.begin(SOILS)
    here, there = scene.where()
    for moment in (Moment.CHOSEN, Moment.COMING, Moment.COPYING):
        scene.move("cancelled", mode="PreCopy", onStall="Wait", limits={"bandwidth": 2})
        _reached(scene, "cancelled", moment, here, there)
        scene.world.delete("vmm", "cancelled")
        assert scene.world.find("vmm", "cancelled") is None
        _stays(scene, here, 1)
        assert not scene.about(there)
    scene.move("go", limits={"timeoutSeconds": 300})
    assert _ended(scene, "go")["phase"] == "Succeeded"
    assert scene.runs_once().name == there.name and scene.watcher.boots == 1
    scene.right()
