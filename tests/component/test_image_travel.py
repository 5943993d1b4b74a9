"""Images that travel: fetched once, then from host to host. Real controllers, agents, pools and TLS; no guests."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import ssl
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image, ImageUpload
from kumulus.api.order_names import CERTIFICATE_ORDER
from kumulus.api.storage import StoragePool
from kumulus.cli.session import Options, Session
from kumulus.cli.upload import door
from kumulus.kube.builtin import EVENT, NAMESPACE, SECRET
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import GIB, Cloud, Raw, cloud, condition, phase, until
from tests.conftest import new_lab
from tests.unit.storage.material import disk, needs_root
from tests.unit.storage.server import Answer

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

DISK = disk()
SHA256 = hashlib.sha256(DISK).hexdigest()
HOSTS = ("first", "second", "third")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


class Tenant:
    """A namespace, and three hosts, of which the first fetches images."""

    def __init__(self, cloud: Cloud, namespace: str) -> None:
        self.cloud, self.client, self.namespace = cloud, cloud.client, namespace
        self.path = f"/{namespace}.raw"

    async def image(self, name: str = "system", **spec: Any) -> Raw:
        url = self.cloud.images.on(self.path, Answer(DISK))
        body = {"source": {"http": {"url": url}}, "checksum": {"sha256": SHA256}, "format": "raw"} | spec
        await self.client.create(Image.KIND, {"metadata": {"name": name}, "spec": body}, self.namespace)
        return await self.until_image(name, phase("Ready"))

    async def until_image(self, name: str, holds: Callable[[Raw], bool], seconds: float = 30) -> Raw:
        last: Raw | None = None

        async def probe() -> Raw | None:
            nonlocal last
            last = await self.client.find(Image.KIND, name, self.namespace)
            return last if last is not None and holds(last) else None

        try:
            found: Raw = await until(probe, f"image {name}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {(last or {}).get('status')}") from None
        return found

    async def machine(self, name: str, host: str) -> Raw:
        """A machine of the image `system` on that host, once it runs."""
        body = {
            "resources": {"cpus": 1, "memory": "64Mi"},
            "placement": {"hostSelector": {"role": host}},
            "disks": [{"name": "root", "ephemeral": {"image": "system", "size": "64Mi"}}],
        }
        await self.client.create(VirtualMachine.KIND, {"metadata": {"name": name}, "spec": body}, self.namespace)

        async def probe() -> Raw | None:
            vm = await self.client.find(VirtualMachine.KIND, name, self.namespace)
            return vm if vm is not None and phase("Running")(vm) else None

        found: Raw = await until(probe, f"machine {name} runs", 30)
        return found

    def ways(self, image: Raw) -> dict[str, str]:
        """Where each host that has the image has it from."""
        caches = image["status"].get("caches", ())
        return {c["host"]: c.get("copiedFrom", "the source") for c in caches if c["state"] == "Ready"}

    def downloads(self) -> int:
        return len(self.cloud.images.asked(self.path))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        for number, role in enumerate(HOSTS):
            await made.add_host(role, memory=(64 - number) * GIB, transfer=True)

        async def ready() -> bool:
            pool = await made.client.find(StoragePool.KIND, "local")
            return pool is not None and pool.get("status", {}).get("readyHosts") == len(HOSTS)

        await until(ready, "the pool is ready everywhere")
        for role in HOSTS:
            await certified(made, role)
        yield made


async def certified(cloud: Cloud, role: str, other_than: str | None = None) -> str:
    """The certificate that the host has and uses."""

    async def probe() -> str | None:
        order = await cloud.client.find(WorkOrder.KIND, CERTIFICATE_ORDER, host_namespace(role))
        if order is None or order.get("status", {}).get("observedGeneration") != order["metadata"]["generation"]:
            return None
        given = str(order["spec"]["certificate"]["certificate"])
        return given if given != other_than else None

    return str(await until(probe, f"the certificate of {role}"))


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(made: Cloud) -> AsyncIterator[Tenant]:
    name = f"tenant-{secrets.token_hex(4)}"
    await made.client.create(NAMESPACE, {"metadata": {"name": name}})
    tenant = Tenant(made, name)
    try:
        yield tenant
    finally:
        for kind in (VirtualMachine.KIND, Image.KIND):
            for item in await made.listed(kind, name):
                await made.client.delete(kind, item["metadata"]["name"], name)
            await until(lambda kind=kind: _none(made, kind, name), f"no {kind.kind} is left")  # type: ignore[misc]
        await made.client.delete(NAMESPACE, name)


async def _none(cloud: Cloud, kind: Any, namespace: str) -> bool:
    return not await cloud.listed(kind, namespace)


async def test_an_image_is_fetched_once_and_then_goes_from_host_to_host(tenant: Tenant) -> None:
    image = await tenant.image()
    assert tenant.ways(image) == {"first": "the source"}
    asked = tenant.downloads()
    await asyncio.gather(tenant.machine("a", "second"), tenant.machine("b", "first"))
    tenant.cloud.images.on(tenant.path, Answer(status=500))  # nobody needs it any more
    await tenant.machine("c", "third")
    image = await tenant.until_image("system", lambda i: len(tenant.ways(i)) == 3)
    ways = tenant.ways(image)
    assert ways["second"] == "first" and ways["third"] in ("first", "second")
    assert tenant.downloads() == asked
    files = [path for role in HOSTS for path in tenant.cloud.hosts[role].directory.rglob("images/*.qcow2")]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files if image["metadata"]["uid"] in path.name}
    assert digests == {image["status"]["content"]["sha256"]}


async def test_a_copy_that_was_tampered_with_is_left_for_the_source(tenant: Tenant) -> None:
    image = await tenant.until_image((await tenant.image())["metadata"]["name"], lambda i: "content" in i["status"])
    [path] = tenant.cloud.hosts["first"].directory.rglob(f"images/{image['metadata']['uid']}.qcow2")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    asked = tenant.downloads()
    await tenant.machine("a", "second")
    image = await tenant.until_image("system", lambda i: len(tenant.ways(i)) == 2)
    assert tenant.ways(image)["second"] == "the source" and tenant.downloads() > asked
    [order] = [o for o in await tenant.cloud.listed(WorkOrder.KIND, host_namespace("second")) if _is_of(o, image)]
    assert [(peer["host"], peer["reason"]) for peer in order["status"]["disk"]["dropped"]] == [("first", "WrongDigest")]


def _is_of(order: Raw, image: Raw) -> bool:
    return bool(order["spec"]["for"]["uid"] == image["metadata"]["uid"])


async def test_an_agent_that_starts_anew_makes_a_new_key_and_gets_a_certificate_for_it(made: Cloud) -> None:
    before = await certified(made, "third")
    await made.hosts["third"].kill()
    made.hosts["third"].start()
    after = await certified(made, "third", other_than=before)
    assert after != before
    secret = await made.client.get(SECRET, "kumulus-authority", "kumulus-system")
    assert set(secret["data"]) == {"tls.crt", "tls.key"}
    for order in await made.listed(WorkOrder.KIND):
        assert "PRIVATE" not in str(order)


@pytest.mark.wide
async def test_an_image_that_is_to_be_everywhere_is_in_every_pool_beforehand(tenant: Tenant) -> None:
    asked = tenant.downloads()
    await tenant.image(cachePolicy="Everywhere")
    image = await tenant.until_image("system", lambda i: len(tenant.ways(i)) == len(HOSTS))
    assert list(tenant.ways(image).values()).count("the source") == 1 and tenant.downloads() == asked + 1
    try:
        await tenant.client.patch(Image.KIND, "system", {"spec": {"cachePolicy": "OnDemand"}}, tenant.namespace)
        await tenant.machine("a", "third")
        await limit(tenant.cloud, "1")
        image = await tenant.until_image("system", lambda i: set(tenant.ways(i)) == {"third"})
        assert image["status"]["phase"] == "Ready", "it can be had again"
        for role in ("first", "second"):
            uid = image["metadata"]["uid"]
            await until(lambda: _gone(tenant.cloud, role, uid), f"no file of it is on {role}")  # noqa: B023
        events = [e for e in await tenant.cloud.listed(EVENT, tenant.namespace) if e["reason"] == "ImageEvicted"]
        assert {e["regarding"]["uid"] for e in events} == {image["metadata"]["uid"]}
    finally:
        await limit(tenant.cloud, None)
    await tenant.machine("b", "second")
    image = await tenant.until_image("system", lambda i: "second" in tenant.ways(i))
    assert tenant.ways(image)["second"] == "third", "what was evicted comes back from who has it"


async def limit(cloud: Cloud, size: str | None) -> None:
    """Set how much room images may take in the pool."""
    await cloud.client.patch(StoragePool.KIND, "local", {"spec": {"imageCache": {"maxSize": size}}})


async def _gone(cloud: Cloud, role: str, uid: str) -> bool:
    return not list(cloud.hosts[role].directory.rglob(f"images/*{uid}*"))


async def kumulusctl(tenant: Tenant, *arguments: str) -> tuple[int | None, str]:
    """Run kumulusctl; its exit code and all it said."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("kumulusctl"),
        *(f"--kubeconfig={tenant.cloud.lab.kubeconfig}", f"--namespace={tenant.namespace}", *arguments),
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_a_file_is_uploaded_from_a_laptop_and_goes_on_where_it_was_cut(tenant: Tenant, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(DISK)
    spec = {"source": {"upload": {}}, "checksum": {"sha256": SHA256}, "format": "raw"}
    await tenant.client.create(Image.KIND, {"metadata": {"name": "system"}, "spec": spec}, tenant.namespace)
    image = await tenant.until_image("system", lambda i: condition(i).get("reason") == "WaitingForUpload")
    assert image["status"]["phase"] == "Pending"

    session = Session(Options(kubeconfig=tenant.cloud.lab.kubeconfig, namespace=tenant.namespace))

    def half() -> None:
        with door(session, "system") as at:
            parts = urlsplit(at.url)
            context = ssl.create_default_context(cadata=at.ca_bundle)
            with (
                socket.create_connection((parts.hostname, parts.port)) as plain,
                context.wrap_socket(plain, server_hostname=at.server_name) as tls,
            ):
                span = f"Content-Range: bytes 0-{len(DISK) - 1}/{len(DISK)}\r\nContent-Length: {len(DISK)}\r\n"
                head = f"PUT {parts.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at.token}\r\n{span}\r\n"
                tls.sendall(head.encode() + DISK[: len(DISK) // 2])  # and the laptop is closed
                assert tls.recv(12) == b"HTTP/1.1 408"

    await asyncio.to_thread(half)

    async def kept() -> bool:
        found = list(tenant.cloud.hosts["first"].directory.rglob(f"{image['metadata']['uid']}.source"))
        return bool(found) and found[0].stat().st_size == len(DISK) // 2

    await until(kept, "half of it has arrived")
    await tenant.cloud.hosts["first"].kill()
    tenant.cloud.hosts["first"].start()
    code, said = await kumulusctl(tenant, "image", "upload", "system", "--file", str(file), "--format", "raw")
    assert code == 0 and "image.storage.kumulus.io/system is ready" in said, said
    assert await _none(tenant.cloud, ImageUpload.KIND, tenant.namespace), "nothing of the upload is left"
    await tenant.machine("a", "second")
    image = await tenant.until_image("system", lambda i: "second" in tenant.ways(i))
    assert tenant.ways(image)["second"] == "first"
    code, said = await kumulusctl(tenant, "image", "upload", "system", "--file", str(file), "--format", "raw")
    assert code == 0, said
    file.write_bytes(DISK + b"x")
    code, said = await kumulusctl(tenant, "image", "upload", "system", "--file", str(file), "--format", "raw")
    assert code == 1 and "is of another file" in said
