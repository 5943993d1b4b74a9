"""Filters: may this machine run on that host? None, or why not in a few words.

Third parties add their own in the entry point group `kumulus.placement.filters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kumulus.api.placement import TaintEffect
from kumulus_controllers.planning import hardware, ways
from kumulus_controllers.planning.labels import said
from kumulus_controllers.planning.pools import choose
from kumulus_controllers.planning.views import HostView, Load, Request

Filter = Callable[[Request, HostView, Load], str | None]

NO_CPUS = "without enough CPUs"
NO_MEMORY = "without enough memory"


def is_open(request: Request, host: HostView, load: Load) -> str | None:
    """The host takes machines at all."""
    return host.closed


def namespaces(request: Request, host: HostView, load: Load) -> str | None:
    """The host is for machines of that namespace, or for everybody's."""
    if request.namespace is None or not host.namespaces or request.namespace in host.namespaces:
        return None
    return "for other namespaces only"


def barred(request: Request, host: HostView, load: Load) -> str | None:
    """The host comes into question for who asks."""
    return request.barred.get(host.name)


def zone(request: Request, host: HostView, load: Load) -> str | None:
    """The machine's zone, when it asks for one."""
    return None if request.zone is None or request.zone == host.zone else "in another zone"


def selector(request: Request, host: HostView, load: Load) -> str | None:
    """Every label the machine asks for."""
    for key, value in request.selector.items():
        if host.labels.get(key) != value:
            return f"without label {key}={value}"
    return None


def labels(request: Request, host: HostView, load: Load) -> str | None:
    """What the machine's host affinity requires."""
    wanted = request.rules.hosts
    if not wanted or any(map(host.has, wanted)):
        return None
    return f"not of the labels that hostAffinity asks for ({' or '.join(map(said, wanted))})"


def taints(request: Request, host: HostView, load: Load) -> str | None:
    """No NoSchedule taint that the machine does not tolerate."""
    for taint in host.taints:
        if taint.effect is TaintEffect.NO_SCHEDULE and not any(t.tolerates(taint) for t in request.tolerations):
            return f"with taint {taint.key}" + (f"={taint.value}" if taint.value else "")
    return None


def cpus(request: Request, host: HostView, load: Load) -> str | None:
    """Enough virtual CPUs left to promise."""
    return None if load.cpus + request.demand.cpus <= host.cpus else NO_CPUS


def memory(request: Request, host: HostView, load: Load) -> str | None:
    """Enough memory left to promise."""
    return None if load.memory + request.demand.memory <= host.memory else NO_MEMORY


def storage(request: Request, host: HostView, load: Load) -> str | None:
    """Pools that take the machine's disks and the volumes that have no place yet."""
    if request.demand.disk == 0 and not request.volumes:
        return None
    chosen = choose(host, load, request.demand.disk, request.volumes, request.namespace)
    return chosen if isinstance(chosen, str) else None


def bound(request: Request, host: HostView, load: Load) -> str | None:
    """The machine's volumes are there. Data that is local to a host pins its machine to it."""
    for volume, where in request.bound.items():
        if where != host.name:
            return f"without volume {volume}, which is on host {where}"
    return None


def shared(request: Request, host: HostView, load: Load) -> str | None:
    """The host can use the pools of the machine's volumes that hosts share."""
    for volume, wanted in request.shared.items():
        if not any(pool.ref.uid == wanted.uid and pool.usable for pool in host.pools):
            return f"without storage pool {wanted.name} ready, which volume {volume} is in"
    return None


def network(request: Request, host: HostView, load: Load) -> str | None:
    """What makes the machine's networks works there."""
    for driver in sorted(request.networks - host.networks):
        why = f" ({host.network_lack.rstrip('.')})" if host.network_lack else ""
        return f"without network driver {driver}{why}"
    return None


def vlans(request: Request, host: HostView, load: Load) -> str | None:
    """The VLANs of the machine's networks come there."""
    for way in request.ways:
        if (why := ways.lack(way, host.labels, host.uplinks)) is not None:
            return why
    return None


def made_of(request: Request, host: HostView, load: Load) -> str | None:
    """The processor, the board, the firmware and the devices that the machine asks for."""
    return hardware.lack(host, request.cpu_model, request.machine_type, request.features)


BUILT_IN: Mapping[str, Filter] = {
    "open": is_open,
    "namespaces": namespaces,
    "barred": barred,
    "zone": zone,
    "bound": bound,
    "shared": shared,
    "network": network,
    "vlans": vlans,
    "selector": selector,
    "labels": labels,
    "taints": taints,
    "hardware": made_of,
    "cpus": cpus,
    "memory": memory,
    "storage": storage,
}
"""In the order in which they are asked: the first that refuses names the reason."""

ROOM = ("cpus", "memory", "storage")
"""Those that are about room, which are asked last, after those of third parties: room comes and goes."""

STANDING = ("namespaces", "selector", "labels", "taints")
"""Those that say of a host, whatever is on it, that a machine should not be there."""
