"""A Kubernetes Service that means machines: which of them are its endpoints, and why others are not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kumulus.api.addresses import Address
from kumulus.api.compute import Phase
from kumulus.api.network import InterfacePhase, Network
from kumulus.api.routing import ExternalNetwork, Router
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
from kumulus_controllers.network.reach import CidrRange, Member, Outside, Reached, Routed


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a Service has read."""

    service: Service
    network: Network | None
    members: tuple[Member, ...] = ()
    """Interfaces in the network of machines that it selects, by name."""
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
class Outcome:
    """What a Service is to have."""

    endpoints: Mapping[AddressType, Sequence[Endpoint]] = field(default_factory=dict)
    lack: Lack | None = None
    """What is to be said of it; None when all machines that it selects are published."""


GOES_ON = ("NetworkDeleting", "NetworkNotReady")
"""What a network lacks that says nothing of machines that are in it."""


def judge(scope: Scope) -> Outcome:
    """Which machines are endpoints of the Service, and what is said of the others.

    While no machine is known to be well, those that nothing is known of count as ready: hosts that cannot be heard of must
    not take a Service down that goes on.
    """
    service, network = scope.service, scope.network
    none = _none(scope)
    if network is None or (none is not None and none.reason not in GOES_ON):
        return Outcome(lack=none)
    outside = Outside(network, scope.routers, scope.external, scope.claimed, scope.cluster)
    ways: dict[AddressType, dict[str, tuple[Member, Reached]]] = {}
    for family in _families(service):
        there = ways.setdefault(family, {})
        for member in scope.members:
            if member.machine.uid not in there:  # by one of its interfaces
                reached = outside.way(member, v4=family is AddressType.IPV4)
                if reached is not None:
                    there[member.machine.uid] = (member, reached)
    served = {
        (old.target_ref.uid, old.addresses)
        for item in scope.slices
        for old in item.endpoints
        if old.target_ref is not None and old.conditions.serving
    }
    states = {
        family: {uid: _state(*way, served=(uid, (way[1].address,)) in served) for uid, way in there.items()}
        for family, there in ways.items()
    }
    well = any(state is State.READY for there in states.values() for state in there.values())
    endpoints = {
        family: [
            _endpoint(service, member, reached, states[family][uid], trust=not well)
            for uid, (member, reached) in there.items()
        ]
        for family, there in ways.items()
        if there
    }
    published = {uid for there in ways.values() for uid in there}
    lost = [member for member in scope.members if member.machine.uid not in published]
    silent = [
        member for there in ways.values() for member, reached in there.values() if reached.routed is not Routed.YES
    ]
    why = _ports(service) or _nobody(scope) or _unreached(scope, outside, lost) or _local(service)
    why = none or why or _silent(silent) or _unready(scope, endpoints)
    return Outcome(endpoints, why)


def _none(scope: Scope) -> Lack | None:
    """Why the Service can have no machines as endpoints at all, or no more of them; None when it can."""
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


def _families(service: Service) -> tuple[AddressType, ...]:
    """Families of addresses that the Service has."""
    return tuple(family for family in AddressType if family in (service.spec.ip_families or (AddressType.IPV4,)))


def _endpoint(service: Service, member: Member, reached: Reached, state: State, *, trust: bool) -> Endpoint:
    """`trust`: what nothing is known of counts as ready."""
    machine = member.machine
    well = state is State.READY or (trust and state is State.UNKNOWN)
    return Endpoint(
        addresses=(reached.address,),
        conditions=EndpointConditions(
            ready=well or service.spec.publish_not_ready_addresses,
            serving=well or state is State.ENDING,
            terminating=state is State.ENDING,
        ),
        hostname=machine.name if service.headless else None,
        target_ref=TargetRef(
            api_version=machine.KIND.api_version,
            kind=machine.KIND.kind,
            namespace=machine.namespace,
            name=machine.name,
            uid=machine.uid,
        ),
    )


def _state(member: Member, reached: Reached, *, served: bool) -> State:
    """`served`: it was known to be well when its slice was written."""
    machine, interface = member.machine, member.interface
    phase = machine.status.phase
    if machine.deleting or interface.deleting:
        ends = (Phase.RUNNING, Phase.STOPPING, Phase.TERMINATING, Phase.UNKNOWN)
        return State.ENDING if phase in ends else State.OFF
    if phase is Phase.STOPPING:
        return State.ENDING
    if reached.routed is Routed.NO or (reached.routed is Routed.WAITS and not served):
        return State.OFF
    if phase is Phase.UNKNOWN:
        return State.UNKNOWN
    if phase is not Phase.RUNNING or interface.status.phase is not InterfacePhase.ATTACHED:
        return State.OFF
    return State.READY if reached.routed is Routed.YES else State.UNKNOWN


def _ports(service: Service) -> Lack | None:
    named = [port for port in service.spec.ports if isinstance(port.target_port, str)]
    if not named:
        return None
    which = ", ".join(f"{port.target_port} (of port {port.port})" for port in named[:5])
    return Lack(
        "NamedTargetPort",
        f"Machines give their ports no names, so they have no {which}: set targetPort to a number. Ports with numbers are"
        " published.",
    )


def _nobody(scope: Scope) -> Lack | None:
    if scope.members or scope.network is None:
        return None
    return Lack(
        "NoMachines",
        f"No VirtualMachine of the namespace has the labels of spec.selector and an interface in Network"
        f" {scope.network.name}.",
        stalled=False,
    )


def _unreached(scope: Scope, outside: Outside, lost: list[Member]) -> Lack | None:
    """Machines that it selects and that are no endpoints."""
    nowhere = [member for member in lost if not any(outside.way(member, v4=v4) for v4 in (True, False))]
    if nowhere:
        return Lack("NotReachable", _why(scope, outside, nowhere))
    if lost:
        wanted = " and ".join(_families(scope.service))
        return Lack(
            "AddressFamilyDiffers",
            f"The Service has {wanted}, by which {_names(lost)} cannot be reached from outside of the network: change"
            " spec.ipFamilies.",
        )
    return None


def _why(scope: Scope, outside: Outside, lost: list[Member]) -> str:
    network = scope.network
    assert network is not None
    said = f"{_names(lost)} cannot be reached from the cluster: addresses of Network {network.name} mean nothing outside of it."
    by_ports = sorted({item.name for member in lost for item in member.floating if item.spec.target is None})
    if by_ports:
        said += f" FloatingIP {', '.join(by_ports[:5])} forwards single ports, which is not enough."
    todo = f" Give each of them a FloatingIP (spec.target.interface: {lost[0].interface.name}, ...)"
    if outside.bare:
        router, external = outside.bare[0]
        todo += (
            f", or, because Router {router.name} does without source NAT, ask the operator to say in"
            f" ExternalNetwork {external.name}, spec.routed, that the range of the network is namespace"
            f" {network.namespace}'s"
        )
    return f"{said}{todo}."


def _names(members: Sequence[Member]) -> str:
    names = sorted({member.machine.name for member in members})
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{'Machine' if len(names) == 1 else 'Machines'} {some}"


def _silent(members: list[Member]) -> Lack | None:
    """Machines to whose addresses no host says that it routes."""
    if not members:
        return None
    return Lack(
        "NotRouted",
        f"No host says that it routes to {_names(members)}: the FloatingIP, or the Router, says why.",
        stalled=False,
    )


def _unready(scope: Scope, endpoints: Mapping[AddressType, Sequence[Endpoint]]) -> Lack | None:
    if any(endpoint.conditions.ready for there in endpoints.values() for endpoint in there):
        return None
    names = _names(scope.members)
    return Lack("NoneReady", f"{names} cannot be asked: none is Running with its interface attached.", stalled=False)


def _local(service: Service) -> Lack | None:
    """Traffic that is to stay on a node never comes to a machine, which is on none."""
    for policy, name in (
        (service.spec.internal_traffic_policy, "internalTrafficPolicy"),
        (service.spec.external_traffic_policy, "externalTrafficPolicy"),
    ):
        if policy == "Local":
            return Lack(
                "TrafficPolicyLocal",
                f"Machines are on no node of the cluster, so with spec.{name}: Local nobody gets to them: set it to Cluster.",
            )
    return None
