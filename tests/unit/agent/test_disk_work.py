"""Jobs of Disk orders: what comes while one runs is not missed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.volume_order import DiskFacts
from kumulus.runtime.clock import SystemClock
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.orders import Orders
from kumulus_agents.storage.protocol import ProgressListener, StorageError

UID = "00000000-0000-4000-8000-000000000001"
ORDER = WorkOrder.parse(
    {
        "metadata": {"name": f"volume-{UID}", "namespace": "ns", "uid": UID, "generation": 1},
        "spec": {
            "type": "Disk",
            "for": {"kind": "Volume", "namespace": "ns", "name": "data", "uid": UID},
            "disk": {
                "pool": {"uid": UID, "name": "p", "driver": "dir", "parameters": {"path": "/p"}},
                "volume": {"uid": UID},
            },
        },
    }
)


class _Unasked:
    """No order has to be reported."""

    async def report(self, *_: object) -> None:
        raise AssertionError("it still waits")


@pytest.mark.parametrize("when", ["while it runs", "after it"])
async def test_a_wait_ends_with_what_came(when: str) -> None:
    woken: list[str] = []
    looked, go = asyncio.Event(), asyncio.Event()

    async def job(_: ProgressListener) -> None:
        looked.set()
        await go.wait()
        raise StorageError("A machine that is on has it.", reason="VolumeInUse")

    async with asyncio.TaskGroup() as tasks:
        work = DiskWork(cast(Orders, _Unasked()), SystemClock(), tasks, wake=woken.append)
        work.begin(ORDER, job)
        await looked.wait()
        if when == "while it runs":
            work.wake_waiting(ORDER.name)
        go.set()
    if when == "after it":
        work.wake_waiting(ORDER.name)
    assert woken.count(ORDER.name) == 2
    assert await work.under_way(ORDER, DiskFacts()) is None
