"""Settings of the driver `ovn`: what an administrator decides. No I/O."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath

from pydantic import Field

from kumulus_agents.network.linux.settings import GatewaySettings


class Datapath(StrEnum):
    """Who forwards packets."""

    AUTO = "auto"
    """The kernel where it has the module, else Open vSwitch itself."""
    SYSTEM = "system"
    """The kernel."""
    NETDEV = "netdev"
    """Open vSwitch itself. The device of the underlay has to be a port of one of its bridges."""


class OvnSettings(GatewaySettings):
    """How networks are made on this host."""

    state: PurePosixPath = Field(
        default=PurePosixPath("/run/kumulus/network-ovn"),
        description="Directory of what the driver has made, and of the files that dnsmasq reads. In memory: after the host"
        " was started anew there are no links either.",
    )
    datapath: Datapath = Field(default=Datapath.AUTO, description="Who forwards packets.")
    integration: str = Field(default="br-int", description="Bridge that OVN has.", pattern=r"^[a-z][-a-z0-9]{0,14}$")
    transport: str = Field(
        default="br-kumulus",
        description="Bridge that Kumulus makes for tunnels to other hosts.",
        pattern=r"^[a-z][-a-z0-9]{0,14}$",
    )
    connections: int = Field(
        default=65536,
        description="Connections that are tracked for one interface, whoever opened them; more are dropped. With the datapath"
        " of the kernel the host has to take many times that: sysctl net.netfilter.nf_conntrack_max.",
        ge=64,
        le=1 << 24,
    )
    openvswitch: PurePosixPath = Field(
        default=PurePosixPath("/run/openvswitch"), description="Directory of Open vSwitch's sockets."
    )
    ovn: PurePosixPath = Field(default=PurePosixPath("/run/ovn"), description="Directory of OVN's sockets.")
    ofctl: PurePosixPath = Field(default=PurePosixPath("/usr/bin/ovs-ofctl"), description="The program.")
    modprobe: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/modprobe"), description="The program.")
    appctl: PurePosixPath = Field(default=PurePosixPath("/usr/bin/ovs-appctl"), description="The program.")
