"""Machines made and removed at a pace, in the role of the user. Times are the event loop's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, KubeError
from tests.bench.cloud import BenchError
from tests.bench.recorder import Recorder

RUNNING = "Running"
USER_NAMESPACE = "bench"


def body(name: str, *, selector: Mapping[str, str] | None = None, volume: bool = False) -> dict[str, Any]:
    """A machine without NIC, with a blank volume of its own or without disk."""
    spec: dict[str, Any] = {"resources": {"cpus": 1, "memory": "64Mi"}}
    if volume:
        spec["disks"] = [{"name": "root", "volumeTemplate": {"size": "64Mi"}}]
    if selector:
        spec["placement"] = {"hostSelector": dict(selector)}
    return {"metadata": {"name": name}, "spec": spec}


async def ensure_namespace(client: KubeClient, name: str = USER_NAMESPACE) -> None:
    """The user's namespace is there."""
    try:
        await client.create(NAMESPACE, {"metadata": {"name": name}})
    except AlreadyExists:
        return


async def paced(names: Sequence[str], rate: float, act: Callable[[str], Awaitable[object]]) -> dict[str, float]:
    """Do it for each name, so many a second, whether the earlier ones have ended or not; when each began."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    sent: dict[str, float] = {}

    async def one(number: int, name: str) -> None:
        await asyncio.sleep(start + number / rate - loop.time())
        sent[name] = loop.time()
        await act(name)

    async with asyncio.TaskGroup() as tasks:
        for number, name in enumerate(names):
            tasks.create_task(one(number, name))
    return sent


async def at_once(names: Sequence[str], abreast: int, act: Callable[[str], Awaitable[object]]) -> dict[str, float]:
    """Do it for each name as fast as it goes, so many abreast; when each began."""
    loop = asyncio.get_running_loop()
    sent: dict[str, float] = {}
    waiting = iter(names)

    async def work() -> None:
        for name in waiting:
            sent[name] = loop.time()
            await act(name)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(abreast, len(names))):
            tasks.create_task(work())
    return sent


class User:
    """Somebody with machines in one namespace."""

    def __init__(self, client: KubeClient, namespace: str = USER_NAMESPACE, *, volumes: bool = False) -> None:
        """`volumes`: each machine has one."""
        self._client = client
        self._namespace = namespace
        self._volumes = volumes

    async def create(self, name: str, *, selector: Mapping[str, str] | None = None) -> None:
        """Ask for a machine."""
        wanted = body(name, selector=selector, volume=self._volumes)
        await self._client.create(VirtualMachine.KIND, wanted, self._namespace)

    async def delete(self, name: str) -> None:
        """Ask for its removal."""
        await self._client.delete(VirtualMachine.KIND, name, self._namespace)

    async def remove(
        self, names: Collection[str], recorder: Recorder, *, rate: float | None = None
    ) -> dict[str, float]:
        """They are gone; when the removal of each was asked for. Raises BenchError when some stay."""
        listed = list(names)
        if rate is None:
            sent = await at_once(listed, 32, self.delete)
        else:
            sent = await paced(listed, rate, self.delete)
        left = await recorder.vanished(listed, seconds=60 + len(listed) * 0.2)
        if left:
            raise BenchError(f"{len(left)} of {len(listed)} machines do not go: {await self.why(left[0])}")
        return sent

    async def why(self, name: str) -> str:
        """What the API server says of a machine that does not do what is expected, and of its work order."""
        found = await self._client.find(VirtualMachine.KIND, name, self._namespace)
        if found is None:
            return f"{name} is not there (the watch did not say so)"
        uid, host = found["metadata"]["uid"], found.get("status", {}).get("host")
        order = None
        if host is not None:
            order = await self._client.find(WorkOrder.KIND, instance_order_name(uid), host_namespace(host))
        for raw in filter(None, (found, order)):
            raw["metadata"].pop("managedFields", None)
        return f"{json.dumps(found)}; its work order: {json.dumps(order)}"

    async def create_when_possible(self, name: str) -> None:
        """Ask for a machine until the API server takes it."""
        while True:
            try:
                await self.create(name)
            except AlreadyExists:
                return
            except KubeError:
                await asyncio.sleep(0.01)
            else:
                return
