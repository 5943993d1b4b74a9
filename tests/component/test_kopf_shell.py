"""kopf in its thread, on a real API server: what it sees it hands over, and at its end it leaves nothing."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.base import Kind
from kumulus.api.instance_type import InstanceType
from kumulus.api.registry import KINDS
from kumulus.kube.client import KubeClient
from kumulus.runtime.kopf_shell import KopfShell
from kumulus_lab.cluster import NativeCluster
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster


def sockets() -> set[str]:
    """Network connections of this process."""
    links = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    numbers = {line.split()[9] for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]}
    return {link for link in links if link.removeprefix("socket:[").removesuffix("]") in numbers}


async def test_a_shell_hands_over_what_it_sees_and_leaves_no_connection(
    cluster: NativeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    name, seen, before = f"seen-{secrets.token_hex(3)}", asyncio.Event(), sockets()

    def feed(kind: Kind, type_: str | None, raw: dict[str, Any]) -> None:
        if kind.kind == InstanceType.KIND.kind and raw["metadata"]["name"] == name and type_ != "DELETED":
            seen.set()

    shell = KopfShell([resource.KIND for resource in KINDS], feed, "test")
    client = await KubeClient.from_kubeconfig(cluster.kubeconfig, user_agent="test")
    try:
        shell.start()
        spec = {"cpus": 1, "memory": "64Mi"}
        await client.create(InstanceType.KIND, {"metadata": {"name": name}, "spec": spec})
        await asyncio.wait_for(seen.wait(), 30 * PATIENCE)
        assert len(sockets() - before) > len(KINDS) / 2, "a watch a kind"
        await client.delete(InstanceType.KIND, name)
        # A server that says nothing answers no good-bye either.
        cluster.freeze_apiserver()
    finally:
        await client.close()
        await shell.stop()
        left = sockets() - before
        cluster.thaw_apiserver()
    assert not left
