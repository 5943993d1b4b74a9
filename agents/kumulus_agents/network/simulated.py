"""Networks without a machine: the same protocol, in a few dictionaries. For tests and for scale.

`SimulatedFabric` is what is on the host and outlives its driver, so that an agent can be restarted beside running guests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.balancing import BalancingFacts, MemberFacts
from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.segments import SegmentFacts, SegmentOrder
from kumulus_agents.network.protocol import (
    Dropped,
    Foreign,
    Found,
    Identity,
    NetworkError,
    Plug,
    Port,
    Traffic,
    Uplinks,
)


@dataclass
class SimulatedFabric:
    """The networks of a simulated host."""

    segments: dict[str, SegmentOrder] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    foreign: list[Foreign] = field(default_factory=list)
    drifted: list[str] = field(default_factory=list)
    """What somebody has changed by hand, a sentence each, until it is mended."""
    incapable: str | None = None
    """Why this host can make no networks."""
    functions: dict[GatewayFunction, str | None] = field(default_factory=lambda: dict.fromkeys(GatewayFunction))
    """What the host can serve, each with why not."""
    uplinks: Uplinks = field(default_factory=lambda: Uplinks(("eth0", "eth1")))
    """By which devices it can make VLANs."""
    gateways: dict[str, GatewayOrder] = field(default_factory=dict)
    certificates: dict[str, Identity] = field(default_factory=dict)
    """What TLS is ended with, by digest."""
    standby: set[str] = field(default_factory=set)
    """Uids of gateways that another host is active for."""
    unwell: set[str] = field(default_factory=set)
    """Uids of interfaces that fail health checks."""


class SimulatedNetworks:
    """The driver of a simulated host's networks."""

    def __init__(self, fabric: SimulatedFabric | None = None) -> None:
        self._fabric = fabric or SimulatedFabric()

    async def prepare(self) -> None:
        if self._fabric.incapable is not None:
            raise NetworkError(self._fabric.incapable, reason="KernelLacks", retryable=False)

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        return dict(self._fabric.functions)

    async def uplinks(self) -> Uplinks:
        return self._fabric.uplinks

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        uplinks = self._fabric.uplinks
        if segment.uplink is not None and (uplinks.lack is not None or segment.uplink.device not in uplinks.devices):
            why = uplinks.lack or f"This host has no device {segment.uplink.device}."
            raise NetworkError(why, reason="VlanUnsupported" if uplinks.lack else "UplinkMissing")
        self._fabric.segments[segment.uid] = segment
        vlan = segment.uplink.vlan if segment.uplink is not None else None
        return SegmentFacts(vni=segment.vni, vlan=vlan, mtu=segment.mtu, ports=len(self._ports_of(segment.uid)))

    async def remove_segment(self, uid: str) -> None:
        legs = (leg.network for gateway in self._fabric.gateways.values() for leg in gateway.legs)
        if self._ports_of(uid) or uid in legs:
            raise NetworkError(
                "Machines of this host have interfaces in the network, or a gateway.", reason="SegmentInUse"
            )
        self._fabric.segments.pop(uid, None)

    async def ensure_port(self, port: Port) -> Plug:
        segment = self._fabric.segments.get(port.nic.network)
        if segment is None:
            raise NetworkError("The network is not on this host yet.", reason="SegmentNotReady")
        self._fabric.ports[port.nic.uid] = port
        return Plug(f"kt{port.nic.uid[:8]}", f"kb{port.nic.network[:8]}", segment.mtu)

    async def remove_port(self, uid: str) -> None:
        self._fabric.ports.pop(uid, None)

    async def found(self) -> Found:
        fabric = self._fabric
        return Found(
            frozenset(fabric.segments),
            frozenset(fabric.ports),
            tuple(fabric.foreign),
            frozenset(fabric.gateways),
        )

    async def mend(self) -> Sequence[str]:
        mended, self._fabric.drifted = tuple(self._fabric.drifted), []
        return mended

    async def guard(self) -> Sequence[str]:
        await asyncio.Event().wait()  # nobody changes anything
        return ()

    async def dropped(self) -> Sequence[Dropped]:
        return ()

    async def traffic(self) -> Sequence[Traffic]:
        return ()

    async def missing_certificates(self, gateway: GatewayOrder) -> frozenset[str]:
        listeners = gateway.balancer.listeners if gateway.balancer is not None else ()
        digests = {one.certificate.digest for one in listeners if one.certificate is not None}
        return frozenset(digests - self._fabric.certificates.keys())

    async def ensure_gateway(
        self, gateway: GatewayOrder, certificates: Mapping[str, Identity] | None = None
    ) -> GatewayFacts:
        for leg in gateway.legs:
            if leg.uplink is None and leg.network not in self._fabric.segments:
                raise NetworkError("A network of the gateway is not on this host yet.", reason="SegmentNotReady")
        self._fabric.certificates.update(certificates or {})
        if await self.missing_certificates(gateway):
            raise NetworkError("The certificate is not on this host yet.", reason="CertificateMissing")
        self._fabric.gateways[gateway.uid] = gateway
        return await self.gateway_facts(gateway.uid)

    async def remove_gateway(self, uid: str) -> None:
        self._fabric.gateways.pop(uid, None)

    async def gateway_facts(self, uid: str) -> GatewayFacts:
        gateway = self._fabric.gateways.get(uid)
        if gateway is None or uid in self._fabric.standby:
            return GatewayFacts()
        if gateway.balancer is None:
            return GatewayFacts(active=True)
        members = tuple(
            MemberFacts(uid=member.uid, healthy=member.uid not in self._fabric.unwell)
            for member in gateway.balancer.members
        )
        return GatewayFacts(active=True, balancer=BalancingFacts(members=members))

    def _ports_of(self, network: str) -> list[Port]:
        return [port for port in self._fabric.ports.values() if port.nic.network == network]
