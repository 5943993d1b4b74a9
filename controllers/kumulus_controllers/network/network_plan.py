"""What a network is to be, from what was read. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.addresses import is_v4
from kumulus.api.network import (
    Network,
    NetworkClass,
    NetworkClassSpec,
    NetworkInterface,
    NetworkStatus,
    NetworkType,
)
from kumulus.api.routing import PhysicalNetwork
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.network.lack import Lack, facts, left_alone
from kumulus_controllers.network.networks import at_home, names, permits
from kumulus_controllers.network.ranges import UNDERLAY_MTU, V6_LEAST, carried, idle_ranges, ranges
from kumulus_controllers.network.vlans import Pool, is_vlan, pool


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass over a network has read."""

    network: Network
    offered: NetworkClass | None
    """The class that it names, or else the default one."""
    over_v6: bool = False
    """There are hosts whose tunnels end at addresses of IPv6."""
    physical: PhysicalNetwork | None = None
    """The one whose VLAN it is, or is to be (`physical_name`), if there is one of that name."""
    external_vlans: frozenset[int] = frozenset()
    """VLANs there that external networks are."""
    own_vlans: frozenset[int] = frozenset()
    """VLANs there that classes name for themselves."""
    interfaces: tuple[NetworkInterface, ...] = ()
    """Looked up for its end, and for others' namespaces in a Shared one: each claim of an address means a pass, and there
    are thousands."""
    claims: int = 0
    hosts: tuple[str, ...] = ()
    """Names of those that have it, or are to have it."""
    routers: tuple[str, ...] = ()
    """Names of those that have it."""
    balancers: tuple[str, ...] = ()
    """Names of load balancers that are in it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What hosts are to make of it."""

    offer: NetworkClassSpec
    mtu: int
    pool: Pool | None = None
    """VLANs of which it has one; None: it is carried by tunnels."""


def physical_name(network: Network, offered: NetworkClass | None) -> str | None:
    """Name of the PhysicalNetwork whose VLAN the network is, or is to be; None when it is carried by tunnels. What was decided
    once stays."""
    if network.status.driver is not None:
        return network.status.physical_network
    return offered.spec.physical_network if offered is not None and is_vlan(offered.spec) else None


def wanted(scope: Scope) -> Wanted | Lack:
    """What the network is to be, or why that cannot be said. What was decided once stays: driver, and a number."""
    network, offered = scope.network, scope.offered
    spec, before = network.spec, network.status
    if offered is None and spec.network_class is not None and before.driver is None:
        return Lack(
            "NetworkClassNotFound",
            f"There is no NetworkClass {spec.network_class}. What there is: kubectl get networkclasses.",
        )
    if offered is not None and before.driver is None:
        if offered.deleting:
            return Lack(
                "NetworkClassNotFound",
                f"NetworkClass {offered.name} is being deleted. What there is: kubectl get networkclasses.",
            )
        allowed = offered.spec.allowed_namespaces
        if allowed and network.namespace not in allowed:
            return Lack(
                "NetworkClassNotAllowed",
                f"NetworkClass {offered.name} may not be used in namespace {network.namespace}: take another one, or ask"
                " the operator.",
            )
    offer = offered.spec if offered is not None else NetworkClassSpec()
    vlans = _vlans(scope, offer)
    if isinstance(vlans, Lack):
        return vlans
    if vlans is not None and scope.physical is not None:
        most, what = scope.physical.spec.mtu, f"PhysicalNetwork {scope.physical.name}"
    else:
        most, what = carried(offer.mtu or UNDERLAY_MTU, over_v6=scope.over_v6), "the hosts' own network"
    if spec.mtu is not None and spec.mtu > most:
        return Lack(
            "MtuTooLarge", f"spec.mtu is {spec.mtu}; {what} carries packets of {most} bytes for it: take that or less."
        )
    # A changed class never makes packets larger behind the guests' backs; smaller they must become.
    mtu = spec.mtu or min(before.mtu or most, most)
    if mtu < V6_LEAST and not all(map(is_v4, spec.cidrs)):
        return Lack("MtuTooSmall", f"IPv6 needs packets of {V6_LEAST} bytes, and the network carries {mtu}.")
    return Wanted(offer, mtu, vlans)


def _vlans(scope: Scope, offer: NetworkClassSpec) -> Pool | Lack | None:
    """The VLANs of which the network has one, or gets one; None when it is carried by tunnels."""
    network, physical = scope.network, scope.physical
    name = physical_name(network, scope.offered)
    if name is None:
        return None
    if physical is None:
        goes_on = " What hosts have of it goes on; no other host gets it." if network.status.numbered else ""
        return Lack(
            "PhysicalNetworkNotFound",
            f"Its VLAN is one of PhysicalNetwork {name}, which is not there: ask the operator to make it.{goes_on}",
        )
    if physical.deleting and not network.status.numbered:
        return Lack("PhysicalNetworkNotFound", f"PhysicalNetwork {name} is being deleted: take another class.")
    offered = scope.offered.name if scope.offered is not None else ""
    return pool(physical, offer, offered, external=scope.external_vlans, own=scope.own_vlans)


def no_number(want: Wanted) -> Lack:
    """What is said when all numbers are in use, or none was ever given."""
    if want.pool is None:
        return Lack("NoNumberLeft", "All numbers of VXLANs are in use: delete networks.")
    given = want.pool
    if not given.vlans:
        return Lack(
            "NoVlanLeft",
            f"There is no VLAN for it: {given.where} names {given.ranges}"
            f"{'' if given.ranges == 'none' else ', all of which are of external networks or of other classes'}. Ask the"
            " operator to name some there. It goes on by itself then.",
        )
    which = f"the VLAN {given.ranges}" if len(given.vlans) == 1 else f"all {len(given.vlans)} VLANs ({given.ranges})"
    return Lack(
        "NoVlanLeft",
        f"Other networks have {which} that {given.where} gives: delete networks, or ask the operator to name more there. It"
        " goes on by itself then.",
    )


def derive_status(
    scope: Scope, want: Wanted | None, lack: Lack | None, vni: int | None, now: str, *, vlan: int | None = None
) -> NetworkStatus:
    """The whole status. It has one of the numbers, or none yet."""
    network, before = scope.network, scope.network.status
    made = want is not None and (vni is not None or vlan is not None)
    found: list[Fact]
    if network.deleting:
        phase, found = "Terminating", facts(_going(scope), "Terminating")
    elif lack is not None:
        phase, found = "Failed" if lack.stalled else "Pending", facts(lack, "")
    elif not made:
        phase, found = "Pending", facts(Lack("Pending", "Its number is being claimed.", stalled=False), "")
    else:
        phase, found = "Ready", facts(None, "Ready", "Machines can have interfaces in it.")
    if not network.deleting:
        found += [fact for fact in (_withdrawn(scope), _idle(network)) if fact is not None]
    known = ranges(network)
    generation = network.metadata.generation
    return NetworkStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, found, generation=generation, now=now),
        phase=phase,
        vni=vni if vni is not None else before.vni,
        vlan=vlan if vlan is not None else before.vlan,
        physical_network=before.physical_network
        or (want.pool.physical if want is not None and made and want.pool is not None else None),
        mtu=want.mtu if want is not None and made else before.mtu,
        driver=before.driver or (want.offer.driver if want is not None and made else None),
        gateways=tuple(str(item.gateway) for item in known),
        services=tuple(str(item.service) for item in known),
        allocated=scope.claims,
        hosts=len(scope.hosts),
    )


def _withdrawn(scope: Scope) -> Fact | None:
    """Who uses what he may not use any more. It goes on, for nobody takes networks or addresses from machines that run."""
    network, offered = scope.network, scope.offered
    if offered is not None and network.status.driver is not None:
        allowed = offered.spec.allowed_namespaces
        if allowed and network.namespace not in allowed:
            return Fact(
                "Allowed",
                False,
                "NetworkClassNotAllowed",
                f"NetworkClass {offered.name} may not be used in namespace {network.namespace} any more. The network goes on;"
                " another one cannot be made of it.",
            )
    if network.spec.type is not NetworkType.SHARED:
        return None
    strangers = [item for item in scope.interfaces if not at_home(item) and not permits(network, item.namespace)]
    if not strangers:
        return None
    return Fact(
        "Allowed",
        False,
        "NamespaceNotAllowed",
        f"Interfaces of namespaces that spec.allowedNamespaces does not name go on in it"
        f" ({names(strangers, network.namespace)}): delete them, or name their namespaces.",
    )


def _idle(network: Network) -> Fact | None:
    """Ranges of its own that give no addresses."""
    idle = idle_ranges(network)
    if not idle:
        return None
    said = f"spec.dhcp.ranges{', '.join(idle)}: correct it. Addresses are given of the others, as far as there are any."
    return Fact("RangesUsable", False, "RangeOutside", said)


def _going(scope: Scope) -> Lack:
    if scope.network.paused:
        return left_alone("network", scope.network.name)
    if scope.interfaces:
        count = len(scope.interfaces)
        which = names(scope.interfaces, scope.network.namespace)
        return Lack(
            "InUse",
            f"It has {count} {'interface' if count == 1 else 'interfaces'} ({which}): delete the machines and load"
            " balancers that have them, and those that are left: kubectl delete nic",
        )
    if scope.routers:
        return Lack(
            "InUse",
            f"Router {', '.join(scope.routers)} has it: take it out of that router's spec.networks, or delete the router.",
        )
    if scope.balancers:
        return Lack("InUse", f"LoadBalancer {', '.join(scope.balancers[:5])} is in it: delete that.")
    if scope.hosts:
        some = ", ".join(scope.hosts[:5]) + (", ..." if len(scope.hosts) > 5 else "")
        return Lack(
            "Terminating",
            f"It is being removed from {'host' if len(scope.hosts) == 1 else 'hosts'} {some}. If one of them is gone for good,"
            " the operator removes it: kumulusctl host remove <host> --force-detach",
            stalled=False,
        )
    return Lack("Terminating", "It is being removed.", stalled=False)


def usable(network: Network | None, namespace: str | None, name: str, foreign: str | None) -> Lack | None:
    """Why an interface of `namespace` cannot be in that network; None when it can.

    `foreign` is the namespace that it names for the network. Who may not use a network of another namespace does not
    learn whether there is one.
    """
    if foreign is not None and foreign != namespace and (network is None or not permits(network, namespace)):
        return Lack(
            "NetworkNotAllowed",
            f"There is no Network {name} in namespace {foreign} that may be used in namespace {namespace}: it has to be of"
            f" the type Shared, and its owner has to name {namespace} in its spec.allowedNamespaces.",
        )
    if network is None:
        return Lack("NetworkNotFound", f"There is no Network {name} in the namespace.")
    if network.deleting:
        return Lack("NetworkDeleting", f"Network {name} is being deleted.")
    if network.status.mtu is None or not network.status.numbered or network.status.driver is None:
        ready = network.status.condition("Ready")
        why = f": {ready.message}" if ready is not None and ready.message else "."
        return Lack("NetworkNotReady", f"Network {name} is not ready{why}", stalled=False)
    return None


def is_default(offered: NetworkClass, classes: Iterable[NetworkClass]) -> Lack | None:
    """Why a class that says that it is the default one is not; None when it is, or does not say so."""
    if not offered.spec.default:
        return None
    first = min((item.name for item in classes if item.spec.default and not item.deleting), default=offered.name)
    if first == offered.name:
        return None
    return Lack(
        "AnotherIsDefault",
        f"NetworkClass {first} is the default one as well, and is taken, because its name comes first: set spec.default of"
        " one of them to false.",
    )
