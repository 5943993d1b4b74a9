"""A host is emptied, worked on and opened again under real guests; agent and libvirtd are replaced while guests run."""

from __future__ import annotations

import re

import pytest

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from tests.system import test_migration
from tests.system.test_migration import ECHO, LISTEN, MOVER, PEER, STREAM, TALK, Moving
from tests.system.world import World

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
