"""VirtualMachineImport: a domain that is not Kumulus' own becomes a machine, and runs on meanwhile.

What would become of it is said first, and nothing is done while anything is in the way. That the import has begun is on
record before its volumes and its machine are made; who is made twice is found there. From then on it is the machine's own
reconciler, and the agent of the host, that bring it about: the domain is Kumulus' own with the one write of its marks. An
import that is deleted before that takes back what it made, and the domain is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import structlog

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_import import (
    FINISHED,
    UNMANAGE,
    ImportPhase,
    PlanItem,
    PlanWhen,
    VirtualMachineImport,
    VirtualMachineImportStatus,
    domain_of,
)
from kumulus.api.network import Network
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.compute.vm_import_plan import (
    Scope,
    adopted,
    blockers,
    disks_of,
    is_of,
    made_by,
    new_machine,
    new_volume,
    plan,
)
from kumulus_controllers.orders import FOR_UID, work_orders
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.volume_plan import Lack

log = structlog.get_logger(__name__)

BY_DOMAIN = "import-of-domain"
BY_MACHINE = "import-to-machine"
OF_DOMAIN = "machine-of-domain"
LOOK_EVERY = 30.0
"""What nobody tells of is looked at so often, in seconds."""


Made = TypeVar("Made", VirtualMachine, Volume)
"""What an import makes."""


class ImportReconciler:
    """Carries imports out. The only writer of their status."""

    name = "virtualmachineimport"

    def __init__(self, services: Services) -> None:
        caches = services.caches
        self._services = services
        self._store = caches.store(VirtualMachineImport)
        self._domains = caches.store(UnmanagedInstance)
        self._machines = caches.store(VirtualMachine)
        self._volumes = caches.store(Volume)
        self._hosts = caches.store(Host)
        self._types = caches.store(InstanceType)
        self._pools = caches.store(StoragePool)
        self._networks = caches.store(Network)
        self._orders = work_orders(caches)
        self._machines.add_index(OF_DOMAIN, lambda vm: (domain_of(vm),))
        self._store.add_index(BY_DOMAIN, lambda item: (f"{item.namespace}/{item.spec.unmanaged_instance.name}",))
        self._store.add_index(BY_MACHINE, lambda item: (f"{item.spec.template.namespace}/{item.spec.template.name}",))

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, those of their domains, machines and the orders of these."""

        def wake(index: str, value: str) -> None:
            for item in self._store.by(index, value):
                if item.status.phase not in FINISHED or item.deleting:
                    enqueue(Key(item.namespace, item.name))

        def import_changed(before: VirtualMachineImport | None, after: VirtualMachineImport | None) -> None:
            if (item := after or before) is not None:
                enqueue(Key(item.namespace, item.name))

        def domain_changed(before: UnmanagedInstance | None, after: UnmanagedInstance | None) -> None:
            if (item := after or before) is not None:
                wake(BY_DOMAIN, f"{item.namespace}/{item.name}")

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if (item := after or before) is not None:
                wake(BY_MACHINE, f"{item.namespace}/{item.name}")

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            instance = order.spec.instance if order is not None else None
            if order is not None and instance is not None and instance.adopt:
                wake(BY_MACHINE, f"{order.spec.for_.namespace}/{order.spec.for_.name}")

        self._store.listen(import_changed)
        self._domains.listen(domain_changed)
        self._machines.listen(machine_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All imports."""
        return self._store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over an import."""
        item = self._store.get(key.name, key.namespace)
        if item is None:
            return Gone()
        if item.paused:
            return Done()
        if item.deleting:
            return await self._delete(self._observe(item))
        if item.status.phase in FINISHED:
            return Done()
        scope = self._observe(item)
        if item.status.phase is not ImportPhase.IMPORTING:
            found = plan(scope)
            if blockers(found):
                pending = scope.domain is None and scope.host is not None
                phase = ImportPhase.PENDING if pending else ImportPhase.BLOCKED
                return await self._report(scope, phase, _first(found), found)
            if item.spec.dry_run:
                return await self._report(scope, ImportPhase.PLANNED, None, found)
            if await ensure_finalizer(self._services.client, self._store, item):
                item = self._store.get(key.name, key.namespace) or item
                scope = self._observe(item)
            await self._report(scope, ImportPhase.IMPORTING, None, found)
            current = self._store.get(key.name, key.namespace)
            if current is None or current.uid != item.uid or current.deleting:
                return Done()
            scope = self._observe(current)
        return await self._carry_out(scope)

    async def _carry_out(self, scope: Scope) -> Result:
        """Make what is not made yet, and see how far the host is."""
        if scope.mine is not None and scope.mine.deleting and not adopted(scope):
            lack = Lack("MachineGone", "The machine that the import made is being deleted.", stalled=False)
            return await self._report(scope, ImportPhase.IMPORTING, lack)
        if scope.mine is None:
            if scope.item.status.vm_uid is not None:
                return await self._fail(scope, Lack("MachineGone", "The machine that the import made was deleted."))
            if scope.domain is None:
                return await self._fail(scope, Lack("DomainNotFound", "The domain is not there any more."))
            if (why := await self._make(scope)) is not None:
                return await self._report(scope, ImportPhase.IMPORTING, why)
            scope = self._observe(scope.item)
        if adopted(scope):
            return await self._report(scope, ImportPhase.SUCCEEDED, None)
        return await self._report(scope, ImportPhase.IMPORTING, _waiting(scope))

    async def _fail(self, scope: Scope, why: Lack) -> Result:
        """End without a machine. The volumes go first: the domain that has their files may run."""
        if (lack := await self._take_back_volumes(scope.item)) is not None:
            return await self._report(scope, ImportPhase.IMPORTING, lack)
        return await self._report(scope, ImportPhase.FAILED, why)

    async def _make(self, scope: Scope) -> Lack | None:
        """Make the volumes and the machine that are not there yet."""
        client, namespace = self._services.client, scope.item.spec.template.namespace
        try:
            for disk, _, name, said in disks_of(scope):
                there = self._volumes.get(name, namespace)
                if there is None:
                    body = new_volume(scope, disk, name, said)
                    try:
                        raw = await client.create(Volume.KIND, body, namespace)
                    except AlreadyExists:
                        raw = await client.get(Volume.KIND, name, namespace)
                    self._volumes.apply(raw)
                    there = self._volumes.get(name, namespace)
                if there is None or not is_of(scope.item, there):
                    return Lack("VolumeExists", f"There is a Volume {name} already: name another one in the template.")
            body, name = new_machine(scope), scope.item.spec.template.name
            try:
                raw = await client.create(VirtualMachine.KIND, body, namespace)
            except AlreadyExists:
                raw = await client.get(VirtualMachine.KIND, name, namespace)
            self._machines.apply(raw)
        except NotFound:
            return Lack("NamespaceNotFound", f"There is no namespace {namespace}: make it.")
        except Refused as refused:  # by a quota, say, or because the namespace ends
            return Lack("Refused", f"The machine cannot be made: {refused.message}")
        if self._observe(scope.item).mine is None:
            return Lack("VirtualMachineExists", f"There is a VirtualMachine {namespace}/{name} already.")
        log.info("import has made its machine", item=scope.item.name, namespace=namespace, name=name)
        return None

    async def _delete(self, scope: Scope) -> Result:
        """What is done stays; what is not is taken back: the machine ends without its domain, and its volumes without data."""
        item, vm = scope.item, scope.mine
        if FINALIZER not in item.metadata.finalizers:
            return Done()
        client = self._services.client
        if item.status.phase in (ImportPhase.IMPORTING, ImportPhase.FAILED) and not adopted(scope):
            if vm is not None:
                if not vm.deleting:
                    await self._give_up(self._machines, vm)
                return await self._report(scope, ImportPhase.IMPORTING, Lack("TakingBack", "It is taken back.", False))
            if (lack := await self._take_back_volumes(item)) is not None:
                return await self._report(scope, ImportPhase.IMPORTING, lack)
        await drop_finalizer(client, self._store, item)
        return Gone()

    async def _take_back_volumes(self, item: VirtualMachineImport) -> Lack | None:
        """Delete the volumes that the import made and leave their files as they are; why one stays. Idempotent. Raises `Conflict`
        when one is not what was read of it."""
        for volume in [volume for volume in self._volumes if made_by(item, volume) and not volume.deleting]:
            try:
                await self._give_up(self._volumes, volume)
            except Refused as refused:  # protected from deletion
                return Lack("VolumeProtected", f"Volume {volume.name} cannot be taken back: {refused.message}")
        return None

    async def _give_up(self, store: Store[Made], made: Made) -> None:
        """End what the import made without what it was made of. By the mark, which is there first, its host leaves that as it is,
        however far it has come. Gone already: nothing. Raises `Conflict` when it is not what was read of it."""
        client = self._services.client
        body = {"metadata": {"resourceVersion": made.metadata.resource_version, "annotations": {UNMANAGE: "true"}}}
        try:
            store.apply(await client.patch(made.KIND, made.name, body, made.namespace))
            raw = await client.delete(made.KIND, made.name, made.namespace, uid=made.uid)
        except NotFound:
            store.remove(Key(made.namespace, made.name), made.uid)
            return
        if raw is not None and "spec" in raw:
            store.apply(raw)

    def _observe(self, item: VirtualMachineImport) -> Scope:
        item = self._store.get(item.name, item.namespace) or item
        ref, template = item.spec.unmanaged_instance, item.spec.template
        vm = self._machines.get(template.name, template.namespace)
        order = None
        if vm is not None and is_of(item, vm):
            orders = self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}")
            order = next((order for order in orders if order.spec.instance and order.spec.instance.adopt), None)
        scope = Scope(
            item,
            self._domains.get(ref.name, host_namespace(ref.host)),
            self._hosts.get(ref.host),
            vm,
            order,
            self._types.get(template.instance_type) if template.instance_type else None,
            {pool.name: pool for pool in self._pools},
            self._networks_of(item),
            owner=next((one for one in self._machines.by(OF_DOMAIN, ref.name) if not is_of(item, one)), None),
        )
        if scope.domain is None:
            return scope
        names = [name for _, _, name, _ in disks_of(scope)]
        volumes = {name: found for name in names if (found := self._volumes.get(name, template.namespace)) is not None}
        return replace(scope, volumes=volumes)

    def _networks_of(self, item: VirtualMachineImport) -> Mapping[str, Network]:
        template = item.spec.template
        found = {
            wanted.network: self._networks.get(wanted.network, template.namespace) for wanted in template.interfaces
        }
        return {name: network for name, network in found.items() if network is not None}

    async def _report(
        self, scope: Scope, phase: ImportPhase, lack: Lack | None, items: tuple[PlanItem, ...] | None = None
    ) -> Result:
        item = self._store.get(scope.item.name, scope.item.namespace) or scope.item
        if item.uid != scope.item.uid:
            return Done()
        now, done = rfc3339(self._services.clock.now()), phase is ImportPhase.SUCCEEDED
        ended = phase in FINISHED or phase is ImportPhase.PLANNED
        said = items if items is not None else item.status.plan
        reason, message = _said(phase, lack, said)
        stalled = lack is not None and lack.stalled
        facts = [
            Fact("Ready", done or phase is ImportPhase.PLANNED, reason, message),
            Fact("Reconciling", None if ended or stalled else True, reason, message),
            Fact("Stalled", True if stalled else None, reason, message),
        ]
        after = VirtualMachineImportStatus(
            observed_generation=item.metadata.generation,
            conditions=derive(item.status.conditions, facts, generation=item.metadata.generation, now=now),
            phase=phase,
            plan=said,
            blockers=blockers(said),
            vm_uid=scope.mine.uid if scope.mine is not None else item.status.vm_uid,
            finished_at=(item.status.finished_at or now) if phase in FINISHED else None,
        )
        try:
            await write_status(self._services.client, self._store, item, item.status, after)
        except NotFound:
            return Done()
        if phase in FINISHED:
            return Requeue(0.0)
        return Wait(reason, LOOK_EVERY) if phase is not ImportPhase.PLANNED else Done()


def _first(items: tuple[PlanItem, ...]) -> Lack:
    found = next(item for item in items if item.when is PlanWhen.NEVER)
    more = blockers(items) - 1
    rest = f" ({more} more in status.plan)" if more else ""
    return Lack(found.reason or "Blocked", f"{found.item}: {found.message}{rest}")


def _waiting(scope: Scope) -> Lack:
    """What the machine waits for, in its own words."""
    ready = scope.mine.status.condition("Ready") if scope.mine is not None else None
    status = scope.order.status if scope.order is not None else None
    if status is not None and status.reason is not None:
        return Lack(status.reason, f"The host says: {status.message or status.reason}", stalled=False)
    if ready is not None and ready.status != "True":
        return Lack(ready.reason, f"The machine says: {ready.message}", stalled=False)
    return Lack("Importing", "The host takes the domain over.", stalled=False)


def _said(phase: ImportPhase, lack: Lack | None, items: tuple[PlanItem, ...]) -> tuple[str, str]:
    if lack is not None:
        return lack.reason, lack.message
    later = sum(item.when is PlanWhen.NEXT_START for item in items)
    after = f"; {later} things change when it is started anew (status.plan)" if later else ""
    match phase:
        case ImportPhase.PLANNED:
            return "Planned", f"It can be imported{after}. Set spec.dryRun to false to carry it out."
        case ImportPhase.SUCCEEDED:
            return "Imported", f"The domain is the machine, and was not restarted{after}."
        case _:
            return "Importing", "Volumes and machine are made."
