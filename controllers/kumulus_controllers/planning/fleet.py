"""All hosts and what is promised on them, kept in the orders that profiles ask for.

Placing looks at hosts best first and stops when it has seen enough that fit, so a decision costs
the same with 10 hosts and with 10,000; only a refusal looks at all, to give its reasons. Whoever
places also assigns, without awaiting in between: that is the reservation, and why there is no race.
In memory only: it is rebuilt from what the API server has whenever a process begins to lead.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from kumulus.api.affinity import HOSTNAME
from kumulus.api.placement import Profile
from kumulus.api.pool_order import PoolRef
from kumulus.api.quantity import rounded
from kumulus_controllers.planning.filters import BUILT_IN, STANDING, Filter
from kumulus_controllers.planning.neighbours import Neighbours, neighbours
from kumulus_controllers.planning.opinions import Opinions, lacking
from kumulus_controllers.planning.pools import Pools, choose
from kumulus_controllers.planning.residents import Resident, Residents
from kumulus_controllers.planning.scorers import Scorer
from kumulus_controllers.planning.views import (
    Demand,
    HostView,
    Judgement,
    Load,
    Moving,
    Placement,
    PoolView,
    Refusal,
    Request,
    Verdict,
    Why,
)

ENOUGH = 8
"""So many fitting hosts are scored; the profile's order has the best of them first."""

PLACES_MOST = 256
"""So many answers are kept to which places there are for a machine."""

_Rank = tuple[float, float, str]


def _room(host: HostView, load: Load) -> _Rank:
    return (-float(host.memory - load.memory), -float(host.cpus - load.cpus), host.name)


def _share(host: HostView, load: Load) -> _Rank:
    memory = load.memory / host.memory if host.memory else 1.0
    cpus = load.cpus / host.cpus if host.cpus else 1.0
    return (max(memory, cpus), memory + cpus, host.name)


def _said(cpus: int, memory: int) -> str:
    return f"{cpus} CPU{'' if cpus == 1 else 's'} and {rounded(memory)}"


def _standing(host: HostView) -> tuple[object, ...]:
    """What of a host decides which machines could be on it, whatever is on it."""
    return (host.closed is None, host.zone, host.labels, host.taints, host.namespaces)


class _Order:
    """Hosts sorted by a rank, kept up to date one host at a time."""

    def __init__(self, rank: Callable[[HostView, Load], _Rank]) -> None:
        self._rank = rank
        self._sorted: list[_Rank] = []
        self._of: dict[str, _Rank] = {}

    def put(self, host: HostView, load: Load) -> None:
        rank = self._rank(host, load)
        if self._of.get(host.name) == rank:
            return
        self.drop(host.name)
        bisect.insort(self._sorted, rank)
        self._of[host.name] = rank

    def drop(self, name: str) -> None:
        rank = self._of.pop(name, None)
        if rank is not None:
            del self._sorted[bisect.bisect_left(self._sorted, rank)]

    def names(self, *, backwards: bool = False) -> Iterator[str]:
        return (rank[2] for rank in (reversed(self._sorted) if backwards else self._sorted))


class Fleet:
    """Hosts, promises, decisions. Changes are announced to `on_change` with the host's name."""

    def __init__(
        self,
        filters: Mapping[str, Filter] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        on_change: Callable[[str], None] | None = None,
        on_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        self._opinions = Opinions(filters, scorers, on_fault)
        self._on_change = on_change
        self._residents = Residents(self._located)
        self._places: dict[tuple[object, ...], frozenset[str]] = {}
        self._hosts: dict[str, HostView] = {}
        self._everywhere: dict[str, int] = {}
        """Bytes by pool uid that are promised on all hosts together; every load refers to it."""
        self._unloaded = Load(everywhere=self._everywhere)
        self._loads: dict[str, Load] = {}
        self._pools: dict[str, dict[str, PoolView]] = {}
        self._promises: dict[str, tuple[str, Demand, str | None]] = {}
        self._larger: dict[str, Demand] = {}
        """What machines are promised by `enlarging`."""
        self._imports: set[tuple[str, str]] = set()
        self._volumes: dict[str, tuple[str, str, int]] = {}
        self._moves: dict[str, Moving] = {}
        self._leaving: Counter[tuple[str, str]] = Counter()
        """How many volumes are copied out of a pool, by host and uid of the pool."""
        self._by_room = _Order(_room)
        self._by_share = _Order(_share)

    def put_host(self, host: HostView) -> None:
        """Take in a host, new or changed. Its pools are kept apart (`put_pool`)."""
        pools = tuple(self._pools.get(host.name, {}).values())
        before = self._hosts.get(host.name)
        after = self._hosts[host.name] = replace(host, pools=pools)
        self._sort(host.name)
        if before is None or _standing(before) != _standing(after):
            self._places.clear()
        if before is None or before.labels != after.labels:
            self._residents.recount()

    def drop_host(self, name: str) -> None:
        """Forget a host; promises on it stay until they are released."""
        self._hosts.pop(name, None)
        self._by_room.drop(name)
        self._by_share.drop(name)
        self._places.clear()
        self._residents.recount()

    def put_machine(self, machine: Resident) -> None:
        """Take in what rules of other machines may ask of a machine, placed or not."""
        self._residents.put(machine)

    def drop_machine(self, uid: str) -> None:
        """Its object is gone. It counts while it has a promise."""
        self._residents.drop(uid)

    def _located(self, host: str, key: str) -> str | None:
        view = self._hosts.get(host)
        if view is None:
            return host if key == HOSTNAME else None
        return view.labels.get(key)

    def put_pool(self, host: str, pool: PoolView) -> None:
        """Take in a pool on a host, new or changed."""
        self._pools.setdefault(host, {})[pool.ref.uid] = pool
        self._renew_pools(host)

    def drop_pool(self, host: str, pool_uid: str) -> None:
        """Forget a pool on a host."""
        self._pools.get(host, {}).pop(pool_uid, None)
        self._renew_pools(host)

    def _renew_pools(self, host: str) -> None:
        if host in self._hosts:
            self._hosts[host] = replace(self._hosts[host], pools=tuple(self._pools.get(host, {}).values()))

    def host(self, name: str) -> HostView | None:
        """A host, as placement sees it."""
        return self._hosts.get(name)

    def load(self, name: str) -> Load:
        """What is promised on a host."""
        return self._loads.get(name, self._unloaded)

    def where(self, uid: str) -> str | None:
        """The host on which a machine has a promise."""
        promise = self._promises.get(uid)
        return promise[0] if promise else None

    def promised(self, uid: str) -> Demand | None:
        """What is promised to a machine, wherever."""
        promise = self._promises.get(uid)
        return promise[1] if promise else None

    def assign(self, uid: str, host: str, demand: Demand, pool_uid: str | None) -> None:
        """Promise `demand` on `host` to the machine `uid`, in place of an earlier promise to it."""
        if (larger := self._larger.get(uid)) is not None:
            demand = replace(demand, cpus=max(demand.cpus, larger.cpus), memory=max(demand.memory, larger.memory))
        promise = (host, demand, pool_uid)
        if self._promises.get(uid) == promise:
            return
        before = self._promises.pop(uid, None)
        if before is not None:
            self._add(*before, -1)
        self._promises[uid] = promise
        self._add(host, demand, pool_uid, 1)
        self._residents.place(uid, host)

    @contextmanager
    def enlarging(self, uid: str, cpus: int, memory: int) -> Iterator[str | None]:
        """Promise a machine at least that many CPUs and bytes of memory where it is, whatever is assigned inside; yields why
        its host has no room for that. Who leaves has written it down, and what is assigned counts again; who raises has not,
        and what was promised before does. Nothing promised: nothing."""
        promise = self._promises.get(uid)
        lack = None if promise is None else self._lack(promise, cpus, memory)
        if promise is None or lack is not None:
            yield lack
            return
        host, demand, pool_uid = promise
        self._larger[uid] = Demand(cpus, memory)
        self.assign(uid, host, demand, pool_uid)
        try:
            yield None
        except BaseException:
            del self._larger[uid]
            if self.where(uid) == host:
                self.assign(uid, host, demand, pool_uid)
            raise
        del self._larger[uid]

    def _lack(self, promise: tuple[str, Demand, str | None], cpus: int, memory: int) -> str | None:
        name, demand, _ = promise
        host, load = self._hosts.get(name), self.load(name)
        if host is None:
            return f"host {name} is gone"
        left_cpus, left_memory = max(host.cpus - load.cpus, 0), max(host.memory - load.memory, 0)
        if cpus - demand.cpus <= left_cpus and memory - demand.memory <= left_memory:
            return None
        left, own = _said(left_cpus, left_memory), _said(demand.cpus, demand.memory)
        return f"its host {name} has {left} left beside the {own} that are its own"

    def release(self, uid: str) -> None:
        """Take back what is promised to a machine. Nothing promised: nothing."""
        self._take_back(uid)

    def _take_back(self, uid: str) -> None:
        promise = self._promises.pop(uid, None)
        if promise is not None:
            self._add(*promise, -1)
            self._residents.release(uid)

    def keep(self, volume_uid: str, host: str, pool_uid: str, size: int) -> None:
        """Promise room for a volume in a pool on `host`, in place of an earlier promise to it. Bytes."""
        kept = (host, pool_uid, size)
        if self._volumes.get(volume_uid) == kept:
            return
        self.let_go(volume_uid)
        self._volumes[volume_uid] = kept
        self._fill(*kept)

    def let_go(self, volume_uid: str) -> None:
        """Take back what is promised to a volume. Nothing promised: nothing."""
        kept = self._volumes.pop(volume_uid, None)
        if kept is not None:
            host, pool_uid, size = kept
            self._fill(host, pool_uid, -size)

    def move(self, volume_uid: str, moving: Moving) -> None:
        """Promise room for a volume in the pool that it is brought into as well, in place of an earlier such promise."""
        if self._moves.get(volume_uid) == moving:
            return
        self.moved(volume_uid)
        self._moves[volume_uid] = moving
        self._leaving[moving.host, moving.source] += not moving.idle
        self._fill(moving.host, moving.target, moving.size)

    def moved(self, volume_uid: str) -> None:
        """It is brought nowhere any more. Nothing promised: nothing."""
        moving = self._moves.pop(volume_uid, None)
        if moving is not None:
            self._leaving[moving.host, moving.source] -= not moving.idle
            self._fill(moving.host, moving.target, -moving.size)

    def leaving(self, host: str, pool_uid: str, but: str) -> int:
        """How many volumes are copied out of a pool on a host just now, not counting `but`."""
        own = self._moves.get(but)
        counted = own is not None and not own.idle and (own.host, own.source) == (host, pool_uid)
        return self._leaving[host, pool_uid] - counted

    def begin_import(self, image_uid: str, pool_uid: str) -> bool:
        """Whether the caller may order the image into a pool that hosts share: nobody else is just about to.

        Who may says when the order is made, or not: `end_import`.
        """
        if (image_uid, pool_uid) in self._imports:
            return False
        self._imports.add((image_uid, pool_uid))
        return True

    def end_import(self, image_uid: str, pool_uid: str) -> None:
        """The order that was begun is made, and seen by whoever looks for it, or it failed."""
        self._imports.discard((image_uid, pool_uid))

    def using(self, pool_uid: str) -> list[str]:
        """Names of the hosts that take machines and can use the pool, by name. Looks at every host."""
        return sorted(
            host.name
            for host in self._hosts.values()
            if host.closed is None and any(pool.ref.uid == pool_uid and pool.usable for pool in host.pools)
        )

    def kept(self, volume_uid: str) -> tuple[str, str] | None:
        """Host and uid of the pool that have room promised to a volume."""
        kept = self._volumes.get(volume_uid)
        return (kept[0], kept[1]) if kept else None

    def _fill(self, host: str, pool_uid: str, size: int) -> None:
        load = self.load(host)
        self._loads[host] = replace(load, disks={**load.disks, pool_uid: load.disks.get(pool_uid, 0) + size})
        self._everywhere[pool_uid] = self._everywhere.get(pool_uid, 0) + size
        if self._on_change is not None:
            self._on_change(host)

    def _add(self, host: str, demand: Demand, pool_uid: str | None, sign: int) -> None:
        load = self.load(host)
        disks = dict(load.disks)
        if pool_uid is not None:
            disks[pool_uid] = disks.get(pool_uid, 0) + sign * demand.disk
            self._everywhere[pool_uid] = self._everywhere.get(pool_uid, 0) + sign * demand.disk
        self._loads[host] = replace(
            load,
            cpus=load.cpus + sign * demand.cpus,
            memory=load.memory + sign * demand.memory,
            machines=load.machines + sign,
            disks=disks,
        )
        self._sort(host)
        if self._on_change is not None:
            self._on_change(host)

    def _sort(self, name: str) -> None:
        host = self._hosts.get(name)
        if host is not None:
            load = self.load(name)
            self._by_room.put(host, load)
            self._by_share.put(host, load)

    def _ordered(self, profile: Profile) -> Iterator[str]:
        if profile is Profile.SPREAD:
            return self._by_room.names()
        return self._by_share.names(backwards=profile is Profile.PACK)

    def place(self, request: Request) -> Placement | Refusal:
        """Where the machine goes, or per reason which hosts refused it. Promises nothing: `assign` does.

        What the machine prefers comes first, what scorers say second, the profile third.
        """
        beside = self._beside(request)
        reachable, liked = (beside.reachable if beside is not None else 0.0), 0.0
        fitting: list[HostView] = []
        for name in self._ordered(request.profile):
            host = self._hosts[name]
            liking = beside.liking(host) if beside is not None else 0.0
            if fitting and (liking < liked or (liking == liked and len(fitting) == ENOUGH)):
                continue
            if beside is not None and beside.refuses(host):
                continue
            if self._opinions.refuse(request, host, self.load(name)):
                continue
            if liking > liked:
                fitting.clear()
            liked = liking
            fitting.append(host)
            if len(fitting) == ENOUGH and liked >= reachable:
                break
        if not fitting:
            return self._explain(request, beside)
        best = max(fitting, key=lambda host: self._score(request, host))
        pools = choose(best, self.load(best.name), request.demand.disk, request.volumes, request.namespace)
        assert isinstance(pools, Pools), "the storage filter let it through"
        return Placement(best.name, pools.own, pools.volumes)

    def _beside(self, request: Request) -> Neighbours | None:
        return neighbours(request, self._residents, lambda key: self._places_of(request, key))

    def _places_of(self, request: Request, key: str) -> frozenset[str]:
        """Values of a topology key on hosts that the machine could be on, whatever is on them. Kept until hosts change."""
        rules = request.rules.hosts
        wanted = tuple(sorted(request.selector.items()))
        asked = (key, request.namespace, request.zone, wanted, request.tolerations, rules)
        found = self._places.get(asked)
        if found is None:
            if len(self._places) > PLACES_MOST:
                self._places.clear()
            values = (host.labels.get(key) for host in self._hosts.values() if self._could(request, host))
            found = self._places[asked] = frozenset(value for value in values if value is not None)
        return found

    def _could(self, request: Request, host: HostView) -> bool:
        return host.closed is None and request.zone in (None, host.zone) and not self.unsuited(request, host)

    def unsuited(self, request: Request, host: HostView) -> list[Why]:
        """What of the host itself, whatever is on it, is against a machine that is there, or could be."""
        found = (BUILT_IN[name](request, host, self._unloaded) for name in STANDING)
        return [Why(reason) for reason in found if reason is not None]

    def unsatisfied(self, request: Request) -> list[Why]:
        """Which rules a machine breaks where it is: of the host, and of other machines. None for one without a place."""
        name = self.where(request.uid)
        host = self._hosts.get(name) if name is not None else None
        if host is None:
            return []
        beside = self._beside(request)
        return [*self.unsuited(request, host), *(beside.against(host) if beside is not None else ())]

    def fits(self, request: Request, host: HostView) -> bool:
        """Whether a host takes a machine, which may be on another one now."""
        return next(self._opinions.against(request, host, self.load(host.name), self._beside(request)), None) is None

    def _score(self, request: Request, host: HostView) -> float:
        return sum(self._opinions.scores(request, host, self.load(host.name)).values())

    def judge(self, request: Request) -> Judgement:
        """What is thought of every host: all that is against it, and what is for it. The first that fits is where `place` puts it,
        but for hosts beyond those that `place` scores. Looks at every host."""
        beside, verdicts = self._beside(request), []
        for name in self._ordered(request.profile):
            host, load = self._hosts[name], self.load(name)
            whys = tuple(
                replace(why, detail=why.detail or lacking(why.reason, request, {name: (host, load)}))
                for why in self._opinions.against(request, host, load, beside)
            )
            liking = beside.liking(host) if beside is not None else 0.0
            verdicts.append(Verdict(name, whys, liking, {} if whys else self._opinions.scores(request, host, load)))
        verdicts.sort(key=lambda v: (bool(v.whys), v.host) if v.whys else (False, -v.liking, -sum(v.scores.values())))
        return Judgement(tuple(verdicts), beside.most if beside is not None else 0.0)

    def pool_for(
        self, demand: Demand, host: HostView, uid: str | None = None, namespace: str | None = None
    ) -> PoolRef | None:
        """The pool on that host with the most room left, or the one that is promised to the machine `uid` already;
        None when the machine has no disks, or no pool takes those of its namespace."""
        if demand.disk == 0:
            return None
        load = self.load(host.name)
        fitting = [pool for pool in host.pools if pool.open and pool.admits(namespace)]
        promised = self._promises.get(uid) if uid else None
        if promised is not None and promised[0] == host.name:
            kept = next((pool.ref for pool in fitting if pool.ref.uid == promised[2]), None)
            if kept is not None:
                return kept
        fitting = [pool for pool in fitting if pool.stops_at is None]
        if not fitting:
            return None
        return max(fitting, key=lambda pool: pool.promisable - load.promised(pool.ref)).ref

    def _explain(self, request: Request, beside: Neighbours | None) -> Refusal:
        reasons: dict[str, list[str]] = {}
        details: dict[str, dict[str, str]] = {}
        for host in self._hosts.values():
            why = next(self._opinions.against(request, host, self.load(host.name), beside), Why("fit"))
            reasons.setdefault(why.reason, []).append(host.name)
            if why.detail:
                details.setdefault(why.reason, {})[host.name] = why.detail
        notes = {
            reason: lacking(reason, request, {name: (self._hosts[name], self.load(name)) for name in names})
            for reason, names in reasons.items()
        }
        return Refusal(
            {reason: tuple(sorted(names)) for reason, names in reasons.items()}, len(self._hosts), details, notes
        )
