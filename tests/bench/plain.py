"""Plain kinds for baselines: no schema, no rules, no printer columns, so that a write costs as little as it can."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from kumulus.api.base import Kind
from kumulus_lab.cluster import NativeCluster

GROUP = "bench.kumulus.io"

MACHINE = Kind(group=GROUP, version="v1", kind="PlainMachine", plural="plainmachines")
INSTANCE = Kind(group=GROUP, version="v1", kind="PlainInstance", plural="plaininstances")
POD = Kind(group=GROUP, version="v1", kind="PlainPod", plural="plainpods")

_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def definition(kind: Kind) -> dict[str, Any]:
    """Its CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {"kind": kind.kind, "plural": kind.plural, "singular": kind.kind.lower()},
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _OPEN},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


async def install(cluster: NativeCluster) -> None:
    """The API server serves them."""

    def apply() -> None:
        documents = [definition(kind) for kind in (MACHINE, INSTANCE, POD)]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        cluster.kubectl_run("apply", "--server-side", "-f", "-", stdin=text)
        names = [f"crd/{document['metadata']['name']}" for document in documents]
        cluster.kubectl_run("wait", "--for=condition=Established", "--timeout=30s", *names)

    await asyncio.to_thread(apply)


def filler(size: int) -> str:
    """Text of so many bytes that does not repeat in the way JSON does."""
    return "0123456789abcdef" * (size // 16)
