"""The NetworkInterfaces that a machine's interfaces are: made, waited for, given to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kumulus.api.base import FINALIZER
from kumulus.api.compute import Interface, VirtualMachine, VirtualMachineCondition
from kumulus.api.host import WorkOrder
from kumulus.api.network import NetworkInterface, NetworkInterfaceSpec
from kumulus.api.segments import Nic
from kumulus.api.unmanaged import UnmanagedNic
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Link, Scope
from kumulus_controllers.network.nics import nic
from kumulus_controllers.storage.volume_plan import MADE_FOR

READY = VirtualMachineCondition.NETWORK_READY

ADDRESSES_MOST = 64
"""What the status of a machine takes."""


def template_interface(vm: VirtualMachine, item: Interface, found: UnmanagedNic | None = None) -> dict[str, Any]:
    """The NetworkInterface that a machine brings along. It goes with the machine. `found`: what the domain that it is has."""
    assert item.network is not None
    spec = NetworkInterfaceSpec(
        network=item.network,
        network_namespace=item.network_namespace,
        addresses=found.addresses if found is not None and found.addresses else item.addresses,
        mac_address=found.mac_address if found is not None else item.mac_address,
        security_groups=item.security_groups,
    )
    owner = {"apiVersion": vm.KIND.api_version, "kind": vm.KIND.kind, "name": vm.name, "uid": vm.uid}
    metadata = {
        "name": item.interface_of(vm.name),
        "annotations": {MADE_FOR: vm.uid},
        "finalizers": [FINALIZER],
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": spec.to_json()}


def made_for(interface: NetworkInterface, vm: VirtualMachine) -> bool:
    """Whether the machine brought it along."""
    return interface.metadata.annotations.get(MADE_FOR) == vm.uid


def renews(interface: NetworkInterface, vm: VirtualMachine) -> bool:
    """Whether the machine is to let go of it, though it names it: it brought it along, and it is deleted."""
    return interface.deleting and made_for(interface, vm)


def goes_with(interface: NetworkInterface, vm: VirtualMachine) -> bool:
    """Whether it goes when the machine does not want it any more."""
    owned = any(owner.uid == vm.uid for owner in interface.metadata.owner_references)
    return owned and made_for(interface, vm) and interface.namespace == vm.namespace


def link_of(scope: Scope, item: Interface) -> Link | Problem:
    """The interface as the machine may have it, or why it may not."""
    vm, name = scope.vm, item.interface_of(scope.vm.name)
    link = scope.links.get(item.name)
    if link is None:
        return Problem("InterfaceNotFound", f"There is no NetworkInterface {name} in the namespace.", READY)
    interface = link.interface
    if interface.deleting and (item.network is not None or made_for(interface, vm)):
        said = f"NetworkInterface {name} is being deleted: it goes by itself"
        after = ", and then another one is made." if item.network is not None else "."
        return Problem("InterfaceDeleting", said + after, READY, stalled=False)
    if item.network is not None and not made_for(interface, vm):
        return Problem(
            "InterfaceExists",
            f"NetworkInterface {name} was there before the machine, and interface {item.name} would make one of that name:"
            f" delete it, or take it by `interface: {name}`.",
            READY,
        )
    if interface.deleting:
        return Problem("InterfaceDeleting", f"NetworkInterface {name} is being deleted.", READY)
    ready, status = interface.status.condition("Ready"), interface.status
    if status.mac_address is None:
        if ready is None or not ready.message:
            return Problem("InterfaceNotReady", f"NetworkInterface {name} has no address yet.", READY, stalled=False)
        stalled = interface.status.condition("Stalled") is not None
        return Problem(ready.reason, f"NetworkInterface {name}: {ready.message}", READY, stalled=stalled)
    other = link.elsewhere or (status.vm if status.vm != vm.name else None)
    if other is not None:
        return Problem(
            "InterfaceInUse",
            f"NetworkInterface {name} is machine {other}'s: take it out of that machine's spec.interfaces first.",
            READY,
        )
    if status.vm is None:
        return Problem(
            "InterfaceNotReady", f"NetworkInterface {name} is about to be given to it.", READY, stalled=False
        )
    return link


def unguarded(item: Interface, link: Link) -> Problem | None:
    """Which security groups of the interface are not there."""
    gone = sorted(name for name, group in link.groups.items() if group is None)
    if not gone:
        return None
    which = f"SecurityGroup {gone[0]}" if len(gone) == 1 else f"SecurityGroups {', '.join(gone)}"
    return Problem(
        "SecurityGroupNotFound",
        f"NetworkInterface {link.interface.name} names {which}, which the namespace has not: make it, or do not name it.",
        READY,
    )


def linked(scope: Scope) -> tuple[tuple[Nic, ...], Problem | None]:
    """The interfaces that the machine may use now, and why others cannot be yet, or not as they shall be."""
    found: list[Nic] = []
    problem: Problem | None = None
    for item in scope.vm.spec.interfaces:
        link = link_of(scope, item)
        if isinstance(link, Problem):
            problem = problem or link
            continue
        problem = problem or unguarded(item, link)
        found.append(nic(item.name, link.interface, link.groups, scope.vm.name))
    return tuple(found), problem


def meant(scope: Scope) -> Mapping[str, str | None]:
    """Uids of the NetworkInterfaces that the machine's interfaces are, usable or not, by name; None while one that the
    machine is to let go of is there."""
    found = {
        item.name: scope.links[item.name].interface for item in scope.vm.spec.interfaces if item.name in scope.links
    }
    return {name: None if renews(interface, scope.vm) else interface.uid for name, interface in found.items()}


def renewed_nics(
    vm: VirtualMachine, order: WorkOrder, nics: tuple[Nic, ...], meant: Mapping[str, str | None]
) -> tuple[Nic, ...]:
    """The interfaces of a placed machine's order: what it may use now, and what was ordered and is still wanted.

    One that is wanted no more goes. Another one of its name comes when the host has let go of it.
    """
    assert order.spec.instance is not None
    known = order.status.instance.nics if order.status.instance is not None else ()
    now = {item.name: item for item in nics}
    ordered = {item.name: item for item in order.spec.instance.nics}
    busy = {item.name: item.uid for item in known if item.attached} | {n: item.uid for n, item in ordered.items()}
    found = []
    for item in vm.spec.interfaces:
        before, after = ordered.get(item.name), now.get(item.name)
        if after is not None and busy.get(item.name, after.uid) == after.uid:
            found.append(after)
        elif before is not None and after is None and meant.get(item.name, before.uid) == before.uid:
            found.append(before)
    return tuple(found)


def attached(scope: Scope) -> set[str]:
    """Names of the machine's interfaces that its guest has, as the hypervisor says."""
    instance = scope.order.status.instance if scope.order is not None else None
    wanted = meant(scope)
    return {
        item.name for item in (instance.nics if instance else ()) if item.attached and wanted.get(item.name) == item.uid
    }


def addresses(scope: Scope) -> tuple[str, ...]:
    """The addresses of the machine's interfaces, in their order; the first of them when there are very many."""
    found: list[str] = []
    for item in scope.vm.spec.interfaces:
        link = scope.links.get(item.name)
        if link is not None and link.interface.status.vm == scope.vm.name:
            found += link.interface.status.addresses
    return tuple(found[:ADDRESSES_MOST])
