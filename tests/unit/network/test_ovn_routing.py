"""Which of a guest's packets go to a logical router of the driver `ovn`, and what that does with them."""

from __future__ import annotations

import pytest

from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import detours, guard, names, northbound, routing, transport
from kumulus_agents.network.ovn.routing import Way
from kumulus_agents.network.ovn.rows import MARK, binding
from tests.unit.network.material import NETWORK, OTHER, nic_uid, order, port

ROUTER = "6f1d0a52-6c1a-4b7e-9a70-0000000000cc"
LEG, MAC, FAR = "0a:00:00:00:00:01", "0e:00:00:00:00:01", "0e:00:00:00:00:02"
LEASE = 3600
SUBNETS = [
    {"cidr": "10.20.30.0/24", "gateway": "10.20.30.1", "service": "10.20.30.2"},
    {"cidr": "fd00:20::/64", "gateway": "fd00:20::1", "service": "fd00:20::2"},
]
BACK = [{"cidr": "10.20.40.0/24", "gateway": "10.20.40.1", "service": "10.20.40.2"}]


def told(mac: str, *ends: tuple[str, list[str]], uid: str = ROUTER) -> dict[str, object]:
    direct = [{"mac": end, "addresses": addresses} for end, addresses in ends]
    return {"uid": uid, "mac": mac, "gateways": [LEG], "direct": direct}


OWN = ("02:00:00:00:00:0b", ["10.20.30.11", "fd00:20::11"])
THERE = ("02:00:00:00:00:15", ["10.20.40.21"])


def front(**more: object) -> SegmentOrder:
    return order(**{"subnets": SUBNETS, "router": told(MAC, OWN), **more})


def back(**more: object) -> SegmentOrder:
    return order(**{"uid": OTHER, "vni": 5002, "subnets": BACK, "router": told(FAR, THERE), **more})


def layout(*orders: SegmentOrder) -> Layout:
    made = Layout()
    for one in orders or (front(), back()):
        made = made.with_network(one)
    return made.with_port(port(11)).with_port(port(12))


def detour(made: Layout, number: int = 11) -> routing.Detour | None:
    return routing.detour(made, port(number).nic)


def test_who_is_direct_goes_to_the_logical_router_for_what_is_on_this_host() -> None:
    found = detour(layout())
    assert found is not None and (found.mac, found.gateways) == (MAC, (LEG,))
    assert found.ways == (Way("10.20.30.11", ("10.20.40.0/24",)),), "the other network has no IPv6"
    assert found.known[:2] == ("10.20.30.1", "fd00:20::1") and found.known[2].startswith("fe80:")
    assert detour(layout(), 12) is None, "one that orders do not name is reached through the gateway, and answers so"


@pytest.mark.parametrize(
    "orders",
    [
        (front(),),
        (front(), back(router=None)),
        (front(router=None), back()),
        (front(), back(router=told(FAR, THERE, uid=OTHER))),
        (front(), back(mtu=1400)),
    ],
    ids=["one network", "one is not told", "nor the other", "another router", "smaller packets there"],
)
def test_otherwise_all_goes_to_the_gateway(orders: tuple[SegmentOrder, ...]) -> None:
    assert detour(layout(*orders)) is None


def test_packets_may_go_where_larger_ones_are_carried() -> None:
    made = layout(front(), back(mtu=9000)).with_port(
        port(21, network=OTHER, addresses=["10.20.40.21"], mac="02:00:00:00:00:15")
    )
    assert detour(made) is not None
    assert routing.detour(made, made.places[nic_uid(21)].port.nic) is None


def test_no_logical_router_with_one_network() -> None:
    tables = {table for table, _ in northbound.render(layout(front()), LEASE)}
    assert not {table for table in tables if table.startswith(("Logical_Router", "Static_MAC"))}
    assert ("Logical_Switch_Port", names.to_router(NETWORK)) not in northbound.render(layout(front()), LEASE)


def test_the_logical_router() -> None:
    rows = northbound.render(layout(), LEASE)
    router = rows["Logical_Router", names.router(ROUTER)]
    assert router.columns["options"]["always_learn_from_arp_request"] == "false"  # type: ignore[index,call-overload]
    ports = {rows[key].columns["mac"]: rows[key].columns["networks"] for key in router.refers["ports"]}
    assert ports == {MAC: frozenset({"10.20.30.0/24", "fd00:20::/64"}), FAR: frozenset({"10.20.40.0/24"})}
    said = {
        (rows[key].columns["priority"], rows[key].columns["match"], rows[key].columns["action"]): rows[key].columns[
            "nexthops"
        ]
        for key in router.refers["policies"]
    }
    here, there = names.router_port(ROUTER, NETWORK), names.router_port(ROUTER, OTHER)
    assert said == {
        (200, f"ip4.dst == ${names.direct(NETWORK, four=True)}", "allow"): frozenset(),
        (200, f"ip6.dst == ${names.direct(NETWORK, four=False)}", "allow"): frozenset(),
        (200, f"ip4.dst == ${names.direct(OTHER, four=True)}", "allow"): frozenset(),
        (100, f'inport == "{here}" && ip4', "reroute"): frozenset({"10.20.30.1"}),
        (100, f'inport == "{here}" && ip6', "reroute"): frozenset({"fd00:20::1"}),
        (100, f'inport == "{there}" && ip4', "reroute"): frozenset({"10.20.40.1"}),
    }
    bound = rows["Static_MAC_Binding", binding(there, "10.20.40.21")].columns
    assert (bound["logical_port"], bound["mac"]) == (there, "02:00:00:00:00:15") and MARK not in bound
    drops = {row.columns["match"] for (table, key), row in rows.items() if table == "ACL" and "_router/" in key}
    way = f'outport == "{names.to_router(OTHER)}"'
    assert {f"{way} && ip4.dst == 10.20.40.0", f"{way} && arp.op == 1 && arp.tpa == 10.20.40.0"} < drops
    switch = rows["Logical_Switch", names.switch(NETWORK)]
    assert ("Logical_Switch_Port", names.to_router(NETWORK)) in switch.refers["ports"]


def test_routers_of_tenants_with_equal_ranges_are_apart() -> None:
    others = [order(uid=nic_uid(200 + n), vni=6000 + n, subnets=SUBNETS) for n in range(2)]
    uid = nic_uid(210)
    twins = [one.model_copy(update={"router": front(router=told(FAR, OWN, uid=uid)).router}) for one in others]
    made = layout(front(), back(), *twins)
    rows = northbound.render(made, LEASE)
    routers = [key for key in rows if key[0] == "Logical_Router"]
    assert len(routers) == 2
    first, second = (rows[key].refers["ports"] for key in routers)
    assert len(first) == len(second) == 2 and not first & second


def test_a_guest_never_means_the_logical_router_by_itself() -> None:
    """Its packets come there by the flows that look at them, and by no other way; what it must not send comes first."""
    found = detour(layout())
    flows = guard.flows(front(), port(11).nic, 3, found)
    assert f"cookie=0x3,table=0,priority=70,dl_dst={MAC} actions=drop" in flows
    to_router = [flow for flow in flows if f"set_field:{MAC}->eth_dst" in flow]
    assert to_router == [f"cookie=0x3,table={transport.SEEN},priority=0 actions=set_field:{MAC}->eth_dst,output:3"]
    sent = [flow for flow in flows if f"resubmit(,{transport.SEEN})" in flow]
    assert sent == [
        f"cookie=0x3,table=0,priority=30,ip,dl_dst={LEG},nw_src=10.20.30.11,nw_dst=10.20.40.0/24"
        f" actions=resubmit(,{transport.SEEN})"
    ]
    assert set(guard.flows(front(), port(11).nic, 3)) < set(flows)
    kernel = guard.flows(front(), port(11).nic, 3, found, advertises=False)
    assert (
        set(kernel) < set(flows)
        and "nd_reserved" in str(flows)
        and "nd_" not in str(set(kernel) - set(guard.flows(front(), port(11).nic, 3)))
    )
    assert any("arp_tpa" in flow for flow in kernel), "questions of ARP are answered by it, too"


def test_what_a_gateway_brought_is_answered_through_it() -> None:
    found = detour(layout())
    assert found is not None
    [learns] = [flow for flow in detours.flows(found, 3) if "learn(" in flow]
    assert learns.startswith(f"table=0,priority=110,in_port=3,ip,dl_src={LEG},nw_src=10.20.40.0/24 ")
    assert "NXM_OF_IP_DST[]=NXM_OF_IP_SRC[],NXM_OF_IP_SRC[]=NXM_OF_IP_DST[]" in learns and learns.endswith(",ALL")


def test_nobody_elsewhere_is_this_hosts_logical_router_or_has_it_route() -> None:
    ends = transport.Ends(tunnel=7, networks={NETWORK: 9})
    flows = transport.flows(front(), ends, "10.0.0.1")
    drops = {
        flow.partition(",priority=20,")[2].removesuffix(" actions=drop") for flow in flows if "priority=20" in flow
    }
    assert {
        f"in_port=7,tun_id=5001,dl_src={MAC}",
        f"in_port=9,dl_dst={MAC}",
        f"in_port=7,tun_id=5001,ip,dl_dst={MAC}",
        f"in_port=7,tun_id=5001,ipv6,dl_dst={MAC}",
    } <= drops
    told_of = [flow for flow in flows if "priority=25" in flow]
    assert len(told_of) == 2 and all("icmp_type=136" in flow and "tun_src=10.0.0." in flow for flow in told_of)
    plain = transport.flows(front(router=None), ends, "10.0.0.1")
    assert not any(MAC in flow for flow in plain)


def test_nor_does_anybody_on_the_wire_of_a_vlan() -> None:
    tagged = front(vni=None, peers=[], uplink={"device": "out0", "vlan": 7})
    flows = transport.flows(tagged, transport.Ends(0, {NETWORK: 9}, {NETWORK: 4}), None)
    comes = "in_port=4,dl_vlan=7"
    ours = [flow.partition("table=0,")[2] for flow in flows if MAC in flow]
    assert ours == [
        f"priority=20,{comes},dl_src={MAC} actions=drop",
        f"priority=20,in_port=9,dl_dst={MAC} actions=drop",
        f"priority=20,{comes},ip,dl_dst={MAC} actions=drop",
        f"priority=20,{comes},ipv6,dl_dst={MAC} actions=drop",
        f"priority=25,{comes},icmp6,icmp_type=136,icmp_code=0,dl_dst={MAC} actions=pop_vlan,output:9",
    ]
