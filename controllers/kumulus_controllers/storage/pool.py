"""StoragePool: a work order on every host that can reach it, and what the hosts say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kumulus.api.base import FINALIZER, ObjectRef
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.order_names import pool_order_name
from kumulus.api.pool_order import PoolOrder
from kumulus.api.storage import PoolHost, StoragePool, StoragePoolStatus, Volume
from kumulus.kube.errors import AlreadyExists, KubeError, NotFound, NotLeading, Unreachable
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.fleet_feed import reached
from kumulus_controllers.orders import DISKS_IN, FOR_UID, IMAGES_IN, NAMESPACE, data_in, host_of, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.emptying import IN_POOL, Contents, emptied, image_name, in_pool
from kumulus_controllers.storage.eviction import Retention, in_use
from kumulus_controllers.storage.move_plan import MOVING
from kumulus_controllers.storage.pool_secrets import PoolSecrets
from kumulus_controllers.storage.presence import belongs, pool_ref, together

LISTED = 256
NAMED = 5
"""So many hosts are named in a message."""
PASS_SECONDS = 0.5
"""A pass looks at every host, so there are at most two a second."""

SETTLE_SECONDS = 5.0
"""Facts of many hosts are gathered for so long before the status is written."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    pool: StoragePool
    hosts: tuple[Host, ...]
    """Hosts on which the pool shall be."""
    orders: tuple[WorkOrder, ...]
    users: tuple[WorkOrder, ...] = ()
    """Work orders of machines that have disks in it, and of volumes."""
    promised: Mapping[str, int] = field(default_factory=dict)
    """Bytes that are promised in it, by host."""
    lack: str | None = None
    """What a driver needs and the operators have not provided."""
    contents: Contents = field(default_factory=Contents)
    """What is in it, looked at when it is to be emptied."""


def derive_status(scope: Scope, now: str) -> StoragePoolStatus:
    """The whole status from what was read. Pure."""
    hosts = []
    for order in sorted(scope.orders, key=host_of):
        facts = order.status.pool
        ready = order.status.state is WorkState.READY
        hosts.append(
            PoolHost(
                name=host_of(order),
                ready=ready,
                capacity=facts.capacity if facts else None,
                used=facts.used if facts else None,
                unowned=facts.unowned_count if facts else None,
                allocated=scope.promised.get(host_of(order), 0),
                access=facts.access if facts else None,
                reason=None if ready else order.status.reason,
                message=None if ready else order.status.message or "the agent has not answered yet",
            )
        )
    ready_hosts = [host for host in hosts if host.ready]
    if scope.pool.spec.maintenance:
        phase, fact = (
            "Maintenance",
            Fact(
                "Ready",
                False,
                "Maintenance",
                "The pool takes no new disks, and what can be moved leaves it (spec.maintenance): see Emptied.",
            ),
        )
    elif scope.lack is not None:
        phase, fact = "Pending", Fact("Ready", False, "SecretNotFound", scope.lack)
    elif not hosts:
        phase, fact = "Pending", Fact("Ready", False, "NoHosts", "No host matches the pool's zone and hostSelector.")
    elif not ready_hosts:
        phase = "Pending"
        reasons = {host.reason for host in hosts}
        reason = reasons.pop() if len(reasons) == 1 else None
        fact = Fact("Ready", False, reason or "NotReadyAnywhere", f"{hosts[0].name}: {hosts[0].message}")
    elif len(ready_hosts) < len(hosts):
        missing = [host for host in hosts if not host.ready]
        phase = "Degraded"
        fact = Fact(
            "Ready",
            True,
            "Degraded",
            f"Not ready on {len(missing)} of {len(hosts)} hosts; {missing[0].name}: {missing[0].message}",
        )
    else:
        ways = "".join(f" {way}" for way in sorted({host.access for host in hosts if host.access}))
        phase, fact = "Ready", Fact("Ready", True, "Ready", f"Ready on {len(hosts)} hosts.{ways}")
    facts_found = [fact, _accepts(scope), *_space_low(scope)]
    if (left := emptied(scope.pool, scope.contents)) is not None:
        facts_found.append(left)
    if scope.pool.deleting and scope.users:
        names = ", ".join(sorted(f"{o.spec.for_.namespace}/{o.spec.for_.name}" for o in scope.users)[:5])
        message = f"{len(scope.users)} machines and volumes have data in the pool ({names}): delete them first."
        facts_found.append(Fact("Stalled", True, "PoolInUse", message))
    generation = scope.pool.metadata.generation
    facts_of = [order.status.pool for order in scope.orders if order.status.pool is not None]
    return StoragePoolStatus(
        observed_generation=generation,
        conditions=derive(scope.pool.status.conditions, facts_found, generation=generation, now=now),
        phase=phase,
        capacity=together(scope.pool, [host.capacity or 0 for host in hosts]),
        used=together(scope.pool, [host.used or 0 for host in hosts]),
        allocated=together(scope.pool, [host.allocated or 0 for host in hosts]),
        unowned_files=sum(facts.unowned_count for facts in facts_of),
        unowned_bytes=sum(facts.unowned_bytes for facts in facts_of),
        ready_hosts=len(ready_hosts),
        hosts=tuple(hosts[:LISTED]),
    )


def _accepts(scope: Scope) -> Fact:
    """Whether new volumes and disks may come, and where not."""
    kind, at = "AcceptsVolumes", scope.pool.spec.thresholds.stop_new_volumes_at
    if scope.pool.deleting:
        return Fact(kind, False, "Deleting", "The pool is being deleted.")
    if scope.pool.spec.maintenance:
        return Fact(kind, False, "Maintenance", "The pool takes no new disks (spec.maintenance).")
    ready = [order for order in scope.orders if order.status.state is WorkState.READY]
    full = _beyond(ready, at)
    if not full:
        return Fact(kind, bool(ready), *(("Accepts", "New volumes may come.") if ready else ("NotReady", "See Ready.")))
    cure = "free space in it, give it more, or raise spec.thresholds.stopNewVolumesAt"
    where = f"On {len(full)} of {len(ready)} hosts it is filled to {at}% or more ({_some(full)})"
    if len(full) < len(ready):
        return Fact(kind, True, "OverThresholdOnSome", f"{where} and takes nothing new there: {cure}.")
    return Fact(kind, False, "OverThreshold", f"{where} and takes nothing new: {cure}.")


def _space_low(scope: Scope) -> list[Fact]:
    """The warning, while there is reason for one."""
    at = scope.pool.spec.thresholds.warn_at
    low = _beyond(scope.orders, at)
    if not low:
        return []
    return [Fact("SpaceLow", True, "WarnThreshold", f"Filled to {at}% or more on {len(low)} hosts: {_some(low)}.")]


def _beyond(orders: Iterable[WorkOrder], percent: int | None) -> list[WorkOrder]:
    return [order for order in orders if order.status.pool is not None and reached(order.status.pool, percent)]


def _some(orders: Sequence[WorkOrder]) -> str:
    names = sorted(map(host_of, orders))
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


class PoolReconciler:
    """Brings a pool onto its hosts and sums up what they say."""

    name = "storagepool"

    def __init__(self, services: Services, fleet: Fleet) -> None:
        self._services = services
        self._fleet = fleet
        self._pools = services.caches.store(StoragePool)
        self._hosts = services.caches.store(Host)
        self._orders = work_orders(services.caches)
        self._secrets = PoolSecrets(services.client)
        self._volumes = services.caches.store(Volume)
        self._volumes.add_index(IN_POOL, in_pool)
        self._retention = Retention(services.caches)
        self._written: dict[str, float] = {}
        self._passed: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, hosts that come, go or get other labels, what agents say of pools, and data that comes and goes."""

        def pool_changed(before: StoragePool | None, after: StoragePool | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is not None and after is not None and _placing(before) == _placing(after):
                return
            for key in self._pools.keys():  # noqa: SIM118 - a store, not a dict
                enqueue(key)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.POOL:
                if after is None:
                    self._secrets.forget(order.uid)
                enqueue(Key(None, order.spec.for_.name))
            elif (had := data_in(before)) != (has := data_in(after)):
                for name in {pool for pool, _ in had ^ has}:
                    enqueue(Key(None, name))
            elif order is not None and order.spec.disk is not None and order.spec.disk.import_image is not None:
                self._enqueue_emptied(enqueue, order.spec.disk.pool.name)

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            if before is not None and after is not None and _leaving(before) == _leaving(after):
                return
            for name in {item.status.pool for item in (before, after) if item is not None} - {None}:
                self._enqueue_emptied(enqueue, name)

        self._pools.listen(pool_changed)
        self._hosts.listen(host_changed)
        self._orders.listen(order_changed)
        self._volumes.listen(volume_changed)

    def _enqueue_emptied(self, enqueue: Enqueue, name: str | None) -> None:
        """What is in a pool is looked at only when it is to be emptied."""
        pool = self._pools.get(name) if name is not None else None
        if pool is not None and pool.spec.maintenance:
            enqueue(Key(None, pool.name))

    def everything(self) -> list[Key]:
        """All pools."""
        return self._pools.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a StoragePool."""
        client = self._services.client
        pool = self._pools.get(key.name)
        if pool is None:
            return Gone()
        if pool.paused:
            return Done()
        now = self._services.clock.monotonic()
        if now - self._passed.get(pool.uid, float("-inf")) < PASS_SECONDS:
            return Requeue(PASS_SECONDS - (now - self._passed[pool.uid]))
        self._passed[pool.uid] = now
        if not pool.deleting and await ensure_finalizer(client, self._pools, pool):
            pool = self._pools.get(key.name) or pool
        orders = tuple(self._orders.by(FOR_UID, f"{WorkType.POOL}/{pool.uid}"))
        users = tuple(self._orders.by(DISKS_IN, pool.uid))
        going = pool.deleting and not users
        hosts = () if going else tuple(host for host in self._hosts if belongs(pool, host))
        promised = {host_of(order): self._fleet.load(host_of(order)).promised(pool_ref(pool)) for order in orders}
        scope = Scope(pool, hosts, orders, users, promised)
        wanted, there = {host.name for host in scope.hosts}, {host_of(order) for order in orders}
        failed: KubeError | None = None
        for host in sorted(wanted - there):
            try:
                await self._order(pool, host)
            except (NotLeading, Unreachable):
                raise
            except KubeError as error:  # one host's namespace must not keep the pool from the others
                failed = error
        for order in orders:
            if host_of(order) not in wanted and not order.deleting:
                await client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if pool.deleting:
            if not orders:
                await drop_finalizer(client, self._pools, pool)
                self._passed.pop(pool.uid, None)
                self._written.pop(pool.uid, None)
                return Gone()
            await self._report(scope)
            return Wait("Deleting", 10.0)
        orders = tuple(self._orders.by(FOR_UID, f"{WorkType.POOL}/{pool.uid}"))
        scope = replace(scope, lack=await self._secrets.copy(pool, orders), contents=self._contents(scope))
        result = await self._report(scope)
        if scope.lack is not None:
            result = Wait("SecretNotFound", 15.0)
        if failed is not None:
            raise failed
        return result

    def _contents(self, scope: Scope) -> Contents:
        """What is in a pool that is to be emptied. Of others it is not asked."""
        pool = scope.pool
        if not pool.spec.maintenance:
            return Contents()
        imports = self._orders.by(IMAGES_IN, pool.uid)
        used = {host_of(o): in_use(self._orders.by(NAMESPACE, o.namespace or ""), pool.uid) for o in imports}
        facts = [order.status.pool for order in scope.orders if order.status.pool is not None]
        return Contents(
            volumes=tuple(self._volumes.by(IN_POOL, pool.name)),
            orders=scope.users,
            images={
                image_name(order): self._retention.why(order, used[host_of(order)], emptied=True) for order in imports
            },
            unowned=sum(fact.unowned_count for fact in facts),
            silent=tuple(sorted(host_of(o) for o in scope.orders if o.status.state is not WorkState.READY)),
        )

    async def _order(self, pool: StoragePool, host: str) -> None:
        spec = WorkOrderSpec(
            type=WorkType.POOL,
            for_=ObjectRef(kind="StoragePool", name=pool.name, uid=pool.uid),
            term=self._services.term(),
            pool=PoolOrder(pool=pool_ref(pool)),
        )
        body = {"metadata": {"name": pool_order_name(pool.uid), "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        try:
            self._orders.apply(await self._services.client.create(WorkOrder.KIND, body, host_namespace(host)))
        except (AlreadyExists, NotFound):
            return

    async def _report(self, scope: Scope) -> Result:
        clock, pool = self._services.clock, scope.pool
        after = derive_status(scope, rfc3339(clock.now()))
        since = clock.monotonic() - self._written.get(pool.uid, float("-inf"))
        if after.phase == pool.status.phase and since < SETTLE_SECONDS:
            return Requeue(SETTLE_SECONDS - since)
        if await write_status(self._services.client, self._pools, pool, pool.status, after):
            self._written[pool.uid] = clock.monotonic()
        return Done()


def _leaving(volume: Volume) -> tuple[object, ...]:
    """What of a volume tells how it leaves its pool."""
    moving = volume.status.condition(MOVING)
    return (volume.uid, volume.status.pool, volume.deleting, moving and (moving.status, moving.reason))


def _placing(host: Host) -> tuple[object, ...]:
    """What of a host decides which pools are on it."""
    return (host.spec.zone, dict(host.metadata.labels), host.deleting, host.status.namespace)
