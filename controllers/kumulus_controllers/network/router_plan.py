"""A router: what it is to be on each of its hosts, what it lacks, and what its status says. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.addresses import V4_BITS, Address, is_v4
from kumulus.api.base import ConditionStatus
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
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import (
    ExternalNetwork,
    FloatingIP,
    PhysicalNetwork,
    RoutedNetwork,
    Router,
    RouterPhase,
    RouterStatus,
    StaticRoute,
)
from kumulus.api.segments import NetworkDriverName, Uplink
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.network import distributed_plan
from kumulus_controllers.network.gateway_plan import Choice, leg_mac, redundancy
from kumulus_controllers.network.lack import Lack, facts
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


def active(orders: Mapping[str, WorkOrder], silent: frozenset[str]) -> str | None:
    """The host that says that it is active. One that is not heard of is not believed while another says so too."""
    saying = [
        host for host, item in sorted(orders.items()) if item.status.gateway is not None and item.status.gateway.active
    ]
    heard = [host for host in saying if host not in silent]
    return next(iter(heard), None)


def derive_status(scope: Scope, held: Held, choice: Choice | None, lack: Lack | None, now: str) -> RouterStatus:
    """The whole status. What hosts do is what their agents say."""
    router, before = scope.router, scope.router.status
    where = active(scope.orders, scope.silent)
    generation = router.metadata.generation
    trouble = _trouble(scope, where)
    found: list[Fact]
    if router.deleting:
        phase, found = (
            RouterPhase.TERMINATING,
            facts(lack or Lack("Terminating", "Its hosts let go of it.", stalled=False), ""),
        )
    else:
        lack = _together(lack, trouble) or _behind(scope, where)
        phase = RouterPhase.ACTIVE if where is not None else RouterPhase.PENDING
        if lack is not None and where is None and lack.stalled:
            phase = RouterPhase.FAILED
        found = facts(lack, "Active", f"Host {where} routes.")
        if router.spec.high_availability and choice is not None and choice.hosts:
            found.append(_redundant(scope, choice, where))
            found += _kept(scope, choice)
        distributed = distributed_plan.fact(router, driver(held), len(held.networks), scope.segments)
        found += [distributed] if distributed is not None else []
    standby = tuple(sorted(h for h, o in scope.orders.items() if h != where and o.status.state is WorkState.READY))
    return RouterStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, found, generation=generation, now=now),
        phase=phase,
        networks=tuple(
            RoutedNetwork(
                name=network.name, uid=network.uid, addresses=tuple(str(item.gateway) for item in ranges(network))
            )
            for network in held.networks
        ),
        external_network=scope.external.uid if scope.external is not None and held.external is not None else None,
        external_address=held.external,
        active_host=where,
        standby_hosts=tuple(host for host in standby if host not in scope.silent),
    )


def _redundant(scope: Scope, choice: Choice, where: str | None) -> Fact:
    if choice.short:
        said = "; ".join(f"{name}: {why}" for name, why in sorted((choice.refused or {}).items())[:5])
        return Fact(
            "Redundant",
            False,
            "NoStandby",
            f"No other host can take over ({said or 'there is no other'}). It goes on by itself when one can.",
        )
    failed = _failed(scope)
    ready = [host for host in choice.hosts if host not in (*failed, *scope.silent, where)]
    others = [lack for host, lack in failed.items() if host != where]
    if others and where is not None and not ready:  # who is ready stands by, whatever another one lacks
        return Fact("Redundant", False, others[0].reason, f"{others[0].message} No other host can take over.")
    return Fact("Redundant", True, "Redundant", "Another host can take over.")


def _failed(scope: Scope) -> dict[str, Lack]:
    """What hosts say that they cannot do, by host. What is not heard of says nothing."""
    return {
        host: Lack(item.status.reason or "Failed", f"Host {host}: {item.status.message or 'it failed'}")
        for host, item in sorted(scope.orders.items())
        if item.status.state is WorkState.FAILED and host not in scope.silent
    }


def _kept(scope: Scope, choice: Choice) -> list[Fact]:
    """Whether translated connections go on when another host takes over, as hosts say that are heard of. Nothing is said
    where no other one can."""
    said = [
        (host, item.status.gateway)
        for host, item in sorted(scope.orders.items())
        if item.status.gateway and host not in scope.silent
    ]
    if choice.short or not said:
        return []
    if why := "; ".join(f"host {host}: {facts.unkept}" for host, facts in said if facts.unkept):
        lost = "Connections that are translated break when another host takes over"
        return [Fact("ConnectionsKept", False, "NotCopied", f"{lost} ({why[:600]}).")]
    if older := [host for host, facts in said if facts.kept is None]:
        lost = f"The agents of {', '.join(older[:5])} do not say whether they copy connections: upgrade them"
        return [Fact("ConnectionsKept", ConditionStatus.UNKNOWN, "NotSaid", f"{lost}.")]
    if len(said) < 2:  # one host alone copies to nobody
        return []
    return [Fact("ConnectionsKept", True, "Copied", "Open connections go on when another host takes over.")]


def _trouble(scope: Scope, where: str | None) -> Lack | None:
    """What agents say that keeps it from routing as it shall. What keeps another host from standing by is not of these, if
    there shall be one: it is said of that (`_redundant`)."""
    failed = _failed(scope)
    stands_by = where is not None and scope.router.spec.high_availability
    if (lack := failed.get(where or "") if stands_by else next(iter(failed.values()), None)) is not None:
        return lack
    if where is None:
        some = ", ".join(sorted(scope.orders)) or "a host"
        return Lack("NotActive", f"No host says yet that it routes; {some} is told to.", stalled=False)
    return None


NOT_TOLD = "HostsNotTold"


def was_ready(router: Router) -> bool:
    """By its own record."""
    ready = router.status.condition("Ready")
    return ready is not None and ready.status is ConditionStatus.TRUE


def _behind(scope: Scope, where: str | None) -> Lack | None:
    """That hosts which the router is new to do not take its packets yet. Of one that was Ready nobody says so: changes that
    others cause are on their way to hosts all the time."""
    waiting = sorted(scope.untold - scope.silent)
    if where is None or not waiting or was_ready(scope.router):
        return None
    some = ", ".join(waiting[:5]) + (", ..." if len(waiting) > 5 else "")
    return Lack(NOT_TOLD, f"Host {where} routes; {some}, with interfaces of its networks, hear of it.", stalled=False)


def _together(lack: Lack | None, trouble: Lack | None) -> Lack | None:
    """What the router lacks, and with it what its hosts could not do: neither hides the other."""
    if lack is None or trouble is None or not trouble.stalled:
        return lack or trouble
    return Lack(lack.reason, f"{lack.message} Besides, {trouble.reason}: {trouble.message}", stalled=True)
