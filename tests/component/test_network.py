"""Tenant networks against a real API server: one address for one interface, whoever leads, dies or looks too late.

What hosts do is written by the test: agents that have the networks and interfaces that they are told to have. After every
look it is checked that no address is on record twice, and that each is claimed by whose it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest

from kumulus.api.base import FINALIZER, PAUSED, Kind, Resource
from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.routing import FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Reconciler, Services
from kumulus_controllers.compute.machine import MachineReconciler
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.network.claim import ClaimReconciler
from kumulus_controllers.network.external import ExternalNetworkReconciler
from kumulus_controllers.network.floating import FloatingReconciler
from kumulus_controllers.network.group import GroupReconciler
from kumulus_controllers.network.interface import InterfaceReconciler
from kumulus_controllers.network.load_balancer import LoadBalancerReconciler
from kumulus_controllers.network.network import NetworkReconciler
from kumulus_controllers.network.network_class import NetworkClassReconciler
from kumulus_controllers.network.physical import PhysicalNetworkReconciler
from kumulus_controllers.network.router import RouterReconciler
from kumulus_controllers.network.segment import SegmentReconciler
from kumulus_controllers.planning.fleet import Fleet
from kumulus_lab.cluster import NativeCluster
from tests.component.cloud import condition
from tests.component.mortal import Crash, mortal
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MAC = re.compile(r"02(:[0-9a-f]{2}){5}")
READY = [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": NOW}]
MADE: tuple[type[Resource], ...] = (
    VirtualMachine,
    LoadBalancer,
    FloatingIP,
    Router,
    NetworkInterface,
    Network,
    SecurityGroup,
    IPAddress,
)
PASSES = 15
A_WHILE = 10.0


class Ahead:
    """A clock that stands still, and goes ahead when it is told to."""

    def __init__(self) -> None:
        self.by, self._began = 0.0, monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self._began + self.by


class Brain:
    """A controller process that has just started."""

    def __init__(self, client: KubeClient, term: int = 1) -> None:
        self.client, self.caches, self.clock = client, Caches(), Ahead()
        self.fleet = Fleet()
        FleetFeed(self.caches, self.fleet)
        self.services = services = Services(client, self.caches, self.clock, lambda: term)
        self.networks, self.interfaces = NetworkReconciler(services), InterfaceReconciler(services)
        self.reconcilers: tuple[Reconciler, ...] = (
            NetworkClassReconciler(services),
            self.networks,
            self.interfaces,
            MachineReconciler(services, self.fleet),
            SegmentReconciler(services),
            ClaimReconciler(services),
            GroupReconciler(services),
            LoadBalancerReconciler(services),
            PhysicalNetworkReconciler(services),
            ExternalNetworkReconciler(services),
            RouterReconciler(services),
            FloatingReconciler(services),
        )
        for reconciler in self.reconcilers:
            reconciler.attach(lambda key, *, urgent=False: None)

    async def look(self) -> Brain:
        for store in self.caches.watched():
            await fill(store, self.client, store.model.KIND, None)
        for part in self.caches.reflections():
            await fill(part.store, self.client, part.store.model.KIND, None, part.fields, part.labels)
        return self

    async def passes(self, namespace: str) -> None:
        """Look, and a while later one pass over everything of the namespace."""
        await self.look()
        self.clock.by += A_WHILE
        for reconciler in self.reconcilers:
            for key in sorted(reconciler.everything(), key=str):
                if namespace in (key.namespace, key.name):
                    with suppress(errors.Conflict):
                        await reconciler.reconcile(key)


class Stage:
    """Two hosts that can have networks, and a namespace with a network."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.hosts = [f"a-{namespace}", f"b-{namespace}"]

    async def put(
        self, kind: Kind, name: str, spec: Raw, status: Raw | None = None, namespace: str | None = None, **meta: Any
    ) -> Raw:
        made = await self.client.create(kind, {"metadata": {"name": name, **meta}, "spec": spec}, namespace)
        if status:
            made = await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return made

    async def make(self, model: type[Resource], name: str, **spec: Any) -> Raw:
        """Something of the tenant's."""
        return await self.put(model.KIND, name, spec, namespace=self.namespace)

    async def change(self, model: type[Resource], name: str, **spec: Any) -> Raw:
        return await self.client.patch(model.KIND, name, {"spec": spec}, self.namespace)

    async def delete(self, model: type[Resource], name: str) -> None:
        await self.client.delete(model.KIND, name, self.namespace)

    async def get(self, model: type[Resource], name: str) -> Raw:
        return await self.client.get(model.KIND, name, self.namespace)

    async def build(self) -> Stage:
        await self.put(Zone.KIND, self.namespace, {})
        for number, host in enumerate(self.hosts):
            there = host_namespace(host)
            status = {
                "phase": "Ready",
                "namespace": there,
                "allocatable": {"cpus": 100, "memory": 2**38},
                "conditions": READY,
            }
            await self.put(Host.KIND, host, {"zone": self.namespace}, status, labels={"which": "ab"[number]})
            await self.client.create(NAMESPACE, {"metadata": {"name": there}})
            network = {"drivers": ["linux"], "underlay": f"192.0.2.{number + 1}"}
            await self.put(HostReport.KIND, host, {}, {"network": network}, there)
        await self.put(NetworkClass.KIND, self.namespace, {"restSeconds": 0})
        return self

    async def remove(self) -> None:
        for host, order in await self.orders():
            await self._let_go(host, order)
        for model in MADE:
            for item in await self.listed(model.KIND, self.namespace):
                with suppress(errors.NotFound):
                    body = {"metadata": {"finalizers": []}}
                    await self.client.patch(model.KIND, item["metadata"]["name"], body, self.namespace)
        for host in self.hosts:
            await self.client.delete(NAMESPACE, host_namespace(host))
            await self.client.delete(Host.KIND, host)
        for item in await self.numbers():
            await self.client.delete(SegmentId.KIND, item["metadata"]["name"])
        await self.let_go(NetworkClass, self.namespace)
        await self.client.delete(Zone.KIND, self.namespace)

    async def let_go(self, model: type[Resource], name: str) -> None:
        """An object that belongs to no namespace is gone, whoever holds it back."""
        with suppress(errors.NotFound):
            await self.client.patch(model.KIND, name, {"metadata": {"finalizers": []}})
            await self.client.delete(model.KIND, name)

    async def listed(self, kind: Kind, namespace: str | None = None) -> list[Raw]:
        return [item async for page, _ in self.client.list_pages(kind, namespace) for item in page]

    async def numbers(self) -> list[Raw]:
        return [n for n in await self.listed(SegmentId.KIND) if n["spec"].get("namespace") == self.namespace]

    async def orders(self, type_: str | None = None) -> list[tuple[str, Raw]]:
        found = [(host, o) for host in self.hosts for o in await self.listed(WorkOrder.KIND, host_namespace(host))]
        return [(host, o) for host, o in found if type_ in (None, o["spec"]["type"])]

    async def segments(self) -> dict[str, Raw]:
        """What hosts are told of networks, by host."""
        return {host: o["spec"]["segment"] for host, o in await self.orders("Segment")}

    async def instances(self) -> dict[str, tuple[str, Raw]]:
        """Hosts and orders of machines, by name."""
        return {o["spec"]["for"]["name"]: (host, o["spec"]["instance"]) for host, o in await self.orders("Instance")}

    async def network(self, name: str = "net", **spec: Any) -> Raw:
        return await self.make(Network, name, **{"class": self.namespace, "cidrs": ["10.0.0.0/24"], **spec})

    async def vm(self, name: str, *interfaces: Raw, **spec: Any) -> Raw:
        size = {"resources": {"cpus": 1, "memory": "64Mi"}, "zone": self.namespace}
        wanted = list(interfaces) or [{"name": "eth0", "network": "net"}]
        return await self.make(VirtualMachine, name, **size, interfaces=wanted, **spec)

    async def _let_go(self, host: str, order: Raw) -> None:
        with suppress(errors.NotFound):
            body = {"metadata": {"finalizers": []}}
            await self.client.patch(WorkOrder.KIND, order["metadata"]["name"], body, host_namespace(host))

    async def agents(self, *only: str) -> None:
        """What hosts do, all or only these: they have what they are told to have, and let go of what they have not to have any
        more."""
        for host, order in await self.orders():
            if only and host not in only:
                continue
            spec, meta = order["spec"], order["metadata"]
            if "deletionTimestamp" in meta:
                await self._let_go(host, order)
                continue
            status: Raw = {"state": "Ready", "observedGeneration": meta["generation"]}
            if spec["type"] == "Instance":
                on = spec["instance"]["power"] == "Running"
                nics = [{"name": n["name"], "uid": n["uid"], "attached": on} for n in spec["instance"].get("nics", [])]
                status |= {"state": spec["instance"]["power"], "instance": {"epoch": 1, "nics": nics}}
            if "router" in spec.get("segment", {}):
                status["segment"] = {"router": spec["segment"]["router"]["uid"]}
            if "gateway" in spec:
                status["gateway"] = {"active": host == self.hosts[0]}
            if "balancer" in spec.get("gateway", {}):
                well = [{"uid": one["uid"], "healthy": True} for one in spec["gateway"]["balancer"].get("members", [])]
                status["gateway"] = {"active": host == self.hosts[0], "balancer": {"members": well}}
            with suppress(errors.NotFound):
                body = {"status": status}
                await self.client.patch(WorkOrder.KIND, meta["name"], body, host_namespace(host), subresource="status")

    async def check(self) -> None:
        """No address twice, and each claimed by whose it is."""
        claims = {(c["spec"]["network"], c["spec"]["address"]): c["spec"] for c in await self.claims()}
        seen: dict[tuple[str, str], str] = {}
        for item in await self.listed(NetworkInterface.KIND, self.namespace):
            name, status = item["metadata"]["name"], item.get("status", {})
            for key in [(status["network"], address) for address in status.get("addresses", [])]:
                assert key not in seen, f"{name} and {seen[key]} have {key}"
                seen[key] = name
                if "deletionTimestamp" not in item["metadata"]:
                    assert claims[key]["interfaceUid"] == item["metadata"]["uid"]
        nics = [n for _, order in (await self.instances()).values() for n in order.get("nics", [])]
        given = [(n["network"], address) for n in nics for address in n["addresses"]]
        assert len(given) == len(set(given)), f"two machines have one address: {given}"

    async def claims(self) -> list[Raw]:
        return await self.listed(IPAddress.KIND, self.namespace)

    async def addresses(self) -> dict[str, list[str]]:
        """Addresses of interfaces, by name."""
        found = await self.listed(NetworkInterface.KIND, self.namespace)
        return {item["metadata"]["name"]: item.get("status", {}).get("addresses", []) for item in found}

    async def state(self) -> str:
        """All that there is, without what differs from one run to the next."""
        found: list[str] = []
        for model in MADE:
            found += [self._line("", item) for item in await self.listed(model.KIND, self.namespace)]
        found += [self._line(host, order) for host, order in await self.orders()]
        found += ["SegmentId" for _ in await self.numbers()]
        return "\n".join(sorted(found)).replace(self.namespace, "NAMESPACE")

    def _line(self, host: str, item: Raw) -> str:
        meta, status = item["metadata"], dict(item.get("status") or {})
        for moving in ("observedGeneration", "vni"):
            status.pop(moving, None)
        status["conditions"] = [(c["type"], c["reason"]) for c in status.get("conditions", [])]
        spec = {key: value for key, value in item.get("spec", {}).items() if key != "term"}
        if "segment" in spec:
            spec["segment"] = {key: value for key, value in spec["segment"].items() if key != "vni"}
        shown = (item["kind"], meta.get("finalizers"), "deletionTimestamp" in meta, spec, status)
        who = f"{host} {item['spec']['for']['name']}" if item["kind"] == "WorkOrder" else meta["name"]
        return MAC.sub("MAC", TIME.sub("TIME", UUID.sub("UID", f"{who} {shown}")))


async def settle(brain: Brain, stage: Stage, passes: int = PASSES) -> None:
    """Until nothing changes any more."""
    before = ""
    for _ in range(passes):
        await brain.passes(stage.namespace)
        await stage.check()
        await stage.agents()
        now = await stage.state()
        if now == before:
            return
        before = now
    raise AssertionError(f"no end after {passes} passes:\n{before}")


@pytest.fixture
async def stage(cluster: NativeCluster, namespace: str) -> AsyncIterator[Stage]:
    async with connected(cluster) as client:
        made = await Stage(client, namespace).build()
        try:
            yield made
        finally:
            await made.remove()


def reason(item: Raw, type_: str = "Ready") -> str:
    return str(condition(item, type_).get("reason"))


def message(item: Raw, type_: str = "Ready") -> str:
    return str(condition(item, type_).get("message"))


# A machine and its network


async def test_a_machine_gets_an_address_for_life_and_its_host_the_network(stage: Stage) -> None:
    await stage.network(dns={"domain": "example.internal"}, cidrs=["10.0.0.0/24", "fd00:1::/64"])
    await stage.vm("web")
    brain = Brain(stage.client)
    await settle(brain, stage)

    net = await stage.get(Network, "net")
    assert net["status"]["phase"] == "Ready" and net["status"]["mtu"] == 1450 and net["status"]["driver"] == "linux"
    assert net["status"]["gateways"] == ["10.0.0.1", "fd00:1::1"]
    assert net["status"]["services"] == ["10.0.0.2", "fd00:1::2"]
    assert net["status"]["allocated"] == 2 and net["status"]["hosts"] == 1
    assert [n["metadata"]["name"] for n in await stage.numbers()] == [str(net["status"]["vni"])]

    nic = await stage.get(NetworkInterface, "web-eth0")
    vm = await stage.get(VirtualMachine, "web")
    host, order = (await stage.instances())["web"]
    assert nic["status"]["addresses"] == ["10.0.0.3", "fd00:1::3"] == vm["status"]["addresses"]
    assert nic["status"] | {"conditions": []} == nic["status"] | {
        "conditions": [],
        "phase": "Attached",
        "vm": "web",
        "host": host,
        "network": net["metadata"]["uid"],
    }
    assert nic["metadata"]["ownerReferences"][0]["uid"] == vm["metadata"]["uid"]
    assert reason(vm, "NetworkReady") == "InterfacesReady" and condition(vm)["status"] == "True"
    group = await stage.get(SecurityGroup, "default")
    assert group["status"]["members"] == 1 and reason(group) == "Ready"
    assert order["nics"] == [
        {
            "name": "eth0",
            "uid": nic["metadata"]["uid"],
            "network": net["metadata"]["uid"],
            "mac": nic["status"]["macAddress"],
            "addresses": ["10.0.0.3", "fd00:1::3"],
            "pairs": [],
            "groups": [group["metadata"]["uid"]],
            "hostname": "web",
        }
    ]
    segments = await stage.segments()
    assert list(segments) == [host], "a host without interfaces of it knows nothing of a network"
    told = segments[host]
    assert (told["vni"], told["mtu"], told["peers"]) == (net["status"]["vni"], 1450, [])
    assert told["subnets"] == [
        {"cidr": "10.0.0.0/24", "service": "10.0.0.2"},
        {"cidr": "fd00:1::/64", "service": "fd00:1::2"},
    ]
    assert told["dns"]["domain"] == "example.internal"
    assert told["dns"]["records"] == [{"name": "web", "addresses": ["10.0.0.3", "fd00:1::3"]}]
    uid = group["metadata"]["uid"]
    assert told["groups"] == [
        {
            "uid": uid,
            "ingress": [{"protocol": "Any", "ports": [], "cidrs": [], "group": uid}],
            "egress": [{"protocol": "Any", "ports": [], "cidrs": []}],
            "members": ["10.0.0.3", "fd00:1::3"],
        }
    ]


async def test_hosts_know_each_other_while_both_have_the_network(stage: Stage) -> None:
    await stage.network()
    for name, which in (("one", "a"), ("two", "b")):
        await stage.vm(name, placement={"hostSelector": {"which": which}})
    brain = Brain(stage.client)
    await settle(brain, stage)
    a, b = stage.hosts
    told = await stage.segments()
    assert told[a]["peers"] == ["192.0.2.2"] and told[b]["peers"] == ["192.0.2.1"]
    assert (
        [r["name"] for r in told[a]["dns"]["records"]]
        == ["one", "two"]
        == [r["name"] for r in told[b]["dns"]["records"]]
    )
    members = [sorted(group["members"]) for host in (a, b) for group in told[host]["groups"]]
    assert members == [["10.0.0.3", "10.0.0.4"]] * 2

    await stage.delete(VirtualMachine, "two")
    await settle(brain, stage)
    told = await stage.segments()
    assert list(told) == [a] and told[a]["peers"] == [], "the last interface has left the other host"
    assert [r["name"] for r in told[a]["dns"]["records"]] == ["one"]


async def test_a_network_waits_for_its_interfaces_and_leaves_nothing(stage: Stage) -> None:
    await stage.network()
    await stage.make(NetworkInterface, "own", network="net")
    await stage.make(SecurityGroup, "spare")
    await stage.vm("web")
    brain = Brain(stage.client)
    await settle(brain, stage)
    await stage.delete(Network, "net")
    await settle(brain, stage)
    net = await stage.get(Network, "net")
    assert net["status"]["phase"] == "Terminating" and reason(net) == "InUse"
    assert "own, web-eth0" in message(net) and "2 interfaces" in message(net)
    late = await stage.make(NetworkInterface, "late", network="net")
    await settle(brain, stage)
    assert reason(await stage.get(NetworkInterface, late["metadata"]["name"])) == "NetworkDeleting"

    paused = ((Network, "net"), (NetworkInterface, "own"), (SecurityGroup, "spare"))
    for model, name in paused:
        await stage.client.patch(model.KIND, name, {"metadata": {"annotations": {PAUSED: "true"}}}, stage.namespace)
    for model, name in ((VirtualMachine, "web"), (NetworkInterface, "late"), *paused[1:]):
        await stage.delete(model, name)
    await settle(brain, stage)
    for model, name in paused:
        assert reason(await stage.get(model, name)) == "LeftAlone"
        await stage.client.patch(model.KIND, name, {"metadata": {"annotations": {PAUSED: None}}}, stage.namespace)
    await settle(brain, stage)
    left = await stage.state()
    assert left.count("\n") == 0 and left.startswith("default "), f"the default group alone stays: {left}"


# Who has which address


async def test_two_leaders_and_a_restart_never_give_one_address_twice(stage: Stage) -> None:
    await stage.network()
    names = [f"nic-{number:02}" for number in range(12)]
    for name in names[:8]:
        await stage.make(NetworkInterface, name, network="net")
    one, two = Brain(stage.client, 1), Brain(stage.client, 2)
    await settle_networks(one, stage)
    for round_ in range(4):
        if round_ == 2:  # one restarts, in the middle, and more interfaces come
            one = Brain(stage.client, 3)
            for name in names[8:]:
                await stage.make(NetworkInterface, name, network="net")
        await asyncio.gather(one.look(), two.look())
        passes = [brain.interfaces.reconcile(Key(stage.namespace, n)) for n in names for brain in (one, two)]
        for outcome in await asyncio.gather(*passes, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, errors.KubeError), outcome
        await stage.check()
    await settle(Brain(stage.client, 4), stage)
    found = await stage.addresses()
    assert all(len(found[name]) == 1 for name in names), found
    claims = await stage.claims()
    assert sorted(c["spec"]["address"] for c in claims) == sorted(found[name][0] for name in names), (
        "no claim is left over"
    )


async def settle_networks(brain: Brain, stage: Stage) -> None:
    for _ in range(2):
        await brain.look()
        for key in brain.networks.everything():
            if key.namespace == stage.namespace:
                with suppress(errors.Conflict):
                    await brain.networks.reconcile(key)


async def test_a_leader_that_looks_too_late_changes_no_address(stage: Stage) -> None:
    await stage.network()
    await stage.make(NetworkInterface, "nic", network="net")
    old = Brain(stage.client, 1)
    await settle_networks(old, stage)
    await old.look()
    await stage.make(NetworkInterface, "first", network="net", addresses=["10.0.0.3"])
    await settle(Brain(stage.client, 2), stage)
    before = await stage.addresses()
    assert before == {"first": ["10.0.0.3"], "nic": ["10.0.0.4"]}
    with pytest.raises(errors.Conflict):
        await old.interfaces.reconcile(Key(stage.namespace, "nic"))
    await settle(Brain(stage.client, 2), stage)
    assert await stage.addresses() == before
    assert len(await stage.claims()) == 2, "what it has claimed in vain is given back"


async def test_a_full_network_says_so_and_goes_on_when_an_interface_goes(stage: Stage) -> None:
    await stage.network(cidrs=["10.0.0.0/29"])
    for number in range(5):
        await stage.make(NetworkInterface, f"nic-{number}", network="net")
    brain = Brain(stage.client)
    await settle(brain, stage)
    found = await stage.addresses()
    assert sorted(a for addresses in found.values() for a in addresses) == [f"10.0.0.{n}" for n in (3, 4, 5, 6)]
    without = next(name for name, addresses in found.items() if not addresses)
    nic = await stage.get(NetworkInterface, without)
    assert nic["status"]["phase"] == "Pending" and reason(nic) == "NetworkFull"
    assert "no address left in 10.0.0.0/29: of 4 that can be given, 4 are in use" in message(nic)
    await stage.delete(NetworkInterface, next(name for name in found if name != without))
    await settle(brain, stage)
    assert len((await stage.addresses())[without]) == 1


async def test_a_network_whose_ranges_give_nothing_says_so_and_goes_on_when_they_do(stage: Stage) -> None:
    await stage.network(dhcp={"ranges": [{"start": "10.0.0.9", "end": "10.0.0.5"}]})
    await stage.make(NetworkInterface, "nic", network="net")
    brain = Brain(stage.client)
    await settle(brain, stage)
    nic = await stage.get(NetworkInterface, "nic")
    assert reason(nic) == "NetworkFull" and "correct spec.dhcp.ranges" in message(nic)
    await stage.change(Network, "net", dhcp={"ranges": [{"start": "10.0.0.5", "end": "10.0.0.9"}]})
    await settle(brain, stage)
    assert (await stage.addresses())["nic"] == ["10.0.0.5"]


async def test_an_address_rests_before_somebody_else_gets_it(stage: Stage) -> None:
    await stage.client.patch(NetworkClass.KIND, stage.namespace, {"spec": {"restSeconds": 3600}})
    await stage.network(cidrs=["10.0.0.0/29"], dhcp={"ranges": [{"start": "10.0.0.5", "end": "10.0.0.5"}]})
    await stage.make(NetworkInterface, "first", network="net")
    brain = Brain(stage.client)
    await settle(brain, stage)
    await stage.delete(NetworkInterface, "first")
    await stage.make(NetworkInterface, "second", network="net")
    await stage.make(NetworkInterface, "wants", network="net", addresses=["10.0.0.5"])
    await settle(brain, stage)
    second, wants = await stage.get(NetworkInterface, "second"), await stage.get(NetworkInterface, "wants")
    assert reason(second) == "NetworkFull" and "that spec.dhcp.ranges allow, 0 are in use, 1 rest" in message(second)
    assert reason(wants) == "AddressResting" and "rests until " in message(wants)
    assert (await stage.get(Network, "net"))["status"]["allocated"] == 1
    brain.clock.by += 3600
    await stage.delete(NetworkInterface, "wants")
    await settle(brain, stage)
    assert (await stage.addresses())["second"] == ["10.0.0.5"]


async def test_what_an_interface_asks_for_and_cannot_have_is_said(stage: Stage) -> None:
    await stage.network()
    await stage.network("l2", type="L2", cidrs=[])
    await stage.network("dual", cidrs=["10.0.0.0/24", "fd00::/64"])
    many = [f"10.0.0.{number}" for number in range(10, 26)]
    await stage.make(NetworkInterface, "first", network="net", addresses=["10.0.0.9"], macAddress="02:00:00:00:00:09")
    brain = Brain(stage.client)
    await settle(brain, stage)
    cases: dict[str, tuple[str, str, Raw]] = {
        "used": ("AddressInUse", "is the address of interface first", {"addresses": ["10.0.0.9"]}),
        "mac": ("MacAddressInUse", "Interface first", {"macAddress": "02:00:00:00:00:09"}),
        "outside": ("AddressNotInNetwork", "10.0.0.0/24", {"addresses": ["10.0.1.9"]}),
        "gateway": ("AddressReserved", "router", {"addresses": ["10.0.0.1"]}),
        "service": ("AddressReserved", "metadata", {"addresses": ["10.0.0.2"]}),
        "broadcast": ("AddressReserved", "broadcast", {"addresses": ["10.0.0.255"]}),
        "many": ("TooManyAddresses", "one of fd00::/64 besides", {"network": "dual", "addresses": many}),
        "frames": ("AddressNotInNetwork", "type L2", {"network": "l2", "addresses": ["10.0.0.7"]}),
        "nowhere": ("NetworkNotFound", "There is no Network nothing", {"network": "nothing"}),
        "theirs": ("NetworkNotAllowed", "kube-system", {"network": "net", "networkNamespace": "kube-system"}),
        "groups": ("SecurityGroupNotFound", "SecurityGroups db, web", {"securityGroups": ["web", "db"]}),
    }
    for name, (_, _, spec) in cases.items():
        await stage.make(NetworkInterface, name, **{"network": "net", **spec})
    await settle(brain, stage)
    for name, (wanted, said, _) in cases.items():
        nic = await stage.get(NetworkInterface, name)
        assert reason(nic) == wanted and said in message(nic), (name, condition(nic))
    # What can be made good is, and goes on.
    for group in ("web", "db"):
        await stage.make(SecurityGroup, group)
    await stage.network("nothing", cidrs=["10.9.0.0/24"])
    await stage.delete(NetworkInterface, "first")
    await settle(brain, stage)
    found = await stage.addresses()
    assert found["used"] == ["10.0.0.9"] and found["nowhere"] == ["10.9.0.3"]
    for name in ("groups", "mac"):
        assert reason(await stage.get(NetworkInterface, name)) == "Allocated"


class Visitor:
    """An interface called nic, of another namespace, that names the network."""

    def __init__(self, stage: Stage, brain: Brain) -> None:
        self.stage, self.brain, self.namespace = stage, brain, f"{stage.namespace}-guest"

    async def settled(self) -> Raw:
        """It, when nothing changes any more, there and in the network."""
        for _ in range(3):
            await settle(self.brain, self.stage)
            with suppress(errors.Conflict):
                await self.brain.interfaces.reconcile(Key(self.namespace, "nic"))
        return await self.stage.client.get(NetworkInterface.KIND, "nic", self.namespace)


@asynccontextmanager
async def visit(stage: Stage, brain: Brain, **spec: Any) -> AsyncIterator[Visitor]:
    visitor = Visitor(stage, brain)
    await stage.client.create(NAMESPACE, {"metadata": {"name": visitor.namespace}})
    try:
        body = {"network": "net", "networkNamespace": stage.namespace, **spec}
        await stage.put(NetworkInterface.KIND, "nic", body, namespace=visitor.namespace)
        yield visitor
    finally:
        with suppress(errors.NotFound):
            body = {"metadata": {"finalizers": []}}
            await stage.client.patch(NetworkInterface.KIND, "nic", body, visitor.namespace)
        await stage.client.delete(NAMESPACE, visitor.namespace)


async def test_who_may_not_use_a_network_keeps_nothing_of_it(stage: Stage) -> None:
    await stage.network()
    brain, mac = Brain(stage.client), "02:00:00:00:00:09"
    async with visit(stage, brain, macAddress=mac) as visitor:
        assert reason(await visitor.settled()) == "NetworkNotAllowed"
        await stage.make(NetworkInterface, "own", network="net", macAddress=mac)
        await settle(brain, stage)
        assert (await stage.get(NetworkInterface, "own"))["status"]["macAddress"] == mac
        await stage.delete(NetworkInterface, "own")
        await stage.delete(Network, "net")
        await settle(brain, stage)
        with pytest.raises(errors.NotFound):
            await stage.get(Network, "net")


async def test_a_shared_network_waits_for_the_interfaces_of_others(stage: Stage) -> None:
    await stage.network(type="Shared", allowedNamespaces=[f"{stage.namespace}-guest"])
    brain, mac = Brain(stage.client), "02:00:00:00:00:09"
    async with visit(stage, brain, macAddress=mac) as visitor:
        assert (await visitor.settled())["status"]["macAddress"] == mac
        await stage.change(Network, "net", allowedNamespaces=[])
        await stage.make(NetworkInterface, "own", network="net", macAddress=mac)
        await settle(brain, stage)
        assert reason(await stage.get(NetworkInterface, "own")) == "MacAddressInUse"
        net = await stage.get(Network, "net")
        assert (reason(net, "Allowed"), net["status"]["phase"]) == ("NamespaceNotAllowed", "Ready")
        assert f"({visitor.namespace}/nic)" in message(net, "Allowed")
        await stage.delete(NetworkInterface, "own")
        await stage.delete(Network, "net")
        await settle(brain, stage)
        assert f"1 interface ({visitor.namespace}/nic)" in message(await stage.get(Network, "net"))
        await stage.client.delete(NetworkInterface.KIND, "nic", visitor.namespace)
        with pytest.raises(errors.NotFound):
            await visitor.settled()
        await settle(brain, stage)
        with pytest.raises(errors.NotFound):
            await stage.get(Network, "net")


async def test_a_shared_network_serves_the_namespaces_that_it_names(stage: Stage) -> None:
    await stage.network(type="Shared", allowedNamespaces=["nobody"])
    brain = Brain(stage.client)
    async with visit(stage, brain) as visitor:
        guest = visitor.namespace
        nic = await visitor.settled()
        assert reason(nic) == "NetworkNotAllowed"
        await stage.change(Network, "net", allowedNamespaces=[guest])
        nic = await visitor.settled()
        assert nic["status"]["addresses"] == ["10.0.0.3"]
        claims = await stage.claims()
        assert [c["spec"]["interfaceNamespace"] for c in claims] == [guest]
        await stage.make(NetworkInterface, "own", network="net", addresses=["10.0.0.3"])
        await settle(brain, stage)
        own = await stage.get(NetworkInterface, "own")
        assert "an interface of another namespace" in message(own) and guest not in message(own)


async def test_a_claim_of_nobody_is_found_and_given_back(stage: Stage) -> None:
    """A leader that was no longer one has made it, after the interface had gone."""
    net = await stage.network()
    await stage.make(NetworkInterface, "gone", network="net")
    gone = await stage.get(NetworkInterface, "gone")
    await stage.delete(NetworkInterface, "gone")
    for address, network in (("10.0.0.3", net["metadata"]["uid"]), ("10.0.0.4", gone["metadata"]["uid"])):
        owner = {"apiVersion": Network.KIND.api_version, "kind": "Network", "name": "net", "uid": network}
        spec = {"network": network, "address": address, "interface": "gone", "interfaceUid": gone["metadata"]["uid"]}
        name = f"{network}-{address.replace('.', '-')}"
        await stage.put(IPAddress.KIND, name, spec, namespace=stage.namespace, ownerReferences=[owner])
    brain = Brain(stage.client)
    await settle(brain, stage)
    assert await stage.claims() == []
    await stage.make(NetworkInterface, "new", network="net")
    await settle(brain, stage)
    assert (await stage.addresses())["new"] == ["10.0.0.3"]


async def test_what_is_for_life_comes_back_when_the_status_is_lost(stage: Stage) -> None:
    """After a restore from a backup, say: the claims tell."""
    await stage.network()
    await stage.make(NetworkInterface, "first", network="net")
    await stage.make(NetworkInterface, "second", network="net")
    brain = Brain(stage.client)
    await settle(brain, stage)
    before, net = await stage.state(), await stage.get(Network, "net")
    for model, name in ((NetworkInterface, "second"), (NetworkInterface, "first"), (Network, "net")):
        body = {"status": None}
        await stage.client.patch(model.KIND, name, body, stage.namespace, subresource="status")
    await settle(Brain(stage.client, 2), stage)
    assert await stage.state() == before
    assert (await stage.get(Network, "net"))["status"]["vni"] == net["status"]["vni"]


# Machines come and go


async def test_addresses_survive_a_stop_and_another_host(stage: Stage) -> None:
    await stage.network()
    await stage.make(NetworkInterface, "own", network="net")
    keep = {"name": "eth0", "interface": "own"}
    await stage.vm("web", keep, {"name": "eth1", "network": "net"}, placement={"hostSelector": {"which": "a"}})
    brain = Brain(stage.client)
    await settle(brain, stage)
    before = await stage.addresses()
    mac = (await stage.get(NetworkInterface, "own"))["status"]["macAddress"]
    await stage.change(VirtualMachine, "web", powerState="Stopped")
    await settle(brain, stage)
    nic = await stage.get(NetworkInterface, "own")
    assert nic["status"]["phase"] == "Allocated" and nic["status"]["vm"] == "web" and await stage.addresses() == before
    await stage.change(VirtualMachine, "web", powerState="Running")
    await settle(brain, stage)
    assert (await stage.get(NetworkInterface, "own"))["status"]["phase"] == "Attached"
    assert await stage.addresses() == before

    await stage.delete(VirtualMachine, "web")
    await settle(brain, stage)
    nic = await stage.get(NetworkInterface, "own")
    assert "vm" not in nic["status"] and "host" not in nic["status"] and nic["status"]["phase"] == "Allocated"
    assert list(await stage.addresses()) == ["own"], "what the machine brought along went with it"
    await stage.vm("web", keep, placement={"hostSelector": {"which": "b"}})
    await settle(brain, stage)
    nic = await stage.get(NetworkInterface, "own")
    assert nic["status"]["host"] == stage.hosts[1] and nic["status"]["macAddress"] == mac
    assert (await stage.addresses())["own"] == before["own"]
    assert list(await stage.segments()) == [stage.hosts[1]]


async def test_interfaces_come_and_go_while_a_machine_runs(stage: Stage) -> None:
    await stage.network()
    await stage.network("back", cidrs=["10.0.0.0/24"])
    first, second = {"name": "eth0", "network": "net"}, {"name": "eth1", "network": "back"}
    await stage.vm("web", first)
    brain = Brain(stage.client)
    await settle(brain, stage)
    await stage.change(VirtualMachine, "web", interfaces=[first, second])
    await settle(brain, stage)
    vm, (_, order) = await stage.get(VirtualMachine, "web"), (await stage.instances())["web"]
    assert [n["name"] for n in order["nics"]] == ["eth0", "eth1"] and reason(vm, "NetworkReady") == "InterfacesReady"
    assert vm["status"]["addresses"] == ["10.0.0.3", "10.0.0.3"], "ranges of networks may overlap"
    uids = {o["spec"]["segment"]["uid"] for _, o in await stage.orders("Segment")}
    assert len(uids) == 2
    await stage.change(VirtualMachine, "web", interfaces=[second])
    await settle(brain, stage)
    _, order = (await stage.instances())["web"]
    assert [n["name"] for n in order["nics"]] == ["eth1"] and list(await stage.addresses()) == ["web-eth1"]
    assert len(await stage.segments()) == 1
    with pytest.raises(errors.Refused, match="cannot be changed here"):
        await stage.change(VirtualMachine, "web", interfaces=[{**second, "network": "net"}])


async def test_an_interface_that_a_machine_brought_along_is_made_anew_when_it_is_deleted(stage: Stage) -> None:
    await stage.network()
    await stage.vm("web")
    await stage.vm("waits", {"name": "eth0", "network": "later"})
    brain = Brain(stage.client)
    await settle(brain, stage)
    names = ("web-eth0", "waits-eth0")
    before = [(await stage.get(NetworkInterface, name))["metadata"]["uid"] for name in names]
    for name in names:
        await stage.delete(NetworkInterface, name)
    await settle(brain, stage)
    new, waits = [await stage.get(NetworkInterface, name) for name in names]
    assert new["metadata"]["uid"] != before[0] and new["status"]["phase"] == "Attached"
    _, order = (await stage.instances())["web"]
    assert [n["uid"] for n in order["nics"]] == [new["metadata"]["uid"]]
    vm = await stage.get(VirtualMachine, "web")
    assert reason(vm, "NetworkReady") == "InterfacesReady" and vm["status"]["addresses"] == new["status"]["addresses"]
    assert waits["metadata"]["uid"] != before[1] and reason(waits) == "NetworkNotFound"
    await stage.network("later")
    await settle(brain, stage)
    assert set(await stage.instances()) == {"web", "waits"}


async def test_why_a_machine_cannot_have_its_interface_is_said(stage: Stage) -> None:
    await stage.network()
    await stage.network("small", cidrs=["10.0.0.0/29"])
    await stage.make(NetworkInterface, "own", network="net")
    await stage.make(NetworkInterface, "taken-eth0", network="net")
    brain = Brain(stage.client)
    mine = {"name": "eth0", "interface": "own"}
    await stage.vm("web", mine)
    await settle(brain, stage)
    cases: dict[str, tuple[str, str, Raw]] = {
        "second": ("InterfaceInUse", "machine web's", mine),
        "missing": ("InterfaceNotFound", "no NetworkInterface nothing", {"name": "eth0", "interface": "nothing"}),
        "taken": ("InterfaceExists", "interface: taken-eth0", {"name": "eth0", "network": "net"}),
        "nowhere": ("NetworkNotFound", "no Network nothing", {"name": "eth0", "network": "nothing"}),
        "grouped": ("SecurityGroupNotFound", "web", {"name": "eth0", "network": "net", "securityGroups": ["web"]}),
    }
    for name, (_, _, interface) in cases.items():
        await stage.vm(name, interface)
    await settle(brain, stage)
    for name, (wanted, said, _) in cases.items():
        vm = await stage.get(VirtualMachine, name)
        assert reason(vm, "NetworkReady") == wanted and said in message(vm, "NetworkReady"), (name, vm["status"])
        assert "host" not in vm["status"] and reason(vm, "Scheduled") == "NetworkNotReady", "it waits for its addresses"
    assert list(await stage.instances()) == ["web"]
    await stage.delete(VirtualMachine, "web")
    await stage.make(SecurityGroup, "web", ingress=[{"protocol": "TCP", "ports": ["80"]}])
    await stage.network("nothing")
    await stage.delete(NetworkInterface, "taken-eth0")
    await settle(brain, stage)
    assert set(await stage.instances()) == {"second", "nowhere", "grouped", "taken"}


async def test_a_machine_goes_where_its_network_s_driver_works(stage: Stage) -> None:
    a, b = stage.hosts
    lack = {"drivers": [], "underlay": None, "message": "The kernel has no vxlan."}
    there = host_namespace(a)
    await stage.client.patch(HostReport.KIND, a, {"status": {"network": lack}}, there, subresource="status")
    await stage.network()
    await stage.vm("web")
    await stage.vm("bound", placement={"hostSelector": {"which": "a"}})
    brain = Brain(stage.client)
    await settle(brain, stage)
    assert {name: host for name, (host, _) in (await stage.instances()).items()} == {"web": b}
    bound = await stage.get(VirtualMachine, "bound")
    assert reason(bound, "Scheduled") == "NoHostFits"
    assert f"1 without network driver linux (The kernel has no vxlan) ({a})" in message(bound, "Scheduled")
    network = {"drivers": ["linux"], "underlay": "192.0.2.1"}
    await stage.client.patch(HostReport.KIND, a, {"status": {"network": network}}, there, subresource="status")
    await settle(brain, stage)
    assert set(await stage.instances()) == {"web", "bound"}


# Who is told what, and how often


async def test_a_host_is_told_once_a_second_of_all_that_changed(stage: Stage, cluster: NativeCluster) -> None:
    await stage.network()
    await stage.vm("web")
    async with mortal(cluster, None) as client:
        brain = Brain(client)
        await settle(brain, stage)
        segments = next(r for r in brain.reconcilers if isinstance(r, SegmentReconciler))
        key = Key(stage.namespace, "net")

        async def told() -> tuple[int, int]:
            """How often the host was told by a pass, and how many members it knows."""
            before = client.writes
            await segments.reconcile(key)
            [order] = (await stage.segments()).values()
            return client.writes - before, len(order["groups"][0]["members"])

        answers = []
        brain.clock.by += 1.0
        for name in ("one", "two", "three", "four"):
            await stage.make(NetworkInterface, name, network="net")
            await brain.look()
            await brain.interfaces.reconcile(Key(stage.namespace, name))
            answers.append(await told())
        assert answers == [(1, 2), (0, 2), (0, 2), (0, 2)], "the first change at once, the others together"
        brain.clock.by += 1.0
        assert await told() == (1, 5)
        brain.clock.by += 1.0
        assert await told() == (0, 5), "nothing changed"


async def test_a_rule_that_names_a_missing_group_lets_nothing_through(stage: Stage) -> None:
    await stage.network()
    rules = [
        {"protocol": "TCP", "ports": ["22", "8000-8100"], "from": {"cidrs": ["192.0.2.0/24"]}},
        {"protocol": "UDP", "from": {"securityGroup": "db"}},
    ]
    await stage.make(SecurityGroup, "web", ingress=rules)
    await stage.vm("web", {"name": "eth0", "network": "net", "securityGroups": ["web"]})
    brain = Brain(stage.client)
    await settle(brain, stage)
    [told] = (await stage.segments()).values()
    ports = [{"first": 22, "last": 22}, {"first": 8000, "last": 8100}]
    first = {"protocol": "TCP", "ports": ports, "cidrs": ["192.0.2.0/24"]}
    assert [group["ingress"] for group in told["groups"]] == [[first]]
    group = await stage.get(SecurityGroup, "web")
    assert reason(group) == "SecurityGroupNotFound" and "db" in message(group)
    db = await stage.make(SecurityGroup, "db")
    await stage.make(NetworkInterface, "db", network="net", securityGroups=["db"])
    await settle(brain, stage)
    [told] = (await stage.segments()).values()
    by = {g["uid"]: g for g in told["groups"]}
    uid = db["metadata"]["uid"]
    assert by[group["metadata"]["uid"]]["ingress"][1] == {"protocol": "UDP", "ports": [], "cidrs": [], "group": uid}
    assert by[uid]["members"] == (await stage.addresses())["db"] and by[uid]["ingress"] == []
    assert reason(await stage.get(SecurityGroup, "web")) == "Ready"


async def test_what_is_in_use_stays_and_says_by_whom(stage: Stage) -> None:
    await stage.network("net", **{"class": stage.namespace})
    await stage.make(SecurityGroup, "web", ingress=[{"protocol": "ICMP"}])
    await stage.make(SecurityGroup, "db", ingress=[{"from": {"securityGroup": "web"}}])
    await stage.vm("one", {"name": "eth0", "network": "net", "securityGroups": ["web"]})
    brain = Brain(stage.client)
    await settle(brain, stage)
    before = await stage.segments()
    await stage.delete(SecurityGroup, "web")
    await stage.client.delete(NetworkClass.KIND, stage.namespace)
    await stage.network("late", **{"class": stage.namespace})
    await settle(brain, stage)
    group, offered = await stage.get(SecurityGroup, "web"), await stage.client.get(NetworkClass.KIND, stage.namespace)
    assert (reason(group), reason(offered)) == ("InUse", "InUse")
    assert "NetworkInterface" in message(group) and f"SecurityGroup {stage.namespace}/db" in message(group)
    assert f"Network {stage.namespace}/net" in message(offered)
    assert await stage.segments() == before, "its rules stay in force"
    assert reason(await stage.get(Network, "late")) == "NetworkClassNotFound"
    # Nobody uses them any more.
    await stage.delete(Network, "late")
    await stage.delete(VirtualMachine, "one")
    await stage.delete(Network, "net")
    await settle(brain, stage)
    assert "web" not in message(await stage.get(SecurityGroup, "db")), "a rule holds it too"
    assert await stage.client.find(NetworkClass.KIND, stage.namespace) is None
    await stage.delete(SecurityGroup, "db")
    await settle(brain, stage)
    assert await stage.client.find(SecurityGroup.KIND, "web", stage.namespace) is None
    assert await stage.client.find(SecurityGroup.KIND, "db", stage.namespace) is None


# Crashes


async def life(cluster: NativeCluster, stage: Stage, lives: int | None, *, delete: bool) -> int:
    """A network with a machine comes (and goes) under a process that dies after so many writes."""
    await stage.network()
    await stage.vm("web", placement={"hostSelector": {"which": "a"}})
    if delete:
        await settle(Brain(stage.client), stage)
        await stage.delete(VirtualMachine, "web")
        await stage.delete(Network, "net")
    async with mortal(cluster, lives) as client:
        with suppress(Crash):
            await settle(Brain(client), stage)
        return client.writes


async def clear(stage: Stage) -> None:
    with suppress(errors.NotFound):
        await stage.delete(VirtualMachine, "web")
        await stage.delete(Network, "net")
    await stage.delete(SecurityGroup, "default")
    await settle(Brain(stage.client, 3), stage)
    assert "net " not in await stage.state() and not await stage.numbers()
    await stage.delete(SecurityGroup, "default")


@pytest.mark.parametrize("delete", [False, True], ids=["create", "delete"])
async def test_a_crash_after_any_write_ends_as_if_there_had_been_none(
    cluster: NativeCluster, stage: Stage, delete: bool
) -> None:
    writes = await life(cluster, stage, None, delete=delete)
    wanted = await stage.state()
    assert writes >= 8, wanted
    assert FINALIZER in wanted or delete
    for lives in range(1, writes + 1):
        await clear(stage)
        await life(cluster, stage, lives, delete=delete)
        await settle(Brain(stage.client, 2), stage)
        assert await stage.state() == wanted, f"after write {lives}"
