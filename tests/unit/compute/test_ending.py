"""A machine that is deleted while it moves with its disks says so, and what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import Phase, VirtualMachine
from kumulus.api.migration import VirtualMachineMigration
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key
from kumulus.runtime.clock import Clock
from kumulus.runtime.reconciler import Caches, Services
from kumulus.runtime.result import Requeue, Wait
from kumulus_controllers.compute.ending import TERMINATING_SHOWN_AFTER, Ending
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.planning.fleet import Fleet
from tests.unit.compute.test_migration_plan import GO, HERE, OUT, STARTED, THERE, UID, order


class World:
    """A machine on its way from one host to another, of which the first does not answer. Also the API, and the clock."""

    def __init__(self) -> None:
        self.caches, self.at, self.woken = Caches(), 0.0, set[Key]()
        services = Services(cast(KubeClient, self), self.caches, cast(Clock, self), lambda: 1)
        self.known = Machines(services, Fleet())
        self.ending = Ending(services, Fleet(), self.known)
        self.ending.attach(lambda key, *, urgent=False: self.woken.add(key))
        going = {"name": "vm", "namespace": "ns", "uid": UID, "finalizers": [FINALIZER], "deletionTimestamp": STARTED}
        self.raw: dict[str, Any] = {
            "metadata": {**going, "resourceVersion": "1"},
            "spec": {"resources": {"cpus": 1, "memory": "64Mi"}},
            "status": {"host": HERE, "epoch": 4, "phase": "Migrating"},
        }
        self.known.store.apply(self.raw)
        sends = order(HERE, 4, outgoing=OUT["outgoing"].model_copy(update={"disks": ("root",)}))
        raw = {"metadata": sends.metadata.to_json(), "spec": sends.spec.to_json(), "status": sends.status.to_json()}
        self.known.orders.apply({**raw, "metadata": {**raw["metadata"], "resourceVersion": "1"}})

    def migrates(self, reason: str, version: str) -> None:
        ready = {"type": "Ready", "status": "False", "reason": reason, "message": "Host a has not answered."}
        status = {"phase": "Cancelling", "sourceHost": HERE, "targetHost": THERE, "conditions": [ready]}
        meta = {"name": "go", "namespace": "ns", "uid": GO, "resourceVersion": version}
        self.caches.store(VirtualMachineMigration).apply({"metadata": meta, "spec": {"vm": "vm"}, "status": status})

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return datetime(2027, 1, 15, tzinfo=UTC)

    async def patch(self, *_: Any, subresource: str | None = None) -> dict[str, Any]:
        body = next(part for part in _ if isinstance(part, dict))
        assert subresource == "status", "nothing of it is taken down"
        version = str(int(self.raw["metadata"]["resourceVersion"]) + 1)
        metadata = {**self.raw["metadata"], "resourceVersion": version}
        self.raw = {**self.raw, "metadata": metadata, "status": {**self.raw["status"], **body["status"]}}
        return self.raw

    async def ends(self) -> Any:
        vm = self.known.store.get("vm", "ns")
        assert vm is not None
        return await self.ending.delete(self.known.observe(vm))


async def test_what_a_machine_that_moves_with_its_disks_waits_for_when_it_is_deleted() -> None:
    """It said Migrating, and that it was ready, for as long as the host was silent; and was looked at every second."""
    world = World()
    world.migrates("WaitsForSource", "1")
    assert isinstance(await world.ends(), Requeue)
    world.at += TERMINATING_SHOWN_AFTER
    waits = await world.ends()
    assert isinstance(waits, Wait) and waits.after >= 30
    status = VirtualMachine.parse(world.raw).status
    ready = status.condition("Ready")
    assert status.phase is Phase.TERMINATING and ready is not None and ready.status == "False"
    assert ready.reason == "MigrationEndsFirst" and "VirtualMachineMigration go ends first" in ready.message
    assert "Host a has not answered" in ready.message and f"{FORCE_DETACH}=true" in ready.message
    before = world.raw
    await world.ends()
    assert world.raw is before, "said once"
    world.woken.clear()
    world.migrates("TargetClearsUp", "2")
    assert world.woken == {Key("ns", "vm")}
