"""Routers whose networks hosts route between by themselves: as controllers would order them, and what shows the way of a packet."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from kumulus.api.segments import DirectPort, SegmentFacts, SegmentRouter
from kumulus_agents.network.linux import names
from tests.contract.gateways import FIRST, SECOND, Router
from tests.contract.network import Net, four
from tests.contract.network_world import Guest, Host


@dataclass
class Joined:
    """A router and its networks, on hosts that are told of it, or not."""

    router: Router

    def mac(self, net: Net, host: Host) -> str:
        """By which that host passes packets on into the network."""
        number = self.router.nets.index(net)
        return f"0a:0e:00:{self.router.number:02x}:{net.hosts.index(host):02x}:{number:02x}"

    def gateways(self, net: Net) -> tuple[str, ...]:
        """By which guests know the router."""
        legs = (leg for host in self.router.hosts for leg in self.router.order(host).legs)
        return tuple(sorted(leg.mac for leg in legs if leg.network == net.order.uid))

    def part(self, net: Net, host: Host, but: Collection[Guest] = ()) -> SegmentRouter:
        """What that host is told of the router in a network."""
        direct = tuple(
            DirectPort(mac=guest.nic.mac, addresses=guest.nic.addresses) for guest in net.guests if guest not in but
        )
        mac, gateways = self.mac(net, host), self.gateways(net)
        return SegmentRouter(uid=self.router.uid, mac=mac, gateways=gateways, direct=direct)

    async def tell(self, *hosts: Host, but: Collection[Guest] = (), **changes: object) -> list[SegmentFacts]:
        """Have these hosts told; `but`: who is not reached without the gateway."""
        said = []
        for net in self.router.nets:
            for host in hosts:
                peers = tuple(other.address for other in net.hosts if other is not host)
                told = {**changes, "peers": peers, "router": self.part(net, host, but)}
                said.append(await host.driver.ensure_segment(net.order.model_copy(update=told)))
        return said

    async def untell(self, *hosts: Host) -> None:
        """Have these hosts told of no router."""
        for net in self.router.nets:
            for host in hosts:
                peers = tuple(other.address for other in net.hosts if other is not host)
                await host.driver.ensure_segment(net.order.model_copy(update={"peers": peers}))

    def passed(self) -> int:
        """How many packets the gateways have had from guests' networks."""
        total = 0
        for host in self.router.hosts:
            where = names.gateway_namespace(self.router.uid)
            said = host.machine.run("ip", "-n", where, "-json", "-statistics", "link")
            inner = {names.inner(net.order.uid) for net in self.router.nets}
            total += sum(link["stats64"]["rx"]["packets"] for link in json.loads(said) if link["ifname"] in inner)
        return total


def by_gateway(guest: Guest, net: Net) -> None:
    """Have it use its network's gateway for all that is elsewhere."""
    for subnet in net.order.subnets:
        family = "-6" if ":" in subnet.cidr else "-4"
        guest.machine.run("ip", family, "route", "replace", "default", "via", str(subnet.gateway))


def neighbours(guest: Guest) -> dict[str, str]:
    """MACs that it knows, by address."""
    said = json.loads(guest.machine.run("ip", "-json", "neigh", "show", "dev", "eth0"))
    return {one["dst"]: one["lladdr"] for one in said if "lladdr" in one}


__all__ = ["FIRST", "SECOND", "Joined", "by_gateway", "four", "neighbours"]
