"""What the API server refuses of networks, and that it says which field; who may write what of them."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.cli.cluster import Cluster
from kumulus_lab.cluster import NativeCluster
from tests.component.test_admission import (
    DRY,
    FOR,
    GONE,
    INSTANCE,
    ORDERS,
    OTHER_UID,
    UID,
    VM,
    Bad,
    Change,
    api,
    create,
    made,
    put,
    refusal,
    update_refusal,
)

__all__ = ["api"]  # the fixture

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]

FRONT = {"name": "eth0", "network": "front"}
NIC: Raw = {
    "name": "eth0",
    "uid": UID,
    "network": OTHER_UID,
    "mac": "02:00:00:00:00:09",
    "addresses": ["10.0.0.9"],
    "groups": [UID],
}
ORDERED = {"for": FOR, "type": "Instance", "instance": {**INSTANCE, "nics": [NIC]}}
SEGMENT = {"for": FOR, **ORDERS["segment"]}
UNNUMBERED = {key: value for key, value in ORDERS["segment"]["segment"].items() if key != "vni"}
TAGGED = {"for": FOR, "type": "Segment", "segment": {**UNNUMBERED, "uplink": {"device": "eth1", "vlan": 7}}}
BY_VLAN: Raw = {"isolation": "VLAN", "physicalNetwork": "dc"}
SHARED = {"type": "Shared", "cidrs": ["10.0.0.0/24"]}

BAD = [
    # ranges
    *(
        Bad(Network, "spec.cidrs", cidrs, field)
        for cidrs, field in (
            (["10.0.0.1/24"], "spec.cidrs[0]"),
            (["10.0.0.0/30"], "spec.cidrs[0]"),
            (["10.0.0.0/7"], "spec.cidrs[0]"),
            (["fd00::/63"], "spec.cidrs[0]"),
            (["fd00::/127"], "spec.cidrs[0]"),
            (["10.0.0/24"], "spec.cidrs[0]"),
            (["all"], "spec.cidrs[0]"),
            (["10.0.0.0/24", "10.0.1.0/24"], "at most one range of IPv4"),
            (["10.0.0.0/24", "fd00::/64", "fd01::/64"], "spec.cidrs"),
            ([], "a network of type L2 has no cidrs, every other has"),
        )
    ),
    Bad(Network, "spec.type", "L2", "spec.cidrs"),
    Bad(Network, "spec.type", "Bridged"),
    Bad(Network, "spec.gateway", "10.0.1.1"),
    Bad(Network, "spec.gateway", "router"),
    *(Bad(Network, "spec.mtu", mtu) for mtu in (0, 575, 9001, "1500")),
    Bad(Network, "spec.dhcp.ranges", [{"start": "10.0.0.1", "end": "fd00::1"}], "spec.dhcp.ranges[0]"),
    Bad(Network, "spec.dhcp.ranges", [{"start": "x", "end": "10.0.0.1"}], "spec.dhcp.ranges[0]"),
    # routers and the world
    Bad(Router, "spec.networks", ["a/b"], "spec.networks[0]"),
    Bad(Router, "spec.networks", [f"n{number}" for number in range(17)], "spec.networks"),
    Bad(Router, "spec.staticRoutes", [{"destination": "0.0.0.0/0", "nextHop": "10.0.0.9"}], "set externalNetwork"),
    Bad(Router, "spec.staticRoutes", [{"destination": "10.0.0.1/24", "nextHop": "10.0.0.9"}], "spec.staticRoutes[0]"),
    Bad(Router, "spec.staticRoutes", [{"destination": "10.0.0.0/24", "nextHop": "r"}], "spec.staticRoutes[0].nextHop"),
    Bad(FloatingIP, "spec.target", {"interface": "web"}, "set target, or portForwards"),
    Bad(FloatingIP, "spec.portForwards.1.protocol", "UDP", "spec.portForwards[1]"),
    Bad(FloatingIP, "spec.portForwards.1.protocol", "ICMP", "spec.portForwards[1].protocol"),
    Bad(FloatingIP, "spec.portForwards.0.port", 65536, "spec.portForwards[0].port"),
    Bad(FloatingIP, "spec.address", "203.0.113.0/24"),
    Bad(ExternalNetwork, "spec.gateway", "203.0.114.1"),
    Bad(ExternalNetwork, "spec.cidr", "203.0.113.1/24"),
    Bad(ExternalNetwork, "spec.ranges", [{"start": "203.0.113.10", "end": "203.0.114.1"}], "spec.ranges"),
    *(Bad(ExternalNetwork, "spec.vlan", vlan) for vlan in (0, 4095)),
    *(
        Bad(PhysicalNetwork, "spec.uplinks.0.device", name, "spec.uplinks[0].device")
        for name in ("", ".", "..", "lo", "a/b", "a b", "a\nb", "x" * 16)
    ),
    # load balancers
    Bad(LoadBalancer, "spec.listeners", []),
    Bad(LoadBalancer, "spec.listeners.1.port", 80, "spec.listeners[1]"),
    *(Bad(LoadBalancer, "spec.listeners.0.port", port, "spec.listeners[0].port") for port in (0, 65536, "http")),
    Bad(LoadBalancer, "spec.listeners.2.protocol", "UDP", "spec.listeners[2].protocol"),
    Bad(LoadBalancer, "spec.listeners.0.tls", {"secret": "site"}, "spec.listeners[0].tls"),
    Bad(LoadBalancer, "spec.listeners.0.protocol", "TLS", "spec.listeners[0].tls"),
    Bad(LoadBalancer, "spec.listeners.2.stickiness.type", "Cookie", "spec.listeners[2].stickiness.type"),
    Bad(LoadBalancer, "spec.members", {}, "exactly one of selector and interfaces"),
    Bad(LoadBalancer, "spec.members.interfaces", ["web"], "exactly one of selector and interfaces"),
    Bad(LoadBalancer, "spec.members.selector", {}, "spec.members.selector"),
    Bad(LoadBalancer, "spec.healthCheck.type", "TCP", "spec.healthCheck.path"),
    Bad(LoadBalancer, "spec.maxConnections", 0),
    *(
        Bad(LoadBalancer, "spec.healthCheck.path", path)
        for path in ("", "a", "/a b", "/a\n", "/a\nserver x 192.0.2.1:80", "/%[src]", "/${A}", "/a?b", '/"', "/" * 257)
    ),
    # values that become lines of other programs' files
    *(
        Bad(Network, "spec.dhcp.options", [{"name": "ntp-server", "values": [value]}], "spec.dhcp.options[0].values[0]")
        for value in ("", "a,b", "a b", "a\nb", "-x", "x" * 254, "$(id)")
    ),
    Bad(Network, "spec.dhcp.options", [{"name": "router", "values": ["x"]}], "spec.dhcp.options[0].name"),
    *(Bad(Network, "spec.dns.domain", name) for name in ("", "Example", "a..b", "a b", "a\nb", "-a", "a/b", "x" * 254)),
    Bad(Network, "spec.dns.servers", ["192.0.2.1#53"], "spec.dns.servers[0]"),
    Bad(Network, "spec.dns.servers", ["127.0.0.1"], "not the address of a DNS server"),
    Bad(Network, "spec.allowedNamespaces", ["a"], "spec.allowedNamespaces"),
    # interfaces
    *(Bad(NetworkInterface, "spec.network", name) for name in ("", "a/b", "../x", GONE)),
    *(
        Bad(NetworkInterface, "spec.addresses", [a], "spec.addresses[0]")
        for a in ("10.0.0", "10.0.0.0/24", "fe80::1%0")
    ),
    *(
        Bad(NetworkInterface, "spec.macAddress", mac)
        for mac in (
            "02:00:00:00:00",
            "02:00:00:00:00:0G",
            "02-00-00-00-00-09",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "06:00:00:00:00:01",
            "0a:00:00:00:00:01",
        )
    ),
    *(
        Bad(NetworkInterface, "spec.allowedAddressPairs", [{"address": "10.0.0.9", "macAddress": mac}], what)
        for mac, what in (
            ("06:00:00:00:00:01", "begin with 06 or 0a"),
            ("0a:00:00:00:00:01", "begin with 06 or 0a"),
            ("01:00:5e:00:00:12", "of a single device"),
        )
    ),
    *(
        Bad(NetworkInterface, "spec.allowedAddressPairs", [{"address": a}], "spec.allowedAddressPairs[0].address")
        for a in ("0.0.0.0/0", "::/0", "10.0.0.1/24", "x")
    ),
    *(Bad(NetworkInterface, "spec.bandwidth.inbound", bits) for bits in ("0", "-1M", "1T", "fast")),
    # rules
    *(
        Bad(SecurityGroup, "spec.ingress.0.ports", ports, "spec.ingress[0].ports")
        for ports in (["0"], ["65536"], ["9-1"], ["http"], ["1-2-3"])
    ),
    Bad(SecurityGroup, "spec.ingress.1", {"protocol": "ICMP", "ports": ["1"]}, "spec.ingress[1].ports"),
    Bad(SecurityGroup, "spec.ingress.1.from", {}, "exactly one of cidrs and securityGroup"),
    Bad(SecurityGroup, "spec.egress.0.to.securityGroup", "web", "exactly one of cidrs and securityGroup"),
    Bad(SecurityGroup, "spec.egress.0.to.cidrs", ["10.0.0.1/8"], "spec.egress[0].to.cidrs[0]"),
    Bad(SecurityGroup, "spec.ingress.0.protocol", "SCTP", "spec.ingress[0].protocol"),
    # the rest
    *(Bad(NetworkClass, "spec.mtu", mtu) for mtu in (0, 1279, 10000)),
    Bad(NetworkClass, "spec.driver", "magic"),
    *(Bad(NetworkClass, "spec.restSeconds", seconds) for seconds in (-1, 86401)),
    Bad(NetworkClass, "spec.isolation", "VLAN", "spec.physicalNetwork"),
    Bad(NetworkClass, "spec.physicalNetwork", "dc", "spec.physicalNetwork"),
    Bad(NetworkClass, "spec.vlans", [{"first": 100}], "spec.vlans"),
    Bad(NetworkClass, "spec", {**BY_VLAN, "mtu": 1500}, "spec.mtu"),
    *(
        Bad(resource, "spec", {**spec, "vlans": [part]}, f"spec.vlans[0]{field}")
        for resource, spec in ((NetworkClass, BY_VLAN), (PhysicalNetwork, {}))
        for part, field in (
            ({"first": 0}, ".first"),
            ({"first": 4095}, ".first"),
            ({"first": 1, "last": 4095}, ".last"),
            ({"first": 200, "last": 100}, ""),
            ({"last": 100}, ".first"),
            ({"first": "x"}, ".first"),
        )
    ),
    Bad(IPAddress, "spec.network", "x"),
    Bad(SegmentId, "spec.network", "x"),
    Bad(SegmentId, "spec.vlan", 100, "spec.vlan"),
    # machines
    *(
        Bad(VirtualMachine, "spec.interfaces", [{**FRONT, "name": name}], "spec.interfaces[0].name")
        for name in ("", "Eth0", "0eth", "x" * 16, "a.b")
    ),
    Bad(VirtualMachine, "spec.interfaces", [FRONT, FRONT], "spec.interfaces[1]"),
    Bad(VirtualMachine, "spec.interfaces", [{"name": "eth0"}], "exactly one of network and interface"),
    Bad(VirtualMachine, "spec.interfaces", [{**FRONT, "addresses": ["10.0.0.300"]}], "not an address"),
    Bad(VirtualMachine, "spec.interfaces", [{**FRONT, "macAddress": "01:00:5e:00:00:01"}], "of a single device"),
    Bad(VirtualMachine, "spec.interfaces", [{**FRONT, "macAddress": "06:00:00:00:00:01"}], "begin with 06 or 0a"),
    Bad(VirtualMachine, "spec.interfaces", [{**FRONT, "interface": "x"}], "exactly one of network and interface"),
    Bad(
        VirtualMachine,
        "spec.interfaces",
        [{"name": "eth0", "interface": "x", "addresses": ["10.0.0.9"]}],
        "an interface that exists has its addresses",
    ),
    Bad(
        VirtualMachine,
        "spec.interfaces",
        [{"name": "eth0", "interface": "x", "networkNamespace": "other"}],
        "networkNamespace goes with network",
    ),
    # orders
    *(
        Bad(WorkOrder, "spec.instance.nics", [{**NIC, name: value}], f"spec.instance.nics[0].{name}")
        for name, value in (("uid", "x"), ("mac", "x"), ("network", "../x"), ("hostname", "a b"))
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_nonsense_of_networks_is_refused_by_the_field_s_name(api: Cluster, bad: Bad) -> None:
    raw = made(bad.resource)
    put(raw, bad.path, bad.value)
    assert bad.named in refusal(api, raw, bad.resource.KIND, "default")


@pytest.mark.parametrize("length", [56, 57])
def test_a_machine_whose_interface_could_have_no_name_is_refused(api: Cluster, length: int) -> None:
    raw = made(
        VirtualMachine, {"resources": VM["resources"], "interfaces": [{**FRONT, "name": "front1"}]}, name="m" * length
    )
    if length + len("-front1") <= 63:
        create(api, raw, VirtualMachine.KIND, "default", query=DRY)
    else:
        assert "take shorter names" in refusal(api, raw, VirtualMachine.KIND, "default")
        raw["spec"]["interfaces"] = [{"name": "front1", "interface": "x"}]
        create(api, raw, VirtualMachine.KIND, "default", query=DRY)


CHANGES = [
    Change(Network, "spec.class", "slow"),
    Change(Network, "spec.class", GONE),
    Change(Network, "spec.type", "Shared"),
    Change(Network, "spec.cidrs", ["10.0.0.0/16", "fd00:1::/64"]),
    Change(Network, "spec.gateway", GONE),
    Change(NetworkInterface, "spec.network", "other"),
    Change(NetworkInterface, "spec.networkNamespace", "other"),
    Change(NetworkInterface, "spec.addresses", ["10.0.0.10"]),
    Change(NetworkInterface, "spec.addresses", GONE),
    Change(NetworkInterface, "spec.macAddress", GONE),
    Change(LoadBalancer, "spec.network", "other"),
    Change(LoadBalancer, "spec.addresses", GONE),
    Change(NetworkClass, "spec.driver", "ovn"),
    Change(NetworkClass, "spec.isolation", "VXLAN", "spec.", before={"spec": BY_VLAN}),
    Change(NetworkClass, "spec.physicalNetwork", "other", before={"spec": BY_VLAN}),
    Change(IPAddress, "spec.address", "10.0.0.10"),
    Change(IPAddress, "spec.interfaceUid", UID),
    Change(IPAddress, "spec.interface", "other"),
    Change(IPAddress, "spec.network", OTHER_UID),
    Change(SegmentId, "spec.network", OTHER_UID, "spec"),
    *(
        Change(
            VirtualMachine, f"spec.interfaces.0.{name}", value, "spec.interfaces", before={"spec.interfaces": [FRONT]}
        )
        for name, value in (("network", "back"), ("addresses", ["10.0.0.9"]), ("securityGroups", ["web"]))
    ),
    Change(WorkOrder, "spec.instance.nics.0.uid", OTHER_UID, "spec.instance.nics[0].uid", before={"spec": ORDERED}),
    Change(WorkOrder, "spec.segment.uid", OTHER_UID, before={"spec": SEGMENT}),
    Change(WorkOrder, "spec.segment.driver", "ovn", before={"spec": SEGMENT}),
    Change(WorkOrder, "spec.segment.vni", 5001, before={"spec": SEGMENT}),
    Change(WorkOrder, "spec.segment.uplink", {"device": "eth1", "vlan": 7}, before={"spec": SEGMENT}),
    Change(WorkOrder, "spec.segment.uplink.vlan", 8, "spec.segment.uplink", before={"spec": TAGGED}),
    Change(WorkOrder, "spec.segment.uplink", GONE, before={"spec": TAGGED}),
]


def change(api: Cluster, namespace: str, name: str, item: Change) -> Raw:
    """The object, made and then changed; not sent yet."""
    kind = item.resource.KIND
    raw = made(item.resource, name=name)
    for path, value in (item.before or {}).items():
        put(raw, path, value)
    answer = create(api, raw, kind, namespace)
    raw["metadata"]["resourceVersion"] = answer["metadata"]["resourceVersion"]
    put(raw, item.path, item.value)
    return raw


@pytest.mark.parametrize("item", CHANGES, ids=str)
def test_what_is_for_life_cannot_change(api: Cluster, module_namespace: str, fresh_name: str, item: Change) -> None:
    kind = item.resource.KIND
    try:
        raw = change(api, module_namespace, fresh_name, item)
        assert (item.field or item.path) in update_refusal(api, raw, kind, module_namespace)
    finally:
        if not kind.namespaced:
            api.delete(kind, fresh_name)


ALLOWED = [
    Change(Network, "spec.mtu", 1300),
    Change(Network, "spec.dhcp.enabled", False),
    Change(Network, "spec.allowedNamespaces", ["a"], before={"spec": SHARED}),
    Change(NetworkInterface, "spec.securityGroups", ["db"]),
    Change(NetworkInterface, "spec.bandwidth", GONE),
    Change(NetworkInterface, "spec.allowedAddressPairs", []),
    Change(SecurityGroup, "spec.ingress", []),
    Change(LoadBalancer, "spec.listeners", [{"port": 80}]),
    Change(LoadBalancer, "spec.members", {"interfaces": ["web"]}),
    Change(NetworkClass, "spec.default", True),
    Change(NetworkClass, "spec.vlans", [{"first": 7}, {"first": 9, "last": 4094}], before={"spec": BY_VLAN}),
    Change(PhysicalNetwork, "spec.vlans", [{"first": 7}]),
    Change(WorkOrder, "spec.segment.uplink.device", "bond0", before={"spec": TAGGED}),
    Change(IPAddress, "spec.releasedAt", "2026-01-01T00:00:00Z"),
    Change(VirtualMachine, "spec.interfaces", [FRONT]),
    Change(VirtualMachine, "spec.interfaces", [], before={"spec.interfaces": [FRONT]}),
    Change(WorkOrder, "spec.segment.peers", [], before={"spec": SEGMENT}),
    Change(WorkOrder, "spec.instance.nics", [], before={"spec": ORDERED}),
]


@pytest.mark.parametrize("item", ALLOWED, ids=str)
def test_the_rest_of_networks_can_change(api: Cluster, module_namespace: str, fresh_name: str, item: Change) -> None:
    kind = item.resource.KIND
    try:
        raw = change(api, module_namespace, fresh_name, item)
        api.request("PUT", kind.path(module_namespace if kind.namespaced else None, fresh_name), body=raw)
    finally:
        if not kind.namespaced:
            api.delete(kind, fresh_name)


def test_claims_are_the_controllers_and_what_tenants_wrote_is_theirs(
    cluster: NativeCluster,
    api: Cluster,
    namespace: str,
) -> None:
    """By the roles and policies that are installed, as the API server sees them."""
    controllers = "--as=system:serviceaccount:kumulus-system:kumulus-controllers"
    cluster.kubectl_run("-n", namespace, "create", "rolebinding", "tenant", "--clusterrole=admin", "--user=alice")

    def may(who: str, verb: str, what: str) -> bool:
        done = cluster.kubectl_run("-n", namespace, "auth", "can-i", verb, what, who, check=False)
        return done.stdout.strip() == "yes"

    for verb in ("create", "patch", "delete"):
        for kind in ("ipaddresses", "segmentids"):
            assert not may("--as=alice", verb, f"{kind}.network.kumulus.io")
    assert may("--as=alice", "list", "ipaddresses.network.kumulus.io")
    assert may("--as=alice", "create", "networks.network.kumulus.io")
    assert not may("--as=alice", "create", "networkclasses.network.kumulus.io")
    for verb in ("create", "delete"):
        assert may(controllers, verb, "ipaddresses.network.kumulus.io")
        assert not may(controllers, verb, "networks.network.kumulus.io")
    assert not may(controllers, "delete", "securitygroups.network.kumulus.io")

    create(api, made(NetworkInterface), NetworkInterface.KIND, namespace)
    patch = ["-n", namespace, "patch", "nic", "web", "--type=merge", controllers, "-p"]
    cluster.kubectl_run(*patch, '{"metadata":{"annotations":{"kumulus.io/x":"y"}}}')
    done = cluster.kubectl_run(*patch, '{"spec":{"securityGroups":["db"]}}', check=False)
    assert "do not change what a user wrote" in done.stderr
