"""A process that dies in the middle: its client stops after so many writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kumulus.api.base import Kind
from kumulus.kube.client import KubeClient, Raw
from kumulus_lab.cluster import NativeCluster


class Crash(Exception):
    """The process died here."""


class MortalClient(KubeClient):
    """Dies after so many writes: the write has happened, nobody learned its answer."""

    lives: int | None = None
    writes = 0

    async def _write(self, verb: str, kind: Kind, *args: Any, **more: Any) -> Raw:
        if self.lives is not None and self.writes >= self.lives:
            raise Crash
        answer = await super()._write(verb, kind, *args, **more)
        self.writes += 1
        if self.writes == self.lives:
            raise Crash(f"after the {verb} of a {kind.kind}")
        return answer


@asynccontextmanager
async def mortal(cluster: NativeCluster, lives: int | None) -> AsyncIterator[MortalClient]:
    """A client with so many writes to live; None: it does not die."""
    client = await MortalClient.from_kubeconfig(cluster.kubeconfig, user_agent="test-mortal")
    assert isinstance(client, MortalClient)
    client.lives = lives
    try:
        yield client
    finally:
        await client.close()
