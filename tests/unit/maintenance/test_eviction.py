"""What a machine is to be while its host is emptied, and when it may be placed elsewhere."""

from __future__ import annotations

from typing import Any

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import PowerState
from kumulus.api.fabric import Host
from kumulus.api.host import WorkState
from kumulus.api.maintenance import Eviction
from kumulus_controllers.compute.eviction import IN_MAINTENANCE, in_force, leaves
from kumulus_controllers.compute.scope import Scope
from tests.unit.maintenance.test_plan import HERE, THERE, machine, order

STOP, RESTART, MOVE = (Eviction(host=HERE, action=action) for action in ("Stop", "Restart", "LiveMigrate"))


def host(*, fenced: bool = False, deleting: bool = False, maintenance: Any = None) -> Host:
    said = {"Ready": ConditionStatus.TRUE} | ({"Fenced": ConditionStatus.TRUE} if fenced else {})
    conditions = [{"type": type_, "status": status, "reason": "R"} for type_, status in said.items()]
    gone = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}
    spec = {"zone": "z", **({"maintenance": maintenance} if maintenance is not None else {})}
    return Host.parse({"metadata": {"name": HERE, **gone}, "spec": spec, "status": {"conditions": conditions}})


EMPTIED = host(maintenance={})


def seen(where: Host = EMPTIED, *, off: bool = False, ordered: bool = True, **more: Any) -> Scope:
    vm = machine(**more)
    state, power = (WorkState.STOPPED, "Stopped") if off else (WorkState.RUNNING, "Running")
    return in_force(Scope(vm, order(vm, state, power) if ordered else None, where, None, {}))


def test_what_is_shut_down_for_its_host_is_off_while_that_is_emptied_and_no_longer() -> None:
    for eviction in (STOP, RESTART):
        found = seen(eviction=eviction)
        assert found.vm.spec.power_state is PowerState.STOPPED
        assert found.evicted is not None and found.evicted.reason == IN_MAINTENANCE
        for where in (host(), host(maintenance={"mode": "InPlace"}), host(maintenance={}, fenced=True)):
            assert seen(where, eviction=eviction).vm.spec.power_state is PowerState.RUNNING
        assert seen(eviction=eviction.model_copy(update={"host": THERE})).evicted is None, "of another host"
    assert seen(eviction=MOVE).evicted is None and seen().evicted is None


def test_what_is_off_there_is_not_started_there_and_may_go_elsewhere() -> None:
    assert seen(off=True).vm.spec.power_state is PowerState.STOPPED
    assert leaves(seen(off=True)) and leaves(seen(off=True, eviction=RESTART))
    assert not leaves(seen(off=True, eviction=STOP)), "it waits for its host"
    assert not leaves(seen()) and not leaves(seen(eviction=RESTART)), "it is on"
    assert not leaves(seen(off=True, power="Stopped")), "its owner wants it off: it is placed anew when he starts it"
    assert not leaves(seen(off=True, paused=True)) and not leaves(seen(off=True, deleting=True))
    assert not leaves(seen(host(maintenance={}, fenced=True), off=True)), "that is for the rules of fencing"
    assert leaves(seen(ordered=False)) and not leaves(seen(host(), ordered=False)), "placed there just before"


def test_what_is_off_leaves_a_host_that_is_removed() -> None:
    assert leaves(seen(host(deleting=True), off=True, power="Stopped"))
    assert not leaves(seen(host(deleting=True)))
