"""A Kubernetes Service that means machines: which of their addresses are its endpoints, and why others are not. Pure.

Who can choose what is published can make a load balancer or an ingress of the cluster send to anybody
(CVE-2021-25740). So an address is published only when it is claimed for that very interface or FloatingIP, of
the Service's own namespace, and is the operator's to give in the world: that of a FloatingIP, or one in a range
that an ExternalNetwork says to be routed to the namespace. Ranges of networks are what tenants choose them to
be, and mean nothing outside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from kumulus.api.addresses import Address, is_v4
from kumulus.api.compute import Phase, VirtualMachine
from kumulus.api.network import InterfacePhase, Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, FloatingPhase, Router, RouterPhase
from kumulus.kube.service import (
    VM_NETWORK,
    AddressType,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Service,
    ServiceType,
    TargetRef,
)
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import usable

CidrRange = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Member:
    """A machine that the Service selects, by its interface in the network."""

    machine: VirtualMachine
    interface: NetworkInterface
    floating: tuple[FloatingIP, ...] = ()
    """FloatingIPs that stand for the interface, or for ports of it; the oldest first."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a Service has read."""

    service: Service
    network: Network | None
    members: tuple[Member, ...] = ()
    routers: tuple[Router, ...] = ()
    """Those that have the network."""
    external: tuple[ExternalNetwork, ...] = ()
    """All that there are."""
    claimed: frozenset[tuple[str, Address]] = frozenset()
    """Addresses that are claimed, each with the uid of the interface or FloatingIP that has it."""
    cluster: tuple[CidrRange, ...] = ()
    """Ranges of the cluster itself: of its Services, and those that the operator names."""
    slices: tuple[EndpointSlice, ...] = ()


class State(Enum):
    """What is known of an endpoint."""

    READY = "ready"
    UNKNOWN = "unknown"
    """Nobody says that it is not well: its host, or who routes to it, is silent."""
    ENDING = "ending"
    """It goes, and may still answer."""
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Reached:
    """By which address the cluster reaches an interface."""

    address: Address
    up: bool
    """Whether a host says that it routes there."""


def lack(scope: Scope) -> Lack | None:
    """Why the Service can have no machines as endpoints at all; None when it can."""
    service = scope.service
    if service.spec.type == ServiceType.EXTERNAL_NAME:
        return Lack(
            "ExternalName", f"A Service of the type ExternalName has no endpoints: take its label {VM_NETWORK} off."
        )
    if not service.spec.selector:
        return Lack(
            "NoSelector", "It selects nothing: set spec.selector to labels of the VirtualMachines that it is about."
        )
    name, foreign = service.network or "", service.network_namespace
    if not name:
        return Lack(
            "NetworkNotFound", f"Its label {VM_NETWORK} is empty: set it to the name of the Network of the machines."
        )
    return usable(scope.network, service.namespace, name, foreign)


def ports(service: Service) -> tuple[EndpointPort, ...]:
    """The ports of all its endpoints: those that are numbers."""
    return tuple(
        EndpointPort(
            name=port.name or "",
            protocol=port.protocol,
            port=port.port if port.target_port is None else port.target_port,
            app_protocol=port.app_protocol,
        )
        for port in service.spec.ports
        if not isinstance(port.target_port, str)
    )


def endpoints(scope: Scope) -> Mapping[AddressType, tuple[Endpoint, ...]]:
    """The endpoints, by family. While no machine is known to be well, those that nothing is known of count as ready: hosts
    that cannot be heard of must not take a Service down that goes on."""
    found: dict[AddressType, list[tuple[Member, Reached, State]]] = {}
    if lack(scope) is not None:
        return {}
    for family in families(scope.service):
        seen: set[str] = set()
        for member in scope.members:
            reached = reach(scope, member, v4=family is AddressType.IPV4)
            if reached is not None and member.machine.uid not in seen:  # by one of its interfaces
                seen.add(member.machine.uid)
                found.setdefault(family, []).append((member, reached, state(member, reached)))
    well = any(one is State.READY for there in found.values() for _, _, one in there)
    return {
        family: tuple(
            _endpoint(scope.service, member, reached, State.READY if one is State.UNKNOWN and not well else one)
            for member, reached, one in there
        )
        for family, there in found.items()
    }


def families(service: Service) -> tuple[AddressType, ...]:
    """Families of addresses that the Service has."""
    return tuple(AddressType(name) for name in service.spec.ip_families or ("IPv4",) if name in list(AddressType))


def _endpoint(service: Service, member: Member, reached: Reached, state: State) -> Endpoint:
    machine = member.machine
    serving = state in (State.READY, State.ENDING)
    ready = state is State.READY or service.spec.publish_not_ready_addresses
    return Endpoint(
        addresses=(reached.address,),
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=state is State.ENDING),
        hostname=machine.name if service.headless else None,
        target_ref=TargetRef(
            api_version=machine.KIND.api_version,
            kind=machine.KIND.kind,
            namespace=machine.namespace,
            name=machine.name,
            uid=machine.uid,
        ),
    )


def state(member: Member, reached: Reached) -> State:
    """What is known of a machine that is reached by that address."""
    machine, interface = member.machine, member.interface
    phase = machine.status.phase
    if machine.deleting or interface.deleting:
        ends = (Phase.RUNNING, Phase.STOPPING, Phase.TERMINATING, Phase.UNKNOWN)
        return State.ENDING if phase in ends else State.OFF
    if phase is Phase.STOPPING:
        return State.ENDING
    if phase is Phase.UNKNOWN:
        return State.UNKNOWN
    if phase is not Phase.RUNNING or interface.status.phase is not InterfacePhase.ATTACHED:
        return State.OFF
    return State.READY if reached.up else State.UNKNOWN


def reach(scope: Scope, member: Member, *, v4: bool) -> Reached | None:
    """By which address of that family the cluster may be sent to a machine: its own, when that is routed to its network's
    namespace, else that of a FloatingIP; None when there is none."""
    for address in member.interface.status.addresses:
        if is_v4(address) is v4 and _given(scope, member.interface.uid, address):
            router = _router(scope, address)
            if router is not None:
                return _reached(address, up=router.status.phase is RouterPhase.ACTIVE)
    for item in member.floating:
        whole = item.spec.target is not None and item.spec.target.interface == member.interface.name
        given = item.status.address
        if not whole or given is None or is_v4(given) is not v4 or item.deleting or item.status.router is None:
            continue
        external = next((one for one in scope.external if one.uid == item.status.network), None)
        if external is None or ipaddress.ip_address(given) not in ipaddress.ip_network(external.spec.cidr):
            continue
        if _given(scope, item.uid, given):
            return _reached(given, up=item.status.phase is FloatingPhase.ACTIVE)
    return None


def _reached(address: Address, *, up: bool) -> Reached:
    return Reached(str(ipaddress.ip_address(address)), up)  # as the API server wants it written


def _given(scope: Scope, holder: str, address: Address) -> bool:
    """Whether an address is the holder's by a claim, and not one that nobody may be sent to."""
    number = ipaddress.ip_address(address)
    special = number.is_loopback or number.is_link_local or number.is_multicast or number.is_unspecified
    mapped = isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None
    if special or mapped or any(number in one for one in scope.cluster):
        return False
    return (holder, str(number)) in scope.claimed


def _router(scope: Scope, address: Address) -> Router | None:
    """The router by which the world reaches that address of the network; None when it does not."""
    if scope.network is None or scope.network.namespace not in _owners(scope, address):
        return None
    for router in scope.routers:
        external = next((one for one in scope.external if one.uid == router.status.external_network), None)
        if external is not None and bare(router, external) and is_v4(external.spec.gateway) is is_v4(address):
            return router
    return None


def bare(router: Router, external: ExternalNetwork) -> bool:
    """Whether packets of the router's networks are in the world with addresses of their own."""
    return not router.deleting and not router.spec.source_nat and external.spec.allow_routed


def _owners(scope: Scope, address: Address) -> set[str]:
    """Whose an address is in the world, as the operator says; nobody's when that is said of two namespaces."""
    number = ipaddress.ip_address(address)
    said = [
        (cidr.prefixlen, item.namespace)
        for external in scope.external
        for item in external.spec.routed
        if number in (cidr := ipaddress.ip_network(item.cidr))
    ]
    longest = max((length for length, _ in said), default=0)
    owners = {namespace for length, namespace in said if length == longest}
    return owners if len(owners) == 1 else set()


def report(scope: Scope) -> Lack | None:
    """What is to be said of the Service; None when all that it selects is published."""
    service = scope.service
    if (why := lack(scope)) is not None:
        return why
    named = [port for port in service.spec.ports if isinstance(port.target_port, str)]
    if named:
        which = ", ".join(f"{port.target_port} (of port {port.port})" for port in named[:5])
        return Lack(
            "NamedTargetPort",
            f"Machines give their ports no names, so they have no {which}: set targetPort to a number. Ports with numbers"
            " are published.",
        )
    if not scope.members:
        name = scope.network.name if scope.network is not None else service.network
        return Lack(
            "NoMachines",
            f"No VirtualMachine of the namespace has the labels of spec.selector and an interface in Network {name}.",
            stalled=False,
        )
    return _unreached(scope) or _local(service) or _silent(scope) or _none_ready(scope)


def _unreached(scope: Scope) -> Lack | None:
    """Machines that it selects and that are no endpoints."""
    assert scope.network is not None
    wanted = families(scope.service)
    published = {e.target_ref.uid for there in endpoints(scope).values() for e in there if e.target_ref is not None}
    lost: list[Member] = []
    other: list[Member] = []
    for member in scope.members:
        if member.machine.uid in published:
            continue
        anyhow = any(reach(scope, member, v4=v4) is not None for v4 in (True, False))
        (other if anyhow else lost).append(member)
    if lost:
        return Lack("NotReachable", _why(scope, lost))
    if other:
        return Lack(
            "AddressFamilyDiffers",
            f"The Service has {' and '.join(wanted)}, which {_names(other)} cannot be reached by from outside of the"
            " network: change spec.ipFamilies.",
        )
    return None


def _why(scope: Scope, lost: list[Member]) -> str:
    network, names = scope.network, _names(lost)
    assert network is not None
    said = (
        f"{names} cannot be reached from the cluster: addresses of Network {network.name} mean nothing outside of it."
    )
    by_ports = sorted({item.name for member in lost for item in member.floating if item.spec.target is None})
    if by_ports:
        said += f" FloatingIP {', '.join(by_ports[:5])} forwards single ports, which is not enough."
    todo = f" Give each of them a FloatingIP (spec.target.interface: {lost[0].interface.name}, ...)"
    routed = [
        (router, external)
        for router in scope.routers
        for external in scope.external
        if external.uid == router.status.external_network and bare(router, external)
    ]
    if routed:
        router, external = routed[0]
        todo += (
            f", or, because Router {router.name} does without source NAT, ask the operator to say in"
            f" ExternalNetwork {external.name}, spec.routed, that the range of the network is namespace"
            f" {network.namespace}'s"
        )
    return f"{said}{todo}."


def _names(members: list[Member]) -> str:
    names = sorted({member.machine.name for member in members})
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{'Machine' if len(names) == 1 else 'Machines'} {some}"


def _silent(scope: Scope) -> Lack | None:
    """Machines to whose addresses no host says that it routes."""
    lost = [
        member
        for member in scope.members
        for v4 in (family is AddressType.IPV4 for family in families(scope.service))
        if (reached := reach(scope, member, v4=v4)) is not None and not reached.up
    ]
    if not lost:
        return None
    return Lack(
        "NotRouted",
        f"No host says that it routes to {_names(lost)}: the FloatingIP, or the Router, says why.",
        stalled=False,
    )


def _none_ready(scope: Scope) -> Lack | None:
    there = [endpoint for group in endpoints(scope).values() for endpoint in group]
    if any(endpoint.conditions.ready for endpoint in there):
        return None
    names = _names(list(scope.members))
    return Lack("NoneReady", f"{names} cannot be asked: none is Running with its interface attached.", stalled=False)


def _local(service: Service) -> Lack | None:
    """Traffic that is to stay on a node never comes to a machine, which is on none."""
    for policy, field in (
        (service.spec.internal_traffic_policy, "internalTrafficPolicy"),
        (service.spec.external_traffic_policy, "externalTrafficPolicy"),
    ):
        if policy == "Local":
            return Lack(
                "TrafficPolicyLocal",
                f"Machines are on no node of the cluster, so with spec.{field}: Local nobody gets to them: set it to Cluster.",
            )
    return None
