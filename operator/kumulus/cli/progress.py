"""How far something is that takes its time, in words. Pure."""

from __future__ import annotations

from kumulus.api.volumes import Progress
from kumulus.cli.amounts import duration, size


def line(at: Progress | None) -> str:
    """`42% of 1.5 GiB, 12 MiB/s, 75s left`, or bytes when the total is not known; empty when nothing is known."""
    if at is None:
        return ""
    said = [f"{100 * at.bytes // at.total}% of {size(at.total)}" if at.total else size(at.bytes)]
    if at.rate:
        said.append(f"{size(at.rate)}/s")
    if at.remaining_seconds is not None:
        said.append(f"{duration(at.remaining_seconds)} left")
    return ", ".join(said)
