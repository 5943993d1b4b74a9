"""What a manifest says is in a registry, and which of its layers is the disk image. Pure.

Manifests come from people nobody trusts: what is read of one is bounded by who fetches it, and all
of it is checked for its type here. Sources: OCI image spec 1.1, Docker image manifest version 2,
schema 2; KubeVirt's containerDisk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kumulus.api.image import Compression, ImageFormat, OciLayout
from kumulus.api.image_order import OciFetch
from kumulus_agents.storage.oci.reference import DIGEST
from kumulus_agents.storage.protocol import StorageError

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONTAINERS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
"""Configurations of container images; what has another one is an artifact."""

_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer(?:\.nondistributable)?\.v1\.tar|docker\.image\.rootfs\.diff\.tar)(?:[.+](gzip|zstd))?"
)
_TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "armv7l": "arm"}
_SUFFIXES = {
    ImageFormat.QCOW2: (".qcow2", ".qcow", ".img"),
    ImageFormat.RAW: (".raw", ".img"),
    ImageFormat.VMDK: (".vmdk",),
    ImageFormat.VHD: (".vhd", ".vpc"),
    ImageFormat.VHDX: (".vhdx",),
    ImageFormat.ISO: (".iso",),
}
_PACKED = {
    Compression.NONE: "",
    Compression.GZIP: ".gz",
    Compression.XZ: ".xz",
    Compression.ZSTD: ".zst",
    Compression.BZIP2: ".bz2",
}
_MOST = 1024
"""Manifests in an index, layers in a manifest."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in a registry, and how the disk image is packed in them."""

    digest: str
    """`sha256:` and 64 hexadecimal digits."""
    size: int
    packing: str
    """As `unpacking` has it: a compression, or `tar`, `tar+gzip`, `tar+zstd` for a container's layer."""


@dataclass(frozen=True, slots=True)
class Next:
    """Another manifest, to which an index points."""

    digest: str


def unfit(why: str) -> StorageError:
    """The refusal of a manifest."""
    return StorageError(f"The registry's manifest is refused: {why}.", reason="ManifestRejected", retryable=False)


def read(body: bytes, wanted: OciFetch, form: ImageFormat) -> Blob | Next:
    """The blob that the manifest names as the disk image, or the manifest for the wanted architecture. Raises `StorageError`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise unfit("it is not JSON") from None
    if not isinstance(found, dict):
        raise unfit("it is not an object")
    if found.get("schemaVersion") != 2:
        raise unfit("it is not of schema version 2")
    kind = found.get("mediaType")
    if kind in INDEXES or (kind is None and "manifests" in found):
        return _of_architecture(_entries(found, "manifests"), wanted.architecture)
    if kind is not None and kind not in MANIFESTS:
        raise unfit("its media type is neither an image's nor an index's")
    layers = _entries(found, "layers")
    config = found.get("config")
    container = isinstance(config, dict) and config.get("mediaType") in _CONTAINERS
    if wanted.layout is not OciLayout.AUTO:
        container = wanted.layout is OciLayout.CONTAINER_DISK
    if container:
        return _container_disk(layers, wanted.compression)
    return _artifact(layers, wanted.compression, form)


def _entries(found: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    entries = found.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise unfit(f"its {name} are not a list of objects")
    if len(entries) > _MOST:
        raise unfit(f"it has more than {_MOST} {name}")
    return entries


def _of_architecture(entries: list[Mapping[str, object]], architecture: str) -> Next:
    wanted = _ARCHITECTURES.get(architecture, architecture)
    for entry in entries:
        platform = entry.get("platform")
        if (
            entry.get("mediaType") in MANIFESTS
            and isinstance(platform, dict)
            and platform.get("architecture") == wanted
            and platform.get("os") in ("linux", None)
        ):
            return Next(_digest(entry))
    raise StorageError(
        f"The registry has no image for {architecture} under this reference. Correct spec.architecture or the reference.",
        reason="SourceNotFound",
    )


def _container_disk(layers: list[Mapping[str, object]], compression: Compression) -> Blob:
    """The largest layer: the disk is what a containerDisk is made of."""
    if compression is not Compression.NONE:
        raise unfit("it is a container image, for which spec.compression has no meaning: set it to None")
    blobs = []
    for layer in layers:
        match = _LAYER.fullmatch(str(layer.get("mediaType")))
        if match is not None:
            blobs.append(Blob(_digest(layer), _size(layer), f"tar+{match[1]}" if match[1] else "tar"))
    if not blobs:
        raise unfit("it is a container image without a layer that could have a disk")
    return max(blobs, key=lambda blob: blob.size)


def _artifact(layers: list[Mapping[str, object]], compression: Compression, form: ImageFormat) -> Blob:
    """The only layer, or of several the only one whose title ends like a file of the format."""
    files = [layer for layer in layers if _annotation(layer, _UNPACK) != "true"]
    if len(files) > 1:
        suffixes = tuple(suffix + _PACKED[compression] for suffix in _SUFFIXES[form])
        files = [layer for layer in files if _annotation(layer, _TITLE).lower().endswith(suffixes)]
    if len(files) != 1:
        raise unfit(
            f"of its {len(layers)} layers {len(files)} may be the disk image:"
            f" push one file, or give the file, and no other, a title that ends with .{form}"
        )
    return Blob(_digest(files[0]), _size(files[0]), compression)


def _annotation(layer: Mapping[str, object], name: str) -> str:
    annotations = layer.get("annotations")
    value = annotations.get(name) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""


def _digest(entry: Mapping[str, object]) -> str:
    digest = entry.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise unfit("it names something by another digest than SHA-256")
    return digest


def _size(entry: Mapping[str, object]) -> int:
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 62:
        raise unfit("it does not say how large a layer is")
    return size
