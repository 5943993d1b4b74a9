"""What is decided about a host that is to be fenced, and about its machines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.remediation import HostRemediation, RemediationPhase
from kumulus_controllers.compute import takeover_plan
from kumulus_controllers.fabric.liveness import Liveness, Verdict
from kumulus_controllers.fabric.remediation_plan import Close, Facts, Lift, Prove, Remember, Say, Withdraw, plan

T1, T2 = "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"
SILENT, ALIVE = Verdict(Liveness.EXPIRED, 60), Verdict(Liveness.ALIVE, 12)
HOST = Host.parse({"metadata": {"name": "h1", "uid": "h"}, "spec": {"zone": "z"}})
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def remediation(status: dict[str, Any] | None = None, **spec: Any) -> HostRemediation:
    meta = {"name": "r", "uid": "r", "generation": 1}
    return HostRemediation.parse({"metadata": meta, "spec": {"host": "h1", **spec}, "status": status or {}})


def fence(*, fenced: bool = False, of: str = "r", **status: Any) -> WorkOrder:
    spec = {"type": "Fence", "for": {"kind": "HostRemediation", "name": of, "uid": of}, "fence": {"fenced": fenced}}
    meta = {"name": "0-fence", "namespace": "kumulus-host-h1", "uid": "f", "generation": 1}
    return WorkOrder.parse({"metadata": meta, "spec": spec, "status": status})


CONFIRMED = remediation({"lastRenewal": T1}, confirmedOff=True, lastRenewal=T1)
BY_BMC = remediation({"lastRenewal": T1}, methods=["redfish"])


def step(item: HostRemediation = CONFIRMED, verdict: Verdict = SILENT, renewed: str | None = T1, **more: Any) -> object:
    return plan(Facts(item, HOST, verdict, renewed, **more))


def said(found: object) -> tuple[RemediationPhase, str]:
    say = found.say if isinstance(found, Withdraw) else found
    assert isinstance(say, Say), found
    return say.phase, say.reason


def test_a_silent_host_is_closed_then_proved_to_be_off_and_opened_when_it_is_clean() -> None:
    assert step(remediation(confirmedOff=True, lastRenewal=T1)) == Remember()
    assert step() == Close()
    assert step(fence=fence()) == Prove("manual")
    assert said(step(fence=fence(fenced=True))) == (RemediationPhase.FENCED, "HostFenced")
    back = fence(fenced=True, state="Working", observedGeneration=1)
    assert said(step(fence=back, renewed=T2, verdict=ALIVE)) == (RemediationPhase.RETURNING, "CleaningUp")
    clean = fence(fenced=True, state="Ready", observedGeneration=1)
    assert said(step(fence=clean, leaving=1))[0] is RemediationPhase.RETURNING
    assert step(fence=clean, renewed=T2, verdict=ALIVE) == Lift()
    assert said(step(remediation({"lastRenewal": T1, "fencedAt": T1})))[0] is RemediationPhase.SUCCEEDED


@pytest.mark.parametrize(
    "more",
    [{"renewed": T2}, {"renewed": T2, "verdict": ALIVE}, {"fence": fence(state="Ready")}],
    ids=("renewed", "alive", "answered"),
)
def test_a_host_that_gives_a_sign_of_life_is_left_alone(more: dict[str, Any]) -> None:
    assert said(step(**more)) == (RemediationPhase.REFUSED, "HostAnswers")
    assert isinstance(step(**{"fence": fence(), **more}), Withdraw)


def test_a_word_about_another_silence_is_no_word_about_this_one() -> None:
    item = remediation({"lastRenewal": T1}, confirmedOff=True, lastRenewal=T1)
    assert said(step(item, renewed=T2)) == (RemediationPhase.REFUSED, "HostAnswers")


def test_what_a_remediation_waits_for() -> None:
    pending = RemediationPhase.PENDING
    assert said(step(verdict=ALIVE)) == (pending, "MayAnswer")
    assert said(step(remediation({"lastRenewal": T1}))) == (pending, "ConfirmationNeeded")
    assert said(step(before="older")) == (pending, "WaitsForAnother")
    assert said(step(verdict=Verdict(Liveness.NEVER_SEEN, 60), renewed=None)) == (pending, "NeverHeardOf")
    assert said(step(BY_BMC)) == (pending, "NoMethod")
    assert step(BY_BMC, able=frozenset({"redfish"})) == Close()
    assert step(BY_BMC, able=frozenset({"redfish"}), fence=fence()) == Prove("redfish")
    assert said(plan(Facts(CONFIRMED, None, SILENT, T1))) == (RemediationPhase.FAILED, "HostNotFound")


def test_when_many_are_silent_nobody_is_switched_off_without_a_person() -> None:
    able = frozenset({"redfish"})
    assert step(BY_BMC, able=able, late=3, hosts=10) == Close()
    assert said(step(BY_BMC, able=able, late=4, hosts=10)) == (RemediationPhase.PENDING, "TooManySilent")
    assert isinstance(step(BY_BMC, able=able, late=4, hosts=10, fence=fence()), Withdraw)
    assert step(late=10, hosts=10) == Close(), "a person knows"


def machine(status: dict[str, Any] | None = None, name: str = "vm", **spec: Any) -> VirtualMachine:
    ha = {"enabled": True, "maxRestarts": 2, **spec.pop("ha", {})}
    wanted = {"resources": {"cpus": 1, "memory": "1Gi"}, "highAvailability": ha, **spec}
    meta = {"name": name, "uid": name, "namespace": "shop", **({"deletionTimestamp": T1} if name == "going" else {})}
    return VirtualMachine.parse({"metadata": meta, "spec": wanted, "status": status or {}})


@pytest.mark.parametrize(
    ("vm", "state", "wanted"),
    [
        (machine(), "Running", True),
        (machine(powerState="Paused"), "Paused", True),
        (machine(powerState="Stopped"), "Stopped", False),
        (machine(powerState="Suspended"), "Suspended", False),
        (machine(ha={"enabled": False}), "Running", False),
        (machine(name="going"), "Running", False),
        (machine(restartPolicy="Never"), "Running", True),
        (machine(restartPolicy="Never"), "Stopped", False),
        (machine(restartPolicy="OnFailure"), "Stopped", False),
    ],
    ids=str,
)
def test_what_was_off_stays_off(vm: VirtualMachine, state: str, wanted: bool) -> None:
    status = fence(state=state).status
    ended = fence().model_copy(update={"status": status.model_copy(update={"reason": "GuestShutDown"})})
    assert takeover_plan.wanted(vm, ended) is wanted
    told = fence().model_copy(update={"status": status})
    assert takeover_plan.wanted(vm, told) is (wanted or vm.spec.restart_policy != "Always"), (
        "it was off because it had to be"
    )


def test_what_is_too_often_started_elsewhere_is_counted_within_its_window() -> None:
    lately = ["2026-01-01T11:30:00Z", "2026-01-01T10:59:00Z", "no time"]
    assert takeover_plan.recent(machine({"failovers": lately}), NOW) == ("2026-01-01T11:30:00Z",)


def test_those_of_a_higher_priority_come_first_unless_something_hinders_them() -> None:
    low, high = machine(name="low", ha={"priority": 1}), machine(name="high", ha={"priority": 2})
    no_room = {
        "type": "HighAvailability",
        "status": "False",
        "reason": "NoHostFits",
        "message": "",
        "lastTransitionTime": T1,
    }
    stuck = machine({"conditions": [no_room]}, name="stuck", ha={"priority": 9})
    off = machine(name="off", ha={"priority": 9}, powerState="Stopped")
    assert takeover_plan.ahead(low, [low, stuck, off, high]) == "shop/high"
    assert takeover_plan.ahead(high, [low, stuck, off, high]) is None
