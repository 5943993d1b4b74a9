"""Whoever is killed while a real guest moves: it runs once, has lost nothing, and moves again (QUALITY F13, G20).

Real are the API server, controllers, agents, TLS between them, libvirt, QEMU and the guest. What its owner would notice is what
`counting` sees. Each is killed at several moments of a move, and started again at once, as systemd would.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from enum import StrEnum

import pytest

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from kumulus_lab.processes import Identity
from tests.fault.campaign import TABLE
from tests.fault.counting import Scene, scene_on
from tests.fault.runner import Result
from tests.system.world import Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide, pytest.mark.timeout(1800)]

SLOWLY = {"bandwidth": 6}
"""So that a copy takes some seconds: MiB a second."""
APART = 8.0
"""Seconds for which hosts do not reach each other."""
SOILS = "#kumulus-run: mkdir -p /soil; mount -t tmpfs soil /soil; while :; do yes | head -c 12000000 >/soil/file; done"
"""A guest that writes 12 MB of its memory anew all the time."""


class Victim(StrEnum):
    """Who is killed."""

    SOURCE_AGENT = "source agent"
    TARGET_AGENT = "target agent"
    CONTROLLERS = "controllers"
    SOURCE_LIBVIRTD = "source libvirtd"
    TARGET_LIBVIRTD = "target libvirtd"
    SOURCE_QEMU = "source QEMU"
    TARGET_QEMU = "target QEMU"
    WAY = "way between the hosts"
    """It carries nothing for a while."""


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


MOMENTS = {
    Victim.SOURCE_QEMU: (Moment.CHOSEN, Moment.COMING, Moment.COPYING),
    Victim.TARGET_QEMU: (Moment.COMING, Moment.COPYING, Moment.LEFT),
}
"""Of the others all: those two do not live at all of them."""


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


def _kill(scene: Scene, victim: Victim, source: LibvirtHost, target: LibvirtHost) -> None:
    """It is killed, and started again as an init would."""
    services = scene.lab.services
    host = source if victim.startswith("source") else target
    match victim:
        case Victim.SOURCE_AGENT | Victim.TARGET_AGENT:
            host.daemon("agent").kill()
            services.start_agent(host)
        case Victim.CONTROLLERS:
            services.controllers.kill()
            services.start_controllers()
        case Victim.SOURCE_LIBVIRTD | Victim.TARGET_LIBVIRTD:
            host.daemon("libvirtd").kill()
            host.start_libvirt()
        case Victim.SOURCE_QEMU | Victim.TARGET_QEMU:
            (run,) = scene.watcher.living(host.name)
            _end(run.process)
        case Victim.WAY:
            _cut(scene, source, target)


def _cut(scene: Scene, source: LibvirtHost, target: LibvirtHost) -> None:
    """Nothing gets from host to host for so long that nobody may be waiting any more."""
    network = source.network
    ends = [network.cable(host.state.number) for host in (source, target)]
    network.switch.cut(*ends)
    healed = time.monotonic() + APART
    deadline.until(lambda: time.monotonic() > healed, "time", seconds=APART + 1)
    network.switch.heal(*ends)


def _end(process: Identity) -> None:
    os.kill(process.pid, signal.SIGKILL)
    deadline.until(lambda: not process.alive(), "the end of the emulator", seconds=10, every=0.01)


def _ended(scene: Scene, name: str) -> Object:
    """The status of a move that is over, and says what came of it."""
    status = scene.migration(name, lambda status: status["phase"] in ("Succeeded", "Failed"), "is over", seconds=120)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["status"] == ("True" if status["phase"] == "Succeeded" else "False")
    assert ready["reason"] and ready["message"], f"it does not say what came of it: {status}"
    return status


@pytest.mark.parametrize("victim", Victim, ids=lambda victim: victim.name.lower())
def test_whoever_is_killed_while_a_guest_moves_it_runs_once_and_moves_again(scene: Scene, victim: Victim) -> None:
    scene.begin()
    tried = []
    for number, moment in enumerate(MOMENTS.get(victim, tuple(Moment))):
        source, target = scene.where()
        boots, began = scene.watcher.boots, time.monotonic()
        scene.move(f"harmed-{number}", limits=SLOWLY)
        _reached(scene, f"harmed-{number}", moment, source, target)
        _kill(scene, victim, source, target)
        status = _ended(scene, f"harmed-{number}")
        here = scene.runs_once()
        assert here.name == (target if status["phase"] == "Succeeded" else source).name, status
        if victim not in (Victim.SOURCE_QEMU, Victim.TARGET_QEMU, Victim.SOURCE_LIBVIRTD, Victim.TARGET_LIBVIRTD):
            assert scene.watcher.boots == boots, f"{victim}, {moment}: the guest was started anew"
        tried.append(f"{moment}: {status['phase']}, boots {scene.watcher.boots - boots}")
        scene.move(f"again-{number}")
        assert _ended(scene, f"again-{number}")["phase"] == "Succeeded", "it can be moved again"
        scene.runs_once()
        scene.right()
        TABLE.add(str(victim), Result("a real guest moves", moment, time.monotonic() - began, (), struck=(moment,)))
    TABLE.numbers[f"a real guest moves, {victim} killed"] = "; ".join(tried)


def _stays(scene: Scene, host: LibvirtHost, runs: int) -> None:
    """It runs on where it was, in the same emulator, and nothing of it is anywhere else."""
    assert scene.runs_once().name == host.name
    mine = [run for run in scene.watcher.runs if run.host == host.name]
    assert len(mine) == runs and scene.watcher.boots == 1, "the guest was started anew"
    scene.right()


def _slowed_down(scene: Scene, host: LibvirtHost) -> bool:
    """Whether QEMU slows the guest down there."""
    said = host.exec(["virsh", "domjobinfo", scene.uid], check=False).stdout
    found = re.search(r"^Auto converge throttle:\s+(\d+)", said, re.MULTILINE)
    return found is not None and int(found[1]) > 0


def test_a_guest_that_writes_faster_than_it_is_copied_stays_or_is_slowed_down_as_was_asked(scene: Scene) -> None:
    """All that `onStall` has."""
    scene.begin(SOILS)
    here, there = scene.where()
    began = time.monotonic()
    limits = {"bandwidth": 4, "stallSeconds": 5, "timeoutSeconds": 300}
    scene.move("cancels", mode="PreCopy", onStall="Cancel", limits=limits)
    status = _ended(scene, "cancels")
    assert (status["phase"], status["failure"]) == ("Failed", "CopyStalled"), status
    _stays(scene, here, 1)
    scene.move("waits", mode="PreCopy", onStall="Wait", limits={**limits, "timeoutSeconds": 30})
    scene.world.condition("vmm", "waits", "Migrating", says="spec.limits.timeoutSeconds decides")
    status = _ended(scene, "waits")
    assert (status["phase"], status["failure"]) == ("Failed", "TimedOut"), status
    _stays(scene, here, 1)
    scene.move("throttles", mode="Auto", onStall="Throttle", limits=limits)
    deadline.until(lambda: _slowed_down(scene, here), "a guest that is slowed down", seconds=90, every=0.5)
    assert _ended(scene, "throttles")["phase"] == "Succeeded"
    assert scene.runs_once().name == there.name and scene.watcher.boots == 1
    scene.right()
    TABLE.numbers["a real guest moves, onStall Cancel, Wait, Throttle"] = f"{time.monotonic() - began:.0f} s"


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
