"""What there is around routers: external and physical networks, floating addresses, hosts that can have gateways, looked up
in the caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kumulus.api.addresses import Address
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.network.gateway_hosts import GatewayHosts
from kumulus_controllers.network.gateway_plan import Candidate
from kumulus_controllers.network.networks import UID, Networks
from kumulus_controllers.orders import FOR_UID, done, host_of
from kumulus_controllers.planning import ways

TO_EXTERNAL = "to-external"
OF_EXTERNAL = "of-external"
IN_PHYSICAL = "in-physical"
ROUTED_BY = "routed-by"
FOR_NIC = "for-nic"
ROUTERS_IN = "routers-in"


def targets(floating: FloatingIP) -> set[str]:
    """Names of the interfaces that a floating address stands for."""
    spec = floating.spec
    named = {forward.interface for forward in spec.port_forwards}
    return named | ({spec.target.interface} if spec.target is not None else set())


def _routers_in(order: WorkOrder) -> Iterable[str]:
    """The namespace of the router that it is for."""
    routes = order.spec.type is WorkType.GATEWAY and order.spec.for_.kind == Router.KIND.kind
    return (order.spec.for_.namespace or "",) if routes else ()


def device_on(physical: PhysicalNetwork, host: Host) -> str | None:
    """The device by which a host is connected to a physical network; None when it is not."""
    return ways.device_on(physical.spec.uplinks, host.metadata.labels)


def offers(external: ExternalNetwork) -> tuple[object, ...]:
    """What of an external network decides whether routers and floating addresses can use it."""
    ready = external.status.condition("Ready") if external.spec.vlan is not None else None
    said = (ready.reason, ready.message) if ready is not None else None
    return (external.uid, external.spec, external.deleting, said)


class Routing:
    """The caches, as routers need them."""

    def __init__(self, caches: Caches) -> None:
        self.networks = Networks(caches)
        self.routers = self.networks.routers
        self.orders = self.networks.orders
        self.floating = caches.store(FloatingIP)
        self.external = caches.store(ExternalNetwork)
        self.physical = self.networks.physical
        self.hosts = self.networks.hosts
        self._gateway_hosts = GatewayHosts(self.networks)
        self.routers.add_index(TO_EXTERNAL, lambda item: (item.spec.external_network or "",))
        self.external.add_index(UID, lambda item: (item.uid,))
        self.external.add_index(IN_PHYSICAL, lambda item: (item.spec.physical_network,))
        self.orders.add_index(ROUTERS_IN, _routers_in)
        self.floating.add_index(OF_EXTERNAL, lambda item: (item.spec.external_network,))
        self.floating.add_index(ROUTED_BY, lambda item: (f"{item.namespace}/{item.status.router or ''}",))
        self.floating.add_index(FOR_NIC, lambda item: [f"{item.namespace}/{name}" for name in targets(item)])

    def orders_for(self, gateway_uid: str) -> dict[str, WorkOrder]:
        """The orders of a gateway, by host."""
        return {host_of(order): order for order in self.orders.by(FOR_UID, f"{WorkType.GATEWAY}/{gateway_uid}")}

    def untold(self, networks: Iterable[Network], host: str | None) -> frozenset[str]:
        """Hosts that have these networks and take no packets of that host yet: they are not told of it, or have not done
        so. One that could not is not waited for."""
        end = self.networks.underlays([host]).get(host) if host is not None else None
        if end is None:
            return frozenset()
        return frozenset(
            host_of(order)
            for order in self.segments_of(networks)
            if host_of(order) != host
            and not order.deleting
            and order.status.state is not WorkState.FAILED
            and not (done(order) and order.spec.segment is not None and end in order.spec.segment.peers)
        )

    def segments_of(self, networks: Iterable[Network]) -> list[WorkOrder]:
        """What hosts are told of these networks."""
        return [order for network in networks for order in self.orders.by(FOR_UID, f"{WorkType.SEGMENT}/{network.uid}")]

    def floating_by(self, router: Router) -> list[FloatingIP]:
        """The floating addresses that a router has, the oldest first."""
        found = self.floating.by(ROUTED_BY, f"{router.namespace}/{router.name}")
        return sorted(found, key=lambda item: (item.metadata.creation_timestamp or "", item.name))

    def interfaces_for(self, floating: Iterable[FloatingIP]) -> Mapping[str, NetworkInterface]:
        """The interfaces that floating addresses of one namespace stand for, by name, as far as they are there."""
        found = {}
        for item in floating:
            for name in targets(item):
                if (nic := self.networks.interfaces.get(name, item.namespace)) is not None:
                    found[name] = nic
        return found

    def underlays(self) -> Mapping[str, Address]:
        """Where the tunnels of hosts end, as far as they have said so."""
        return self.networks.underlays(host.name for host in self.hosts)

    def candidates(self) -> list[Candidate]:
        """All hosts, as routers see them."""
        return self._gateway_hosts.candidates(self._uplinks)

    def _uplinks(self, host: Host) -> frozenset[str]:
        return frozenset(item.name for item in self.physical if device_on(item, host) is not None)
