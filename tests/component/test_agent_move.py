"""Volumes on a real API server that are moved from one pool of a host to another, at rest and beside a guest."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name, snapshot_order_name, volume_order_name
from kumulus_agents.hypervisor.domain import DomainState, ExitReason
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.hypervisor.simulated_host import SimulatedSettings as HypervisorSettings
from kumulus_agents.storage.moving import MovableVolumes
from kumulus_agents.storage.protocol import StorageDriver, StorageError
from kumulus_agents.storage.settings import SimulatedSettings
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import BEYOND, POOL, TestHost, eventually, host_on

pytestmark = pytest.mark.cluster

GIB = 1 << 30
MOVE = {"pool": BEYOND}


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


@pytest.fixture
async def slow(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    """A host whose emulators take 3 s to copy a disk."""
    machine = SimulatedHost(HypervisorSettings(copy_seconds=3, jitter=0))
    async with host_on(cluster.kubeconfig, machine=machine) as made:
        yield made


@pytest.fixture
async def real(cluster: NativeCluster, tmp_path: Path) -> AsyncIterator[TestHost]:
    """A host whose pools are directories."""
    async with host_on(cluster.kubeconfig, directory=tmp_path) as made:
        yield made


def disk(volume: str, pool: dict[str, Any] = POOL) -> dict[str, Any]:
    return {"name": "data", "pool": pool, "volume": volume, "bootOrder": 1}


def lying(host: TestHost, place: str) -> set[str]:
    """What lies in a pool's directory of volumes."""
    assert host.directory is not None
    return {entry.name for entry in (host.directory / place / "volumes").iterdir()}


def qemu_io(path: Path, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    command = ["qemu-io", "-f", "qcow2", *arguments, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def settle(host: TestHost, volume: str, generation: int) -> dict[str, Any]:
    """The controllers' part when a volume has moved: its order says so. What the host reports then."""
    patch = {"spec": {"disk": {"pool": BEYOND, "volume": {"move": None}}}}
    await host.client.patch(WorkOrder.KIND, volume_order_name(volume), patch, host.namespace)
    return await host.until_volume(volume, state="Ready", observedGeneration=generation)


async def a_machine(host: TestHost) -> tuple[str, str]:
    """A machine that is on, and the volume that it has."""
    volume = await host.volume_order(size=GIB)
    uid = await host.order(disks=[disk(volume)])
    await host.until_attached(uid, volume)
    return uid, volume


def paths(host: TestHost, uid: str) -> list[str]:
    return [one.path for one in host.machine.domains[uid].disks]


def in_pool(host: TestHost, pool: dict[str, Any], volume: str) -> bool:
    """Whether there is anything of the volume in the pool."""
    state = host.pools.get(pool["uid"])
    return state is not None and (volume in state.volumes or volume in state.arriving)


# At rest


async def test_a_volume_at_rest_is_moved_with_its_content(real: TestHost, tmp_path: Path) -> None:
    async with real.running():
        volume = await real.volume_order(size=64 << 20)
        await real.until_volume(volume, state="Ready")
        qemu_io(tmp_path / f"pool/volumes/{volume}.qcow2", "write -P 0x78 1M 64k")
        await real.change_volume(volume, move=MOVE)
        status = await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["pool"] == BEYOND["uid"]
        assert (lying(real, "pool"), lying(real, "beyond")) == (set(), {f"{volume}.qcow2", f"{volume}.json"})
        said = qemu_io(tmp_path / f"beyond/volumes/{volume}.qcow2", "read -P 0x78 1M 64k", "read -P 0 2M 62M")
        assert "verification failed" not in said
        status = await settle(real, volume, 3)
        assert "pool" not in status["disk"]
        assert lying(real, "beyond") == {f"{volume}.qcow2", f"{volume}.json"}
        await real.delete(volume_order_name(volume))
        await eventually(lambda: real.gone(volume_order_name(volume)), "the end")
        assert lying(real, "beyond") == set()


async def test_a_new_agent_finds_it_moved_and_writes_nothing(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        await host.change_volume(volume, move=MOVE)
        await host.until_volume(volume, state="Ready", observedGeneration=2)
    before = len(host.writes)
    async with host.running():
        await eventually(lambda: host.storage_of(BEYOND).state.volumes, "the pool")
        await host.change_volume(volume, size=2 * GIB)
        status = await host.until_volume(volume, state="Ready", observedGeneration=3)
        assert status["disk"]["virtualSize"] == 2 * GIB and status["disk"]["pool"] == BEYOND["uid"]
    assert host.writes[before:].count(("patch", "WorkOrder")) == 1
    assert not in_pool(host, POOL, volume)


async def test_a_machine_that_is_to_start_meanwhile_waits_and_starts_where_the_volume_is_then(host: TestHost) -> None:
    host.simulated = SimulatedSettings(import_seconds=0, disk_seconds=1.5)
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        await host.change_volume(volume, move=MOVE)
        await eventually(lambda: in_pool(host, BEYOND, volume), "the copy's begin")
        uid = await host.order(disks=[disk(volume)])
        status = await host.until_instance(uid, state="Waiting", reason="VolumeBusy")
        assert "is being moved to the pool beyond" in status["message"]
        await host.until_volume(volume, state="Ready", observedGeneration=2)
        await host.until_instance(uid, state="Waiting", reason="VolumeNotReady")
        await host.change(uid, disks=[disk(volume, BEYOND)])
        await host.until_instance(uid, state="Running")
        assert paths(host, uid) == [host.pools[BEYOND["uid"]].volumes[volume][1].path]


# Beside a guest


async def test_a_guest_goes_on_while_its_volume_is_moved_and_no_order_disturbs_it(host: TestHost) -> None:
    async with host.running():
        uid, volume = await a_machine(host)
        before = await host.status(instance_order_name(uid))
        await host.change_volume(volume, move=MOVE)
        status = await host.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["pool"] == BEYOND["uid"]
        assert not in_pool(host, POOL, volume)
        assert paths(host, uid) == [host.pools[BEYOND["uid"]].volumes[volume][1].path]
        await host.change(uid, disks=[disk(volume, BEYOND)])
        await host.until_instance(uid, state="Running", observedGeneration=2)
        await settle(host, volume, 3)
        await host.change(uid, power="Paused")
        await host.until_instance(uid, state="Paused", observedGeneration=3)
        await host.change(uid, power="Running")
        after = await host.until_instance(uid, state="Running", observedGeneration=4)
        assert after["instance"] == before["instance"]
    assert host.machine.starts[uid] == 1
    assert len(host.machine.copies) == len(host.machine.switches) == 1


async def test_the_volumes_order_may_come_before_the_machines(host: TestHost) -> None:
    async with host.running():
        uid, volume = await a_machine(host)
        await host.change_volume(volume, move=MOVE)
        await host.until_volume(volume, state="Ready", observedGeneration=2)
        await settle(host, volume, 3)
        await host.change(uid, power="Paused")
        await host.until_instance(uid, state="Paused")
        await host.change(uid, power="Running")
        await host.until_instance(uid, state="Running", observedGeneration=3)
        await host.change(uid, disks=[disk(volume, BEYOND)])
        await host.until_instance(uid, state="Running", observedGeneration=4)
    assert host.machine.starts[uid] == 1 and len(host.machine.copies) == 1


async def test_it_says_how_far_it_is_and_the_machine_can_be_paused_meanwhile(slow: TestHost) -> None:
    async with slow.running():
        uid, volume = await a_machine(slow)
        await slow.change_volume(volume, move=MOVE)
        status = await slow.until_volume(volume, state="Working", reason="Copying")
        assert status["disk"]["pool"] == POOL["uid"]
        assert status["disk"]["progress"]["total"]
        await slow.change(uid, power="Paused")
        await slow.until_instance(uid, state="Paused")
        await slow.change(uid, power="Running")
        await slow.until_instance(uid, 2, state="Running", observedGeneration=3)
        await slow.change(uid, power="Paused")
        await slow.until_instance(uid, state="Paused", observedGeneration=4)
        await slow.until_volume(volume, state="Ready", observedGeneration=2)
        assert slow.machine.domains[uid].state is DomainState.PAUSED
    assert len(slow.machine.copies) == 1


async def test_a_new_agent_goes_on_with_what_the_emulator_does(slow: TestHost) -> None:
    async with slow.running():
        uid, volume = await a_machine(slow)
        await slow.change_volume(volume, move=MOVE)
        await eventually(lambda: slow.machine.copies, "the copy's begin")
    async with slow.running():
        await slow.until_volume(volume, state="Ready", observedGeneration=2)
    assert len(slow.machine.copies) == len(slow.machine.switches) == 1
    assert slow.machine.starts[uid] == 1


async def test_a_guest_that_ends_meanwhile_leaves_the_rest_to_the_pools(slow: TestHost) -> None:
    async with slow.running():
        volume = await slow.volume_order(size=GIB)
        uid = await slow.order(disks=[disk(volume)], restartPolicy="Never")
        await slow.until_attached(uid, volume)
        await slow.change_volume(volume, move=MOVE)
        await eventually(lambda: slow.machine.copies, "the copy's begin")
        slow.machine.end(uid, ExitReason.CRASHED)
        status = await slow.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["pool"] == BEYOND["uid"]
        assert not in_pool(slow, POOL, volume) and not slow.machine.switches


async def test_a_machine_that_is_restarted_meanwhile_does_not_wait_for_the_rest(slow: TestHost) -> None:
    async with slow.running():
        uid, volume = await a_machine(slow)
        await slow.change_volume(volume, move=MOVE)
        await eventually(lambda: slow.machine.copies, "the copy's begin")
        await slow.change(uid, restartRequest="again")
        await eventually(lambda: slow.machine.starts[uid] == 2, "the second start", 5)
        await slow.until_volume(volume, state="Ready", observedGeneration=2)
        assert slow.machine.starts[uid] == 2
        assert len(slow.machine.copies) == 2 and len(slow.machine.switches) == 1
        assert paths(slow, uid) == [slow.pools[BEYOND["uid"]].volumes[volume][1].path]


async def test_the_copy_of_a_volume_that_a_guest_has_is_content(real: TestHost, tmp_path: Path) -> None:
    async with real.running():
        volume = await real.volume_order(size=64 << 20)
        await real.until_volume(volume, state="Ready")
        qemu_io(tmp_path / f"pool/volumes/{volume}.qcow2", "write -P 0x78 1M 64k")
        uid = await real.order(disks=[disk(volume)])
        await real.until_attached(uid, volume)
        await real.change_volume(volume, move=MOVE)
        await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert (lying(real, "pool"), lying(real, "beyond")) == (set(), {f"{volume}.qcow2", f"{volume}.json"})
        assert "failed" not in qemu_io(tmp_path / f"beyond/volumes/{volume}.qcow2", "read -P 0x78 1M 64k")


# What goes wrong, and what is taken back


async def test_what_fails_says_why_and_the_volume_stays_usable_where_it_is(host: TestHost) -> None:
    async with host.running():
        uid, volume = await a_machine(host)
        await host.change_volume(volume, move=MOVE)
        await host.until_volume(volume, state="Ready", observedGeneration=2)
        await settle(host, volume, 3)
        driver = host.storage_of(POOL)
        driver.fail("begin_arrival", StorageError("The pool is full.", reason="NoSpace"))
        patch = {"spec": {"disk": {"volume": {"move": {"pool": POOL}}}}}
        await host.client.patch(WorkOrder.KIND, volume_order_name(volume), patch, host.namespace)
        status = await host.until_volume(volume, state="Failed", reason="NoSpace")
        assert status["disk"]["pool"] == BEYOND["uid"]
        assert not in_pool(host, POOL, volume)
        await host.change(uid, power="Paused", disks=[disk(volume, BEYOND)])
        await host.until_instance(uid, state="Paused")
        await host.change_volume(volume, retain=True)
        status = await host.until_volume(volume, state="Ready", observedGeneration=5)
        assert status["disk"]["pool"] == POOL["uid"]
    assert host.machine.starts[uid] == 1


@pytest.mark.parametrize("on", [True, False])
async def test_a_move_is_taken_back(slow: TestHost, on: bool) -> None:
    async with slow.running():
        uid, volume = await a_machine(slow)
        if not on:
            await slow.change(uid, power="Stopped")
            await slow.until_instance(uid, state="Stopped")
        before = paths(slow, uid)
        await slow.change_volume(volume, move={**MOVE, "withdrawn": True})
        status = await slow.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["pool"] == POOL["uid"] and not slow.machine.copies
        if on:
            await slow.change_volume(volume, move=None)
            await slow.change_volume(volume, move=MOVE)
            await eventually(lambda: slow.machine.copies, "the copy's begin")
            await slow.change_volume(volume, move={**MOVE, "withdrawn": True})
            status = await slow.until_volume(volume, 2, state="Ready", observedGeneration=5)
            assert status["disk"]["pool"] == POOL["uid"]
            assert [one.copied_to for one in slow.machine.domains[uid].disks] == [None]
        assert paths(slow, uid) == before
        assert not in_pool(slow, BEYOND, volume)


async def test_what_was_moved_already_stays_when_that_is_taken_back(host: TestHost) -> None:
    async with host.running():
        _, volume = await a_machine(host)
        await host.change_volume(volume, move=MOVE)
        await host.until_volume(volume, state="Ready", observedGeneration=2)
        await host.change_volume(volume, move={**MOVE, "withdrawn": True})
        status = await host.until_volume(volume, state="Ready", observedGeneration=3)
        assert status["disk"]["pool"] == BEYOND["uid"]
        assert not in_pool(host, POOL, volume) and len(host.machine.copies) == 1


@pytest.mark.parametrize("retain", [True, False])
async def test_an_order_that_goes_meanwhile_leaves_nothing_or_one(slow: TestHost, retain: bool) -> None:
    async with slow.running():
        uid, volume = await a_machine(slow)
        await slow.change_volume(volume, move=MOVE, retain=retain)
        await eventually(lambda: slow.machine.copies, "the copy's begin")
        await slow.delete(volume_order_name(volume))
        await slow.until_volume(volume, reason="VolumeInUse")
        await eventually(lambda: not in_pool(slow, BEYOND, volume), "the end of the copy")
        assert slow.machine.domains[uid].state is DomainState.RUNNING
        await slow.delete(instance_order_name(uid))
        await eventually(lambda: slow.gone(volume_order_name(volume)), "the end")
        assert (in_pool(slow, POOL, volume), in_pool(slow, BEYOND, volume)) == (retain, False)


async def test_what_was_moved_goes_or_stays_where_it_is(host: TestHost) -> None:
    async with host.running():
        for retain in (True, False):
            volume = await host.volume_order(size=GIB, retain=retain)
            await host.until_volume(volume, state="Ready")
            await host.change_volume(volume, move=MOVE)
            await host.until_volume(volume, state="Ready", observedGeneration=2)
            await host.delete(volume_order_name(volume))
            await eventually(lambda volume=volume: host.gone(volume_order_name(volume)), "the end")  # type: ignore[misc]
            assert (in_pool(host, POOL, volume), in_pool(host, BEYOND, volume)) == (False, retain)


async def test_a_volume_with_snapshots_is_not_moved(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Ready")
        await host.change_volume(volume, move=MOVE)
        status = await host.until_volume(volume, state="Failed", reason="HasSnapshots")
        assert status["disk"]["pool"] == POOL["uid"]
        assert not in_pool(host, BEYOND, volume)
        other = await host.snapshot_order(volume)
        await host.until_snapshot(other, state="Waiting", reason="VolumeBusy")
        for one in (other, snapshot):
            await host.delete(snapshot_order_name(one))
            await eventually(lambda one=one: host.gone(snapshot_order_name(one)), "the snapshot's end")  # type: ignore[misc]
        await host.change_volume(volume, retain=True)
        await host.until_volume(volume, state="Ready", observedGeneration=3)
        assert in_pool(host, BEYOND, volume) and not in_pool(host, POOL, volume)


class Fixed:
    """A pool whose driver knows nothing of moves."""

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if hasattr(MovableVolumes, name):
            raise AttributeError(name)
        return getattr(self._inner, name)


async def test_a_pool_that_takes_no_part_says_so_and_the_move_can_be_taken_back(host: TestHost) -> None:
    host.wrap = lambda driver: cast("StorageDriver", Fixed(driver))
    async with host.running():
        uid, volume = await a_machine(host)
        await host.change_volume(volume, move=MOVE)
        status = await host.until_volume(volume, state="Failed", reason="MoveUnsupported")
        assert status["disk"]["pool"] == POOL["uid"]
        await host.change_volume(volume, move={**MOVE, "withdrawn": True})
        status = await host.until_volume(volume, state="Ready", observedGeneration=3)
        assert status["disk"]["pool"] == POOL["uid"]
        await host.change(uid, power="Paused")
        await host.until_instance(uid, state="Paused")
    assert host.machine.starts[uid] == 1


async def test_what_another_move_left_there_is_not_taken_for_the_volume(host: TestHost) -> None:
    async with host.running():
        volume = await host.volume_order(size=GIB)
        await host.until_volume(volume, state="Ready")
        await host.change_volume(volume, move=MOVE)
        await host.until_volume(volume, state="Ready", observedGeneration=2)
        host.pools[BEYOND["uid"]].moves[volume] = "another 3"
        host.pools[POOL["uid"]].volumes[volume] = host.pools[BEYOND["uid"]].volumes[volume]
        await host.change_volume(volume, retain=True)
        await host.until_volume(volume, state="Failed", reason="VolumeConflict")
        assert in_pool(host, POOL, volume) and in_pool(host, BEYOND, volume)
