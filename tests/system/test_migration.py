"""Machines that move from host to host while they run: real guests, networks, pools and TLS, and what their guests notice."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from tests.system.test_networks import Networks
from tests.system.world import WORDS, Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

COMPUTE = "compute.kumulus.io/v1alpha1"
STORAGE = "storage.kumulus.io/v1alpha1"
PEER, MOVER = "10.77.0.11", "10.77.0.12"
ECHO = "#kumulus-run: nc -l -p 7000 -e /bin/cat"
READY = f"until wget -q -O /dev/null http://{PEER}:7002/; do sleep 1; done"
"""What is on one side of a pipe does not end because the other one could not connect."""
TALK = (
    f"#kumulus-run: {READY}; (echo begun; while sleep 0.2; do cut -d. -f1 /proc/uptime; done) | nc {PEER} 7000"
    " | while read -r line; do echo kumulus-guest: echo $line >/dev/console; done"
)
"""One connection, in which it is told each moment what it has said; another one begins when that one ends."""
STREAM = "#kumulus-run: nc -l -p 7001 -e /bin/sh -c 'echo begun; while sleep 0.2; do cut -d. -f1 /proc/uptime; done'"
LISTEN = (
    f"#kumulus-run: {READY}; sleep 99999 | nc {PEER} 7001"
    " | while read -r line; do echo kumulus-guest: heard $line >/dev/console; done"
)
"""One in which it never says anything: after the move the first packet is the other side's."""


@dataclass(frozen=True, slots=True)
class Moving:
    """A tenant whose machine moves, in a pool that both hosts have."""

    world: World
    networks: Networks
    pool: str

    def machine(self, name: str, *lines: str, **spec: Any) -> None:
        self.world.apply(
            {
                "apiVersion": STORAGE,
                "kind": "Volume",
                "metadata": {"name": name},
                "spec": {"size": "64Mi", "pool": self.pool, "source": {"image": "tiny"}},
            }
        )
        root = {"name": "root", "volume": name}
        self.world.machine(name, *lines, image=None, disks=[root], **spec)

    def move(self, name: str, **spec: Any) -> None:
        self.world.apply(
            {
                "apiVersion": COMPUTE,
                "kind": "VirtualMachineMigration",
                "metadata": {"name": name},
                "spec": {"vm": "mover", **spec},
            }
        )

    def moved(self, name: str, *, seconds: float = 60) -> Object:
        return self.world.wait(
            "vmm", name, lambda item: item["status"].get("phase") == "Succeeded", "has moved", seconds=seconds
        )

    def domains(self, host: LibvirtHost) -> str:
        return host.exec(["virsh", "-q", "list", "--all"]).stdout


@pytest.fixture
def moving(world: World, tmp_path: Path) -> Iterator[Moving]:
    """A directory that both hosts have, as one of a shared file system."""
    name = f"shared-{secrets.token_hex(3)}"
    place = f"/var/lib/kumulus/pools/{name}"
    tmp_path.chmod(0o755)
    for host in world.lab.hosts:
        host.exec(["mkdir", "-p", place])
        host.exec(["mount", "--bind", tmp_path, place])
    pool = {
        "apiVersion": STORAGE,
        "kind": "StoragePool",
        "metadata": {"name": name},
        "spec": {"driver": "dir", "parameters": {"path": place, "shared": True}},
    }
    world.apply(pool)
    world.wait("storagepool", name, lambda item: item["status"]["readyHosts"] == 2, "is ready on both hosts")
    try:
        yield Moving(world, Networks(world), name)
    finally:
        for kind in ("vmm", "vm", "vol"):
            for item in world.api.objects(WORDS[kind], world.namespace):
                world.delete(kind, item["metadata"]["name"])
        world.delete("storagepool", name)
        for host in world.lab.hosts:
            host.exec(["umount", "--lazy", place], check=False)


def test_a_guest_goes_on_and_so_do_its_connections(moving: Moving) -> None:
    talking(moving)
    goes_on(moving, "go")


@pytest.mark.wide
def test_a_guest_goes_there_and_back_with_its_connections(moving: Moving) -> None:
    """To the host where the other end is, and away from it."""
    talking(moving)
    goes_on(moving, "go")
    goes_on(moving, "back")


def talking(moving: Moving) -> None:
    """A machine that counts, with a connection on which it speaks and another one on which it only hears."""
    world, networks = moving.world, moving.networks
    one, _other = world.lab.hosts
    networks.network("net")
    networks.group("echo", 7000, 7001, 7002)
    networks.machine(
        "peer", one, "net", "#kumulus-serve: 7002", ECHO, STREAM, addresses=[PEER], securityGroups=["echo"]
    )
    world.console("peer", "ready after")
    moving.machine(
        "mover",
        TALK,
        LISTEN,
        "#kumulus-count-on: root",
        interfaces=[{"name": "eth0", "network": "net", "addresses": [MOVER]}],
    )
    world.console("mover", "echo begun", seconds=90)
    world.console("mover", "heard begun")
    world.phase("mover", "Running")


def goes_on(moving: Moving, name: str) -> None:
    """It moves to the other host, and neither it nor its connections begin anew."""
    world = moving.world
    vm = world.phase("mover", "Running")
    here = world.host_of("mover")
    there = next(host for host in world.lab.hosts if host.name != here.name)
    before = world.console_file("mover").read_text(errors="replace")
    moving.move(name)
    moved = moving.moved(name)
    assert moved["status"]["targetHost"] == there.name
    after = world.wait("vm", "mover", lambda item: item["status"]["host"] == there.name, "is there")
    assert after["status"]["epoch"] == vm["status"]["epoch"] + 1
    assert after["status"]["startedAt"] == vm["status"]["startedAt"]
    last = int(re.findall(r"counted (\d+)", before)[-1])
    for what in ("echo", "heard"):
        deadline.until(
            lambda what=what: len(re.findall(rf"kumulus-guest: {what} \d+", _said(world))) >= 5,
            f"the connection that says {what} goes on",
            seconds=30,
        )
    said = _said(world)
    counted = [int(number) for number in re.findall(r"counted (\d+)", said)]
    assert counted and counted[0] >= last and counted == list(range(counted[0], counted[0] + len(counted)))
    assert "begun" not in said and "hello from" not in said, "neither connections nor guest began anew"
    assert vm["metadata"]["uid"] not in moving.domains(here)
    world.phase("mover", "Running")


def _said(world: World) -> str:
    return world.console_file("mover").read_text(errors="replace")
