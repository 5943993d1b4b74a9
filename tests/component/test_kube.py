"""The kube layer and the machine reconciler against a real API server: outages, crashes after every write, stale leaders."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from kumulus.api.base import FINALIZER, FORCE_DETACH, Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.order_names import pool_order_name
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE, NAMESPACE, SECRET
from kumulus.kube.client import KubeClient, WatchEvent
from kumulus.kube.election import Elector
from kumulus.kube.lease import Lease
from kumulus.kube.reflector import Reflector, fill
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.machine import MachineReconciler
from kumulus_controllers.compute.order import seed_secret_name
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand
from kumulus_controllers.status import amend, write_status
from kumulus_controllers.storage.volume import VolumeReconciler
from kumulus_lab.cluster import NativeCluster
from tests.component.mortal import Crash, mortal
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
SHA = "ab" * 32


@asynccontextmanager
async def connected(cluster: NativeCluster) -> AsyncIterator[KubeClient]:
    client = await KubeClient.from_kubeconfig(cluster.kubeconfig, user_agent="test")
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition."""
    deadline = asyncio.get_running_loop().time() + seconds * PATIENCE
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


# The client and the reflector


def lease(name: str) -> Raw:
    return {"metadata": {"name": name}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 10}}


async def test_errors_are_what_they_say(cluster: NativeCluster, namespace: str) -> None:
    async with connected(cluster) as client:
        with pytest.raises(errors.NotFound):
            await client.get(LEASE, "none", namespace)
        made = await client.create(LEASE, lease("one"), namespace)
        with pytest.raises(errors.AlreadyExists):
            await client.create(LEASE, lease("one"), namespace)
        await client.patch(LEASE, "one", {"spec": {"holderIdentity": "y"}}, namespace)
        with pytest.raises(errors.Conflict):
            await client.replace(LEASE, made, namespace)
        with pytest.raises(errors.Conflict):
            await client.patch(LEASE, "one", {"metadata": {"resourceVersion": "1"}, "spec": {}}, namespace)
        with pytest.raises(errors.Refused, match=r"metadata\.uid"):
            await client.patch(
                LEASE, "one", {"metadata": {"uid": "1" * 36}, "spec": {"holderIdentity": "z"}}, namespace
            )
        with pytest.raises(errors.Conflict):
            await client.delete(LEASE, "one", namespace, uid="1" * 36)
        with pytest.raises(errors.Refused):
            await client.create(VirtualMachine.KIND, {"metadata": {"name": "x"}, "spec": {}}, namespace)
        assert await client.delete(LEASE, "one", namespace) is not None
        assert await client.delete(LEASE, "one", namespace) is None


async def test_a_name_that_is_a_path_reads_nothing_of_others(cluster: NativeCluster, namespace: str) -> None:
    async with connected(cluster) as client:
        await client.create(SECRET, {"metadata": {"name": "theirs"}, "stringData": {"key": "secret"}}, namespace)
        assert await client.find(SECRET, "theirs", namespace) is not None
        assert await client.find(SECRET, f"../../{namespace}/secrets/theirs", "default") is None


async def test_a_closed_client_leaves_no_socket_behind(cluster: NativeCluster, namespace: str) -> None:
    def sockets() -> set[str]:
        return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}

    before = sockets()
    async with connected(cluster) as client:
        await client.create(LEASE, lease("one"), namespace)
        watch = aiter(client.watch(LEASE, namespace, since="0"))
        # Bookmarks come when the server likes: it may send one before the first lease.
        while (event := await anext(watch)).type == "BOOKMARK":
            pass
        assert event.type == "ADDED"
        assert sockets() - before
        # A server that says nothing answers no good-bye either.
        cluster.freeze_apiserver()
        try:
            call = asyncio.create_task(client.get(LEASE, "one", namespace))
            await asyncio.sleep(0)
            call.cancel()
            await cast(AsyncGenerator[WatchEvent, None], watch).aclose()
            await client.close()
            assert sockets() <= before
        finally:
            cluster.thaw_apiserver()


@asynccontextmanager
async def reflecting(client: KubeClient, namespace: str) -> AsyncIterator[Store[Lease]]:
    store = Store(Lease)
    task = asyncio.create_task(Reflector(store, client, namespace).run())
    try:
        await until(lambda: store.synced, "the store is filled")
        yield store
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_reflector_lives_through_a_restart_of_the_api_server(cluster: NativeCluster, namespace: str) -> None:
    async with connected(cluster) as client:
        for name in ("stays", "goes"):
            await client.create(LEASE, lease(name), namespace)
        async with reflecting(client, namespace) as store:
            assert len(store) == 2
            await asyncio.to_thread(cluster.restart_apiserver)
            cluster.kubectl_run("-n", namespace, "delete", "lease", "goes")
            cluster.kubectl_run("-n", namespace, "create", "-f", "-", stdin=_yaml("new"))
            await until(lambda: {item.name for item in store} == {"stays", "new"}, "the store knows what happened")


async def test_a_deletion_during_an_outage_is_noticed_when_the_version_is_gone(
    cluster: NativeCluster, namespace: str
) -> None:
    async with connected(cluster) as client, connected(cluster) as other:
        await client.create(LEASE, lease("goes"), namespace)
        watch, outage, versions = client.watch, asyncio.Event(), ["1"]
        gone: list[str] = []

        async def watch_after_a_long_outage(*args: Any, since: str, **more: Any) -> AsyncIterator[WatchEvent]:
            await outage.wait()
            try:
                async for event in watch(*args, since=versions.pop() if versions else since, **more):
                    yield event
            except errors.Gone as error:
                gone.append(error.reason)
                raise

        client.watch = watch_after_a_long_outage  # type: ignore[method-assign]
        async with reflecting(client, namespace) as store:
            assert store.get("goes", namespace) is not None
            await other.delete(LEASE, "goes", namespace)
            await other.create(LEASE, lease("new"), namespace)
            # An API server that was started since knows nothing older than its start.
            await asyncio.to_thread(cluster.restart_apiserver)
            outage.set()
            await until(lambda: {item.name for item in store} == {"new"}, "the store knows what happened")
            assert gone == ["Expired"]


def _yaml(name: str) -> str:
    return f"apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {{name: {name}}}\n"


async def test_two_electors_on_a_real_lease(cluster: NativeCluster, namespace: str) -> None:
    async with connected(cluster) as one, connected(cluster) as two:
        terms: list[tuple[str, int]] = []

        def elector(client: KubeClient, name: str) -> Elector:
            async def started(term: int) -> None:
                terms.append((name, term))

            async def stopped() -> None:
                pass

            return Elector(
                client,
                namespace=namespace,
                name="seat",
                identity=name,
                duration=2.0,
                on_started=started,
                on_stopped=stopped,
            )

        first, second = elector(one, "first"), elector(two, "second")
        tasks = [asyncio.create_task(first.run())]
        await until(lambda: first.leading, "the first leads")
        tasks.append(asyncio.create_task(second.run()))
        tasks[0].cancel()
        await until(lambda: second.leading, "the second leads", 5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert terms == [("first", 1), ("second", 2)]


# The machine reconciler: crashes and stale leaders


KINDS = (
    VirtualMachine,
    VirtualMachineSnapshot,
    VirtualMachineRestore,
    InstanceType,
    Image,
    ClusterImage,
    Host,
    Zone,
    StoragePool,
    Volume,
    VolumeClass,
    VolumeSnapshot,
    WorkOrder,
)


class Brain:
    """A controller process: caches of its own, that know what it last looked at, and a reconciler."""

    def __init__(self, client: KubeClient, term: int = 1) -> None:
        self.client = client
        self.caches = Caches()
        self.fleet = Fleet()
        FleetFeed(self.caches, self.fleet)
        services = Services(client, self.caches, SystemClock(), lambda: term)
        self.machines = MachineReconciler(services, self.fleet)
        self.volumes = VolumeReconciler(services, self.fleet)
        for reconciler in (self.machines, self.volumes):
            reconciler.attach(lambda key, *, urgent=False: None)

    async def look(self) -> Brain:
        for model in KINDS:
            await fill(self.caches.store(model), self.client, model.KIND, None)
        return self

    async def passes(self, key: Key) -> None:
        """One over a machine, one over the volume it brings along."""
        for reconciler, item in ((self.machines, key), (self.volumes, Key(key.namespace, f"{key.name}-data"))):
            with suppress(errors.Conflict):
                await reconciler.reconcile(item)


class Scenery:
    """Two hosts with a pool and an image that is ready, and a tenant's namespace."""

    def __init__(self, cluster: NativeCluster, client: KubeClient, namespace: str) -> None:
        self.cluster, self.client, self.namespace = cluster, client, namespace
        self.tag = secrets.token_hex(3)
        self.hosts = [f"{self.tag}-a", f"{self.tag}-b"]

    async def _put(
        self, kind: Kind, name: str, spec: Raw, status: Raw | None, namespace: str | None = None, **meta: Any
    ) -> Raw:
        made = await self.client.create(kind, {"metadata": {"name": name, **meta}, "spec": spec}, namespace)
        if status is not None:
            made = await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return made

    async def build(self) -> Scenery:
        ready = [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Test",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]
        await self._put(Zone.KIND, self.tag, {}, None)
        parameters = {"path": f"/var/lib/kumulus/{self.tag}"}
        pool = await self._put(StoragePool.KIND, self.tag, {"driver": "dir", "parameters": parameters}, None)
        image = {
            "source": {"http": {"url": "https://images.example.com/x.qcow2"}},
            "checksum": {"sha256": SHA},
            "format": "qcow2",
        }
        await self._put(
            ClusterImage.KIND, self.tag, image, {"phase": "Ready", "virtualSize": 2**30, "conditions": ready}
        )
        for host in self.hosts:
            namespace = host_namespace(host)
            allocatable = {"cpus": 100, "memory": 2**38}
            status = {"phase": "Ready", "namespace": namespace, "allocatable": allocatable, "conditions": ready}
            await self._put(Host.KIND, host, {"zone": self.tag}, status, labels={"test": self.tag})
            await self.client.create(NAMESPACE, {"metadata": {"name": namespace}})
            uid = pool["metadata"]["uid"]
            ref = {"uid": uid, "name": self.tag, "driver": "dir", "parameters": parameters}
            spec = {"type": "Pool", "for": {"kind": "StoragePool", "name": self.tag, "uid": uid}, "pool": {"pool": ref}}
            await self._put(
                WorkOrder.KIND, pool_order_name(uid), spec, {"state": "Ready", "pool": {"capacity": 2**42}}, namespace
            )
        await self.client.create(
            SECRET, {"metadata": {"name": "boot"}, "stringData": {"user": "#cloud-config\n{}\n"}}, self.namespace
        )
        return self

    async def remove(self) -> None:
        for host in self.hosts:
            for order in await self.orders(host):
                await self.client.patch(
                    WorkOrder.KIND, order["metadata"]["name"], {"metadata": {"finalizers": []}}, host_namespace(host)
                )
            await self.client.delete(NAMESPACE, host_namespace(host))
            await self.client.delete(Host.KIND, host)
        for kind in (ClusterImage.KIND, StoragePool.KIND, Zone.KIND):
            await self.client.delete(kind, self.tag)

    async def vm(self, name: str) -> Key:
        spec = {
            "resources": {"cpus": 1, "memory": "64Mi"},
            "zone": self.tag,
            "disks": [
                {"name": "root", "ephemeral": {"image": self.tag}},
                {"name": "data", "volumeTemplate": {"size": "1Gi", "reclaimPolicy": "Retain"}},
            ],
            "cloudInit": {"userDataSecret": {"name": "boot", "key": "user"}},
        }
        await self.client.create(VirtualMachine.KIND, {"metadata": {"name": name}, "spec": spec}, self.namespace)
        return Key(self.namespace, name)

    async def orders(self, host: str, type_: str | None = None) -> list[Raw]:
        found = [
            item async for page, _ in self.client.list_pages(WorkOrder.KIND, host_namespace(host)) for item in page
        ]
        return [order for order in found if type_ in (None, order["spec"]["type"])]

    async def agents(self) -> None:
        """What agents do of it: let go what is being deleted."""
        for host in self.hosts:
            for order in await self.orders(host):
                if "deletionTimestamp" in order["metadata"] and order["metadata"].get("finalizers"):
                    with suppress(errors.NotFound):
                        await self.client.patch(
                            WorkOrder.KIND,
                            order["metadata"]["name"],
                            {"metadata": {"finalizers": []}},
                            host_namespace(host),
                        )

    async def state(self, name: str) -> Raw:
        """All that there is of a machine, without what differs from one run to the next."""
        vm = await self.client.find(VirtualMachine.KIND, name, self.namespace)
        instances, imports, seeds = [], [], []
        for host in self.hosts:
            for order in await self.orders(host, "Instance"):
                if order["spec"]["for"]["name"] == name:
                    instances.append((host, order))
                    seed = await self.client.find(
                        SECRET, seed_secret_name(order["spec"]["for"]["uid"]), host_namespace(host)
                    )
                    owners = seed["metadata"]["ownerReferences"] if seed else []
                    seeds += [owner["uid"] == order["metadata"]["uid"] for owner in owners]
                    imports += [
                        image["spec"]["disk"]["pool"]["name"] == self.tag for image in await self.orders(host, "Disk")
                    ]
        volume = await self.client.find(Volume.KIND, f"{name}-data", self.namespace)
        kept = [
            host
            for host in self.hosts
            for order in await self.orders(host, "Disk")
            if order["spec"]["for"]["name"] == f"{name}-data"
        ]
        data = volume.get("status", {}) if volume else {}
        assert len(kept) <= 1 and (not kept or data.get("host") == kept[0]), (
            "a volume is made once, where it is said to be"
        )
        volumes = {"orders": len(kept), "attached": "attachedTo" in data, "phase": data.get("phase")}
        if vm is None:
            return {"vm": None, "instances": len(instances), "volume": volumes}
        status = vm.get("status", {})
        assert len(instances) <= 1, "never two work orders"
        assert not instances or status.get("host") in (None, instances[0][0]), "the order is where the status says"
        return {
            "phase": status.get("phase"),
            "placed": "host" in status,
            "epoch": status.get("epoch"),
            "resources": status.get("resources"),
            "finalizers": vm["metadata"].get("finalizers"),
            "conditions": {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])},
            "instances": [_without(order["spec"], vm["metadata"]["uid"]) for _, order in instances],
            "seeds": seeds,
            "imports": imports[:1],
            "volume": volumes,
        }


def _without(spec: Mapping[str, Any], uid: str) -> str:
    text = repr({**spec, "term": "whoever leads"}).replace(uid, "UID").replace(spec["for"]["name"], "NAME")
    return re.sub(r"'volume': '[-0-9a-f]+'", "'volume': 'VOLUME'", text)


@pytest.fixture
async def scenery(cluster: NativeCluster, namespace: str) -> AsyncIterator[Scenery]:
    async with connected(cluster) as client:
        made = await Scenery(cluster, client, namespace).build()
        try:
            yield made
        finally:
            await made.remove()


async def settle(brain: Brain, scenery: Scenery, key: Key, *, passes: int = 4) -> None:
    """Passes as the queue would make them, with agents doing their part in between."""
    for _ in range(passes):
        await brain.look()
        await brain.passes(key)
        await scenery.agents()


async def life(scenery: Scenery, name: str, lives: int | None, *, delete: bool, stale: bool) -> tuple[Raw, int]:
    """Create (and delete) a machine under a process that dies after so many writes; its successor finishes.

    With `stale`, a third process that looked when the first one died goes on afterwards with what it saw then,
    and would rather have the machine on the other host.
    """
    key = await scenery.vm(name)
    if delete:
        await settle(await Brain(scenery.client).look(), scenery, key)
        await scenery.client.delete(VirtualMachine.KIND, name, scenery.namespace)
    async with mortal(scenery.cluster, lives) as client:
        with suppress(Crash):
            await settle(Brain(client), scenery, key)
        writes = client.writes
    old = await Brain(scenery.client).look() if stale else None
    await settle(Brain(scenery.client, term=2), scenery, key)
    if old is not None:
        placed = await scenery.client.find(VirtualMachine.KIND, name, scenery.namespace)
        if placed is not None:
            old.fleet.assign("ballast", placed["status"]["host"], Demand(99, 2**37), None)
        for _ in range(2):
            with suppress(errors.NotFound):
                await old.passes(key)
        await scenery.agents()
        await settle(Brain(scenery.client, term=2), scenery, key, passes=2)
    return await scenery.state(name), writes


@pytest.mark.parametrize(
    "stale", [pytest.param(False, marks=pytest.mark.wide), True], ids=["crash", "crash-and-stale-leader"]
)
@pytest.mark.parametrize("delete", [False, True], ids=["create", "delete"])
async def test_a_crash_after_any_write_ends_as_if_there_had_been_none(
    scenery: Scenery, delete: bool, stale: bool
) -> None:
    wanted, writes = await life(scenery, "calm", None, delete=delete, stale=False)
    assert writes >= (2 if delete else 5)
    if delete:
        assert wanted == {"vm": None, "instances": 0, "volume": {"orders": 1, "attached": False, "phase": "Creating"}}
    else:
        assert wanted["epoch"] == 1 and len(wanted["instances"]) == 1
        assert wanted["seeds"] == [True] and wanted["imports"] == [True]
    for lives in range(1, writes + 1):
        found, _ = await life(scenery, f"crash-{lives}", lives, delete=delete, stale=stale)
        assert found == wanted, f"after write {lives}"


async def test_two_leaders_at_once_choose_one_host_for_each_machine(scenery: Scenery) -> None:
    keys = [await scenery.vm(f"both-{number}") for number in range(6)]
    one, two = Brain(scenery.client, 1), Brain(scenery.client, 2)
    for _ in range(4):
        await asyncio.gather(one.look(), two.look())
        one.fleet.assign("ballast", scenery.hosts[0], Demand(50, 2**37), None)
        two.fleet.assign("ballast", scenery.hosts[1], Demand(50, 2**37), None)
        passes = [brain.passes(key) for key in keys for brain in (one, two)]
        for outcome in await asyncio.gather(*passes, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, errors.KubeError), outcome
    for key in keys:
        found = await scenery.state(key.name)
        assert found["placed"] and found["epoch"] == 1 and len(found["instances"]) == 1
        assert found["finalizers"] == [FINALIZER]


async def test_a_change_goes_with_what_others_wrote_and_never_to_a_namesake(scenery: Scenery) -> None:
    client, annotations = scenery.client, {FORCE_DETACH: "true", "theirs": "1"}
    store: Store[Volume] = Store(Volume)

    async def made() -> Volume:
        body = {"metadata": {"name": "v", "annotations": annotations}, "spec": {"size": "1Gi"}}
        return Volume.parse(await client.create(Volume.KIND, body, scenery.namespace))

    async def forced_no_more(item: Volume) -> None:
        await amend(client, store, item, lambda current: {"metadata": {"annotations": {FORCE_DETACH: None}}})

    volume = await made()
    store.apply(volume.to_json())
    await client.patch(Volume.KIND, "v", {"metadata": {"annotations": {"theirs": "2"}}}, scenery.namespace)
    await forced_no_more(volume)  # the cache is behind
    after = store.get("v", scenery.namespace)
    assert after is not None and after.metadata.annotations == {"theirs": "2"}
    await client.delete(Volume.KIND, "v", scenery.namespace, uid=volume.uid)
    await forced_no_more(volume)
    namesake = await made()
    await forced_no_more(volume)  # the cache has not heard of it
    store.apply(namesake.to_json())
    await forced_no_more(volume)
    now = await client.get(Volume.KIND, "v", scenery.namespace)
    assert now["metadata"]["resourceVersion"] == namesake.metadata.resource_version

    def again(current: Volume) -> Raw:
        raise AssertionError("nothing is made of a namesake")

    await amend(client, store, volume, again)


async def test_a_change_is_given_up_when_others_do_not_stop_writing(scenery: Scenery) -> None:
    """It would be made for ever; whoever asked for it starts anew."""
    client, store, asked = scenery.client, Store(Volume), 0
    volume = Volume.parse(
        await client.create(Volume.KIND, {"metadata": {"name": "v"}, "spec": {"size": "1Gi"}}, scenery.namespace)
    )

    class Beside(KubeClient):
        async def patch(self, *args: Any, **more: Any) -> Raw:
            nonlocal asked
            asked += 1
            await client.patch(Volume.KIND, "v", {"metadata": {"annotations": {"n": str(asked)}}}, scenery.namespace)
            return await super().patch(*args, **more)

    beside = await Beside.from_kubeconfig(scenery.cluster.kubeconfig, user_agent="test")
    try:
        with pytest.raises(errors.Conflict):
            await amend(beside, store, volume, lambda current: {"metadata": {"annotations": {"mine": "1"}}})
    finally:
        await beside.close()
    assert 2 < asked < 10


async def test_a_status_never_reaches_a_successor_of_the_same_name(scenery: Scenery) -> None:
    key = await scenery.vm("again")
    brain = await Brain(scenery.client).look()
    store = brain.caches.store(VirtualMachine)
    old = store.get(key.name, key.namespace)
    assert old is not None
    await scenery.client.delete(VirtualMachine.KIND, key.name, key.namespace)
    await scenery.vm("again")
    after = old.status.model_copy(update={"host": scenery.hosts[0], "epoch": 7})
    with pytest.raises(errors.Conflict):
        await write_status(scenery.client, store, old, old.status, after)
    assert "status" not in await scenery.client.get(VirtualMachine.KIND, key.name, key.namespace)
