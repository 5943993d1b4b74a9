"""Routing on hosts: which are told of a router, whom they reach without a gateway, and what the router says of it."""

from __future__ import annotations

from typing import Any

from kumulus.api.host import WorkOrder
from kumulus.api.network import NetworkInterface
from kumulus.api.routing import Router
from kumulus.api.segments import NetworkDriverName
from kumulus_controllers.network import distributed_plan
from kumulus_controllers.network.distributed_plan import Beside
from kumulus_controllers.network.segment_plan import segment
from tests.unit.network_controllers.material import allocated, meta, network, uid
from tests.unit.network_controllers.test_segment_plan import ONE, THREE, TWO, sight

OVN = {"vni": 5000, "mtu": 1450, "driver": "ovn"}
NET = network(status=OVN)
LEG = "0a:00:00:00:00:01"


def router(*names: str, **more: Any) -> Router:
    parts = [{"name": name, "uid": uid(f"ns{name}"), "addresses": []} for name in names]
    return Router.parse({"metadata": meta("gw", **more), "spec": {}, "status": {"networks": parts}})


ROUTER = router("net", "back")
BESIDE = Beside(ROUTER, frozenset({"h1"}), (LEG,))


def mac(number: int, nic: NetworkInterface) -> NetworkInterface:
    status = nic.status.model_copy(update={"mac_address": f"02:00:00:00:01:{number:02x}"})
    return nic.model_copy(update={"status": status})


def reached(*interfaces: NetworkInterface, translated: frozenset[str] = frozenset()) -> set[str]:
    there = [mac(number, nic) for number, nic in enumerate(interfaces)]
    found = distributed_plan.direct(NET, there, translated)
    return {address for end in found for address in end.addresses}


def test_a_host_hears_of_a_router_where_it_has_several_of_its_networks() -> None:
    there = sight(network=NET, interfaces=tuple(mac(n, nic) for n, nic in enumerate((ONE, TWO, THREE))), beside=BESIDE)
    told = segment(there, "h1").router
    assert told is not None and told.uid == ROUTER.uid and told.gateways == (LEG,)
    assert {address for end in told.direct for address in end.addresses} == {"10.0.0.3", "10.0.0.4", "10.0.0.5"}
    assert segment(there, "h2").router is None
    assert segment(sight(network=NET), "h1").router is None


def test_each_host_passes_on_by_a_mac_of_its_own_and_no_gateways() -> None:
    both = Beside(ROUTER, frozenset({"h1", "h2"}), (LEG,))
    macs = {distributed_plan.part(NET, (), both, host).mac for host in ("h1", "h2")}  # type: ignore[union-attr]
    assert len(macs) == 2 and all(mac.startswith("0e:") for mac in macs)


def test_nobody_hears_of_a_router_before_it_has_a_gateway() -> None:
    assert distributed_plan.part(NET, (), Beside(ROUTER, frozenset({"h1"}), ()), "h1") is None


def test_which_routers_count() -> None:
    of = distributed_plan.router_of
    assert of(NET, [ROUTER]) is ROUTER
    assert of(network(), [ROUTER]) is None, "the driver linux routes on gateways"
    assert of(NET, [router("net")]) is None, "one network has nothing to be routed to"
    assert of(NET, [router("back", "third")]) is None
    assert of(NET, [router("net", "back", deletionTimestamp="2026-01-01T00:00:00Z")]) is None


def test_only_machines_and_no_translated_ones_are_reached_without_a_gateway() -> None:
    assert reached(ONE, TWO, allocated("spare", "10.0.0.9")) == {"10.0.0.3", "10.0.0.4"}
    assert reached(ONE, TWO, translated=frozenset({TWO.uid})) == {"10.0.0.3"}, "a gateway has to see its answers"


def test_an_address_that_another_may_take_over_is_found_by_asking() -> None:
    def may(*cidrs: str, name: str = "other", **more: Any) -> NetworkInterface:
        return allocated(name, "10.0.0.7", vm=name, allowedAddressPairs=[{"address": cidr} for cidr in cidrs], **more)

    assert reached(ONE, TWO, may("10.0.0.3/32")) == {"10.0.0.4", "10.0.0.7"}
    assert reached(ONE, TWO, may("10.0.0.4/30")) == {"10.0.0.3", "10.0.0.7"}
    assert reached(ONE, TWO, may("0.0.0.0/0")) == {"10.0.0.3", "10.0.0.4", "10.0.0.7"}, "a router takes nobody's place"
    assert reached(ONE, may("10.0.0.7/32")) == {"10.0.0.3", "10.0.0.7"}, "its own it has anyway"
    guest = may("10.0.0.3/32", "10.0.0.4/30", namespace="team", networkNamespace="ns")
    assert reached(ONE, TWO, guest) == {"10.0.0.3", "10.0.0.4", "10.0.0.7"}, "pairs of others do not count"


def ordered(host: str, *, told: bool = True, says: bool = True, state: str = "Ready") -> WorkOrder:
    order = segment(sight(network=NET, interfaces=(), beside=BESIDE if told else None), "h1")
    facts = {"ports": 1, **({"router": ROUTER.uid} if says else {})}
    for_ = {"kind": "Network", "namespace": "ns", "name": "net", "uid": NET.uid}
    return WorkOrder.parse(
        {
            "metadata": meta("segment", f"kumulus-host-{host}"),
            "spec": {"type": "Segment", "for": for_, "segment": order.to_json()},
            "status": {"state": state, "observedGeneration": 1, "segment": facts},
        }
    )


def test_a_router_says_whether_hosts_route() -> None:
    def said(driver: NetworkDriverName, networks: int, *orders: WorkOrder) -> tuple[object, str] | None:
        fact = distributed_plan.fact(ROUTER, driver, networks, orders)
        return (fact.status, fact.reason) if fact is not None else None

    ovn, linux = NetworkDriverName.OVN, NetworkDriverName.LINUX
    assert said(ovn, 1) is None
    assert said(linux, 2) == (False, "OnGateway")
    assert said(ovn, 2) == (True, "OnHosts")
    assert said(ovn, 2, ordered("h1"), ordered("h2", told=False, says=False)) == (True, "OnHosts")
    assert said(ovn, 2, ordered("h1"), ordered("h2", says=False, state="Pending")) == (True, "OnHosts"), "soon"
    old = distributed_plan.fact(ROUTER, ovn, 2, [ordered("h1"), ordered("h2", says=False)])
    assert old is not None and (old.status, old.reason) == ("Unknown", "AgentsBehind") and "h2" in old.message
