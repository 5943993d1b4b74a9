"""What registries have, honest or not: manifests and layers, and a server that answers like one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef, OciFetch
from kumulus_agents.storage.protocol import Login, RegistrySource
from tests.unit.storage.material import uid
from tests.unit.storage.server import Answer, Server

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONTAINER = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
REPOSITORY = "disks/debian"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def described(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest(data), "size": len(data), **more}


def manifest(*layers: dict[str, Any], config: str = EMPTY, **more: Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(b"{}", config),
            "layers": list(layers),
            **more,
        }
    ).encode()


def artifact(data: bytes, **more: Any) -> bytes:
    """As oras pushes a file."""
    return manifest(described(data, "application/vnd.example.disk"), artifactType="application/vnd.example", **more)


def container(layer: bytes, kind: str = TAR_GZIP) -> bytes:
    return manifest(described(layer, kind), config=CONTAINER)


def index(**manifests: bytes) -> bytes:
    """By architecture."""
    entries = [
        described(data, MANIFEST, platform={"os": "linux", "architecture": name}) for name, data in manifests.items()
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer(data: bytes, name: str = "disk/debian.qcow2") -> bytes:
    """A containerDisk's layer, packed."""
    return gzip.compress(tar(entry("disk", kind=tarfile.DIRTYPE), entry(name, data)), 1)


@dataclass
class Registry:
    """Answers like a registry on a server with TLS."""

    server: Server
    bundle: str
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.server.host}:{self.server.port}"

    def blob(self, data: bytes, *answers: Answer) -> str:
        """Have a blob, or what is said in its place; returns its path."""
        path = f"/v2/{REPOSITORY}/blobs/{digest(data)}"
        self.server.on(path, *(answers or (Answer(data),)))
        return path

    def manifest(self, data: bytes, *names: str) -> None:
        """Have a manifest, by its digest and by those names."""
        for name in (digest(data), *names):
            self.server.on(f"/v2/{REPOSITORY}/manifests/{name}", Answer(data))

    def source(self, name: str = ":12", *, login: Login | None = None, **more: Any) -> RegistrySource:
        fetch = {"reference": f"{self.name}/{REPOSITORY}{name}", "architecture": "x86_64", "ca_bundle": self.bundle}
        return RegistrySource(OciFetch.model_validate(fetch | more), login)


def unknown(form: str = "raw") -> ImageRef:
    """An image whose source says what it adds up to."""
    return ImageRef(uid=uid(), format=ImageFormat(form))
