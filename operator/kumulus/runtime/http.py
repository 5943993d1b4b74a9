"""Health, readiness and metrics over HTTP: /healthz, /readyz, /metrics. Serves nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]
"""Why something is not well, or None."""


@asynccontextmanager
async def serve(
    port: int, *, healthy: Mapping[str, Check], ready: Mapping[str, Check], address: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve until the context ends; yields the port (0 asks for a free one).

    Raises `OSError` when the port is taken.
    """

    def answer(checks: Mapping[str, Check]) -> web.Response:
        found = {name: check() for name, check in checks.items()}
        lines = [f"[{'-' if why else '+'}]{name} {why or 'ok'}" for name, why in found.items()]
        return web.Response(status=503 if any(found.values()) else 200, text="\n".join(lines) + "\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(healthy)

    async def readyz(_: web.Request) -> web.Response:
        return answer(ready)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
