"""What a router's hosts are told, and what its status and those of floating addresses say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kumulus.api.base import Condition
from kumulus.api.gateways import FloatingAddress, GatewayFacts
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus_controllers.network import floating_plan, router_plan, router_status
from kumulus_controllers.network.gateway_plan import Choice
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.router_plan import Held, Scope
from kumulus_controllers.orders import done
from tests.unit.network_controllers.material import NOW, NS, READY, allocated, meta, network, uid

BACK = network("back", cidrs=["10.0.1.0/24", "fd00:1::/64"])
FRONT = network("net")
EXTERNAL = ExternalNetwork.parse(
    {
        "metadata": meta("public", ""),
        "spec": {
            "physicalNetwork": "wire",
            "cidr": "203.0.113.0/24",
            "gateway": "203.0.113.1",
            "ranges": [{"start": "203.0.113.10", "end": "203.0.113.20"}],
            "allowedNamespaces": [NS],
        },
    }
)
PHYSICAL = PhysicalNetwork.parse({"metadata": meta("wire", ""), "spec": {"mtu": 1500}})
HELD = Held((BACK, FRONT), "203.0.113.10")


def router(status: dict[str, Any] | None = None, **spec: Any) -> Router:
    body = {"networks": ["net", "back"], "externalNetwork": "public", **spec}
    return Router.parse({"metadata": meta("gw"), "spec": body, "status": status or {}})


def floating(name: str, status: dict[str, Any] | None = None, **spec: Any) -> FloatingIP:
    known = {"address": "203.0.113.11", "network": EXTERNAL.uid, **(status or {})}
    body = {"externalNetwork": "public", **spec}
    return FloatingIP.parse({"metadata": meta(name), "spec": body, "status": known})


def scope(**more: Any) -> Scope:
    wanted = more.pop("router", router())
    networks = {"net": FRONT, "back": BACK}
    values = {"external": EXTERNAL, "physical": PHYSICAL, "devices": {"h1": "out0", "h2": "br-out"}, **more}
    return Scope(router=wanted, networks=networks, **values)


def ordered(host: str, *, active: bool, **status: Any) -> WorkOrder:
    found = scope()
    does = router_plan.function(found, HELD)
    order = router_plan.order(found, HELD, does, host, ("h1", "h2"), {"h1": "10.9.0.1", "h2": "10.9.0.2"})
    for_ = {"kind": "Router", "namespace": NS, "name": "gw", "uid": uid(f"{NS}gw")}
    facts = GatewayFacts(active=active).to_json()
    return WorkOrder.parse(
        {
            "metadata": meta("gateway", f"kumulus-host-{host}"),
            "spec": {"type": "Gateway", "for": for_, "gateway": order.to_json()},
            "status": {"state": "Ready", "observedGeneration": 1, "gateway": facts, **status},
        }
    )


def reasons(found: Scope) -> dict[str, str]:
    return {name: lack.reason for name, lack in router_plan.unusable(found).items()}


def test_what_a_host_is_told() -> None:
    found = scope(router=router(staticRoutes=[{"destination": "172.16.0.0/16", "nextHop": "10.0.1.9"}]))
    does = router_plan.function(found, HELD)
    assert [(route.destination, route.via) for route in does.routes] == [
        ("172.16.0.0/16", "10.0.1.9"),
        ("0.0.0.0/0", "203.0.113.1"),
    ]
    (masquerade,) = does.masquerade
    assert masquerade.address == "203.0.113.10"
    assert masquerade.sources == ("10.0.0.0/24", "10.0.1.0/24", "172.16.0.0/16")
    one, two = (
        router_plan.order(found, HELD, does, host, ("h1", "h2"), {"h1": "10.9.0.1", "h2": "10.9.0.2"})
        for host in ("h1", "h2")
    )
    assert [leg.addresses for leg in one.legs] == [
        ("10.0.1.1/24", "fd00:1::1/64"),
        ("10.0.0.1/24",),
        ("203.0.113.10/24",),
    ]
    assert [leg.uplink.device for leg in (one.legs[-1], two.legs[-1]) if leg.uplink] == ["out0", "br-out"]
    assert not {leg.mac for leg in one.legs} & {leg.mac for leg in two.legs}
    assert one.redundancy.priority > two.redundancy.priority


def test_floating_addresses_stand_for_interfaces_that_the_router_reaches() -> None:
    web, data = allocated("web", "10.0.0.7"), allocated("data", "10.0.0.8")
    elsewhere = allocated("else", "10.0.0.9")
    elsewhere = elsewhere.model_copy(update={"status": elsewhere.status.model_copy(update={"network": uid("x")})})
    items = (
        floating("a", target={"interface": "web"}),
        floating("b", {"address": "203.0.113.12"}, target={"interface": "web"}),
        floating("c", {"address": "203.0.113.13"}, target={"interface": "else"}),
        floating(
            "d",
            {"address": "203.0.113.14"},
            portForwards=[
                {"port": 80, "targetPort": 8080, "interface": "data"},
                {"port": 81, "interface": "gone"},
            ],
        ),
    )
    does = router_plan.function(scope(floating=items, interfaces={"web": web, "data": data, "else": elsewhere}), HELD)
    assert does.floating == (FloatingAddress(external="203.0.113.11", internal="10.0.0.7"),), "the older one counts"
    assert [(one.external, one.port, one.internal, one.target_port) for one in does.forwards] == [
        ("203.0.113.14", 80, "10.0.0.8", 8080)
    ]
    order = router_plan.order(scope(), HELD, does, "h1", ("h1",), {})
    assert order.legs[-1].addresses == ("203.0.113.10/24", "203.0.113.11/32", "203.0.113.14/32")


def test_more_than_an_order_has_room_for() -> None:
    routes = [{"destination": f"172.16.{number}.0/24", "nextHop": "10.0.1.9"} for number in range(64)]
    found = scope(router=router(staticRoutes=routes))
    (masquerade,) = router_plan.function(found, HELD).masquerade
    assert len(masquerade.sources) == 66
    forwards = [{"port": port, "interface": "web"} for port in range(1, 65)]
    items = tuple(
        floating(f"f{number:02}", {"address": f"203.0.113.{11 + number}"}, portForwards=forwards)
        for number in range(18)
    )
    found = scope(floating=items, interfaces={"web": allocated("web", "10.0.0.7")})
    does = router_plan.function(found, HELD)
    assert len(does.forwards) == 1024
    assert {one.external for one in does.forwards} == {item.status.address for item in items[:16]}, "the oldest first"
    lack = router_plan.own_lack(found, HELD)
    assert lack is not None
    assert lack.reason == "TooManyFloatingIPs"
    assert "f16, f17" in lack.message
    assert len(router_plan.order(found, HELD, does, "h1", ("h1",), {}).legs[-1].addresses) == 17
    assert router_plan.own_lack(replace(found, floating=items[:16]), HELD) is None


def test_networks_that_it_cannot_have() -> None:
    twin = Network.parse({"metadata": meta("twin"), "spec": {"cidrs": ["10.0.0.128/25"]}, "status": READY})
    found = replace(scope(), networks={"net": FRONT, "twin": twin, "gone": None})
    assert reasons(found) == {"twin": "NetworksOverlap", "gone": "NetworkNotFound"}
    # What it has it keeps, and what it cannot have stands in nobody's way.
    serving = router({"networks": [{"name": "twin", "uid": twin.uid}]})
    assert reasons(replace(found, router=serving)) == {"net": "NetworksOverlap", "gone": "NetworkNotFound"}
    waiting = network("alpha", {}, cidrs=["10.0.0.0/16"])
    assert reasons(replace(found, networks={"alpha": waiting, "net": FRONT})) == {"alpha": "NetworkNotReady"}
    other = network("alpha", READY | {"driver": "ovn"}, cidrs=["10.7.0.0/16"])
    assert reasons(replace(found, networks={"alpha": other, "net": FRONT})) == {"net": "DriversDiffer"}
    for destination, hop, reason in (
        ("172.16.0.0/16", "192.0.2.9", "RouteUnreachable"),
        ("10.0.1.0/25", "10.0.0.9", "RouteUseless"),
        ("203.0.113.64/26", "10.0.0.9", "RouteUseless"),
    ):
        lost = scope(router=router(staticRoutes=[{"destination": destination, "nextHop": hop}]))
        lack = router_plan.own_lack(lost, HELD)
        assert lack is not None
        assert lack.reason == reason
        assert len(router_plan.function(lost, HELD).routes) == 1, "only the way to the world"
    bare = scope(router=router(sourceNAT=False))
    lack = router_plan.own_lack(bare, HELD)
    assert lack is not None
    assert lack.reason == "SourceNATRequired"
    assert router_plan.function(bare, HELD).masquerade != (), "nobody pretends to be of the world"
    spec = EXTERNAL.spec.model_copy(update={"allow_routed": True})
    allowed = replace(bare, external=EXTERNAL.model_copy(update={"spec": spec}))
    assert router_plan.own_lack(allowed, HELD) is None
    assert router_plan.function(allowed, HELD).masquerade == ()
    strange = router_plan.external_lack(EXTERNAL, PHYSICAL, "public", "other")
    absent = router_plan.external_lack(None, None, "public", "other")
    assert strange is not None
    assert strange == absent, "who may not use it does not learn whether there is one"


def test_what_it_has_it_keeps_while_it_is_in_use() -> None:
    going = Network.parse(
        {
            "metadata": meta("net", deletionTimestamp=NOW, finalizers=["kumulus.io/network"]),
            "spec": FRONT.spec.to_json(),
            "status": READY,
        }
    )
    found = replace(scope(), networks={"net": going, "back": BACK}, occupied=frozenset({"net"}))
    assert reasons(found) == {"net": "NetworkDeleting"}, "it is not to get it"
    serving = router({"networks": [{"name": "net", "uid": going.uid}], "externalNetwork": EXTERNAL.uid})
    assert reasons(replace(found, router=serving)) == {}
    assert reasons(replace(found, router=serving, occupied=frozenset())) == {"net": "NetworkDeleting"}
    assert not router_plan.has_external(found)
    assert router_plan.has_external(replace(found, router=serving))
    # Without the PhysicalNetwork hosts keep the way that they have.
    before = ordered("h1", active=True)
    lost = scope(router=serving, physical=None, devices={}, orders={"h1": before})
    does = router_plan.function(lost, HELD)
    peers = {"h1": "10.9.0.1", "h2": "10.9.0.2"}
    assert router_plan.order(lost, HELD, does, "h1", ("h1", "h2"), peers) == before.spec.gateway
    assert all(leg.uplink is None for leg in router_plan.order(lost, HELD, does, "h2", ("h1", "h2"), peers).legs)


def test_who_routes_is_what_agents_say() -> None:
    orders = {"h1": ordered("h1", active=True), "h2": ordered("h2", active=False)}
    status = router_status.derive_status(scope(orders=orders), HELD, Choice(("h1", "h2")), None, NOW)
    assert (status.phase, status.active_host, status.standby_hosts) == ("Active", "h1", ("h2",))
    assert [part.addresses for part in status.networks] == [("10.0.1.1", "fd00:1::1"), ("10.0.0.1",)]
    both = {"h1": ordered("h1", active=True), "h2": ordered("h2", active=True)}
    status = router_status.derive_status(
        scope(orders=both, silent=frozenset({"h1"})), HELD, Choice(("h1", "h2")), None, NOW
    )
    assert status.active_host == "h2", "who is not heard of may have been active once"
    alone = router_status.derive_status(
        scope(orders={"h1": orders["h1"]}), HELD, Choice(("h1",), 1, {"h2": "cordoned"}), None, NOW
    )
    redundant = alone.condition("Redundant")
    assert redundant is not None
    assert (redundant.status, redundant.reason) == ("False", "NoStandby")
    failed = {"h1": ordered("h1", active=False, state="Failed", reason="UplinkMissing", message="no out0")}
    status = router_status.derive_status(scope(orders=failed), HELD, Choice(("h1",)), None, NOW)
    ready = status.condition("Ready")
    assert ready is not None
    assert (status.phase, ready.reason, ready.message) == ("Failed", "UplinkMissing", "Host h1: no out0")


def test_what_a_host_cannot_do_is_said_where_it_matters() -> None:
    """Of who stands by: that nobody can take over. Of who routes, or if there is nobody: that it is not Ready."""
    no_way = {"state": "Failed", "reason": "UplinkMissing", "message": "no out0"}

    def said(
        orders: dict[str, WorkOrder],
        lack: Lack | None = None,
        *,
        across: bool = True,
        silent: frozenset[str] = frozenset(),
    ) -> tuple[str | None, str | None, str]:
        wanted = router(highAvailability=across)
        found = scope(router=wanted, orders=orders, silent=silent)
        status = router_status.derive_status(found, HELD, Choice(tuple(orders)), lack, NOW)
        ready, redundant = status.condition("Ready"), status.condition("Redundant")
        assert ready is not None
        return ready.reason, redundant.reason if redundant is not None else None, ready.message or ""

    routes, failed = ordered("h1", active=True), ordered("h2", active=False, **no_way)
    assert said({"h1": routes, "h2": ordered("h2", active=False)})[:2] == ("Active", "Redundant")
    assert said({"h1": routes, "h2": failed})[:2] == ("Active", "UplinkMissing")
    assert said({"h1": routes, "h2": failed, "h3": ordered("h3", active=False)})[:2] == ("Active", "Redundant")
    assert said({"h1": routes, "h2": failed}, silent=frozenset({"h2"}))[:2] == ("Active", "Redundant")
    routes_as_before = ordered("h1", active=True, **no_way)
    assert said({"h1": routes_as_before, "h2": failed})[:2] == ("UplinkMissing", "UplinkMissing")
    assert said({"h1": routes, "h2": failed}, across=False)[:2] == ("UplinkMissing", None), "the one that shall have it"
    nobody = said({"h1": ordered("h1", active=False), "h2": failed})
    assert nobody[0] == "UplinkMissing"
    # What a tenant has to mend does not hide what the operator has to.
    reason, _, message = said({"h1": routes_as_before}, Lack("RouteUseless", "Correct it."))
    assert (reason, message) == ("RouteUseless", "Correct it. Besides, UplinkMissing: Host h1: no out0")
    assert said({"h1": ordered("h1", active=False)}, Lack("RouteUseless", "Correct it."))[2] == "Correct it."


def test_a_network_in_service_is_not_lost_to_an_external_network() -> None:
    """Of two with addresses in common, what the router has already stays; the other one is refused, and why is said."""
    wide = network("wide", cidrs=["203.0.113.128/25"])
    other = network("other", cidrs=["203.0.113.64/26"])

    def refused(had: dict[str, Any], **networks: Network | None) -> tuple[dict[str, str], str | None]:
        found = replace(scope(router=router(had, networks=list(networks))), networks=networks)
        lack = router_plan.world_lack(found)
        return reasons(found), lack.message if lack is not None else None

    assert refused({}, wide=wide, net=FRONT) == ({"wide": "NetworksOverlap"}, None), (
        "it has neither: the way out counts"
    )
    serves = {"networks": [{"name": "wide", "uid": wide.uid}]}
    lacks, why = refused(serves, wide=wide, net=FRONT)
    assert lacks == {}
    assert why is not None
    assert "ExternalNetwork public and Network wide, which goes on, have addresses in common" in why
    assert refused(serves, wide=wide, other=other)[0] == {}, "what is refused stands in nobody's way"
    assert refused(serves, net=FRONT) == ({}, None), "the network was taken out"
    way_out = {"externalNetwork": EXTERNAL.uid, "networks": [{"name": "net", "uid": FRONT.uid}]}
    assert refused(way_out, wide=wide, net=FRONT) == ({"wide": "NetworksOverlap"}, None)


def test_a_floating_address_that_a_router_has_no_room_for_says_so() -> None:
    web = allocated("web", "10.0.0.7")
    forwards = [{"port": port, "interface": "web"} for port in range(1, 65)]
    items = tuple(
        floating(f"f{number:02}", {"address": f"203.0.113.{11 + number}", "router": "gw"}, portForwards=forwards)
        for number in range(17)
    )
    told = ordered("h1", active=True)
    does = router_plan.function(scope(floating=items, interfaces={"web": web}), HELD)
    gateway = router_plan.order(scope(), HELD, does, "h1", ("h1",), {})
    told = told.model_copy(update={"spec": told.spec.model_copy(update={"gateway": gateway})})
    way = router({"activeHost": "h1", "externalNetwork": EXTERNAL.uid})

    def said(item: FloatingIP, order: WorkOrder) -> tuple[str | None, str | None]:
        found = floating_plan.Scope(item, EXTERNAL, PHYSICAL, {"web": web}, (way,), orders={"h1": order})
        status = floating_plan.derive_status(found, item.status.address, way, None, NOW)
        ready = status.condition("Ready")
        return status.phase, ready.reason if ready is not None else None

    assert said(items[0], told) == ("Active", "Active")
    assert said(items[16], told) == ("Pending", "TooManyFloatingIPs")
    assert said(items[16], ordered("h1", active=True)) == ("Pending", "RouterNotActive"), (
        "there is room, it is on its way"
    )
    one = floating("one", {"address": "203.0.113.99", "router": "gw"}, portForwards=forwards[:1])
    assert said(one, told)[1] == "TooManyFloatingIPs"
    whole = floating("whole", {"address": "203.0.113.99", "router": "gw"}, target={"interface": "web"})
    assert said(whole, told)[1] == "RouterNotActive", "a whole address takes no port forwards"


def test_a_floating_address_goes_on_while_hosts_are_told_of_a_change() -> None:
    """Of others: nothing is said, and nothing written. Of its own: it is Active as before, and Reconciling."""
    web, data = allocated("web", "10.0.0.7"), allocated("data", "10.0.0.8")
    way = router({"activeHost": "h1", "externalNetwork": EXTERNAL.uid})
    known = {"router": "gw", "host": "h1", "phase": "Active", "observedGeneration": 1}

    def order(target: str, **status: Any) -> WorkOrder:
        item = floating("a", target={"interface": target})
        does = router_plan.function(scope(floating=(item,), interfaces={"web": web, "data": data}), HELD)
        told = ordered("h1", active=True, **status)
        gateway = router_plan.order(scope(), HELD, does, "h1", ("h1",), {})
        return told.model_copy(update={"spec": told.spec.model_copy(update={"gateway": gateway})})

    def said(target: str, order: WorkOrder, **status: Any) -> tuple[str | None, bool, str]:
        item = floating("a", status, target={"interface": target})
        interfaces = {"web": web, "data": data}
        found = floating_plan.Scope(item, EXTERNAL, PHYSICAL, interfaces, (way,), orders={"h1": order})
        after = floating_plan.derive_status(found, item.status.address, way, None, NOW)
        ready = after.condition("Ready")
        assert ready is not None
        return after.phase, after.condition("Reconciling") is not None, ready.message or ""

    telling = {"observedGeneration": 0}
    assert said("web", order("web"), **known)[:2] == ("Active", False)
    assert said("web", order("web", **telling), **known)[:2] == ("Active", False), "it is about another one"
    assert said("data", order("web"), **known)[:2] == ("Active", True), "nobody is told yet"
    going = known | {"conditions": [{"type": "Reconciling", "status": "True", "lastTransitionTime": NOW}]}
    assert said("data", order("data", **telling), **going)[:2] == ("Active", True)
    assert said("data", order("data"), **going)[:2] == ("Active", False)
    new = {"router": "gw", "phase": "Pending", "observedGeneration": 1}
    assert said("web", order("web", **telling), **new)[0] == "Pending", "it never had the address"
    failed = {"state": "Failed", "message": "no out0"}
    assert said("web", order("web", **failed), **known) == (
        *("Pending", True),
        "No host of gw routes for it yet. Host h1: no out0",
    )


def test_an_external_network_that_a_namespace_may_not_use_any_more_is_kept_and_said() -> None:
    web, way = allocated("web", "10.0.0.7"), router({"activeHost": "h1", "externalNetwork": EXTERNAL.uid})
    item = floating("a", {"router": "gw"}, target={"interface": "web"})
    does = router_plan.function(scope(floating=(item,), interfaces={"web": web}), HELD)
    told = ordered("h1", active=True)
    gateway = router_plan.order(scope(), HELD, does, "h1", ("h1",), {})
    told = told.model_copy(update={"spec": told.spec.model_copy(update={"gateway": gateway})})

    def allowed(*names: str) -> tuple[str | None, str | None]:
        spec = EXTERNAL.spec.model_copy(update={"allowed_namespaces": names})
        external = EXTERNAL.model_copy(update={"spec": spec})
        found = floating_plan.Scope(item, external, PHYSICAL, {"web": web}, (way,), orders={"h1": told})
        status = floating_plan.derive_status(found, item.status.address, way, None, NOW)
        said = status.condition("Allowed")
        return status.phase, said.reason if said is not None else None

    assert allowed() == allowed(NS) == ("Active", None)
    assert allowed("elsewhere") == ("Active", "NamespaceNotAllowed")


def test_a_floating_address_finds_its_router() -> None:
    web = allocated("web", "10.0.0.7")
    routed = {"networks": [{"name": "net", "uid": FRONT.uid}], "activeHost": "h1", "externalNetwork": EXTERNAL.uid}
    item = floating("a", target={"interface": "web"})
    found = floating_plan.Scope(item, EXTERNAL, PHYSICAL, {"web": web}, (router(routed),))
    way, lack = floating_plan.route(found)
    assert way is not None
    assert (way.name, lack) == ("gw", None)
    told = floating_plan.derive_status(found, "203.0.113.11", way, None, NOW)
    assert (told.phase, told.router, told.host) == ("Pending", "gw", None)
    _, lack = floating_plan.route(replace(found, routers=()))
    assert lack is not None
    assert lack.reason == "NoRouter"
    _, lack = floating_plan.route(replace(found, interfaces={}))
    assert lack is not None
    assert lack.reason == "InterfaceNotFound"
    later = item.model_copy(update={"metadata": item.metadata.model_copy(update={"name": "b"})})
    lack = floating_plan.shared(replace(found, floating=later, others=(item,)), "203.0.113.12")
    assert lack is not None
    assert lack.reason == "InterfaceHasFloatingIP"
    free = replace(found, floating=floating("c"))
    assert floating_plan.derive_status(free, "203.0.113.11", None, None, NOW).phase == "Allocated"


def test_a_host_that_waits_or_has_failed_may_have_what_it_was_told_before() -> None:
    assert done(ordered("h1", active=True))
    for state in ("Waiting", "Failed"):
        assert not done(ordered("h1", active=True, state=state)), "it has read it, and not done it"
    assert not done(ordered("h1", active=True, observedGeneration=0))


def test_a_floating_address_leaves_a_router_when_no_host_can_have_it_any_more() -> None:
    told = ordered("h1", active=True)
    item = floating("a", {"router": "gw"}, target={"interface": "web"})
    found = floating_plan.Scope(item, EXTERNAL, PHYSICAL, gateways=(told,))
    assert floating_plan.holder(found, "203.0.113.10", None) is told, "it is told to have it"
    assert floating_plan.holder(found, "203.0.113.11", None) is None, "it has let go"
    failed = replace(found, gateways=(ordered("h1", active=True, state="Failed"),))
    assert floating_plan.holder(failed, "203.0.113.11", None) is not None, "it may have it from before"
    assert floating_plan.holder(failed, "203.0.113.11", router()) is None, "that router is to have it"
    other = replace(failed, floating=floating("b"))
    assert floating_plan.holder(other, "203.0.113.11", None) is None, "it never was that router's"
    assert floating_plan.holder(other, "203.0.113.10", None) is not None, "whoever is on record"


def test_a_router_that_reaches_one_of_its_interfaces_keeps_a_floating_address() -> None:
    web, data = allocated("web", "10.0.0.7"), allocated("data", "10.0.1.8")
    data = data.model_copy(update={"status": data.status.model_copy(update={"network": BACK.uid})})
    one, two = (
        router({"networks": [{"name": part.name, "uid": part.uid} for part in parts], "externalNetwork": EXTERNAL.uid})
        for parts in ((FRONT,), (FRONT, BACK))
    )
    two = two.model_copy(update={"metadata": two.metadata.model_copy(update={"name": "wide", "uid": uid("wide")})})
    forwards = [{"port": 80, "interface": "data"}, {"port": 81, "interface": "web"}]
    item = floating("a", {"router": "gw"}, portForwards=forwards)
    found = floating_plan.Scope(item, EXTERNAL, PHYSICAL, {"web": web, "data": data}, (one, two))
    way, lack = floating_plan.route(found)
    assert way is not None
    assert lack is not None
    assert (way.name, lack.reason) == ("gw", "AnotherRouter")
    way, lack = floating_plan.route(replace(found, floating=floating("a", portForwards=forwards)))
    assert way is not None
    assert (way.name, lack) == ("wide", None)


def test_what_hosts_say_of_open_connections_is_a_condition() -> None:
    choice = Choice(("h1", "h2"))

    def kept(
        choice: Choice = choice, silent: tuple[str, ...] = (), older: tuple[str, ...] = (), **unkept: str
    ) -> Condition | None:
        orders = {
            host: ordered(
                host,
                active=host == "h1",
                gateway={
                    "active": host == "h1",
                    "unkept": unkept.get(host),
                    "kept": None if host in older else host not in unkept,
                },
            )
            for host in ("h1", "h2")
        }
        status = router_status.derive_status(scope(orders=orders, silent=frozenset(silent)), HELD, choice, None, NOW)
        return next((one for one in status.conditions if one.type == "ConnectionsKept"), None)

    said = kept()
    assert said is not None
    assert said.status == "True"
    said = kept(h2="install the package conntrackd.")
    assert said is not None
    assert (said.status, said.reason) == ("False", "NotCopied")
    assert "host h2: install the package conntrackd." in said.message
    said = kept(older=("h2",))
    assert said is not None
    assert (said.status, said.reason) == ("Unknown", "NotSaid"), (
        "an agent that is older than the field promises nothing"
    )
    assert "h2" in said.message
    assert kept(Choice(("h1",), short=1)) is None, "no other host can take over"
    assert kept(silent=("h2",)) is None, "nobody knows how the other one is"
    assert kept(silent=("h2",), h2="install the package conntrackd.") is None
    alone = router_status.derive_status(scope(router=router(highAvailability=False)), HELD, choice, None, NOW)
    assert not [one for one in alone.conditions if one.type == "ConnectionsKept"]


def test_a_new_router_is_ready_when_the_hosts_of_its_networks_know_the_one_that_routes() -> None:
    def said(untold: tuple[str, ...], silent: tuple[str, ...] = (), ready: str | None = None) -> tuple[str | None, str]:
        before = [{"type": "Ready", "status": ready, "lastTransitionTime": NOW}] if ready else []
        found = scope(
            router=router({"conditions": before}),
            orders={"h1": ordered("h1", active=True)},
            untold=frozenset(untold),
            silent=frozenset(silent),
        )
        status = router_status.derive_status(found, HELD, Choice(("h1",), short=1), None, NOW)
        told = status.condition("Ready")
        assert told is not None
        return told.reason, told.message or ""

    assert said(())[0] == "Active"
    reason, message = said(("h3",))
    assert reason == "HostsNotTold"
    assert "h3" in message
    assert said(("h3",), ready="False")[0] == "HostsNotTold"
    assert said(("h3",), silent=("h3",))[0] == "Active", "nobody waits for who is not heard of"
    assert said(("h3",), ready="True")[0] == "Active", "changes are on their way to hosts all the time"


def test_a_floating_address_of_a_new_router_is_active_when_its_packets_arrive() -> None:
    web = allocated("web", "10.0.0.7")
    item = floating("a", {"router": "gw"}, target={"interface": "web"})
    does = router_plan.function(scope(floating=(item,), interfaces={"web": web}), HELD)
    told = ordered("h1", active=True)
    gateway = router_plan.order(scope(), HELD, does, "h1", ("h1",), {})
    told = told.model_copy(update={"spec": told.spec.model_copy(update={"gateway": gateway})})

    def phase(reason: str, **known: object) -> str | None:
        ready = {"type": "Ready", "status": "False", "reason": reason, "lastTransitionTime": NOW}
        way = router({"activeHost": "h1", "externalNetwork": EXTERNAL.uid, "conditions": [ready]})
        one = floating("a", {"router": "gw", **known}, target={"interface": "web"})
        found = floating_plan.Scope(one, EXTERNAL, PHYSICAL, {"web": web}, (way,), orders={"h1": told})
        return floating_plan.derive_status(found, one.status.address, way, None, NOW).phase

    assert phase("HostsNotTold") == "Pending"
    assert phase("SourceNATRequired") == "Active"
    assert phase("HostsNotTold", host="h1") == "Active", "it had the address before"
