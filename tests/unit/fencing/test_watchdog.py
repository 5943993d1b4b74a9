"""When a host's own watchdog is taken at its word: only while the promise stands, and after longer than it says (ADR 44)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import WATCHDOG_ORDER
from kumulus.api.remediation import HostRemediation
from kumulus.kube.client import KubeClient
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.fabric.remediation_plan import Close, Facts, Prove, Say, fence_of, plan
from kumulus_controllers.fabric.watchdog import MARGIN_SECONDS, WatchdogReconciler, promised
from kumulus_controllers.fleet_feed import closed
from tests.unit.fabric.test_host import GOOD, FakeClock, lease, status_of
from tests.unit.fabric.test_host import host as a_host
from tests.unit.fencing.api import Api, Client
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
    assert host().fenced_by == ["redfish"]
    assert host(fencing={"automatic": True, "watchdog": True}).fenced_by == ["watchdog", "redfish"]
    assert host(fencing={"automatic": True, "watchdog": True}, bmc=None).fenced_by == ["watchdog"]


WORK = {"maintenance": {"mode": "InPlace"}}
LOST = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "LeaseExpired"}]}
GUARDED: dict[str, Any] = {"fencing": {"watchdog": True}}
ENDING = order(deletionTimestamp="2026-01-01T00:00:00Z")


def refusing(reason: str, **metadata: Any) -> WorkOrder:
    found = order("Waiting", **metadata)
    status = found.status.model_copy(update={"reason": reason, "message": "it says why"})
    return found.model_copy(update={"status": status})


@pytest.mark.parametrize(
    ("on", "item", "said", "closes"),
    [
        (a_host(), None, None, None),
        (a_host(**GUARDED, **WORK), None, None, "in maintenance"),
        (a_host(**GUARDED), None, ("False", "NotOrdered"), None),
        (a_host(**GUARDED), order(), ("True", "Armed"), None),
        (a_host(**GUARDED), order(None), ("False", "Arming"), "without its watchdog"),
        (a_host(**GUARDED), refusing("NoWatchdog"), ("False", "NoWatchdog"), "without its watchdog"),
        (a_host(**GUARDED), refusing("LeaseTooShort"), ("False", "LeaseTooShort"), "without its watchdog"),
        (a_host(), ENDING, ("True", "Disarming"), None),
        (
            a_host(),
            refusing("NotDisarmed", deletionTimestamp="2026-01-01T00:00:00Z"),
            ("False", "NotDisarmed"),
            "without its watchdog",
        ),
    ],
    ids=("none", "worked on", "not yet", "armed", "asked", "no watchdog", "short lease", "disarming", "not disarmed"),
)
def test_a_host_that_starts_nothing_says_so_and_gets_no_machines(
    on: Host, item: WorkOrder | None, said: tuple[str, str] | None, closes: str | None
) -> None:
    scope = replace(GOOD, host=on, orders=(item,) if item is not None else (), lease=lease("t", duration=20))
    after = status_of(scope)
    found = after.condition("WatchdogArmed")
    assert ((found.status, found.reason) if found is not None else None) == said
    told = on.model_copy(update={"status": after})
    assert closed(told) == closes
    assert closed(told, guests=False) in (None, "in maintenance"), "its routers stay"
    schedulable = after.condition("Schedulable")
    assert schedulable is not None and (schedulable.status == "True") is (closes is None)


def test_a_lease_that_no_watchdog_can_be_armed_for_is_told() -> None:
    found = status_of(replace(GOOD, host=a_host(**GUARDED), lease=lease("t", duration=601))).condition("WatchdogArmed")
    assert found is not None and "601 s" in found.message and "lease_seconds" in found.message


@pytest.mark.parametrize(("item", "status", "reason"), [(None, "True", "InPlace"), (order(), "False", "WatchdogArmed")])
def test_who_works_on_a_host_begins_when_it_is_disarmed(item: WorkOrder | None, status: str, reason: str) -> None:
    """Else its machines would end 20 s after its agent was stopped, and start nowhere."""
    on = a_host(status={"maintenance": {"phase": "InPlace"}}, **GUARDED, **WORK)
    after = status_of(replace(GOOD, host=on, orders=(item,) if item is not None else ()))
    found = after.condition("Maintenance")
    assert found is not None and (found.status, found.reason) == (status, reason)


class Cloud:
    """The reconciler before an API server in memory."""

    def __init__(self) -> None:
        async def nothing(verb: str) -> None:
            return None

        self.api, self.caches, self.woken = Api(), Caches(), list[Key]()
        self.client = Client(self.api, nothing)
        self.reconciler = WatchdogReconciler(
            Services(cast(KubeClient, self.client), self.caches, FakeClock(), lambda: 1)
        )
        self.reconciler.attach(lambda key, *, urgent=False: self.woken.append(key))

    def see(self, item: Host | Lease) -> None:
        self.caches.store(type(item)).apply(item.to_json())

    async def seconds(self) -> int | None:
        """What is ordered after a pass, of what is not on its way out."""
        await self.reconciler.reconcile(Key(None, "h1"))
        found = await self.client.find(WorkOrder.KIND, WATCHDOG_ORDER, host_namespace("h1"))
        if found is None or found["metadata"].get("deletionTimestamp"):
            return None
        return int(found["spec"]["watchdog"]["seconds"])

    async def released(self) -> None:
        """The agent has disarmed it."""
        raw = await self.client.patch(
            WorkOrder.KIND, WATCHDOG_ORDER, {"metadata": {"finalizers": []}}, host_namespace("h1")
        )
        self.caches.store(WorkOrder).remove(Key(host_namespace("h1"), WATCHDOG_ORDER), raw["metadata"]["uid"])


def known(version: int, **options: Any) -> Host:
    status = {"namespace": host_namespace("h1"), **options.pop("status", {})}
    raw = a_host(status=status, **options).to_json()
    raw["metadata"]["resourceVersion"] = str(version)
    return Host.parse(raw)


def lasts(version: int, seconds: int) -> Lease:
    raw = lease("t", duration=seconds).to_json()
    raw["metadata"] |= {"resourceVersion": str(version), "uid": "l"}
    return Lease.parse(raw)


async def test_the_order_follows_the_lease_and_is_made_anew() -> None:
    cloud = Cloud()
    cloud.see(known(1, **GUARDED))
    cloud.see(lasts(2, 20))
    assert await cloud.seconds() == 20 and await cloud.seconds() == 20
    cloud.woken.clear()
    cloud.see(lasts(3, 600))
    assert cloud.woken == [Key(None, "h1")]
    assert await cloud.seconds() is None, "what was promised is taken back first"
    await cloud.released()
    assert await cloud.seconds() == 600
    cloud.see(lasts(4, 601))
    assert await cloud.seconds() is None
    await cloud.released()
    assert await cloud.seconds() is None, "not one that the API server would refuse"


async def test_while_somebody_works_on_the_host_it_is_disarmed() -> None:
    cloud = Cloud()
    cloud.see(lasts(1, 20))
    cloud.see(known(2, **GUARDED))
    assert await cloud.seconds() == 20
    cloud.see(known(3, status=LOST, **GUARDED, **WORK))
    assert await cloud.seconds() == 20, "it is silent: what it has promised holds"
    cloud.see(known(4, **GUARDED, **WORK))
    assert await cloud.seconds() is None
    await cloud.released()
    assert await cloud.seconds() is None
    cloud.see(known(5, **GUARDED))
    assert await cloud.seconds() == 20
