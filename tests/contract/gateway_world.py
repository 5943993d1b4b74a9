"""Gateways on hosts that are namespaces: a router as controllers would order it, and a client in the world outside."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import ip_network

from kumulus.api.gateways import GatewayLeg, GatewayOrder, GatewayPeer, Redundancy, RouterFunction, Uplink
from kumulus.api.segments import Subnet
from kumulus_agents.network.linux import names
from tests.contract import network_world
from tests.contract.network import Net, new_uid
from tests.contract.network_world import Host, Machine, World
from tests.contract.test_network_linux import TestContract as Contract

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

    def reaches(self, address: str) -> bool:
        return self.machine.attempt("busybox", "ping", "-c", "1", "-W", "1", address).returncode == 0


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
            driver="linux",
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
            await network_world.asyncio.sleep(0.1)
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


async def two_tiers(world: World, hosts: list[Host] | None = None) -> tuple[Router, Net, Net]:
    contract = Contract()
    one = await contract.network(world, subnets=FIRST)
    two = await contract.network(world, vni=5002, subnets=SECOND)
    return Router(world, [one, two], hosts or world.hosts[:1]), one, two
