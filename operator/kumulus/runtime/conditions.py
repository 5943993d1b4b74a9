"""Deriving the list of conditions: what changed keeps its time right, what did not stays as it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.base import Condition, ConditionStatus

MESSAGE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Fact:
    """What a pass found about one aspect. `status` None means that the condition does not apply: it is dropped."""

    type: str
    status: bool | ConditionStatus | None
    reason: str = ""
    message: str = ""


def derive(before: Iterable[Condition], facts: Iterable[Fact], *, generation: int, now: str) -> tuple[Condition, ...]:
    """The new conditions, in the order of `facts`. Aspects that `facts` does not name are dropped.

    `now` (RFC 3339) becomes the transition time of those whose status changed.
    """
    old = {condition.type: condition for condition in before}
    result = []
    for fact in facts:
        if fact.status is None:
            continue
        status = fact.status
        if not isinstance(status, ConditionStatus):
            status = ConditionStatus.TRUE if status else ConditionStatus.FALSE
        previous = old.get(fact.type)
        since = previous.last_transition_time if previous and previous.status is status else now
        result.append(
            Condition(
                type=fact.type,
                status=status,
                observed_generation=generation,
                last_transition_time=since,
                reason=fact.reason or str(status),
                message=fact.message[:MESSAGE_MAX],
            )
        )
    return tuple(result)
