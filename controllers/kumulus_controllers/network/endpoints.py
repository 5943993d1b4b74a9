"""Kubernetes Services that mean machines: their EndpointSlices, and why machines are none of their endpoints.

A Service with the label `network.kumulus.io/vm-network` (`kube/service.py`) is one. Nothing of it is written but
one condition of its status.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import structlog

from kumulus.api.base import Condition
from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.kube.builtin import SERVICE_CIDR
from kumulus.kube.errors import Conflict, NotFound, Refused
from kumulus.kube.service import PUBLISHED, VM_NETWORK, EndpointSlice, Service
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.events import tell
from kumulus_controllers.network.endpoints_plan import Scope, judge, ports
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.networks import CLAIMED_BY, UID, network_key
from kumulus_controllers.network.reach import CidrRange, Member
from kumulus_controllers.network.routing import FOR_NIC, Routing, targets
from kumulus_controllers.network.slices_plan import OURS, Steps, plan
from kumulus_controllers.status import write_status

log = structlog.get_logger(__name__)

PACE_SECONDS = 1.0
"""The slices of a Service are written at most so often."""
CIDR_SECONDS = 600.0
"""The cluster's own ranges of Services are looked up so often."""
CIDR_RETRY_SECONDS = 15.0
"""So soon again when that was refused."""
OF_SERVICE = "of-service"
IN_NAMESPACE = "services-in-namespace"
BY_NETWORK = "services-by-network"


class EndpointsReconciler:
    """Has machines be endpoints of Services. The only writer of slices with its label."""

    name = "endpoints"

    def __init__(self, services: Services, cluster: Sequence[CidrRange] = ()) -> None:
        """`cluster` are ranges of the cluster's own addresses, which are never published."""
        self._services = services
        self._routing = Routing(services.caches)
        self._networks = self._routing.networks
        self._store = services.caches.reflected(Service, labels=VM_NETWORK)
        self._slices = services.caches.reflected(EndpointSlice, labels=OURS)
        self._store.add_index(IN_NAMESPACE, lambda item: (item.namespace or "",))
        self._store.add_index(BY_NETWORK, lambda item: (str(_network_key(item)),))
        self._slices.add_index(OF_SERVICE, lambda item: (f"{item.namespace}/{item.service}",))
        self._cluster = tuple(cluster)
        self._cidrs: tuple[float, tuple[CidrRange, ...]] | None = None
        """When they are looked up again, and those that were found."""
        self._written: dict[str, float] = {}
        """When slices of a Service were last written, by its uid."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; slices that somebody changed; machines, their interfaces, and what leads to them."""
        networks, routing = self._networks, self._routing

        def service_changed(before: Service | None, after: Service | None) -> None:
            item = after or before
            if before is not None and after is None:
                self._written.pop(before.uid, None)
            if item is not None and not (before and after and _asked(before) == _asked(after)):
                enqueue(Key(item.namespace, item.name))

        def slice_changed(before: EndpointSlice | None, after: EndpointSlice | None) -> None:
            item = after or before
            if item is not None and item.service and not (before and after and _has(before) == _has(after)):
                enqueue(Key(item.namespace, item.service))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is None or (before and after and _lives(before) == _lives(after)):
                return
            for service in self._store.by(IN_NAMESPACE, item.namespace or ""):
                if any(vm is not None and service.selects(vm.metadata.labels) for vm in (before, after)):
                    enqueue(Key(service.namespace, service.name))

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and not (before and after and _reached(before) == _reached(after)):
                for service in self._store.by(BY_NETWORK, str(network_key(item))):
                    if service.namespace == item.namespace:
                        enqueue(Key(service.namespace, service.name))

        def floating_changed(before: FloatingIP | None, after: FloatingIP | None) -> None:
            item = after or before
            if item is None or (before and after and _stands(before) == _stands(after)):
                return
            names = {name for one in (before, after) if one is not None for name in targets(one)}
            for name in names:
                nic = networks.interfaces.get(name, item.namespace)
                if nic is not None:
                    interface_changed(None, nic)

        def router_changed(before: Router | None, after: Router | None) -> None:
            uids = set()
            if not (before and after and _routes(before) == _routes(after)):
                uids = {part.uid for item in (before, after) if item is not None for part in item.status.networks}
            for network in [network for uid in uids for network in networks.store.by(UID, uid)]:
                self._enqueue_network(enqueue, network)

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if item is not None and not (before and after and _offered(before) == _offered(after)):
                self._enqueue_network(enqueue, item)

        def external_changed(before: ExternalNetwork | None, after: ExternalNetwork | None) -> None:
            if before is None or after is None or before.spec != after.spec:
                for service in self._store:
                    enqueue(Key(service.namespace, service.name))

        self._store.listen(service_changed)
        self._slices.listen(slice_changed)
        networks.machines.listen(machine_changed)
        networks.interfaces.listen(interface_changed)
        networks.store.listen(network_changed)
        networks.routers.listen(router_changed)
        routing.floating.listen(floating_changed)
        routing.external.listen(external_changed)

    def _enqueue_network(self, enqueue: Enqueue, network: Network) -> None:
        for service in self._store.by(BY_NETWORK, f"{network.namespace}/{network.name}"):
            enqueue(Key(service.namespace, service.name))

    def everything(self) -> list[Key]:
        """All Services that mean machines, and those that only a left-over slice remembers."""
        left = {Key(item.namespace, item.service) for item in self._slices if item.service}
        return list(left | set(self._store.keys()))

    async def reconcile(self, key: Key) -> Result:
        """One pass over a Service."""
        service = self._store.get(key.name, key.namespace)
        if service is None or service.network is None:
            return await self._leave(key)
        if service.paused or service.deleting:  # with it go its slices
            return Done()
        scope = await self._observe(service)
        found = judge(scope)
        steps, why = plan(service, ports(service), found.endpoints, scope.slices), found.lack
        try:
            wait = await self._act(service, steps)
        except Refused as refused:  # by a quota, say, or because the namespace ends
            wait, why = 0.0, Lack("SliceRefused", f"Its EndpointSlices cannot be written: {refused.message}")
        if wait > 0 and why is None:  # they are not its endpoints yet
            return Requeue(wait)
        await self._say(service, why)
        if wait > 0:
            return Requeue(wait)
        return Wait(why.reason) if why is not None else Done()

    async def _observe(self, service: Service) -> Scope:
        networks, key = self._networks, _network_key(service)
        network = networks.store.get(key.name, key.namespace)
        members = self._members(service, network) if network is not None and service.spec.selector else []
        holders = {one.interface.uid for one in members} | {item.uid for one in members for item in one.floating}
        claims = [claim for uid in holders for claim in networks.claims.by(CLAIMED_BY, uid)]
        return Scope(
            service=service,
            network=network,
            members=tuple(members),
            routers=tuple(networks.routers_of(network)) if network is not None else (),
            external=tuple(sorted(self._routing.external, key=lambda item: item.name)),
            claimed=frozenset(
                (claim.spec.interface_uid, claim.spec.address) for claim in claims if claim.spec.released_at is None
            ),
            cluster=(*self._cluster, *await self._service_cidrs()),
            slices=tuple(self._slices.by(OF_SERVICE, f"{service.namespace}/{service.name}")),
        )

    def _members(self, service: Service, network: Network) -> list[Member]:
        """Interfaces in the network of machines that it selects, of its own namespace and no other, by name."""
        found = []
        for nic in self._networks.interfaces_of(network):
            if nic.namespace != service.namespace or nic.status.network != network.uid or nic.status.vm is None:
                continue
            machine = self._networks.machines.get(nic.status.vm, nic.namespace)
            if machine is None or not service.selects(machine.metadata.labels):
                continue
            floating = self._routing.floating.by(FOR_NIC, f"{nic.namespace}/{nic.name}")
            oldest = sorted(floating, key=lambda item: (item.metadata.creation_timestamp or "", item.name))
            found.append(Member(machine, nic, tuple(oldest)))
        return found

    async def _service_cidrs(self) -> tuple[CidrRange, ...]:
        """The ranges of the cluster's own Services, as far as the API server tells (since Kubernetes 1.33)."""
        now = self._services.clock.monotonic()
        if self._cidrs is None or now >= self._cidrs[0]:
            found, again = self._cidrs[1] if self._cidrs is not None else (), CIDR_SECONDS
            try:
                pages = [page async for page, _ in self._services.client.list_pages(SERVICE_CIDR)]
            except NotFound:  # it has no such kind
                pass
            except Refused as refused:
                log.warning("ranges of Services not read", error=refused.message)
                again = CIDR_RETRY_SECONDS
            else:
                found = tuple(
                    ipaddress.ip_network(cidr)
                    for page in pages
                    for raw in page
                    for cidr in raw["spec"].get("cidrs") or ()
                )
            self._cidrs = (now + again, found)
        return self._cidrs[1]

    async def _act(self, service: Service, steps: Steps) -> float:
        """Write slices. In so many seconds they may be written; 0 when nothing is left to do."""
        if not steps:
            return 0.0
        client, now = self._services.client, self._services.clock.monotonic()
        left = self._written.get(service.uid, float("-inf")) + PACE_SECONDS - now
        if left > 0:
            return left
        self._written[service.uid] = now
        # What is no endpoint any more goes first: that must not wait for what is refused.
        for item in steps.remove:
            await self._remove(item)
        for item, patch in steps.change:
            version = {"resourceVersion": item.metadata.resource_version}
            whole = {**patch, "metadata": {**patch["metadata"], **version}}
            try:
                self._slices.apply(await client.patch(EndpointSlice.KIND, item.name, whole, item.namespace))
            except NotFound:
                self._slices.remove(Key(item.namespace, item.name), item.uid)
                raise Conflict(409, "Conflict", f"EndpointSlice {item.name} is gone") from None
        for body in steps.make:
            self._slices.apply(await client.create(EndpointSlice.KIND, body, service.namespace))
        return 0.0

    async def _remove(self, item: EndpointSlice) -> None:
        await self._services.client.delete(EndpointSlice.KIND, item.name, item.namespace, uid=item.uid)
        self._slices.remove(Key(item.namespace, item.name), item.uid)

    async def _say(self, service: Service, why: Lack | None) -> None:
        """Have the condition say what is so; and an Event, which `kubectl describe service` shows, when it has changed."""
        said = why.message if why is not None else "The machines that it selects are its endpoints."
        reason = why.reason if why is not None else "Published"
        before = service.status.condition(PUBLISHED)
        (condition,) = derive(
            service.status.conditions,
            [Fact(PUBLISHED, why is None, reason, said)],
            generation=service.metadata.generation,
            now=rfc3339(self._services.clock.now()),
        )
        if not service.metadata.generation:  # Services have none, and 0 is not kept
            condition = condition.model_copy(update={"observed_generation": None})
        await self._write(service, condition)
        if before is None or (before.status, before.reason) != (condition.status, condition.reason):
            warns = why is not None and why.stalled
            action, clock = "PublishEndpoints", self._services.clock
            await tell(self._services.client, clock, service, reason, said, action=action, warning=warns)

    async def _write(self, service: Service, condition: Condition | None) -> None:
        """Have it have that condition of ours, or none, beside those of others."""
        others = [one for one in service.status.conditions if one.type != PUBLISHED]
        after = service.status.model_copy(
            update={"conditions": (*others, condition) if condition is not None else tuple(others)}
        )
        try:
            await write_status(self._services.client, self._store, service, service.status, after)
        except NotFound:
            self._store.remove(Key(service.namespace, service.name), service.uid)

    async def _leave(self, key: Key) -> Result:
        """Of a Service that is gone, or does not mean machines any more, nothing of ours stays."""
        raw = await self._services.client.find(Service.KIND, key.name, key.namespace)
        service = Service.parse(raw) if raw is not None else None
        if service is not None and service.network is not None:
            self._store.apply(raw or {})
            return Requeue(PACE_SECONDS)
        if service is not None and service.paused:
            return Gone()
        for item in self._slices.by(OF_SERVICE, str(key)):
            await self._remove(item)
        if service is not None and service.status.condition(PUBLISHED) is not None:
            await self._write(service, None)
            self._store.remove(
                Key(service.namespace, service.name), service.uid, as_of=service.metadata.resource_version
            )
        return Gone()


def _network_key(service: Service) -> Key:
    return Key(service.network_namespace or service.namespace, service.network or "")


def _asked(service: Service) -> object:
    ours = service.status.condition(PUBLISHED)
    return service.uid, service.spec, service.metadata.labels, service.paused, service.deleting, ours


def _has(item: EndpointSlice) -> object:
    return item.endpoints, item.ports, item.metadata.labels


def _lives(machine: VirtualMachine) -> object:
    return machine.uid, machine.metadata.labels, machine.status.phase, machine.deleting


def _reached(nic: NetworkInterface) -> object:
    status = nic.status
    return nic.uid, status.network, status.addresses, status.vm, status.phase, nic.deleting


def _stands(floating: FloatingIP) -> object:
    status, meta = floating.status, floating.metadata
    changes, ready = status.condition("Reconciling"), status.condition("Ready")
    why = changes.status if changes is not None else None, ready.reason if ready is not None else None
    there = status.address, status.network, status.router, status.phase, status.observed_generation
    return floating.uid, floating.spec, meta.generation, there, why, floating.deleting


def _routes(router: Router) -> object:
    status = router.status
    networks = tuple(part.uid for part in status.networks)
    return router.spec.source_nat, router.deleting, networks, status.external_network, status.phase


def _offered(network: Network) -> object:
    return network.uid, network.spec.allowed_namespaces, network.deleting, network.status.mtu is None
