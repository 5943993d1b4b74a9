"""What load balancers of every driver must do between guests of several hosts, with real packets. A driver's tests inherit
`BalancerContract` and give it `world` and `outside`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from kumulus.api.balancing import BalancerListener, BalancerMember, Balancing, HealthCheck, ListenerProtocol
from kumulus.api.gateways import (
    FloatingAddress,
    GatewayFacts,
    GatewayLeg,
    GatewayOrder,
    GatewayPeer,
    Redundancy,
    Route,
    RouterFunction,
)
from kumulus_agents.network.linux import names
from kumulus_agents.network.protocol import NetworkError
from tests.contract.gateways import FIRST, OWN, WAY_OUT, WHOLE, Outside, Router
from tests.contract.network import Net, NetworkContract, four, new_uid
from tests.contract.network_programs import Talk
from tests.contract.network_world import CHECKOUT, Guest, Host, Machine, World, eventually
from tests.patience import PATIENCE

TALK = str(CHECKOUT / "tests/contract/balancer_talk.py")
SECONDS = 30.0
CHECK = HealthCheck(interval_seconds=1, timeout_seconds=1, unhealthy_threshold=2, healthy_threshold=1)


class Told:
    """A program in a namespace that is told lines and answers with lines."""

    def __init__(self, machine: Machine, *argv: str) -> None:
        self._process = machine.start(sys.executable, "-I", "-S", TALK, *argv)
        self.hear()

    def tell(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        return line.strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def listener(port: int, protocol: ListenerProtocol = ListenerProtocol.TCP, **more: Any) -> BalancerListener:
    return BalancerListener(port=port, protocol=protocol, target_port=8080, **more)


VIPS = ("10.20.30.80", "fd00:20::80")


@dataclass
class Shared:
    """A load balancer on two hosts, as controllers would order it."""

    net: Net
    members: list[Guest]
    uid: str = field(default_factory=new_uid)

    def order(self, host: Host) -> GatewayOrder:
        hosts = list(self.net.hosts)
        ends = {other.address: f"0a:00:00:00:{number:02x}:ff" for number, other in enumerate(hosts)}
        peers = tuple(GatewayPeer(underlay=at, mac=mac) for at, mac in ends.items() if at != host.address)
        leg = GatewayLeg(
            network=self.net.order.uid,
            mac=f"0a:00:00:00:{hosts.index(host):02x}:01",
            mtu=self.net.order.mtu,
            addresses=(f"{VIPS[0]}/24", f"{VIPS[1]}/64"),
        )
        return GatewayOrder(
            uid=self.uid,
            driver=host.name,
            legs=(leg,),
            redundancy=Redundancy(group=9, priority=100 - hosts.index(host), mac=ends[host.address], peers=peers),
            balancer=Balancing(
                addresses=VIPS,
                listeners=(listener(80),),
                members=tuple(BalancerMember(uid=guest.nic.uid, address=four(guest)) for guest in self.members),
                health_check=CHECK,
                gateways=tuple(subnet.gateway for subnet in self.net.order.subnets if subnet.gateway),
            ),
        )

    async def ensure(self) -> None:
        for host in self.net.hosts:
            await host.driver.ensure_gateway(self.order(host))

    async def serving(self, but: Host | None = None) -> Host:
        """The host that is active, once it finds all members well."""
        deadline = asyncio.get_running_loop().time() + 2 * SECONDS * PATIENCE
        while True:
            for host in self.net.hosts:
                facts = await host.driver.gateway_facts(self.uid) if host is not but else GatewayFacts()
                if facts.active and facts.balancer is not None and all(one.healthy for one in facts.balancer.members):
                    return host
            assert asyncio.get_running_loop().time() < deadline, "no host serves"
            await asyncio.sleep(0.1)


def answers(machine: Machine, address: str, count: int) -> set[str]:
    """Which members answer."""
    said = machine.run(sys.executable, "-I", "-S", TALK, "ask", address, "80", str(count), "", "")
    return {answer["member"] for answer in json.loads(said)}


class BalancerContract:
    """The contract. `world` is a `World` with two hosts, empty; `outside` is the world outside."""

    networks: NetworkContract
    """That of the driver's networks."""

    async def test_between_guests_of_two_hosts(self, world: World, outside: Outside) -> None:
        """It is found by guests and by the world, shares among guests, is mended, goes on without an agent, and the other host
        takes over."""
        net = await self.networks.network(world, subnets=FIRST)
        first, other = net.hosts
        near, far = await net.guest(first), await net.guest(other)
        client, guest = await net.guest(first), await net.guest(other)
        shared = Shared(net, [near, far])
        servers = [Told(one.machine, "serve", four(one)) for one in shared.members]
        try:
            await shared.ensure()
            active = await shared.serving()
            both = {four(near), four(far)}
            for one in (client, guest):
                for address in VIPS:
                    assert answers(one.machine, address, 4) == both
                assert Talk.fails(one, VIPS[0], 8080)
            for host in world.hosts:
                assert await host.driver.mend() == []
            active.machine.run("pkill", "-KILL", "-x", "haproxy")
            await eventually(lambda: "haproxy -D" not in active.machine.run("ps", "-eo", "args"), "it does not end")
            assert await active.driver.mend() != []
            assert await active.driver.mend() == []
            assert answers(client.machine, VIPS[0], 4) == both
            router = Router(world, [net], [other], outer=(f"{OWN}/24", f"{WHOLE}/32"))
            router.function = RouterFunction(
                routes=(Route(destination="0.0.0.0/0", via=WAY_OUT),),
                floating=(FloatingAddress(external=WHOLE, internal=VIPS[0]),),
            )
            await router.ensure()
            await eventually(lambda: outside.reaches(WHOLE), "the floating address is not reached from outside")
            assert answers(outside.machine, WHOLE, 4) == both
            with pytest.raises(NetworkError) as caught:
                await active.driver.remove_segment(net.order.uid)
            assert caught.value.reason == "SegmentInUse"

            # Without an agent, then without the host.
            active.driver.kill()
            assert answers(guest.machine, VIPS[0], 4) == both
            pid = active.machine.run("cat", f"{active.settings['state']}/routed/{shared.uid}/vrrp.pid").strip()
            children = active.machine.run("pgrep", "-P", pid).split()
            active.machine.run("kill", "-KILL", pid, *children)
            active.machine.run("ip", "link", "set", "dev", names.leg(shared.uid, net.order.uid), "down")
            await shared.serving(but=active)
            await eventually(lambda: client.reaches(VIPS[0]), "the address does not follow")
            assert answers(client.machine, VIPS[0], 4) == both
            active.restart()
        finally:
            for server in servers:
                server.close()
