"""A pool's status from what its hosts say, and which hosts it is on."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolFacts
from kumulus.api.storage import StoragePool
from kumulus_controllers.storage.pool import LISTED, Scope, derive_status
from kumulus_controllers.storage.presence import belongs

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"


def pool(*, deleting: bool = False, **spec: Any) -> StoragePool:
    metadata = {"name": "local", "uid": UID, "generation": 2, **({"deletionTimestamp": NOW} if deleting else {})}
    return StoragePool.parse({"metadata": metadata, "spec": {"driver": "dir", "parameters": {"path": "/x"}, **spec}})


def host(name: str = "a", *, deleting: bool = False, namespace: str | None = "kumulus-host-a", **labels: str) -> Host:
    metadata = {"name": name, "uid": name, "labels": labels, **({"deletionTimestamp": NOW} if deleting else {})}
    return Host.parse({"metadata": metadata, "spec": {"zone": "z1"}, "status": {"namespace": namespace}})


def order(
    name: str,
    state: str | None,
    message: str = "",
    capacity: int | None = None,
    used: int = 1,
    reason: str | None = None,
) -> WorkOrder:
    ref = {"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}}
    return WorkOrder.parse(
        {
            "metadata": {"name": "pool", "namespace": f"kumulus-host-{name}"},
            "spec": {
                "type": "Pool",
                "for": {"kind": "StoragePool", "name": "local", "uid": UID},
                "pool": {"pool": ref},
            },
            "status": {
                "state": state,
                "message": message,
                "reason": reason,
                "pool": {"capacity": capacity, "used": used} if capacity else None,
            },
        }
    )


@pytest.mark.parametrize(
    ("some", "where", "expected"),
    [
        (pool(), host(), True),
        (pool(), host(deleting=True), False),
        (pool(), host(namespace=None), False),
        (pool(zone="z2"), host(), False),
        (pool(zone="z1", hostSelector={"disk": "nvme"}), host(disk="nvme"), True),
        (pool(hostSelector={"disk": "nvme"}), host(), False),
    ],
)
def test_where_a_pool_is(some: StoragePool, where: Host, expected: bool) -> None:
    assert belongs(some, where) is expected


def test_a_pool_that_is_deleted_with_disks_in_it_says_whose() -> None:
    user = WorkOrder.parse(
        {
            "metadata": {"name": "instance", "namespace": "kumulus-host-a"},
            "spec": {
                "type": "Instance",
                "for": {"kind": "VirtualMachine", "namespace": "t", "name": "web", "uid": UID},
            },
        }
    )
    status = derive_status(Scope(pool(deleting=True), (host(),), (order("a", "Ready"),), (user,)), NOW)
    stalled = status.condition("Stalled")
    assert stalled is not None and stalled.reason == "PoolInUse" and "t/web" in stalled.message


@pytest.mark.parametrize(
    ("orders", "phase", "reason", "says"),
    [
        ((), "Pending", "NoHosts", "hostSelector"),
        ((order("a", None),), "Pending", "NotReadyAnywhere", "a: the agent has not answered yet"),
        ((order("a", "Failed", "no such directory"),), "Pending", "NotReadyAnywhere", "a: no such directory"),
        (
            tuple(order(name, "Failed", "has no device-mapper", reason="DriverUnsupported") for name in "ab"),
            "Pending",
            "DriverUnsupported",
            "a: has no device-mapper",
        ),
        (
            (order("a", "Failed", "no tool", reason="ToolsMissing"), order("b", "Failed", "no", reason="PoolStalled")),
            "Pending",
            "NotReadyAnywhere",
            "a: no tool",
        ),
        (
            (order("a", "Ready", capacity=10), order("b", "Failed", "full")),
            "Degraded",
            "Degraded",
            "1 of 2 hosts; b: full",
        ),
        ((order("a", "Ready", capacity=10),), "Ready", "Ready", "1 hosts"),
    ],
)
def test_phases(orders: tuple[WorkOrder, ...], phase: str, reason: str, says: str) -> None:
    after = derive_status(Scope(pool(), (), orders), NOW)
    ready = after.condition("Ready")
    assert after.phase == phase and ready is not None and ready.reason == reason and says in ready.message


def test_a_host_that_cannot_use_the_pool_says_why_in_one_word() -> None:
    orders = (order("a", "Ready", capacity=10), order("b", "Failed", "No group.", reason="VolumeGroupMissing"))
    there, missing = derive_status(Scope(pool(), (), orders), NOW).hosts
    assert (there.ready, there.reason, there.message) == (True, None, None)
    assert (missing.ready, missing.reason, missing.message) == (False, "VolumeGroupMissing", "No group.")


def test_maintenance_is_not_ready_but_counts() -> None:
    after = derive_status(Scope(pool(maintenance=True), (), (order("a", "Ready", capacity=10),)), NOW)
    assert after.phase == "Maintenance" and after.ready_hosts == 1 and after.capacity == 10


@pytest.mark.parametrize(
    ("used", "accepts", "reason", "low"),
    [
        ((79, 0), "True", "Accepts", False),
        ((80, 0), "True", "Accepts", True),
        ((89, 0), "True", "Accepts", True),
        ((90, 0), "True", "OverThresholdOnSome", True),
        ((95, 90), "False", "OverThreshold", True),
    ],
)
def test_thresholds_are_explained(used: tuple[int, int], accepts: str, reason: str, low: bool) -> None:
    orders = tuple(order(name, "Ready", capacity=100, used=share) for name, share in zip("ab", used, strict=True))
    scope = Scope(pool(thresholds={"warnAt": 80, "stopNewVolumesAt": 90}), (), orders)
    after = derive_status(scope, NOW)
    found = after.condition("AcceptsVolumes")
    assert found is not None and (found.status, found.reason) == (accepts, reason)
    assert ("stopNewVolumesAt" in found.message) is reason.startswith("Over")
    ready, warned = after.condition("Ready"), after.condition("SpaceLow")
    assert ready is not None and ready.status == "True" and (warned is not None) is low
    assert warned is None or "a" in warned.message


def test_what_is_promised_is_summed() -> None:
    orders = (order("a", "Ready", capacity=10), order("b", "Failed"))
    after = derive_status(Scope(pool(), (), orders, (), {"a": 30, "b": 5}), NOW)
    assert after.allocated == 35 and [host.allocated for host in after.hosts] == [30, 5]


def test_what_nobody_owns_is_summed() -> None:
    orders = tuple(
        item.model_copy(
            update={
                "status": item.status.model_copy(
                    update={"pool": PoolFacts(capacity=10, unowned_count=number, unowned_bytes=number * 100)}
                )
            }
        )
        for number, item in enumerate((order("a", "Ready"), order("b", "Ready"), order("c", "Ready")))
    )
    after = derive_status(Scope(pool(), (), orders), NOW)
    assert (after.unowned_files, after.unowned_bytes) == (3, 300)
    assert [host.unowned for host in after.hosts] == [0, 1, 2]


def test_many_hosts_are_summed_and_some_listed() -> None:
    orders = tuple(order(f"h{number:04}", "Ready", capacity=10) for number in range(LISTED + 44))
    after = derive_status(Scope(pool(), (), orders), NOW)
    assert after.capacity == 10 * (LISTED + 44) and after.ready_hosts == LISTED + 44 and len(after.hosts) == LISTED


def test_a_pool_that_hosts_share_is_counted_once_and_says_how_it_is_reached() -> None:
    some = pool(parameters={"path": "/x", "shared": True})
    orders = [order("a", "Ready", capacity=100), order("b", "Ready", capacity=100)]
    orders[1] = orders[1].model_copy(
        update={
            "status": orders[1].status.model_copy(update={"pool": PoolFacts(capacity=100, used=7, access="By NFS.")})
        }
    )
    after = derive_status(Scope(some, (), tuple(orders)), NOW)
    assert (after.capacity, after.used) == (100, 7)
    ready = after.condition("Ready")
    assert ready is not None and ready.message == "Ready on 2 hosts. By NFS."
    lacking = derive_status(Scope(some, (), tuple(orders), lack="There is no Secret x."), NOW).condition("Ready")
    assert lacking is not None and (lacking.reason, lacking.message) == ("SecretNotFound", "There is no Secret x.")
