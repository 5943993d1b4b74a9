"""The NetworkInterfaces that machines bring along: looked up, made, and deleted when a machine wants them no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kumulus.api.compute import VirtualMachine, VirtualMachineCondition
from kumulus.api.network import NetworkInterface
from kumulus.api.segments import Nic
from kumulus.api.unmanaged import UnmanagedNic
from kumulus.kube.errors import AlreadyExists, Refused
from kumulus.runtime.reconciler import Services
from kumulus_controllers.compute.links import goes_with, template_interface
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Link, Scope
from kumulus_controllers.compute.seed import Wire
from kumulus_controllers.network.networks import MADE_BY, UID, Networks


class Interfaces:
    """Makes and deletes them. Every answer goes into the cache at once."""

    def __init__(self, services: Services) -> None:
        self._client = services.client
        self._networks = Networks(services.caches)

    def links(self, vm: VirtualMachine) -> Mapping[str, Link]:
        """Those that exist, by the machine's name for them."""
        found, networks = {}, self._networks
        for item in vm.spec.interfaces:
            interface = networks.interfaces.get(item.interface_of(vm.name), vm.namespace)
            if interface is not None:
                others = [o.spec.for_.name for o in networks.having(interface.uid) if o.spec.for_.uid != vm.uid]
                network = networks.network(interface)
                driver = network.status.driver if network is not None else None
                groups = networks.groups_of(interface)
                way = networks.way_of(network) if network is not None else None
                found[item.name] = Link(interface, groups, driver, way, next(iter(others), None))
        return found

    def wires(self, nics: Iterable[Nic]) -> Mapping[str, Wire]:
        """The networks that these are in, by uid, as far as they are there."""
        networks = self._networks
        found = [network for nic in nics for network in networks.store.by(UID, nic.network)]
        return {network.uid: Wire(network, networks.router_addresses(network)) for network in found}

    async def make(self, scope: Scope, found: Mapping[str, UnmanagedNic] | None = None) -> Problem | None:
        """Make those that are not there; why one cannot be made. `found`: what the domain that the machine is has."""
        vm, client, found = scope.vm, self._client, found or {}
        for item in vm.spec.interfaces:
            if item.network is None or item.name in scope.links:
                continue
            name = item.interface_of(vm.name)
            try:
                body = template_interface(vm, item, found.get(item.name))
                raw = await client.create(NetworkInterface.KIND, body, vm.namespace)
            except AlreadyExists:
                raw = await client.get(NetworkInterface.KIND, name, vm.namespace)
            except Refused as refused:  # by a quota, say, or because the namespace ends
                why = f"NetworkInterface {name} cannot be made: {refused.message}"
                return Problem("InterfaceRefused", why, VirtualMachineCondition.NETWORK_READY)
            self._networks.interfaces.apply(raw)
        return None

    async def drop(self, vm: VirtualMachine, *, all_of_them: bool = False) -> None:
        """Delete those that the machine's spec has no more, or all. They go when its host has let go of them."""
        wanted = set() if all_of_them else {item.interface_of(vm.name) for item in vm.spec.interfaces}
        for interface in self._networks.interfaces.by(MADE_BY, vm.uid):
            if interface.name in wanted or interface.deleting or not goes_with(interface, vm):
                continue
            await self.end(interface)

    async def end(self, interface: NetworkInterface) -> None:
        """Delete one. It goes when no host has it any more."""
        raw = await self._client.delete(NetworkInterface.KIND, interface.name, interface.namespace, uid=interface.uid)
        if raw is not None and "spec" in raw:
            self._networks.interfaces.apply(raw)
