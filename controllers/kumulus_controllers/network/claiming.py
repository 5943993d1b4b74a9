"""Claims of addresses: who makes the object of an address has it. The only writer of claims, but for their end."""

from __future__ import annotations

import ipaddress

from kumulus.api.base import PLATFORM_NAMESPACE, ObjectRef, Resource
from kumulus.api.claims import HolderKind, IPAddress, IPAddressSpec
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork
from kumulus.kube.errors import AlreadyExists
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Services
from kumulus_controllers.network.interface_plan import Scope, all_ranges, chosen_by, full, whose
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.networks import CLAIMED_BY, CLAIMS_IN, Networks, Taken
from kumulus_controllers.network.ranges import Range, claim_name
from kumulus_controllers.rebuild import Rebuild


class Claims:
    """Gives claims back, and ends them. Every answer goes into the cache at once."""

    def __init__(self, services: Services, networks: Networks) -> None:
        self._services = services
        self._networks = networks

    async def give_back(self, holder: Resource, *, but: tuple[str, ...] = ()) -> None:
        """Give back what somebody has claimed, but for the addresses on record that it keeps. They rest before somebody
        else gets them."""
        for claim in self._networks.claims.by(CLAIMED_BY, holder.uid):
            if claim.spec.address not in but:
                await self.release(claim)

    async def release(self, claim: IPAddress) -> None:
        """Write down that its interface is gone. Written already: nothing. Raises `errors.Conflict`."""
        if claim.spec.released_at is not None:
            return
        body = {
            "metadata": {"resourceVersion": claim.metadata.resource_version},
            "spec": {"releasedAt": rfc3339(self._services.clock.now())},
        }
        raw = await self._services.client.patch(IPAddress.KIND, claim.name, body, claim.namespace)
        self._networks.claims.apply(raw)

    async def end(self, claim: IPAddress) -> None:
        """Let anybody have the address, if it is still that claim."""
        await self._services.client.delete(IPAddress.KIND, claim.name, claim.namespace, uid=claim.uid)
        self._networks.claims.remove(Key(claim.namespace, claim.name), claim.uid)


class Claiming(Claims):
    """Claims addresses as well."""

    def __init__(self, services: Services, networks: Networks) -> None:
        super().__init__(services, networks)
        self._taken = Taken(networks)
        self._rebuild = Rebuild(services.caches)

    async def ensure(self, scope: Scope, rest_seconds: int) -> tuple[str, ...] | Lack:
        """Have all addresses of an interface claimed: those on record, else those it asks for and one of each range besides.

        Repeated after a crash it finds what it has claimed already. What can be claimed stays claimed while another one is
        waited for.
        """
        interface, network = scope.interface, scope.network
        assert network is not None
        if interface.status.mac_address is not None:
            return await self._all(network, interface, interface.status.addresses, rest_seconds)
        found: list[str] = []
        for item in all_ranges(scope):
            if decided := chosen_by(scope, item):
                claimed = await self._all(network, interface, decided, rest_seconds)
            elif (one := await self.any(network, interface, item, rest_seconds)) is not None:
                claimed = (one,)
            else:
                claimed = full(network, item, tuple(self._networks.claims.by(CLAIMS_IN, network.uid)))
            if isinstance(claimed, Lack):
                return claimed
            found += claimed
        return tuple(found)

    async def _all(
        self, network: Network, interface: NetworkInterface, addresses: tuple[str, ...], rest_seconds: int
    ) -> tuple[str, ...] | Lack:
        for address in addresses:
            lack = await self.one(network, interface, address, rest_seconds)
            if lack is not None:
                return lack
        return addresses

    async def one(
        self, network: Network | ExternalNetwork, holder: Resource, address: str, rest_seconds: int
    ) -> Lack | None:
        """Have that address claimed for somebody; why it cannot be."""
        return whose(await self._claim(network, holder, address), holder, rest_seconds)

    async def any(
        self, network: Network | ExternalNetwork, holder: Resource, found: Range, rest_seconds: int
    ) -> str | None:
        """The lowest address that nobody has, claimed; None when there is none. Another process may be quicker: then the next
        one."""
        taken = self._taken.of(network.uid, found.version)
        lost = self._rebuild.addresses(Key(network.namespace, network.name))
        for address in found.free(taken):
            if str(address) in lost:  # a machine that is to be found again has it
                continue
            number = int(address)
            taken.add(number)  # another pass of this process takes another one
            try:
                claim = await self._claim(network, holder, str(address))
            except BaseException:
                name = claim_name(network.uid, str(address))
                if self._networks.claims.get(name, claims_namespace(network)) is None:
                    taken.discard(number)
                raise
            if whose(claim, holder, rest_seconds) is None:
                return str(address)
        return None

    async def _claim(self, network: Network | ExternalNetwork, holder: Resource, address: str) -> IPAddress:
        """The claim of that address, made for the holder unless there is one."""
        claims, client = self._networks.claims, self._services.client
        name, namespace = claim_name(network.uid, address), claims_namespace(network)
        known = claims.get(name, namespace)
        if known is not None:
            return known
        spec = IPAddressSpec(
            network=network.uid,
            address=str(ipaddress.ip_address(address)),
            kind=HolderKind(holder.KIND.kind),
            interface=holder.name,
            interface_uid=holder.uid,
            interface_namespace=holder.namespace if holder.namespace != namespace else None,
        )
        owner = {
            "apiVersion": network.KIND.api_version,
            "kind": network.KIND.kind,
            "name": network.name,
            "uid": network.uid,
        }
        body = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec.to_json()}
        try:
            raw = await client.create(IPAddress.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(IPAddress.KIND, name, namespace)
        claims.apply(raw)
        return IPAddress.parse(raw)


def claims_namespace(network: Network | ExternalNetwork) -> str | None:
    """Where claims of a network's addresses are: those of an external network are the platform's."""
    return network.namespace if isinstance(network, Network) else PLATFORM_NAMESPACE


def holder_ref(claim: IPAddress) -> ObjectRef:
    """Whose a claim is."""
    spec = claim.spec
    namespace = spec.interface_namespace or claim.namespace
    return ObjectRef(kind=spec.kind.value, namespace=namespace, name=spec.interface, uid=spec.interface_uid)
