"""Snapshots on a real API server: taken of volumes at rest and of machines that are on, copied, removed."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.base import FINALIZER
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name, snapshot_order_name, volume_order_name
from kumulus_agents.hypervisor.domain import DomainState, ExitReason
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.hypervisor.simulated_host import SimulatedSettings as HypervisorSettings
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.dir.volumes import file_of
from kumulus_agents.storage.protocol import StorageError
from kumulus_lab.cluster import NativeCluster
from tests.component.test_agent_volume import delete, disk
from tests.unit.agent import host as hosts
from tests.unit.agent.host import TestHost, eventually, host_on
from tests.unit.agent.instants import FAR, Kept, far

pytestmark = pytest.mark.cluster

MIB = 1 << 20


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


@pytest.fixture
async def real(cluster: NativeCluster, tmp_path: Path) -> AsyncIterator[TestHost]:
    """A host whose pool is a directory."""
    async with host_on(cluster.kubeconfig, directory=tmp_path) as made:
        yield made


async def a_volume(host: TestHost, **wanted: Any) -> str:
    volume = await host.volume_order(size=64 * MIB, **wanted)
    await host.until_volume(volume, state="Ready")
    return volume


def qemu_io(host: TestHost, volume: str, *commands: str) -> None:
    """Read or write as a guest would; what is read must be what is said."""
    assert host.directory is not None
    directory = host.directory / "pool/volumes"
    record = json.loads((directory / f"{volume}.json").read_text())
    layer = directory / file_of(volume, record.get("active", volume))
    arguments = [argument for command in commands for argument in ("-c", command)]
    command = ["qemu-io", "-f", "qcow2", *arguments, str(layer)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "verification failed" not in done.stdout


# Of volumes at rest


async def test_a_snapshot_of_a_volume_at_rest_takes_one_write_and_keeps_its_content(real: TestHost) -> None:
    async with real.running():
        volume = await a_volume(real)
        qemu_io(real, volume, "write -P 1 0 1M")
        writes = real.count("patch", "WorkOrder")
        snapshot = await real.snapshot_order(volume)
        status = await real.until_snapshot(snapshot, state="Ready")
        # The agent may learn a moment later than this test that it was written.
        await eventually(lambda: real.count("patch", "WorkOrder") == writes + 1, "one write")
        facts = status["snapshot"]
        assert facts["takenAt"]
        assert facts["indications"] == []
        assert facts["items"] == [{"snapshot": snapshot, "virtualSize": 64 * MIB, "size": 64 * MIB}]
        qemu_io(real, volume, "write -P 2 0 64k")
        copy = await a_volume(real, origin={"snapshot": {"snapshot": snapshot, "volume": volume}})
        qemu_io(real, copy, "read -P 1 0 1M")
        await delete(real, snapshot_order_name(snapshot))
        qemu_io(real, volume, "read -P 2 0 64k", "read -P 1 64k 960k")
        assert real.directory is not None
        assert [path.name for path in (real.directory / "pool/volumes").glob(f"{volume}*.qcow2")] == [f"{volume}.qcow2"]


async def test_a_new_agent_reports_what_was_taken_and_writes_nothing(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        snapshot = await host.snapshot_order(volume)
        before = await host.until_snapshot(snapshot, state="Ready")
    writes = host.count("patch", "WorkOrder")
    async with host.running():
        other = await host.snapshot_order(volume)
        await host.until_snapshot(other, state="Ready")
        assert await host.status(snapshot_order_name(snapshot)) == before
    assert host.count("patch", "WorkOrder") == writes + 1


async def test_a_volume_of_a_snapshot_waits_for_it(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        snapshot = "00000000-0000-4000-8000-000000000001"
        copy = await host.volume_order(origin={"snapshot": {"snapshot": snapshot, "volume": volume}})
        await host.until_volume(copy, state="Waiting", reason="SnapshotNotReady")
        await host.snapshot_order(volume, uid=snapshot)
        await host.until_volume(copy, 5, state="Ready")


async def test_a_volume_stays_as_long_as_it_has_snapshots(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Ready")
        await host.delete(volume_order_name(volume))
        status = await host.until_volume(volume, state="Waiting", reason="VolumeInUse")
        assert "snapshots" in status["message"]
        await delete(host, snapshot_order_name(snapshot))
        await eventually(lambda: host.gone(volume_order_name(volume)), "the volume's end", 5)
        assert not host.storage.state.volumes


async def test_a_lost_snapshot_is_not_taken_anew(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        taken = await host.snapshot_order(volume, taken=True)
        status = await host.until_snapshot(taken, state="Failed", reason="SnapshotLost")
        assert "snapshot" not in status
        assert not host.storage.state.layers[volume].snapshots
        other = await host.snapshot_order(volume)
        await host.until_snapshot(other, state="Ready")
        host.storage.state.layers[volume] = host.storage.state.layers[volume].forgotten(other)
    async with host.running():
        status = await host.until_snapshot(other, state="Failed", reason="SnapshotLost")
        assert status["snapshot"]["takenAt"]
        assert not host.storage.state.layers[volume].snapshots


async def test_a_snapshot_of_what_is_not_there_waits(host: TestHost) -> None:
    async with host.running():
        volume = "00000000-0000-4000-8000-000000000001"
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Waiting", reason="VolumeNotReady")
        await host.volume_order(volume, size=MIB)
        await host.until_snapshot(snapshot, 5, state="Ready")


async def test_what_cannot_be_taken_says_why_and_leaves_nothing(host: TestHost) -> None:
    async with host.running():
        one, two = await a_volume(host), await a_volume(host)
        layers = dict(host.storage.state.layers)
        host.storage.fail("confirm_snapshot", *[StorageError("the pool is full", reason="NoSpace")] * 2)
        snapshot = await host.snapshot_order(one, two)
        status = await host.until_snapshot(snapshot, state="Failed", reason="NoSpace")
        assert status["message"] == "the pool is full"
        await delete(host, snapshot_order_name(snapshot))
        assert host.storage.state.layers == layers


# What begins with them


async def test_a_volume_goes_back_to_its_snapshot_once(real: TestHost) -> None:
    async with real.running():
        volume = await a_volume(real)
        qemu_io(real, volume, "write -P 1 0 1M")
        snapshot = await real.snapshot_order(volume)
        await real.until_snapshot(snapshot, state="Ready")
        qemu_io(real, volume, "write -P 2 0 1M")
        request = "00000000-0000-4000-8000-000000000001"
        await real.change_volume(volume, revert={"snapshot": snapshot, "request": request})
        status = await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert status["disk"]["reverted"] == request
        qemu_io(real, volume, "read -P 1 0 1M", "write -P 3 0 1M")
        await real.change_volume(volume, size=128 * MIB)
        await real.until_volume(volume, state="Ready", observedGeneration=3)
        qemu_io(real, volume, "read -P 3 0 1M")
    async with real.running():
        await delete(real, snapshot_order_name(snapshot))
        qemu_io(real, volume, "read -P 3 0 1M")
        assert real.directory is not None
        assert len(list((real.directory / "pool/volumes").glob(f"{volume}*.qcow2"))) == 1


async def test_no_volume_goes_back_under_a_machine_that_is_on(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Ready")
        before = await host.storage.volume(volume)
        await host.change_volume(volume, revert={"snapshot": snapshot, "request": uid})
        status = await host.until_volume(volume, state="Waiting", reason="VolumeInUse")
        assert "Machine vm is on" in status["message"]
        assert await host.storage.volume(volume) == before
        await host.change(uid, power="Stopped", stop={"mode": "Force", "gracePeriodSeconds": 0})
        status = await host.until_volume(volume, 5, state="Ready", observedGeneration=2)
        assert status["disk"]["reverted"] == uid
        await host.change(uid, power="Running")
        await host.until_instance(uid, state="Running")
        now = await host.storage.volume(volume)
        assert now is not None
        assert {one.path for one in host.machine.domains[uid].disks} == {now.path}


async def test_a_linked_volume_keeps_its_snapshot_until_it_goes(real: TestHost) -> None:
    async with real.running():
        volume = await a_volume(real)
        qemu_io(real, volume, "write -P 1 0 1M")
        snapshot = await real.snapshot_order(volume)
        await real.until_snapshot(snapshot, state="Ready")
        clone = await a_volume(real, origin={"snapshot": {"snapshot": snapshot, "volume": volume}, "linked": True})
        qemu_io(real, clone, "read -P 1 0 1M", "write -P 2 0 1M")
        await real.delete(snapshot_order_name(snapshot))
        status = await real.until_snapshot(snapshot, state="Waiting", reason="SnapshotInUse")
        assert clone in status["message"]
        qemu_io(real, volume, "read -P 1 0 1M")
        await delete(real, volume_order_name(clone))
        await eventually(lambda: real.gone(snapshot_order_name(snapshot)), "the snapshot's end", 5)
        qemu_io(real, volume, "read -P 1 0 1M")
        assert real.directory is not None
        assert len(list((real.directory / "pool/volumes").iterdir())) == 2


# Of machines


async def test_all_volumes_of_a_machine_at_one_instant(host: TestHost) -> None:
    async with host.running():
        volumes = [await a_volume(host) for _ in range(3)]
        uid = await host.order(disks=[disk(one, f"d{number}", number + 1) for number, one in enumerate(volumes)])
        await host.until_attached(uid, *volumes)
        snapshot = await host.snapshot_order(*volumes)
        status = await host.until_snapshot(snapshot, state="Ready")
        assert host.machine.snapshots == [(uid, frozenset(volumes))]
        assert set(status["snapshot"]["indications"]) == {"Online", "NoGuestAgent"}
        assert len(status["snapshot"]["items"]) == 3
        written = {one.volume: one.path for one in host.machine.domains[uid].disks}
        for volume in volumes:
            assert written[volume] == (await host.storage.volume(volume)).path  # type: ignore[union-attr]
    assert host.machine.starts[uid] == 1


@pytest.mark.parametrize(("able", "indication"), [(True, "GuestAgent"), (False, "QuiesceFailed")])
async def test_a_guest_with_an_agent_is_brought_to_rest(host: TestHost, able: bool, indication: str) -> None:
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        host.machine.agents[uid] = able
        snapshot = await host.snapshot_order(volume, quiesce="IfPossible")
        status = await host.until_snapshot(snapshot, state="Ready")
        assert set(status["snapshot"]["indications"]) == {"Online", indication}


async def test_rest_that_is_required_and_not_had_is_a_failure_that_leaves_nothing(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        before = host.machine.domains[uid]
        snapshot = await host.snapshot_order(volume, quiesce="Required")
        await host.until_snapshot(snapshot, state="Failed", reason="QuiesceFailed")
        assert host.machine.domains[uid] == before
        assert len(host.storage.state.layers[volume].parents) == 1
        await host.change_volume(volume, size=128 * MIB)
        await host.until_volume(volume, 5, state="Ready", observedGeneration=2)


async def test_nothing_else_touches_the_volumes_meanwhile(host: TestHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hypervisor hangs in the middle: growing and detaching wait, and say so."""
    import asyncio

    from kumulus_agents.hypervisor.simulated import SimulatedHypervisor

    goes_on, original = asyncio.Event(), SimulatedHypervisor.snapshot_disks

    async def slow(*arguments: Any) -> Any:
        await goes_on.wait()
        return await original(*arguments)

    monkeypatch.setattr(SimulatedHypervisor, "snapshot_disks", slow)
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Working")
        await host.change_volume(volume, size=128 * MIB)
        status = await host.until_volume(volume, state="Waiting", reason="VolumeBusy")
        assert "a snapshot of it is being taken" in status["message"]
        await host.change(uid, disks=[])
        await host.until_instance(uid, state="Running", reason="VolumeBusy")
        goes_on.set()
        await host.until_snapshot(snapshot, 5, state="Ready")
        await host.until_attached(uid, seconds=5)
        await host.until_volume(volume, 5, state="Ready", observedGeneration=2)


@pytest.fixture
async def mixed(cluster: NativeCluster) -> AsyncIterator[tuple[TestHost, Kept]]:
    """A host with a pool that puts layers on volumes, and one that keeps instants by itself."""
    async with host_on(cluster.kubeconfig) as made:
        kept = Kept()
        made.wrap = functools.partial(far, made, kept)
        yield made, kept


async def a_mixed_machine(host: TestHost) -> tuple[str, list[str]]:
    """A machine that is on with a volume of each pool; its uid, and the volumes'."""
    volumes = [await a_volume(host), await a_volume(host, pool=FAR)]
    disks = [disk(volumes[0], "near"), {**disk(volumes[1], "far", 2), "pool": FAR}]
    uid = await host.order(disks=disks)
    await host.until_attached(uid, *volumes)
    return uid, volumes


async def test_a_machine_is_halted_while_a_pool_keeps_what_a_volume_has(mixed: tuple[TestHost, Kept]) -> None:
    host, kept = mixed
    async with host.running():
        uid, volumes = await a_mixed_machine(host)
        before, status = host.machine.domains[uid], await host.status(instance_order_name(uid))
        states: list[DomainState] = []

        async def see() -> None:
            states.append(host.machine.domains[uid].state)

        kept.meanwhile = see
        snapshot = await host.snapshot_order(*volumes)
        taken = await host.until_snapshot(snapshot, state="Ready")
        assert states == [DomainState.PAUSED]
        assert host.machine.snapshots == [(uid, frozenset(volumes))]
        after = host.machine.domains[uid]
        assert (after.state, after.held) == (before.state, False)
        assert {one.volume: one.path for one in after.disks}[volumes[1]] == before.disks[1].path
        assert {one.volume: one.path for one in after.disks}[volumes[0]] != before.disks[0].path
        (how,) = [one for one in kept.snapshots.values() if one is not None]
        assert (how[0], set(how[1])) == (taken["snapshot"]["takenAt"], {"Online", "NoGuestAgent"})
        assert await host.status(instance_order_name(uid)) == status
        await delete(host, snapshot_order_name(snapshot))
        assert kept.snapshots == {}
        await host.change(uid, power="Stopped", stop={"mode": "Force", "gracePeriodSeconds": 0})
        await host.until_instance(uid, state="Stopped")
        other = await host.snapshot_order(*volumes)
        assert (await host.until_snapshot(other, state="Ready"))["snapshot"]["indications"] == []
        assert kept.instants == [volumes[1]]


async def test_a_machine_goes_on_when_its_pool_does_not_answer(mixed: tuple[TestHost, Kept]) -> None:
    host, kept = mixed
    async with host.running():
        uid, volumes = await a_mixed_machine(host)
        before = host.machine.domains[uid]

        async def fail() -> None:
            raise StorageError("The cluster does not answer.", reason="PoolStalled")

        kept.meanwhile = fail
        snapshot = await host.snapshot_order(*volumes)
        status = await host.until_snapshot(snapshot, state="Failed", reason="PoolStalled")
        assert "does not answer" in status["message"]
        assert host.machine.domains[uid] == before
        assert (kept.snapshots, host.machine.snapshots) == ({}, [])
        await host.change_volume(volumes[1], size=128 * MIB)
        await host.until_volume(volumes[1], 5, state="Ready", observedGeneration=2)


async def test_a_machine_that_is_halted_for_a_snapshot_is_not_taken_for_one_that_is_deaf(
    mixed: tuple[TestHost, Kept],
) -> None:
    """It is told to stop meanwhile: it shuts down when it goes on, and is not forced off."""
    import asyncio

    host, kept = mixed
    goes_on = asyncio.Event()

    async def wait() -> None:
        await goes_on.wait()

    async with host.running():
        uid, volumes = await a_mixed_machine(host)
        kept.meanwhile = wait
        snapshot = await host.snapshot_order(*volumes)
        await eventually(lambda: host.machine.domains[uid].held, "its halt")
        await host.change(uid, power="Stopped")
        await host.until_instance(uid, state="Stopping")
        assert host.machine.domains[uid].state is DomainState.PAUSED
        goes_on.set()
        await host.until_snapshot(snapshot, state="Ready")
        await host.until_instance(uid, state="Stopped")
        assert host.machine.domains[uid].exit_reason is ExitReason.SHUTDOWN


async def test_removing_while_the_machine_is_on(host: TestHost) -> None:
    """In the middle, and what is below the layer that is written: for that the guest is halted, and nobody is told."""
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        snapshots = []
        for _ in range(3):
            snapshots.append(await host.snapshot_order(volume))
            await host.until_snapshot(snapshots[-1], state="Ready")
        before = await host.status(instance_order_name(uid))
        for place, left in ((1, 2), (1, 1), (0, 0)):
            await delete(host, snapshot_order_name(snapshots.pop(place)))
            stored = await host.storage.volume(volume)
            assert stored is not None
            assert len(stored.below) == left
            assert {one.path for one in host.machine.domains[uid].disks} == {stored.path}
            assert host.machine.domains[uid].state is DomainState.RUNNING
        assert len(host.machine.merges) == 3
        assert await host.status(instance_order_name(uid)) == before
    assert host.machine.starts[uid] == 1


async def test_a_machine_that_ends_while_its_layers_are_merged(cluster: NativeCluster) -> None:
    slow = SimulatedHost(HypervisorSettings(merge_seconds=1.0, jitter=0))
    async with host_on(cluster.kubeconfig, machine=slow) as host, host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)], restartPolicy="Never")
        await host.until_attached(uid, volume)
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Ready")
        await host.delete(snapshot_order_name(snapshot))
        await eventually(lambda: host.storage.state.layers[volume].merging, "the merge's begin")
        slow.end(uid, ExitReason.CRASHED)
        await eventually(lambda: host.gone(snapshot_order_name(snapshot)), "the snapshot's end", 5)
        assert len(host.storage.state.layers[volume].parents) == 1
        assert not slow.merges


async def test_a_hypervisor_that_fails_leaves_the_machine_as_it_is(host: TestHost) -> None:
    async with host.running():
        volume = await a_volume(host)
        uid = await host.order(disks=[disk(volume)])
        await host.until_attached(uid, volume)
        host.machine.disconnect()
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Waiting", reason="HypervisorUnavailable")
        host.machine.reconnect()
        await host.until_snapshot(snapshot, 10, state="Ready")
        await host.delete(instance_order_name(uid))
        await delete(host, snapshot_order_name(snapshot))
        assert len(host.storage.state.layers[volume].parents) == 1


# In a pool that hosts share


@pytest.fixture
async def sharing(cluster: NativeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestHost]:
    """A host whose pool is a directory that other hosts have as well."""
    parameters = {**hosts.POOL["parameters"], "shared": True}  # type: ignore[dict-item]
    monkeypatch.setattr(hosts, "POOL", {**hosts.POOL, "parameters": parameters})
    async with host_on(cluster.kubeconfig, directory=tmp_path) as made:
        yield made


def record_of(host: TestHost, volume: str) -> dict[str, Any]:
    assert host.directory is not None
    found: dict[str, Any] = json.loads((host.directory / f"pool/volumes/{volume}.json").read_text())
    return found


async def let_go(host: TestHost, volume: str) -> None:
    """The volume is to go to another host."""
    await host.change_volume(volume, retain=True)
    await host.delete(volume_order_name(volume))


async def test_only_the_host_that_sees_to_a_volume_removes_its_snapshots(sharing: TestHost) -> None:
    host = sharing
    async with host.running():
        volume = await a_volume(host)
        one, other = await host.snapshot_order(volume), await host.snapshot_order(volume)
        for snapshot in (one, other):
            await host.until_snapshot(snapshot, state="Ready")
        await let_go(host, volume)
        await eventually(lambda: host.gone(volume_order_name(volume)), "the volume's order goes")
        before = record_of(host, volume)
        await host.delete(snapshot_order_name(one))
        status = await host.until_snapshot(one, state="Waiting", reason="VolumeNotReady")
        assert "goes to another one" in status["message"]
        late = await host.snapshot_order(volume)
        await host.until_snapshot(late, state="Waiting", reason="VolumeNotReady")
        for name in (one, late):
            patch = {"spec": {"snapshot": {"retain": True}}}
            await host.client.patch(WorkOrder.KIND, snapshot_order_name(name), patch, host.namespace)
            await delete(host, snapshot_order_name(name))
        assert record_of(host, volume) == before, "nothing was taken, merged or forgotten"

        await host.volume_order(volume, size=64 * MIB, existing=True, epoch=1)
        await host.until_volume(volume, state="Ready")
        again = await host.snapshot_order(volume, uid=one, taken=True)
        status = await host.until_snapshot(again, state="Ready")
        assert status["snapshot"]["takenAt"] == before["snapshots"][one]["takenAt"]
        await delete(host, snapshot_order_name(one))
        assert set(record_of(host, volume)["snapshots"]) == {other}


async def test_a_part_that_is_taken_out_of_an_order_stays_in_the_pool(sharing: TestHost) -> None:
    host = sharing
    async with host.running():
        volumes = [await a_volume(host) for _ in range(2)]
        snapshot = await host.snapshot_order(*volumes)
        await host.until_snapshot(snapshot, state="Ready")
        order = await host.client.get(WorkOrder.KIND, snapshot_order_name(snapshot), host.namespace)
        stays, goes = order["spec"]["snapshot"]["items"]
        await let_go(host, goes["volume"])
        patch = {"spec": {"snapshot": {"items": [stays]}}}
        await host.client.patch(WorkOrder.KIND, snapshot_order_name(snapshot), patch, host.namespace)
        status = await host.until_snapshot(snapshot, state="Ready", observedGeneration=2)
        assert [item["snapshot"] for item in status["snapshot"]["items"]] == [stays["snapshot"]]
        await eventually(lambda: host.gone(volume_order_name(goes["volume"])), "the volume's order goes")
        await delete(host, snapshot_order_name(snapshot))
        assert not record_of(host, stays["volume"])["snapshots"]
        assert set(record_of(host, goes["volume"])["snapshots"]) == {goes["snapshot"]}


async def test_a_volume_is_let_go_when_what_is_done_with_it_has_ended(
    sharing: TestHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    goes_on, original = asyncio.Event(), DirStorage.confirm_snapshot

    async def slow(*arguments: Any) -> Any:
        await goes_on.wait()
        return await original(*arguments)

    monkeypatch.setattr(DirStorage, "confirm_snapshot", slow)
    host = sharing
    async with host.running():
        volume = await a_volume(host)
        snapshot = await host.snapshot_order(volume)
        await host.until_snapshot(snapshot, state="Working")
        await let_go(host, volume)
        status = await host.until_volume(volume, state="Waiting", reason="VolumeBusy")
        assert "a snapshot of it is being taken" in status["message"]
        goes_on.set()
        await eventually(lambda: host.gone(volume_order_name(volume)), "the volume's order goes", 5)
        assert record_of(host, volume)["snapshots"][snapshot]["takenAt"], "it was taken first"


async def test_what_a_host_kept_of_a_snapshot_that_was_given_up_goes_when_it_is_back(real: TestHost) -> None:
    async with real.running():
        volume = await a_volume(real)
        qemu_io(real, volume, "write -P 1 0 1M")
        snapshot = await real.snapshot_order(volume)
        await real.until_snapshot(snapshot, state="Ready")
    # The host is silent; its owner says that the snapshot need not be waited for.
    await real.change_volume(volume, forget=[snapshot])
    await real.delete(snapshot_order_name(snapshot))
    name = snapshot_order_name(snapshot)
    order = await real.client.get(WorkOrder.KIND, name, real.namespace)
    assert order["metadata"]["finalizers"] == [FINALIZER]
    await real.client.patch(WorkOrder.KIND, name, {"metadata": {"finalizers": []}}, real.namespace)
    assert real.directory is not None
    layers = real.directory / "pool/volumes"
    assert len(list(layers.glob(f"{volume}*.qcow2"))) == 2
    async with real.running():
        await real.until_volume(volume, state="Ready", observedGeneration=2)
        assert [path.name for path in layers.glob(f"{volume}*.qcow2")] == [f"{volume}.qcow2"]
        qemu_io(real, volume, "read -P 1 0 1M")
