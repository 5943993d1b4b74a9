"""An interface: who has it, which addresses it is to have, and what its status says. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from kumulus.api.base import FORCE_DETACH, Resource
from kumulus.api.claims import HolderKind, IPAddress
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.network import DEFAULT_GROUP, InterfacePhase, Network, NetworkInterface, NetworkInterfaceStatus
from kumulus.api.security_groups import EgressRule, IngressRule, Peer, SecurityGroup, SecurityGroupSpec
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus.runtime.conditions import derive
from kumulus_controllers.network.lack import Lack, facts
from kumulus_controllers.network.networks import at_home, mac
from kumulus_controllers.network.ranges import Range, in_range, ranges
from kumulus_controllers.orders import claim, host_of
from kumulus_controllers.storage.volume_plan import MADE_FOR

DEFAULT_GROUP_SPEC = SecurityGroupSpec(
    ingress=(IngressRule(from_=Peer(security_group=DEFAULT_GROUP)),), egress=(EgressRule(),)
)
"""What the default group lets through at first: from its own members, and everything out. Its owner may change it."""


ADDRESSES_MOST = 16
"""What the status of an interface takes."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over an interface has read."""

    interface: NetworkInterface
    network: Network | None
    claims: tuple[IPAddress, ...] = ()
    """Its own, by address."""
    rivals: tuple[NetworkInterface, ...] = ()
    """Other interfaces of the network with the same MAC."""
    groups: Mapping[str, SecurityGroup | None] = field(default_factory=dict)
    users: tuple[VirtualMachine, ...] = ()
    """Machines whose specs name it."""
    instances: tuple[WorkOrder, ...] = ()
    """Instance orders of machines that are to have it, or have it still."""


def holder(scope: Scope) -> str | None:
    """Name of the one machine that has the interface, or may have it: no other gets it before that one has let go."""
    for order in sorted(scope.instances, key=lambda order: order.metadata.creation_timestamp or ""):
        return order.spec.for_.name
    wanting = [vm for vm in scope.users if not vm.deleting and _may_have(vm, scope.interface)]
    if any(vm.name == scope.interface.status.vm for vm in wanting):
        return scope.interface.status.vm
    first = min(wanting, key=lambda vm: (vm.metadata.creation_timestamp or "", vm.name), default=None)
    return first.name if first is not None else None


def _may_have(vm: VirtualMachine, interface: NetworkInterface) -> bool:
    """Whether a machine that names it may have it: what a machine brought along is its own, and one that would bring along
    another of that name does not want this one."""
    made_for = interface.metadata.annotations.get(MADE_FOR)
    named = any(item.interface == interface.name for item in vm.spec.interfaces)
    return made_for == vm.uid or (made_for is None and named)


def held(scope: Scope) -> Lack | None:
    """Why an interface that is to be deleted cannot go yet. What a machine brought along it makes anew: its host alone has
    to let go."""
    made_for = scope.interface.metadata.annotations.get(MADE_FOR)
    name = holder(scope)
    if name is None or (made_for is not None and not scope.instances):
        return None
    going = all(vm.deleting or vm.uid == made_for for vm in scope.users if vm.name == name)
    if going and scope.instances:
        return Lack(
            "InterfaceInUse", f"Machine {name} on host {host_of(scope.instances[0])} lets go of it.", stalled=False
        )
    return Lack(
        "InterfaceInUse",
        f"Machine {name} has it: take it out of that machine's spec.interfaces, or delete the machine."
        f" (If its host is gone for good: kubectl annotate vm {name} {FORCE_DETACH}=true)",
    )


def asked(scope: Scope) -> Lack | None:
    """Why it cannot have the addresses that it asks for, as far as the network alone tells."""
    network = scope.network
    assert network is not None
    for address in scope.interface.spec.addresses:
        found = in_range(network, address)
        if found is None:
            what = ", ".join(network.spec.cidrs) or "none: it is of the type L2"
            return Lack(
                "AddressNotInNetwork",
                f"{address} is in none of the ranges of Network {network.name} ({what}): ask for another one, or for none.",
            )
        why = found.lack(ipaddress.ip_address(address))
        routes = at_home(scope.interface) and address == network.spec.gateway
        if why is not None and not routes:
            return Lack("AddressReserved", f"{address} {why}: ask for another one, or for none.")
    return _too_many(scope)


def _too_many(scope: Scope) -> Lack | None:
    """What it asks for, and what is chosen besides, may be more than an interface can have."""
    wanted = tuple(map(ipaddress.ip_address, scope.interface.spec.addresses))
    besides = [str(item.cidr) for item in all_ranges(scope) if not any(address in item.cidr for address in wanted)]
    if len(wanted) + len(besides) <= ADDRESSES_MOST:
        return None
    return Lack(
        "TooManyAddresses",
        f"It asks for {len(wanted)} addresses and is given one of {' and '.join(besides)} besides; an interface has"
        f" {ADDRESSES_MOST} at most: make a new one that asks for fewer, or for one of each range.",
    )


def chosen_by(scope: Scope, found: Range) -> tuple[str, ...]:
    """The addresses of that range that are decided: those that it asks for, or one that it has claimed already."""
    explicit = tuple(a for a in scope.interface.spec.addresses if ipaddress.ip_address(a) in found.cidr)
    if explicit:
        return explicit
    mine = [claim.spec.address for claim in scope.claims if claim.spec.released_at is None]
    return tuple(a for a in mine if ipaddress.ip_address(a) in found.cidr)[:1]


def mac_in_use(scope: Scope) -> Lack | None:
    """Why it cannot have the MAC that it asks for: who has it in status keeps it, else who was there first."""
    interface = scope.interface
    if interface.status.mac_address is not None:
        return None
    for rival in scope.rivals:
        earlier = _age(rival) < _age(interface)
        if rival.status.mac_address is not None or earlier:
            who = rival.name if rival.namespace == interface.namespace else "of another namespace"
            return Lack(
                "MacAddressInUse",
                f"Interface {who} of the network has the MAC address {mac(interface)}: make the interface with another one,"
                " or with none.",
            )
    return None


def _age(interface: NetworkInterface) -> tuple[str, str]:
    return (interface.metadata.creation_timestamp or "", interface.uid)


def whose(claim: IPAddress, holder: Resource, rest_seconds: int) -> Lack | None:
    """Why somebody (an interface, a router, ...) cannot have an address that is claimed; None when the claim is its own."""
    spec = claim.spec
    if spec.released_at is not None:
        return Lack(
            "AddressResting",
            f"{spec.address} was somebody else's just now and rests{until(spec.released_at, rest_seconds)}, so that"
            " nobody takes the one for the other.",
            stalled=False,
        )
    if spec.interface_uid == holder.uid:
        return None
    theirs = (spec.interface_namespace or claim.namespace) == holder.namespace
    kind = "interface" if spec.kind is HolderKind.NETWORK_INTERFACE else spec.kind.value
    who = (
        f"{kind} {spec.interface}" if theirs else f"{'an' if kind == 'interface' else 'a'} {kind} of another namespace"
    )
    return Lack("AddressInUse", f"{spec.address} is the address of {who}: ask for another one, or for none.")


def until(released_at: str, rest_seconds: int) -> str:
    """` until <time>`; empty when what is on record is no time."""
    try:
        return f" until {rfc3339(parse_time(released_at) + timedelta(seconds=rest_seconds))}"
    except ValueError:
        return ""


def full(network: Network, found: Range, claims: tuple[IPAddress, ...]) -> Lack:
    """What is said when a range has no address left to give, or never had one."""
    if found.size == 0:
        return Lack(
            "NetworkFull",
            f"Network {network.name} has no address of {found.cidr} to give: each of spec.dhcp.ranges lies outside, ends before"
            " it starts, or has only addresses that are kept: correct spec.dhcp.ranges. It goes on by itself then.",
        )
    there = [claim for claim in claims if found.gives(ipaddress.ip_address(claim.spec.address))]
    resting = sum(claim.spec.released_at is not None for claim in there)
    rest = f", {resting} rest for a while" if resting else ""
    part = " that spec.dhcp.ranges allow" if network.spec.dhcp.ranges else ""
    return Lack(
        "NetworkFull",
        f"Network {network.name} has no address left in {found.cidr}: of {found.size} that can be given{part},"
        f" {len(there) - resting} are in use{rest}. Delete interfaces, or make a network with a larger range. It goes on by"
        " itself.",
    )


def missing_groups(scope: Scope) -> Lack | None:
    """Which of its groups are not there."""
    gone = sorted(name for name, group in scope.groups.items() if group is None)
    if not gone:
        return None
    which = f"SecurityGroup {gone[0]}" if len(gone) == 1 else f"SecurityGroups {', '.join(gone)}"
    return Lack("SecurityGroupNotFound", f"There is no {which} in the namespace: make it, or do not name it.")


def pairs_refused(scope: Scope) -> Lack | None:
    """In a network of another namespace nobody may use addresses of others."""
    interface = scope.interface
    if at_home(interface) or not interface.spec.allowed_address_pairs:
        return None
    return Lack(
        "AddressPairsNotAllowed",
        "spec.allowedAddressPairs are for networks of its own namespace: they do not count here. Take them out.",
    )


def derive_status(
    scope: Scope, addresses: tuple[str, ...] | None, lack: Lack | None, now: str
) -> NetworkInterfaceStatus:
    """The whole status. `addresses` are claimed by now; None while they are not. What is on record stays."""
    interface, before = scope.interface, scope.interface.status
    if before.mac_address is not None:
        addresses = before.addresses
    attached = any(
        nic.uid == interface.uid and nic.attached
        for order in scope.instances
        for nic in (order.status.instance.nics if order.status.instance else ())
    )
    machine = holder(scope)
    phase = InterfacePhase.ATTACHED if attached else InterfacePhase.ALLOCATED
    if interface.deleting:
        phase = InterfacePhase.TERMINATING
        lack = lack or Lack("Terminating", "Its addresses are given back.", stalled=False)
    elif addresses is None:
        stuck = lack is not None and lack.stalled and lack.reason not in ("NetworkFull", "NetworkNotFound")
        phase = InterfacePhase.FAILED if stuck else InterfacePhase.PENDING
    said = f"Machine {machine} has it." if machine is not None else "No machine has it."
    generation = interface.metadata.generation
    return NetworkInterfaceStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, facts(lack, str(phase), said), generation=generation, now=now),
        phase=phase,
        network=before.network or (scope.network.uid if scope.network is not None and addresses is not None else None),
        mac_address=mac(interface) if addresses is not None else None,
        addresses=addresses or (),
        vm=machine,
        host=host_of(min(scope.instances, key=claim)) if scope.instances else None,
    )


def all_ranges(scope: Scope) -> tuple[Range, ...]:
    """The ranges in which it is to have addresses."""
    return ranges(scope.network) if scope.network is not None else ()
