"""ConsoleRequest: asks the machine's host once for what its console printed, and goes away after a while."""

from __future__ import annotations

from kumulus.api.base import ObjectRef
from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest, ConsoleRequestStatus
from kumulus.api.fabric import host_namespace
from kumulus.api.host import ConsoleOrder, WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.machine_import import domain_of
from kumulus.api.order_names import console_order_name
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Gone, Requeue, Result
from kumulus_controllers.expiry import expire
from kumulus_controllers.orders import FOR_NAME, FOR_UID, work_orders
from kumulus_controllers.status import write_status

PATIENCE = 30.0
"""Seconds a host may take to answer."""


class ConsoleReconciler:
    """Answers console requests."""

    name = "consolerequest"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._requests = services.caches.store(ConsoleRequest)
        self._machines = services.caches.store(VirtualMachine)
        self._orders = work_orders(services.caches)
        self._asked: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, and answers of hosts."""

        def request_changed(before: ConsoleRequest | None, after: ConsoleRequest | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(item.namespace, item.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.CONSOLE:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)

        self._requests.listen(request_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All requests, and those that only a left-over work order remembers."""
        keys = set(self._requests.keys())
        for order in self._orders:
            if order.spec.type is WorkType.CONSOLE:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a request."""
        request = self._requests.get(key.name, key.namespace)
        if request is None or request.deleting:
            await self._clean_up(key)
            return Gone()
        if request.status.phase in ("Ready", "Failed"):
            await self._clean_up(key)
            return await expire(self._services, request, request.status.answered_at, request.spec.ttl_seconds)
        machine = self._machines.get(request.spec.vm, request.namespace)
        if machine is None:
            return await self._answer(
                request, None, "VirtualMachineNotFound", f"There is no VirtualMachine {request.spec.vm}."
            )
        if machine.status.host is None:
            return await self._answer(
                request, None, "NotPlaced", "The machine is on no host yet, so it has no console."
            )
        orders = self._orders.by(FOR_UID, f"{WorkType.CONSOLE}/{request.uid}")
        if not orders:
            try:
                await self._order(request, machine)
            except NotFound:
                return await self._answer(
                    request, None, "HostGone", f"Host {machine.status.host} is not there any more."
                )
            return Requeue(PATIENCE)
        status = orders[0].status
        if status.state is WorkState.READY:
            return await self._answer(request, (status.console.log if status.console else "") or "", "Read", "")
        if status.state is WorkState.FAILED:
            return await self._answer(
                request, None, status.reason or "Failed", status.message or "The host could not read it."
            )
        now = self._services.clock.monotonic()
        age = now - self._asked.setdefault(request.uid, now)
        if age > PATIENCE:
            return await self._answer(request, None, "HostSilent", f"Host {machine.status.host} does not answer.")
        return Requeue(max(PATIENCE - age, 0.5))

    async def _order(self, request: ConsoleRequest, machine: VirtualMachine) -> None:
        spec = WorkOrderSpec(
            type=WorkType.CONSOLE,
            for_=ObjectRef(kind="ConsoleRequest", namespace=request.namespace, name=request.name, uid=request.uid),
            term=self._services.term(),
            console=ConsoleOrder(uid=domain_of(machine), max_bytes=request.spec.max_bytes),
        )
        body = {"metadata": {"name": console_order_name(request.uid)}, "spec": spec.to_json()}
        try:
            raw = await self._services.client.create(WorkOrder.KIND, body, host_namespace(machine.status.host or ""))
            self._orders.apply(raw)
        except AlreadyExists:
            return

    async def _answer(self, request: ConsoleRequest, log: str | None, reason: str, message: str) -> Result:
        now = rfc3339(self._services.clock.now())
        self._asked.pop(request.uid, None)
        generation = request.metadata.generation
        fact = Fact("Ready", log is not None, reason, message)
        after = ConsoleRequestStatus(
            observed_generation=generation,
            conditions=derive(request.status.conditions, [fact], generation=generation, now=now),
            phase="Failed" if log is None else "Ready",
            log=log,
            answered_at=now,
        )
        await write_status(self._services.client, self._requests, request, request.status, after)
        return Requeue(0.0)

    async def _clean_up(self, key: Key) -> None:
        for order in self._orders.by(FOR_NAME, f"ConsoleRequest/{key.namespace or ''}/{key.name}"):
            if order.spec.type is WorkType.CONSOLE:
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
                self._orders.remove(Key(order.namespace, order.name), order.uid)
