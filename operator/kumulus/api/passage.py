"""What orders let through: the rules of security groups, and whose an address is, held against a packet. Pure.

Drivers write the same rules in the language of what filters (nftables, OVN). This is what they mean; tests hold one
against the other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kumulus.api.addresses import Address, is_v4
from kumulus.api.segments import FilterGroup, FilterRule, Nic, Protocol, SegmentOrder, Uid

METADATA: Address = "169.254.169.254"
"""Where guests of every network ask for their metadata."""


class Way(StrEnum):
    """Which rules of a group."""

    EGRESS = "egress"
    INGRESS = "ingress"


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens a connection: the first packet, as a port's rules see it."""

    peer: Address | None
    """The other end; None when nobody can tell, as in a network without ranges."""
    protocol: Protocol | None
    """`ICMP` for IPv4, `ICMPV6` for IPv6; None for one that rules have no word for."""
    port: int | None = None
    """The port it is for, of TCP and UDP."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The rule that lets it through."""

    group: Uid
    number: int
    """Of the rule, from 0, among those of the group in that direction."""


def fits(rule: FilterRule, opening: Opening, members: Mapping[Uid, Collection[Address]]) -> bool:
    """Whether the rule lets it through. A group that is not in `members` has none. A rule that names other ends does not
    fit while the other end is not known."""
    if rule.protocol is not Protocol.ANY:
        if opening.protocol is not rule.protocol:
            return False
        if rule.ports and rule.protocol in (Protocol.TCP, Protocol.UDP):
            port = opening.port or 0
            if not any(ports.first <= port <= ports.last for ports in rule.ports):
                return False
    if rule.group is None and not rule.cidrs:
        return True
    if opening.peer is None:
        return False
    if rule.group is not None and opening.peer not in members.get(rule.group, ()):
        return False
    return not rule.cidrs or within(opening.peer, rule.cidrs)


def within(address: Address, cidrs: Collection[str]) -> bool:
    """Whether the address is in one of the ranges."""
    number = ipaddress.ip_address(address)
    return any(number in ipaddress.ip_network(cidr) for cidr in cidrs)


def decide(groups: Sequence[FilterGroup], own: Collection[Uid], way: Way, opening: Opening) -> Decision | None:
    """The first rule of the port's own groups that lets it through; None when none does. `groups` are all that the network's
    order has: they say who is a member of which."""
    members = {group.uid: group.members for group in groups}
    for group in groups:
        if group.uid in own:
            for number, rule in enumerate(group.egress if way is Way.EGRESS else group.ingress):
                if fits(rule, opening, members):
                    return Decision(group.uid, number)
    return None


def serves(order: SegmentOrder, address: Address) -> bool:
    """Whether hosts answer there to their own guests: DHCP, DNS, metadata."""
    return bool(order.subnets) and (address == METADATA or any(subnet.service == address for subnet in order.subnets))


def owns(order: SegmentOrder, nic: Nic, address: Address) -> bool:
    """Whether the port may send from that address with its own MAC address. In a network without ranges anybody may be
    anybody."""
    if not order.subnets:
        return True
    if serves(order, address):
        return False
    besides = [pair.cidr for pair in nic.pairs if pair.mac in (None, nic.mac)]
    return address in nic.addresses or within(address, besides)


def icmp_of(address: Address | None) -> Protocol:
    """The ICMP of the address's family."""
    return Protocol.ICMP if address is None or is_v4(address) else Protocol.ICMPV6
