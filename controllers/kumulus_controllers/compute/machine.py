"""VirtualMachine: from what is known of it to who acts on it: placing, following, ending."""

from __future__ import annotations

from dataclasses import replace

import structlog

from kumulus.api.host import WorkType
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Failed, Gone, Requeue, Result
from kumulus_controllers.compute.ending import Ending
from kumulus_controllers.compute.following import Following
from kumulus_controllers.compute.leaving import Leaving
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.phase import Placed, placed
from kumulus_controllers.compute.placing import Placing
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.provisions import Provisions
from kumulus_controllers.compute.resolve import held, resolve
from kumulus_controllers.compute.rule_wakeups import RuleWakeups
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.takeover import TakeOver
from kumulus_controllers.compute.wakeups import Wakeups
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.status import ensure_finalizer

log = structlog.get_logger(__name__)


class MachineReconciler:
    """Brings a machine to what its spec says."""

    name = "virtualmachine"

    def __init__(self, services: Services, fleet: Fleet) -> None:
        self._services = services
        self._known = Machines(services, fleet)
        self._provisions = Provisions(services, fleet, self._known)
        self._placing = Placing(services, fleet, self._known, self._provisions)
        self._following = Following(services, fleet, self._known, self._provisions)
        self._leaving = Leaving(services, fleet, self._known)
        self._takeover = TakeOver(services, fleet, self._known, self._placing)
        self._ending = Ending(services, fleet, self._known)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; work orders first of all; what unplaced machines wait for; hosts that vanish and return."""
        self._provisions.attach()
        self._placing.attach()
        self._ending.attach(enqueue)
        Wakeups(self._services.caches).attach(enqueue)
        RuleWakeups(self._services.caches).attach(enqueue)

    def everything(self) -> list[Key]:
        """All machines, and those that only a left-over work order remembers."""
        keys = set(self._known.store.keys())
        for order in self._known.orders:
            if order.spec.type is WorkType.INSTANCE:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a machine; another one when its schedule says something else."""
        result, due = await self._pass(key), self._known.due(key)
        if due is None or isinstance(result, Gone | Failed):
            return result
        return Requeue(due) if isinstance(result, Done) else replace(result, after=min(result.after, due))

    async def _pass(self, key: Key) -> Result:
        vm = self._known.store.get(key.name, key.namespace)
        await self._ending.remove_orphans(key, vm)
        if vm is None:
            return Gone()
        if vm.paused:
            # Nothing is done to it, also not removed; only whoever waits for its end is told what it waits for.
            if not vm.deleting:
                return Done()
            scope = self._known.observe(vm)
            return await self._known.report(scope, placed(scope), None, None)
        await self._takeover.bury(vm)
        if vm.deleting:
            return await self._ending.delete(self._known.observe(vm))
        if await ensure_finalizer(self._services.client, self._known.store, vm):
            vm = self._known.store.get(key.name, key.namespace) or vm
        scope = self._known.observe(vm)
        if scope.host is not None and scope.host.fenced and scope.order is not None and not scope.order.deleting:
            await self._following.renew(scope, scope.order)
            scope = self._known.observe(vm)
        if (taken := await self._takeover.consider(scope)) is not None:
            return taken
        if scope.order is not None and (vm.status.host is None or scope.order.deleting):
            return await self._adopt(scope)
        if scope.order is None:
            if (problem := held(scope)) is not None:
                return await self._known.report(scope, placed(scope), None, problem)
            return await self._placing.bring_about(scope)
        if (left := await self._leaving.leave(scope)) is not None:
            return left
        return await self._following.follow(scope, scope.order)

    async def _adopt(self, scope: Scope) -> Result:
        """A work order exists that the status does not know (the status was lost), or one that is on its way out."""
        order = scope.order
        assert order is not None and order.spec.instance is not None
        if order.deleting:
            return await self._known.report(scope, placed(scope), None, None)
        host = host_of(order)
        found = self._known.hosts.get(host)
        where = Placed(host, found.spec.zone if found else "", order.spec.instance.epoch)
        log.info(
            "placement found again from the work order", namespace=scope.vm.namespace, name=scope.vm.name, host=host
        )
        resolution = resolve(scope)
        return await self._known.report(scope, where, None if isinstance(resolution, Problem) else resolution, None)
