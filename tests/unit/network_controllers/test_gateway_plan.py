"""Which hosts a gateway is on."""

from __future__ import annotations

from kumulus.api.gateways import GatewayFunction
from kumulus.api.segments import NetworkDriverName
from kumulus_controllers.network.gateway_plan import Candidate, Choice, Need, choose, choose_some, link_mac, redundancy

NEED = Need(NetworkDriverName.LINUX, GatewayFunction.ROUTER, 2)


def host(name: str, **more: object) -> Candidate:
    values: dict[str, object] = {"drivers": frozenset({"linux"}), "underlay": f"10.0.0.{ord(name) - 96}"}
    return Candidate(name=name, **(values | more))  # type: ignore[arg-type]


def test_who_has_least_is_taken_and_it_stays_there() -> None:
    hosts = [host("a", gateways=3), host("b"), host("c", gateways=1)]
    assert choose(NEED, hosts, (), None) == Choice(("b", "c"))
    assert choose(NEED, [host("a"), host("b", gateways=9), host("c", gateways=9)], ("b", "c"), "c") == Choice(
        ("b", "c")
    )


def test_what_a_host_lacks_is_said() -> None:
    need = Need(NetworkDriverName.LINUX, GatewayFunction.ROUTER, 2, frozenset({"public"}))
    hosts = [
        host("a", uplinks=frozenset({"public"})),
        host("b"),
        host("c", drivers=frozenset()),
        host("d", closed="cordoned", uplinks=frozenset({"public"})),
    ]
    choice = choose(need, hosts, (), None)
    assert choice.hosts == ("a",)
    assert choice.short == 1
    assert choice.refused == {
        "b": "without an uplink to physical network public",
        "c": "without network driver linux",
        "d": "cordoned",
    }


def test_where_no_two_hosts_can_have_it_one_does() -> None:
    hosts = [host("a", underlay=None), host("b", underlay=None)]
    assert choose(NEED, hosts, (), None).hosts == ()
    choice = choose_some(NEED, hosts, (), None)
    assert (choice.hosts, choice.short) == (("a",), 1)
    assert choice.refused == {"a": "without an address for tunnels", "b": "without an address for tunnels"}
    assert choose_some(NEED, [host("a"), host("b")], (), None) == Choice(("a", "b"))
    assert choose_some(NEED, [host("a", closed="cordoned")], (), None).hosts == ()


def test_the_active_host_is_not_replaced_by_another_that_would_be_alone_too() -> None:
    hosts = [host("a", underlay=None), host("b")]
    choice = choose_some(NEED, hosts, ("a",), "a")
    assert (choice.hosts, choice.short) == (("a",), 1)
    assert choice.refused == {"a": "without an address for tunnels"}
    assert choose_some(NEED, [*hosts, host("c")], ("a",), "a") == Choice(("b", "c"))
    cordoned = [host("a", underlay=None, closed="cordoned"), host("b")]
    assert choose_some(NEED, cordoned, ("a",), "a").hosts == ("b",)


def test_a_silent_host_keeps_its_part_and_another_is_made_ready() -> None:
    hosts = [host("a", silent=True, closed="not ready"), host("b"), host("c")]
    assert choose(NEED, hosts, ("a", "b"), "a").hosts == ("a", "b", "c")
    back = [host("a"), host("b"), host("c")]
    assert choose(NEED, back, ("a", "b", "c"), "b").hosts == ("a", "b"), "the active one stays"
    assert choose(NEED, back, ("a", "b", "c"), "c").hosts == ("a", "c")


def test_a_cordoned_host_lets_go_when_there_is_another() -> None:
    cordoned = host("a", closed="cordoned")
    assert choose(NEED, [cordoned, host("b")], ("a", "b"), "a").hosts == ("a", "b")
    assert choose(NEED, [cordoned, host("b"), host("c")], ("a", "b"), "a").hosts == ("b", "c")


def test_a_host_that_is_gone_is_forgotten() -> None:
    assert choose(NEED, [host("b"), host("c")], ("a", "b"), "a").hosts == ("b", "c")


def test_hosts_know_each_other() -> None:
    underlays = {"a": "10.0.0.1", "b": "10.0.0.2"}
    first = redundancy("gw", "a", ("a", "b"), underlays)
    second = redundancy("gw", "b", ("a", "b"), underlays)
    assert first.group == second.group
    assert first.priority > second.priority
    assert [peer.mac for peer in first.peers] == [second.mac] == [link_mac("gw", "b")]
    assert redundancy("gw", "a", ("a",), underlays).peers == ()


KEEPALIVED = "/usr/sbin/keepalived is missing, which routers need; install the package keepalived."
CAN = {"linux": {GatewayFunction.ROUTER: None, GatewayFunction.LOAD_BALANCER: None}}
CANNOT = {"linux": {GatewayFunction.ROUTER: KEEPALIVED, GatewayFunction.LOAD_BALANCER: KEEPALIVED}}


def test_hosts_without_the_programs_are_left_out_and_say_why() -> None:
    choice = choose(NEED, [host("a", functions=CANNOT), host("b", functions=CAN), host("c")], (), None)
    assert choice == Choice(("b", "c")), "an agent that says nothing of it is taken at its word"
    choice = choose(NEED, [host("a", functions=CANNOT), host("b", functions=CAN)], (), None)
    assert choice.hosts == ("b",)
    assert choice.refused == {"a": f"cannot have routers: {KEEPALIVED.rstrip('.')}"}
    assert choice.unsupported is None
    half = {"linux": {GatewayFunction.ROUTER: None, GatewayFunction.LOAD_BALANCER: "no haproxy"}}
    assert choose(NEED, [host("a", functions=half)], (), None).hosts == ("a",)
    balances = Need(NetworkDriverName.LINUX, GatewayFunction.LOAD_BALANCER, 1)
    assert choose(balances, [host("a", functions=half)], (), None).refused == {
        "a": "cannot have load balancers: no haproxy"
    }


def test_a_host_that_loses_a_program_keeps_what_runs_there_until_there_is_another() -> None:
    lost = host("a", functions=CANNOT)
    assert choose(NEED, [lost, host("b", functions=CAN)], ("a", "b"), "a").hosts == ("a", "b")
    assert choose(NEED, [lost, host("b", functions=CAN), host("c", functions=CAN)], ("a", "b"), "a").hosts == ("b", "c")


def test_what_a_driver_does_not_make_no_host_is_asked_for() -> None:
    need = Need(NetworkDriverName.OVN, GatewayFunction.ROUTER, 2)
    hosts = [host(name, drivers=frozenset({"linux", "ovn"}), functions={**CAN, "ovn": {}}) for name in "ab"]
    choice = choose(need, hosts, (), None)
    assert choice.hosts == ()
    assert choice.unsupported is not None
    assert "ovn makes no routers" in choice.unsupported
    assert choice.refused == dict.fromkeys("ab", "network driver ovn makes no routers")
    newer = host("c", drivers=frozenset({"ovn"}), functions={"ovn": {GatewayFunction.ROUTER: None}})
    choice = choose(need, [*hosts, newer], (), None)
    assert (choice.hosts, choice.unsupported) == (("c",), None)
