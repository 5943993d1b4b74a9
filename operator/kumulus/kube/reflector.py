"""Keeps a store equal to what the API server has: list, watch, list again when the watch cannot go on.

For agents, and for what changes too often to pass through kopf (leases). Runs until cancelled.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Generic, TypeVar

import structlog

from kumulus.api.base import Kind, Resource
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import WATCH_PASSING, ApiError, Gone, KubeError
from kumulus.kube.store import Key, Store, key_of

R = TypeVar("R", bound=Resource)

log = structlog.get_logger(__name__)

BACK_OFF_FIRST = 0.5
BACK_OFF_MOST = 4.0


async def fill(
    store: Store[R],
    client: KubeClient,
    kind: Kind,
    namespace: str | None,
    fields: str | None = None,
    labels: str | None = None,
) -> str:
    """List everything into the store and forget what is gone; returns the list's resource version. A server that is further
    back than what it had shown before is another one, or was restored: nothing that the store has counts then."""
    seen: list[Key] = []
    version, had = "", store.newest()
    async for items, page_version in client.list_pages(kind, namespace, fields=fields, labels=labels):
        if not version and page_version.isdigit() and int(page_version) < had:
            log.warning("the API server is behind what it was: read anew", kind=kind.kind, at=page_version, was=had)
            store.clear()
        for raw in items:
            take(store, raw)
            seen.append(key_of(raw))
        version = page_version
    store.retain(seen, version)
    store.synced = True
    return version


def take(store: Store[R], raw: dict[str, Any]) -> bool:
    """Take an object into the store, without what nobody reads; one that its model cannot read is logged and left out."""
    raw["metadata"].pop("managedFields", None)
    try:
        return store.apply(raw)
    except ValueError as error:
        metadata = raw["metadata"]
        log.error(
            "unreadable object",
            kind=store.model.KIND.kind,
            namespace=metadata.get("namespace"),
            name=metadata.get("name"),
            error=str(error)[:500],
        )
        return False


class Reflector(Generic[R]):
    """One list and watch."""

    def __init__(
        self,
        store: Store[R],
        client: KubeClient,
        namespace: str | None = None,
        *,
        fields: str | None = None,
        labels: str | None = None,
    ) -> None:
        self._store = store
        self._client = client
        self._namespace = namespace
        self._fields = fields
        self._labels = labels
        self.synced = asyncio.Event()
        self._doubts = self._settled = 0

    def doubt(self) -> None:
        """What the server has may not be what it had: all is listed anew, with the next word of the watch or when it ends."""
        self._doubts += 1

    @property
    def sure(self) -> bool:
        """Whether everything was listed, and nobody has doubted it since."""
        return self.synced.is_set() and self._doubts == self._settled

    async def run(self) -> None:
        """Reflect until cancelled. Errors are logged and waited out; the store keeps what it knew."""
        kind = self._store.model.KIND
        pause = BACK_OFF_FIRST
        version: str | None = None
        while True:
            try:
                if version is None or self._doubts != self._settled:
                    doubts = self._doubts
                    version = await fill(self._store, self._client, kind, self._namespace, self._fields, self._labels)
                    self._settled = doubts
                    self.synced.set()
                async for event in self._client.watch(
                    kind,
                    self._namespace,
                    since=version,
                    fields=self._fields,
                    labels=self._labels,
                ):
                    version = event.object["metadata"]["resourceVersion"]
                    pause = BACK_OFF_FIRST
                    if event.type == "DELETED":
                        # By its version, because what fits a selector no more may fit it again.
                        self._store.remove(key_of(event.object), event.object["metadata"].get("uid"), as_of=version)
                    elif event.type != "BOOKMARK":
                        take(self._store, event.object)
                    if self._doubts != self._settled:
                        break
            except Gone:
                version = None
                await asyncio.sleep(random.uniform(0, BACK_OFF_FIRST))  # noqa: S311 - spread, not secret
            except KubeError as error:
                log.warning("watch broken", kind=kind.kind, namespace=self._namespace, error=str(error), again_in=pause)
                if isinstance(error, ApiError) and error.status not in WATCH_PASSING:
                    version = None
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, BACK_OFF_MOST)
