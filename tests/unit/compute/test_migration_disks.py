"""Which disks go along with a machine, and what keeps them where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.base import ObjectMeta
from kumulus.api.host import HostReport
from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef
from kumulus.api.instance_order import CopiedDisk, InstanceDisk
from kumulus.api.migration import MigrationPhase, MovingDisk, VirtualMachineMigration, VirtualMachineMigrationSpec
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.api.storage import Volume, VolumeSpec, VolumeStatus
from kumulus_controllers.compute import migration_disks, migration_orders
from kumulus_controllers.compute.migration_plan import Step, plan
from kumulus_controllers.compute.migration_preflight import blocked
from kumulus_controllers.compute.migration_scope import Scope
from kumulus_controllers.compute.scope import Use
from kumulus_controllers.planning.views import VolumeDemand
from kumulus_controllers.storage.volume_plan import Wanted
from tests.unit.compute.test_migration_plan import GO, HERE, LOCAL, OTHER, SHARED, THERE, UID, machine, order

GIB = 1 << 30
LVM = PoolRef(uid=OTHER, name="p", driver=PoolDriver.LVM, parameters=PoolParameters(group="vg"))
IMAGE = ImageRef(uid=OTHER, name="system", format=ImageFormat.RAW)


def use(*, pool: PoolRef = LOCAL, thick: bool = False, wants: str | None = None, size: int | None = GIB) -> Use:
    status = VolumeStatus(pool="p", host=HERE, size=size)
    volume = Volume(
        metadata=ObjectMeta(name="v", namespace="ns", uid=OTHER), spec=VolumeSpec(size=wants), status=status
    )
    want = Wanted(size=GIB, demand=VolumeDemand(OTHER, GIB), thick=thick, retain=False, origin=None)
    return Use(volume, want, pool)


def scope(*, along: bool = True, disk: dict[str, Any] | None = None, disks: bool = True, **changes: Any) -> Scope:
    """A machine with a disk of its own, `tmp`, and a volume, `root`, that only its host has."""
    at = order(HERE, 4)
    assert at.spec.instance is not None
    own = {"name": "tmp", "pool": LOCAL, "image": IMAGE, "size": GIB, "boot_order": 2, **(disk or {})}
    root = InstanceDisk(name="root", pool=changes.pop("pool", LOCAL), volume=OTHER, boot_order=1)
    instance = at.spec.instance.model_copy(update={"disks": (root, InstanceDisk(**own))})
    report = {
        "metadata": {"name": HERE},
        "status": {"migration": {"address": "192.0.2.1", "port": 9413, "disks": disks}},
    }
    migration = VirtualMachineMigration(
        metadata=ObjectMeta(name="go", namespace="ns", uid=GO),
        spec=VirtualMachineMigrationSpec(vm="vm", with_local_disks=along),
    )
    return Scope(
        **{
            "migration": migration,
            "vm": machine(),
            "now": 0.0,
            "source": at.model_copy(update={"spec": at.spec.model_copy(update={"instance": instance})}),
            "source_report": HostReport.parse(report),
            "volumes": {"root": use()},
            **changes,
        }
    )


def test_they_go_along_when_that_is_asked_for() -> None:
    assert blocked(scope()) is None
    assert migration_disks.along(scope()) == (
        MovingDisk(name="root", volume=OTHER, pool="p", size=GIB),
        MovingDisk(name="tmp", pool="p", size=GIB),
    )
    assert migration_disks.along(scope(along=False)) == ()


def test_without_being_asked_for_each_is_named() -> None:
    lack = blocked(scope(along=False))
    assert lack is not None and lack.reason == "LocalDisks"
    assert "Disk tmp is ephemeral" in lack.message and "Disk root is in a pool" in lack.message
    assert "withLocalDisks" in lack.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"disks": False}, "AgentTooOld"),
        ({"disk": {"pool": SHARED}}, "LocalDisks"),
        ({"disk": {"size": None}}, "PendingChanges"),
        ({"pool": LVM}, "PoolNotCopied"),
        ({"volumes": {}}, "PendingChanges"),
        ({"volumes": {"root": use(size=None)}}, "PendingChanges"),
        ({"volumes": {"root": use(wants="2Gi")}}, "PendingChanges"),
        ({"volumes": {"root": use(thick=True)}}, "ThickVolume"),
        ({"pinned": {"root": migration_disks.pinned("root", ["volsnap/s"], [], None)}}, "HasSnapshots"),
        ({"pinned": {"root": migration_disks.pinned("root", [], [], "Volume copy")}}, "VolumeBusy"),
    ],
)
def test_what_keeps_a_disk_where_it_is(changes: dict[str, Any], reason: str) -> None:
    lack = blocked(scope(**changes))
    assert lack is not None and lack.reason == reason


def test_both_hosts_are_told_of_the_same_disks() -> None:
    here = scope()
    assert here.source is not None
    status = here.migration.status.model_copy(
        update={"source_host": HERE, "target_host": THERE, "epoch": 5, "disks": migration_disks.along(here)}
    )
    migration = here.migration.model_copy(update={"status": status})
    coming = migration_orders.target_order(here.source.spec, migration, 1).instance
    assert coming is not None and coming.incoming is not None
    assert coming.incoming.disks == (CopiedDisk(name="root", size=GIB), CopiedDisk(name="tmp", size=GIB))


def test_the_target_is_to_take_in_no_domain() -> None:
    """Should it start anew before its order is settled, there is none there to be found, and the machine is to be started."""
    source = order(HERE, 4, adopt=True)
    going = scope().migration
    status = going.status.model_copy(update={"source_host": HERE, "target_host": THERE, "epoch": 5})
    there = migration_orders.target_order(source.spec, going.model_copy(update={"status": status}), 1)
    assert there.instance is not None and not there.instance.adopt
    settled = migration_orders.settled(there, 1)
    assert settled.instance is not None and not settled.instance.adopt


def test_a_size_is_in_whole_sectors() -> None:
    assert [migration_disks.sectors(size) for size in (1, 512, 513)] == [512, 512, 1024]


def test_room_for_each_is_asked_for_in_its_own_pool() -> None:
    demands = migration_disks.demands(migration_disks.along(scope()), UID)
    assert [(demand.pool, demand.size) for demand in demands] == [("p", GIB), ("p", GIB)]
    assert len({demand.uid for demand in demands}) == 2
    assert replace(demands[0], uid="") == VolumeDemand("", GIB, pool="p")


def test_the_source_keeps_what_the_target_has_not_also_when_the_spec_names_it_no_more() -> None:
    """A disk that is taken out of the machine's spec on the way goes along all the same."""
    status = {"source_host": HERE, "target_host": THERE, "epoch": 5, "vm_uid": UID, "phase": MigrationPhase.FINISHING}
    at = scope(vm=machine(host=THERE, epoch=5), volumes={}, unsettled=frozenset({"root"}), target=order(THERE, 5))
    at = replace(
        at, migration=at.migration.model_copy(update={"status": at.migration.status.model_copy(update=status)})
    )
    move = plan(at)
    assert move.step is Step.WAIT and move.lack is not None and move.lack.reason == "VolumesFollow"
    assert "root" in move.lack.message
    assert plan(replace(at, unsettled=frozenset())).step is Step.END_SOURCE
