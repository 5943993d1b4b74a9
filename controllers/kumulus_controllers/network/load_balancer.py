"""LoadBalancer: its address, the hosts that serve it, and what they are told of members as these come and go."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from kumulus.api.balancing import Balancing, tls_secret_name
from kumulus.api.base import FINALIZER, ObjectRef
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.gateways import GatewayFunction, GatewayOrder
from kumulus.api.host import HostReport, WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.order_names import gateway_order_name
from kumulus.api.routing import PhysicalNetwork
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers import order_secret
from kumulus_controllers.fleet_feed import closed, uplinks
from kumulus_controllers.network import leaving_alone, tls
from kumulus_controllers.network.gateway_hosts import GatewayHosts, drivers, functions, silent
from kumulus_controllers.network.gateway_plan import Choice, Need, choose_some, redundancy
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.load_balancer_plan import (
    Scope,
    active,
    arrived,
    derive_status,
    gateway,
    lack,
    ordered_digests,
    secrets_of,
    template_interface,
)
from kumulus_controllers.network.networks import BALANCES, network_key, underlay
from kumulus_controllers.network.router_status import NOT_TOLD
from kumulus_controllers.network.routing import Routing
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import FOR_UID, host_of
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

PACE_SECONDS = 1.0
"""The hosts of a load balancer are told of changed members at most so often."""
CERTIFICATE_SECONDS = 300.0
"""Secrets are not watched: a certificate that was renewed is seen within so many seconds."""
SECRET_SECONDS = 2.0
"""A Secret that a host cannot be given yet is tried again after so many."""
HOSTS = 2
IN_NAMESPACE = "balancers-in-namespace"


class LoadBalancerReconciler:
    """Has load balancers on hosts. The only writer of their status."""

    name = "loadbalancer"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._routing = Routing(services.caches)
        self._networks = self._routing.networks
        self._store = self._networks.balancers
        self._store.add_index(IN_NAMESPACE, lambda item: (item.namespace or "",))
        self._hosts = GatewayHosts(self._networks)
        self._orders = Ordering(services, self._networks.orders)
        self._written: dict[str, float] = {}
        """When the hosts of one were last told of a change, by its uid."""
        self._given: set[tuple[str, str]] = set()
        """Uids of orders, and names of Secrets that went with them."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; members and their machines; networks; hosts, and what they say."""
        networks = self._networks

        def balancer_changed(before: LoadBalancer | None, after: LoadBalancer | None) -> None:
            item = after or before
            if before is not None and after is None:
                self._written.pop(before.uid, None)
            if item is not None and not (before and after and _asked(before) == _asked(after)):
                enqueue(Key(item.namespace, item.name), urgent=item.deleting)

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and not (before and after and _reached(before) == _reached(after)):
                for one in self._store.by(BALANCES, str(network_key(item))):
                    enqueue(Key(one.namespace, one.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is None or (before and after and _labelled(before) == _labelled(after)):
                return
            for one in self._store.by(IN_NAMESPACE, item.namespace or ""):
                if any(vm is not None and _selects(one, vm) for vm in (before, after)):
                    enqueue(Key(one.namespace, one.name), urgent=item.deleting)

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if item is not None and not (before and after and _offered(before) == _offered(after)):
                for one in self._networks.balancers_in(item):
                    enqueue(Key(one.namespace, one.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.SEGMENT:
                for one in self._store.by(BALANCES, f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    ready = one.status.condition("Ready")
                    if ready is not None and ready.reason == NOT_TOLD:
                        enqueue(Key(one.namespace, one.name))
            if order is None or order.spec.for_.kind != LoadBalancer.KIND.kind:
                return
            if after is None:
                self._given = {item for item in self._given if item[0] != order.uid}
            if before is None or after is None or before.status != after.status or before.deleting != after.deleting:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if not (before and after and _open(before) == _open(after)):
                self._enqueue_all(enqueue)

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            if before is None or after is None or before.spec.uplinks != after.spec.uplinks:
                self._enqueue_all(enqueue)

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            if _can(before) != _can(after):
                self._enqueue_all(enqueue)

        self._store.listen(balancer_changed)
        networks.interfaces.listen(interface_changed)
        networks.machines.listen(machine_changed)
        networks.store.listen(network_changed)
        networks.orders.listen(order_changed)
        networks.hosts.listen(host_changed)
        networks.physical.listen(physical_changed)
        networks.reports.listen(report_changed)

    def _enqueue_all(self, enqueue: Enqueue) -> None:
        for item in self._store:
            enqueue(Key(item.namespace, item.name))

    def everything(self) -> list[Key]:
        """All load balancers, and those that only a left-over work order remembers."""
        keys = set(self._store.keys())
        for order in self._networks.orders:
            if order.spec.for_.kind == LoadBalancer.KIND.kind:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    def _observe(self, balancer: LoadBalancer) -> Scope:
        networks = self._networks
        namespace = balancer.namespace
        orders = networks.orders.by(FOR_UID, f"{WorkType.GATEWAY}/{balancer.uid}")
        named = balancer.spec.members.interfaces or ()
        interfaces = {name: networks.interfaces.get(name, namespace) for name in named}
        candidates = [item for item in interfaces.values() if item is not None]
        network = networks.store.get(balancer.spec.network, namespace)
        if balancer.spec.members.selector is not None and network is not None:
            candidates = [item for item in networks.interfaces_of(network) if self._chosen(balancer, item)]
        scope = Scope(
            balancer=balancer,
            network=network,
            interface=networks.interfaces.get(balancer.interface_name, namespace),
            candidates=tuple(candidates),
            unknown=tuple(sorted(name for name, item in interfaces.items() if item is None)),
            orders=tuple(sorted(orders, key=lambda order: (order.metadata.creation_timestamp or "", host_of(order)))),
            silent=frozenset(host_of(order) for order in orders if self._is_silent(host_of(order))),
        )
        return replace(scope, untold=self._untold(scope))

    def _untold(self, scope: Scope) -> frozenset[str]:
        serving = active(scope)
        if scope.network is None or serving is None or arrived(scope.balancer):
            return frozenset()
        hosts = self._routing.untold([scope.network], host_of(serving))
        return frozenset(host for host in hosts if not self._is_silent(host))

    def _is_silent(self, name: str) -> bool:
        host = self._networks.hosts.get(name)
        return host is None or silent(host)

    def _chosen(self, balancer: LoadBalancer, interface: NetworkInterface) -> bool:
        """Whether its selector takes the interface: that of a machine of its namespace with the labels."""
        if interface.namespace != balancer.namespace or interface.status.vm is None:
            return False
        vm = self._networks.machines.get(interface.status.vm, interface.namespace)
        return vm is not None and not vm.deleting and _selects(balancer, vm)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a load balancer."""
        store = self._store
        balancer = store.get(key.name, key.namespace)
        for order in await self._orders.orphans(LoadBalancer.KIND, key, balancer.uid if balancer is not None else None):
            await self._orders.end(order)
        if balancer is None:
            return Gone()
        if balancer.paused:
            await leaving_alone.say_so(self._services, store, balancer)
            return Done()
        if balancer.deleting:
            return await self._delete(self._observe(balancer))
        if await ensure_finalizer(self._services.client, store, balancer):
            balancer = store.get(key.name, key.namespace) or balancer
        scope = self._observe(balancer)
        why = lack(scope)
        if scope.interface is None and why is not None and why.reason == "InterfacePending":
            why = await self._make_interface(balancer)
            scope = self._observe(balancer)
            why = why or lack(scope)
        wait = 0.0
        if why is None:
            identities, why = await self._identities(balancer)
            digests = {name: identity.digest for name, identity in identities.items()}
            scope = replace(scope, digests={**ordered_digests(scope), **digests})
            if why is None or all(name in scope.digests for name in secrets_of(balancer)):
                scope, wait = await self._serve(scope, identities)
        return await self._report(scope, why, wait)

    async def _make_interface(self, balancer: LoadBalancer) -> Lack | None:
        client, namespace = self._services.client, balancer.namespace
        try:
            raw = await client.create(NetworkInterface.KIND, template_interface(balancer), namespace)
        except AlreadyExists:
            raw = await client.get(NetworkInterface.KIND, balancer.interface_name, namespace)
        except Refused as refused:  # by a quota, say, or because the namespace ends
            return Lack(
                "InterfaceRefused",
                f"NetworkInterface {balancer.interface_name} cannot be made: {refused.message}",
            )
        self._networks.interfaces.apply(raw)
        return None

    async def _identities(self, balancer: LoadBalancer) -> tuple[dict[str, tls.Identity], Lack | None]:
        """What the Secrets have that its listeners name, by their names; and why one cannot be used."""
        found: dict[str, tls.Identity] = {}
        why: Lack | None = None
        for name in secrets_of(balancer):
            read = await tls.read(self._services.client, name, balancer.namespace, self._services.clock.now())
            if isinstance(read, Lack):
                why = why or read
            else:
                found[name] = read
        return found, why

    async def _serve(self, scope: Scope, identities: dict[str, tls.Identity]) -> tuple[Scope, float]:
        """Have it on its hosts as it is to be there. In so many seconds they may be told again; 0 when they know all."""
        balancer = scope.balancer
        choice = self._choose(scope)
        scope = replace(scope, choice=choice)
        underlays = self._networks.underlays(choice.hosts)
        orders = {host_of(order): order for order in scope.orders}
        stale: list[tuple[WorkOrder, GatewayOrder]] = []
        given = True
        for host in choice.hosts:
            wanted = gateway(scope, host, redundancy(balancer.uid, host, choice.hosts, underlays))
            order = orders.get(host)
            if order is None:
                await self._orders.make(gateway_order_name(balancer.uid), host, self._spec(balancer, wanted, 0))
                order = self._networks.orders.get(gateway_order_name(balancer.uid), host_namespace(host))
                if order is not None:
                    given = await self._hand_over(order, identities) and given
            elif not order.deleting:  # the end of an order announces itself
                has = await self._hand_over(order, identities)
                given = given and has
                if has and order.spec.gateway != wanted:
                    stale.append((order, wanted))
        wait = await self._change(balancer, stale)
        if not given:
            wait = max(wait, SECRET_SECONDS)
        for host, order in orders.items():
            if host not in choice.hosts and choice.hosts:
                await self._orders.end(order)
        return replace(self._observe(balancer), choice=choice, digests=scope.digests, late=wait > 0), wait

    async def _change(self, balancer: LoadBalancer, stale: list[tuple[WorkOrder, GatewayOrder]]) -> float:
        """Tell hosts what changed, all of it at once. In so many seconds they may be told; 0 when they know."""
        now = self._services.clock.monotonic()
        left = self._written.get(balancer.uid, float("-inf")) + PACE_SECONDS - now
        if stale and left > 0:
            return left
        for order, wanted in stale:
            self._written[balancer.uid] = now
            await self._orders.change(order, self._spec(balancer, wanted, order.spec.term))
            await self._take_back(order, wanted)
        return 0.0

    def _choose(self, scope: Scope) -> Choice:
        assert scope.network is not None and scope.network.status.driver is not None
        driver, candidates = scope.network.status.driver, self._hosts.candidates()
        way = self._networks.way_of(scope.network)
        need = Need(driver, GatewayFunction.LOAD_BALANCER, HOSTS, ways=(way,) if way is not None else ())
        current = [host_of(order) for order in scope.orders if not order.deleting]
        serving = active(scope)
        return choose_some(need, candidates, current, host_of(serving) if serving is not None else None)

    async def _hand_over(self, order: WorkOrder, identities: dict[str, tls.Identity]) -> bool:
        """Have the host have what TLS is ended with, before it is told to use it. Whether it has all of it."""
        misses = order.status.reason == "SecretNotFound"
        complete = True
        for identity in identities.values():
            given = (order.uid, tls_secret_name(order.spec.for_.uid, identity.digest))
            if given in self._given and not misses:
                continue
            if await tls.hand_over(self._services.client, order.spec.for_.uid, identity, order):
                self._given.add(given)
            else:
                complete = False
        return complete

    async def _take_back(self, order: WorkOrder, wanted: GatewayOrder) -> None:
        """Have the host have no Secrets that it needs no more."""
        had = order.spec.gateway.balancer if order.spec.gateway is not None else None
        for name in _secrets(had) - _secrets(wanted.balancer):
            self._given.discard((order.uid, name))
            await order_secret.take_back(self._services.client, name, order)

    async def _delete(self, scope: Scope) -> Result:
        """First its hosts let go of its addresses, then these are given back."""
        balancer, client = scope.balancer, self._services.client
        if FINALIZER not in balancer.metadata.finalizers:
            return Done()
        for order in scope.orders:
            await self._orders.end(order)
        if self._observe(balancer).orders:
            await self._report(scope, None, 0.0)
            return Wait("Terminating", 30.0)
        interface = scope.interface
        ours = interface is not None and interface.metadata.owner_references
        if interface is not None and ours and interface.metadata.owner_references[0].uid == balancer.uid:
            await client.delete(NetworkInterface.KIND, interface.name, interface.namespace, uid=interface.uid)
        await drop_finalizer(client, self._store, balancer)
        return Gone()

    async def _report(self, scope: Scope, why: Lack | None, wait: float) -> Result:
        balancer = scope.balancer
        after = derive_status(scope, why, rfc3339(self._services.clock.now()))
        with suppress(NotFound):
            await write_status(self._services.client, self._store, balancer, balancer.status, after)
        if wait > 0:
            return Requeue(wait)
        if why is not None:
            return Wait(why.reason, 30.0)
        if any(listener.tls is not None for listener in balancer.spec.listeners):
            return Requeue(CERTIFICATE_SECONDS)
        return Done()

    def _spec(self, balancer: LoadBalancer, wanted: GatewayOrder, term: int) -> WorkOrderSpec:
        ref = ObjectRef(kind=LoadBalancer.KIND.kind, namespace=balancer.namespace, name=balancer.name, uid=balancer.uid)
        return WorkOrderSpec(type=WorkType.GATEWAY, for_=ref, term=max(term, self._services.term()), gateway=wanted)


def _secrets(balancing: Balancing | None) -> set[str]:
    listeners = balancing.listeners if balancing is not None else ()
    return {one.certificate.secret for one in listeners if one.certificate is not None}


def _open(host: Host) -> tuple[object, ...]:
    """What of a host decides whether it can have a load balancer."""
    return (closed(host, guests=False), silent(host), host.metadata.labels)


def _can(report: HostReport | None) -> tuple[object, ...]:
    """What of a host's report decides whether it can have load balancers."""
    return (drivers(report), functions(report), underlay(report), uplinks(report))


def _selects(balancer: LoadBalancer, vm: VirtualMachine) -> bool:
    selector = balancer.spec.members.selector
    labels = vm.metadata.labels
    return bool(selector) and all(labels.get(key) == value for key, value in (selector or {}).items())


def _asked(balancer: LoadBalancer) -> tuple[object, ...]:
    """Whether more changed than the status, which is our own writing."""
    meta = balancer.metadata
    return (balancer.uid, meta.generation, balancer.deleting, meta.finalizers, meta.annotations)


def _reached(interface: NetworkInterface) -> tuple[object, ...]:
    """What of an interface decides whether it is a member, and where."""
    status, meta = interface.status, interface.metadata
    return (interface.uid, interface.deleting, meta.annotations, status.network, status.addresses, status.vm)


def _labelled(vm: VirtualMachine) -> tuple[object, ...]:
    return (vm.uid, vm.deleting, vm.metadata.labels)


def _offered(network: Network) -> tuple[object, ...]:
    status = network.status
    made = (status.mtu, status.numbered, status.driver, status.physical_network)
    return (network.uid, network.deleting, made, network.spec.gateway)
