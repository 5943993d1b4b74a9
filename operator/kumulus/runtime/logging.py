"""Structured logs: JSON for machines, columns for people. Never a secret, and nothing from pure code."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog

Format = Literal["json", "console"]


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
