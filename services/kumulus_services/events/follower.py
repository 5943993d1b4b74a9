"""Watches one kind, from where it was left. When that is not known any more: reads all, and compares with what was told."""

from __future__ import annotations

import asyncio
import random

import structlog

from kumulus.api.base import Resource
from kumulus.kube.client import KubeClient, Raw
from kumulus.kube.errors import WATCH_PASSING, ApiError, Gone, KubeError
from kumulus.kube.reflector import BACK_OFF_FIRST
from kumulus_services.events import metrics
from kumulus_services.events.journal import Journal
from kumulus_services.events.recorder import Moved, Recorder, Seen

log = structlog.get_logger(__name__)

BACK_OFF_MOST = 8.0


class Follower:
    """Of one kind. What it sees goes to the recorder."""

    def __init__(self, client: KubeClient, journal: Journal, recorder: Recorder, model: type[Resource]) -> None:
        self._client = client
        self._journal = journal
        self._recorder = recorder
        self._kind = model.KIND
        self.synced = asyncio.Event()
        """Set when the journal has once been equal to what there is."""

    async def run(self) -> None:
        """Follow until cancelled. What fails is logged and tried again."""
        name = self._kind.kind
        pause = BACK_OFF_FIRST
        version = self._journal.position(name)
        while True:
            try:
                if version is None:
                    version = await self._read()
                self.synced.set()
                async for event in self._client.watch(self._kind, since=version):
                    version, pause = event.object["metadata"]["resourceVersion"], BACK_OFF_FIRST
                    if event.type == "BOOKMARK":
                        await self._recorder.put(Moved(name, version))
                    else:
                        await self._recorder.put(Seen(name, event.object, gone=event.type == "DELETED"))
            except Gone:
                log.info("read anew", kind=name, since=version)
                version = None
                await asyncio.sleep(random.uniform(0, BACK_OFF_FIRST))  # noqa: S311 - spread, not secret
            except KubeError as error:
                log.warning("not followed", kind=name, error=str(error), again_in=pause)
                if isinstance(error, ApiError) and error.status not in WATCH_PASSING:
                    version = None
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, BACK_OFF_MOST)

    async def _read(self) -> str:
        """Read all, and compare with what was told; the version as of which that is. What nobody was ever told of is
        where it begins, and no news."""
        name = self._kind.kind
        await self._recorder.settled()
        pages: list[list[Raw]] = []
        version = ""
        async for page, as_of in self._client.list_pages(self._kind):
            pages.append(page)
            version = as_of
        metrics.RELISTS.labels(name).inc()
        self._recorder.compare(name, pages, version, silent=self._journal.position(name) is None)
        return version
