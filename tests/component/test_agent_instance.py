"""Machines on a real API server: what an order becomes on the host, and what its status says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name
from kumulus_agents.agent import guests
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.domain import DomainState, ExitReason, GuestSays
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import IMAGE, POOL, TestHost, eventually, host_on

pytestmark = pytest.mark.cluster

DISK = {"name": "root", "pool": POOL, "image": IMAGE, "bootOrder": 1}


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


def state_of(host: TestHost, uid: str) -> DomainState | None:
    domain = host.machine.domains.get(uid)
    return domain.state if domain is not None else None


async def settled(host: TestHost, uid: str) -> None:
    """Two orders are done one after the other: whatever the first one still causes has happened by then."""
    other = await host.order()
    await host.until_instance(other, state="Running")


async def test_a_machine_comes_to_run_with_one_write(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        status = await host.until_instance(uid, state="Running")
    assert host.count("patch", "WorkOrder") == 1
    assert status["observedGeneration"] == 1
    assert status["instance"]["epoch"] == 1
    assert status["instance"]["restarts"] == 0
    assert status["instance"]["startedAt"]
    assert "reason" not in status
    assert host.machine.starts == {uid: 1}


async def test_a_slow_start_is_told(cluster: NativeCluster) -> None:
    slow = SimulatedHost(SimulatedSettings(start_seconds=2.0, jitter=0))
    async with host_on(cluster.kubeconfig, machine=slow) as host:
        async with host.running():
            uid = await host.order()
            await host.until_instance(uid, state="Starting")
            status = await host.until_instance(uid, state="Running")
        assert "reason" not in status
        assert host.count("patch", "WorkOrder") == 2


async def test_stop_and_start(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        await host.change(uid, power="Stopped")
        status = await host.until_instance(uid, state="Stopped", observedGeneration=2)
        assert status["instance"]["lastExit"] == "shutdown"
        assert "reason" not in status
        assert state_of(host, uid) is DomainState.STOPPED
        await host.change(uid, power="Running")
        status = await host.until_instance(uid, state="Running", observedGeneration=3)
        assert status["instance"]["restarts"] == 0
    assert host.machine.starts[uid] == 2


async def test_a_guest_that_does_not_listen_is_forced_off(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(stop={"mode": "Graceful", "gracePeriodSeconds": 2})
        await host.until_instance(uid, state="Running")
        host.machine.deaf.add(uid)
        await host.change(uid, power="Stopped")
        await host.until_instance(uid, state="Stopping")
        status = await host.until_instance(uid, state="Stopped")
        assert status["instance"]["lastExit"] == "destroyed"


async def test_force_does_not_ask(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(stop={"mode": "Force", "gracePeriodSeconds": 3600})
        await host.until_instance(uid, state="Running")
        host.machine.deaf.add(uid)
        await host.change(uid, power="Stopped")
        await host.until_instance(uid, state="Stopped")


async def test_a_machine_grows_within_its_limits_in_the_same_run(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(maxCpus=4, maxMemory=1 << 30)
        await host.until_instance(uid, state="Running")
        writes = host.count("patch", "WorkOrder")
        await host.change(uid, cpus=2, memory=512 << 20)
        status = await host.until_instance(uid, state="Running", observedGeneration=2)
        assert (status["instance"]["cpus"], status["instance"]["memory"]) == (2, 512 << 20)
        assert host.count("patch", "WorkOrder") == writes + 1, "it is told once the guest has it"
        host.machine.clinging.add(uid)
        await host.change(uid, cpus=9, memory=768 << 20)
        status = await host.until_instance(uid, state="Running", observedGeneration=3)
        assert (status["instance"]["cpus"], status["instance"]["memory"]) == (2, 512 << 20), "what the guest took"
        assert (status["instance"]["maxCpus"], status["instance"]["maxMemory"]) == (4, 1 << 30)
    assert host.machine.starts[uid] == 1


async def test_what_a_guest_says_is_in_the_status_of_its_run(host: TestHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_EVERY", "ASK_EVERY", "TOLD_EVERY"):
        monkeypatch.setattr(guests, name, 0.1)

    async def told() -> dict[str, Any]:
        found: dict[str, Any] = (await host.status(instance_order_name(uid)))["instance"].get("guest", {})
        return found

    async def says(hostname: str) -> bool:
        return (await told()).get("hostname") == hostname

    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        host.machine.guests[uid] = GuestSays("web\n", "Debian 12", "7.2.0", ("10.0.0.2", "127.0.0.1"))
        await eventually(lambda: says("web"), "what the guest says")
        said = {"hostname": "web", "os": "Debian 12", "agentVersion": "7.2.0", "addresses": ["10.0.0.2"]}
        assert await told() == {"connected": True, **said}
    async with host.running():
        host.machine.guests[uid] = GuestSays("other")
        await eventually(lambda: says("other"), "what it says to another agent")
        del host.machine.guests[uid]
        host.machine.end(uid, ExitReason.CRASHED)
        await eventually(lambda: _restarted(host, uid), "a restart")

        async def silent() -> bool:
            return not (await told()).get("connected")

        await eventually(silent, "that the guest of the next run has no agent")


async def test_pause_and_resume(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(power="Paused")
        await host.until_instance(uid, state="Paused")
        assert state_of(host, uid) is DomainState.PAUSED
        await host.change(uid, power="Running")
        await host.until_instance(uid, state="Running")
        await host.change(uid, power="Paused")
        await host.until_instance(uid, state="Paused")
        await host.change(uid, power="Stopped")
        await host.until_instance(uid, state="Stopped")
    assert host.machine.starts[uid] == 1


async def test_a_suspended_machine_goes_on_in_the_same_run_after_a_restart_of_its_agent(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        before = await host.until_instance(uid, state="Running")
        await host.change(uid, power="Suspended")
        status = await host.until_instance(uid, state="Suspended")
        assert (status["instance"]["cpus"], "reason" in status) == (1, False)
    async with host.running():
        await host.change(uid, power="Running")
        after = await host.until_instance(uid, state="Running")
        assert after["instance"]["startedAt"] == before["instance"]["startedAt"]
        await host.change(uid, power="Suspended")
        await host.until_instance(uid, state="Suspended")
        await host.change(uid, power="Stopped")
        status = await host.until_instance(uid, state="Stopped")
        assert status["instance"]["lastExit"] == "shutdown"
    assert host.machine.starts[uid] == 1


async def test_a_memory_of_an_older_placement_is_dropped(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(power="Running", epoch=1)
        await host.until_instance(uid, state="Running")
        await host.change(uid, power="Suspended")
        await host.until_instance(uid, state="Suspended")
        await host.change(uid, epoch=2, power="Stopped")
        await host.until_instance(uid, state="Stopped")
        assert host.machine.domains[uid].saved is None
        await host.change(uid, power="Running")
        await host.until_instance(uid, state="Running")
    assert host.machine.starts[uid] == 2


async def test_a_restart_request_restarts_exactly_once(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        await host.change(uid, restartRequest="first")
        status = await host.until_instance(uid, state="Running", observedGeneration=2)
        assert status["instance"]["lastRestartRequest"] == "first"
        assert status["instance"]["restarts"] == 0
    async with host.running():
        await settled(host, uid)
    assert host.machine.starts[uid] == 2


async def test_deleting_leaves_nothing(host: TestHost) -> None:
    async with host.running():
        await host.import_order()
        uid = await host.order(disks=[DISK])
        await host.until_instance(uid, state="Running")
        assert uid in host.storage.state.disks
        await host.delete(instance_order_name(uid))
        await eventually(lambda: host.gone(instance_order_name(uid)), "the order's end")
    assert uid not in host.machine.domains
    assert uid not in host.storage.state.disks


async def test_deleting_a_deaf_machine_takes_seconds(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(stop={"mode": "Graceful", "gracePeriodSeconds": 3600})
        await host.until_instance(uid, state="Running")
        host.machine.deaf.add(uid)
        await host.delete(instance_order_name(uid))
        await eventually(lambda: host.gone(instance_order_name(uid)), "the order's end", 15)
    assert uid not in host.machine.domains


async def test_a_killed_agent_s_successor_adopts(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
    started = host.machine.domains[uid].started_at
    async with host.running():
        await settled(host, uid)
        assert host.machine.domains[uid].started_at == started
    assert host.machine.starts[uid] == 1
    assert host.count("patch", "WorkOrder") == 2


async def test_a_machine_that_started_unreported_is_adopted(host: TestHost) -> None:
    """The agent died between starting the machine and saying so."""
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
    await host.client.patch(
        WorkOrder.KIND, instance_order_name(uid), {"status": None}, host.namespace, subresource="status"
    )
    async with host.running():
        await host.until_instance(uid, state="Running")
    assert host.machine.starts[uid] == 1


@pytest.mark.parametrize(
    ("policy", "why", "again"),
    [
        ("Always", ExitReason.SHUTDOWN, True),
        ("Always", ExitReason.CRASHED, True),
        ("OnFailure", ExitReason.SHUTDOWN, False),
        ("OnFailure", ExitReason.CRASHED, True),
        ("Never", ExitReason.SHUTDOWN, False),
        ("Never", ExitReason.CRASHED, False),
    ],
)
async def test_a_guest_that_ends_by_itself(host: TestHost, policy: str, why: ExitReason, again: bool) -> None:
    async with host.running():
        uid = await host.order(restartPolicy=policy)
        await host.until_instance(uid, state="Running")
        host.machine.end(uid, why)
        if again:
            status = await eventually(lambda: _restarted(host, uid), "a restart")
            assert status["state"] == "Running"
        else:
            status = await host.until_instance(uid, state="Stopped")
            assert status["reason"] == ("GuestShutDown" if why is ExitReason.SHUTDOWN else "GuestCrashed")
        assert status["instance"]["lastExit"] == why.lower()
    assert host.machine.starts[uid] == (2 if again else 1)


async def _restarted(host: TestHost, uid: str) -> dict[str, object] | None:
    status = await host.status(instance_order_name(uid))
    return status if status.get("instance", {}).get("restarts") == 1 and status["state"] == "Running" else None


async def crashed_again(host: TestHost, uid: str) -> dict[str, Any]:
    """Started again at once the first time, it crashes a second time; its status then."""
    await host.until_instance(uid, state="Running")
    host.machine.end(uid, ExitReason.CRASHED)
    await eventually(lambda: _restarted(host, uid), "a restart at once", 5)
    host.machine.end(uid, ExitReason.CRASHED)
    return await host.until_instance(uid, state="BackOff")


async def test_a_crash_loop_backs_off_and_a_new_agent_keeps_to_it(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        first = await crashed_again(host, uid)
        assert first["reason"] == "GuestCrashed"
    async with host.running():
        await settled(host, uid)
        assert (await host.status(instance_order_name(uid)))["instance"]["nextStartAt"] == first["instance"][
            "nextStartAt"
        ]
        assert host.machine.starts[uid] == 2
        await host.until_instance(uid, state="Running")
    assert host.machine.starts[uid] == 3


async def test_a_restart_request_ends_back_off(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await crashed_again(host, uid)
        await host.change(uid, restartRequest="now")
        status = await host.until_instance(uid, 5, state="Running")
    assert status["instance"]["lastRestartRequest"] == "now"
    assert "nextStartAt" not in status["instance"]


async def test_an_older_placement_is_refused(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(epoch=7)
        await host.until_instance(uid, state="Running")
    name = instance_order_name(uid)
    await host.client.patch(WorkOrder.KIND, name, {"metadata": {"finalizers": None}}, host.namespace)
    await host.delete(name)
    async with host.running():
        await host.order(uid=uid, epoch=6, power="Stopped")
        status = await host.until(name, state="Refused")
        assert status["reason"] == "StaleEpoch"
        assert status["instance"]["epoch"] == 7
        await host.delete(name)
        await eventually(lambda: host.gone(name), "the order's end")
    assert state_of(host, uid) is DomainState.RUNNING


async def test_a_higher_epoch_is_taken_over_without_a_restart(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        await host.change(uid, epoch=2)
        status = await host.until_instance(uid, state="Running", observedGeneration=2)
    assert status["instance"]["epoch"] == 2
    assert host.machine.domains[uid].marks.epoch == 2
    assert host.machine.starts[uid] == 1


async def test_the_host_was_rebooted(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        never = await host.order(restartPolicy="Never")
        await host.until_instance(uid, state="Running")
        await host.until_instance(never, state="Running")
    host.machine.reboot()
    async with host.running():
        await eventually(lambda: _restarted(host, uid), "a restart")
        status = await host.until_instance(never, state="Stopped")
    assert status["reason"] == "EndedUnseen"


async def test_guests_come_back_by_their_priority(host: TestHost) -> None:
    """The last that was ordered starts first, and one that lacks something holds up the others for a while only."""
    async with host.running():
        uids = [await host.order(priority=priority) for priority in (1, None, 900)]
        for uid in uids:
            await host.until_instance(uid, state="Running")
    host.machine.reboot()
    turns = Timings(workers=4, starts_at_boot=1)
    async with host.running(timings=turns):
        for uid in uids:
            await eventually(lambda uid=uid: _restarted(host, uid), "a restart")
    began = [host.machine.domains[uid].started_at or 0.0 for uid in uids]
    assert began[2] < began[1] < began[0]


async def test_a_machine_waits_for_its_image(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(disks=[DISK])
        await host.until_instance(uid, state="Waiting", reason="ImageNotReady")
        await host.import_order()
        await host.until_instance(uid, 5, state="Running")


async def test_a_seed_comes_from_a_secret(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(seed={"secret": "seed-1"})
        await host.until_instance(uid, state="Waiting", reason="SecretNotFound")
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "seed-1"},
            "stringData": {"meta-data": "x"},
        }
        await host.client.request("POST", f"/api/v1/namespaces/{host.namespace}/secrets", body=secret)
        await host.until_instance(uid, state="Running")


async def test_a_start_that_fails_is_tried_again(host: TestHost) -> None:
    host.machine.fail_next_start("NoMemory")
    async with host.running():
        uid = await host.order(restartPolicy="Never")
        status = await host.until_instance(uid, state="Failed", reason="NoMemory")
        assert "told to fail" in status["message"]
        status = await host.until_instance(uid, state="Running")
        assert "reason" not in status


async def test_what_cannot_succeed_waits_for_a_change(host: TestHost) -> None:
    host.machine.fail_next_start("DomainConflict", retryable=False)
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Failed", reason="DomainConflict")
        await settled(host, uid)
        assert uid not in host.machine.starts
        await host.change(uid, restartRequest="again")
        await host.until_instance(uid, state="Running")


async def test_an_order_without_finalizer_is_refused(host: TestHost) -> None:
    async with host.running():
        uid = await host.order(power="Stopped")
        await host.until_instance(uid, state="Stopped")
        name = instance_order_name(uid)
        await host.client.patch(
            WorkOrder.KIND,
            name,
            {"metadata": {"finalizers": None}, "spec": {"instance": {"power": "Running"}}},
            host.namespace,
        )
        await host.until(name, state="Refused", reason="NoFinalizer")
    assert uid not in host.machine.domains


async def test_the_hypervisor_goes_and_comes_back(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        host.machine.disconnect()
        waiting = await host.order()
        await host.until_instance(waiting, state="Waiting", reason="HypervisorUnavailable")
        assert (await host.status(instance_order_name(uid)))["state"] == "Running"
        host.machine.reconnect()
        await host.until_instance(waiting, state="Running")
    assert host.machine.starts[uid] == 1


async def test_foreign_domains_are_left_alone(host: TestHost) -> None:
    foreign = ForeignDomain("11111111-1111-1111-1111-111111111111", "theirs", "running")
    host.machine.plant(foreign)
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
        await host.delete(instance_order_name(uid))
        await eventually(lambda: host.gone(instance_order_name(uid)), "the order's end")
    assert list(host.machine.foreign.values()) == [foreign]


async def test_a_machine_without_an_order_is_left_running(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        await host.until_instance(uid, state="Running")
    name = instance_order_name(uid)
    await host.client.patch(WorkOrder.KIND, name, {"metadata": {"finalizers": None}}, host.namespace)
    await host.delete(name)
    async with host.running():
        await settled(host, uid)
    assert state_of(host, uid) is DomainState.RUNNING


async def test_stopping_gracefully_finishes_what_is_under_way(cluster: NativeCluster) -> None:
    slow = SimulatedHost(SimulatedSettings(start_seconds=0.5, jitter=0))
    async with host_on(cluster.kubeconfig, machine=slow) as host:
        agent = host.agent()
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            uid = await host.order()
            await eventually(lambda: agent.busy, "a pass under way")
            agent.stop()
        assert (await host.status(instance_order_name(uid)))["state"] == "Running"
        assert host.machine.starts == {uid: 1}
