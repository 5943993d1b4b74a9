"""What an order says of a gateway: a router or a load balancer on one of its hosts. Part of host.kumulus.io.

A gateway has legs in networks, addresses that are there on one host at a time, and a function. Everything here was checked
when the order was read: an address is an address, so a driver can write it into files of other programs.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from kumulus.api.addresses import Address, Cidr, MacAddress, PlacedAddress
from kumulus.api.balancing import Balancing, BalancingFacts
from kumulus.api.base import Model, Rule, immutable, list_map
from kumulus.api.segments import NetworkDriverName, Uid, Uplink

LEGS_MOST = 32
FLOATING_MOST = 1024
FORWARDS_MOST = 1024
ROUTES_MOST = 128
SOURCES_MOST = LEGS_MOST * 2 + ROUTES_MOST


class GatewayFunction(StrEnum):
    """What a gateway can be, or can besides."""

    ROUTER = "Router"
    LOAD_BALANCER = "LoadBalancer"
    KEPT_CONNECTION = "KeptConnection"
    """Of routers: what they translate goes on when another host takes over. They work without."""

    @property
    def plural(self) -> str:
        """For sentences."""
        return _PLURALS[self]


_PLURALS = {
    GatewayFunction.ROUTER: "routers",
    GatewayFunction.LOAD_BALANCER: "load balancers",
    GatewayFunction.KEPT_CONNECTION: "connections that go on when another host takes over",
}


class GatewayLeg(Model):
    """A gateway's interface in a network."""

    network: Uid = Field(
        description="Uid of the Network, of which this host has a Segment order, or of the ExternalNetwork."
    )
    uplink: Uplink | None = Field(default=None, description="The way into an external network; a tenant's when empty.")
    mac: MacAddress = Field(description="MAC address of the interface on this host: each host's is another.")
    mtu: int = Field(description="Largest packet in the network, in bytes.", ge=576, le=65535)
    addresses: tuple[PlacedAddress, ...] = Field(
        default=(),
        description="Addresses that are there on the active host only. The first of a family is the gateway's own there.",
        max_length=FLOATING_MOST + 2,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class GatewayPeer(Model):
    """Another host that has the gateway."""

    underlay: Address = Field(description="Where its tunnels end.")
    mac: MacAddress = Field(description="MAC address of its end of the link between the gateway's hosts.")


class Redundancy(Model):
    """How hosts agree which of them is active: VRRP, over a link that only gateways have. One that is alone is active."""

    group: int = Field(description="Number of the gateway among others (VRID).", ge=1, le=255)
    priority: int = Field(description="Who has more becomes active when nobody is; nobody gives way.", ge=1, le=254)
    mac: MacAddress = Field(description="MAC address of this host's end of the link.")
    peers: tuple[GatewayPeer, ...] = Field(
        default=(), description="The other hosts.", max_length=7, json_schema_extra=list_map("underlay")
    )


class Route(Model):
    """A way to a range behind somebody in a network of the gateway."""

    destination: Cidr = Field(description="The range; all addresses for what goes to the world.")
    via: Address = Field(description="Who knows the way, in a network that the gateway has a leg in.")


class Masquerade(Model):
    """Connections from these ranges to an external network come from this address there."""

    sources: tuple[Cidr, ...] = Field(description="The ranges.", min_length=1, max_length=SOURCES_MOST)
    address: Address = Field(description="An address of the gateway in the external network.")


class FloatingAddress(Model):
    """An address of an external network that is as good as an interface's own."""

    external: Address = Field(description="The address in the external network; a leg has it.")
    internal: Address = Field(description="The interface's own.")


class ForwardProtocol(StrEnum):
    """What has ports."""

    TCP = "TCP"
    UDP = "UDP"


class Forward(Model):
    """Connections to a port of an external address go to an interface."""

    external: Address = Field(description="The address in the external network; a leg has it.")
    protocol: ForwardProtocol = Field(description="Of which protocol.")
    port: int = Field(description="Port of the external address.", ge=1, le=65535)
    internal: Address = Field(description="The interface's own address.")
    target_port: int = Field(description="Port there.", ge=1, le=65535)


class RouterFunction(Model):
    """What a router does between its legs. What comes from a leg has an address of that leg's networks, or of a route's."""

    routes: tuple[Route, ...] = Field(
        default=(),
        description="Ways besides those of its legs.",
        max_length=ROUTES_MOST,
        json_schema_extra=list_map("destination"),
    )
    masquerade: tuple[Masquerade, ...] = Field(
        default=(), description="Source NAT.", max_length=8, json_schema_extra=list_map("address")
    )
    floating: tuple[FloatingAddress, ...] = Field(
        default=(),
        description="Whole addresses.",
        max_length=FLOATING_MOST,
        json_schema_extra=list_map("external"),
    )
    forwards: tuple[Forward, ...] = Field(default=(), description="Single ports.", max_length=FORWARDS_MOST)
    advertise: bool = Field(default=True, description="It tells guests by router advertisements that it is a router.")


class GatewayOrder(Model):
    """A gateway on this host. One order a gateway and host."""

    rules = (Rule("has(self.router) != has(self.balancer)", "set exactly one function: router or balancer"),)

    uid: Uid = Field(
        description="Uid of the Router or LoadBalancer; names what is made for it.", json_schema_extra=immutable("uid")
    )
    driver: NetworkDriverName = Field(description="What makes it.", json_schema_extra=immutable("driver"))
    legs: tuple[GatewayLeg, ...] = Field(
        default=(), description="Its interfaces.", max_length=LEGS_MOST, json_schema_extra=list_map("network")
    )
    redundancy: Redundancy = Field(description="Who else has it, and which of them is active.")
    router: RouterFunction | None = Field(default=None, description="It routes between its legs.")
    balancer: Balancing | None = Field(default=None, description="It shares connections among members.")


class GatewayFacts(Model):
    """What is so of a gateway on this host."""

    active: bool = Field(default=False, description="Whether its addresses are here.")
    kept: bool | None = Field(
        default=None,
        description="Whether connections that are open and translated go on when another host takes over; empty when the agent"
        " does not say, as those do that are older than this field.",
    )
    unkept: str | None = Field(
        default=None,
        description="Why they would break; empty when they would go on, or there is nothing to keep.",
        max_length=512,
    )
    balancer: BalancingFacts | None = Field(default=None, description="What is so of a load balancer.")
