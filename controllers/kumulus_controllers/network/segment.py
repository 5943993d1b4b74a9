"""Segment orders: a network's presence on each host that has interfaces of it, and on no other.

What many machines of a network share changes with each of them: a host is told at most once a second, of all that
changed by then.
"""

from __future__ import annotations

from kumulus.api.base import ObjectRef
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.order_names import segment_order_name
from kumulus.api.routing import FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import SegmentOrder
from kumulus.kube.errors import KubeError, NotLeading, Unreachable
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.network.distributed import Distributed, legs
from kumulus_controllers.network.networks import (
    IN_GROUP,
    IN_PHYSICAL,
    NAMES_GROUP,
    ROUTES,
    UID,
    Networks,
    at_home,
    group_names,
    named_groups,
    network_key,
    underlay,
)
from kumulus_controllers.network.pace import Pace
from kumulus_controllers.network.segment_plan import GroupKey, Sight, segment, urgent
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import FOR_UID, NAMESPACE, host_of, networks_in, nics_in

PACE_SECONDS = 1.0
"""A host is told of changes of a network at most so often."""


class SegmentReconciler:
    """Has each network on the hosts that need it, as it is to be there."""

    name = "segment"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._networks = Networks(services.caches)
        self._distributed = Distributed(services.caches, self._networks)
        self._orders = Ordering(services, self._networks.orders)
        self._pace = Pace(services.clock)
        self._written: dict[str, float] = {}
        """When an order was last written, by its uid."""

    def attach(self, enqueue: Enqueue) -> None:
        """Networks, interfaces and groups that change, machines that come to hosts, and hosts' tunnels."""
        networks = self._networks

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if before is not None and after is None:
                self._pace.forget(before.uid)
            if item is not None and not (before and after and _rendered(before) == _rendered(after)):
                enqueue(Key(item.namespace, item.name))

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and not (before and after and _shared(before) == _shared(after)):
                enqueue(network_key(item))
                for router in networks.routers.by(ROUTES, str(network_key(item))):
                    for part in router.status.networks:
                        enqueue(Key(router.namespace, part.name))

        def router_changed(before: Router | None, after: Router | None) -> None:
            had, has = (_routed(item) if item is not None else () for item in (before, after))
            if had != has:
                for item in (before, after):
                    for part in item.status.networks if item is not None else ():
                        enqueue(Key(item.namespace if item is not None else None, part.name))

        def group_changed(before: SecurityGroup | None, after: SecurityGroup | None) -> None:
            item = after or before
            if item is None or (before and after and before.spec == after.spec and before.deleting == after.deleting):
                return
            key = f"{item.namespace}/{item.name}"
            users = [f"{other.namespace}/{other.name}" for other in networks.groups.by(NAMES_GROUP, key)]
            for one in {network_key(nic) for each in (key, *users) for nic in networks.interfaces.by(IN_GROUP, each)}:
                enqueue(one, urgent=True)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.type is WorkType.SEGMENT:
                if after is None:
                    self._written.pop(order.uid, None)
                if before is None or after is None or before.metadata.generation != after.metadata.generation:
                    enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))
            elif order.spec.type in (WorkType.INSTANCE, WorkType.GATEWAY) and _nics(before) != _nics(after):
                self._enqueue_networks(enqueue, before, after)
                self._enqueue_together(enqueue, before, after)
            elif order.spec.type is WorkType.GATEWAY and legs(before) != legs(after):
                self._enqueue_networks(enqueue, before, after)

        def floating_changed(before: FloatingIP | None, after: FloatingIP | None) -> None:
            if before is None or after is None or before.spec != after.spec:
                for key in self._distributed.of_floating(before, after):
                    enqueue(key, urgent=True)

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            item = after or before
            if item is not None and underlay(before) != underlay(after):
                for order in networks.orders.by(NAMESPACE, item.namespace or ""):
                    if order.spec.type is WorkType.SEGMENT:
                        enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is not None and not (before and after and before.spec.uplinks == after.spec.uplinks):
                for network in networks.store.by(IN_PHYSICAL, item.name):
                    enqueue(Key(network.namespace, network.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is None or after is None or before.metadata.labels == after.metadata.labels:
                return  # one that is new has no orders
            for order in networks.orders.by(NAMESPACE, host_namespace(after.name)):
                if order.spec.segment is not None and order.spec.segment.uplink is not None:
                    enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

        self._distributed.floating.listen(floating_changed)
        networks.physical.listen(physical_changed)
        networks.hosts.listen(host_changed)
        networks.store.listen(network_changed)
        networks.interfaces.listen(interface_changed)
        networks.routers.listen(router_changed)
        networks.groups.listen(group_changed)
        networks.orders.listen(order_changed)
        networks.reports.listen(report_changed)

    def _enqueue_networks(self, enqueue: Enqueue, *orders: WorkOrder | None) -> None:
        """The networks in which a machine of a host has interfaces, or had."""
        networks, there = self._networks, [order for order in orders if order is not None]
        uids = {uid for order in there for uid in networks_in(order)}
        keys = {Key(item.namespace, item.name) for uid in uids for item in networks.store.by(UID, uid)}
        keys |= {
            network_key(nic) for order in there for uid in nics_in(order) for nic in networks.interfaces.by(UID, uid)
        }
        for key in keys:
            enqueue(key, urgent=True)

    def _enqueue_together(self, enqueue: Enqueue, *orders: WorkOrder | None) -> None:
        """The networks that hosts route to by themselves from one in which a machine of a host has interfaces, or had."""
        for key in self._distributed.together(
            uid for order in orders if order is not None for uid in networks_in(order)
        ):
            enqueue(key)

    def everything(self) -> list[Key]:
        """All networks, and those that only a left-over work order remembers."""
        keys = set(self._networks.store.keys())
        for order in self._networks.orders:
            if order.spec.type is WorkType.SEGMENT:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    def _observe(self, network: Network) -> Sight:
        networks = self._networks
        interfaces = tuple(
            item
            for item in networks.interfaces_of(network)
            if item.status.network == network.uid and item.status.mac_address is not None
        )
        groups: dict[GroupKey, SecurityGroup] = {}
        for interface in interfaces:
            self._gather(interface.namespace, group_names(interface), groups)
        for group in tuple(groups.values()):
            self._gather(group.namespace, named_groups(group), groups)
        hosts = networks.hosts_with(network)
        routers = networks.router_addresses(network)
        beyond = tuple(item for item in networks.beyond(network) if item.status.mac_address is not None)
        return Sight(
            network,
            interfaces,
            groups,
            hosts,
            networks.underlays(hosts),
            routers,
            networks.uplinks(network, hosts),
            beyond if groups else (),
            self._distributed.beside(network, interfaces),
        )

    def _gather(
        self, namespace: str | None, names: set[str] | tuple[str, ...], groups: dict[GroupKey, SecurityGroup]
    ) -> None:
        for name in names:
            group = self._networks.groups.get(name, namespace)
            if group is not None:  # one that is to go is in force as long as it is there
                groups[(namespace, name)] = group

    async def reconcile(self, key: Key) -> Result:
        """One pass over the hosts of a network."""
        network = self._networks.store.get(key.name, key.namespace)
        for order in await self._orders.orphans(Network.KIND, key, network.uid if network is not None else None):
            await self._orders.end(order)
        if network is None:
            return Gone()
        if network.paused:
            return Done()
        if (left := self._pace.left(network.uid)) > 0:
            return Requeue(left)
        sight = self._observe(network)
        self._pace.looked(network.uid, len(sight.interfaces))
        orders = {host_of(o): o for o in self._networks.orders.by(FOR_UID, f"{WorkType.SEGMENT}/{network.uid}")}
        wait, failed = 0.0, None
        for host in sorted({*sight.hosts, *orders}):
            try:
                wait = max(wait, await self._see_to(sight, host, orders.get(host)))
            except (NotLeading, Unreachable):
                raise
            except KubeError as error:  # one host's namespace must not keep the network from the others
                failed = error
        if failed is not None:
            raise failed
        return Requeue(wait) if wait > 0 else Done()

    async def _see_to(self, sight: Sight, host: str, order: WorkOrder | None) -> float:
        """The network on one host. In so many seconds the host may be told again; 0 when it knows all."""
        if host not in sight.hosts:
            if order is not None:
                await self._orders.end(order)
            return 0.0
        if not sight.ready() or (order is not None and order.deleting):
            return 0.0  # the end of an order announces itself
        wanted = segment(sight, host, order.spec.segment if order is not None else None)
        if sight.network.status.vlan is not None and wanted.uplink is None:
            return 0.0  # no way into its VLAN: that is said by placement, and by who waits for the network
        now = self._services.clock.monotonic()
        if order is None:
            await self._orders.make(segment_order_name(sight.network.uid), host, self._spec(sight.network, wanted, 0))
            return 0.0
        ordered = order.spec.segment
        assert ordered is not None
        if ordered == wanted:
            return 0.0
        left = self._written.get(order.uid, float("-inf")) + PACE_SECONDS - now
        if left > 0 and not urgent(ordered, wanted):
            return left
        self._written[order.uid] = now
        await self._orders.change(order, self._spec(sight.network, wanted, order.spec.term))
        return 0.0

    def _spec(self, network: Network, wanted: SegmentOrder, term: int) -> WorkOrderSpec:
        return WorkOrderSpec(
            type=WorkType.SEGMENT,
            for_=ObjectRef(kind=Network.KIND.kind, namespace=network.namespace, name=network.name, uid=network.uid),
            term=max(term, self._services.term()),
            segment=wanted,
        )


def _rendered(network: Network) -> tuple[object, ...]:
    """What of a network its hosts have to know."""
    status = network.status
    return (network.uid, network.spec, status.vni, status.vlan, status.mtu, status.driver, network.paused)


def _routed(router: Router) -> tuple[object, ...]:
    """What of a router its networks have to know."""
    return (router.uid, router.status.networks, router.deleting)


def _shared(interface: NetworkInterface) -> tuple[object, ...]:
    """What of an interface others of its network have to know."""
    status = interface.status
    pairs = interface.spec.allowed_address_pairs if at_home(interface) else ()
    return (interface.uid, group_names(interface), status.network, status.addresses, status.vm, pairs)


def _nics(order: WorkOrder | None) -> tuple[object, ...]:
    return (nics_in(order), networks_in(order)) if order is not None else (set(), set())
