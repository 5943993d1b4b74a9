"""An agent reads no orders before it has renewed its Lease: who fences its host looks at the Lease (ADR 33)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from kumulus.api.fabric import host_namespace
from kumulus.kube.builtin import LEASE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Unreachable
from kumulus_agents.agent.agent import Agent, Drivers, Place
from kumulus_agents.agent.fence import starts
from kumulus_agents.agent.instance_files import NoFiles
from kumulus_agents.agent.instance_scope import Adopt, Arrive, Plan, Receive, Resume, Send, Start, Step, Wake
from kumulus_agents.agent.report import MachineFacts
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from tests.unit.agent.host import NoConsole, eventually


class Deaf:
    """An API server that takes no Lease until it is told to, and keeps the order of what it is asked."""

    server = "memory"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.takes = False

    async def find(self, kind: Any, name: str, namespace: str | None = None) -> None:
        self.asked.append(f"find {kind.kind}")

    async def create(self, kind: Any, body: Any, namespace: str | None = None) -> Any:
        self.asked.append(f"create {kind.kind}")
        if kind is LEASE and not self.takes:
            raise Unreachable("not now")
        return {**body, "metadata": {**body["metadata"], "namespace": namespace, "resourceVersion": "1", "uid": "u"}}

    async def list_pages(
        self, kind: Any, namespace: str | None = None, **_: Any
    ) -> AsyncIterator[tuple[list[Any], str]]:
        self.asked.append(f"list {kind.kind}")
        yield [], "1"

    async def watch(self, kind: Any, namespace: str | None = None, **_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    async def patch(self, *_: Any, **__: Any) -> Any:
        raise Unreachable("not now")


@pytest.mark.parametrize("step", get_args(Step), ids=lambda step: step.__name__)
def test_whatever_may_let_a_guest_run_is_known_to_be_so(step: type) -> None:
    """A step that somebody adds is held back until it is known to be harmless."""
    blank = object.__new__(step)
    assert starts(Plan((blank,))) is (step in (Start, Wake, Resume, Send, Receive, Arrive, Adopt))


async def test_no_orders_are_read_before_the_lease_was_renewed(tmp_path: Path) -> None:
    api = Deaf()
    drivers = Drivers(
        hypervisor=SimulatedHypervisor(SimulatedHost()),
        pool=cast(Any, None),
        files=NoFiles(),
        console=NoConsole(),
        facts=MachineFacts(addresses=lambda: (), agent="test", kernel="6", os="Test"),
    )
    timings = Timings(lease_seconds=2, renew_seconds=0.5)
    agent = Agent(Place("h1", host_namespace("h1")), cast(KubeClient, api), drivers, timings=timings)
    running = asyncio.create_task(agent.run())
    try:
        await eventually(lambda: api.asked.count("create Lease") >= 2, "it tries again")
        assert "list WorkOrder" not in api.asked
        api.takes = True
        await eventually(lambda: "list WorkOrder" in api.asked, "it reads its orders")
        assert not agent.reflector.synced.is_set() or agent.heartbeat.begun.is_set()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
