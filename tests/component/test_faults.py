"""Crashes and other faults in the middle of what users ask for: a quick selection of `make fault` (docs/faults.md).

In memory and in virtual time, and a plan against a real API server; that the API server in memory answers as the real one does;
and that what has to be noticed is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from kumulus.api.base import Kind, Scope
from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network
from kumulus.api.order_names import instance_order_name
from kumulus.api.registry import KINDS
from kumulus.cli.cluster import Cluster
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import NotFound
from kumulus.runtime.result import Result
from kumulus_agents.agent.instance import Instances
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.domain import DomainSpec, Marks
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.network.simulated import SimulatedFabric
from kumulus_agents.storage.simulated import SimulatedStorage
from kumulus_lab.cluster import NativeCluster
from tests import leftovers
from tests.fault import campaign, found, maintenance, plans, troubles
from tests.fault.backends import Memory, Real, run
from tests.fault.books import Books, keep
from tests.fault.memory_api import MemoryApi, MemoryClient
from tests.fault.parties import How
from tests.fault.plans import BY_NAME
from tests.fault.runner import REAL, TENANT, VIRTUAL, Runner
from tests.fault.schedules import Schedule
from tests.fault.troubles import Trouble
from tests.fault.world import CONTROLLERS, world

Raw = dict[str, Any]
QUICK: dict[str, int] = {
    "create with volume and interface": 10,
    "restart": 10,
    "suspend and resume": 10,
    "delete": 10,
    "migrate": 5,
    "fail over by a person's word": 3,
    "fail over by the power switch": 3,
    "grow while it runs": 3,
    "scale a pool": 3,
    maintenance.PLAN.name: 2,
}
"""Plans, and with how many faults."""


@pytest.mark.parametrize("name", QUICK)
def test_any_fault_changes_nothing(name: str) -> None:
    plan = {**BY_NAME, maintenance.PLAN.name: maintenance.PLAN}[name]
    right = campaign.faultless(plan)
    every = campaign.crashes(right.deeds) + campaign.others(right.deeds, VIRTUAL)
    failed = campaign.failures(plan, {"quick": campaign.thinned(every, QUICK[name])}, right)
    assert not failed, "\n".join(failed)


def test_what_is_off_leaves_a_host_that_is_removed() -> None:
    campaign.faultless(maintenance.REMOVAL)


FOUND: tuple[tuple[str, Trouble], ...] = (
    # The new controllers knew the volume as it was, and the machine as it had been: each then waited for the other.
    ("attach a volume", troubles.rewound(1, 1.0)),
    # The volume was reverted, an error came after that, and what it had been before was kept for ever.
    ("restore", troubles.crash("one", 2, How.LOST)),
    ("delete a snapshot", troubles.crash("one", 5, How.BEFORE)),
    # By the clock on the wall it had taken too long, so that it was given up when it had moved.
    ("migrate", troubles.clock(CONTROLLERS, CONTROLLERS, 7, 1)),
    # A leader knew that the machine was on its new host, and not yet that its old one had sent it: what ran there was ended.
    ("migrate", troubles.rivals(1, 3.0)),
)


@pytest.mark.parametrize(("name", "trouble"), FOUND, ids=[f"{name}, {trouble.name}" for name, trouble in FOUND])
def test_what_was_found_once_stays_mended(name: str, trouble: Trouble) -> None:
    plan = BY_NAME[name]
    result = campaign.in_memory(plan, trouble, campaign.in_memory(plan))
    assert result.struck
    assert result.ok, str(result)


def test_an_order_that_an_older_leader_wrote_is_the_next_leader_s() -> None:
    async def main() -> None:
        async with world(Memory(1)) as made:
            runner = Runner(made, VIRTUAL)
            await runner.open()
            for step in (plans.IMAGE, plans.SMALL):
                await runner.do(step)
            vm = await made.user.get(VirtualMachine.KIND, plans.VM, TENANT)
            order = instance_order_name(vm["metadata"]["uid"]), host_namespace("one")
            made.parties[CONTROLLERS].crash()  # the next ones are of term 2

            async def write(term: int) -> None:
                await made.user.patch(WorkOrder.KIND, order[0], {"spec": {"term": term}}, order[1])

            async def obeyed(term: int) -> bool:
                found = await made.user.get(WorkOrder.KIND, *order)
                seen = found["status"].get("observedGeneration") == found["metadata"]["generation"]
                return bool(seen and found["status"]["state"] == "Running" and found["spec"]["term"] == term)

            await write(2)
            await made.until(lambda: obeyed(2), "the agent has seen an order of term 2")
            await write(1)
            await made.until(lambda: obeyed(2), "the order is one of term 2 again")
            assert not made.problems

    run(main())


def test_schedules_by_chance() -> None:
    how = settings(
        max_examples=15, stateful_step_count=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(seed(2026)(Schedule), settings=how)


@pytest.mark.parametrize("name", found.STORIES)
def test_a_schedule_that_went_wrong_once_goes_right(name: str) -> None:
    found.told(found.STORIES[name])


def _says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that reports nothing."""

    async def report(self: Orders, order: object, status: object) -> bool:
        return False

    monkeypatch.setattr(Orders, "report", report)


def _leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that leaves the volumes of machines."""

    async def remove_volume(self: SimulatedStorage, uid: str) -> None:
        return None

    monkeypatch.setattr(SimulatedStorage, "remove_volume", remove_volume)


def _fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent with an error in it, which goes away by itself."""
    perform, failed = Instances.perform, []

    async def fail(self: Instances, order: WorkOrder) -> Result:
        if not failed:
            failed.append(order.name)
            raise LookupError("nobody expected this")
        return await perform(self, order)

    monkeypatch.setattr(Instances, "perform", fail)


@pytest.mark.parametrize(
    ("plant", "word"), [(_fails_once, "nobody expected this"), (_says_nothing, "not within"), (_leaks, "left over")]
)
def test_what_is_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], word: str
) -> None:
    plan = BY_NAME["create with volume and interface"]
    right = campaign.in_memory(plan)
    plant(monkeypatch)
    result = campaign.in_memory(plan, troubles.crash(CONTROLLERS, 1, How.AFTER), right)
    assert word in str(result)


def test_a_machine_that_runs_twice_is_noticed() -> None:
    marks = Marks("vm", 1, "ns", "vm", PowerState.RUNNING)
    books, spec = Books(time=lambda: 0.0), DomainSpec(marks, 1, 1 << 28, (), "/nowhere")
    hosts = {name: SimulatedHost() for name in ("one", "two")}
    for name, host in hosts.items():
        keep(books, name, host, SimulatedFabric())
        host.started(spec)
    assert [line.partition(":")[0] for line in books.overlaps] == ["two at once"]
    hosts["one"].end("vm")
    hosts["two"].end("vm")
    assert not books.running("vm")
    hosts["one"].started(replace(spec, marks=replace(marks, epoch=3)))
    hosts["one"].drop("vm")
    hosts["two"].started(replace(spec, marks=replace(marks, epoch=2)))
    assert "an older epoch" in books.overlaps[-1]


@pytest.fixture
def swept(cluster: NativeCluster) -> Iterator[None]:
    """What a world makes for all tenants goes with it: other tests have the same API server, and its hosts are no hosts of theirs."""
    api = Cluster.connect(cluster.kubeconfig)

    def there() -> list[tuple[Kind, str]]:
        kinds = [kind.KIND for kind in KINDS if kind.KIND.scope is Scope.CLUSTER]
        return [(kind, raw["metadata"]["name"]) for kind in kinds for raw in api.objects(kind)]

    before = there()
    yield
    for kind, name in there():
        if (kind, name) not in before:
            with suppress(NotFound):
                api.patch(kind, name, {"metadata": {"finalizers": None}})
                api.delete(kind, name)


@pytest.mark.cluster
async def test_any_fault_changes_nothing_on_a_real_api_server(cluster: NativeCluster, swept: None) -> None:
    plan = BY_NAME["create"]
    async with world(Real(cluster.kubeconfig)) as made:
        for namespace in ("tenant", *map(host_namespace, made.sites)):
            leftovers.leave(namespace)
        runner = Runner(made, REAL)
        await runner.open()
        right = await runner.run(plan)
        assert right.ok, str(right)
        for trouble in (
            troubles.crash(CONTROLLERS, 3, How.AFTER),
            troubles.crash("one", 2, How.AFTER),
            troubles.crash("one", 2, How.LOST),
            troubles.rewound(3, 0.3),
        ):
            result = await runner.run(plan, trouble.arm, trouble.name, right.state, again=trouble.again)
            assert result.struck
            assert result.ok, str(result)


@pytest.mark.cluster
async def test_the_api_server_in_memory_answers_as_the_real_one(cluster: NativeCluster) -> None:
    name = f"twin-{uuid.uuid4().hex[:8]}"
    leftovers.leave(name)
    real = await KubeClient.from_kubeconfig(cluster.kubeconfig, user_agent="test-twins")
    try:
        answers = await _answers(real, name)
    finally:
        await real.close()

    async def remember() -> list[object]:
        return await _answers(MemoryClient(MemoryApi()), name)

    remembered = await asyncio.to_thread(run, remember())
    for ours, theirs in zip(remembered, answers, strict=True):
        assert ours == theirs


async def _answers(client: KubeClient, namespace: str) -> list[object]:
    """What an API server says to what Kumulus asks of one, without what it makes up."""
    told: list[object] = []
    kind = Network.KIND
    finalizers = ["kumulus.io/cleanup"]

    async def tell(work: Coroutine[Any, Any, Any]) -> Raw:
        try:
            answer = await work
        except errors.ApiError as error:
            told.append((type(error).__name__, error.status))
            return {}
        told.append(_essence(answer))
        return dict(answer or {})

    async def patch(body: Raw, kind: Kind = kind, name: str = "net", **options: Any) -> Raw:
        return await tell(client.patch(kind, name, body, namespace, **options))

    body = {"metadata": {"name": "net", "finalizers": finalizers}, "spec": {"cidrs": ["10.0.0.0/24"]}, "status": {}}
    await tell(client.create(kind, body, namespace))  # in no namespace
    await client.create(NAMESPACE, {"metadata": {"name": namespace}})
    first = await tell(client.create(kind, body, namespace))
    await tell(client.create(kind, body, namespace))
    began = first["metadata"]["resourceVersion"]
    same = await patch({"spec": {"cidrs": ["10.0.0.0/24"]}})
    told.append(same["metadata"]["resourceVersion"] == began)
    await patch({"metadata": {"labels": {"a": "b"}}})
    await patch({"metadata": {"resourceVersion": began}, "spec": {"dns": {"domain": "x.internal"}}})
    await patch({"spec": {"dns": {"domain": "x.internal"}}, "status": {"phase": "Ready"}})
    await patch({"spec": {"dns": None}, "status": {"phase": "Ready"}}, subresource="status")
    await tell(client.get(kind, "nothing", namespace))
    await tell(client.delete(kind, "net", namespace, uid=str(uuid.uuid4())))
    await tell(client.delete(kind, "net", namespace, version=began))
    await tell(client.delete(kind, "net", namespace))
    await tell(client.delete(kind, "net", namespace))
    await patch({"metadata": {"finalizers": [*finalizers, "other.io/one"]}})
    await patch({"metadata": {"finalizers": []}})
    told.append(await client.find(kind, "net", namespace))
    seen = []
    async with asyncio.timeout(20):
        async for event in client.watch(kind, namespace, since=began):
            if event.type != "BOOKMARK":
                seen.append((event.type, _essence(event.object)))
            if event.type == "DELETED":
                break
    told += seen
    query = {"resourceVersion": began, "resourceVersionMatch": "Exact"}
    old = await client.request("GET", kind.path(namespace), query=query)
    told.append([_essence(item) for item in old["items"]])
    owner = await client.create(VirtualMachine.KIND, _machine(), namespace)
    told.append(_essence(owner))
    return told


def _machine() -> Raw:
    return {"metadata": {"name": "vm"}, "spec": {"resources": {"cpus": 1, "memory": "64Mi"}}}


def _essence(answer: Raw | None) -> object:
    if answer is None or "metadata" not in answer:
        return None
    meta = answer["metadata"]
    kept = {key: meta.get(key) for key in ("name", "namespace", "generation", "labels", "finalizers")}
    return {
        "metadata": kept,
        "deleting": "deletionTimestamp" in meta,
        "spec": answer.get("spec"),
        "status": answer.get("status"),
    }
