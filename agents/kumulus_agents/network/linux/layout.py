"""Everything that shall be on this host: its networks and their ports, with the small numbers that the kernel knows
them by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from kumulus.api.gateways import GatewayLeg, GatewayOrder
from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.protocol import NetworkError, Port

OPEN = 1
"""In place of a port's number: an end that is filtered elsewhere or not at all."""
SERVED = 0x7FFF
"""In place of a port's number: what serves the network."""
LAST = 0x7FFE
"""The highest number: a packet's mark has both ends' and a bit that rules use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for all networks and ports of the host."""

    connections: int = 65536
    """That the kernel tracks for one port, whoever opened them."""
    vxlan_port: int = 4789
    """UDP port where tunnels end."""


LIMITS = Limits()
"""Those of an operator who says nothing."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network that is here."""

    order: SegmentOrder
    number: int
    """Its conntrack zone: connections of networks with equal ranges are apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """A port that is here."""

    port: Port
    number: int
    """By which the part of the rules that sees connections knows it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All networks, ports and gateways of this host, by uid."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    gateways: Mapping[str, GatewayOrder] = field(default_factory=dict)
    barred: frozenset[str] = frozenset()
    """Networks and ports of these that no rule lets pass, because theirs cannot be loaded; until their order comes again."""

    def with_network(self, order: SegmentOrder) -> Layout:
        """With the network as the order says; it keeps its number."""
        had = self.networks.get(order.uid)
        number = had.number if had else _free(1, (network.number for network in self.networks.values()))
        networks = {**self.networks, order.uid: Network(order, number)}
        return replace(self, networks=networks, barred=self.barred - {order.uid})

    def with_port(self, port: Port) -> Layout:
        """With the port; it keeps its number."""
        had = self.places.get(port.nic.uid)
        number = had.number if had else _free(OPEN + 1, (place.number for place in self.places.values()))
        places = {**self.places, port.nic.uid: Place(port, number)}
        return replace(self, places=places, barred=self.barred - {port.nic.uid})

    def with_gateway(self, order: GatewayOrder) -> Layout:
        """With the gateway as the order says."""
        return replace(self, gateways={**self.gateways, order.uid: order})

    def without_gateway(self, uid: str) -> Layout:
        """Without that gateway."""
        return replace(self, gateways={key: value for key, value in self.gateways.items() if key != uid})

    def without_network(self, uid: str) -> Layout:
        """Without that network."""
        networks = {key: value for key, value in self.networks.items() if key != uid}
        return replace(self, networks=networks, barred=self.barred - {uid})

    def without_port(self, uid: str) -> Layout:
        """Without that port."""
        places = {key: value for key, value in self.places.items() if key != uid}
        return replace(self, places=places, barred=self.barred - {uid})

    def barring(self, uids: Iterable[str]) -> Layout:
        """With these barred, and no others."""
        return replace(self, barred=frozenset(uids))

    def open(self) -> Layout:
        """What is not barred."""
        networks = {uid: network for uid, network in self.networks.items() if uid not in self.barred}
        places = {
            uid: place
            for uid, place in self.places.items()
            if uid not in self.barred and place.port.nic.network in networks
        }
        return Layout(networks, places, self.gateways)

    def legs_in(self, network: str) -> list[tuple[str, GatewayLeg]]:
        """The legs that gateways have in a network of tenants, each with the gateway's uid, in a fixed order."""
        return [
            (uid, leg)
            for uid, gateway in sorted(self.gateways.items())
            for leg in gateway.legs
            if leg.network == network and leg.uplink is None
        ]

    def ports_of(self, network: str) -> list[Place]:
        """The ports of a network, in a fixed order."""
        return [place for _, place in sorted(self.places.items()) if place.port.nic.network == network]


def _free(first: int, taken: Iterable[int]) -> int:
    used = set(taken)
    for number in range(first, LAST + 1):
        if number not in used:
            return number
    raise NetworkError("This host has no numbers left for networks or ports.", reason="HostFull", retryable=False)
