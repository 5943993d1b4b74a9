"""Routing between networks of one router on the sender's host: a logical router of OVN, and who is sent to it. Pure.

A guest knows its router by the MAC addresses of the gateways that have it, and goes on to do so: ARP, neighbour discovery,
advertisements and whatever leaves the router's networks are the gateways'. What a guest that is `direct` sends to one of
these MACs for an address of another of the router's networks that is on this host is given the MAC of the logical
router by the guest's own bridge (`guard`). The logical router delivers what is for somebody `direct`, and gives the rest to
the gateway. It asks nobody who is where but for the gateway: orders say it. Its own addresses are those that are the ranges'
own, which nobody has or asks for. Source: ovn-nb(5), ovn-northd(8).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kumulus.api.addresses import is_v4
from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.linux.keepalived import announced
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import names
from kumulus_agents.network.ovn.rows import MARK, Key, Row, Rows, Value, binding

DIRECT, ELSE = 200, 100
"""Priorities of policies."""
FORGET_SECONDS = 120
"""After which the logical router asks anew where the gateway is. It hears by itself when that changes."""


@dataclass(frozen=True, slots=True)
class Way:
    """What goes to a logical router."""

    source: str
    """Address of the guest's own."""
    targets: tuple[str, ...]
    """Ranges of its family."""


@dataclass(frozen=True, slots=True)
class Detour:
    """What of a guest's packets goes to a logical router in the place of a gateway."""

    mac: str
    """Of the logical router."""
    gateways: tuple[str, ...]
    """MACs for which the guest means its router."""
    known: tuple[str, ...]
    """Addresses by which it knows it."""
    ways: tuple[Way, ...]


def routers(layout: Layout) -> Mapping[str, Sequence[SegmentOrder]]:
    """The networks of each router that has several on this host, by the router's uid."""
    found: dict[str, list[SegmentOrder]] = {}
    for _, network in sorted(layout.networks.items()):
        if network.order.router is not None and network.order.subnets:
            found.setdefault(network.order.router.uid, []).append(network.order)
    return {uid: orders for uid, orders in sorted(found.items()) if len(orders) > 1}


def detour(layout: Layout, nic: Nic) -> Detour | None:
    """What of that guest's packets goes to the logical router of its network; None when nothing does. Nothing goes to a
    network that carries smaller packets: it is the gateway that says so to senders."""
    network = layout.networks.get(nic.network)
    router = network.order.router if network is not None else None
    if network is None or router is None or nic.mac not in {end.mac for end in router.direct}:
        return None
    order = network.order
    others = [one for one in routers(layout).get(router.uid, ()) if one.uid != order.uid and order.mtu <= one.mtu]
    ways = []
    for address in sorted({one for end in router.direct if end.mac == nic.mac for one in end.addresses}):
        ranges = [subnet.cidr for other in others for subnet in other.subnets]
        if targets := tuple(sorted(cidr for cidr in ranges if is_v4(cidr) is is_v4(address))):
            ways.append(Way(address, targets))
    if not ways:
        return None
    known = [subnet.gateway for subnet in order.subnets if subnet.gateway is not None]
    if any(not is_v4(address) for address in known):
        known.append(announced(router.uid, order.uid))
    return Detour(router.mac, tuple(sorted(router.gateways)), tuple(known), tuple(ways))


def to_router(order: SegmentOrder, layout: Layout) -> Key | None:
    """The port of the network's switch to its router, among `rows`; None when that is not on this host."""
    there = routers(layout).get(order.router.uid, ()) if order.router is not None else ()
    return ("Logical_Switch_Port", names.to_router(order.uid)) if order.uid in {one.uid for one in there} else None


def rows(layout: Layout) -> Rows:
    """The logical routers, with the ports of switches that lead to them."""
    made: dict[Key, Row] = {}
    for uid, orders in routers(layout).items():
        ports: set[Key] = set()
        policies: set[Key] = set()
        for order in orders:
            there = dict(_port(order))
            made |= there
            ports |= {key for key in there if key[0] == "Logical_Router_Port"}
            policies |= {key for key in there if key[0] == "Logical_Router_Policy"}
        name = names.router(uid)
        # It learns of nobody but those that it has asked for.
        options = {"always_learn_from_arp_request": "false", "mac_binding_age_threshold": str(FORGET_SECONDS)}
        columns: dict[str, Value] = {"name": name, "options": options, "external_ids": {MARK: name}}
        refers = {"ports": frozenset(ports), "policies": frozenset(policies)}
        made["Logical_Router", name] = Row(columns, refers)
    return made


def _port(order: SegmentOrder) -> Iterator[tuple[Key, Row]]:
    """The router's port to a network, the network's to the router, and who is reached there."""
    assert order.router is not None
    name, way = names.router_port(order.router.uid, order.uid), names.to_router(order.uid)
    own = frozenset(str(ipaddress.ip_network(subnet.cidr)) for subnet in order.subnets)

    def row(table: str, key: str, **columns: Value) -> tuple[Key, Row]:
        return (table, key), Row(columns | {"external_ids": {MARK: key}})

    yield row("Logical_Router_Port", name, name=name, mac=order.router.mac, networks=own)
    yield row(
        "Logical_Switch_Port",
        way,
        name=way,
        type="router",
        addresses=frozenset(["router"]),
        options={"router-port": name},
    )
    for four in (True, False):
        subnet = next((subnet for subnet in order.subnets if is_v4(subnet.cidr) is four), None)
        if subnet is None:
            continue
        direct = {address: end.mac for end in order.router.direct for address in end.addresses}
        direct = {address: mac for address, mac in direct.items() if is_v4(address) is four}
        family, said = ("ip4" if four else "ip6"), names.direct(order.uid, four=four)
        yield row("Address_Set", said, name=said, addresses=frozenset(direct))
        yield row(
            "Logical_Router_Policy",
            f"{name}/{family}/direct",
            priority=DIRECT,
            match=f"{family}.dst == ${said}",
            action="allow",
            nexthops=frozenset(),
        )
        yield row(
            "Logical_Router_Policy",
            f"{name}/{family}/gateway",
            priority=ELSE,
            match=f'inport == "{name}" && {family}',
            action="reroute" if subnet.gateway else "drop",
            nexthops=frozenset([subnet.gateway] if subnet.gateway else []),
        )
        for address, mac in direct.items():
            said_of: dict[str, Value] = {"logical_port": name, "ip": address, "mac": mac, "override_dynamic_mac": True}
            yield ("Static_MAC_Binding", binding(name, address)), Row(said_of)


def without(rows: Rows) -> Rows:
    """What there is besides logical routers."""
    return {key: row for key, row in rows.items() if not key[0].startswith(("Logical_Router", "Static_MAC_Binding"))}
