"""When a host is fenced without anybody's asking, and when not: an outage of the control plane fences nobody (QUALITY F6)."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.fabric import Host
from kumulus_controllers.fabric.automatic import MARGIN_SECONDS, Silence, asked, remediation_name
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness, Verdict
from kumulus_controllers.fabric.remediation_plan import SILENT_SHARE
from kumulus_controllers.fabric.witness_plan import Hearing
from tests.unit.fabric.test_host import FakeClock, lease

EXPIRED = Verdict(Liveness.EXPIRED, 60)
BMC = {"type": "redfish", "address": "https://10.0.9.1", "credentialsSecret": "bmc"}


def host(ready: str = "Unknown", fenced: str | None = None, **spec: Any) -> Host:
    said = {"Ready": ready, "Fenced": fenced}
    conditions = [
        {"type": type_, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for type_, status in said.items()
        if status is not None
    ]
    wanted = {"zone": "z", "bmc": BMC, "fencing": {"automatic": True}, **spec}
    return Host.parse({"metadata": {"name": "h1", "uid": "h"}, "spec": wanted, "status": {"conditions": conditions}})


def silence(item: Host | None = None, **changes: Any) -> Silence:
    answered = Hearing(settled=True)
    known = {"verdict": EXPIRED, "since": 100.0, "machines": 1, "open": False, "others": 2, "hearing": answered}
    known |= changes
    return Silence(item or host(), **known)


def test_a_host_is_fenced_some_seconds_after_its_lease_has_run_out() -> None:
    assert asked(silence(), 100.0) == MARGIN_SECONDS
    assert asked(silence(), 100.0 + MARGIN_SECONDS) == 0.0


@pytest.mark.parametrize(
    "what",
    [
        silence(host(fencing={"automatic": False})),
        silence(host(ready="True")),
        silence(host(fenced="True")),
        silence(verdict=Verdict(Liveness.ALIVE, 3)),
        silence(verdict=Verdict(Liveness.NEVER_SEEN, 3)),
        silence(since=None),
        silence(machines=0),
        silence(open=True),
        silence(others=0),
    ],
    ids=("not asked", "ready", "fenced", "alive", "never seen", "not expired", "no machine", "under way", "alone"),
)
def test_otherwise_it_is_left_alone(what: Silence) -> None:
    assert asked(what, 1000.0) is None


def test_a_silence_is_asked_about_once() -> None:
    assert remediation_name("h1", "t1") == remediation_name("h1", "t1") != remediation_name("h1", "t2")
    assert len(remediation_name("h" * 50, "t1")) <= 63


@pytest.mark.parametrize("hosts", [2, 3, 10, 100])
def test_hosts_that_come_back_one_after_the_other_count_as_late_for_a_lease(hosts: int) -> None:
    """The API server was away for a minute: when it is back, those that have not got through yet are not the ones to fence."""
    clock = FakeClock()
    book, names = LeaseBook(clock), [f"h{n}" for n in range(hosts)]
    for second in range(2):
        clock.seconds = second
        for name in names:
            book.note(lease(f"t{second}", host=name, duration=20))
    clock.seconds = 61
    assert all(book.verdict(name).liveness is Liveness.EXPIRED for name in names)
    budget = max(1, int(hosts * SILENT_SHARE))
    for number, name in enumerate(names):
        clock.seconds = 61 + 6 * number / hosts
        book.note(lease("t61", host=name, duration=20))
        assert sum(book.late(item) for item in names) == hosts > budget
    for second in range(67, 96, 6):
        clock.seconds = second
        for name in names:
            book.note(lease(f"t{second}", host=name, duration=20))
    assert not any(book.late(name) for name in names)
