"""Health, readiness and metrics over HTTP: /healthz, /readyz, /metrics. Serves nothing else.

Served in a thread and loop of its own, so that it can tell when the process's loop is stuck. Metrics are looked up in
threads beside it, so that health is told meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from kumulus.runtime.exposition import Exposition
from kumulus.runtime.pulse import PATIENCE, Pulse

Check = Callable[[], str | None]
"""Why something is not well, or None. Called in another thread: it looks at values, and changes nothing."""

STOP_SECONDS = 5.0


@asynccontextmanager
async def serve(
    port: int,
    *,
    healthy: Mapping[str, Check],
    ready: Mapping[str, Check],
    address: str = "127.0.0.1",
    patience: float = PATIENCE,
    exposition: Exposition | None = None,
) -> AsyncIterator[int]:
    """Serve until the context ends; yields the port (0 asks for a free one).

    A process is healthy while the loop of the caller turns (it may be stuck for `patience` seconds) and no check of
    `healthy` finds anything. `exposition` says what `/metrics` answers; those of the process when empty. Raises `OSError` when the port is taken.
    """
    pulse = Pulse(patience=patience)
    application = _application({"loop": pulse.why, **healthy}, ready, exposition or Exposition())
    started: Future[tuple[int, Callable[[], object]]] = Future()

    async def work() -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            await runner.setup()
            await web.TCPSite(runner, address, port).start()
        except BaseException as error:
            await runner.cleanup()
            started.set_exception(error)
            return
        started.set_result((runner.addresses[0][1], lambda: loop.call_soon_threadsafe(ended.set)))
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="health", daemon=True)
    thread.start()
    given, end = await asyncio.wrap_future(started)
    pulse.start()
    try:
        yield given
    finally:
        pulse.stop()
        end()
        await asyncio.to_thread(thread.join, STOP_SECONDS)


def _application(healthy: Mapping[str, Check], ready: Mapping[str, Check], exposition: Exposition) -> web.Application:
    def answer(checks: Mapping[str, Check]) -> web.Response:
        found = {name: check() for name, check in checks.items()}
        lines = [f"[{'-' if why else '+'}]{name} {why or 'ok'}" for name, why in found.items()]
        return web.Response(status=503 if any(found.values()) else 200, text="\n".join(lines) + "\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(healthy)

    async def readyz(_: web.Request) -> web.Response:
        return answer(ready)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return application
