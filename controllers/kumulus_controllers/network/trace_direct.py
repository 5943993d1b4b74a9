"""Whether a guest's own host passes a packet on to another network of its router, without a gateway. Pure."""

from __future__ import annotations

from kumulus.api.addresses import Address
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.order_names import segment_order_name
from kumulus.api.trace import Need, Scene, Step, Verdict
from kumulus_controllers.network import distributed_plan, trace_ends
from kumulus_controllers.network.routing import targets
from kumulus_controllers.network.trace_filter import undone
from kumulus_controllers.network.trace_router import Routed


def goal(
    scene: Scene, found: Routed, inside: Network, nic: NetworkInterface, source: Address | None, target: Address
) -> Network | None:
    """The network that the guest's host passes it to by itself; None when it goes to a gateway. Both ways let the same through,
    but this one needs nobody else."""
    there, host = found.network_with(target), nic.status.host
    if found.partial or there is None or there.uid == inside.uid or host is None or source is None:
        return None
    if distributed_plan.router_of(inside, [found.router]) is None or {inside.uid, there.uid} & scene.partial:
        return None
    if (inside.status.mtu or 0) > (there.status.mtu or 0) or not _has(scene, found, there, host):
        return None
    if not (_direct(scene, inside, source) and _direct(scene, there, target)):
        return None
    return there if all(_told(scene, found, need) for need in needs(inside, there, host)) else None


def needs(inside: Network, there: Network, host: str) -> tuple[Need, Need]:
    """The orders that say whether the host does so."""
    return (host, segment_order_name(inside.uid)), (host, segment_order_name(there.uid))


def step(found: Routed, inside: Network, there: Network, host: str) -> Step:
    """What is to be said of it."""
    name = found.router.name
    said = f"Host {host} passes it on from Network {inside.name} to Network {there.name} of Router {name}, without a gateway."
    if found.router.status.active_host is None:
        said = f"{said[:-1]}, if the guest knows one from before: no host says that it routes now."
        return Step("Router", Verdict.UNKNOWN, said, f"router/{name}")
    return Step("Router", Verdict.PASSES, said, f"router/{name}")


def _has(scene: Scene, found: Routed, network: Network, host: str) -> bool:
    """Whether the host has the network: for a machine, or for the router itself."""
    status = found.router.status
    return host in (status.active_host, *status.standby_hosts) or any(
        nic.status.host == host for nic in trace_ends.in_network(scene, network)
    )


def _direct(scene: Scene, network: Network, address: Address) -> bool:
    interfaces = trace_ends.in_network(scene, network)
    floats = {(one.namespace, name) for one in scene.floating for name in targets(one)}
    translated = {nic.uid for nic in interfaces if (nic.namespace, nic.name) in floats}
    return any(address in end.addresses for end in distributed_plan.direct(network, interfaces, translated))


def _told(scene: Scene, found: Routed, need: Need) -> bool:
    """Whether the host is told to, and says that it does; True where the user may not see it."""
    if scene.orders is None:
        return True
    if (order := scene.orders.get(need)) is None:
        return False
    told, facts = order.spec.segment, order.status.segment
    does = facts is not None and facts.router == found.router.uid
    return told is not None and told.router is not None and does and undone(order) is None
