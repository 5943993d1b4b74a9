"""Devices: from what is there to what should be."""

from __future__ import annotations

import json

import pytest

from kumulus_agents.network.linux import links, names, uplinks
from kumulus_agents.network.protocol import NetworkError
from tests.unit.network.material import NETWORK, layout, nic_uid, order

BRIDGE, TUNNEL, CABLE, UPLINK = (make(NETWORK) for make in (names.bridge, names.tunnel, names.service, names.uplink))
SPACE = names.namespace(NETWORK)


def listing(**changes: dict[str, object]) -> str:
    """What `ip` says when all is well, but for some devices."""
    common = {"flags": ["UP"], "ifalias": SPACE, "mtu": 1450}
    details = {
        "stp_state": 0,
        "mcast_snooping": 0,
        "no_linklocal_learn": 1,
        "nf_call_iptables": 1,
        "nf_call_ip6tables": 1,
    }
    tunnel = {"info_kind": "vxlan", "info_data": {"id": 5001, "port": 4789, "local": "10.0.0.1"}}
    there: dict[str, dict[str, object]] = {
        "lo": {"link_type": "loopback"},
        BRIDGE: common | {"linkinfo": {"info_kind": "bridge", "info_data": details}},
        TUNNEL: common | {"master": BRIDGE, "linkinfo": tunnel},
        CABLE: common | {"master": BRIDGE, "linkinfo": {"info_kind": "veth"}},
        UPLINK: common
        | {"mtu": 1500, "linkinfo": {"info_kind": "veth"}, "addr_info": [{"local": "fe80::1", "prefixlen": 64}]},
        names.tap(nic_uid(11)): {"master": BRIDGE, "linkinfo": {"info_kind": "tun"}},
        "br0": {"linkinfo": {"info_kind": "bridge"}},
        "eth0": {"link_type": "ether", "master": "br0"},
    }
    for name, change in changes.items():
        there[name] = there.get(name, {}) | change
        if change.get("gone"):
            del there[name]
    return json.dumps([{"ifname": name} | raw for name, raw in there.items()])


def outside(text: str) -> links.Commands:
    shape = layout()
    return links.outside(shape.networks[NETWORK], shape.ports_of(NETWORK), links.parse(text), "10.0.0.1", 4789)


def test_nothing_to_do_when_all_is_well() -> None:
    assert outside(listing()) == links.Commands()


def test_everything_is_made_where_nothing_is() -> None:
    commands = outside("[]")
    assert [line for line in commands.ip if line.startswith("link add")] == [
        f"link add name {BRIDGE} address {names.mac('bridge', NETWORK)} type bridge stp_state 0 mcast_snooping 0"
        " no_linklocal_learn 1 nf_call_iptables 1 nf_call_ip6tables 1",
        f"link add name {TUNNEL} type vxlan id 5001 local 10.0.0.1 dstport 4789 learning",
        f"link add name {CABLE} type veth peer name leg address {names.service_mac(NETWORK)} netns {SPACE}",
        f"link add name {UPLINK} type veth peer name up address {names.mac('uplink', NETWORK)} netns {SPACE}",
    ]
    assert len(commands.wrong) == 4


def test_a_bridge_that_learns_from_link_local_frames_is_set_right() -> None:
    details = {"info_kind": "bridge", "info_data": {"no_linklocal_learn": 0, "nf_call_iptables": 0}}
    commands = outside(listing(**{BRIDGE: {"linkinfo": details}}))
    assert commands.ip == (f"link set dev {BRIDGE} type bridge no_linklocal_learn 1 nf_call_iptables 1",)
    assert commands.wrong == (f"{BRIDGE} was not as it should be.",)


def test_another_tunnel_is_made_anew() -> None:
    tunnel = {"info_kind": "vxlan", "info_data": {"id": 5001, "port": 4789, "local": "10.0.0.99"}}
    commands = outside(listing(**{TUNNEL: {"linkinfo": tunnel}}))
    assert commands.ip[0] == f"link delete dev {TUNNEL}"
    assert commands.ip[1].startswith(f"link add name {TUNNEL} ")


def test_a_guest_is_plugged_in_again() -> None:
    tap = names.tap(nic_uid(11))
    assert outside(listing(**{tap: {"master": None}})).ip == (f"link set dev {tap} master {BRIDGE}",)


def test_the_tunnel_floods_to_its_peers_alone() -> None:
    nobody = "00:00:00:00:00:00"
    fdb = json.dumps(
        [{"mac": nobody, "dst": "10.0.0.3"}, {"mac": nobody, "dst": "10.0.0.9"}, {"mac": "02:00:00:00:00:01"}]
    )
    assert links.flooding(order(), fdb, "10.0.0.1").bridge == (
        f"fdb append {nobody} dev {TUNNEL} dst 10.0.0.2 self permanent",
        f"fdb delete {nobody} dev {TUNNEL} dst 10.0.0.9 self",
    )
    fdb = json.dumps([{"mac": nobody, "dst": peer} for peer in ("10.0.0.2", "10.0.0.3")])
    assert links.flooding(order(), fdb, "10.0.0.1") == links.Commands()


def test_what_is_not_ours_is_told() -> None:
    foreign = links.foreign(links.parse(listing()))
    assert [(one.name, one.kind, one.bridge) for one in foreign] == [("br0", "bridge", None), ("eth0", "ether", "br0")]


VLAN = order(vni=None, peers=[], uplink={"device": "eth1", "vlan": 101})


def by_vlan(**changes: dict[str, object]) -> links.Commands:
    carrier = {"linkinfo": {"info_kind": "vlan", "info_data": {"id": 101, "protocol": "802.1Q"}}, "link": "eth1"}
    there = {"eth1": {"link_type": "ether", "flags": ["UP"], "mtu": 1500}, TUNNEL: carrier} | changes
    shape = layout().with_network(VLAN)
    found = links.parse(listing(**there))
    return links.outside(shape.networks[NETWORK], shape.ports_of(NETWORK), found, "10.0.0.1", 4789)


def test_a_vlan_is_in_the_place_of_the_tunnel() -> None:
    assert by_vlan() == links.Commands()
    made = by_vlan(**{TUNNEL: {"gone": True}})
    assert made.ip[0] == f"link add link eth1 name {TUNNEL} type vlan id 101"
    assert f"link set dev {TUNNEL} master {BRIDGE}" in made.ip
    assert by_vlan(eth1={"link_type": "ether", "flags": [], "mtu": 1500}).ip == ("link set dev eth1 up",)


@pytest.mark.parametrize(
    "change",
    [
        {"link": "eth2"},
        {"linkinfo": {"info_kind": "vlan", "info_data": {"id": 102, "protocol": "802.1Q"}}},
        {"linkinfo": {"info_kind": "vlan", "info_data": {"id": 101, "protocol": "802.1ad"}}},
        {"linkinfo": {"info_kind": "vxlan", "info_data": {"id": 5001, "port": 4789, "local": "10.0.0.1"}}},
    ],
)
def test_another_vlan_is_made_anew(change: dict[str, object]) -> None:
    carrier = {"linkinfo": {"info_kind": "vlan", "info_data": {"id": 101, "protocol": "802.1Q"}}, "link": "eth1"}
    made = by_vlan(**{TUNNEL: carrier | change})
    assert made.ip[:2] == (f"link delete dev {TUNNEL}", f"link add link eth1 name {TUNNEL} type vlan id 101")


def test_devices_that_can_be_uplinks() -> None:
    there: dict[str, dict[str, object]] = {
        name: {"linkinfo": {"info_kind": kind}}
        for name, kind in (
            ("bond0", "bond"),
            ("eth1.7", "vlan"),
            ("out0", "veth"),
            ("veth12ab34c", "veth"),
            ("cali0123", "veth"),
            ("br-0123456789ab", "bridge"),
            ("tun0", "tun"),
            ("wg0", "wireguard"),
        )
    }
    assert uplinks.devices(links.parse(listing(**there))) == ("bond0", "br0", "eth0", "eth1.7", "out0")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eth1": {"gone": True}}, "UplinkMissing"),
        ({"eth1": {"mtu": 1400}}, "UplinkMtuTooSmall"),
        ({"v": {"link": "eth1", "linkinfo": {"info_kind": "vlan", "info_data": {"id": 101}}}}, "UplinkInUse"),
        ({"v": {"link": "eth2", "linkinfo": {"info_kind": "vlan", "info_data": {"id": 101}}}}, None),
        ({"v": {"link": "eth1", "linkinfo": {"info_kind": "vlan", "info_data": {"id": 102}}}}, None),
    ],
)
def test_why_a_device_will_not_do(changes: dict[str, dict[str, object]], reason: str | None) -> None:
    there = {"eth1": {"link_type": "ether", "mtu": 1500} | changes.get("eth1", {})} | {
        name: change for name, change in changes.items() if name != "eth1"
    }
    assert VLAN.uplink is not None
    said = None
    try:
        uplinks.check(VLAN.uplink, 1500, TUNNEL, links.parse(listing(**there)))
    except NetworkError as error:
        said = error.reason
    assert said == reason
