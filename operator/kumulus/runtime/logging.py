"""Structured logs: JSON for machines, columns for people. Never a secret, and nothing from pure code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Literal

import structlog

Format = Literal["json", "console"]


TURN_UP, TURN_DOWN = signal.SIGUSR1, signal.SIGUSR2
"""What a process that runs is sent to log at the level debug, and at the level that it began with."""


def heed_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Change the level while the process runs, when it is told to. In the main thread, after `configure`.

    The loop calls: a handler of Python itself would be called in the middle of a log line, and wait for its own lock.
    """

    def turn(level: str | None) -> None:
        configure(level=level)
        structlog.get_logger(__name__).info("log level changed", now=level or "as it began")

    loop.add_signal_handler(TURN_UP, turn, "debug")
    loop.add_signal_handler(TURN_DOWN, turn, None)


def configure(format_: Format | None = None, level: str | None = None) -> None:
    """Send logs to standard error. Defaults come from $KUMULUS_LOG_FORMAT (json where there is no terminal) and
    $KUMULUS_LOG_LEVEL (info). May be called again."""
    chosen = format_ or os.environ.get("KUMULUS_LOG_FORMAT") or ("console" if sys.stderr.isatty() else "json")
    threshold = logging.getLevelNamesMapping().get((level or os.environ.get("KUMULUS_LOG_LEVEL", "info")).upper(), 20)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if chosen == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.INFO))
    for noisy in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(max(threshold, logging.WARNING))
