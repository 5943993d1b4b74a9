"""The same real guests in networks that OVN makes: the tests of networks, routers and load balancers, in a lab of its own.

All of it is wide: it takes minutes, and the contract suite tries the driver in every run of the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from kumulus_lab import machine, openvswitch
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Networking
from tests.conftest import new_lab
from tests.system.test_load_balancer import test_guests_are_shared_among
from tests.system.test_networks import (
    Networks,
    networks,
    test_a_real_guest_configures_itself_from_metadata_alone,
    test_a_security_group_opens_and_closes_while_guests_run,
    test_guests_reach_each_other_across_hosts_and_nobody_else,
    test_guests_speak_ipv6,
    test_leases_are_renewed_and_metadata_answers_while_the_agents_are_down,
    test_much_goes_between_hosts,
    test_what_is_removed_by_hand_is_back_within_a_minute,
)
from tests.system.test_outside import client, test_the_network_example

__all__ = [
    "client",
    "networks",
    "test_a_real_guest_configures_itself_from_metadata_alone",
    "test_a_security_group_opens_and_closes_while_guests_run",
    "test_guests_are_shared_among",
    "test_guests_reach_each_other_across_hosts_and_nobody_else",
    "test_guests_speak_ipv6",
    "test_leases_are_renewed_and_metadata_answers_while_the_agents_are_down",
    "test_much_goes_between_hosts",
    "test_the_network_example",
    "test_what_is_removed_by_hand_is_back_within_a_minute",
]

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with OVN, which networks that name no class are made by."""
    if (why := openvswitch.why_none(machine.path())) is not None:
        pytest.skip(why)
    made = new_lab()
    try:
        made.up(Wanted(hosts=2, networking=Networking.OVN))
        made.serve_image("tiny")
        yield made
    finally:
        made.down()


def test_it_is_ovn_that_makes_them(networks: Networks) -> None:
    """What the tests of this file say is said of that driver, and all hosts say that they can."""
    world = networks.world
    said = world.condition("networkclasses.network.kumulus.io", "ovn", "AllHosts", type_="HostsCapable")
    assert said == "All hosts have the driver ovn."
    networks.network("front")
    front = world.wait("networks.network.kumulus.io", "front", lambda net: net["status"].get("driver"), "its driver")
    assert front["status"]["driver"] == "ovn"
    world.delete("networks.network.kumulus.io", "front")


def test_a_host_that_lost_power_makes_its_networks_again(networks: Networks) -> None:
    """Its databases of OVN begin anew; what shall be in them its agent knows from its orders."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    networks.machine("web", first, "front", addresses=["10.77.0.11"])
    networks.machine("near", second, "front", "#kumulus-ping: 10.77.0.11")
    networks.says("near", "reaches 10.77.0.11", seconds=120)
    mark = len(networks.said("near"))
    world.lab.kill_host(first.name)
    try:
        networks.says("near", "does not reach 10.77.0.11", after=mark)
        mark = len(networks.said("near"))
    finally:
        world.lab.start_host(first.name)
    world.lab.services.wait_for_hosts([first.name])
    networks.says("near", "reaches 10.77.0.11", after=mark, seconds=120)
    world.delete("vm", "web")
    world.delete("vm", "near")


TRUNK = """
apiVersion: network.kumulus.io/v1alpha1
kind: PhysicalNetwork
metadata: {name: trunk}
spec:
  traffic: Guest
  vlans: [{first: 100, last: 101}]
  uplinks: [{name: all, device: out0}]
---
apiVersion: network.kumulus.io/v1alpha1
kind: NetworkClass
metadata: {name: vlan}
spec: {driver: ovn, isolation: VLAN, physicalNetwork: trunk}
"""


def test_guests_reach_each_other_by_a_vlan(networks: Networks) -> None:
    """From what an operator applies to packets, without a tunnel: the wire is the one outside."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    world.apply(*yaml.safe_load_all(TRUNK))
    try:
        said = world.condition("networkclasses.network.kumulus.io", "vlan", "AllHosts", type_="HostsConnected")
        assert said == "VLANs of PhysicalNetwork trunk come to all hosts."
        networks.network("tagged", **{"class": "vlan"})
        net = world.wait("networks.network.kumulus.io", "tagged", lambda net: net["status"].get("vlan"), "its VLAN")
        assert (net["status"]["vlan"] in (100, 101), net["status"]["mtu"]) == (True, 1500)
        networks.machine("web", first, "tagged", addresses=["10.77.0.11"])
        networks.machine("near", second, "tagged", "#kumulus-ping: 10.77.0.11")
        networks.says("near", "reaches 10.77.0.11", seconds=120)
        for host in (first, second):
            assert "out0" in host.exec(["ovs-vsctl", "show"]).stdout
        world.delete("vm", "web")
        world.delete("vm", "near")
        world.delete("networks.network.kumulus.io", "tagged")
        for host in (first, second):
            assert "out0" not in host.exec(["ovs-vsctl", "show"]).stdout
    finally:
        for kind, name in (("vm", "web"), ("vm", "near"), ("networks.network.kumulus.io", "tagged")):
            world.delete(kind, name)
        world.delete("networkclasses.network.kumulus.io", "vlan")
        world.delete("physicalnetworks.network.kumulus.io", "trunk")
