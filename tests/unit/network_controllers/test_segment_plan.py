"""What a host is told of a network: what its own interfaces need, and no more."""

from __future__ import annotations

from typing import Any

from kumulus.api.segments import SegmentOrder
from kumulus_controllers.network.segment_plan import Sight, segment, urgent
from tests.unit.network_controllers.material import allocated, group, network

DEFAULT = group("default", ingress=[{"from": {"securityGroup": "default"}}], egress=[{}])
WEB = group("web", ingress=[{"protocol": "TCP", "ports": ["80", "8000-8100"]}, {"from": {"securityGroup": "db"}}])
DB = group("db", ingress=[{"protocol": "TCP", "from": {"cidrs": ["192.0.2.0/24"]}}])
ONE = allocated("one", "10.0.0.3", vm="one", securityGroups=["web"])
TWO = allocated("two", "10.0.0.4", vm="two", securityGroups=["db"])
THREE = allocated("three", "10.0.0.5", vm="web", namespace="team")


def sight(**more: Any) -> Sight:
    base: dict[str, Any] = {
        "network": network(),
        "interfaces": (ONE, TWO, THREE),
        "groups": {(g.namespace, g.name): g for g in (DEFAULT, WEB, DB)},
        "hosts": {"h1": frozenset({ONE.uid}), "h2": frozenset({TWO.uid})},
        "underlays": {"h1": "192.0.2.1", "h2": "192.0.2.2", "h3": "192.0.2.3"},
    }
    return Sight(**{**base, **more})


def test_a_host_hears_of_its_own_groups_and_of_the_members_that_their_rules_name() -> None:
    told = segment(sight(), "h1")
    groups = {item.uid: item for item in told.groups}
    assert set(groups) == {WEB.uid, DB.uid}
    web, db = groups[WEB.uid], groups[DB.uid]
    assert [(r.protocol, [(p.first, p.last) for p in r.ports], r.group) for r in web.ingress] == [
        ("TCP", [(80, 80), (8000, 8100)], None),
        ("Any", [], DB.uid),
    ]
    assert web.members == () and db.members == ("10.0.0.4",) and db.ingress == (), (
        "rules of others are not its business"
    )
    [other] = segment(sight(), "h2").groups
    assert other.uid == DB.uid and other.members == () and len(other.ingress) == 1


def test_a_rule_about_a_group_that_is_not_there_lets_nothing_through() -> None:
    told = segment(sight(groups={("ns", "web"): WEB}), "h1")
    [web] = told.groups
    assert [rule.group for rule in web.ingress] == [None] and len(web.ingress) == 1


def test_hosts_without_the_network_are_no_peers() -> None:
    assert segment(sight(), "h1").peers == ("192.0.2.2",)
    alone = sight(hosts={"h1": frozenset({ONE.uid})})
    assert segment(alone, "h1").peers == ()
    unknown = sight(underlays={"h1": "192.0.2.1"})
    assert segment(unknown, "h1").peers == ()


def test_names_are_those_of_machines_of_other_namespaces_with_theirs() -> None:
    spare = allocated("spare", "10.0.0.9")
    told = segment(sight(interfaces=(ONE, TWO, THREE, spare)), "h1")
    assert [(r.name, r.addresses) for r in told.dns.records] == [
        ("one", ("10.0.0.3",)),
        ("two", ("10.0.0.4",)),
        ("web.team", ("10.0.0.5",)),
    ]


def test_guests_are_told_of_a_router_when_the_owner_has_put_one_there() -> None:
    [v4] = segment(sight(), "h1").subnets
    assert v4.gateway is None and v4.service == "10.0.0.2"
    [v4] = segment(sight(network=network(gateway="10.0.0.254")), "h1").subnets
    assert v4.gateway == "10.0.0.254"
    l2 = segment(sight(network=network(type="L2", cidrs=[])), "h1")
    assert l2.subnets == () and l2.vni == 5000


def test_a_host_does_not_wait_for_a_group_that_its_own_interface_needs() -> None:
    before = segment(sight(), "h1")
    more = allocated("more", "10.0.0.7", vm="more", securityGroups=["db"])
    member = segment(sight(interfaces=(ONE, TWO, more)), "h1")
    assert before != member and not urgent(before, member)
    other = allocated("other", "10.0.0.8", vm="other")
    here = sight(interfaces=(ONE, TWO, other), hosts={"h1": frozenset({ONE.uid, other.uid})})
    assert urgent(before, segment(here, "h1"))


def test_it_can_be_read_back() -> None:
    told = segment(sight(network=network(dns={"domain": "x.internal", "servers": ["192.0.2.53"]})), "h1")
    assert SegmentOrder.model_validate(told.to_json()) == told
