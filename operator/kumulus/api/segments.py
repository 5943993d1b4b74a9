"""What an order says of networks: a network's presence on a host, and a machine's interfaces. Part of host.kumulus.io.

Everything here was checked when the order was read: a name is a name and an address an address, so a driver can write
them into files of other programs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.addresses import Address, Cidr, DnsName, MacAddress
from kumulus.api.base import Model, Rule, immutable, list_map

Uid = Annotated[
    str, StringConstraints(min_length=36, max_length=36, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
]

InterfaceName = Annotated[str, StringConstraints(min_length=1, max_length=15, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
"""Name of an interface within its machine."""


DeviceName = Annotated[
    str, StringConstraints(min_length=1, max_length=15, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$")
]
"""Name of a device of a host, as its operator wrote it: no slash, no space, and not `.` or `..`."""

FIRST_VLAN, LAST_VLAN = 1, 4094
"""Numbers that a VLAN can have (IEEE 802.1Q: 0 is no VLAN, 4095 is kept)."""


class NetworkDriverName(StrEnum):
    """What makes networks on a host."""

    LINUX = "linux"
    """Bridge, VXLAN or VLAN, nftables, dnsmasq."""
    OVN = "ovn"


class Protocol(StrEnum):
    """What a rule of a group is about."""

    ANY = "Any"
    TCP = "TCP"
    UDP = "UDP"
    ICMP = "ICMP"
    ICMPV6 = "ICMPv6"


class Ports(Model):
    """A range of ports, both ends in it."""

    first: int = Field(description="The lowest.", ge=1, le=65535)
    last: int = Field(description="The highest.", ge=1, le=65535)


class FilterRule(Model):
    """Lets in, or out, what fits all that it says."""

    protocol: Protocol = Field(default=Protocol.ANY, description="Of which protocol.")
    ports: tuple[Ports, ...] = Field(
        default=(), description="To which ports, of TCP and UDP; any when empty.", max_length=32
    )
    cidrs: tuple[Cidr, ...] = Field(
        default=(), description="From, or to, which addresses; any when this and group are empty.", max_length=64
    )
    group: Uid | None = Field(default=None, description="From, or to, members of that group.")


class FilterGroup(Model):
    """A security group as this network's ports on this host need it. Replies to what was let through pass."""

    uid: Uid = Field(description="Uid of the SecurityGroup.")
    ingress: tuple[FilterRule, ...] = Field(default=(), description="What may reach members.", max_length=128)
    egress: tuple[FilterRule, ...] = Field(default=(), description="What members may reach.", max_length=128)
    members: tuple[Address, ...] = Field(
        default=(),
        description="Addresses of its members in this network, where a rule names the group.",
        max_length=16384,
    )


class Subnet(Model):
    """A range of a network."""

    cidr: Cidr = Field(description="The range.")
    gateway: Address | None = Field(
        default=None, description="Router that guests are told of; none when the network has none."
    )
    service: Address = Field(description="Where each host serves DHCP, DNS and metadata to its own guests.")


class DhcpOptionName(StrEnum):
    """What guests can be told besides addresses, routes and name servers."""

    NTP_SERVER = "ntp-server"
    DOMAIN_SEARCH = "domain-search"
    TFTP_SERVER = "tftp-server"
    BOOTFILE_NAME = "bootfile-name"


OptionValue = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][-A-Za-z0-9.:/_]*$")]
"""A name, an address or a path: no comma, no space, no line end."""


class DhcpOption(Model):
    """Something that guests are told by DHCP."""

    name: DhcpOptionName = Field(description="Which option.")
    values: tuple[OptionValue, ...] = Field(description="Its values, in order.", min_length=1, max_length=8)


class DnsRecord(Model):
    """A name in a network's domain."""

    name: DnsName = Field(description="The name, without the domain.")
    addresses: tuple[Address, ...] = Field(description="What it stands for.", min_length=1, max_length=16)


class Dns(Model):
    """How guests look up names."""

    domain: DnsName | None = Field(default=None, description="The network's own domain.")
    servers: tuple[Address, ...] = Field(
        default=(), description="Who is asked for other names; the host's own servers when empty.", max_length=3
    )
    records: tuple[DnsRecord, ...] = Field(
        default=(), description="Names of the network's machines.", max_length=4096, json_schema_extra=list_map("name")
    )


class Uplink(Model):
    """The way from this host into a physical network."""

    device: DeviceName = Field(
        description="A bridge of the host, or an interface that has no address and no other use."
    )
    vlan: int | None = Field(
        default=None, description="Number of a VLAN there; untagged when empty.", ge=FIRST_VLAN, le=LAST_VLAN
    )


DIRECT_MOST = 4096
"""Interfaces of a network that an order says are reached without a gateway."""


class DirectPort(Model):
    """An interface that its router's other networks reach without a gateway, wherever it is."""

    mac: MacAddress = Field(description="Its MAC address.")
    addresses: tuple[Address, ...] = Field(description="Its own addresses.", min_length=1, max_length=16)


class SegmentRouter(Model):
    """What a host has to know of a network's router to pass packets between its networks by itself. What leaves them goes to
    its gateway, as does what is for, or comes from, whoever is not in `direct`."""

    uid: Uid = Field(description="Uid of the Router.")
    mac: MacAddress = Field(
        description="MAC address by which this host passes packets on into the network: each host's is another, and no guest"
        " is told of it."
    )
    gateways: tuple[MacAddress, ...] = Field(
        default=(),
        description="MAC addresses by which guests know the router: its gateways' in the network.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    direct: tuple[DirectPort, ...] = Field(
        default=(),
        description="Interfaces in the network that are reached, and reach each other's networks, without a gateway.",
        max_length=DIRECT_MOST,
        json_schema_extra=list_map("mac"),
    )


class SegmentOrder(Model):
    """A network's presence on this host. It reaches other hosts by tunnels (vni), by a VLAN (uplink), or not at all."""

    rules = (
        Rule("!has(self.vni) || !has(self.uplink)", "a network is a VXLAN or a VLAN", field=".uplink"),
        Rule("!has(self.uplink) || has(self.uplink.vlan)", "the uplink of a network has a vlan", field=".uplink"),
        Rule(
            "has(self.uplink) == has(oldSelf.uplink) && (!has(self.uplink) || self.uplink.vlan == oldSelf.uplink.vlan)",
            "the vlan cannot be changed",
            field=".uplink",
        ),
    )

    uid: Uid = Field(description="Uid of the Network; names what is made for it.", json_schema_extra=immutable("uid"))
    driver: NetworkDriverName = Field(description="What makes it.", json_schema_extra=immutable("driver"))
    vni: int | None = Field(
        default=None,
        description="Number of the VXLAN; neither this nor an uplink: the network is on this host alone.",
        ge=1,
        le=16777215,
        json_schema_extra=immutable("vni"),
    )
    uplink: Uplink | None = Field(
        default=None, description="The way of the network's VLAN, which carries it in the place of a VXLAN."
    )
    mtu: int = Field(description="Largest packet in the network, in bytes.", ge=576, le=65535)
    peers: tuple[Address, ...] = Field(
        default=(),
        description="Addresses of the other hosts that have the network.",
        max_length=4096,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    subnets: tuple[Subnet, ...] = Field(
        default=(),
        description="Its ranges, at most one of IPv4 and one of IPv6; none: the network carries frames and serves nothing.",
        max_length=2,
        json_schema_extra=list_map("cidr"),
    )
    dhcp: bool = Field(
        default=True, description="Guests get their addresses by DHCP, DHCPv6 and router advertisements."
    )
    options: tuple[DhcpOption, ...] = Field(
        default=(), description="What DHCP tells besides.", max_length=16, json_schema_extra=list_map("name")
    )
    dns: Dns = Field(default_factory=Dns, description="How names are looked up.")
    groups: tuple[FilterGroup, ...] = Field(
        default=(),
        description="The security groups of this network's ports on this host, and those whose members their rules name.",
        max_length=512,
        json_schema_extra=list_map("uid"),
    )
    router: SegmentRouter | None = Field(
        default=None,
        description="Its router, where the host has others of the router's networks, too, and the driver routes between them.",
    )


class AddressPair(Model):
    """An address that an interface may use besides its own."""

    cidr: Cidr = Field(description="An address or a range of them.")
    mac: MacAddress | None = Field(default=None, description="With that MAC; its own when empty.")


class Bandwidth(Model):
    """How much an interface may carry."""

    inbound: int | None = Field(default=None, description="To the guest, in bits a second.", ge=8000)
    outbound: int | None = Field(default=None, description="From the guest, in bits a second.", ge=8000)


class Nic(Model):
    """An interface of an instance."""

    rules = (Rule("self.uid == oldSelf.uid", "another interface is another entry: change its name", field=".uid"),)

    name: InterfaceName = Field(description="Name within the machine.")
    uid: Uid = Field(description="Uid of the NetworkInterface; names its device on the host.")
    network: Uid = Field(description="Uid of the Network; a Segment order of this namespace has it.")
    mac: MacAddress = Field(description="MAC address of the guest's device.")
    addresses: tuple[Address, ...] = Field(
        default=(),
        description="The addresses that are its own.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    pairs: tuple[AddressPair, ...] = Field(default=(), description="What else it may use as its own.", max_length=16)
    groups: tuple[Uid, ...] = Field(
        default=(),
        description="Uids of its security groups: what any of them lets through passes, and nothing else. The Segment order has them.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    bandwidth: Bandwidth | None = Field(default=None, description="How much it may carry.")
    hostname: DnsName | None = Field(default=None, description="What the guest is told to be called.")


class NicFacts(Model):
    """What is so of an interface of an instance."""

    name: InterfaceName = Field(description="Name within the machine.")
    uid: Uid = Field(description="Uid of the NetworkInterface.")
    attached: bool = Field(description="Whether the hypervisor says that the guest has it.")


class SegmentFacts(Model):
    """What is so of a network on this host."""

    vni: int | None = Field(default=None, description="Number of the VXLAN.")
    vlan: int | None = Field(default=None, description="Number of the VLAN.")
    mtu: int | None = Field(default=None, description="Largest packet in the network, in bytes.")
    ports: int = Field(default=0, description="How many interfaces of this host are in it.")
    router: Uid | None = Field(
        default=None, description="Uid of the Router between whose networks this host passes packets by itself."
    )
