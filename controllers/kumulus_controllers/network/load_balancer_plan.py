"""A load balancer: its interface, its members, what its hosts are told, and what its status says. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.addresses import Address, is_v4
from kumulus.api.balancing import (
    MEMBERS_MOST,
    BalancerListener,
    BalancerMember,
    Balancing,
    Certificate,
    tls_secret_name,
)
from kumulus.api.base import ConditionStatus
from kumulus.api.gateways import GatewayLeg, GatewayOrder, Redundancy
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.load_balancer import LoadBalancer, LoadBalancerMember, LoadBalancerStatus
from kumulus.api.network import Network, NetworkInterface
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.network.gateway_plan import HOSTS_MOST, Choice, leg_mac
from kumulus_controllers.network.lack import Lack, facts
from kumulus_controllers.network.network_plan import usable
from kumulus_controllers.network.ranges import in_range, ranges
from kumulus_controllers.network.router_status import NOT_TOLD
from kumulus_controllers.orders import NOT_BEGUN, host_of
from kumulus_controllers.storage.volume_plan import MADE_FOR


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a load balancer has read."""

    balancer: LoadBalancer
    network: Network | None
    interface: NetworkInterface | None
    """That of its addresses."""
    candidates: tuple[NetworkInterface, ...] = ()
    """Interfaces of its members, wherever they are."""
    unknown: tuple[str, ...] = ()
    """Names of interfaces that its spec names and that are not there."""
    orders: tuple[WorkOrder, ...] = ()
    """Its gateways on hosts, the oldest first."""
    silent: frozenset[str] = frozenset()
    """Names of hosts that cannot say what is so now."""
    choice: Choice | None = None
    """The hosts that it is to be on; None when that was not looked for."""
    late: bool = False
    """Its hosts are told of a change in a moment only."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What the Secrets of its listeners add up to, by their names."""
    untold: frozenset[str] = frozenset()
    """Hosts with its network that take no packets of the host that serves yet, but for those that are not heard of."""


def template_interface(balancer: LoadBalancer) -> dict[str, Any]:
    """The NetworkInterface that holds its addresses. It is its own: no machine can have it."""
    owner = {
        "apiVersion": LoadBalancer.KIND.api_version,
        "kind": LoadBalancer.KIND.kind,
        "name": balancer.name,
        "uid": balancer.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    spec: dict[str, Any] = {"network": balancer.spec.network}
    if wanted := balancer.status.addresses or balancer.spec.addresses:
        spec["addresses"] = list(wanted)
    if balancer.spec.security_groups:
        spec["securityGroups"] = list(balancer.spec.security_groups)
    return {
        "metadata": {
            "name": balancer.interface_name,
            "annotations": {MADE_FOR: balancer.uid},
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def lack(scope: Scope) -> Lack | None:
    """Why its hosts cannot be told of it; None when they can."""
    balancer, interface = scope.balancer, scope.interface
    if (missing := usable(scope.network, balancer.namespace, balancer.spec.network, None)) is not None:
        return missing
    assert scope.network is not None
    if not scope.network.spec.cidrs:
        return Lack(
            "NetworkWithoutAddresses",
            f"Network {scope.network.name} is of the type L2: a load balancer needs one with ranges.",
        )
    if interface is None:
        return Lack("InterfacePending", "The interface of its addresses is being made.", stalled=False)
    if interface.metadata.annotations.get(MADE_FOR) != balancer.uid:
        return Lack(
            "InterfaceNameTaken",
            f"There is a NetworkInterface {interface.name} that is not the load balancer's: delete that, or make the load"
            " balancer with another name.",
        )
    if not interface.status.addresses:
        ready = interface.status.condition("Ready")
        stuck = interface.status.condition("Stalled") is not None
        why = ready.message if ready is not None and ready.message else "It gets its addresses."
        return Lack(ready.reason if ready is not None and stuck else "AddressPending", why, stalled=stuck)
    return None


def _balances(scope: Scope, interface: NetworkInterface) -> bool:
    """Whether the interface is that of a load balancer, this or another one: connections would go round."""
    owners = {owner.kind for owner in interface.metadata.owner_references}
    return interface.name == scope.balancer.interface_name or LoadBalancer.KIND.kind in owners


def members(scope: Scope) -> tuple[tuple[NetworkInterface, Address], ...]:
    """Those that are in its network and no load balancer's, each with an address of a family that it has itself; by
    name."""
    own = scope.interface.status.addresses if scope.interface is not None else ()
    own = own or scope.balancer.status.addresses
    families = sorted({is_v4(address) for address in own}, reverse=True)
    found = []
    for interface in sorted(scope.candidates, key=lambda item: item.name):
        if scope.network is None or interface.status.network != scope.network.uid or interface.deleting:
            continue
        if _balances(scope, interface):
            continue
        for v4 in families:
            address = next((one for one in interface.status.addresses if is_v4(one) is v4), None)
            if address is not None:
                found.append((interface, address))
                break
    return tuple(found)


def secrets_of(balancer: LoadBalancer) -> tuple[str, ...]:
    """Names of the Secrets that its listeners name."""
    return tuple(sorted({listener.tls.secret for listener in balancer.spec.listeners if listener.tls is not None}))


def ordered_digests(scope: Scope) -> dict[str, str]:
    """What its hosts have of its Secrets, by their names: they go on with that when a Secret cannot be used any more."""
    names = {
        listener.port: listener.tls.secret for listener in scope.balancer.spec.listeners if listener.tls is not None
    }
    found: dict[str, str] = {}
    for order in scope.orders:
        told = order.spec.gateway.balancer if order.spec.gateway is not None else None
        for listener in told.listeners if told is not None else ():
            if listener.certificate is not None and listener.port in names:
                found[names[listener.port]] = listener.certificate.digest
    return found


def balancing(scope: Scope) -> Balancing:
    """What its hosts do, whose addresses are there and whose Secrets were read."""
    balancer, interface, network = scope.balancer, scope.interface, scope.network
    assert interface is not None and network is not None
    spec = balancer.spec
    own = interface.status.addresses[:2]
    families = {is_v4(address) for address in own}
    return Balancing(
        addresses=own,
        listeners=tuple(
            BalancerListener(
                port=listener.port,
                protocol=listener.protocol,
                target_port=listener.target_port or listener.port,
                algorithm=listener.algorithm,
                stickiness=listener.stickiness,
                proxy_protocol=listener.proxy_protocol,
                certificate=_certificate(balancer, scope.digests[listener.tls.secret]) if listener.tls else None,
            )
            for listener in sorted(spec.listeners, key=lambda one: one.port)
        ),
        members=tuple(
            BalancerMember(uid=interface.uid, address=address) for interface, address in members(scope)[:MEMBERS_MOST]
        ),
        health_check=spec.health_check,
        gateways=tuple(
            str(item.gateway)
            for item in ranges(network)
            if (item.version == 4) in families and str(item.gateway) not in own
        ),
        max_connections=spec.max_connections,
    )


def _certificate(balancer: LoadBalancer, digest: str) -> Certificate:
    return Certificate(digest=digest, secret=tls_secret_name(balancer.uid, digest))


def gateway(scope: Scope, host: str, agreed: Redundancy) -> GatewayOrder:
    """The load balancer on that host."""
    balancer, network = scope.balancer, scope.network
    assert network is not None and network.status.driver is not None and network.status.mtu is not None
    wanted = balancing(scope)
    return GatewayOrder(
        uid=balancer.uid,
        driver=network.status.driver,
        legs=(
            GatewayLeg(
                network=network.uid,
                mac=leg_mac(balancer.uid, network.uid, host),
                mtu=network.status.mtu,
                addresses=tuple(_placed(network, address) for address in wanted.addresses),
            ),
        ),
        redundancy=agreed,
        balancer=wanted,
    )


def _placed(network: Network, address: Address) -> str:
    found = in_range(network, address)
    length = found.cidr.prefixlen if found is not None else ipaddress.ip_address(address).max_prefixlen
    return f"{address}/{length}"


def active(scope: Scope) -> WorkOrder | None:
    """The order of the host that has the addresses, as far as hosts have said. Of several that said so, one that can
    still speak; else the one that is on record."""
    saying = [order for order in scope.orders if order.status.gateway is not None and order.status.gateway.active]
    recorded = scope.balancer.status.active_host
    return min(saying, key=lambda order: (host_of(order) in scope.silent, host_of(order) != recorded), default=None)


def derive_status(scope: Scope, why: Lack | None, now: str) -> LoadBalancerStatus:
    """The whole status."""
    balancer, before = scope.balancer, scope.balancer.status
    generation = balancer.metadata.generation
    serving = active(scope)
    told = serving.status.gateway.balancer if serving is not None and serving.status.gateway is not None else None
    well = {item.uid: item.healthy for item in told.members} if told is not None else {}
    found = members(scope)
    shown = tuple(
        LoadBalancerMember(
            name=interface.name, vm=interface.status.vm, address=address, healthy=well.get(interface.uid, False)
        )
        for interface, address in found[:MEMBERS_MOST]
    )
    healthy = sum(member.healthy for member in shown)
    undone = _undone(scope)
    passing = undone if undone is not None and not undone.stalled else None
    serves = healthy > 0 or (passing is not None and any(well.values()))  # perhaps with members that it had before
    lacking = _members(scope, len(found), serves)
    why = why or _hosts(scope, undone) or (undone if passing is None else None)
    why = why or (lacking if lacking is not None and lacking.stalled else None) or _behind(scope) or lacking
    own = scope.interface.status.addresses[:2] if scope.interface is not None else ()
    phase = "Ready" if why is None else "Failed" if why.stalled else "Pending"
    if why is not None and serving is not None and (why is undone or why.reason in _SERVES):
        phase = "Ready"
    if balancer.deleting:
        phase = "Terminating"
        why = Lack("Terminating", "It is being removed from its hosts.", stalled=False)
    said = f"{healthy} of {len(shown)} members are well."
    standby = [host_of(order) for order in scope.orders if order is not serving and not order.deleting]
    return LoadBalancerStatus(
        observed_generation=generation,
        conditions=derive(
            before.conditions,
            [*facts(why, "Ready", said), *_passing(why, passing), *_redundant(scope.choice)],
            generation=generation,
            now=now,
        ),
        phase=phase,
        addresses=before.addresses or own,
        active_host=host_of(serving) if serving is not None else None,
        standby_hosts=tuple(host for host in standby if host not in scope.silent)[:HOSTS_MOST],
        members=shown,
        healthy=f"{healthy}/{len(shown)}",
    )


def _passing(why: Lack | None, passing: Lack | None) -> list[Fact]:
    """A change that hosts are being told of takes nothing from what serves: Ready stays, and kstatus hears that it goes on."""
    if why is not None or passing is None:
        return []
    return [Fact("Reconciling", True, passing.reason, passing.message)]


_SERVES = ("TooManyMembers", "SecretNotFound", "SecretNotCertificate", "CertificateExpired")
"""Reasons of what serves all the same."""


def _refused(choice: Choice) -> str:
    return (
        "; ".join(f"{name}: {why}" for name, why in sorted((choice.refused or {}).items())[:5]) or "there is no other"
    )


def _redundant(choice: Choice | None) -> list[Fact]:
    if choice is None or not choice.hosts:
        return []
    if not choice.short:
        return [Fact("Redundant", True, "Redundant", "Another host can take over.")]
    said = f"No other host can take over ({_refused(choice)}). It goes on by itself when one can."
    return [Fact("Redundant", False, "NoStandby", said)]


def _hosts(scope: Scope, undone: Lack | None) -> Lack | None:
    if scope.choice is not None and scope.choice.unsupported is not None:
        return Lack("GatewaysUnsupported", scope.choice.unsupported)
    if scope.choice is not None and not scope.choice.hosts:
        return Lack(
            "NoGatewayHost", f"No host can have it ({_refused(scope.choice)}). It goes on by itself when one can."
        )
    if active(scope) is None:
        where = ", ".join(_chosen(scope)[:5]) or "its hosts"
        return undone or Lack("Pending", f"It is being set up on {where}.", stalled=False)
    return None


_ARRIVED = ("NoHealthyMembers", "NoMembers")
"""Reasons that are said of one only when its packets arrive."""


def arrived(balancer: LoadBalancer) -> bool:
    """Whether its packets have arrived before, by its own record: it was Ready, or would have been if its members were well."""
    ready = balancer.status.condition("Ready")
    return ready is not None and (ready.status is ConditionStatus.TRUE or ready.reason in _ARRIVED)


def _behind(scope: Scope) -> Lack | None:
    """That hosts which it is new to do not take its packets yet. Of one whose packets have arrived before nobody says so, as of a router."""
    serving = active(scope)
    if serving is None or not scope.untold or arrived(scope.balancer):
        return None
    waiting = sorted(scope.untold)
    some = ", ".join(waiting[:5]) + (", ..." if len(waiting) > 5 else "")
    return Lack(
        NOT_TOLD, f"Host {host_of(serving)} serves; {some}, with interfaces of its network, hear of it.", stalled=False
    )


def _chosen(scope: Scope) -> tuple[str, ...]:
    return scope.choice.hosts if scope.choice is not None else tuple(map(host_of, scope.orders))


def _undone(scope: Scope) -> Lack | None:
    """What its hosts have not done of what they are told, also when one serves: that may do so with what it was told
    before. Of several that for which somebody has to do something. Of a host that cannot speak nothing is known."""
    hosts = _chosen(scope)
    orders = [order for order in scope.orders if host_of(order) in hosts and host_of(order) not in scope.silent]
    found = [lack for order in orders if (lack := _undone_by(order)) is not None]
    if scope.late:
        found.append(Lack("Pending", "Its hosts are being told of a change.", stalled=False))
    return min(found, key=lambda lack: not lack.stalled, default=None)


def _undone_by(order: WorkOrder) -> Lack | None:
    host, status = host_of(order), order.status
    if order.deleting or (status.observed_generation or 0) < order.metadata.generation:
        return Lack("Pending", f"Host {host} is being told of it.", stalled=False)
    if status.state is WorkState.READY:
        return None
    passing = status.state in NOT_BEGUN
    said = status.message or ("it waits" if passing else "it failed")
    return Lack(status.reason or ("Pending" if passing else "Failed"), f"Host {host}: {said}", stalled=not passing)


def _members(scope: Scope, count: int, serves: bool) -> Lack | None:
    if scope.unknown:
        names = ", ".join(scope.unknown[:5])
        return Lack(
            "InterfaceNotFound", f"There is no NetworkInterface {names} in the namespace: make it, or take it out."
        )
    if balancers := sorted(item.name for item in scope.candidates if _balances(scope, item)):
        return Lack(
            "MemberIsLoadBalancer",
            f"NetworkInterface {', '.join(balancers[:5])} is a load balancer's, where connections would go round: it gets"
            " none. Take it out of spec.members.interfaces.",
        )
    if count > MEMBERS_MOST:
        return Lack(
            "TooManyMembers",
            f"{count} interfaces would be members; it has the first {MEMBERS_MOST} by name: narrow its selector.",
        )
    if count == 0:
        if scope.balancer.spec.members.selector is not None:
            return Lack(
                "NoMembers",
                "No machine of the namespace has the labels of spec.members.selector and an interface in the network with"
                " an address.",
                stalled=False,
            )
        return Lack("NoMembers", "None of its interfaces is in its network and has an address.", stalled=False)
    if not serves:
        return Lack(
            "NoHealthyMembers",
            "No member passes the health check: does the service run there at the target port, and do the members' security"
            " groups let the load balancer's in?",
            stalled=False,
        )
    return None
