"""Machines as endpoints of a Kubernetes Service, by the real kube-proxy: what a node of the cluster and its pods get at the
Service's own address."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kumulus.kube.builtin import ENDPOINT_SLICE, SERVICE
from kumulus.kube.errors import NotFound
from kumulus.kube.service import PUBLISHED
from kumulus_lab import binaries, commands, deadline, networking
from kumulus_lab.errors import LabError
from tests.system.cluster_node import PODS, Node, node
from tests.system.test_networks import GROUP, RANGE, Networks, networks
from tests.system.world import WORDS, Object

__all__ = ["networks"]  # the fixture

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

EXTERNAL = WORDS["externalnetwork"]
BOTH = ("web1", "web2")


@pytest.fixture(scope="session")
def kube_proxy() -> Path:
    """The real one, built when the cache has none."""
    try:
        return binaries.kube_proxy()
    except LabError as error:
        pytest.skip(str(error))


def service(networks: Networks, **spec: object) -> tuple[str, int]:
    """A Service that selects both machines; its address in the cluster, and its port at the node's address."""
    body = {
        "metadata": {"name": "site", "labels": {"network.kumulus.io/vm-network": "front"}},
        "spec": {"type": "NodePort", "selector": {"app": "site"}, "ports": [{"name": "http", "port": 80}], **spec},
    }
    made = networks.world.api.create(SERVICE, body, networks.world.namespace)["spec"]
    return made["clusterIP"], made["ports"][0]["nodePort"]


def said(networks: Networks) -> Object:
    """The Service's condition."""
    found = networks.world.api.get(SERVICE, "site", networks.world.namespace)["status"].get("conditions", [])
    return next((one for one in found if one["type"] == PUBLISHED), {})


def published(networks: Networks) -> dict[str, tuple[str, bool]]:
    """Address and readiness of the Service's endpoints, by machine."""
    found = networks.world.api.objects(ENDPOINT_SLICE, networks.world.namespace)
    endpoints = [endpoint for item in found for endpoint in item["endpoints"] or ()]
    return {one["targetRef"]["name"]: (one["addresses"][0], one["conditions"]["ready"]) for one in endpoints}


def ready(networks: Networks, *names: str, addresses: Callable[[str], bool] = lambda _: True) -> None:
    """These machines are the endpoints that are ready, by such addresses, and the Service says whether there are any."""

    def probe() -> bool:
        there = {name for name, (at, well) in published(networks).items() if well and addresses(at)}
        return there == set(names) and (said(networks).get("status") == "True") is bool(names)

    try:
        deadline.until(probe, f"{' and '.join(names)} as endpoints", seconds=90, every=0.2)
    except Exception as error:
        raise AssertionError(f"{error}; there are {published(networks)}; it says: {said(networks)}") from error


def answered(ask: Callable[[], str], *wanted: str) -> None:
    """Of a dozen requests in a row each is answered, by these and by nobody else."""
    seen: list[str] = []

    def probe() -> bool:
        seen.append(ask())
        return set(wanted) <= set(seen[-12:]) <= set(wanted) and len(seen) >= 12

    try:
        deadline.until(probe, f"answers of {' and '.join(wanted)} alone", seconds=60)
    except Exception as error:
        raise AssertionError(f"{error}; the last were {seen[-12:]}") from error


def asked_alike(at: Node, address: str, *wanted: str) -> None:
    """These machines answer at the Service's address, whoever of the cluster asks."""
    answered(lambda: at.fetch(address), *wanted)
    answered(lambda: at.fetch(address, pod=True), *wanted)


@contextmanager
def way_back(at: Node) -> Iterator[None]:
    """Meanwhile the gateway of the network outside has a route to the node's pods, as routers of a data centre have one."""
    assert at.lab.network is not None
    outside, (pods, _) = at.lab.network.outside, at.pods
    before = outside.exec(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout.strip()
    outside.exec(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    outside.exec(["ip", "route", "add", pods, "via", at.address])
    try:
        yield
    finally:
        outside.exec(["ip", "route", "delete", pods])
        outside.exec(["sysctl", "-q", "-w", f"net.ipv4.ip_forward={before}"])


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_a_node_of_the_cluster_reaches_machines_by_a_service(networks: Networks, kube_proxy: Path) -> None:
    world, lab = networks.world, networks.world.lab
    networks.network("front")
    networks.router("main", "front", externalNetwork="public")
    # The node's own address alone is let in: by another one nobody would be answered.
    networks.group("site")
    rule: Object = {"protocol": "TCP", "ports": ["80"], "from": {"cidrs": [f"{Node(lab).address}/32"]}}
    world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
    for name, host in zip(BOTH, lab.hosts, strict=True):
        networks.machine(name, host, "front", "#kumulus-serve: 80", securityGroups=["site"])
        world.patch("vm", name, {"metadata": {"labels": {"app": "site"}}})
        target = {"externalNetwork": "public", "target": {"interface": f"{name}-eth0"}}
        world.apply({"apiVersion": GROUP, "kind": "FloatingIP", "metadata": {"name": name}, "spec": target})
    address, port = service(networks)
    stands = world.api.get(EXTERNAL, "public")["spec"]
    before = {name: stands.get(name) for name in ("allowRouted", "routed")}
    try:
        with node(lab, world.api, kube_proxy) as at:
            # By floating addresses, which the node has in its network.
            ready(networks, *BOTH, addresses=lambda one: one.startswith("198.51.100."))
            asked_alike(at, address, *BOTH)
            # And who is outside, by the node: it sends back where that came from, in its own name.
            assert lab.network is not None
            outside = lab.network.outside
            answered(lambda: networking.fetch(outside, f"{at.address}:{port}"), *BOTH)
            networks.traced("Passes", at.address, "web1", "--port", "80")
            networks.traced("Dropped", "outside", "web1", "--port", "80")

            # Who is off is left out, and who is on again comes back; nobody tells the node.
            world.patch("vm", "web1", {"spec": {"powerState": "Stopped", "stop": {"mode": "Force"}}})
            ready(networks, "web2")
            asked_alike(at, address, "web2")
            world.patch("vm", "web1", {"spec": {"powerState": "Running"}})
            ready(networks, *BOTH)
            asked_alike(at, address, *BOTH)

            # By their own addresses, which the operator says to be routed, and to which the node has a route.
            routed = {"allowRouted": True, "routed": [{"cidr": RANGE, "namespace": world.namespace}]}
            world.api.patch(EXTERNAL, "public", {"spec": routed})
            world.patch("router", "main", {"spec": {"sourceNAT": False}})
            ready(networks, *BOTH, addresses=lambda one: one.startswith("10.77.0."))
            router = world.wait("router", "main", lambda one: one["status"]["phase"] == "Active", "a host routes")
            for name in BOTH:
                world.delete("floatingip", name)
            way = ("route", "replace", RANGE, "via", router["status"]["externalAddress"])
            at.exec("ip", *way)
            asked_alike(at, address, *BOTH)

            # A pod that the world sees by its own address is answered when the world has a route to it, by its node: from
            # there alone comes what it has asked for.
            rule["from"]["cidrs"].append(PODS)
            world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
            at.masquerade_pods(on=False)
            with way_back(at):
                asked_alike(at, address, *BOTH)
            assert at.fetch(address, pod=True) == "", "nobody knows the way back"

            # What the operator does not say any more is no endpoint any more.
            world.api.patch(EXTERNAL, "public", {"spec": before})
            ready(networks)
            assert said(networks)["reason"] == "NotReachable"
    finally:
        world.api.patch(EXTERNAL, "public", {"spec": before})
        world.api.delete(SERVICE, "site", world.namespace)


@pytest.fixture(scope="session")
def answers_by_udp(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a guest is told so that it answers at port 5300 of UDP with its name: its own programs cannot."""
    program = tmp_path_factory.mktemp("udp") / "answerer"
    small = ("-Os", "-static", "-nostdlib", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-s")
    source = Path(__file__).with_name("udp_answerer.c")
    linked = ("-Wl,--build-id=none", "-Wl,-z,noseparate-code")
    commands.run(["gcc", *small, *linked, "-o", str(program), str(source)])
    text = base64.b64encode(program.read_bytes()).decode()
    return f"#kumulus-run: echo {text} | base64 -d >/tmp/udp; chmod +x /tmp/udp; /tmp/udp 5300 $(hostname)"


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_udp_by_two_nodes(networks: Networks, kube_proxy: Path, answers_by_udp: str) -> None:
    """Each node sends on what it and its pod ask, and forgets of UDP, which has no end of its own, who does not answer any
    more."""
    world, lab = networks.world, networks.world.lab
    networks.network("front")
    networks.router("main", "front", externalNetwork="public")
    networks.group("site")
    nodes: Object = {"cidrs": [f"{Node(lab, number).address}/32" for number in (1, 2)]}
    world.patch("securitygroup", "site", {"spec": {"ingress": [{"protocol": "UDP", "ports": ["5300"], "from": nodes}]}})
    for name, host in zip(BOTH, lab.hosts, strict=True):
        networks.machine(name, host, "front", answers_by_udp, securityGroups=["site"])
        world.patch("vm", name, {"metadata": {"labels": {"app": "site"}}})
        target = {"externalNetwork": "public", "target": {"interface": f"{name}-eth0"}}
        world.apply({"apiVersion": GROUP, "kind": "FloatingIP", "metadata": {"name": name}, "spec": target})
    ports = [{"name": "names", "protocol": "UDP", "port": 53, "targetPort": 5300}]
    address, port = service(networks, ports=ports)
    try:
        with node(lab, world.api, kube_proxy) as one, node(lab, world.api, kube_proxy, 2) as two:
            ready(networks, *BOTH)
            for at in (one, two):
                for pod in (False, True):
                    answered(lambda at=at, pod=pod: at.ask(address, 53, pod=pod), *BOTH)
            # By the port of one node, from the other: in the name of the one the machine is asked.
            answered(lambda: two.ask(one.address, port), *BOTH)

            # Who goes on from one port of its own stays with one machine, as long as that is there.
            def again() -> str:
                return two.ask(address, 53, source=40053)

            first = again()
            assert first in BOTH
            answered(again, first)
            (other,) = set(BOTH) - {first}
            world.patch("vm", first, {"spec": {"powerState": "Stopped", "stop": {"mode": "Force"}}})
            ready(networks, other)
            answered(again, other)
            answered(lambda: one.ask(address, 53, pod=True), other)
    finally:
        world.api.delete(SERVICE, "site", world.namespace)


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_a_service_of_ipv6(networks: Networks, kube_proxy: Path) -> None:
    world, lab = networks.world, networks.world.lab
    external, inside = world.namespace, "2001:db8:77::/64"
    networks.network("front", cidrs=[inside])
    world.apply(
        {
            "apiVersion": GROUP,
            "kind": "ExternalNetwork",
            "metadata": {"name": external},
            "spec": {
                "physicalNetwork": "outside",
                "cidr": "2001:db8:100::/64",
                "gateway": "2001:db8:100::1",
                "ranges": [{"start": "2001:db8:100::10", "end": "2001:db8:100::ff"}],
                "allowRouted": True,
                "routed": [{"cidr": inside, "namespace": world.namespace}],
            },
        }
    )
    try:
        networks.router("main", "front", externalNetwork=external)
        networks.group("site", 80)
        for number, (name, host) in enumerate(zip(BOTH, lab.hosts, strict=True), 17):
            at = f"2001:db8:77::{number}"
            has = f"#kumulus-run: ip -6 address replace {at}/64 dev eth0"  # it knows no DHCPv6
            networks.machine(name, host, "front", "#kumulus-serve: 80", has, securityGroups=["site"], addresses=[at])
            world.patch("vm", name, {"metadata": {"labels": {"app": "site"}}})
            target = {"externalNetwork": external, "target": {"interface": f"{name}-eth0"}}
            world.apply({"apiVersion": GROUP, "kind": "FloatingIP", "metadata": {"name": name}, "spec": target})
        address, _ = service(networks, ipFamilies=["IPv6"])
        with node(lab, world.api, kube_proxy) as here:
            ready(networks, *BOTH, addresses=lambda one: one.startswith("2001:db8:100:"))
            asked_alike(here, f"[{address}]", *BOTH)
            world.patch("router", "main", {"spec": {"sourceNAT": False}})
            ready(networks, *BOTH, addresses=lambda one: one.startswith("2001:db8:77:"))
            router = world.wait("router", "main", lambda one: one["status"]["phase"] == "Active", "a host routes")
            here.exec("ip", "route", "replace", inside, "via", router["status"]["externalAddress"])
            asked_alike(here, f"[{address}]", *BOTH)
    finally:
        with suppress(NotFound):
            world.api.delete(SERVICE, "site", world.namespace)
        made = (*(("floatingip", name) for name in BOTH), ("router", "main"), ("externalnetwork", external))
        for kind, name in made:
            with suppress(NotFound):
                world.delete(kind, name)
