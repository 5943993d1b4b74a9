"""A cloud in objects of the API, made on hosts as controllers would order it: what `net trace` says of it can be held against
what packets do."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import Protocol
from kumulus.api.trace import Question, Scene, Trace
from kumulus_controllers.network import nics, router_plan
from kumulus_controllers.network.networks import group_names
from kumulus_controllers.network.ranges import mac_of
from kumulus_controllers.network.segment_plan import Sight, segment
from kumulus_controllers.network.trace import trace
from tests.contract.network import new_uid
from tests.contract.network_world import Guest, Host, World

NS = "shop"
OUTSIDE_RANGE, OUTSIDE_GATEWAY = "203.0.113.0/24", "203.0.113.99"


def meta(name: str, namespace: str | None = NS) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": new_uid(), "generation": 1}


@dataclass
class Cloud:
    """The objects. All hosts have all networks."""

    networks: list[Network]
    groups: list[SecurityGroup]
    interfaces: list[NetworkInterface]
    router: Router
    external: ExternalNetwork
    floating: list[FloatingIP]
    active: str = "host1"

    @classmethod
    def make(
        cls,
        networks: Mapping[str, list[str]],
        groups: Mapping[str, Mapping[str, Any]],
        interfaces: Mapping[str, tuple[str, str, list[str], Mapping[str, Any]]],
        floating: Mapping[str, tuple[str, Mapping[str, Any]]],
    ) -> Cloud:
        """`networks`: ranges, by name. `interfaces`: network, host, addresses and more of the spec. `floating`: address and
        whom it stands for. The router has all networks and a leg outside."""
        nets = [
            Network.parse(
                {
                    "metadata": meta(name),
                    "spec": {"cidrs": cidrs},
                    "status": {"vni": 6000 + number, "mtu": 1450, "driver": "linux"},
                }
            )
            for number, (name, cidrs) in enumerate(networks.items())
        ]
        by_name = {net.name: net for net in nets}
        made = []
        for name, (network, host, addresses, spec) in interfaces.items():
            own = meta(name)
            status = {
                "network": by_name[network].uid,
                "macAddress": mac_of(own["uid"]),
                "addresses": addresses,
                "vm": name,
                "host": host,
                "phase": "Attached",
            }
            made.append(
                NetworkInterface.parse({"metadata": own, "spec": {"network": network, **spec}, "status": status})
            )
        external = ExternalNetwork.parse(
            {
                "metadata": meta("public", None),
                "spec": {"physicalNetwork": "wire", "cidr": OUTSIDE_RANGE, "gateway": OUTSIDE_GATEWAY},
            }
        )
        legs = [
            {
                "name": net.name,
                "uid": net.uid,
                "addresses": [str(ipaddress.ip_network(cidr)[1]) for cidr in net.spec.cidrs],
            }
            for net in nets
        ]
        router = Router.parse(
            {
                "metadata": meta("gw"),
                "spec": {"networks": list(networks), "externalNetwork": "public"},
                "status": {"networks": legs, "externalNetwork": external.uid, "externalAddress": "203.0.113.5"},
            }
        )
        ips = [
            FloatingIP.parse(
                {
                    "metadata": meta(name),
                    "spec": {"externalNetwork": "public", **spec},
                    "status": {"address": address, "network": external.uid, "router": "gw"},
                }
            )
            for name, (address, spec) in floating.items()
        ]
        rules = [SecurityGroup.parse({"metadata": meta(name), "spec": spec}) for name, spec in groups.items()]
        return cls(nets, rules, made, router, external, ips)

    def of(self, network: Network) -> list[NetworkInterface]:
        return [nic for nic in self.interfaces if nic.status.network == network.uid]

    async def ensure(self, world: World) -> dict[str, Guest]:
        """Have it on hosts, with a guest for each interface."""
        hosts = dict(zip(("host1", "host2"), world.hosts, strict=True))
        groups = {(group.namespace, group.name): group for group in self.groups}
        for network in self.networks:
            sight = Sight(
                network=network,
                interfaces=tuple(self.of(network)),
                groups=groups,
                hosts={
                    name: frozenset(nic.uid for nic in self.of(network) if nic.status.host == name) for name in hosts
                },
                underlays={name: host.address for name, host in hosts.items()},
                routers=frozenset(a for part in self.router.status.networks for a in part.addresses),
                beyond=tuple(nic for nic in self.interfaces if nic.status.network != network.uid),
            )
            for name, host in hosts.items():
                await host.driver.ensure_segment(segment(sight, name))
        await self._route(hosts)
        guests = {}
        for interface in self.interfaces:
            own = {name: groups.get((NS, name)) for name in group_names(interface)}
            guest = await world.guest(hosts[str(interface.status.host)], nics.nic("eth0", interface, own, None))
            guests[interface.name] = guest
            for address in interface.status.addresses:
                family = "-6" if ":" in address else "-4"
                gateway = next(
                    one
                    for part in self.router.status.networks
                    for one in part.addresses
                    if part.uid == interface.status.network and (":" in one) is (":" in address)
                )
                guest.machine.run("ip", family, "route", "replace", "default", "via", gateway)
        return guests

    async def _route(self, hosts: Mapping[str, Host]) -> None:
        scope = router_plan.Scope(
            router=self.router,
            external=self.external,
            physical=PhysicalNetwork.parse({"metadata": meta("wire", None), "spec": {}}),
            devices=dict.fromkeys(hosts, "out0"),
            floating=self.floating,
            interfaces={nic.name: nic for nic in self.interfaces},
        )
        held = router_plan.Held(tuple(self.networks), self.router.status.external_address)
        does, across = router_plan.function(scope, held), (self.active,)
        order = router_plan.order(scope, held, does, self.active, across, {self.active: hosts[self.active].address})
        await hosts[self.active].driver.ensure_gateway(order)

    def ask(
        self, source: str, target: str, protocol: Protocol, port: int | None, sent_from: str | None = None
    ) -> Trace:
        """What is said of a packet."""
        status = self.router.status.model_copy(update={"active_host": self.active})
        scene = Scene(
            networks=self.networks,
            interfaces=self.interfaces,
            groups=self.groups,
            routers=(self.router.model_copy(update={"status": status}),),
            floating=self.floating,
            externals=(self.external,),
            machines=tuple(map(_running, self.interfaces)),
        )
        return trace(scene, Question(source, target, NS, protocol, port, sent_from))


def _running(nic: NetworkInterface) -> VirtualMachine:
    spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "interfaces": [{"name": "eth0", "interface": nic.name}]}
    return VirtualMachine.parse({"metadata": meta(nic.name), "spec": spec, "status": {"phase": "Running"}})
