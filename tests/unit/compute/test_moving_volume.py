"""A machine whose volume is moved: it is told of the other pool, keeps all else, and stays where the volume is."""

from __future__ import annotations

from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import Volume
from kumulus_controllers.compute.order import instance_order, renewed
from kumulus_controllers.compute.resolve import Resolution, attached_disks, placement_request, resolve
from kumulus_controllers.compute.scope import Scope, Use
from kumulus_controllers.storage.volume_plan import Scope as VolumeScope
from kumulus_controllers.storage.volume_plan import wanted
from tests.unit.compute.test_machine_status import UID, machine

VOLUME = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ac"
DISKS = [{"name": "data", "volume": "data"}]
ATTACHED = {"attachedTo": {"vm": "web", "uid": UID}}


def pool(name: str, *, shared: bool = False) -> PoolRef:
    uid = f"00000000-0000-0000-0000-{sum(name.encode()):012d}"
    parameters = {"path": f"/{name}", **({"shared": True} if shared else {})}
    return PoolRef.model_validate({"uid": uid, "name": name, "driver": "dir", "parameters": parameters})


def scope(in_: PoolRef, vm: VirtualMachine | None = None, **status: Any) -> Scope:
    volume = Volume.parse(
        {
            "metadata": {"name": "data", "namespace": "ns", "uid": VOLUME},
            "spec": {"size": "1Gi"},
            "status": {"pool": in_.name, "host": "h1", "size": "1Gi", **status},
        }
    )
    use = Use(volume, wanted(VolumeScope(volume)), in_)
    return Scope(vm or machine(disks=DISKS), None, None, None, {}, volumes={"data": use})


def test_the_order_follows_the_volume_and_changes_nothing_else() -> None:
    before = scope(pool("old"), movingTo="new", **ATTACHED)
    disks, problem = attached_disks(before, "h1")
    assert problem is None, "it is used while it moves"
    resolution = resolve(before)
    assert isinstance(resolution, Resolution)
    order = instance_order(before.vm, resolution, None, disks, (), 1, 1, None)
    assert renewed(before.vm, order, disks, (), 2) is order
    there, _ = attached_disks(scope(pool("new"), **ATTACHED), "h1")
    after = renewed(before.vm, order, there, (), 2)
    assert order.instance is not None and after.instance is not None
    assert after.instance.disks[0].pool == pool("new")
    moved = order.instance.disks[0].model_copy(update={"pool": pool("new")})
    assert after.instance == order.instance.model_copy(update={"disks": (moved,)}), "nothing that would restart it"


def test_a_machine_goes_to_the_host_that_moves_its_volume() -> None:
    nfs = pool("nfs", shared=True)
    for status, bound in (({}, {}), ({"movingTo": "local"}, {"data": "h1"})):
        read = scope(nfs, **status)
        resolution = resolve(read)
        assert isinstance(resolution, Resolution)
        assert placement_request(read, resolution).bound == bound


def test_a_machine_elsewhere_is_told_what_it_waits_for() -> None:
    read = scope(pool("nfs", shared=True), movingTo="local")
    disks, problem = attached_disks(read, "h2")
    assert disks == () and problem is not None and problem.reason == "VolumeMoves" and not problem.stalled
    assert "Host h1 moves volume data to StoragePool local" in problem.message and "host h2" in problem.message
