"""`status` says who leads the controllers, and does not take an old lease for a living leader."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kumulus.cli.overview import controllers, leads

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def lease(holder: str | None, renewed: str) -> dict[str, object]:
    spec = {
        "holderIdentity": holder,
        "renewTime": renewed,
        "acquireTime": "2026-11-20T11:00:00Z",
        "leaseDurationSeconds": 15,
    }
    return {"spec": spec}


@pytest.mark.parametrize(
    ("found", "alive", "says"),
    [
        (None, False, "none has ever run"),
        (lease("a-1", "2026-11-20T11:59:55.000000Z"), True, "a-1 leads"),
        (lease("a-1", "2026-11-20T11:50:00.000000Z"), False, "last heard of 10m ago"),
        (lease("", "2026-11-20T11:59:55.000000Z"), False, "given its lease back"),
    ],
)
def test_controllers(found: dict[str, object] | None, alive: bool, says: str) -> None:
    assert leads(found, NOW) is alive
    assert says in controllers(found, NOW)
