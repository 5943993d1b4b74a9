"""Routing between networks of a router on the sender's host, by the driver `ovn`, with real packets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus.api.gateways import FloatingAddress, Masquerade, Route, RouterFunction
from kumulus.api.segments import AddressPair, FilterGroup
from kumulus_agents.network.ovn import names
from tests.contract import network_frames, network_ovn
from tests.contract.gateways import (
    CLIENT,
    FIRST,
    OWN,
    SECOND,
    WAY_OUT,
    WHOLE,
    Outside,
    Router,
    dies_with_its_agent,
    emptied,
    hosts_of,
)
from tests.contract.network import OPEN, Net, four, new_uid, party, reaches, six, tcp
from tests.contract.network_frames import FALSE, ethernet, honest, ip4, udp
from tests.contract.network_ovn import OvnHost
from tests.contract.network_programs import Sender, Server, Talk, Watcher
from tests.contract.network_world import Guest, Host, World, eventually
from tests.contract.routing import Joined, by_gateway, neighbours
from tests.contract.test_network_ovn import OvnContract, nothing_left

WHY_NOT = network_ovn.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Outside]]:
    yield from hosts_of(OvnHost)


@pytest.fixture
async def world(hosts: tuple[World, Outside]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


@pytest.fixture
def outside(hosts: tuple[World, Outside]) -> Outside:
    return hosts[1]


@pytest.fixture
async def joined(world: World) -> Joined:
    return await joined_by(OvnContract(), world)


async def joined_by(networks: OvnContract, world: World) -> Joined:
    """A router with two networks on two hosts; the first host is its gateway. Nobody is told yet."""
    one = await networks.network(world, subnets=FIRST)
    two = await networks.network(world, vni=5002, subnets=SECOND)
    router = Router(world, [one, two], world.hosts[:1])
    await router.ensure()
    return Joined(router)


async def guest(net: Net, host: Host, **more: object) -> Guest:
    """One that sends what is for elsewhere to its gateway."""
    made = await net.guest(host, **more)
    by_gateway(made, net)
    return made


def hops(guest: Guest, address: str, ttl: int) -> str:
    """Who answers a packet that may be passed on so often."""
    said = guest.machine.attempt(
        "busybox", "traceroute", "-n", "-f", str(ttl), "-m", str(ttl), "-q", "1", "-w", "2", address
    )
    return said.stdout.splitlines()[-1].split()[1]


class RoutingContract:
    """What goes between networks does so on the sender's host, and nothing else changes; however networks are carried."""

    async def test_the_way(self, joined: Joined) -> None:
        one, two = joined.router.nets
        host, other = one.hosts
        front, near, far = await guest(one, other), await guest(two, other), await guest(two, host)
        for target in (near, far):
            await reaches(front, four(target))
            await reaches(front, six(target))
        before = neighbours(front)
        with Server(far, 80), Talk(front, four(far), 80) as four_talk, Talk(front, six(far), 80) as six_talk:
            assert four_talk.works_on() and six_talk.works_on()
            facts = await joined.tell(host, other)
            assert {fact.router for fact in facts} == {joined.router.uid}
            # Connections go on, and guests know the same gateway as before.
            assert four_talk.works_on() and six_talk.works_on()
            assert neighbours(front)["10.20.30.1"] == before["10.20.30.1"] == joined.gateways(one)[0]
        passed = joined.passed()
        for target in (near, far):
            for address in (four(target), six(target)):
                assert all(front.reaches(address) for _ in range(5)), address
        with Server(far, 80, 81), Server(front, 80), Talk(front, six(far), 80, size=4000) as talk:
            assert talk.works_on() and Talk.works(far, four(front), 80)
            assert Talk.fails(front, four(far), 82), "an error of the other end comes back"
        assert joined.passed() - passed < 10, "all of that went to the gateway"
        # What is the gateway's is the gateway's: its addresses, and who hears that a packet was passed on too often.
        for address in ("10.20.30.1", "10.20.40.1", "fd00:20::1", "fd00:40::1"):
            await reaches(front, address)
        assert [hops(front, four(near), ttl) for ttl in (1, 2)] == ["10.20.30.1", four(near)]
        assert not front.reaches("10.20.40.0") and not front.reaches("10.20.40.2")
        # It goes on while the agent is down; the next one finds all as it was.
        other.driver.kill()
        assert all(front.reaches(four(target)) for target in (near, far))
        other.restart()
        assert await other.driver.mend() == []
        passed = joined.passed()
        assert all(front.reaches(six(target)) for target in (near, far))
        # Networks go their way again when nobody tells of a router.
        await joined.untell(other)
        assert "router" not in other.machine.run("ovn-nbctl", "show")
        await reaches(front, four(near))
        assert joined.passed() > passed
        assert await other.driver.mend() == []
        # A network that leaves the router takes the way along.
        await joined.tell(other)
        joined.router.nets.remove(two)
        await joined.untell(other)
        await joined.router.ensure()
        assert not front.reaches(four(near))

    async def test_groups_judge_at_both_ends(self, joined: Joined) -> None:
        one, two = joined.router.nets
        host, other = one.hosts
        group, quiet = new_uid(), new_uid()

        async def let(*ports: int) -> None:
            groups = (
                OPEN,
                FilterGroup(uid=group, ingress=(tcp(*ports, cidrs=("10.20.30.0/24",)),)),
                FilterGroup(uid=quiet, egress=(tcp(80),)),
            )
            await joined.tell(host, other, groups=groups)

        await let(80, 81)
        front, silent = await guest(one, other), await guest(one, other, groups=(quiet,))
        targets = [await guest(two, where, groups=(group,)) for where in (other, host)]
        await let(80, 81)
        near, far = targets
        with Server(near, 80, 81, 82), Server(far, 80, 81, 82):
            for target in targets:
                assert Talk.works(front, four(target), 80) and Talk.works(silent, four(target), 80)
            refused = [(front, target, 82) for target in targets] + [(silent, target, 81) for target in targets]
            tried = (asyncio.to_thread(Talk.fails, who, four(target), port) for who, target, port in refused)
            assert all(await asyncio.gather(*tried))
            assert not front.reaches(four(far))
            with (
                Talk(front, four(near), 81) as one_cut,
                Talk(front, four(far), 81) as other_cut,
                Talk(front, four(far), 80) as kept,
            ):
                assert all(talk.works_on() for talk in (one_cut, other_cut, kept))
                await let(80)
                assert kept.works_on() and one_cut.is_cut() and other_cut.is_cut()

    async def test_without_a_gateway(self, joined: Joined) -> None:
        """What needs none goes on, also when guests ask whether it is there still; of IPv6 nobody answers in the kernel."""
        answers_six = not network_ovn.has_module()
        one, two = joined.router.nets
        host, other = one.hosts
        front, near, far = await guest(one, other), await guest(two, other), await guest(two, host)
        await joined.tell(host, other)
        for target in (near, far):
            await reaches(front, four(target))
            await reaches(front, six(target))
            await reaches(target, "10.20.40.1")
            await reaches(target, "fd00:40::1")
        dies_with_its_agent(host, joined.router)
        await eventually(lambda: not front.reaches("10.20.30.1"), "the gateway still answers")
        for asks in (front, near, far):
            for address, mac in neighbours(asks).items():
                if mac.startswith("0a:") and (answers_six or ":" not in address):
                    asks.machine.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "probe")

            def known(asks: Guest = asks) -> bool:
                said = asks.machine.run("ip", "neigh", "show", "dev", "eth0")
                return "PROBE" not in said and all(
                    "REACHABLE" in line or "STALE" in line or "DELAY" in line
                    for line in said.splitlines()
                    if "lladdr 0a:" in line
                )

            await eventually(known, "a guest does not know its gateway any more")
        for target in (near, far):
            for address in (four(target), six(target)) if answers_six else (four(target),):
                assert front.reaches(address, seconds=5), address

    @pytest.mark.wide
    async def test_beside_hosts_that_are_not_told(self, joined: Joined) -> None:
        """Whose agent is older, or which have one of the networks alone: their guests' packets go to the gateway, and what
        the gateway brings is answered through it."""
        one, two = joined.router.nets
        host, other = one.hosts
        front, far = await guest(one, other), await guest(two, host)
        await joined.tell(other)
        await reaches(front, four(far))
        with Server(front, 80), Server(far, 80):
            for source, target in ((front, far), (far, front)):
                for address in (four(target), six(target)):
                    with Talk(source, address, 80, size=4000) as talk, Talk(source, address, 80, udp=True) as asks:
                        assert talk.works_on() and asks.works_on()
        passed = joined.passed()
        assert all(far.reaches(four(front)) for _ in range(5))
        assert joined.passed() - passed >= 10, "questions went to the gateway, and answers did not"
        assert f"priority=1,ip,nw_src={four(front)},nw_dst={four(far)} " in other.machine.run(
            "ovs-ofctl", "--no-stats", "dump-flows", front.plug.bridge
        )
        assert await other.driver.mend() == []

    @pytest.mark.wide
    async def test_another_gateway_takes_over(self, joined: Joined) -> None:
        """The logical router hears of it, as guests do: it gives that one what it does not deliver itself."""
        one, two = joined.router.nets
        host, other = one.hosts
        joined.router.hosts = [host, other]
        await joined.router.ensure()
        assert await joined.router.active() is host
        shared = (AddressPair(cidr="10.20.40.100/32"),)
        front, near = await guest(one, other), await guest(two, other, pairs=shared)
        near.machine.run("ip", "address", "add", "10.20.40.100/24", "dev", "eth0")
        await joined.tell(host, other)
        for address in ("10.20.40.100", four(near)):
            await reaches(front, address)
        dies_with_its_agent(host, joined.router)
        assert front.reaches(four(near)), "nobody takes over yet"
        await reaches(front, "10.20.40.100")
        assert (await other.driver.gateway_facts(joined.router.uid)).active and front.reaches(six(near))

    async def test_nobody_pretends_to_be_the_router(self, joined: Joined) -> None:
        one, two = joined.router.nets
        host, other = one.hosts
        front, near, far = await guest(one, other), await guest(two, other), await guest(two, host)
        await joined.tell(host, other)
        [leg] = joined.gateways(one)
        mine, theirs = joined.mac(one, other), joined.mac(one, host)
        lies = [
            ethernet(source, target, 0x0800, ip4(sender, four(whom), 17, udp(9, 9, FALSE)))
            for whom in (near, far)
            for source, target, sender in (
                *((front.nic.mac, router, four(front)) for router in (mine, theirs)),
                *((router, leg, four(front)) for router in (mine, theirs, leg)),
                (front.nic.mac, leg, "10.20.30.77"),
                (front.nic.mac, leg, "10.20.30.0"),
                (front.nic.mac, leg, "10.20.40.77"),
            )
        ]
        arp = network_frames.arp
        lies.append(
            ethernet(
                front.nic.mac, network_frames.BROADCAST, 0x0806, arp(2, mine, "10.20.30.1", mine, "10.20.30.1", FALSE)
            )
        )
        truth = [
            ethernet(front.nic.mac, leg, 0x0800, ip4(four(front), four(whom), 17, udp(9, 9, network_frames.TRUE)))
            for whom in (near, far)
        ]
        with Watcher(near) as here, Watcher(far) as there, Sender(front, [*lies, *truth]):
            for watcher in (here, there):
                await eventually(lambda w=watcher: w.seen()[0] > 20, "honest frames do not arrive")  # type: ignore[misc]
                assert watcher.seen()[1] == 0, watcher.examples
        # What comes through a tunnel neither is this host's router, nor has it route.
        end = names.patch(one.order.uid, "br-int")
        own, its = party(front), party(await guest(one, host))
        false = ip4(its.four, own.four, 17, udp(9, 9, FALSE))
        onwards = ip4(its.four, four(near), 17, udp(9, 9, FALSE))
        with Watcher(front) as here, Watcher(near) as there:
            for source, target, packet in ((mine, own.mac, false), (its.mac, mine, onwards)):
                self.out(host, end, ethernet(source, target, 0x0800, packet))
            for _ in range(3):
                self.out(host, end, honest(its, own))
            await eventually(lambda: here.seen()[0] >= 3, "honest frames do not come through the tunnel")
            assert here.seen()[1] == there.seen()[1] == 0, (here.examples, there.examples)

    def out(self, host: Host, end: str, frame: bytes) -> None:
        """Send a frame from a host as if its network had."""
        number = host.machine.run("ovs-vsctl", "get", "interface", end, "ofport").strip()
        said = f"in_port={number} packet={frame.hex()} actions=table"
        host.machine.run("ovs-ofctl", "-O", "OpenFlow13", "packet-out", "br-kumulus", said)

    @pytest.mark.wide
    async def test_it_is_mended(self, joined: Joined) -> None:
        one, two = joined.router.nets
        host, other = one.hosts
        front, far = await guest(one, other), await guest(two, host)
        await joined.tell(host, other)
        await reaches(front, four(far))
        assert await other.driver.mend() == []
        router, port = names.router(joined.router.uid), names.router_port(joined.router.uid, two.order.uid)
        mac = joined.mac(one, other)
        for command in (
            f"ovn-nbctl lr-del {router}",
            f"ovn-nbctl lr-policy-del {router}",
            f"ovn-nbctl lrp-del {port}",
            f'ovn-nbctl set logical_router_port {port} mac="0e:00:00:00:00:77"',
            f"ovn-nbctl clear logical_router {router} options",
            f"ovn-nbctl lsp-del {names.to_router(one.order.uid)}",
            f"ovn-nbctl static-mac-binding-del {port} {four(far)}",
            f"ovs-ofctl del-flows {front.plug.bridge} dl_dst={mac}",
            f"ovs-ofctl del-flows {front.plug.bridge} table=20",
            f"ovs-ofctl del-flows br-kumulus dl_dst={mac}",
        ):
            other.machine.run(*command.split())
            assert await other.driver.mend() != [], command
            assert await other.driver.mend() == [], command
            passed = joined.passed()
            await eventually(lambda: front.reaches(four(far)), f"after {command}: it is not reached")
            assert joined.passed() - passed < 3, command


class TestRouting(RoutingContract):
    """By tunnels, and with the world outside."""

    async def test_translated_connections_and_shared_addresses(self, joined: Joined, outside: Outside) -> None:
        """Whom a floating address stands for is reached, and answers, through the gateway, which has to see both ways. So is
        an address that several may have. The way to the world is as it was."""
        one, two = joined.router.nets
        host, other = one.hosts
        shared = (AddressPair(cidr="10.20.40.100/32"),)
        front, near, far = await guest(one, other), await guest(two, other), await guest(two, host, pairs=shared)
        far.machine.run("ip", "address", "add", "10.20.40.100/24", "dev", "eth0")
        joined.router.outer = (f"{OWN}/24", f"{WHOLE}/32")
        joined.router.function = RouterFunction(
            routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
            masquerade=(Masquerade(sources=("10.20.30.0/24", "10.20.40.0/24"), address=OWN),),
            floating=(FloatingAddress(external=WHOLE, internal=four(front)),),
        )
        await joined.router.ensure()
        await joined.tell(host, other, but=(front,))
        await eventually(lambda: outside.reaches(WHOLE), "the floating address is not reached from outside")
        with Server(front, 9000), Server(far, 9000), Server(outside, 8000):  # type: ignore[arg-type]
            for asks in (near, far):
                assert Talk.works(asks, WHOLE, 9000), "it is meant by its floating address, from another network"
                assert Talk.works(asks, four(front), 9000) and Talk.works(asks, CLIENT, 8000)
            assert Talk.works(front, CLIENT, 8000) and Talk.works(front, four(far), 9000)
            assert Talk.works(front, "10.20.40.100", 9000)
            await joined.tell(host, other)
            assert Talk.works(front, "10.20.40.100", 9000)
            far.machine.run("ip", "route", "replace", "10.20.30.0/24", "via", "10.20.40.1", "src", "10.20.40.100")
            assert far.reaches(four(front)), "who asks from a shared address is answered"
