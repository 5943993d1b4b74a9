"""A host is emptied, worked on and opened again under real guests; agent and libvirtd are replaced while guests run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kumulus_lab import deadline, machine, state
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab
from tests.system import test_migration
from tests.system.test_migration import ECHO, LISTEN, MOVER, PEER, STREAM, TALK, Moving
from tests.system.world import WORDS, Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide]

moving = test_migration.moving
"""The pool that both hosts have."""


def _said(world: World) -> str:
    return world.console_file("mover").read_text(errors="replace")


def _goes_on(world: World, begun: int) -> None:
    """Both connections, from here on; so often have they begun as far as this console tells, which is another one after a move."""
    before = {what: len(re.findall(rf"kumulus-guest: {what} \d+", _said(world))) for what in ("echo", "heard")}
    for what, count in before.items():
        deadline.until(
            lambda what=what, count=count: len(re.findall(rf"kumulus-guest: {what} \d+", _said(world))) >= count + 5,
            f"the connection that says {what} goes on",
            seconds=60,
        )
    assert _said(world).count("begun") == begun, "neither was broken"


def _replaced(world: World, host: LibvirtHost) -> None:
    """As in an upgrade: the agent ends, libvirtd ends, both are started again."""
    host.daemon("agent").stop()
    host.daemon("libvirtd").stop()
    host.start_libvirt()
    world.lab.services.start_agent(host)
    world.lab.services.wait_for_hosts([host.name])


def test_guests_and_their_connections_go_on_whatever_is_done_to_hosts(moving: Moving) -> None:
    world, networks = moving.world, moving.networks
    one, other = world.lab.hosts
    networks.network("net")
    networks.group("echo", 7000, 7001, 7002)
    peer = {"addresses": [PEER], "securityGroups": ["echo"]}
    networks.machine("peer", other, "net", "#kumulus-serve: 7002", ECHO, STREAM, **peer)
    world.patch("vm", "peer", {"spec": {"evictionPolicy": "None"}})
    world.console("peer", "ready after")
    interfaces = [{"name": "eth0", "network": "net", "addresses": [MOVER]}]
    moving.machine("mover", TALK, LISTEN, interfaces=interfaces)
    world.console("mover", "echo begun", seconds=90)
    world.console("mover", "heard begun")
    here = world.host_of("mover")
    there = other if here.name == one.name else one

    world.kumulusctl("host", "maintenance", here.name, "--in-place", "--timeout", "50")
    domains = moving.domains(here)
    _replaced(world, here)
    assert moving.domains(here) == domains, "no process of a guest is another one"
    _goes_on(world, 2)
    world.kumulusctl("host", "maintenance", here.name, "--end", "--timeout", "50")

    emptied = world.kumulusctl("host", "maintenance", here.name, "--return-guests", "--timeout", "50")
    assert "may be worked on: Emptied" in emptied.stdout
    uid = world.phase("mover", "Running")["metadata"]["uid"]
    assert uid not in moving.domains(here) and uid in moving.domains(there)
    _replaced(world, here)
    _goes_on(world, 0)
    world.kumulusctl("host", "maintenance", here.name, "--end", "--timeout", "50")
    assert world.host_of("mover").name == here.name
    _goes_on(world, 0)
    assert "hello from" not in _said(world), "the guest never began anew"


def _maintained(world: World, host: LibvirtHost, phase: str, *, seconds: float = 90) -> Object:
    """The status of the host's maintenance, once it is that far."""
    found = world.wait(
        "host", host.name, lambda item: item["status"]["maintenance"]["phase"] == phase, phase, seconds=seconds
    )
    maintenance: Object = found["status"]["maintenance"]
    return maintenance


def _migrations(world: World) -> list[Object]:
    return list(world.api.objects(WORDS["vmm"], world.namespace))


def _on_their_way(world: World, source: str) -> int:
    """Machines that leave that host just now."""
    ended = ("Succeeded", "Failed", "Finishing")
    status = [item.get("status", {}) for item in _migrations(world)]
    return sum(
        item.get("sourceHost") == source and "targetHost" in item and item.get("phase") not in ended for item in status
    )


@contextmanager
def _closed(world: World, *hosts: LibvirtHost) -> Iterator[None]:
    """New machines do not come to these."""
    try:
        for host in hosts:
            world.patch("host", host.name, {"spec": {"unschedulable": True}})
        yield
    finally:
        for host in hosts:
            world.patch("host", host.name, {"spec": {"unschedulable": False}})


@contextmanager
def _opened_again(world: World, host: LibvirtHost) -> Iterator[None]:
    try:
        yield
    finally:
        world.patch("host", host.name, {"spec": {"maintenance": None}})


LIVE = ("live-1", "live-2", "live-3")


def test_each_machine_leaves_as_its_owner_wants_and_comes_back(moving: Moving) -> None:
    """Every evictionPolicy at once, so many as may move at once, what Blocked says, the return, and a cancel in the middle."""
    world = moving.world
    here, there = world.lab.hosts
    with _closed(world, there), _opened_again(world, here):
        for name in LIVE:
            moving.machine(name, evictionPolicy="LiveMigrate", highAvailability={"priority": 600 - int(name[-1])})
        for name, policy in (("restarts", "Restart"), ("stops", "Stop"), ("stays", "None")):
            moving.machine(name, evictionPolicy=policy)
        world.machine("bound", evictionPolicy="LiveMigrate")  # with a disk that its host alone has
        everyone = (*LIVE, "restarts", "stops", "stays", "bound")
        for name in everyone:
            world.console(name, "kumulus-guest: ready", seconds=150)
        before = {name: world.phase(name, "Running") for name in everyone}
        assert {item["status"]["host"] for item in before.values()} == {here.name}
        world.patch("host", there.name, {"spec": {"unschedulable": False}})

        world.kumulusctl("host", "maintenance", here.name, "--return-guests", "--no-wait")
        most, queued = 0, False

        def left() -> bool:
            nonlocal most, queued
            most = max(most, _on_their_way(world, here.name))
            told = (world.find("host", here.name) or {}).get("status", {}).get("maintenance", {}).get("waiting", [])
            queued = queued or any(guest["reason"] == "Queued" for guest in told)
            return all((world.find("vm", name) or before[name])["status"]["host"] == there.name for name in LIVE)

        deadline.until(left, "all that can move has moved", seconds=120, every=0.05)
        assert most == 2 and queued, "two leave at once, and who waits is said"
        (blocked,) = _maintained(world, here, "Blocked")["waiting"]
        assert (blocked["name"], blocked["reason"]) == ("bound", "LocalDisks") and "root" in blocked["message"]
        shown = world.kumulusctl("host", "maintenance", here.name, "--return-guests", "--timeout", "1", check=False)
        assert shown.returncode != 0 and "Blocked" in shown.stderr and "bound" in shown.stderr
        world.patch("vm", "bound", {"spec": {"evictionPolicy": "Stop"}})
        done = _maintained(world, here, "Emptied")
        assert (done["left"], done["staying"]) == (0, 3)
        assert [world.phase(name, "Stopped")["status"]["host"] for name in ("stops", "bound")] == [here.name] * 2
        assert "evictionPolicy is Stop" in world.condition("vm", "stops", "HostInMaintenance")
        stays = world.phase("stays", "Running")["status"]
        assert (stays["host"], stays["startedAt"]) == (here.name, before["stays"]["status"]["startedAt"])
        restarted = world.phase("restarts", "Running")["status"]
        assert (restarted["host"], restarted["epoch"]) == (there.name, 2)
        world.console("restarts", "boot 2 of this disk")

        world.kumulusctl("host", "maintenance", here.name, "--end", "--timeout", "55")
        for name in everyone:
            after = world.phase(name, "Running", seconds=90)["status"]
            assert after["host"] == here.name, f"{name} is back"
            if name in (*LIVE, "stays"):
                assert after["startedAt"] == before[name]["status"]["startedAt"], f"{name} was never started anew"
        for name in ("stops", "bound"):
            world.console(name, "boot 2 of this disk")
        assert "maintenance" not in (world.find("host", here.name) or {})["status"]

        # It is cancelled when some have gone: these stay there, the others here, and all go on.
        world.patch("vm", "bound", {"spec": {"powerState": "Stopped"}})
        world.patch("vm", "stops", {"spec": {"powerState": "Stopped"}})
        world.kumulusctl("host", "maintenance", here.name, "--no-wait")
        deadline.until(lambda: _on_their_way(world, here.name) > 0, "some are on their way", seconds=60, every=0.05)
        world.kumulusctl("host", "maintenance", here.name, "--end", "--timeout", "55")
        deadline.until(
            lambda: all(item.get("status", {}).get("phase") in ("Succeeded", "Failed") for item in _migrations(world)),
            "no migration is left that has not ended",
            seconds=60,
        )
        for name in (*LIVE, "stays"):
            after = world.phase(name, "Running")["status"]
            assert after["startedAt"] == before[name]["status"]["startedAt"], f"{name} was never started anew"
            ticks = world.console_file(name).read_text().count("kumulus-guest: tick")
            world.console(name, f"kumulus-guest: tick {ticks + 2}")
        assert any(world.host_of(name).name == here.name for name in LIVE), "it was in the middle"
        world.phase("restarts", "Running")


@pytest.fixture
def third(lab: Lab) -> Iterator[LibvirtHost]:
    """A host more, for the time of a test."""
    host = lab.add_host("h3")
    try:
        lab.services.wait_for_hosts([host.name])
        yield host
    finally:
        kubectl = lab.cluster.kubectl_run
        host.power_off()
        kubectl("annotate", "host", host.name, "kumulus.io/force-detach=true", check=False)
        kubectl("delete", "host", host.name, "--ignore-not-found", "--timeout=60s", check=False)
        host.remove()
        remaining = tuple(item for item in lab.state.hosts if item.name != host.name)
        state.save(lab.state.model_copy(update={"hosts": remaining}))


def test_a_host_with_guests_is_not_removed_until_they_have_left(third: LibvirtHost, moving: Moving) -> None:
    """It says which are there; those that run move, one that is off leaves when the host goes, and starts elsewhere."""
    world = moving.world
    others = [host for host in world.lab.hosts if host.name != third.name]
    with _closed(world, *others):
        moving.machine("runs")
        moving.machine("off")
        for name in ("runs", "off"):
            world.console(name, "kumulus-guest: ready", seconds=120)
        began = world.phase("runs", "Running")["status"]["startedAt"]
        world.patch("vm", "off", {"spec": {"powerState": "Stopped"}})
        world.phase("off", "Stopped")
    refused = world.kumulusctl("host", "remove", third.name, check=False)
    assert refused.returncode != 0 and f"{world.namespace}/runs" in refused.stderr
    world.ask_end("host", third.name)  # past the command, too
    says = world.condition("host", third.name, "HasMachines", type_="Stalled")
    assert f"{world.namespace}/runs" in says and "host maintenance" in says
    world.phase("runs", "Running")
    world.patch("host", third.name, {"spec": {"maintenance": {"mode": "Evacuate"}}})
    deadline.until(lambda: world.find("host", third.name) is None, "the end of the host", seconds=90)
    runs = world.phase("runs", "Running")["status"]
    assert runs["host"] != third.name and runs["startedAt"] == began, "it moved while it ran"
    world.patch("vm", "off", {"spec": {"powerState": "Running"}})
    assert world.phase("off", "Running")["status"]["host"] != third.name
    world.console("off", "boot 2 of this disk")


_OLDER = """#!/bin/sh
exec /run/qemu-of-the-lab -global Westmere-x86_64-cpu.vmx=on "$@"
"""
"""An emulator that cannot do all of a Westmere, as that of an older processor: it says so when libvirt asks."""


@pytest.fixture
def older(third: LibvirtHost, lab: Lab) -> LibvirtHost:
    """The third host, which has an older processor than the others."""
    script, real = third.state_directory / "older-qemu", "/run/qemu-of-the-lab"
    script.write_text(_OLDER)
    script.chmod(0o755)
    emulator = shutil.which("qemu-system-x86_64", path=machine.path())
    assert emulator is not None
    third.daemon("agent").stop()
    third.daemon("libvirtd").stop()
    third.exec(["touch", real])
    third.exec(["mount", "--bind", emulator, real])
    third.exec(["mount", "--bind", "/var/lib/kumulus/older-qemu", emulator])
    third.start_libvirt()
    lab.services.start_agent(third)
    return third


def test_machines_of_a_zone_with_a_baseline_move_to_an_older_host(older: LibvirtHost, moving: Moving) -> None:
    """What a machine got when it was placed it keeps, whatever the baseline is later; one that asks for more stays away."""
    world = moving.world
    newer, other = (host for host in world.lab.hosts if host.name != older.name)

    def models(host: LibvirtHost) -> list[str]:
        found: list[str] = (world.find("host", host.name) or {})["status"].get("cpu", {}).get("models", [])
        return found

    deadline.until(lambda: models(older) and "Westmere" not in models(older), "an older host", seconds=60)
    assert "Nehalem" in models(older) and "Westmere" in models(newer)
    look = "#kumulus-run: grep -m 1 'model name' /proc/cpuinfo"
    try:
        world.patch("zone", "z1", {"spec": {"cpuBaseline": "Nehalem"}})
        with _closed(world, older, other):
            moving.machine("mover", look)
            moving.machine("demanding", cpu={"model": "Westmere"})
            began = world.phase("mover", "Running")["status"]
            assert (began["host"], began["cpuModel"]) == (newer.name, "Nehalem")
            world.console("mover", "Nehalem")
            world.console("demanding", "kumulus-guest: ready")
        world.patch("zone", "z1", {"spec": {"cpuBaseline": "Westmere"}})
        with _closed(world, other):
            moving.move("go")
            assert moving.moved("go", seconds=90)["status"]["targetHost"] == older.name
            moving.move("no", vm="demanding", targetHost=older.name)
            world.condition("vmm", "no", "NoHostFits", says="without CPU model Westmere")
            world.delete("vmm", "no")
        after = world.wait("vm", "mover", lambda vm: vm["status"]["host"] == older.name, "is there")["status"]
        assert (after["cpuModel"], after["startedAt"]) == ("Nehalem", began["startedAt"])
        world.console("mover", "kumulus-guest: tick")
        world.patch("vm", "mover", {"spec": {"restartRequest": "again"}})
        world.console("mover", "boot 2 of this disk")
        world.console("mover", "Nehalem")
        assert world.phase("mover", "Running")["status"]["cpuModel"] == "Nehalem"
    finally:
        world.patch("zone", "z1", {"spec": {"cpuBaseline": None}})
