"""What a port's security groups say to a packet, by the very order that its host is told. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.order_names import segment_order_name
from kumulus.api.passage import Opening, Way, decide
from kumulus.api.security_groups import EgressRule, IngressRule, SecurityGroup
from kumulus.api.segments import Nic, Protocol, SegmentOrder
from kumulus.api.trace import Scene, Step, Verdict
from kumulus_controllers.network import nics, trace_ends
from kumulus_controllers.network.networks import group_names
from kumulus_controllers.network.segment_plan import GroupKey, Sight, filter_rule, segment

_HERE = "here"


@dataclass(frozen=True, slots=True)
class Ported:
    """An interface, as its host is told of it."""

    interface: NetworkInterface
    network: Network
    order: SegmentOrder
    nic: Nic
    groups: dict[GroupKey, SecurityGroup]
    unread: bool = False
    """Its groups are of a namespace that the user may not see."""


def ported(scene: Scene, interface: NetworkInterface, network: Network) -> Ported:
    """The interface and its network as orders have them. Both must be ready."""
    groups = {(group.namespace, group.name): group for group in scene.groups}
    routers = [router for router in scene.routers if any(part.uid == network.uid for part in router.status.networks)]
    beyond = {part.uid for router in routers for part in router.status.networks} - {network.uid}
    there = trace_ends.in_network(scene, network)
    sight = Sight(
        network=network,
        interfaces=tuple(there),
        groups=groups,
        hosts={_HERE: frozenset({interface.uid})},
        underlays={},
        routers=frozenset(
            address
            for router in routers
            for part in router.status.networks
            if part.uid == network.uid and not router.deleting
            for address in part.addresses
        ),
        beyond=tuple(
            nic for nic in scene.interfaces if nic.status.network in beyond and nic.status.mac_address is not None
        ),
    )
    own = {name: groups.get((interface.namespace, name)) for name in group_names(interface)}
    return Ported(
        interface,
        network,
        segment(sight, _HERE),
        nics.nic("nic", interface, own, None),
        groups,
        interface.namespace in scene.unread,
    )


def judge(port: Ported, way: Way, opening: Opening) -> Step:
    """Whether a group of the port lets it through."""
    where, out = way.value.capitalize(), way is Way.EGRESS
    names = group_names(port.interface)
    if port.unread:
        said = f"You may not see the security groups of namespace {port.interface.namespace}, which {port.interface.name} has."
        return Step(where, Verdict.UNKNOWN, said, f"networkinterface/{port.interface.name}")
    decision = decide(port.order.groups, port.nic.groups, way, opening)
    what = f"{_what(opening)} {'to' if out else 'from'} {opening.peer or 'an end whose address nobody knows'}"
    if decision is not None:
        group = next(group for group in port.groups.values() if group.uid == decision.group)
        number, rule = _rule(port, group, way, decision.number)
        return Step(
            where,
            Verdict.PASSES,
            f"SecurityGroup {group.name} of interface {port.interface.name} lets {what} {'out' if out else 'in'}"
            f" ({_said(rule)}).",
            f"securitygroup/{group.name}",
            f"spec.{way}[{number}]",
        )
    missing = [name for name in names if (port.interface.namespace, name) not in port.groups]
    gone = f" There is no SecurityGroup {', '.join(missing)}." if missing else ""
    listed = f"SecurityGroup {names[0]}" if len(names) == 1 else f"SecurityGroups {', '.join(names)}"
    where_to = "" if len(names) == 1 else " of one of them"
    if opening.peer is None and decide(port.order.groups, port.nic.groups, way, replace(opening, peer="192.0.2.1")):
        return Step(where, Verdict.UNKNOWN, f"Whether {listed} lets {what} depends on that address.")
    return Step(
        where,
        Verdict.DROPPED,
        f"No rule of {listed} of interface {port.interface.name} lets {what} {'out' if out else 'in'}: add one to"
        f" spec.{way}{where_to}.{gone}",
        f"securitygroup/{names[0]}",
    )


def _rule(port: Ported, group: SecurityGroup, way: Way, number: int) -> tuple[int, IngressRule | EgressRule]:
    """The rule as the group's spec has it, with its index there: those that hosts are not told of do not count for them."""
    rules: Sequence[IngressRule | EgressRule] = group.spec.egress if way is Way.EGRESS else group.spec.ingress
    told = [(at, rule) for at, rule in enumerate(rules) if filter_rule(rule, group, port.groups) is not None]
    return told[number]


def _said(rule: IngressRule | EgressRule) -> str:
    peer = rule.from_ if isinstance(rule, IngressRule) else rule.to
    whom = "anybody"
    if peer is not None and peer.security_group is not None:
        whom = f"members of {peer.security_group}"
    elif peer is not None and peer.cidrs:
        whom = ", ".join(peer.cidrs[:3]) + (", ..." if len(peer.cidrs) > 3 else "")
    ports = f" {', '.join(rule.ports)}" if rule.ports else ""
    return f"{rule.protocol}{ports} {'from' if isinstance(rule, IngressRule) else 'to'} {whom}"


def _what(opening: Opening) -> str:
    protocol = opening.protocol or Protocol.ANY
    return f"{protocol} {opening.port}" if opening.port is not None else str(protocol)


def told(scene: Scene, port: Ported) -> Step | None:
    """Whether the interface's host has been told of all that; None when the user cannot see it."""
    host = port.interface.status.host
    if scene.orders is None or host is None:
        return None
    order = scene.orders.get((host, segment_order_name(port.network.uid)))
    if order is None:
        return Step("Host", Verdict.UNKNOWN, f"Host {host} has not been told of Network {port.network.name} yet.")
    if (why := undone(order)) is not None:
        return Step("Host", Verdict.UNKNOWN, f"Host {host} has not done all that it was told of the network: {why}")
    if port.unread:
        return None  # there is nothing to hold it against
    known = order.spec.segment
    if known is None or _differs(port.order, known, port.nic.groups):
        return Step("Host", Verdict.UNKNOWN, f"Host {host} is not told yet of the security groups as they are now.")
    return Step(
        "Host", Verdict.PASSES, f"Host {host} has Network {port.network.name}, with the groups as they are now."
    )


def undone(order: WorkOrder) -> str | None:
    """Why what a host was told may not be so there; None when its agent says that it is."""
    status = order.status
    if (status.observed_generation or 0) < order.metadata.generation:
        return "its agent has not answered yet."
    if status.state is WorkState.READY:
        return None
    reason = f" ({status.reason})" if status.reason else ""
    return f"it is {status.state or 'not begun'}{reason}: {(status.message or 'no more is said').rstrip('.')}."


def _differs(wanted: SegmentOrder, known: SegmentOrder, own: Collection[str]) -> bool:
    """Whether what a host was told of these groups is another thing. Orders have the members of groups that rules name, by
    this host's ports; those that are named here have to be right, also when there is none."""
    there = {group.uid: group for group in known.groups}
    named = {
        rule.group
        for group in wanted.groups
        if group.uid in own
        for rule in (*group.ingress, *group.egress)
        if rule.group
    }
    for group in wanted.groups:
        other = there.get(group.uid)
        if other is None or (group.uid in named and group.members != other.members):
            return True
        if group.uid in own and (group.ingress, group.egress) != (other.ingress, other.egress):
            return True
    return False
