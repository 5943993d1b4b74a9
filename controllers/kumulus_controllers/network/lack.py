"""Why something of a network is not as it shall be, and what a status says of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kumulus.api.base import PAUSED, Resource
from kumulus.runtime.conditions import Fact


@dataclass(frozen=True, slots=True)
class Lack:
    """Why it is not so yet."""

    reason: str
    message: str
    stalled: bool = True
    """Somebody has to do something; False when it will pass by itself."""


def named(item: Resource) -> str:
    """What it is called among others."""
    where = f"{item.namespace}/" if item.namespace is not None else ""
    return f"{item.KIND.kind} {where}{item.name}"


def in_use(users: Sequence[str], more: str) -> Lack:
    """Why something that is to be deleted stays: who uses it, some of them by name. `more`: what to do."""
    some = ", ".join(sorted(users)[:5])
    rest = f" and {len(users) - 5} more" if len(users) > 5 else ""
    return Lack("InUse", f"It goes when nobody uses it: {some}{rest}. {more}")


def left_alone(kind: str, name: str) -> Lack:
    """Why something that is to be deleted stays, and an annotation is why."""
    return Lack(
        "LeftAlone",
        f"The annotation {PAUSED} tells Kumulus to leave the {kind} alone, so it is not removed either. To let it go:"
        f" kubectl annotate {kind} {name} {PAUSED}-",
    )


def facts(lack: Lack | None, reason: str, message: str = "") -> list[Fact]:
    """Ready, and with a lack whether it will pass (kstatus: Reconciling) or not (Stalled)."""
    if lack is None:
        return [Fact("Ready", True, reason, message)]
    return [
        Fact("Ready", False, lack.reason, lack.message),
        Fact("Stalled" if lack.stalled else "Reconciling", True, lack.reason, lack.message),
    ]
