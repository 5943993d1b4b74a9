"""What the simulated host does beside the contract: failures, chance, and being light."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from kumulus_agents.hypervisor.domain import DomainSpec, DomainState, ExitReason
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings
from tests.contract.hypervisor import Heard, new_marks


def spec(console_log: str = "/nowhere/console.log") -> DomainSpec:
    """A machine."""
    return DomainSpec(new_marks(), cpus=1, memory=1 << 26, disks=(), console_log=console_log)


async def connected(host: SimulatedHost) -> SimulatedHypervisor:
    """A driver of the host."""
    driver = SimulatedHypervisor(host)
    await driver.connect(Heard())
    return driver


async def test_a_start_fails_as_it_was_told_and_then_works() -> None:
    host, wanted = SimulatedHost(), spec()
    driver = await connected(host)
    host.fail_next_start("NoSpace", retryable=False, times=2)
    for _ in range(2):
        with pytest.raises(HypervisorError) as caught:
            await driver.start(wanted)
        assert (caught.value.reason, caught.value.retryable) == ("NoSpace", False)
    assert (await driver.start(wanted)).state is DomainState.RUNNING
    assert host.starts == {wanted.marks.uid: 1}


async def test_chance_is_the_same_for_the_same_seed() -> None:
    async def outcomes(seed: int) -> list[bool]:
        driver = await connected(SimulatedHost(SimulatedSettings(failure_rate=0.5, seed=seed)))
        return [not isinstance(result, BaseException) for result in await starts(driver)]

    async def starts(driver: SimulatedHypervisor) -> list[object]:
        return list(await asyncio.gather(*(driver.start(spec()) for _ in range(64)), return_exceptions=True))

    first = await outcomes(1)
    assert first == await outcomes(1)
    assert first != await outcomes(2)
    assert 0 < sum(first) < 64


async def test_a_deaf_guest_does_not_hear_the_button() -> None:
    host, wanted = SimulatedHost(), spec()
    driver = await connected(host)
    await driver.start(wanted)
    host.deaf.add(wanted.marks.uid)
    await driver.power_button(wanted.marks.uid)
    await asyncio.sleep(0)
    assert host.domains[wanted.marks.uid].state is DomainState.RUNNING


async def test_the_button_of_one_run_does_not_end_the_next() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    host, wanted = SimulatedHost(SimulatedSettings(shutdown_seconds=0.01), clock=clock), spec()
    driver = await connected(host)
    await driver.start(wanted)
    await driver.power_button(wanted.marks.uid)
    await driver.force_off(wanted.marks.uid)
    await driver.start(wanted)
    await asyncio.sleep(0.03)
    assert host.domains[wanted.marks.uid].state is DomainState.RUNNING


async def test_a_power_failure_ends_every_guest_unseen() -> None:
    host, wanted = SimulatedHost(), spec()
    driver = await connected(host)
    await driver.start(wanted)
    host.reboot()
    domain = await driver.domain(wanted.marks.uid)
    assert domain is not None
    assert (domain.state, domain.exit_reason) == (DomainState.STOPPED, ExitReason.UNKNOWN)
    assert domain.marks == wanted.marks


async def test_a_cut_in_the_middle_of_a_start_fails_it() -> None:
    host, wanted = SimulatedHost(SimulatedSettings(start_seconds=0.01)), spec()
    driver = await connected(host)
    start = asyncio.ensure_future(driver.start(wanted))
    await asyncio.sleep(0)
    host.disconnect()
    with pytest.raises(HypervisorError) as caught:
        await start
    assert caught.value.reason == "HypervisorUnavailable"
    assert host.starts == {}


async def test_guests_print_if_they_shall(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("instance") / "console.log"
    wanted = spec(str(log))
    driver = await connected(SimulatedHost(SimulatedSettings(console=True)))
    await driver.start(replace(wanted, marks=replace(wanted.marks, name="db")))
    assert log.read_text() == "tenant/db: simulated guest is up\n"


async def test_thousands_of_hosts_need_no_tasks() -> None:
    before = len(asyncio.all_tasks())
    drivers = [await connected(SimulatedHost()) for _ in range(2000)]
    for driver in drivers:
        await driver.start(spec())
    assert len(asyncio.all_tasks()) == before
