"""FloatingIP: its address for life, and the router that has it."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.network import NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.network import floating_plan, leaving_alone
from kumulus_controllers.network.claiming import Claiming
from kumulus_controllers.network.floating_plan import Scope
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.networks import CLAIMED_BY
from kumulus_controllers.network.router import REST_SECONDS
from kumulus_controllers.network.router_plan import external_lack, external_of
from kumulus_controllers.network.routing import (
    FOR_NIC,
    IN_PHYSICAL,
    OF_EXTERNAL,
    ROUTERS_IN,
    TO_EXTERNAL,
    Routing,
    offers,
    targets,
)
from kumulus_controllers.orders import host_of
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status


class FloatingReconciler:
    """Brings a floating address to what its spec says. The only writer of its status, and of its claim."""

    name = "floatingip"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._routing = Routing(services.caches)
        self._claiming = Claiming(services, self._routing.networks)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, interfaces, routers and what their hosts say, and external networks."""
        routing = self._routing

        def floating_changed(before: FloatingIP | None, after: FloatingIP | None) -> None:
            item = after or before
            if item is None or (before and after and _spec(before) == _spec(after)):
                return
            enqueue(Key(item.namespace, item.name))
            for name in targets(item) | (targets(before) if before is not None else set()):
                for other in routing.floating.by(FOR_NIC, f"{item.namespace}/{name}"):
                    enqueue(Key(other.namespace, other.name))

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is None or (before and after and _nic(before) == _nic(after)):
                return
            for floating in routing.floating.by(FOR_NIC, f"{item.namespace}/{item.name}"):
                enqueue(Key(floating.namespace, floating.name))

        def router_changed(before: Router | None, after: Router | None) -> None:
            item = after or before
            if item is None or (
                before and after and before.status == after.status and before.deleting == after.deleting
            ):
                return
            names = {one.spec.external_network for one in (before, after) if one is not None}
            for name in names - {None}:
                for floating in routing.floating.by(OF_EXTERNAL, name or ""):
                    if floating.namespace == item.namespace:
                        enqueue(Key(floating.namespace, floating.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.GATEWAY:
                for floating in routing.floating.by("routed-by", f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    enqueue(Key(floating.namespace, floating.name))

        def external_changed(before: ExternalNetwork | None, after: ExternalNetwork | None) -> None:
            item = after or before
            if item is not None and not (before and after and offers(before) == offers(after)):
                for floating in routing.floating.by(OF_EXTERNAL, item.name):
                    enqueue(Key(floating.namespace, floating.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is not None and (before is None or after is None):
                for external in routing.external.by(IN_PHYSICAL, item.name):
                    external_changed(None, external)

        routing.floating.listen(floating_changed)
        routing.networks.interfaces.listen(interface_changed)
        routing.routers.listen(router_changed)
        routing.orders.listen(order_changed)
        routing.external.listen(external_changed)
        routing.physical.listen(physical_changed)

    def everything(self) -> list[Key]:
        """All floating addresses."""
        return self._routing.floating.keys()

    def _observe(self, floating: FloatingIP) -> Scope:
        routing = self._routing
        external = routing.external.get(floating.spec.external_network)
        if floating.status.network is not None and external is not None and external.uid != floating.status.network:
            external = None
        near = [
            router
            for router in routing.routers.by(TO_EXTERNAL, floating.spec.external_network)
            if router.namespace == floating.namespace
            and (not router.deleting or router.name == floating.status.router)
            and external is not None
            and router.status.external_network == external.uid
        ]
        others = {
            other.uid: other
            for name in targets(floating)
            for other in routing.floating.by(FOR_NIC, f"{floating.namespace}/{name}")
            if other.uid != floating.uid
        }
        named = floating.status.router
        mine = routing.routers.get(named, floating.namespace) if named is not None else None
        return Scope(
            floating=floating,
            external=external,
            physical=routing.physical.get(external.spec.physical_network) if external is not None else None,
            interfaces=routing.interfaces_for((floating,)),
            routers=sorted(near, key=lambda router: router.name),
            others=tuple(others.values()),
            orders=routing.orders_for(mine.uid) if mine is not None else {},
            gateways=sorted(
                routing.orders.by(ROUTERS_IN, floating.namespace or ""),
                key=lambda order: (order.spec.for_.name, order.namespace),
            ),
        )

    async def reconcile(self, key: Key) -> Result:
        """One pass over a floating address."""
        store, client = self._routing.floating, self._services.client
        floating = store.get(key.name, key.namespace)
        if floating is None:
            return Gone()
        if floating.paused:
            await leaving_alone.say_so(self._services, store, floating)
            return Done()
        if floating.deleting:
            return await self._delete(self._observe(floating))
        if await ensure_finalizer(client, store, floating):
            floating = store.get(key.name, key.namespace) or floating
        scope = self._observe(floating)
        address = await self._claim(scope)
        if isinstance(address, Lack):
            return await self._report(scope, None, None, address)
        router, lack = floating_plan.route(scope)
        lack = floating_plan.shared(scope, address) or lack
        if (held := floating_plan.holder(scope, address, router)) is not None:  # on record until it has let go
            router, lack = (
                self._routing.routers.get(floating.status.router or "", floating.namespace),
                lack or _held(held),
            )
        return await self._report(scope, address, router, lack)

    async def _claim(self, scope: Scope) -> str | Lack:
        """Its address, claimed; or why it cannot have it."""
        floating, external = scope.floating, scope.external
        known = floating.status.address
        lack = external_lack(external, scope.physical, floating.spec.external_network, floating.namespace)
        if lack is not None and known is None:
            return lack
        if external is None:
            return Lack("ExternalNetworkGone", "Its ExternalNetwork is gone: delete the FloatingIP.")
        found = external_of(external)
        wanted = known or floating.spec.address
        if wanted is None:
            mine = self._routing.networks.claims.by(CLAIMED_BY, floating.uid)
            wanted = next((claim.spec.address for claim in mine if claim.spec.released_at is None), None)
        if wanted is not None:
            parsed = ipaddress.ip_address(wanted)
            why = found.lack(parsed) if parsed in found.cidr else f"is not in {found.cidr}"
            if known is None and (why is not None or not found.gives(parsed)):
                why = why or "is in none of the ranges that Kumulus may give"
                return Lack("AddressNotAvailable", f"{wanted} {why}: ask for another one, or for none.")
            return await self._claiming.one(external, floating, wanted, REST_SECONDS) or wanted
        chosen = await self._claiming.any(external, floating, found, REST_SECONDS)
        return chosen or Lack(
            "ExternalNetworkFull",
            f"ExternalNetwork {external.name} has no address left: delete FloatingIPs, or ask the operator for more ranges. It"
            " goes on by itself.",
        )

    async def _delete(self, scope: Scope) -> Result:
        """The address is given back when no host has it."""
        floating = scope.floating
        address = floating.status.address
        if address is not None and (held := floating_plan.holder(scope, address, None)) is not None:
            router = self._routing.routers.get(floating.status.router or "", floating.namespace)
            return await self._report(scope, address, router, _held(held))
        await self._claiming.give_back(floating)
        await drop_finalizer(self._services.client, self._routing.floating, floating)
        return Gone()

    async def _report(self, scope: Scope, address: str | None, router: Router | None, lack: Lack | None) -> Result:
        floating = scope.floating
        after = floating_plan.derive_status(scope, address, router, lack, rfc3339(self._services.clock.now()))
        with suppress(NotFound):
            await write_status(self._services.client, self._routing.floating, floating, floating.status, after)
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _held(order: WorkOrder) -> Lack:
    said = f"Host {host_of(order)} lets go of it, which it has for Router {order.spec.for_.name}."
    if order.status.state is WorkState.FAILED:
        said += f" It cannot now: {order.status.message or order.status.reason or 'it failed'}"
    return Lack("LettingGo", said, stalled=False)


def _spec(floating: FloatingIP) -> tuple[object, ...]:
    meta = floating.metadata
    return (floating.uid, meta.generation, floating.deleting, meta.finalizers, meta.annotations, floating.status.router)


def _nic(nic: NetworkInterface) -> tuple[object, ...]:
    return (nic.uid, nic.deleting, nic.status.network, nic.status.addresses)
