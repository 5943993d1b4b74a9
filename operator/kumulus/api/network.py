"""network.kumulus.io: networks, interfaces, and what the operator offers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.addresses import GUESTS, IS_ADDRESS, IS_RANGE, RANGE_SIZE, UNICAST, Address, Cidr, DnsName, MacAddress
from kumulus.api.base import (
    AGE,
    DOMAIN,
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
from kumulus.api.segments import DhcpOption, NetworkDriverName
from kumulus.api.vlans import RANGES_MOST, VlanRange
from kumulus.api.volumes import ObjectName

GROUP = f"network.{DOMAIN}"

DEFAULT_GROUP = "default"
"""SecurityGroup of a namespace that interfaces have which name none; made with the first of them."""

_OF_A_SERVER = Rule(
    "!isIP(self) || ip(self).isGlobalUnicast()", "not the address of a DNS server that other machines can ask"
)


class NetworkType(StrEnum):
    """What a network is."""

    ISOLATED = "Isolated"
    """A tenant's own; its range may be anybody else's too."""
    SHARED = "Shared"
    """Made by the operator for several namespaces."""
    L2 = "L2"
    """Carries frames, and has no addresses of Kumulus."""


class AddressRange(Model):
    """Addresses from one to another, both in it."""

    rules = (
        Rule("isIP(self.start) && isIP(self.end)", "start and end must be addresses"),
        Rule(
            "!isIP(self.start) || !isIP(self.end) || ip(self.start).family() == ip(self.end).family()",
            "start and end must be of one family",
        ),
    )

    start: Address = Field(description="The first.")
    end: Address = Field(description="The last.")


class Dhcp(Model):
    """How guests get their addresses."""

    enabled: bool = Field(default=True, description="By DHCP, DHCPv6 and router advertisements; else guests set them.")
    ranges: tuple[AddressRange, ...] = Field(
        default=(),
        description="Addresses that interfaces are given which ask for none; the whole range when empty.",
        max_length=8,
    )
    options: tuple[DhcpOption, ...] = Field(
        default=(), description="What guests are told besides.", max_length=16, json_schema_extra=list_map("name")
    )


class NetworkDns(Model):
    """How guests look up names."""

    domain: DnsName | None = Field(
        default=None, description="Domain of the network: machines are found in it by their names."
    )
    servers: tuple[Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS, _OF_A_SERVER))], ...] = Field(
        default=(), description="Who is asked for other names; the host's own servers when empty.", max_length=3
    )


class NetworkSpec(Model):
    """What a network shall be."""

    rules = (
        Rule(
            "self.type == 'L2' ? !has(self.cidrs) || self.cidrs.size() == 0 : has(self.cidrs) && self.cidrs.size() > 0",
            "a network of type L2 has no cidrs, every other has",
            field=".cidrs",
        ),
        Rule(
            "!has(self.gateway) || (isIP(self.gateway) && has(self.cidrs)"
            " && self.cidrs.exists(c, isCIDR(c) && cidr(c).containsIP(self.gateway)))",
            "gateway must be an address of one of the cidrs",
            field=".gateway",
        ),
        Rule(
            "self.type == 'Shared' || !has(self.allowedNamespaces) || self.allowedNamespaces.size() == 0",
            "allowedNamespaces are for the type Shared",
            field=".allowedNamespaces",
        ),
    )

    network_class: DnsLabel | None = Field(
        default=None,
        alias="class",
        description="Name of a NetworkClass; the default one when empty.",
        json_schema_extra=immutable("class"),
    )
    type: NetworkType = Field(
        default=NetworkType.ISOLATED, description="What it is.", json_schema_extra=immutable("type")
    )
    cidrs: tuple[Annotated[Cidr, Field(json_schema_extra=cel(IS_RANGE, RANGE_SIZE))], ...] = Field(
        default=(),
        description="Its ranges: one of IPv4, one of IPv6, or both.",
        max_length=2,
        json_schema_extra={"x-kubernetes-list-type": "set"}
        | immutable("cidrs", ": make a new network")
        | cel(
            Rule(
                "self.size() < 2 || !isCIDR(self[0]) || !isCIDR(self[1])"
                " || cidr(self[0]).ip().family() != cidr(self[1]).ip().family()",
                "at most one range of IPv4 and one of IPv6",
            )
        ),
    )
    gateway: Address | None = Field(
        default=None,
        description="Address that a router has here; the first of the range when empty.",
        json_schema_extra=immutable("gateway"),
    )
    mtu: int | None = Field(
        default=None,
        description="Largest packet, in bytes; as much as the hosts' own network carries when empty.",
        ge=576,
        le=9000,
    )
    dhcp: Dhcp = Field(default_factory=Dhcp, description="How guests get their addresses.")
    dns: NetworkDns = Field(default_factory=NetworkDns, description="How guests look up names.")
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Other namespaces that may have interfaces in it, for the type Shared; `*` is no wildcard.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class NetworkStatus(Status):
    """What a network is."""

    phase: str | None = Field(default=None, description="Pending, Ready, Failed or Terminating.")
    vni: int | None = Field(default=None, description="Number of its VXLAN, when it is one.")
    vlan: int | None = Field(default=None, description="Number of its VLAN, when it is one.")
    physical_network: str | None = Field(default=None, description="Name of the PhysicalNetwork that its VLAN is of.")
    mtu: int | None = Field(default=None, description="Largest packet, in bytes, as guests are told.")
    driver: NetworkDriverName | None = Field(default=None, description="What makes it; kept when its class changes.")
    gateways: tuple[Address, ...] = Field(default=(), description="Addresses kept for a router.", max_length=2)
    services: tuple[Address, ...] = Field(
        default=(), description="Where each host serves DHCP, DNS and metadata to its own guests.", max_length=2
    )
    allocated: int | None = Field(default=None, description="How many addresses interfaces have, or had just now.")
    hosts: int | None = Field(default=None, description="On how many hosts it is.")

    @property
    def numbered(self) -> bool:
        """Whether it has its number, of a VXLAN or a VLAN."""
        return self.vni is not None or self.vlan is not None


class Network(Resource):
    """A network: machines with interfaces in it reach each other, wherever they run, and nobody else does."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Network",
        plural="networks",
        short_names=("net", "nets"),
        categories=("kumulus",),
        selectable=(".spec.class", ".spec.type"),
        columns=(
            Column("Type", ".spec.type"),
            Column("CIDRs", ".spec.cidrs"),
            PHASE,
            Column("Allocated", ".status.allocated", "integer"),
            Column("VNI", ".status.vni", "integer", priority=1),
            Column("VLAN", ".status.vlan", "integer", priority=1),
            Column("MTU", ".status.mtu", "integer", priority=1),
            Column("Hosts", ".status.hosts", "integer", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: NetworkSpec = Field(description="What the network shall be.")
    status: NetworkStatus = Field(default_factory=NetworkStatus, description="What the network is.")


Bits = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=r"^[1-9][0-9]*(k|M|G)?$")]
"""Bits a second, such as `100M`."""


class InterfaceBandwidth(Model):
    """How much an interface may carry."""

    inbound: Bits | None = Field(default=None, description="To the guest, in bits a second, such as `100M`.")
    outbound: Bits | None = Field(default=None, description="From the guest, in bits a second, such as `100M`.")


class AllowedAddressPair(Model):
    """What an interface may use as its own besides."""

    address: Annotated[str, StringConstraints(min_length=2, max_length=49, pattern=r"^[0-9a-fA-F.:/]+$")] = Field(
        description="An address or a range, such as that of a VRRP group.",
        json_schema_extra=cel(
            Rule(
                "isIP(self) || (isCIDR(self) && cidr(self) == cidr(self).masked() && cidr(self).prefixLength() > 0)",
                "not an address, and not a range other than all addresses",
            )
        ),
    )
    mac_address: MacAddress | None = Field(
        default=None,
        description="With that MAC address; its own when empty.",
        json_schema_extra=cel(UNICAST, GUESTS),
    )


class NetworkInterfaceSpec(Model):
    """What an interface shall be."""

    network: ObjectName = Field(description="Name of the Network.", json_schema_extra=immutable("network"))
    network_namespace: ObjectName | None = Field(
        default=None,
        description="Namespace of a network of the type Shared; that of the interface when empty.",
        json_schema_extra=immutable("networkNamespace"),
    )
    addresses: tuple[Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS))], ...] = Field(
        default=(),
        description="Addresses that it shall have; one of each of the network's ranges that none of these is of is chosen.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"} | immutable("addresses", ": make a new interface"),
    )
    mac_address: MacAddress | None = Field(
        default=None,
        description="MAC address, in lower case, that begins with neither 06 nor 0a; one is made when empty.",
        json_schema_extra=immutable("macAddress") | cel(UNICAST, GUESTS),
    )
    security_groups: tuple[ObjectName, ...] = Field(
        default=(),
        description=f"Names of SecurityGroups of the namespace; `{DEFAULT_GROUP}` when empty.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    allowed_address_pairs: tuple[AllowedAddressPair, ...] = Field(
        default=(), description="What it may use as its own besides its addresses.", max_length=16
    )
    bandwidth: InterfaceBandwidth | None = Field(default=None, description="How much it may carry.")


class InterfacePhase(StrEnum):
    """An interface's life in one word."""

    PENDING = "Pending"
    """It has no addresses yet."""
    ALLOCATED = "Allocated"
    """It has its addresses, and no machine that is on."""
    ATTACHED = "Attached"
    """A guest has it, as its hypervisor says."""
    FAILED = "Failed"
    TERMINATING = "Terminating"


class NetworkInterfaceStatus(Status):
    """What an interface is."""

    phase: InterfacePhase | None = Field(default=None, description="The state in one word.")
    network: str | None = Field(default=None, description="Uid of its network.", max_length=36)
    mac_address: MacAddress | None = Field(default=None, description="Its MAC address, for life.")
    addresses: tuple[Address, ...] = Field(default=(), description="Its addresses, for life.", max_length=16)
    vm: str | None = Field(default=None, description="Name of the machine that has it.")
    host: str | None = Field(default=None, description="Name of the host that the machine is on.")


class NetworkInterface(Resource):
    """An interface of a network, with a MAC and addresses for life: machines come and go, move and are restored."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="NetworkInterface",
        plural="networkinterfaces",
        short_names=("nic", "nics"),
        categories=("kumulus",),
        selectable=(".spec.network",),
        columns=(
            Column("Network", ".spec.network"),
            Column("Addresses", ".status.addresses"),
            Column("VM", ".status.vm"),
            PHASE,
            Column("MAC", ".status.macAddress", priority=1),
            Column("Host", ".status.host", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: NetworkInterfaceSpec = Field(description="What the interface shall be.")
    status: NetworkInterfaceStatus = Field(default_factory=NetworkInterfaceStatus, description="What the interface is.")


class Isolation(StrEnum):
    """What keeps networks apart on the way between hosts."""

    VXLAN = "VXLAN"
    """Tunnels between hosts: VXLAN, or Geneve by the driver ovn."""
    VLAN = "VLAN"
    """VLANs of a physical network."""


class NetworkClassSpec(Model):
    """How networks are made."""

    rules = (
        Rule(
            "(self.isolation == 'VLAN') == has(self.physicalNetwork)",
            "physicalNetwork says where VLANs are: isolation VLAN needs one, no other has one",
            field=".physicalNetwork",
        ),
        Rule(
            "self.isolation == 'VLAN' || !has(self.vlans) || self.vlans.size() == 0",
            "vlans are for isolation VLAN",
            field=".vlans",
        ),
        Rule(
            "self.isolation != 'VLAN' || !has(self.mtu)",
            "how large packets of a VLAN are is said by spec.mtu of the PhysicalNetwork",
            field=".mtu",
        ),
    )

    driver: NetworkDriverName = Field(
        default=NetworkDriverName.LINUX, description="What makes them on hosts.", json_schema_extra=immutable("driver")
    )
    isolation: Isolation = Field(
        default=Isolation.VXLAN,
        description="What keeps networks apart on the way between hosts.",
        json_schema_extra=immutable("isolation"),
    )
    physical_network: ObjectName | None = Field(
        default=None,
        description="Name of the PhysicalNetwork whose VLANs they are, for isolation VLAN. Machines go to hosts that have an"
        " uplink to it.",
        json_schema_extra=immutable("physicalNetwork"),
    )
    vlans: tuple[VlanRange, ...] = Field(
        default=(),
        description="VLANs that networks of this class are given, and of no class that names none; those that"
        " the PhysicalNetwork names when empty. One alone puts a network onto a VLAN that is there already.",
        max_length=RANGES_MOST,
    )
    default: bool = Field(default=False, description="It is the class of networks that name none.")
    mtu: int | None = Field(
        default=None,
        description="Largest packet that the hosts' own network carries, in bytes; 1500 when empty. For tunnels.",
        ge=1280,
        le=9216,
    )
    rest_seconds: int = Field(
        default=60, description="How long an address rests before another interface gets it.", ge=0, le=86400
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces that may use it; empty means all.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class NetworkClassStatus(Status):
    """What a class is."""


class NetworkClass(Resource):
    """How networks are made: the operator's offering."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="NetworkClass",
        plural="networkclasses",
        scope=Scope.CLUSTER,
        short_names=("netclass",),
        categories=("kumulus", "kumulus-admin"),
        columns=(
            Column("Driver", ".spec.driver"),
            Column("Isolation", ".spec.isolation"),
            Column("Physical", ".spec.physicalNetwork", priority=1),
            Column("Default", ".spec.default", "boolean"),
            reason_of(),
            AGE,
        ),
    )

    spec: NetworkClassSpec = Field(default_factory=NetworkClassSpec, description="How networks are made.")
    status: NetworkClassStatus = Field(default_factory=NetworkClassStatus, description="What the class is.")
