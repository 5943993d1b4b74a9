"""When whoever works on a host may begin, and what is said until then."""

from __future__ import annotations

from typing import Any

from kumulus.api.fabric import Host
from kumulus.cli.maintaining import may_begin, said


def host(phase: str | None, status: str = "False", observed: int = 2) -> Host:
    found: dict[str, Any] = {}
    if phase is not None:
        told = {"type": "Maintenance", "status": status, "reason": phase, "message": "1 machine still to leave."}
        found = {"maintenance": {"phase": phase, "observedGeneration": observed}, "conditions": [told]}
    spec = {"zone": "z", "maintenance": {}}
    return Host.parse({"metadata": {"name": "h", "generation": 2}, "spec": spec, "status": found})


def test_nobody_begins_before_the_controllers_say_so_of_what_was_asked() -> None:
    assert not may_begin(host(None), 2)
    assert not may_begin(host("Evacuating"), 2)
    assert not may_begin(host("InPlace", "True", observed=1), 2), "of what was asked for before"
    assert may_begin(host("Emptied", "True"), 2)


def test_what_is_said() -> None:
    assert said(host(None)) == "the controllers have not begun"
    assert said(host("Blocked")) == "Blocked: 1 machine still to leave."
