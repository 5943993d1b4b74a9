"""Pools of machines against a real API server: its garbage collector, its autoscaler, crashes after every write.

What becomes of machines is written by the test: it says that they run, and lets them go. After every pass it is looked at
whether there are more of them than there may be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.base import FINALIZER, Kind, Scope
from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_pool import DELETION_COST, REVISION, VirtualMachinePool
from kumulus.api.storage import Volume
from kumulus.kube import errors
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.kube.store import Key
from kumulus.runtime.clock import SystemClock, rfc3339
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.vm_pool import PoolReconciler
from kumulus_controllers.storage.volume_plan import MADE_FOR
from kumulus_lab.cluster import NativeCluster
from tests.component.cloud import condition
from tests.component.cloud import until as found_by
from tests.component.mortal import Crash, mortal
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
AUTOSCALER = Kind(group="autoscaling", version="v2", kind="HorizontalPodAutoscaler", plural="horizontalpodautoscalers")
POOL, VM = VirtualMachinePool.KIND, VirtualMachine.KIND
NOW = rfc3339(SystemClock().now())


class Clock(SystemClock):
    """One that a test sets forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Brain:
    """A controller process that has just started."""

    def __init__(self, client: KubeClient) -> None:
        self.client, self.caches, self.clock = client, Caches(), Clock()
        self.pools = PoolReconciler(Services(client, self.caches, self.clock, lambda: 1))
        self.woken: set[str] = set()
        self.pools.attach(lambda key, *, urgent=False: self.woken.add(key.name))

    async def look(self) -> None:
        for store in self.caches:
            await fill(store, self.client, store.model.KIND, None)

    async def run(self, namespace: str, name: str) -> None:
        """A pass; and never does a status wait for its pace here."""
        await self.look()
        self.clock.ahead += 2
        with suppress(errors.Conflict):
            await self.pools.reconcile(Key(namespace, name))


class Stage:
    """A namespace with pools, and what a host would make of their machines."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace

    async def pool(self, name: str, replicas: int = 2, **spec: Any) -> Raw:
        template = {"metadata": {"labels": {"app": name}}, "spec": spec.pop("machine", self.sized("1Gi"))}
        body = {"replicas": replicas, "selector": {"app": name}, "template": template, **spec}
        return await self.client.create(POOL, {"metadata": {"name": name}, "spec": body}, self.namespace)

    @staticmethod
    def sized(memory: str) -> Raw:
        return {"resources": {"cpus": 1, "memory": memory}}

    async def get(self, name: str) -> Raw:
        return await self.client.get(POOL, name, self.namespace)

    async def change(self, name: str, **spec: Any) -> None:
        await self.client.patch(POOL, name, {"spec": spec}, self.namespace)

    async def machines(self, pool: str) -> list[Raw]:
        listed = [item async for page, _ in self.client.list_pages(VM, self.namespace) for item in page]
        return sorted(
            (item for item in listed if item["metadata"]["name"].rpartition("-")[0] == pool),
            key=lambda item: str(item["metadata"]["name"]),
        )

    async def names(self, pool: str) -> list[str]:
        return [item["metadata"]["name"] for item in await self.machines(pool)]

    async def say(self, name: str, phase: str = "Running", reason: str = "Running") -> None:
        """What the machine's own controller would say of it."""
        ready = {"Running": "True", "Unknown": "Unknown"}.get(phase, "False")
        told = {"type": "Ready", "status": ready, "reason": reason, "message": "", "lastTransitionTime": NOW}
        status = {"phase": phase, "host": "h1", "conditions": [told]}
        await self.client.patch(VM, name, {"status": status}, self.namespace, subresource="status")

    async def host(self, pool: str) -> None:
        """Machines run, and those whose end is asked for are gone."""
        for item in await self.machines(pool):
            name = item["metadata"]["name"]
            if "deletionTimestamp" in item["metadata"]:
                with suppress(errors.NotFound):
                    await self.client.patch(VM, name, {"metadata": {"finalizers": None}}, self.namespace)
            elif not item["metadata"].get("finalizers"):
                await self.client.patch(VM, name, {"metadata": {"finalizers": [FINALIZER]}}, self.namespace)
                await self.say(name)
            elif not item.get("status"):
                await self.say(name)


@pytest.fixture
async def stage(cluster: NativeCluster, kept_namespace: str) -> AsyncIterator[Stage]:
    async with connected(cluster) as client:
        yield Stage(client, kept_namespace)


async def settle(brain: Brain, stage: Stage, name: str, *, passes: int = 30, most: int | None = None) -> Raw:
    """Controller and hosts take turns until the pool is ready, and then once more."""
    for _ in range(passes):
        await brain.run(stage.namespace, name)
        if most is not None:
            assert len(await stage.machines(name)) <= most
        await stage.host(name)
        pool = await stage.get(name)
        if condition(pool).get("status") == "True" and (
            pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
        ):
            await brain.run(stage.namespace, name)
            return await stage.get(name)
    raise AssertionError(condition(await stage.get(name)))


async def test_a_pool_grows_and_shrinks_by_kubectl_scale_and_few_writes(stage: Stage, cluster: NativeCluster) -> None:
    async with mortal(cluster, None) as client:
        brain = Brain(client)
        await stage.pool("web", 2)
        pool = await settle(brain, stage, "web")
        assert client.writes <= 2 + 3, "two machines, and the status: at first, when they are there, when they run"
        status = pool["status"]
        assert (status["replicas"], status["readyReplicas"], status["selector"]) == (2, 2, "app=web")
        assert condition(pool, "Available")["status"] == "True" and not condition(pool, "Reconciling")
        before = client.writes
        for _ in range(3):
            await brain.run(stage.namespace, "web")
        assert client.writes == before, "nothing changed"

        here = ("-n", stage.namespace)
        cluster.kubectl_run(*here, "scale", "vmpool", "web", "--replicas=4")
        await settle(brain, stage, "web")
        assert await stage.names("web") == ["web-0", "web-1", "web-2", "web-3"]
        await stage.client.patch(VM, "web-0", {"metadata": {"annotations": {DELETION_COST: "-10"}}}, stage.namespace)
        await stage.say("web-2", "Failed", "Failed")
        cluster.kubectl_run(*here, "scale", "vmpool", "web", "--replicas=2", "--current-replicas=4")
        pool = await settle(brain, stage, "web")
        assert await stage.names("web") == ["web-1", "web-3"]
        assert "removing" not in pool["status"] or pool["status"]["removing"] == []
        scale = await stage.client.request("GET", POOL.path(stage.namespace, "web", "scale"))
        assert scale["kind"] == "Scale" and scale["apiVersion"] == "autoscaling/v1"
        assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 2, "selector": "app=web"})
        shown = cluster.kubectl_run(*here, "get", "vmpool", "web").stdout.splitlines()
        assert shown[0].split() == ["NAME", "DESIRED", "CURRENT", "READY", "UPDATED", "AVAILABLE", "AGE"]
        assert shown[1].split()[:6] == ["web", "2", "2", "2", "2", "2"]


@pytest.mark.parametrize(("away", "surge", "most"), [pytest.param(1, 0, 3, marks=pytest.mark.wide), (0, 1, 4)])
async def test_another_template_comes_machine_by_machine(stage: Stage, away: int, surge: int, most: int) -> None:
    rolling = {"rollingUpdate": {"maxUnavailable": away, "maxSurge": surge}}
    await stage.pool("web", 3, updateStrategy=rolling)
    brain = Brain(stage.client)
    first = (await settle(brain, stage, "web"))["status"]["updateRevision"]
    await stage.change("web", template={"spec": stage.sized("2Gi")})
    await brain.run(stage.namespace, "web")
    pool = await stage.get("web")
    assert condition(pool, "Reconciling")["reason"] == "RollingUpdate"
    assert pool["status"]["currentRevision"] == first != pool["status"]["updateRevision"]
    pool = await settle(brain, stage, "web", most=most)
    machines = await stage.machines("web")
    assert {item["spec"]["resources"]["memory"] for item in machines} == {"2Gi"} and len(machines) == 3
    assert {item["metadata"]["labels"][REVISION] for item in machines} == {pool["status"]["currentRevision"]}


DEEDS = {
    "make": (2, {}),
    "shrink": (1, {"replicas": 1}),
    "update": (1, {"template": {"spec": {"resources": {"cpus": 1, "memory": "2Gi"}}}}),
    "grow": (3, {"replicas": 3}),
}
"""What is done to a pool of two: how many machines it has then."""


@pytest.mark.parametrize(
    "deeds", [("make", "shrink"), pytest.param(("make", "update", "shrink", "grow"), marks=pytest.mark.wide)], ids=len
)
async def test_a_crash_after_any_write_makes_and_removes_none_too_many(
    stage: Stage, cluster: NativeCluster, deeds: tuple[str, ...]
) -> None:
    async def life(name: str, lives: int | None) -> int:
        """All deeds by a process that dies, and what it leaves by others."""
        await stage.pool(name, 2)
        uids: set[str] = set()
        used, has = 0, 0
        for deed in deeds:
            has = DEEDS[deed][0] if deed != "update" else has
            await stage.change(name, **DEEDS[deed][1])
            async with mortal(cluster, None if lives is None else max(lives - used, 0)) as client:
                brain = Brain(client)
                with suppress(Crash):
                    await settle(brain, stage, name, most=max(has, 2))
                used += client.writes
            await settle(Brain(stage.client), stage, name, most=max(has, 2))
            found = await stage.machines(name)
            assert len(found) == has, f"after write {lives}"
            uids |= {item["metadata"]["uid"] for item in found}
        assert len(uids) == {2: 2, 4: 6}[len(deeds)], f"after write {lives}: no machine was made for nothing"
        return used

    for lives in range(1, await life("calm", None) + 1):
        await life(f"crash{lives}", lives)


async def test_who_comes_after_and_sees_what_is_old_removes_none_for_another(stage: Stage) -> None:
    """The next leader's cache is behind: it does not know what was removed, and would choose another one by now."""
    await stage.pool("web", 3)
    old, new = Brain(stage.client), Brain(stage.client)
    await settle(old, stage, "web")
    await new.look()
    await stage.change("web", replicas=2)
    await old.run(stage.namespace, "web")
    (gone,) = (await stage.get("web"))["status"]["removing"]
    assert gone["name"] == "web-2" and gone["reason"] == "ScaleIn"
    await fill(new.caches.store(VirtualMachinePool), stage.client, POOL, None)
    failed = new.caches.store(VirtualMachine).get("web-0", stage.namespace)
    assert failed is not None
    await stage.say("web-0", "Failed", "Failed")
    new.caches.store(VirtualMachine).apply(await stage.client.get(VM, "web-0", stage.namespace))
    await new.pools.reconcile(Key(stage.namespace, "web"))
    assert [item["metadata"]["name"] for item in await stage.machines("web") if _stays(item)] == ["web-0", "web-1"]
    # and who has not seen yet that more are wanted again removes nothing
    await stage.say("web-0")
    await settle(old, stage, "web")
    await stage.change("web", replicas=1)
    await new.look()
    await stage.change("web", replicas=2)
    with pytest.raises(errors.Conflict):
        await new.pools.reconcile(Key(stage.namespace, "web"))
    assert all(_stays(item) for item in await stage.machines("web"))


def _stays(item: Raw) -> bool:
    return "deletionTimestamp" not in item["metadata"]


async def test_what_is_deleted_is_made_again_and_what_is_broken_where_that_is_asked_for(stage: Stage) -> None:
    await stage.pool("web", 2, healing={"replace": ["CrashLoopBackOff"], "afterSeconds": 30})
    brain = Brain(stage.client)
    await settle(brain, stage, "web")
    before = {item["metadata"]["name"]: item["metadata"]["uid"] for item in await stage.machines("web")}
    await stage.client.delete(VM, "web-0", stage.namespace)
    await brain.run(stage.namespace, "web")
    assert await stage.names("web") == ["web-0", "web-1"], "its name comes free first"
    await settle(brain, stage, "web")
    await stage.say("web-1", "CrashLoopBackOff", "CrashLoopBackOff")
    await brain.run(stage.namespace, "web")
    assert all(_stays(item) for item in await stage.machines("web")), "not at once"
    brain.clock.ahead += 60
    await brain.run(stage.namespace, "web")
    await settle(brain, stage, "web")
    after = {item["metadata"]["name"]: item["metadata"]["uid"] for item in await stage.machines("web")}
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
    events = await stage.client.request("GET", f"/api/v1/namespaces/{stage.namespace}/events")
    assert "Machine web-1 is CrashLoopBackOff: it is deleted and made again." in [
        item["message"] for item in events["items"]
    ]


async def test_a_machine_takes_over_what_its_predecessor_left(stage: Stage) -> None:
    disks = [{"name": "data", "volumeTemplate": {"size": "1Gi", "reclaimPolicy": "Retain"}}]
    await stage.pool("db", 1, machine={**stage.sized("1Gi"), "disks": disks})
    left = {"metadata": {"name": "db-0-data", "annotations": {MADE_FOR: "x"}}, "spec": {"size": "1Gi"}}
    await stage.client.create(Volume.KIND, left, stage.namespace)
    await settle(Brain(stage.client), stage, "db")
    (machine,) = await stage.machines("db")
    assert machine["spec"]["disks"] == [{"name": "data", "volume": "db-0-data"}]


async def test_what_is_refused_is_said_and_tried_again(stage: Stage) -> None:
    """By a label that only machines are asked about; a quota is the common case, and refuses in the same way."""
    await stage.pool("web", 2)
    brain = Brain(stage.client)
    await settle(brain, stage, "web")
    await stage.change("web", replicas=3, template={"metadata": {"labels": {"a..b/c": "x"}}})
    await brain.run(stage.namespace, "web")
    pool = await stage.get("web")
    assert condition(pool)["reason"] == condition(pool, "Stalled")["reason"] == "Refused"
    assert "web-2" in condition(pool)["message"] and "a..b/c" in condition(pool)["message"]
    assert not condition(pool, "Reconciling") and await stage.names("web") == ["web-0", "web-1"]
    assert all(_stays(item) for item in await stage.machines("web")), "none goes for one that cannot be made"
    await stage.change("web", template={"metadata": {"labels": {"a..b/c": None}}})
    pool = await settle(brain, stage, "web")
    assert await stage.names("web") == ["web-0", "web-1", "web-2"] and not condition(pool, "Stalled")


async def test_orphans_are_adopted_by_a_pool_of_the_name_and_nobody_else_s_machine_is(
    stage: Stage, cluster: NativeCluster
) -> None:
    await stage.pool("web", 2)
    brain = Brain(stage.client)
    await settle(brain, stage, "web")
    uids = [item["metadata"]["uid"] for item in await stage.machines("web")]
    cluster.kubectl_run("-n", stage.namespace, "delete", "vmpool", "web", "--cascade=orphan")
    await brain.run(stage.namespace, "web")
    assert [item["metadata"].get("ownerReferences", []) for item in await stage.machines("web")] == [[], []]

    body = {"metadata": {"name": "web-2", "labels": {"app": "other"}}, "spec": stage.sized("1Gi")}
    await stage.client.create(VM, body, stage.namespace)
    body = {"metadata": {"name": "pet", "labels": {"app": "web"}}, "spec": stage.sized("1Gi")}
    await stage.client.create(VM, body, stage.namespace)
    await stage.pool("web", 3)
    # another pool with the same labels: nobody's machine goes from one to the other
    second = await stage.client.create(
        POOL,
        {"metadata": {"name": "web2"}, "spec": (await stage.get("web"))["spec"]},
        stage.namespace,
    )
    await brain.run(stage.namespace, "web2")
    await settle(brain, stage, "web")
    assert await stage.names("web") == ["web-0", "web-1", "web-2", "web-3"]
    machines = {item["metadata"]["name"]: item for item in await stage.machines("web")}
    assert [machines[name]["metadata"]["uid"] for name in ("web-0", "web-1")] == uids, "as they were"
    assert "ownerReferences" not in machines["web-2"]["metadata"]
    assert "ownerReferences" not in (await stage.client.get(VM, "pet", stage.namespace))["metadata"]
    for item in await stage.machines("web2"):
        assert item["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]

    # a machine whose labels are taken away is let go, and another made
    await stage.client.patch(VM, "web-0", {"metadata": {"labels": {"app": "mine"}}}, stage.namespace)
    await settle(brain, stage, "web")
    free = await stage.client.get(VM, "web-0", stage.namespace)
    assert not free["metadata"].get("ownerReferences") and REVISION not in free["metadata"]["labels"]
    assert await stage.names("web") == ["web-0", "web-1", "web-2", "web-3", "web-4"]

    cluster.kubectl_run("-n", stage.namespace, "delete", "vmpool", "web", "--wait=false")

    async def asked() -> bool:
        left = [item["metadata"]["name"] for item in await stage.machines("web") if _stays(item)]
        return left == ["web-0", "web-2"]

    await found_by(asked, "the garbage collector removes the pool's machines, and no others")


async def test_the_controllers_remove_machines_of_pools_only_and_tenants_scale(
    stage: Stage, cluster: NativeCluster
) -> None:
    """By the roles and policies that are installed, with the controllers' own token."""
    token = cluster.kubectl_run("-n", "kumulus-system", "create", "token", "kumulus-controllers").stdout.strip()
    mine = KubeClient.with_token(cluster.server, cluster.certificate_authority, lambda: token, user_agent="test")
    await stage.pool("web", 2)
    try:
        brain = Brain(mine)
        await settle(brain, stage, "web")
        await stage.change("web", replicas=1)
        await settle(brain, stage, "web")
        assert await stage.names("web") == ["web-0"]
        body = {"metadata": {"name": "pet"}, "spec": stage.sized("1Gi")}
        await stage.client.create(VM, body, stage.namespace)
        with pytest.raises(errors.Refused, match="machines of a VirtualMachinePool only"):
            await mine.delete(VM, "pet", stage.namespace)
    finally:
        await mine.close()
    here = ("-n", stage.namespace)
    cluster.kubectl_run(*here, "create", "rolebinding", "editor", "--clusterrole=edit", "--user=alice")
    cluster.kubectl_run(*here, "create", "rolebinding", "viewer", "--clusterrole=view", "--user=bob")

    async def may(user: str) -> bool:
        words = (*here, "auth", "can-i", "patch", "virtualmachinepools.compute.kumulus.io", "--subresource=scale")
        return cluster.kubectl_run(*words, f"--as={user}", check=False).stdout.strip() == "yes"

    await found_by(lambda: may("alice"), "an editor may scale")
    assert not await may("bob")


def test_what_wakes_a_pool() -> None:
    """Listens by name and owner; a change that says nothing to it wakes it not."""
    brain = Brain(None)  # type: ignore[arg-type]
    pools, machines = brain.caches.store(VirtualMachinePool), brain.caches.store(VirtualMachine)

    def apply(store: Any, kind: Kind, name: str, version: int, **more: Any) -> None:
        meta = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version), **more.pop("meta", {})}
        assert kind.scope is Scope.NAMESPACED
        store.apply({"metadata": meta, **more})

    spec = {"selector": {"app": "w"}, "template": {"metadata": {"labels": {"app": "w"}}, "spec": Stage.sized("1Gi")}}
    woken: Callable[[], set[str]] = lambda: {brain.woken.pop() for _ in range(len(brain.woken))}  # noqa: E731
    apply(pools, POOL, "web", 1, spec=spec, meta={"generation": 1})
    assert woken() == {"web"}
    apply(pools, POOL, "web", 2, spec=spec, meta={"generation": 1}, status={"replicas": 1})
    assert woken() == set()
    apply(machines, VM, "web-0", 3, spec=Stage.sized("1Gi"))
    assert woken() == {"web"}
    apply(machines, VM, "web-0", 4, spec=Stage.sized("1Gi"), status={"addresses": ["10.0.0.1"]})
    assert woken() == set()
    apply(machines, VM, "web-0", 5, spec=Stage.sized("1Gi"), status={"phase": "Running"})
    assert woken() == {"web"}
    apply(machines, VM, "pet", 6, spec=Stage.sized("1Gi"))
    assert woken() == set()


async def test_an_autoscaler_sets_how_many(stage: Stage) -> None:
    """Kubernetes' own controller, which finds the pool by its scale subresource. Bounds need no metrics."""
    await stage.pool("web", 1)
    brain = Brain(stage.client)
    await settle(brain, stage, "web")
    external = {"metric": {"name": "requests"}, "target": {"type": "AverageValue", "averageValue": "10"}}
    spec = {
        "scaleTargetRef": {"apiVersion": POOL.api_version, "kind": POOL.kind, "name": "web"},
        "minReplicas": 3,
        "maxReplicas": 5,
        "metrics": [{"type": "External", "external": external}],
    }
    await stage.client.create(AUTOSCALER, {"metadata": {"name": "web"}, "spec": spec}, stage.namespace)

    async def scaled() -> Raw | None:
        pool = await stage.get("web")
        return pool if pool["spec"]["replicas"] == 3 else None

    try:
        await found_by(scaled, "the autoscaler asks for three")
        await settle(brain, stage, "web")
        assert len(await stage.names("web")) == 3

        async def sees() -> bool:
            found = await stage.client.get(AUTOSCALER, "web", stage.namespace)
            able = condition(found, "AbleToScale")
            assert able.get("reason") not in ("FailedGetScale", "InvalidSelector")
            return bool(found["status"]["currentReplicas"] == 3)

        await found_by(sees, "the autoscaler sees them")
    finally:
        await stage.client.delete(AUTOSCALER, "web", stage.namespace)
