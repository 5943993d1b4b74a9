"""The manifests in examples/, with the lab's image filled in, and what became of the machines in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kumulus.api.quantity import to_bytes
from kumulus_lab import places
from kumulus_lab.controlplane import ControlPlane
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab
from kumulus_lab.state import Hypervisor

QUICKSTART = places.CHECKOUT / "examples" / "quickstart"
STORAGE = places.CHECKOUT / "examples" / "storage"
"""Goes on where the quickstart ended."""

MOVING = places.CHECKOUT / "examples" / "moving"
"""Goes on where the storage example ended, in two steps, and before there are snapshots."""

SNAPSHOTS = places.CHECKOUT / "examples" / "snapshots"
"""Goes on where the storage example ended; its manifests are steps, one after the other."""

NETWORK = places.CHECKOUT / "examples" / "network"
"""Goes on where the quickstart ended."""

OPERATIONS = places.CHECKOUT / "examples" / "operations"
"""Goes on where the network example ended; its manifests are steps."""

_NOT_STARTED = "Pending"


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine as its status tells."""

    namespace: str
    name: str
    phase: str
    host: str
    why: str
    """What it waits for, in a sentence; empty when there is nothing to say."""
    wanted: str = "Running"

    @property
    def settled(self) -> bool:
        """Whether it is what its owner wants."""
        return self.phase == self.wanted


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """An image as its status tells."""

    name: str
    phase: str
    arrived: int
    total: int | None


def render(lab: Lab, example: Path) -> Path:
    """Write an example's manifests into the lab's directory, with the image's address and checksum."""
    values = _values(lab)
    target = lab.directory / "examples" / example.name
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(example.glob("*.yaml"))
    if not sources:
        raise LabError(f"there are no manifests in {example}")
    for source in sources:
        text = source.read_text()
        for name, value in values.items():
            text = text.replace(f"${{{name}}}", value)
        (target / source.name).write_text(text)
    return target


def apply(cluster: ControlPlane, directory: Path) -> None:
    """Apply the rendered manifests, as a tenant would."""
    try:
        cluster.kubectl_run("apply", "--server-side", "--field-manager=examples", "-f", directory)
    except LabError as error:
        raise LabError(f"{error}\nIf the demo ran with older manifests or images, `make demo-down` first.") from error


def names(directory: Path) -> set[tuple[str, str]]:
    """Namespace and name of the machines in the rendered manifests."""
    found = set()
    for path in directory.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") == "VirtualMachine":
                metadata = document["metadata"]
                found.add((str(metadata.get("namespace", "default")), str(metadata["name"])))
    return found


def machines(cluster: ControlPlane, wanted: set[tuple[str, str]] | None = None) -> list[Machine]:
    """How those machines are now; all that there are when none are named."""
    found: dict[tuple[str, str], Machine] = {}
    for item in _items(cluster, "virtualmachines.compute.kumulus.io"):
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        if wanted is None or key in wanted:
            status = item.get("status", {})
            found[key] = Machine(
                namespace=key[0],
                name=key[1],
                phase=str(status.get("phase", _NOT_STARTED)),
                host=str(status.get("host") or "-"),
                why=_why(status),
                wanted=str(item["spec"].get("powerState", "Running")),
            )
    return [
        found.get(key) or Machine(*key, phase=_NOT_STARTED, host="-", why="")
        for key in sorted(found if wanted is None else wanted)
    ]


def images(cluster: ControlPlane) -> list[ImageProgress]:
    """How far the imports are."""
    found = []
    for kind in ("clusterimages.storage.kumulus.io", "images.storage.kumulus.io"):
        for item in _items(cluster, kind):
            status = item.get("status", {})
            progress = status.get("progress") or {}
            total = progress.get("total")
            found.append(
                ImageProgress(
                    name=item["metadata"]["name"],
                    phase=str(status.get("phase", _NOT_STARTED)),
                    arrived=to_bytes(progress.get("bytes") or 0),
                    total=to_bytes(total) if total else None,
                )
            )
    return found


def _why(status: Mapping[str, Any]) -> str:
    """The first condition that is not as it shall be, as its message."""
    for condition in status.get("conditions", []):
        if condition.get("type") != "Ready" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def _items(cluster: ControlPlane, kind: str) -> Iterator[dict[str, Any]]:
    output = cluster.kubectl_run("get", kind, "--all-namespaces", "-o", "json", check=False).stdout
    yield from json.loads(output or "{}").get("items", [])


def _values(lab: Lab) -> dict[str, str]:
    if lab.state.hypervisor is Hypervisor.SIMULATED:
        # Simulated hosts fetch nothing; the manifest still has to be one that could.
        digest = hashlib.sha256(b"kumulus tiny guest").hexdigest()
        return {"TINY_IMAGE_URL": "http://images.kumulus.example/tiny.qcow2", "TINY_IMAGE_SHA256": digest}
    image = lab.serve_image("tiny")
    return {"TINY_IMAGE_URL": f"{lab.image_url}/tiny.qcow2", "TINY_IMAGE_SHA256": image.sha256}
