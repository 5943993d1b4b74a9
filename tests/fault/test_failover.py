"""A host is lost under a real guest: it runs elsewhere, never in two places, and has lost nothing (QUALITY F10, F11, G15, G17, G20).

The storage is one that the lost host still reaches, so a guest that runs on there writes on there. `counting` sees both places.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.pools import OPERATORS_NAMESPACE
from kumulus.kube.builtin import SECRET
from kumulus.kube.errors import NotFound
from kumulus_lab import deadline, places
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab
from tests.contract.bmc import PASSWORD, USER, Emulator, emulator
from tests.fault.campaign import TABLE
from tests.fault.counting import NAME, Scene, restore, scene_on
from tests.system.world import WORDS, Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide, pytest.mark.timeout(1800)]

LOST = 60
"""Seconds within which the machine runs elsewhere: the goal."""
LEASE, MARGIN, KILLING = 20, 5, 3
"""Seconds that a host may be silent, that others wait besides, and that of those the killing may take (ADR 44)."""
HA = {"enabled": True}


@pytest.fixture
def scene(real_world: World) -> Iterator[Scene]:
    with scene_on(real_world) as made:
        yield made


@contextmanager
def _fencing(scene: Scene, host: LibvirtHost, **spec: Any) -> Iterator[None]:
    """The host is fenced by itself inside the block, that way; afterwards it is as it was, and on."""
    world = scene.world
    try:
        world.patch("host", host.name, {"spec": {"fencing": {"automatic": True}, **spec}})
        yield
    finally:
        restore(scene.lab)
        world.patch("host", host.name, {"spec": {"fencing": None, "bmc": None}})
        for item in world.api.objects(WORDS["hostremediation"]):
            world.ask_end("hostremediation", item["metadata"]["name"])
        deadline.until(
            lambda: not world.api.objects(WORDS["hostremediation"]), "the end of what was remedied", seconds=60
        )


@contextmanager
def _supply(lab: Lab, host: LibvirtHost, power: Emulator) -> Iterator[None]:
    """What a BMC switches off is off, at once."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.01):
            if power.power == "Off" and host.running():
                lab.kill_host(host.name)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        power.press()


def _elsewhere(scene: Scene, before: Object, *, seconds: float) -> Object:
    """The machine, when it runs on the other host."""

    def holds(vm: Object) -> bool:
        status = vm["status"]
        return bool(status["phase"] == "Running" and status["host"] != before["status"]["host"])

    vm = scene.world.wait("vm", NAME, holds, "runs elsewhere", seconds=seconds)
    assert vm["status"]["epoch"] == before["status"]["epoch"] + 1
    return vm


def _fenced(scene: Scene, host: LibvirtHost, holds: Callable[[Object], object], what: str) -> Object:
    """The status of what asked for the host to be fenced."""

    def probe() -> Object | None:
        items = scene.world.api.objects(WORDS["hostremediation"])
        found = [item.get("status", {}) for item in items if item["spec"]["host"] == host.name]
        return next((status for status in found if status and holds(status)), None)

    return deadline.until(probe, f"a remediation of {host.name} that {what}", seconds=60, every=0.2)


def _once(scene: Scene, lost: LibvirtHost) -> float:
    """Nothing ran twice and nothing is lost; seconds between the two runs."""
    scene.watcher.goes_on()
    scene.right()
    runs = scene.watcher.runs
    assert not scene.watcher.overlaps(), f"it ran twice: {[str(run) for run in runs]}"
    first, second = runs
    assert (first.host == lost.name) and (second.host != lost.name) and second.ended is None
    assert first.ended is not None and scene.watcher.boots == 2
    return second.began - first.ended


def test_a_lost_host_is_switched_off_before_its_guest_runs_elsewhere(scene: Scene, tmp_path: Path) -> None:
    """It hangs: its agent is gone, it is cut off, and its guest runs on until the BMC has cut its power."""
    scene.begin(highAvailability=HA)
    lost, _ = scene.where()
    before = scene.world.phase(NAME, "Running")
    with ExitStack() as stack:
        power = stack.enter_context(emulator(tmp_path))
        secret = {"metadata": {"name": "bmc"}, "stringData": {"username": USER, "password": PASSWORD}}
        scene.world.api.create(SECRET, secret, OPERATORS_NAMESPACE)
        stack.callback(_forget, scene)
        stack.enter_context(_fencing(scene, lost, bmc=power.bmc().to_json()))
        supply = stack.enter_context(ExitStack())
        supply.enter_context(_supply(scene.lab, lost, power))
        began = time.monotonic()
        lost.daemon("agent").kill()
        lost.partition()
        scene.watcher.goes_on(seconds=15)  # it writes on, and nobody who could say so is left
        _elsewhere(scene, before, seconds=LOST)
        took = time.monotonic() - began
        assert power.power == "Off"
        status = _fenced(scene, lost, lambda status: status["phase"] == "Fenced", "fenced it")
        assert status["method"] == "redfish" and "off" in status["evidence"]
        apart = _once(scene, lost)
        supply.close()  # somebody presses the button
        restore(scene.lab)
        _fenced(scene, lost, lambda status: status["phase"] == "Succeeded", "is over")
        assert scene.runs_once().name != lost.name
        _once(scene, lost)
    TABLE.numbers["a host is lost, and switched off by redfish: its guest runs elsewhere"] = (
        f"after {took:.1f} s, {apart:.1f} s after its end there"
    )


def _forget(scene: Scene) -> None:
    with suppress(NotFound):
        scene.world.api.delete(SECRET, "bmc", OPERATORS_NAMESPACE)


@contextmanager
def _watchdog(scene: Scene, host: LibvirtHost) -> Iterator[None]:
    """The host's watchdog is armed inside the block, and gone afterwards."""
    daemon = host.daemon("watchdog")

    def says(item: Object) -> object:
        return next((one for one in item["status"]["conditions"] if one["type"] == "WatchdogArmed"), {})

    host.start_service("watchdog", [places.script("kumulus-agent"), "watchdog"])
    try:
        with _fencing(scene, host, fencing={"automatic": True, "watchdog": True}):
            scene.world.wait("host", host.name, lambda item: says(item)["status"] == "True", "is armed")  # type: ignore[index]
            yield
        scene.world.wait("host", host.name, lambda item: not says(item), "is at rest")
    finally:
        daemon.kill()


def test_a_host_that_loses_its_lease_ends_its_guests_before_they_run_elsewhere(scene: Scene) -> None:
    scene.begin(highAvailability=HA)
    lost, _ = scene.where()
    before = scene.world.phase(NAME, "Running")
    with _watchdog(scene, lost):
        began = time.monotonic()
        lost.daemon("agent").kill()
        scene.watcher.goes_on()
        _elsewhere(scene, before, seconds=LOST)
        status = _fenced(scene, lost, lambda status: status["phase"] == "Fenced", "fenced it")
        assert status["method"] == "watchdog" and "watchdog is armed" in status["evidence"]
        apart = _once(scene, lost)
        first = scene.watcher.runs[0]
        assert first.ended is not None
        assert apart >= MARGIN - KILLING, "others did not wait for as long as they have to"
        assert not lost.daemon("agent").running(), "whoever could start it again ends first"
        restore(scene.lab)
        _fenced(scene, lost, lambda status: status["phase"] == "Succeeded", "is over")
        assert scene.runs_once().name != lost.name
        _once(scene, lost)
    TABLE.numbers["the agent is lost: the watchdog ends the guest, and it starts elsewhere"] = (
        f"after {first.ended - began:.1f} s, and {apart:.1f} s later"
    )
