"""Two migrations of one machine do not both begin, whichever of them is seen first."""

from __future__ import annotations

from typing import cast

from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.migration import VirtualMachineMigration
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Services
from kumulus_controllers.compute.migration import MigrationReconciler
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet
from tests.unit.fencing.api import Client
from tests.unit.fencing.world import TENANT, Brain, World

ENDPOINT = {"migration": {"address": "192.0.2.1", "port": 9413, "disks": True}}


async def test_one_that_comes_while_the_other_is_put_on_record_waits() -> None:
    """Both were made in one second, and the later one has the smaller uid: each is the first for who does not see the other."""
    world = World(machines=("a",))
    await world.build()
    for place, raw in list(world.api.objects.items()):
        if place[0] == HostReport.KIND.plural:
            world.api.put(place, {**raw, "status": {**raw["status"], **ENDPOINT}})
        if place[0] == WorkOrder.KIND.plural and "instance" in raw["spec"]:  # simulated ones have another size
            said = {**raw["status"]["instance"], "memory": raw["spec"]["instance"]["memory"]}
            world.api.put(place, {**raw, "status": {**raw["status"], "instance": said}})

    def ask(name: str, uid: str) -> None:
        metadata = {
            "name": name, "namespace": TENANT, "uid": uid, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"
        }  # fmt: skip
        head = {"apiVersion": VirtualMachineMigration.KIND.api_version, "kind": VirtualMachineMigration.KIND.kind}
        kind = VirtualMachineMigration.KIND.plural
        world.api.put((kind, TENANT, name), {**head, "metadata": metadata, "spec": {"vm": "a"}})
        world.brain.see(kind)

    async def before(verb: str) -> None:
        if verb == "patch" and world.objects(VirtualMachineMigration)[0].metadata.get("finalizers") and not came:
            came.append(True)  # it has chosen, and is about to say so
            ask("later", "00000000-0000-0000-0000-000000000001")
            await reconciler.reconcile(Key(TENANT, "later"))

    came: list[bool] = []
    world.brain, fleet = Brain(world, 2), Fleet()
    FleetFeed(world.brain.caches, fleet)
    client = cast(KubeClient, Client(world.api, before))
    reconciler = MigrationReconciler(Services(client, world.brain.caches, world.clock, lambda: 2), fleet)
    world.brain.see()
    ask("first", "00000000-0000-0000-0000-000000000002")
    await reconciler.reconcile(Key(TENANT, "first"))
    assert came
    begun = {item.metadata["name"]: item.status.get("targetHost") for item in world.objects(VirtualMachineMigration)}
    assert begun["first"] is not None and begun["later"] is None
