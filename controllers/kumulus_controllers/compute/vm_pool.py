"""VirtualMachinePool: makes machines, replaces them, and removes those that are too many.

Never one too many, and never one removed for another: a machine's name says which place it has, and who makes the machine
of a place a second time finds it there. Whose end is decided is written into the pool's status first (`removing`), on
condition that nobody changed the pool meanwhile; who decides next looks at those live before he counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_pool import POOL, REVISION, Removal, RemovalReason, VirtualMachinePool
from kumulus.api.storage import Volume
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.vm_pool_health import Health
from kumulus_controllers.compute.vm_pool_plan import (
    CAUSES,
    Plan,
    Scope,
    adopts,
    machine_name,
    new_machine,
    owner_of,
    owns,
    place_of,
    plan,
    selects,
    stays,
    volumes_of,
)
from kumulus_controllers.compute.vm_pool_status import derive_status, overdue
from kumulus_controllers.events import tell
from kumulus_controllers.status import write_status
from kumulus_controllers.storage.volume_plan import MADE_FOR

log = structlog.get_logger(__name__)

OF_POOL = "of-pool"
AT_PLACE = "at-place"
MADE_MOST = 32
"""So many machines are made in a pass; then others have their turn."""
PACE_SECONDS = 1.0
"""Mere counts are written at most so often: a hundred machines that come up are a hundred changes."""


def _controller(vm: VirtualMachine) -> tuple[str, ...]:
    return tuple(
        owner.uid
        for owner in vm.metadata.owner_references
        if owner.controller and owner.kind == VirtualMachinePool.KIND.kind
    )


def _place(vm: VirtualMachine) -> tuple[str, ...]:
    name = vm.name.rpartition("-")[0]
    return (f"{vm.namespace}/{name}",) if name and place_of(name, vm.name) is not None else ()


class PoolReconciler:
    """Brings pools of machines to what their specs say. The only writer of their status."""

    name = "virtualmachinepool"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.caches.store(VirtualMachinePool)
        self._machines = services.caches.store(VirtualMachine)
        self._volumes = services.caches.store(Volume)
        self._machines.add_index(OF_POOL, _controller)
        self._machines.add_index(AT_PLACE, _place)
        self._written: dict[str, float] = {}
        """When the status of a pool was last written, by its uid (monotonic seconds)."""
        self._health = Health()

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; machines of pools, and those that have a name that one of theirs would have."""

        def pool_changed(before: VirtualMachinePool | None, after: VirtualMachinePool | None) -> None:
            item = after or before
            if item is None:
                return
            if before is not None and after is None:
                self._written.pop(before.uid, None)
            if not (before and after and _asked(before) == _asked(after)):
                enqueue(Key(item.namespace, item.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if before and after and _counts(before) == _counts(after):
                return
            if before is not None and (after is None or after.uid != before.uid):
                self._health.forget(before.uid)
            names = set()
            for vm in (before, after):
                if vm is not None:
                    names |= {vm.name.rpartition("-")[0]} if _place(vm) else set()
                    names |= {owner.name for owner in vm.metadata.owner_references if owner.uid in _controller(vm)}
            item = after or before
            for name in names:
                if item is not None and self._store.get(name, item.namespace) is not None:
                    enqueue(Key(item.namespace, name))

        self._store.listen(pool_changed)
        self._machines.listen(machine_changed)

    def everything(self) -> list[Key]:
        """All pools."""
        return self._store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a pool."""
        pool = self._store.get(key.name, key.namespace)
        if pool is None:
            return Gone()
        if (
            pool.deleting or pool.paused
        ):  # its machines go by the garbage collector, or stay, as whoever deletes it says
            return Done()
        await self._catch_up(pool)
        if await self._claim(pool) is None:
            return Done()
        scope = self._observe(pool)
        decided = plan(scope)
        if decided.remove:
            await self._report(scope, decided, None)
            problem = await self._remove(pool, decided.remove) or await self._make(pool, decided.create)
            return Requeue(0.0) if problem is None else await self._report_again(pool, problem)
        problem = await self._make(pool, decided.create[:MADE_MOST])
        if decided.create and problem is None:
            scope = self._observe(pool)
            decided = plan(scope)
            if decided.create or decided.remove:
                return Requeue(0.0)
        return await self._report(scope, decided, problem)

    def _observe(self, pool: VirtualMachinePool) -> Scope:
        machines = tuple(sorted(self._machines.by(OF_POOL, pool.uid), key=lambda vm: vm.name))
        others = self._machines.by(AT_PLACE, f"{pool.namespace}/{pool.name}")
        places = (place_of(pool.name, vm.name) for vm in others if not owns(pool, vm))
        now = self._services.clock.monotonic()
        ill_for = {vm.uid: self._health.ill_for(vm, now) for vm in machines}
        return Scope(
            pool=pool,
            machines=machines,
            now=self._services.clock.now(),
            taken=frozenset(place for place in places if place is not None),
            ill_for={uid: seconds for uid, seconds in ill_for.items() if seconds is not None},
        )

    async def _catch_up(self, pool: VirtualMachinePool) -> None:
        """Look live at the machines whose end was asked for and of which the cache does not know it."""
        for item in pool.status.removing:
            vm = self._machines.get(item.name, pool.namespace)
            if vm is None or vm.uid != item.uid or vm.deleting:
                continue
            await self._look(vm)

    async def _look(self, vm: VirtualMachine) -> VirtualMachine | None:
        """The machine as it is by now; None when it is gone, or another one has its name."""
        live = await self._services.client.find(VirtualMachine.KIND, vm.name, vm.namespace)
        if live is None:
            self._machines.remove(Key(vm.namespace, vm.name), vm.uid)
            return None
        self._machines.apply(live)
        now = VirtualMachine.parse(live)
        return now if now.uid == vm.uid else None

    async def _claim(self, pool: VirtualMachinePool) -> VirtualMachinePool | None:
        """Take in machines of nobody that are at a place of the pool, and let go of those that have not its labels any
        more. None when the pool turns out to be gone."""
        asked = False
        for vm in self._machines.by(AT_PLACE, f"{pool.namespace}/{pool.name}"):
            if not adopts(pool, vm):
                continue
            if not asked:  # as a ReplicaSet does: never for a pool that is being deleted and leaves its machines alone
                live = await self._services.client.find(pool.KIND, pool.name, pool.namespace)
                if live is None or live["metadata"]["uid"] != pool.uid or "deletionTimestamp" in live["metadata"]:
                    return None
                asked = True
            owners = [owner.to_json() for owner in vm.metadata.owner_references]
            await self._change(vm, {"ownerReferences": [*owners, owner_of(pool)], "labels": {POOL: pool.name}})
            log.info("machine adopted", namespace=vm.namespace, name=vm.name, pool=pool.name)
        for vm in self._machines.by(OF_POOL, pool.uid):
            if not vm.deleting and not selects(pool, vm):
                owners = [o.to_json() for o in vm.metadata.owner_references if o.uid != pool.uid]
                await self._change(vm, {"ownerReferences": owners, "labels": {POOL: None, REVISION: None}})
                log.info("machine let go", namespace=vm.namespace, name=vm.name, pool=pool.name)
        return pool

    async def _change(self, vm: VirtualMachine, metadata: dict[str, object]) -> None:
        """Change its metadata, if nobody has changed the machine since. Raises `errors.Conflict`."""
        body = {"metadata": {"resourceVersion": vm.metadata.resource_version, "uid": vm.uid, **metadata}}
        with suppress(NotFound):
            self._machines.apply(await self._services.client.patch(vm.KIND, vm.name, body, vm.namespace))

    async def _remove(self, pool: VirtualMachinePool, removals: Iterable[Removal]) -> Problem | None:
        """Delete machines, each after a live look: somebody may have healed it, or protected it."""
        for item in removals:
            cached = self._machines.get(item.name, pool.namespace)
            vm = await self._look(cached) if cached is not None and cached.uid == item.uid else None
            if vm is None or vm.deleting or not owns(pool, vm) or stays(vm) or not _still(item, vm):
                continue
            if item.reason is RemovalReason.HEALING:
                note = f"Machine {vm.name} is {vm.status.phase}: it is deleted and made again."
                await tell(
                    self._services.client, self._services.clock, pool, "Healing", note, action="Replace", warning=True
                )
            try:
                raw = await self._services.client.delete(vm.KIND, vm.name, vm.namespace, uid=vm.uid)
            except Refused as refused:
                return Problem("RemovalRefused", f"Machine {vm.name} cannot be removed: {refused.message}")
            log.info("machine removed", namespace=vm.namespace, name=vm.name, pool=pool.name, reason=item.reason)
            if raw is not None and "spec" in raw and "deletionTimestamp" in raw["metadata"]:
                self._machines.apply(raw)
            else:
                self._machines.remove(Key(vm.namespace, vm.name), vm.uid)
        return None

    async def _make(self, pool: VirtualMachinePool, places: Iterable[int]) -> Problem | None:
        """Make the machines of these places. One that is there already is looked at in the next pass."""
        for place in places:
            name = machine_name(pool.name, place)
            body = new_machine(pool, place, self._kept(pool, place))
            try:
                raw = await self._services.client.create(VirtualMachine.KIND, body, pool.namespace)
            except AlreadyExists:
                raw = await self._services.client.get(VirtualMachine.KIND, name, pool.namespace)
            except Refused as refused:  # by a quota, say, or because the namespace ends
                return Problem("Refused", f"Machine {name} cannot be made: {refused.message}")
            self._machines.apply(raw)
        return None

    def _kept(self, pool: VirtualMachinePool, place: int) -> list[str]:
        """Volumes that an earlier machine of that place brought along and left, which are nobody's now."""
        found = (self._volumes.get(name, pool.namespace) for name in volumes_of(pool, place))
        return [
            volume.name
            for volume in found
            if volume is not None
            and not volume.deleting
            and not volume.metadata.owner_references
            and MADE_FOR in volume.metadata.annotations
        ]

    async def _report_again(self, pool: VirtualMachinePool, problem: Problem) -> Result:
        """After machines were removed: say what hinders, of what is so by now."""
        current = self._store.get(pool.name, pool.namespace)
        if current is None or current.uid != pool.uid:
            return Done()
        scope = self._observe(current)
        return await self._report(scope, plan(scope), problem)

    async def _report(self, scope: Scope, decided: Plan, problem: Problem | None) -> Result:
        pool, clock = scope.pool, self._services.clock
        if problem is not None:  # what is not done need not be announced
            decided = replace(decided, remove=())
        after = derive_status(pool, decided, scope.machines, problem, clock.now())
        since = clock.monotonic() - self._written.get(pool.uid, float("-inf"))
        hurry = bool(decided.remove) or after.observed_generation != pool.status.observed_generation
        if not hurry and since < PACE_SECONDS and after != pool.status:
            return Requeue(PACE_SECONDS - since)
        if await write_status(self._services.client, self._store, pool, pool.status, after):
            self._written[pool.uid] = clock.monotonic()
        if problem is not None:
            return Requeue(30.0)
        left = overdue(pool, after.last_progress_at or "", clock.now()) if after.condition("Reconciling") else None
        waits = [seconds for seconds in (decided.again, left) if seconds is not None]
        return Requeue(max(min(waits), 0.0) + 0.5) if waits else Done()


def _still(item: Removal, vm: VirtualMachine) -> bool:
    """Whether a live machine is what it was removed for."""
    return item.reason is not RemovalReason.HEALING or vm.status.phase in CAUSES


def _asked(pool: VirtualMachinePool) -> tuple[object, ...]:
    """What a pass goes by of a pool itself."""
    return pool.uid, pool.metadata.generation, pool.deleting, pool.paused


def _counts(vm: VirtualMachine) -> tuple[object, ...]:
    """What a pass goes by of a machine."""
    conditions = tuple(
        (item.type, item.status, item.reason, item.last_transition_time)
        for item in vm.status.conditions
        if item.type in ("Ready", "Stalled")
    )
    meta = vm.metadata
    owners = tuple((owner.uid, owner.controller) for owner in meta.owner_references)
    return vm.uid, vm.deleting, vm.status.phase, vm.status.host is None, conditions, meta.labels, owners, stays(vm)
