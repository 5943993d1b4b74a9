"""Whether a host lives, and what its status says of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Capacity, Host, HostPhase, HostStatus
from kumulus.api.host import HostReport, WorkOrder
from kumulus.kube.lease import Lease
from kumulus_controllers.fabric.host import Scope, _ends_before, allocatable, derive_status
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness, Verdict

NOW = "2026-01-01T00:00:00Z"
ALIVE, EXPIRED = Verdict(Liveness.ALIVE, 40), Verdict(Liveness.EXPIRED, 60)
NEVER = Verdict(Liveness.NEVER_SEEN, 60)


@dataclass
class FakeClock:
    """Time that a test sets. Its wall clock is far off, as those of real machines are."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(1999, 1, 1, tzinfo=UTC)


def lease(renewed: str | None, *, host: str = "h1", duration: int = 40, namespace: str | None = None) -> Lease:
    return Lease.parse(
        {
            "metadata": {"name": "kumulus-agent", "namespace": namespace or f"kumulus-host-{host}"},
            "spec": {"renewTime": renewed, "leaseDurationSeconds": duration},
        }
    )


def test_a_host_nobody_has_heard_of_was_never_seen() -> None:
    book = LeaseBook(FakeClock())
    assert book.verdict("h1").liveness is Liveness.NEVER_SEEN
    book.note(lease(None))
    assert book.verdict("h1").liveness is Liveness.NEVER_SEEN


def test_a_lease_that_changes_is_alive_for_its_duration_from_then_on() -> None:
    clock = FakeClock()
    book = LeaseBook(clock)
    assert book.note(lease("t1")) == "h1"
    clock.seconds = 30
    book.note(lease("t2"))
    clock.seconds = 69
    assert book.verdict("h1") == Verdict(Liveness.ALIVE, 1.0)
    clock.seconds = 70
    assert book.verdict("h1").liveness is Liveness.EXPIRED


def test_the_same_lease_again_is_no_sign_of_life() -> None:
    clock = FakeClock()
    book = LeaseBook(clock)
    for seconds in range(0, 60, 10):
        clock.seconds = seconds
        book.note(lease("t1"))
    assert book.verdict("h1").liveness is Liveness.EXPIRED


def test_a_lease_seen_for_the_first_time_is_not_witnessed() -> None:
    book = LeaseBook(FakeClock())
    book.note(lease("t1"))
    assert not book.verdict("h1").witnessed
    book.note(lease("t2"))
    assert book.verdict("h1").witnessed


def test_leases_of_others_and_hosts_that_are_gone_are_nothing() -> None:
    book = LeaseBook(FakeClock())
    assert book.note(lease("t1", namespace="kube-node-lease")) is None
    book.note(lease("t1"))
    book.forget("h1")
    assert book.verdict("h1").liveness is Liveness.NEVER_SEEN


def host(*, deleting: bool = False, status: dict[str, Any] | None = None, **spec: Any) -> Host:
    metadata = {"name": "h1", "uid": "u1", "generation": 3, "finalizers": ["kumulus.io/cleanup"]}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    return Host.parse({"metadata": metadata, "spec": {"zone": "z1", **spec}, "status": status or {}})


def report(**status: Any) -> HostReport:
    full = {"capacity": {"cpus": 8, "memory": 2**34}, "hypervisorReady": True, **status}
    return HostReport.parse({"metadata": {"name": "h1", "namespace": "kumulus-host-h1"}, "status": full})


def machine(name: str) -> VirtualMachine:
    return VirtualMachine.parse(
        {
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"resources": {"cpus": 2, "memory": "1Gi"}},
            "status": {"host": "h1", "resources": {"cpus": 2, "memory": "1Gi"}},
        }
    )


GOOD = Scope(host(), report(), ALIVE, (), ())
ORDER = WorkOrder.parse(
    {
        "metadata": {"name": "pool-x", "namespace": "kumulus-host-h1"},
        "spec": {"type": "Pool", "for": {"kind": "StoragePool", "name": "p", "uid": "x"}},
    }
)


def status_of(scope: Scope, *, expiring: bool = False) -> HostStatus:
    """The status, checked for what may never be."""
    after = derive_status(scope, NOW, expiring)
    ready, schedulable = after.condition("Ready"), after.condition("Schedulable")
    assert ready is not None and schedulable is not None
    assert after.observed_generation == scope.host.metadata.generation
    usual = HostPhase.READY if scope.host.spec.maintenance is None else HostPhase.MAINTENANCE
    assert (after.phase is usual) == (ready.status is ConditionStatus.TRUE and not scope.host.deleting)
    assert schedulable.status is not ConditionStatus.TRUE or ready.status is ConditionStatus.TRUE
    assert all(condition.reason for condition in after.conditions)
    return after


@pytest.mark.parametrize(
    ("scope", "phase", "reason"),
    [
        (GOOD, HostPhase.READY, "AgentAlive"),
        (replace(GOOD, verdict=NEVER, report=None), HostPhase.JOINING, "AgentNeverSeen"),
        (replace(GOOD, verdict=EXPIRED), HostPhase.UNKNOWN, "LeaseExpired"),
        (replace(GOOD, report=None), HostPhase.NOT_READY, "NoReport"),
        (replace(GOOD, report=report(hypervisorReady=False)), HostPhase.NOT_READY, "HypervisorNotReady"),
        (replace(GOOD, host=host(deleting=True)), HostPhase.REMOVING, "AgentAlive"),
    ],
)
def test_phases(scope: Scope, phase: HostPhase, reason: str) -> None:
    after = status_of(scope)
    ready = after.condition("Ready")
    assert after.phase is phase and ready is not None and ready.reason == reason and ready.message


def lost(reason: str, status: str) -> Host:
    return host(status={"conditions": [{"type": "Ready", "status": status, "reason": reason}]})


def test_a_lost_host_stays_lost_through_a_restart_of_the_controllers_until_it_is_heard() -> None:
    """Else machines were placed on a dead host for as long as its lease lasts."""
    unwitnessed = Verdict(Liveness.ALIVE, 40, witnessed=False)
    was_lost = lost("LeaseExpired", "Unknown")
    assert status_of(replace(GOOD, host=was_lost, verdict=unwitnessed)).phase is HostPhase.UNKNOWN
    assert status_of(replace(GOOD, host=was_lost)).phase is HostPhase.READY
    assert status_of(replace(GOOD, host=lost("AgentAlive", "True"), verdict=unwitnessed)).phase is HostPhase.READY
    assert status_of(replace(GOOD, verdict=unwitnessed)).phase is HostPhase.READY


def test_cordoned_is_ready_but_not_schedulable() -> None:
    after = status_of(replace(GOOD, host=host(unschedulable=True)))
    schedulable = after.condition("Schedulable")
    assert after.phase is HostPhase.READY and schedulable is not None and schedulable.reason == "Cordoned"


def test_a_host_in_maintenance_says_how_far_that_is() -> None:
    waits = {"namespace": "ns", "name": "web", "reason": "LocalDisks", "message": "Disk tmp is ephemeral."}
    found = {"phase": "Blocked", "left": 1, "waiting": [waits]}
    after = status_of(replace(GOOD, host=host(maintenance={}, status={"maintenance": found})))
    schedulable, told = after.condition("Schedulable"), after.condition("Maintenance")
    assert schedulable is not None and schedulable.reason == "InMaintenance"
    assert told is not None and told is after.conditions[-1] and (told.status, told.reason) == ("False", "Blocked")
    assert told.message.endswith("ns/web: LocalDisks: Disk tmp is ephemeral.")
    assert after.maintenance is not None, "it is somebody else's"
    silent = status_of(replace(GOOD, host=host(maintenance={}), verdict=EXPIRED))
    assert silent.phase is HostPhase.UNKNOWN and silent.condition("Maintenance") is None


@pytest.mark.parametrize(
    ("network", "status", "says"),
    [
        ({"drivers": ["linux"], "underlay": "192.0.2.1"}, "True", "driver linux, tunnels at 192.0.2.1"),
        ({"drivers": ["linux"]}, "False", "Other hosts cannot reach its tunnels"),
        ({"message": "The kernel has no vxlan."}, "False", "The kernel has no vxlan."),
        (None, None, ""),
    ],
)
def test_what_of_networks_a_host_can_do(network: dict[str, Any] | None, status: str | None, says: str) -> None:
    scope = replace(GOOD, report=report(**({"network": network} if network is not None else {})))
    condition = status_of(scope).condition("NetworkReady")
    assert (condition.status if condition else None) == status
    assert condition is None or says in condition.message
    assert status_of(scope).phase is HostPhase.READY, "machines without interfaces run there all the same"


def test_credentials_that_end_are_told() -> None:
    scope = replace(GOOD, report=report(credentialsExpireAt=NOW))
    for expiring in (True, False):
        condition = status_of(scope, expiring=expiring).condition("CredentialsExpiring")
        assert condition is not None and (condition.status is ConditionStatus.TRUE) is expiring
    assert status_of(GOOD).condition("CredentialsExpiring") is None


@pytest.mark.parametrize("text", ["", "soon", "2026-01-01", "2026-01-01T00:00:00", "\x00"])
def test_what_an_agent_writes_for_a_time_breaks_nothing(text: str) -> None:
    assert _ends_before(text, datetime(2026, 6, 1, tzinfo=UTC))
    assert not _ends_before("2026-06-01T01:00:00Z", datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=10))


UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
VOLUME = WorkOrder.parse(
    {
        "metadata": {"name": "volume", "namespace": "kumulus-host-h1"},
        "spec": {
            "type": "Disk",
            "for": {"kind": "Volume", "namespace": "ns", "name": "data", "uid": UID},
            "disk": {"pool": {"uid": UID, "name": "local", "driver": "dir"}, "volume": {"uid": UID}},
        },
    }
)


ARRIVING = WorkOrder.parse(
    {
        "metadata": {"name": "instance", "namespace": "kumulus-host-h1"},
        "spec": {
            "type": "Instance",
            "for": {"kind": "VirtualMachine", "namespace": "ns", "name": "guest", "uid": UID},
            "instance": {
                "uid": UID,
                "epoch": 2,
                "power": "Stopped",
                "restartPolicy": "Always",
                "cpus": 1,
                "memory": 1 << 26,
                "incoming": {"migration": UID, "host": "h2"},
            },
        },
    }
)


@pytest.mark.parametrize(
    ("scope", "reason", "says"),
    [
        (replace(GOOD, taken=True), "NamespaceTaken", "kumulus-host-h1"),
        (replace(GOOD, host=host(deleting=True), machines=(machine("web"),)), "HasMachines", "ns/web"),
        (replace(GOOD, host=host(deleting=True), orders=(VOLUME,)), "HasVolumes", "ns/data"),
        (replace(GOOD, host=host(deleting=True), orders=(ARRIVING,)), "GuestsArrive", "ns/guest"),
        (
            replace(GOOD, host=host(deleting=True), verdict=EXPIRED, orders=(ORDER,)),
            "AgentGone",
            "kubectl annotate host h1",
        ),
    ],
)
def test_what_keeps_a_host_is_said_with_what_to_do(scope: Scope, reason: str, says: str) -> None:
    stalled = status_of(scope).condition("Stalled")
    assert stalled is not None and stalled.reason == reason and says in stalled.message


def test_an_earlier_namespace_that_still_goes_is_waited_for() -> None:
    after = status_of(replace(GOOD, ending=True))
    going = after.condition("Reconciling")
    assert going is not None and going.reason == "NamespaceEnding"
    assert "kumulus-host-h1 is still being deleted; wait" in going.message
    assert after.condition("Stalled") is None and after.namespace is None


def test_what_may_be_promised() -> None:
    some = host(reserved={"cpu": 2, "memory": "1Gi"}, overcommit={"cpu": 2.0, "memory": 1.5})
    assert allocatable(some, Capacity(cpus=8, memory=9 * 2**30)) == Capacity(cpus=12, memory=12 * 2**30)
    assert allocatable(some, Capacity(cpus=1, memory=1)) == Capacity(cpus=0, memory=0)


def test_machines_are_counted() -> None:
    after = status_of(replace(GOOD, machines=(machine("a"), machine("b"))))
    assert after.instances == 2 and after.allocated == Capacity(cpus=4, memory=2**31)
