"""Images from registries as their owner sees them: a real registry, the API server, the controllers, agents with real pools."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.storage import Volume
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus_agents.storage.protocol import Login
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Cloud, Raw, cloud, phase, until
from tests.component.registry import PASSWORD, USER, Registry, needs_registry, registry
from tests.component.test_volume import HOSTS, Tenant
from tests.conftest import new_lab
from tests.unit.storage.material import disk, needs_root
from tests.unit.storage.registry import layer
from tests.unit.storage.server import Answer, certificate, serving

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root, needs_registry]

DISK = disk()
OTHER = bytes(reversed(DISK[:512])) + DISK[512:]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        for role in HOSTS:
            await made.add_host(role, transfer=True)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Registry]:
    async with registry(tmp_path_factory.mktemp("hub") / "registry") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(ours: Cloud) -> AsyncIterator[Tenant]:
    made = Tenant(ours, secrets.token_hex(3))
    await ours.client.create(NAMESPACE, {"metadata": {"name": made.namespace}})
    yield made
    await ours.client.delete(NAMESPACE, made.namespace)


async def login(tenant: Tenant, hub: Registry, name: str = "hub", password: str = PASSWORD) -> None:
    config = {"auths": {hub.name: {"username": USER, "password": password}, "other.example": {"auth": "eDp5"}}}
    body = {
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps(config)},
    }
    await tenant.client.create(SECRET, body, tenant.namespace)


async def image(tenant: Tenant, hub: Registry, name: str, repository: str, form: str = "raw", **more: Any) -> None:
    oci = {"reference": f"{hub.name}/{repository}", "caBundle": hub.bundle, "secret": "hub", **more}
    await tenant._make(Image.KIND, name, {"source": {"oci": oci}, "format": form})


async def logins_gone(tenant: Tenant) -> bool:
    """Whether no host has a login to where images are."""
    kept = [
        item["metadata"]["name"] for role in HOSTS for item in await tenant.cloud.listed(SECRET, host_namespace(role))
    ]
    return not any(name.startswith("pull-") for name in kept)


async def ready(tenant: Tenant, name: str) -> Raw:
    return await tenant.wait(Image.KIND, name, phase("Ready"), "imported")


async def test_a_tag_is_looked_up_once_and_the_login_is_with_a_host_only_while_it_imports(
    tenant: Tenant, hub: Registry
) -> None:
    pushed = await asyncio.to_thread(hub.push, "disks/debian:12", DISK)
    await image(tenant, hub, "system", "disks/debian:12")
    assert "kubectl" not in await tenant.says(Image.KIND, "system", "SecretNotFound")
    await login(tenant, hub)
    status = (await ready(tenant, "system"))["status"]
    assert (status["digest"], status["sha256"]) == (pushed, hashlib.sha256(DISK).hexdigest())
    assert status["virtualSize"] == "4Mi"

    await asyncio.to_thread(hub.push, "disks/debian:12", OTHER)
    for number in range(2):
        root = {"name": "root", "ephemeral": {"image": "system"}}
        await tenant.machine(f"web-{number}", root, on=number)
        await tenant.runs(f"web-{number}")

    def everywhere(item: Raw) -> bool:
        return {cache["host"] for cache in item["status"]["caches"]} == set(HOSTS)

    uid = (await tenant.wait(Image.KIND, "system", everywhere, "is on both hosts"))["metadata"]["uid"]
    for host in tenant.cloud.hosts.values():
        (record,) = host.directory.rglob(f"{uid}.json")
        found = json.loads(record.read_text())
        assert found.get("digest", pushed) == pushed, "another host may have given it"
        assert found["sha256"] == hashlib.sha256(DISK).hexdigest()

    await until(partial(logins_gone, tenant), "the login is with no host any more")
    for kind in (Image.KIND, WorkOrder.KIND, VirtualMachine.KIND):
        assert PASSWORD not in json.dumps(await tenant.cloud.listed(kind))
    for host in tenant.cloud.hosts.values():
        for path in host.directory.rglob("*.json"):
            assert PASSWORD not in path.read_text()


async def test_a_container_disk_becomes_a_volume(tenant: Tenant, hub: Registry) -> None:
    packed = layer(DISK, "disk/debian.raw")
    pushed = await asyncio.to_thread(hub.push_container, "disks/container:1", packed)
    await login(tenant, hub)
    await image(tenant, hub, "system", f"disks/container@{pushed}")
    status = (await ready(tenant, "system"))["status"]
    assert (status["digest"], status["format"]) == (pushed, "raw")
    await tenant.machine("web", {"name": "root", "volumeTemplate": {"source": {"image": "system"}}})
    await tenant.runs("web")


async def test_what_is_no_image_is_refused_in_a_sentence(tenant: Tenant, hub: Registry) -> None:
    await login(tenant, hub)
    await asyncio.to_thread(hub.push, "disks/odd:1", DISK)
    await asyncio.to_thread(hub.push_container, "disks/empty:1", layer(b"x" * 512, "etc/passwd"))
    await image(tenant, hub, "other-format", "disks/odd:1", "qcow2")
    await image(tenant, hub, "no-disk", "disks/empty:1")
    await image(tenant, hub, "missing", "disks/odd:2")
    await image(tenant, hub, "no-layer", "disks/odd:1", layout="ContainerDisk")
    assert "not qcow2" in await tenant.says(Image.KIND, "other-format", "ImageRejected")
    assert "disk/" in await tenant.says(Image.KIND, "no-disk", "ImageRejected")
    assert "404" in await tenant.says(Image.KIND, "missing", "SourceNotFound")
    assert "container image without a layer" in await tenant.says(Image.KIND, "no-layer", "ManifestRejected")


async def test_a_wrong_login_is_said_and_an_anonymous_user_refused(tenant: Tenant, hub: Registry) -> None:
    await asyncio.to_thread(hub.push, "disks/private:1", DISK)
    reference = {"reference": f"{hub.name}/disks/private:1", "caBundle": hub.bundle}
    await tenant._make(Image.KIND, "nobody", {"source": {"oci": reference}, "format": "raw"})
    assert "login" in await tenant.says(Image.KIND, "nobody", "SourceUnauthorized")
    await tenant.client.create(SECRET, {"metadata": {"name": "hub"}, "stringData": {"a": "b"}}, tenant.namespace)
    await image(tenant, hub, "mine", "disks/private:1")
    assert "docker-registry" in await tenant.says(Image.KIND, "mine", "SecretUnusable")
    await tenant.client.delete(SECRET, "hub", tenant.namespace)
    await login(tenant, hub, password="wrong")
    assert "login" in await tenant.says(Image.KIND, "mine", "SourceUnauthorized")
    await tenant.client.delete(SECRET, "hub", tenant.namespace)
    await login(tenant, hub)
    await ready(tenant, "mine")


async def test_a_web_server_that_asks_who_one_is(tenant: Tenant, tmp_path: Path) -> None:
    bundle, context = certificate(tmp_path, "127.0.0.1")
    right = Login(USER, PASSWORD)
    async with serving(tls=context) as server:
        url = server.on("/disk.raw", Answer(DISK, etag='"1"', login=right.basic))
        http, checksum = {"url": url, "caBundle": bundle, "secret": "web"}, {"sha256": hashlib.sha256(DISK).hexdigest()}

        async def secret(form: str) -> None:
            body = {"metadata": {"name": "web"}, "type": form, "stringData": {"username": USER, "password": PASSWORD}}
            await tenant.client.create(SECRET, body, tenant.namespace)

        await secret("Opaque")
        await tenant._make(Image.KIND, "mine", {"source": {"http": http}, "format": "raw", "checksum": checksum})
        said = await tenant.says(Image.KIND, "mine", "SecretUnusable")
        assert "source.http.secret" in said and "--type=kubernetes.io/basic-auth" in said
        assert server.requests == []
        await tenant.client.delete(SECRET, "web", tenant.namespace)
        await secret("kubernetes.io/basic-auth")
        await ready(tenant, "mine")
        await until(partial(logins_gone, tenant), "the login is with no host any more")
        assert PASSWORD not in json.dumps(await tenant.cloud.listed(WorkOrder.KIND))


async def test_an_image_is_used_by_the_namespaces_that_it_names_and_nobody_else_learns_of_it(
    tenant: Tenant, hub: Registry
) -> None:
    other = Tenant(tenant.cloud, secrets.token_hex(3))
    await tenant.client.create(NAMESPACE, {"metadata": {"name": other.namespace}})
    try:
        await tenant.image("golden")
        theirs = {"image": "golden", "imageNamespace": tenant.namespace}
        none = {"image": "none", "imageNamespace": tenant.namespace}
        await other.machine("mine", {"name": "root", "ephemeral": theirs})
        await other.machine("with-volume", {"name": "root", "volumeTemplate": {"source": theirs}})
        await other.machine("lost", {"name": "root", "ephemeral": none})
        await other.volume("data", source=theirs)
        said = [
            await other.says(VirtualMachine.KIND, "mine", "ImageNotAllowed"),
            await other.says(Volume.KIND, "data", "ImageNotAllowed"),
            (await other.says(VirtualMachine.KIND, "lost", "ImageNotAllowed")).replace("none", "golden"),
        ]
        assert len(set(said)) == 1, "whether there is one is not said"

        await tenant.patch(Image.KIND, "golden", allowedNamespaces=[other.namespace])
        for name in ("mine", "with-volume"):
            await other.runs(name)
        status = (await other.client.get(VirtualMachine.KIND, "mine", other.namespace))["status"]
        assert status["images"][0]["namespace"] == tenant.namespace
        await tenant.patch(Image.KIND, "golden", allowedNamespaces=None)
        await other.machine("late", {"name": "root", "ephemeral": theirs})
        await other.says(VirtualMachine.KIND, "late", "ImageNotAllowed")
        await other.runs("mine")
    finally:
        await tenant.client.delete(NAMESPACE, other.namespace)


async def test_a_disk_of_a_machine_becomes_an_image_that_other_hosts_get(tenant: Tenant, hub: Registry) -> None:
    await tenant.image("system")
    await tenant.machine("golden", {"name": "root", "volumeTemplate": {"source": {"image": "system"}}}, on=0)
    await tenant.runs("golden")
    await tenant._make(Image.KIND, "mine", {"source": {"volume": "golden-root"}, "format": "qcow2"})
    assert "golden" in await tenant.says(Image.KIND, "mine", "SourceInUse")
    await tenant._make(Image.KIND, "lost", {"source": {"volume": "none"}, "format": "qcow2"})
    await tenant.says(Image.KIND, "lost", "SourceNotFound")

    await tenant.patch(VirtualMachine.KIND, "golden", powerState="Stopped")
    status = (await ready(tenant, "mine"))["status"]
    assert (status["virtualSize"], status["format"], len(status["sha256"])) == ("4Mi", "qcow2", 64)
    await tenant.delete(VirtualMachine.KIND, "golden")
    await tenant.gone(Volume.KIND, "golden-root")
    for number in range(2):
        await tenant.machine(f"copy-{number}", {"name": "root", "ephemeral": {"image": "mine"}}, on=number)
    for number in range(2):
        await tenant.runs(f"copy-{number}")
