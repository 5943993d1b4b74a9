"""network.kumulus.io: routers between networks, the way to the world, and addresses of the world that follow interfaces."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kumulus.api.addresses import IS_ADDRESS, IS_RANGE, RANGE_SIZE, Address, Cidr
from kumulus.api.base import (
    AGE,
    PHASE,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    Model,
    Resource,
    Rule,
    Scope,
    Status,
    cel,
    immutable,
    list_map,
    reason_of,
)
from kumulus.api.gateways import ForwardProtocol
from kumulus.api.network import GROUP, AddressRange
from kumulus.api.placement import Selector
from kumulus.api.segments import FIRST_VLAN, LAST_VLAN, DeviceName, Uid
from kumulus.api.vlans import RANGES_MOST, VlanRange
from kumulus.api.volumes import ObjectName

ROUTER_NETWORKS_MOST = 16


class Traffic(StrEnum):
    """What a physical network is for."""

    GUEST = "Guest"
    PUBLIC = "Public"
    STORAGE = "Storage"
    MANAGEMENT = "Management"


class HostUplink(Model):
    """How hosts are connected to a physical network."""

    name: DnsLabel = Field(description="Name of this entry.")
    host_selector: Selector = Field(default_factory=dict, description="Hosts with these labels; all when empty.")
    device: DeviceName = Field(
        description="Name of a bridge of the host, or of an interface that has no address and no other use.",
        json_schema_extra=cel(Rule("self != '.' && self != '..' && self != 'lo'", "no device has this name")),
    )


class PhysicalNetworkSpec(Model):
    """How hosts reach it."""

    traffic: Traffic = Field(default=Traffic.PUBLIC, description="What it is for.")
    mtu: int = Field(default=1500, description="Largest packet that it carries, in bytes.", ge=1280, le=9216)
    uplinks: tuple[HostUplink, ...] = Field(
        default=(),
        description="How hosts are connected to it. Of several that fit a host the first counts.",
        max_length=64,
        json_schema_extra=list_map("name"),
    )
    vlans: tuple[VlanRange, ...] = Field(
        default=(),
        description="VLANs of it that networks are given, of NetworkClasses with isolation VLAN. Those of"
        " ExternalNetworks are never given.",
        max_length=RANGES_MOST,
    )


class PhysicalNetworkStatus(Status):
    """What it is."""

    hosts: int | None = Field(default=None, description="How many hosts are connected to it.")
    vlans: int | None = Field(default=None, description="How many VLANs it names for networks.")
    allocated: int | None = Field(
        default=None, description="How many VLANs are in use, by networks and external networks, or were just now."
    )


class PhysicalNetwork(Resource):
    """A network that hosts are plugged into: where external networks are, and VLANs of tenants' networks."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="PhysicalNetwork",
        plural="physicalnetworks",
        scope=Scope.CLUSTER,
        short_names=("physnet",),
        categories=("kumulus-admin",),
        columns=(
            Column("Traffic", ".spec.traffic"),
            Column("Hosts", ".status.hosts", "integer"),
            Column("VLANs", ".status.vlans", "integer"),
            Column("Allocated", ".status.allocated", "integer"),
            Column("MTU", ".spec.mtu", "integer", priority=1),
            reason_of(priority=0),
            AGE,
        ),
    )

    spec: PhysicalNetworkSpec = Field(default_factory=PhysicalNetworkSpec, description="How hosts reach it.")
    status: PhysicalNetworkStatus = Field(default_factory=PhysicalNetworkStatus, description="What it is.")


class RoutedRange(Model):
    """A range that is one namespace's in the world, too."""

    cidr: Cidr = Field(description="The range.", json_schema_extra=cel(IS_RANGE))
    namespace: DnsLabel = Field(description="The namespace whose networks have it.")


class ExternalNetworkSpec(Model):
    """What it is, and which of its addresses Kumulus may give."""

    rules = (
        Rule(
            "!isCIDR(self.cidr) || !isIP(self.gateway) || cidr(self.cidr).containsIP(self.gateway)",
            "gateway must be an address of the cidr",
            field=".gateway",
        ),
        Rule(
            "!isCIDR(self.cidr) || !has(self.ranges) || self.ranges.all(r, !isIP(r.start) || !isIP(r.end)"
            " || (cidr(self.cidr).containsIP(r.start) && cidr(self.cidr).containsIP(r.end)))",
            "ranges must be in the cidr",
            field=".ranges",
        ),
        Rule(
            "self.allowRouted || !has(self.routed) || self.routed.size() == 0",
            "routed is for networks that say allowRouted",
            field=".routed",
        ),
    )

    physical_network: ObjectName = Field(
        description="Name of the PhysicalNetwork that it is in.", json_schema_extra=immutable("physicalNetwork")
    )
    vlan: int | None = Field(
        default=None,
        description="Number of its VLAN there; untagged when empty.",
        ge=FIRST_VLAN,
        le=LAST_VLAN,
        json_schema_extra=immutable("vlan"),
    )
    cidr: Cidr = Field(
        description="Its range.", json_schema_extra=cel(IS_RANGE, RANGE_SIZE) | immutable("cidr", ": make a new one")
    )
    gateway: Address = Field(
        description="The router there, which knows the way to the world.", json_schema_extra=cel(IS_ADDRESS)
    )
    ranges: tuple[AddressRange, ...] = Field(
        default=(), description="Addresses that Kumulus may give; the whole range when empty.", max_length=16
    )
    allow_routed: bool = Field(
        default=False,
        description="Routers may do without source NAT: what comes from tenants then has addresses that they chose, any at"
        " all. What is beyond has to see to that.",
    )
    routed: tuple[RoutedRange, ...] = Field(
        default=(),
        description="Ranges for which the world has a route to a namespace's routers, for allowRouted. Machines' addresses in"
        " them may be endpoints of Kubernetes Services of who has them; of ranges in each other the smaller one counts.",
        max_length=256,
        json_schema_extra=list_map("cidr"),
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces that may use it; empty means all.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class ExternalNetworkStatus(Status):
    """What it is."""

    allocated: int | None = Field(default=None, description="How many addresses are in use, or were just now.")
    size: int | None = Field(default=None, description="How many addresses Kumulus may give.")


class ExternalNetwork(Resource):
    """A network outside the cloud, in which routers and floating IPs have addresses."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="ExternalNetwork",
        plural="externalnetworks",
        scope=Scope.CLUSTER,
        short_names=("extnet",),
        categories=("kumulus", "kumulus-admin"),
        selectable=(".spec.physicalNetwork",),
        columns=(
            Column("CIDR", ".spec.cidr"),
            Column("Physical", ".spec.physicalNetwork"),
            Column("Allocated", ".status.allocated", "integer"),
            Column("Size", ".status.size", "integer", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: ExternalNetworkSpec = Field(description="What it is.")
    status: ExternalNetworkStatus = Field(default_factory=ExternalNetworkStatus, description="What there is.")


class StaticRoute(Model):
    """A way to a range behind a machine."""

    destination: Cidr = Field(
        description="The range.",
        json_schema_extra=cel(
            IS_RANGE,
            Rule(
                "!isCIDR(self) || cidr(self).prefixLength() > 0",
                "all addresses are the way to the world: set externalNetwork",
            ),
        ),
    )
    next_hop: Address = Field(
        description="Who knows the way: an address in one of the router's networks.", json_schema_extra=cel(IS_ADDRESS)
    )


class RouterSpec(Model):
    """What a router connects."""

    networks: tuple[ObjectName, ...] = Field(
        default=(),
        description="Names of Networks of the namespace. The router gets the address that each keeps for its gateway.",
        max_length=ROUTER_NETWORKS_MOST,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    external_network: ObjectName | None = Field(
        default=None, description="Name of the ExternalNetwork that is the way to the world; none when empty."
    )
    source_nat: bool = Field(
        default=True,
        alias="sourceNAT",
        description="Machines without a floating IP reach the world by the router's own address there, which nobody can"
        " open connections to. Without it, if the ExternalNetwork says allowRouted, their own addresses are used, for which"
        " the world needs a route.",
    )
    static_routes: tuple[StaticRoute, ...] = Field(
        default=(),
        description="Ways to ranges behind machines.",
        max_length=64,
        json_schema_extra=list_map("destination"),
    )
    high_availability: bool = Field(
        default=True, description="Another host is ready to take over when the one that routes fails."
    )


class RoutedNetwork(Model):
    """A network that a router has."""

    name: ObjectName = Field(description="Name of the Network.")
    uid: Uid = Field(description="Its uid.")
    addresses: tuple[Address, ...] = Field(default=(), description="The router's addresses there.", max_length=2)


class RouterPhase(StrEnum):
    """A router's life in one word."""

    PENDING = "Pending"
    ACTIVE = "Active"
    """A host says that it routes."""
    FAILED = "Failed"
    TERMINATING = "Terminating"


class RouterStatus(Status):
    """What a router is."""

    phase: RouterPhase | None = Field(default=None, description="The state in one word.")
    networks: tuple[RoutedNetwork, ...] = Field(
        default=(),
        description="The networks that it has.",
        max_length=ROUTER_NETWORKS_MOST,
        json_schema_extra=list_map("name"),
    )
    external_network: Uid | None = Field(default=None, description="Uid of the ExternalNetwork that it has a leg in.")
    external_address: Address | None = Field(default=None, description="Its address there.")
    active_host: str | None = Field(default=None, description="Name of the host that says that it routes.")
    standby_hosts: tuple[str, ...] = Field(
        default=(), description="Names of the hosts that are ready to take over.", max_length=8
    )


class Router(Resource):
    """Passes packets between networks of its namespace, and to the world."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Router",
        plural="routers",
        categories=("kumulus",),
        selectable=(".spec.externalNetwork",),
        columns=(
            Column("Networks", ".spec.networks"),
            Column("External", ".status.externalAddress"),
            PHASE,
            Column("Active", ".status.activeHost"),
            Column("Standby", ".status.standbyHosts", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: RouterSpec = Field(default_factory=RouterSpec, description="What it connects.")
    status: RouterStatus = Field(default_factory=RouterStatus, description="What it is.")


class FloatingTarget(Model):
    """Whom a floating address stands for."""

    interface: ObjectName = Field(description="Name of a NetworkInterface of the namespace.")


class PortForward(Model):
    """A port that is somebody's."""

    protocol: ForwardProtocol = Field(default=ForwardProtocol.TCP, description="TCP or UDP.")
    port: int = Field(description="Port of the floating address.", ge=1, le=65535)
    target_port: int | None = Field(
        default=None, description="Port of the interface; the same when empty.", ge=1, le=65535
    )
    interface: ObjectName = Field(description="Name of a NetworkInterface of the namespace.")


class FloatingIPSpec(Model):
    """An address of the world, and whom it stands for."""

    rules = (
        Rule(
            "!has(self.target) || !has(self.portForwards) || self.portForwards.size() == 0",
            "set target, or portForwards, or neither: a whole address has no ports to spare",
            field=".portForwards",
        ),
    )

    external_network: ObjectName = Field(
        description="Name of the ExternalNetwork.", json_schema_extra=immutable("externalNetwork")
    )
    address: Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS))] | None = Field(
        default=None,
        description="Address that it shall have; one is chosen when empty.",
        json_schema_extra=immutable("address", ": make a new FloatingIP"),
    )
    target: FloatingTarget | None = Field(default=None, description="The interface that has the whole address.")
    port_forwards: tuple[PortForward, ...] = Field(
        default=(),
        description="Single ports, each for an interface.",
        max_length=64,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["protocol", "port"],
        },
    )


class FloatingPhase(StrEnum):
    """A floating address' life in one word."""

    PENDING = "Pending"
    """It has no address, or nobody yet."""
    ALLOCATED = "Allocated"
    """It has its address, and stands for nobody."""
    ACTIVE = "Active"
    """A host says that it routes for it."""
    FAILED = "Failed"
    TERMINATING = "Terminating"


class FloatingIPStatus(Status):
    """What a floating address is."""

    phase: FloatingPhase | None = Field(default=None, description="The state in one word.")
    network: Uid | None = Field(default=None, description="Uid of its ExternalNetwork.")
    address: Address | None = Field(default=None, description="The address, for life.")
    router: str | None = Field(default=None, description="Name of the Router that has it.")
    host: str | None = Field(default=None, description="Name of the host that says that it routes for it.")


class FloatingIP(Resource):
    """An address of an external network, for life, that stands for an interface or for ports of several."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="FloatingIP",
        plural="floatingips",
        short_names=("fip", "fips"),
        categories=("kumulus",),
        selectable=(".spec.externalNetwork",),
        columns=(
            Column("Address", ".status.address"),
            Column("Interface", ".spec.target.interface"),
            PHASE,
            Column("Router", ".status.router", priority=1),
            Column("Host", ".status.host", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: FloatingIPSpec = Field(description="What it shall be.")
    status: FloatingIPStatus = Field(default_factory=FloatingIPStatus, description="What it is.")
