"""What gateways of every driver must do, with real packets: routers, the world outside, floating addresses, and what becomes
of them when a host goes. A driver's tests inherit `GatewayContract` and give it `world` and `outside`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from kumulus.api.gateways import (
    FloatingAddress,
    Forward,
    GatewayLeg,
    GatewayOrder,
    GatewayPeer,
    Masquerade,
    Redundancy,
    Route,
    RouterFunction,
)
from kumulus.api.segments import Subnet, Uplink
from kumulus_agents.network.linux import names
from kumulus_agents.network.protocol import NetworkError
from tests.contract import network_world
from tests.contract.network import Net, NetworkContract, four, new_uid, reaches, six
from tests.contract.network_programs import Server, Talk
from tests.contract.network_world import Guest, Host, Machine, World, eventually, why_no_vlans

CLIENT, WAY_OUT = "203.0.113.99", "203.0.113.99"
OWN, WHOLE, SHARED = "203.0.113.5", "203.0.113.6", "203.0.113.7"
SECOND = (
    Subnet(cidr="10.20.40.0/24", gateway="10.20.40.1", service="10.20.40.2"),
    Subnet(cidr="fd00:40::/64", gateway="fd00:40::1", service="fd00:40::2"),
)
FIRST = (
    Subnet(cidr="10.20.30.0/24", gateway="10.20.30.1", service="10.20.30.2"),
    Subnet(cidr="fd00:20::/64", gateway="fd00:20::1", service="fd00:20::2"),
)


class Outside:
    """The world: a client on a wire that each host has an end of, `out0`."""

    def __init__(self, world: World) -> None:
        world.wire.run("ip", "link", "add", "name", "outside", "type", "bridge")
        world.wire.run("ip", "link", "set", "dev", "outside", "up")
        for number, host in enumerate(world.hosts):
            world.wire.add_link(f"o{number}", mtu=1500, to=host.machine, peer=["name", "out0"])
            world.wire.run("ip", "link", "set", "dev", f"o{number}", "master", "outside", "up")
        self.machine = Machine("client")
        world.wire.add_link("oc", mtu=1500, to=self.machine, peer=["name", "eth0"])
        world.wire.run("ip", "link", "set", "dev", "oc", "master", "outside", "up")
        self.machine.run("ip", "address", "add", f"{CLIENT}/24", "dev", "eth0")
        self.machine.run("ip", "link", "set", "dev", "eth0", "up")

    def reaches(self, address: str, *, seconds: int = 1) -> bool:
        return self.machine.attempt("busybox", "ping", "-c", "1", "-W", str(seconds), address).returncode == 0


def hosts_of(kind: type[Host]) -> Iterator[tuple[World, Outside]]:
    """Two hosts, and what is outside."""
    for made in network_world.two_hosts(kind):
        outside = Outside(made)
        try:
            yield made, outside
        finally:
            outside.machine.close()


async def emptied(world: World, nothing_left: Callable[[Host], None]) -> AsyncIterator[World]:
    """Empty before; after the test everything is removed, and nothing is left."""

    def no_gateway_left(host: Host) -> None:
        nothing_left(host)
        running = host.machine.run("ps", "-eo", "args")
        assert not [program for program in ("keepalived", "conntrackd") if program in running]

    async for each in network_world.emptied(world, no_gateway_left):
        yield each


@dataclass
class Router:
    """A router on hosts, as controllers would order it."""

    world: World
    nets: list[Net]
    hosts: list[Host]
    uid: str = field(default_factory=new_uid)
    external: str = field(default_factory=new_uid)
    outer: tuple[str, ...] = ()
    uplink: Uplink = field(default_factory=lambda: Uplink(device="out0"))
    function: RouterFunction = field(default_factory=RouterFunction)
    outer_mtu: int = 1500
    number: int = 0
    """Of all routers of the world; their MAC addresses differ by it."""

    def order(self, host: Host) -> GatewayOrder:
        legs = [
            GatewayLeg(
                network=net.order.uid,
                mac=f"0a:00:00:{self.number:02x}:{self.hosts.index(host):02x}:{number:02x}",
                mtu=net.order.mtu,
                addresses=tuple(
                    f"{subnet.gateway}/{ip_network(subnet.cidr).prefixlen}"
                    for subnet in net.order.subnets
                    if subnet.gateway
                ),
            )
            for number, net in enumerate(self.nets)
        ]
        if self.outer:
            mac = f"0a:00:00:{self.number:02x}:{self.hosts.index(host):02x}:ee"
            legs.append(
                GatewayLeg(network=self.external, mac=mac, mtu=self.outer_mtu, uplink=self.uplink, addresses=self.outer)
            )
        ends = {other.address: f"0a:00:00:{self.number:02x}:{number:02x}:ff" for number, other in enumerate(self.hosts)}
        peers = tuple(GatewayPeer(underlay=u, mac=mac) for u, mac in ends.items() if u != host.address)
        return GatewayOrder(
            uid=self.uid,
            driver=host.name,
            legs=tuple(legs),
            redundancy=Redundancy(group=7, priority=100 - self.hosts.index(host), mac=ends[host.address], peers=peers),
            router=self.function,
        )

    async def ensure(self) -> None:
        for host in self.hosts:
            await host.driver.ensure_gateway(self.order(host))

    async def active(self) -> Host:
        """The host that is active, once there is one."""
        found: list[Host] = []

        async def look() -> bool:
            for host in self.hosts:
                if (await host.driver.gateway_facts(self.uid)).active:
                    found.append(host)
            return bool(found)

        for _ in range(600):
            if await look():
                return found[0]
            await asyncio.sleep(0.1)
        raise AssertionError("no host becomes active")


def processes_of(host: Host, router: Router) -> list[str]:
    """The router's keepalived and its child."""
    pid = host.machine.run("cat", f"{host.settings['state']}/routed/{router.uid}/vrrp.pid").strip()
    return [pid, *host.machine.run("pgrep", "-P", pid).split()]


def untranslated(host: Host, router: Router) -> int:
    """Packets that were dropped because they could not be translated."""
    where = names.gateway_namespace(router.uid)
    said = json.loads(
        host.machine.run("ip", "netns", "exec", where, *["nft", "-j", "list", "chain", "inet", "kumulus", "forward"])
    )
    rules = [entry["rule"] for entry in said["nftables"] if "rule" in entry]
    drops = [rule["expr"] for rule in rules if rule.get("comment") == "cannot be translated"]
    return sum(part["counter"]["packets"] for parts in drops for part in parts if "counter" in part)


def known_elsewhere(host: Host, router: Router) -> str:
    """Connections of the router's other hosts that the host knows."""
    files = f"{host.settings['state']}/connections/{router.uid}"
    return host.machine.run("conntrackd", "-C", f"{files}/current.conf", "-e")


def dies_with_its_agent(host: Host, router: Router) -> None:
    """The host's gateway, and all ways to it."""
    host.driver.kill()
    host.machine.run("kill", "-KILL", *processes_of(host, router))
    host.machine.run("ip", "-n", names.gateway_namespace(router.uid), "link", "set", "dev", "link", "down")
    for net in router.nets:
        host.machine.run("ip", "link", "set", "dev", names.leg(router.uid, net.order.uid), "down")
    if router.outer:
        host.machine.run("ip", "link", "set", "dev", names.outer_leg(router.uid, router.external), "down")


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


class GatewayContract:
    """The contract. `world` is a `World` with two hosts, empty; `outside` is the world outside."""

    networks: NetworkContract
    """That of the driver's networks."""

    def nothing_left(self, host: Host) -> None:
        """Nothing of any network or gateway is on the host."""
        raise NotImplementedError

    def breakages(self, router: Router, net: Net) -> list[str]:
        """Commands that harm a router's leg in a network, on its host."""
        raise NotImplementedError

    async def two_tiers(self, world: World, hosts: list[Host] | None = None) -> tuple[Router, Net, Net]:
        one = await self.networks.network(world, subnets=FIRST)
        two = await self.networks.network(world, vni=5002, subnets=SECOND)
        return Router(world, [one, two], hosts or world.hosts[:1]), one, two

    async def test_a_router_between_two_networks(self, world: World) -> None:
        router, one, two = await self.two_tiers(world)
        twin = await self.networks.network(world, vni=5003, subnets=SECOND)
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
        await reaches(front, "fd00:20::1")
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
        # The network goes on while the agent is down; the next one finds all as it was.
        host.driver.kill()
        await reaches(front, four(back))
        host.restart()
        assert await host.driver.mend() == []
        assert router.uid in (await host.driver.found()).gateways

    async def test_a_router_is_mended(self, world: World) -> None:
        router, one, two = await self.two_tiers(world)
        host, other = world.hosts
        await router.ensure()
        front, back = await one.guest(host), await two.guest(other)
        for guest, gateways in ((front, FIRST), (back, SECOND)):
            guest.machine.run("ip", "route", "replace", "default", "via", str(gateways[0].gateway))
        await reaches(front, four(back))
        assert await host.driver.mend() == []
        for command in (
            f"ip link delete dev {names.leg(router.uid, two.order.uid)}",
            *self.breakages(router, two),
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

    async def test_the_world_outside(self, world: World, outside: Outside) -> None:
        router, one, two = await self.two_tiers(world)
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
        if why_no_vlans() is not None:
            router.uplink = Uplink(device="out0", vlan=7)
            with pytest.raises(NetworkError) as caught:
                await router.ensure()
            assert caught.value.reason == "VlanUnsupported"
        router.uplink = Uplink(device="nowhere")
        with pytest.raises(NetworkError) as caught:
            await router.ensure()
        assert caught.value.reason == "UplinkMissing"

    @pytest.fixture
    def without_conntrackd(self, world: World) -> Iterator[None]:
        """On both hosts there is no such program."""
        for host in world.hosts:
            host.settings["conntrackd"] = "/usr/sbin/no-such-program"
            host.restart()
        yield
        for host in world.hosts:
            del host.settings["conntrackd"]
            host.restart()

    @pytest.mark.usefixtures("without_conntrackd")
    async def test_another_host_takes_over(self, world: World, outside: Outside) -> None:
        router, one, two = await self.two_tiers(world, world.hosts[:2])
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

    async def test_open_connections_go_on_where_another_host_takes_over(self, world: World, outside: Outside) -> None:
        router, one, two = await self.two_tiers(world, world.hosts[:2])
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
            await eventually(
                lambda: all(one in known_elsewhere(first, router) for one in wanted), "it is not told again"
            )

    @pytest.mark.wide
    async def test_the_agent_dies_after_a_step(self, world: World, outside: Outside) -> None:
        """At every fifth step of making and of removing: the next agent completes, or removes, what it finds."""
        host, steps, died = world.hosts[0], -4, True
        while died:
            steps += 5
            router, one, _ = await self.two_tiers(world)
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
            self.nothing_left(host)
        assert steps > 20
