"""The interfaces of a machine: which it may have, and what its order says of them from one pass to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.host import WorkOrder
from kumulus.api.network import NetworkInterface
from kumulus_controllers.compute.links import link_of, linked, meant, renewed_nics
from kumulus_controllers.compute.phase import Placed, derive_status
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Link, Scope
from kumulus_controllers.network.nics import bits, nic
from kumulus_controllers.storage.volume_plan import MADE_FOR
from tests.unit.network_controllers.material import (
    NOW,
    allocated,
    group,
    has,
    instance,
    interface,
    machine,
    network,
    ordered,
)

OWN = {"name": "eth0", "interface": "nic"}
MADE = {"name": "eth0", "network": "net"}
NIC = allocated("nic", "10.0.0.3", vm="web")
DEFAULT = group("default")


def scope(*links: NetworkInterface, order: WorkOrder | None = None, entry: dict[str, Any] = OWN, **more: Any) -> Scope:
    vm = machine(interfaces=[entry])
    found = {"eth0": Link(links[0], {"default": DEFAULT}, **more)} if links else {}
    return Scope(vm, order, None, None, {}, links=found)


def problem(of: Scope) -> Problem:
    found = link_of(of, of.vm.spec.interfaces[0])
    assert isinstance(found, Problem)
    return found


GOING = allocated("web-eth0", "10.0.0.3", vm="web", deletionTimestamp=NOW, annotations={MADE_FOR: machine().uid})
OF_BEFORE = allocated("web-eth0", "10.0.0.3", vm="web", deletionTimestamp=NOW, annotations={MADE_FOR: "another"})


@pytest.mark.parametrize(
    ("of", "reason", "stalled"),
    [
        (scope(), "InterfaceNotFound", True),
        (scope(interface()), "InterfaceNotReady", False),
        (scope(NIC, elsewhere="other"), "InterfaceInUse", True),
        (scope(allocated("nic", "10.0.0.3", vm="other")), "InterfaceInUse", True),
        (scope(allocated("nic", "10.0.0.3")), "InterfaceNotReady", False),
        (scope(NIC, entry=MADE), "InterfaceExists", True),
        (scope(allocated("nic", "10.0.0.3", vm="web", deletionTimestamp=NOW)), "InterfaceDeleting", True),
        (scope(GOING, entry=MADE), "InterfaceDeleting", False),
        (scope(OF_BEFORE, entry=MADE), "InterfaceDeleting", False),
    ],
)
def test_why_it_may_not_have_one(of: Scope, reason: str, stalled: bool) -> None:
    found = problem(of)
    assert (found.reason, found.stalled, found.aspect) == (reason, stalled, "NetworkReady")
    after = derive_status(of, None, None, found, NOW)
    for type_, wanted in (("NetworkReady", reason), ("Scheduled", "NetworkNotReady"), ("Ready", reason)):
        condition = after.condition(type_)
        assert condition is not None and condition.status == "False" and condition.reason == wanted


def test_what_the_interface_says_is_the_machine_s_reason() -> None:
    said = [
        {"type": "Ready", "status": "False", "reason": "NetworkFull", "message": "Nothing left."},
        {"type": "Stalled", "status": "True", "reason": "NetworkFull"},
    ]
    found = problem(scope(interface(status={"conditions": said})))
    assert (found.reason, found.message) == ("NetworkFull", "NetworkInterface nic: Nothing left.")


def test_what_it_may_have_is_ordered_with_all_that_is_its_own() -> None:
    full = allocated(
        "nic",
        "10.0.0.3",
        vm="web",
        allowedAddressPairs=[{"address": "10.0.0.100"}, {"address": "fd00::/64", "macAddress": "00:00:5e:00:01:01"}],
        bandwidth={"outbound": "100M"},
        annotations={MADE_FOR: machine().uid},
    )
    [found], lack = linked(scope(full, entry=MADE))
    assert lack is None and (found.network, found.hostname, found.groups) == (network().uid, "web", (DEFAULT.uid,))
    assert [(p.cidr, p.mac) for p in found.pairs] == [("10.0.0.100/32", None), ("fd00::/64", "00:00:5e:00:01:01")]
    assert found.bandwidth is not None and (found.bandwidth.inbound, found.bandwidth.outbound) == (None, 10**8)


def test_bits() -> None:
    assert [bits(text) for text in (None, "9000", "64k", "100M", "2G", "1")] == [
        None,
        9000,
        64000,
        10**8,
        2 * 10**9,
        8000,
    ]


def test_a_missing_group_keeps_a_new_machine_back_and_lets_nothing_through() -> None:
    of = scope(NIC)
    of = replace(of, links={"eth0": Link(NIC, {"web": None, "default": DEFAULT})})
    [found], lack = linked(of)
    assert lack is not None and lack.reason == "SecurityGroupNotFound" and found.groups == (DEFAULT.uid,)


NEW = allocated("new", "10.0.0.9", vm="web")


def renewed(order: WorkOrder, of: Scope) -> list[str]:
    nics, _ = linked(of)
    return [item.uid for item in renewed_nics(of.vm, order, nics, meant(of))]


def test_an_order_follows_the_spec_and_another_interface_of_a_name_waits_for_the_host() -> None:
    vm = machine()
    assert renewed(instance(vm), scope(NIC)) == [NIC.uid]
    there = instance(vm, ordered("eth0", NIC), attached=(has("eth0", NIC),))
    assert renewed(there, scope(NIC)) == [NIC.uid]
    assert renewed(there, replace(scope(NIC), vm=machine(interfaces=[]))) == []
    assert renewed(there, scope(interface(status={}))) == [NIC.uid], (
        "what was ordered stays while it cannot be told anew"
    )
    other = replace(scope(NEW), vm=machine(interfaces=[{"name": "eth0", "interface": "new"}]))
    assert renewed(there, other) == []
    assert renewed(instance(vm, attached=(has("eth0", NIC),)), other) == [], "the guest has the other one still"
    assert renewed(instance(vm, attached=(has("eth0", NIC, attached=False),)), other) == [NEW.uid]


def test_an_order_lets_go_of_what_is_deleted_and_made_anew() -> None:
    vm = machine(interfaces=[MADE])
    there = instance(vm, ordered("eth0", GOING), attached=(has("eth0", GOING),))
    assert renewed(there, scope(GOING, entry=MADE)) == []
    new = allocated("web-eth0", "10.0.0.4", vm="web", annotations={MADE_FOR: vm.uid})
    new = new.model_copy(update={"metadata": new.metadata.model_copy(update={"uid": NEW.uid})})
    assert renewed(instance(vm, attached=(has("eth0", GOING),)), scope(new, entry=MADE)) == []
    assert renewed(instance(vm), scope(new, entry=MADE)) == [NEW.uid]
    own = allocated("nic", "10.0.0.3", vm="web", deletionTimestamp=NOW)
    assert renewed(instance(vm, ordered("eth0", own)), scope(own)) == [own.uid], "it is taken out of the spec, or stays"


def ready(of: Scope, order: WorkOrder, **more: Any) -> tuple[str, str] | None:
    after = derive_status(replace(of, order=order), Placed("h1", "z1", 1), None, None, NOW)
    found = after.condition("NetworkReady")
    return (str(found.status), found.reason) if found is not None else None


def test_a_running_machine_is_on_its_networks_when_its_hypervisor_says_so() -> None:
    vm = machine()
    there = instance(vm, ordered("eth0", NIC), attached=(has("eth0", NIC),))
    assert ready(scope(NIC), there) == ("True", "InterfacesReady")
    assert ready(scope(NIC), instance(vm, ordered("eth0", NIC))) == ("False", "NotAttached")
    waiting = {"state": "Waiting", "reason": "SegmentNotReady", "message": "x", "observedGeneration": 1}
    waits = WorkOrder.parse({**there.model_dump(by_alias=True, mode="json"), "status": waiting})
    assert ready(scope(NIC), waits) == ("False", "SegmentNotReady")
    plain = replace(scope(), vm=machine(interfaces=[]))
    assert ready(plain, there) is None, "a machine without interfaces has no such condition"


def test_the_machine_s_addresses_are_its_interfaces() -> None:
    after = derive_status(scope(NIC), None, None, None, NOW)
    assert after.addresses == ("10.0.0.3",)
    assert derive_status(scope(allocated("nic", "10.0.0.3", vm="other")), None, None, None, NOW).addresses == ()
    assert nic("eth0", NIC, {"default": DEFAULT}, "web").addresses == ("10.0.0.3",)


def test_a_machine_s_status_has_room_for_the_first_addresses() -> None:
    entries = [{"name": f"eth{number}", "interface": f"nic{number}"} for number in range(5)]
    every = [[f"10.0.{number}.{last}" for last in range(16)] for number in range(5)]
    links = {f"eth{n}": Link(allocated(f"nic{n}", *every[n], vm="web"), {}) for n in range(5)}
    of = replace(scope(), vm=machine(interfaces=entries), links=links)
    assert derive_status(of, None, None, None, NOW).addresses == tuple(
        address for some in every[:4] for address in some
    )
