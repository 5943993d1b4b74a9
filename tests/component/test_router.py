"""Routers and floating addresses against a real API server: claims, hosts, few writes, and what is said when something lacks.

What hosts do is written by the test, as in `test_network.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus.api.claims import IPAddress
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.network import Network, NetworkClass
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from tests.component.test_network import Brain, Raw, Stage, message, reason, settle, stage

__all__ = ["stage"]  # the fixture

pytestmark = pytest.mark.cluster


@asynccontextmanager
async def outside(stage: Stage) -> AsyncIterator[None]:
    """An external network with three addresses, both named as the namespace."""
    name = stage.namespace
    with suppress(errors.AlreadyExists):
        await stage.client.create(NAMESPACE, {"metadata": {"name": PLATFORM_NAMESPACE}})
    await stage.put(PhysicalNetwork.KIND, name, {"uplinks": [{"name": "all", "device": "out0"}]})
    spec = {
        "physicalNetwork": name,
        "cidr": "203.0.113.0/24",
        "gateway": "203.0.113.1",
        "ranges": [{"start": "203.0.113.10", "end": "203.0.113.12"}],
        "allowedNamespaces": [name],
    }
    await stage.put(ExternalNetwork.KIND, name, spec)
    try:
        yield
    finally:
        for item in await stage.listed(IPAddress.KIND, PLATFORM_NAMESPACE):
            await stage.client.delete(IPAddress.KIND, item["metadata"]["name"], PLATFORM_NAMESPACE)
        await stage.let_go(ExternalNetwork, name)
        await stage.let_go(PhysicalNetwork, name)


async def told(stage: Stage) -> dict[str, Raw]:
    """What hosts are told of gateways, by host."""
    return {host: order["spec"]["gateway"] for host, order in await stage.orders("Gateway")}


async def claimed(stage: Stage) -> dict[str, tuple[str, str]]:
    """Whose each address is, of those that are not given back."""
    found = [*await stage.claims(), *await stage.listed(IPAddress.KIND, PLATFORM_NAMESPACE)]
    return {
        item["spec"]["address"]: (item["spec"]["kind"], item["spec"]["interface"])
        for item in found
        if "releasedAt" not in item["spec"]
    }


async def test_the_life_of_a_router(stage: Stage) -> None:
    brain = Brain(stage.client)
    await stage.network()
    await stage.network("back", cidrs=["10.0.1.0/24", "fd00:1::/64"])
    await stage.vm("web")
    await stage.make(Router, "main", networks=["net", "back", "missing"])
    await settle(brain, stage)
    router = await stage.get(Router, "main")
    assert (reason(router), router["status"]["phase"]) == ("NetworkNotFound", "Active"), "the others are routed"
    await stage.change(Router, "main", networks=["net", "back"])
    await settle(brain, stage)
    router = await stage.get(Router, "main")
    status = router["status"]
    assert (status["phase"], reason(router), reason(router, "Redundant")) == ("Active", "Active", "Redundant")
    assert (status["activeHost"], status["standbyHosts"]) == (stage.hosts[0], [stage.hosts[1]])
    assert {part["name"]: part["addresses"] for part in status["networks"]} == {
        "net": ["10.0.0.1"],
        "back": ["10.0.1.1", "fd00:1::1"],
    }
    assert {address for address, who in (await claimed(stage)).items() if who == ("Router", "main")} == {
        *("10.0.0.1", "10.0.1.1", "fd00:1::1")
    }
    # Its hosts have the networks, and guests are told of it.
    segments = [o["spec"]["segment"] for _, o in await stage.orders("Segment")]
    gateways = [subnet.get("gateway") for segment in segments for subnet in segment["subnets"]]
    assert sorted(map(str, gateways)) == ["10.0.0.1"] * 2 + ["10.0.1.1"] * 2 + ["fd00:1::1"] * 2
    # A second one does not get what is taken.
    await stage.make(Router, "other", networks=["net"])
    await settle(brain, stage)
    assert reason(await stage.get(Router, "other")) == "AddressInUse"
    await stage.delete(Router, "other")
    await settle(brain, stage)

    async with outside(stage):
        await stage.change(Router, "main", externalNetwork=stage.namespace)
        target = {"externalNetwork": stage.namespace, "target": {"interface": "web-eth0"}}
        await stage.make(FloatingIP, "a", **target)
        await settle(brain, stage)
        await stage.make(FloatingIP, "b", **target)
        await settle(brain, stage)
        await stage.make(FloatingIP, "c", externalNetwork=stage.namespace)
        await settle(brain, stage)
        (web,) = (await stage.addresses())["web-eth0"]
        router, first = await stage.get(Router, "main"), await stage.get(FloatingIP, "a")
        assert router["status"]["externalAddress"] == "203.0.113.10"
        assert first["status"] | {"conditions": []} == first["status"] | {
            "conditions": [],
            "phase": "Active",
            "address": "203.0.113.11",
            "router": "main",
            "host": stage.hosts[0],
        }
        assert reason(await stage.get(FloatingIP, "b")) == "InterfaceHasFloatingIP"
        assert reason(await stage.get(FloatingIP, "c")) == "ExternalNetworkFull"
        for order in (await told(stage)).values():
            assert order["router"]["floating"] == [{"external": "203.0.113.11", "internal": web}]
            assert {"destination": "0.0.0.0/0", "via": "203.0.113.1"} in order["router"]["routes"]
            assert order["legs"][-1]["uplink"] == {"device": "out0"}
        # A controller that has just started writes nothing.
        before = await stage.state()
        versions = {host: o["metadata"]["resourceVersion"] for host, o in await stage.orders("Gateway")}
        await settle(Brain(stage.client), stage)
        assert await stage.state() == before
        assert {h: o["metadata"]["resourceVersion"] for h, o in await stage.orders("Gateway")} == versions

        # Who may not use it any more keeps what he has, and is told.
        change = {"spec": {"allowedNamespaces": ["elsewhere"]}}
        await stage.client.patch(ExternalNetwork.KIND, stage.namespace, change)
        await settle(brain, stage)
        router = await stage.get(Router, "main")
        assert reason(router) == "ExternalNetworkNotFound"
        assert router["status"]["externalAddress"] == "203.0.113.10"
        assert {h: o["metadata"]["resourceVersion"] for h, o in await stage.orders("Gateway")} == versions
        first = await stage.get(FloatingIP, "a")
        assert (first["status"]["phase"], reason(first, "Allowed")) == ("Active", "NamespaceNotAllowed")
        await stage.delete(FloatingIP, "c")
        await settle(brain, stage)
        await stage.make(FloatingIP, "c", externalNetwork=stage.namespace)
        await settle(brain, stage)
        assert reason(await stage.get(FloatingIP, "c")) == "ExternalNetworkNotFound", "it gets none any more"

        # An address stays its router's while a host that has failed may have it.
        await stage.change(FloatingIP, "a", target=None)
        await brain.passes(stage.namespace)
        for host, order in await stage.orders("Gateway"):
            meta = order["metadata"]
            failed = {"status": {"state": "Failed", "message": "no out0", "observedGeneration": meta["generation"]}}
            await stage.client.patch(WorkOrder.KIND, meta["name"], failed, host_namespace(host), subresource="status")
        await brain.passes(stage.namespace)
        first = await stage.get(FloatingIP, "a")
        assert (reason(first), first["status"]["router"]) == ("LettingGo", "main")
        assert "It cannot now: no out0" in message(first)
        await settle(brain, stage)
        first = await stage.get(FloatingIP, "a")
        assert (first["status"]["phase"], first["status"].get("router")) == ("Allocated", None)
        await stage.change(FloatingIP, "a", target={"interface": "web-eth0"})
        await settle(brain, stage)

        # Who is in use says by whom.
        await stage.delete(Router, "main")
        await stage.delete(Network, "back")
        await settle(Brain(stage.client), stage)
        assert "FloatingIPs are reached by it (a" in message(await stage.get(Router, "main"))
        assert "Router main has it" in message(await stage.get(Network, "back"))
        for name in ("a", "b", "c"):
            await stage.delete(FloatingIP, name)
        await settle(Brain(stage.client), stage)
        assert await stage.client.find(Router.KIND, "main", stage.namespace) is None
        assert await stage.client.find(Network.KIND, "back", stage.namespace) is None
        assert await told(stage) == {}
        assert set((await claimed(stage)).values()) == {("NetworkInterface", "web-eth0")}


async def test_networks_and_hosts_come_and_go(stage: Stage) -> None:
    brain = Brain(stage.client)
    await stage.network()
    await stage.network("back", cidrs=["10.0.1.0/24"])
    await stage.network("same", cidrs=["10.0.1.128/25"])
    await stage.make(Router, "main", networks=["net", "back", "same"], highAvailability=False)
    await settle(brain, stage)
    assert reason(await stage.get(Router, "main")) == "NetworksOverlap"
    assert list(await told(stage)) == [stage.hosts[0]]
    await stage.change(Router, "main", networks=["net"])
    await settle(brain, stage)
    assert {address for address, _ in (await claimed(stage)).items()} == {"10.0.0.1"}
    assert {o["spec"]["for"]["name"] for _, o in await stage.orders("Segment")} == {"net"}
    await stage.change(Router, "main", networks=["net", "back"])
    await settle(brain, stage)
    assert reason(await stage.get(Router, "main")) == "Active", "what it had just now it has again"
    # What is in service is not lost to a way to the world that has the same addresses.
    async with outside(stage):
        await stage.network("wide", cidrs=["203.0.113.128/25"])
        await stage.change(Router, "main", networks=["net", "wide"])
        await settle(brain, stage)
        before = await told(stage)
        await stage.change(Router, "main", externalNetwork=stage.namespace)
        await settle(brain, stage)
        router = await stage.get(Router, "main")
        assert (reason(router), router["status"].get("externalAddress")) == ("NetworksOverlap", None)
        assert "Network wide, which goes on" in message(router)
        assert await told(stage) == before
        await stage.change(Router, "main", networks=["net", "back"], externalNetwork=None)
        await settle(brain, stage)
    # A host that takes nothing new hands it over.
    await stage.client.patch(Host.KIND, stage.hosts[0], {"spec": {"unschedulable": True}})
    await settle(brain, stage)
    assert list(await told(stage)) == [stage.hosts[1]]
    await stage.client.patch(Host.KIND, stage.hosts[1], {"spec": {"unschedulable": True}})
    await settle(brain, stage)
    assert list(await told(stage)) == [stage.hosts[1]], "it keeps it while there is no other one"
    # Hosts that lack what routers need are not asked, and what they lack is said beforehand; also of the class.
    await stage.delete(Router, "main")
    await settle(brain, stage)
    assert await told(stage) == {}
    for host in stage.hosts:
        await stage.client.patch(Host.KIND, host, {"spec": {"unschedulable": False}})
        await can(stage, host, {"name": "Router", "message": "keepalived is missing; install it."})
    await stage.make(Router, "main", networks=["net", "back"])
    await settle(brain, stage)
    router = await stage.get(Router, "main")
    assert (reason(router), await told(stage)) == ("NoGatewayHost", {})
    assert f"{stage.hosts[0]}: cannot have routers: keepalived is missing; install it" in message(router)
    offered = await stage.client.get(NetworkClass.KIND, stage.namespace)
    assert (reason(offered, "Routers"), reason(offered, "LoadBalancers")) == ("NoHost", "NotByDriver")
    await can(stage, stage.hosts[0], {"name": "Router"})
    await settle(brain, stage)
    router = await stage.get(Router, "main")
    assert (reason(router), list(await told(stage))) == ("Active", [stage.hosts[0]])
    assert "keepalived is missing" in message(router, "Redundant")
    # A new one is Ready when the host with a machine of its networks knows where it is.
    await stage.delete(Router, "main")
    await stage.vm("web", placement={"hostSelector": {"which": "b"}})
    await settle(brain, stage)
    await stage.make(Router, "main", networks=["net", "back"])
    for _ in range(4):
        await brain.passes(stage.namespace)
        await stage.agents(stage.hosts[0])
    router = await stage.get(Router, "main")
    assert (router["status"]["activeHost"], reason(router)) == (stage.hosts[0], "HostsNotTold")
    assert stage.hosts[1] in message(router)
    await settle(brain, stage)
    assert reason(await stage.get(Router, "main")) == "Active"
    # It goes on where it is although no host can have one by now; a new one would be refused.
    for host in stage.hosts:
        await can(stage, host)
    await settle(brain, stage)
    router = await stage.get(Router, "main")
    assert (reason(router), list(await told(stage))) == ("GatewaysUnsupported", [stage.hosts[0]])
    await stage.delete(Router, "main")
    await settle(brain, stage)
    assert await told(stage) == {}


async def can(stage: Stage, host: str, *functions: Raw) -> None:
    """The host reports that its driver has these functions."""
    said = {"status": {"network": {"functions": [{"driver": "linux", "functions": list(functions)}]}}}
    await stage.client.patch(HostReport.KIND, host, said, host_namespace(host), subresource="status")


async def test_hosts_are_told_of_a_router_where_they_can_route_themselves(stage: Stage) -> None:
    """By the driver `ovn`: hosts with guests and several of its networks, of machines that are reached without a gateway. What
    is written then is no more than what else is on its way to these hosts."""
    brain, (a, b) = Brain(stage.client), stage.hosts
    for host in stage.hosts:
        report = {"status": {"network": {"drivers": ["linux", "ovn"]}}}
        await stage.client.patch(HostReport.KIND, host, report, host_namespace(host), subresource="status")
    await stage.put(NetworkClass.KIND, f"{stage.namespace}-ovn", {"driver": "ovn", "restSeconds": 0})
    try:
        ovn = {"class": f"{stage.namespace}-ovn"}
        await stage.network(**ovn)
        await stage.network("back", cidrs=["10.0.1.0/24"], **ovn)
        await stage.vm("web", placement={"hostSelector": {"which": "a"}})
        await stage.vm("db", {"name": "eth0", "network": "back"}, placement={"hostSelector": {"which": "b"}})
        await stage.make(Router, "main", networks=["net", "back"], highAvailability=False)
        await settle(brain, stage)
        names = {(await stage.get(Network, name))["metadata"]["uid"]: name for name in ("net", "back")}
        [gateway] = list(await told(stage))

        async def direct() -> dict[tuple[str, str], set[str]]:
            """Whom hosts route to, by host and network."""
            found = [(host, order["spec"]["segment"]) for host, order in await stage.orders("Segment")]
            return {
                (host, names[part["uid"]]): {one for end in part["router"]["direct"] for one in end["addresses"]}
                for host, part in found
                if "router" in part
            }

        addresses = await stage.addresses()
        web, db = addresses["web-eth0"][0], addresses["db-eth0"][0]
        assert gateway == a and await direct() == {(a, "net"): {web}, (a, "back"): {db}}, "host b has one of them alone"
        router = await stage.get(Router, "main")
        assert reason(router, "Distributed") == "OnHosts"
        parts = {
            names[o["spec"]["segment"]["uid"]]: o["spec"]["segment"]["router"]
            for host, o in await stage.orders("Segment")
            if host == a
        }
        legs = {names[leg["network"]]: leg["mac"] for leg in (await told(stage))[a]["legs"]}
        assert {name: part["gateways"] for name, part in parts.items()} == {n: [mac] for n, mac in legs.items()}

        # Another machine there makes host b one that routes, too.
        await stage.vm("more", placement={"hostSelector": {"which": "b"}})
        await settle(brain, stage)
        more = (await stage.addresses())["more-eth0"][0]
        both = {(host, name): there for host in (a, b) for name, there in (("net", {web, more}), ("back", {db}))}
        assert await direct() == both
        async with outside(stage):
            await stage.change(Router, "main", externalNetwork=stage.namespace)
            target = {"externalNetwork": stage.namespace, "target": {"interface": "web-eth0"}}
            await stage.make(FloatingIP, "a", **target)
            await settle(brain, stage)
            assert await direct() == both | {(host, "net"): {more} for host in (a, b)}, "its gateway sees all of it"
            before = await stage.state()
            versions = {o["metadata"]["resourceVersion"] for _, o in await stage.orders("Segment")}
            await settle(Brain(stage.client), stage)
            assert await stage.state() == before
            assert {o["metadata"]["resourceVersion"] for _, o in await stage.orders("Segment")} == versions
            await stage.delete(FloatingIP, "a")
            await stage.change(Router, "main", externalNetwork=None)
            await settle(brain, stage)
        assert await direct() == both

        # An agent that does not know of it is said; a network that leaves takes the rest along.
        for host, order in await stage.orders("Segment"):
            if host == b:
                said = {"status": {"segment": {"router": None}}}
                await stage.client.patch(
                    WorkOrder.KIND, order["metadata"]["name"], said, host_namespace(host), subresource="status"
                )
        await brain.passes(stage.namespace)
        router = await stage.get(Router, "main")
        assert reason(router, "Distributed") == "AgentsBehind" and b in message(router, "Distributed")
        await stage.change(Router, "main", networks=["net"])
        await settle(brain, stage)
        assert await direct() == {} and reason(await stage.get(Router, "main")) == "Active"
    finally:
        await stage.client.delete(NetworkClass.KIND, f"{stage.namespace}-ovn")
