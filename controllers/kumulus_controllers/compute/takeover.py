"""Starts machines elsewhere whose host is fenced: the order there is ended, the fence looked at live, a place put on record.

Nothing can start on the fenced host from before its order was ended until its agent has answered the fence; so a machine that
gets its new place in between has no other copy, and will have none (ADR 33).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import FENCE_ORDER, instance_order_name
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Requeue, Result, Wait
from kumulus_controllers import events
from kumulus_controllers.compute import takeover_plan
from kumulus_controllers.compute.links import linked
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.phase import placed
from kumulus_controllers.compute.placing import Placing
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import held, placement_request, resolve
from kumulus_controllers.compute.schedule import hours, in_force
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.seed import SeedProblem, gather
from kumulus_controllers.compute.wakeups import HOST
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import host_of, moved, superseded
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Refusal

log = structlog.get_logger(__name__)

TURN_SECONDS = 0.5
"""How soon a machine looks again whether those before it have been seen to."""
PATIENCE_SECONDS = 15.0
"""So long does a machine wait for those of a higher priority: what hinders them may not be known."""
ROOM_SECONDS = 10.0
"""How soon one that no host had room for looks again."""


class TakeOver:
    """Of machines on hosts that are fenced."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines, placing: Placing) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._placing = placing
        self._ordering = Ordering(services, known.orders)
        self._since: dict[str, float] = {}
        """Since when, in monotonic seconds, a machine waits for its turn; by its uid."""

    async def bury(self, vm: VirtualMachine) -> None:
        """Orders on fenced hosts of a placement that is over, or of a machine that goes, are marked as such: from then on they
        count nowhere."""
        for order in self._known.all_orders_of(vm):
            instance, host = order.spec.instance, self._known.hosts.get(host_of(order))
            if instance is None or superseded(order) or host is None or not host.fenced:
                continue
            if moved(order) and any(use.status.host == host.name for use in self._known.volumes.of(vm).values()):
                continue  # its migration ends it when its volumes have followed
            given_up = instance.incoming is not None and order.deleting
            if not given_up and takeover_plan.let_go(vm, instance.epoch):
                continue  # it has no other place: when its host is back, its domain is left as it is
            if instance.epoch >= (vm.status.epoch or 0) and not vm.deleting and not given_up:
                continue
            if not await self._in_force(host.name):
                continue
            await self._ordering.end(order)
            current = self._known.orders.get(order.name, order.namespace)
            if current is None or current.uid != order.uid:
                continue
            over = instance.model_copy(update={"superseded": True})
            term = max(self._services.term(), current.spec.term)
            spec = current.spec.model_copy(update={"instance": over, "term": term})
            try:
                await self._ordering.change(current, spec)
            except NotFound:  # its agent has come back meanwhile, and let it go
                self._known.orders.remove(Key(order.namespace, order.name), order.uid)

    async def consider(self, scope: Scope) -> Result | None:
        """One pass over a machine whose host is fenced; None when its host is not."""
        vm, host, clock = scope.vm, scope.host, self._services.clock
        if host is None or not host.fenced or vm.status.host != host.name:
            self._since.pop(vm.uid, None)
            return None
        if not takeover_plan.wanted(vm, scope.order):
            return await self._known.report(scope, placed(scope), None, held(scope))
        why = takeover_plan.elsewhere(host, map(host_of, self._known.orders_of(vm)))
        if (why := why or takeover_plan.hindrance(scope, clock.now())) is not None:
            return await self._known.report(scope, placed(scope), None, why)
        if held(scope) is not None:
            return await self._known.report(scope, placed(scope), None, held(scope))
        patient = clock.monotonic() < self._since.setdefault(vm.uid, clock.monotonic()) + PATIENCE_SECONDS
        if patient and (first := takeover_plan.ahead(vm, self._waiting())) is not None:
            log.debug("another machine comes first", namespace=vm.namespace, name=vm.name, first=first)
            return Requeue(TURN_SECONDS)
        resolution = resolve(scope)
        if isinstance(resolution, Problem):
            return await self._known.report(scope, placed(scope), None, resolution)
        request = placement_request(scope, resolution)
        if isinstance(found := self._fleet.place(request), Refusal):
            return await self._no_room(scope, found)
        try:
            nics = linked(scope)[0]
            seed = await gather(self._services.client, vm, nics, self._known.interfaces.wires(nics))
        except SeedProblem as problem:
            return await self._known.report(scope, placed(scope), resolution, Problem(problem.reason, str(problem)))
        if not await self._closed(scope, host.name):
            return Wait("FenceLifted", 2.0)
        if isinstance(
            found := self._fleet.place(request), Refusal
        ):  # from here on nothing is awaited before it is promised
            return await self._no_room(scope, found)
        lately = (*takeover_plan.recent(vm, clock.now()), rfc3339(clock.now()))
        said = f"Host {host.name} is fenced: the machine is started on host {found.host}."
        log.warning("a machine is taken over", namespace=vm.namespace, name=vm.name, host=host.name, to=found.host)
        result = await self._placing.place(scope, resolution, found, seed, failovers=lately)
        await events.tell(self._services.client, clock, vm, "TakenOver", said, action="TakeOver", warning=True)
        return result

    def _waiting(self) -> Sequence[VirtualMachine]:
        now = self._services.clock.now()
        return [
            in_force(vm, hours(vm, now))
            for host in self._known.hosts
            if host.fenced
            for vm in self._known.store.by(HOST, host.name)
        ]

    async def _no_room(self, scope: Scope, refusal: Refusal) -> Result:
        problem = Problem(takeover_plan.NO_HOST, str(refusal), takeover_plan.ASPECT, stalled=False)
        await self._known.report(scope, placed(scope), None, problem)
        return Wait(problem.reason, ROOM_SECONDS)

    async def _closed(self, scope: Scope, host: str) -> bool:
        """End the order on the fenced host, and only then look, live, whether the fence that was there before is in force and
        has not been answered: then nothing can have started there, and nothing will."""
        namespace = host_namespace(host)
        fence = self._known.orders.get(FENCE_ORDER, namespace)
        if fence is None:
            return False
        order = scope.order or await self._ordering.live(instance_order_name(scope.vm.uid), host)
        if order is not None and host_of(order) != host:
            return False
        if order is not None and not order.deleting:
            # Of a host that has come back the guest runs by this order again: it would be ended for nothing.
            if not await self._in_force(host, fence.uid):
                return False
            await self._ordering.end(order)
        return await self._in_force(host, fence.uid)

    async def _in_force(self, host: str, uid: str | None = None) -> bool:
        """Whether the host is fenced, by the fence of that uid if one is given, and has not been heard of since. A live look."""
        namespace = host_namespace(host)
        raw = await self._services.client.find(WorkOrder.KIND, FENCE_ORDER, namespace)
        if raw is None:
            return False
        self._known.orders.apply(raw)
        now = WorkOrder.parse(raw)
        declared = now.spec.fence is not None and now.spec.fence.fenced
        return uid in (None, now.uid) and not now.deleting and declared and now.status.state is None
