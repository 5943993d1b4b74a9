"""Events against a real API server: an exporter in a process of its own, with the credentials of its account, real
receivers, and a real NATS server."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest
import yaml
from nats.js import JetStreamContext

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus.api.compute import VirtualMachine
from kumulus.api.events import REDELIVER, EventSink
from kumulus.api.fabric import Zone
from kumulus.api.storage import Volume
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Refused
from kumulus_lab import ports
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.processes import Daemon
from tests.component.exporter import Exporter, exporting, nats_server
from tests.component.receiver import receiving
from tests.component.test_kube import connected, until

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "events"
KEY = b"0123456789abcdef0123456789abcdef"
SPEC: Raw = {"powerState": "Stopped", "resources": {"cpus": 1, "memory": "64Mi"}}


@pytest.fixture(scope="module")
def exporter(cluster: NativeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    with exporting(cluster, tmp_path_factory.mktemp("events")) as running:
        yield running


@dataclass
class Stream:
    """A NATS server, and what its streams have."""

    url: str
    context: JetStreamContext

    async def types(self, namespace: str, subject: str = "cloud") -> list[str]:
        """The types of a namespace's events, in the order of the stream."""
        head = f"{subject}.{namespace}."
        subscription = await self.context.subscribe(f"{head}>", ordered_consumer=True)
        wanted = (await subscription.consumer_info()).num_pending
        found = []
        while len(found) < wanted:
            found.append((await subscription.next_msg(timeout=30)).subject.removeprefix(head))
        await subscription.unsubscribe()
        return found


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[Stream]:
    """With a stream that takes what begins with `cloud`."""
    (port,) = ports.free(1)
    url = f"nats://127.0.0.1:{port}"
    with nats_server(tmp_path, port):
        await until(lambda: listens(port), "NATS listens")
        connection = await nats.connect(url)
        try:
            context = connection.jetstream()
            await context.add_stream(name="cloud", subjects=["cloud.>"])
            yield Stream(url, context)
        finally:
            await connection.close()


@pytest.fixture
async def client(cluster: NativeCluster) -> AsyncIterator[KubeClient]:
    async with connected(cluster) as made:
        yield made


@asynccontextmanager
async def sink(client: KubeClient, namespace: str, name: str, spec: Raw) -> AsyncIterator[None]:
    """An EventSink, gone in the end."""
    await client.create(EventSink.KIND, {"metadata": {"name": name}, "spec": spec}, namespace)
    try:
        yield
    finally:
        await client.delete(EventSink.KIND, name, namespace)


async def ready(client: KubeClient, namespace: str, name: str, reason: str = "Delivering") -> Raw:
    """The status of a sink, once it gives that reason."""
    found: Raw = {}

    async def says() -> bool:
        found.update((await client.get(EventSink.KIND, name, namespace)).get("status") or {})
        return any(c["reason"] == reason for c in found.get("conditions", ()))

    await until(says, f"{name}: {reason}", 30)
    return found


async def machine(client: KubeClient, namespace: str, name: str, **labels: str) -> Raw:
    return await client.create(
        VirtualMachine.KIND, {"metadata": {"name": name, "labels": labels}, "spec": SPEC}, namespace
    )


async def phase(client: KubeClient, namespace: str, name: str, **status: Any) -> str:
    """Report a status; the version that it led to."""
    made = await client.patch(VirtualMachine.KIND, name, {"status": status}, namespace, subresource="status")
    return str(made["metadata"]["resourceVersion"])


async def test_a_tenant_is_told_in_order_and_nothing_is_lost_when_the_exporter_is_killed(
    client: KubeClient, exporter: Exporter, kept_namespace: str, module_namespace: str, stream: Stream
) -> None:
    """The operator's stream has the same, and nothing twice."""
    home, away = kept_namespace, module_namespace
    busy = False

    def answer(event: Raw) -> int:
        return 503 if busy else 204

    async with receiving(key=KEY, answer=answer) as receiver:
        secret = {"metadata": {"name": "hook"}, "data": {"key": base64.b64encode(KEY).decode()}}
        await client.create(SECRET, secret, home)
        hook = {"url": receiver.url, "secret": {"name": "hook", "key": "key"}}
        async with (
            sink(client, home, "hook", {"http": hook, "retry": {"parallel": 8}}),
            sink(client, PLATFORM_NAMESPACE, home, {"nats": {"url": stream.url, "subject": "cloud"}}),
        ):
            await ready(client, home, "hook")
            await ready(client, PLATFORM_NAMESPACE, home)
            assert receiver.asked == ["kumulus.io"]

            await machine(client, away, "elsewhere")
            await machine(client, home, "web", tier="front")
            await phase(client, home, "web", phase="Running", host="h1", startedAt="2026-01-01T00:00:00Z")
            await phase(client, home, "web", phase="Paused")
            await until(lambda: "vm.paused" in receiver.types("web"), "the machine's story")
            story = ["created", "updated", "placed", "started", "updated", "paused"]
            assert receiver.types("web") == [f"vm.{verb}" for verb in story]
            started = next(event for event in receiver.taken if event["type"] == "io.kumulus.vm.started")
            assert started["data"]["change"]["to"] == "2026-01-01T00:00:00Z"
            assert started["data"]["object"]["metadata"]["labels"] == {"tier": "front"}
            assert "managedFields" not in started["data"]["object"]["metadata"]

            # Killed in the middle of much, while some is not taken
            names = [f"vm-{number}" for number in range(12)]
            versions: dict[str, list[str]] = {}

            async def live(name: str) -> None:
                made = await machine(client, home, name)
                versions[name] = [made["metadata"]["resourceVersion"]]
                for number in range(8):
                    versions[name].append(await phase(client, home, name, restarts=number))

            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(live(name))
                await until(lambda: len(receiver.taken) > 30, "it is in the middle of it")
                busy = True
                exporter.kill()
            await client.delete(VirtualMachine.KIND, "vm-0", home)
            busy = False
            exporter.start()
            await until(lambda: "vm.deleted" in receiver.types("vm-0"), "the end of one that ended meanwhile", 60)

            def told(name: str) -> list[str]:
                news = ("io.kumulus.vm.created", "io.kumulus.vm.updated")
                mine = [event for event in receiver.once() if event["kumulusname"] == name and event["type"] in news]
                return [event["sequence"].lstrip("0") for event in mine]

            await until(lambda: all(told(name) == versions[name] for name in names), "every change, in order", 60)
            assert receiver.forged == 0

            # Away for longer than the API server remembers
            exporter.kill()
            exporter.forget_positions()
            await client.delete(VirtualMachine.KIND, "vm-1", home)
            await phase(client, home, "vm-2", phase="Failed")
            last = await phase(client, home, "vm-2", restarts=9)
            await machine(client, home, "late")
            exporter.start()
            await until(lambda: "vm.deleted" in receiver.types("vm-1"), "what ended", 60)
            await until(lambda: "vm.created" in receiver.types("late"), "what began", 60)
            await until(lambda: told("vm-2")[-1] == last, "the final state")
            await until(lambda: "vm.failed" in receiver.types("vm-2"), "what it means")
            assert not receiver.types("elsewhere"), "of another namespace"

            async def of_all() -> bool:
                return await stream.types(away) == ["vm.created"]

            await until(of_all, "the operator's stream has what others get")
            everything = len(receiver.once())

            async def whole() -> bool:
                return len(await stream.types(home)) >= everything

            await until(whole, "the stream has all")
            assert len(await stream.types(home)) == everything, "nothing is there twice"
            assert KEY.decode() not in exporter.log()
            assert "kumulus-controllers" not in exporter.log(), "it takes no part in the election of controllers"


async def test_a_dead_sink_delays_nobody_and_what_it_refused_is_sent_on_request(
    client: KubeClient, exporter: Exporter, kept_namespace: str
) -> None:
    home, bad = kept_namespace, True

    def answer(event: Raw) -> int:
        return 500 if bad and event["kumulusname"] == "poison" else 204

    (closed,) = ports.free(1)
    async with receiving(answer=answer) as picky, receiving(origins=None) as rude, receiving() as plain:
        once = {"attempts": 1}
        async with (
            sink(client, home, "picky", {"http": {"url": picky.url}, "retry": once}),
            sink(client, home, "rude", {"http": {"url": rude.url}}),
            sink(client, home, "dead", {"http": {"url": f"http://127.0.0.1:{closed}/"}}),
            sink(client, home, "sly", {"http": {"url": f"http://[::1]:{picky.port}/", "handshake": False}}),
            sink(client, home, "keyless", {"http": {"url": plain.url, "secret": {"name": "none", "key": "k"}}}),
            sink(
                client,
                home,
                "plain",
                {
                    "http": {"url": plain.url, "handshake": False},
                    "filter": {"kinds": ["VirtualMachine"], "types": ["io.kumulus.vm.*"], "labels": {"tier": "front"}},
                },
            ),
        ):
            for name in ("picky", "plain"):
                await ready(client, home, name)
            await machine(client, home, "poison")
            await machine(client, home, "web", tier="front")
            await client.create(Volume.KIND, {"metadata": {"name": "data"}, "spec": {"size": "1Gi"}}, home)
            await until(lambda: picky.types("data") == ["volume.created"], "others are told")
            await until(lambda: plain.types("web") == ["vm.created"], "what fits the filter")
            assert not plain.types("poison") and not plain.types("data")
            assert not picky.types("poison") and not rude.taken
            await ready(client, home, "rude", "HandshakeRefused")
            await ready(client, home, "dead", "Unreachable")
            await ready(client, home, "keyless", "SecretNotFound")
            refused = await ready(client, home, "sly", "AddressRefused")
            assert "not a public address" in refused["conditions"][0]["message"]

            async def buried() -> bool:
                found = await client.get(EventSink.KIND, "picky", home)
                return bool(found["status"].get("deadLetters") == 1)

            await until(buried, "the dead letter is counted")
            bad = False
            await client.patch(EventSink.KIND, "picky", {"metadata": {"annotations": {REDELIVER: "1"}}}, home)
            await until(lambda: picky.types("poison") == ["vm.created"], "once more, on request")

            async def done() -> bool:
                status = (await client.get(EventSink.KIND, "picky", home))["status"]
                return bool((status.get("deadLetters"), status.get("redelivered")) == (0, "1"))

            await until(done, "it says so")


async def test_only_the_operator_asks_for_namespaces(client: KubeClient, kept_namespace: str) -> None:
    spec = {"http": {"url": "https://hooks.example.org/"}, "filter": {"namespaces": ["other"]}}
    with pytest.raises(Refused, match=r"spec\.filter\.namespaces"):
        await client.create(EventSink.KIND, {"metadata": {"name": "curious"}, "spec": spec}, kept_namespace)
    both = {**spec, "nats": {"url": "nats://nats.example.org"}, "filter": {}}
    with pytest.raises(Refused, match="exactly one of http and nats"):
        await client.create(EventSink.KIND, {"metadata": {"name": "both"}, "spec": both}, kept_namespace)


async def test_a_stream_that_was_not_there_gets_what_waited(
    client: KubeClient, exporter: Exporter, kept_namespace: str, stream: Stream
) -> None:
    zone = f"z-{secrets.token_hex(3)}"
    spec = {"nats": {"url": stream.url, "subject": "later"}, "filter": {"kinds": ["Zone"]}}
    async with sink(client, PLATFORM_NAMESPACE, zone, spec):
        await ready(client, PLATFORM_NAMESPACE, zone)
        await client.create(Zone.KIND, {"metadata": {"name": zone}, "spec": {}})
        await ready(client, PLATFORM_NAMESPACE, zone, "NoStream")
        await client.delete(Zone.KIND, zone)
        await stream.context.add_stream(name="later", subjects=["later.>"])

        async def told() -> bool:
            return await stream.types("_", "later") == ["zone.created", "zone.deleted"]

        await until(told, "what is in no namespace")


async def test_an_inventory_is_kept_by_events_alone(
    client: KubeClient, exporter: Exporter, kept_namespace: str, tmp_path: Path
) -> None:
    home, (port,) = kept_namespace, ports.free(1)
    secret, manifest = (yaml.safe_load((EXAMPLE / name).read_text()) for name in ("1-secret.yaml", "2-sink.yaml"))
    await machine(client, home, "before")
    program = Daemon.within(tmp_path, "inventory")
    env = {**os.environ, "WEBHOOK_SECRET": secret["stringData"]["secret"]}
    program.start([sys.executable, EXAMPLE / "inventory.py", f"--listen=127.0.0.1:{port}"], env)
    try:
        await until(lambda: listens(port), "the inventory listens")
        await client.create(SECRET, secret, home)
        manifest["spec"]["http"]["url"] = f"http://127.0.0.1:{port}/events"
        async with sink(client, home, manifest["metadata"]["name"], manifest["spec"]):
            await client.create(Volume.KIND, {"metadata": {"name": "data"}, "spec": {"size": "1Gi"}}, home)
            await machine(client, home, "web")
            await machine(client, home, "gone")
            await phase(client, home, "web", phase="Running")
            await client.delete(VirtualMachine.KIND, "gone", home)

            async def knows() -> bool:
                async with aiohttp.request("GET", f"http://127.0.0.1:{port}/") as answer:
                    found = [(one["kind"], one["name"], one["phase"]) for one in await answer.json()]
                machines = [("VirtualMachine", "before", None), ("VirtualMachine", "web", "Running")]
                return found == [*machines, ("Volume", "data", None)]

            await until(knows, "it knows what there is")
            async with aiohttp.request("POST", f"http://127.0.0.1:{port}/events", json={}) as answer:
                assert answer.status == 401, "what is not signed is not believed"
    finally:
        program.kill()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
