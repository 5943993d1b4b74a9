"""Router: its addresses, its hosts, what these are told, and its end."""

from __future__ import annotations

from contextlib import suppress

from kumulus.api.base import ObjectRef
from kumulus.api.claims import HolderKind
from kumulus.api.fabric import Host
from kumulus.api.gateways import GatewayFunction, GatewayOrder
from kumulus.api.host import HostReport, WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.network import Network, NetworkClassSpec, NetworkInterface
from kumulus.api.order_names import gateway_order_name
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.kube.errors import KubeError, NotFound, NotLeading, Unreachable
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.fleet_feed import closed
from kumulus_controllers.network import distributed_plan, leaving_alone, router_plan, router_status
from kumulus_controllers.network.claiming import Claiming
from kumulus_controllers.network.gateway_hosts import silent
from kumulus_controllers.network.gateway_plan import Choice, Need, choose_some
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import usable
from kumulus_controllers.network.networks import CLAIMED_BY, ROUTES
from kumulus_controllers.network.networks import IN_PHYSICAL as OF_PHYSICAL
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.network.router_plan import Held, Scope
from kumulus_controllers.network.routing import (
    FOR_NIC,
    IN_PHYSICAL,
    TO_EXTERNAL,
    Routing,
    device_on,
    offers,
    targets,
)
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import done
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

REST_SECONDS = NetworkClassSpec().rest_seconds
"""How long an address of an external network rests before somebody else gets it."""


class RouterReconciler:
    """Brings a router to what its spec says. The only writer of its status, its claims and its orders."""

    name = "router"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._routing = Routing(services.caches)
        self._claiming = Claiming(services, self._routing.networks)
        self._orders = Ordering(services, self._routing.orders)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, networks, floating addresses with their interfaces, hosts, and what agents say."""
        routing = self._routing

        def router_changed(before: Router | None, after: Router | None) -> None:
            item = after or before
            if item is not None and not (before and after and _spec(before) == _spec(after)):
                enqueue(Key(item.namespace, item.name))

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if item is not None and not (before and after and _offers(before) == _offers(after)):
                for router in routing.routers.by(ROUTES, f"{item.namespace}/{item.name}"):
                    enqueue(Key(router.namespace, router.name))

        def external_changed(before: ExternalNetwork | None, after: ExternalNetwork | None) -> None:
            item = after or before
            if item is not None and not (before and after and offers(before) == offers(after)):
                for router in routing.routers.by(TO_EXTERNAL, item.name):
                    enqueue(Key(router.namespace, router.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is not None and not (before and after and before.spec == after.spec):
                for external in routing.external.by(IN_PHYSICAL, item.name):
                    external_changed(None, external)
                for network in routing.networks.store.by(OF_PHYSICAL, item.name):
                    network_changed(None, network)

        def floating_changed(before: FloatingIP | None, after: FloatingIP | None) -> None:
            if before is not None and after is not None and _floats(before) == _floats(after):
                return
            for item in (before, after):
                if item is not None and item.status.router is not None:
                    enqueue(Key(item.namespace, item.status.router), urgent=True)

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            network = routing.networks.network(item) if item is not None and after is None else None
            if network is not None and network.deleting:
                network_changed(None, network)
            if item is not None and (
                before is None or after is None or before.status.addresses != after.status.addresses
            ):
                for floating in routing.floating.by(FOR_NIC, f"{item.namespace}/{item.name}"):
                    floating_changed(None, floating)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.GATEWAY and order.spec.for_.kind == Router.KIND.kind:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))
            if order is not None and order.spec.type is WorkType.SEGMENT:
                for router in routing.routers.by(ROUTES, f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    ready = router.status.condition("Ready")
                    routes = distributed_plan.says(before) != distributed_plan.says(after)
                    if routes or (ready is not None and ready.reason == router_status.NOT_TOLD):
                        enqueue(Key(router.namespace, router.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if not (before and after and _place(before) == _place(after)):
                everything()

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            if before is None or after is None or before.status.network != after.status.network:
                everything()

        def everything() -> None:
            for key in routing.routers.keys():  # noqa: SIM118 - a store, not a dict
                enqueue(key)

        routing.routers.listen(router_changed)
        routing.networks.store.listen(network_changed)
        routing.external.listen(external_changed)
        routing.physical.listen(physical_changed)
        routing.floating.listen(floating_changed)
        routing.networks.interfaces.listen(interface_changed)
        routing.orders.listen(order_changed)
        routing.hosts.listen(host_changed)
        routing.networks.reports.listen(report_changed)

    def everything(self) -> list[Key]:
        """All routers, and those that only a left-over work order remembers."""
        left = {
            Key(order.spec.for_.namespace, order.spec.for_.name)
            for order in self._routing.orders
            if order.spec.type is WorkType.GATEWAY and order.spec.for_.kind == Router.KIND.kind
        }
        return list({*self._routing.routers.keys(), *left})

    def _observe(self, router: Router) -> Scope:
        routing = self._routing
        named = router.spec.external_network
        external = routing.external.get(named) if named is not None else None
        physical = routing.physical.get(external.spec.physical_network) if external is not None else None
        devices = {}
        if physical is not None:
            found = {host.name: device_on(physical, host) for host in routing.hosts}
            devices = {host: device for host, device in found.items() if device is not None}
        floating = routing.floating_by(router)
        networks = {name: routing.networks.store.get(name, router.namespace) for name in router.spec.networks}
        orders = routing.orders_for(router.uid)
        silent = frozenset(host.name for host in routing.candidates() if host.silent)
        there = [network for network in networks.values() if network is not None]
        return Scope(
            router=router,
            networks=networks,
            occupied=frozenset(
                network.name for network in networks.values() if network is not None and self._occupied(network)
            ),
            external=external,
            physical=physical,
            devices=devices,
            floating=floating,
            interfaces=routing.interfaces_for(floating),
            orders=orders,
            silent=silent,
            segments=routing.segments_of(there),
            untold=routing.untold(
                there, None if router_status.was_ready(router) else router_status.active(orders, silent)
            ),
        )

    def _occupied(self, network: Network) -> bool:
        """Whether a network that is to go cannot yet."""
        return network.deleting and bool(self._routing.networks.interfaces_of(network))

    async def reconcile(self, key: Key) -> Result:
        """One pass over a router."""
        store, client = self._routing.routers, self._services.client
        router = store.get(key.name, key.namespace)
        for order in await self._orders.orphans(Router.KIND, key, router.uid if router is not None else None):
            await self._orders.end(order)
        if router is None:
            return Gone()
        if router.paused:
            await leaving_alone.say_so(self._services, store, router)
            return Done()
        if router.deleting:
            return await self._delete(self._observe(router))
        if await ensure_finalizer(client, store, router):
            router = store.get(key.name, key.namespace) or router
        scope = self._observe(router)
        held, lack = await self._hold(scope)
        lack = lack or router_plan.own_lack(scope, held)
        choice, none = self._choose(scope, held)
        lack = lack or none
        # On record before hosts are told: guests learn of the router as soon as it is there, and floating addresses find it.
        await self._tell(scope, held, choice)
        await self._let_go(scope, held)
        scope = self._observe(store.get(key.name, key.namespace) or router)
        return await self._report(scope, held, choice, lack)

    async def _hold(self, scope: Scope) -> tuple[Held, Lack | None]:
        """Have its addresses claimed: of each network that it can have, and of its external network."""
        networks, lacks = [], []
        unusable = router_plan.unusable(scope)
        for name, network in sorted(scope.networks.items()):
            lack = unusable.get(name)
            for item in ranges(network) if network is not None and lack is None else ():
                assert network is not None
                lack = lack or await self._claiming.one(network, scope.router, str(item.gateway), 0)
            if lack is not None:
                lacks.append(lack)
            elif network is not None:
                networks.append(network)
                lacks += [said] if (said := usable(network, scope.router.namespace, name, None)) is not None else []
        address = None
        if scope.router.spec.external_network is not None:
            lack = router_plan.world_lack(scope)
            if lack is not None:
                lacks.append(lack)
            if lack is None or router_plan.has_external(scope):
                found = await self._hold_external(scope)
                if isinstance(found, Lack):
                    lacks.append(found)
                else:
                    address = found
        return Held(tuple(networks), address), next(iter(lacks), None)

    async def _hold_external(self, scope: Scope) -> str | Lack:
        external, router = scope.external, scope.router
        assert external is not None
        before = router.status
        mine = [
            claim.spec.address
            for claim in self._routing.networks.claims.by(CLAIMED_BY, router.uid)
            if claim.spec.network == external.uid and claim.spec.released_at is None
        ]
        if before.external_network == external.uid and before.external_address in mine:
            return before.external_address
        if mine:
            return sorted(mine)[0]
        found = await self._claiming.any(external, router, router_plan.external_of(external), REST_SECONDS)
        if found is None:
            return Lack(
                "ExternalNetworkFull",
                f"ExternalNetwork {external.name} has no address left: delete FloatingIPs, or ask the operator for more"
                " ranges. It goes on by itself.",
            )
        return found

    def _choose(self, scope: Scope, held: Held) -> tuple[Choice, Lack | None]:
        """The hosts that it is to be on. Without any network it is nowhere."""
        if not held.networks:
            return Choice(()), Lack("NoNetworks", "It has no networks: name some in spec.networks.", stalled=True)
        physical: frozenset[str] = frozenset()
        if held.external is not None and scope.external is not None:
            physical = frozenset({scope.external.spec.physical_network})
            if scope.physical is None and (current := router_plan.hosts(scope)):  # no other one is known to have a way
                return Choice(current), None
        across = router_plan.ACROSS if scope.router.spec.high_availability else 1
        ways = tuple(way for network in held.networks if (way := self._routing.networks.way_of(network)) is not None)
        need = Need(router_plan.driver(held), GatewayFunction.ROUTER, across, physical, ways)
        active = router_status.active(scope.orders, scope.silent)
        choice = choose_some(need, self._routing.candidates(), router_plan.hosts(scope), active)
        if choice.unsupported is not None:
            return choice, Lack("GatewaysUnsupported", choice.unsupported)
        if choice.hosts:
            return choice, None
        said = "; ".join(f"{name}: {why}" for name, why in sorted((choice.refused or {}).items())[:5])
        return choice, Lack("NoGatewayHost", f"No host can have it ({said or 'there is none'}).", stalled=True)

    async def _tell(self, scope: Scope, held: Held, choice: Choice) -> None:
        """Have each of its hosts told, and no other."""
        does, underlays, failed = router_plan.function(scope, held), self._routing.underlays(), None
        for host in sorted({*choice.hosts, *scope.orders}):
            order = scope.orders.get(host)
            try:
                if host not in choice.hosts:
                    if order is not None:
                        await self._orders.end(order)
                elif order is None or not order.deleting:
                    wanted = router_plan.order(scope, held, does, host, choice.hosts, underlays)
                    await self._order(scope.router, host, order, wanted)
            except (NotLeading, Unreachable):
                raise
            except KubeError as error:  # one host's namespace must not keep the router from the others
                failed = error
        if failed is not None:
            raise failed

    async def _order(self, router: Router, host: str, order: WorkOrder | None, wanted: GatewayOrder) -> None:
        if order is not None and order.spec.gateway == wanted:
            return
        spec = WorkOrderSpec(
            type=WorkType.GATEWAY,
            for_=ObjectRef(kind=Router.KIND.kind, namespace=router.namespace, name=router.name, uid=router.uid),
            term=max(order.spec.term if order is not None else 0, self._services.term()),
            gateway=wanted,
        )
        if order is None:
            await self._orders.make(gateway_order_name(router.uid), host, spec)
        else:
            await self._orders.change(order, spec)

    async def _let_go(self, scope: Scope, held: Held) -> None:
        """End claims of networks that it has no longer, once no host may use them. What a network keeps for its router
        nobody takes by mistake: it need not rest."""
        orders = self._routing.orders_for(scope.router.uid).values()
        if not all(done(order) for order in orders):
            return
        mine = {network.uid for network in held.networks}
        external = scope.external.uid if scope.external is not None and held.external is not None else None
        # A network that only lacks something for now keeps its router.
        named = {network.uid for network in scope.networks.values() if network is not None}
        for claim in self._routing.networks.claims.by(CLAIMED_BY, scope.router.uid):
            if claim.spec.network in mine | named or (external == claim.spec.network):
                continue
            if self._routing.external.by("uid", claim.spec.network):
                if scope.router.spec.external_network is None or scope.external is not None:
                    await self._claiming.release(claim)
            else:
                await self._claiming.end(claim)

    async def _delete(self, scope: Scope) -> Result:
        """Floating addresses first, then hosts, then claims: nobody has them while a host may use them."""
        router, client = scope.router, self._services.client
        if users := [item for item in scope.floating if targets(item) and not item.deleting]:  # others let go with it
            some = ", ".join(item.name for item in users[:5]) + (", ..." if len(users) > 5 else "")
            lack = Lack("InUse", f"FloatingIPs are reached by it ({some}): delete them, or let them stand for nobody.")
            await self._tell(scope, self._record(scope), Choice(router_plan.hosts(scope)))  # they go one at a time
            return await self._report(scope, self._record(scope), None, lack)
        for order in scope.orders.values():
            await self._orders.end(order)
        if self._routing.orders_for(router.uid):
            some = ", ".join(sorted(scope.orders))
            lack = Lack(
                "Terminating",
                f"It is being removed from {some}. If a host is gone for good, the operator removes it: kumulusctl host remove"
                " <host> --force-detach",
                stalled=False,
            )
            return await self._report(scope, self._record(scope), None, lack)
        for claim in self._routing.networks.claims.by(CLAIMED_BY, router.uid):
            if claim.spec.kind is HolderKind.ROUTER and self._routing.external.by("uid", claim.spec.network):
                await self._claiming.release(claim)
            else:
                await self._claiming.end(claim)
        await drop_finalizer(client, self._routing.routers, router)
        return Gone()

    def _record(self, scope: Scope) -> Held:
        """What it has by its own record."""
        status = scope.router.status
        networks = (self._routing.networks.store.get(part.name, scope.router.namespace) for part in status.networks)
        return Held(tuple(network for network in networks if network is not None), status.external_address)

    async def _report(self, scope: Scope, held: Held, choice: Choice | None, lack: Lack | None) -> Result:
        router = scope.router
        after = router_status.derive_status(scope, held, choice, lack, rfc3339(self._services.clock.now()))
        with suppress(NotFound):
            await write_status(self._services.client, self._routing.routers, router, router.status, after)
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _spec(router: Router) -> tuple[object, ...]:
    meta = router.metadata
    return (router.uid, meta.generation, router.deleting, meta.finalizers, meta.annotations)


def _offers(network: Network) -> tuple[object, ...]:
    """What of a network decides whether a router can have it, and how."""
    status = network.status
    return (network.uid, network.deleting, status.mtu, status.numbered, status.driver, status.physical_network)


def _floats(floating: FloatingIP) -> tuple[object, ...]:
    """What of a floating address its router has to know."""
    status = floating.status
    return (floating.uid, floating.spec, floating.deleting, status.address, status.network, status.router)


def _place(host: Host) -> tuple[object, ...]:
    """What of a host decides whether it can have a router."""
    return (host.uid, closed(host, guests=False), silent(host), host.metadata.labels)
