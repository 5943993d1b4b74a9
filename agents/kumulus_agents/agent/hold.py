"""Why an order is not being worked on just now, and when it will be again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.host import WorkOrder, WorkState

RETRY_FIRST = 2.0
RETRY_MOST = 300.0
RETRY_REFUSED = 600.0
"""What cannot succeed by trying again is tried again all the same after so long, in case the host was put right."""
WAIT_FIRST = 1.0
WAIT_MOST = 60.0
MESSAGE_MAX = 4000


@dataclass(frozen=True, slots=True)
class Hold:
    """The last attempt failed, or something is missing: nothing is done before `until`.

    It holds for one version of the order only, so a changed or deleted order is looked at afresh.
    """

    state: WorkState
    """Failed or Waiting."""
    reason: str
    message: str
    until: float
    """Monotonic seconds."""
    attempts: int
    generation: int
    by_network: bool = False
    """It was a network driver that failed."""


def waiting(reason: str, message: str, *, order: WorkOrder, before: Hold | None, now: float) -> Hold:
    """Something is not there yet that will most likely announce itself."""
    attempts = _attempts(before, order)
    until = now + min(WAIT_FIRST * 2.0**attempts, WAIT_MOST)
    return Hold(WorkState.WAITING, reason, message, until, attempts + 1, order.metadata.generation)


def failed(
    reason: str,
    message: str,
    *,
    retryable: bool,
    order: WorkOrder,
    before: Hold | None,
    now: float,
    first: float = RETRY_FIRST,
    by_network: bool = False,
) -> Hold:
    """It went wrong. `first` seconds pass before the second attempt, twice as many before each further one."""
    attempts = _attempts(before, order)
    pause = min(first * 2.0**attempts, RETRY_MOST) if retryable else RETRY_REFUSED
    until, generation = now + pause, order.metadata.generation
    return Hold(WorkState.FAILED, reason, message[:MESSAGE_MAX], until, attempts + 1, generation, by_network)


def current(hold: Hold | None, order: WorkOrder) -> Hold | None:
    """The hold if it is about this version of the order. Setting a deletion timestamp makes a new version as well."""
    return hold if hold is not None and hold.generation == order.metadata.generation else None


def _attempts(before: Hold | None, order: WorkOrder) -> int:
    held = current(before, order)
    return min(held.attempts, 16) if held is not None else 0
