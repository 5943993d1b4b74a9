"""The exporter: watches all kinds that users see, and tells every sink. One tells at a time, by a Lease."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from kumulus.api.events import EventSink
from kumulus.kube.client import KubeClient
from kumulus.kube.election import Elector
from kumulus.kube.place import Place
from kumulus.kube.reflector import Reflector
from kumulus.kube.store import Store
from kumulus.runtime.metrics import count_write
from kumulus_services.events import metrics
from kumulus_services.events.follower import Follower
from kumulus_services.events.journal import Journal, Limits
from kumulus_services.events.recorder import Recorder
from kumulus_services.events.settings import EventsSettings
from kumulus_services.events.sinks import Sinks
from kumulus_services.events.transitions import NOUNS

log = structlog.get_logger(__name__)

PRUNE_SECONDS = 20.0
SYNC_SECONDS = 20.0
"""For so long new sinks wait until all kinds were read."""


def now() -> str:
    """This moment, for events: RFC 3339 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Exporter:
    """One exporter, until cancelled."""

    def __init__(self, settings: EventsSettings) -> None:
        self._settings = settings
        self._telling: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Wait for the Lease, then tell. Raises what keeps it from going on; everything is closed then."""
        settings = self._settings
        client = await KubeClient.from_kubeconfig(user_agent="kumulus-events", on_write=count_write)
        settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = Place(settings.directory / "exporter.lock")
        elector = Elector(
            client,
            namespace=settings.namespace,
            name=settings.lease,
            identity=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            duration=settings.lease_seconds,
            place=place,
            on_started=self._start,
            on_stopped=self._stop,
        )
        self._client = client
        campaign = asyncio.create_task(elector.run(), name="election of the exporter")
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait([campaign, lost], return_when=asyncio.FIRST_COMPLETED)
            if campaign.done():
                await campaign
            if self._telling is not None and self._telling.done():
                self._telling.result()
        finally:
            await self._stop()
            for task in (campaign, lost):
                task.cancel()
            await asyncio.gather(campaign, lost, return_exceptions=True)
            await client.close()
            # Last of all, because for whoever gets it this exporter is dead.
            place.leave()

    async def _start(self, _: int) -> None:
        self._telling = asyncio.create_task(self._tell(), name="exporter")
        self._telling.add_done_callback(lambda task: None if task.cancelled() else self._lost.set())

    async def _stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _tell(self) -> None:
        settings, client = self._settings, self._client
        journal = Journal(settings.directory)
        store = Store(EventSink)
        metrics.ACTIVE.set(1)
        try:
            sinks = Sinks(client, journal, store, settings, now)
            recorder = Recorder(journal, now, sinks.wake)
            followers = [Follower(client, journal, recorder, model) for model in NOUNS]
            reflector = Reflector(store, client)
            async with asyncio.TaskGroup() as group:
                group.create_task(recorder.run())
                for follower in followers:
                    group.create_task(follower.run())
                group.create_task(reflector.run())
                with suppress(TimeoutError):
                    async with asyncio.timeout(SYNC_SECONDS):
                        for follower in followers:
                            await follower.synced.wait()
                await reflector.synced.wait()
                log.info("telling events", sinks=len(store))
                group.create_task(sinks.run())
                group.create_task(self._prune(journal))
        finally:
            metrics.ACTIVE.set(0)
            journal.close()

    async def _prune(self, journal: Journal) -> None:
        settings = self._settings
        limits = Limits(settings.journal_changes, settings.namespace_bytes, settings.journal_seconds)
        while True:
            dropped = 0
            for some in journal.prune(limits, time.time()):
                dropped += some
                await asyncio.sleep(0)
            if dropped:
                log.warning("changes dropped that not everybody had", changes=dropped)
            metrics.JOURNAL.set(journal.size())
            await asyncio.sleep(PRUNE_SECONDS)
