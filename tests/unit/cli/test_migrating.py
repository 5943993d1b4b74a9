"""What `vm migrate` says of how far it is."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.migration import VirtualMachineMigration
from kumulus.cli.migrating import ended, hopeless, said
from kumulus.cli.problem import Problem


def migration(phase: str | None, message: str = "", **status: Any) -> VirtualMachineMigration:
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "R",
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body = {"phase": phase, "conditions": [ready], **status}
    return VirtualMachineMigration.parse({"metadata": {"name": "go"}, "spec": {"vm": "web1"}, "status": body})


def test_how_far_it_is() -> None:
    assert said(migration(None)) == "Pending"
    assert said(migration("Pending", "no host\nfits")) == "Pending: no host fits"
    copying = migration("Migrating", "Memory is copied.", progress={"remainingBytes": 64 << 20})
    assert said(copying) == "Migrating, 64 MiB left: Memory is copied."
    assert not ended(copying)
    assert ended(migration("Succeeded"))


def test_one_that_cannot_begin_is_told_from_one_that_waits() -> None:
    assert not hopeless(migration("Pending", "no host fits"))
    stalled = {"type": "Stalled", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    assert hopeless(migration("Pending", conditions=[stalled]))
    assert not hopeless(migration("Migrating", conditions=[stalled]))


def test_one_that_failed_says_why() -> None:
    with pytest.raises(Problem, match="web1 was not moved: Failed: it took too long"):
        ended(migration("Failed", "it took too long"))
