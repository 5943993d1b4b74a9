"""Gateways of the driver `linux` on hosts that are namespaces, with real packets: routers, the world outside, floating
addresses, and what becomes of them when a host goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from typing import Any

import pytest

from kumulus.api.gateways import FloatingAddress, Forward, Masquerade, Route, RouterFunction, Uplink
from kumulus.api.segments import Protocol, Subnet
from kumulus.api.trace import Verdict
from kumulus_agents.network.linux import names
from kumulus_agents.network.protocol import NetworkError
from tests.contract import network_world
from tests.contract.gateway_world import (
    CLIENT,
    FIRST,
    OWN,
    SECOND,
    SHARED,
    WAY_OUT,
    WHOLE,
    Contract,
    Outside,
    Router,
    dies_with_its_agent,
    known_elsewhere,
    processes_of,
    two_tiers,
    untranslated,
)
from tests.contract.network import Net, four, reaches, six
from tests.contract.network_frames import BROADCAST, FALSE, TRUE, arp, ethernet, ip4, udp
from tests.contract.network_programs import Probe, Sender, Server, Talk, Watcher, Within
from tests.contract.network_trace import Cloud
from tests.contract.network_world import Guest, Host, World, eventually
from tests.contract.test_network_linux import nothing_left
from tests.patience import PATIENCE

WHY_NOT = network_world.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Outside]]:
    made = World(2)
    try:
        outside = Outside(made)
        try:
            yield made, outside
        finally:
            outside.machine.close()
    finally:
        made.close()


@pytest.fixture
async def world(hosts: tuple[World, Outside]) -> AsyncIterator[World]:
    """Empty before; after the test everything is removed, and nothing is left."""
    world, _ = hosts
    for host in world.hosts:
        await host.driver.prepare()
    yield world
    await world.clear()
    for host in world.hosts:
        nothing_left(host)
        running = host.machine.run("ps", "-eo", "args")
        assert not [program for program in ("keepalived", "conntrackd") if program in running]


@pytest.fixture
def outside(hosts: tuple[World, Outside]) -> Outside:
    return hosts[1]


async def test_a_router_between_two_networks(world: World) -> None:
    router, one, two = await two_tiers(world)
    twin = await Contract().network(world, vni=5003, subnets=SECOND)
    host, other = world.hosts
    await router.ensure()
    front = await one.guest(host, addressed=False)
    told = front.dhcp()
    assert told["router"] == "10.20.30.1"
    front.address()
    back, stranger = await two.guest(other), await twin.guest(other)
    assert four(back) == four(stranger)
    for guest, gateways in ((front, FIRST), (back, SECOND)):
        guest.machine.run("ip", "route", "replace", "default", "via", str(gateways[0].gateway))
    await reaches(front, four(back))
    await reaches(back, four(front))
    # Guests of IPv6 learn of the router by its advertisement, and of the address by which it is the same on each host.
    await reaches(front, six(back))
    assert "proto ra" in front.machine.run("ip", "-6", "route", "show", "default")
    # Security groups judge who came from the other network too.
    shut = await two.guest(host, groups=())
    assert not front.reaches(four(shut))
    # Nothing else: not the host, not what serves the other network, not a network that the router has no leg in.
    for address in (host.address, "10.20.40.2", "169.254.169.254"):
        tried = (asyncio.to_thread(Talk.fails, front, address, port) for port in (80, 53))
        assert await asyncio.gather(*tried) == [True, True], address
    stranger.machine.run("ip", "route", "replace", "default", "via", "10.20.40.1")
    assert not stranger.reaches("10.20.40.1")
    # A network leaves it, live, and comes back.
    router.nets = [one]
    await router.ensure()
    assert not front.reaches(four(back))
    with pytest.raises(NetworkError) as caught:
        await host.driver.remove_segment(one.order.uid)
    assert caught.value.reason == "SegmentInUse"
    router.nets = [one, two]
    await router.ensure()
    await reaches(front, four(back))
    assert await host.driver.mend() == []
    for command in (
        f"ip link delete dev {names.leg(router.uid, two.order.uid)}",
        f"ip link delete dev {names.bridge(two.order.uid)}",
        f"ip netns delete {names.gateway_namespace(router.uid)}",
        f"ip -n {names.gateway_namespace(router.uid)} address flush dev {names.inner(two.order.uid)}",
        f"ip netns exec {names.gateway_namespace(router.uid)} nft flush chain inet kumulus forward",
        "kill keepalived",
    ):
        words = command.split()
        if words[0] == "kill":
            words = ["kill", "-KILL", *processes_of(host, router)]
        host.machine.run(*words)
        said = await host.driver.mend()
        assert said != [] or "flush dev" in command, f"{command}: addresses alone keepalived brings back by itself"
        assert await host.driver.mend() == [], command
        await reaches(front, four(back))
    # The network goes on while the agent is down; the next one finds all as it was.
    host.driver.kill()
    await reaches(front, four(back))
    host.restart()
    assert await host.driver.mend() == []
    assert router.uid in (await host.driver.found()).gateways


async def test_the_world_outside(world: World, outside: Outside) -> None:
    router, one, two = await two_tiers(world)
    host, other = world.hosts
    router.outer = (f"{OWN}/24",)
    router.function = RouterFunction(
        routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
        masquerade=(Masquerade(sources=("10.20.30.0/24", "10.20.40.0/24"), address=OWN),),
    )
    await router.ensure()
    front, back = await one.guest(host), await two.guest(other)
    for guest, gateways in ((front, FIRST), (back, SECOND)):
        guest.machine.run("ip", "route", "replace", "default", "via", str(gateways[0].gateway))
    with Server(outside, 8000, 8001):  # type: ignore[arg-type]  # a guest by another name
        for guest in (front, back):
            await reaches(guest, CLIENT)
            assert Talk.works(guest, CLIENT, 8000)
        # Nobody gets in who was not asked.
        outside.machine.run("ip", "route", "replace", "10.20.30.0/24", "via", OWN)
        assert not outside.reaches(four(front))
        assert outside.reaches(OWN, seconds=20)

        # A floating address: in, out, and by who is inside.
        router.outer = (f"{OWN}/24", f"{WHOLE}/32", f"{SHARED}/32")
        plain = router.function
        router.function = plain.model_copy(
            update={
                "floating": (FloatingAddress(external=WHOLE, internal=four(front)),),
                "forwards": (
                    Forward(external=SHARED, protocol="TCP", port=8080, internal=four(back), target_port=9000),
                    Forward(external=SHARED, protocol="TCP", port=8081, internal=four(front), target_port=9000),
                ),
            }
        )
        await router.ensure()
        await eventually(lambda: outside.reaches(WHOLE), "the floating address is not reached from outside")
        neighbour = await one.guest(other)
        neighbour.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
        with Server(front, 9000), Server(back, 9000):
            for port in (8080, 8081):
                assert Talk.works(outside, SHARED, port)  # type: ignore[arg-type]
            assert Talk.fails(outside, SHARED, 9000)  # type: ignore[arg-type]
            for guest in (neighbour, back, front):
                assert Talk.works(guest, WHOLE, 9000), f"{guest.nic.name} means the floating address from inside"
            # Who no longer is meant is cut, in the middle of a connection too; others go on.
            with (
                Talk(outside, WHOLE, 9000) as cut,  # type: ignore[arg-type]
                Talk(outside, SHARED, 8081) as moved,  # type: ignore[arg-type]
                Talk(outside, SHARED, 8080) as kept,  # type: ignore[arg-type]
                Talk(back, CLIENT, 8000) as out,
            ):
                assert all(talk.works_on() for talk in (cut, moved, kept, out))
                router.function = router.function.model_copy(
                    update={"floating": (), "forwards": router.function.forwards[:1]}
                )
                await router.ensure()
                assert kept.works_on()
                assert out.works_on()
                assert cut.is_cut()
                assert moved.is_cut()
    # Without source NAT the outside is just another network.
    router.function = RouterFunction(routes=plain.routes)
    await router.ensure()
    await eventually(lambda: outside.reaches(four(front)), "the network is not routed")
    router.uplink = Uplink(device="out0", vlan=7)
    with pytest.raises(NetworkError) as caught:
        await router.ensure()
    assert caught.value.reason == "VlanUnsupported"
    router.uplink = Uplink(device="nowhere")
    with pytest.raises(NetworkError) as caught:
        await router.ensure()
    assert caught.value.reason == "UplinkMissing"


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


@pytest.fixture
def without_conntrackd(world: World) -> Iterator[None]:
    """On both hosts there is no such program."""
    for host in world.hosts:
        host.settings["conntrackd"] = "/usr/sbin/no-such-program"
        host.restart()
    yield
    for host in world.hosts:
        del host.settings["conntrackd"]
        host.restart()


@pytest.mark.usefixtures("without_conntrackd")
async def test_another_host_takes_over(world: World, outside: Outside) -> None:
    router, one, two = await two_tiers(world, world.hosts[:2])
    router.outer = (f"{OWN}/24", f"{WHOLE}/32")
    one_guest = await one.guest(world.hosts[0])
    router.function = RouterFunction(
        routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
        masquerade=(Masquerade(sources=("10.20.30.0/24", "10.20.40.0/24"), address=OWN),),
        floating=(FloatingAddress(external=WHOLE, internal=four(one_guest)),),
    )
    await router.ensure()
    first = await router.active()
    assert first is world.hosts[0], "who comes first is active first"
    standby = world.hosts[1]
    assert not (await standby.driver.gateway_facts(router.uid)).active
    guest = await two.guest(world.hosts[1])
    guest.machine.run("ip", "route", "replace", "default", "via", "10.20.40.1")
    one_guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
    await reaches(guest, CLIENT)
    await reaches(guest, four(one_guest))
    await eventually(lambda: outside.reaches(WHOLE), "the floating address is not reached from outside")
    for host in world.hosts:
        assert await host.driver.mend() == []
        unkept = (await host.driver.gateway_facts(router.uid)).unkept
        assert unkept is not None
        assert "install the package conntrackd" in unkept
    with Server(outside, 8000), Talk(guest, CLIENT, 8000) as talk, Talk(guest, CLIENT, 8000) as idle:  # type: ignore[arg-type]
        assert talk.works_on()
        assert idle.works_on()
        dies_with_its_agent(first, router)
        await eventually(lambda: guest.reaches(CLIENT), "nobody takes over")
        assert (await standby.driver.gateway_facts(router.uid)).active
        await eventually(lambda: outside.reaches(WHOLE), "the floating address does not follow")
        await reaches(guest, four(one_guest))
        assert talk.works_on(), "connections go on"
        before = untranslated(standby, router)
    # The end of one that was idle is of no connection that the new one knows: it stays inside.
    await eventually(lambda: untranslated(standby, router) > before, "it has left with the guest's address")
    # The first one comes back, and does not take it away again.
    first.restart()
    assert await first.driver.mend() != []
    assert await first.driver.mend() == []
    for _ in range(10):
        assert guest.reaches(CLIENT, seconds=20)
    assert not (await first.driver.gateway_facts(router.uid)).active
    assert (await standby.driver.gateway_facts(router.uid)).active


@pytest.mark.wide
async def test_the_agent_dies_after_a_step(world: World, outside: Outside) -> None:
    """At every fifth step of making and of removing: the next agent completes, or removes, what it finds."""
    host, steps, died = world.hosts[0], -4, True
    while died:
        steps += 5
        router, one, _ = await two_tiers(world)
        router.outer = (f"{OWN}/24",)
        router.function = RouterFunction(
            routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
            masquerade=(Masquerade(sources=("10.20.30.0/24",), address=OWN),),
        )
        died = await dies(host, router, steps, "making")
        host.restart()
        if steps % 2:
            await router.ensure()
            guest = await one.guest(host)
            guest.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
            await reaches(guest, CLIENT)
            assert await host.driver.mend() == []
            died = await dies(host, router, steps, "removing") or died
            host.restart()
        await world.clear()
        nothing_left(host)
    assert steps > 20


async def dies(host: Host, router: Router, steps: int, what: str) -> bool:
    """Whether an agent that dies after so many steps came to its end by it."""
    driver = host.restart(die_after=steps)
    try:
        if what == "making":
            await driver.ensure_gateway(router.order(host))
        else:
            await driver.remove_gateway(router.uid)
    except network_world.Died:
        return True
    return False


async def test_open_connections_go_on_where_another_host_takes_over(world: World, outside: Outside) -> None:
    router, one, two = await two_tiers(world, world.hosts[:2])
    first, standby = world.hosts
    router.outer = (f"{OWN}/24", f"{WHOLE}/32", f"{SHARED}/32")
    front, back, third = await one.guest(standby), await two.guest(standby), await two.guest(standby)
    router.function = RouterFunction(
        routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
        masquerade=(Masquerade(sources=("10.20.30.0/24", "10.20.40.0/24"), address=OWN),),
        floating=(FloatingAddress(external=WHOLE, internal=four(front)),),
        forwards=(
            Forward(external=SHARED, protocol="TCP", port=8080, internal=four(back), target_port=9000),
            Forward(external=SHARED, protocol="UDP", port=8081, internal=four(back), target_port=9000),
        ),
    )
    await router.ensure()
    assert await router.active() is first
    for guest, gateways in ((front, FIRST), (back, SECOND), (third, SECOND)):
        guest.machine.run("ip", "route", "replace", "default", "via", str(gateways[0].gateway))
        await reaches(guest, CLIENT)
    client: Guest = outside  # type: ignore[assignment]  # a guest by another name
    # Of two guests that use the same port, source NAT gives one another: which, only the copies tell.
    with (
        Server(client, 8000),
        Server(front, 9000),
        Server(back, 9000),
        Talk(back, CLIENT, 8000, source=41000) as same,
        Talk(third, CLIENT, 8000, source=41000) as port,
        Talk(third, CLIENT, 8000, source=41001, udp=True) as asks,
        Talk(client, WHOLE, 9000, source=41002) as whole,
        Talk(client, SHARED, 8080, source=41003) as forward,
        Talk(client, SHARED, 8081, source=41004, udp=True) as datagrams,
    ):
        talks = (same, port, asks, whole, forward, datagrams)
        assert all(talk.works_on() for talk in talks)
        wanted = [f"sport={41000 + number} " for number in range(5)]
        await eventually(
            lambda: all(one in known_elsewhere(standby, router) for one in wanted), "the standby does not know them"
        )
        for host in (first, standby):
            assert (await host.driver.gateway_facts(router.uid)).unkept is None
            assert await host.driver.mend() == []
        dies_with_its_agent(first, router)
        await eventually(lambda: client.reaches(WHOLE), "nobody takes over")
        await eventually(lambda: forward.works_on(), "it does not come back at all")
        assert [talk.works_on() for talk in talks] == [True] * len(talks)
        # The first one comes back as the standby, and is told what is open now.
        first.restart()
        assert await first.driver.mend() != []
        assert await first.driver.mend() == []
        with Talk(client, SHARED, 8080, source=41005) as later:
            assert later.works_on()
            wanted.append("sport=41005 ")
            await eventually(lambda: all(one in known_elsewhere(first, router) for one in wanted), "it is not told")
        # Nor for long when conntrackd itself dies.
        first.machine.run("pkill", "-KILL", "conntrackd")
        await eventually(lambda: "conntrackd" not in first.machine.run("ps", "-eo", "comm"), "it does not end")
        assert await first.driver.mend() != []
        await eventually(lambda: all(one in known_elsewhere(first, router) for one in wanted), "it is not told again")


@pytest.mark.wide
async def test_open_connections_go_on_to_and_fro(world: World, outside: Outside) -> None:
    """A host that is active again has seen nothing of them in between."""
    router, one, _ = await two_tiers(world, world.hosts[:2])
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
            net = Net(world, world.hosts, Contract().order(subnets=FIRST))
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
    router, _, _ = await two_tiers(world, world.hosts[:2])
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
    contract, host = Contract(), world.hosts[0]
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
            assert one.reaches(four(two)), "the other tenant's router finds nobody"
    # Who is there is found also while somebody seeks: the tenant's own.
    target = await back.guest(host)
    target.machine.run("ip", "route", "replace", "default", "via", "10.60.0.1")
    seeker.machine.run("ip", "route", "replace", "default", "via", "10.20.30.1")
    await reaches(target, four(seeker))
    with Sender(seeker, seeks):
        assert seeker.reaches(four(target))


async def test_tcp_is_told_of_the_smallest_packet_on_its_way(world: World, outside: Outside) -> None:
    router, one, _ = await two_tiers(world)
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
    router, one, _ = await two_tiers(world)
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
