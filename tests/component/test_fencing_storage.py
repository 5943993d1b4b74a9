"""Hosts that share pools in a real Ceph cluster and on a real NFS server, when these hang and when a host does (ADR 33, 39, 46).

Real are the API server, the controllers, the agents, the storage and the BMC; only the hypervisors are simulated.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.remediation import HostRemediation
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus_agents.storage.nfs import mount
from kumulus_agents.watchdog.client import Watchdog
from kumulus_agents.watchdog.watch import State
from kumulus_controllers.fabric.automatic import MARGIN_SECONDS
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import GIB, Cloud, Raw, cloud, condition, phase, until
from tests.component.dog import watchdog
from tests.component.relay import relayed
from tests.component.test_fencing import DYING, LEASE_SECONDS, SPARE, Owner, other
from tests.conftest import new_lab
from tests.contract.bmc import PASSWORD, emulator
from tests.contract.bmc import USER as BMC_USER
from tests.contract.ceph import POOL, USER, CephCluster, why_none
from tests.contract.test_rbd import writer
from tests.system.nfs_server import TOOLS, NfsServer, nfs_server
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.wide, pytest.mark.asyncio(loop_scope="module"), needs_root]

FAR, EXPORT = "far", "export"
HANGS = 2 * LEASE_SECONDS + MARGIN_SECONDS + 5
"""Seconds: a host that went silent with the pool would be fenced, and its watchdog would have ended its machines."""


class Sharers(Owner):
    """The owner of machines whose disks are in such pools, and the operator of two hosts that share them."""

    def __init__(self, made: Cloud, tag: str, ceph: CephCluster, nfs: NfsServer) -> None:
        super().__init__(made, tag)
        self.ceph, self.nfs = ceph, nfs

    async def pools(self) -> None:
        key = {"metadata": {"name": "ceph"}, "stringData": {"key": self.ceph.key()}}
        await self.client.create(SECRET, key, "kumulus-system")
        rbd = {"monitors": list(self.ceph.monitors), "pool": POOL, "user": USER, "secret": {"name": "ceph"}}
        nfs = {"server": self.nfs.address, "path": str(self.nfs.export)}
        for name, driver, parameters in ((FAR, "rbd", rbd), (EXPORT, "nfs", nfs)):
            spec = {"driver": driver, "parameters": {driver: parameters}}
            body = {"metadata": {"name": name, "labels": {"is": name}}, "spec": spec}
            await self.client.create(StoragePool.KIND, body)
            offered = {"metadata": {"name": name}, "spec": {"poolSelector": {"is": name}}}
            await self.client.create(VolumeClass.KIND, offered)

    @contextmanager
    def hung(self, pool: str) -> Iterator[None]:
        """The storage behind the pool does not answer, and nothing that is open ends."""
        if pool == FAR:
            with self.ceph.silent():
                yield
            return
        self.nfs.stall()
        try:
            yield
        finally:
            self.nfs.go_on()

    async def running(self, name: str, pool: str = FAR) -> Raw:
        """A machine with high availability that runs on the first host, and may go to the other."""
        await self.vm(name, ha={"enabled": True}, disk=pool, placement={"hostSelector": {"role": DYING}})
        vm = await self.runs_on(name, DYING)
        await self.patch(VirtualMachine.KIND, name, placement={"hostSelector": None})
        return vm

    async def ends(self, name: str) -> None:
        await self.delete(VirtualMachine.KIND, name)
        await self.gone(VirtualMachine.KIND, name)


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    if (why := why_none()) is not None:
        pytest.skip(why)
    cluster = CephCluster(tmp_path_factory.mktemp("ceph") / "root")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def nfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    if not TOOLS:
        pytest.skip("needs nfs-ganesha: hack/setup.py --tests")
    with nfs_server(tmp_path_factory.mktemp("ganesha")) as server:
        yield server


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(
    ceph: CephCluster, nfs: NfsServer, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sharers]:
    directory = tmp_path_factory.mktemp("hosts")
    try:
        async with cloud(lab, directory) as made:
            owner = Sharers(made, secrets.token_hex(3), ceph, nfs)
            await owner.client.create(NAMESPACE, {"metadata": {"name": owner.namespace}})
            await owner.pools()
            for name, memory in ((DYING, 8), (SPARE, 4)):
                await owner.host(name, memory=memory * GIB)
            for pool in (FAR, EXPORT):
                await owner.ready_pool(pool, hosts=2)
            yield owner
    finally:
        for target in directory.glob("*/mounts/*"):
            if mount.mounted(target) is not None:
                await asyncio.to_thread(subprocess.run, ["umount", "-l", target], check=True)


@pytest.mark.parametrize("pool", [FAR, EXPORT])
async def test_storage_that_hangs_reboots_no_host_and_restarts_no_machine(
    owner: Sharers, tmp_path: Path, pool: str
) -> None:
    host, fired = owner.cloud.hosts[DYING], list[str]()
    vm = await owner.running("steady", pool)
    uid, starts = vm["metadata"]["uid"], dict(host.machine.starts)
    await host.kill()
    host.watchdog = Watchdog(tmp_path / "dog")

    async def fire() -> None:
        fired.append(DYING)

    async def armed() -> bool:
        return condition(await owner.client.get(Host.KIND, DYING), "WatchdogArmed").get("reason") == "Armed"

    async def well(name: str) -> bool:
        found = await owner.client.get(Host.KIND, name)
        assert condition(found).get("status") == "True", found["status"]
        return True

    with emulator(tmp_path) as bmc:
        secret = {"metadata": {"name": "bmc"}, "stringData": {"username": BMC_USER, "password": PASSWORD}}
        await owner.client.create(SECRET, secret, "kumulus-system")
        spec = {"bmc": bmc.bmc().to_json(), "fencing": {"automatic": True, "watchdog": True}}
        await owner.client.patch(Host.KIND, DYING, {"spec": spec})
        async with watchdog(tmp_path / "dog", fire) as watch:
            host.start()
            await until(armed, "it is armed")
            await owner.runs_on("steady", DYING)
            with owner.hung(pool):
                away = lambda one: not one["status"].get("readyHosts")  # noqa: E731
                await owner.cluster(StoragePool.KIND, pool, away, "is away")
                over = asyncio.get_running_loop().time() + HANGS
                while asyncio.get_running_loop().time() < over:
                    assert await well(DYING) and await well(SPARE)
                    assert await owner.cloud.listed(HostRemediation.KIND) == []
                    assert (watch.state, bmc.power, fired) == (State.ARMED, "On", [])
                    assert owner.runs_here(vm, DYING)
                    await asyncio.sleep(0.2)
            await owner.ready_pool(pool, hosts=2)
            after = await owner.runs_on("steady", DYING)
            assert (after["status"]["epoch"], host.machine.starts) == (vm["status"]["epoch"], starts)
            assert uid in starts and fired == [] and await owner.cloud.listed(HostRemediation.KIND) == []
            await owner.client.patch(Host.KIND, DYING, {"spec": {"bmc": None, "fencing": None}})
            await until(lambda: asyncio.sleep(0, watch.state is State.IDLE), "it is disarmed")
            await host.kill()
    host.watchdog = None
    host.start()
    await owner.client.delete(SECRET, "bmc", "kumulus-system")
    await owner.ends("steady")
    assert owner.witness.twice == []


async def test_a_host_that_is_cut_off_lives_as_its_heartbeat_in_the_cluster_says(
    owner: Sharers, tmp_path: Path
) -> None:
    host = owner.cloud.hosts[DYING]
    async with relayed(owner.cloud.lab.kubeconfig, tmp_path) as (relay, client):
        await host.kill()
        straight, host.client = host.client, client
        before = await owner.reached_at(DYING)
        host.start()
        await until(lambda: other(owner.reached_at(DYING), before), "its agent is there, and has its orders")
        relay.cut()

        def says(*words: str) -> Callable[[Raw], bool]:
            def holds(item: Raw) -> bool:
                found = {
                    one["says"]: one["message"]
                    for one in item["status"].get("witnesses", ())
                    if one["kind"] == "Storage"
                }
                return set(found) == {words[0]} and all(word in found[words[0]] for word in words[1:])

            return holds

        try:
            with owner.hung(EXPORT):
                await owner.cluster(Host.KIND, DYING, says("Alive", f"pool {FAR}"), "is alive, as its heartbeat says")
                with owner.ceph.silent("osd"):
                    await owner.cluster(Host.KIND, DYING, says("Unknown"), "is not known to be alive")
                await owner.cluster(Host.KIND, DYING, says("Alive", f"pool {FAR}"), "is alive again")
        finally:
            relay.heal()
            await host.kill()
            host.client = straight
            host.start()
        await owner.cluster(Host.KIND, DYING, phase("Ready"), "is heard of again")
    assert await owner.cloud.listed(HostRemediation.KIND) == []


async def test_a_machine_that_still_runs_where_a_person_said_it_was_off_writes_to_no_disk(owner: Sharers) -> None:
    vm = await owner.running("taken")
    volume = await owner.find(Volume.KIND, "taken-root")
    async with writer(owner.ceph, volume["metadata"]["uid"]) as stale:
        await owner.cut(DYING)
        assert await stale.write(7)
        assert await owner.ctl("host", "confirm-dead", DYING, "--powered-off") == 0
        await owner.runs_on("taken", SPARE)
        assert not await stale.write(8)
        async with writer(owner.ceph, volume["metadata"]["uid"]) as taken_by:
            assert await taken_by.write(2)
            assert not await stale.write(9)
            owner.cloud.hosts[DYING].start()
            await owner.cluster(Host.KIND, DYING, phase("Ready"), "takes machines again")
            assert await taken_by.write(3)
    assert vm["metadata"]["uid"] not in owner.cloud.hosts[DYING].machine.domains
    assert owner.witness.twice == []
