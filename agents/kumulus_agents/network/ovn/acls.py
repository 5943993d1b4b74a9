"""Who may say to be whom, and security groups, as ACLs of OVN. Pure.

ACLs hang on groups of ports, of which one has all guests' ports of a network. From high to low: what no guest may send,
what each may (neighbours, DHCP, what serves the network), what security groups let through, and an end for everything else.
OVN's port security is in front of all of it and judges MAC, IP, ARP and ND; what it lets pass and guests must not send is
here and, where OVN asks no ACL, in `guard`.
Sources: ovn-nb(5), ovn-sb(5) for expressions, and those of `linux.bridging`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayLeg
from kumulus.api.segments import FilterGroup, FilterRule, Nic, Ports, Protocol, SegmentOrder
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.ovn import names

NEVER, OWN, ONLY, ALWAYS, GROUPS, ELSE = 3002, 3001, 3000, 2500, 2000, 1000
"""Priorities. `OWN` lets a guest say of itself what `ONLY` ends for everybody: to say "not one of these" in one expression
would be a product of all their bits in flows."""
FROM, TO = "from-lport", "to-lport"
ALLOW, TRACKED, UNTRACKED, DROP = "allow", "allow-related", "allow-stateless", "drop"


@dataclass(frozen=True, slots=True)
class Acl:
    """One row of the table."""

    direction: str
    priority: int
    match: str
    action: str
    why: str = ""
    """It drops, in the words of the driver `linux`."""

    @property
    def key(self) -> str:
        """Follows from what it says."""
        said = f"{self.direction} {self.priority} {self.match} {self.action}"
        return hashlib.sha256(said.encode()).hexdigest()[:20]


def everybody(order: SegmentOrder) -> Iterator[Acl]:
    """What holds for all guests of a network."""
    here = f"inport == @{names.everybody(order.uid)}"
    there = f"outport == @{names.everybody(order.uid)}"
    if order.subnets:
        yield Acl(FROM, NEVER, f"{here} && eth.src == {devices.service_mac(order.uid)}", DROP, "service MAC")
        yield Acl(FROM, NEVER, f"{here} && arp.op == 2 && arp.spa == 0.0.0.0", DROP, "not its own")
        for port in (67, 547):  # apart: of a set of ports nobody could tell which guest a flow counts
            yield Acl(FROM, NEVER, f"{here} && udp.src == {port}", DROP, "DHCP server")
    for end, direction in ((here, FROM), (there, TO)):
        yield Acl(direction, ALWAYS, f"{end} && arp.op == {{1, 2}}", ALLOW)
        yield Acl(direction, ALWAYS, f"{end} && icmp6.type == {{130, 131, 132, 133, 134, 135, 136, 137, 143}}", ALLOW)
        yield Acl(direction, ELSE, end, DROP, "no group lets it through")
    if order.subnets:
        mac = devices.service_mac(order.uid)
        yield Acl(FROM, ALWAYS, f"{here} && udp && udp.src == 68 && udp.dst == 67", ALLOW)
        yield Acl(FROM, ALWAYS, f"{here} && udp && udp.src == 546 && udp.dst == 547", ALLOW)
        services = [subnet.service for subnet in order.subnets]
        served = {
            "ip4": [*filter(is_v4, services), devices.METADATA],
            "ip6": [one for one in services if not is_v4(one)],
        }
        for (
            family,
            addresses,
        ) in served.items():  # with another's address it would be tracked as let through to that other
            if addresses:
                to = f"{family}.dst == {_set(addresses)}"
                yield Acl(FROM, ALWAYS, f"{here} && eth.dst == {mac} && {to}", TRACKED)
        yield Acl(TO, ALWAYS, f"{there} && ip && eth.src == {mac}", TRACKED)


def own(order: SegmentOrder, nic: Nic) -> Iterator[Acl]:
    """What one guest may say, and must not, besides."""
    if not order.subnets or not nic.pairs:
        return
    here = f'inport == "{nic.uid}"'
    for subnet in order.subnets:
        if is_v4(subnet.service):
            yield Acl(FROM, NEVER, f"{here} && ip4.src == {subnet.service}", DROP, "service address")
            yield Acl(FROM, NEVER, f"{here} && arp.spa == {subnet.service}", DROP, "service address")
        else:
            yield Acl(FROM, NEVER, f"{here} && ip6.src == {subnet.service}", DROP, "service address")
    alone = [address for address in nic.addresses if is_v4(address)]
    asks = f"{here} && ip4.dst == {devices.METADATA}"
    if alone:
        yield Acl(FROM, OWN, f"{asks} && ip4.src == {_set(alone)}", TRACKED)
    yield Acl(FROM, ONLY, asks, DROP, "metadata is told by who asks")


def group(network: str, group: FilterGroup, known: Collection[str]) -> Iterator[Acl]:
    """What a security group lets through."""
    ports = names.group(network, group.uid)
    for direction, end, side, rules in (
        (FROM, "inport", "dst", group.egress),
        (TO, "outport", "src", group.ingress),
    ):
        for rule in rules:
            for where in _where(network, rule, side, known):
                yield Acl(direction, GROUPS, " && ".join([f"{end} == @{ports}", *where, *_what(rule)]), TRACKED)


def _where(network: str, rule: FilterRule, side: str, known: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Conditions on the other end, one of which has to hold. A group that the order does not have has no members."""
    if rule.group is not None and rule.group not in known:
        return
    if rule.group is None and not rule.cidrs:
        yield ("ip",)
        return
    fours, sixes = ranges(rule.cidrs)
    for four, found in ((True, fours), (False, sixes)):
        family = "ip4" if four else "ip6"
        if rule.cidrs and not found:
            continue
        said = [family]
        if rule.group is not None:
            said.append(f"{family}.{side} == ${names.members(network, rule.group, four=four)}")
        if found and not any(range_.prefixlen == 0 for range_ in found):
            said.append(f"{family}.{side} == {_set([_said(range_) for range_ in found])}")
        yield tuple(said)


def legs(order: SegmentOrder, gateways: Sequence[GatewayLeg]) -> Iterator[Acl]:
    """What holds for gateways' ends in a network. They are filtered in the gateway, and by whoever is at the other end; their
    own connections are not tracked here, for a gateway has those of everybody. Nothing of theirs goes to what serves guests:
    metadata is told to who is in the network."""
    ends = names.legs(order.uid)
    yield Acl(FROM, ALWAYS, f"inport == @{ends}", UNTRACKED)
    yield Acl(TO, ALWAYS, f"outport == @{ends}", UNTRACKED)
    if order.subnets:
        for mac in sorted({leg.mac for leg in gateways}):
            match = f'outport == "{devices.service(order.uid)}" && eth.src == {mac}'
            yield Acl(TO, NEVER, match, DROP, "each host serves its own guests")


def router(order: SegmentOrder) -> Iterator[Acl]:
    """What holds for the end of the network's router: it is for passing packets on, and nobody finds it or speaks with it by
    its own addresses. (OVN lets neighbour discovery through whatever is said.)"""
    there = f'outport == "{names.to_router(order.uid)}"'
    for subnet in order.subnets:
        own = ip_network(subnet.cidr).network_address
        if isinstance(own, IPv4Address):
            yield Acl(TO, NEVER, f"{there} && arp.op == 1 && arp.tpa == {own}", DROP)
        yield Acl(TO, NEVER, f"{there} && ip{own.version}.dst == {own}", DROP)


_PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.ICMP: "icmp4", Protocol.ICMPV6: "icmp6"}


def _what(rule: FilterRule) -> Iterator[str]:
    if rule.protocol is Protocol.ANY:
        return
    protocol = _PROTOCOLS[rule.protocol]
    yield protocol
    if rule.ports and rule.protocol in (Protocol.TCP, Protocol.UDP):
        said = [_ports(f"{protocol}.dst", ports) for ports in rule.ports if ports.first <= ports.last]
        yield f"({' || '.join(said)})" if said else "0"


def _ports(field: str, ports: Ports) -> str:
    if ports.first == ports.last:
        return f"{field} == {ports.first}"
    return f"{ports.first} <= {field} <= {ports.last}"


def ranges(cidrs: Sequence[str]) -> tuple[list[IPv4Network], list[IPv6Network]]:
    """Those of IPv4 and those of IPv6; none overlaps another."""
    fours = collapse_addresses(IPv4Network(cidr) for cidr in cidrs if is_v4(cidr))
    sixes = collapse_addresses(IPv6Network(cidr) for cidr in cidrs if not is_v4(cidr))
    return list(fours), list(sixes)


def _said(range_: IPv4Network | IPv6Network) -> str:
    return str(range_.network_address) if range_.prefixlen == range_.max_prefixlen else str(range_)


def _set(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{{{', '.join(values)}}}"
