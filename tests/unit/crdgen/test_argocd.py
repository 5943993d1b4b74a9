"""What Argo CD shows of objects of Kumulus."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.base import PAUSED
from kumulus.api.registry import KINDS
from kumulus.crdgen.argocd import SCRIPT, has_conditions
from tests.argocd import health, scripts


def conditions(generation: int = 2, **status: str) -> dict[str, Any]:
    found = [{"type": name, "status": value, "message": f"It says {name}."} for name, value in status.items()]
    return {"observedGeneration": generation, "conditions": found}


@pytest.mark.parametrize(
    ("metadata", "status", "shown", "said"),
    [
        ({}, None, "Progressing", "has not answered"),
        ({}, conditions(1, Ready="True"), "Progressing", "has not answered"),
        ({}, conditions(Ready="True"), "Healthy", "It says Ready."),
        ({}, conditions(), "Healthy", ""),
        ({}, conditions(Ready="True", Reconciling="True"), "Progressing", "It says Reconciling."),
        ({}, conditions(Ready="False", Reconciling="True"), "Progressing", "It says Reconciling."),
        ({}, conditions(Ready="False", Stalled="True"), "Degraded", "It says Stalled."),
        ({}, conditions(Ready="Unknown"), "Degraded", "It says Ready."),
        ({}, conditions(Ready="False"), "Suspended", "It says Ready."),
        ({"annotations": {PAUSED: "true"}}, conditions(1), "Suspended", "leave it alone"),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, conditions(Ready="True"), "Progressing", "It says Ready."),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, None, "Progressing", "being deleted"),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, conditions(Stalled="True"), "Degraded", "It says Stalled."),
    ],
)
def test_it_shows_what_the_conditions_say(
    metadata: dict[str, Any], status: dict[str, Any] | None, shown: str, said: str
) -> None:
    item = {
        "apiVersion": "compute.kumulus.io/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": "it", "generation": 2, **metadata},
        "spec": {},
    }
    found, message = health(item if status is None else {**item, "status": status})
    assert found == shown and said in message


def test_every_kind_whose_objects_have_conditions_has_a_script() -> None:
    assert scripts().keys() == {f"{kind.KIND.group}_{kind.KIND.kind}" for kind in KINDS if has_conditions(kind)}
    assert set(scripts().values()) == {SCRIPT}
