"""What is made of a gateway's order: devices, rules, and what keepalived reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kumulus.api.gateways import GatewayFunction, GatewayOrder
from kumulus.api.segments import Uplink
from kumulus_agents.network.linux import gateway_links, gateway_rules, keepalived, names
from kumulus_agents.network.linux.driver import LinuxNetwork
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.rules import render
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.protocol import NetworkError
from tests.unit.network.material import NETWORK, OTHER, layout

GATEWAY = "6f1d0a52-6c1a-4b7e-9a70-0000000000e0"


def order(**more: object) -> GatewayOrder:
    legs = [
        {"network": NETWORK, "mac": "0a:00:00:00:00:01", "mtu": 1450, "addresses": ["10.20.30.1/24", "fd00:20::1/64"]},
        {
            "network": OTHER,
            "mac": "0a:00:00:00:00:02",
            "mtu": 1500,
            "uplink": {"device": "out0"},
            "addresses": ["203.0.113.5/24"],
        },
    ]
    peers = [{"underlay": "10.0.0.2", "mac": "0a:00:00:00:00:04"}]
    values = {
        "uid": GATEWAY,
        "driver": "linux",
        "legs": legs,
        "redundancy": {"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03", "peers": peers},
        "router": {
            "routes": [{"destination": "0.0.0.0/0", "via": "203.0.113.1"}],
            "masquerade": [{"sources": ["10.20.30.0/24"], "address": "203.0.113.5"}],
        },
    }
    return GatewayOrder.model_validate(values | more)


def test_a_leg_is_a_port_that_only_its_own_mac_comes_from() -> None:
    rules = render(layout().with_gateway(order()))
    leg = names.leg(GATEWAY, NETWORK)
    assert rules.maps["bridge", "enters"].ways[leg] == f"enter-{leg}"
    assert "0a:00:00:00:00:01" in str(rules.chains["bridge", f"enter-{leg}"])
    assert names.outer_leg(GATEWAY, OTHER) not in rules.maps["bridge", "enters"].ways, (
        "that bridge is not ours to filter"
    )
    assert render(layout().with_gateway(order()).without_gateway(GATEWAY)) == render(layout())


def test_the_link_between_gateways_takes_frames_from_their_hosts_alone() -> None:
    for known in (layout(), Layout()):
        rules = render(known.with_gateway(order()))
        assert f"[{gateway_links.LINK_VNI}, " in str([rule.does for rule in rules.chains["inet", "to-host"].rules])
        assert rules.sets["inet", "peers4-gateways"].members == {"10.0.0.2"}
        assert rules.sets["inet", "peers6-gateways"].members == frozenset()
        text = str(rules.chains["inet", "tunnel-gateways"])
        assert "@peers4-gateways" in text
        assert "@peers6-gateways" in text


def test_keepalived_speaks_with_its_other_hosts_and_nobody_else() -> None:
    said = keepalived.instance(order())
    assert "unicast_src_ip fe80::800:ff:fe00:3" in said
    assert "fe80::800:ff:fe00:4" in said
    inner, outer = names.inner(NETWORK), names.inner(OTHER)
    for line in (f"10.20.30.1/24 dev {inner}", f"fd00:20::1/64 dev {inner}", f"203.0.113.5/24 dev {outer}"):
        assert f"    {line}\n" in said
    alone = keepalived.instance(order(redundancy={"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03"}))
    assert "unicast_peer" not in alone


def test_what_is_behind_a_leg() -> None:
    first, second = order().legs
    assert gateway_rules.behind(order(), first) == ["10.20.30.0/24", "fd00:20::/64"]
    assert gateway_rules.behind(order(), second) == ["203.0.113.0/24", "0.0.0.0/0"]


def test_what_cannot_be_translated_does_not_leave() -> None:
    """The kernel translates no packet that it has no connection for: it would leave with a tenant's address."""

    def forward(**router: object) -> list[str]:
        rules = gateway_rules.render(order(router=router)).chains["inet", "forward"].rules
        return [f"{rule.comment} {rule.does}" for rule in rules]

    outer = names.inner(OTHER)
    for function, whose in (
        ({"masquerade": [{"sources": ["10.20.30.0/24"], "address": "203.0.113.5"}]}, "ipv4"),
        ({"floating": [{"external": "203.0.113.6", "internal": "10.20.30.7"}]}, "10.20.30.7"),
    ):
        rules = forward(**function)
        (drop,) = [rule for rule in rules if "cannot be translated" in rule]
        assert all(word in drop for word in (outer, "invalid", "untracked", whose, "drop"))
        accepts = [at for at, rule in enumerate(rules) if "'accept'" in rule]
        assert rules.index(drop) < min(accepts)
    assert not [rule for rule in forward() if "cannot be translated" in rule], "routed as it comes"


def test_the_way_into_an_external_network() -> None:
    there = {
        "br0": Link("br0", "bridge"),
        "out0": Link("out0", "veth", addresses=frozenset({"fe80::1/64"})),
        "eth0": Link("eth0", "ether", addresses=frozenset({"10.0.0.7/24"})),
        "eth1": Link("eth1", "ether", master="bond0"),
    }
    assert gateway_links.outer_bridge(Uplink(device="br0"), there) == "br0"
    assert gateway_links.outer_bridge(Uplink(device="out0"), there) == names.outer_bridge("out0")
    for device, reason in (("eth0", "UplinkInUse"), ("eth1", "UplinkInUse"), ("eth9", "UplinkMissing")):
        with pytest.raises(NetworkError) as caught:
            gateway_links.outer_bridge(Uplink(device=device), there)
        assert caught.value.reason == reason


def test_a_vlan_comes_up_with_the_device_that_it_is_on() -> None:
    first, second = (leg.to_json() for leg in order().legs)
    tagged = order(legs=[first, second | {"uplink": {"device": "out0", "vlan": 7}}])
    there = {names.bridge(NETWORK): Link(names.bridge(NETWORK), "bridge", up=True)}
    masters = {names.link(GATEWAY): names.link_bridge(), names.leg(GATEWAY, NETWORK): names.bridge(NETWORK)}
    down = gateway_links.outside(tagged, there | {"out0": Link("out0", "ether")}, masters).ip
    vlan = names.outer_vlan("out0.7")
    assert down.index("link set dev out0 up") < down.index(f"link set dev {vlan} up")
    up = gateway_links.outside(tagged, there | {"out0": Link("out0", "ether", up=True)}, masters).ip
    assert "link set dev out0 up" not in up


def test_uplinks_that_nobody_uses_are_let_go() -> None:
    bridge, link = names.outer_bridge("out0"), names.link_bridge()
    there = {name: Link(name, "bridge") for name in (bridge, link, "br0", names.bridge(NETWORK))}
    assert gateway_links.unused_bridges(there, {GATEWAY: order()}) == ()
    assert set(gateway_links.unused_bridges(there, {})) == {bridge, link}
    vlan, cable = names.outer_vlan("out0"), names.outer_leg("another driver's", OTHER)
    there[vlan], there[cable] = Link(vlan, "vlan", bridge), Link(cable, "veth", bridge)
    assert gateway_links.unused_bridges(there, {}) == (link,), "another driver's gateway is plugged into the others"


def test_a_network_with_a_leg_is_known() -> None:
    known = Layout().with_gateway(order())
    assert [uid for uid, _ in known.legs_in(NETWORK)] == [GATEWAY]
    assert known.legs_in(OTHER) == []


async def test_which_gateways_a_host_can_have_follows_from_its_programs(tmp_path: Path) -> None:
    program, absent = Path(sys.executable), tmp_path / "absent"

    async def lacks(keepalived: Path, haproxy: Path, conntrackd: Path) -> set[str]:
        programs = {"keepalived": keepalived, "haproxy": haproxy, "conntrackd": conntrackd, "conntrack": program}
        driver = LinuxNetwork(LinuxSettings.model_validate(programs))
        return {function.value for function, why in (await driver.functions()).items() if why is not None}

    assert await lacks(program, program, program) == set()
    assert await lacks(program, absent, program) == {"LoadBalancer"}
    assert await lacks(absent, program, program) == {"Router", "LoadBalancer"}
    assert await lacks(program, program, absent) == {"KeptConnection"}, "routers do without"
    driver = LinuxNetwork(LinuxSettings.model_validate({"keepalived": absent}))
    said = (await driver.functions())[GatewayFunction.ROUTER]
    assert said == f"{absent} is missing, which routers need; install the package keepalived."
