"""Gateways of the driver `linux`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from kumulus.api.gateways import Forward, Masquerade, Route, RouterFunction
from kumulus.api.segments import Protocol, Subnet, Uplink
from kumulus.api.trace import Verdict
from kumulus_agents.network.linux import names
from tests.contract import network_world
from tests.contract.gateways import (
    CLIENT,
    FIRST,
    OWN,
    SECOND,
    SHARED,
    WAY_OUT,
    WHOLE,
    GatewayContract,
    Outside,
    Router,
    dies_with_its_agent,
    emptied,
    hosts_of,
    known_elsewhere,
)
from tests.contract.network import Net, four, reaches
from tests.contract.network_frames import BROADCAST, FALSE, TRUE, arp, ethernet, ip4, udp
from tests.contract.network_programs import Probe, Sender, Server, Talk, Watcher, Within
from tests.contract.network_trace import Cloud
from tests.contract.network_world import Guest, Host, Machine, World, eventually
from tests.contract.test_network_linux import TestContract as Networks
from tests.contract.test_network_linux import nothing_left
from tests.patience import PATIENCE

WHY_NOT = network_world.why_none()
WHY_NO_VLANS = WHY_NOT or network_world.why_no_vlans()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Outside]]:
    yield from hosts_of(Host)


@pytest.fixture
async def world(hosts: tuple[World, Outside]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


@pytest.fixture
def outside(hosts: tuple[World, Outside]) -> Outside:
    return hosts[1]


class TestGateways(GatewayContract):
    """The contract."""

    networks = Networks()

    def nothing_left(self, host: Host) -> None:
        nothing_left(host)

    def breakages(self, router: Router, net: Net) -> list[str]:
        return [f"ip link delete dev {names.bridge(net.order.uid)}"]


class TestVlans:
    """Ways out by VLANs of one device, which is a trunk."""

    @pytest.mark.skipif(
        WHY_NO_VLANS is not None, reason=f"{WHY_NO_VLANS} test_networks_elsewhere.py runs it on a kernel that has."
    )
    async def test_who_is_in_a_vlan_is_reached_by_nobody_else(self, world: World, outside: Outside) -> None:
        first, second = world.hosts[:2]
        routers = {
            7: Router(world, [], [first], outer=(f"{OWN}/24",), uplink=Uplink(device="out0", vlan=7)),
            8: Router(world, [], [second], outer=(f"{WHOLE}/24",), uplink=Uplink(device="out0", vlan=8), number=1),
        }
        with ExitStack() as ending:
            clients = {vlan: self.client(world, vlan, ending) for vlan in routers}
            try:
                for router in routers.values():
                    await router.ensure()
                await eventually(lambda: pinged(clients[7], OWN), "VLAN 7 does not reach its router")
                await eventually(lambda: pinged(clients[8], WHOLE), "VLAN 8 does not reach its router")
                assert not pinged(clients[7], WHOLE)
                assert not pinged(clients[8], OWN)
                assert not outside.reaches(OWN)
                assert not outside.reaches(WHOLE)
                for host in (first, second):
                    assert await host.driver.mend() == []
                device = next(name for name in first.machine.links() if name.startswith(names.OUTER_VLAN))
                first.machine.run("ip", "link", "delete", "dev", device)
                assert await first.driver.mend() != []
                assert await first.driver.mend() == []
                await eventually(lambda: pinged(clients[7], OWN), "its VLAN is not mended")
                routers[7].uplink = Uplink(device="out0", vlan=8)
                await routers[7].ensure()
                await eventually(lambda: pinged(clients[8], OWN), "it is not in the other VLAN")
                assert not pinged(clients[7], OWN)
                assert len([name for name in first.machine.links() if name.startswith(names.OUTER_VLAN)]) == 1
            finally:
                for router, host in zip(routers.values(), (first, second), strict=True):
                    await host.driver.remove_gateway(router.uid)

    def client(self, world: World, vlan: int, ending: ExitStack) -> Any:
        """Somebody on the trunk outside who is in that VLAN alone."""
        machine = Machine(f"vlan{vlan}")
        ending.callback(machine.close)
        world.wire.add_link(f"v{vlan}", mtu=1500, to=machine, peer=["name", "eth0"])
        world.wire.run("ip", "link", "set", "dev", f"v{vlan}", "master", "outside", "up")
        machine.run("ip", "link", "set", "dev", "eth0", "up")
        machine.run("ip", "link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", str(vlan))
        machine.run("ip", "address", "add", f"{CLIENT}/24", "dev", "tagged")
        machine.run("ip", "link", "set", "dev", "tagged", "up")
        return SimpleNamespace(machine=machine)


CLOUD: dict[str, Any] = {
    "networks": {"front": ["10.20.30.0/24", "fd00:20::/64"], "back": ["10.20.40.0/24", "fd00:40::/64"]},
    "groups": {
        "web": {
            "ingress": [
                {"protocol": "UDP", "ports": ["53"], "from": {"cidrs": ["10.20.40.0/24"]}},
                {"protocol": "TCP", "ports": ["79-80"]},
                {"protocol": "ICMPv6"},
            ],
            "egress": [{"protocol": "TCP"}, {"to": {"cidrs": ["203.0.113.0/24"]}}],
        },
        "open": {"ingress": [{}], "egress": [{}]},
        "data": {
            "ingress": [
                {"from": {"securityGroup": "nobody"}},
                {"protocol": "TCP", "ports": ["5432"], "from": {"securityGroup": "web"}},
                {"protocol": "ICMP", "from": {"cidrs": ["10.20.30.12/32"]}},
            ],
            "egress": [{"to": {"securityGroup": "web"}}],
        },
    },
    "interfaces": {
        "web": ("front", "host1", ["10.20.30.11", "fd00:20::11"], {"securityGroups": ["web"]}),
        "near": (
            "front",
            "host2",
            ["10.20.30.12", "fd00:20::12"],
            {"securityGroups": ["open"], "allowedAddressPairs": [{"address": "10.20.30.200"}]},
        ),
        "db": ("back", "host2", ["10.20.40.11", "fd00:40::11"], {"securityGroups": ["data"]}),
    },
    "floating": {
        "whole": (WHOLE, {"target": {"interface": "near"}}),
        "ports": (SHARED, {"portForwards": [{"protocol": "TCP", "port": 8080, "targetPort": 80, "interface": "web"}]}),
    },
}


def pinged(guest: Any, address: str) -> bool:
    return bool(guest.machine.attempt("busybox", "ping", "-c", "1", "-W", "1", address).returncode == 0)


async def test_a_trace_says_what_packets_do(world: World, outside: Outside) -> None:
    """The same objects, planned by the same code, are told to hosts and asked about: every verdict is what real packets do."""
    cloud = Cloud.make(**CLOUD)
    guests: dict[str, Any] = {**await cloud.ensure(world), "outside": outside}
    await eventually(lambda: guests["near"].reaches(CLIENT), "the router does not route")
    await eventually(lambda: outside.reaches(WHOLE), "the floating address is not reached from outside")
    await eventually(lambda: guests["near"].reaches("fd00:20::1"), "the router has no address of IPv6")
    ports = (53, 80, 5432)
    ends = {
        "web": ["10.20.30.11", "fd00:20::11"],
        "near": ["10.20.30.12", "fd00:20::12"],
        "db": ["10.20.40.11", "fd00:40::11"],
        "outside": [CLIENT],
    }
    others = [OWN, WHOLE, SHARED, "10.20.30.1", "10.20.40.1", "10.20.30.77"]
    probes = [(Protocol.TCP, port) for port in ports] + [(Protocol.UDP, 53)]
    known = {Verdict.PASSES: 0, Verdict.DROPPED: 0}

    async def hold(source: str) -> list[str]:
        """What is said of packets from there, and is not so. Who is expected to answer has time for it."""
        targets = [*(one for name, own in ends.items() if name != source for one in own), *others]
        if source == "outside":
            targets = [OWN, WHOLE, SHARED]  # to others it has no route, and so sends nothing
        asked = [(target, Protocol.ICMP, None) for target in targets]
        asked += [(target, protocol, port) for target in targets for protocol, port in probes]
        asked += [(SHARED, Protocol.TCP, 8080)]
        said = {one: cloud.ask(CLIENT if source == "outside" else source, *one) for one in asked}
        for found in said.values():
            known[found.verdict] += 1
        left, deadline = asked, time.monotonic() + 20 * PATIENCE
        with Probe(guests[source]) as probe:
            while left:
                pings = [target for target, _, port in left if port is None]
                talks = [(target, port, kind is Protocol.UDP) for target, kind, port in left if port is not None]
                answers = await asyncio.gather(*(asyncio.to_thread(pinged, guests[source], target) for target in pings))
                worked = [*answers, *await asyncio.to_thread(probe.work, talks)]
                wrong = [
                    one
                    for one, real in zip(left, worked, strict=True)
                    if (said[one].verdict is Verdict.PASSES) is not real
                ]
                late = [one for one in wrong if said[one].verdict is Verdict.PASSES]
                if late != wrong or time.monotonic() > deadline:
                    return [f"{source} to {one}: {said[one].to_json()}" for one in wrong]
                left = late
        return []

    with ExitStack() as serving:
        for guest in guests.values():
            serving.enter_context(Server(guest, *ports, 8080))
        assert [one for wrong in await asyncio.gather(*map(hold, ends)) for one in wrong] == []
    assert min(known.values()) > 30, known
    # Addresses that are not its own, and one that it may use.
    near = guests["near"]
    for address, passes in (("10.20.30.200", True), ("10.20.30.201", False)):
        near.machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        argv = ("busybox", "ping", "-c", "1", "-W", "1", "-I", address, CLIENT)
        assert (near.machine.attempt(*argv).returncode == 0) is passes
        found = cloud.ask("near", CLIENT, Protocol.ICMP, None, sent_from=address)
        assert (found.verdict is Verdict.PASSES) is passes, found.to_json()


@pytest.mark.wide
async def test_open_connections_go_on_to_and_fro(world: World, outside: Outside) -> None:
    """A host that is active again has seen nothing of them in between."""
    router, one, _ = await TestGateways().two_tiers(world, world.hosts[:2])
    router.outer = (f"{OWN}/24", f"{SHARED}/32")
    front, back = await one.guest(world.hosts[0]), await one.guest(world.hosts[1])
    router.function = RouterFunction(
        routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
        masquerade=(Masquerade(sources=("10.20.30.0/24",), address=OWN),),
        forwards=(Forward(external=SHARED, protocol="TCP", port=8080, internal=four(back), target_port=9000),),
    )
    await router.ensure()
    active = await router.active()
    for guest in (front, back):
        guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
        await reaches(guest, CLIENT)
    client: Guest = outside  # type: ignore[assignment]
    with (
        Server(client, 8000),
        Server(back, 9000),
        Talk(front, CLIENT, 8000, source=41000) as same,
        Talk(back, CLIENT, 8000, source=41000) as port,
        Talk(client, SHARED, 8080, source=41001) as forward,
    ):
        for _ in range(3):
            standby = next(host for host in world.hosts if host is not active)
            assert all(talk.works_on() for talk in (same, port, forward))
            wanted = ["sport=41000 ", "sport=41001 "]
            await eventually(
                lambda s=standby, w=wanted: all(one in known_elsewhere(s, router) for one in w), "it is not told"
            )
            dies_with_its_agent(active, router)
            await eventually(lambda: client.reaches(OWN), "nobody takes over")
            await eventually(forward.works_on, "it does not come back at all")
            assert [talk.works_on() for talk in (same, port, forward)] == [True] * 3
            active.restart()
            assert await active.driver.mend() != []
            active = standby


@pytest.mark.wide
async def test_each_of_several_hosts_knows_what_is_open() -> None:
    world = World(3)
    try:
        outside = Outside(world)
        try:
            for host in world.hosts:
                await host.driver.prepare()
            net = Net(world, world.hosts, Networks().order(subnets=FIRST))
            await net.ensure()
            router = Router(world, [net], world.hosts, outer=(f"{OWN}/24",))
            router.function = RouterFunction(masquerade=(Masquerade(sources=("10.20.30.0/24",), address=OWN),))
            await router.ensure()
            active = await router.active()
            guest = await net.guest(world.hosts[2])
            guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
            await reaches(guest, CLIENT)
            client: Guest = outside  # type: ignore[assignment]
            with Server(client, 8000), Talk(guest, CLIENT, 8000, source=41000) as talk:
                assert talk.works_on()
                for host in world.hosts:
                    if host is not active:
                        await eventually(
                            lambda h=host: "sport=41000 " in known_elsewhere(h, router), "one of them does not know it"
                        )
                assert "sport=41000 " not in known_elsewhere(active, router)
        finally:
            outside.machine.close()
    finally:
        world.close()


async def test_the_link_between_gateways_carries_nothing_for_others(world: World) -> None:
    router, _, _ = await TestGateways().two_tiers(world, world.hosts[:2])
    twin = Router(world, [], world.hosts[:2], number=1)
    await router.ensure()
    await twin.ensure()
    first, other = world.hosts
    here, theirs = names.gateway_namespace(router.uid), names.gateway_namespace(twin.uid)
    own, peer = "0a:00:00:00:00:ff", "0a:00:00:00:01:ff"
    payload = ip4("192.0.2.1", "192.0.2.2", 17, udp(9, 9, FALSE))
    astray = [ethernet(own, to, 0x0800, payload) for to in (BROADCAST, "33:33:00:00:00:01", "0a:00:00:00:99:99")]
    # Nor is anybody led astray by who says to be another.
    astray.append(ethernet("0a:00:00:01:01:ff", peer, 0x0800, ip4("192.0.2.1", "192.0.2.2", 17, udp(9, 9, TRUE))))
    with (
        Watcher(Within(other, here), "link") as arrives,
        Watcher(Within(first, theirs), "link") as beside,
        Watcher(Within(other, theirs), "link") as beyond,
        Sender(Within(first, here), astray, "link"),
    ):
        await eventually(lambda: arrives.seen()[0] > 50, "what is for the other host does not arrive")
        for watcher in (arrives, beside, beyond):
            assert watcher.seen()[1] == 0
        with Sender(
            Within(first, theirs),
            [ethernet(own, "0a:00:00:01:01:ff", 0x0800, ip4("192.0.2.1", "192.0.2.2", 17, udp(9, 9, TRUE)))],
            "link",
        ):
            await eventually(lambda: beyond.seen()[0] > 50, "somebody else gets what is for it")
    for command in (
        f"bridge fdb delete {peer} dev {names.link_tunnel()} master",
        f"ip link set dev {names.link(router.uid)} type bridge_slave flood on",
    ):
        first.machine.run(*command.split())
        assert await first.driver.mend() != [], command
        assert await first.driver.mend() == [], command


async def test_a_tenant_that_seeks_everybody_takes_neighbours_from_no_other(world: World) -> None:
    """The kernel has one table of neighbours for all gateways of a host."""
    contract, host = Networks(), world.hosts[0]
    large = Subnet(cidr="10.60.0.0/16", gateway="10.60.0.1", service="10.60.0.2")
    front, back = (
        await contract.network(world, subnets=FIRST),
        await contract.network(world, vni=5002, subnets=(large,)),
    )
    await Router(world, [front, back], [host]).ensure()
    nets = [await contract.network(world, vni=vni, subnets=these) for vni, these in ((5003, FIRST), (5004, SECOND))]
    victim = Router(world, nets, [host], number=1)
    await victim.ensure()
    one, two = await nets[0].guest(host), await nets[1].guest(host)
    for guest, gateways in ((one, FIRST), (two, SECOND)):
        guest.machine.run("ip", "route", "replace", "default", "via", str(gateways[0].gateway))
    await reaches(one, four(two))
    where = names.gateway_namespace(victim.uid)
    seeker = await front.guest(host)
    many = await back.guest(host, pairs=({"cidr": "10.60.0.0/16"},))
    everybody = [str(ip_network(large.cidr)[number]) for number in range(256, 4352)]
    seeks = [
        ethernet(seeker.nic.mac, "0a:00:00:00:00:00", 0x0800, ip4(four(seeker), to, 17, udp(9, 9, FALSE)))
        for to in everybody
    ]
    asks = [
        ethernet(many.nic.mac, BROADCAST, 0x0806, arp(1, many.nic.mac, who, "00:00:00:00:00:00", "10.60.0.1", b""))
        for who in everybody
    ]
    with Sender(seeker, seeks), Sender(many, asks):
        await eventually(lambda: seeker.sent() > 4096 and many.sent() > 4096, "nothing is sent")
        for _ in range(10):
            host.machine.run("ip", "-n", where, "neigh", "flush", "all")
            assert one.reaches(four(two), seconds=20), "the other tenant's router finds nobody"
    # Who is there is found also while somebody seeks: the tenant's own.
    target = await back.guest(host)
    target.machine.run("ip", "route", "replace", "default", "via", "10.60.0.1")
    seeker.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
    await reaches(target, four(seeker))
    with Sender(seeker, seeks):
        assert seeker.reaches(four(target), seconds=20)


async def test_tcp_is_told_of_the_smallest_packet_on_its_way(world: World, outside: Outside) -> None:
    router, one, _ = await TestGateways().two_tiers(world)
    router.outer, router.outer_mtu = (f"{OWN}/24",), 1280
    router.function = RouterFunction(masquerade=(Masquerade(sources=("10.20.30.0/24",), address=OWN),))
    await router.ensure()
    guest = await one.guest(world.hosts[0])
    guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
    await reaches(guest, CLIENT)
    for machine in (guest.machine, outside.machine):  # errors that say so do not come through, as it happens
        machine.run("nft", "add table ip lossy")
        machine.run("nft", "add chain ip lossy in { type filter hook input priority 0; }")
        machine.run("nft", "add rule ip lossy in icmp type destination-unreachable drop")
    try:
        with Server(outside, 8000), Talk(guest, CLIENT, 8000, size=20000) as talk:  # type: ignore[arg-type]
            assert talk.works_on()
    finally:
        outside.machine.run("nft", "delete table ip lossy")


async def test_source_nat_holds_for_connections_that_are_open_when_it_comes(world: World, outside: Outside) -> None:
    router, one, _ = await TestGateways().two_tiers(world)
    router.outer = (f"{OWN}/24",)
    router.function = RouterFunction(routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),))
    await router.ensure()
    guest = await one.guest(world.hosts[0])
    guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
    outside.machine.run("ip", "route", "replace", "10.20.30.0/24", "via", OWN)
    await reaches(guest, CLIENT)
    client: Guest = outside  # type: ignore[assignment]
    with (
        Server(client, 8000),
        Talk(guest, CLIENT, 8000, udp=True) as datagrams,
        Talk(guest, CLIENT, 8000) as stream,
    ):
        assert datagrams.works_on()
        assert stream.works_on()
        outside.machine.run("ip", "route", "delete", "10.20.30.0/24")  # nobody there knows tenants' addresses now
        masquerade = Masquerade(sources=("10.20.30.0/24",), address=OWN)
        router.function = router.function.model_copy(update={"masquerade": (masquerade,)})
        await router.ensure()
        assert datagrams.works_on()
        assert stream.is_cut(), "its other end knows it by another address"
