"""The smallest merge patch from what is to what is wanted; nothing when nothing differs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes `after` of `before`. Lists are replaced whole. Empty when equal."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(before[key], Mapping):
            nested = merge_patch(before[key], value)
            if nested:
                patch[key] = nested
        elif before[key] != value:
            patch[key] = value
    return patch
