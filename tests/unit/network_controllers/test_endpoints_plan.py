"""Which machines are endpoints of a Kubernetes Service, by which address, and what is said of the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.kube.service import AddressType, Endpoint, Service
from kumulus_controllers.network import endpoints_plan as plan
from kumulus_controllers.network.endpoints_plan import Scope
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.network.reach import Member
from tests.unit.network_controllers.material import NS, meta, network, uid

Raw = dict[str, Any]
V4, V6 = AddressType.IPV4, AddressType.IPV6


def elsewhere() -> Network:
    """The network, of the namespace `other`, which lets this one have machines in it."""
    spec = {"cidrs": ["10.0.0.0/24"], "type": "Shared", "allowedNamespaces": [NS]}
    labels = {"namespace": "other", "name": "net", "uid": network().uid}
    return Network.parse({"metadata": labels, "spec": spec, "status": NET.status.to_json()})


def service(labels: Raw | None = None, **spec: Any) -> Service:
    there = {"network.kumulus.io/vm-network": "net"} if labels is None else labels
    body = {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.9",
        "ipFamilies": ["IPv4"],
        "selector": {"app": "web"},
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        **spec,
    }
    return Service.parse({"metadata": meta("web", labels=there), "spec": body})


def machine(name: str, phase: str | None = "Running", **more: Any) -> VirtualMachine:
    body = {"spec": {"resources": {"cpus": 1, "memory": "64Mi"}}, "status": {"phase": phase} if phase else {}}
    return VirtualMachine.parse({"metadata": meta(name, labels={"app": "web"}, **more), **body})


def nic(name: str, *addresses: str, phase: str = "Attached", **more: Any) -> NetworkInterface:
    status = {"network": network().uid, "addresses": addresses, "vm": name, "phase": phase}
    body = {"metadata": meta(f"{name}-eth0", **more), "spec": {"network": "net"}, "status": status}
    return NetworkInterface.parse(body)


def external(
    name: str = "public", cidr: str = "203.0.113.0/24", gateway: str = "203.0.113.1", **spec: Any
) -> ExternalNetwork:
    body = {"physicalNetwork": "p", "cidr": cidr, "gateway": gateway, **spec}
    return ExternalNetwork.parse({"metadata": {"name": name, "uid": uid(name)}, "spec": body})


def floating(name: str, address: str, of: str = "public", phase: str = "Active", **spec: Any) -> FloatingIP:
    body = {"externalNetwork": of, "target": {"interface": f"{name}-eth0"}, **spec}
    status = {"address": address, "network": uid(of), "router": "main", "phase": phase}
    return FloatingIP.parse({"metadata": meta(f"fip-{name}"), "spec": body, "status": status})


def router(*, nat: bool = False, phase: str = "Active", of: str = "public") -> Router:
    status = {"phase": phase, "externalNetwork": uid(of), "networks": [{"name": "net", "uid": network().uid}]}
    spec = {"networks": ["net"], "externalNetwork": of, "sourceNAT": nat}
    return Router.parse({"metadata": meta("main"), "spec": spec, "status": status})


PLAIN, NET = service(), network()


def scope(*members: Member, service: Service = PLAIN, net: Network | None = NET, **more: Any) -> Scope:
    """With all addresses claimed by who has them."""
    held = [(one.interface.uid, address) for one in members for address in one.interface.status.addresses]
    held += [(item.uid, item.status.address or "") for one in members for item in one.floating]
    known = {"external": (external(),), "claimed": frozenset(held), **more}
    return Scope(service=service, network=net, members=members, **known)


def with_floating(name: str = "one", address: str = "203.0.113.10", phase: str = "Active", **vm: Any) -> Member:
    return Member(machine(name, **vm), nic(name, "10.0.0.5"), (floating(name, address, phase=phase),))


def endpoints(found: Scope) -> Mapping[AddressType, Sequence[Endpoint]]:
    return plan.judge(found).endpoints


def report(found: Scope) -> Lack | None:
    return plan.judge(found).lack


def published(found: Scope, family: AddressType = V4) -> dict[str, str]:
    """Addresses, by machine."""
    there = endpoints(found).get(family, ())
    return {e.target_ref.name or "": e.addresses[0] for e in there if e.target_ref is not None}


def conditions(found: Scope) -> dict[str, tuple[bool | None, bool | None, bool | None]]:
    """Ready, serving and terminating, by machine."""
    there = endpoints(found).get(V4, ())
    return {
        e.target_ref.name or "": (e.conditions.ready, e.conditions.serving, e.conditions.terminating)
        for e in there
        if e.target_ref is not None
    }


def reason(found: Scope) -> str | None:
    said = report(found)
    return said.reason if said is not None else None


# Which address


def test_a_machine_is_reached_by_its_floating_ip_and_not_by_what_its_network_calls_it() -> None:
    found = scope(with_floating())
    assert published(found) == {"one": "203.0.113.10"} and reason(found) is None
    (endpoint,) = endpoints(found)[V4]
    assert endpoint.to_json() == {
        "addresses": ["203.0.113.10"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {
            "apiVersion": "compute.kumulus.io/v1alpha1",
            "kind": "VirtualMachine",
            "namespace": NS,
            "name": "one",
            "uid": uid("nsone"),
        },
    }


def test_addresses_of_a_tenants_network_are_never_published_for_what_he_says_alone() -> None:
    """Not behind a router, not without source NAT, and not when the operator lets him route: his range may be anybody's."""
    one = Member(machine("one"), nic("one", "10.0.0.5"))
    open_ = external(allowRouted=True)
    for routers, externals in (
        ((), (external(),)),
        ((router(nat=True),), (open_,)),
        ((router(),), (external(),)),
        ((router(),), (open_,)),
        ((router(),), (external(routed=[{"cidr": "10.0.0.0/16", "namespace": NS}]),)),
        ((router(),), (external(allowRouted=True, routed=[{"cidr": "10.0.0.0/16", "namespace": "other"}]),)),
    ):
        found = scope(one, routers=routers, external=externals)
        assert published(found) == {} and reason(found) == "NotReachable"
    said = report(scope(one, routers=(router(),), external=(open_,)))
    assert said is not None and "ExternalNetwork public, spec.routed" in said.message and "one-eth0" in said.message


def test_a_range_that_the_operator_says_is_routed_to_the_namespace_is_published() -> None:
    routed = external(allowRouted=True, routed=[{"cidr": "10.0.0.0/16", "namespace": NS}])
    one = with_floating()
    assert published(scope(one, routers=(router(),), external=(routed,))) == {"one": "10.0.0.5"}, (
        "without a translation"
    )
    assert published(scope(one, routers=(router(nat=True),), external=(routed,))) == {"one": "203.0.113.10"}
    assert published(scope(one, external=(routed,))) == {"one": "203.0.113.10"}, "no router has the network"


@pytest.mark.parametrize("other", ["10.0.0.0/28", "10.0.0.0/16"])
def test_of_ranges_in_each_other_the_smaller_one_counts_and_of_two_owners_none(other: str) -> None:
    mine = external(allowRouted=True, routed=[{"cidr": "10.0.0.0/16", "namespace": NS}])
    theirs = external("second", allowRouted=True, routed=[{"cidr": other, "namespace": "other"}])
    one = Member(machine("one"), nic("one", "10.0.0.5"))
    assert published(scope(one, routers=(router(),), external=(mine, theirs))) == {}
    turned = replace(scope(one, routers=(router(of="second"),), external=(mine, theirs)), network=elsewhere())
    assert published(turned) == ({} if other == "10.0.0.0/16" else {"one": "10.0.0.5"}), "the other owner's is"
    far = Member(machine("far"), nic("far", "10.0.0.77"))
    expected = {} if other == "10.0.0.0/16" else {"far": "10.0.0.77"}
    assert published(scope(far, routers=(router(),), external=(mine, theirs))) == expected


def test_a_range_counts_in_the_external_network_that_says_so_and_by_no_other() -> None:
    """The world behind `second` leads such addresses to somebody else: the router has its leg there."""
    says = external(allowRouted=True, routed=[{"cidr": "10.0.0.0/16", "namespace": NS}])
    silent = external("second", "198.51.100.0/24", "198.51.100.1", allowRouted=True)
    one = Member(machine("one"), nic("one", "10.0.0.5"))
    assert published(scope(one, routers=(router(of="second"),), external=(says, silent))) == {}
    assert published(scope(one, routers=(router(),), external=(says, silent))) == {"one": "10.0.0.5"}


def test_what_is_not_claimed_is_not_published() -> None:
    one = with_floating()
    taken = frozenset({(uid("somebody"), "203.0.113.10"), (one.interface.uid, "203.0.113.10")})
    assert published(replace(scope(one), claimed=taken)) == {}


@pytest.mark.parametrize(
    ("address", "cidr", "gateway"),
    [
        ("127.0.0.1", "127.0.0.0/8", "127.0.0.2"),
        ("169.254.169.254", "169.254.0.0/16", "169.254.0.1"),
        ("224.0.0.9", "224.0.0.0/24", "224.0.0.1"),
        ("10.96.0.1", "10.96.0.0/16", "10.96.0.9"),
        ("203.0.114.10", "203.0.113.0/24", "203.0.113.1"),
    ],
)
def test_some_addresses_are_never_published_whoever_has_them(address: str, cidr: str, gateway: str) -> None:
    """Loopback, link-local, multicast, those of the cluster itself, and what is not of its external network."""
    found = scope(
        with_floating(address=address),
        external=(external(cidr=cidr, gateway=gateway),),
        cluster=(ipaddress.ip_network("10.96.0.0/12"),),
    )
    assert published(found) == {} and reason(found) == "NotReachable"


def test_ports_of_a_floating_ip_do_not_make_an_endpoint() -> None:
    forward = {"target": None, "portForwards": [{"port": 80, "interface": "one-eth0"}]}
    one = Member(machine("one"), nic("one", "10.0.0.5"), (floating("one", "203.0.113.10", **forward),))
    said = report(scope(one))
    assert (
        published(scope(one)) == {} and said is not None and "FloatingIP fip-one forwards single ports" in said.message
    )


def test_each_family_of_the_service_has_its_addresses_and_no_other_is_published() -> None:
    routes = [{"cidr": "10.0.0.0/24", "namespace": NS}, {"cidr": "fd00::/64", "namespace": NS}]
    both = (
        external(allowRouted=True, routed=routes[:1]),
        external("six", "2001:db8::/64", "2001:db8::1", allowRouted=True, routed=routes[1:]),
    )
    one = Member(machine("one"), nic("one", "10.0.0.5", "fd00::0:5"))
    dual = service(ipFamilies=["IPv6", "IPv4"])
    found = scope(
        one,
        service=dual,
        routers=(router(), router(of="six")),
        external=both,
        claimed=frozenset({(one.interface.uid, "10.0.0.5"), (one.interface.uid, "fd00::5")}),
    )
    assert published(found) == {"one": "10.0.0.5"} and published(found, V6) == {"one": "fd00::5"}
    only = replace(found, service=service(ipFamilies=["IPv6"]))
    assert published(only) == {} and published(only, V6) == {"one": "fd00::5"}
    four = replace(scope(with_floating()), service=service(ipFamilies=["IPv6"]))
    assert endpoints(four) == {} and reason(four) == "AddressFamilyDiffers"


def test_a_floating_ip_that_goes_is_none() -> None:
    one = with_floating()
    (item,) = one.floating
    going = item.model_copy(
        update={"metadata": item.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})}
    )
    assert published(scope(replace(one, floating=(going,)))) == {}
    homeless = item.model_copy(update={"status": item.status.model_copy(update={"router": None})})
    assert published(scope(replace(one, floating=(homeless,)))) == {}, "no router has it"


def test_of_two_interfaces_that_can_be_reached_the_first_counts() -> None:
    one = with_floating()
    second = Member(one.machine, nic("second", "10.0.0.6"), (floating("second", "203.0.113.11"),))
    assert published(scope(one, second)) == {"one": "203.0.113.10"}


def test_a_machine_with_two_interfaces_in_the_network_is_one_endpoint() -> None:
    one = with_floating()
    found = scope(Member(one.machine, nic("two", "10.0.0.6")), one, replace(one, interface=one.interface))
    assert published(found) == {"one": "203.0.113.10"} and len(endpoints(found)[V4]) == 1 and reason(found) is None


# What is known of it

READY, OFF, ENDING = (True, True, False), (False, False, False), (False, True, True)


@pytest.mark.parametrize(
    ("phase", "attached", "more", "wanted"),
    [
        ("Running", "Attached", {}, READY),
        ("Running", "Allocated", {}, OFF),
        ("Starting", "Attached", {}, OFF),
        ("Paused", "Attached", {}, OFF),
        ("Stopped", "Allocated", {}, OFF),
        (None, "Allocated", {}, OFF),
        ("Stopping", "Attached", {}, ENDING),
        ("Terminating", "Attached", {"deletionTimestamp": "2026-01-01T00:00:00Z"}, ENDING),
        ("Stopped", "Allocated", {"deletionTimestamp": "2026-01-01T00:00:00Z"}, OFF),
        ("Unknown", "Attached", {}, OFF),
    ],
)
def test_conditions_follow_from_what_the_machine_is(
    phase: str | None, attached: str, more: Raw, wanted: tuple[bool, bool, bool]
) -> None:
    one = Member(
        machine("one", phase, **more), nic("one", "10.0.0.5", phase=attached), (floating("one", "203.0.113.10"),)
    )
    well = with_floating("well", "203.0.113.11")
    assert conditions(scope(one, well)) == {"one": wanted, "well": READY}


def test_while_none_is_known_to_be_well_those_of_silent_hosts_count_as_ready() -> None:
    silent = Member(machine("silent", "Unknown"), nic("silent", "10.0.0.5"), (floating("silent", "203.0.113.10"),))
    unrouted = Member(
        machine("unrouted"), nic("unrouted", "10.0.0.6"), (floating("unrouted", "203.0.113.11", phase="Pending"),)
    )
    off = Member(machine("off", "Stopped"), nic("off", "10.0.0.7"), (floating("off", "203.0.113.12"),))
    found = scope(silent, unrouted, off)
    assert conditions(found) == {"silent": READY, "unrouted": READY, "off": OFF}
    assert reason(found) == "NotRouted"
    assert reason(scope(off)) == "NoneReady"


def test_a_service_may_want_those_that_are_not_ready() -> None:
    off = Member(machine("off", "Stopped"), nic("off", "10.0.0.7"), (floating("off", "203.0.113.12"),))
    found = scope(off, service=service(publishNotReadyAddresses=True))
    assert conditions(found) == {"off": (True, False, False)} and reason(found) is None


# What is said of bad input


def test_names_of_machines_are_told_to_headless_services_alone() -> None:
    for headless, hostname in (("None", "one"), ("10.96.0.9", None)):
        (endpoint,) = endpoints(scope(with_floating(), service=service(clusterIP=headless)))[V4]
        assert endpoint.hostname == hostname


def test_ports_are_those_of_the_machines_by_the_names_of_the_service() -> None:
    many = service(
        ports=[
            {"name": "a", "protocol": "TCP", "port": 80, "targetPort": "http"},
            {"name": "b", "protocol": "UDP", "port": 53, "targetPort": 5353, "appProtocol": "dns"},
            {"name": "c", "protocol": "TCP", "port": 443},
        ]
    )
    assert [port.to_json() for port in plan.ports(many)] == [
        {"name": "b", "protocol": "UDP", "port": 5353, "appProtocol": "dns"},
        {"name": "c", "protocol": "TCP", "port": 443},
    ]
    said = report(scope(with_floating(), service=many))
    assert said is not None and said.reason == "NamedTargetPort" and "http (of port 80)" in said.message
    assert plan.ports(service(ports=[], clusterIP="None")) == ()


@pytest.mark.parametrize(
    ("found", "wanted", "said", "some"),
    [
        (scope(service=service(type="ExternalName")), "ExternalName", "vm-network off", False),
        (scope(with_floating(), service=service(selector={})), "NoSelector", "set spec.selector", False),
        (scope(service=service({"network.kumulus.io/vm-network": ""})), "NetworkNotFound", "is empty", False),
        (scope(net=None), "NetworkNotFound", "no Network net", False),
        (scope(with_floating(), net=network(status={})), "NetworkNotReady", "not ready", False),
        (
            scope(
                net=None,
                service=service(
                    {"network.kumulus.io/vm-network": "net", "network.kumulus.io/vm-network-namespace": "shop"}
                ),
            ),
            "NetworkNotAllowed",
            "in namespace shop that may be used",
            False,
        ),
        (scope(), "NoMachines", "labels of spec.selector", False),
        (
            scope(with_floating(), service=service(internalTrafficPolicy="Local")),
            "TrafficPolicyLocal",
            "spec.internalTrafficPolicy: Local",
            True,
        ),
        (
            scope(with_floating(), service=service(externalTrafficPolicy="Local")),
            "TrafficPolicyLocal",
            "set it to Cluster",
            True,
        ),
    ],
)
def test_what_keeps_machines_from_being_endpoints_is_said(found: Scope, wanted: str, said: str, some: bool) -> None:
    told = report(found)
    assert told is not None and told.reason == wanted and said in told.message
    assert bool(endpoints(found)) is some


def test_those_that_can_be_reached_are_published_beside_those_that_cannot() -> None:
    lost = Member(machine("lost"), nic("lost", "10.0.0.6"))
    found = scope(with_floating(), lost)
    said = report(found)
    assert published(found) == {"one": "203.0.113.10"}
    assert said is not None and said.message.startswith("Machine lost cannot be reached from the cluster")
