"""Registries: what is resolved, who is told what, and everything that is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from kumulus.api.image import Compression, ImageFormat, OciLayout
from kumulus.api.image_order import OciFetch
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.oci import client, reference
from kumulus_agents.storage.oci import manifest as manifests
from kumulus_agents.storage.oci.manifest import Blob, Next
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import Login, RegistrySource, StorageError
from tests.unit.storage.conftest import FORBIDDEN, SERVER
from tests.unit.storage.material import MIB, disk, ignore
from tests.unit.storage.registry import (
    CONTAINER,
    REPOSITORY,
    TAR_GZIP,
    Registry,
    artifact,
    container,
    described,
    digest,
    index,
    manifest,
    unknown,
)
from tests.unit.storage.server import Answer, Server, certificate, serving
from tests.unit.storage.test_fetch import no_time

BODY = disk()
SHA = hashlib.sha256(BODY).hexdigest()
LOGIN = Login("robot", "s3cret")
BASIC = "Basic " + base64.b64encode(b"robot:s3cret").decode()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, ssl.SSLContext]:
    (tmp_path / "tls").mkdir()
    return certificate(tmp_path / "tls", SERVER)


@pytest.fixture
async def registry(tls: tuple[str, ssl.SSLContext]) -> AsyncIterator[Registry]:
    async with serving(SERVER, tls=tls[1]) as server:
        yield Registry(server, tls[0])


@pytest.fixture
async def elsewhere(tls: tuple[str, ssl.SSLContext]) -> AsyncIterator[Server]:
    """Another server: a token service, or where blobs are."""
    async with serving(SERVER, tls=tls[1]) as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with Directory.trusted(PurePosixPath(tmp_path)) as made:
        yield made


class Host:
    """Fetches into a part."""

    def __init__(self, directory: Directory, settings: Any) -> None:
        self.directory, self.limits = directory, settings.fetch

    async def bring(self, source: RegistrySource, image: Any = None) -> tuple[str, str, str]:
        """What it was resolved to, how it is packed, and what has arrived adds up to."""
        part = await Part.open(self.directory, "part", Claims("local"))
        try:
            fetcher = Fetcher(self.limits, sleep=no_time)
            found = await client.bring(fetcher, source, image or unknown(), part, Pace(ignore), self.limits.max_bytes)
            return *found, part.digest()
        finally:
            part.close()

    async def refused(self, source: RegistrySource, image: Any = None) -> StorageError:
        with pytest.raises(StorageError) as refused:
            await self.bring(source, image)
        return refused.value


@pytest.fixture
def host(directory: Directory, settings: Any) -> Host:
    return Host(directory, settings)


def redirect(url: str) -> Answer:
    return Answer(status=307, headers=(("Location", url),))


def challenge(value: str) -> Answer:
    return Answer(b"{}", status=401, headers=(("WWW-Authenticate", value),))


# What is resolved


async def test_an_artifact_by_its_tag(registry: Registry, host: Host) -> None:
    pushed = artifact(BODY)
    registry.blob(BODY)
    registry.manifest(pushed, "12")
    assert await host.bring(registry.source()) == (digest(pushed), "None", SHA)
    assert await host.bring(registry.source()) == (digest(pushed), "None", SHA)
    assert len(registry.server.asked(f"/v2/{REPOSITORY}/blobs/{digest(BODY)}")) == 1, "it is there already"


async def test_of_several_architectures_the_one_asked_for(registry: Registry, host: Host) -> None:
    other, mine = artifact(b"other"), artifact(BODY)
    both = index(arm64=other, amd64=mine)
    registry.blob(BODY)
    for data in (other, mine):
        registry.manifest(data)
    registry.manifest(both, "latest")
    assert await host.bring(registry.source("")) == (digest(both), "None", SHA)
    error = await host.refused(registry.source("", architecture="riscv64"))
    assert error.reason == "SourceNotFound" and "riscv64" in str(error)


async def test_what_a_tag_meant_before_counts(registry: Registry, host: Host) -> None:
    first, second = artifact(BODY), artifact(b"second")
    registry.blob(BODY)
    registry.manifest(first)
    registry.manifest(second, "12")
    assert (await host.bring(registry.source(digest=digest(first))))[::2] == (digest(first), SHA)
    assert (await host.bring(registry.source(f":12@{digest(first)}")))[::2] == (digest(first), SHA)


async def test_a_cut_blob_is_resumed_and_one_of_an_older_tag_is_not(registry: Registry, host: Host) -> None:
    old = b"x" * MIB
    registry.blob(old, Answer(old, cut=5000))
    registry.manifest(artifact(old), "12")
    assert (await host.refused(registry.source())).reason == "SourceUnavailable"
    path = registry.blob(BODY, Answer(BODY, cut=MIB + 5), Answer(BODY))
    registry.manifest(artifact(BODY), "12")
    assert (await host.bring(registry.source()))[2] == SHA
    assert [request.headers.get("range") for request in registry.server.asked(path)] == [None, f"bytes={MIB + 5}-"]


async def test_the_images_own_checksum_counts_too(registry: Registry, host: Host) -> None:
    registry.manifest(artifact(BODY), "12")
    path = registry.blob(BODY)
    wrong = unknown().model_copy(update={"sha256": "0" * 64})
    assert (await host.refused(registry.source(), wrong)).reason == "ChecksumMismatch"
    assert registry.server.asked(path) == []
    right = unknown().model_copy(update={"sha256": SHA})
    assert (await host.bring(registry.source(), right))[2] == SHA


# Who is told what


async def test_a_token_is_fetched_with_the_login_and_sent_to_the_registry_alone(
    registry: Registry, elsewhere: Server, host: Host
) -> None:
    pushed = artifact(BODY)
    realm = elsewhere.url("/token")
    asked = f"/token?scope=repository:{REPOSITORY}:pull&service=registry.example"
    elsewhere.on(asked, Answer(json.dumps({"token": "t0ken"}).encode()))
    path = f"/v2/{REPOSITORY}/manifests/12"
    registry.server.on(
        path,
        challenge(f'Bearer realm="{realm}",service="registry.example",scope="repository:secrets/all:push,pull"'),
        Answer(pushed),
    )
    registry.blob(BODY, redirect(elsewhere.on("/bucket?key=1", Answer(BODY))))
    assert (await host.bring(registry.source(login=LOGIN)))[2] == SHA
    sent = [(request.target, request.headers.get("authorization")) for request in registry.server.requests]
    assert sent == [
        (path, None),
        (path, "Bearer t0ken"),
        (f"/v2/{REPOSITORY}/blobs/{digest(BODY)}", "Bearer t0ken"),
    ]
    assert [(request.target, request.headers.get("authorization")) for request in elsewhere.requests] == [
        (asked, BASIC),
        ("/bucket?key=1", None),
    ]
    kept = b"".join(host.directory.read(name) or b"" for name in ("part", "part.json"))
    assert SHA.encode() in kept
    assert b"s3cret" not in kept and b"t0ken" not in kept and b"key=1" not in kept


async def test_a_token_that_ends_on_the_way_is_renewed(registry: Registry, elsewhere: Server, host: Host) -> None:
    elsewhere.on(
        f"/token?scope=repository:{REPOSITORY}:pull",
        Answer(b'{"token": "one"}'),
        Answer(b'{"access_token": "two"}'),
    )
    asks = challenge(f'Bearer realm="{elsewhere.url("/token")}"')
    registry.manifest(artifact(BODY))
    registry.server.on(f"/v2/{REPOSITORY}/manifests/12", asks, Answer(artifact(BODY)))
    path = registry.blob(BODY, asks, Answer(BODY))
    assert (await host.bring(registry.source()))[2] == SHA
    assert [request.headers["authorization"] for request in registry.server.asked(path)] == ["Bearer one", "Bearer two"]


async def test_name_and_password_where_the_registry_asks_for_them(registry: Registry, host: Host) -> None:
    path = f"/v2/{REPOSITORY}/manifests/12"
    registry.server.on(path, challenge('Basic realm="x"'), Answer(artifact(BODY)))
    registry.blob(BODY)
    assert (await host.bring(registry.source(login=LOGIN)))[2] == SHA
    assert [request.headers.get("authorization") for request in registry.server.asked(path)] == [None, BASIC]


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("scheme", ["basic", "bearer", "negotiate"])
async def test_a_refused_login_is_said(registry: Registry, elsewhere: Server, host: Host, scheme: str, login) -> None:
    elsewhere.on(f"/token?scope=repository:{REPOSITORY}:pull", challenge('Basic realm="token"'))
    realm = elsewhere.url("/token")
    registry.server.on(f"/v2/{REPOSITORY}/manifests/12", challenge(f'{scheme} realm="{realm}"'))
    error = await host.refused(registry.source(login=login))
    assert (error.reason, error.retryable) == ("SourceUnauthorized", True)
    assert "s3cret" not in str(error)
    assert len(elsewhere.requests) + len(registry.server.requests) <= 3


@pytest.mark.parametrize(
    "realm",
    [
        "https://{forbidden}:{port}/token", "http://{server}:{port}/token", "https://0x7f000002:{port}/", "file:///etc/passwd",
        "https://user:pass@{forbidden}/", "https://169.254.169.254/latest", "https://[::1]:{port}/", "/token",
    ],
)  # fmt: skip
async def test_a_token_service_is_checked_like_the_registry(registry, host, realm: str, tmp_path) -> None:
    async with serving(FORBIDDEN, registry.server.port) as canary:
        where = realm.format(forbidden=FORBIDDEN, server=SERVER, port=registry.server.port)
        registry.server.on(f"/v2/{REPOSITORY}/manifests/12", challenge(f'Bearer realm="{where}"'))
        assert (await host.refused(registry.source(login=LOGIN))).reason == "SourceForbidden"
        assert canary.connections == 0
    assert len(registry.server.requests) == 1


@pytest.mark.parametrize(
    "location", ["https://{forbidden}:{port}/x", "http://{server}:{port}/x", "https://2130706434:{port}/", "file:///etc/shadow"]
)  # fmt: skip
@pytest.mark.parametrize("what", ["manifest", "blob"])
async def test_a_redirect_is_checked_like_the_registry(registry, host, what: str, location: str) -> None:
    async with serving(FORBIDDEN, registry.server.port) as canary:
        where = location.format(forbidden=FORBIDDEN, server=SERVER, port=registry.server.port)
        registry.manifest(artifact(BODY), "12")
        registry.blob(BODY, redirect(where))
        if what == "manifest":
            registry.server.on(f"/v2/{REPOSITORY}/manifests/12", redirect(where))
        assert (await host.refused(registry.source())).reason == "SourceForbidden"
        assert canary.connections == 0


async def test_a_registry_at_a_closed_address_is_never_asked(registry, host) -> None:
    async with serving(FORBIDDEN) as canary:
        fetch = registry.source().fetch.model_copy(update={"reference": f"{FORBIDDEN}:{canary.port}/disks/debian:12"})
        assert (await host.refused(RegistrySource(fetch))).reason == "SourceForbidden"
        assert canary.connections == 0


async def test_a_registry_without_a_trusted_certificate_learns_nothing(registry, host) -> None:
    fetch = registry.source().fetch.model_copy(update={"ca_bundle": None})
    assert (await host.refused(RegistrySource(fetch, LOGIN))).reason == "SourceUntrusted"
    assert registry.server.requests == []


# What lies


async def test_a_manifest_that_is_another_one(registry: Registry, host: Host) -> None:
    registry.server.on(f"/v2/{REPOSITORY}/manifests/{digest(b'that')}", Answer(artifact(BODY)))
    error = await host.refused(registry.source(f"@{digest(b'that')}"))
    assert (error.reason, error.retryable) == ("ChecksumMismatch", False)


async def test_a_blob_that_is_another_one(registry: Registry, host: Host) -> None:
    registry.manifest(artifact(BODY), "12")
    registry.blob(BODY, Answer(BODY[:-1] + b"x"))
    error = await host.refused(registry.source())
    assert (error.reason, error.retryable) == ("ChecksumMismatch", False)


async def test_a_blob_without_an_end(registry: Registry, host: Host) -> None:
    registry.manifest(artifact(BODY), "12")
    path = registry.blob(BODY, Answer(BODY + b"x" * MIB * 8, length=False))
    assert (await host.refused(registry.source())).reason == "ImageTooLarge"
    assert len(registry.server.asked(path)) == 1


async def test_a_blob_that_may_not_come_is_not_asked_for(registry: Registry, host: Host) -> None:
    host.limits = host.limits.model_copy(update={"max_bytes": len(BODY) - 1})
    registry.manifest(artifact(BODY), "12")
    path = registry.blob(BODY)
    assert (await host.refused(registry.source())).reason == "ImageTooLarge"
    assert registry.server.asked(path) == []


@pytest.mark.parametrize("length", [True, False])
async def test_a_manifest_of_too_many_bytes(registry: Registry, host: Host, length: bool) -> None:
    large = artifact(BODY, annotations={"x": "y" * (5 * MIB)})
    registry.server.on(f"/v2/{REPOSITORY}/manifests/12", Answer(large, length=length))
    assert (await host.refused(registry.source())).reason == "SourceRefused"


async def test_an_index_of_indexes(registry: Registry, host: Host) -> None:
    inner = index(amd64=artifact(BODY))
    registry.manifest(inner)
    registry.manifest(index(amd64=inner), "12")
    assert (await host.refused(registry.source())).reason == "ManifestRejected"


# Manifests


def read(body: bytes, layout: str = "Auto", form: str = "qcow2", compression: str = "None") -> Blob | Next:
    wanted = OciFetch(
        reference="r.example/x", architecture="x86_64", layout=OciLayout(layout), compression=Compression(compression)
    )
    return manifests.read(body, wanted, ImageFormat(form))


def titled(data: bytes, title: str) -> dict[str, Any]:
    return described(data, "application/octet-stream", annotations={"org.opencontainers.image.title": title})


def test_a_container_image_is_a_container_disk_and_anything_else_an_artifact() -> None:
    assert read(container(b"layer")) == Blob(digest(b"layer"), 5, "tar+gzip")
    assert read(container(b"layer", TAR_GZIP.replace("gzip", "zstd"))) == Blob(digest(b"layer"), 5, "tar+zstd")
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert read(container(b"layer", docker)) == Blob(digest(b"layer"), 5, "tar+gzip")
    assert read(container(b"layer", "application/vnd.oci.image.layer.v1.tar")) == Blob(digest(b"layer"), 5, "tar")
    assert read(artifact(b"file")) == Blob(digest(b"file"), 4, "None")
    assert read(artifact(b"file"), compression="xz") == Blob(digest(b"file"), 4, "xz")
    assert read(container(b"file"), "Artifact") == Blob(digest(b"file"), 4, "None")
    assert read(manifest(described(b"layer", TAR_GZIP)), "ContainerDisk").packing == "tar+gzip"  # type: ignore[union-attr]


def test_of_several_layers_the_largest_of_a_container_and_the_titled_file_of_an_artifact() -> None:
    layers = [described(data, TAR_GZIP) for data in (b"base", b"the disk", b"after")]
    assert read(manifest(*layers, config=CONTAINER)).digest == digest(b"the disk")
    files = [titled(b"note", "README.md"), titled(b"disk", "Debian.QCOW2")]
    assert read(manifest(*files)).digest == digest(b"disk")
    packed = [titled(b"disk", "d.qcow2"), titled(b"packed", "d.qcow2.gz")]
    assert read(manifest(*packed), compression="gzip").digest == digest(b"packed")
    folder = {**described(b"dir", TAR_GZIP), "annotations": {"io.deis.oras.content.unpack": "true"}}
    assert read(manifest(folder, titled(b"disk", "d"))).digest == digest(b"disk")


LAYER = described(b"x", TAR_GZIP)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{", b'{"schemaVersion": 2}', b"[" * 100_000,
        b'{"schemaVersion": 1, "fsLayers": []}',
        manifest(LAYER, mediaType="application/vnd.oci.image.config.v1+json"),
        manifest(LAYER, mediaType=7),
        manifest(LAYER, mediaType="text/html"),
        manifest(), manifest(config=CONTAINER),
        manifest({**LAYER, "mediaType": "application/octet-stream"}, config=CONTAINER),
        manifest({**LAYER, "mediaType": None}, config=CONTAINER),
        manifest(LAYER, LAYER), manifest(titled(b"a", "a.qcow2"), titled(b"b", "b.qcow2")),
        manifest(titled(b"a", "a.iso"), titled(b"b", "b.iso")),
        manifest(*[titled(b"a", "a.qcow2")] * 2000),
        manifest({**LAYER, "digest": "sha512:" + "0" * 128}), manifest({**LAYER, "digest": "sha256:../../../x"}),
        manifest({**LAYER, "digest": ["x"]}), manifest({**LAYER, "size": -1}), manifest({**LAYER, "size": 1 << 70}),
        manifest({**LAYER, "size": True}), manifest({**LAYER, "size": "9"}), manifest({**LAYER, "size": 0}),
        manifest(layers={"0": LAYER}), manifest(layers=["x"]),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(body: bytes) -> None:
    with pytest.raises(StorageError) as refused:
        read(body)
    assert (refused.value.reason, refused.value.retryable) == ("ManifestRejected", False)


def test_a_container_disk_is_not_packed_a_second_time() -> None:
    with pytest.raises(StorageError, match=r"spec\.compression"):
        read(container(b"x"), compression="gzip")


def test_attestations_are_no_images() -> None:
    entry = described(
        b"x", "application/vnd.oci.image.manifest.v1+json", platform={"os": "unknown", "architecture": "unknown"}
    )
    both = json.dumps(
        {"schemaVersion": 2, "manifests": [entry, {**entry, "platform": {"architecture": "amd64", "os": "linux"}}]}
    )
    assert read(both.encode()) == Next(digest(b"x"))


# References


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("quay.io/containerdisks/debian:12", ("quay.io", "containerdisks/debian", "12", None)),
        ("quay.io/a", ("quay.io", "a", "latest", None)),
        ("localhost:5000/a_b/c--d.e:V_1.0-x", ("localhost:5000", "a_b/c--d.e", "V_1.0-x", None)),
        (f"10.0.0.1:5000/a@sha256:{'0' * 64}", ("10.0.0.1:5000", "a", "latest", f"sha256:{'0' * 64}")),
        (f"r.example/a:1@sha256:{'0' * 64}", ("r.example", "a", "1", f"sha256:{'0' * 64}")),
        ("docker.io/debian", ("registry-1.docker.io", "library/debian", "latest", None)),
        ("docker.io/me/debian:1", ("registry-1.docker.io", "me/debian", "1", None)),
    ],
)
def test_references(text: str, found: tuple[Any, ...]) -> None:
    made = reference.parse(text)
    assert (made.registry, made.repository, made.tag, made.digest) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "debian", "debian:12", "library/debian", "https://quay.io/a", "quay.io/", "quay.io//a", "quay.io/A", "quay.io/../a",
        "quay.io/a/..", "quay.io/a:", "quay.io/a:b:c", "quay.io/a@", "quay.io/a@sha256:0", f"quay.io/a@sha512:{'0' * 128}",
        "quay.io/a?x", "quay.io/a#x", "user@quay.io/a", "quay.io:x/a", "quay.io/a b", "quay.io/a\n", "quay.io\\a/b", "[::1]:5000/a",
        "quay.io/a:1/b", "quay.io/%2e%2e/a",
    ],
)  # fmt: skip
def test_no_references(text: str) -> None:
    with pytest.raises(StorageError) as refused:
        reference.parse(text)
    assert refused.value.reason == "SourceForbidden"
