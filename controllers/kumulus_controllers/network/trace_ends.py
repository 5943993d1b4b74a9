"""Which two ends a trace is about, and which of what was read belongs to them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.addresses import Address
from kumulus.api.compute import VirtualMachine
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.trace import OUTSIDE, Scene, Unclear, name_of
from kumulus_controllers.network.networks import network_key


@dataclass(frozen=True, slots=True)
class End:
    """One end."""

    said: str
    """As it was asked for."""
    interfaces: tuple[NetworkInterface, ...] = ()
    """It may be any of these; none: an address that no interface has, or the world."""
    address: Address | None = None
    """The one that is meant; None: any of its own."""

    @property
    def outside(self) -> bool:
        """Whether it is no interface that is known."""
        return not self.interfaces


def find(scene: Scene, said: str, namespace: str) -> End:
    """The end that is meant. Raises `Unclear`."""
    if said == OUTSIDE:
        return End(said)
    if (address := _address(said)) is not None:
        return End(said, tuple(_having(scene, address, namespace)), address)
    kind, there, name = name_of(said, namespace)
    machine = next((vm for vm in scene.machines if (vm.namespace, vm.name) == (there, name)), None)
    if kind in ("", "vm") and machine is not None:
        return _machine(scene, said, machine)
    balancer = next((lb for lb in scene.balancers if (lb.namespace, lb.name) == (there, name)), None)
    if kind in ("", "lb") and balancer is not None:
        name, kind = balancer.interface_name, "nic"
    nic = next((nic for nic in scene.interfaces if (nic.namespace, nic.name) == (there, name)), None)
    if kind in ("", "nic") and nic is not None:
        return End(said, (nic,))
    what = {"vm": "machine", "nic": "network interface", "lb": "load balancer"}.get(
        kind, "machine, network interface or load balancer"
    )
    raise Unclear(
        f"There is no {what} {name} in namespace {there}: name one (`vm/NAME`, `nic/NAME`, `lb/NAME`, of another namespace"
        " NAMESPACE/NAME), an address, or `outside`."
    )


def _address(said: str) -> Address | None:
    try:
        return str(ipaddress.ip_address(said))
    except ValueError:
        return None


def _having(scene: Scene, address: Address, namespace: str) -> list[NetworkInterface]:
    """Whose address it is, those of the namespace if it is somebody's there: ranges of tenants may be the same."""
    found = [nic for nic in scene.interfaces if address in nic.status.addresses]
    return [nic for nic in found if nic.namespace == namespace] or found


def _machine(scene: Scene, said: str, machine: VirtualMachine) -> End:
    names = [item.interface_of(machine.name) for item in machine.spec.interfaces]
    known = {nic.name: nic for nic in scene.interfaces if nic.namespace == machine.namespace}
    found = tuple(known[name] for name in names if name in known)
    if not found:
        raise Unclear(f"Machine {machine.name} has no network interface (yet): `kumulusctl vm explain {machine.name}`.")
    return End(said, found)


def network_of(scene: Scene, nic: NetworkInterface) -> Network | None:
    """The network that it is in, or is to be in."""
    key = network_key(nic)
    return next((net for net in scene.networks if (net.namespace, net.name) == (key.namespace, key.name)), None)


def in_network(scene: Scene, network: Network) -> list[NetworkInterface]:
    """The interfaces that are in it."""
    return [nic for nic in scene.interfaces if nic.status.network == network.uid and nic.status.mac_address is not None]


def balancer_of(scene: Scene, nic: NetworkInterface) -> LoadBalancer | None:
    """The load balancer whose addresses it holds."""
    owners = {owner.uid for owner in nic.metadata.owner_references if owner.kind == LoadBalancer.KIND.kind}
    return next((balancer for balancer in scene.balancers if balancer.uid in owners), None)


def family(addresses: Iterable[Address], version: int) -> Address | None:
    """The first address of that family."""
    return next((one for one in addresses if ipaddress.ip_address(one).version == version), None)
