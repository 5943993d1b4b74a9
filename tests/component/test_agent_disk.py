"""Images, pools and consoles on a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kumulus.api.order_names import instance_order_name
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import SimulatedSettings
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import IMAGE, POOL, TestHost, eventually, host_on

pytestmark = pytest.mark.cluster

DISK = {"name": "root", "pool": POOL, "image": IMAGE, "bootOrder": 1}
POOL_FOR = {"kind": "StoragePool", "name": "local", "uid": POOL["uid"]}


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


async def pool_order(host: TestHost, name: str = "pool-1") -> None:
    await host.create(name, {"type": "Pool", "for": POOL_FOR, "pool": {"pool": POOL}})


async def test_an_import_takes_one_write(host: TestHost) -> None:
    async with host.running():
        await host.import_order()
        status = await host.until("image-1", state="Ready")
    assert host.count("patch", "WorkOrder") == 1
    assert status["disk"] == {
        "sha256": IMAGE["sha256"],
        "format": "qcow2",
        "virtualSize": 2 << 30,
        "size": 1 << 20,
    }


async def test_a_long_import_shows_its_progress(cluster: NativeCluster) -> None:
    slow = SimulatedSettings(import_seconds=4, image_bytes=1 << 20)
    async with host_on(cluster.kubeconfig, simulated=slow) as host, host.running():
        await host.import_order()
        status = await host.until("image-1", state="Working", reason="Downloading")
        assert status["disk"]["progress"]["total"] == "1Mi"
        status = await host.until("image-1", state="Ready")
        assert "progress" not in status["disk"]
        assert host.count("patch", "WorkOrder") <= 4


async def test_a_broken_import_says_why_and_is_tried_again(host: TestHost) -> None:
    async with host.running():
        await pool_order(host)
        await host.until("pool-1", state="Ready")
        host.storage.fail("import_image", StorageError("the server did not answer", reason="SourceTimeout"))
        await host.import_order()
        status = await host.until("image-1", state="Failed")
        assert (status["reason"], status["message"]) == ("SourceTimeout", "the server did not answer")
        status = await host.until("image-1", state="Ready")
        assert "reason" not in status


async def test_a_hostile_image_is_not_tried_again(host: TestHost) -> None:
    async with host.running():
        await pool_order(host)
        await host.until("pool-1", state="Ready")
        refusal = StorageError("it names another file", reason="ImageRejected", retryable=False)
        host.storage.fail("import_image", refusal, refusal)
        await host.import_order()
        await host.until("image-1", state="Failed", reason="ImageRejected")
        uid = await host.order(disks=[DISK])
        await host.until_instance(uid, state="Waiting", reason="ImageNotReady")
        assert (await host.status("image-1"))["state"] == "Failed"
        await host.delete("image-1")
        await eventually(lambda: host.gone("image-1"), "the order's end")


async def test_deleting_ends_an_import(cluster: NativeCluster) -> None:
    endless = SimulatedSettings(import_seconds=3600)
    async with host_on(cluster.kubeconfig, simulated=endless) as host, host.running():
        for number in range(4):
            image = IMAGE | {"uid": str(IMAGE["uid"])[:-1] + str(number)}
            await host.import_order(f"image-{number}", image)
        await host.until("image-3", state="Working", reason="Queued")
        for number in range(4):
            await host.delete(f"image-{number}")
        for number in range(4):
            await eventually(lambda name=f"image-{number}": host.gone(name), "the order's end")  # type: ignore[misc]
        assert not host.storage.state.images


async def test_an_image_in_use_waits_for_its_machines(host: TestHost) -> None:
    async with host.running():
        await host.import_order()
        uid = await host.order(disks=[DISK])
        await host.until_instance(uid, state="Running")
        await host.delete("image-1")
        await host.until("image-1", state="Waiting", reason="ImageInUse")
        await host.delete(instance_order_name(uid))
        await eventually(lambda: host.gone("image-1"), "the image's end", 5)
    assert not host.storage.state.images


async def test_an_import_goes_on_after_a_crash(cluster: NativeCluster) -> None:
    async with host_on(cluster.kubeconfig, simulated=SimulatedSettings(import_seconds=2)) as host:
        async with host.running():
            await host.import_order()
            await host.until("image-1", state="Working")
        async with host.running():
            await host.until("image-1", state="Ready")


async def test_a_pool_says_how_much_room_it_has(host: TestHost) -> None:
    async with host.running():
        await pool_order(host)
        status = await host.until("pool-1", state="Ready")
        assert (status["pool"]["capacity"], status["pool"]["used"], status["pool"]["unownedCount"]) == (10 << 40, 0, 0)
        await host.delete("pool-1")
        await eventually(lambda: host.gone("pool-1"), "the order's end")


async def test_a_pool_that_cannot_be_used_says_why(host: TestHost) -> None:
    async with host.running():
        await host.import_order()
        await host.until("image-1", state="Ready")
        host.storage.fail("prepare", StorageError("no such file system", reason="PoolUnavailable"))
        await pool_order(host)
        status = await host.until("pool-1", state="Failed", reason="PoolUnavailable")
        assert status["message"] == "no such file system"


async def test_a_console_is_read_once(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        order = {"kind": "ConsoleRequest", "namespace": "tenant", "name": "c", "uid": uid}
        for name, machine in (("console-1", uid), ("console-2", str(IMAGE["uid"]))):
            console = {"uid": machine, "maxBytes": 100}
            await host.create(name, {"type": "Console", "for": order, "console": console})
        status = await host.until("console-1", state="Ready")
        assert status["console"]["log"] == f"login of {uid}"
        await host.until("console-2", state="Failed", reason="NoConsole")
        await host.delete("console-1")
        await eventually(lambda: host.gone("console-1"), "the order's end")
