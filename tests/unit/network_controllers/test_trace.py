"""What `net trace` says of packets: which rule or route lets them through or drops them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import NetworkInterface
from kumulus.api.order_names import gateway_order_name, segment_order_name
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import Protocol
from kumulus.api.trace import Question, Scene, Trace, Unclear, Verdict
from kumulus_controllers.network import trace_filter, trace_router
from kumulus_controllers.network.trace import trace
from tests.unit.network_controllers.material import NS, group, meta, network, uid

FRONT = network("front", cidrs=["10.0.0.0/24", "fd00::/64"], status={"vni": 5000, "mtu": 1450, "driver": "linux"})
BACK = network("back", cidrs=["10.0.1.0/24"], status={"vni": 5001, "mtu": 1450, "driver": "linux"})
ALONE = network("alone", cidrs=["10.0.2.0/24"], status={"vni": 5002, "mtu": 1450, "driver": "linux"})
WORLD = ExternalNetwork.parse(
    {
        "metadata": meta("public", ""),
        "spec": {"physicalNetwork": "wire", "cidr": "203.0.113.0/24", "gateway": "203.0.113.1"},
    }
)
OPEN = group("open", ingress=[{}], egress=[{}])
WEB = group("web", ingress=[{"protocol": "UDP"}, {"protocol": "TCP", "ports": ["80"]}], egress=[{}])
DATA = group("data", ingress=[{"protocol": "TCP", "from": {"securityGroup": "web"}}])
GONE = group("gone", ingress=[{"from": {"securityGroup": "missing"}}, {"protocol": "ICMP"}], egress=[{}])


def nic(
    name: str, net: str, *addresses: str, host: str | None = "h1", vm: str | None = None, **spec: Any
) -> NetworkInterface:
    status = {
        "network": uid(f"{NS}{net}"),
        "macAddress": f"02:00:00:00:00:{len(name):02x}",
        "addresses": addresses,
        "vm": vm or name,
        "host": host,
        "phase": "Attached" if host is not None else "Allocated",
    }
    return NetworkInterface.parse({"metadata": meta(name), "spec": {"network": net, **spec}, "status": status})


def machine(name: str, phase: str = "Running") -> VirtualMachine:
    spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "interfaces": [{"name": "eth0", "interface": name}]}
    return VirtualMachine.parse({"metadata": meta(name), "spec": spec, "status": {"phase": phase}})


def router(*nets: str, external: str | None = "203.0.113.10", **more: Any) -> Router:
    gateways = {"front": ["10.0.0.1", "fd00::1"], "back": ["10.0.1.1"]}
    status = {
        "networks": [{"name": net, "uid": uid(f"{NS}{net}"), "addresses": gateways[net]} for net in nets],
        "externalNetwork": WORLD.uid if external else None,
        "externalAddress": external,
        "activeHost": "h2",
        **more.pop("status", {}),
    }
    spec = {"networks": nets, **({"externalNetwork": "public"} if external else {}), **more}
    return Router.parse({"metadata": meta("gw"), "spec": spec, "status": status})


def floating(name: str, address: str, router: str | None = "gw", **spec: Any) -> FloatingIP:
    status = {"address": address, "network": WORLD.uid, "router": router}
    return FloatingIP.parse({"metadata": meta(name), "spec": {"externalNetwork": "public", **spec}, "status": status})


A = nic("web", "front", "10.0.0.11", "fd00::11", securityGroups=["web"])
B = nic("near", "front", "10.0.0.12", "fd00::12", host="h2", securityGroups=["open"])
C = nic("db", "back", "10.0.1.11", securityGroups=["data"])
D = nic("lonely", "alone", "10.0.2.11", securityGroups=["open"])
NAMES = ("web", "near", "db", "lonely")


def scene(**more: Any) -> Scene:
    values: dict[str, Any] = {
        "networks": (FRONT, BACK, ALONE),
        "interfaces": (A, B, C, D),
        "groups": (OPEN, WEB, DATA, GONE),
        "routers": (router("front", "back"),),
        "externals": (WORLD,),
        "machines": tuple(map(machine, NAMES)),
        **more,
    }
    return Scene(**values)


def ask(source: str, target: str, port: int | None = None, read: Scene | None = None, **more: Any) -> Trace:
    protocol = more.pop("protocol", Protocol.ICMP if port is None else Protocol.TCP)
    return trace(read or scene(), Question(source, target, NS, protocol, port, **more))


def at(found: Trace, where: str) -> Any:
    return next(step for step in found.steps if step.where == where)


def test_the_rule_that_lets_it_in_is_named_by_its_place_in_the_spec() -> None:
    found = ask("near", "web", 80)
    assert found.verdict is Verdict.PASSES
    ingress = at(found, "Ingress")
    assert (ingress.object, ingress.field) == ("securitygroup/web", "spec.ingress[1]")
    assert [step.where for step in found.steps] == [
        "Guest",
        "Address",
        "Egress",
        "Network",
        "Tunnel",
        "Ingress",
        "Guest",
    ]
    assert at(found, "Tunnel").what == "From host h2 to host h1, VXLAN 5000."
    status = {"vlan": 120, "physicalNetwork": "dc", "mtu": 1500, "driver": "linux"}
    tagged = network("front", cidrs=["10.0.0.0/24", "fd00::/64"], status=status)
    by_vlan = ask("near", "web", 80, read=scene(networks=(tagged, BACK, ALONE)))
    assert by_vlan.verdict is Verdict.PASSES
    assert at(by_vlan, "Tunnel").what == "From host h2 to host h1, VLAN 120 of dc."
    # A rule that names a group which is not there is told to no host: the next one is still the second of the spec.
    there = scene(
        interfaces=(A.model_copy(update={"spec": A.spec.model_copy(update={"security_groups": ("gone",)})}), B)
    )
    assert at(ask("near", "web", read=there), "Ingress").field == "spec.ingress[1]"


def test_no_rule_lets_it_in_or_out() -> None:
    found = ask("near", "web", 22)
    assert found.verdict is Verdict.DROPPED
    assert "No rule of SecurityGroup web" in at(found, "Ingress").what
    out = ask("db", "web", 80)
    assert at(out, "Egress").verdict is Verdict.DROPPED
    assert "spec.egress" in at(out, "Egress").what
    missing = scene(groups=(WEB, DATA))
    assert "There is no SecurityGroup open" in at(ask("near", "web", 80, read=missing), "Egress").what


def test_members_of_groups_are_known_behind_routers_too() -> None:
    assert ask("web", "db", 5432).verdict is Verdict.PASSES
    found = ask("near", "db", 5432)
    assert at(found, "Ingress").verdict is Verdict.DROPPED
    assert [step.where for step in found.steps] == ["Guest", "Address", "Egress", "Router", "Route", "Ingress", "Guest"]


def on_hosts(**more: Any) -> Scene:
    """As it is, with networks whose driver routes on hosts."""
    nets = tuple(
        net.model_copy(update={"status": net.status.model_copy(update={"driver": "ovn"})})
        for net in (FRONT, BACK, ALONE)
    )
    return scene(**{"networks": nets, "interfaces": (*OTHERS, A, B, C, D), **more})


OTHERS = (nic("next", "back", "10.0.1.12", host="h2", securityGroups=["data"]),)


def test_hosts_that_have_both_networks_need_no_gateway() -> None:
    found = ask("web", "next", 5432, read=on_hosts())
    assert found.verdict is Verdict.PASSES
    said = "Host h1 passes it on from Network front to Network back of Router gw, without a gateway."
    assert at(found, "Router").what == said and "Route" not in [step.where for step in found.steps]
    assert at(found, "Tunnel").what == "From host h1 to host h2, VXLAN 5001."
    assert {("h1", segment_order_name(net.uid)) for net in (FRONT, BACK)} <= found.needs
    assert ("h2", gateway_order_name(router("front", "back").uid)) not in found.needs
    assert at(ask("near", "db", 5432, read=on_hosts()), "Ingress").verdict is Verdict.DROPPED, "groups judge as before"
    down = (router("front", "back", status={"activeHost": None}),)
    assert at(ask("web", "next", 5432, read=on_hosts(routers=down)), "Router").verdict is Verdict.UNKNOWN
    assert at(ask("web", "next", 5432, read=scene(interfaces=(*OTHERS, A, C), routers=down)), "Router").verdict in (
        Verdict.DROPPED,
        Verdict.UNKNOWN,
    )


@pytest.mark.parametrize(
    "more",
    [
        {"interfaces": (*OTHERS, nic("web", "front", "10.0.0.11", host="h3", securityGroups=["web"]))},
        {"floating": (floating("f", "203.0.113.11", target={"interface": "next"}),)},
        {"floating": (floating("f", "203.0.113.11", target={"interface": "web"}),)},
        {
            "interfaces": (
                *OTHERS,
                A,
                nic("spare", "back", "10.0.1.13", allowedAddressPairs=[{"address": "10.0.1.12/32"}]),
            )
        },
        {"partial": frozenset({BACK.uid})},
        {"orders": {("h1", segment_order_name(FRONT.uid)): None}},
    ],
    ids=[
        "a host with one of them",
        "its target is translated",
        "it is",
        "an address of several",
        "not all is seen",
        "old",
    ],
)
def test_else_it_goes_to_the_gateway(more: dict[str, Any]) -> None:
    if "orders" in more:
        more = {"orders": dict.fromkeys(more["orders"], untold())}
    found = ask("web", "next", 5432, read=on_hosts(**more))
    assert "host h2 routes" in at(found, "Router").what


def untold() -> WorkOrder:
    """The order of a host that was told of no router."""
    body = {"uid": FRONT.uid, "driver": "ovn", "vni": 5000, "mtu": 1450}
    for_ = {"kind": "Network", "namespace": NS, "name": FRONT.name, "uid": FRONT.uid}
    status = {"state": "Ready", "observedGeneration": 1, "segment": {"ports": 1}}
    spec = {"type": "Segment", "for": for_, "segment": body}
    return WorkOrder.parse({"metadata": meta("s"), "spec": spec, "status": status})


def test_who_pretends_to_be_another() -> None:
    found = ask("near", "web", 80, sent_from="10.0.0.99")
    assert at(found, "Address").verdict is Verdict.DROPPED
    pairs = nic("near", "front", "10.0.0.12", allowedAddressPairs=[{"address": "10.0.0.99"}], securityGroups=["open"])
    allowed = ask("near", "web", 80, sent_from="10.0.0.99", read=scene(interfaces=(A, pairs)))
    assert at(allowed, "Address").field == "spec.allowedAddressPairs"
    assert allowed.verdict is Verdict.PASSES


def test_without_a_router_there_is_no_way() -> None:
    found = ask("lonely", "web", 80)
    assert found.verdict is Verdict.DROPPED
    assert "has no router" in at(found, "Route").what
    off = scene(routers=(router("front", "back", status={"activeHost": None}),))
    assert at(ask("web", "db", 5432, read=off), "Router").verdict is Verdict.DROPPED
    lost = {"type": "Ready", "status": "False", "reason": "NotActive", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    silent = scene(routers=(router("front", "back", status={"activeHost": None, "conditions": [lost]}),))
    assert at(ask("web", "db", 5432, read=silent), "Router").verdict is Verdict.UNKNOWN, "a silent host may route"


def test_to_the_world_by_source_nat_or_a_floating_ip() -> None:
    found = ask("web", "outside", 443)
    assert found.verdict is Verdict.PASSES
    assert "203.0.113.10" in at(found, "Translation").what
    with_ip = scene(floating=(floating("f", "203.0.113.20", target={"interface": "web"}),))
    assert "203.0.113.20" in at(ask("web", "198.51.100.7", 443, read=with_ip), "Translation").what
    inside = scene(routers=(router("front", "back", external=None),))
    blind = scene(externals=(), floating=(floating("f", "203.0.113.20", target={"interface": "web"}),))
    for target in ("outside", "203.0.113.20"):
        assert ask("near", target, 443, read=blind).verdict is Verdict.UNKNOWN, (
            "who may not see it is not told that it is not"
        )
    assert "no way to" in at(ask("web", "outside", 443, read=inside), "Route").what
    assert "family" not in str(ask("web", "2001:db8::9", 443).steps[-1])
    assert ask("web", "2001:db8::9", 443).verdict is Verdict.DROPPED, "the world is of IPv4"


def test_from_the_world_only_by_a_floating_ip() -> None:
    closed = ask("outside", "web", 80)
    assert closed.verdict is Verdict.DROPPED
    whole = scene(floating=(floating("f", "203.0.113.20", target={"interface": "web"}),))
    assert ask("outside", "web", 80, read=whole).verdict is Verdict.PASSES
    assert ask("198.51.100.9", "203.0.113.20", 22, read=whole).verdict is Verdict.DROPPED
    forward = {"protocol": "TCP", "port": 8080, "targetPort": 80, "interface": "web"}
    ports = scene(floating=(floating("f", "203.0.113.20", portForwards=[forward]),))
    assert ask("outside", "web", 80, read=ports).verdict is Verdict.PASSES
    assert ask("outside", "203.0.113.20", 8080, read=ports).verdict is Verdict.PASSES
    for source in ("outside", "near"):
        assert ask(source, "203.0.113.20", 80, read=ports).verdict is Verdict.DROPPED
        assert ask(source, "203.0.113.20", read=ports).verdict is Verdict.PASSES, "the router answers echoes"
    assert ask("outside", "web", 81, read=ports).verdict is Verdict.DROPPED
    nobody = scene(floating=(floating("f", "203.0.113.20", router=None, target={"interface": "web"}),))
    assert at(ask("outside", "web", 80, read=nobody), "FloatingIP").verdict is Verdict.DROPPED


def test_a_neighbour_by_its_floating_ip_comes_as_the_router() -> None:
    picky = group("web", ingress=[{"from": {"cidrs": ["10.0.0.12/32"]}}])
    read = scene(groups=(OPEN, picky, DATA), floating=(floating("f", "203.0.113.20", target={"interface": "web"}),))
    assert ask("near", "web", 80, read=read).verdict is Verdict.PASSES
    found = ask("near", "203.0.113.20", 80, read=read)
    assert found.verdict is Verdict.DROPPED
    assert "from 10.0.0.1 " in at(found, "Ingress").what


def test_without_source_nat_the_world_reaches_addresses_of_tenants() -> None:
    bare = WORLD.model_copy(update={"spec": WORLD.spec.model_copy(update={"allow_routed": True})})
    read = scene(externals=(bare,), routers=(router("front", "back", sourceNAT=False),))
    found = ask("outside", "web", 80, read=read)
    assert found.verdict is Verdict.PASSES
    assert any("route to 10.0.0.11" in sentence for sentence in found.unseen)
    spoofed = ask("10.0.1.11", "10.0.0.11", 80, read=scene(interfaces=(A, B), externals=(bare,), routers=read.routers))
    assert spoofed.verdict is Verdict.DROPPED


def test_a_static_route_leads_to_a_machine_that_has_to_pass_it_on() -> None:
    way = {"destination": "172.16.0.0/16", "nextHop": "10.0.0.12"}
    found = ask("web", "172.16.3.4", 80, read=scene(routers=(router("front", "back", staticRoutes=[way]),)))
    assert found.verdict is Verdict.UNKNOWN
    assert at(found, "Ingress").object == "securitygroup/open"
    assert found.steps[-1].verdict is Verdict.UNKNOWN


def test_guests_that_are_not_there() -> None:
    off = nic("near", "front", "10.0.0.12", host=None, securityGroups=["open"])
    found = ask(
        "web", "near", 80, read=scene(interfaces=(A, off), machines=(machine("web"), machine("near", "Stopped")))
    )
    assert found.verdict is Verdict.DROPPED
    assert "Stopped" in found.steps[-1].what
    paused = scene(machines=(machine("web", "Paused"), machine("near")))
    assert ask("web", "near", 80, read=paused).steps[0].verdict is Verdict.DROPPED


def test_what_hosts_serve_and_what_routers_answer() -> None:
    for address in ("10.0.0.2", "169.254.169.254"):
        assert at(ask("web", address, 80), "Service").verdict is Verdict.PASSES
    assert ask("web", "10.0.0.1").verdict is Verdict.PASSES
    assert ask("web", "10.0.0.1", 22).verdict is Verdict.DROPPED
    assert ask("web", "10.0.1.2", 80).verdict is Verdict.DROPPED, "each host serves its own guests of a network"
    assert ask("web", "10.0.0.77", 80).verdict is Verdict.DROPPED
    shared = scene(interfaces=(A, nic("near", "front", "10.0.0.12", allowedAddressPairs=[{"address": "10.0.0.77"}])))
    assert ask("web", "10.0.0.77", 80, read=shared).verdict is Verdict.UNKNOWN


def test_a_load_balancer() -> None:
    spec = {"network": "front", "listeners": [{"port": 443}], "members": {"interfaces": ["near"]}}
    status = {"activeHost": "h1", "members": [{"name": "near", "address": "10.0.0.12", "healthy": True}]}
    front = LoadBalancer.parse({"metadata": meta("lb"), "spec": spec, "status": status})
    owner = {"apiVersion": "v1", "kind": "LoadBalancer", "name": "lb", "uid": front.uid}
    holder = nic("lb-lb", "front", "10.0.0.50", vm=None, securityGroups=["web"])
    holder = holder.model_copy(
        update={"metadata": holder.metadata.model_copy(update={"owner_references": _owners(owner)})}
    )
    read = scene(interfaces=(A, B, holder), balancers=(front,))
    assert ask("web", "lb", 443, read=read).verdict is Verdict.PASSES
    assert ask("web", "10.0.0.50", 80, read=read).verdict is Verdict.DROPPED
    assert ask("lb", "near", 443, read=read).verdict is Verdict.PASSES
    assert ("h1", gateway_order_name(front.uid)) in ask("web", "lb", 443, read=read).needs
    for late in ({"hosts": {"h1": silent("h1")}}, {"orders": balancing(front, "h1", observedGeneration=0)}):
        found = ask("near", "lb", 443, read=replace(read, **late))
        assert at(found, "LoadBalancer").verdict is Verdict.UNKNOWN
    done = replace(read, orders=balancing(front, "h1", state="Ready", observedGeneration=1))
    assert at(ask("near", "lb", 443, read=done), "LoadBalancer").verdict is Verdict.PASSES


def balancing(balancer: LoadBalancer, host: str, **status: Any) -> dict[tuple[str, str], WorkOrder]:
    name = gateway_order_name(balancer.uid)
    gateway = {
        "uid": balancer.uid,
        "driver": "linux",
        "redundancy": {"group": 1, "priority": 1, "mac": "0a:00:00:00:00:01"},
    }
    spec = {
        "type": "Gateway",
        "gateway": gateway,
        "for": {"kind": "LoadBalancer", "name": balancer.name, "uid": balancer.uid},
    }
    raw = {"metadata": meta(name, f"kumulus-host-{host}"), "spec": spec, "status": status}
    return {(host, name): WorkOrder.parse(raw)}


def test_what_may_not_be_seen_of_other_namespaces_is_not_known() -> None:
    read = scene(groups=(), machines=(), unread=frozenset({NS}))
    found = ask("nic/near", "nic/web", 22, read=read)
    assert found.verdict is Verdict.UNKNOWN
    assert {step.where for step in found.steps if step.verdict is Verdict.UNKNOWN} == {"Guest", "Egress", "Ingress"}


def test_a_router_of_which_a_part_is_seen_is_not_judged() -> None:
    for read in (scene(networks=(FRONT, ALONE)), scene(partial=frozenset({router("front").uid}))):
        found = ask("web", "10.0.1.11", 5432, read=read)
        assert found.verdict is Verdict.UNKNOWN
        assert "may not see all" in at(found, "Router").what


def _owners(owner: Mapping[str, Any]) -> Any:
    raw = {"metadata": meta("x", ownerReferences=[owner]), "spec": {"network": "front"}}
    return NetworkInterface.parse(raw).metadata.owner_references


def test_names_that_mean_nothing() -> None:
    for source, target in (("nobody", "web"), ("vm/", "web"), ("outside", "outside"), ("a/b/c/d", "web")):
        with pytest.raises(Unclear):
            ask(source, target)
    assert ask(f"{NS}/nic/web", f"{NS}/near").verdict is Verdict.PASSES


def told(found: Trace, read: Scene, **status: Any) -> dict[tuple[str, str], WorkOrder]:
    """Orders as controllers would write them, each done."""
    orders = {}
    done = {"state": "Ready", "observedGeneration": 1, **status}
    for host, name in found.needs:
        if name.startswith("segment-"):
            port = next(
                trace_filter.ported(read, item, net)
                for item in read.interfaces
                for net in read.networks
                if item.status.host == host and segment_order_name(net.uid) == name and item.status.network == net.uid
            )
            spec: dict[str, Any] = {"type": "Segment", "segment": port.order.to_json()}
        else:
            (one,) = read.routers
            assert name == gateway_order_name(one.uid)
            order = {
                "uid": one.uid,
                "driver": "linux",
                "redundancy": {"group": 1, "priority": 1, "mac": "0a:00:00:00:00:01"},
                "router": trace_router.routed(read, one).does.to_json(),
            }
            spec = {"type": "Gateway", "gateway": order}
        spec["for"] = {"kind": "Router" if "gateway" in spec else "Network", "name": "x", "uid": read.routers[0].uid}
        raw = {"metadata": meta(name, f"kumulus-host-{host}"), "spec": spec, "status": done}
        orders[host, name] = WorkOrder.parse(raw)
    return orders


def test_what_hosts_were_told_is_held_against_what_they_should_know() -> None:
    first = ask("web", "db", 5432)
    assert first.needs == {
        ("h1", segment_order_name(FRONT.uid)),
        ("h1", segment_order_name(BACK.uid)),
        ("h2", gateway_order_name(uid(f"{NS}gw"))),
    }
    assert any("work orders" in sentence for sentence in first.unseen)
    orders = told(first, scene())
    seen = ask("web", "db", 5432, read=scene(orders=orders, hosts={}))
    assert seen.verdict is Verdict.PASSES
    assert not any("you may not see" in sentence for sentence in seen.unseen)
    late = ask("web", "db", 5432, read=scene(orders=told(first, scene(), observedGeneration=0), hosts={}))
    assert late.verdict is Verdict.UNKNOWN
    changed = scene(groups=(OPEN, WEB, group("data", ingress=[{"protocol": "TCP"}])), orders=orders, hosts={})
    assert "not told yet of the security groups" in at_last(ask("web", "db", 5432, read=changed), "Host").what
    assert any("which groups an interface is in" in sentence for sentence in seen.unseen)
    left = scene(
        interfaces=(nic("web", "front", "10.0.0.11", securityGroups=["open"]), B, C, D), orders=orders, hosts={}
    )
    assert "not told yet of the security groups" in at_last(ask("web", "db", 5432, read=left), "Host").what
    moved = scene(routers=(router("front", "back", sourceNAT=False, external=None),), orders=orders, hosts={})
    assert at(ask("web", "db", 5432, read=moved), "Router").verdict is Verdict.UNKNOWN
    nothing = ask("web", "db", 5432, read=scene(orders={}, hosts={}))
    assert nothing.verdict is Verdict.UNKNOWN


def at_last(found: Trace, where: str) -> Any:
    return [step for step in found.steps if step.where == where][-1]


def silent(name: str) -> Host:
    condition = {"type": "Ready", "status": "Unknown", "reason": "Silent", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return Host.parse(
        {"metadata": {"name": name}, "spec": {"zone": "z"}, "status": {"phase": "Unknown", "conditions": [condition]}}
    )


def test_a_host_that_is_not_heard_of() -> None:
    found = ask("near", "web", 80, read=scene(hosts={"h1": silent("h1")}))
    assert found.verdict is Verdict.UNKNOWN
    assert "h1 is Unknown" in found.steps[-1].what


ENDS = st.sampled_from(
    ["web", "near", "db", "lonely", "outside", "10.0.0.1", "10.0.0.12", "203.0.113.20", "fd00::11", "192.0.2.1"]
)
GROUPS = st.lists(
    st.sampled_from([{}, {"protocol": "TCP", "ports": ["80"]}, {"protocol": "ICMP"}, {"protocol": "UDP"}]), max_size=3
)


@settings(max_examples=150, deadline=None)
@given(
    ENDS,
    ENDS,
    GROUPS,
    GROUPS,
    st.sampled_from([(Protocol.ICMP, None), (Protocol.TCP, 80), (Protocol.UDP, 53)]),
    st.booleans(),
)
def test_more_rules_never_drop_and_every_answer_says_why(
    source: str, target: str, few: list[Any], more: list[Any], what: tuple[Protocol, int | None], reached: bool
) -> None:
    """Whatever is asked there is an answer, or a sentence of what is unclear; a rule more lets through at least as much."""

    def groups(rules: list[Any]) -> tuple[SecurityGroup, ...]:
        return tuple(group(name, ingress=rules, egress=rules) for name in ("open", "web", "data"))

    ips = (floating("f", "203.0.113.20", target={"interface": "web"}),) if reached else ()
    answers = []
    for rules in (few, [*few, *more]):
        try:
            found = ask(source, target, what[1], read=scene(groups=groups(rules), floating=ips), protocol=what[0])
        except Unclear:
            return
        assert found.steps
        assert found.to_json()["verdict"] == found.verdict.value
        answers.append(found.verdict)
    assert not (answers[0] is Verdict.PASSES and answers[1] is not Verdict.PASSES)
