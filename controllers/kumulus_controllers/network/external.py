"""ExternalNetwork: what is so of it, and that one in use stays."""

from __future__ import annotations

from contextlib import suppress

from kumulus.api.claims import IPAddress, SegmentHolder, SegmentId, SegmentIdSpec
from kumulus.api.routing import ExternalNetwork, ExternalNetworkStatus, PhysicalNetwork
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.network import leaving_alone
from kumulus_controllers.network.claiming import Claims
from kumulus_controllers.network.lack import Lack, facts
from kumulus_controllers.network.networks import CLAIMS_IN, NUMBER_FOR, UID
from kumulus_controllers.network.numbers import Numbers
from kumulus_controllers.network.router_plan import external_of
from kumulus_controllers.network.routing import IN_PHYSICAL, OF_EXTERNAL, TO_EXTERNAL, Routing
from kumulus_controllers.network.vlans import Number, claim_name
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

COUNT_SECONDS = 5.0
"""How stale the count of addresses may be: it is no reason for a write an address."""


class ExternalNetworkReconciler:
    """Says of an external network what is so. It goes when nobody uses it."""

    name = "externalnetwork"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._routing = Routing(services.caches)
        self._claims = Claims(services, self._routing.networks)
        self._numbers = Numbers(services, self._routing.networks.numbers)
        self._counted: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, its physical network, and claims of its addresses."""
        routing = self._routing

        def external_changed(before: ExternalNetwork | None, after: ExternalNetwork | None) -> None:
            item = after or before
            if item is not None and not (
                before and after and before.metadata.generation == after.metadata.generation and not after.deleting
            ):
                enqueue(Key(None, item.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            item = after or before
            if item is not None and (before is None or after is None):
                for external in routing.external.by(IN_PHYSICAL, item.name):
                    enqueue(Key(None, external.name))

        def claim_changed(before: IPAddress | None, after: IPAddress | None) -> None:
            claim = after or before
            if claim is not None and (before is None or after is None):
                for external in routing.external.by(UID, claim.spec.network):
                    enqueue(Key(None, external.name))

        def user_changed(before: object, after: object) -> None:
            if after is None:
                for external in routing.external:
                    if external.deleting:
                        enqueue(Key(None, external.name))

        def number_changed(before: SegmentId | None, after: SegmentId | None) -> None:
            if before is not None and after is None and before.spec.physical_network is not None:
                for external in routing.external.by(IN_PHYSICAL, before.spec.physical_network):
                    if external.spec.vlan == before.spec.vlan:
                        enqueue(Key(None, external.name))

        routing.networks.numbers.listen(number_changed)
        routing.external.listen(external_changed)
        routing.physical.listen(physical_changed)
        routing.networks.claims.listen(claim_changed)
        routing.routers.listen(user_changed)
        routing.floating.listen(user_changed)

    def everything(self) -> list[Key]:
        """All external networks, and those that only a left-over number remembers."""
        numbers = self._routing.networks.numbers
        left = {Key(None, item.spec.name) for item in numbers if item.spec.kind is SegmentHolder.EXTERNAL_NETWORK}
        return list({*self._routing.external.keys(), *left})

    async def reconcile(self, key: Key) -> Result:
        """One pass over an external network."""
        routing, clock = self._routing, self._services.clock
        external = routing.external.get(key.name)
        if external is None:
            await self._give_back_left(key.name)
            return Gone()
        if external.paused:
            await leaving_alone.say_so(self._services, routing.external, external)
            return Done()
        if not external.deleting and await ensure_finalizer(self._services.client, routing.external, external):
            external = routing.external.get(key.name) or external
        claims = routing.networks.claims.by(CLAIMS_IN, external.uid)
        users = self._users(external)
        if external.deleting and not users:
            for claim in claims:
                await self._claims.end(claim)
            await self._give_back_vlan(external)
            await drop_finalizer(self._services.client, routing.external, external)
            return Gone()
        lack = None
        if external.deleting:
            lack = Lack("InUse", f"Routers and FloatingIPs use it: {', '.join(users[:5])}. Their owners delete them.")
        elif routing.physical.get(external.spec.physical_network) is None:
            lack = Lack(
                "PhysicalNetworkNotFound", f"There is no PhysicalNetwork {external.spec.physical_network}: make it."
            )
        if not external.deleting:
            lack = await self._claim_vlan(external) or lack
        before = external.status
        generation = external.metadata.generation
        found = facts(lack, "Ready", "Routers and FloatingIPs can have addresses in it.")
        after = ExternalNetworkStatus(
            observed_generation=generation,
            conditions=derive(before.conditions, found, generation=generation, now=rfc3339(clock.now())),
            allocated=len(claims),
            size=external_of(external).size,
        )
        since = clock.monotonic() - self._counted.get(external.uid, float("-inf"))
        same = after.model_copy(update={"allocated": before.allocated}).to_json() == before.to_json()
        if since < COUNT_SECONDS and same and after.to_json() != before.to_json():
            return Requeue(COUNT_SECONDS - since)
        if after.to_json() != before.to_json():
            self._counted[external.uid] = clock.monotonic()
            with suppress(NotFound):
                await write_status(self._services.client, routing.external, external, before, after)
        return Wait(lack.reason, 60.0) if lack is not None else Done()

    async def _claim_vlan(self, external: ExternalNetwork) -> Lack | None:
        """Have its VLAN, so that no network of a tenant is given it; why it cannot have it. Several external networks may be
        one VLAN."""
        physical, vlan = external.spec.physical_network, external.spec.vlan
        if vlan is None:
            return None
        spec = SegmentIdSpec(
            kind=SegmentHolder.EXTERNAL_NETWORK,
            network=external.uid,
            name=external.name,
            physical_network=physical,
            vlan=vlan,
        )
        claim = await self._numbers.claim(Number(claim_name(physical, vlan), vlan), spec)
        if claim is None:
            return Lack(
                "VlanPending", f"VLAN {vlan} of PhysicalNetwork {physical} is given back just now.", stalled=False
            )
        if claim.spec.kind is SegmentHolder.EXTERNAL_NETWORK:
            return None
        return Lack(
            "VlanInUse",
            f"VLAN {vlan} of PhysicalNetwork {physical} is that of Network {claim.spec.namespace}/{claim.spec.name}: delete"
            " that, or make this one with another VLAN. Take VLANs that are not for tenants out of spec.vlans of the"
            " PhysicalNetwork and of NetworkClasses.",
        )

    async def _give_back_vlan(self, external: ExternalNetwork) -> None:
        """When no other external network is that VLAN."""
        if external.spec.vlan is None:
            return
        name = claim_name(external.spec.physical_network, external.spec.vlan)
        claim = self._routing.networks.numbers.get(name)
        if claim is not None and not self._has(claim, but=external.uid):
            await self._numbers.end(claim)

    async def _give_back_left(self, name: str) -> None:
        """VLANs of an external network of that name that went without a word, after a live look."""
        for claim in self._routing.networks.numbers.by(NUMBER_FOR, f"None/{name}"):
            if self._has(claim):
                continue
            if await self._services.client.find(ExternalNetwork.KIND, name) is None:
                await self._numbers.end(claim)

    def _has(self, claim: SegmentId, *, but: str | None = None) -> bool:
        """Whether the claim is a tenant's, or an external network is that VLAN, but for one."""
        spec = claim.spec
        there = self._routing.external.by(IN_PHYSICAL, spec.physical_network or "")
        return spec.kind is not SegmentHolder.EXTERNAL_NETWORK or any(
            item.spec.vlan == spec.vlan for item in there if item.uid != but
        )

    def _users(self, external: ExternalNetwork) -> list[str]:
        """Who is in it, by its own record: anybody can name it."""
        routing = self._routing
        routers = [
            r for r in routing.routers.by(TO_EXTERNAL, external.name) if r.status.external_network == external.uid
        ]
        floating = [f for f in routing.floating.by(OF_EXTERNAL, external.name) if f.status.network == external.uid]
        return sorted(f"{item.KIND.kind} {item.namespace}/{item.name}" for item in (*routers, *floating))
