"""What stands in this host's northbound database: rendered from what shall be on the host. Pure.

A network is a logical switch. Its ports are this host's guests, what serves them (a port of the type localport), legs of this
host's gateways, one that leads to its router (`routing`), and one of the type localnet behind which all other hosts are. Nothing but numbers, names that follow from uids, and addresses
that were checked stand in expressions. Source: ovn-nb(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayLeg
from kumulus.api.segments import Bandwidth, Nic, SegmentOrder
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import acls, dhcp, names, routing
from kumulus_agents.network.ovn import brought as bringing
from kumulus_agents.network.ovn.rows import MARK, Key, Row, Rows, Value

Brought = Mapping[str, Sequence[Connection]]
_QOS = 1000


def render(layout: Layout, lease_seconds: int, brought: Brought | None = None) -> Rows:
    """All rows that are Kumulus' own. `brought`: connections that guests have from other hosts, by the interface's uid."""
    rows: dict[Key, Row] = dict(routing.rows(layout))
    for uid, network in sorted(layout.networks.items()):
        nics = [place.port.nic for place in layout.ports_of(uid)]
        to_router = routing.to_router(network.order, layout)
        rows |= _network(network.order, nics, layout.legs_in(uid), to_router, lease_seconds, brought or {})
    return rows


def _network(
    order: SegmentOrder,
    nics: list[Nic],
    legs: list[tuple[str, GatewayLeg]],
    to_router: Key | None,
    lease_seconds: int,
    brought: Brought,
) -> dict[Key, Row]:
    uid = order.uid
    rows: dict[Key, Row] = {}
    ports: set[Key] = {to_router} if to_router is not None else set()
    rules: set[Key] = set()

    def add(table: str, key: str, **columns: Value) -> Key:
        rows[table, key] = Row(columns | {"external_ids": {MARK: key}})
        return table, key

    def port(
        name: str,
        type_: str,
        addresses: Iterable[str],
        *,
        security: frozenset[str] = frozenset(),
        options: Mapping[str, str] | None = None,
    ) -> Key:
        made = add(
            "Logical_Switch_Port",
            name,
            name=name,
            type=type_,
            addresses=frozenset(addresses),
            port_security=security,
            options=options or {},
        )
        ports.add(made)
        return made

    def port_group(name: str, members: Iterable[Key], said: Iterable[acls.Acl]) -> None:
        key = add("Port_Group", name, name=name)
        made = frozenset(
            add(
                "ACL",
                f"{name}/{acl.key}",
                direction=acl.direction,
                priority=acl.priority,
                match=acl.match,
                action=acl.action,
            )
            for acl in said
        )
        rows[key] = Row(rows[key].columns, {"ports": frozenset(members), "acls": made})

    if order.vni is not None or order.uplink is not None:
        port(names.wire(uid), "localnet", ["unknown"], options={"network_name": names.NETWORK})
        port(names.anchor(uid)[0], "", [])
    if order.subnets:
        served = [subnet.service for subnet in order.subnets]
        if any(map(is_v4, served)):
            served.append(devices.METADATA)
        port(devices.service(uid), "localport", [" ".join([devices.service_mac(uid), *served])])
    if legs:
        ends = [
            port(devices.leg(gateway, uid), "", [leg.mac], security=frozenset([_anything(leg.mac)]))
            for gateway, leg in legs
        ]
        port_group(names.legs(uid), ends, acls.legs(order, [leg for _, leg in legs]))
    if to_router is not None:
        port_group(names.routed(uid), [to_router], acls.router(order))
    guests: dict[str, Key] = {}
    everybody = list(acls.everybody(order))
    told: frozenset[Key] = frozenset()
    if (subnet := dhcp.subnet_of(order)) is not None:
        said = dhcp.options(order, subnet, lease_seconds)
        told = frozenset([add("DHCP_Options", uid, cidr=subnet.cidr, options=said)])
    for nic in nics:
        asks = told if any(map(is_v4, nic.addresses)) else frozenset()
        security = frozenset(_own(order, nic))
        options = dhcp.of_port(nic) if asks else {}
        guest = port(nic.uid, "", _addresses(nic), security=security, options=options)
        rows[guest] = Row(rows[guest].columns, {"dhcpv4_options": asks})
        guests[nic.uid] = guest
        everybody += acls.own(order, nic)
        everybody += bringing.acls(order, nic, brought.get(nic.uid, ()))
        for direction, end, limit in _limits(nic.bandwidth):
            rules.add(
                add(
                    "QoS",
                    f"{nic.uid}/{direction}",
                    direction=direction,
                    priority=_QOS,
                    match=f'{end} == "{nic.uid}"',
                    bandwidth={"rate": max(limit // 1000, 1), "burst": max(limit // 4000, 1024)},
                )
            )
    port_group(names.everybody(uid), guests.values(), everybody)
    known = {group.uid for group in order.groups}
    for group in order.groups:
        members = [guests[nic.uid] for nic in nics if group.uid in nic.groups]
        port_group(names.group(uid, group.uid), members, acls.group(uid, group, known))
        for four in (True, False):
            name = names.members(uid, group.uid, four=four)
            addresses = frozenset(member for member in group.members if is_v4(member) is four)
            add("Address_Set", name, name=name, addresses=addresses)
    switch = add("Logical_Switch", names.switch(uid), name=names.switch(uid))
    rows[switch] = Row(rows[switch].columns, {"ports": frozenset(ports), "qos_rules": frozenset(rules)})
    return rows


def _addresses(nic: Nic) -> Iterable[str]:
    """Where frames for it go. A MAC that it may have besides can be another's at another time: frames for it go to all that
    may have it, and elsewhere too."""
    yield " ".join([nic.mac, *nic.addresses])
    if any(pair.mac and pair.mac != nic.mac for pair in nic.pairs):
        yield "unknown"


def _own(order: SegmentOrder, nic: Nic) -> Iterable[str]:
    """Who it may say to be. An element without an address of a family passes nothing of that family."""
    own: dict[str, list[str]] = {nic.mac: list(nic.addresses)}
    for pair in nic.pairs:
        own.setdefault(pair.mac or nic.mac, []).append(_single(pair.cidr))
    for mac, cidrs in sorted(own.items()):
        yield " ".join([mac, *cidrs, link_local(mac)]) if order.subnets else _anything(mac)


def _anything(mac: str) -> str:
    """Whoever has that MAC address. A MAC address alone would pass no neighbour advertisement."""
    return f"{mac} 0.0.0.0/0 ::/0"


def _single(cidr: str) -> str:
    address, _, length = cidr.partition("/")
    return address if length == ("32" if is_v4(address) else "128") else cidr


def _limits(bandwidth: Bandwidth | None) -> Iterable[tuple[str, str, int]]:
    if bandwidth is not None and bandwidth.outbound:
        yield acls.FROM, "inport", bandwidth.outbound
    if bandwidth is not None and bandwidth.inbound:
        yield acls.TO, "outport", bandwidth.inbound
