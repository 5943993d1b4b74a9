"""What GitOps tools do with objects of Kumulus: apply them again and again, look how they are, remove all of them at once.

Real are the API server, the controllers, the agents with their pools; only the hypervisors are simulated.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.image import Image
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.storage import Volume
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.lab import Lab
from tests.argocd import health
from tests.component.cloud import Cloud, Raw, until
from tests.component.test_placement import hosts_and_controllers
from tests.unit.storage.material import disk, needs_root
from tests.unit.storage.server import Answer

pytestmark = [pytest.mark.cluster, needs_root]

DISK = disk()
KINDS = (VirtualMachine, VirtualMachineSnapshot, Volume, Image, PlacementGroup)


def manifests(url: str, **machine: Any) -> list[Raw]:
    """What is in the repository of a team, whatever needs something else before that."""
    sha256 = hashlib.sha256(DISK).hexdigest()
    source = {"source": {"http": {"url": url}}, "checksum": {"sha256": sha256}, "format": "raw"}
    disks = [{"name": "root", "ephemeral": {"image": "system"}}, {"name": "data", "volume": "data"}]
    web = {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": disks, "stop": {"mode": "Force"}, **machine}
    group = {"policy": "AntiAffinity", "selector": {"matchLabels": {"app": "web"}}}
    made = (
        (VirtualMachineSnapshot, "then", {"vm": "web"}),
        (VirtualMachine, "web", web),
        (PlacementGroup, "apart", group),
        (Volume, "data", {"size": "64Mi"}),
        (Image, "system", source),
    )
    return [
        {
            "apiVersion": f"{kind.KIND.group}/{kind.KIND.version}",
            "kind": kind.KIND.kind,
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": spec,
        }
        for kind, name, spec in made
    ]


class Repository:
    """A GitOps tool, for one namespace."""

    def __init__(self, cluster: NativeCluster, made: Cloud, namespace: str) -> None:
        self._cluster, self._cloud, self._namespace = cluster, made, namespace

    async def apply(self, items: list[Raw]) -> None:
        """Server-side, as Flux and Argo CD do."""
        await self._kubectl("apply", "--server-side", "--field-manager=gitops", items=items)

    async def differs(self, items: list[Raw]) -> str:
        """What `kubectl diff` prints."""
        return await self._kubectl("diff", "--server-side", "--field-manager=gitops", items=items)

    async def prune(self) -> None:
        """Everything at once, whatever needs what."""
        names = ",".join(f"{kind.KIND.plural}.{kind.KIND.group}" for kind in KINDS)
        await self._kubectl("delete", names, "-l", "app=web", "--wait=false")

    async def live(self) -> list[Raw]:
        found = [await self._cloud.listed(kind.KIND, self._namespace) for kind in KINDS]
        return [
            {"apiVersion": f"{kind.KIND.group}/{kind.KIND.version}", "kind": kind.KIND.kind, **item}
            for kind, items in zip(KINDS, found, strict=True)
            for item in items
        ]

    async def shown(self) -> dict[str, str]:
        """How Argo CD shows each."""
        return {item["metadata"]["name"]: health(item)[0] for item in await self.live()}

    async def _kubectl(self, *arguments: str, items: list[Raw] | None = None) -> str:
        more = {} if items is None else {"stdin": json.dumps({"apiVersion": "v1", "kind": "List", "items": items})}
        given = (*arguments, *(() if items is None else ("-f", "-")))
        done = await asyncio.to_thread(self._cluster.kubectl_run, "-n", self._namespace, *given, **more)
        return str(done.stdout)


async def test_it_is_applied_seen_and_pruned(
    cluster_lab: Lab, cluster: NativeCluster, namespace: str, tmp_path: Path
) -> None:
    tag = secrets.token_hex(3)
    async with hosts_and_controllers(cluster_lab, cluster, namespace, tmp_path, tag) as (made, _):
        tool = Repository(cluster, made, namespace)
        wanted = manifests(made.images.on(f"/{namespace}.raw", Answer(DISK)))
        await tool.apply(wanted)

        async def healthy() -> bool:
            shown = await tool.shown()
            return len(shown) == len(wanted) and set(shown.values()) == {"Healthy"}

        await until(healthy, "all are healthy")

        before = await tool.live()
        assert await tool.differs(wanted) == "", "what was applied is what is there"
        await tool.apply(wanted)
        assert await tool.live() == before, "and applying it again writes nothing"
        for item in before:
            spec = [field for field in item["metadata"]["managedFields"] if "f:spec" in field.get("fieldsV1", {})]
            assert [field["manager"] for field in spec] == ["gitops"], "nobody else writes what was asked for"

        await tool.apply(manifests(wanted[-1]["spec"]["source"]["http"]["url"], powerState="Stopped"))
        await until(healthy, "a machine that is off because it is to be off is well")

        await tool.prune()

        async def gone() -> bool:
            return not await tool.live()

        await until(gone, "all is gone, in the order in which it may go")
        for host in made.hosts.values():
            assert not host.machine.domains and not list((host.directory / "pools").rglob("*.qcow2"))
