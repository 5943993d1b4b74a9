"""When a host's own watchdog is taken at its word: only while the promise stands, and after longer than it says (ADR 44)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.remediation import HostRemediation
from kumulus_controllers.fabric.automatic import methods
from kumulus_controllers.fabric.remediation_plan import Close, Facts, Prove, Say, fence_of, plan
from kumulus_controllers.fabric.watchdog import MARGIN_SECONDS, promised
from tests.unit.fencing.test_automatic import EXPIRED, host

ITEM = HostRemediation.parse(
    {
        "metadata": {"name": "r", "uid": "r"},
        "spec": {"host": "h1", "methods": ["watchdog", "redfish", "manual"]},
        "status": {"lastRenewal": "t"},
    }
)


def order(state: str | None = "Ready", observed: int = 3, **metadata: Any) -> WorkOrder:
    return WorkOrder.parse(
        {
            "metadata": {"name": "watchdog", "uid": "w", "generation": 3, **metadata},
            "spec": {
                "type": "Watchdog",
                "for": {"kind": "Host", "name": "h1", "uid": "h"},
                "watchdog": {"seconds": 20},
            },
            "status": {"observedGeneration": observed, **({"state": state} if state else {})},
        }
    )


@pytest.mark.parametrize(
    ("item", "seconds"),
    [
        (order(), 20),
        (None, None),
        (order(None), None),
        (order("Waiting"), None),
        (order(observed=2), None),
        (order(deletionTimestamp="2026-01-01T00:00:00Z"), None),
    ],
    ids=("armed", "none", "not answered", "not armed", "of before", "to be disarmed"),
)
def test_what_counts_as_a_promise(item: WorkOrder | None, seconds: int | None) -> None:
    assert promised(item) == seconds


def test_its_word_is_taken_after_the_margin_and_without_the_budget() -> None:
    facts = Facts(ITEM, host(), EXPIRED, "t", watchdog=20, late=9, hosts=10)
    early = plan(replace(facts, silent=20 + MARGIN_SECONDS - 0.1))
    assert isinstance(early, Say) and early.reason == "WatchdogRuns" and 0 < (early.after or 0) < 1
    late = replace(facts, silent=20 + MARGIN_SECONDS)
    assert plan(late) == Close()
    fence = {"metadata": {"name": "0-fence", "uid": "f"}, "spec": fence_of(ITEM, 1).to_json()}
    assert plan(replace(late, fence=WorkOrder.parse(fence))) == Prove("watchdog")


def test_without_a_promise_the_next_method_is_used() -> None:
    facts = Facts(ITEM, host(), EXPIRED, "t", silent=100, able=frozenset({"redfish"}))
    assert plan(facts) == Close()
    nobody = plan(replace(facts, able=frozenset()))
    assert isinstance(nobody, Say) and nobody.reason == "ConfirmationNeeded"


def test_a_host_that_is_fenced_by_itself_is_first_taken_at_its_word() -> None:
    assert methods(host()) == ["redfish"]
    assert methods(host(fencing={"automatic": True, "watchdog": True})) == ["watchdog", "redfish"]
    assert methods(host(fencing={"automatic": True, "watchdog": True}, bmc=None)) == ["watchdog"]
