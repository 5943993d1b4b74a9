"""The way of a packet from one end to the other, step by step, as far as objects of the API tell. Pure.

Nothing is decided here that is decided elsewhere: groups are judged by the order that hosts are told (`segment_plan`), and
routers do what theirs says (`router_plan`). After something that drops the packet it is still said what else would.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from kumulus.api.addresses import Address, is_v4
from kumulus.api.network import Network, NetworkInterface, NetworkType
from kumulus.api.order_names import gateway_order_name
from kumulus.api.passage import METADATA, Way, serves, within
from kumulus.api.routing import RoutedNetwork, Router
from kumulus.api.segments import Protocol
from kumulus.api.trace import Question, Scene, Trace, Unclear, Verdict
from kumulus_controllers.network import trace_direct, trace_ends, trace_router
from kumulus_controllers.network.networks import at_home
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.network.trace_ends import End
from kumulus_controllers.network.trace_interface import AtInterface
from kumulus_controllers.network.trace_router import Routed

WORLD = {4: "198.51.100.1", 6: "2001:db8::1"}
"""What `outside` stands for (RFC 5737, RFC 3849)."""

_GUESTS = (
    "What guests do themselves: their own firewalls and routes, and whether anything listens.",
    "How much passes: bandwidths, and how many connections an interface may have.",
    "The wires between hosts and to the world, and what is beyond the world's gateway.",
    "Connections that are open already: a rule that is taken away cuts them, answers pass by themselves.",
)
_NO_ORDERS = "Whether hosts have been told of it and have done it: you may not see their work orders."
_NO_MACHINES = (
    "Whether hosts have been told which groups an interface is in: that is in its machine's order, not looked at."
)
_NO_HOSTS = "Whether hosts are up: you may not see them."


@dataclass(frozen=True, slots=True)
class _Start:
    """Where it begins and where it is to go."""

    nic: NetworkInterface | None
    source: Address | None
    target: Address | None
    port: int | None
    goal: NetworkInterface | None = None


def trace(scene: Scene, question: Question) -> Trace:
    """What becomes of the packet. Raises `Unclear`."""
    source = trace_ends.find(scene, question.source, question.namespace)
    target = trace_ends.find(scene, question.target, question.namespace)
    start = _choose(scene, question, source, target)
    walk = _Walk(scene, question)
    if start.nic is not None:
        walk.begin(start.nic, start.source, start.target, start.goal)
    elif start.target is not None and start.source is not None:
        walk.enter(start.source, start.target, start.port)
    else:
        assert start.goal is not None
        walk.closed(start.goal)
    unseen = [*walk.unseen, *_GUESTS]
    unseen += [_NO_ORDERS] if scene.orders is None else [_NO_MACHINES]
    unseen += [_NO_HOSTS] if scene.hosts is None else []
    return Trace(
        _named(source, start.nic, start.source),
        _named(target, start.goal, start.target),
        walk.steps,
        unseen,
        frozenset(walk.needs),
    )


def _named(end: End, nic: NetworkInterface | None, address: Address | None) -> str:
    parts = [part for part in (nic.name if nic is not None else None, address) if part not in (None, end.said)]
    return f"{end.said} ({', '.join(map(str, parts))})" if parts else end.said


def _choose(scene: Scene, question: Question, source: End, target: End) -> _Start:
    """Which of their interfaces and addresses: those in one network first, then those that a router connects."""
    if source.outside:
        return _from_world(scene, question, source, target)
    found = list(_starts(scene, question, source, target))
    if not found:
        raise Unclear("The two ends have no addresses of one family: name an address.")
    return min(found, key=lambda one: one[0])[1]


def _starts(scene: Scene, question: Question, source: End, target: End) -> Iterator[tuple[int, _Start]]:
    """How good, the less the better."""
    goals: list[tuple[NetworkInterface | None, Address | None]] = [(nic, target.address) for nic in target.interfaces]
    goals = goals or [(None, target.address)]
    for nic in source.interfaces:
        own = (
            [question.sent_from or source.address]
            if question.sent_from or source.address
            else list(nic.status.addresses)
        )
        network = trace_ends.network_of(scene, nic)
        routers = [
            r for r in scene.routers if network is not None and network.uid in {n.uid for n in r.status.networks}
        ]
        for goal, meant in goals:
            theirs = [meant] if meant is not None else list(goal.status.addresses) if goal is not None else []
            if goal is None and meant is None:
                theirs = [WORLD[ipaddress.ip_address(one).version] for one in own if one is not None]
            same = goal is not None and goal.status.network == nic.status.network and nic.status.network is not None
            joined = goal is not None and any(
                goal.status.network in {n.uid for n in r.status.networks} for r in routers
            )
            if goal is None and meant is not None and network is not None:
                same = within(meant, network.spec.cidrs)
            far = 0 if same else 2 if joined or (goal is None and routers) else 4
            pairs = [(a, b) for a in own for b in theirs if a is not None and is_v4(a) is is_v4(b)]
            for one, other in pairs:
                yield far + (0 if is_v4(one) else 1), _Start(nic, one, other, question.port, goal)
            if not pairs and (not own or not theirs):  # of type L2, or without addresses yet
                yield far + 8, _Start(nic, next(iter(own), None), next(iter(theirs), None), question.port, goal)


def _from_world(scene: Scene, question: Question, source: End, target: End) -> _Start:
    if target.outside:
        if target.address is None:
            raise Unclear("Both ends are outside: name a machine or an interface.")
        return _Start(None, _world(source, target.address), target.address, question.port)
    for nic in target.interfaces:
        for address, port in trace_router.entrances(scene, nic, question.protocol, question.port):
            return _Start(None, _world(source, address), address, port, nic)
    for nic in target.interfaces:
        for router in scene.routers:
            found = trace_router.routed(scene, router)
            if found.external is None or nic.status.network not in {net.uid for net in found.networks}:
                continue
            v4 = is_v4(found.external.spec.cidr)
            own = [target.address] if target.address is not None else nic.status.addresses
            bare = next((one for one in own if is_v4(one) is v4), None)
            if bare is not None and not trace_router.masks(found, v4=v4):
                return _Start(None, _world(source, bare), bare, question.port, nic)
    return _Start(None, None, None, question.port, target.interfaces[0])


def _world(source: End, target: Address) -> Address:
    version = ipaddress.ip_address(target).version
    if source.address is None:
        return WORLD[version]
    if ipaddress.ip_address(source.address).version != version:
        raise Unclear(f"{source.address} and {target} are of different families: name another address.")
    return source.address


@dataclass
class _Walk(AtInterface):
    """Follows the packet."""

    _passed: set[str] = field(default_factory=set)
    """Uids of routers: of two that send it to each other nobody delivers it."""

    # From a guest

    def begin(
        self, nic: NetworkInterface, source: Address | None, target: Address | None, goal: NetworkInterface | None
    ) -> None:
        """From the interface on."""
        balancer = trace_ends.balancer_of(self.scene, nic)
        if balancer is None:
            self.guest(nic, "sends")
        port = self.ported(nic)
        if port is None:
            return
        network = port.network
        if balancer is None:
            if source is not None:
                self.own(port, source)
            self.filter(port, Way.EGRESS, target, self.question.port)
            self.host(port)
        if target is not None and serves(port.order, target):
            what = "metadata" if target == METADATA else "DHCP, names and metadata"
            self.step("Service", Verdict.PASSES, f"{target} is where the guest's own host answers for {what}.")
        elif target is None and goal is not None:
            if goal.status.network == network.uid:
                self.reach(goal, network, source, target, self.question.port, nic)
            else:
                self.step(
                    "Network",
                    Verdict.DROPPED,
                    f"{goal.name} is in another network, and has no address to be routed to.",
                )
        elif target is not None and (not network.spec.cidrs or within(target, network.spec.cidrs)):
            self.step("Network", Verdict.PASSES, f"{target} is in Network {network.name} itself: no router is asked.")
            self.deliver(network, source, target, self.question.port, nic)
        elif target is not None:
            self.leave(network, source, target, nic)

    # In a network

    def deliver(
        self,
        network: Network,
        source: Address | None,
        target: Address,
        number: int | None,
        sender: NetworkInterface | None,
    ) -> None:
        """To whoever has the address there. `sender`: whose the frame is; None: a router's."""
        there = trace_ends.in_network(self.scene, network)
        found = next((nic for nic in there if target in nic.status.addresses), None)
        if found is not None:
            self.reach(found, network, source, target, number, sender)
            return
        routers = [r for r in self.scene.routers if any(target in part.addresses for part in self._parts(r, network))]
        if routers:
            self.to_router(trace_router.routed(self.scene, routers[0]), target)
            return
        served = any(str(item.service) == target for item in ranges(network))
        if served:
            self.step(
                "Network", Verdict.DROPPED, f"{target} is where each host serves its own guests, and nobody else."
            )
            return
        able = [
            nic
            for nic in filter(at_home, there)
            if any(within(target, [pair.address]) for pair in nic.spec.allowed_address_pairs)
        ]
        if able:
            some = ", ".join(nic.name for nic in able[:5])
            self.step(
                "Network", Verdict.UNKNOWN, f"{target} is nobody's own; {some} may answer for it (allowedAddressPairs)."
            )
        elif not network.spec.cidrs:
            self.step(
                "Network",
                Verdict.UNKNOWN,
                f"In Network {network.name} (L2) guests have addresses that nobody else knows.",
            )
        elif network.uid in self.scene.partial:
            self.step(
                "Network", Verdict.UNKNOWN, f"{target} may be that of an interface of another namespace: you see yours."
            )
        else:
            self.step(
                "Network", Verdict.DROPPED, f"Nobody in Network {network.name} has {target}.", f"network/{network.name}"
            )

    def _parts(self, router: Router, network: Network) -> list[RoutedNetwork]:
        return [part for part in router.status.networks if part.uid == network.uid and not router.deleting]

    def reach(
        self,
        nic: NetworkInterface,
        network: Network,
        source: Address | None,
        target: Address | None,
        number: int | None,
        sender: NetworkInterface | None,
    ) -> None:
        """To an interface: what its groups say, and who is behind it."""
        if (balancer := trace_ends.balancer_of(self.scene, nic)) is not None:
            self.balance(balancer, number)
            return
        here, there = sender.status.host if sender is not None else None, nic.status.host
        if here is not None and there is not None and here != there:
            status = network.status
            way = f"VXLAN {status.vni}" if status.vlan is None else f"VLAN {status.vlan} of {status.physical_network}"
            self.step("Tunnel", Verdict.PASSES, f"From host {here} to host {there}, {way}.")
        port = self.ported(nic)
        if port is not None:
            self.filter(port, Way.INGRESS, source, number)
            self.host(port)
        self.guest(nic, "hears")

    # Through routers

    def leave(self, network: Network, source: Address | None, target: Address, nic: NetworkInterface) -> None:
        """From a guest to its router."""
        found = next((item for item in ranges(network) if item.version == ipaddress.ip_address(target).version), None)
        named = f"network/{network.name}"
        if found is None:
            self.step(
                "Route", Verdict.DROPPED, f"Network {network.name} has no range of the family of {target}.", named
            )
            return
        gateway = str(found.gateway)
        router = next(
            (r for r in self.scene.routers if any(gateway in part.addresses for part in self._parts(r, network))), None
        )
        if not network.spec.dhcp.enabled:
            self.unseen.append(
                f"Whether the guest sends to {gateway}: Network {network.name} has no DHCP that tells it to."
            )
        if router is not None:
            known = trace_router.routed(self.scene, router)
            there = trace_direct.goal(self.scene, known, network, nic, source, target)
            if there is not None and (host := nic.status.host) is not None:
                self.needs.update(trace_direct.needs(network, there, host))
                self.steps.append(trace_direct.step(known, network, there, host))
                self.deliver(there, source, target, self.question.port, nic)
            else:
                self.route(known, source, target, self.question.port, network)
        elif network.spec.gateway is not None:
            mine = trace_ends.in_network(self.scene, network)
            machine = next((one for one in mine if gateway in one.status.addresses), None)
            if machine is not None:
                self.reach(machine, network, source, target, self.question.port, nic)
                self.step(
                    "Route", Verdict.UNKNOWN, f"Interface {machine.name} is the gateway: its machine has to pass it on."
                )
            else:
                self.step(
                    "Route", Verdict.DROPPED, f"Nobody has {gateway}, the gateway of Network {network.name}.", named
                )
        elif network.spec.type is NetworkType.SHARED and network.uid in self.scene.partial:
            self.step(
                "Route", Verdict.UNKNOWN, f"You may not see routers of Network {network.name}'s namespace.", named
            )
        else:
            self.step(
                "Route",
                Verdict.DROPPED,
                f"{target} is outside of Network {network.name}, which has no router: name it in spec.networks of a Router.",
                named,
            )

    def route(
        self, found: Routed, source: Address | None, target: Address, number: int | None, inside: Network | None
    ) -> None:
        """Through a router. `inside`: the network that it comes from; None: the external one."""
        name, named = found.router.name, f"router/{found.router.name}"
        if found.router.uid in self._passed:
            self.step("Router", Verdict.UNKNOWN, f"Router {name} has had it already.", named)
            return
        self._passed.add(found.router.uid)
        self.routes(found)
        if found.partial:
            return
        target, number, translated = trace_router.arrives(found, target, self.question.protocol, number)
        if translated is not None:
            self.steps.append(translated)
        if target in found.own:
            self.to_router(found, target)
            return
        if inside is None:
            mine = [str(item.cidr) for net in found.networks for item in ranges(net)]
            if source is not None and within(source, mine):
                self.step(
                    "Router", Verdict.DROPPED, f"{source} is an address of the router's own networks: not from outside."
                )
                return
            if translated is None and trace_router.masks(found, v4=is_v4(target)):
                self.step(
                    "Router",
                    Verdict.DROPPED,
                    f"Router {name} lets nobody from outside reach {target}: give it a FloatingIP.",
                    named,
                )
                return
        way = trace_router.hop(found, target)
        if way is None and found.external is None and found.router.status.external_network is not None:
            what = f"Router {name} has a way to the world, and you may not see its ExternalNetwork: ask for kumulus-catalog."
            self.step("Route", Verdict.UNKNOWN, what, named)
        elif way is None:
            self.step(
                "Route",
                Verdict.DROPPED,
                f"Router {name} has no way to {target}: spec.networks, spec.staticRoutes or spec.externalNetwork.",
                named,
            )
        elif way.network is None:
            self.world(found, source, target, number, inside)
        elif way.via is not None:
            self.beyond(found, way, source, target, number)
        else:
            if translated is not None and source is not None and inside is not None and inside.uid == way.network.uid:
                own = found.own_in(way.network, v4=is_v4(source))
                if own is not None:
                    said = f"Back into Network {inside.name} it goes as the router's own {own}, so that answers come this way."
                    self.step("Translation", Verdict.PASSES, said, named)
                    source = own
            self.step("Route", Verdict.PASSES, f"{target} is in Network {way.network.name} of Router {name}.", named)
            self.deliver(way.network, source, target, number, None)

    def beyond(
        self, found: Routed, way: trace_router.Hop, source: Address | None, target: Address, number: int | None
    ) -> None:
        """By a static route, to a machine that is to pass it on."""
        assert way.network is not None and way.via is not None
        named = f"router/{found.router.name}"
        said = f"The static route to {way.destination} leads to {way.via} in Network {way.network.name}."
        self.step("Route", Verdict.PASSES, said, named, "spec.staticRoutes")
        there = trace_ends.in_network(self.scene, way.network)
        hop = next((nic for nic in there if way.via in nic.status.addresses), None)
        if hop is None:
            self.step("Network", Verdict.DROPPED, f"Nobody in Network {way.network.name} has {way.via}.")
            return
        self.reach(hop, way.network, source, target, number, None)
        self.step(
            "Route",
            Verdict.UNKNOWN,
            f"Interface {hop.name} is the next hop: its machine has to pass it on to {target}.",
        )

    def world(
        self, found: Routed, source: Address | None, target: Address, number: int | None, inside: Network | None
    ) -> None:
        """Out of the cloud, or to what another router has in the same external network."""
        assert found.external is not None
        if inside is None:
            self.step("Route", Verdict.DROPPED, f"{target} is nobody's that Router {found.router.name} routes for.")
            return
        if source is not None:
            source, said = trace_router.departs(found, source)
            self.steps.append(said)
        self.step(
            "Route",
            Verdict.PASSES,
            f"It goes to ExternalNetwork {found.external.name}.",
            f"externalnetwork/{found.external.name}",
        )
        other = trace_router.owner(self.scene, target)
        if other is not None and other.uid != found.router.uid:
            self.enter(source or WORLD[4], target, number)
        else:
            self.step(
                "World",
                Verdict.PASSES,
                f"{target} is outside of this cloud, as far as you may see: what becomes of it there is not known.",
            )

    def routes(self, found: Routed) -> None:
        """Whether it does."""
        if (host := found.router.status.active_host) is not None:
            self.needs.add((host, gateway_order_name(found.router.uid)))
        self.steps.append(trace_router.state(self.scene, found))

    def to_router(self, found: Routed, target: Address) -> None:
        """For a router itself."""
        named = f"router/{found.router.name}"
        if self.question.protocol in (Protocol.ICMP, Protocol.ICMPV6):
            if found.router.uid not in self._passed:
                self.routes(found)
            self.step(
                "Router", Verdict.PASSES, f"{target} is Router {found.router.name} itself, which answers echoes.", named
            )
        else:
            self.step(
                "Router",
                Verdict.DROPPED,
                f"{target} is Router {found.router.name} itself, which answers echoes only.",
                named,
            )

    # From the world

    def enter(self, source: Address, target: Address, number: int | None) -> None:
        """From an external network."""
        router = trace_router.owner(self.scene, target)
        if router is None:
            floating = trace_router.standing_for(self.scene, target)
            if floating is not None:
                ready = floating.status.condition("Ready")
                why = f" ({ready.reason}): {ready.message}" if ready is not None else "."
                self.step(
                    "FloatingIP",
                    Verdict.DROPPED,
                    f"No router has FloatingIP {floating.name}{why}",
                    f"floatingip/{floating.name}",
                )
                return
            able = [trace_router.routed(self.scene, one) for one in self.scene.routers]
            bare = [one for one in able if one.network_with(target) and one.external is not None]
            if not bare:
                self.step(
                    "World",
                    Verdict.DROPPED,
                    f"Nobody of this cloud whom you may see has {target} in an external network.",
                )
                return
            self.unseen.append(f"Whether the world has a route to {target}.")
            self.route(bare[0], source, target, number, None)
            return
        self.route(trace_router.routed(self.scene, router), source, target, number, None)

    def closed(self, nic: NetworkInterface) -> None:
        """There is no way in."""
        what = f" for {self.question.protocol} {self.question.port}" if self.question.port is not None else ""
        self.step(
            "World",
            Verdict.DROPPED,
            f"Interface {nic.name} cannot be reached from outside: it has no FloatingIP, and no port forward{what}.",
            f"networkinterface/{nic.name}",
        )
