"""Which pools of a host take a machine's disks and volumes: all of them, or none. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kumulus.api.pool_order import PoolRef
from kumulus.api.quantity import rounded
from kumulus_controllers.planning.views import HostView, Load, PoolView, VolumeDemand

NO_POOL = "without a storage pool that is ready"
NO_SPACE = "without enough disk space"


@dataclass(frozen=True, slots=True)
class Pools:
    """A pool for everything."""

    own: PoolRef | None = None
    """For the machine's own disks; None when it has none."""
    volumes: Mapping[str, PoolRef] = field(default_factory=dict)
    """By uid of volume."""


def choose(
    host: HostView, load: Load, own: int, volumes: Sequence[VolumeDemand], namespace: str | None = None
) -> Pools | str:
    """A pool for each, the one with the most room left, the largest first; or why not, in a few words.

    `own` is what the machine's own disks take together, in bytes; 0 for none. `namespace` is whose they are.
    """
    left = {pool.ref.uid: pool.promisable - load.promised(pool.ref) for pool in host.pools}

    def take(size: int, suiting: Sequence[PoolView], missing: str) -> PoolRef | str:
        allowed = [pool for pool in suiting if pool.admits(namespace)]
        fitting = [pool for pool in allowed if pool.stops_at is None]
        if not suiting:
            return missing
        if not allowed:
            return _not_allowed(suiting, namespace)
        if not fitting:
            return _stopped(allowed)
        best = max(fitting, key=lambda pool: left[pool.ref.uid])
        if left[best.ref.uid] < size:
            return NO_SPACE
        left[best.ref.uid] -= size
        return best.ref

    ready = [pool for pool in host.pools if pool.open]
    own_pool = take(own, ready, NO_POOL) if own else None
    if isinstance(own_pool, str):
        return own_pool
    chosen: dict[str, PoolRef] = {}
    for volume in sorted(volumes, key=lambda item: (-item.size, item.uid)):
        found = take(volume.size, [pool for pool in ready if suits(pool, volume)], _missing(volume))
        if isinstance(found, str):
            return found
        chosen[volume.uid] = found
    return Pools(own_pool, chosen)


def refuge(
    host: HostView, load: Load, volume: VolumeDemand, here: PoolRef, namespace: str | None = None
) -> PoolRef | str:
    """Another pool of the host for a volume that cannot stay in `here`, or why there is none, in a few words.

    One that hosts share goes into another such pool if there is one, and one that is the host's own into another of that
    kind: what its owner may do with it stays as it is.
    """
    wanted = replace(volume, pool=None)
    others = [pool for pool in host.pools if pool.ref.uid != here.uid]
    for candidates in ([pool for pool in others if pool.ref.shared == here.shared], others):
        chosen = choose(replace(host, pools=tuple(candidates)), load, 0, (wanted,), namespace)
        if isinstance(chosen, Pools):
            return chosen.volumes[volume.uid]
    assert isinstance(chosen, str)
    if chosen != NO_SPACE:
        return chosen
    best = max(
        (pool for pool in others if pool.open and suits(pool, wanted) and pool.admits(namespace) and not pool.stops_at),
        key=lambda pool: pool.promisable - load.promised(pool.ref),
    )
    left = max(best.promisable - load.promised(best.ref), 0)
    return f"{NO_SPACE} (pool {best.ref.name} has {rounded(left)} left to promise, it needs {rounded(volume.size)})"


def suits(pool: PoolView, volume: VolumeDemand) -> bool:
    """Whether the volume may be in that pool."""
    return (volume.pool is None or volume.pool == pool.ref.name) and all(
        pool.labels.get(key) == value for key, value in volume.selector.items()
    )


def _not_allowed(pools: Sequence[PoolView], namespace: str | None) -> str:
    names = ", ".join(sorted(pool.ref.name for pool in pools))
    return f"with storage pool {names} not allowed for namespace {namespace}"


def _stopped(pools: Sequence[PoolView]) -> str:
    first = min(pools, key=lambda pool: pool.ref.name)
    return f"with storage pool {first.ref.name} filled to {first.stops_at}%, from which it takes nothing new"


def _missing(volume: VolumeDemand) -> str:
    if volume.pool is not None:
        return f"without storage pool {volume.pool} ready"
    if volume.selector:
        labels = ",".join(f"{key}={value}" for key, value in sorted(volume.selector.items()))
        return f"without a ready storage pool labelled {labels}"
    return NO_POOL
