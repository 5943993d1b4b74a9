"""What the agent asks of the code behind each type of work order."""

from __future__ import annotations

from typing import Protocol

from kumulus.api.host import WorkOrder
from kumulus.runtime.result import Result


class Performer(Protocol):
    """Performs the work orders of one type."""

    async def perform(self, order: WorkOrder) -> Result:
        """One pass: bring the host closer to what the order asks and report. Returns soon; what takes long goes on
        beside it. May be repeated at any time; a crash at any line is healed by the next pass.

        Raises `KubeError` when the API server could not be told.
        """

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
