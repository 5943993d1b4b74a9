"""Networks that are VLANs: which number, which hosts, by which device."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.fabric import Host
from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import DriverUplinks, HostReport
from kumulus.api.network import NetworkClass
from kumulus.api.routing import ExternalNetwork, PhysicalNetwork
from kumulus.api.segments import NetworkDriverName
from kumulus_controllers.network import vlans
from kumulus_controllers.network.capable import connected
from kumulus_controllers.network.gateway_plan import Candidate, Need, choose
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import Scope, Wanted, derive_status, no_number, usable, wanted
from kumulus_controllers.network.segment_plan import Sight, segment
from kumulus_controllers.planning import ways
from kumulus_controllers.planning.filters import vlans as fits
from kumulus_controllers.planning.views import Demand, HostView, Load, Request
from kumulus_controllers.planning.ways import Way
from tests.unit.network_controllers.material import NOW, network

UID = "00000000-0000-0000-0000-000000000001"
ON_RECORD = {"vlan": 101, "physicalNetwork": "dc", "mtu": 1500, "driver": "linux"}


def physical(name: str = "dc", **spec: Any) -> PhysicalNetwork:
    body = {"vlans": [{"first": 100, "last": 103}], **spec}
    return PhysicalNetwork.parse({"metadata": {"name": name}, "spec": body})


def offered(name: str = "vlans", **spec: Any) -> NetworkClass:
    body = {"isolation": "VLAN", "physicalNetwork": "dc", **spec}
    return NetworkClass.parse({"metadata": {"name": name}, "spec": body})


def external(vlan: int | None, where: str = "dc") -> ExternalNetwork:
    body = {"physicalNetwork": where, "cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}
    return ExternalNetwork.parse({"metadata": {"name": f"v{vlan}"}, "spec": body | ({"vlan": vlan} if vlan else {})})


def scope(status: dict[str, Any] | None = None, **more: Any) -> Scope:
    base: dict[str, Any] = {"offered": offered(), "physical": physical()}
    spec = more.pop("spec", {})
    return Scope(network(status=status or {}, **spec), **(base | more))


def given(found: Wanted | Lack) -> tuple[int, ...]:
    assert isinstance(found, Wanted) and found.pool is not None
    return found.pool.vlans


def test_a_network_gets_a_vlan_that_nobody_else_has() -> None:
    externals = [external(101), external(102, "other"), external(None)]
    classes = [
        offered(),
        offered("pinned", vlans=[{"first": 103}, {"first": 500}]),
        offered("far", physicalNetwork="x"),
    ]
    taken = {
        "external_vlans": vlans.external_vlans(externals, "dc"),
        "own_vlans": vlans.own_vlans(classes, "dc"),
    }
    assert given(wanted(scope(**taken))) == (100, 102)
    assert given(wanted(scope(offered=classes[1], **taken))) == (103, 500), "what a class names is its own"
    assert given(wanted(scope(offered=offered(vlans=[{"first": 101, "last": 102}]), **taken))) == (102,)


def test_numbers_are_tried_each_once_from_one_that_follows_from_the_uid() -> None:
    pool = vlans.Pool("dc", tuple(range(1, 4095)))
    tried = list(vlans.tried(UID, pool))
    assert sorted(number.vlan or 0 for number in tried) == list(range(1, 4095))
    assert tried == list(vlans.tried(UID, pool)) and tried[0] != next(vlans.tried(UID[::-1], pool))
    assert all(number.name == f"vlan-dc-{number.vlan}" for number in tried)
    assert list(vlans.tried(UID, vlans.Pool("dc"))) == []
    assert next(vlans.tried(UID, None)).vlan is None


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (
            vlans.Pool("dc", (100, 101), "100-101", "spec.vlans of PhysicalNetwork dc"),
            "all 2 VLANs (100-101) that spec.vlans",
        ),
        (
            vlans.Pool("dc", (7,), "7", "spec.vlans of NetworkClass own"),
            "the VLAN 7 that spec.vlans of NetworkClass own",
        ),
        (vlans.Pool("dc", (), "none", "spec.vlans of PhysicalNetwork dc"), "PhysicalNetwork dc names none. Ask"),
        (
            vlans.Pool("dc", (), "7", "spec.vlans of PhysicalNetwork dc"),
            "names 7, all of which are of external networks",
        ),
    ],
)
def test_that_there_is_none_left_says_what_to_do(pool: vlans.Pool, said: str) -> None:
    lack = no_number(Wanted(offered().spec, 1500, pool))
    assert lack.reason == "NoVlanLeft" and said in lack.message and "goes on by itself" in lack.message


def test_packets_are_as_large_as_the_physical_network_carries() -> None:
    for mtu, spec, expected in ((9000, {}, 9000), (1500, {"mtu": 1400}, 1400), (1500, {"mtu": 1501}, "MtuTooLarge")):
        found = wanted(scope(physical=physical(mtu=mtu), spec=spec, over_v6=True))
        assert (found.mtu if isinstance(found, Wanted) else found.reason) == expected
    assert isinstance(found, Lack) and "PhysicalNetwork dc carries packets of 1500" in found.message


def test_a_physical_network_that_is_missing_is_said_and_what_there_is_stays() -> None:
    found = wanted(scope(physical=None))
    assert isinstance(found, Lack) and found.reason == "PhysicalNetworkNotFound" and "goes on" not in found.message
    had = scope(ON_RECORD, physical=None)
    found = wanted(had)
    assert isinstance(found, Lack) and "What hosts have of it goes on" in found.message
    after = derive_status(had, None, found, None, NOW)
    assert (after.vlan, after.physical_network, after.mtu) == (101, "dc", 1500)


def test_what_was_decided_stays_when_the_class_goes_or_another_is_the_default_one() -> None:
    assert given(wanted(scope(ON_RECORD, offered=None))) is not None
    tunnelled = scope({"vni": 5000, "mtu": 1450, "driver": "linux"})
    found = wanted(tunnelled)
    assert isinstance(found, Wanted) and found.pool is None, "a network never goes from a tunnel to a VLAN"
    after = derive_status(scope(), Wanted(offered().spec, 1500, vlans.Pool("dc", (7,))), None, None, NOW, vlan=7)
    assert (after.phase, after.vlan, after.vni, after.physical_network) == ("Ready", 7, None, "dc")
    assert usable(network(status=ON_RECORD), "ns", "net", None) is None


def sight(**more: Any) -> Sight:
    base: dict[str, Any] = {
        "network": network(status=ON_RECORD),
        "interfaces": (),
        "groups": {},
        "hosts": {"h1": frozenset(), "h2": frozenset()},
        "underlays": {"h1": "192.0.2.1", "h2": "192.0.2.2"},
        "uplinks": {"h1": "eth1", "h2": "bond0"},
    }
    return Sight(**(base | more))


def test_each_host_is_told_of_its_own_device_and_of_no_tunnels() -> None:
    told = {host: segment(sight(), host) for host in ("h1", "h2")}
    assert {host: (order.uplink.device, order.uplink.vlan) for host, order in told.items() if order.uplink} == {
        "h1": ("eth1", 101),
        "h2": ("bond0", 101),
    }
    assert all(order.vni is None and order.peers == () and order.mtu == 1500 for order in told.values())
    without = segment(sight(uplinks={}), "h1", told["h1"])
    assert without.uplink == told["h1"].uplink, "what a host has stays when its label goes"
    assert segment(sight(uplinks={}), "h1").uplink is None
    assert segment(sight(network=network()), "h1").uplink is None and segment(sight(network=network()), "h1").peers


WAY = Way(
    "dc",
    "linux",
    physical(
        uplinks=[
            {"name": "racks", "hostSelector": {"rack": "1"}, "device": "bond0"},
            {"name": "rest", "hostSelector": {"role": "vlan"}, "device": "eth1"},
        ]
    ).spec.uplinks,
)


def known(*devices: str, message: str | None = None) -> dict[str, DriverUplinks]:
    return {"linux": DriverUplinks(driver=NetworkDriverName.LINUX, devices=devices, message=message)}


@pytest.mark.parametrize(
    ("labels", "said", "why"),
    [
        ({"rack": "1", "role": "vlan"}, known("bond0", "eth0"), None),
        ({"role": "vlan"}, known("eth1"), None),
        ({}, known("eth1", "bond0"), "without an uplink to physical network dc"),
        (
            {"rack": "1"},
            known("eth1"),
            "without device bond0, which physical network dc names, or it cannot be an uplink",
        ),
        ({"rack": "1"}, known(message="No 8021q: load it."), "without VLANs (No 8021q: load it)"),
        ({"rack": "1"}, {}, "without VLANs by network driver linux"),
        ({"rack": "1"}, None, "with an agent that is too old for networks of VLANs"),
    ],
)
def test_machines_and_gateways_go_where_the_vlan_comes(
    labels: dict[str, str], said: dict[str, DriverUplinks] | None, why: str | None
) -> None:
    assert ways.lack(WAY, labels, said) == why
    host = HostView("h1", UID, "z1", 1, 1, labels=labels, uplinks=said)
    assert fits(Request(UID, Demand(1, 1), ways=(WAY,)), host, Load()) == why
    assert fits(Request(UID, Demand(1, 1)), host, Load()) is None
    candidate = Candidate("h1", frozenset({"linux"}), "192.0.2.1", labels=labels, vlans=said)
    choice = choose(Need(NetworkDriverName.LINUX, GatewayFunction.ROUTER, 1, ways=(WAY,)), [candidate], (), None)
    assert (choice.refused or {}).get("h1") == why and choice.hosts == (("h1",) if why is None else ())


def test_a_class_says_to_which_hosts_its_vlans_come() -> None:
    def host(name: str, rack: str, *devices: str) -> tuple[Host, HostReport]:
        said = [{"driver": "linux", "devices": devices}]
        facts = {"network": {"drivers": ["linux"], "uplinks": said}}
        made = Host.parse({"metadata": {"name": name, "labels": {"rack": rack}}, "spec": {"zone": "z"}})
        return made, HostReport.parse({"metadata": {"name": name}, "status": facts})

    assert connected(WAY, []) == (None, None)
    fact, lack = connected(WAY, [host("h1", "1", "bond0")])
    assert lack is None and fact is not None and (fact.status, fact.reason) == (True, "AllHosts")
    fact, lack = connected(WAY, [host("h1", "1", "bond0"), host("h2", "2")])
    assert lack is None and fact is not None and (fact.status, fact.reason) == (False, "SomeHosts")
    assert "1 of 2 hosts" in fact.message and "h2 (without an uplink to physical network dc)" in fact.message
    fact, lack = connected(WAY, [host("h1", "1", "eth0")])
    assert lack is not None and lack.reason == "NoHostConnected" and "without device bond0" in lack.message
