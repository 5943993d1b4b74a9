"""Network: its class, its number, its packets; who is in it; and its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import structlog

from kumulus.api.claims import IPAddress, SegmentHolder, SegmentId, SegmentIdSpec
from kumulus.api.host import HostReport, WorkOrder, WorkType
from kumulus.api.network import Network, NetworkClass, NetworkInterface, NetworkType
from kumulus.api.routing import ExternalNetwork, PhysicalNetwork, Router
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import Scope, Wanted, derive_status, no_number, physical_name, wanted
from kumulus_controllers.network.networks import (
    CLAIMS_IN,
    IN_PHYSICAL,
    NUMBER_FOR,
    NUMBER_OF,
    OF_CLASS,
    UNNUMBERED,
    Networks,
    network_key,
    over_v6,
)
from kumulus_controllers.network.numbers import Numbers
from kumulus_controllers.network.vlans import Number, claim_name, external_vlans, own_vlans, tried
from kumulus_controllers.orders import FOR_UID, host_of
from kumulus_controllers.rebuild import Rebuild
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

log = structlog.get_logger(__name__)

COUNT_SECONDS = 5.0
"""How stale the counts in a Network's status may be: they are no reason for a write per machine."""


class NetworkReconciler:
    """Brings a network to what its spec says. The only writer of its status, and of its number."""

    name = "network"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._networks = Networks(services.caches)
        self._external = services.caches.store(ExternalNetwork)
        self._numbers = Numbers(services, self._networks.numbers)
        self._rebuild = Rebuild(services.caches)
        self._counted: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, classes, what is in it and where it is, and where tunnels of hosts end."""
        networks = self._networks

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(item.namespace, item.name))

        def class_changed(before: NetworkClass | None, after: NetworkClass | None) -> None:
            item = after or before
            if item is None or (before is not None and after is not None and before.spec == after.spec):
                return
            for network in (*networks.store.by(OF_CLASS, item.name), *networks.store.by(OF_CLASS, "")):
                enqueue(Key(network.namespace, network.name))
            unnumbered()

        def unnumbered() -> None:
            """Those that wait for a number: there may be one by now."""
            for network in networks.store.by(UNNUMBERED, "yes"):
                enqueue(Key(network.namespace, network.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is None or (before is not None and after is not None and before.spec == after.spec):
                return
            for network in networks.store.by(IN_PHYSICAL, item.name):
                enqueue(Key(network.namespace, network.name))
            unnumbered()

        def number_changed(before: object, after: object) -> None:
            if after is None:
                unnumbered()

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and (before is None or after is None):
                enqueue(network_key(item))

        def claim_changed(before: IPAddress | None, after: IPAddress | None) -> None:
            claim = after or before
            if claim is not None and (before is None or after is None):
                self._enqueue_uid(enqueue, claim.spec.network)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.SEGMENT and (before is None or after is None):
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            had, has = (item.status.orphan_count if item is not None else None for item in (before, after))
            if had != has:
                unnumbered()
            if over_v6(before) != over_v6(after):
                for key in networks.store.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)

        def router_changed(before: Router | None, after: Router | None) -> None:
            had, has = ({part.uid for part in item.status.networks} if item else set() for item in (before, after))
            for uid in had ^ has:
                self._enqueue_uid(enqueue, uid)

        networks.routers.listen(router_changed)
        networks.store.listen(network_changed)
        networks.classes.listen(class_changed)
        networks.physical.listen(physical_changed)
        networks.numbers.listen(number_changed)
        self._external.listen(number_changed)
        networks.interfaces.listen(interface_changed)
        networks.claims.listen(claim_changed)
        networks.orders.listen(order_changed)
        networks.reports.listen(report_changed)

    def _enqueue_uid(self, enqueue: Enqueue, uid: str) -> None:
        for network in self._networks.store.by("uid", uid):
            enqueue(Key(network.namespace, network.name))

    def everything(self) -> list[Key]:
        """All networks, and those that only a left-over number remembers."""
        numbers = {
            Key(number.spec.namespace, number.spec.name)
            for number in self._networks.numbers
            if number.spec.kind is SegmentHolder.NETWORK
        }
        return list({*self._networks.store.keys(), *numbers})

    def _observe(self, network: Network) -> Scope:
        networks = self._networks
        offered = networks.class_of(network)
        physical = physical_name(network, offered)
        return Scope(
            network=network,
            offered=offered,
            over_v6=networks.over_v6(),
            physical=networks.physical.get(physical) if physical is not None else None,
            external_vlans=external_vlans(self._external, physical) if physical is not None else frozenset(),
            own_vlans=own_vlans(networks.classes, physical) if physical is not None else frozenset(),
            interfaces=self._interfaces_of(network),
            routers=tuple(router.name for router in networks.routers_of(network)) if network.deleting else (),
            balancers=tuple(item.name for item in networks.balancers_in(network)) if network.deleting else (),
            claims=len(networks.claims.by(CLAIMS_IN, network.uid)),
            hosts=tuple(sorted(host_of(o) for o in networks.orders.by(FOR_UID, f"{WorkType.SEGMENT}/{network.uid}"))),
        )

    def _interfaces_of(self, network: Network) -> tuple[NetworkInterface, ...]:
        wanted = network.deleting or network.spec.type is NetworkType.SHARED
        return tuple(self._networks.interfaces_of(network)) if wanted else ()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a network."""
        store = self._networks.store
        network = store.get(key.name, key.namespace)
        await self._remove_numbers(key, network)
        if network is None:
            return Gone()
        if network.paused:
            if network.deleting:
                await self._report(self._observe(network), None, None, None)
            return Done()
        if network.deleting:
            return await self._delete(self._observe(network))
        if await ensure_finalizer(self._services.client, store, network):
            network = store.get(key.name, key.namespace) or network
        scope = self._observe(network)
        want = wanted(scope)
        if isinstance(want, Lack):
            return await self._report(scope, None, want, None)
        number = await self._claim_number(network, want)
        if isinstance(number, Lack):
            return await self._report(scope, want, number, None)
        result = await self._report(scope, want, None, number)
        await self._drop_numbers(network.uid, keep=number)
        return result

    async def _claim_number(self, network: Network, want: Wanted) -> SegmentId | Lack:
        """The network's number. Whoever makes the object of that name has it."""
        physical = want.pool.physical if want.pool is not None else None
        held = [
            number
            for number in self._networks.numbers.by(NUMBER_OF, network.uid)
            if number.spec.physical_network == physical
        ]
        known = known_number(network)
        if known is None and held:
            return min(held, key=lambda number: number.name)
        spec = SegmentIdSpec(
            network=network.uid, name=network.name, namespace=network.namespace, physical_network=physical
        )
        tries: Iterable[Number] = [known] if known is not None else tried(network.uid, want.pool)
        if known is None:
            if self._rebuild.unheard():
                return Lack(
                    "HostsNotHeard",
                    "The control plane is being rebuilt, and not every host has told yet which numbers of networks it uses: it"
                    " goes on when all have.",
                    stalled=False,
                )
            tries = self._unused(tries)
        found = await self._numbers.first(tries, spec)
        if found is not None:
            return found
        if known is None:
            return no_number(want)
        return Lack("NumberTaken", f"Its number {known.name} is another network's by now: make this network anew.")

    def _unused(self, tries: Iterable[Number]) -> Iterator[Number]:
        """Those of them that no host uses for a network whose object was lost."""
        for number in tries:
            vni = int(number.name) if number.vlan is None else None
            if not self._rebuild.numbered(vni=vni, vlan=number.vlan):
                yield number

    async def _drop_numbers(self, network_uid: str, *, keep: SegmentId | None) -> None:
        """Give back numbers that a pass claimed which did not get on record. `keep` is on record."""
        for number in self._networks.numbers.by(NUMBER_OF, network_uid):
            if keep is None or number.name != keep.name:
                await self._numbers.end(number)

    async def _remove_numbers(self, key: Key, network: Network | None) -> None:
        """Numbers of a network of that name that is no more, after a live look."""
        for number in self._networks.numbers.by(NUMBER_FOR, f"{key.namespace}/{key.name}"):
            if network is not None and number.spec.network == network.uid:
                continue
            live = await self._services.client.find(Network.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != number.spec.network:
                log.info("giving back the number of a network that is gone", namespace=key.namespace, name=key.name)
                await self._drop_numbers(number.spec.network, keep=None)

    async def _delete(self, scope: Scope) -> Result:
        """Interfaces first, then hosts, then claims and the number: nobody has them while a host may use them."""
        network, client = scope.network, self._services.client
        if not scope.interfaces and not scope.hosts and not scope.routers:
            for claim in self._networks.claims.by(CLAIMS_IN, network.uid):
                await client.delete(IPAddress.KIND, claim.name, claim.namespace, uid=claim.uid)
                self._networks.claims.remove(Key(claim.namespace, claim.name), claim.uid)
            await self._drop_numbers(network.uid, keep=None)
            await drop_finalizer(client, self._networks.store, network)
            self._counted.pop(network.uid, None)
            return Gone()
        await self._report(scope, None, None, None)
        return Wait("Deleting", 30.0)

    async def _report(self, scope: Scope, want: Wanted | None, lack: Lack | None, number: SegmentId | None) -> Result:
        """Write the status when it differs. Counts alone wait a while for others. Without a number that on record stays."""
        clock, network = self._services.clock, scope.network
        before = network.status
        vlan = number.spec.vlan if number is not None else None
        vni = int(number.name) if number is not None and vlan is None else None
        after = derive_status(scope, want, lack, vni, rfc3339(clock.now()), vlan=vlan)
        counts = {"allocated": before.allocated, "hosts": before.hosts}
        since = clock.monotonic() - self._counted.get(network.uid, float("-inf"))
        if since < COUNT_SECONDS and before != after and after.model_copy(update=counts).to_json() == before.to_json():
            return Requeue(COUNT_SECONDS - since)
        if before.to_json() != after.to_json():
            self._counted[network.uid] = clock.monotonic()
            with suppress(NotFound):
                await write_status(self._services.client, self._networks.store, network, before, after)
        return Wait(lack.reason, 60.0) if lack is not None else Done()


def known_number(network: Network) -> Number | None:
    """The number that it has on record."""
    status = network.status
    if status.vlan is not None and status.physical_network is not None:
        return Number(claim_name(status.physical_network, status.vlan), status.vlan)
    return Number(str(status.vni)) if status.vni is not None else None
