"""Which events a sink gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus.api.events import EventFilter
from kumulus_services.events.envelope import Change
from kumulus_services.events.transitions import type_of


def visible(home: str, namespace: str | None) -> bool:
    """Whether a sink in the namespace `home` may get events of objects in `namespace` (None: of the cluster)."""
    return home == PLATFORM_NAMESPACE or namespace == home


def wanted(filter_: EventFilter, home: str, change: Change) -> frozenset[str]:
    """The types of the change's events that a sink in `home` gets; empty for none."""
    if not visible(home, change.namespace):
        return frozenset()
    if filter_.kinds and change.kind not in filter_.kinds:
        return frozenset()
    if filter_.namespaces and change.namespace not in filter_.namespaces:
        return frozenset()
    if any(change.labels.get(key) != value for key, value in filter_.labels.items()):
        return frozenset()
    types = frozenset(type_of(change.kind, told.verb) for told in change.told)
    return frozenset(type_ for type_ in types if _fits(type_, filter_.types))


def _fits(type_: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        type_.startswith(pattern[:-1]) if pattern.endswith(".*") else type_ == pattern for pattern in patterns
    )
