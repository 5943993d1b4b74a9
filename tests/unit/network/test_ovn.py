"""What the driver `ovn` writes: golden, what changes when something changes, and which connections have to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from kumulus.api.gateways import GatewayPeer
from kumulus.api.segments import AddressPair, FilterGroup, FilterRule
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.gateway_links import LINK_VNI
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import connections, guard, names, northbound, transport
from kumulus_agents.network.ovn.rows import Rows
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.ovn.tunnels import Tunnels
from kumulus_agents.network.ovn.uplinks import Uplinked
from tests.unit.network.material import DATA, NETWORK, OTHER, WEB, layout, nic_uid, order
from tests.unit.network.test_gateway import GATEWAY
from tests.unit.network.test_gateway import order as gateway

GOLDEN = Path(__file__).parent / "golden" / "ovn.json"
LEASE = 3600
ENDS = transport.Ends(tunnel=7, networks={NETWORK: 9})


def said() -> object:
    rows = {
        f"{table} {key}": {
            **{
                column: sorted(value) if isinstance(value, frozenset) else value
                for column, value in row.columns.items()
            },
            **{column: sorted(" ".join(other) for other in others) for column, others in row.refers.items()},
        }
        for (table, key), row in sorted(northbound.render(layout(), LEASE).items())
    }
    nics = {place.port.nic.uid: place.port.nic for place in layout().ports_of(NETWORK)}
    return {
        "guard": guard.flows(order(), nics[nic_uid(12)], 3),
        "rows": rows,
        "flows": [*transport.base(), *transport.flows(order(), ENDS, "10.0.0.1")],
    }


def test_golden() -> None:
    """`python -m tests.unit.network.test_ovn` writes it."""
    assert json.loads(GOLDEN.read_text()) == json.loads(json.dumps(said()))


def groups(*changed: FilterGroup) -> Rows:
    others = [group for group in order().groups if group.uid not in {one.uid for one in changed}]
    return northbound.render(layout().with_network(order().model_copy(update={"groups": (*others, *changed)})), LEASE)


def test_only_what_becomes_narrower_ends_connections() -> None:
    before = northbound.render(layout(), LEASE)
    web = order().groups[0]
    more = web.model_copy(update={"members": (*web.members, "10.20.30.99")})
    assert connections.narrower(before, groups(more)) == frozenset()
    fewer = web.model_copy(update={"members": web.members[:1]})
    ports = {place.port.nic.uid for place in layout().ports_of(NETWORK)}
    assert connections.narrower(before, groups(fewer)) == ports
    assert connections.narrower(before, groups(web.model_copy(update={"ingress": web.ingress[:1]}))) == ports
    without = northbound.render(layout().without_port(nic_uid(12)), LEASE)
    assert connections.narrower(before, without) == frozenset(), "what is gone has no connections"


LISTING = """\
tcp,orig=(src=10.20.30.99,dst={own},sport=40000,dport={port}),reply=(src={own},dst=10.20.30.99,sport={port},dport=40000),zone=5,labels=0x1,protoinfo=(state=ESTABLISHED)
"""


@pytest.mark.parametrize(("target", "ends"), [("443", False), ("22", True)])
def test_what_no_rule_allows_is_forgotten(target: str, ends: bool) -> None:
    place = next(place for place in layout().ports_of(NETWORK) if WEB in place.port.nic.groups)
    nic = place.port.nic
    own = next(address for address in nic.addresses if "." in address)
    listing = LISTING.format(own=own, port=target)
    found = list(connections.forbidden(layout(), [nic.uid], {nic.uid: 5}, listing))
    assert bool(found) is ends
    assert list(connections.forgetting(found)) == [
        ["zone=5", f"ct_nw_src=10.20.30.99,ct_nw_dst={own},ct_nw_proto=6,ct_tp_src=40000,ct_tp_dst=22"]
    ] * len(found)


def test_very_many_connections_are_forgotten_at_once() -> None:
    def some(zone: int, number: int, protocol: str = "udp") -> list[connections.Connection]:
        ports = ({"sport": str(port), "dport": "9"} for port in range(number))
        return [connections.Connection(zone, protocol, "10.0.0.1", "10.0.0.2", fields) for fields in ports]

    found = [*some(7, connections.MANY), *some(8, 1, "sctp"), *some(5, connections.MANY + 1)]
    commands = list(connections.forgetting(found))
    assert commands[0] == ["zone=5"]
    assert commands[-1] == ["zone=8"], "a protocol that cannot be told"
    assert [command[0] for command in commands[1:-1]] == ["zone=7"] * connections.MANY


def test_limits_of_zones() -> None:
    said = "default limit=0\nzone=3,limit=65536,count=12\nzone=9,limit=64,count=0\n"
    assert connections.limits(said) == {3: 65536, 9: 64}


def test_a_port_without_its_network_ends_nothing() -> None:
    whole = layout()
    alone = replace(whole, networks={})
    listing = LISTING.format(own="10.20.30.11", port="22")
    zones = dict.fromkeys(whole.places, 5)
    assert list(connections.forbidden(alone, whole.places, zones, listing)) == []


def test_connections_without_an_address_of_the_network_end_too() -> None:
    place = next(place for place in layout().ports_of(NETWORK) if WEB in place.port.nic.groups)
    nic, other = place.port.nic, link_local("02:00:00:00:00:99")
    served = link_local(devices.service_mac(NETWORK))
    into = next(rule for rule in order().groups[0].ingress if rule.ports)

    def allowed(source: str, target: str, port: int, *, ranges: bool = True, **rules: object) -> bool:
        groups = (FilterGroup(uid=WEB).model_copy(update=rules),)
        told = order().model_copy(update={"groups": groups} | ({} if ranges else {"subnets": ()}))
        fields = {"sport": "40000", "dport": str(port)}
        return connections.allowed(told, nic, connections.Connection(5, "tcp", source, target, fields))

    everything, four = (FilterRule(),), into.model_copy(update={"cidrs": (), "group": None})
    assert allowed(other, link_local(nic.mac), 443, ingress=(four,))
    assert not allowed(other, link_local(nic.mac), 22, ingress=(four,), egress=everything)
    assert allowed(link_local(nic.mac), other, 22, egress=everything)
    assert allowed(served, link_local(nic.mac), 22)
    # It may have the addresses of its peers besides its own.
    pair = AddressPair(cidr="0.0.0.0/0")
    own, nic = nic.addresses[0], nic.model_copy(update={"pairs": (pair,)})
    assert not allowed("10.20.30.99", own, 22, ingress=(four,), egress=everything)
    assert allowed("10.20.30.99", own, 443, ingress=(four,))
    assert not allowed("10.20.30.99", "10.20.30.77", 22, ingress=(four,), egress=everything)
    # Without ranges nobody knows whose an address is.
    assert not allowed("172.31.0.1", "172.31.0.2", 22, ranges=False, egress=everything)
    assert not allowed("172.31.0.1", "172.31.0.2", 22, ranges=False, ingress=everything)
    assert allowed("172.31.0.1", "172.31.0.2", 22, ranges=False, ingress=everything, egress=everything)


def test_a_network_on_one_host_alone_has_no_flows() -> None:
    assert transport.flows(order(vni=None), ENDS, "10.0.0.1") == ()
    assert transport.flows(order(), ENDS, None) == ()


def test_a_vlan_goes_to_its_uplink_and_no_other_way() -> None:
    told = order(vni=None, peers=["10.0.0.2"], uplink={"device": "eth1", "vlan": 101})
    ends = transport.Ends(ENDS.tunnel, ENDS.networks, {NETWORK: 77})
    flows = transport.flows(told, ends, "10.0.0.1")
    passing = [flow for flow in flows if not flow.endswith("actions=drop")]
    end = ENDS.networks[NETWORK]
    assert [flow.partition("priority=10,")[2] for flow in passing] == [
        f"in_port={end},vlan_tci=0x0000/0x1fff actions=push_vlan:0x8100,set_field:4197->vlan_vid,output:77",
        f"in_port=77,dl_vlan=101 actions=pop_vlan,output:{end}",
    ]
    assert sum(devices.service_mac(NETWORK) in flow for flow in flows) == 4
    dropped = [flow.partition("priority=20,")[2] for flow in flows if flow.endswith("actions=drop")]
    assert dropped[4:] == [
        "in_port=77,dl_vlan=101,arp,arp_spa=10.20.30.2 actions=drop",
        "in_port=77,dl_vlan=101,icmp6,icmp_type=136,icmp_code=0,nd_target=fd00:20::2 actions=drop",
        "in_port=77,dl_vlan=101,udp,tp_src=67 actions=drop",
        "in_port=77,dl_vlan=101,udp6,tp_src=547 actions=drop",
        f"in_port={end},udp,tp_dst=67 actions=drop",
        f"in_port={end},udp6,tp_dst=547 actions=drop",
    ]
    alone = transport.flows(told.model_copy(update={"dhcp": False}), ends, None)
    assert not [flow for flow in alone if "udp" in flow], "the building has its own DHCP then"
    assert transport.flows(told, ends, None) == flows, "it needs no tunnels"
    assert transport.flows(told, ENDS, "10.0.0.1") == (), "its uplink is not there yet"


@pytest.mark.parametrize(
    ("underlay", "peers", "field"),
    [("10.0.0.1", ("10.0.0.2", "10.0.0.3"), "tun_src"), ("fd00::1", ("fd00::2", "fd00::3"), "tun_ipv6_src")],
)
def test_only_hosts_of_the_network_are_heard(underlay: str, peers: tuple[str, ...], field: str) -> None:
    both = transport.flows(order(peers=(*peers, underlay)), ENDS, underlay)
    passing = [flow for flow in both if f"in_port={ENDS.tunnel}" in flow and f"output:{ENDS.networks[NETWORK]}" in flow]
    assert [flow.partition(f"{field}=")[2].partition(" ")[0] for flow in passing] == list(peers)
    one = transport.flows(order(peers=peers[:1]), ENDS, underlay)

    def deletes(before: Sequence[str] | None, said: Sequence[str]) -> int:
        return sum(command.startswith("delete") for command in transport.replacing(NETWORK, before, said))

    assert deletes(one, both) == 1, "where somebody was seen is still known when a host is more"
    assert deletes(both, one) == 2, "and is not when a host is less"
    assert deletes(None, both) == deletes(both, ()) == 2


def test_a_rule_that_names_an_unknown_group_lets_nothing_through() -> None:
    rule = FilterRule(group="6f1d0a52-6c1a-4b7e-9a70-0000000000ee")
    data = FilterGroup(uid=DATA, ingress=(rule,))
    matches = [str(row.columns["match"]) for (table, _), row in groups(data).items() if table == "ACL"]
    assert not [match for match in matches if devices.short(DATA) in match]


def test_a_leg_of_a_gateway_is_a_port_that_only_its_own_mac_comes_from() -> None:
    with_leg = northbound.render(layout().with_gateway(gateway()), LEASE)
    leg = devices.leg(GATEWAY, NETWORK)
    port = with_leg["Logical_Switch_Port", leg]
    assert port.columns["addresses"] == {"0a:00:00:00:00:01"}
    assert port.columns["port_security"] == {"0a:00:00:00:00:01 0.0.0.0/0 ::/0"}
    assert ("Logical_Switch_Port", leg) in with_leg["Logical_Switch", names.switch(NETWORK)].refers["ports"]
    everybody = with_leg["Port_Group", names.everybody(NETWORK)]
    assert ("Logical_Switch_Port", leg) not in everybody.refers["ports"], "what ends there is for guests"
    group = with_leg["Port_Group", names.legs(NETWORK)]
    said = [with_leg[key].columns for key in group.refers["acls"]]
    assert {one["action"] for one in said if f"@{names.legs(NETWORK)}" in str(one["match"])} == {"allow-stateless"}
    (away,) = [one for one in said if one["action"] == "drop"]
    assert away["match"] == f'outport == "{devices.service(NETWORK)}" && eth.src == 0a:00:00:00:00:01'
    assert not [key for key in with_leg if devices.short(OTHER) in key[1] and "leg" in key[1]], "the way out is no port"
    before = northbound.render(layout(), LEASE)
    assert northbound.render(layout().with_gateway(gateway()).without_gateway(GATEWAY), LEASE) == before
    assert connections.narrower(with_leg, before) == frozenset()


@pytest.mark.parametrize(
    ("underlay", "peer", "fields"),
    [("10.0.0.1", "10.0.0.2", ("tun_dst", "tun_src")), ("fd00::1", "fd00::2", ("tun_ipv6_dst", "tun_ipv6_src"))],
)
def test_the_link_of_a_gateway_is_between_its_hosts_alone(underlay: str, peer: str, fields: tuple[str, str]) -> None:
    other = GatewayPeer(underlay=peer, mac="0a:00:00:00:00:04")
    order = gateway()
    redundancy = order.redundancy.model_copy(update={"peers": (other,)})
    leaves, comes = transport.link(order.model_copy(update={"redundancy": redundancy}), 7, 11, underlay)
    assert "in_port=11,dl_src=0a:00:00:00:00:03,dl_dst=0a:00:00:00:00:04 " in leaves
    assert leaves.endswith(f"set_field:{LINK_VNI}->tun_id,set_field:{peer}->{fields[0]},output:7")
    assert f"in_port=7,tun_id={LINK_VNI},{fields[1]}={peer},dl_src=0a:00:00:00:00:04,dl_dst=0a:00:00:00:00:03 " in comes
    assert comes.endswith("actions=output:11")
    assert transport.link(order, 7, 11, None) == ()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(said(), indent=1, sort_keys=True) + "\n")


async def test_a_gateway_without_other_hosts_is_not_loaded_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {names.TUNNEL: SimpleNamespace(number=7), devices.link(GATEWAY): SimpleNamespace(number=11)}
    databases = SimpleNamespace(switch=SimpleNamespace(interfaces=lambda: there, bridges=frozenset))
    settings = OvnSettings(state=PurePosixPath("/nowhere"), underlay=ip_address("10.0.0.1"))
    uplinked = Uplinked(settings, databases)  # type: ignore[arg-type]
    made = Tunnels(settings, databases, uplinked)  # type: ignore[arg-type]
    changes: list[object] = []

    async def change(bridge: str, commands: object) -> None:
        changes.append(commands)

    async def are(bridge: str, flows: object) -> bool:
        return True

    monkeypatch.setattr(made._openflow, "change", change)
    monkeypatch.setattr(made._openflow, "are", are)
    order = gateway()
    alone = order.model_copy(update={"redundancy": order.redundancy.model_copy(update={"peers": ()})})
    for _ in range(2):
        assert not await made.link(alone)
    assert len(changes) == 1, "what was there before is not known at first"
    await made.adopt(Layout().with_gateway(alone))
    assert not await made.link(alone)
    assert len(changes) == 1
    made.forget()
    await made.unlink(GATEWAY)
    assert len(changes) == 2, "what may still be there is removed"
    assert await made.link(order)
    await made.unlink(GATEWAY)
    assert len(changes) == 4
