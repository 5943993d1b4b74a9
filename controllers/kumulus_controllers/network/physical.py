"""PhysicalNetwork: how many hosts are connected to it, and that one in use stays."""

from __future__ import annotations

from kumulus.api.claims import SegmentId
from kumulus.api.fabric import Host
from kumulus.api.routing import PhysicalNetwork, PhysicalNetworkStatus
from kumulus.api.vlans import numbers
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.network import leaving_alone
from kumulus_controllers.network.external import COUNT_SECONDS
from kumulus_controllers.network.lack import Lack, facts, in_use, named
from kumulus_controllers.network.networks import IN_PHYSICAL as OF_PHYSICAL
from kumulus_controllers.network.networks import NUMBER_IN
from kumulus_controllers.network.routing import IN_PHYSICAL, Routing, device_on
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_report


class PhysicalNetworkReconciler:
    """Says of a physical network how many hosts are connected to it. It goes when nothing is in it any more."""

    name = "physicalnetwork"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._routing = Routing(services.caches)
        self._counted: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, hosts that come, go or get other labels, claims of VLANs, and what is in one that is to go."""
        routing = self._routing

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is not None and not (
                before and after and before.metadata.generation == after.metadata.generation and not after.deleting
            ):
                enqueue(Key(None, item.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is None or after is None or before.metadata.labels != after.metadata.labels:
                for key in routing.physical.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)

        def number_changed(before: SegmentId | None, after: SegmentId | None) -> None:
            number = after or before
            if number is not None and number.spec.physical_network is not None and (before is None or after is None):
                enqueue(Key(None, number.spec.physical_network))

        def user_changed(before: object, after: object) -> None:
            if after is None:
                for physical in routing.physical:
                    if physical.deleting:
                        enqueue(Key(None, physical.name))

        for users in (routing.networks.store, routing.networks.classes, routing.external):
            users.listen(user_changed)
        routing.networks.numbers.listen(number_changed)
        routing.physical.listen(physical_changed)
        routing.hosts.listen(host_changed)

    def everything(self) -> list[Key]:
        """All physical networks."""
        return self._routing.physical.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a physical network."""
        routing = self._routing
        physical = routing.physical.get(key.name)
        if physical is None:
            return Gone()
        if physical.paused:
            await leaving_alone.say_so(self._services, routing.physical, physical)
            return Done()
        users = self._users(physical)
        if physical.deleting and not users:
            await drop_finalizer(self._services.client, routing.physical, physical)
            return Gone()
        if not physical.deleting and await ensure_finalizer(self._services.client, routing.physical, physical):
            physical = routing.physical.get(key.name) or physical
        count = sum(device_on(physical, host) is not None for host in routing.hosts)
        lack = None
        if physical.deleting:
            lack = in_use(users, "They go on as they are. Delete them, or have their owners delete them.")
        elif count == 0:
            lack = Lack("NoHosts", "No host has an uplink to it: name some in spec.uplinks.")
        generation = physical.metadata.generation
        after = PhysicalNetworkStatus(
            observed_generation=generation,
            conditions=derive(
                physical.status.conditions,
                facts(lack, "Ready", "Routers, and networks that are VLANs, can be on its hosts."),
                generation=generation,
                now=rfc3339(self._services.clock.now()),
            ),
            hosts=count,
            vlans=len(numbers(physical.spec.vlans)),
            allocated=len(routing.networks.numbers.by(NUMBER_IN, physical.name)),
        )
        clock, before = self._services.clock, physical.status
        since = clock.monotonic() - self._counted.get(physical.uid, float("-inf"))
        same = after.model_copy(update={"allocated": before.allocated}).to_json() == before.to_json()
        if since < COUNT_SECONDS and same and after.to_json() != before.to_json():
            return Requeue(COUNT_SECONDS - since)
        if after.to_json() != before.to_json():
            self._counted[physical.uid] = clock.monotonic()
        await write_report(self._services.client, routing.physical, physical, after)
        return Done()

    def _users(self, physical: PhysicalNetwork) -> list[str]:
        """Who is in it, or is to be."""
        routing = self._routing
        users = [
            *routing.external.by(IN_PHYSICAL, physical.name),
            *(item for item in routing.networks.classes if item.spec.physical_network == physical.name),
            *routing.networks.store.by(OF_PHYSICAL, physical.name),
        ]
        return [named(item) for item in users]
