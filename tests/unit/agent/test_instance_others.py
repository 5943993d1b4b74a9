"""Domains that were somebody else's, and what somebody does to a machine's domain: what is planned, state by state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.order_names import segment_order_name
from kumulus_agents.agent import instance_notes, instance_others, instance_plan
from kumulus_agents.agent.instance_others import REFILL_EVERY
from kumulus_agents.agent.instance_scope import (
    Adopt,
    Disown,
    Mark,
    Memory,
    Plan,
    Redefine,
    Refill,
    Remove,
    Replug,
    Start,
)
from kumulus_agents.hypervisor.domain import AttachedNic
from kumulus_agents.hypervisor.libvirt import attached, drift
from tests.unit.agent.test_instance_plan import N1, NOW, off, on, order, paused, reported, scope


def test_a_domain_is_adopted_once_and_never_started_in_its_place() -> None:
    wanted = order(adopt=True)
    waiting = WorkOrderStatus(state=WorkState.WAITING, reason="VolumeNotReady")
    for status in (WorkOrderStatus(), waiting):
        (step,) = instance_plan.plan(replace(scope(None, wanted), status=status)).steps
        assert isinstance(step, Adopt) and step.marks.wanted is PowerState.RUNNING
    assert instance_plan.plan(scope(on(), wanted)).state is WorkState.RUNNING
    lost = instance_plan.plan(replace(scope(None, wanted), status=reported()))
    assert any(isinstance(step, Start) for step in lost.steps) or lost.state is WorkState.BACK_OFF
    (start,) = instance_plan.plan(scope(off(wanted=PowerState.STOPPED), wanted)).steps
    assert isinstance(start, Start), "from then on it is a machine like any other"


def test_what_is_known_of_interfaces_is_noted_and_kept_while_its_network_is_away() -> None:
    (nic,) = order(nics=(N1,)).nics
    segment = {"uid": nic.network, "driver": "linux", "mtu": 1450, "vni": 5000}
    whose = {"kind": "Network", "namespace": "shop", "name": "front", "uid": nic.network}
    spec = {"type": "Segment", "for": whose, "term": 1, "segment": segment}
    there = WorkOrder.parse({"metadata": {"name": segment_order_name(nic.network), "uid": "o"}, "spec": spec})
    (first,) = instance_notes.noted((nic,), {there.name: there}.get, ())
    assert (first.network, first.vni, first.mac, first.addresses) == ("shop/front", 5000, nic.mac, nic.addresses)
    assert instance_notes.noted((nic,), lambda _: None, (first,)) == (first,)
    assert instance_notes.noted((nic,), lambda _: None, ()) == (replace(first, network=None, vni=None),)
    known = replace(scope(on(), order()), nics=(first,))
    (mark,) = instance_plan.plan(known).steps
    assert isinstance(mark, Mark) and mark.marks.nics == (first,), "of a machine that runs, too"


def test_a_machine_of_an_older_placement_is_adopted_before_its_disks_are_looked_at() -> None:
    lost = on(epoch=2)
    assert lost.marks.epoch < order().epoch
    for status in (WorkOrderStatus(), reported(WorkState.WAITING, epoch=2)):
        (step,) = instance_plan.plan(replace(scope(lost, order(adopt=True)), status=status)).steps
        assert isinstance(step, Adopt) and step.marks.epoch == order().epoch
    for unmanage in (False, True):
        ended = instance_plan.plan(replace(scope(lost, order(adopt=True, unmanage=unmanage)), deleting=True))
        assert ended == Plan(release=True), "it is left as it was"


def test_of_two_imports_of_a_domain_the_second_does_nothing_to_it() -> None:
    mine, another = on(), on(name="other")
    assert instance_plan.plan(scope(mine, order(adopt=True))).state is WorkState.RUNNING
    refused = instance_plan.plan(scope(another, order(adopt=True)))
    assert (refused.steps, refused.state, refused.reason) == ((), WorkState.REFUSED, "DomainTaken")
    for unmanage in (False, True):
        ended = instance_plan.plan(replace(scope(another, order(adopt=True, unmanage=unmanage)), deleting=True))
        assert ended == Plan(release=True)


@pytest.mark.parametrize("domain", [None, on(), paused(), off()], ids=["absent", "on", "paused", "off"])
def test_the_end_of_a_machine_that_is_let_go_of_leaves_its_domain(domain) -> None:  # type: ignore[no-untyped-def]
    let_go = instance_plan.plan(replace(scope(domain, order(unmanage=True)), deleting=True))
    assert let_go == Plan((Disown(),), release=True)
    elsewhere = order(unmanage=True, superseded=True, power=PowerState.STOPPED)
    ended = instance_plan.plan(replace(scope(domain, elsewhere), deleting=True))
    assert ended.steps == (Remove(),), "it runs elsewhere"


def test_what_somebody_took_is_given_back_and_what_they_changed_is_said() -> None:
    assert instance_plan.plan(scope(replace(on(), lost=True))).steps == (Redefine(),)
    assert instance_plan.plan(
        scope(replace(paused(wanted=PowerState.PAUSED), lost=True), order(power=PowerState.PAUSED))
    ).steps == (Redefine(),)
    squeezed = replace(on(), squeezed=True)
    assert instance_plan.plan(scope(squeezed)).steps == (Refill(),)
    lately = Memory(refilled_at=NOW - 1, squeezed_since=NOW - REFILL_EVERY)
    asked = instance_plan.plan(replace(scope(squeezed), memory=lately))
    assert (asked.steps, asked.state, asked.reason) == ((), WorkState.RUNNING, "MemoryTaken")
    again = instance_plan.plan(replace(scope(squeezed), memory=Memory(refilled_at=NOW - REFILL_EVERY)))
    assert again.steps == (Refill(),)
    changed = instance_plan.plan(scope(replace(on(), edited=("vcpu", "disk vdb"))))
    assert (changed.state, changed.reason) == (WorkState.RUNNING, "DefinitionChanged")
    assert "vcpu, disk vdb" in (changed.message or "")


@pytest.mark.parametrize("held", [1.0, REFILL_EVERY + 1])
def test_a_guest_that_gives_memory_back_again_and_again_is_hardly_ever_told_of(held: float) -> None:
    """It does so by itself, and each change of what is said is a write."""
    memory, status, writes, at = Memory(), reported(), 0, NOW
    while at < NOW + 600:
        for seconds, squeezed in ((held, True), (1.0, False)):
            for look in (at, at + seconds):
                seen = replace(scope(replace(on(), squeezed=squeezed)), memory=memory, status=status, now=look)
                seen = replace(seen, memory=replace(instance_others.noticed(seen, memory), refilled_at=look))
                plan = instance_plan.plan(seen)
                said = replace_reason(status, plan.reason)
                writes += said != status
                memory, status = instance_others.told(seen, said, seen.memory), said
            at += seconds
    assert writes <= 2
    waiting = replace(scope(replace(on(), squeezed=True)), memory=Memory(refilled_at=NOW, squeezed_since=NOW - 4))
    assert (instance_plan.plan(waiting).reason, instance_plan.plan(waiting).after) == (None, REFILL_EVERY - 4)
    before = replace(waiting, status=reported(reason="MemoryTaken"))
    assert instance_plan.plan(before).reason == "MemoryTaken", "another agent has said so"


def replace_reason(status: WorkOrderStatus, reason: str | None) -> WorkOrderStatus:
    return status.model_copy(update={"reason": reason})


def test_an_interface_that_was_somebody_elses_comes_into_its_network() -> None:
    nic = N1
    domain = replace(on(), nics=(AttachedNic(nic.uid, nic.mac, "kt", elsewhere=True),))
    steps = instance_plan.plan(replace(scope(domain, order(nics=(nic,))), memory=Memory(ports={nic.uid: nic}))).steps
    assert steps == (Replug(nic),)
    there = replace(on(), nics=(AttachedNic(nic.uid, nic.mac, "kt"),))
    assert not instance_plan.plan(replace(scope(there, order(nics=(nic,))), memory=Memory(ports={nic.uid: nic}))).steps


HEAD = "<domain><name>n</name><vcpu placement='static'>1</vcpu><memory unit='KiB'>1024</memory>"


def test_what_was_edited_is_named_and_what_is_on_its_way_out_is_not() -> None:
    disk = "<disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/></disk>"
    live = f"{HEAD}<devices>{disk}<interface><mac address='AA:00:00:00:00:01'/></interface></devices></domain>"
    assert drift.edited(live, live) == ()
    assert drift.edited(live, f"{HEAD}<devices/></domain>") == ()
    other = live.replace("'static'>1<", "'static'>2<").replace("/a", "/b").replace("</devices>", "<hostdev/></devices>")
    assert drift.edited(live, other) == ("vcpu", "disk vda", "hostdev")


@pytest.mark.parametrize(
    ("now", "more", "wanted"),
    [(1024, "", False), (512, "", True), (512, "<memory model='virtio-mem'/>", False)],
)
def test_memory_that_somebody_took_is_seen(now: int, more: str, wanted: bool) -> None:
    root = attached._root(f"{HEAD}<currentMemory>{now}</currentMemory><devices>{more}</devices></domain>")
    assert attached.squeezed(root) is wanted
