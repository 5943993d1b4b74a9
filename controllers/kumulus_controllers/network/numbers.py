"""Claims of the numbers of tunnels and of VLANs: whoever makes the object of a number's name has the number."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.claims import SegmentId, SegmentIdSpec
from kumulus.kube.errors import AlreadyExists
from kumulus.kube.store import Key, Store
from kumulus.runtime.reconciler import Services
from kumulus_controllers.network.vlans import Number


class Numbers:
    """Makes and deletes them. Every answer goes into the cache at once."""

    def __init__(self, services: Services, store: Store[SegmentId]) -> None:
        self._client = services.client
        self._store = store

    async def claim(self, number: Number, spec: SegmentIdSpec) -> SegmentId | None:
        """The claim of that number, whoever has it: made if there was none. None: it has gone just now."""
        if (known := self._store.get(number.name)) is not None:
            return known
        try:
            raw = await self._client.create(SegmentId.KIND, {"metadata": {"name": number.name}, "spec": spec.to_json()})
        except AlreadyExists:
            found = await self._client.find(SegmentId.KIND, number.name)
            if found is None:
                return None
            raw = found
        self._store.apply(raw)
        return SegmentId.parse(raw)

    async def first(self, tried: Iterable[Number], spec: SegmentIdSpec) -> SegmentId | None:
        """The first of these numbers that is nobody else's, claimed; None when each is somebody's. What the spec says of a
        VLAN is filled in."""
        for number in tried:
            made = await self.claim(number, spec.model_copy(update={"vlan": number.vlan}))
            if made is not None and made.spec.network == spec.network:
                return made
        return None

    async def end(self, claim: SegmentId) -> None:
        """Give it back, if it is still that very claim."""
        await self._client.delete(SegmentId.KIND, claim.name, uid=claim.uid)
        self._store.remove(Key(None, claim.name), claim.uid)
