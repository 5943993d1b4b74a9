"""A floating address: which router has it, what it lacks, and what its status says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.addresses import Address, is_v4
from kumulus.api.gateways import FLOATING_MOST, FORWARDS_MOST
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.network import NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, FloatingIPStatus, FloatingPhase, PhysicalNetwork, Router
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.network.lack import Lack, facts
from kumulus_controllers.network.router_status import NOT_TOLD
from kumulus_controllers.network.routing import targets
from kumulus_controllers.orders import done


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a floating address has read."""

    floating: FloatingIP
    external: ExternalNetwork | None
    physical: PhysicalNetwork | None
    interfaces: Mapping[str, NetworkInterface] = field(default_factory=dict)
    """Whom it is to stand for, by name, as far as they are there."""
    routers: Sequence[Router] = ()
    """Those of the namespace with a leg in the external network, by name."""
    others: Sequence[FloatingIP] = ()
    """Others that are to stand for one of these interfaces."""
    orders: Mapping[str, WorkOrder] = field(default_factory=dict)
    """What the hosts of its router are told, by host."""
    gateways: Sequence[WorkOrder] = ()
    """What hosts are told of any router of the namespace."""


def route(scope: Scope) -> tuple[Router | None, Lack | None]:
    """The router that has it, and what keeps it from standing for all that it is to stand for."""
    wanted = sorted(targets(scope.floating))
    if not wanted:
        return None, None
    lacks: list[Lack] = []
    reached: dict[str, list[Router]] = {}
    for name in wanted:
        nic = scope.interfaces.get(name)
        if nic is None or nic.deleting:
            lacks.append(Lack("InterfaceNotFound", f"There is no NetworkInterface {name} in the namespace."))
            continue
        if nic.status.network is None or not nic.status.addresses:
            lacks.append(Lack("InterfaceNotReady", f"NetworkInterface {name} has no addresses yet.", stalled=False))
            continue
        able = [r for r in scope.routers if nic.status.network in {part.uid for part in r.status.networks}]
        if able:
            reached[name] = sorted(able, key=lambda router: router.name)
        else:
            lacks.append(
                Lack(
                    "NoRouter",
                    f"No Router of the namespace has both Network {nic.spec.network}, which interface {name} is in, and"
                    f" ExternalNetwork {scope.floating.spec.external_network}: make one, or add them to one.",
                )
            )
    every = [router for able in reached.values() for router in able]
    # One that reaches some of them keeps it: it lets go by itself when it reaches none.
    found = next((router for router in every if router.name == scope.floating.status.router), next(iter(every), None))
    lacks += [
        Lack("AnotherRouter", f"Interface {name} is not reached by Router {found.name} as others of it are.")
        for name, able in reached.items()
        if found is not None and found.uid not in {router.uid for router in able}
    ]
    return found, next(iter(lacks), None)


def holder(scope: Scope, address: Address, router: Router | None) -> WorkOrder | None:
    """What a host is told that has the address, or may have it still, for another router than the one that is to have it;
    None when nobody has it. The router on record has to have let go: its hosts may have been told of it before."""
    named = scope.floating.status.router
    for order in scope.gateways:
        if router is not None and order.spec.for_.uid == router.uid:
            continue
        if address in _told(order) or (order.spec.for_.name == named and not done(order)):
            return order
    return None


def shared(scope: Scope, address: Address) -> Lack | None:
    """Why the interface cannot have the whole address: it has another one, or none of the same family."""
    target = scope.floating.spec.target
    nic = scope.interfaces.get(target.interface) if target is not None else None
    if target is None or nic is None:
        return None
    if nic.status.addresses and not any(is_v4(one) is is_v4(address) for one in nic.status.addresses):
        return Lack(
            "AddressFamilyDiffers",
            f"{address} and the addresses of interface {target.interface} are of different families: take another one.",
        )
    mine = (scope.floating.metadata.creation_timestamp or "", scope.floating.name)
    for other in scope.others:
        if (
            other.spec.target is not None
            and other.spec.target.interface == target.interface
            and other.spec.external_network == scope.floating.spec.external_network
            and not other.deleting
            and (other.metadata.creation_timestamp or "", other.name) < mine
        ):
            return Lack(
                "InterfaceHasFloatingIP",
                f"FloatingIP {other.name} stands for interface {target.interface} already: of two the older one counts.",
            )
    return None


def derive_status(
    scope: Scope, address: Address | None, router: Router | None, lack: Lack | None, now: str
) -> FloatingIPStatus:
    """The whole status. The address on record stays."""
    floating, before = scope.floating, scope.floating.status
    host = _host(scope, address, router) if lack is None else None
    found: list[Fact] = []
    said = f"It stands for nobody, and {address} is kept."
    if floating.deleting:
        phase, lack = FloatingPhase.TERMINATING, lack or Lack("Terminating", "It is given back.", stalled=False)
    elif lack is not None:
        waits = not lack.stalled or lack.reason in ("InterfaceNotFound", "NoRouter", "ExternalNetworkFull")
        phase = FloatingPhase.PENDING if waits else FloatingPhase.FAILED
    elif not targets(floating):
        phase = FloatingPhase.ALLOCATED
    elif host is not None:
        phase, said = FloatingPhase.ACTIVE, f"Host {host} routes for it."
        if _is_changing(scope, scope.orders[host]):
            found.append(Fact("Reconciling", True, "Pending", f"Host {host} is being told of a change."))
    else:
        phase = FloatingPhase.PENDING
        name = router.name if router is not None else "the router"
        lack = _left_out(scope, address, router)
        lack = lack or Lack(
            "RouterNotActive", f"No host of {name} routes for it yet.{_why(scope, router)}", stalled=False
        )
    generation = floating.metadata.generation
    return FloatingIPStatus(
        observed_generation=generation,
        conditions=derive(
            before.conditions,
            [*facts(lack, str(phase), said), *found, *_withdrawn(scope)],
            generation=generation,
            now=now,
        ),
        phase=phase,
        network=before.network or (scope.external.uid if scope.external is not None and address is not None else None),
        address=before.address or address,
        router=router.name if router is not None else None,
        host=host,
    )


def _left_out(scope: Scope, address: Address | None, router: Router | None) -> Lack | None:
    """Why its router does not have it though it is that router's: what hosts are told has no room for it."""
    floating = scope.floating
    if router is None or address is None or floating.status.router != router.name:
        return None
    for order in scope.orders.values():
        does = order.spec.gateway.router if order.spec.gateway is not None else None
        if does is None or address in _told(order):
            continue
        has = {one.external for one in does.floating} | {one.external for one in does.forwards}
        forwards = len(does.forwards) + len(floating.spec.port_forwards)
        if len(has) >= FLOATING_MOST or forwards > FORWARDS_MOST:
            return Lack(
                "TooManyFloatingIPs",
                f"Router {router.name} can have {FLOATING_MOST} FloatingIPs and {FORWARDS_MOST} port forwards, and older ones"
                " have them: delete some, or have another Router for this one. It goes on by itself when there is room.",
            )
    return None


def _withdrawn(scope: Scope) -> list[Fact]:
    """Its namespace may not use the external network any more. The address stays, for nobody takes it from who has it."""
    external, namespace = scope.external, scope.floating.namespace
    allowed = external.spec.allowed_namespaces if external is not None else ()
    if external is None or scope.floating.status.address is None or not allowed or namespace in allowed:
        return []
    return [
        Fact(
            "Allowed",
            False,
            "NamespaceNotAllowed",
            f"ExternalNetwork {external.name} may not be used in namespace {namespace} any more. The address goes on; another"
            " one cannot be had.",
        )
    ]


def _host(scope: Scope, address: Address | None, router: Router | None) -> str | None:
    """The host that routes for it: the active one, if it has done what it is told and a new router's other hosts know it, or
    had the address before it was told of a change that leaves it the address."""
    host = router.status.active_host if router is not None else None
    order = scope.orders.get(host) if host is not None else None
    if order is None or address is None or address not in _told(order) or order.deleting:
        return None
    before = scope.floating.status
    if before.host == host and before.address == address and order.status.state is not WorkState.FAILED:
        return host
    ready = router.status.condition("Ready") if router is not None else None
    if ready is not None and ready.reason == NOT_TOLD:
        return None
    return host if done(order) and _as_wanted(scope, order) else None


def _is_changing(scope: Scope, order: WorkOrder) -> bool:
    """Whether the host that routes for it does so as it did before its owner changed something. What changes for others says
    nothing of it."""
    if not _as_wanted(scope, order):
        return True
    floating, before = scope.floating, scope.floating.status
    news = before.observed_generation != floating.metadata.generation or before.condition("Reconciling") is not None
    return news and not done(order)


def _as_wanted(scope: Scope, order: WorkOrder) -> bool:
    """Whether a host is told of it what its spec says."""
    spec, address = scope.floating.spec, scope.floating.status.address
    does = order.spec.gateway.router if order.spec.gateway is not None else None
    if does is None:
        return False
    if spec.target is not None:
        own = _own(scope, spec.target.interface)
        return any(one.internal in own for one in does.floating if address in (None, one.external))
    told = {
        (one.protocol, one.port, one.target_port, one.internal)
        for one in does.forwards
        if address in (None, one.external)
    }
    return all(
        any(
            (one.protocol, one.port, one.target_port or one.port, internal) in told
            for internal in _own(scope, one.interface)
        )
        for one in spec.port_forwards
    )


def _own(scope: Scope, name: str) -> tuple[Address, ...]:
    """The addresses of an interface that it is to stand for."""
    nic = scope.interfaces.get(name)
    return nic.status.addresses if nic is not None else ()


def _why(scope: Scope, router: Router | None) -> str:
    """What keeps the host that routes from it, as a further sentence."""
    host = router.status.active_host if router is not None else None
    order = scope.orders.get(host) if host is not None else None
    if order is None or order.status.state is not WorkState.FAILED:
        return ""
    return f" Host {host}: {order.status.message or order.status.reason or 'it failed'}"


def _told(order: WorkOrder) -> set[Address]:
    """The addresses that a host is to have for a gateway."""
    legs = order.spec.gateway.legs if order.spec.gateway is not None else ()
    return {one.partition("/")[0] for leg in legs for one in leg.addresses}
