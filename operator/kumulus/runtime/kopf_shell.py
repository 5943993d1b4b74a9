"""kopf as the shell that watches: raw events of the watched kinds go into the stores, nothing else.

The only module that imports kopf. It runs in a thread and loop of its own, because kopf at its end
cancels every task of its loop. No state-tracking handlers, timers, indices or peering (each costs
writes or memory per object; see `docs/adr/0002-kopf-as-a-shell.md`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import aiohttp
import kopf
import structlog
import uvloop

from kumulus.api.base import Kind
from kumulus.kube.connector import Connector
from kumulus.runtime.pulse import Pulse

log = structlog.get_logger(__name__)

WATCH_SECONDS = 1800
"""How long kopf's watches last: each costs a request to begin anew, and there are thirty of them. One that says nothing, not
even a bookmark, for 70 s it begins anew earlier (`settings.watching.inactivity_timeout`)."""

Feed = Callable[[Kind, str | None, dict[str, Any]], None]
"""Called in the process's own loop with kind, type (None when listed, else ADDED, MODIFIED, DELETED) and object."""


GUARD_SECONDS = 2.0
WATCHER = "watcher for "
"""How the names of kopf's tasks begin that watch a kind."""


class _NoMemory(kopf.DiffBaseStorage):
    """Nothing to compare an object with: kopf would copy and clean every object it sees, which was a third of its time."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        raise NotImplementedError("no handler here keeps state in an object")


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.initial_streaming = False
    settings.persistence.diffbase_storage = _NoMemory()
    settings.persistence.progress_storage = kopf.StatusProgressStorage(name="kumulus")
    settings.queueing.idle_timeout = 1
    settings.networking.request_timeout = 30
    # By default the pauses grow to 21 s, and so would the time in which nobody notices that the API server is back.
    settings.networking.error_backoffs = (0.2, 0.5, *([1.0] * 600))
    return settings


def _session(info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
    """kopf's connections, as it would make them itself, but for a pool whose sockets are gone when it is closed."""
    connector = Connector(limit=0, ssl=info.as_ssl_context())
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        aiohttp_session=aiohttp.ClientSession(
            connector=connector, headers=info.as_http_headers(), proxy=info.proxy_url, trust_env=info.trust_env
        ),
    )


class KopfShell:
    """Watches kinds cluster-wide until stopped."""

    def __init__(self, kinds: list[Kind], feed: Feed, identity: str) -> None:
        # Named, because kopf would ask for the user's name, which a container's uid need not have.
        self._identity = identity
        self._kinds = kinds
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failed = asyncio.Event()
        """Set when kopf ended without being asked to."""
        self._pulse = Pulse()

    def start(self) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._thread.start()

    def why(self) -> str | None:
        """Why it does not watch although it was started and not stopped; None when it does. From any thread."""
        if self._thread is None or self._stop.is_set():
            return None
        return self._pulse.why() if self._thread.is_alive() else "ended by itself; see the log"

    async def stop(self) -> None:
        """Stop watching; returns when kopf has ended, or after 10 s."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10.0)

    def _run(self) -> None:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
            info = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
            return _session(info) if info is not None else None

        for kind in self._kinds:
            self._register(registry, kind)
        try:
            uvloop.run(self._operate(registry))
        except Exception:
            log.exception("kopf ended")
        if not self._stop.is_set():
            self._loop.call_soon_threadsafe(self.failed.set)

    async def _operate(self, registry: kopf.OperatorRegistry) -> None:
        self._pulse.start()
        guard = asyncio.create_task(self._guard(), name="guard of the watches")
        try:
            await kopf.operator(
                registry=registry,
                settings=_settings(),
                clusterwide=True,
                standalone=True,
                identity=cast(Any, self._identity),
                stop_flag=self._stop,
            )
        finally:
            guard.cancel()

    async def _guard(self) -> None:
        """Notice a watch that ended. kopf tells nobody but the log, and goes on without it; what it then does to end
        need not come to an end either."""
        seen: set[str] = set()
        while True:
            await asyncio.sleep(GUARD_SECONDS)
            now = {name for task in asyncio.all_tasks() if (name := task.get_name()).startswith(WATCHER)}
            if (gone := seen - now) and not self._stop.is_set():
                log.error("watches ended", of=sorted(name.removeprefix(WATCHER) for name in gone))
                self._loop.call_soon_threadsafe(self.failed.set)
                return
            seen |= now

    def _register(self, registry: kopf.OperatorRegistry, kind: Kind) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"{kind.plural}-{kind.group}")
        async def seen(event: Any, **_: Any) -> None:  # a plain function would take a thread an event
            if not self._stop.is_set():
                self._loop.call_soon_threadsafe(self._feed, kind, event["type"], dict(event["object"]))
