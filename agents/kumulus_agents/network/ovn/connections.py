"""Connections that were allowed once and are not any more. Pure.

OVN judges packets of a known connection anew only in the direction in which it was opened: who was reached could go on
sending. So what no rule allows any more is forgotten, and its next packet in either direction opens a connection or does
not. Listings and commands are those of ovs-dpctl(8).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kumulus.api.addresses import is_v4
from kumulus.api.passage import Opening, fits
from kumulus.api.segments import Nic, Protocol, SegmentOrder
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import names
from kumulus_agents.network.ovn.acls import GROUPS
from kumulus_agents.network.ovn.rows import Row, Rows

_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "icmp": Protocol.ICMP, "icmpv6": Protocol.ICMPV6}
MANY = 50
"""Connections of a port, beyond which they are not forgotten one by one: that is a command each, while others wait."""
_LIMIT = re.compile(r"^zone=(?P<zone>\d+),limit=(?P<limit>\d+)", re.MULTILINE)
_LINE = re.compile(r"^(?P<protocol>[a-z0-9]+),orig=\((?P<orig>[^)]*)\).*?,zone=(?P<zone>\d+)")


@dataclass(frozen=True, slots=True)
class Connection:
    """As it was opened."""

    zone: int
    protocol: str
    source: str
    target: str
    fields: Mapping[str, str]
    """Ports, or what ICMP has instead."""


def parse(listing: str) -> Iterator[Connection]:
    """Connections of `dpctl/dump-conntrack`."""
    for line in listing.splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        said = dict(part.split("=", 1) for part in match["orig"].split(",") if "=" in part)
        if {"src", "dst"} <= said.keys():
            yield Connection(int(match["zone"]), match["protocol"], said.pop("src"), said.pop("dst"), said)


def narrower(before: Rows, after: Rows) -> frozenset[str]:
    """Names of logical ports for which something that was allowed may not be any more."""
    networks: set[str] = set()
    ports: set[str] = set()
    for key, row in before.items():
        table, name = key
        then = after.get(key)
        if (table == "ACL" and then is None and row.columns["priority"] == GROUPS) or (
            table == "Address_Set" and not _addresses(row) <= _addresses(then)
        ):
            networks.add(names.everybody_of(name))
        elif table == "Port_Group":
            still = then.refers["ports"] if then is not None else frozenset()
            ports |= {port for _, port in row.refers["ports"] - still}
    for name in networks:
        if (whole := after.get(("Port_Group", name))) is not None:
            ports |= {port for _, port in whole.refers["ports"]}
    return frozenset(port for port in ports if ("Logical_Switch_Port", port) in after)


def _addresses(row: Row | None) -> frozenset[str]:
    addresses = row.columns["addresses"] if row is not None else frozenset()
    assert isinstance(addresses, frozenset)
    return addresses


def forbidden(layout: Layout, ports: Iterable[str], zones: Mapping[str, int], listing: str) -> Iterator[Connection]:
    """The connections of these ports that no rule allows. A port whose network is not on record is not in OVN either."""
    nics = {zones[port]: layout.places[port].port.nic for port in ports if port in zones and port in layout.places}
    for connection in parse(listing):
        nic = nics.get(connection.zone)
        network = layout.networks.get(nic.network) if nic is not None else None
        if nic is not None and network is not None and not allowed(network.order, nic, connection):
            yield connection


def allowed(order: SegmentOrder, nic: Nic, connection: Connection) -> bool:
    """Whether the port's groups let it through, or nobody asks them. Where nobody can tell who opened it, as in a network
    without ranges, it has to be allowed either way: one that is cut and may be there begins anew with its next packet."""
    leaves, reaches = _ways(nic, connection)
    peers = [connection.target] * leaves + [connection.source] * reaches
    if order.subnets:
        serving = link_local(devices.service_mac(order.uid))
        served = {*(subnet.service for subnet in order.subnets), devices.METADATA, serving}
        if not served.isdisjoint(peers):
            return True
    groups = [group for group in order.groups if group.uid in nic.groups]
    members = {group.uid: frozenset(group.members) for group in order.groups}
    ways = []
    if leaves:
        ways.append((connection.target, [rule for group in groups for rule in group.egress]))
    if reaches:
        ways.append((connection.source, [rule for group in groups for rule in group.ingress]))
    protocol, port = _PROTOCOLS.get(connection.protocol), int(connection.fields.get("dport", 0))
    return all(any(fits(rule, Opening(peer, protocol, port), members) for rule in rules) for peer, rules in ways)


def _ways(nic: Nic, connection: Connection) -> tuple[bool, bool]:
    """Whether the port may have opened it, and whether it may have been opened to the port. Its own addresses tell before
    those that it may have besides, which can be ranges with its peers in them."""
    own = (*nic.addresses, link_local(nic.mac))
    besides = (*(pair.cidr for pair in nic.pairs), *(link_local(pair.mac) for pair in nic.pairs if pair.mac))
    source, target = (ipaddress.ip_address(address) for address in (connection.source, connection.target))
    for cidrs in (own, besides):
        ranges = [ipaddress.ip_network(cidr) for cidr in cidrs]
        leaves, reaches = (any(end in range_ for range_ in ranges) for end in (source, target))
        if leaves != reaches:
            return leaves, reaches
    return True, True


def forgetting(connections: Iterable[Connection]) -> Iterator[list[str]]:
    """Arguments of `dpctl/flush-conntrack`, one command after the other. A port with very many of them, or with one that the
    command has no words for, loses all its connections: those that are allowed begin anew with their next packet."""
    by_zone: dict[int, list[Connection]] = {}
    for connection in connections:
        by_zone.setdefault(connection.zone, []).append(connection)
    for zone, some in sorted(by_zone.items()):
        said = [_said(connection) for connection in some[: MANY + 1]]
        if len(some) > MANY or None in said:
            yield [f"zone={zone}"]
        else:
            yield from ([f"zone={zone}", one] for one in said if one is not None)


def _said(connection: Connection) -> str | None:
    if (number := _NUMBERS.get(connection.protocol)) is None:
        return None
    family = "nw" if is_v4(connection.source) else "ipv6"
    said = [
        f"ct_{family}_src={connection.source}",
        f"ct_{family}_dst={connection.target}",
        f"ct_nw_proto={number}",
    ]
    if "sport" in connection.fields:
        said += [f"ct_tp_src={connection.fields['sport']}", f"ct_tp_dst={connection.fields['dport']}"]
    else:
        said += [f"icmp_{key}={connection.fields[key]}" for key in ("type", "code", "id") if key in connection.fields]
    return ",".join(said)


def limits(listing: str) -> Mapping[int, int]:
    """How many connections a zone may have, as `dpctl/ct-get-limits` says."""
    return {int(match["zone"]): int(match["limit"]) for match in _LIMIT.finditer(listing)}
