"""Counting requests in an audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import audit
from tests.bench.audit import AGENT, CONTROLLERS, OTHER, USER, WRITES, AuditLog, Tally


def event(
    verb: str = "patch", *, stage: str = "ResponseComplete", agent: str = "kumulus-controllers"
) -> dict[str, Any]:
    return {
        "stage": stage,
        "verb": verb,
        "user": {"username": "system:serviceaccount:kumulus-system:kumulus-controllers"},
        "userAgent": agent,
        "objectRef": {
            "resource": "virtualmachines",
            "subresource": "status",
            "namespace": "bench",
            "name": "m-1",
        },
        "responseStatus": {"code": 200},
    }


@pytest.mark.parametrize(
    ("username", "user_agent", "client"),
    [
        ("kumulus-lab-admin", "kumulus-bench", USER),
        ("kumulus-lab-admin", "kumulus-agent-fleet", AGENT),
        ("system:serviceaccount:kumulus-host-h1:kumulus-agent", "kumulus-agent/0.1 (h1)", AGENT),
        ("system:serviceaccount:kumulus-system:kumulus-controllers", "kopf/1.45", CONTROLLERS),
        ("system:serviceaccount:kube-system:generic-garbage-collector", "kube-controller-manager", OTHER),
    ],
)
def test_clients_are_told_apart(username: str, user_agent: str, client: str) -> None:
    assert audit.client_of(username, user_agent) == client


def test_a_request_counts_once() -> None:
    """When it was answered; a watch when it began, because it ends much later."""
    assert audit.parse(event()) is not None
    assert audit.parse(event(stage="ResponseStarted")) is None
    assert audit.parse(event("watch")) is None
    assert audit.parse(event("watch", stage="ResponseStarted")) is not None


def test_the_log_is_read_from_where_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text(json.dumps(event()) + "\n")
    log = AuditLog(path)
    assert list(log.requests()) == []
    line = json.dumps(event("create"))
    with path.open("a") as file:
        file.write(line + "\n" + line[:20])
    assert [found.verb for found in log.requests()] == ["create"]
    with path.open("a") as file:
        file.write(line[20:] + "\n")
    assert [found.resource for found in log.requests()] == ["virtualmachines/status"]


def test_a_tally_counts_by_client_verb_and_resource() -> None:
    found = [
        audit.parse(event()),
        audit.parse(event()),
        audit.parse(event("get")),
        audit.parse(event(agent="kumulus-bench")),
    ]
    tally = Tally.of([each for each in found if each is not None])
    assert tally.total([CONTROLLERS], WRITES, {"virtualmachines"}) == 2
    assert tally.total([CONTROLLERS], WRITES, {"workorders"}) == 0
    assert tally.total([CONTROLLERS, USER], {"patch", "get"}) == 4
    assert tally.per(2, [CONTROLLERS]) == {
        "controllers patch virtualmachines/status": 1.0,
        "controllers get virtualmachines/status": 0.5,
    }
