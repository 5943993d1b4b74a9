"""What a host has to know of a network: rendered from what was read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kumulus.api.addresses import Address
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.security_groups import EgressRule, IngressRule, SecurityGroup
from kumulus.api.segments import (
    Dns,
    DnsRecord,
    FilterGroup,
    FilterRule,
    Ports,
    SegmentOrder,
    Subnet,
    Uplink,
)
from kumulus_controllers.network import distributed_plan
from kumulus_controllers.network.distributed_plan import Beside
from kumulus_controllers.network.networks import group_names, named_groups
from kumulus_controllers.network.ranges import ranges

PEERS_MOST = 4096
RECORDS_MOST = 4096
MEMBERS_MOST = 16384
GROUPS_MOST = 512
RECORD_ADDRESSES_MOST = 16
"""What an order takes."""

GroupKey = tuple[str | None, str]
"""Namespace and name of a security group."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that is read of a network for the orders of its hosts."""

    network: Network
    interfaces: tuple[NetworkInterface, ...]
    """All that have addresses in it."""
    groups: Mapping[GroupKey, SecurityGroup]
    """Those of the interfaces, and those that their rules name, as far as they are there."""
    hosts: Mapping[str, frozenset[str]]
    """Hosts that need it, and the uids of their interfaces in it."""
    underlays: Mapping[str, Address]
    """Where the tunnels of hosts end, by host."""
    routers: frozenset[Address] = frozenset()
    """Addresses that routers have in it."""
    uplinks: Mapping[str, str] = field(default_factory=dict)
    """Devices of hosts that a VLAN is of, by host."""
    beyond: tuple[NetworkInterface, ...] = ()
    """Interfaces of other networks that routers pass packets from: members of groups are known by their addresses too."""
    beside: Beside | None = None
    """Its router, where hosts route by themselves."""

    def ready(self) -> bool:
        """Whether it can be on hosts."""
        status = self.network.status
        return status.driver is not None and status.mtu is not None and status.numbered


def uplink(sight: Sight, host: str, ordered: SegmentOrder | None) -> Uplink | None:
    """The way of the network's VLAN there. A host that has no way any more keeps the one that it was told."""
    vlan = sight.network.status.vlan
    if vlan is None:
        return None
    device = sight.uplinks.get(host) or (ordered.uplink.device if ordered is not None and ordered.uplink else None)
    return Uplink(device=device, vlan=vlan) if device is not None else None


def segment(sight: Sight, host: str, ordered: SegmentOrder | None = None) -> SegmentOrder:
    """The network's presence on that host, which has that order of it already."""
    network, status = sight.network, sight.network.status
    assert status.driver is not None and status.mtu is not None
    spec = network.spec
    others = {sight.underlays[name] for name in sight.hosts if name != host and name in sight.underlays}
    if status.vni is None:
        others = set()
    return SegmentOrder(
        uid=network.uid,
        driver=status.driver,
        vni=status.vni,
        uplink=uplink(sight, host, ordered),
        mtu=status.mtu,
        peers=tuple(sorted(others - {sight.underlays.get(host, "")}))[:PEERS_MOST],
        subnets=tuple(
            # Guests are told of a router when there is one: a Router, or a machine that the owner has put there.
            Subnet(cidr=str(item.cidr), gateway=_told(sight, str(item.gateway)), service=str(item.service))
            for item in ranges(network)
        ),
        dhcp=spec.dhcp.enabled,
        options=spec.dhcp.options,
        dns=Dns(domain=spec.dns.domain, servers=spec.dns.servers, records=_records(sight)),
        groups=_groups(sight, sight.hosts.get(host, frozenset())),
        router=distributed_plan.part(network, sight.interfaces, sight.beside, host),
    )


def _told(sight: Sight, gateway: str) -> str | None:
    return gateway if gateway in sight.routers or sight.network.spec.gateway == gateway else None


def _records(sight: Sight) -> tuple[DnsRecord, ...]:
    """Names of machines: of the network's own namespace plainly, of others with their namespace behind."""
    found: dict[str, list[str]] = {}
    for interface in sight.interfaces:
        if interface.status.vm is None or not interface.status.addresses:
            continue
        own = interface.namespace == sight.network.namespace
        name = interface.status.vm if own else f"{interface.status.vm}.{interface.namespace}"
        found.setdefault(name, []).extend(interface.status.addresses)
    return tuple(
        DnsRecord(name=name, addresses=tuple(sorted(set(addresses)))[:RECORD_ADDRESSES_MOST])
        for name, addresses in sorted(found.items())[:RECORDS_MOST]
    )


def _groups(sight: Sight, here: frozenset[str]) -> tuple[FilterGroup, ...]:
    """The groups of the interfaces of a host with their rules, and those that these name with their members."""
    own: dict[str, SecurityGroup] = {}
    for interface in sight.interfaces:
        if interface.uid in here:
            for name in group_names(interface):
                group = sight.groups.get((interface.namespace, name))
                if group is not None:
                    own[group.uid] = group
    named: dict[str, SecurityGroup] = {}
    for group in own.values():
        for name in named_groups(group):
            other = sight.groups.get((group.namespace, name))
            if other is not None:
                named[other.uid] = other
    return tuple(
        FilterGroup(
            uid=uid,
            ingress=_rules(group.spec.ingress, group, sight.groups) if uid in own else (),
            egress=_rules(group.spec.egress, group, sight.groups) if uid in own else (),
            members=_members(sight, group) if uid in named else (),
        )
        for uid, group in sorted({**named, **own}.items())[:GROUPS_MOST]
    )


def _members(sight: Sight, group: SecurityGroup) -> tuple[Address, ...]:
    addresses = {
        address
        for interface in (*sight.interfaces, *sight.beyond)
        if interface.namespace == group.namespace and group.name in group_names(interface)
        for address in interface.status.addresses
    }
    return tuple(sorted(addresses))[:MEMBERS_MOST]


def _rules(
    rules: Iterable[IngressRule | EgressRule], group: SecurityGroup, groups: Mapping[GroupKey, SecurityGroup]
) -> tuple[FilterRule, ...]:
    found = (filter_rule(rule, group, groups) for rule in rules)
    return tuple(rule for rule in found if rule is not None)


def filter_rule(
    rule: IngressRule | EgressRule, group: SecurityGroup, groups: Mapping[GroupKey, SecurityGroup]
) -> FilterRule | None:
    """The rule as hosts are told of it. None for a rule that names a group that is not there: it lets nothing through, and must not let everybody."""
    peer = rule.from_ if isinstance(rule, IngressRule) else rule.to
    uid = None
    if peer is not None and peer.security_group is not None:
        other = groups.get((group.namespace, peer.security_group))
        if other is None:
            return None
        uid = other.uid
    return FilterRule(
        protocol=rule.protocol,
        ports=tuple(map(_ports, rule.ports)),
        cidrs=(peer.cidrs or ()) if peer is not None else (),
        group=uid,
    )


def _ports(text: str) -> Ports:
    first, _, last = text.partition("-")
    return Ports(first=int(first), last=int(last or first))


def urgent(ordered: SegmentOrder, wanted: SegmentOrder) -> bool:
    """Whether a host must not wait for the change: an interface of its own needs a group that it does not know."""
    return not {group.uid for group in wanted.groups} <= {group.uid for group in ordered.groups}
