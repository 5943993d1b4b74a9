"""The module `services.events`."""

from __future__ import annotations

import asyncio

import structlog

from kumulus.runtime.modules import Context, Module
from kumulus_services.events.exporter import Exporter
from kumulus_services.events.settings import EventsSettings

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 5.0
_running: set[asyncio.Task[None]] = set()


async def _setup(context: Context) -> None:
    _running.add(asyncio.create_task(_run(context.settings), name="services.events"))


async def _run(settings: EventsSettings) -> None:
    """Run the exporter, and once more when it fails: nobody else in the process is harmed."""
    while True:
        try:
            await Exporter(settings).run()
        except Exception:
            log.exception("the exporter failed", again_in=AGAIN_SECONDS)
        await asyncio.sleep(AGAIN_SECONDS)


async def _stop() -> None:
    for task in _running:
        task.cancel()
    await asyncio.gather(*_running, return_exceptions=True)
    _running.clear()


events = Module(
    description="Every change of what users see, as CloudEvents to EventSinks.",
    setup=_setup,
    stop=_stop,
    settings=EventsSettings,
)
