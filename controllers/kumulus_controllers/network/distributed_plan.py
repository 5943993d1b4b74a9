"""Routing on the hosts themselves: what a host has to know of a network's router, and what the router says of it. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kumulus.api.addresses import Address, MacAddress
from kumulus.api.base import ConditionStatus
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import Router
from kumulus.api.segments import DIRECT_MOST, DirectPort, NetworkDriverName, SegmentRouter
from kumulus.runtime.conditions import Fact
from kumulus_controllers.network.networks import at_home
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.orders import done, host_of

DRIVERS = frozenset({NetworkDriverName.OVN})
"""Those that route on each host."""
GATEWAYS_MOST = 8
CONDITION = "Distributed"


@dataclass(frozen=True, slots=True)
class Beside:
    """A network's router, and where the network is together with others of it."""

    router: Router
    hosts: frozenset[str]
    """Those that have guests, and another of the router's networks with this one."""
    gateways: tuple[MacAddress, ...]
    """MACs of its gateways in the network."""
    translated: frozenset[str] = frozenset()
    """Uids of interfaces that floating addresses stand for: a gateway has to see the answers, too."""


def router_of(network: Network, routers: Iterable[Router]) -> Router | None:
    """The router that has the network together with others, if its driver routes on hosts."""
    if network.status.driver not in DRIVERS:
        return None
    for router in routers:
        uids = {part.uid for part in router.status.networks}
        if not router.deleting and network.uid in uids and len(uids) > 1:
            return router
    return None


def part(
    network: Network, interfaces: Sequence[NetworkInterface], beside: Beside | None, host: str
) -> SegmentRouter | None:
    """What that host is told of the network's router; None when it has no use for it."""
    if beside is None or host not in beside.hosts or not beside.gateways:
        return None
    uid = beside.router.uid
    return SegmentRouter(
        uid=uid,
        mac=_mac(f"pass {uid} {network.uid} {host}"),
        gateways=beside.gateways[:GATEWAYS_MOST],
        direct=direct(network, interfaces, beside.translated),
    )


def direct(
    network: Network, interfaces: Sequence[NetworkInterface], translated: Collection[str]
) -> tuple[DirectPort, ...]:
    """Machines' interfaces, at their own addresses. Not at one that another interface may take over: who has that, only
    neighbours are told. Who may have all of a range is a router, and takes nobody's place."""
    own = [item.cidr for item in ranges(network)]
    single: dict[Address, set[str]] = {}
    several: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = []
    for interface in filter(at_home, interfaces):  # pairs of others do not count
        for pair in interface.spec.allowed_address_pairs:
            cidr = ipaddress.ip_network(pair.address)
            if cidr.num_addresses == 1:
                single.setdefault(str(cidr.network_address), set()).add(interface.uid)
            elif any(cidr.version == one.version and cidr.prefixlen > one.prefixlen for one in own):
                several.append((cidr, interface.uid))

    def shared(address: Address, uid: str) -> bool:
        number = ipaddress.ip_address(address)
        if single.get(address, set()) - {uid}:
            return True
        return any(number.version == cidr.version and number in cidr for cidr, other in several if other != uid)

    found: dict[MacAddress, tuple[Address, ...]] = {}
    for interface in interfaces:
        status = interface.status
        if status.vm is None or status.mac_address is None or interface.uid in translated:
            continue
        if addresses := tuple(one for one in status.addresses if not shared(one, interface.uid)):
            found[status.mac_address] = addresses
    return tuple(DirectPort(mac=mac, addresses=found[mac]) for mac in sorted(found)[:DIRECT_MOST])


def fact(router: Router, driver: NetworkDriverName, networks: int, segments: Sequence[WorkOrder]) -> Fact | None:
    """Whether packets between its networks need no gateway; None for one that has none to pass. `segments` are the orders of
    its networks."""
    if networks < 2:
        return None
    if driver not in DRIVERS:
        said = (
            f"The active host passes all that goes between its networks: the driver {driver} does not route on others."
        )
        return Fact(CONDITION, False, "OnGateway", said)
    told = [order for order in segments if _router_in(order) == router.uid]
    behind = {host_of(order) for order in told if _behind(order)}
    if behind:
        some = ", ".join(sorted(behind)[:5]) + (", ..." if len(behind) > 5 else "")
        said = f"Hosts that have several of its networks pass packets between them by themselves. {some} did not say so"
        what = "upgrade the agents there, or OVN if it is older than 22.06. The gateway passes them on meanwhile."
        return Fact(CONDITION, ConditionStatus.UNKNOWN, "AgentsBehind", f"{said}: {what}")
    said = "Hosts that have several of its networks pass packets between them by themselves."
    return Fact(CONDITION, True, "OnHosts", said)


def says(order: WorkOrder | None) -> tuple[object, ...]:
    """What of an order of a network decides what `fact` says."""
    return (_router_in(order), _behind(order)) if order is not None else ()


def _router_in(order: WorkOrder) -> str | None:
    told = order.spec.segment.router if order.spec.segment is not None else None
    return told.uid if told is not None else None


def _behind(order: WorkOrder) -> bool:
    """Whether its host was told of a router, and has done what it was told but that."""
    facts = order.status.segment
    return done(order) and _router_in(order) not in (None, facts.router if facts is not None else None)


def _mac(what: str) -> MacAddress:
    """Of the same kind as those of gateways' legs, and of none of them."""
    digits = hashlib.sha256(what.encode()).hexdigest()[:10]
    return ":".join(["0e", *(digits[at : at + 2] for at in range(0, 10, 2))])
