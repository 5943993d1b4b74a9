"""Who has an interface, and what it may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus_controllers.network.interface_plan import (
    Scope,
    asked,
    chosen_by,
    derive_status,
    full,
    held,
    holder,
    mac_in_use,
    pairs_refused,
    whose,
)
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.networks import competes, counts
from kumulus_controllers.network.nics import nic
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.storage.volume_plan import MADE_FOR
from tests.unit.network_controllers.material import (
    NOW,
    allocated,
    claim,
    has,
    instance,
    interface,
    machine,
    network,
    ordered,
)

NIC = allocated("nic", "10.0.0.3")


def scope(of: Any = NIC, **more: Any) -> Scope:
    return Scope(of, more.pop("network", network()), **more)


def test_the_first_machine_that_names_it_has_it_and_keeps_it() -> None:
    old, young = (
        machine("b", creationTimestamp="2026-01-01T00:00:00Z"),
        machine("a", creationTimestamp="2026-02-01T00:00:00Z"),
    )
    assert holder(scope(users=(young, old))) == "b"
    kept = allocated("nic", "10.0.0.3", vm="a")
    assert holder(scope(kept, users=(young, old))) == "a"
    assert holder(scope()) is None


def test_a_machine_that_is_deleted_or_taken_it_from_loses_it_when_its_host_has_let_go() -> None:
    web, other = machine("web", deletionTimestamp=NOW), machine("other")
    kept = allocated("nic", "10.0.0.3", vm="web")
    order = instance(web, ordered("eth0", NIC))
    assert holder(scope(kept, users=(web, other), instances=(order,))) == "web"
    assert holder(scope(kept, users=(web, other))) == "other"
    still = instance(web, attached=(has("eth0", NIC),))
    assert holder(scope(kept, users=(other,), instances=(still,))) == "web"


def test_what_a_machine_brought_along_is_nobody_else_s() -> None:
    mine = interface("nic", annotations={MADE_FOR: machine("web").uid})
    assert holder(scope(mine, users=(machine("other"), machine("web")))) == "web"
    assert holder(scope(mine, users=(machine("other"),))) is None


def test_it_goes_when_no_machine_has_it() -> None:
    going = interface("nic", deletionTimestamp=NOW)
    lack = held(scope(going, users=(machine(),)))
    assert lack is not None and "take it out of that machine's spec.interfaces" in lack.message and lack.stalled
    lack = held(scope(going, instances=(instance(machine(), ordered("eth0", NIC)),)))
    assert lack is not None and lack.message == "Machine web on host h1 lets go of it." and not lack.stalled
    assert held(scope(going)) is None


def test_what_a_machine_brought_along_goes_when_its_host_has_let_go() -> None:
    web = machine(interfaces=[{"name": "eth0", "network": "net"}])
    going = allocated("web-eth0", "10.0.0.3", vm="web", deletionTimestamp=NOW, annotations={MADE_FOR: web.uid})
    assert held(scope(going, users=(web,))) is None, "the machine makes it anew"
    lack = held(scope(going, users=(web,), instances=(instance(web, ordered("eth0", going)),)))
    assert lack is not None and lack.message == "Machine web on host h1 lets go of it." and not lack.stalled


def test_who_would_make_one_of_that_name_does_not_have_the_one_that_is_there() -> None:
    web, other = machine(interfaces=[{"name": "eth0", "network": "net"}]), machine("other")
    there = interface("web-eth0", deletionTimestamp=NOW)
    assert holder(scope(there, users=(web,))) is None and held(scope(there, users=(web,))) is None
    of_before = interface("web-eth0", deletionTimestamp=NOW, annotations={MADE_FOR: other.uid})
    assert held(scope(of_before, users=(web,))) is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.9", None),
        ("10.0.1.9", "AddressNotInNetwork"),
        ("fd00::9", "AddressNotInNetwork"),
        ("10.0.0.0", "AddressReserved"),
        ("10.0.0.1", "AddressReserved"),
        ("10.0.0.2", "AddressReserved"),
        ("10.0.0.255", "AddressReserved"),
    ],
)
def test_what_can_be_asked_for(address: str, reason: str | None) -> None:
    lack = asked(scope(interface(addresses=[address])))
    assert (lack.reason if lack else None) == reason


def test_what_it_asks_for_and_what_is_chosen_besides_is_no_more_than_it_can_have() -> None:
    both = network(cidrs=["10.0.0.0/24", "fd00::/64"])
    many = [f"10.0.0.{number}" for number in range(10, 26)]
    lack = asked(scope(interface(addresses=many), network=both))
    assert lack is not None and lack.reason == "TooManyAddresses" and lack.stalled
    assert "asks for 16 addresses and is given one of fd00::/64 besides" in lack.message
    for fits in (many[1:], [*many[1:], "fd00::9"]):
        assert asked(scope(interface(addresses=fits), network=both)) is None
    assert asked(scope(interface(addresses=many))) is None, "in a network of one range"
    after = derive_status(scope(interface(addresses=many), network=both), None, lack, NOW)
    assert after.phase == "Failed" and after.condition("Stalled") is not None


def test_a_gateway_that_its_owner_put_somewhere_can_be_an_interface() -> None:
    own = network(gateway="10.0.0.254")
    assert asked(scope(interface(addresses=["10.0.0.254"]), network=own)) is None
    guest = interface(namespace="team", networkNamespace="ns", addresses=["10.0.0.254"])
    assert asked(scope(guest, network=own)) is not None, "no guest becomes the router of a shared network"


def test_nobody_uses_addresses_of_others_in_a_network_of_others() -> None:
    pairs = [{"address": "10.0.0.1"}]
    guest = allocated("guest", "10.0.0.4", namespace="team", networkNamespace="ns", allowedAddressPairs=pairs)
    lack = pairs_refused(scope(guest))
    assert lack is not None and lack.reason == "AddressPairsNotAllowed" and nic("eth0", guest, {}, None).pairs == ()
    own = allocated("own", "10.0.0.5", allowedAddressPairs=pairs)
    assert pairs_refused(scope(own)) is None and len(nic("eth0", own, {}, None).pairs) == 1


def test_what_was_claimed_before_a_crash_is_taken_up() -> None:
    new, [found] = interface(), ranges(network())
    assert chosen_by(scope(new), found) == ()
    mine = (claim("10.0.0.7", new), claim("10.0.0.9", new))
    assert chosen_by(scope(new, claims=mine), found) == ("10.0.0.7",)
    released = (claim("10.0.0.7", new, releasedAt=NOW), claim("10.0.0.9", new))
    assert chosen_by(scope(new, claims=released), found) == ("10.0.0.9",)
    asks = interface(addresses=["10.0.0.4", "10.0.0.5"])
    assert chosen_by(scope(asks, claims=mine), found) == ("10.0.0.4", "10.0.0.5")


def test_of_two_with_one_mac_the_one_that_has_it_keeps_it_else_the_first() -> None:
    wants = {"macAddress": "02:00:00:00:00:09"}
    new = interface("new", creationTimestamp="2026-02-01T00:00:00Z", **wants)
    old = interface("old", creationTimestamp="2026-01-01T00:00:00Z", **wants)
    has_it = interface("has", creationTimestamp="2026-03-01T00:00:00Z", status=wants, **wants)
    lack = mac_in_use(scope(new, rivals=(old,)))
    assert lack is not None and lack.reason == "MacAddressInUse" and "Interface old" in lack.message
    assert mac_in_use(scope(old, rivals=(new,))) is None
    assert mac_in_use(scope(old, rivals=(has_it,))) is not None
    assert mac_in_use(scope(has_it, rivals=(old,))) is None


def test_of_another_namespace_only_who_is_in_a_network_keeps_it_and_who_may_be_wants_a_mac() -> None:
    theirs, shared = network(), network(type="Shared", allowedNamespaces=["team"])
    waits = interface(namespace="team", networkNamespace="ns")
    inside = allocated("inside", "10.0.0.4", namespace="team", networkNamespace="ns")
    of_before = interface(namespace="team", networkNamespace="ns", status={"network": "another"})
    for item, keeps, wants in (
        (interface(), True, (True, True)),
        (inside, True, (True, True)),
        (waits, False, (False, True)),
        (of_before, False, (False, True)),
    ):
        assert counts(item, theirs) is counts(item, shared) is keeps
        assert (competes(item, theirs), competes(item, shared)) == wants


def test_whose_a_claim_is() -> None:
    mine, theirs = interface("mine"), interface("theirs")
    assert whose(claim("10.0.0.3", mine), mine, 60) is None
    lack = whose(claim("10.0.0.3", theirs), mine, 60)
    assert lack == Lack(
        "AddressInUse", "10.0.0.3 is the address of interface theirs: ask for another one, or for none."
    )
    lack = whose(claim("10.0.0.3", theirs, interfaceNamespace="secret"), mine, 60)
    assert lack is not None and "secret" not in lack.message and "theirs" not in lack.message
    lack = whose(claim("10.0.0.3", theirs, releasedAt=NOW), mine, 60)
    assert lack is not None and "rests until 2026-01-01T00:01:00Z" in lack.message and not lack.stalled
    lack = whose(claim("10.0.0.3", theirs, releasedAt="soon"), mine, 60)
    assert lack is not None and "rests, so that" in lack.message


def test_a_full_network_is_explained_in_numbers() -> None:
    small = network(cidrs=["10.0.0.0/29"])
    claims = (claim("10.0.0.3", NIC), claim("10.0.0.4", NIC, releasedAt=NOW))
    said = full(small, ranges(small)[0], claims)
    assert "of 4 that can be given, 1 are in use, 1 rest for a while" in said.message


@pytest.mark.parametrize(
    ("start", "end"), [("10.9.0.3", "10.9.0.9"), ("10.0.0.9", "10.0.0.3"), ("10.0.0.0", "10.0.0.2")]
)
def test_a_network_that_can_give_nothing_has_its_owner_correct_it(start: str, end: str) -> None:
    wrong = network(dhcp={"ranges": [{"start": start, "end": end}]})
    lack = full(wrong, ranges(wrong)[0], ())
    assert (lack.reason, lack.stalled) == ("NetworkFull", True) and "correct spec.dhcp.ranges" in lack.message


def test_what_it_has_for_life_stays_on_record() -> None:
    after = derive_status(scope(users=(machine(),)), None, Lack("NetworkGone", "x"), NOW)
    assert (after.addresses, after.mac_address) == (NIC.status.addresses, NIC.status.mac_address)
    assert after.phase == "Allocated" and after.vm == "web"


def test_the_guest_s_hypervisor_says_whether_it_is_attached() -> None:
    for attached, phase in ((True, "Attached"), (False, "Allocated")):
        order = instance(machine(), ordered("eth0", NIC), attached=(has("eth0", NIC, attached=attached),))
        after = derive_status(scope(instances=(order,)), ("10.0.0.3",), None, NOW)
        assert (after.phase, after.vm, after.host) == (phase, "web", "h1")
