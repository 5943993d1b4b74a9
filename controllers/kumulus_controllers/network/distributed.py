"""Where routers route on hosts themselves, looked up in the caches."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import FloatingIP, Router
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.network import distributed_plan
from kumulus_controllers.network.distributed_plan import Beside
from kumulus_controllers.network.networks import UID, Networks, network_key
from kumulus_controllers.network.routing import FOR_NIC, targets
from kumulus_controllers.orders import FOR_UID


class Distributed:
    """The caches, as routing on hosts needs them."""

    def __init__(self, caches: Caches, networks: Networks) -> None:
        self._networks = networks
        self.floating = caches.store(FloatingIP)
        self.floating.add_index(FOR_NIC, lambda item: [f"{item.namespace}/{name}" for name in targets(item)])

    def beside(self, network: Network, interfaces: Iterable[NetworkInterface]) -> Beside | None:
        """The network's router with the hosts that are to be told of it; None when that is none."""
        networks = self._networks
        router = distributed_plan.router_of(network, networks.routers_of(network))
        if router is None:
            return None
        here, told = networks.hosts_with(network), set()
        for other in self._others(router, network.uid):
            there = networks.hosts_with(other)
            told |= {host for host in here.keys() & there.keys() if here[host] or there[host]}
        return Beside(
            router=router,
            hosts=frozenset(told),
            gateways=self._gateways(router, network),
            translated=frozenset(
                nic.uid for nic in interfaces if self.floating.by(FOR_NIC, f"{nic.namespace}/{nic.name}")
            ),
        )

    def _others(self, router: Router, uid: str) -> list[Network]:
        uids = {part.uid for part in router.status.networks} - {uid}
        return [network for one in sorted(uids) for network in self._networks.store.by(UID, one)]

    def _gateways(self, router: Router, network: Network) -> tuple[str, ...]:
        orders = self._networks.orders.by(FOR_UID, f"{WorkType.GATEWAY}/{router.uid}")
        legs = [leg for order in orders if order.spec.gateway is not None for leg in order.spec.gateway.legs]
        return tuple(sorted({leg.mac for leg in legs if leg.network == network.uid and leg.uplink is None}))

    def of_floating(self, *items: FloatingIP | None) -> set[Key]:
        """The networks of the interfaces that floating addresses stand for."""
        found = set()
        for item in items:
            for name in targets(item) if item is not None else ():
                if (
                    nic := self._networks.interfaces.get(name, item.namespace if item is not None else None)
                ) is not None:
                    found.add(network_key(nic))
        return found

    def together(self, uids: Iterable[str]) -> set[Key]:
        """The networks that have a router with one of these in common, which routes on hosts."""
        networks, found = self._networks, set()
        for network in [one for uid in set(uids) for one in networks.store.by(UID, uid)]:
            router = distributed_plan.router_of(network, networks.routers_of(network))
            if router is not None:
                found |= {Key(other.namespace, other.name) for other in self._others(router, network.uid)}
        return found


def legs(order: WorkOrder | None) -> frozenset[tuple[str, str]]:
    """Networks and MACs of a router's gateway in an order."""
    told = order.spec.gateway if order is not None else None
    return (
        frozenset((leg.network, leg.mac) for leg in told.legs if leg.uplink is None)
        if told is not None
        else frozenset()
    )
