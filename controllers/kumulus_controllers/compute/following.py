"""A machine that has a work order: what may change is brought into it, what it names is provided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kumulus.api.compute import ResolvedSize, VirtualMachine
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.instance_order import STALE_TERM, Drive, InstanceDisk
from kumulus.api.segments import Nic
from kumulus.kube.patching import merge_patch
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Result
from kumulus_controllers.compute import hardware
from kumulus_controllers.compute.links import linked, meant, renewed_nics
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.order import renewed
from kumulus_controllers.compute.phase import placed
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.provisions import Provisions
from kumulus_controllers.compute.resolve import attached_disks, drives, held
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.size import is_ordered, no_room, unsuited, wanted_size
from kumulus_controllers.orders import NOT_BEGUN, claim, host_of
from kumulus_controllers.planning.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Renewed:
    """What came of a look at a machine's work order."""

    scope: Scope
    discs: tuple[Drive, ...]
    problem: Problem | None
    size: ResolvedSize | None
    """The size that is ordered now; None: it stays as it was."""
    unsuitable: Problem | None
    """Why it cannot be as its spec says where it is."""


class Following:
    """Keeps the work order of a machine as the machine's spec has it, as far as that may change."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines, provisions: Provisions) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._provisions = provisions

    async def follow(self, scope: Scope, order: WorkOrder) -> Result:
        """There is a work order: bring into it what may change, see that what it names is there, report."""
        vm, host = scope.vm, host_of(order)
        done = await self.renew(scope, order)
        problem = done.problem
        await self._known.interfaces.drop(vm)
        await self._provisions.bring_discs(scope, host, done.discs)
        if order.status.state in NOT_BEGUN:
            problem = await self._provisions.provide(done.scope) or problem
        elif problem is not None:
            problem = replace(problem, hinders=False)
        return await self._known.report(
            self._known.observe(vm),
            placed(scope),
            None,
            held(scope) or problem,
            size=done.size,
            too_large=done.unsuitable,
        )

    async def renew(self, scope: Scope, order: WorkOrder) -> Renewed:
        """Bring into the work order what may change, also that of a host that is fenced: its agent reads it when it is back."""
        vm, host = scope.vm, host_of(order)
        refused = await self._known.interfaces.make(scope)
        scope = replace(scope, links=self._known.interfaces.links(vm))
        volumes, problem = attached_disks(scope, host)
        discs, discless = drives(scope, self._provisions.disc_pool(scope, host))
        nics, unlinked = linked(scope)
        problem = problem or discless or refused or unlinked
        nics = renewed_nics(vm, order, nics, meant(scope))
        assert order.spec.instance is not None
        made, unsuitable = hardware.granted(vm, order.spec.instance, self._fleet.host(host))
        with self._granted(scope, order) as (size, too_large):
            await self._renew(order, vm, volumes, discs, nics, held=scope.restore is not None, size=size, made=made)
        return Renewed(scope, discs, problem, size, too_large or unsuitable)

    @contextmanager
    def _granted(self, scope: Scope, order: WorkOrder) -> Iterator[tuple[ResolvedSize | None, Problem | None]]:
        """The size to order, for which room is kept; or None for the one that is ordered, and why it is no other."""
        size, instance = wanted_size(scope), order.spec.instance
        assert instance is not None
        if isinstance(size, Problem):
            yield None, size
        elif is_ordered(size, instance):
            yield size, None
        elif (problem := unsuited(scope, size)) is not None:
            yield None, problem
        else:
            has = scope.vm.status.resources or size
            most = max(size.cpus, has.cpus), max(size.memory_bytes, has.memory_bytes)
            with self._fleet.enlarging(scope.vm.uid, *most) as lack:
                yield (size, None) if lack is None else (None, no_room(size, lack))

    async def _renew(
        self,
        order: WorkOrder,
        vm: VirtualMachine,
        volumes: tuple[InstanceDisk, ...],
        discs: tuple[Drive, ...],
        nics: tuple[Nic, ...],
        *,
        held: bool,
        size: ResolvedSize | None,
        made: hardware.Made,
    ) -> None:
        """Bring what may change of a placed machine into its work order. While it moves, nothing may."""
        if claim(order) > 0:
            return
        wanted: WorkOrderSpec = renewed(
            vm, order.spec, volumes, discs, self._services.term(), nics=nics, held=held, size=size, made=made
        )
        term = self._services.term()
        if order.status.reason == STALE_TERM and wanted.term < term:
            # Whoever led before us wrote it, after somebody of a newer term had: it is ours now.
            wanted = wanted.model_copy(update={"term": term})
        patch = merge_patch(order.spec.to_json(), wanted.to_json())
        if not patch:
            return
        body = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        self._known.orders.apply(await self._services.client.patch(WorkOrder.KIND, order.name, body, order.namespace))
