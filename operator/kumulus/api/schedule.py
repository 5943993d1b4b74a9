"""When a machine that is to run does run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kumulus.api.base import Model

Cron = Annotated[str, Field(pattern=r"^[0-9A-Za-z*/,#-]+( [0-9A-Za-z*/,#-]+){4}$", min_length=9, max_length=128)]
"""Minute, hour, day of the month, month, day of the week, each apart by one blank."""

ZoneName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$", max_length=64)]


class Schedule(Model):
    """Hours in which a machine runs whose powerState is Running: from each start to the stop that follows."""

    start: Cron = Field(description="When it starts, as cron has it: `0 8 * * 1-5` is at 8 from Monday to Friday.")
    stop: Cron = Field(description="When it is stopped, in the same way. At the same moment the stop counts.")
    time_zone: ZoneName = Field(
        default="UTC", description="Time zone of these times, such as `Europe/Berlin`. They follow its summer time."
    )
    suspend: bool = Field(default=False, description="While true the machine runs at any time.")


class ScheduledAction(StrEnum):
    """What a schedule does."""

    START = "Start"
    STOP = "Stop"


class NextAction(Model):
    """What a schedule does next."""

    action: ScheduledAction = Field(description="Start or Stop.")
    at: str = Field(description="When (RFC 3339).")
