"""Hosts in maintenance: real controllers, agents, pools and TLS between the hosts, simulated hypervisors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.maintenance import FOR_MAINTENANCE
from kumulus.api.migration import VirtualMachineMigration
from kumulus_agents.hypervisor.protocol import DomainState
from tests.component import test_migration
from tests.component.cloud import Cloud, Raw, condition, phase, until
from tests.component.test_migration import DATA, Owner
from tests.component.test_volume import HOSTS
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

lab, made = test_migration.lab, test_migration.made
"""The hosts of the tests of migrations."""


class Operator(Owner):
    """Who has a namespace, and works on hosts."""

    async def maintain(self, host: str, **how: Any) -> None:
        await self.client.patch(Host.KIND, host, {"spec": {"maintenance": how}})

    async def end(self, host: str) -> None:
        await self.client.patch(Host.KIND, host, {"spec": {"maintenance": None}})

    async def host(self, name: str, holds: Callable[[Raw], bool], what: str) -> Raw:
        found: Raw = {}

        async def probe() -> bool:
            nonlocal found
            found = await self.client.get(Host.KIND, name)
            return holds(found)

        try:
            await until(probe, f"host {name} {what}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found.get('status', {}).get('maintenance')}") from error
        return found

    async def says_of(self, host: str, reason: str) -> str:
        raw = await self.host(host, lambda h: condition(h, "Maintenance").get("reason") == reason, f"says {reason}")
        return str(condition(raw, "Maintenance")["message"])

    async def over(self, host: str) -> None:
        await self.host(host, lambda h: "maintenance" not in h["status"] and h["status"]["phase"] == "Ready", "is open")

    async def runs_on(self, name: str, host: str) -> Raw:
        def there(vm: Raw) -> bool:
            return (vm["status"].get("phase"), vm["status"].get("host")) == ("Running", host)

        return await self.wait(VirtualMachine.KIND, name, there, f"runs on {host}")


@pytest_asyncio.fixture(loop_scope="module")
async def operator(made: Cloud) -> Any:
    async for owner in test_migration.owned(made, Operator):
        try:
            yield owner
        finally:
            for name in HOSTS:
                await owner.end(name)
            for name in HOSTS:
                await owner.over(name)


async def test_a_host_is_emptied_by_each_machine_s_policy_and_what_left_comes_back(operator: Operator) -> None:
    vm, here, there = await operator.begin(highAvailability={"priority": 500})
    at = {"placement": {"hostSelector": {"role": here}}}
    await operator.machine("stop", evictionPolicy="Stop", **at)
    await operator.machine("none", evictionPolicy="None", **at)
    await operator.machine("off", powerState="Stopped", **at)
    await operator.machine("pinned", **at)
    await operator.machine("again", evictionPolicy="Restart")
    for name in ("stop", "none", "pinned", "again"):
        await operator.runs(name)
    await operator.wait(VirtualMachine.KIND, "off", phase("Stopped"), "is off")
    again = await operator.find(VirtualMachine.KIND, "again")

    await operator.maintain(here, returnGuests=True)
    said = await operator.says_of(here, "Blocked")
    assert said.startswith("1 machine still to leave, and none can go now.")
    assert f"{operator.namespace}/pinned: NoHostFits" in said
    raw = await operator.client.get(Host.KIND, here)
    assert raw["status"]["phase"] == "Maintenance" and condition(raw, "Schedulable")["reason"] == "InMaintenance"
    assert raw["status"]["maintenance"]["staying"] == 3
    moved = await operator.runs_on("vm", there)
    assert moved["status"]["startedAt"] == vm["status"]["startedAt"], "it was not started again"
    assert (await operator.runs_on("again", there))["status"]["epoch"] == (1 if again["status"]["host"] == there else 2)
    stopped = await operator.wait(VirtualMachine.KIND, "stop", phase("Stopped"), "is shut down")
    assert condition(stopped)["reason"] == "HostInMaintenance" and stopped["status"]["host"] == here
    assert stopped["spec"].get("powerState", "Running") == "Running"
    await operator.runs("none")
    for wanted in ("Running", "Stopped"):
        await operator.patch(VirtualMachine.KIND, "off", powerState=wanted)
    made = [
        item
        for item in await operator.cloud.listed(VirtualMachineMigration.KIND, operator.namespace)
        if item["metadata"]["labels"][FOR_MAINTENANCE] == here
    ]
    assert [item["spec"]["vm"] for item in made] == ["vm"], "nothing else was tried"

    await operator.patch(VirtualMachine.KIND, "pinned", evictionPolicy="None")
    assert "4 machines stay" in await operator.says_of(here, "Emptied")
    await operator.end(here)
    await operator.over(here)
    await operator.runs_on("vm", here)
    await operator.runs_on("stop", here)
    for name in ("vm", "stop", "again"):
        await operator.wait(VirtualMachine.KIND, name, lambda vm: "eviction" not in vm["status"], "is left alone")


async def test_maintenance_that_is_taken_away_takes_back_what_it_began(operator: Operator) -> None:
    operator.slow(60)
    vm, here, _ = await operator.begin()
    await operator.maintain(here)
    await operator.wait(VirtualMachine.KIND, "vm", phase("Migrating"), "moves")
    assert "1 on their way" in await operator.says_of(here, "Evacuating")
    await operator.end(here)
    await operator.over(here)
    await operator.runs_on("vm", here)
    assert operator.domain(here, vm).state is DomainState.RUNNING

    async def none() -> bool:
        return not await operator.cloud.listed(VirtualMachineMigration.KIND, operator.namespace)

    await until(none, "its migration is gone")


async def test_a_machine_that_is_off_there_starts_elsewhere(operator: Operator) -> None:
    await operator.machine("vm", DATA)
    vm = await operator.runs("vm")
    here = vm["status"]["host"]
    there = next(name for name in HOSTS if name != here)
    await operator.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    await operator.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "stops")
    await operator.maintain(here)
    await operator.says_of(here, "Emptied")
    await operator.patch(VirtualMachine.KIND, "vm", powerState="Running")
    await operator.runs_on("vm", there)
    await operator.is_on(vm, there, 2)


async def test_in_place_nothing_moves(operator: Operator) -> None:
    _, here, _ = await operator.begin()
    await operator.maintain(here, mode="InPlace")
    await operator.says_of(here, "InPlace")
    await operator.machine("other", placement={"hostSelector": {"role": here}})
    said = await operator.says(VirtualMachine.KIND, "other", "NoHostFits", "Scheduled")
    assert f"1 in maintenance ({here})" in said
    await operator.runs_on("vm", here)
    await operator.end(here)
    await operator.runs_on("other", here)
