"""Events through one exporter: it was away while much happened, begins again, is killed in the middle, and catches up.

Changes are made by the real API server before, because it makes a tenth of what the exporter takes: a write costs it
6 ms of a processor. The exporter then reads them from its watches as fast as it can, with the API server and the receiver on
the same processors.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nats
from nats.js import JetStreamContext

from kumulus.api.base import PAUSED, PLATFORM_NAMESPACE
from kumulus.api.compute import VirtualMachine
from kumulus.api.events import EventSink
from kumulus.kube.client import KubeClient
from kumulus_lab import ports
from kumulus_lab.processes import Daemon
from tests.bench import procfs
from tests.bench.bench import Bystanders, Context
from tests.bench.cloud import BenchError
from tests.bench.machines import USER_NAMESPACE, ensure_namespace
from tests.bench.record import Better, Goal, Record, record
from tests.component.exporter import Exporter, nats_server

GOAL = Goal(id="EV", limit=2000, better=Better.HIGHER)
LOST = Goal(id="EV", limit=0)
WRITE_SECONDS = 25.0
"""For so long changes are made: the API server remembers those of the last 75 s, and processes take a while to start."""
FORGOTTEN = "read anew"
"""What the exporter says of a kind after a 410."""
ABREAST = 24
LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one catching up."""

    changes: int
    missing: int
    twice: int
    rate: float
    cpu: float
    """Seconds of the exporter's processor."""
    load: Any


async def run(context: Context) -> list[Record]:
    """A webhook and a stream in turn; each is killed in the middle."""
    cloud = context.there
    client = await cloud.client()
    records: list[Record] = []
    try:
        await ensure_namespace(client)
        for what, target in (("a webhook", _webhook), ("JetStream", _stream)):
            for killed in (False, True):
                with tempfile.TemporaryDirectory(prefix="kumulus-bench-") as directory:
                    found = await _catch_up(context, client, Path(directory), target, killed=killed)
                context.say(
                    f"{found.changes} changes to {what}{', killed' if killed else ''}: {found.rate:.0f}/s,"
                    f" {found.missing} missing, {found.twice} twice, {found.cpu:.1f} s of CPU"
                )
                detail = {
                    "changes": found.changes,
                    "sent twice": found.twice,
                    "ms of CPU a change": round(found.cpu * 1000 / max(found.changes, 1), 2),
                }
                if killed:
                    name = f"events lost on the way to {what}, exporter killed in the middle"
                    one = record(name, LOST, "events", found.missing, detail=detail)
                else:
                    one = record(f"events a second to {what}", GOAL, "1/s", round(found.rate), detail=detail)
                records.append(one.model_copy(update={"load": found.load}))
    finally:
        await client.close()
    return records


class _Taken(Protocol):
    """What a receiver has."""

    spec: dict[str, Any]
    """The sink's."""

    async def count(self) -> int:
        """How many events."""

    async def read(self) -> list[tuple[float, str]]:
        """When each came, in seconds, and its id."""


Target = Callable[[Path], AbstractAsyncContextManager[_Taken]]


@dataclass
class _Noted:
    """What `event_receiver` notes."""

    file: Path
    spec: dict[str, Any]

    async def count(self) -> int:
        return self.file.read_bytes().count(b"\n") if self.file.exists() else 0

    async def read(self) -> list[tuple[float, str]]:
        lines = [line.split() for line in self.file.read_text().splitlines()]
        return [(float(words[0]), words[1]) for words in lines if len(words) == 2]


@asynccontextmanager
async def _webhook(directory: Path) -> AsyncIterator[_Taken]:
    (port,) = ports.free(1)
    daemon = Daemon.within(directory, "receiver")
    daemon.start([sys.executable, "-m", "tests.bench.event_receiver", str(port), str(directory / "taken")])
    try:
        yield _Noted(directory / "taken", {"http": {"url": f"http://127.0.0.1:{port}/"}})
    finally:
        daemon.kill()


@dataclass
class _Stream:
    """What a stream has. It is read when all is over: that costs more than to send it."""

    context: JetStreamContext
    spec: dict[str, Any]

    async def count(self) -> int:
        return (await self.context.stream_info("bench")).state.messages

    async def read(self) -> list[tuple[float, str]]:
        subscription = await self.context.subscribe("bench.>", ordered_consumer=True)
        found: list[tuple[float, str]] = []
        wanted = await self.count()
        while len(found) < wanted:
            message = await subscription.next_msg(timeout=30)
            found.append((message.metadata.timestamp.timestamp(), message.headers["Nats-Msg-Id"]))
        await subscription.unsubscribe()
        return found


@asynccontextmanager
async def _stream(directory: Path) -> AsyncIterator[_Taken]:
    (port,) = ports.free(1)
    url = f"nats://127.0.0.1:{port}"
    with nats_server(directory, port):
        connection = await nats.connect(url, connect_timeout=10, error_cb=_patient)
        try:
            context = connection.jetstream()
            await context.add_stream(name="bench", subjects=["bench.>"])
            yield _Stream(context, {"nats": {"url": url, "subject": "bench"}})
        finally:
            await connection.close()


async def _patient(error: Exception) -> None:
    """The server may not be up yet: it is tried again."""


async def _catch_up(context: Context, client: KubeClient, directory: Path, target: Target, *, killed: bool) -> Found:
    cloud, name = context.there, f"bench-{time.monotonic_ns()}"
    exporter = Exporter(cloud.lab.cluster, directory / "exporter", status_seconds=30, lease_seconds=5)
    async with target(directory) as taken:
        spec = {**taken.spec, "filter": {"kinds": ["VirtualMachine"]}, "retry": {"parallel": 64}}
        await client.create(EventSink.KIND, {"metadata": {"name": name}, "spec": spec}, PLATFORM_NAMESPACE)
        try:
            exporter.start()
            await _until(lambda: _delivering(client, name), "the sink is reached")
            # It is killed with what it saw last in what the API server remembers of this kind, else it may be told that
            # it asks for what is too old although nothing is missing.
            machines = await _machines(client)
            await _until(lambda: _count(taken, len(machines)), "the first events")
            exporter.kill()
            wanted = await _changes(client, context, machines)
            bystanders, cpu = Bystanders(), 0.0
            exporter.start()
            if killed:
                await _until(lambda: _count(taken, len(machines) + len(wanted) // 3), "the middle", give_up=False)
                cpu += _cpu(exporter)
                exporter.kill()
                exporter.start()
            await _until(lambda: _has(taken, wanted), "all events", give_up=False)
            if _forgotten(exporter.log()):
                raise BenchError("the API server had forgotten what it was to be asked for: the machine is too slow")
            cpu += _cpu(exporter)
            load = bystanders.load(cpu)
            found = await taken.read()
            ids = [identity for _, identity in found]
            mine = [at for at, identity in found if identity in wanted]
            seconds = max(mine) - min(mine) if len(mine) > 1 else 0.0
            missing = len(wanted - set(ids))
            rate = len(mine) / seconds if seconds else 0.0
            result = Found(len(wanted), missing, len(ids) - len(set(ids)), rate, cpu, load)
        finally:
            exporter.kill()
            await client.delete(EventSink.KIND, name, PLATFORM_NAMESPACE)
    await asyncio.gather(*(client.delete(VirtualMachine.KIND, one, USER_NAMESPACE) for one in machines))
    return result


async def _machines(client: KubeClient) -> dict[str, str]:
    """Machines that nobody works on: their uids by their names."""
    uids: dict[str, str] = {}
    for number in range(ABREAST):
        metadata = {"name": f"e-{time.monotonic_ns()}-{number}", "annotations": {PAUSED: "true"}}
        body = {"metadata": metadata, "spec": {"powerState": "Stopped", "resources": {"cpus": 1, "memory": "64Mi"}}}
        made = await client.create(VirtualMachine.KIND, body, USER_NAMESPACE)
        uids[made["metadata"]["name"]] = made["metadata"]["uid"]
    return uids


async def _changes(client: KubeClient, context: Context, machines: Mapping[str, str]) -> set[str]:
    """Reports of them, for a while; the ids of the events that these mean."""
    wanted: set[str] = set()
    end = time.monotonic() + (WRITE_SECONDS if context.scale.name != "short" else WRITE_SECONDS / 3)

    async def live(name: str) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            message = f"{number} " + "x" * 700
            condition = {"type": "Scheduled", "status": "False", "reason": "Bench", "message": message}
            patch = {"status": {"conditions": [condition]}}
            made = await client.patch(VirtualMachine.KIND, name, patch, USER_NAMESPACE, subresource="status")
            wanted.add(f"{machines[name]}.{made['metadata']['resourceVersion']}.updated")

    async with asyncio.TaskGroup() as group:
        for name in machines:
            group.create_task(live(name))
    return wanted


def _forgotten(log: str) -> bool:
    """Whether machines had to be read anew: then what was between is not told. Other kinds do not matter here."""
    lines = (json.loads(line) for line in log.splitlines() if FORGOTTEN in line and line.startswith("{"))
    return any(line.get("kind") == VirtualMachine.KIND.kind for line in lines)


def _cpu(exporter: Exporter) -> float:
    return procfs.cpu_seconds(exporter.pid)


async def _delivering(client: KubeClient, name: str) -> bool:
    status = (await client.get(EventSink.KIND, name, PLATFORM_NAMESPACE)).get("status") or {}
    return any(one["reason"] == "Delivering" for one in status.get("conditions", ()))


async def _count(taken: _Taken, most: int) -> bool:
    return await taken.count() >= most


async def _has(taken: _Taken, wanted: set[str]) -> bool:
    return await taken.count() >= len(wanted) and wanted <= {identity for _, identity in await taken.read()}


async def _until(probe: Callable[[], Awaitable[bool]], what: str, *, give_up: bool = True) -> None:
    end = time.monotonic() + LIMIT
    while not await probe():
        if time.monotonic() > end:
            if give_up:
                raise BenchError(f"not within {LIMIT:.0f} s: {what}")
            return
        await asyncio.sleep(0.25)
