"""The agent dies after each thing it does to its host; the next one finishes, and nothing happens twice or stays."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from kumulus.api.order_names import instance_order_name, segment_order_name, snapshot_order_name, volume_order_name
from kumulus.api.segments import SegmentFacts, SegmentOrder
from kumulus.api.snapshots import Indication
from kumulus_agents.agent.agent import Agent
from kumulus_agents.hypervisor.domain import (
    Domain,
    DomainDisk,
    DomainNic,
    DomainSpec,
    DomainState,
    Marks,
    Quiesce,
    Still,
)
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.protocol import DomainListener, Inventory
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.network.protocol import Plug, Port
from kumulus_agents.network.simulated import SimulatedFabric, SimulatedNetworks
from kumulus_agents.storage.layers import Layers
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.source import LayerFile
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import BEYOND, IMAGE, POOL, TestHost, eventually, host_on
from tests.unit.agent.instants import FAR, Kept, far

pytestmark = pytest.mark.cluster

DISK = {"name": "root", "pool": POOL, "image": IMAGE, "bootOrder": 1}


DEEDS = (
    *("ensure_volume", "grow_volume", "remove_volume"),
    *("begin_snapshot", "keep_instant", "confirm_snapshot", "forget_snapshot", "merge", "merged"),
    *("begin_arrival", "fill_arrival", "reserve_arrival", "settle_arrival", "abandon_arrival"),
)
"""What a storage driver does to volumes."""


class Mortal:
    """A hypervisor driver after whose n-th deed the agent is dead; the deed is done. Deeds on volumes count too."""

    def __init__(self, inner: SimulatedHypervisor, life: int) -> None:
        self._inner = inner
        self.left = life
        self.died = asyncio.Event()

    async def deed(self, work: Any) -> Any:
        if self.died.is_set():
            work.close()
            await asyncio.Event().wait()
        done = await work
        self.left -= 1
        if self.left == 0:
            self.died.set()
            await asyncio.Event().wait()
        return done

    async def connect(self, listener: DomainListener) -> None:
        await self._inner.connect(listener)

    async def close(self) -> None:
        await self._inner.close()

    async def inventory(self) -> Inventory:
        return await self._inner.inventory()

    async def domain(self, uid: str) -> Domain | None:
        return await self._inner.domain(uid)

    async def domains(self) -> Sequence[Domain]:
        return await self._inner.domains()

    async def foreign(self, *, fresh: bool = False, orphans: Collection[str] = ()) -> Sequence[ForeignDomain]:
        return await self._inner.foreign(fresh=fresh, orphans=orphans)

    def watch_foreign(self, listener: Callable[[], None]) -> None:
        self._inner.watch_foreign(listener)

    async def start(self, spec: DomainSpec) -> Domain:
        started: Domain = await self.deed(self._inner.start(spec))
        return started

    async def mark(self, uid: str, marks: Marks) -> None:
        await self.deed(self._inner.mark(uid, marks))

    async def attach_disk(self, uid: str, disk: DomainDisk) -> None:
        await self.deed(self._inner.attach_disk(uid, disk))

    async def detach_disk(self, uid: str, volume: str) -> None:
        await self.deed(self._inner.detach_disk(uid, volume))

    async def attach_nic(self, uid: str, nic: DomainNic) -> None:
        await self.deed(self._inner.attach_nic(uid, nic))

    async def detach_nic(self, uid: str, nic: str) -> None:
        await self.deed(self._inner.detach_nic(uid, nic))

    async def resize_disk(self, uid: str, volume: str, size: int) -> None:
        await self.deed(self._inner.resize_disk(uid, volume, size))

    async def snapshot_disks(
        self,
        uid: str,
        layers: Mapping[str, LayerFile],
        quiesce: Quiesce,
        passphrases: Mapping[str, Passphrase] | None = None,
        still: Still | None = None,
    ) -> tuple[Indication, ...]:
        how: tuple[Indication, ...] = await self.deed(
            self._inner.snapshot_disks(uid, layers, quiesce, passphrases, still)
        )
        return how

    async def merge_layers(
        self,
        uid: str,
        volume: str,
        upper: str,
        lower: str,
        progress: Callable[[int, int], None],
        merged: Callable[[], Awaitable[None]],
    ) -> None:
        await self.deed(self._inner.merge_layers(uid, volume, upper, lower, progress, merged))

    async def copy_disk(self, uid: str, disk: DomainDisk, progress: Callable[[int, int], None]) -> None:
        await self.deed(self._inner.copy_disk(uid, disk, progress))

    async def switch_disk(self, uid: str, volume: str, path: str, switched: Callable[[], Awaitable[None]]) -> None:
        """Between the switch and what is done then one can die as well."""

        async def counted() -> None:
            await self.deed(asyncio.sleep(0))
            await switched()

        await self.deed(self._inner.switch_disk(uid, volume, path, counted))

    async def end_copy(self, uid: str, volume: str) -> None:
        await self.deed(self._inner.end_copy(uid, volume))

    async def power_button(self, uid: str) -> None:
        await self.deed(self._inner.power_button(uid))

    async def force_off(self, uid: str) -> None:
        await self.deed(self._inner.force_off(uid))

    async def pause(self, uid: str) -> None:
        await self.deed(self._inner.pause(uid))

    async def resume(self, uid: str) -> None:
        await self.deed(self._inner.resume(uid))

    async def remove(self, uid: str) -> None:
        await self.deed(self._inner.remove(uid))


class MortalStorage:
    """A storage driver whose deeds on volumes count as those of a `Mortal`."""

    def __init__(self, inner: StorageDriver, mortal: Mortal) -> None:
        self._inner = inner
        self._mortal = mortal

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._inner, name)
        if name in DEEDS:
            return lambda *arguments, **options: self._mortal.deed(verb(*arguments, **options))
        return verb


class MortalNetworks(SimulatedNetworks):
    """A network driver whose deeds count as those of a `Mortal`."""

    def __init__(self, fabric: SimulatedFabric, mortal: Mortal) -> None:
        super().__init__(fabric)
        self._mortal = mortal

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        facts: SegmentFacts = await self._mortal.deed(super().ensure_segment(segment))
        return facts

    async def remove_segment(self, uid: str) -> None:
        await self._mortal.deed(super().remove_segment(uid))

    async def ensure_port(self, port: Port) -> Plug:
        plug: Plug = await self._mortal.deed(super().ensure_port(port))
        return plug

    async def remove_port(self, uid: str) -> None:
        await self._mortal.deed(super().remove_port(uid))


@pytest.mark.parametrize("life", range(1, 13))
async def test_dying_after_any_deed_on_networks_changes_nothing(cluster: NativeCluster, life: int) -> None:
    """A network, a machine with an interface, another one that comes and goes, a rule that changes, the end of all."""
    async with host_on(cluster.kubeconfig) as host:
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        first = host.agent(hypervisor=mortal, networks=MortalNetworks(host.fabric, mortal))
        async with asyncio.TaskGroup() as tasks:
            succession = tasks.create_task(_heir(host, first, mortal))
            uid = await _life_of_interfaces(host)
            succession.cancel()
        assert mortal.died.is_set()
        assert not host.machine.domains
        assert not host.fabric.ports
        assert not host.fabric.segments
        assert host.machine.starts[uid] == 1


async def _heir(host: TestHost, first: Agent, mortal: Mortal) -> None:
    await _until_dead(first, mortal)
    await host.agent().run()


async def _life_of_interfaces(host: TestHost) -> str:
    network = await host.segment_order()
    eth0, eth1 = (
        {"name": f"eth{n}", "uid": str(uuid.uuid4()), "network": network, "mac": f"02:00:00:00:00:0{n}"}
        for n in range(2)
    )
    uid = await host.order(nics=[eth0])
    await host.until_instance(uid, state="Running")
    group = str(uuid.uuid4())
    await host.change(uid, nics=[{**eth0, "groups": [group]}, eth1])
    await eventually(lambda: len(host.machine.domains[uid].nics) == 2, "both interfaces")
    await eventually(lambda: host.fabric.ports[eth0["uid"]].nic.groups == (group,), "the group")
    await host.change(uid, nics=[{**eth0, "groups": [group]}])
    await eventually(lambda: len(host.machine.domains[uid].nics) == 1, "one interface")
    await host.delete(instance_order_name(uid))
    await host.delete(segment_order_name(network))
    for name in (instance_order_name(uid), segment_order_name(network)):
        await eventually(functools.partial(host.gone, name), f"the end of {name}")
    return uid


@pytest.mark.parametrize("life", range(1, 15))
async def test_dying_after_any_deed_changes_nothing(cluster: NativeCluster, life: int) -> None:
    async with host_on(cluster.kubeconfig) as host:
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        async with asyncio.TaskGroup() as tasks:
            agents = tasks.create_task(_succession(host, mortal))
            uid = await _life_of_a_machine(host)
            agents.cancel()
        assert not host.machine.domains
        assert not host.storage.state.disks
        assert host.machine.starts[uid] == 3


@pytest.mark.parametrize("life", range(1, 13))
async def test_dying_after_any_deed_on_volumes_changes_nothing(cluster: NativeCluster, life: int) -> None:
    async with host_on(cluster.kubeconfig) as host:
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        host.wrap = lambda driver: cast("StorageDriver", MortalStorage(driver, mortal))
        first = host.agent(hypervisor=mortal)
        async with asyncio.TaskGroup() as tasks:

            async def agents() -> None:
                await _until_dead(first, mortal)
                host.wrap = lambda driver: driver
                await host.agent().run()

            succession = tasks.create_task(agents())
            uid, grown = await _life_of_volumes(host)
            succession.cancel()
        assert mortal.died.is_set()
        assert not host.machine.domains
        assert not host.storage.state.volumes
        assert host.machine.starts[uid] == 1
        assert host.machine.sizes == {grown: 2 << 30}


@pytest.mark.parametrize("life", range(1, 8))
async def test_dying_after_any_deed_on_snapshots_changes_nothing(cluster: NativeCluster, life: int) -> None:
    """Two layers, the switch, two notes, and what is left of an attempt that was cut short."""
    async with host_on(cluster.kubeconfig) as host:
        volumes = [await host.volume_order(size=1 << 30) for _ in range(2)]
        disks = [_disk("one", volumes[0]), _disk("two", volumes[1])]
        async with host.running():
            uid = await host.order(disks=disks)
            await host.until_attached(uid, *volumes)
        snapshot = await host.snapshot_order(*volumes)
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        host.wrap = lambda driver: cast("StorageDriver", MortalStorage(driver, mortal))
        first = host.agent(hypervisor=mortal)
        async with asyncio.TaskGroup() as tasks:

            async def agents() -> None:
                running = tasks.create_task(first.run())
                await eventually(lambda: mortal.died.is_set() or not mortal.left, "its death", 60)
                running.cancel()
                host.wrap = lambda driver: driver
                await host.agent().run()

            succession = tasks.create_task(agents())
            status = await host.until_snapshot(snapshot, state="Ready")
            kept = [host.storage.state.layers[volume].snapshots for volume in volumes]
            assert {one.taken.at for each in kept for one in each.values() if one.taken} == {
                status["snapshot"]["takenAt"]
            }
            written = {disk.volume: disk.path for disk in host.machine.domains[uid].disks}
            for volume in volumes:
                stored = await host.storage.volume(volume)
                assert stored is not None
                assert stored.path == written[volume]
            await host.delete(instance_order_name(uid))
            await eventually(lambda: host.gone(instance_order_name(uid)), "the machine's end")
            await host.delete(snapshot_order_name(snapshot))
            await eventually(lambda: host.gone(snapshot_order_name(snapshot)), "the snapshot's end")
            assert all(host.storage.state.layers[volume] == Layers.first(volume) for volume in volumes)
            succession.cancel()
        assert host.machine.starts[uid] == 1


@pytest.mark.parametrize("life", range(1, 8))
async def test_dying_after_any_deed_on_a_snapshot_for_which_the_guest_is_halted_changes_nothing(
    cluster: NativeCluster, life: int
) -> None:
    """A layer, all ready in the other pool, what that keeps, the switch, two notes: the guest goes on in any case."""
    async with host_on(cluster.kubeconfig) as host:
        kept = Kept()
        host.wrap = alive = functools.partial(far, host, kept)
        volumes = [await host.volume_order(size=1 << 30), await host.volume_order(size=1 << 30, pool=FAR)]
        async with host.running():
            uid = await host.order(disks=[_disk("one", volumes[0]), {**_disk("two", volumes[1]), "pool": FAR}])
            await host.until_attached(uid, *volumes)
        snapshot = await host.snapshot_order(*volumes)
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        host.wrap = lambda driver: cast("StorageDriver", MortalStorage(alive(driver), mortal))
        first = host.agent(hypervisor=mortal)
        async with asyncio.TaskGroup() as tasks:

            async def agents() -> None:
                running = tasks.create_task(first.run())
                await eventually(lambda: mortal.died.is_set() or not mortal.left, "its death", 60)
                running.cancel()
                host.wrap = alive
                await host.agent().run()

            succession = tasks.create_task(agents())
            status = await host.until_snapshot(snapshot, state="Ready")
            (layered,) = [one.taken.at for one in host.layers(volumes[0]).snapshots.values() if one.taken]
            (of_pool,) = [one[0] for one in kept.snapshots.values() if one is not None]
            assert layered == of_pool == status["snapshot"]["takenAt"]
            await eventually(lambda: not host.machine.domains[uid].held, "its end of being held")
            await host.until_instance(uid, state="Running")
            assert host.machine.domains[uid].state is DomainState.RUNNING
            for name in (instance_order_name(uid), snapshot_order_name(snapshot)):
                await host.delete(name)
                await eventually(lambda name=name: host.gone(name), "the end")  # type: ignore[misc]
            assert host.layers(volumes[0]) == Layers.first(volumes[0])
            assert kept.snapshots == {}
            succession.cancel()
        assert host.machine.starts[uid] == 1


@pytest.mark.parametrize("life", (2, 3, 4, 6))
async def test_dying_after_any_deed_on_a_snapshot_that_goes_leaves_nothing_of_it(
    cluster: NativeCluster, life: int
) -> None:
    """The record forgets it, the emulator merges, the record learns of that: two snapshots of a machine that is on."""
    async with host_on(cluster.kubeconfig) as host:
        volume = await host.volume_order(size=1 << 30)
        async with host.running():
            uid = await host.order(disks=[_disk("one", volume)])
            await host.until_attached(uid, volume)
            snapshots = [await host.snapshot_order(volume) for _ in range(2)]
            for one in snapshots:
                await host.until_snapshot(one, state="Ready")
        for one in snapshots:
            await host.delete(snapshot_order_name(one))
        mortal = Mortal(SimulatedHypervisor(host.machine), life)
        host.wrap = lambda driver: cast("StorageDriver", MortalStorage(driver, mortal))
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(host.agent(hypervisor=mortal).run())
            await eventually(mortal.died.is_set, "its death")
            first.cancel()
            host.wrap = lambda driver: driver
            second = tasks.create_task(host.agent().run())
            for one in snapshots:
                await eventually(lambda one=one: host.gone(snapshot_order_name(one)), "the end")  # type: ignore[misc]
            await host.until_instance(uid, state="Running")
            second.cancel()
        domain = host.machine.domains[uid]
        assert host.storage.state.layers[volume] == Layers.first(volume)
        assert (domain.state, domain.started_at) == (DomainState.RUNNING, domain.started_at)
        assert {disk.path for disk in domain.disks} == {host.storage.state.volumes[volume][1].path}


@pytest.mark.parametrize("life", range(1, 9))
async def test_dying_after_any_deed_of_a_move_beside_a_guest_changes_nothing(cluster: NativeCluster, life: int) -> None:
    """Room, the copy, its reserve, the switch, the record, the guest goes on, what was is removed."""
    async with host_on(cluster.kubeconfig) as host:
        volume = await host.volume_order(size=1 << 30)
        async with host.running():
            uid = await host.order(disks=[_disk("one", volume)])
            await host.until_attached(uid, volume)
        await host.change_volume(volume, move={"pool": BEYOND})
        async with _agents_that_die(host, life):
            await host.until_volume(volume, state="Ready", observedGeneration=2)
            await host.until_instance(uid, state="Running")
            _is_in_one_pool(host, volume, BEYOND)
            domain = host.machine.domains[uid]
            stored = await host.storage_of(BEYOND).volume(volume)
            assert stored is not None
            assert [(disk.path, disk.copied_to) for disk in domain.disks] == [(stored.path, None)]
            assert domain.state is DomainState.RUNNING
        assert host.machine.starts[uid] == 1
        assert len(host.machine.copies) == len(host.machine.switches) == 1


@pytest.mark.parametrize("life", range(1, 5))
async def test_dying_after_any_deed_of_a_move_changes_nothing(cluster: NativeCluster, life: int) -> None:
    """Room, the copy, the record, what was is removed. A machine that is to start meanwhile gets what is right."""
    async with host_on(cluster.kubeconfig) as host:
        volume = await host.volume_order(size=1 << 30)
        async with host.running():
            await host.until_volume(volume, state="Ready")
        await host.change_volume(volume, move={"pool": BEYOND})
        async with _agents_that_die(host, life):
            await host.until_volume(volume, state="Ready", observedGeneration=2)
            _is_in_one_pool(host, volume, BEYOND)
            early = await host.order(disks=[_disk("one", volume)])
            await host.until_instance(early, state="Waiting", reason="VolumeNotReady")
            await host.change(early, disks=[{**_disk("one", volume), "pool": BEYOND}])
            await host.until_instance(early, state="Running")


@pytest.mark.parametrize("life", range(1, 6))
async def test_dying_while_a_move_is_taken_back_leaves_one_volume(cluster: NativeCluster, life: int) -> None:
    async with host_on(cluster.kubeconfig) as host:
        volume = await host.volume_order(size=1 << 30)
        async with host.running():
            uid = await host.order(disks=[_disk("one", volume)])
            await host.until_attached(uid, volume)
        await host.change_volume(volume, move={"pool": BEYOND})
        async with _agents_that_die(host, life) as mortal:
            await eventually(lambda: mortal.left < max(life, 2) or mortal.died.is_set(), "a deed")
            await host.change_volume(volume, move={"pool": BEYOND, "withdrawn": True})
            status = await host.until_volume(volume, state="Ready", observedGeneration=3)
            where = BEYOND if status["disk"]["pool"] == BEYOND["uid"] else POOL
            _is_in_one_pool(host, volume, where)
            stored = await host.storage_of(where).volume(volume)
            assert stored is not None
            await host.until_instance(uid, state="Running")
            domain = host.machine.domains[uid]
            assert [(disk.path, disk.copied_to) for disk in domain.disks] == [(stored.path, None)]
        assert host.machine.starts[uid] == 1


def _is_in_one_pool(host: TestHost, volume: str, where: Mapping[str, Any]) -> None:
    for pool in (POOL, BEYOND):
        state = host.pools.get(str(pool["uid"]))
        assert state is None or (volume in state.volumes) is (pool["uid"] == where["uid"])
        assert state is None or volume not in state.arriving


@asynccontextmanager
async def _agents_that_die(host: TestHost, life: int) -> AsyncIterator[Mortal]:
    """One agent until it dies, if it does, then another that lives."""
    mortal = Mortal(SimulatedHypervisor(host.machine), life)
    host.wrap = lambda driver: cast("StorageDriver", MortalStorage(driver, mortal))
    first = host.agent(hypervisor=mortal)
    async with asyncio.TaskGroup() as tasks:

        async def agents() -> None:
            running = tasks.create_task(first.run())
            try:
                await mortal.died.wait()
            finally:
                running.cancel()
            host.wrap = lambda driver: driver
            await host.agent().run()

        succession = tasks.create_task(agents())
        yield mortal
        succession.cancel()


async def _succession(host: TestHost, mortal: Mortal) -> None:
    """One agent until it dies, then another that lives."""
    await _until_dead(host.agent(hypervisor=mortal), mortal)
    await host.agent().run()


async def _until_dead(agent: Agent, mortal: Mortal) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await mortal.died.wait()
        running.cancel()


async def _life_of_a_machine(host: TestHost) -> str:
    """Create, restart, pause, go on, stop, start, delete; returns the uid."""
    await host.import_order()
    uid = await host.order(disks=[DISK], restartPolicy="Never")
    await host.until_instance(uid, state="Running")
    await host.change(uid, restartRequest="once")
    await host.until_instance(uid, state="Running", observedGeneration=2)
    await host.change(uid, power="Paused")
    await host.until_instance(uid, state="Paused")
    await host.change(uid, power="Running")
    await host.until_instance(uid, state="Running", observedGeneration=4)
    await host.change(uid, power="Stopped")
    await host.until_instance(uid, state="Stopped")
    await host.change(uid, power="Running")
    await host.until_instance(uid, state="Running", observedGeneration=6)
    await host.delete(instance_order_name(uid))
    await eventually(lambda: host.gone(instance_order_name(uid)), "the order's end")
    return uid


async def _life_of_volumes(host: TestHost) -> tuple[str, str]:
    """Make one, start a machine with it, attach another, grow that, detach the first, delete all; returns the uids of
    the machine and of the second volume."""
    first = await host.volume_order(size=1 << 30)
    uid = await host.order(disks=[_disk("one", first)])
    await host.until_attached(uid, first)
    second = await host.volume_order(size=1 << 30)
    await host.change(uid, disks=[_disk("one", first), _disk("two", second)])
    await host.until_attached(uid, first, second)
    await host.change_volume(second, size=2 << 30)
    await host.until_volume(second, state="Ready", observedGeneration=2)
    await host.change(uid, disks=[_disk("two", second)])
    await host.until_attached(uid, second)
    await host.delete(volume_order_name(first))
    await eventually(lambda: host.gone(volume_order_name(first)), "the first volume's end")
    await host.delete(volume_order_name(second))
    await host.delete(instance_order_name(uid))
    for name in (instance_order_name(uid), volume_order_name(second)):
        await eventually(lambda name=name: host.gone(name), f"the end of {name}")  # type: ignore[misc]
    return uid, second


def _disk(name: str, volume: str) -> dict[str, object]:
    return {"name": name, "pool": POOL, "volume": volume, "bootOrder": 1 if name == "one" else 2}
