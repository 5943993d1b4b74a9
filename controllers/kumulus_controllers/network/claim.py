"""IPAddress: the end of a claim. It rests when its interface is gone, and then it goes."""

from __future__ import annotations

import structlog

from kumulus.api.base import Resource
from kumulus.api.claims import HolderKind, IPAddress
from kumulus.api.network import Network, NetworkClassSpec, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.kube.store import Key, Store
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Gone, Requeue, Result, Wait
from kumulus_controllers.network.claiming import Claims, holder_ref
from kumulus_controllers.network.networks import CLAIMED_BY, UID, Networks

log = structlog.get_logger(__name__)

RESYNC_SECONDS = 3600.0
"""An address in use needs no look for so long; the end of its interface announces itself."""


HOLDERS: dict[HolderKind, type[Resource]] = {
    HolderKind.NETWORK_INTERFACE: NetworkInterface,
    HolderKind.ROUTER: Router,
    HolderKind.FLOATING_IP: FloatingIP,
}
"""What can have addresses."""


class ClaimReconciler:
    """Ends claims: of interfaces, routers and others that are gone, after a rest, and of networks that are gone."""

    name = "ipaddress"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._networks = Networks(services.caches)
        self._claims = Claims(services, self._networks)
        caches = services.caches
        self._external = caches.store(ExternalNetwork)
        self._external.add_index(UID, lambda item: (item.uid,))
        self._holders: dict[HolderKind, Store[Resource]] = {
            kind: caches.store(model) for kind, model in HOLDERS.items()
        }
        for store in self._holders.values():
            store.add_index(UID, lambda item: (item.uid,))
        self._resting: dict[str, float] = {}
        """When this process first saw that a claim was released. Clocks of hosts differ: nothing is decided by theirs."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, and holders that go."""

        def claim_changed(before: IPAddress | None, after: IPAddress | None) -> None:
            claim = after or before
            if claim is not None and (after is None or after.spec.released_at is not None or before is None):
                enqueue(Key(claim.namespace, claim.name))

        def holder_changed(before: Resource | None, after: Resource | None) -> None:
            if before is not None and (after is None or after.uid != before.uid):
                for claim in self._networks.claims.by(CLAIMED_BY, before.uid):
                    enqueue(Key(claim.namespace, claim.name))

        self._networks.claims.listen(claim_changed)
        for store in self._holders.values():
            store.listen(holder_changed)

    def everything(self) -> list[Key]:
        """All claims."""
        return self._networks.claims.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a claim."""
        claim = self._networks.claims.get(key.name, key.namespace)
        if claim is None or claim.deleting:
            if claim is not None:
                self._resting.pop(claim.uid, None)
            return Gone()
        network = next(iter(self._networks.store.by(UID, claim.spec.network)), None)
        if network is None and await self._network_gone(claim):
            await self._claims.end(claim)
            return Gone()
        if claim.spec.released_at is None:
            if await self._holder_there(claim):
                return Wait("InUse", RESYNC_SECONDS)
            log.info("releasing the address of what is gone", namespace=claim.namespace, name=claim.name)
            await self._claims.release(claim)
        now = self._services.clock.monotonic()
        left = self._resting.setdefault(claim.uid, now) + self._rest_seconds(network) - now
        if left > 0:
            return Requeue(left)
        self._resting.pop(claim.uid, None)
        await self._claims.end(claim)
        return Gone()

    def _rest_seconds(self, network: Network | None) -> int:
        return self._networks.rest_seconds(network) if network is not None else NetworkClassSpec().rest_seconds

    async def _holder_there(self, claim: IPAddress) -> bool:
        if self._holders[claim.spec.kind].by(UID, claim.spec.interface_uid):
            return True
        ref = holder_ref(claim)
        live = await self._services.client.find(HOLDERS[claim.spec.kind].KIND, ref.name, ref.namespace)
        return live is not None and live["metadata"]["uid"] == ref.uid

    async def _network_gone(self, claim: IPAddress) -> bool:
        owner = next((o for o in claim.metadata.owner_references if o.uid == claim.spec.network), None)
        if owner is None or self._external.by(UID, claim.spec.network):
            return False
        external = owner.kind == ExternalNetwork.KIND.kind
        kind, namespace = (ExternalNetwork.KIND, None) if external else (Network.KIND, claim.namespace)
        live = await self._services.client.find(kind, owner.name, namespace)
        return live is None or live["metadata"]["uid"] != claim.spec.network
