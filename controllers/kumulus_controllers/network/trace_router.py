"""What a router does with a packet, by the very function that its hosts are told. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from kumulus.api.addresses import Address, is_v4
from kumulus.api.gateways import ForwardProtocol, RouterFunction
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.order_names import gateway_order_name
from kumulus.api.passage import within
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.api.segments import Protocol
from kumulus.api.trace import Scene, Step, Verdict
from kumulus_controllers.network import router_plan
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.network.trace_filter import undone


@dataclass(frozen=True, slots=True)
class Routed:
    """A router with what it is told."""

    router: Router
    networks: tuple[Network, ...]
    external: ExternalNetwork | None
    does: RouterFunction
    partial: bool = False
    """Not all of its networks and floating addresses are known: what it does is not either."""

    @property
    def own(self) -> frozenset[Address]:
        """The addresses at which it is there itself. Where a floating one is somebody's, that one gets it before."""
        status = self.router.status
        found = {address for part in status.networks for address in part.addresses}
        found |= {status.external_address} if status.external_address is not None else set()
        found |= {one.external for one in self.does.floating} | {one.external for one in self.does.forwards}
        return frozenset(found)

    def network_with(self, address: Address) -> Network | None:
        """The network of its own that the address is of."""
        number = ipaddress.ip_address(address)
        return next((net for net in self.networks if any(number in item.cidr for item in ranges(net))), None)

    def own_in(self, network: Network, *, v4: bool) -> Address | None:
        """Its own address there."""
        parts = (part for part in self.router.status.networks if part.uid == network.uid)
        return next((address for part in parts for address in part.addresses if is_v4(address) is v4), None)


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a router sends a packet."""

    network: Network | None
    """None: the external network."""
    via: Address | None = None
    """Who is to pass it on; None: it is for somebody there."""
    destination: str = ""
    """The range of the route."""


def routed(scene: Scene, router: Router) -> Routed:
    """The router as its hosts are told of it, by the addresses that it has on record."""
    mine = {part.uid for part in router.status.networks}
    networks = tuple(sorted((net for net in scene.networks if net.uid in mine), key=lambda net: net.name))
    external = next((one for one in scene.externals if one.uid == router.status.external_network), None)
    floating = sorted(
        (one for one in scene.floating if one.namespace == router.namespace and one.status.router == router.name),
        key=lambda one: (one.metadata.creation_timestamp or "", one.name),
    )
    read = router_plan.Scope(
        router=router,
        external=external,
        floating=floating,
        interfaces={nic.name: nic for nic in scene.interfaces if nic.namespace == router.namespace},
    )
    held = router_plan.Held(networks, router.status.external_address)
    partial = router.uid in scene.partial or mine != {net.uid for net in networks}
    return Routed(router, networks, external, router_plan.function(read, held), partial)


def state(scene: Scene, found: Routed) -> Step:
    """Whether it routes."""
    router, host = found.router, found.router.status.active_host
    named = f"router/{router.name}"
    if host is None or router.deleting:
        ready = router.status.condition("Ready")
        why = f" ({ready.reason}): {(ready.message or '').rstrip('.')}" if ready is not None else ""
        if ready is not None and ready.reason == "NotActive" and not router.deleting:
            said = f"No host says that it routes for Router {router.name}{why}. One that is not heard of may."
            return Step("Router", Verdict.UNKNOWN, said, named)
        return Step("Router", Verdict.DROPPED, f"No host routes for Router {router.name}{why}.", named)
    if found.partial:
        said = f"You may not see all that Router {router.name} of namespace {router.namespace} has: what it does is not known."
        return Step("Router", Verdict.UNKNOWN, said, named)
    order = (scene.orders or {}).get((host, gateway_order_name(router.uid)))
    if order is not None:
        told = order.spec.gateway.router if order.spec.gateway is not None else None
        late = undone(order) or ("it is not told yet of it as it is now." if told != found.does else None)
        if late is not None:
            return Step(
                "Router",
                Verdict.UNKNOWN,
                f"Host {host} routes for Router {router.name}, maybe not as it should: {late}",
                named,
            )
    if scene.hosts is not None and (sentence := silent(scene, host)) is not None:
        return Step(
            "Router", Verdict.UNKNOWN, f"Router {router.name} was last active on host {host}. {sentence}", named
        )
    return Step("Router", Verdict.PASSES, f"Router {router.name} gets it; host {host} routes.", named)


def silent(scene: Scene, host: str) -> str | None:
    """What is to be said of a host that is not ready; None when it is, or nobody can see."""
    known = scene.hosts.get(host) if scene.hosts is not None else None
    ready = known.status.condition("Ready") if known is not None else None
    if known is None or ready is None or ready.status == "True":
        return None
    return f"Host {host} is {known.status.phase or 'not ready'}: what is there now is not known."


def arrives(
    found: Routed, target: Address, protocol: Protocol, port: int | None
) -> tuple[Address, int | None, Step | None]:
    """Destination and port once it is known whom a floating address stands for."""
    for forward in found.does.forwards:
        wanted = Protocol.TCP if forward.protocol is ForwardProtocol.TCP else Protocol.UDP
        if (forward.external, wanted, forward.port) == (target, protocol, port):
            step = _translation(
                f"Port {port} of {target} is a port forward to {forward.internal}, port {forward.target_port}.", target
            )
            return forward.internal, forward.target_port, step
    for one in found.does.floating:
        if one.external == target:
            return one.internal, port, _translation(f"The floating IP {target} stands for {one.internal}.", target)
    return target, port, None


def departs(found: Routed, source: Address) -> tuple[Address, Step]:
    """Source address in the external network."""
    for one in found.does.floating:
        if one.internal == source:
            said = f"It leaves with the floating IP {one.external} in the place of {source}."
            return one.external, _translation(said, one.external)
    for rule in found.does.masquerade:
        if is_v4(rule.address) is is_v4(source) and within(source, rule.sources):
            said = f"It leaves with the router's own address {rule.address} in the place of {source} (source NAT)."
            return rule.address, Step(
                "Translation", Verdict.PASSES, said, f"router/{found.router.name}", "spec.sourceNAT"
            )
    said = f"It leaves as {source}: the router does no source NAT, so the world needs a route back."
    return source, Step("Translation", Verdict.PASSES, said, f"router/{found.router.name}", "spec.sourceNAT")


def _translation(said: str, address: Address) -> Step:
    return Step("Translation", Verdict.PASSES, said, f"floatingip/{address}")


def masks(found: Routed, *, v4: bool) -> bool:
    """Whether connections from the world to addresses of tenants are refused: they have those of the router there."""
    return any(is_v4(rule.address) is v4 for rule in found.does.masquerade)


def hop(found: Routed, target: Address) -> Hop | None:
    """The way with the longest prefix; None when there is none."""
    number = ipaddress.ip_address(target)
    near = [(item.cidr, Hop(network)) for network in found.networks for item in ranges(network)]
    if found.external is not None and found.router.status.external_address is not None:
        near.append((ipaddress.ip_network(found.external.spec.cidr), Hop(None)))
    for route in found.does.routes:
        far = ipaddress.ip_network(route.destination)
        near.append((far, Hop(found.network_with(route.via), route.via, route.destination)))
    fitting = [(cidr, way) for cidr, way in near if cidr.version == number.version and number in cidr]
    return max(fitting, key=lambda one: one[0].prefixlen, default=(None, None))[1]


def standing_for(scene: Scene, address: Address) -> FloatingIP | None:
    """The floating IP of that address."""
    return next((one for one in scene.floating if one.status.address == address), None)


def owner(scene: Scene, address: Address) -> Router | None:
    """The router that answers for an address of an external network."""
    if (floating := standing_for(scene, address)) is not None:
        named = (floating.namespace, floating.status.router)
        return next((router for router in scene.routers if (router.namespace, router.name) == named), None)
    return next((router for router in scene.routers if router.status.external_address == address), None)


def entrances(
    scene: Scene, nic: NetworkInterface, protocol: Protocol, port: int | None
) -> Sequence[tuple[Address, int | None]]:
    """Where the world reaches an interface: addresses of floating IPs with the ports there, the whole ones first."""
    whole: list[tuple[Address, int | None]] = []
    ports: list[tuple[Address, int | None]] = []
    for one in scene.floating:
        if one.status.address is None or one.namespace != nic.namespace:
            continue
        if one.spec.target is not None and one.spec.target.interface == nic.name:
            whole.append((one.status.address, port))
        for forward in one.spec.port_forwards:
            same = (forward.target_port or forward.port) == port and forward.protocol.value == protocol.value
            if forward.interface == nic.name and same:
                ports.append((one.status.address, forward.port))
    return [*whole, *ports]
