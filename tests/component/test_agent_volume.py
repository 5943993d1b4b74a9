"""Volumes on a real API server: made, grown, given to machines, taken back, removed."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.order_names import instance_order_name, volume_order_name
from kumulus_agents.hypervisor.domain import DomainState, ExitReason
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.hypervisor.simulated_host import SimulatedSettings as HypervisorSettings
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import SimulatedSettings
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import IMAGE, POOL, TestHost, eventually, host_on

pytestmark = pytest.mark.cluster

GIB = 1 << 30


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


@pytest.fixture
async def real(cluster: NativeCluster, tmp_path: Path) -> AsyncIterator[TestHost]:
    """A host whose pool is a directory."""
    async with host_on(cluster.kubeconfig, directory=tmp_path) as made:
        yield made


def disk(volume: str, name: str = "data", boot_order: int = 1) -> dict[str, Any]:
    return {"name": name, "pool": POOL, "volume": volume, "bootOrder": boot_order}


def files(host: TestHost) -> set[str]:
    """What lies in the pool's directory of volumes."""
    assert host.directory is not None
    return {entry.name for entry in (host.directory / "pool/volumes").iterdir()}


async def delete(host: TestHost, name: str, seconds: float = 5) -> None:
    await host.delete(name)
    await eventually(lambda: host.gone(name), f"the end of {name}", seconds)


# Made, grown, removed


async def test_a_blank_volume_takes_one_write_and_is_removed_with_its_order(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB)
        status = await real.until_volume(volume, state="Ready")
        assert status["disk"] == {"format": "qcow2", "virtualSize": GIB, "size": 64 << 20}
        assert status["observedGeneration"] == 1
        assert real.count("patch", "WorkOrder") == 1
        assert files(real) == {f"{volume}.qcow2", f"{volume}.json"}
        await delete(real, volume_order_name(volume))
        assert files(real) == set()


async def test_a_retained_volume_outlives_its_order(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB, retain=True)
        await real.until_volume(volume, state="Ready")
        await delete(real, volume_order_name(volume))
        assert f"{volume}.qcow2" in files(real)
        await real.volume_order(volume, size=GIB)
        await real.until_volume(volume, state="Ready")


async def test_a_volume_that_nobody_uses_grows_in_its_file(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB)
        await real.until_volume(volume, state="Ready")
        await real.change_volume(volume, size=2 * GIB)
        status = await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["virtualSize"] == 2 * GIB
        await real.change_volume(volume, size=GIB)
        status = await real.until_volume(volume, state="Ready", observedGeneration=3)
        assert (status["reason"], status["disk"]["virtualSize"]) == ("ShrinkRefused", 2 * GIB)


async def test_a_copy_has_what_its_source_has(real: TestHost, tmp_path: Path) -> None:
    async with real.running():
        source = await real.volume_order(size=64 << 20)
        await real.until_volume(source, state="Ready")
        file = tmp_path / f"pool/volumes/{source}.qcow2"
        command = ["qemu-io", "-f", "qcow2", "-c", "write -P 0x78 1M 64k", str(file)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221 - a moment, in a test
        copy = await real.volume_order(size=64 << 20, origin={"volume": source})
        await real.until_volume(copy, state="Ready")
        await delete(real, volume_order_name(source))
        command = ["qemu-io", "-f", "qcow2", "-c", "read -P 0x78 1M 64k", str(file.with_name(f"{copy}.qcow2"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: ASYNC221
        assert "verification failed" not in done.stdout


async def test_a_volume_waits_for_its_image_and_keeps_it(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(origin={"image": IMAGE})
        await host.until_volume(volume, state="Waiting", reason="ImageNotReady")
        await host.import_order()
        status = await host.until_volume(volume, 5, state="Ready")
        assert status["disk"]["virtualSize"] == 2 * GIB
        await host.delete("image-1")
        await host.until("image-1", state="Waiting", reason="ImageInUse")
        await host.delete(volume_order_name(volume))
        await eventually(lambda: host.gone("image-1"), "the image's end", 5)


async def test_a_copy_waits_for_its_source(host: TestHost) -> None:
    async with host.running():
        source = "00000000-0000-4000-8000-000000000001"
        copy = await host.volume_order(origin={"volume": source})
        await host.until_volume(copy, state="Waiting", reason="VolumeNotReady")
        await host.volume_order(source, size=GIB)
        await host.until_volume(copy, 5, state="Ready")


async def test_what_cannot_be_made_says_why(host: TestHost) -> None:
    async with host.running():
        await host.import_order()
        await host.until("image-1", state="Ready")
        host.storage.fail("ensure_volume", StorageError("the pool is full", reason="NoSpace"))
        volume = await host.volume_order(size=GIB)
        status = await host.until_volume(volume, state="Failed", reason="NoSpace")
        assert status["message"] == "the pool is full"
        small = await host.volume_order(size=GIB, origin={"image": IMAGE})
        await host.until_volume(small, state="Failed", reason="DiskTooSmall")
        await host.change_volume(small, size=2 * GIB)
        await host.until_volume(small, 5, state="Ready")


async def test_a_lost_volume_is_not_made_anew(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        del host.storage.state.volumes[volume]
        await host.change_volume(volume, size=2 * GIB)
        status = await host.until_volume(volume, state="Failed", reason="VolumeLost")
        assert status["disk"]["virtualSize"] == GIB
        existing = await host.volume_order(size=GIB, existing=True)
        await host.until_volume(existing, state="Failed", reason="VolumeLost")
    async with host.running():
        await host.change_volume(volume, size=3 * GIB)
        await host.until_volume(volume, state="Failed", reason="VolumeLost", observedGeneration=3)
        assert not host.storage.state.volumes


async def test_a_new_agent_writes_nothing_about_what_is_as_it_was(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
    writes = host.count("patch", "WorkOrder")
    async with host.running():
        other = await host.volume_order(size=GIB)
        await host.until_volume(other, state="Ready")
    assert host.count("patch", "WorkOrder") == writes + 1


# With machines


async def test_a_machine_waits_for_its_volume_and_never_takes_it_along(real: TestHost) -> None:
    async with real.running():
        volume = "00000000-0000-4000-8000-000000000001"
        uid = await real.order(disks=[disk(volume)])
        await real.until_instance(uid, state="Waiting", reason="VolumeNotReady")
        await real.volume_order(volume, size=GIB)
        status = await real.until_instance(uid, 5, state="Running")
        assert status["instance"]["volumes"] == [volume]
        await real.delete(volume_order_name(volume))
        status = await real.until_volume(volume, state="Waiting", reason="VolumeInUse")
        assert "machine vm has the volume" in status["message"]
        await real.delete(instance_order_name(uid))
        await eventually(lambda: real.gone(instance_order_name(uid)), "the machine's end", 5)
        await eventually(lambda: real.gone(volume_order_name(volume)), "the volume's end", 5)
        assert files(real) == set()


async def test_removing_a_machine_leaves_its_volumes(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB)
        uid = await real.order(disks=[disk(volume)])
        await real.until_instance(uid, state="Running")
        await delete(real, instance_order_name(uid))
        assert files(real) == {f"{volume}.qcow2", f"{volume}.json"}


async def test_a_volume_comes_to_a_running_machine_and_goes(host: TestHost) -> None:
    async with host.running():
        one, two = [await host.volume_order(size=GIB) for _ in range(2)]
        uid = await host.order(disks=[disk(one, "one")])
        await host.until_attached(uid, one)
        for each in (one, two):
            await host.until_volume(each, state="Ready")
        writes = host.count("patch", "WorkOrder")
        await host.change(uid, disks=[disk(one, "one"), disk(two, "two", 2)])
        await host.until_attached(uid, one, two)
        await host.change(uid, disks=[disk(two, "two", 2)])
        status = await host.until_attached(uid, two)
        assert (status["state"], status["observedGeneration"]) == ("Running", 3)
        assert "reason" not in status
        assert host.count("patch", "WorkOrder") == writes + 2
        await delete(host, volume_order_name(one))
        assert host.machine.domains[uid].volumes == {two}
    assert host.machine.starts[uid] == 1


async def test_a_running_machine_gets_a_volume_when_it_is_made(host: TestHost) -> None:
    async with host.running():
        volume = "00000000-0000-4000-8000-000000000001"
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        await host.change(uid, disks=[disk(volume)])
        await host.until_instance(uid, state="Running", reason="VolumeNotReady")
        await host.volume_order(volume, size=GIB)
        status = await host.until_attached(uid, volume, seconds=5)
        assert (status["state"], status.get("reason")) == ("Running", None)


async def test_a_guest_that_does_not_let_go_is_told_and_not_lied_about(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        uid = await host.order(disks=[disk(volume)])
        await host.until_instance(uid, state="Running")
        host.machine.clinging.add(uid)
        await host.change(uid, disks=[])
        status = await host.until_instance(uid, state="Running", reason="Detaching")
        assert status["instance"]["volumes"] == [volume]
        assert "has not let go of data" in status["message"]
        await host.delete(volume_order_name(volume))
        await host.until_volume(volume, state="Waiting", reason="VolumeInUse")
        host.machine.clinging.discard(uid)
        host.machine.detached(uid, volume, host.machine.domains[uid].started_at)
        status = await host.until_attached(uid, seconds=5)
        assert "reason" not in status
        await eventually(lambda: host.gone(volume_order_name(volume)), "the volume's end", 5)


async def test_a_slow_guest_is_waited_for(cluster: NativeCluster) -> None:
    slow = SimulatedHost(HypervisorSettings(detach_seconds=0.5, jitter=0))
    async with host_on(cluster.kubeconfig, machine=slow) as host, host.running():
        volume = await host.volume_order(size=GIB)
        uid = await host.order(disks=[disk(volume)])
        await host.until_instance(uid, state="Running")
        await host.change(uid, disks=[])
        status = await host.until_attached(uid, seconds=5)
        assert "reason" not in status


async def test_a_volume_grows_under_a_running_machine(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB)
        uid = await real.order(disks=[disk(volume)])
        await real.until_instance(uid, state="Running")
        await real.change_volume(volume, size=2 * GIB)
        status = await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["virtualSize"] == 2 * GIB
        assert real.machine.sizes == {volume: 2 * GIB}


async def test_disks_of_a_machine_that_is_off_go_at_once_and_come_at_its_next_start(host: TestHost) -> None:
    async with host.running():
        one, two = [await host.volume_order(size=GIB) for _ in range(2)]
        uid = await host.order(disks=[disk(one, "one")])
        await host.until_instance(uid, state="Running")
        await host.change(uid, power="Stopped")
        status = await host.until_instance(uid, state="Stopped")
        assert status["instance"]["volumes"] == [one]
        await host.change(uid, disks=[disk(two, "two")])
        status = await host.until_attached(uid)
        assert status["state"] == "Stopped"
        await host.change(uid, power="Running")
        await host.until_attached(uid, two)
        assert host.machine.domains[uid].state is DomainState.RUNNING


async def test_two_machines_never_have_the_same_volume(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        first = await host.order(disks=[disk(volume)])
        await host.until_instance(first, state="Running")
        second = await host.order(disks=[disk(volume)])
        await host.until_instance(second, state="Refused", reason="VolumeInUse")
        third = await host.order()
        await host.until_instance(third, state="Running")
        await host.change(third, disks=[disk(volume)])
        await host.until_instance(third, state="Running", reason="VolumeInUse")
        assert second not in host.machine.domains
        assert not host.machine.domains[third].volumes
        await delete(host, instance_order_name(third))
        host.machine.clinging.add(first)
        await host.change(first, disks=[])
        await host.until_instance(first, reason="Detaching")
        assert (await host.status(instance_order_name(second)))["state"] == "Refused"
        host.machine.clinging.discard(first)
        host.machine.detached(first, volume, host.machine.domains[first].started_at)
        await host.until_instance(second, 5, state="Running")
        assert host.machine.domains[second].volumes == {volume}


async def test_of_two_machines_that_want_a_volume_the_older_gets_it(host: TestHost) -> None:
    """Of two from the same second the one whose name comes first."""
    volume = await host.volume_order(size=GIB)
    older = await host.order(disks=[disk(volume)], uid="00000000-0000-4000-8000-000000000001")
    younger = await host.order(disks=[disk(volume)], uid="ffffffff-0000-4000-8000-000000000002")
    async with host.running():
        await host.until_instance(older, state="Running")
        await host.until_instance(younger, state="Refused", reason="VolumeInUse")
        await delete(host, instance_order_name(older))
        await host.until_instance(younger, 5, state="Running")


async def test_a_volume_that_another_host_has_taken_is_opened_by_no_agent_whose_orders_are_old(host: TestHost) -> None:
    together = POOL | {"uid": "00000000-0000-4000-8000-00000000000a", "name": "together"}
    together["parameters"] = {"path": "/var/lib/kumulus/pools/together", "shared": True}
    async with host.running():
        volume = await host.volume_order(pool=together, size=GIB)
        uid = await host.order(disks=[disk(volume) | {"pool": together}])
        await host.until_instance(uid, state="Running")
        host.pools[str(together["uid"])].keepers[volume] = (1, "other")
        host.machine.end(uid, ExitReason.CRASHED)
        status = await host.until_instance(uid, reason="VolumeElsewhere")
        assert "other" in status["message"] and host.machine.starts[uid] == 1


async def test_a_volume_is_not_removed_while_the_hypervisor_does_not_answer(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        host.machine.disconnect()
        await host.delete(volume_order_name(volume))
        await host.until_volume(volume, state="Waiting", reason="HypervisorUnavailable")
        assert volume in host.storage.state.volumes
        host.machine.reconnect()
        await eventually(lambda: host.gone(volume_order_name(volume)), "the volume's end", 10)


async def test_a_long_copy_shows_its_work_and_ends_with_its_order(cluster: NativeCluster) -> None:
    endless = SimulatedSettings(disk_seconds=3600)
    async with host_on(cluster.kubeconfig, simulated=endless) as host, host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Working", reason="Queued")
        await delete(host, volume_order_name(volume))
        assert not host.storage.state.volumes


async def test_volumes_of_a_suspended_machine_are_left_alone_and_stay_its_own(real: TestHost) -> None:
    async with real.running():
        volume = await real.volume_order(size=GIB)
        uid = await real.order(disks=[disk(volume)])
        await real.until_attached(uid, volume)
        await real.change(uid, power="Suspended")
        await real.until_instance(uid, state="Suspended")
        await real.change_volume(volume, size=2 * GIB)
        status = await real.until_volume(volume, reason="MachineSuspended")
        assert "is suspended and has the volume" in status["message"]
        await real.change(uid, disks=[])
        status = await real.until_instance(uid, state="Suspended", reason="Detaching")
        assert status["instance"]["volumes"] == [volume]
        await real.change(uid, power="Running")
        status = await real.until_instance(uid, reason="WakeFailed")
        assert "put it back" in status["message"] or "does not fit" in status["message"]
        await real.change(uid, disks=[disk(volume)])
        await real.until_attached(uid, volume, seconds=30)
        status = await real.until_volume(volume, seconds=30, state="Ready", observedGeneration=2)
        assert status["disk"]["virtualSize"] == 2 * GIB
    assert real.machine.starts[uid] == 1
