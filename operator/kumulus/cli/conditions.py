"""Conditions for people: what is so, since when, and the sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from kumulus.api.base import Condition, ConditionStatus
from kumulus.cli.amounts import age
from kumulus.cli.output import Printer
from kumulus.cli.terminal import one_line

_COLOURS = {ConditionStatus.TRUE: "green", ConditionStatus.FALSE: "yellow", ConditionStatus.UNKNOWN: "magenta"}
_BAD_WHEN_TRUE = frozenset({"Stalled", "Paused", "CredentialsExpiring", "Isolated"})
_QUIET_WHEN_TRUE = frozenset({"Reconciling"})


def show(printer: Printer, conditions: Sequence[Condition], now: datetime) -> None:
    """A line each, with its message below; a message that several share is told once."""
    printer.heading("Conditions")
    if not conditions:
        printer.line("  none yet: no controller has looked at it")
        return
    kinds = max(len(c.type) for c in conditions)
    reasons = max(len(c.reason) for c in conditions)
    said: set[str] = set()
    for condition in conditions:
        since = age(condition.last_transition_time, now)
        text = Text(f"  {one_line(condition.type):<{kinds}}  ")
        text.append(f"{condition.status:<7}", style=_style(condition))
        text.append(f"  {one_line(condition.reason):<{reasons}}  {since}")
        text.rstrip()
        printer.out.print(text, soft_wrap=True)
        if condition.message and condition.message not in said:
            said.add(condition.message)
            printer.indented(one_line(condition.message), by=6)


def _style(condition: Condition) -> str:
    if condition.type in _QUIET_WHEN_TRUE:
        return ""
    if condition.type in _BAD_WHEN_TRUE:
        return "yellow" if condition.status is ConditionStatus.TRUE else "green"
    return _COLOURS[condition.status]
