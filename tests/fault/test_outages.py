"""The API server, etcd and the controllers, as processes, are killed in the middle of plans (QUALITY F1, F5, F6)."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.conftest import new_lab
from tests.fault import troubles
from tests.fault.backends import Real
from tests.fault.campaign import TABLE, thinned
from tests.fault.plans import BY_NAME
from tests.fault.runner import REAL, Runner
from tests.fault.troubles import Trouble
from tests.fault.world import World, world

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

POINTS = 4
"""At so many deeds a plan."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane of its own; controllers are started by who needs them."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, controllers=False, agents=False))
        made.services.install()
        yield made
    finally:
        made.down()


@asynccontextmanager
async def _cloud(lab: Lab, *, controllers: bool) -> AsyncIterator[Runner]:
    async with world(Real(lab.kubeconfig), controllers=controllers) as made:
        runner = Runner(made, REAL)
        await runner.open()
        yield runner


async def _all(runner: Runner, plan: str, kind: str, make: Callable[[str, int], Trouble]) -> None:
    right = await runner.run(BY_NAME[plan])
    assert right.ok, str(right)
    points = [make(party, at) for party, done in right.deeds.items() for at in range(1, len(done) + 1)]
    failed, struck = [], 0
    for trouble in thinned(points, POINTS):
        result = await runner.run(BY_NAME[plan], trouble.arm, trouble.name, right.state, again=trouble.again)
        TABLE.add(kind, result)
        struck += bool(result.struck)
        failed += [] if result.ok else [str(result)]
    assert not failed, "\n".join(failed)
    assert struck, "it never came to any of the deeds"


def _done(what: str, act: Callable[[], object]) -> Callable[[str, int], Trouble]:
    async def strike(world: World) -> None:
        await asyncio.to_thread(act)

    return lambda party, at: troubles.at_deed(what, party, at, strike)


@pytest.mark.parametrize("plan", ["create with volume and interface", "delete"])
async def test_an_api_server_that_is_killed_changes_nothing(lab: Lab, plan: str) -> None:
    restart = _done("the API server is killed", lambda: lab.cluster.restart_apiserver(by=signal.SIGKILL))
    async with _cloud(lab, controllers=True) as runner:
        await _all(runner, plan, "API server killed", restart)


@pytest.mark.parametrize("plan", ["create with volume and interface", "stop"])
async def test_an_etcd_that_is_killed_changes_nothing(lab: Lab, plan: str) -> None:
    def kill() -> None:
        lab.cluster.daemon("etcd").kill()
        lab.cluster.start()

    async with _cloud(lab, controllers=True) as runner:
        await _all(runner, plan, "etcd killed", _done("etcd is killed", kill))


@pytest.mark.parametrize("plan", ["create with volume and interface", "attach a volume", "delete"])
async def test_controllers_that_are_killed_change_nothing(lab: Lab, plan: str) -> None:
    """As `kumulus run` runs them: with kopf's watches, the election, and the kill of the whole process."""

    def kill() -> None:
        lab.services.controllers.kill()
        began = time.monotonic()
        lab.services.start_controllers()
        seconds = time.monotonic() - began
        TABLE.numbers["controllers killed, started to ready, with next to nothing there"] = f"{seconds:.1f} s"

    await asyncio.to_thread(lab.services.start_controllers)
    try:
        async with _cloud(lab, controllers=False) as runner:
            await _all(runner, plan, "controllers killed", _done("controllers are killed", kill))
    finally:
        await asyncio.to_thread(lab.services.controllers.kill)
