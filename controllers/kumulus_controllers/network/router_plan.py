"""A router: what it is to be on each of its hosts, and what it lacks. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.addresses import V4_BITS, Address, is_v4
from kumulus.api.gateways import (
    FLOATING_MOST,
    FORWARDS_MOST,
    FloatingAddress,
    Forward,
    GatewayLeg,
    GatewayOrder,
    Masquerade,
    Route,
    RouterFunction,
)
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import (
    ExternalNetwork,
    FloatingIP,
    PhysicalNetwork,
    Router,
    StaticRoute,
)
from kumulus.api.segments import NetworkDriverName, Uplink
from kumulus_controllers.network.gateway_plan import leg_mac, redundancy
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import usable
from kumulus_controllers.network.ranges import Range, external_range, ranges

ACROSS = 2
"""Hosts that a router is on which is to be highly available."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a router has read."""

    router: Router
    networks: Mapping[str, Network | None] = field(default_factory=dict)
    """Those that it names, by name; None for one that is not there."""
    occupied: frozenset[str] = frozenset()
    """Names of those that somebody has interfaces in."""
    external: ExternalNetwork | None = None
    physical: PhysicalNetwork | None = None
    devices: Mapping[str, str] = field(default_factory=dict)
    """The way into the physical network, by host."""
    floating: Sequence[FloatingIP] = ()
    """Those that it has, the oldest first."""
    interfaces: Mapping[str, NetworkInterface] = field(default_factory=dict)
    """Whom they stand for, by name."""
    orders: Mapping[str, WorkOrder] = field(default_factory=dict)
    """What its hosts are told, by host."""
    silent: frozenset[str] = frozenset()
    """Hosts whose agents are not heard of."""
    segments: Sequence[WorkOrder] = ()
    """What hosts are told of its networks."""
    untold: frozenset[str] = frozenset()
    """Hosts with interfaces in its networks that do not know yet where the host is that routes; of one that was Ready none."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a router has by claims."""

    networks: tuple[Network, ...] = ()
    external: Address | None = None


def unusable(scope: Scope) -> Mapping[str, Lack]:
    """Why the router cannot have networks that it names, by name. Of two that do not go together it has the one that it has
    already, else the first by name; one that it cannot have stands in nobody's way. One that is being deleted it keeps while
    somebody is in it."""
    had = _had(scope)
    lacks: dict[str, Lack] = {}
    good: list[Network] = []
    for name, network in sorted(
        scope.networks.items(), key=lambda item: (item[1] is None or item[1].uid not in had, item[0])
    ):
        lack = usable(network, scope.router.namespace, name, None)
        if network is not None and (lack is None or _stays(scope, network)):
            lack = _against(scope, network, good)
        if lack is not None:
            lacks[name] = lack
        elif network is not None:
            good.append(network)
    return lacks


def _had(scope: Scope) -> set[str]:
    return {part.uid for part in scope.router.status.networks}


def _stays(scope: Scope, network: Network) -> bool:
    return network.deleting and network.uid in _had(scope) and network.name in scope.occupied


def has_external(scope: Scope) -> bool:
    """Whether the router has its leg in the external network by its own record. What that lacks by now takes it from nobody."""
    return scope.external is not None and scope.router.status.external_network == scope.external.uid


def _against(scope: Scope, network: Network, good: Sequence[Network]) -> Lack | None:
    """Why the router cannot have a network together with these."""
    name = network.name
    if not network.spec.cidrs:
        return Lack("NetworkWithoutRange", f"Network {name} is of the type L2 and has no addresses: take it out.")
    first = next(iter(good), network)
    if network.status.driver is not first.status.driver:
        return Lack(
            "DriversDiffer",
            f"Networks {first.name} and {name} are made by different drivers: make networks of one class.",
        )
    mine = [item.cidr for item in ranges(network)]
    for other in good:
        theirs = [item.cidr for item in ranges(other)]
        if any(one.version == two.version and one.overlaps(two) for one in mine for two in theirs):
            return Lack("NetworksOverlap", f"Networks {other.name} and {name} have addresses in common: take one out.")
    external = scope.external
    if external is not None and _overlaps_world(network, external) and (has_external(scope) or not _in_service(scope)):
        return Lack(
            "NetworksOverlap",
            f"Network {name} and ExternalNetwork {external.name} have addresses in common: take it out.",
        )
    return None


def _overlaps_world(network: Network, external: ExternalNetwork) -> bool:
    world = ipaddress.ip_network(external.spec.cidr)
    return any(item.cidr.version == world.version and item.cidr.overlaps(world) for item in ranges(network))


def _in_service(scope: Scope) -> tuple[str, ...]:
    """Names of networks that the router has already and that overlap its external network."""
    had, external = _had(scope), scope.external
    return tuple(
        name
        for name, network in sorted(scope.networks.items())
        if external is not None and network is not None and network.uid in had and _overlaps_world(network, external)
    )


def world_lack(scope: Scope) -> Lack | None:
    """Why the router cannot have a leg in its external network; None also when it is to have none. What is in service keeps
    its router: it is the external network that is refused."""
    wanted = scope.router.spec.external_network
    if wanted is None:
        return None
    lack = external_lack(scope.external, scope.physical, wanted, scope.router.namespace)
    if lack is None and not has_external(scope) and (networks := _in_service(scope)):
        several = len(networks) > 1
        return Lack(
            "NetworksOverlap",
            f"ExternalNetwork {wanted} and {'Networks' if several else 'Network'} {', '.join(networks)}, which"
            f" {'go' if several else 'goes'} on, have addresses in common, so the router has no way to the world: name another"
            f" ExternalNetwork, or take {'those networks' if several else 'that network'} out.",
        )
    return lack


def external_lack(
    external: ExternalNetwork | None, physical: PhysicalNetwork | None, name: str, namespace: str | None
) -> Lack | None:
    """Why an external network cannot be used in a namespace. One that the namespace may not use is as one that is not there;
    that is no secret, for who may read the catalog (`kumulus-catalog`) sees all of them, as instance types and classes."""
    allowed = external.spec.allowed_namespaces if external is not None else ()
    if external is None or (allowed and namespace not in allowed):
        return Lack(
            "ExternalNetworkNotFound",
            f"There is no ExternalNetwork {name} that may be used in namespace {namespace}. What there is: kubectl get"
            " externalnetworks.",
        )
    if external.deleting:
        return Lack("ExternalNetworkDeleting", f"ExternalNetwork {name} is being deleted.")
    if physical is None:
        return Lack(
            "PhysicalNetworkNotFound",
            f"ExternalNetwork {name} is in PhysicalNetwork {external.spec.physical_network}, which is not there: ask the"
            " operator.",
        )
    ready = external.status.condition("Ready") if external.spec.vlan is not None else None
    if external.spec.vlan is not None and (ready is None or ready.reason == "VlanInUse"):
        why = ready.message if ready is not None else f"VLAN {external.spec.vlan} is not known to be its own yet."
        return Lack("VlanInUse", f"ExternalNetwork {name} cannot be used: {why}", stalled=ready is not None)
    return None


def own_lack(scope: Scope, held: Held) -> Lack | None:
    """What of the router's own spec cannot be done: a static route that leads nowhere, no source NAT, or more
    floating addresses than an order has room for."""
    for route in scope.router.spec.static_routes:
        if (lack := _route_lack(scope, held, route)) is not None:
            return lack
    external = scope.external
    if held.external is not None and external is not None and not _bare(scope) and not scope.router.spec.source_nat:
        return Lack(
            "SourceNATRequired",
            f"ExternalNetwork {external.name} takes no addresses of tenants' networks: set spec.sourceNAT to true, as it is"
            " done meanwhile.",
        )
    if left := _floating(scope, held).left:
        some = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        return Lack(
            "TooManyFloatingIPs",
            f"A router can have {FLOATING_MOST} FloatingIPs and {FORWARDS_MOST} port forwards: it has none of {some}. Delete"
            " some, or make another router.",
        )
    return None


def _bare(scope: Scope) -> bool:
    """Whether packets go to the world with addresses of tenants."""
    return not scope.router.spec.source_nat and scope.external is not None and scope.external.spec.allow_routed


def _route_lack(scope: Scope, held: Held, route: StaticRoute) -> Lack | None:
    near = [item.cidr for network in held.networks for item in ranges(network)]
    hop, to = ipaddress.ip_address(route.next_hop), ipaddress.ip_network(route.destination)
    if not any(hop in cidr for cidr in near):
        return Lack(
            "RouteUnreachable",
            f"The next hop {route.next_hop} of the route to {route.destination} is in none of the router's networks:"
            " correct spec.staticRoutes.",
        )
    if scope.external is not None:  # nobody behind a tenant's machine has an address of the world
        near.append(ipaddress.ip_network(scope.external.spec.cidr))
    if hop.version != to.version or any(to.version == cidr.version and to.overlaps(cidr) for cidr in near):
        return Lack(
            "RouteUseless",
            f"The route to {route.destination} is in a network of the router, or of another family than its next hop:"
            " correct spec.staticRoutes.",
        )
    return None


def external_of(external: ExternalNetwork) -> Range:
    """Its addresses, as those of a network."""
    spec = external.spec
    return external_range(spec.cidr, spec.gateway, spec.ranges)


def function(scope: Scope, held: Held) -> RouterFunction:
    """What the router does, on whichever host."""
    spec = scope.router.spec
    routes = [
        Route(destination=route.destination, via=route.next_hop)
        for route in spec.static_routes
        if _route_lack(scope, held, route) is None
    ]
    masquerade: tuple[Masquerade, ...] = ()
    if held.external is not None and scope.external is not None:
        v4 = is_v4(held.external)
        routes.append(Route(destination="0.0.0.0/0" if v4 else "::/0", via=scope.external.spec.gateway))
        cidrs = [str(item.cidr) for network in held.networks for item in ranges(network)]
        sources = tuple(sorted({one for one in (*cidrs, *(r.destination for r in routes[:-1])) if is_v4(one) is v4}))
        if not _bare(scope) and sources:
            masquerade = (Masquerade(sources=sources, address=held.external),)
    stands = _floating(scope, held)
    return RouterFunction(
        routes=tuple(routes), masquerade=masquerade, floating=tuple(stands.whole.values()), forwards=tuple(stands.ports)
    )


@dataclass(frozen=True, slots=True)
class _Floating:
    """What floating addresses stand for."""

    whole: dict[Address, FloatingAddress] = field(default_factory=dict)
    """By the interface's own address."""
    ports: list[Forward] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Names of those that are too many."""


def _floating(scope: Scope, held: Held) -> _Floating:
    """What its floating addresses stand for, of each all or nothing, as long as an order has room: the oldest first."""
    found = _Floating()
    if held.external is None or scope.external is None:
        return found
    v4, uids = is_v4(held.external), {network.uid for network in held.networks}
    told: set[Address] = set()
    for item in scope.floating:
        external = item.status.address
        if external is None or item.status.network != scope.external.uid or item.deleting:
            continue
        whole = None
        if item.spec.target is not None:
            internal = _address(scope.interfaces.get(item.spec.target.interface), uids, v4=v4)
            if internal is not None and internal not in found.whole:  # of two for one interface the older one counts
                whole = FloatingAddress(external=external, internal=internal)
        ports = [
            Forward(
                external=external,
                protocol=forward.protocol,
                port=forward.port,
                internal=internal,
                target_port=forward.target_port or forward.port,
            )
            for forward in item.spec.port_forwards
            if (internal := _address(scope.interfaces.get(forward.interface), uids, v4=v4)) is not None
        ]
        if whole is None and not ports:
            continue
        if len(told | {external}) > FLOATING_MOST or len(found.ports) + len(ports) > FORWARDS_MOST:
            found.left.append(item.name)
            continue
        told.add(external)
        found.ports.extend(ports)
        if whole is not None:
            found.whole[whole.internal] = whole
    return found


def _address(nic: NetworkInterface | None, networks: set[str], *, v4: bool) -> Address | None:
    """The address that a floating address can stand for: the interface's first of its family."""
    if nic is None or nic.deleting or nic.status.network not in networks:
        return None
    return next((address for address in nic.status.addresses if is_v4(address) is v4), None)


def order(
    scope: Scope, held: Held, does: RouterFunction, host: str, across: Sequence[str], underlays: Mapping[str, Address]
) -> GatewayOrder:
    """The router on one of its hosts."""
    uid = scope.router.uid
    legs = [
        GatewayLeg(
            network=network.uid,
            mac=leg_mac(uid, network.uid, host),
            mtu=network.status.mtu or 1280,
            addresses=tuple(f"{item.gateway}/{item.cidr.prefixlen}" for item in ranges(network)),
        )
        for network in held.networks
    ]
    external, device = scope.external, scope.devices.get(host)
    mtu = scope.physical.spec.mtu if scope.physical is not None else 1500
    before = scope.orders[host].spec.gateway if host in scope.orders else None
    for leg in before.legs if before is not None and scope.physical is None else ():
        if external is not None and leg.network == external.uid and leg.uplink is not None:
            device, mtu = leg.uplink.device, leg.mtu  # what says otherwise is gone
    if held.external is not None and external is not None and device is not None:
        length = ipaddress.ip_network(external.spec.cidr).prefixlen
        single = V4_BITS if is_v4(held.external) else 128
        others = {item.external for item in does.floating} | {item.external for item in does.forwards}
        legs.append(
            GatewayLeg(
                network=external.uid,
                uplink=Uplink(device=device, vlan=external.spec.vlan),
                mac=leg_mac(uid, external.uid, host),
                mtu=mtu,
                addresses=(f"{held.external}/{length}", *(f"{one}/{single}" for one in sorted(others))),
            )
        )
    return GatewayOrder(
        uid=uid,
        driver=driver(held),
        legs=tuple(legs),
        redundancy=redundancy(uid, host, across, underlays),
        router=does,
    )


def driver(held: Held) -> NetworkDriverName:
    """What makes the router: what makes its networks."""
    return next((n.status.driver for n in held.networks if n.status.driver is not None), NetworkDriverName.LINUX)


def hosts(scope: Scope) -> tuple[str, ...]:
    """The hosts that have it and are to keep it, those first that had it first."""
    current = sorted(scope.orders, key=lambda host: (scope.orders[host].metadata.creation_timestamp or "", host))
    return tuple(host for host in current if not scope.orders[host].deleting)
