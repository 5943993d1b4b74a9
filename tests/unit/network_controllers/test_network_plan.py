"""What a network is to be: class, packets, who may use it."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.base import PAUSED
from kumulus.api.network import NetworkClass
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.network_plan import Scope, Wanted, derive_status, is_default, usable, wanted
from tests.unit.network_controllers.material import NOW, NS, allocated, interface, network


def offered(name: str = "fast", **spec: Any) -> NetworkClass:
    return NetworkClass.parse({"metadata": {"name": name}, "spec": spec})


def reason(found: Wanted | Lack) -> str:
    assert isinstance(found, Lack)
    return found.reason


def test_without_any_class_there_is_what_linux_can_do() -> None:
    found = wanted(Scope(network(status={}), None))
    assert isinstance(found, Wanted) and (found.offer.driver, found.mtu) == ("linux", 1450)


def test_a_class_that_is_missing_or_others_is_said() -> None:
    named = network(status={}, **{"class": "fast"})
    assert reason(wanted(Scope(named, None))) == "NetworkClassNotFound"
    assert reason(wanted(Scope(named, offered(allowedNamespaces=["other"])))) == "NetworkClassNotAllowed"
    assert isinstance(wanted(Scope(named, offered(allowedNamespaces=["ns"]))), Wanted)
    assert isinstance(wanted(Scope(network(**{"class": "fast"}), None)), Wanted), "what was made stays"


@pytest.mark.parametrize(
    ("spec", "mtu"),
    [
        ({}, 8950),
        ({"mtu": 1300}, 1300),
        ({"mtu": 8951}, "MtuTooLarge"),
        ({"mtu": 1000, "cidrs": ["fd00::/64"]}, "MtuTooSmall"),
    ],
)
def test_packets_fit_into_the_tunnels(spec: dict[str, Any], mtu: int | str) -> None:
    found = wanted(Scope(network(status={}, **spec), offered(mtu=9000)))
    assert (found.mtu if isinstance(found, Wanted) else found.reason) == mtu


def test_a_changed_class_makes_packets_smaller_and_never_larger() -> None:
    for class_mtu, mtu in ((1400, 1350), (9000, 1450)):
        found = wanted(Scope(network(), offered(mtu=class_mtu)))
        assert isinstance(found, Wanted) and found.mtu == mtu
    found = wanted(Scope(network(status={}), None, over_v6=True))
    assert isinstance(found, Wanted) and found.mtu == 1430


def test_who_may_use_a_network() -> None:
    shared = network(type="Shared", allowedNamespaces=["team"])
    assert usable(shared, "team", "net", "ns") is None
    assert usable(shared, "ns", "net", None) is None
    answers = {
        str(usable(item, "team", "net", "ns"))
        for item in (None, network(), network(type="Shared", allowedNamespaces=["others"]))
    }
    assert len(answers) == 1 and "NetworkNotAllowed" in answers.pop(), "nobody learns which networks others have"
    for item, wanted_reason in ((None, "NetworkNotFound"), (network(status={}), "NetworkNotReady")):
        lack = usable(item, "ns", "net", None)
        assert lack is not None and lack.reason == wanted_reason


def test_a_network_that_is_to_go_says_what_keeps_it() -> None:
    going = network()
    going = going.model_copy(update={"metadata": going.metadata.model_copy(update={"deletion_timestamp": NOW})})
    users = (interface("a"), interface("b", namespace="team"))
    after = derive_status(Scope(going, None, interfaces=users, hosts=("h1",)), None, None, 5000, NOW)
    ready = after.condition("Ready")
    assert after.phase == "Terminating" and ready is not None and ready.reason == "InUse"
    assert "2 interfaces (a, team/b)" in ready.message
    after = derive_status(Scope(going, None, hosts=("h1", "h2")), None, None, 5000, NOW)
    ready = after.condition("Ready")
    assert after.condition("Stalled") is None and after.condition("Reconciling") is not None and after.hosts == 2
    assert ready is not None and "from hosts h1, h2." in ready.message and "--force-detach" in ready.message
    after = derive_status(Scope(going, None, hosts=tuple(f"h{n}" for n in range(6))), None, None, 5000, NOW)
    ready = after.condition("Ready")
    assert ready is not None and "h4, ..." in ready.message and "h5" not in ready.message


def test_of_several_default_classes_the_first_by_name_is_it() -> None:
    one, two = offered("a", default=True), offered("b", default=True)
    assert is_default(one, (one, two)) is None and is_default(offered("c"), (one, two)) is None
    lack = is_default(two, (one, two))
    assert lack is not None and "NetworkClass a" in lack.message


def says(scope: Scope, type_: str) -> str:
    """Reason and message of a condition of a network that is ready all the same."""
    after = derive_status(scope, wanted(scope), None, 5000, NOW)  # type: ignore[arg-type]
    assert after.phase == "Ready"
    found = after.condition(type_)
    return f"{found.status} {found.reason}: {found.message}" if found is not None else ""


def test_who_may_not_use_it_any_more_is_said_while_it_goes_on() -> None:
    shared = network(type="Shared", allowedNamespaces=["team"])
    inside = [allocated(name, "10.0.0.5", namespace=name, networkNamespace=NS) for name in ("team", "others")]
    assert says(Scope(shared, None, interfaces=(inside[0], allocated("own", "10.0.0.6"))), "Allowed") == ""
    said = says(Scope(shared, None, interfaces=tuple(inside)), "Allowed")
    assert said.startswith("False NamespaceNotAllowed: ") and "(others/others)" in said
    named = network(**{"class": "fast"})
    assert says(Scope(named, offered(allowedNamespaces=["ns"])), "Allowed") == ""
    assert says(Scope(named, offered(allowedNamespaces=["x"])), "Allowed").startswith("False NetworkClassNotAllowed: ")


def test_ranges_that_give_nothing_are_said() -> None:
    def ranged(*parts: tuple[str, str]) -> Scope:
        return Scope(network(dhcp={"ranges": [{"start": start, "end": end} for start, end in parts]}), None)

    good = ("10.0.0.10", "10.0.0.20")
    assert says(ranged(good), "RangesUsable") == ""
    said = says(
        ranged(good, ("10.0.0.9", "10.0.0.8"), ("10.0.1.1", "10.0.1.9"), ("fd00::1", "fd00::2")), "RangesUsable"
    )
    assert said.startswith(
        "False RangeOutside: spec.dhcp.ranges[1] (10.0.0.9 to 10.0.0.8) ends before it starts, [2] ("
    )
    assert "[3] (fd00::1 to fd00::2) is outside" in said and "[0]" not in said
    assert "[1] (10.0.0.250 to 10.0.1.5) is partly outside" in says(
        ranged(good, ("10.0.0.250", "10.0.1.5")), "RangesUsable"
    )


def test_a_network_that_is_left_alone_says_so_when_it_is_to_go() -> None:
    going = network()
    about = going.metadata.model_copy(update={"deletion_timestamp": NOW, "annotations": {PAUSED: "true"}})
    ready = derive_status(Scope(going.model_copy(update={"metadata": about}), None), None, None, 5000, NOW).condition(
        "Ready"
    )
    assert ready is not None and ready.reason == "LeftAlone" and f"{PAUSED}-" in ready.message
