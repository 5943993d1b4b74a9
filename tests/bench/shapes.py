"""Baselines that are writes only: a machine's life as bare calls to the same API server.

`Bare` (B1) makes the writes that Kumulus makes, of the same number and size, and thinks of nothing: the floor.
`KubeVirt` (B2) makes the writes that KubeVirt is published to make for each machine (QUALITY.md): create VM; 9.5
updates and 2 patches of the VM; 3.35 updates and 2.2 patches of the VMI; create and 2.2 patches of the pod; 4
events; delete. It is a lower bound for KubeVirt here: no watch, no thought, no kubelet, and 1 KiB an object.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any, Protocol

from kumulus.api.base import Kind
from kumulus.kube.client import KubeClient, Raw
from tests.bench.machines import USER_NAMESPACE
from tests.bench.plain import INSTANCE, MACHINE, POD, filler

EVENT = Kind(group="", version="v1", kind="Event", plural="events", status=False)

SPEC_BYTES = 256
STATUS_BYTES = 1024
ORDER_BYTES = 640
"""About what a machine without disks and NICs, its status and its work order have."""

KUBEVIRT_BYTES = 1024

BEFORE_RUNNING = 2 / 3
"""So much of KubeVirt's updates and patches comes before the machine runs, the rest while it goes."""


class Shape(Protocol):
    """A machine's life as writes."""

    name: str

    async def bring_up(self, name: str) -> float:
        """The writes up to Running; when the last was answered."""

    async def remove(self, name: str) -> None:
        """The writes from there until nothing is left."""


class Bare:
    """B1: Kumulus' own writes, bare."""

    name = "B1 bare writes"

    def __init__(self, client: KubeClient, namespace: str = USER_NAMESPACE) -> None:
        self._client = client
        self._namespace = namespace

    async def bring_up(self, name: str) -> float:
        client, namespace = self._client, self._namespace
        status = {"status": {"text": filler(STATUS_BYTES)}}
        await client.create(MACHINE, _plain(name, SPEC_BYTES), namespace)
        await client.patch(MACHINE, name, {"metadata": {"finalizers": ["bench.kumulus.io/plain"]}}, namespace)
        await client.patch(MACHINE, name, status, namespace, subresource="status")
        order = _plain(name, ORDER_BYTES)
        order["metadata"]["finalizers"] = ["bench.kumulus.io/plain"]
        await client.create(INSTANCE, order, namespace)
        await client.patch(INSTANCE, name, {"status": {"text": filler(256)}}, namespace, subresource="status")
        status["status"]["phase"] = "Running"
        await client.patch(MACHINE, name, status, namespace, subresource="status")
        return asyncio.get_running_loop().time()

    async def remove(self, name: str) -> None:
        client, namespace = self._client, self._namespace
        await client.delete(MACHINE, name, namespace)
        await client.delete(INSTANCE, name, namespace)
        await client.patch(INSTANCE, name, {"metadata": {"finalizers": []}}, namespace)
        await client.patch(MACHINE, name, {"metadata": {"finalizers": []}}, namespace)


class KubeVirt:
    """B2: KubeVirt's writes, bare."""

    name = "B2 KubeVirt's writes"

    def __init__(self, client: KubeClient, namespace: str = USER_NAMESPACE) -> None:
        self._client = client
        self._namespace = namespace
        self._number = 0
        self._rest: dict[str, list[tuple[str, Kind]]] = {}
        self._known: dict[tuple[Kind, str], Raw] = {}

    async def bring_up(self, name: str) -> float:
        before, self._rest[name] = steps(self._number)
        self._number += 1
        for verb, kind in before:
            await self._step(name, verb, kind)
        return asyncio.get_running_loop().time()

    async def remove(self, name: str) -> None:
        for verb, kind in self._rest.pop(name):
            await self._step(name, verb, kind)
        for kind in (MACHINE, INSTANCE, POD):
            await self._client.delete(kind, name, self._namespace)
            self._known.pop((kind, name), None)

    async def _step(self, name: str, verb: str, kind: Kind) -> None:
        client, namespace = self._client, self._namespace
        if kind is EVENT:
            await client.create(EVENT, _event(name, namespace), namespace)
            return
        known = self._known.get((kind, name))
        if verb == "create":
            answer = await client.create(kind, _plain(name, KUBEVIRT_BYTES), namespace)
        elif verb == "patch":
            answer = await client.patch(kind, name, {"spec": {"step": _next(known)}}, namespace)
        else:
            assert known is not None
            known["spec"]["step"] = _next(known)
            answer = await client.replace(kind, known, namespace)
        self._known[kind, name] = answer


def steps(number: int) -> tuple[list[tuple[str, Kind]], list[tuple[str, Kind]]]:
    """The writes of the machine of that number, before it runs and after, without the deletes. Pure.

    A mix of 9.5 is 9 for one machine and 10 for the next.
    """
    before: list[tuple[str, Kind]] = [("create", MACHINE), ("create", INSTANCE), ("create", POD)]
    after: list[tuple[str, Kind]] = []
    mix = (("update", MACHINE, 9.5), ("patch", MACHINE, 2.0), ("update", INSTANCE, 3.35), ("patch", INSTANCE, 2.2))
    for verb, kind, often in (*mix, ("patch", POD, 2.2), ("create", EVENT, 4.0)):
        count = math.floor((number + 1) * often + 1e-9) - math.floor(number * often + 1e-9)
        early = round(count * BEFORE_RUNNING)
        before += [(verb, kind)] * early
        after += [(verb, kind)] * (count - early)
    return before, after


def _plain(name: str, size: int) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"text": filler(size)}}


def _next(known: Raw | None) -> int:
    return int((known or {}).get("spec", {}).get("step", 0)) + 1


def _event(name: str, namespace: str) -> dict[str, Any]:
    return {
        "metadata": {"generateName": f"{name}."},
        "involvedObject": {"kind": MACHINE.kind, "name": name, "namespace": namespace},
        "reason": "SuccessfulCreate",
        "message": filler(128),
        "type": "Normal",
    }


def names(prefix: str, number: int) -> list[str]:
    """So many names."""
    return [f"{prefix}-{index}" for index in range(number)]


def chunks(total: int, parts: int) -> Iterator[int]:
    """`total` in `parts` parts that differ by at most one."""
    for part in range(parts):
        yield total // parts + (1 if part < total % parts else 0)
