"""NetworkInterface: its MAC and addresses for life, who has it, and its end."""

from __future__ import annotations

from contextlib import suppress

from kumulus.api.base import FINALIZER
from kumulus.api.claims import IPAddress
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.network import DEFAULT_GROUP, Network, NetworkInterface
from kumulus.api.security_groups import SecurityGroup
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.network.claiming import Claiming
from kumulus_controllers.network.interface_plan import (
    DEFAULT_GROUP_SPEC,
    Scope,
    asked,
    derive_status,
    held,
    mac_in_use,
    missing_groups,
    pairs_refused,
)
from kumulus_controllers.network.lack import Lack, left_alone
from kumulus_controllers.network.network_plan import usable
from kumulus_controllers.network.networks import (
    CLAIMED_BY,
    IN_GROUP,
    OF_NETWORK,
    UID,
    USES_NIC,
    Networks,
    interface_keys,
)
from kumulus_controllers.orders import host_of, nics_in
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status


class InterfaceReconciler:
    """Gives an interface what it has for life, and follows who has it. The only writer of its status."""

    name = "networkinterface"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._networks = Networks(services.caches)
        self._claiming = Claiming(services, self._networks)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; networks that become ready; addresses that become free; groups; machines and their orders."""
        networks = self._networks

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and not (before and after and _same_but_status(before, after)):
                enqueue(Key(item.namespace, item.name), urgent=item.deleting)

        def network_changed(before: Network | None, after: Network | None) -> None:
            item = after or before
            if item is None or (before and after and _offers(before) == _offers(after)):
                return
            self._enqueue_waiting(enqueue, Key(item.namespace, item.name))

        def claim_changed(before: IPAddress | None, after: IPAddress | None) -> None:
            if before is not None and after is None:
                for network in networks.store.by(UID, before.spec.network):
                    self._enqueue_waiting(enqueue, Key(network.namespace, network.name))

        def group_changed(before: SecurityGroup | None, after: SecurityGroup | None) -> None:
            item = after or before
            if item is None or (before and after and before.deleting == after.deleting and before.uid == after.uid):
                return
            for interface in networks.interfaces.by(IN_GROUP, f"{item.namespace}/{item.name}"):
                enqueue(Key(interface.namespace, interface.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            had = interface_keys(before) if before is not None else set()
            has = interface_keys(after) if after is not None else set()
            was, now = (item.deleting if item is not None else None for item in (before, after))
            for key in had ^ has if was == now else had | has:
                enqueue(key)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None or order.spec.type is not WorkType.INSTANCE or _nics(before) == _nics(after):
                return
            if before is None and after is not None and after.status.state is None:
                return  # the host has not answered: one write tells where the interface is and that it is attached
            uids = {uid for item in (before, after) if item is not None for uid in nics_in(item)}
            for interface in [item for uid in uids for item in networks.interfaces.by(UID, uid)]:
                enqueue(Key(interface.namespace, interface.name), urgent=True)

        networks.interfaces.listen(interface_changed)
        networks.store.listen(network_changed)
        networks.claims.listen(claim_changed)
        networks.groups.listen(group_changed)
        networks.machines.listen(machine_changed)
        networks.orders.listen(order_changed)

    def _enqueue_waiting(self, enqueue: Enqueue, network: Key) -> None:
        for interface in self._networks.interfaces.by(OF_NETWORK, str(network)):
            if interface.status.mac_address is None:
                enqueue(Key(interface.namespace, interface.name))

    def everything(self) -> list[Key]:
        """All interfaces."""
        return self._networks.interfaces.keys()

    def _observe(self, interface: NetworkInterface) -> Scope:
        networks = self._networks
        claims = networks.claims.by(CLAIMED_BY, interface.uid)
        return Scope(
            interface=interface,
            network=networks.network(interface),
            claims=tuple(sorted(claims, key=lambda claim: claim.name)),
            rivals=tuple(networks.rivals(interface)),
            groups=networks.groups_of(interface),
            users=tuple(networks.machines.by(USES_NIC, f"{interface.namespace}/{interface.name}")),
            instances=tuple(sorted(networks.having(interface.uid), key=lambda order: order.namespace or "")),
        )

    async def reconcile(self, key: Key) -> Result:
        """One pass over an interface."""
        store = self._networks.interfaces
        interface = store.get(key.name, key.namespace)
        if interface is None:
            return Gone()
        if interface.paused:
            if interface.deleting:
                await self._report(self._observe(interface), None, left_alone("nic", interface.name))
            return Done()
        if interface.deleting:
            return await self._delete(self._observe(interface))
        if await ensure_finalizer(self._services.client, store, interface):
            interface = store.get(key.name, key.namespace) or interface
        scope = self._observe(interface)
        addresses = await self._allocate(scope)
        lack = addresses if isinstance(addresses, Lack) else None
        groups = await self._default_group(scope) or missing_groups(scope := self._observe(interface))
        lack = lack or groups or pairs_refused(scope)
        return await self._report(scope, None if isinstance(addresses, Lack) else addresses, lack)

    async def _allocate(self, scope: Scope) -> tuple[str, ...] | Lack:
        """Its addresses, each claimed; or why it cannot have them."""
        interface, spec = scope.interface, scope.interface.spec
        if interface.status.mac_address is None:
            lack = usable(scope.network, interface.namespace, spec.network, spec.network_namespace)
            lack = lack or asked(scope) or mac_in_use(scope)
            if lack is not None:
                return lack
        elif scope.network is None or scope.network.uid != interface.status.network:
            return Lack("NetworkGone", f"Network {spec.network}, which it was made in, is gone: delete the interface.")
        elif scope.network.deleting:
            return interface.status.addresses
        assert scope.network is not None
        found = await self._claiming.ensure(scope, self._networks.rest_seconds(scope.network))
        if not isinstance(found, Lack) and interface.status.mac_address is not None:
            await self._claiming.give_back(interface, but=found)
        return found

    async def _default_group(self, scope: Scope) -> Lack | None:
        """Make the group that interfaces have which name none, if it is not there."""
        if scope.interface.spec.security_groups or scope.groups.get(DEFAULT_GROUP) is not None:
            return None
        namespace = scope.interface.namespace
        body = {"metadata": {"name": DEFAULT_GROUP}, "spec": DEFAULT_GROUP_SPEC.to_json()}
        try:
            raw = await self._services.client.create(SecurityGroup.KIND, body, namespace)
        except AlreadyExists:
            raw = await self._services.client.get(SecurityGroup.KIND, DEFAULT_GROUP, namespace)
        except Refused as refused:  # by a quota, say, or because the namespace ends
            return Lack("SecurityGroupRefused", f"SecurityGroup {DEFAULT_GROUP} cannot be made: {refused.message}")
        self._networks.groups.apply(raw)
        return None

    async def _delete(self, scope: Scope) -> Result:
        interface, client = scope.interface, self._services.client
        if FINALIZER not in interface.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            await self._report(scope, None, busy)
            return Wait(busy.reason, 30.0)
        await self._claiming.give_back(interface)
        await drop_finalizer(client, self._networks.interfaces, interface)
        return Gone()

    async def _report(self, scope: Scope, addresses: tuple[str, ...] | None, lack: Lack | None) -> Result:
        """Write the status, if nobody has changed the interface since it was looked at: of two that claimed addresses for
        it, one gets its own on record."""
        interface = scope.interface
        after = derive_status(scope, addresses, lack, rfc3339(self._services.clock.now()))
        with suppress(NotFound):
            await write_status(self._services.client, self._networks.interfaces, interface, interface.status, after)
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _same_but_status(before: NetworkInterface, after: NetworkInterface) -> bool:
    """Whether only the status changed, which is our own writing."""
    return (
        before.uid == after.uid
        and before.metadata.generation == after.metadata.generation
        and before.deleting == after.deleting
        and before.metadata.finalizers == after.metadata.finalizers
        and before.metadata.annotations == after.metadata.annotations
    )


def _offers(network: Network) -> tuple[object, ...]:
    """What of a network decides whether interfaces can have addresses in it."""
    status, spec = network.status, network.spec
    ready = status.mtu is not None and status.numbered
    return (network.uid, network.deleting, ready, spec.dhcp.ranges, spec.allowed_namespaces)


def _nics(order: WorkOrder | None) -> tuple[object, ...]:
    """What of a machine's order decides who has which interface."""
    if order is None or order.spec.instance is None:
        return ()
    facts = order.status.instance.nics if order.status.instance is not None else ()
    return (host_of(order), order.uid, {nic.uid for nic in order.spec.instance.nics}, facts)
