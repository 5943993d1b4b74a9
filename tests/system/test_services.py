"""Machines as endpoints of a Kubernetes Service, by the real kube-proxy: what a node of the cluster and its pods get at the
Service's own address."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kumulus.kube.builtin import ENDPOINT_SLICE, SERVICE
from kumulus.kube.service import PUBLISHED
from kumulus_lab import deadline
from tests.system.cluster_node import ADDRESS, PODS, Node, node
from tests.system.test_networks import GROUP, RANGE, Networks, networks
from tests.system.world import WORDS, Object

__all__ = ["networks"]  # the fixture

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

EXTERNAL = WORDS["externalnetwork"]
BOTH = ("web1", "web2")


def service(networks: Networks) -> str:
    """A Service that selects both machines; its address in the cluster."""
    body = {
        "metadata": {"name": "site", "labels": {"network.kumulus.io/vm-network": "front"}},
        "spec": {"selector": {"app": "site"}, "ports": [{"name": "http", "port": 80}]},
    }
    return str(networks.world.api.create(SERVICE, body, networks.world.namespace)["spec"]["clusterIP"])


def published(networks: Networks) -> dict[str, tuple[str, bool]]:
    """Address and readiness of the Service's endpoints, by machine."""
    found = networks.world.api.objects(ENDPOINT_SLICE, networks.world.namespace)
    endpoints = [endpoint for item in found for endpoint in item["endpoints"] or ()]
    return {one["targetRef"]["name"]: (one["addresses"][0], one["conditions"]["ready"]) for one in endpoints}


def ready(networks: Networks, *names: str, addresses: Callable[[str], bool] = lambda _: True) -> None:
    """These machines are the endpoints that are ready, by such addresses, and the Service says that it is published."""

    def probe() -> bool:
        return {name for name, (at, well) in published(networks).items() if well and addresses(at)} == set(names)

    try:
        deadline.until(probe, f"{' and '.join(names)} as endpoints", seconds=90, every=0.2)
    except Exception as error:
        status = (networks.world.api.get(SERVICE, "site", networks.world.namespace))["status"]
        raise AssertionError(f"{error}; there are {published(networks)}; the Service says: {status}") from error


def answered(ask: Callable[[], str], *wanted: str) -> None:
    """Each of these answers, and then, of as many requests as find anybody else almost for sure, nobody else and all."""
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


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_a_node_of_the_cluster_reaches_machines_by_a_service(networks: Networks) -> None:
    world, lab = networks.world, networks.world.lab
    networks.network("front")
    networks.router("main", "front", externalNetwork="public")
    # The node's own address alone is let in: by another one nobody would be answered.
    networks.group("site")
    rule: Object = {"protocol": "TCP", "ports": ["80"], "from": {"cidrs": [f"{ADDRESS}/32"]}}
    world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
    for name, host in zip(BOTH, lab.hosts, strict=True):
        networks.machine(name, host, "front", "#kumulus-serve: 80", securityGroups=["site"])
        world.patch("vm", name, {"metadata": {"labels": {"app": "site"}}})
        target = {"externalNetwork": "public", "target": {"interface": f"{name}-eth0"}}
        world.apply({"apiVersion": GROUP, "kind": "FloatingIP", "metadata": {"name": name}, "spec": target})
    address = service(networks)
    before = world.api.get(EXTERNAL, "public")["spec"]
    with node(lab, world.api) as at:
        try:
            # By floating addresses, which the node has in its network.
            ready(networks, *BOTH, addresses=lambda one: one.startswith("198.51.100."))
            asked_alike(at, address, *BOTH)

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

            # A pod that the world sees by its own address is answered by the gateway of the external network, through the node:
            # it has asked a Service, and would take no answer of anybody else.
            rule["from"]["cidrs"].append(PODS)
            world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
            at.masquerade_pods(on=False)
            assert lab.network is not None
            back = ["ip", "route", "replace", PODS, "via", ADDRESS]
            lab.network.outside.exec(back)
            asked_alike(at, address, *BOTH)
        finally:
            undo = {name: before.get(name) for name in ("allowRouted", "routed")}
            world.delete("router", "main")
            world.api.patch(EXTERNAL, "public", {"spec": undo})
            if lab.network is not None:
                lab.network.outside.exec(["ip", "route", "flush", PODS], check=False)
    condition = next(
        one
        for one in world.api.get(SERVICE, "site", world.namespace)["status"]["conditions"]
        if one["type"] == PUBLISHED
    )
    assert condition["status"] == "False", "without a router nobody gets there"
