"""What tells Argo CD how the objects of Kumulus are: one script for all kinds that have conditions. Pure.

Argo CD takes a kind without a script for healthy once it is applied, which is right for kinds that nobody has to act upon.
Source: https://argo-cd.readthedocs.io/en/stable/operator-manual/health/
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kumulus.api.base import Resource

SCRIPT = (Path(__file__).parent / "health.lua").read_text(encoding="utf-8")
"""Lua; `obj` is the object, and what it returns has `status` and `message`."""


def has_conditions(kind: type[Resource]) -> bool:
    """Whether its status has conditions."""
    status = kind.model_fields.get("status")
    return "conditions" in getattr(status and status.annotation, "model_fields", {})


def config_map(kinds: Iterable[type[Resource]]) -> dict[str, Any]:
    """What has to be in the ConfigMap `argocd-cm` of Argo CD's namespace, besides what is there."""
    names = sorted(f"{kind.KIND.group}_{kind.KIND.kind}" for kind in kinds if has_conditions(kind))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "argocd-cm",
            "namespace": "argocd",
            "labels": {"app.kubernetes.io/name": "argocd-cm", "app.kubernetes.io/part-of": "argocd"},
        },
        "data": {f"resource.customizations.health.{name}": SCRIPT for name in names},
    }
